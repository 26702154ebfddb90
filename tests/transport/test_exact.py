"""Exact: the right answer, and a proof that holds, whatever the clouds."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
from fractions import Fraction

import numpy as np
import ot
import pytest
import torch
from cases import ROTATED, rotated
from hypothesis import example, given, settings
from hypothesis import strategies as st
from references import squared
from scipy.optimize import linear_sum_assignment

import wgeo
from wgeo.errors import ArgumentError, ConvergenceError, FeatureError
from wgeo.runtime.threads import Interrupted, interruptible, thread_map
from wgeo.transport import Exact, Status, tiles, wasserstein
from wgeo.transport.all_pairs import find_violations, nearest
from wgeo.transport.arcs import (
    Arcs,
    Potentials,
    dense_simplex,
    network_simplex,
    shortest_path_labels,
)
from wgeo.transport.geometry import Geometry
from wgeo.transport.plans import northwest_corner
from wgeo.transport.point_clouds import PointClouds


def geometry_of(x, y, memory=2**30, **kw):
    return Geometry.of(PointClouds.of(torch.as_tensor(x), torch.as_tensor(y), **kw), memory)


def slack_of(result, x, y):
    f, g = result.potentials
    return squared(x, y) - f[:, None] - g


FIVE = np.array([(0, 0), (1, 0), (0, 1), (1, 1), (2, 1)], float)


class TestKnownAnswers:
    """theory.md, Section G, F."""

    @pytest.mark.parametrize(
        ("x", "y", "cost"),
        [
            *((points, rotated(points, degrees), cost) for points, degrees, cost in ROTATED),
            (FIVE, FIVE @ np.array([[2, 0.5], [0.5, 1]]) + (1, -1), 5.65),
            ([0, 1, 2], [0, -1, -2], 4.0),
            ([0, 1, 3], [4, 1, 2], 1.0),
            ([-1, 1], [2, -1], 0.5),
            ([[0.0, 0]], [[3.0, 4]], 25.0),
        ],
    )
    def test_small_clouds(self, x, y, cost):
        result = wasserstein(np.array(x, float), np.array(y, float))
        assert result.cost == pytest.approx(cost, abs=1e-9)
        assert result.status is Status.CERTIFIED
        assert result.lower <= result.distance <= result.upper

    def test_distance_of_a_translation_is_its_length(self, rng):
        x = rng.standard_normal((200, 7))
        shift = rng.standard_normal(7) * 100
        result = wasserstein(x, rng.permutation(x) + shift)
        assert result.distance == pytest.approx(np.linalg.norm(shift), rel=1e-13)

    def test_mass_is_split_if_necessary(self):
        """One point to two: half each way."""
        result = wasserstein(np.array([0.0]), np.array([-1.0, 3.0]))
        assert result.cost == pytest.approx(5.0)
        np.testing.assert_allclose(result.coupling.toarray(), [[0.5, 0.5]])

    def test_weights_determine_the_moved_mass(self):
        x = np.array([[0.0, 0], [1, 0]])
        result = wasserstein(x, x, a=[0.75, 0.25], b=[0.25, 0.75])
        assert result.cost == pytest.approx(0.5)


KINDS = ["gauss", "clusters", "ties", "duplicates", "collapsed", "heavy"]
KINDS += ["near", "shifted", "same", "grid", "equal", "spiked"]


def case(kind, seed):
    """Two clouds, weights or None, a starting coupling or None."""
    rng = np.random.default_rng(seed)
    n = int(rng.choice([1, 2, 3, 7, 20, 65, 130, 250]))
    m = n if rng.random() < 0.6 else int(rng.choice([1, 2, 5, 33, 100, 250]))
    d = int(rng.choice([1, 2, 3, 8, 32, 300]))
    x, y = rng.standard_normal((n, d)), rng.standard_normal((m, d))
    centres = rng.standard_normal((4, d)) * 5
    if kind == "clusters":
        x = 0.1 * x + centres[rng.integers(4, size=n)]
        y = 0.1 * y + centres[rng.integers(4, size=m)]
    elif kind == "ties":
        x, y = np.round(x), np.round(y)
    elif kind == "grid":
        x, y = 0.1 * (x > 0), 0.1 * (y > 0) + 0.05
    elif kind == "duplicates":
        x, y = x[rng.integers(1 + n // 10, size=n)], y[rng.integers(1 + m // 10, size=m)]
    elif kind == "collapsed":
        y = centres[rng.integers(4, size=m)]
    elif kind == "heavy":
        x, y = rng.standard_cauchy((n, d)), rng.standard_cauchy((m, d))
    elif kind == "near" and n == m:
        y = x + y * 10.0 ** rng.integers(-7, 0)
    elif kind == "shifted":
        y = y + 1e3
    elif kind == "same" and n == m:
        y = x[rng.permutation(n)]
    elif kind == "equal":
        x, y = np.full((n, d), 0.3), np.full((m, d), 0.1)
    elif kind == "spiked":
        x = np.maximum(x, 1.5) - 1.5  # what a ReLU leaves of most features
        y = np.maximum(y, 1.5) - 1.5
    size = 10.0 ** rng.integers(-9, 10) if rng.random() < 0.3 else 1.0
    a, b = (
        rng.exponential(size=k) ** rng.integers(1, 5) if rng.random() < 0.3 else None
        for k in (n, m)
    )
    if a is not None and n > 1 and rng.random() < 0.3:
        a[rng.integers(n)] = 0.0
    start = rng.permutation(n) if n == m and a is b is None and rng.random() < 0.3 else None
    return x * size, y * size, a, b, start


class TestAgreesWithANetworkSimplex:
    @settings(max_examples=80)
    @given(st.sampled_from(KINDS), st.integers(0, 10**6))
    @example("near", 454)
    def test_agrees_to_nine_digits_and_is_certified(self, kind, seed):
        x, y, a, b, start = case(kind, seed)
        result = wasserstein(x, y, a=a, b=b, coupling=start)
        cost = squared(x, y)
        most = max(cost.max(), 1e-300)
        marginals = [
            np.full(len(z), 1 / len(z)) if w is None else w / w.sum() for z, w in ((x, a), (y, b))
        ]
        peer = ot.emd2(*marginals, cost / most, numItermax=10**8) * most
        rounding = 1e-14 * most  # of the peer, and of what costs of 0 leave to compare with
        assert abs(result.cost - peer) <= 1e-9 * peer + rounding
        assert result.lower**2 <= peer * (1 + 1e-9) + rounding
        assert result.upper**2 >= peer * (1 - 1e-9) - rounding
        assert result.lower <= result.distance <= result.upper
        assert result.status is Status.CERTIFIED or peer < 1e-10 * most
        slack = slack_of(result, x, y)
        assert slack.min() >= -1e-12 * most
        assert_couples(result.coupling, *marginals, cost, result.cost)
        f, g = result.potentials
        dual = marginals[0] @ f + marginals[1] @ g
        assert dual == pytest.approx(result.lower**2, rel=1e-9, abs=1e-12 * most)


def assert_couples(coupling, a, b, cost, value):
    """A coupling with these marginals and this cost."""
    if isinstance(coupling, np.ndarray):
        n = len(coupling)
        assert sorted(coupling) == list(range(n))
        assert cost[np.arange(n), coupling].mean() == pytest.approx(value, rel=1e-12, abs=1e-300)
        return
    assert coupling.shape == cost.shape
    assert coupling.data.min() >= 0
    np.testing.assert_allclose(coupling.sum(1), a, atol=1e-14)
    np.testing.assert_allclose(coupling.sum(0), b, atol=1e-14)
    assert coupling.multiply(cost).sum() == pytest.approx(value, rel=1e-9, abs=1e-14 * cost.max())


class TestTheIntervalIsTrue:
    @given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 4), st.booleans())
    def test_certificate_holds_in_exact_arithmetic(self, seed, n, d, close):
        """All n! assignments in fractions: no rounding on this side."""
        rng = np.random.default_rng(seed)
        x = rng.standard_normal((n, d)) * 10.0 ** rng.integers(-3, 4)
        y = x + rng.standard_normal((n, d)) * 1e-5 if close else rng.standard_normal((n, d))
        result = wasserstein(x, y, coupling=rng.permutation(n))
        exact = [
            [sum((Fraction(u) - Fraction(v)) ** 2 for u, v in zip(p, q, strict=True)) for q in y]
            for p in x
        ]
        orders = itertools.permutations(range(n))
        truth = min(sum(exact[i][j] for i, j in enumerate(order)) for order in orders) / n
        assert Fraction(result.lower) ** 2 <= truth <= Fraction(result.upper) ** 2
        assert result.gap < 1e-6

    @given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9))
    def test_unequal_sizes_on_a_line_in_exact_arithmetic(self, seed, n, m):
        """Mass splits exactly: nearly coinciding copies leave no digit to lose."""
        rng = np.random.default_rng(seed)
        x = rng.standard_normal(2)[rng.integers(2, size=n)]
        y = x[rng.integers(n, size=m)] + 1e-5 * rng.standard_normal(m)
        result = wasserstein(x, y)
        units = (np.repeat(np.sort(z), k) for z, k in ((x, m), (y, n)))
        pairs = zip(*units, strict=True)
        truth = sum((Fraction(u) - Fraction(v)) ** 2 for u, v in pairs) / (n * m)
        assert Fraction(result.lower) ** 2 <= truth <= Fraction(result.upper) ** 2

    def test_wrong_start_does_not_change_the_result(self, rng):
        x = rng.standard_normal((300, 5))
        y = x + 0.3 * rng.standard_normal((300, 5))
        results = [
            wasserstein(x, y, coupling=start)
            for start in (None, rng.permutation(300), np.arange(300)[::-1].copy())
        ]
        for result in results[1:]:
            np.testing.assert_array_equal(result.coupling, results[0].coupling)
            assert result.cost == results[0].cost

    @pytest.mark.parametrize(("n", "d"), [(700, 2), (700, 20), (400, 400)])
    def test_agrees_with_scipys_assignment(self, rng, n, d):
        x, y = rng.standard_normal((2, n, d))
        y[: n // 2] += 2
        result = wasserstein(x.astype(np.float32), y.astype(np.float32))
        cost = squared(x.astype(np.float32), y.astype(np.float32))
        rows, columns = linear_sum_assignment(cost)
        assert result.cost == pytest.approx(cost[rows, columns].mean(), rel=1e-12)
        np.testing.assert_array_equal(result.coupling, columns)

    def test_weighted_clouds_too_large_for_all_pairs_at_once(self, rng):
        x, y = rng.standard_normal((500, 6)), rng.standard_normal((400, 6)) + 1
        a, b = rng.exponential(size=500), rng.exponential(size=400)
        result = wasserstein(x, y, a=a, b=b)
        peer = ot.emd2(a / a.sum(), b / b.sum(), squared(x, y), numItermax=10**8)
        assert result.cost == pytest.approx(peer, rel=1e-12)
        assert result.gap < 1e-9
        assert result.stats["arcs"] < 500 * 400 / 5


class TestInput:
    def test_clouds_of_coincident_points(self):
        for x, y in ((np.ones((50, 3)), np.ones((50, 3))), (np.ones((9, 2)), np.ones((4, 2)))):
            result = wasserstein(x, y)
            assert result.cost == result.lower == result.upper == 0
            assert result.status is Status.CERTIFIED

    def test_one_point_each(self):
        assert wasserstein([[1.0, 2]], [[4.0, 6]]).distance == 5

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_error_names_non_finite_values(self, rng, bad):
        x = torch.from_numpy(rng.standard_normal((20, 3)))
        y = x.clone()
        y[13, 1] = bad
        with pytest.raises(
            FeatureError,
            match=r"y holds NaN or infinity in 1 of the samples 0 to 19, first in sample 13",
        ):
            Exact().solve(x, y)

    @pytest.mark.parametrize("options", [{"tolerance": 0}, {"memory": "lots"}])
    def test_invalid_settings_are_refused(self, options):
        with pytest.raises(ArgumentError):
            Exact(**options)

    def test_missing_device_is_an_error(self):
        with pytest.raises(ArgumentError, match="cuda:77"):
            Exact(device="cuda:77").solve(torch.ones(3, 2), torch.ones(3, 2))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64])
    def test_types_are_widened(self, dtype):
        x, y = ((10 * torch.randn(60, 4)).to(dtype) for _ in range(2))
        wide = wasserstein(x.double(), y.double())
        assert wasserstein(x, y).cost == wide.cost

    def test_strides_and_gradients_do_not_matter(self, rng):
        x, y = rng.standard_normal((2, 60, 8))
        base = wasserstein(x, y)
        sliced = np.repeat(x, 2, axis=0)[::2].T.copy().T
        leaf = torch.from_numpy(y).requires_grad_()
        assert wasserstein(sliced, leaf).cost == base.cost

    def test_transport_on_a_line_is_sorting(self, rng):
        x, y = rng.standard_normal((2, 3000))
        result = wasserstein(x, y)
        assert result.cost == pytest.approx(((np.sort(x) - np.sort(y)) ** 2).mean(), rel=1e-13)
        assert result.status is Status.CERTIFIED
        np.testing.assert_array_equal(np.argsort(x), np.argsort(y[result.coupling]))

    def test_a_line_with_weights(self, rng):
        x, y, a, b = *rng.standard_normal((2, 80)), *rng.exponential(size=(2, 80))
        result = wasserstein(x, y, a=a, b=b)
        cost = squared(x[:, None], y[:, None])
        assert result.cost == pytest.approx(ot.emd2(a / a.sum(), b / b.sum(), cost), rel=1e-10)

    def test_more_dimensions_than_points(self):
        x, y = torch.randn(2, 12, 100_000)
        cost = squared(x, y)
        rows, columns = linear_sum_assignment(cost)
        result = wasserstein(x, y)
        assert result.cost == pytest.approx(cost[rows, columns].mean(), rel=1e-10)
        assert result.status is Status.CERTIFIED

    @pytest.mark.parametrize("size", [1e-100, 1e-20, 1e20, 1e100])
    def test_scale_does_not_matter(self, rng, size):
        x, y = rng.standard_normal((2, 90, 4))
        base, scaled = wasserstein(x, y), wasserstein(x * size, y * size)
        assert scaled.distance == pytest.approx(base.distance * size, rel=1e-12)
        assert scaled.status is Status.CERTIFIED

    def test_points_without_weight_have_feasible_potentials(self, rng):
        x, y = rng.standard_normal((30, 3)), rng.standard_normal((20, 3))
        a = np.r_[np.zeros(10), rng.random(20)]
        b = np.r_[rng.random(15), np.zeros(5)]
        result = wasserstein(x, y, a=a, b=b)
        kept = wasserstein(x[10:], y[:15], a=a[10:], b=b[:15])
        assert result.cost == pytest.approx(kept.cost, rel=1e-13)
        assert slack_of(result, x, y).min() >= -1e-12
        assert result.coupling.shape == (30, 20)
        small = wasserstein([0.0, 0.3], [0.0], a=[1, 0])  # 0.3^2 is rounded up in float64
        f, g = ([Fraction(float(v)) for v in z] for z in small.potentials)
        assert f[1] + g[0] <= Fraction(0.3) ** 2
        assert result.coupling[:10].nnz == result.coupling[:, 15:].nnz == 0

    def test_solver_terminates_for_nearly_coincident_points(self, rng):
        """Bids that rise by next to nothing: scipy's solver alone never returns here."""
        x = np.round(np.random.default_rng(93).standard_normal((300, 300)))
        y = np.round(rng.standard_normal((300, 300))) + 1e-13 * rng.standard_normal((300, 300))
        assert wasserstein(x, y).status is Status.CERTIFIED

    def test_collapsed_classes(self, rng):
        """Ten points, four hundred times each, from spread-out ones: 40,000 tight pairs a class."""
        means = 3 * rng.standard_normal((10, 16))
        labels = np.repeat(np.arange(10), 60)
        x = means[labels] + rng.standard_normal((600, 16))
        result = wasserstein(x, means[labels])
        assert result.status is Status.CERTIFIED
        cost = squared(x, means)
        peer = ot.emd2(np.full(600, 1 / 600), np.full(10, 0.1), cost)
        assert result.cost == pytest.approx(peer, rel=1e-10)


