"""Figures show the record's numbers, whatever its names and gaps, and can be read."""

from __future__ import annotations

import csv
import errno
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import combinations, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from records import CIFAR, HOSTILE, damaged, sample_record, sample_series

import wgeo
from wgeo import plots
from wgeo.errors import ArgumentError, DependencyError, FeatureError, RecordError
from wgeo.plots import style
from wgeo.plots.animation import scene
from wgeo.plots.files import SERIES_STEMS, STEMS, catalog, require_figures_writable
from wgeo.report.markdown import stage_title
from wgeo.storage.ownership import MANIFEST
from wgeo.storage.record import Segment, SeriesRecord
from wgeo.trajectory import Trajectory
from wgeo.ufm.record import record_of

RECORD = sample_record()
DEEP = sample_record((19, 18, 18))
PANELS = {
    "distances": plots.distances,
    "class_variability": plots.class_variability,
    "ot_scores": plots.ot_scores,
    "correlation_scores": plots.correlation_scores,
    "correlation_pairs": plots.correlation_pairs,
    "distance_pairs": plots.distance_pairs,
    "collapse": plots.collapse,
    "model_errors": plots.model_errors,
    "class_means": plots.class_means,
    "straightness": plots.straightness,
    "interpolation_gap": plots.interpolation_gap,
    "sample_sizes": plots.sample_sizes,
    "gradient_maps": plots.gradient_maps,
    "separation_law": plots.separation_law,
    "alignment": plots.alignment,
}
SERIES = {
    "over": plots.over,
    "profiles": plots.profiles,
    "block_distances": plots.block_distances,
}
MODEL = {
    "model_means": plots.models.model_means,
    "model_terms": plots.models.model_terms,
    "model_layers": plots.models.model_layers,
    "model_starts": plots.models.model_starts,
}
OTHERS = {"axes", "figures", "flow", "model", "save"}


def drawn(ax: Any) -> Any:
    """The figure of some axes, laid out and rendered."""
    figure = ax.get_figure(root=True)
    figure.canvas.draw()
    return figure


# --- the numbers ---------------------------------------------------------------------------------


def test_bars_are_w2_with_intervals_and_dashes_the_networks_pairing() -> None:
    ax = plots.distances(RECORD)
    blocks = RECORD["blocks"]
    assert [bar.get_height() for bar in ax.patches][-len(blocks) :] == [
        b["distance"] for b in blocks
    ]
    (_, _, (bars,)) = ax.containers[-1].lines
    for segment, block in zip(bars.get_segments(), blocks, strict=True):
        np.testing.assert_allclose(segment[:, 1], [block["lower"], block["upper"]])
    dashes = ax.collections[-1].get_offsets()
    np.testing.assert_allclose(dashes[:, 1], [b["paired"] for b in blocks])


def test_scores_of_low_or_unknown_resolution_are_hollow() -> None:
    record = sample_record()
    for block, resolution in zip(record["blocks"], (0.5, 0.4999, None, 0.0), strict=False):
        block["resolution"] = resolution
    record["blocks"][0]["ot_score"] = 1.0
    solid, hollow = (line for line in plots.ot_scores(record).lines if line.get_marker() == "o")
    assert 0 in solid.get_xdata()
    assert set(hollow.get_xdata()) >= {1, 2, 3}
    assert hollow.get_markerfacecolor() == "white"
    assert solid.get_ydata()[0] == 1e-6  # the lower edge
    expected = [1 - record["blocks"][i]["ot_score"] for i in hollow.get_xdata()]
    np.testing.assert_allclose(hollow.get_ydata(), np.maximum(expected, 1e-6))


def test_hollow_also_marks_segments_end_to_end() -> None:
    record = sample_record((4, 3))
    record["segments"][0]["resolution"] = 0.3
    record["segments"][1]["resolution"] = 0.6
    record["segments"][0]["power"], record["segments"][1]["power"] = True, False
    ax = plots.straightness(record, measures=plots.paths.SCORES)
    rows = list(plots.paths.SCORES)

    def hollow(marker: str) -> set[str]:
        lines = [line for line in ax.lines if line.get_marker() == marker]
        white = [line for line in lines if line.get_markerfacecolor() == "white"]
        return {rows[round(float(y))] for line in white for y in line.get_ydata()}

    assert hollow("o") == {"ot_score", "ot_score_centred"}
    assert hollow("s") == {"corr_score"}


def test_correlation_score_is_drawn_with_its_null_and_hollow_without_power() -> None:
    record = sample_record()
    for block, power in zip(record["blocks"], (True, False, None), strict=False):
        block["power"] = power
    ax = plots.correlation_scores(record)
    (crosses,) = (line for line in ax.lines if line.get_marker() == "x")
    highest = [max(null["score"][2] for null in b["null"]) for b in record["blocks"]]
    np.testing.assert_allclose(crosses.get_ydata(), np.maximum(1 - np.array(highest), 1e-6))
    solid, hollow = (line for line in ax.lines if line.get_marker() == "o")
    assert hollow.get_markerfacecolor() == "white"
    assert 0 in solid.get_xdata()
    assert {1, 2} <= set(hollow.get_xdata())
    for line in (solid, hollow):
        scores = [record["blocks"][int(i)]["corr_score"][0] for i in line.get_xdata()]
        np.testing.assert_allclose(line.get_ydata(), np.maximum(1 - np.array(scores), 1e-6))


def test_map_of_distances_between_pairs_of_layers() -> None:
    record = sample_record((5,))
    distance = np.array(record["segments"][0]["pairs"]["distance"])
    ax = plots.distance_pairs(record, ax=plots.axes("page"))
    shown = np.ma.filled(ax.images[0].get_array(), np.nan)
    later = np.triu(np.ones(shown.shape, bool))
    np.testing.assert_allclose(shown[later], distance[:-1, 1:][later])
    assert np.isnan(shown[~later]).all()
    assert {text.get_text() for text in ax.texts} == {f"{v:.2g}" for v in shown[later]}
    table = next(p for p in catalog(record) if p.stem == "distance-pairs").rows()
    assert [row["distance"] for row in table] == distance[
        np.triu_indices(len(distance), 1)
    ].tolist()


@pytest.mark.parametrize("classes", [4, 25])
def test_variability_of_single_classes(classes: int) -> None:
    record = sample_record()
    layers = record["layers"]
    rng = np.random.default_rng(0)
    values = rng.uniform(0.1, 1, (len(layers), classes))
    for layer, row in zip(layers, values, strict=True):
        layer["collapse"]["class_variability"] = row.tolist()
    layers[2]["collapse"]["class_variability"] = None  # undefined
    values[2] = np.nan
    on_path = [i for i, layer in enumerate(layers) if layer["stage"] is not None]
    ax = plots.class_variability(record)
    lines = [line for line in ax.lines if line.get_linestyle() == "-" and len(line.get_xdata()) > 2]
    drawn = np.array([line.get_ydata() for line in lines]).T
    expected = values if classes == 4 else np.quantile(values, [0.5], axis=1).T
    np.testing.assert_allclose(drawn[on_path], expected[on_path])
    hollow = [line for line in ax.lines if line.get_markerfacecolor() == "white"]
    image = np.concatenate([line.get_xydata() for line in hollow])
    np.testing.assert_allclose(image, [[0, value] for value in expected[0]])
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names[0] == ("median of 25 classes" if classes == 25 else "class 1 of 4")
    assert len(names) == (3 if classes == 25 else 4)
    table = next(p for p in catalog(record) if p.stem == "class-variability").rows()
    assert len(table) == classes * len(layers)
    assert table[1]["variability"] == values[0, 1]


