"""Series of analyses: order, figures, reports; references and the Brenier test."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from records import sample_record, sample_series
from torch import nn

import wgeo
from wgeo import plots, report
from wgeo.analysis import Series
from wgeo.analysis.series import training_view
from wgeo.analysis.verdict import against_network
from wgeo.errors import ArgumentError, RecordError
from wgeo.models import untrained
from wgeo.plots.files import catalog
from wgeo.storage.record import Record
from wgeo.storage.records import check_record
from wgeo.trajectory import Trajectory
from wgeo.trajectory.views import class_view

# Of tests that are not about what stands beside the figures.
PLAIN = {"bootstrap": 0, "reference": "none", "brenier": 0, "alignment": 0, "mufm": False}


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    x = rng.random((40, 1, 8, 8), dtype=np.float32)
    return x, np.arange(40) % 2


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(3)
    options = {"width": 4, "depth": 3, "stride": 2}
    return wgeo.models.build(
        "isoresnet", num_classes=2, in_channels=1, image_size=8, **options
    ).eval()


# --- the series ----------------------------------------------------------------------------------


def test_checkpoints_of_one_network_are_ordered_by_epoch():
    records = {}
    for name, epoch in (("b", 16), ("c", 0), ("a", 4)):
        records[name] = sample_record((2, 2))
        records[name]["provenance"]["epoch"] = epoch
    series = Series.of(records).record
    assert series["axis"] == "epoch"
    assert [row["name"] for row in series["analyses"]] == ["c", "a", "b"]
    assert not any("view" in segment for row in series["analyses"] for segment in row["segments"])


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 4},
        {"epoch": True},
        {"arch": "another", "epoch": 7},
        {"data": "mnist", "epoch": 7},
        {"checkpoint": "another/run/resnet20.th", "epoch": 7},
    ],
)
def test_other_series_keep_their_order(change):
    first, second = sample_record((2, 2)), sample_record((2, 2))
    first["provenance"]["epoch"] = 4
    second["provenance"] |= change
    series = Series.of({"x": first, "a": second}).record
    assert series["axis"] == "name"
    assert [row["name"] for row in series["analyses"]] == ["x", "a"]


def test_an_epoch_that_is_no_number_is_unknown():
    for epoch, known, initial in ((0, 0, True), (False, None, False), (True, None, False)):
        record = Record.of({"provenance": {"epoch": epoch, "arch_from": "file"}})
        assert (record.epoch, record.provenance.is_initialization) == (known, initial)


# --- the last layer over a training --------------------------------------------------------------


def turned(record, epoch, rotation, scale):
    """The record of another epoch whose last layer is the same shape, turned and scaled."""
    again = json.loads(json.dumps(record))
    again["provenance"]["epoch"] = epoch
    end = again["segments"][-1]["view"]["end"]
    for key in end:
        end[key] = (scale * np.array(end[key]) @ rotation).tolist()
    return again


def test_scale_and_orientation_are_not_movement(rng):
    record = sample_record((3, 2))
    shapes = [(np.linalg.qr(rng.normal(size=(3, 3)))[0], scale) for scale in (0.01, 7.0, 1.0)]
    records = [turned(record, k, *shape) for k, shape in enumerate(shapes)]
    found = training_view(records)
    assert found["layers"] == ["epoch 0", "epoch 1", "epoch 2"]
    for key in ("class_means", "points"):
        first, *others = np.array(found["view"][key])
        assert np.ptp(first, axis=0).max() > 0.1
        for other in others:
            np.testing.assert_allclose(other, first, atol=2e-5)


def test_converging_classes_are_visible_in_the_view(rng):
    """Class means of an ETF stay at one spread, and samples halve their distance to them."""
    means = np.repeat(np.eye(3) * 4, 8, axis=0)
    noise = rng.normal(size=means.shape)
    labels = np.repeat(np.arange(3), 8)
    noise -= np.array([noise[labels == k].mean(0) for k in labels])
    records = []
    for epoch, size in enumerate((1.0, 0.1)):
        traj = Trajectory.from_arrays([np.zeros((24, 3)) + means / 9, means + size * noise], labels)
        record = sample_record((2,))
        record["provenance"]["epoch"] = epoch
        record["segments"] = [{"view": class_view(traj.segments[0], labels)}]
        records.append(record)
    view = training_view(records)["view"]
    within = []
    for dots, centres in zip(np.array(view["points"]), np.array(view["class_means"]), strict=True):
        sides = [np.linalg.norm(centres[i] - centres[j]) for i, j in ((0, 1), (1, 2), (0, 2))]
        np.testing.assert_allclose(sides, sides[0], rtol=1e-3)
        within.append(np.linalg.norm(dots - centres[labels], axis=1).mean() / sides[0])
    assert within[1] == pytest.approx(within[0] / 10, rel=1e-2)


@pytest.mark.usefixtures("undrawn")
def test_a_training_on_two_classes_is_saved_and_read_back(tmp_path, rng):
    """Their means differ in one direction, and a plane has two axes."""
    labels = np.arange(12) % 2
    records = {}
    for epoch in range(2):
        traj = Trajectory.from_arrays(list(rng.normal(size=(2, 12, 3))), labels)
        record = sample_record((2,), ("a", "b"))
        record["provenance"]["epoch"] = epoch
        record["segments"][-1]["view"] = class_view(traj.segments[0], labels)
        records[str(epoch)] = record
    Series.of(records).save(tmp_path)
    view = Series.load(tmp_path).record["last_layer"]["view"]
    assert view["explained"] == [pytest.approx(1), 0]


def test_saved_analysis_has_the_figures_of_its_report(tmp_path, monkeypatch):
    place = tmp_path / "analysis.json"
    assert wgeo.Analysis(sample_record((2,))).save(tmp_path) == place
    monkeypatch.setattr(plots, "figures", lambda *_: pytest.fail("drawn again"))
    assert report._figures(report.typed_record(tmp_path), place)


def test_no_view_of_a_training_if_records_do_not_match():
    records = [sample_record((3, 2), seed=k) for k in range(2)]
    assert training_view(records) is not None
    for spoil in (
        lambda view: view.pop("end"),
        lambda view: view.update(end=None),
        lambda view: view["labels"].reverse(),
        lambda view: view["classes"].reverse(),
    ):
        other = json.loads(json.dumps(records[1]))
        spoil(other["segments"][-1]["view"])
        assert training_view([records[0], other]) is None
    assert training_view([{**records[0], "segments": []}, records[1]]) is None


def test_record_keeps_directions_of_up_to_a_hundred_classes(rng):
    for classes, width in ((3, 40), (101, 5)):
        labels = np.arange(4 * classes) % classes
        traj = Trajectory.from_arrays(list(rng.normal(size=(2, len(labels), width))), labels)
        end = class_view(traj.segments[0], labels)["end"]
        assert (end is None) == (classes > 100)
    labels = np.arange(12) % 3
    last = rng.normal(size=(12, 40))
    end = class_view(Trajectory.from_arrays([last, last], labels).segments[0], labels)["end"]
    means = np.array([last[labels == k].mean(0) for k in range(3)])
    found = np.array(end["class_means"])
    assert found.shape == (3, 2)
    expected = means - means.mean(0)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=5e-3)
    shown = np.concatenate([np.flatnonzero(labels == k) for k in range(3)])
    cross = (last[shown] - means.mean(0)) @ expected.T
    np.testing.assert_allclose(np.array(end["points"]) @ found.T, cross, atol=5e-3)


def test_the_last_layer_over_a_training_is_drawn(tmp_path):
    series = sample_series(3)
    series["last_layer"] = training_view(series["analyses"])
    (plot,) = [p for p in catalog(series) if p.stem == "class-means-training"]
    rows = plot.rows()
    assert len(rows) == 3 * 10
    assert rows[0]["epoch"] == "epoch 0"
    ax = plots.class_means(series)
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts[-2:] == ["first epoch", "last epoch"]
    assert not any(line.get_linestyle() == "--" for line in ax.lines)
    del series["last_layer"]
    assert "class-means-training" not in [p.stem for p in catalog(series)]
    assert not plots.class_means(series).axison


def test_single_record_is_not_a_series():
    with pytest.raises(ArgumentError, match="at least two"):
        Series.of({"x": sample_record((2,))})


def test_there_are_as_many_folders_as_analyses():
    with pytest.raises(ArgumentError, match="has 1 path for 2 analyses"):
        Series.of({name: sample_record((2,)) for name in "xy"}, folders=["x"])


def test_saved_series_can_be_moved_and_read(tmp_path, monkeypatch):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "analysis.json").write_text(json.dumps(sample_record((2, 2))))
    series = Series.of_folders([tmp_path / "one", tmp_path / "two"])
    series.save(tmp_path)
    written = json.loads((tmp_path / "series.json").read_text())
    assert [row["folder"] for row in written["analyses"]] == ["one", "two"]
    again = Series.load(tmp_path)
    monkeypatch.chdir("/")
    again.save(tmp_path)
    assert json.loads((tmp_path / "series.json").read_text()) == written
    assert again.record["analyses"][0]["segments"] == series.record["analyses"][0]["segments"]
    assert (tmp_path / "figures" / "over.svg").stat().st_size > 1000
    with pytest.raises(RecordError, match="several checkpoints"):
        Series.load(tmp_path / "one")


def test_an_analysis_and_a_series_do_not_share_a_folder(tmp_path):
    (tmp_path / "analysis.json").write_text(json.dumps(sample_record((2, 2))))
    series = Series.of({"a": sample_record((2,)), "b": sample_record((2,))})
    with pytest.raises(RecordError, match=r"already holds analysis\.json.*another folder"):
        series.save(tmp_path)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda s: s["analyses"][0].pop("name"), r"lacks analyses\[0\]\.name"),
        (lambda s: s["analyses"][1].pop("provenance"), r"lacks analyses\[1\]\.provenance"),
        (lambda s: s["analyses"][1].pop("segments"), r"lacks analyses\[1\]\.segments"),
        (lambda s: s["last_layer"].update(layers=["epoch 0"]), r"damaged in last_layer\.layers"),
        (lambda s: s["last_layer"]["view"]["labels"].pop(), r"damaged in last_layer\.view\.labels"),
        (lambda s: s.update(last_layer=[]), r"damaged in last_layer"),
        (lambda s: s.update(analyses=[]), "at least two"),
        (lambda s: s.update(axis="x"), "is not a series"),
        (lambda s: s["analyses"][0]["provenance"].update(epoch=None), "an analysis has no epoch"),
        (lambda s: s["analyses"][0]["provenance"].update(epoch=True), "an analysis has no epoch"),
    ],
)
def test_a_damaged_series_is_refused(tmp_path, spoil, said):
    series = sample_series(3)
    series["last_layer"] = training_view(series["analyses"])
    spoil(series)
    (tmp_path / "series.json").write_text(json.dumps(series))
    with pytest.raises(RecordError, match=said):
        report.build(tmp_path)


def test_file_that_is_not_a_record_is_refused():
    with pytest.raises(RecordError, match="lacks provenance"):
        Series.of({"a": {"layers": []}, "b": sample_record((2,))})


@pytest.mark.usefixtures("undrawn")
def test_nan_in_a_record_is_undefined(tmp_path):
    for name in ("one", "two"):
        record = sample_record((2, 2))
        record["accuracy"] = float("nan")
        (tmp_path / name).mkdir()
        (tmp_path / name / "analysis.json").write_text(json.dumps(record))
    series = Series.of_folders([tmp_path / "one", tmp_path / "two"])
    assert series.record["analyses"][0]["accuracy"] is None
    series.save(tmp_path / "both")


def test_folders_are_named_by_their_differences(tmp_path):
    places = [tmp_path / k / "run" for k in "ab"]
    for place in places:
        place.mkdir(parents=True)
        (place / "analysis.json").write_text(json.dumps(sample_record((2, 2))))
    series = Series.of_folders(places)
    assert [row["name"] for row in series.record["analyses"]] == ["a/run", "b/run"]
    with pytest.raises(ArgumentError, match="twice"):
        Series.of_folders([places[0], places[0]])


def test_table_has_a_row_per_analysis_and_segment():
    series = sample_series(3)
    rows = plots.series.series_rows(series)
    assert len(rows) == 6
    first = series["analyses"][0]
    assert rows[0]["length_ratio"] == first["segments"][0]["length_ratio"]
    low, high = first["segments"][0]["intervals"]["length_ratio"]
    assert (rows[0]["length_ratio_low"], rows[0]["length_ratio_high"]) == (low, high)
    assert rows[0]["nc1"] == first["layers"][-1]["collapse"]["nc1"]
    assert rows[0]["length_ratio_centred"] == first["segments"][0]["centred"]["length_ratio"]


def deep_and_shallow():
    """Two networks with 3 and 8 blocks in their only segment."""
    series = sample_series(2, epochs=False)
    for row, blocks, name in zip(series["analyses"], (4, 9), ("shallow", "deep"), strict=True):
        row.update(sample_record((blocks,)), name=name)
    runs = [row["segments"][0]["centred"]["length_over_runs"] for row in series["analyses"]]
    assert [sorted(each, key=int) for each in runs] == [["2", "3"], ["2", "4", "8"]]
    return series, [each["2"] for each in runs]


def test_networks_of_different_depth_are_compared_over_equal_runs(tmp_path):
    series, said = deep_and_shallow()
    rows = plots.series.series_rows(series)
    assert [row["runs"] for row in rows] == [2, 2]
    assert [row["length_over_runs_centred"] for row in rows] == said
    ax = plots.over(series, "length_over_runs_centred")
    assert ax.get_ylabel() == "k = 2 groups"
    assert any(list(line.get_ydata()) == said for line in ax.lines)
    Series(series).save(tmp_path)
    table = (report.build(tmp_path, html=False).parent / "straightness.md").read_text()
    assert "centered, over k = 2 groups of blocks" in table.replace("\\", "")


def test_series_without_common_runs_say_so():
    series, _ = deep_and_shallow()
    series["analyses"][0]["segments"][0]["centred"] = None
    assert {row["runs"] for row in plots.series.series_rows(series)} == {None}
    ax = plots.over(series, "length_over_runs_centred")
    assert not ax.axison


@pytest.mark.parametrize(("source", "said"), [("file", True), ("tensors", False), (None, False)])
def test_only_wgeo_checkpoints_call_epoch_0_the_initialisation(source, said):
    series = sample_series(3)
    for row in series["analyses"]:
        row["provenance"]["arch_from"] = source
    caption = catalog(series)[0].caption
    assert "Epochs on a logarithmic axis" in caption
    assert ("0 is the initialization" in caption) is said


@pytest.mark.parametrize("epochs", [True, False])
def test_lines_show_the_values_of_the_records(epochs):
    series = sample_series(3, epochs=epochs)
    ax = plots.over(series, "length_ratio")
    said = [row["segments"][0]["length_ratio"] for row in series["analyses"]]
    assert any(list(line.get_ydata()) == said for line in ax.lines)
    assert (ax.get_xscale() == "symlog") is epochs
    ax = plots.profiles(series, "nc1")
    values = [layer["collapse"]["nc1"] for layer in series["analyses"][0]["layers"][1:]]
    assert list(ax.lines[0].get_ydata()) == values


def test_unresolved_score_is_hollow():
    series = sample_series(2)
    series["analyses"][0]["segments"][0]["resolution"] = 0.1
    ax = plots.over(series, "ot_score")
    hollow = [
        x
        for line in ax.lines
        if line.get_markerfacecolor() == "white"
        for x in np.atleast_1d(line.get_xdata())
    ]
    assert 0 in hollow


def test_a_report_of_several_runs(tmp_path):
    series = Series(sample_series(3))
    series.save(tmp_path)
    page = report.build(tmp_path, html=False)
    text = page.read_text()
    assert "over training" in text
    assert "figures/over" in text
    assert (page.parent / "verdicts.md").read_text().count("## epoch") == 3
    assert (page.parent / "series.json").exists()


def test_a_report_of_several_analyses_of_features_shows_dashes_for_a_missing_network():
    series = sample_series(2, epochs=False)
    for row in series["analyses"]:
        row["provenance"] |= {"arch": None, "sha256": None}
    provenance = report.pages.pages(series)["provenance"]
    assert "no name" not in provenance
    assert provenance.count("| – | – |") == 2


# --- beside one analysis -------------------------------------------------------------------------


def test_fresh_weights_are_seeded_and_do_not_change_the_network(net):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    fresh, kept = untrained(net, seed=1)
    again, _ = untrained(net, seed=1)
    other, _ = untrained(net, seed=2)
    assert kept == ()
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])
    name = "blocks.0.conv1.weight"
    assert torch.equal(fresh.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(fresh.state_dict()[name], other.state_dict()[name])
    assert not torch.equal(fresh.state_dict()[name], net.state_dict()[name])


class _Partly(nn.Module):
    """Resets one of its two parameters."""

    def __init__(self):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))

    def reset_parameters(self):
        nn.init.zeros_(self.shift)


class _Asking(nn.Module):
    """Its reset wants to know more."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def reset_parameters(self, gain):
        nn.init.constant_(self.weight, gain)


