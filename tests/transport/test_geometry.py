"""Costs by matrix products: right, and never further off than they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from wgeo.errors import ArgumentError
from wgeo.runtime import processes
from wgeo.runtime.memory import parse_bytes
from wgeo.transport import tiles
from wgeo.transport.all_pairs import find_violations, nearest
from wgeo.transport.arcs import Potentials
from wgeo.transport.geometry import Geometry
from wgeo.transport.kernel import Kernel
from wgeo.transport.point_clouds import PointClouds
from wgeo.transport.tiles import roundings, squared_distances

ROOM = 2**30


def geometry_of(x, y, memory=ROOM, coupling=None, **weights):
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    return Geometry.of(PointClouds.of(x, y, coupling=coupling, **weights), memory)


def clouds(rng, n=40, m=30, d=5, apart=0.0):
    return rng.standard_normal((n, d)), rng.standard_normal((m, d)) + apart


def centered_costs(geometry):
    """c_ij in the geometry's order, from differences of more digits than float64 has."""
    x = geometry.clouds.x.numpy().astype(np.longdouble)[geometry.order_x]
    y = geometry.clouds.y.numpy().astype(np.longdouble)[geometry.order_y]
    difference = x[:, None] - y - geometry.offset.numpy()
    return ((difference * geometry.scale) ** 2).sum(-1)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1GiB", 2**30),
        ("512 MB", 2**29),
        ("1.5k", 1536),
        ("64", 64),
        (2**20, 2**20),
        ("2 TiB", 2**41),
    ],
)
def test_sizes_are_read(text, size):
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1GiB", "0", 0, -5, "1 GiBit", "1..5k", "nan"])
def test_other_sizes_are_refused(text):
    with pytest.raises(ArgumentError, match="1GiB"):
        parse_bytes(text)


def test_squared_distances_resolve_differences_lost_in_products():
    x = torch.tensor([[1e8, 1.0]], dtype=torch.float64)
    y = x + torch.tensor([[0.0, 2.0**-30]], dtype=torch.float64)
    assert squared_distances(x, y).item() == 2.0**-60


class TestOrder:
    def test_partners_have_the_same_index(self, rng):
        x, _ = clouds(rng)
        coupling = rng.permutation(len(x))
        y = np.empty_like(x)
        y[coupling] = x + 3
        geometry = geometry_of(x, y, coupling=coupling)
        indices = np.arange(len(x))
        assert geometry.pair_costs(indices, indices) == pytest.approx(np.zeros(len(x)), abs=1e-12)
        assert sorted(geometry.order_x) == sorted(geometry.order_y) == list(indices)
        assert (geometry.order_x != indices).any()

    @pytest.mark.parametrize("size", [1e-100, 1e-3, 1.0, 7e5, 1e100])
    def test_a_power_of_two_makes_the_spread_one(self, rng, size):
        x, y = clouds(rng)
        geometry = geometry_of(x * size, y * size)
        assert 0.5 <= geometry.clouds.total_variance * geometry.scale**2 <= 2
        assert np.frexp(geometry.scale)[0] == 0.5

    def test_listed_costs_are_those_of_the_points(self, rng):
        x, y = clouds(rng, apart=10.0)
        geometry = geometry_of(x, y)
        i, j = rng.integers(40, size=200), rng.integers(30, size=200)
        expected = centered_costs(geometry)[i, j].astype(float)
        assert geometry.pair_costs(i, j) == pytest.approx(expected, rel=1e-13)
        assert (geometry.cost_error(expected) < 1e-12).all()

    def test_coincident_clouds_are_not_centred(self, rng):
        """x + 1e-12 noise: centring each apart would put rounding into differences."""
        x, _ = clouds(rng)
        y = x + 1e-12 * rng.standard_normal(x.shape)
        geometry = geometry_of(x, y)
        assert not geometry.offset.any()
        assert geometry.translation_potential() == pytest.approx(np.zeros(len(x)), abs=1e-11)
        indices = np.arange(len(x))
        truth = ((x - y)[geometry.order_x] ** 2).sum(1) * geometry.scale**2
        assert geometry.pair_costs(indices, indices) == pytest.approx(truth, rel=1e-14)


def blocks(geometry, target, source, bias):
    """Return a copy of each tile."""
    return geometry.tiles(lambda _, tile: tile.clone(), target, source, bias)


def whole(geometry, target, source, target_first=None, source_first=None):
    """All blocks, of two clouds or of their first points."""
    target, source = getattr(geometry, target), getattr(geometry, source)
    target = target if target_first is None else target.head(target_first)
    source = source if source_first is None else source.head(source_first)
    return torch.cat([b for _, b in blocks(geometry, target, source, source.norms)])


kinds = st.sampled_from(["plain", "far", "heavy", "tiny", "wide", "ints"])


def some_clouds(kind, seed):
    rng = np.random.default_rng(seed)
    d = 1100 if kind == "wide" else int(rng.integers(1, 80))
    x, y = clouds(rng, d=d)
    if kind == "far":
        y = y + 1e4
    if kind == "heavy":
        x, y = rng.standard_cauchy(x.shape), rng.standard_cauchy(y.shape)
    if kind == "tiny":
        y = x[:30] + 1e-6 * y
    if kind == "ints":
        x, y = np.round(x), np.round(y)
    return x, y