def test_single_classes_have_their_own_names(rng: np.random.Generator) -> None:
    """Only classes 3, 5 and 8 of ten occur."""
    labels = np.array([3, 5, 8])[np.arange(30) % 3]
    layers = [scale * rng.normal(size=(30, 4)) for scale in (1, 2, 3)]
    digits = tuple(f"digit {k}" for k in range(10))
    plain = Trajectory.from_arrays(layers, labels)
    named = replace(plain, class_names=digits)

    def shown(source: Any) -> list[str]:
        return [text.get_text() for text in plots.class_variability(source).get_legend().texts]

    analysis = wgeo.analysis.analyze_trajectory(named, bootstrap=0, mufm=False)
    assert shown(analysis) == ["digit 3", "digit 5", "digit 8"]
    table = next(p for p in catalog(analysis) if p.stem == "class-variability").rows()
    assert [row["class"] for row in table[:3]] == shown(analysis)
    assert shown(wgeo.collapse(plain)) == ["class 3", "class 5", "class 8"]
    unknown = {**analysis.record, "segments": []}
    assert shown(unknown) == ["class 1 of 3", "class 2 of 3", "class 3 of 3"]


def test_centered_class_means_do_not_move_together() -> None:
    record = sample_record()
    view = record["segments"][0]["view"]
    means = np.array(view["class_means"], dtype=float)
    shift = np.linspace(0, 50, len(means))[:, None, None]
    moved = sample_record()
    moved["segments"][0]["view"]["class_means"] = (means + shift).tolist()

    def paths(record: dict[str, Any], *, centered: bool) -> list[Any]:
        return [line.get_xydata() for line in plots.class_means(record, centered=centered).lines]

    for left, right in zip(paths(record, centered=True), paths(moved, centered=True), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-9)
    assert any(
        not np.allclose(left, right)
        for left, right in zip(
            paths(record, centered=False), paths(moved, centered=False), strict=True
        )
    )


def test_intervals_of_collapse_are_drawn_as_bands() -> None:
    record = sample_record()
    for layer in record["layers"]:
        nc1, accuracy = (layer["collapse"][key] for key in ("nc1", "ncc_accuracy"))
        layer["collapse"]["intervals"] = {
            "nc1": [nc1 / 2, 2 * nc1],
            "ncc_accuracy": [accuracy - 0.1, accuracy + 0.05],
        }
    last, i = record["layers"][-1]["collapse"], len(record["layers"]) - 1

    def ends(metric: str) -> np.ndarray:
        band, _ = plots.collapse(record, metric).collections[-2:]
        corners = np.concatenate([path.vertices for path in band.get_paths()])
        return np.unique(corners[corners[:, 0] == i][:, 1])[[0, -1]]

    np.testing.assert_allclose(ends("nc1"), [last["nc1"] / 2, 2 * last["nc1"]])
    error = 1 - last["ncc_accuracy"]
    np.testing.assert_allclose(ends("ncc_error"), [error - 0.05, error + 0.1])


def test_map_of_pairs_shows_scores_and_brackets_undecided_ones() -> None:
    record = sample_record((5,))
    pairs = record["segments"][0]["pairs"]
    k = len(pairs["layers"])
    for key in ("corr_score", "corr_low", "corr_high"):
        pairs[key] = [[1 - 0.01 * (10 * i + j) for j in range(k)] for i in range(k)]
    pairs["null"] = [[None] * k for _ in range(k)]
    pairs["null"][0][1], pairs["null"][1][2] = 0.96, 0.3  # above the score minus 0.05; far below
    ax = plots.correlation_pairs(record, ax=plots.axes("page"))
    (image,) = ax.images
    shown = np.ma.filled(image.get_array(), np.nan)
    for i, j in np.ndindex(k - 1, k - 1):
        expected = 1 - 0.01 * (10 * i + j + 1) if j >= i else np.nan
        np.testing.assert_allclose(shown[i, j], expected)
    texts = [text.get_text() for text in ax.texts]
    assert texts[0] == "(.99)"
    assert sum(text.startswith("(") for text in texts) == 1
    assert len(texts) == k * (k - 1) // 2
    assert [tick.get_text() for tick in ax.get_yticklabels()] == pairs["layers"][:-1]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == pairs["layers"][1:]


