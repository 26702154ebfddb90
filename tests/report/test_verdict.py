"""What a verdict says, in cases built to make it say something false."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from records import sample_record

import wgeo
from wgeo.analysis import analyze_trajectory
from wgeo.analysis.verdict import THRESHOLDS, Sentence, sentence, sentences, text
from wgeo.cli.tables import print_analysis
from wgeo.thresholds import clearly_above
from wgeo.trajectory import Layer, Trajectory


def trajectory(arrays, labels=None):
    n = len(arrays[0])
    layers = tuple(Layer(f"layer{i}", np.asarray(a, float), 0) for i, a in enumerate(arrays))
    return Trajectory(layers, np.arange(n) % 2 if labels is None else labels)


def verdict_of(arrays, labels=None, **options):
    """The sentences on straightness, optimality and blocks of features."""
    straight = wgeo.straightness(trajectory(arrays, labels), bootstrap=60, **options)
    return sentences(straight.to_dict())


def said(found, claim):
    return text([s for s in found if s.claim == claim])


def claimed(found, claim):
    return next(s for s in found if s.claim == claim)


def antisymmetric(d, rng):
    frame = np.linalg.qr(rng.standard_normal((d, d)))[0]
    half = frame[:, ::2] @ frame[:, 1::2].T
    return half - half.T


def quarter_turn(rng, shift):
    x = rng.standard_normal((1000, 2))
    return x, x @ np.array([[0.0, 1.0], [-1.0, 0.0]]) + [shift, 0.0]


@pytest.mark.parametrize("shift", [0.0, 30.0])
def test_quarter_turn_with_any_addition_is_not_optimal(rng, shift):
    x, y = quarter_turn(rng, shift)
    straight = wgeo.straightness(trajectory([x, y]), bootstrap=0)
    block = straight.blocks[0]
    assert (block.ot_score > 0.99) == (shift > 0)
    assert block.ot_score_centred < 0.05
    found = sentences(straight.to_dict())
    assert "is not optimal" in said(found, "optimality")
    assert "The one block is not an optimal map of these samples" in said(found, "blocks")


@pytest.mark.parametrize(("width", "blocks"), [(8, 1), (2, 2), (32, 2)])
def test_random_orthogonal_maps_with_a_common_shift_are_neither_straight_nor_optimal(
    width, blocks, rng
):
    """Without the shift every layer has the same distribution: the network does nothing to it."""
    layers = [rng.standard_normal((100, width))]
    for _ in range(blocks):
        layers.append(layers[-1] @ np.linalg.qr(rng.standard_normal((width, width)))[0])
    path = [x + np.r_[100.0 * k, np.zeros(width - 1)] for k, x in enumerate(layers)]
    straight = wgeo.straightness(trajectory(path), bootstrap=60)
    assert min(row.ot_score for row in (*straight.blocks, *straight.segments)) > 0.98
    assert straight.segments[0].length_ratio < THRESHOLDS["straight"]
    found = sentences(straight.to_dict())
    assert "the map is not optimal" in said(found, "optimality")
    assert not re.search("straight to|close to straight", said(found, "straightness"))
    assert {row["kind"] for row in claimed(found, "blocks").evidence["blocks"]} == {"not optimal"}


@pytest.mark.parametrize(("d", "n", "step"), [(512, 500, 1.0), (128, 1000, 1.0), (32, 1000, 1.0)])
def test_turns_in_many_planes_are_never_called_optimal(d, n, step, rng):
    """45 degrees in every plane: the samples are too sparse to see it."""
    x = rng.standard_normal((n, d))
    y = x + step * x @ antisymmetric(d, rng).T
    found = verdict_of([x, y])
    assert "map is optimal for" not in said(found, "optimality")
    assert " an optimal map of" not in said(found, "blocks").replace("not an", "")
    assert "gradient" not in said(found, "blocks")


def test_verdict_names_what_would_decide_an_open_question(rng):
    x = rng.standard_normal((500, 64))
    found = verdict_of([x, x + 0.5 * x @ antisymmetric(64, rng).T])
    assert "do not show" in said(found, "optimality")
    assert "more images" in said(found, "next")
    assert found[-1].claim == "next"


def test_a_common_shift_with_noise_is_not_straight(rng):
    """Every block adds one constant vector and a little noise: the network does nothing."""
    path = [rng.standard_normal((400, 16))]
    for _ in range(6):
        noise = 0.15 * rng.standard_normal((400, 16))
        path.append(path[-1] + np.r_[3.0, np.zeros(15)] + noise)
    straight = wgeo.straightness(trajectory(path), bootstrap=60)
    assert straight.segments[0].length_ratio < THRESHOLDS["straight"]
    words = said(sentences(straight.to_dict()), "straightness")
    assert ": straight to" not in words
    assert ": close to" not in words
    assert "one shift common to all samples" in words
    assert "with it the ratio is 1.017 (1.016 to 1.017)." in words


def test_pure_translation_gives_no_evidence_about_the_path(rng):
    x = rng.standard_normal((200, 8))
    found = verdict_of([x, x + 1.0, x + 2.0, x + 3.0])
    assert "straight to" not in said(found, "straightness")
    assert "optimal" not in said(found, "optimality")
    assert " an optimal map of" not in said(found, "blocks")


@pytest.mark.parametrize("noise", [0.0, 1e-9])
def test_identity_blocks_give_no_evidence(noise, rng):
    x = rng.standard_normal((300, 5))
    found = verdict_of([x, *(x + noise * rng.standard_normal(x.shape) for _ in range(3))])
    assert "straight to" not in said(found, "straightness")
    assert "optimal" not in said(found, "optimality")
    assert " an optimal map of" not in said(found, "blocks")


def test_independent_steps_of_noise_are_neither_straight_nor_optimal(rng):
    path = [rng.standard_normal((60, 64))]
    for _ in range(4):
        path.append(path[-1] + 0.5 * rng.standard_normal((60, 64)))
    found = verdict_of(path)
    assert ": straight" not in said(found, "straightness")
    assert ": close" not in said(found, "straightness")
    assert "map is optimal for" not in said(found, "optimality")
    assert " an optimal map of" not in said(found, "blocks")


def test_four_samples_give_no_evidence(rng):
    h = rng.standard_normal((4, 64))
    traj = trajectory([h, h + rng.standard_normal(h.shape), h + 2 * rng.standard_normal(h.shape)])
    verdict = analyze_trajectory(traj, bootstrap=0, mufm=False).record["verdict"]
    assert [s["claim"] for s in verdict] == ["samples"]


def test_random_labels_are_not_reported_as_collapse(rng):
    x = rng.standard_normal((600, 16))
    labels = np.arange(600) % 10
    drift = [x + 0.02 * i * np.eye(16)[labels] for i in range(6)]
    analysis = analyze_trajectory(trajectory(drift, labels), bootstrap=20, mufm=False)
    words = said([Sentence(**s) for s in analysis.record["verdict"]], "collapse")
    assert "not collapsed" in words


def contraction(rng, n=400, d=6, steps=4):
    """A geodesic: every sample goes straight to its class's point."""
    labels = np.arange(n) % 3
    goal = 3 * np.eye(3, d)[labels]
    x = goal + rng.standard_normal((n, d))
    return [x + t * 0.9 * (goal - x) for t in np.linspace(0, 1, steps + 1)], labels


