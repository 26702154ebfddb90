"""Costs by matrix products: right, and never further off than they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from wgeo.errors import ArgumentError
from wgeo.runtime.memory import parse_bytes
from wgeo.transport import cost as cost_module
from wgeo.transport.cost import Costs, squared_distances
from wgeo.transport.pair import Pair

ROOM = 2**30


def costs_of(x, y, memory=ROOM, coupling=None, **weights):
    x, y = torch.as_tensor(x), torch.as_tensor(y)
    return Costs.of(Pair.of(x, y, coupling=coupling, **weights), memory)


def clouds(rng, n=40, m=30, d=5, apart=0.0):
    return rng.standard_normal((n, d)), rng.standard_normal((m, d)) + apart


def centred_costs(costs):
    """c_ij in the costs' own order, from differences of more digits than float64 has."""
    x = costs.pair.x.numpy().astype(np.longdouble)[costs.rows]
    y = costs.pair.y.numpy().astype(np.longdouble)[costs.columns]
    difference = x[:, None] - y - costs.offset.numpy()
    return ((difference * costs.scale) ** 2).sum(-1)


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


def test_squared_distances_see_what_products_cannot():
    x = torch.tensor([[1e8, 1.0]], dtype=torch.float64)
    y = x + torch.tensor([[0.0, 2.0**-30]], dtype=torch.float64)
    assert squared_distances(x, y).item() == 2.0**-60


class TestOrder:
    def test_partners_have_the_same_place(self, rng):
        x, _ = clouds(rng)
        coupling = rng.permutation(len(x))
        y = np.empty_like(x)
        y[coupling] = x + 3
        costs = costs_of(x, y, coupling=coupling)
        places = np.arange(len(x))
        assert costs.between(places, places) == pytest.approx(np.zeros(len(x)), abs=1e-12)
        assert sorted(costs.rows) == sorted(costs.columns) == list(places)
        assert (costs.rows != places).any()

    @pytest.mark.parametrize("size", [1e-100, 1e-3, 1.0, 7e5, 1e100])
    def test_a_power_of_two_makes_the_spread_one(self, rng, size):
        x, y = clouds(rng)
        costs = costs_of(x * size, y * size)
        assert 0.5 <= costs.pair.spread * costs.scale**2 <= 2
        assert np.frexp(costs.scale)[0] == 0.5

    def test_listed_costs_are_those_of_the_points(self, rng):
        x, y = clouds(rng, apart=10.0)
        costs = costs_of(x, y)
        i, j = rng.integers(40, size=200), rng.integers(30, size=200)
        expected = centred_costs(costs)[i, j].astype(float)
        assert costs.between(i, j) == pytest.approx(expected, rel=1e-13)
        assert (costs.rounding(expected) < 1e-12).all()

    def test_no_offset_is_taken_off_clouds_that_coincide(self, rng):
        """x + 1e-12 noise: centring each apart would put rounding into differences."""
        x, _ = clouds(rng)
        y = x + 1e-12 * rng.standard_normal(x.shape)
        costs = costs_of(x, y)
        assert not costs.offset.any()
        assert costs.start() == pytest.approx(np.zeros(len(x)), abs=1e-11)
        places = np.arange(len(x))
        truth = ((x - y)[costs.rows] ** 2).sum(1) * costs.scale**2
        assert costs.between(places, places) == pytest.approx(truth, rel=1e-14)


