"""Where a verdict must hold back: few samples decide, sparse samples, copies, rounding."""

from __future__ import annotations

import numpy as np
import pytest
from test_verdict import centred, claimed, collapse_of, said, segment, trajectory, verdict_of

import wgeo
from wgeo.analysis import analyze_trajectory
from wgeo.analysis.verdict import sentences
from wgeo.analysis.verdict.sentence import ranged
from wgeo.trajectory import Layer, Trajectory


def dealt(rng, distant, n=100, steps=3):
    """Samples that exchange places, except a few distant ones that move straight on."""
    path = [rng.standard_normal((n, 8))]
    for _ in range(steps):
        path.append(path[-1][rng.permutation(n)])
    for step, layer in enumerate(path):
        for k in range(distant):
            layer[k] = 1e3 * (1 + step / steps) * np.eye(8)[k]
    return path


@pytest.mark.parametrize(
    ("distant", "words"), [(1, "about 1 sample of 100 determines"), (3, "determine")]
)
def test_result_of_few_dominant_samples_is_not_claimed_for_all(distant, words, rng):
    found = verdict_of(dealt(rng, distant), pairs=False)
    assert f"{words} this value, so it says nothing about the others" in said(found, "straightness")
    assert ": straight" not in said(found, "straightness")
    assert f"{words} the correlation score" in said(found, "optimality")
    assert "optimal map of" not in said(found, "blocks")


def test_map_refuted_by_few_dominant_samples_is_still_refuted():
    found = sentences({"segments": [segment(effective_samples=3.2)]})
    words = said(found, "optimality")
    assert "the map is not optimal" in words
    assert "About 3 samples of 1,000 determine this score." in words


def test_turn_unresolved_by_sparse_samples_is_not_close_to_straight(rng):
    """45 degrees a step in 2 of 16 planes: transport has no length, and samples read 1.08."""
    x, turn = rng.standard_normal((150, 32)), np.eye(32)
    turn[:2, :2] = turn[2:4, 2:4] = np.array([[1, -1], [1, 1]]) / np.sqrt(2)
    path = [x, x @ turn, x @ turn @ turn]
    straight = wgeo.straightness(trajectory(path), bootstrap=60, pairs=False)
    assert straight.segments[0].centred["length_ratio"] < 1.2
    found = sentences(straight.to_dict())
    assert "too sparse to tell a straight path from one that turns" in said(found, "straightness")
    assert "more images" in said(found, "next")


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        ({"null_length_ratio": 1.12, "length_ratio_at_most": None}, ": straight to within 5 %"),
        ({"null_length_ratio": 1.04, "length_ratio_at_most": 1.04}, ": straight to within 5 %"),
        ({"null_length_ratio": 1.04, "length_ratio_at_most": 1.15}, 'and "close to straight"'),
        ({"null_length_ratio": 1.04, "length_ratio_at_most": 1.3}, "too sparse to tell"),
        ({"null_length_ratio": None, "length_ratio_at_most": None}, "too sparse to tell"),
    ],
)
def test_straight_needs_a_null_path_that_is_longer_or_a_bound(shown, words):
    found = sentences({"segments": [segment(centred=centred(1.02, 1.015, 1.025, **shown))]})
    assert words in said(found, "straightness")


def test_a_bent_path_needs_no_null_path():
    twin = centred(1.3, 1.25, 1.35, null_length_ratio=None)
    assert ": bent" in said(sentences({"segments": [segment(centred=twin)]}), "straightness")


@pytest.mark.parametrize(("distinct", "optimal"), [(30, False), (400, True), (None, True)])
def test_copies_do_not_make_a_score_evidence(distinct, optimal):
    """The margin of 400 samples is 0.05; that of 30 distinct ones is 1 / sqrt(30) = 0.18."""
    null = [{"kind": "dealt", "score": [0.85, 0.85, 0.85]}]
    row = {"samples": 400, "distinct": distinct, "corr_score": [0.995] * 3, "null": null}
    found = sentences({"segments": [segment(**row)], "blocks": [block(**row)]})
    assert ("the map is optimal for" in said(found, "optimality")) is optimal
    assert ("is an optimal map" in said(found, "blocks")) is optimal
    pairs = {"layers": ["stem", "a", "b"], "null": [[0.85] * 3] * 3}
    pairs |= dict.fromkeys(("corr_score", "corr_low", "corr_high"), [[0.995] * 3] * 3)
    pairs |= dict.fromkeys(("distance", "lower", "upper"), [[1.0] * 3] * 3)
    record = {"segments": [segment(**row, pairs=pairs)]}
    texts = [text.get_text() for text in wgeo.plots.correlation_pairs(record).texts]
    assert [text.startswith("(") for text in texts] == [not optimal] * 3