class TestResources:
    def test_blocks_and_memory_do_not_affect_the_result(self, rng, monkeypatch):
        x, y = rng.standard_normal((2, 500, 300)).astype(np.float32)
        base = wasserstein(x, y)
        assert wasserstein(x, y).to_dict() | {"seconds": 0} == base.to_dict() | {"seconds": 0}
        monkeypatch.setattr(tiles, "_MIN_ROWS", 5)
        monkeypatch.setitem(tiles.CHUNK_ENTRIES, "cpu", 999)
        monkeypatch.setattr(
            "wgeo.transport.flow._PROGRESS_FROM", 1
        )  # rounds are shown, and the same
        small = wasserstein(x, y, solver=Exact(memory="20kB"))
        np.testing.assert_array_equal(small.coupling, base.coupling)
        assert small.cost == pytest.approx(base.cost, rel=1e-14)
        assert small.lower == pytest.approx(base.lower, rel=1e-11)

    @pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
    def test_memory_is_a_quarter_of_the_dense_costs(self):
        """Peak of the whole process beyond what it held before, at N = 4000: hard pair, float64."""
        script = """
import numpy as np, torch, wgeo
from pathlib import Path
torch.set_num_threads(1)
rng = np.random.default_rng(0)
x, y = rng.standard_normal((2, 4000, 16)).astype(np.float32)
wgeo.wasserstein(x[:600], y[:600])  # whatever is loaded on first use
kib = lambda name: int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0])
before = kib("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # start the peak anew
assert wgeo.wasserstein(x, y).status == "certified"
print(kib("VmHWM") - before)
"""
        found = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True
        )
        assert found.returncode == 0, found.stderr
        assert int(found.stdout) * 1024 <= 4000**2 * 8 / 4

    def test_a_long_call_can_be_interrupted(self):
        asleep = threading.Event()
        signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            interruptible(lambda: asleep.wait(60))
        asleep.set()

    def test_long_call_returns_its_result_or_raises_its_error(self):
        assert interruptible(lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            interruptible(lambda: 1 / 0)

    def test_cancelled_work_stops(self, rng):
        """In a thread of `thread_map`, the first error ends a solve at its next block."""
        x, y = rng.standard_normal((2, 3000, 8))
        ended = threading.Event()

        def work(what):
            if what == "fail":
                raise ZeroDivisionError
            try:
                for _ in range(1000):
                    wasserstein(x, y)
            except Interrupted:
                ended.set()
                raise

        torch.set_num_threads(max(2, threads := torch.get_num_threads()))
        try:
            with pytest.raises(ZeroDivisionError):
                thread_map(work, ["solve", "fail"], "")
        finally:
            torch.set_num_threads(threads)
        assert ended.wait(600)


class TestViolations:
    """Violations, against all pairs in float64."""

    @given(st.sampled_from(["plain", "tied", "wild"]), st.integers(0, 10**6), st.booleans())
    def test_subtracting_the_excess_makes_potentials_feasible(self, kind, seed, thorough):
        rng = np.random.default_rng(seed)
        x, y = rng.standard_normal((90, 6)), rng.standard_normal((75, 6))
        if kind == "tied":
            x, y = np.round(x / 2), np.round(y / 2)
        geometry = geometry_of(x, y)
        full = geometry.pair_costs(*np.divmod(np.arange(90 * 75), 75)).reshape(90, 75)
        f = rng.standard_normal(90) * 0.1
        g = (full - f[:, None]).min(0)
        if kind == "wild":
            g += rng.standard_normal(75)
        found = find_violations(geometry, Potentials(f, g), 1e-12, thorough)
        slack = full - f[:, None] - g
        assert (slack + found.excess).min() >= -1e-15
        known = ~found.undecided
        needed = np.maximum(-slack.min(0), 0)
        assert found.excess[known] == pytest.approx(needed[known], abs=1e-13)
        assert (found.excess <= needed + 1e-4).all()
        assert (slack[found.i, found.j] < -1e-12).all()
        if not found.undecided.any():
            assert {*zip(found.i, found.j, strict=True)} == {
                *zip(*np.nonzero(slack < -1e-12), strict=True)
            }
        elif kind == "wild":
            assert len(found.i) > 0

    def test_violations_of_selected_rows(self, rng):
        geometry = geometry_of(*rng.standard_normal((2, 200, 5)))
        full = geometry.pair_costs(*np.divmod(np.arange(200 * 200), 200)).reshape(200, 200)
        g = np.full(200, np.quantile(full, 0.01))
        rows = np.sort(rng.choice(200, 90, replace=False))
        found = find_violations(geometry, Potentials(np.zeros(200), g), 1e-12, rows=rows)
        assert not found.undecided.any()
        at_fault = np.isin(np.arange(200), rows)[:, None] & (full < g - 1e-12)
        assert {*zip(found.i, found.j, strict=True)} == {*zip(*np.nonzero(at_fault), strict=True)}

    @pytest.mark.parametrize("few", [False, True])
    def test_pairs_of_small_slack_are_listed_up_to_the_margin(self, rng, few):
        geometry = geometry_of(*rng.standard_normal((2, 200, 5)))
        full = geometry.pair_costs(*np.divmod(np.arange(200 * 200), 200)).reshape(200, 200)
        g = full.min(0) + 1e-3 * rng.standard_normal(200)
        columns = np.sort(rng.choice(200, 50, replace=False)) if few else np.arange(200)
        found = find_violations(
            geometry, Potentials(np.zeros(200), g), 1e-12, columns=columns, margin=0.05
        )
        tested = np.isin(np.arange(200), columns)
        assert found.margin.tolist() == np.where(tested, 0.05, 0).tolist()
        slack = np.where(tested, full - g, np.inf)
        assert {*zip(found.i, found.j, strict=True)} == {
            *zip(*np.nonzero(slack < -1e-12), strict=True)
        }
        assert {*zip(found.near_i, found.near_j, strict=True)} == {
            *zip(*np.nonzero((slack >= -1e-12) & (slack < 0.05)), strict=True)
        }
        assert found.excess == pytest.approx(np.maximum(-slack.min(0), 0), abs=1e-13)

    def test_margin_is_zero_where_too_many_pairs_are_below_it(self, rng):
        geometry = geometry_of(*rng.standard_normal((2, 200, 5)))
        full = geometry.pair_costs(*np.divmod(np.arange(200 * 200), 200)).reshape(200, 200)
        potentials = Potentials(np.zeros(200), full.min(0) - 1e-3)
        found = find_violations(geometry, potentials, 1e-12, margin=100.0)
        assert not found.margin.any()
        assert not found.undecided.any()
        assert len(found.near_i) == 0
        assert not found.excess.any()

    def test_single_violation_is_found(self, rng):
        geometry = geometry_of(*rng.standard_normal((2, 200, 5)))
        full = geometry.pair_costs(*np.divmod(np.arange(200 * 200), 200)).reshape(200, 200)
        g = full.min(0) - 1e-3
        g[17] += 1e-3 + 1e-9
        found = find_violations(geometry, Potentials(np.zeros(200), g), 1e-12)
        assert list(found.j) == [17]
        assert found.i[0] == full[:, 17].argmin()
        assert found.excess[17] == pytest.approx(1e-9, rel=1e-4)
        assert found.excess.sum() == found.excess[17]

    def test_nearest_is_the_minimum_of_each_column(self, rng):
        geometry = geometry_of(*rng.standard_normal((2, 300, 5)))
        full = geometry.pair_costs(*np.divmod(np.arange(300 * 300), 300)).reshape(300, 300)
        f = rng.standard_normal(300)
        g, i, j = nearest(geometry, geometry.y, geometry.x, torch.from_numpy(f), 6)
        least = (full - f[:, None]).argmin(0)
        assert {*zip(least, range(300), strict=True)} <= {*zip(i, j, strict=True)}
        assert len({*zip(i, j, strict=True)}) == 6 * 300
        assert g.numpy() == pytest.approx((full - f[:, None]).min(0), abs=1e-5)

    def test_copies_of_a_point_share_its_arcs(self):
        """Ties broken one way would leave most copies without arcs, and no matching."""
        x = torch.zeros(256, 3)
        geometry = geometry_of(torch.cat([x, x + 1]), torch.cat([x, x + 1]))
        _, i, _ = nearest(
            geometry, geometry.y, geometry.x, torch.zeros(512, dtype=torch.float64), 8
        )
        assert np.bincount(i, minlength=512).max() < 512


class TestSparse:
    def arcs(self, rng, n=40, m=40, every=True):
        geometry = geometry_of(rng.standard_normal((n, 3)), rng.standard_normal((m, 3)))
        arcs = Arcs(geometry)
        i, j = np.divmod(np.arange(n * m), m)
        keep = np.full(n * m, True) if every else (rng.random(n * m) < 0.2) | (i == j)
        arcs.add(i[keep], j[keep])
        return arcs

    def test_arcs_are_stored_once(self, rng):
        arcs = self.arcs(rng, every=False)
        before = len(arcs)
        assert arcs.add(arcs.i[:10], arcs.j[:10]) == 0
        assert len(arcs) == before
        new = np.setdiff1d(np.arange(1600), arcs.j.astype(int) * 40 + arcs.i)[:5]
        assert arcs.add(np.r_[new % 40, new % 40], np.r_[new // 40, new // 40]) == 5
        assert (np.diff(arcs.j.astype(int) * 40 + arcs.i) > 0).all()
        np.testing.assert_array_equal(arcs.i[arcs.index_of(new % 40, new // 40)], new % 40)
        assert arcs.cost == pytest.approx(arcs._geometry.pair_costs(arcs.i, arcs.j))

    @pytest.mark.parametrize("every", [True, False])
    def test_an_assignment_is_optimal_and_its_potentials_prove_it(self, rng, every):
        arcs = self.arcs(rng, every=every)
        dense = np.full(arcs.shape, 1e6)
        dense[arcs.i, arcs.j] = arcs.cost
        rows, columns = linear_sum_assignment(dense)
        plan, potentials, noise = network_simplex(
            arcs, Potentials.zeros(40, 40), np.ones(40), np.ones(40)
        )
        np.testing.assert_array_equal(plan.toarray().argmax(1), columns)
        assert (plan.data == 1).all()
        assert arcs.slack(potentials).min() >= -noise
        assert noise < 1e-12
        dual = potentials.g.sum() + potentials.f.sum()
        assert dual == pytest.approx(dense[rows, columns].sum(), rel=1e-11)

    def test_a_plan_is_optimal_and_its_potentials_prove_it(self, rng):
        arcs = self.arcs(rng, 30, 40)
        a, b = rng.dirichlet(np.ones(30)), rng.dirichlet(np.ones(40))
        dense = np.zeros(arcs.shape)
        dense[arcs.i, arcs.j] = arcs.cost
        peer = ot.emd2(a, b, dense)
        sparse = network_simplex(arcs, Potentials.zeros(30, 40), a, b)
        for plan, potentials, _ in (sparse, dense_simplex(arcs._geometry, a, b)):
            assert (plan.toarray() * dense).sum() == pytest.approx(peer, rel=1e-6)
            assert b @ potentials.g + a @ potentials.f == pytest.approx(peer, rel=1e-6)
        assert arcs.slack(sparse[1]).min() >= -sparse[2]

    def test_slacks_that_count_as_alike_do_not_change_the_plan(self, rng):
        """A ceiling that the plan needs more than is given up; one that it does not is finer."""
        arcs, ones = self.arcs(rng), np.ones(40)
        plan, potentials, noise = network_simplex(arcs, Potentials.zeros(40, 40), ones, ones)
        for ceiling in (1e-9, 1e-3, 1.0, 100.0):
            again, finer, less = network_simplex(arcs, potentials, ones, ones, ceiling)
            np.testing.assert_array_equal(again.toarray(), plan.toarray())
            assert arcs.slack(finer).min() >= -noise
            assert less <= noise
        low, _, _ = network_simplex(arcs, Potentials.zeros(40, 40), ones, ones, 1e-9)
        np.testing.assert_array_equal(low.toarray(), plan.toarray())

    def test_unfinished_simplex_is_an_error(self, rng, monkeypatch):
        def early(*given, **settings):
            plan, log = whole(*given, **settings)
            return plan, log | {"result_code": 3, "warning": "cut short"}

        whole = ot.emd
        monkeypatch.setattr(ot, "emd", early)
        zero = Potentials.zeros(30, 40)
        weights = rng.dirichlet(np.ones(30)), rng.dirichlet(np.ones(40))
        with pytest.raises(ConvergenceError, match=r"cut short.*Drop the smallest"):
            network_simplex(self.arcs(rng, 30, 40), zero, *weights)

    def test_labels_are_shortest_paths(self, rng):
        """Against plain Bellman-Ford, one arc at a time."""
        arcs, ones = self.arcs(rng, every=False), np.ones(40)
        plan, duals, _ = network_simplex(arcs, Potentials.zeros(40, 40), ones, ones)
        used = arcs.index_of(plan.row, plan.col)
        potentials = shortest_path_labels(arcs, arcs.cost, duals.f - 1, duals.g + 1, used)
        p, q = np.zeros(40), np.full(40, np.inf)
        for _ in range(100):
            for i, j, c in zip(arcs.i, arcs.j, arcs.cost, strict=True):
                q[j] = min(q[j], p[i] + c)
            for i, j, c in zip(arcs.i[used], arcs.j[used], arcs.cost[used], strict=True):
                p[i] = min(p[i], q[j] - c)
        assert -potentials.f == pytest.approx(p, abs=1e-11)
        assert potentials.g == pytest.approx(q, abs=1e-11)

    def test_the_north_west_corner_rule_has_the_marginals(self, rng):
        a, b = rng.dirichlet(np.ones(30)), rng.dirichlet(np.ones(50))
        i, j, mass = map(np.asarray, northwest_corner(torch.from_numpy(a), torch.from_numpy(b)))
        assert len(mass) == 79
        np.testing.assert_allclose(np.bincount(i, mass), a, atol=1e-15)
        np.testing.assert_allclose(np.bincount(j, mass), b, atol=1e-15)


@pytest.mark.slow
def test_layers_of_a_real_network(shared):
    """Every block and segment of ResNet-20 on 600 photographs, against scipy's dense solver."""

    net = wgeo.load_checkpoint(shared / "checkpoints/resnet20-12fca82f.th", arch="cifar_resnet20")
    images = wgeo.load_images(str(shared / "data/cifar10_jpeg.zip"), split="train", limit=600)
    traj = wgeo.trace(net, images, pool="gap")
    pairs = [(b.x, b.y) for b in traj.blocks] + [(s.arrays[0], s.arrays[-1]) for s in traj.segments]
    assert len(pairs) == 12
    for x, y in pairs:
        result = wasserstein(x, y)
        cost = squared(x, y)
        rows, columns = linear_sum_assignment(cost)
        assert result.status is Status.CERTIFIED
        assert result.gap < 1e-11
        assert result.cost == pytest.approx(cost[rows, columns].mean(), rel=1e-12)
        np.testing.assert_array_equal(result.coupling, columns)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_answer(rng):
    x, y = rng.standard_normal((2, 2000, 32)).astype(np.float32)
    host, gpu = (wasserstein(x, y, solver=Exact(device=d)) for d in ("cpu", "cuda"))
    np.testing.assert_array_equal(host.coupling, gpu.coupling)
    assert gpu.cost == pytest.approx(host.cost, rel=1e-12)
    assert gpu.status is Status.CERTIFIED
    mixed = wasserstein(x, torch.from_numpy(y).cuda())
    np.testing.assert_array_equal(host.coupling, mixed.coupling)


class TestStarts:
    """Where the solver starts from does not change what it finds."""

    def test_known_potentials_save_rounds_and_do_not_change_the_optimum(self, rng):
        x = rng.normal(size=(2000, 4))
        y = x + np.maximum(x @ rng.normal(size=(4, 4)), 0)
        whole, rows = wasserstein(x, y), rng.permutation(2000)[:1000]
        cold = wasserstein(x[rows], y[rows])
        known = tuple(each[rows] for each in whole.potentials)
        points = torch.from_numpy(x[rows]), torch.from_numpy(y[rows])
        for potentials in (tuple(rng.normal(size=(2, 1000))), (known[0] + 1e6, known[1]), known):
            warm = Exact().solve(*points, potentials=potentials)
            assert warm.status is Status.CERTIFIED
            assert warm.distance == pytest.approx(cold.distance, rel=1e-12)
        assert warm.stats["rounds"] < cold.stats["rounds"]
        assert warm.stats["passes"] < cold.stats["passes"]
        doubled = torch.from_numpy(np.repeat(x[:20], 20, 0))  # equal points are merged
        start, few = (np.zeros(400), np.zeros(300)), torch.from_numpy(y[:300])
        expected = wasserstein(doubled, few).distance
        assert Exact().solve(doubled, few, potentials=start).distance == expected