def test_parameters_that_no_reset_reaches_keep_their_values_and_are_named():
    net = nn.Sequential(_Partly(), _Asking(), nn.Linear(2, 2))
    fresh, kept = untrained(net)
    assert kept == ("0.scale", "1.weight")
    assert torch.equal(fresh[0].scale, net[0].scale)
    assert torch.equal(fresh[0].shift, torch.zeros(2))
    assert all(bool(p.isfinite().all()) for p in fresh.parameters())


def test_weights_behind_a_parametrisation_are_not_taken_for_fresh(images):
    torch.manual_seed(0)
    options = {"width": 4, "depth": 3, "stride": 2}
    net = wgeo.models.build(
        "isoresnet", num_classes=2, in_channels=1, image_size=8, **options
    ).eval()
    for part in list(net.modules()):
        if isinstance(part, nn.Conv2d):
            nn.utils.parametrizations.weight_norm(part)
    record = wgeo.analyze(net, images, **PLAIN | {"reference": "init"}).record
    assert set(record["reference"]) == {"kind", "skipped"}
    assert "cannot be randomly initialized" in record["reference"]["skipped"]


def test_a_network_can_be_its_own_reference(net, images):
    record = wgeo.analyze(net, images, **PLAIN | {"reference": net}).record
    (test,) = record["reference"]["tests"]
    assert test["difference"] == 0
    assert test["direction"] == "neither"
    said = against_network(test)  # which a verdict on a network at chance leaves out
    assert said.strength == "undecided"
    assert said.words.endswith("These images do not show a difference.")