def test_near_copies_are_reported_and_their_class_means_claim_nothing(rng):
    base = rng.standard_normal((60, 6))
    x = np.concatenate([base, base + 1e-9 * rng.standard_normal(base.shape)])
    labels = np.repeat([0, 1], 60)  # the same images under either label
    record = analyze_trajectory(trajectory([x, 2 * x], labels), bootstrap=20, mufm=False).record
    assert record["trust"]["duplicates"] == record["trust"]["relabelled"] == 60
    words = " ".join(s["words"] for s in record["verdict"])
    assert "60 images of 120 are copies of another, 60 under another label" in words
    assert "the class means of these images cannot be distinguished" in words
    assert record["blocks"][0]["distinct"] == 60


@pytest.mark.parametrize("nc1", [3e-15, 0.0])
def test_variability_at_rounding_level_is_reported_as_zero(nc1):
    found = collapse_of(nc1, None)
    assert "cannot be distinguished from 0" in found.words
    assert "are collapsed" in found.words


@pytest.mark.parametrize("left", [1e-5, 1e-3])
def test_a_path_that_ends_nearly_where_it_began_has_no_ratio(left, rng):
    x = rng.standard_normal((80, 4))
    path = [x, 2 * x, 3 * x, x + left * rng.standard_normal(x.shape)]
    words = said(verdict_of(path, pairs=False), "straightness")
    assert "end nearly where they began" in words
    assert "times as long" not in words


def test_motion_at_rounding_level_is_not_motion(rng):
    """Features in float32 far from 0, whose rounding is larger than 1e-6 of their spread."""
    x = (100 + rng.standard_normal((80, 8))).astype(np.float32)
    path = [x, *((x + 1e-4 * rng.standard_normal(x.shape)).astype(np.float32) for _ in range(3))]
    layers = tuple(Layer(f"layer{i}", features, 0) for i, features in enumerate(path))
    traj = Trajectory(layers, np.arange(80) % 2)
    found = sentences(wgeo.straightness(traj, bootstrap=60, pairs=False).to_dict())
    assert "do not move by more than rounding" in said(found, "straightness")
    assert "none moves these samples by more than rounding error" in said(found, "blocks")
    assert not said(found, "optimality")


def test_terms_are_explained_once():
    returned = segment(length_ratio=1e6, centred=centred(1e6, 0.9e6, 1.1e6))
    for first in (segment(), returned):  # of a path that is not judged, neither term is needed
        found = sentences({"segments": [first, segment(layers=["c", "d", "e"])]})
        words = said(found, "straightness")
        assert words.count("each layer's mean is subtracted") == 1
        assert words.count("the shortest path in Wasserstein distance") == 1
    assert "end nearly where they began" in words
    found = sentences({"segments": [segment(), segment(layers=["c", "d", "e"])]})
    assert said(found, "optimality").count("no other pairing") == 1
    row = {"layers": ["a", "b", "c"], "value": 1.2, "median": 1.4, "low": 1.3, "high": 1.5}
    row |= {"adjusted_p": 0.05, "direction": "straighter"}
    reference = {"networks": [{}] * 20, "segments": [row, row]}
    words = said(sentences({"reference": reference}), "reference")
    assert words.count("line-shape ratio") == 2
    assert words.count("1 is a straight line") == 1


def block(**changes):
    score = {"corr_score": [0.999, 0.999, 0.999], "power": False, "samples": 1000}
    return {"source": "a", "target": "b", **score, **changes}


def jacobian(asymmetry, eigenvalue, excluded=True):
    return {
        "excluded": excluded,
        "points": 8,
        "asymmetry": asymmetry,
        "relative_eigenvalue": eigenvalue,
        "intervals": {"asymmetry": [0.9 * asymmetry, 1.1 * asymmetry]},
    }


@pytest.mark.parametrize(
    ("asymmetry", "eigenvalue", "excluded", "words"),
    [
        (0.005, 0.0, False, "The one block has Jacobians consistent with an optimal map"),
        (0.018, 0.0, True, "has Jacobians consistent with a nearly optimal map but"),
        (0.3, 0.0, True, "has Jacobians that exclude even a nearly optimal map"),
        (0.018, -0.4, True, "has Jacobians that exclude even a nearly optimal map"),
    ],
)
def test_jacobians_are_reported_by_strength(asymmetry, eigenvalue, excluded, words):
    brenier = jacobian(asymmetry, eigenvalue, excluded)
    found = said(sentences({"blocks": [block(brenier=brenier)]}), "blocks")
    assert words in found
    assert (
        "with respect to its input, before pooling, at 8 images, judged by 95 % intervals" in found
    )
    assert f"; asymmetry {asymmetry}, smallest eigenvalue" in found
    assert f"smallest eigenvalue {eigenvalue:.2g} of the largest" in found
    assert "an optimal map has asymmetry 0 and no eigenvalue below 0" in found


