"""What an analysis says before it says anything else: accuracy, normalization, classes, samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import wgeo
from wgeo.analysis.trust import better_preset, copies_in, trust_of
from wgeo.analysis.verdict import sentences, text
from wgeo.analysis.verdict.sentence import decimals_of, listed, ranged, segment_ends
from wgeo.data.images import normalization


def trajectory(labels, predictions=None, features=None):
    labels = np.asarray(labels)
    if features is None:
        rng = np.random.default_rng(0)
        features = rng.standard_normal((len(labels), 4))
    return wgeo.Trajectory.from_arrays([features, 2 * features], labels, predictions=predictions)


def facts_of(traj, *rest):
    return trust_of(traj, copies_in(traj), *rest)


def claims(facts):
    return {(said.claim, said.strength): said.words for said in sentences({"trust": facts})}


def test_guessing_network_is_reported_and_nothing_else_is_claimed():
    labels = np.arange(1000) % 10
    guesses = np.random.default_rng(3).integers(0, 10, 1000)
    facts = facts_of(trajectory(labels, guesses))
    assert facts["at_chance"]
    record = {
        "trust": facts,
        "layers": [{"name": "a", "stage": 0, "collapse": {"nc1": 0.01}}],
    }
    (said,) = sentences(record)
    assert "no better than guessing (10.0 %)" in said.words
    assert said.strength == "warning"


def test_always_answering_the_most_frequent_class_is_guessing():
    labels = np.array([0] * 80 + [1] * 20)
    assert facts_of(trajectory(labels, np.zeros(100, int)))["at_chance"]
    assert not facts_of(trajectory(labels, labels))["at_chance"]


def test_network_without_a_classifier_is_not_reported_as_guessing():
    facts = facts_of(trajectory(np.arange(40) % 2))
    assert facts["accuracy"] is None
    assert not facts["at_chance"]


@pytest.mark.parametrize(
    ("claimed", "images", "warned"),
    [
        *((0.99, 100, True), (0.93, 100, False)),
        *((0.93, 1000, True), (0.915, 1000, False)),  # 3.7 and 1.7 standard deviations
        (0.91, 10_000, False),  # 3.5 standard deviations, but only one percentage point
    ],
)
def test_accuracy_below_the_claimed_one_by_more_than_chance_is_reported(claimed, images, warned):
    labels = np.arange(images) % 2
    predictions = np.where(np.arange(images) < 0.9 * images, labels, 1 - labels)
    facts = facts_of(trajectory(labels, predictions))
    facts["claimed_accuracy"] = {"key": "best_acc1", "value": claimed}
    assert (("accuracy", "warning") in claims(facts)) == warned


def test_fewer_than_twenty_samples_support_no_claim():
    facts = facts_of(trajectory(np.arange(19) % 2))
    record = {"trust": facts, "layers": [{"name": "a", "stage": 0, "collapse": {"nc1": 0.01}}]}
    assert [said.claim for said in sentences(record)] == ["samples"]
    assert "19 samples" in text(sentences(record))


def test_few_samples_per_class_are_a_warning():
    assert (
        "smallest class has 4 samples"
        in claims(facts_of(trajectory(np.arange(24) % 6)))["samples", "warning"]
    )
    assert "single sample" in claims(facts_of(trajectory([0] * 30 + [1])))["samples", "warning"]


def test_copies_are_counted_and_reported():
    x = np.random.default_rng(0).standard_normal((60, 4))
    x[[7, 9]] = x[3]
    x[50] = x[20]
    traj = trajectory(np.arange(60) % 2, features=x)
    copies = copies_in(traj)
    assert np.flatnonzero(copies != np.arange(60)).tolist() == [7, 9, 50]
    assert copies[[7, 9, 50]].tolist() == [3, 3, 20]
    assert facts_of(traj)["duplicates"] == 3
    assert "3 images of 60 are copies" in claims(facts_of(traj))["samples", "warning"]


def test_absent_classes_are_reported():
    facts = {"samples": 100, "classes": {"present": 9, "head": 10}}
    assert "9 classes and the network distinguishes 10" in claims(facts)["classes", "warning"]
    assert not claims({"samples": 100, "classes": {"present": 10, "head": 10}})


class Threshold(nn.Module):
    """Tells dark images from bright ones; right only for pixels in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Shift()
        self.head = nn.Linear(1, 2)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[-1.0], [1.0]]))
            self.head.bias.copy_(torch.tensor([0.9, -0.9]))

    def forward(self, x):
        return self.head(self.block(x.mean((1, 2, 3), keepdim=True)[:, :, 0, 0]))