def whole(costs, at, over, at_first=None, over_first=None):
    """All tiles, of two sides or of their first points."""
    at, over = getattr(costs, at), getattr(costs, over)
    at = at if at_first is None else at.head(at_first)
    over = over if over_first is None else over.head(over_first)
    return torch.cat([tile.clone() for _, tile in costs.tiles(at, over, over.norms)])


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
    def test_products_are_never_further_off_than_they_say(self, kind, seed, dtype):
        costs = costs_of(*some_clouds(kind, seed))
        costs = costs if dtype is torch.float32 else costs.precise
        p = torch.from_numpy(np.random.default_rng(seed).standard_normal(40))
        bias = p + costs.x.norms
        allowed = (costs.x.error(bias)[None] + costs.y.error(costs.y.norms)[:, None]).numpy()
        truth = centred_costs(costs).T + p.numpy()
        for rows, tile in costs.tiles(costs.y, costs.x, bias):
            found = tile[:, :40].numpy().astype(np.longdouble) + costs.y.norms[rows, None].numpy()
            assert (abs(found - truth[rows]) <= allowed[rows]).all()
            assert torch.isinf(tile[:, 40:]).all()

    def test_bounds_are_not_idle(self, rng):
        """A bound that nothing comes near would hide faults: float32 is seen to be off."""
        costs = costs_of(*clouds(rng, d=64))
        for _, tile in costs.tiles(costs.y, costs.x, costs.x.norms):
            found = tile[:, :40].double() + costs.y.norms[:, None]
            worst = abs(found.numpy() - centred_costs(costs).T)
            assert 1e-8 < worst.max() < costs.x.error(costs.x.norms).max() * 2

    def test_panels_keep_the_bound_of_wide_points_small(self, rng):
        costs = costs_of(*clouds(rng, d=2000))
        assert costs.x.terms < 600


class TestTiles:
    def test_panels_add_up(self, rng, monkeypatch):
        """Of points wider than a panel, whose products are not at hand."""
        x, y = clouds(rng, d=10)
        at_once = costs_of(x, y)
        at_once = whole(at_once, "y", "x")
        monkeypatch.setattr(cost_module, "_PANEL", 4)
        costs = costs_of(x, y)
        vars(costs)["products"] = None
        torch.testing.assert_close(whole(costs, "y", "x"), at_once, rtol=0, atol=1e-5)

    def test_do_not_depend_on_their_size(self, rng, monkeypatch):
        costs = costs_of(*clouds(rng, n=300, m=200))
        at_once = whole(costs, "y", "x")
        monkeypatch.setattr(cost_module, "_FEWEST_ROWS", 7)
        small = costs_of(costs.pair.x, costs.pair.y, memory=8000)
        parts = [t.clone() for _, t in small.tiles(small.y, small.x, small.x.norms)]
        assert len(parts) > 5
        torch.testing.assert_close(torch.cat(parts), at_once, rtol=0, atol=1e-5)

    def test_kept_products_are_those_computed_anew(self, rng):
        x, y = clouds(rng, n=90, m=70, d=300)
        kept, anew = costs_of(x, y), costs_of(x, y, memory=1000)
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

    def test_narrow_points_keep_no_products(self, rng):
        assert costs_of(*clouds(rng)).products is None

    def test_visits_are_counted(self, rng):
        costs = costs_of(*clouds(rng))
        for _ in range(3):
            list(costs.tiles(costs.y, costs.x, costs.x.norms))
        list(costs.tiles(costs.y.head(15), costs.x, costs.x.norms))
        assert costs.passes == 3.5


class TestPotentials:
    def test_labels_become_feasible_potentials_of_the_points_given(self, rng):
        x, y = clouds(rng, apart=5.0)
        costs = costs_of(x * 100, y * 100)
        centred = centred_costs(costs).astype(float)
        p = rng.standard_normal(40)
        q = (p[:, None] + centred).min(0)
        f, g = costs.lift(p, q)
        slack = cdist(x * 100, y * 100, "sqeuclidean") - f[:, None] - g
        assert slack.min() >= 0
        assert slack.min(0).max() < 1e-7  # tight in every column

    @pytest.mark.parametrize("apart", [0.01, 30.0])
    def test_the_default_start_is_a_translations(self, rng, apart):
        x, _ = clouds(rng)
        costs = costs_of(x, x + apart)
        assert costs.offset.any() == (apart > 1)
        p = costs.start()
        centred = centred_costs(costs).astype(float)
        q = p + centred.diagonal()
        assert (p[:, None] + centred - q).min() > -1e-12

    def test_a_start_undoes_what_lifting_does(self, rng):
        costs = costs_of(*clouds(rng, apart=5.0))
        p = rng.standard_normal(40)
        f, _ = costs.lift(p, rng.standard_normal(30))
        assert costs.start(f) == pytest.approx(p - p.mean(), abs=1e-12)