def test_dilation_is_optimal_with_sufficient_power(rng):
    x = rng.standard_normal((400, 3))
    found = verdict_of([x, 2 * x, 3 * x])
    assert "the map is optimal for these samples" in said(found, "optimality")


def test_a_contraction_to_the_class_means_is_straight_and_collapsed(rng):
    path, labels = contraction(rng)
    analysis = analyze_trajectory(trajectory(path, labels), bootstrap=60, mufm=False)
    found = [Sentence(**s) for s in analysis.record["verdict"]]
    assert ": straight to within 5 %" in said(found, "straightness")
    assert "not optimal" not in said(found, "optimality")
    assert "are collapsed" in said(found, "collapse")
    assert all(s.evidence for s in found if s.claim != "next")
    assert analysis.verdict == text(found)


def segment(**changes):
    """The values of a segment in a record that sentences need."""
    known = {
        "layers": ["stem", "a", "b"],
        "samples": 1000,
        "relative_displacement": 1.0,
        "length_ratio": 1.1,
        "shift_share": 0.1,
        "corr_score": [0.5, 0.499, 0.501],
        "null": [{"kind": "dealt", "score": [0.2, 0.2, 0.2]}],
        "power": True,
        "spread_ratio": 2.0,
        "centred": {
            "length_ratio": 1.02,
            "sqrt_moving_blocks": 2.5,
            "null_length_ratio": 1.6,
            "intervals": {"length_ratio": [1.015, 1.025]},
        },
    }
    return {**known, **changes}


