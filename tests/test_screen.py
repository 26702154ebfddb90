"""Folded points: their distances never exceed the points' own, and no answer depends on them."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wgeo.transport import Status, wasserstein
from wgeo.transport import cost as cost_module
from wgeo.transport.cost import Costs
from wgeo.transport.pair import Pair
from wgeo.transport.passes import scan
from wgeo.transport.screen import directions, fold, slip

WIDTH = cost_module._SCREENED  # the least that is screened
KINDS = ["gauss", "duplicates", "tiny", "flat", "offset", "spiked", "heavy", "near", "zero"]


def clouds(kind, seed, n=90, d=WIDTH):
    rng = np.random.default_rng(seed)
    x, y = rng.standard_normal((2, n, d))
    if kind == "duplicates":
        x, y = x[rng.integers(3, size=n)], x[rng.integers(3, size=n)]
    elif kind == "tiny":  # nearly all of each point within the directions that are kept
        x, y = np.where(np.arange(d) < 8, (x, y), np.multiply(1e-9, (x, y)))
    elif kind == "flat":
        x, y = (z[:, :3] @ rng.standard_normal((3, d)) for z in (x, y))
    elif kind == "offset":
        x, y = x + 1e6, y + 1e6 + 3
    elif kind == "spiked":
        x, y = np.maximum(x, 1.5) - 1.5, np.maximum(y, 1.5) - 1.5
    elif kind == "heavy":
        x, y = rng.standard_cauchy((2, n, d))
    elif kind == "near":
        y = x + y * 10.0 ** rng.integers(-7, 0)
    elif kind == "zero":
        x, y = np.zeros((n, d)), np.where(rng.random((n, 1)) < 0.5, 0.0, y)
    return x, y


def costs_of(x, y):
    return Costs.of(Pair.of(torch.from_numpy(x), torch.from_numpy(y)), 2**30)


@pytest.fixture
def unscreened(monkeypatch):
    def solve(*args):
        with monkeypatch.context() as patch:
            patch.setattr(cost_module, "_SCREENED", 10**9)
            return wasserstein(*args)

    return solve


@given(st.sampled_from(KINDS), st.integers(0, 10**6), st.sampled_from([1, 5, 24]))
def test_inner_products_of_folded_points_fall_short_by_no_more_than_the_slip(kind, seed, count):
    """In fractions, since float64 could not tell."""
    x, y = clouds(kind, seed, n=3, d=24)
    v = directions(torch.from_numpy(x), torch.from_numpy(y), count)
    lost = slip(v)
    assert lost < 1e-11
    folded = [fold(torch.from_numpy(z), v, lost).numpy() for z in (x, y)]

    def inner(a, b):
        return sum(Fraction(s) * Fraction(t) for s, t in zip(a, b, strict=True))

    for p, p_folded in zip(x, folded[0], strict=True):
        for q, q_folded in zip(y, folded[1], strict=True):
            room = Fraction(lost) * (inner(p, p) + inner(q, q))
            assert 2 * inner(p_folded, q_folded) >= 2 * inner(p, q) - room
            rounding = Fraction(1, 10**9) * (inner(p, p) + 1)
            assert abs(inner(p_folded, p_folded) - inner(p, p)) <= rounding


def test_directions_are_those_along_which_points_differ(rng):
    x, y = rng.standard_normal((2, 400, 300))
    x[:, :4] *= 30
    y[:, :4] *= 30
    v = directions(torch.from_numpy(x), torch.from_numpy(y), 8)
    assert v.T @ v == pytest.approx(np.eye(8), abs=1e-13)
    assert v[:4].square().sum() == pytest.approx(4, abs=1e-2)


@given(st.sampled_from(KINDS), st.integers(0, 10**6), st.sampled_from([0.0, 1e-3, 1.0]))
def test_a_screened_scan_makes_any_labels_feasible(kind, seed, wild):
    x, y = clouds(kind, seed)
    costs = costs_of(x, y)
    assert costs.folds
    n = len(x)
    full = costs.between(*np.divmod(np.arange(n * n), n)).reshape(n, n)
    rng = np.random.default_rng(seed)
    p = rng.standard_normal(n) * wild
    q = (p[:, None] + full).min(0) + wild * rng.standard_normal(n)
    threshold = 1e-11 * (abs(p).max() + full.max())
    slack = p[:, None] + full - q
    found = scan(costs, p, q, threshold, thorough=True)
    doubt = costs.rounding(full.ravel()).max() + 1e-15 * (abs(p).max() + abs(q).max() + full.max())
    assert (slack + found.loss).min() >= -doubt
    at_fault = {*zip(*np.nonzero(slack < -threshold), strict=True)}
    assert {*zip(found.i, found.j, strict=True)} == at_fault


@pytest.mark.parametrize("kind", [*KINDS, "loose"])
def test_no_answer_depends_on_the_screen(kind, rng, unscreened):
    x, y = clouds("gauss" if kind == "loose" else kind, 7, n=300, d=WIDTH + 3)
    if kind == "gauss":
        x = y * (1 + 0.1 * rng.random(len(y))[:, None])  # a start that is nearly right
    found, expected = wasserstein(x, y), unscreened(x, y)
    assert found.cost == pytest.approx(expected.cost, rel=1e-12, abs=1e-300)
    assert found.lower == pytest.approx(expected.lower, rel=1e-9, abs=1e-300)
    assert found.upper == pytest.approx(expected.upper, rel=1e-12, abs=1e-300)
    assert found.status == expected.status


def test_most_columns_of_a_near_identity_need_no_full_pass(rng, unscreened):
    x = rng.standard_normal((1500, 400)).astype(np.float32)
    y = 0.99 * x + np.float32(0.05) * rng.standard_normal(x.shape).astype(np.float32) + 3
    found, expected = wasserstein(x, y), unscreened(x, y)
    assert found.stats["passes"] < 0.2 < 1 <= expected.stats["passes"]
    np.testing.assert_array_equal(found.coupling, np.arange(1500))
    assert found.status is Status.CERTIFIED
    assert found.distance == expected.distance


def test_a_translation_of_wide_points_costs_its_length(rng):
    x = rng.standard_normal((400, 300))
    shift = rng.standard_normal(300)
    found = wasserstein(x, x + shift)
    assert found.distance == pytest.approx(np.linalg.norm(shift), rel=1e-13)
    assert found.stats["passes"] < 0.2


def test_a_screen_that_proves_little_is_given_up_after_a_block(rng, monkeypatch):
    monkeypatch.setattr(cost_module, "_FEWEST_ROWS", 8)
    monkeypatch.setitem(cost_module._BLOCK, "cpu", 1 << 12)
    costs = costs_of(*rng.standard_normal((2, 600, WIDTH)))
    scan(costs, np.zeros(600), np.full(600, 2.0), 1e-12)  # nearly all pairs are at fault
    assert costs.products is not None
    assert not costs.folds
    assert costs.passes <= 1.01
