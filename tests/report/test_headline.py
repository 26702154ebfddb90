"""The headline of an analysis and of a series is true in constructed cases."""

from __future__ import annotations

import pytest
from records import sample_series
from test_verdict import centred, segment

from wgeo.analysis import Series
from wgeo.analysis.verdict import headline, sentences, series_headline

STRAIGHT = centred(1.02, 1.015, 1.025)
BENT = centred(1.3, 1.25, 1.35)
FAR = centred(1.9, 1.8, 2.0)
SPARSE = centred(1.02, 1.015, 1.025, null_length_ratio=1.02)
TRUST = {"samples": 300, "samples_per_class": 30, "accuracy": 0.95, "chance": 0.1}


def record(*twins, nc1=0.05, ends=(0.04, 0.06), **more):
    collapse = {"nc1": nc1, "samples_per_class": 30, "intervals": {"nc1": list(ends)}}
    return {
        "segments": [segment(centred=twin) for twin in twins],
        "layers": [{"name": "last", "stage": 0, "collapse": collapse}],
        "trust": TRUST,
        **more,
    }


def words_of(*twins, **more):
    return headline(record(*twins, **more)).words


def test_collapsed_but_bent():
    found = headline(record(BENT))
    assert found.words == (
        "The path of the features through the network is bent, and the classes are collapsed at "
        "the last layer (95 % intervals over 300 images support this)."
    )
    assert found.strength == "shown"
    assert found.evidence["shapes"] == [["bent"]]


def test_straight_but_not_collapsed():
    words = words_of(STRAIGHT, nc1=3.0, ends=(2.8, 3.2))
    assert "is straight to within 5 %, and the classes are not collapsed at" in words


def test_at_chance_nothing_is_said_but_that():
    guessing = TRUST | {"accuracy": 0.103, "at_chance": True}
    assert words_of(STRAIGHT, trust=guessing) == (
        "The network does not classify these images: 10.3 % of 300 images are classified "
        "correctly, no better than guessing (10.0 %), so nothing else is said about it."
    )


def test_too_few_samples():
    assert words_of(STRAIGHT, trust={"samples": 12}).startswith("12 samples are too few")


def test_undecided_is_not_called_straight():
    found = headline(record(SPARSE, layers=[]))
    assert found.words == "The path of the features through the network is of undecided shape."
    assert found.strength == "undecided"
    assert "(95 % intervals over 300 images support what is decided)" in words_of(SPARSE)


def test_between_two_categories_is_open():
    found = headline(record(centred(1.04, 1.03, 1.08), nc1=0.11, ends=(0.09, 0.14)))
    assert 'between "straight to within 5 %" and "close to straight"' in found.words
    assert 'between "collapsed" and "partly collapsed"' in found.words
    assert "do not settle all of this" in found.words
    assert found.strength == "suggested"


def test_a_level_without_an_interval_is_only_suggested():
    one = record(SPARSE)
    del one["layers"][0]["collapse"]["intervals"]
    found = headline(one)
    assert "collapsed at the last layer (suggested by a value without an interval)" in found.words
    assert found.strength == "suggested"


def test_stages_that_differ_are_named():
    words = words_of(BENT, FAR, BENT)
    assert "is bent in stages 1 and 3 and far from straight in stage 2, and" in words
    assert "in each of its 2 stages is bent" in words_of(BENT, BENT)


def test_stages_have_the_numbers_of_the_record_plus_one():
    one = record(BENT, FAR)
    for segment_of, stage in zip(one["segments"], (1, 3), strict=True):  # 0 and 2 have one layer
        segment_of["stage"] = stage
    assert "bent in stage 2 and far from straight in stage 4" in headline(one).words


def test_a_single_step_is_not_judged():
    one = record(BENT)
    one["segments"].append(segment(layers=["a", "b"]))
    assert "bent in stage 1 and not judged in stage 2" in headline(one).words


def test_layers_without_a_common_space():
    words = words_of(transport_skipped="No two layers share a space.")
    assert words.startswith("Straightness is not measured, because no two layers in a row")


@pytest.mark.parametrize(
    ("ends", "said"),
    [([-1.0, -0.9], ", having become tighter with depth"), ([-0.4, 0.2], ""), (None, "")],
)
def test_a_trend_needs_an_interval(ends, said):
    trend = {"nc1": {"kendall_tau": -0.9, "violations": 0, "interval": ends}}
    assert f"at the last layer{said} (95" in words_of(BENT, progress=trend)


def test_doubts_end_the_headline():
    assumed = {"normalization": {"name": "half", "source": "none"}}
    assert words_of(BENT, trust=TRUST | assumed).endswith(
        "; a reason for doubt: how pixels were normalized in training is an assumption."
    )


def test_nothing_beyond_the_verdict_is_said():
    """Every shape and level of a headline is a word of the verdict."""
    for twin in (STRAIGHT, BENT, FAR, SPARSE):
        one = record(twin)
        body = " ".join(s.words for s in sentences(one))
        found = headline(one).evidence
        assert all(name in body for shape in found["shapes"] for name in shape or ())
        assert all(name in body for name in found["level"])


# --- series --------------------------------------------------------------------------------------


def test_a_series_says_what_changed():
    rows = [record(STRAIGHT, BENT, nc1=3.0), record(BENT, BENT, nc1=0.05)]
    for row, epoch in zip(rows, (0, 9), strict=True):
        about = {"epoch": epoch, "arch_from": "file"}
        row |= {"accuracy": 0.1 + epoch / 10, "provenance": about, "name": f"e{epoch}"}
    assert series_headline(rows, "epoch").words == (
        "From epoch 0 to epoch 9, accuracy rises from 10.0 % to 100.0 %, NC1 at the last layer "
        "falls from 3 to 0.05 and the path becomes less straight in 1 of 2 stages."
    )
    assert series_headline(rows[::-1], "name").words.startswith("From e9 to e0, accuracy falls")
    rows[0]["trust"] = TRUST | {"at_chance": True}
    assert series_headline(rows, "epoch").words.endswith("in 1 of 2 stages.")
    rows[0]["provenance"]["arch_from"] = "shapes"  # another program's epoch 0 may be trained
    assert series_headline(rows, "epoch").words.endswith("; the accuracy of epoch 0 is at chance.")
    rows[0]["provenance"]["arch_from"] = "file"
    rows[1]["trust"] = TRUST | {"at_chance": True}
    assert series_headline(rows, "epoch").words.endswith("; the accuracy of epoch 9 is at chance.")
    single = [{**row, "segments": row["segments"][:1]} for row in rows]
    assert "and the path becomes less straight (length ratio, centered, from 1.02 to 1.30);" in (
        series_headline(single, "epoch").words
    )
    assert "no stage becomes clearly" in series_headline([rows[0], rows[0]], "name").words


def test_several_networks_have_ranges_and_no_order():
    rows = [record(BENT, nc1=value) | {"name": f"n{value}"} for value in (2.0, 0.1, 1.0)]
    assert series_headline(rows, "name").words == (
        "Among these 3 networks, NC1 at the last layer ranges from 0.1 (n0.1) to 2 (n2.0)."
    )


def test_a_series_has_its_headline():
    rows = sample_series(3)["analyses"]
    series = Series.of({row["name"]: row for row in rows})
    assert series.record["headline"]["words"].startswith("From epoch 0 to epoch 16")