def test_asymmetries_of_several_blocks_are_reported_as_a_range():
    rows = [block(brenier=jacobian(a, -0.4)) for a in (0.06, 0.49)]
    assert "asymmetry 0.06 to 0.49, smallest" in said(sentences({"blocks": rows}), "blocks")


@pytest.mark.parametrize(
    ("asymmetries", "words"),
    [
        ((0.3, 0.3), "Of 2 blocks, both have Jacobians that exclude even a nearly optimal map ("),
        (
            (0.3, 0.3, 0.3),
            "Of 3 blocks, all have Jacobians that exclude even a nearly optimal map (",
        ),
        ((0.3, 0.3, 0.018), "and 2 have Jacobians that exclude even a nearly optimal map ("),
        (
            (0.018, 0.018),
            "Of 2 blocks, both have Jacobians consistent with a nearly optimal map but",
        ),
    ],
)
def test_jacobians_of_all_blocks_are_summarized(asymmetries, words):
    rows = [block(brenier=jacobian(asymmetry, 0.0)) for asymmetry in asymmetries]
    found = said(sentences({"blocks": rows}), "blocks")
    assert words in found


def test_jacobians_without_intervals_are_not_said_to_be_judged_by_them():
    rows = [block(brenier={**jacobian(0.3, 0.0), "intervals": {}})]
    assert "95 %" not in said(sentences({"blocks": rows}), "blocks")


@pytest.mark.parametrize(
    ("low", "null", "words"),
    [
        (0.97, 0.5, "is a nearly optimal map of these samples"),
        (0.995, 0.5, "is an optimal map of these samples"),
        (0.97, 0.95, "is undecided with these samples"),
    ],
)
def test_a_nearly_optimal_block_with_power_is_counted_as_one(low, null, words):
    nulls = [{"kind": "dealt", "score": [null, null, null]}]
    row = block(corr_score=[low, low, low], null=nulls, power=low > null + 0.05)
    assert words in said(sentences({"blocks": [row]}), "blocks")


@pytest.mark.parametrize(
    ("score", "word"),
    [
        ([0.1, 0.05, 0.2], None),
        ([0.97, 0.94, 0.98], None),
        ([0.97, 0.96, 0.98], "nearly optimal"),
        ([0.995, 0.993, 1.0], "optimal"),
    ],
)
@pytest.mark.parametrize("null", [0.3, 0.99])
def test_the_evidence_names_only_what_the_score_shows(score, word, null):
    nulls = [{"kind": "dealt", "score": [null] * 3}]
    found = sentences({"segments": [segment(corr_score=score, null=nulls)]})
    (first,) = claimed(found, "optimality").evidence["scores"]
    shown = word if null == 0.3 else None
    assert (first["word"], first["optimal"]) == (shown, shown == "optimal")


@pytest.mark.parametrize(("ratio", "mentioned"), [(141.0, True), (9.0, False)])
def test_nearly_point_like_start_is_reported_with_its_spread(ratio, mentioned):
    words = said(sentences({"segments": [segment(spread_ratio=ratio)]}), "optimality")
    assert ("is 141 times smaller than at b" in words) == mentioned
    assert ("almost any map has a high OT score" in words) == mentioned


def optimal_from_a(*brenier):
    """A record whose map is optimal from layer a; the Jacobians of blocks a and b."""
    matrix = [[1, 0.9, 0.4], [0.9, 1, 0.999], [0.4, 0.999, 1]]
    null = [[None, 0.3, 0.2], [0.3, None, 0.45], [0.2, 0.45, None]]
    pairs = {"layers": ["stem", "a", "b"], "null": null}
    pairs |= dict.fromkeys(("corr_score", "corr_low", "corr_high"), matrix)
    rows = [
        block(target=name, brenier=test) for name, test in zip(("a", "b"), brenier, strict=True)
    ]
    return {"segments": [segment(corr_score=[0.4, 0.4, 0.4], pairs=pairs)], "blocks": rows}


@pytest.mark.parametrize(("of_a", "of_b", "named"), [(1, 0, False), (0, 1, True), (0, 0, False)])
def test_an_optimal_map_names_its_own_blocks_that_jacobians_exclude(of_a, of_b, named):
    """Block a lies before the optimal part, block b in it."""
    tests = [{"excluded": bool(each), "points": 30} for each in (of_a, of_b)]
    words = said(sentences(optimal_from_a(*tests)), "optimality")
    assert words.startswith("From a to b the map is optimal")
    assert (
        "; but the Jacobians of b, computed before pooling, show that this block is not" in words
    ) == named
    assert "Jacobians of a" not in words