def test_data_of_pairs_has_a_row_per_pair() -> None:
    record = sample_record()
    plot = next(plot for plot in catalog(record) if plot.stem == "correlation-pairs")
    rows = plot.rows()
    segments = [segment["pairs"] for segment in record["segments"]]
    assert len(rows) == sum(len(p["layers"]) * (len(p["layers"]) - 1) // 2 for p in segments)
    first = segments[0]
    assert (rows[1]["from"], rows[1]["to"]) == (first["layers"][0], first["layers"][2])
    assert rows[1]["corr_score"] == first["corr_score"][0][2]
    bare = sample_record()
    for segment in bare["segments"]:
        segment["pairs"] = None
    assert "correlation-pairs" not in {plot.stem for plot in catalog(bare)}


def test_lines_of_models_end_with_their_stage() -> None:
    ax = plots.model_errors(RECORD)
    stages = [layer["stage"] for layer in RECORD["layers"]]
    line = next(line for line in ax.lines if line.get_color() == style.COLORS[1])
    x, gaps = line.get_xdata(), np.isnan(line.get_xdata())
    assert gaps.sum() == len({stage for stage in stages if stage is not None}) - 1
    for i in np.flatnonzero(gaps):
        assert stages[int(x[i - 1])] != stages[int(x[i + 1])]


def test_model_is_not_drawn_if_its_times_decrease() -> None:
    record = sample_record()
    stage = [i for i, layer in enumerate(record["layers"]) if layer["stage"] == 1]
    row = record["mufm_given"]["layers"][stage[1] - 1]
    assert row["name"] == record["layers"][stage[1]]["name"]
    row["time"] = 0.0
    for panel in (plots.model_errors, plots.collapse):
        line = next(
            line
            for line in panel(record).lines
            if line.get_color() == plots.predictions.MODELS["mufm_given"][1]
        )
        drawn_at = set(line.get_xdata()[np.isfinite(line.get_ydata())])
        assert not drawn_at & set(stage)
        assert stage[0] - 1 in drawn_at
        assert stage[-1] + 1 in drawn_at
    with_models = ("collapse", "models")
    for plot in (p for p in catalog(record) if p.stem in with_models):
        assert (
            "fitted times decrease with depth: MUFM, network's classifier in stage 2."
            in plot.caption
        )
    for plot in (p for p in catalog(RECORD) if p.stem in with_models):
        assert "fitted times" not in plot.caption


def test_stages_are_numbered_from_one_in_figures_and_pages() -> None:
    record = sample_record()
    labels = {text.get_text() for text in plots.distances(record).texts}
    stages = {layer["stage"] for layer in record["layers"]} - {None}
    assert labels >= {f"stage {stage + 1}" for stage in stages}
    assert "stage 0" not in labels
    segment = record["segments"][1] | {"stage": 2}  # if the stage before it has a single layer
    assert stage_title(Segment.of(segment), 1, []).startswith("Stage 3")
    assert stage_title(Segment.of({**segment, "stage": None}), 1, []).startswith("Stage 2")


@pytest.mark.parametrize(("metric", "scale"), [("nc1", "log"), ("nc2_equinorm", "linear")])
def test_predictions_of_zero_are_at_the_edge_only_of_a_logarithmic_axis(
    metric: str, scale: str
) -> None:
    record = sample_record()
    record = {key: each for key, each in record.items() if key not in plots.predictions.MODELS} | {
        "ufm": record["ufm"]
    }
    last = record["ufm"]["layers"][-1]
    last["collapse"][metric] = 0.0
    ax = plots.collapse(record, metric)
    drawn(ax)
    assert ax.get_yscale() == scale
    marker = plots.predictions.MODELS["ufm"][2]
    (zero,) = [line for line in ax.lines if line.get_marker() == marker and 0 in line.get_ydata()]
    at = zero.get_transform().transform([(zero.get_xdata()[0], 0.0)])[0]
    edge = ax.transAxes.transform([(0, 0)])[0]
    assert (at[1] == pytest.approx(edge[1])) == (scale == "log")
    if scale == "linear":
        assert ax.transData.inverted().transform(at)[1] == pytest.approx(0)
        assert at[1] > edge[1]


def test_a_model_that_is_drawn_nowhere_changes_neither_the_axis_nor_the_legend() -> None:
    record, without = sample_record(), sample_record()
    del without["mufm_given"]
    for i, row in enumerate(record["mufm_given"]["layers"]):
        row["time"], row["collapse"]["nc1"] = -float(i), 1e-9
    found, expected = (plots.collapse(each) for each in (record, without))
    assert found.get_yscale() == expected.get_yscale()
    assert found.get_ylim() == pytest.approx(expected.get_ylim())
    labels = [tick.get_text() for tick in found.get_yticklabels()]
    assert labels == [tick.get_text() for tick in expected.get_yticklabels()]
    legends = [
        [text.get_text() for text in ax.get_figure().legends[0].get_texts()]
        for ax in (found, expected)
    ]
    assert legends[0] == legends[1]
    assert "the network" in legends[0]


@pytest.mark.parametrize("metric", plots.depth.METRICS)
def test_collapse_draws_the_metric_of_every_layer(metric: str) -> None:
    ax = plots.collapse(RECORD, metric)
    blocks, image = (line for line in ax.lines if line.get_zorder() == 4)
    key = "ncc_accuracy" if metric == "ncc_error" else metric
    expected = [layer["collapse"].get(key, np.nan) for layer in RECORD["layers"]]
    expected = np.array(expected, dtype=float)
    expected = 1 - expected if metric == "ncc_error" else expected
    np.testing.assert_allclose(blocks.get_ydata()[1:], expected[1:])
    np.testing.assert_allclose(image.get_xydata(), [[0, expected[0]]])
    assert np.isnan(blocks.get_ydata()[0])  # no line leads from the image to the first layer


@pytest.mark.parametrize(
    ("progress", "said"),
    [
        (
            {"kendall_tau": -1.0, "violations": 0, "monotone": True},
            "increases: 0, τ = −1.00",
        ),
        ({"kendall_tau": -0.85, "violations": 0, "monotone": True}, "increases: 0, τ = −0.85"),
        ({"kendall_tau": 0.5, "violations": 1, "monotone": False}, "increases: 1, τ = 0.50"),
        ({"kendall_tau": None, "violations": 3, "monotone": False}, "increases: 3"),
        ({"kendall_tau": None, "violations": None, "monotone": None}, ""),
        ({}, ""),
    ],
)
def test_a_panel_shows_rises_and_tau(progress: Any, said: str) -> None:
    ax = plots.collapse({**RECORD, "progress": {"nc1": progress}})
    assert ax.texts[-1].get_text() == said


def test_network_error_is_drawn_with_the_nearest_centre_error() -> None:
    ax = plots.collapse(RECORD, "ncc_error")
    assert ax.texts[-1].get_text() == "gray line: the network's own error, 18.6 %"
    assert any(line.get_ydata()[0] == 1 - RECORD["accuracy"] for line in ax.lines)


def test_models_are_drawn_with_the_network_if_defined() -> None:
    with_models, without = (plots.collapse(sample_record(models=m)) for m in (True, False))
    assert len(with_models.lines) == len(without.lines) + 4
    zero = with_models.lines[-1]  # complete collapse: a marker at the edge, on a logarithmic axis
    assert (with_models.get_yscale(), zero.get_marker(), zero.get_ydata()) == ("log", "v", [0])
    dashed = next(line for line in with_models.lines if line.get_color() == style.COLORS[1])
    assert np.isnan(dashed.get_ydata()[0])  # no model predicts the input image
    said = RECORD["geodesic_model"]["layers"][0]["collapse"]["nc1"]
    assert dashed.get_ydata()[1] == said


def test_axis_is_logarithmic_only_if_every_value_is_positive() -> None:
    record = sample_record(models=False)
    assert plots.collapse(record).get_yscale() == "log"
    record["layers"][-1]["collapse"]["nc1"] = 0.0
    assert plots.collapse(record).get_yscale() == "linear"


def test_class_means_go_from_open_to_filled_along_the_view() -> None:
    ax = plots.class_means(RECORD, 1)
    paths = np.array(RECORD["segments"][1]["view"]["class_means"])
    assert ax.get_aspect() == 1.0
    chord, path, start, end = ax.lines[:4]
    np.testing.assert_allclose(path.get_xydata(), paths[:, 0])
    np.testing.assert_allclose(chord.get_xydata(), paths[[0, -1], 0])
    np.testing.assert_allclose(start.get_xydata(), paths[:1, 0])
    np.testing.assert_allclose(end.get_xydata(), paths[-1:, 0])
    assert start.get_markerfacecolor() == "white"


def test_classes_in_view_keep_their_names_when_some_do_not_occur() -> None:
    record = sample_record((3,), CIFAR)
    view = record["segments"][0]["view"]
    view["class_means"] = [layer[:3] for layer in view["class_means"]]
    view["classes"] = [1, 4, 12]
    texts = [text.get_text() for text in plots.class_means(record).get_legend().get_texts()]
    assert texts[:3] == ["automobile", "deer", "class 12"]


def test_almost_all_is_not_100_percent() -> None:
    record = sample_record((3,), CIFAR)
    record["segments"][0]["view"]["explained"] = [0.9996, 0.0004]
    ax = plots.class_means(record)
    assert ax.get_xlabel() == "first principal component (99.96 % of variance)"
    assert ax.get_ylabel() == "second principal component (0.04 % of variance)"
    terms = {"fit": 0.9996, "transport": 0.0004}
    ax = plots.models.model_terms({"terms": terms, "objective": 1.0, "certificate": {}})
    assert [text.get_text() for text in ax.texts[1:]] == ["1 (99.96 %)", "0.0004 (0.04 %)"]


def test_straightness_draws_values_and_intervals() -> None:
    record = sample_record((5,))
    ax = plots.straightness(record)
    segment = record["segments"][0]
    lines = [line for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata())]
    for line, bars, found in zip(lines, ax.collections, (segment, segment["centred"]), strict=True):
        np.testing.assert_allclose(line.get_xdata(), [found[key] for key in plots.paths.RATIOS])
        assert (line.get_markerfacecolor() == "white") is (found is segment)
        ends = [piece[:, 0] for piece in bars.get_segments()]
        np.testing.assert_allclose(ends, [found["intervals"][key] for key in plots.paths.RATIOS])
    (tick,) = (line for line in ax.lines if line.get_marker() == "|")
    assert tick.get_xdata()[0] == segment["centred"]["sqrt_moving_blocks"]
    assert np.isnan(tick.get_xdata()[1:]).all()