def test_references_by_name(net, images):
    def beside(reference):
        return wgeo.analyze(net, images, **PLAIN | {"reference": reference}).record.get("reference")

    assert beside("shuffled")["tests"][0]["reference"] > 0
    assert beside("none") is None
    assert beside(None) is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"reference": "its twin"}, "init, shuffled, none"),
        ({"reference": Trajectory.from_arrays([np.eye(4)] * 2, [0, 1, 0, 1])}, "not features"),
        ({"embed": "pca:x"}, "choose pad"),
        ({"solver": wgeo.Exact}, "wgeo.Exact()"),
        ({"brenier": -1}, "brenier"),
        ({"alignment": -1}, "alignment"),
    ],
)
def test_invalid_arguments_are_reported_before_any_work(net, images, monkeypatch, words, said):
    monkeypatch.setattr("wgeo.analysis.pipeline.trace", lambda *_, **__: pytest.fail("it began"))
    with pytest.raises(ArgumentError, match=said):
        wgeo.analyze(net, images, **words)


def test_every_block_has_its_brenier_test(net, images):
    record = wgeo.analyze(net, images, **PLAIN | {"brenier": 4}).record
    for block in record["blocks"]:
        assert block["asymmetry"] > 0
        assert block["brenier"]["points"] == 4
        assert block["min_eigenvalue"] == block["brenier"]["min_eigenvalue"]
    assert record["segments"][0]["brenier"]["points"] == 4
    assert record["brenier"] == {"points": 4}
    assert record["segments"][0]["brenier"]["blocks"] == ["blocks.0", "blocks.1", "blocks.2"]
    assert "gradient-maps" in [plot.stem for plot in catalog(record)]
    with pytest.raises(ArgumentError, match="brenier"):
        wgeo.analyze(net, images, brenier=-1)