class TestErrorBounds:
    @given(kinds, st.integers(0, 10**6), st.sampled_from([torch.float32, torch.float64]))
    def test_error_of_products_stays_within_its_bound(self, kind, seed, dtype):
        geometry = geometry_of(*some_clouds(kind, seed))
        geometry = geometry if dtype is torch.float32 else geometry.double_precision
        p = torch.from_numpy(np.random.default_rng(seed).standard_normal(40))
        bias = p + geometry.x.norms
        allowed = (
            geometry.x.error(bias)[None] + geometry.y.error(geometry.y.norms)[:, None]
        ).numpy()
        truth = centered_costs(geometry).T + p.numpy()
        for rows, block in blocks(geometry, geometry.y, geometry.x, bias):
            found = (
                block[:, :40].numpy().astype(np.longdouble) + geometry.y.norms[rows, None].numpy()
            )
            assert (abs(found - truth[rows]) <= allowed[rows]).all()
            assert torch.isinf(block[:, 40:]).all()

    def test_error_bounds_are_nearly_attained(self, rng):
        """A bound that nothing comes near would hide faults: float32 is seen to be off."""
        geometry = geometry_of(*clouds(rng, d=64))
        for _, block in blocks(geometry, geometry.y, geometry.x, geometry.x.norms):
            found = block[:, :40].double() + geometry.y.norms[:, None]
            worst = abs(found.numpy() - centered_costs(geometry).T)
            assert 1e-8 < worst.max() < geometry.x.error(geometry.x.norms).max() * 2

    def test_panels_keep_the_bound_of_wide_points_small(self, rng):
        assert roundings(2000) < 600


class TestBlocks:
    def test_sum_of_panels_is_the_product(self, rng, monkeypatch):
        """Of points wider than a panel, whose products are not at hand."""
        x, y = clouds(rng, d=10)
        at_once = geometry_of(x, y)
        at_once = whole(at_once, "y", "x")
        monkeypatch.setattr(tiles, "_PANEL", 4)
        geometry = geometry_of(x, y)
        vars(geometry)["products"] = None
        torch.testing.assert_close(whole(geometry, "y", "x"), at_once, rtol=0, atol=1e-5)

    def test_blocks_do_not_depend_on_their_size(self, rng, monkeypatch):
        geometry = geometry_of(*clouds(rng, n=300, m=200))
        at_once = whole(geometry, "y", "x")
        monkeypatch.setattr(tiles, "_MIN_ROWS", 7)
        small = geometry_of(geometry.clouds.x, geometry.clouds.y, memory=8000)
        parts = [t for _, t in blocks(small, small.y, small.x, small.x.norms)]
        assert len(parts) > 5
        torch.testing.assert_close(torch.cat(parts), at_once, rtol=0, atol=1e-5)

    def test_stored_products_equal_recomputed_ones(self, rng):
        x, y = clouds(rng, n=90, m=70, d=300)
        kept, anew = geometry_of(x, y), geometry_of(x, y, memory=1000)
        assert kept.products is not None
        assert anew.products is None
        for at, over in (("x", "y"), ("y", "x")):
            assert len(whole(kept, at, over)) == getattr(kept, at).n
            torch.testing.assert_close(
                whole(kept, at, over), whole(anew, at, over), rtol=0, atol=1e-5
            )
            torch.testing.assert_close(
                whole(kept, at, over, 20, 30), whole(anew, at, over, 20, 30), rtol=0, atol=1e-5
            )

    def test_products_of_narrow_points_are_not_stored(self, rng):
        assert geometry_of(*clouds(rng)).products is None

    def test_a_process_without_rows_adds_nothing(self, rng, monkeypatch):
        """There can be more processes than points."""
        geometry = geometry_of(*clouds(rng))
        n, m = geometry.x.n, geometry.y.n
        kernel, g = Kernel(geometry.clouds), torch.zeros(m, dtype=torch.float64)
        monkeypatch.setattr(processes, "shard", lambda n: slice(n, n))
        f = torch.zeros(n, dtype=torch.float64)
        values, i, j = nearest(geometry, geometry.y, geometry.x, f, 2)
        assert (values.tolist(), len(i), len(j)) == ([0.0] * m, 0, 0)
        violations = find_violations(geometry, Potentials(np.full(n, 9.0), np.zeros(m)), 0.0)
        assert not violations.excess.any()
        assert kernel.c_transform(g).tolist() == [0.0] * n
        summary = kernel.round_plan(f, g, g, 1.0)
        assert summary.entropic_cost == 0
        assert len(kernel.entries(f, g, g, 1.0, 1).mass) == 0
        assert [each.shape for each in kernel.apply_plan(f, g, 1.0)] == [
            geometry.clouds.x.shape,
            geometry.clouds.y.shape,
        ]

    def test_passes_are_counted(self, rng):
        geometry = geometry_of(*clouds(rng))
        for _ in range(3):
            list(blocks(geometry, geometry.y, geometry.x, geometry.x.norms))
        list(blocks(geometry, geometry.y.head(15), geometry.x, geometry.x.norms))
        assert geometry.passes == 3.5


class TestPotentials:
    def test_feasible_potentials_are_mapped_back_to_the_original_points(self, rng):
        x, y = clouds(rng, apart=5.0)
        geometry = geometry_of(x * 100, y * 100)
        centred = centered_costs(geometry).astype(float)
        f = rng.standard_normal(40)
        g = (centred - f[:, None]).min(0)
        f, g = geometry.original_potentials(f, g)
        slack = cdist(x * 100, y * 100, "sqeuclidean") - f[:, None] - g
        assert slack.min() >= 0
        assert slack.min(0).max() < 1e-7  # tight in every column

    @pytest.mark.parametrize("apart", [0.01, 30.0])
    def test_the_first_potential_is_optimal_for_a_translation(self, rng, apart):
        x, _ = clouds(rng)
        geometry = geometry_of(x, x + apart)
        assert geometry.offset.any() == (apart > 1)
        f = geometry.translation_potential()
        centred = centered_costs(geometry).astype(float)
        g = centred.diagonal() - f
        assert (centred - f[:, None] - g).min() > -1e-12