def test_gap_is_drawn_at_each_layers_fraction_of_the_length() -> None:
    segment = RECORD["segments"][0]
    line = plots.interpolation_gap(RECORD).lines[0]
    np.testing.assert_allclose(line.get_xdata(), segment["interpolation_time"])
    np.testing.assert_allclose(line.get_ydata(), segment["interpolation_gap"])


# --- how they are called -------------------------------------------------------------------------


@pytest.mark.parametrize("panel", PANELS.values(), ids=PANELS)
def test_given_axes_are_drawn_on_and_returned(panel: Any) -> None:
    ax = Figure().add_subplot()
    assert panel(RECORD, ax=ax) is ax
    assert ax.has_data()
    assert panel(SimpleNamespace(record=RECORD)).has_data()


@pytest.fixture(scope="module")
def steps() -> dict[str, Any]:
    """The results of README's steps, by their class."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    first = rng.normal(size=(60, 3)) + 2 * labels[:, None]
    layers = [first, first + 0.3 * rng.normal(size=(60, 3)), 2 * first]
    traj = wgeo.Trajectory.from_arrays(layers, labels)
    straight = wgeo.straightness(traj, bootstrap=0)
    net = wgeo.models.build("isoresnet", num_classes=3, in_channels=1, width=2, depth=2)
    results = [
        *(traj, straight, straight.blocks[0], straight.segments[0], wgeo.collapse(traj)),
        *(wgeo.compare(traj), wgeo.wasserstein(traj.first, traj.last)),
        wgeo.bias_curve(traj.first, traj.last, [20, 40]),
        wgeo.separation_law(traj),
        wgeo.alignment(net, (torch.rand(2, 1, 4, 4), [0, 1]), vectors=2),
    ]
    return {type(result).__name__: result for result in results}


DRAWN = {
    plots.class_means: ["Trajectory"],
    plots.distances: ["Straightness", "BlockTransport", "TransportResult"],
    plots.class_variability: ["Collapse"],
    plots.ot_scores: ["Straightness", "BlockTransport"],
    plots.correlation_scores: ["Straightness", "BlockTransport"],
    plots.straightness: ["Straightness", "SegmentStraightness"],
    plots.interpolation_gap: ["Straightness", "SegmentStraightness"],
    plots.correlation_pairs: ["Straightness", "SegmentStraightness"],
    plots.distance_pairs: ["Straightness", "SegmentStraightness"],
    plots.collapse: ["Collapse", "Comparison"],
    plots.model_errors: ["Comparison"],
    plots.sample_sizes: ["BiasCurve"],
    plots.separation_law: ["SeparationLaw", "Collapse"],
    plots.alignment: ["Alignment"],
}


@pytest.mark.parametrize("panel", DRAWN, ids=lambda panel: panel.__name__)
def test_panels_draw_the_results_of_single_steps(panel: Any, steps: dict[str, Any]) -> None:
    assert set(steps) == set(plots.sources.SOURCES)
    for name, result in steps.items():
        if name in DRAWN[panel]:
            ax = panel(result)
            drawn(ax)
            assert ax.axison, name
            assert ax.has_data(), name
        else:
            with pytest.raises(ArgumentError, match=f"cannot draw {name}.*wgeo.analyze"):
                panel(result)


def test_a_single_step_is_drawn_like_the_analysis(steps: dict[str, Any]) -> None:
    depth = wgeo.plots.collapse(steps["Collapse"])
    found = next(line for line in depth.lines if len(line.get_ydata()) == 3)
    np.testing.assert_allclose(found.get_ydata(), [la.nc1 for la in steps["Collapse"].layers])
    result = steps["TransportResult"]
    ax = plots.distances(result)
    assert ax.patches[0].get_height() == result.distance
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["W2, with its bounds"]


# --- pyplot --------------------------------------------------------------------------------------


@pytest.fixture
def pyplot(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pyplot, as if its backend showed figures."""
    import matplotlib.pyplot as plt

    plt.close("all")
    monkeypatch.setattr(plt, "get_backend", lambda: "module://matplotlib_inline.backend_inline")
    yield plt
    plt.close("all")
    monkeypatch.undo()
    del sys.modules["matplotlib.pyplot"]  # other tests are programs without pyplot


def test_a_panel_is_shown_by_pyplot_if_that_shows_figures(pyplot: Any) -> None:
    ax = plots.collapse(RECORD)
    assert pyplot.gcf() is ax.figure
    other = plots.distances(RECORD)  # never on top of what is drawn
    assert other.figure is pyplot.gcf() is not ax.figure
    assert pyplot.get_fignums() == [1, 2]
    drawn(other)