def test_the_brenier_test_runs_by_itself_if_it_is_cheap(net, images, monkeypatch):
    words = {key: value for key, value in PLAIN.items() if key != "brenier"}
    record = wgeo.analyze(net, images, **words).record
    assert record["brenier"] == {"points": 8}
    assert record["blocks"][0]["brenier"]["excluded"] is True
    monkeypatch.setattr("wgeo.analysis.controls._MAX_OPERATIONS", 10)
    skipped = wgeo.analyze(net, images, **words).record
    assert skipped["brenier"]["points"] == 0
    assert "brenier=4" in skipped["brenier"]["skipped"]
    assert all("brenier" not in block for block in skipped["blocks"])
    asked = wgeo.analyze(net, images, brenier=3, **words).record
    assert asked["brenier"] == {"points": 3}
    assert "brenier" not in wgeo.analyze(net, images, brenier=0, **words).record


def test_a_default_test_that_runs_out_of_memory_is_skipped(net, images, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    for test, name in (("brenier", "brenier_blocks"), ("alignment", "alignment")):
        monkeypatch.setattr(f"wgeo.analysis.controls.{name}", full)
        words = {key: value for key, value in PLAIN.items() if key != test}
        record = wgeo.analyze(net, images, **words).record
        assert record[test] == {"points": 0, "skipped": "CUDA out of memory"}
        with pytest.raises(torch.OutOfMemoryError):
            wgeo.analyze(net, images, **words, **{test: 3})


def test_residual_jacobians_are_compared_by_default_if_that_is_cheap(net, images, monkeypatch):
    words = {key: value for key, value in PLAIN.items() if key != "alignment"}
    record = wgeo.analyze(net, images, **words).record
    found = record["alignment"]
    assert found["points"] == 4
    assert [block["name"] for block in found["blocks"]] == ["blocks.0", "blocks.1", "blocks.2"]
    assert {"alignment", "separation-law"} <= {plot.stem for plot in catalog(record)}
    assert record["separation_law"]["segments"][0]["layers"][0] == "stem"
    check_record(record, "it", Record)
    monkeypatch.setattr("wgeo.analysis.controls._MAX_OPERATIONS", 10)
    skipped = wgeo.analyze(net, images, **words).record
    assert skipped["alignment"]["points"] == 0
    assert "alignment=4" in skipped["alignment"]["skipped"]
    assert "alignment" not in wgeo.analyze(net, images, **PLAIN).record


def test_the_whole_network_in_one_space(net, images):
    traj = wgeo.trace(net, images)
    record = wgeo.analyze(net, images, embed="pca:2", **PLAIN).record
    found = record["embedded"]
    expected = wgeo.straightness(traj.embedded("pca:2"), bootstrap=0).segments[0]
    assert found["space"] == "pca:2"
    assert found["segments"][0]["length_ratio"] == pytest.approx(expected.length_ratio)


def test_curves_over_sample_sizes_end_at_the_measured_value(net, images):
    record = wgeo.analyze(net, images, **PLAIN).record
    (segment,) = record["segments"]
    last = segment["sample_sizes"]["points"][-1]
    assert last["size"] == 40
    assert last["distance"] == pytest.approx(segment["distance"])
    ax = plots.sample_sizes(record, "distance")
    assert any(np.isclose(line.get_ydata()[-1], segment["distance"]) for line in ax.lines)
