"""Sentences on the rate of separation and on residual Jacobians, where they would be false."""

from __future__ import annotations

import numpy as np
import pytest

import wgeo
from wgeo.analysis.verdict import sentences, text

LABELS = np.arange(120) % 3
CONSTANT = "nearly constant rate"


def law(within, means=None, seed=0, noise=0.0, samples=None):
    """The sentence about layers with these scales of residuals and class means."""
    rng = np.random.default_rng(seed)
    labels = LABELS if samples is None else LABELS[:samples]
    w = rng.normal(size=(len(labels), 5))
    w -= np.stack([w[labels == k].mean(0) for k in range(3)])[labels]
    means = [1.0] * len(within) if means is None else means
    layers = [
        2 * a * np.eye(3, 5)[labels] + b * (w + noise * rng.normal(size=w.shape))
        for a, b in zip(means, within, strict=True)
    ]
    traj = wgeo.Trajectory.from_arrays(layers, labels)
    found = sentences(wgeo.collapse(traj, bootstrap=60, seed=0))
    return [s for s in found if s.claim == "separation"]


def test_a_geometric_path_follows_the_law():
    (sentence,) = law([0.8**k for k in range(8)])
    assert CONSTANT in sentence.words
    assert "0.64" in sentence.words
    assert sentence.strength == "shown"


@pytest.mark.parametrize(
    ("within", "means", "bend"),
    [
        (np.linspace(1, 0.1, 9), None, "faster at the last layers"),  # a contracting geodesic
        (np.ones(9), np.linspace(1, 10, 9), "faster at the first layers"),  # an expanding one
    ],
)
def test_a_geodesic_separates_but_not_at_a_constant_rate(within, means, bend):
    (sentence,) = law(within, means)
    assert sentence.evidence["correlation"] < -0.95  # which alone would suggest the law
    assert CONSTANT not in sentence.words
    assert bend in sentence.words
    assert sentence.strength == "shown"


def test_a_twofold_geodesic_is_not_called_constant_despite_its_correlation():
    (sentence,) = law(np.linspace(1, 0.5, 9))
    assert sentence.evidence["correlation"] < -0.99
    assert CONSTANT not in sentence.words


def test_other_paths_have_no_rate():
    (mixing,) = law([1.3**k for k in range(6)])
    assert "gets worse" in mixing.words
    (flat,) = law([1.0] * 6, noise=0.3)
    assert "do not show whether the classes separate" in flat.words
    assert flat.strength == "undecided"
    (jagged,) = law([1.0, 0.9, 0.3, 0.29, 0.28, 0.1])
    assert CONSTANT not in jagged.words


def test_nothing_is_said_of_three_layers_or_few_samples_or_several_stages():
    assert law([1, 0.5, 0.25]) == []
    assert law([0.8**k for k in range(8)], samples=30) == []
    w = np.random.default_rng(0).normal(size=(120, 5))
    layers = [(2 * np.eye(3, 5)[LABELS] + 0.8**k * w)[:, : 5 - k // 3] for k in range(6)]
    traj = wgeo.Trajectory.from_arrays(layers, LABELS)
    assert "separation" not in {s.claim for s in sentences(wgeo.collapse(traj, bootstrap=20))}


# --- alignment ------------------------------------------------------------------------------------


def aligned(value, low, high, chance, points=4, blocks=4, **more):
    segment = {
        "blocks": [f"blocks.{k}" for k in range(blocks)],
        "vectors": 10,
        "chance": chance,
        "overlap_uv": value,
        "slopes": [0.6, 0.9],
        "intervals": {"overlap_uv": [low, high], "slope": [0.5, 0.7]},
    }
    record = {"alignment": {"points": points, "segments": [segment], **more}}
    return [s for s in sentences(record) if s.claim == "alignment"]


@pytest.mark.parametrize(
    ("value", "low", "high", "chance", "words"),
    [
        (0.8, 0.7, 0.9, 0.02, "are aligned ("),
        (0.15, 0.12, 0.18, 0.02, "are partly aligned ("),
        (0.01, 0.008, 0.012, 0.0006, "hardly aligned, though more than random ones"),
        (0.021, 0.019, 0.024, 0.02, "aligned no more than random ones"),
        (0.33, 0.31, 0.36, 0.31, "aligned no more than random ones"),  # pooled: chance is high
        (0.7, 0.6, 0.8, 0.5, "are partly aligned ("),
        (0.025, 0.022, 0.03, 0.02, "are hardly aligned ("),
        (0.9, 0.8, 1.0, 1.0, "aligned no more than random ones"),  # as many vectors as dimensions
        (0.09, 0.02, 0.3, 0.02, "perhaps aligned, but these images cannot tell"),
    ],
)
def test_an_overlap_is_judged_by_its_interval_and_by_chance(value, low, high, chance, words):
    (sentence,) = aligned(value, low, high, chance)
    assert words in sentence.words
    assert sentence.strength == ("undecided" if "perhaps" in words else "suggested")
    assert "0.60 (0.50 to 0.70); a geodesic that expands has the slope 1" in sentence.words
    if words != "are aligned (":
        assert "are aligned (" not in sentence.words


def test_many_images_show_it_and_two_blocks_or_an_unused_network_say_nothing():
    assert aligned(0.8, 0.7, 0.9, 0.02, points=40)[0].strength == "shown"
    assert aligned(0.8, 0.7, 0.9, 0.02, blocks=2) == []
    assert aligned(0.8, 0.7, 0.9, 0.02, reset_statistics=True) == []
    assert text(aligned(0.8, 0.7, 0.9, 0.02)).count("overlap of the leading 10 directions") == 1


def test_random_blocks_are_not_called_aligned():
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(40, 40)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.linear(x)

    torch.manual_seed(0)
    net = nn.Sequential(*(Block() for _ in range(3)), nn.Linear(40, 3))
    x = torch.randn(30, 40)
    result = wgeo.alignment(net, (x, np.arange(30) % 3), points=4, vectors=4)
    (sentence,) = (s for s in sentences({"alignment": result.to_dict()}) if s.claim == "alignment")
    assert "partly aligned" not in sentence.words
    assert "are aligned (" not in sentence.words