def test_a_panel_fills_pyplots_current_axes_if_they_are_empty(
    pyplot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for backend in ("module://matplotlib_inline.backend_inline", "agg"):
        monkeypatch.setattr(pyplot, "get_backend", lambda name=backend: name)
        pyplot.close("all")
        _, (left, right) = pyplot.subplots(1, 2)
        pyplot.sca(left)
        assert plots.collapse(RECORD) is left
        pyplot.sca(right)
        assert plots.collapse(RECORD, "cdnv") is right
        pyplot.close("all")
        polar = pyplot.subplot(projection="polar")
        assert plots.collapse(RECORD) is not polar


def test_figures_for_files_have_no_pyplot_state(
    pyplot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, ax = pyplot.subplots()
    given = Figure().add_subplot()
    assert plots.collapse(RECORD, ax=given) is given
    for plot in catalog(RECORD):
        plot.draw()
    plots.axes("column")
    assert pyplot.get_fignums() == [1]
    assert not ax.has_data()
    monkeypatch.setattr(pyplot, "get_backend", lambda: "Agg")  # a script that writes files
    ax.plot([0, 1])
    for _ in range(30):
        plots.distances(RECORD)
    assert pyplot.get_fignums() == [1]


def test_every_panel_is_tested() -> None:
    assert set(plots.__all__) == {*PANELS, *SERIES, *OTHERS}


def test_labels_of_epochs_do_not_overlap():
    """Epochs 25, 30 and 40 are close on the logarithmic axis."""
    series = sample_series(9)
    for row, epoch in zip(series["analyses"], (0, 1, 2, 4, 8, 16, 25, 30, 40), strict=True):
        row["provenance"]["epoch"] = epoch
    ax = plots.over(series)
    ax.figure.canvas.draw()
    boxes = [label.get_window_extent() for label in ax.get_xticklabels()]
    assert len(boxes) == 8
    for left, right in pairwise(sorted(boxes, key=lambda box: box.x0)):
        assert left.x1 < right.x0


@pytest.mark.parametrize("epochs", [True, False])
@pytest.mark.parametrize("panel", SERIES.values(), ids=SERIES)
def test_panels_of_a_series_draw_on_axes_given(panel: Any, epochs: bool) -> None:
    ax = Figure().add_subplot()
    assert panel(sample_series(3, epochs=epochs), ax=ax) is ax
    assert ax.has_data()


@pytest.mark.parametrize("panel", MODEL.values(), ids=MODEL)
def test_panels_of_a_model_draw_on_axes_given(panel: Any) -> None:
    solution = wgeo.ufm.fit_mse(np.arange(12) % 3, dim=4, weight_decay=5e-3, feature_decay=5e-3)
    ax = Figure().add_subplot()
    assert panel(record_of(solution), ax=ax) is ax
    panel(record_of(solution))


def test_model_draws_a_solution_and_its_record() -> None:
    solution = wgeo.ufm.fit_mse([0, 1] * 3, dim=2, weight_decay=0.01, feature_decay=0.01)
    given, saved = plots.model(solution), plots.model(json.loads(json.dumps(record_of(solution))))
    assert [ax.get_title() for ax in given.axes] == [ax.get_title() for ax in saved.axes]
    with pytest.raises(ArgumentError, match="TransportResult"):
        plots.model(wgeo.wasserstein([0.0, 1.0], [1.0, 2.0]))


def test_a_record_of_another_kind_is_refused() -> None:
    """A figure of another record would say that the record has nothing to draw."""
    solution = record_of(wgeo.ufm.fit_mse([0, 1], dim=2, weight_decay=0.01, feature_decay=0.01))
    records = {"an analysis": RECORD, "a series": sample_series(2), "a solution": solution}
    panels = {"an analysis": PANELS, "a series": SERIES, "a solution": {**MODEL, "": plots.model}}
    for kind in records:
        name = kind.split()[1]
        for panel in panels[kind].values():
            for other, record in records.items():
                if other == kind or (panel is plots.class_means and other == "a series"):
                    continue
                with pytest.raises(ArgumentError, match=rf"record of {other}\. .*{name}\.json"):
                    panel(record)
            with pytest.raises(ArgumentError, match=rf"cannot draw int\. .*{name}\.json"):
                panel(5)
    with pytest.raises(ArgumentError, match="record of a solution"):
        plots.figures(solution, "figures")


@pytest.mark.parametrize("panel", PANELS.values(), ids=PANELS)
def test_settings_of_matplotlib_are_left_as_they_were(panel: Any) -> None:
    before = dict(mpl.rcParams)
    panel(RECORD)
    assert dict(mpl.rcParams) == before


def test_pyplot_is_never_imported() -> None:
    told = "import sys, wgeo.plots; sys.exit('matplotlib.pyplot' in sys.modules)"
    subprocess.run([sys.executable, "-c", told], check=True, cwd=Path(plots.__file__).parents[2])


@pytest.mark.parametrize("panel", PANELS.values(), ids=PANELS)
def test_undefined_values_and_empty_records_are_drawn_as_such(panel: Any) -> None:
    drawn(panel(damaged(RECORD)))
    if panel is plots.class_means:  # the segment asked for is not there
        with pytest.raises(ArgumentError, match="no segment 0"):
            panel({})
    else:
        ax = panel({})
        assert not ax.axison
        assert "no " in ax.texts[0].get_text()


def test_the_legend_of_errors_names_only_models_that_are_drawn() -> None:
    record = sample_record()
    layers = record["mufm"]["layers"]
    for time, layer in enumerate(layers):
        layer["time"] = -float(time)  # decreases with depth
    figure = plots.model_errors(record).get_figure(root=True)
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "geodesic model" in names
    assert "MUFM" not in names
    figure = next(plot for plot in catalog(record) if plot.stem == "models").draw()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == names


def test_scores_are_recognized_by_their_keys() -> None:
    """An equal mapping of scores was drawn as ratios, without crosses of null maps."""
    own, equal = (
        plots.straightness(RECORD, measures=measures)
        for measures in (plots.paths.SCORES, dict(plots.paths.SCORES))
    )
    assert [line.get_marker() for line in own.lines] == [line.get_marker() for line in equal.lines]
    assert "x" in {line.get_marker() for line in equal.lines}


def test_error_for_wrong_arguments_lists_the_choices() -> None:
    with pytest.raises(ArgumentError, match=r"no collapse metric 'nc9'.*nc1"):
        plots.collapse(RECORD, "nc9")
    with pytest.raises(ArgumentError, match="no segment 9; this record's alignment has"):
        plots.alignment(RECORD, 9)
    with pytest.raises(ArgumentError, match="no segment 3; this record has 3"):
        plots.class_means(RECORD, 3)
    with pytest.raises(ArgumentError, match="no error 'r3'; choose from missed, w2"):
        plots.model_errors(RECORD, "r3")
    with pytest.raises(ArgumentError, match="no measure 'sizes'; choose from distance"):
        plots.sample_sizes(RECORD, "sizes")
    with pytest.raises(ArgumentError, match="no test 'trace'; choose from asymmetry"):
        plots.gradient_maps(RECORD, "trace")
    with pytest.raises(ArgumentError, match=r"analysis\.json"):
        plots.collapse([1, 2])


# --- can they be read ----------------------------------------------------------------------------


@pytest.mark.parametrize("stem", ["distances", "collapse"])
def test_layer_names_never_touch_at_55_layers(stem: str) -> None:
    figure = next(plot for plot in catalog(DEEP) if plot.stem == stem).draw()
    figure.canvas.draw()
    for ax in figure.axes:
        boxes = [t.get_window_extent() for t in ax.get_xticklabels() if t.get_text()]
        if boxes:
            assert len(boxes) > 5
        for a, b in pairwise(boxes):
            assert a.x1 <= b.x0
        texts = [t.get_text() for t in ax.get_xticklabels() if t.get_text()]
        assert not texts or texts[-1] == "layer3.17"


@pytest.mark.parametrize("size", plots.style.SIZES)
@pytest.mark.parametrize("panel", {**PANELS, **SERIES}.values(), ids={**PANELS, **SERIES})
def test_panels_fit_a_column_and_a_slide(panel: Any, size: str) -> None:
    record = sample_series(4) if panel in SERIES.values() else RECORD
    ax = panel(record, ax=plots.axes(size))
    figure = drawn(ax)
    assert tuple(figure.get_size_inches()) == plots.style.SIZES[size]
    fits_and_is_not_covered(figure, panel.__name__)
    across = ax.get_window_extent()
    is_square = ax.get_aspect() == 1  # a matrix: as wide as it is high
    assert across.width > (0.28 if is_square else 0.4) * figure.bbox.width
    assert across.height > 0.28 * figure.bbox.height
    title = ax.title if ax.get_title() else ax._left_title
    for key in filter(None, [ax.get_legend(), *figure.legends]):
        assert not title.get_window_extent().overlaps(key.get_window_extent())


def test_two_notes_on_an_error_fit_a_column() -> None:
    record = {**RECORD, "progress": {"ncc_error": RECORD["progress"]["nc1"]}}
    assert plots.collapse(record, "ncc_error").texts[-1].get_text().count("; ") == 1
    ax = plots.collapse(record, "ncc_error", plots.axes("column"))
    assert ax.texts[-1].get_text().count("\n") == 1
    fits_and_is_not_covered(drawn(ax), "ncc_error")


def test_a_panel_has_its_legend_and_color_bar_in_any_axes() -> None:
    for panel in (plots.straightness, plots.interpolation_gap, plots.sample_sizes, plots.collapse):
        assert len(panel(RECORD).figure.legends) == 1
        bare = panel(RECORD, ax=Figure().add_subplot())  # without a layout that makes room
        assert bare.get_legend()
        assert not bare.figure.legends
        for layout in (None, "constrained"):
            pair = Figure(layout=layout).subplots(1, 2)
            panel(RECORD, ax=pair[0])
            assert pair[0].get_legend()
            assert not pair[1].get_legend()
            assert not pair[0].figure.legends
    for panel in (plots.correlation_pairs, plots.distance_pairs, plots.alignment):
        pair = Figure().subplots(1, 2)
        assert len(panel(RECORD, ax=pair[0]).figure.axes) == 3
    own = {plot.stem: plot.draw() for plot in catalog(RECORD) if plot.stem in STEMS}
    assert not [ax for ax in own["collapse"].axes if ax.get_legend()]
    assert len(own["collapse"].legends) == 1
    labels = [ax.get_label() for ax in own["correlation-pairs"].axes]
    assert labels.count("<colorbar>") == len(RECORD["segments"])


def test_legend_of_a_series_has_only_names_that_all_its_records_have() -> None:
    series = sample_series(2, epochs=False)
    names = plots.series.segments_in(SeriesRecord.of(series))[1]
    assert names == [
        plots.style.segment_name(segment["layers"], i)
        for i, segment in enumerate(series["analyses"][0]["segments"])
    ]
    other = sample_record((2, 2, 2), names="net.blocks.{stage}.{block}")
    series["analyses"].append({**other, "name": "other"})
    names = plots.series.segments_in(SeriesRecord.of(series))[1]
    assert names == [f"segment {k} of each network" for k in (1, 2)] + [
        plots.style.segment_name(other["segments"][2]["layers"], 2)
    ]


def test_shares_of_the_length_are_those_of_the_centered_distances() -> None:
    series = sample_series(3)
    for row in series["analyses"]:  # W2 = 5 of which the shift is 3 or 4: centered 4 and 3
        for block, shift in zip(row["blocks"], (9 / 36, 16 / 36), strict=False):
            block.update(distance=5.0, paired=6.0, shift_share=shift, stage=1)
        for block in row["blocks"][2:]:
            block.update(stage=2)
    shares = plots.block_distances(series).images[0].get_array() / 100
    np.testing.assert_allclose(shares[:2], [[4 / 7] * 3, [3 / 7] * 3])
    np.testing.assert_allclose(shares[2:].sum(axis=0), 1)
    series["analyses"][1]["blocks"].pop()
    assert not plots.block_distances(series).images  # not the same blocks
    assert "block-distances" not in {plot.stem for plot in catalog(series)}


def test_columns_of_a_legend_fit_its_figure() -> None:
    series = sample_series(4, epochs=False)
    for row in series["analyses"]:
        row["name"] = "WWWWWWWWWW-networks-WWWWWW"
    (plot,) = [p for p in catalog(series) if p.stem == "profiles"]
    figure = plot.draw()
    figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= box.x0
    assert box.x1 <= figure.bbox.x1


@pytest.mark.parametrize("dpi", [80, 160])
def test_a_legend_that_barely_fits_is_not_cut_at_any_resolution(dpi: int) -> None:
    names = ["stem → layer1.2", "layer2.0.shortcut → layer2.2", "layer3.0.shortcut → layer3.2"]

    @style.styled
    def drawn() -> Figure:
        figure = style.new_figure(5.5, 3.2)
        figure.set_dpi(dpi)
        style.legend_of_figure(figure, [Line2D([], [], marker="o") for _ in names], names)
        figure.canvas.draw()
        return figure

    figure = drawn()
    box = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= box.x0
    assert box.x1 <= figure.bbox.x1


def test_unknown_size_is_refused() -> None:
    with pytest.raises(ArgumentError, match="column, page, slide"):
        plots.axes("poster")
    assert plots.axes("slide", height=2.0).figure.get_size_inches().tolist() == [5.6, 2.0]


@pytest.mark.parametrize(
    "record",
    [DEEP, damaged(RECORD), sample_record((9,), HOSTILE, names="net.blocks.{block}")],
    ids=["deep", "damaged", "hostile"],
)
@pytest.mark.filterwarnings("ignore:Glyph")
def test_nothing_is_cut_off_and_no_legend_covers_data(record: dict[str, Any]) -> None:
    for plot in catalog(record):
        figure = plot.draw()
        figure.canvas.draw()
        fits_and_is_not_covered(figure, plot.stem)


def fits_and_is_not_covered(figure: Figure, what: str) -> None:
    """Nothing is drawn beyond the figure's edge, and no legend overlaps axes."""
    box, tight = figure.bbox, figure.get_tightbbox().transformed(figure.dpi_scale_trans)
    assert tight.x0 >= -1, what
    assert tight.y0 >= -1, what
    assert tight.x1 <= box.x1 + 1, what
    assert tight.y1 <= box.y1 + 1, what
    keys = [*figure.legends, *(ax.get_legend() for ax in figure.axes)]
    for key in filter(None, keys):
        for ax in figure.axes:
            inside = key.get_window_extent().padded(-1)
            assert not ax.get_window_extent().overlaps(inside), what


# Machado, Oliveira and Fernandes (2009), full severity, linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def lab(color: str, matrix: Any) -> np.ndarray:
    """CIE L*a*b* of an sRGB color as a color-blind reader sees it."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(matrix) @ linear, 0, 1)
    to_xyz = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
    t = np.array(to_xyz) @ seen / [0.95047, 1.0, 1.08883]
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_the_color_blind_can_tell_series_apart(blindness: str) -> None:
    """Delta E of 2.3 is just noticeable; thin lines want several times that."""
    matrix = BLINDNESS[blindness]
    for a, b in combinations(
        (style.MEASURED, *(m[1] for m in plots.predictions.MODELS.values())), 2
    ):
        assert np.linalg.norm(lab(a, matrix) - lab(b, matrix)) > 15, (a, b)
    for palette in (style.COLORS, style.CLASS_COLORS):
        for a, b in combinations(palette, 2):
            assert np.linalg.norm(lab(a, matrix) - lab(b, matrix)) > 7, (a, b)


def test_no_two_of_forty_classes_look_alike() -> None:
    looks = {(line.get_color(), line.get_marker()) for line in _legend_of(40)}
    assert len(looks) == 40


def test_a_thousand_classes_have_no_legend_of_names() -> None:
    assert len(_legend_of(1000)) == 2


def _legend_of(classes: int) -> list[Any]:
    record = sample_record((3,), [str(k) for k in range(classes)])
    handles = plots.class_means(record).get_legend().legend_handles
    return [h for h in handles if classes > 40 or h.get_color() != style.MUTED]


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["input", "stem", "layer1.0", "layer2.1"], ["input", "stem", "layer1.0", "layer2.1"]),
        (["stem", "net.body.layer1.0", "net.body.layer2.0"], ["stem", "layer1.0", "layer2.0"]),
        (["a.blocks.0", "a.blocks.1"], ["blocks.0", "blocks.1"]),
        (["a.b.same", "a.b.same"], ["same", "same"]),
        (["x.y"], ["x.y"]),
        (["stage", "b" * 40], ["stage", "bbbbbbb…bbbbbbbb"]),
    ],
)
def test_common_parts_of_names_are_left_out_on_an_axis(names: list[str], shown: list[str]) -> None:
    assert style.short_names(names) == shown


@pytest.mark.parametrize(("n", "budget"), [(1, 5), (5, 5), (11, 4), (55, 19), (1000, 12)])
def test_thinned_positions_include_both_ends_and_fit(n: int, budget: int) -> None:
    kept = style.thinned(n, budget)
    assert kept[0] == 0
    assert kept[-1] == n - 1
    assert len(kept) <= budget
    assert kept == sorted(set(kept))


# --- files ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("figures")
    plots.figures(sample_record((2, 2), HOSTILE), out)
    return out


def test_every_figure_has_png_svg_and_its_data(folder: Path) -> None:
    stems = {plot.stem for plot in catalog(sample_record((2, 2)))}
    assert stems == {
        *("distances", "collapse", "straightness", "sample-sizes", "gradient-maps"),
        *("class-means-1", "class-means-2", "models", "correlation-pairs"),
        *("alignment", "class-variability", "distance-pairs"),
    }
    expected = {f"{stem}.{ending}" for stem in stems for ending in ("png", "svg", "csv")}
    assert {path.name for path in folder.iterdir()} == expected | {MANIFEST}


def test_svg_is_well_formed_for_any_class_names(folder: Path) -> None:
    for path in folder.glob("*.svg"):
        assert ET.parse(path).getroot().tag.endswith("svg")
    assert b"<script" not in (folder / "class-means-1.svg").read_bytes()


def test_csv_contains_full_precision(folder: Path) -> None:
    record = sample_record((2, 2), HOSTILE)
    with (folder / "distances.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert [float(r["distance"]) for r in rows] == [b["distance"] for b in record["blocks"]]
    with (folder / "class-means-1.csv").open(newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    means = np.array(record["segments"][0]["view"]["class_means"]).reshape(-1, 2)
    np.testing.assert_array_equal([[float(r["pc1"]), float(r["pc2"])] for r in rows], means)
    with (folder / "collapse.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    assert float(rows[2]["nc1"]) == record["layers"][2]["collapse"]["nc1"]
    assert rows[0]["mufm.nc1"] == ""


def test_figures_of_one_record_are_the_same_bytes(tmp_path: Path) -> None:
    record = {"blocks": sample_record((2,))["blocks"]}
    first = plots.figures(record, tmp_path / "a")
    with mpl.rc_context({"ytick.labelsize": 30}):  # with fewer ticks
        second = plots.figures(record, tmp_path / "b")
    assert len(first) == 6
    for a, b in zip(first, second, strict=True):
        assert a.read_bytes() == b.read_bytes(), a.name


@pytest.mark.parametrize("ending", ["pdf", "svg", "png"])
def test_a_panel_is_saved_at_its_size(tmp_path: Path, ending: str) -> None:
    ax = plots.collapse(RECORD, "nc1", ax=plots.axes("column"))
    first = plots.save(ax, tmp_path / "made" / f"a.{ending}").read_bytes()
    assert plots.save(ax.figure, tmp_path / f"b.{ending}").read_bytes() == first
    window = ax.figure.canvas
    plots.save(ax, tmp_path / f"c.{ending}")
    assert ax.figure.dpi == style.RC["figure.dpi"]
    assert ax.figure.canvas is window
    if ending == "pdf":
        assert b"/MediaBox [ 0 0 241.2 180 ]" in first
        assert b"/TrueType" in first or b"/CIDFontType2" in first
        assert b"/Type3" not in first
    elif ending == "svg":
        assert b'width="241.2pt" height="180pt"' in first
    else:
        with Image.open(tmp_path / "b.png") as image:
            assert image.size == (1005, 750)


def test_figure_that_cannot_be_saved_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"writes \.png, \.svg, \.pdf; not \.eps"):
        plots.save(plots.axes(), tmp_path / "a.eps")
    with pytest.raises(
        ArgumentError, match="figures cannot be written as eps; choose from png, svg, pdf, csv"
    ):
        plots.figures(RECORD, tmp_path, endings=("svg", "eps"))
    assert not list(tmp_path.iterdir())


def test_only_requested_files_are_written(tmp_path: Path) -> None:
    record = {"blocks": sample_record((2,))["blocks"]}
    plots.figures(record, tmp_path, endings=("pdf", "csv"))
    assert {path.suffix for path in tmp_path.glob("[!.]*")} == {".pdf", ".csv"}
    plots.figures(record, tmp_path)
    assert {path.suffix for path in tmp_path.glob("[!.]*")} == {".pdf", ".png", ".svg", ".csv"}


def test_numbers_alone_need_no_drawing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record, drawn = {"blocks": sample_record((2,))["blocks"]}, []
    monkeypatch.setattr("wgeo.plots.files.rendered", lambda *each: drawn.append(each) or {})
    plots.figures(record, tmp_path, endings=("csv",))
    assert not drawn
    plots.figures(record, tmp_path, endings=("csv", "png"))
    assert drawn


def test_new_record_removes_only_figures_of_the_old_one(tmp_path: Path) -> None:
    old = sample_record((2,))
    plots.figures(old, tmp_path, endings=("svg", "pdf"))
    mine = ("class-means-3.svg", "straightness.csv", "over.svg", "mine.png", "class-means.txt")
    for name in mine:
        (tmp_path / name).write_text("mine")
    (tmp_path / "collapse.svg").write_text("mine, too")  # in the place of wgeo's
    plots.figures({"blocks": old["blocks"]}, tmp_path)
    kept = {path.name for path in tmp_path.glob("[!.]*")} - {p.name for p in tmp_path.glob("*.pdf")}
    stems = ("distances", "gradient-maps")
    written = {f"{stem}.{ending}" for stem in stems for ending in ("png", "svg", "csv")}
    assert kept == written | {*mine, "collapse.svg"}
    assert (tmp_path / "straightness.pdf").exists()  # no PDF was asked for


@pytest.mark.parametrize("series", [False, True])
def test_every_figures_name_is_known_before_it_is_drawn(series: bool, tmp_path: Path) -> None:
    stems = {plot.stem for plot in catalog(sample_series() if series else sample_record((2, 2)))}
    assert {"block-distances", "profiles"} <= stems or not series
    known = SERIES_STEMS if series else STEMS
    assert all(any(fnmatchcase(stem, pattern) for pattern in known) for stem in stems)
    for stem in stems:
        (tmp_path / f"{stem}.svg").write_text("mine")
        with pytest.raises(RecordError, match=stem):
            require_figures_writable(tmp_path, series=series)
        (tmp_path / f"{stem}.svg").unlink()


def test_stale_figure_of_a_series_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matrix = [plot for plot in catalog(sample_series()) if plot.stem == "block-distances"]
    for current in (matrix, []):
        monkeypatch.setattr("wgeo.plots.files.catalog", lambda _, drawn=current: drawn)
        plots.figures({}, tmp_path, endings=("csv",))
        assert (tmp_path / "block-distances.csv").exists() == bool(current)


def test_data_does_not_depend_on_the_time_an_analysis_took(tmp_path: Path) -> None:
    record = sample_record((2,))
    slower = json.loads(json.dumps(record))
    for block in slower["blocks"]:
        block["seconds"] = 1000 + block.get("seconds", 0)
    for name, one in (("a", record), ("b", slower)):
        plots.figures(one, tmp_path / name, endings=("csv",))
    for path in (tmp_path / "a").glob("*.csv"):
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


# --- in motion -----------------------------------------------------------------------------------


def moving(times: Any, rng: np.random.Generator) -> Any:
    """Samples that stretch away from the origin, a gradient map, at the given times."""
    x = rng.normal(size=(12, 5))
    return Trajectory.from_arrays([(1 + 2 * t) * x for t in times], np.arange(12) % 3)


def test_network_on_a_geodesic_equals_the_interpolation(rng: np.random.Generator) -> None:
    times = [0.0, 0.1, 0.4, 1.0]  # uneven speed: places are compared at equal shares of length
    shown = scene(moving(times, rng))
    np.testing.assert_allclose(shown.times, times, atol=1e-9)
    for t in (0.0, 0.05, 0.1, 0.33, 1.0):
        np.testing.assert_allclose(shown.network(t), shown.geodesic(t), atol=1e-9)
    assert [shown.position(t) for t in (0.0, 0.2, 1.0)] == ["layer0", "layer1 → layer2", "layer3"]


def test_interpolation_ends_at_the_networks_output_with_optimal_pairing() -> None:
    start = np.array([[-3.0, 0], [3, 0], [0, 1]])
    crossed = start[[1, 0, 2]] + [0, 2]  # two samples change places on the way up
    shown = scene(Trajectory.from_arrays([start, crossed], [0, 1, 2]))
    assert shown.target.tolist() == [1, 0, 2]
    np.testing.assert_allclose(shown.geodesic(1.0), shown.network(1.0)[[1, 0, 2]])
    moved = np.linalg.norm(shown.geodesic(1.0) - shown.geodesic(0.0), axis=1)
    np.testing.assert_allclose(moved, 2.0)


def test_flow_writes_the_requested_frames(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    traj = moving([0.0, 0.5, 1.0], rng)
    path = plots.flow(traj, tmp_path / "made" / "flow.gif", seconds=0.5, fps=10)
    with Image.open(path) as film:
        assert film.n_frames >= 5  # frames alike are kept as one, shown longer
        shown = sum(film.seek(i) or film.info["duration"] for i in range(film.n_frames))
    assert shown == pytest.approx(1000 * (0.5 + 2 * 0.6), abs=1)
    assert [p.name for p in path.parent.iterdir()] == ["flow.gif"]

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    before = path.read_bytes()
    monkeypatch.setattr("wgeo.plots.animation.Scene.geodesic", interrupted)
    with pytest.raises(KeyboardInterrupt):
        plots.flow(traj, path, seconds=0.5, fps=10)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["flow.gif"]


def test_flow_that_cannot_be_written_keeps_the_earlier_one(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "flow.gif"
    path.write_bytes(b"earlier")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("PIL.Image.Image.save", full)
    with pytest.raises(RecordError, match=r"Cannot write .*flow\.gif: No space left"):
        plots.flow(moving([0.0, 1.0], rng), path, seconds=0.2, fps=5)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("flow.gif", b"earlier")]


@pytest.mark.skipif(sys.platform == "win32", reason="ffmpeg is replaced by a shell script")
@pytest.mark.parametrize("reads", [True, False])
def test_failure_of_ffmpeg_is_a_clear_error(
    reads: bool, tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands, out = tmp_path / "bin", tmp_path / "out"
    commands.mkdir()
    script = f"#!/bin/sh\n{'cat > /dev/null' * reads}\necho Unknown encoder h264 >&2\nexit 1\n"
    (commands / "ffmpeg").write_text(script)
    (commands / "ffmpeg").chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(RecordError, match=r"write .*a\.mp4: Unknown encoder h264\. Write a \.gif"):
        plots.flow(moving([0.0, 1.0], rng), out / "a.mp4", seconds=0.2, fps=5)
    assert not list(out.iterdir())


def test_flow_refuses_unsupported_settings(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    traj = moving([0.0, 1.0], rng)
    with pytest.raises(ArgumentError, match=r"\.gif or \.mp4, not \.mov"):
        plots.flow(traj, tmp_path / "a.mov")
    with pytest.raises(ArgumentError, match="no segment 1"):
        plots.flow(traj, tmp_path / "a.gif", segment=1)
    with pytest.raises(ArgumentError, match="fps >= 1"):
        plots.flow(traj, tmp_path / "a.gif", fps=0)
    with pytest.raises(FeatureError, match="Nothing moves"):
        plots.flow(moving([0.0, 0.0], rng), tmp_path / "a.gif")
    monkeypatch.setattr("matplotlib.animation.writers.is_available", lambda name: False)
    with pytest.raises(DependencyError, match="needs ffmpeg"):
        plots.flow(traj, tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())