@pytest.mark.parametrize(
    ("excluded", "words"),
    [
        ("bc", "; but the Jacobians of b and c, "),
        ("bcdef", "; but the Jacobians of all its 5 blocks, "),
        ("bcdfg", "; but the Jacobians of 5 of its blocks, "),
    ],
)
def test_several_blocks_of_an_optimal_map_are_named_or_counted(excluded, words):
    rows = [block(target=name, brenier={"excluded": True, "points": 30}) for name in excluded]
    inner = excluded if len(excluded) == 2 else "bcdef" if "e" in excluded else "bcdefg"
    whole = segment(layers=["a", *inner], corr_score=[0.999] * 3)
    found = said(sentences({"segments": [whole], "blocks": rows}), "optimality")
    assert words in found
    assert "show that these blocks are not exactly optimal maps" in found


@pytest.mark.parametrize(("points", "strength"), [(4, "suggested"), (30, "shown")])
def test_jacobians_at_a_few_images_suggest(points, strength):
    row = block(brenier={"excluded": True, "points": points})
    (found,) = [s for s in sentences({"blocks": [row]}) if s.claim == "blocks"]
    assert found.strength == strength


@pytest.mark.parametrize(("p", "smallest"), [(1 / 21, True), (2 / 21, False)])
def test_smallest_possible_p_value_is_marked(p, smallest):
    row = {"layers": ["stem", "b"], "value": 1.3, "median": 2.0, "low": 1.6, "high": 2.4}
    row |= {"adjusted_p": p, "direction": "straighter" if p <= 0.05 else "neither"}
    reference = {"networks": [{}] * 20, "segments": [row]}
    words = said(sentences({"reference": reference}), "reference")
    assert "a median of 2 (range 1.6 to 2.4) of the others" in words
    assert ("the smallest possible p" in words) == smallest


def test_opening_of_a_record_without_counts():
    """The schema allows a record by others to lack them."""
    normalization = {"name": "a", "source": "data", "mean": [], "std": [], "better": "none"}
    found = sentences({"trust": {"duplicates": 3, "normalization": normalization}})
    assert said(found, "samples").startswith("3 images are copies of another")
    assert "classifies undefined of these images correctly" in said(found, "normalization")


def test_data_rounding_and_open_questions_are_named():
    trust = {"accuracy": 0.9996, "chance": 0.1, "samples": 2500}
    provenance = {"data": "folder/cifar.zip", "split": "test"}
    found = sentences({"trust": trust, "provenance": provenance})
    assert "99.96 % of these 2,500 images (cifar.zip, test split)" in said(found, "accuracy")
    assert ranged(-1e-9, (-1e-9, -1e-9), certified=True) == "0.0000"
    open_one = segment(corr_score=[0.999] * 3, null=[], power=None)
    words = said(sentences({"segments": [open_one]}), "next")
    assert words.startswith("From which layer the map to the last layer is optimal could be")
    row = {"layers": ["a", "b"], "value": 1.2, "median": 1.4, "low": 1.3, "high": 1.5}
    row |= {"adjusted_p": 0.05, "direction": "straighter"}
    reference = {"networks": [{}] * 20, "images": 200, "segments": [row]}
    assert "on 200 of these images" in said(sentences({"reference": reference}), "reference")
    undefined = {"layers": ["a", "b"], "statistic": "length_ratio", "difference": None}
    words = said(sentences({"reference": {"tests": [undefined]}}), "reference")
    assert "an undefined difference. These images do not show a difference." in words


def test_pooling_is_named_with_the_first_path():
    record = {"segments": [segment(), segment(layers=["c", "d", "e"])]}
    words = said(sentences({**record, "provenance": {"pool": "gap"}}), "straightness")
    assert words.count("(gap features; each layer's mean is subtracted)") == 1
    back = segment(centred={"length_ratio": 1e6})  # its sentence uses neither term
    words = said(sentences({"segments": [back, *record["segments"]]}), "straightness")
    assert "1/1,000,000 of the length" in words
    assert words.count("each layer's mean is subtracted") == 1


def test_undecided_score_comes_with_the_rule_that_leaves_it_undecided():
    null = [{"kind": "dealt", "score": [0.97, 0.97, 0.97]}]
    found = sentences({"segments": [segment(corr_score=[0.999] * 3, null=null, samples=100)]})
    words = said(found, "optimality")
    assert "score 0.970, and a score is evidence only if it is higher by at least 0.10" in words
    assert "at least 0.10, which no score can be" in words