def centred(ratio, low, high, bound=2.5, **more):
    ends = {"length_ratio": [low, high]}
    known = {"length_ratio": ratio, "sqrt_moving_blocks": bound, "null_length_ratio": 1.6}
    return {**known, "intervals": ends, **more}


@pytest.mark.parametrize(
    ("twin", "words"),
    [
        (centred(1.02, 1.015, 1.025), ": straight to within 5 %"),
        (centred(1.04, 1.03, 1.08), 'between "straight to within 5 %" and "close to straight"'),
        (centred(1.3, 1.25, 1.35), ": bent"),
        (centred(1.9, 1.8, 2.0), ": far from straight"),
        (centred(1.48, 1.44, 1.52, bound=1.47), 'between "bent" and "far from straight"'),
        (centred(1.15, 1.12, 1.18, bound=1.2), "not clearly straighter than steps at right angles"),
        (centred(1.02, 1.015, 1.025, bound=1.03), "one block accounts for nearly all of the path"),
    ],
)
def test_wording_depends_on_interval_and_moving_blocks(twin, words):
    found = sentences({"segments": [segment(centred=twin)]})
    assert words in said(found, "straightness")


def test_path_without_an_interval_is_not_classified():
    twin = {"length_ratio": 1.02, "sqrt_moving_blocks": 2.5}
    found = sentences({"segments": [segment(centred=twin)]})
    assert "straight to" not in said(found, "straightness")
    assert found[0].strength == "suggested"


def test_the_layer_from_which_the_map_is_optimal_is_named():
    matrix = [[1, 0.9, 0.4], [0.9, 1, 0.999], [0.4, 0.999, 1]]
    null = [[None, 0.3, 0.2], [0.3, None, 0.45], [0.2, 0.45, None]]
    pairs = {"layers": ["stem", "a", "b"], "null": null}
    pairs |= dict.fromkeys(("corr_score", "corr_low", "corr_high"), matrix)
    found = sentences({"segments": [segment(corr_score=[0.4, 0.4, 0.4], pairs=pairs)]})
    words = said(found, "optimality")
    assert words.startswith("From a to b the map is optimal")
    assert "from stem it is not (0.4" in words


def test_the_output_of_a_shortcut_is_described_as_such():
    names = ["layer3.0.shortcut", "a", "b"]
    pairs = {"layers": names, "null": [[0.2] * 3] * 3}
    pairs |= dict.fromkeys(("corr_score", "corr_low", "corr_high"), [[0.999] * 3] * 3)
    one = segment(layers=names, corr_score=[0.4, 0.4, 0.4], pairs=pairs, spread_ratio=12.0)
    words = said(sentences({"segments": [one]}), "optimality")
    assert "; from the input of layer3.0, mapped by its shortcut, it is not (0.4" in words
    assert "at the input of layer3.0, mapped by its shortcut, is 12 times smaller" in words
    assert "layer3.0.shortcut" not in words


def test_a_high_score_without_power_is_undecided():
    null = [{"kind": "dealt", "score": [0.999, 0.999, 0.999]}]
    found = sentences(
        {"segments": [segment(corr_score=[0.9999, 0.9999, 0.9999], null=null, power=False)]}
    )
    assert "do not show" in said(found, "optimality")
    assert claimed(found, "optimality").strength == "undecided"


def test_a_point_like_start_is_mentioned():
    found = sentences({"segments": [segment(spread_ratio=141.0)]})
    assert "141 times smaller" in said(found, "optimality")


@pytest.mark.parametrize(
    ("direction", "words"),
    [
        ("straighter", "is straighter than 20"),
        ("less straight", "is less straight than 20"),
        ("neither", "is not distinguishable in straightness from 20"),
    ],
)
def test_less_straight_is_reported_as_clearly_as_straighter(direction, words):
    row = {
        "layers": ["stem", "a", "b"],
        "value": 1.9,
        "median": 1.4,
        "low": 1.3,
        "high": 1.5,
        "rank_p": 0.05,
        "adjusted_p": 0.05,
        "direction": direction,
    }
    reference = {"kind": "init", "networks": [{}] * 20, "segments": [row]}
    assert words in said(sentences({"reference": reference}), "reference")


def few_samples(**collapse):
    layers = [
        {"name": "input", "stage": None, "collapse": {"nc1": 30.0, "nc1_corrected": 45.0}},
        {"name": "last", "stage": 0, "collapse": {"samples_per_class": 4, **collapse}},
    ]
    return {"layers": layers}