class Shift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(1, 1)

    def forward(self, x):
        return x + 1e-3 * self.inner(x)


def bright_and_dark(preset):
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 2
    x = 0.85 + 0.1 * labels[:, None, None, None] + 0.01 * rng.random((120, 1, 4, 4))
    names = ("dark", "bright")
    images = wgeo.Images(torch.from_numpy(x).float(), labels, names, "made up")
    return replace(images, preset=preset)


def test_a_better_normalization_is_named():
    images = bright_and_dark("mnist")
    net = Threshold().eval()
    facts = facts_of(wgeo.trace(net, images), net, images)["normalization"]
    assert facts["source"] == "data"
    assert facts["better"] == "none"
    said = claims({"normalization": facts})["normalization", "warning"]
    assert "With `normalize='none'`" in said
    assert "100.0 % of 120" in said


def test_other_normalizations_are_tried_like_the_features_were_read(monkeypatch):
    images, calls = bright_and_dark("mnist"), []
    monkeypatch.setattr(
        "wgeo.analysis.trust.trace",
        lambda *args, **reading: calls.append(reading) or wgeo.trace(*args, **reading),
    )
    expected = {"batch_size": 32, "device": "cpu", "pool": "flat"}
    fast = {"reference": "none", "bootstrap": 0, "brenier": 0, "alignment": 0, "mufm": False}
    result = wgeo.analyze(Threshold().eval(), images, **fast, **expected)
    assert result.record["trust"]["normalization"]["better"] == "none"
    assert calls
    assert all(expected.items() <= reading.items() for reading in calls)


def test_among_equally_good_normalizations_none_is_called_better():
    """5 % at most: 20 of 200 would happen once in 300 times."""
    rng = np.random.default_rng(0)
    named = 0
    for _ in range(200):
        correct = {str(k): rng.random(200) < 0.8 for k in range(9)}
        named += better_preset(correct, "0") is not None
    assert named < 20
    clear = {"used": np.arange(200) % 5 > 0, "other": np.ones(200, bool)}
    assert better_preset(clear, "used") == "other"
    assert better_preset(clear, "other") is None
    assert better_preset({"used": clear["used"]}, "used") is None
    gained = np.ones(200, bool)
    gained[:5] = False  # 5 gained, none lost: one-sided p = 1/32, twice that for two presets
    assert better_preset({"used": gained, "other": clear["other"]}, "used") == "other"
    two = {"used": gained, "other": clear["other"], "third": gained}
    assert better_preset(two, "used") is None


def test_requested_normalization_that_works_is_not_questioned():
    images = replace(bright_and_dark(None), normalize=normalization("none"))
    net = Threshold().eval()
    facts = facts_of(wgeo.trace(net, images), net, images)["normalization"]
    assert facts["source"] == "asked"
    assert "tried" not in facts
    assert not claims({"normalization": facts})


def test_an_assumed_normalization_is_a_warning():
    images = bright_and_dark(None)
    net = Threshold().eval()
    facts = facts_of(wgeo.trace(net, images), net, images)["normalization"]
    assert facts["source"] == "none"
    assert "an assumption" in claims({"normalization": facts})["normalization", "warning"]


@pytest.mark.parametrize(
    ("value", "interval", "words"),
    [
        (1.3384, (1.3381, 1.3392), "1.338 (1.338 to 1.339)"),
        (1.34, (1.31, 1.37), "1.34 (1.31 to 1.37)"),
        (0.5, None, "0.5"),
        (0.0144, (0.0137, 0.0153), "0.014 (0.014 to 0.015)"),
        (0.00123, (0.0011, 0.0013), "0.00123 (0.0011 to 0.0013)"),
        (0.0003, (-0.2, 0.2), "0.00 (-0.20 to 0.20)"),
        (1e-12, (-0.2, 0.2), "0.00 (-0.20 to 0.20)"),
        (0.005, (0.001, 0.02), "0.005 (0.001 to 0.020)"),
        (-0.001, (-0.4, 0.4), "0.00 (-0.40 to 0.40)"),
    ],
)
def test_number_of_digits_depends_on_the_interval(value, interval, words):
    assert ranged(value, interval) == words


def test_helpers_format_sentences():
    assert decimals_of(1.001, 1.0012) == 4
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed(["a"]) == "a"
    shortcut = ["layer2.0.shortcut", "layer2.2"]
    assert segment_ends(shortcut).startswith("From the input of layer2.0")
