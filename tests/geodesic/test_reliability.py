"""The effective number of samples, and a bound on the length ratio for sparse samples."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import wgeo
from wgeo.arrays.rows import copies_of
from wgeo.geodesic.reliability import effective_number, length_ratio_at_most
from wgeo.trajectory import Layer, Trajectory


def straight(arrays, **options):
    layers = tuple(Layer(f"layer{i}", np.asarray(a), 0) for i, a in enumerate(arrays))
    traj = Trajectory(layers, np.arange(len(arrays[0])) % 2)
    return wgeo.straightness(traj, bootstrap=0, nulls=0, pairs=False, **options).segments[0]


def bound(path):
    """The bound of a path of arrays."""
    path = [x - x.mean(0) for x in path]
    steps = [((b - a) ** 2).sum(1) for a, b in pairwise(path)]
    return length_ratio_at_most(path[0], path[-1], np.stack(steps, 1))


def test_the_effective_number_of_samples_has_known_answers():
    assert effective_number(np.ones(7)) == pytest.approx(7)
    assert effective_number(np.array([3.0, 0, 0])) == 1
    assert effective_number(np.array([1.0, 1, 0, 0]) * 1e300) == pytest.approx(2)
    assert effective_number(np.array([1.0, 1, 1, 1]), np.array([0, 0, 5, 5])) == pytest.approx(2)
    assert effective_number(np.zeros(4)) is None


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20), st.floats(1e-3, 1e3))
def test_effective_number_is_between_one_and_n_in_any_units(weights, unit):
    number = effective_number(np.array(weights))
    assert 1 - 1e-9 <= number <= len(weights) * (1 + 1e-9)
    assert effective_number(unit * np.array(weights)) == pytest.approx(number)


def test_distant_sample_dominates_a_path_and_copies_count_as_one(rng):
    x = rng.standard_normal((100, 8))
    x[0] = 1e3
    assert straight([x, 2 * x, 3 * x]).effective_samples == pytest.approx(1, abs=0.1)
    x[:5] = x[0]
    groups = np.r_[np.zeros(5, int), np.arange(1, 96)]
    assert straight([x, 2 * x, 3 * x]).effective_samples == pytest.approx(5, abs=2)
    apart = straight([x, 2 * x, 3 * x], groups=groups)
    assert apart.effective_samples < 1.5


def test_only_transported_sample_dominates_the_path(rng):
    """All others exchange places: they move far, and their cloud does not move."""
    x = rng.standard_normal((100, 8))
    x[0] = 3.0
    path = [x]
    for _ in range(3):
        others = 1 + rng.permutation(99)
        path.append(np.vstack([path[-1][:1] + 3, path[-1][others]]))
    found = straight(path)
    assert found.centred["length_ratio"] < 1.05
    assert found.effective_samples < 2


@pytest.mark.parametrize("width", [3, 32, 300])
def test_the_bound_of_a_dilation_is_one(width, rng):
    x = rng.standard_normal((200, width))
    assert bound([x, 2 * x, 3 * x]) == pytest.approx(1)


def test_bound_distinguishes_a_straight_path_from_a_turn(rng):
    x = 3 * np.eye(3, 32)[np.arange(300) % 3] + rng.standard_normal((300, 32))
    goal = 3 * np.eye(3, 32)[np.arange(300) % 3]
    assert bound([x + t * 0.9 * (goal - x) for t in np.linspace(0, 1, 4)]) < 1.05
    turn = np.eye(32)
    turn[:2, :2] = turn[2:4, 2:4] = np.array([[1, -1], [1, 1]]) / np.sqrt(2)
    path = [x[:, ::-1], x[:, ::-1] @ turn, x[:, ::-1] @ turn @ turn]
    assert straight(path).centred["length_ratio"] < 1.2
    assert bound(path) is None or bound(path) > 1.2


def test_the_bound_of_gaussians_covers_their_length_ratio():
    """Commuting covariances: W2 is the distance of the standard deviations."""
    deviations = np.array([np.linspace(1, 2, 6), np.linspace(2, 1.5, 6), np.linspace(4, 1, 6)])
    steps = np.linalg.norm(np.diff(deviations, axis=0), axis=1).sum()
    exact = steps / np.linalg.norm(deviations[2] - deviations[0])
    found = []
    for seed in range(40):
        x = np.random.default_rng(seed).standard_normal((400, 6))
        found.append(bound([x * deviation for deviation in deviations]))
    assert np.mean(np.array(found) >= exact) >= 0.85  # 0.95 expected; P(fewer) < 0.001
    assert np.median(found) < 1.05 * exact


def test_bound_is_defined_for_coincident_points(rng):
    x = rng.standard_normal((100, 5))
    assert bound([x, 0.5 * x, 0 * x]) == pytest.approx(1)
    assert bound([x[:10], 2 * x[:10], 3 * x[:10]]) is None


def test_near_copies_are_copies(rng):
    base = rng.standard_normal((200, 8))
    noisy = [base + 1e-9 * rng.standard_normal(base.shape) for _ in range(5)]
    assert copies_of(np.concatenate(noisy)).tolist() == np.tile(np.arange(200), 5).tolist()
    near = np.vstack([base, base + 1e-4])
    assert copies_of(near).tolist() == list(range(400))
    # Equal in only one of the layers: no copies.
    assert copies_of(np.vstack([base, base]), near).tolist() == list(range(400))


def test_samples_of_one_number_are_copies_only_if_equal(rng):
    x = rng.random((2000, 1))
    x[-1] = x[5]
    assert np.flatnonzero(copies_of(x) != np.arange(2000)).tolist() == [1999]
    assert not copies_of(np.ones((50, 3))).any()


@given(st.integers(0, 2**32 - 1), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_copies_do_not_depend_on_order_shift_or_scale(seed, shift, scale):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((30, 3))[rng.integers(0, 30, 40)]
    order = rng.permutation(40)
    x = x + 1e-10 * rng.standard_normal(x.shape)
    first, again = copies_of(x), copies_of(scale * (x[order] + shift))
    same = first[:, None] == first
    assert (same[order][:, order] == (again[:, None] == again)).all()