def test_corrected_estimate_decides_for_few_samples_per_class():
    """The value of the plain formula would be called collapsed, and the population is not."""
    known = {"nc1": 0.08, "nc1_corrected": 0.13, "intervals": {"nc1_corrected": [0.11, 0.16]}}
    (found,) = [s for s in sentences(few_samples(**known)) if s.claim == "collapse"]
    assert "partly collapsed" in found.words
    assert (
        ", corrected for few samples per class, is 0.13 (0.11 to 0.16, 95 % interval over images)"
        in found.words
    )
    assert "[uncorrected: 0.08]; at input it is 45" in found.words
    assert (found.evidence["nc1"], found.evidence["nc1_corrected"]) == (0.08, 0.13)
    assert found.evidence["interval"] == [0.11, 0.16]
    assert found.strength == "shown"


def test_uncorrectable_estimate_is_not_reported_as_collapsed():
    (found,) = [s for s in sentences(few_samples(nc1=0.05)) if s.claim == "collapse"]
    assert "with 4 samples in the smallest class" in found.words
    assert found.strength == "undecided"


def test_the_table_of_few_samples_shows_corrected_values(capsys):
    record = sample_record((2,))
    print_analysis(wgeo.Analysis(record))
    assert "corrected" not in capsys.readouterr().out
    record["trust"]["samples_per_class"] = 4
    print_analysis(wgeo.Analysis(record))
    shown = " ".join(capsys.readouterr().out.split())
    assert "NC1 is biased, and" in shown
    assert "corrected" not in shown
    for layer in record["layers"]:
        layer["collapse"]["nc1_corrected"] = 12.25
    print_analysis(wgeo.Analysis(record))
    shown = " ".join(capsys.readouterr().out.split())
    assert "NC1 corrected" in shown
    assert shown.count("12.2") == len(record["layers"])
    assert "The smallest class has only 4 samples" in shown


def test_jacobians_decide_about_blocks_when_they_were_tested():
    base = {"target": "a", "corr_score": [1.0, 1.0, 1.0], "power": False}
    excluded = {**base, "brenier": {"excluded": True, "points": 8}}
    gradient = {**base, "brenier": {"excluded": False, "points": 8}}
    words = said(sentences({"blocks": [excluded, gradient, base]}), "blocks")
    assert "1 has Jacobians that exclude even a nearly optimal map" in words
    assert "1 is undecided with these samples" in words


def test_a_record_of_schema_1_is_still_read(tmp_path):
    record = sample_record() | {
        "schema": 1,
        "verdict": "It is straight. It is 1.5 times as long.",
    }
    (tmp_path / "analysis.json").write_text(json.dumps(record))
    analysis = wgeo.Analysis.load(tmp_path)
    assert analysis.verdict == "It is straight. It is 1.5 times as long."
    assert [s["words"] for s in analysis.record["verdict"]] == [
        "It is straight.",
        "It is 1.5 times as long.",
    ]


def test_every_threshold_is_documented():
    source = Path(sentence.__file__).read_text(encoding="utf-8")
    described = source.partition('"""The thresholds at which the wording changes.')[2].partition(
        '"""'
    )[0]
    assert all(name in described for name in THRESHOLDS)


def test_thresholds_are_written_out_once():
    """Their values, and the rule of power, occur in no other module that composes sentences."""
    root = Path(wgeo.__file__).parent
    sources = [
        p for part in ("analysis", "cli", "plots", "report") for p in (root / part).rglob("*.py")
    ]
    literal = re.compile(r"(?<![\d.])0\.99\b|1 / (math|np)\.sqrt\(")
    found = [p.name for p in sources if literal.search(p.read_text(encoding="utf-8"))]
    assert found == ["sentence.py"]  # "good_accuracy"
    assert clearly_above(0.76, 0.7, 10_000)
    assert not clearly_above(0.74, 0.7, 10_000)
    assert not clearly_above(0.79, 0.7, 100)


def test_replacing_evidence_changes_the_sentences():
    first = sentences({"segments": [segment()]})
    second = sentences({"segments": [segment(centred=centred(3.0, 2.9, 3.1))]})
    assert text(first) != text(second)
    assert replace(first[0], words="x").words == "x"


def test_refuted_map_is_reported_although_a_later_one_is_undecided(rng):
    """One of eight axes is reflected: 0.88 end to end is certain, from half way on 0.96 is not."""
    x = rng.standard_normal((300, 8))
    found = verdict_of([x, x * np.r_[0, np.ones(7)], x * np.r_[-1, np.ones(7)]])
    words = said(found, "optimality")
    assert "to layer2 the map is not optimal" in words
    assert "; from layer1 onward" in words
    assert "do not show whether" in words
    assert found[-1].claim == "next"


