"""Screening: distances of reduced points are lower bounds, and do not affect results."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wgeo.transport import Status, tiles, wasserstein
from wgeo.transport import geometry as geometry_module
from wgeo.transport.all_pairs import find_violations
from wgeo.transport.arcs import Potentials
from wgeo.transport.geometry import (
    Geometry,
    inner_product_error,
    principal_directions,
    reduce_dimension,
)
from wgeo.transport.point_clouds import PointClouds

WIDTH = geometry_module._SCREEN_FROM  # the least that is screened
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


def geometry_of(x, y):
    return Geometry.of(PointClouds.of(torch.from_numpy(x), torch.from_numpy(y)), 2**30)


@pytest.fixture
def unscreened(monkeypatch):
    def solve(*args):
        with monkeypatch.context() as patch:
            patch.setattr(geometry_module, "_SCREEN_FROM", 10**9)
            return wasserstein(*args)

    return solve


@given(st.sampled_from(KINDS), st.integers(0, 10**6), st.sampled_from([1, 5, 24]))
def test_inner_products_of_reduced_points_fall_short_by_no_more_than_their_bound(kind, seed, count):
    """In fractions, since float64 could not tell."""
    x, y = clouds(kind, seed, n=3, d=24)
    v = principal_directions(torch.from_numpy(x), torch.from_numpy(y), count)
    error = inner_product_error(v)
    assert error < 1e-11
    reduced = [reduce_dimension(torch.from_numpy(z), v, error).numpy() for z in (x, y)]

    def inner(a, b):
        return sum(Fraction(s) * Fraction(t) for s, t in zip(a, b, strict=True))

    for p, p_reduced in zip(x, reduced[0], strict=True):
        for q, q_reduced in zip(y, reduced[1], strict=True):
            allowed = Fraction(error) * (inner(p, p) + inner(q, q))
            assert 2 * inner(p_reduced, q_reduced) >= 2 * inner(p, q) - allowed
            rounding = Fraction(1, 10**9) * (inner(p, p) + 1)
            assert abs(inner(p_reduced, p_reduced) - inner(p, p)) <= rounding


def test_directions_are_those_along_which_points_differ(rng):
    x, y = rng.standard_normal((2, 400, 300))
    x[:, :4] *= 30
    y[:, :4] *= 30
    v = principal_directions(torch.from_numpy(x), torch.from_numpy(y), 8)
    assert v.T @ v == pytest.approx(np.eye(8), abs=1e-13)
    assert v[:4].square().sum() == pytest.approx(4, abs=1e-2)


@given(st.sampled_from(KINDS), st.integers(0, 10**6), st.sampled_from([0.0, 1e-3, 1.0]))
def test_subtracting_the_excess_after_screening_makes_potentials_feasible(kind, seed, wild):
    x, y = clouds(kind, seed)
    geometry = geometry_of(x, y)
    assert geometry.screens
    n = len(x)
    full = geometry.pair_costs(*np.divmod(np.arange(n * n), n)).reshape(n, n)
    rng = np.random.default_rng(seed)
    f = rng.standard_normal(n) * wild
    g = (full - f[:, None]).min(0) + wild * rng.standard_normal(n)
    threshold = 1e-11 * (abs(f).max() + full.max())
    slack = full - f[:, None] - g
    found = find_violations(geometry, Potentials(f, g), threshold, thorough=True)
    rounding = 1e-15 * (abs(f).max() + abs(g).max() + full.max())
    rounding += geometry.cost_error(full.ravel()).max()
    assert (slack + found.excess).min() >= -rounding
    at_fault = {*zip(*np.nonzero(slack < -threshold), strict=True)}
    assert {*zip(found.i, found.j, strict=True)} == at_fault


@pytest.mark.parametrize("kind", [*KINDS, "loose"])
def test_results_do_not_depend_on_screening(kind, rng, unscreened):
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


def test_distance_of_a_translation_of_wide_points_is_its_length(rng):
    x = rng.standard_normal((400, 300))
    shift = rng.standard_normal(300)
    found = wasserstein(x, x + shift)
    assert found.distance == pytest.approx(np.linalg.norm(shift), rel=1e-13)
    assert found.stats["passes"] < 0.2


def test_ineffective_screening_stops_after_a_block(rng, monkeypatch):
    monkeypatch.setattr(tiles, "_MIN_ROWS", 8)
    monkeypatch.setitem(tiles.TILE_ENTRIES, "cpu", 1 << 12)
    geometry = geometry_of(*rng.standard_normal((2, 600, WIDTH)))
    nearly_all = Potentials(np.zeros(600), np.full(600, 2.0))
    find_violations(geometry, nearly_all, 1e-12)
    assert geometry.products is not None
    assert not geometry.screens
    assert geometry.passes <= 1.01