def test_a_certified_score_below_one_refutes_exact_optimality(rng):
    """A turn by 25 degrees in one plane of three dimensions has score 0.97, without power."""
    x = rng.standard_normal((300, 3))
    turn = np.eye(3)
    turn[:2, :2] = [[np.cos(0.43), -np.sin(0.43)], [np.sin(0.43), np.cos(0.43)]]
    words = said(verdict_of([x, x @ turn.T]), "optimality")
    assert "the map is not exactly optimal" in words
    assert "do not show whether it is nearly optimal" in words


def test_wide_bounds_refute_nothing_and_are_named_as_reason():
    found = sentences({"segments": [segment(corr_score=[0.93, 0.85, 0.999])]})
    words = said(found, "optimality")
    assert "is not optimal" not in words
    assert "bounds of the score are too wide" in words
    assert "wrong samples" not in words


def test_a_high_score_without_a_null_names_no_null():
    found = sentences({"segments": [segment(corr_score=[0.9999] * 3, null=[], power=None)]})
    assert "is evidence only if" not in said(found, "optimality")
    assert "were not scored" in said(found, "optimality")
    assert "do not show" in said(found, "optimality")


def test_path_that_returns_is_not_reported_as_unmoved(rng):
    x = rng.standard_normal((100, 4))
    words = said(verdict_of([x, 2 * x, 3 * x, x]), "straightness")
    assert "returns to its starting point" in words
    assert "less than rounding" not in words


def test_constant_features_are_named(rng):
    x = rng.standard_normal((100, 4))
    point = np.ones((100, 4))
    assert "all samples have the same features" in said(verdict_of([point] * 3), "straightness")
    for path in ([point, x, 2 * x], [x, 0.5 * x, point]):
        assert "any map would be optimal" in said(verdict_of(path), "optimality")


def test_undecided_blocks_are_not_reported_as_moving_little(rng):
    x = rng.standard_normal((300, 8))
    words = said(verdict_of([x, 1.5 * x, 2 * x]), "blocks")
    assert "both are undecided with these samples" in words
    assert "too little" not in words


def collapse_of(nc1, interval):
    collapse = {"nc1": nc1, "samples_per_class": 50, "intervals": {"nc1": interval}}
    layers = [{"name": "last", "stage": 0, "collapse": collapse}]
    return sentences({"layers": layers})[0]


@pytest.mark.parametrize(
    ("nc1", "interval", "words", "strength"),
    [
        (0.75, [0.45, 2.0], "between partly collapsed and not collapsed", "suggested"),
        (0.11, [0.09, 0.14], "between collapsed and partly collapsed", "suggested"),
        (0.05, [0.04, 0.06], "are collapsed", "shown"),
        (
            5.11,
            [6.15, 14.3],
            "(6.15 to 14.30, 95 % interval over images, corrected for bias)",
            "shown",
        ),
    ],
)
def test_level_of_collapse_depends_on_both_ends_of_the_interval(nc1, interval, words, strength):
    found = collapse_of(nc1, interval)
    assert words in found.words
    assert found.strength == strength


@pytest.mark.parametrize(
    ("increases", "words"),
    [(["b2", "b5"], "except at b2 and b5."), (["b1", "b2", "b3", "b4"], "except at 4 layers.")],
)
def test_layers_at_which_nc1_rises_are_named_if_they_are_few(increases, words):
    trend = {"kendall_tau": -0.7, "violations": len(increases), "increases": increases}
    layers = [
        {"name": name, "stage": 0, "collapse": {"nc1": nc1}}
        for name, nc1 in (("first", 2.0), ("last", 1.0))
    ]
    (found,) = sentences({"layers": layers, "progress": {"nc1": trend}})
    assert found.words.endswith(words)


def test_huge_numbers_are_not_written_out():
    assert "1.04e+11" in collapse_of(1.04e11, None).words


def test_ratio_of_one_has_decimals_and_its_interval_is_labelled(rng):
    x = rng.standard_normal((100, 3))
    assert "is as long as the geodesic" in said(verdict_of([x, 2 * x, 3 * x]), "straightness")
    assert "95 % interval over images)" in said(
        sentences({"segments": [segment()]}), "straightness"
    )


def test_one_sample_per_class_is_not_reported_as_one_class():
    found = sentences({"trust": {"samples": 40, "samples_per_class": 1}})
    assert "The smallest class has a single sample" in said(found, "samples")
