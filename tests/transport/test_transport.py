"""The entry point of transport, properties of every solver, and transport along a network."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from functools import cached_property

import numpy as np
import ot
import patience
import pytest
import torch
from cases import ROTATED, rotated
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from references import squared
from scipy.optimize import linear_sum_assignment

import wgeo
from wgeo.errors import ArgumentError, ConvergenceError, FeatureError
from wgeo.runtime.memory import memory_limit
from wgeo.runtime.threads import map_over_cores, raise_if_interrupted, thread_map
from wgeo.transport import Gaussian, Sinkhorn, Sliced, Status, chain, wasserstein
from wgeo.transport.entry import on_one_device
from wgeo.transport.point_clouds import WeightedPoints, shared_statistics

SOLVERS = {
    "exact": wgeo.Exact(),
    "sinkhorn": Sinkhorn(on_failure="return", iterations=40, tolerance=0.01),
    "sinkhorn, warm": Sinkhorn(epsilon=0.3, on_failure="return", iterations=40),
    "sliced": Sliced(projections=16),
    "gaussian": Gaussian(),
}
few = settings(max_examples=15)
every_solver = pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS.keys())


def true_cost(x, y, a=None, b=None) -> float:
    """W2^2 by SciPy's assignment solver, or by POT's network simplex if there are weights."""
    cost = squared(x, y)
    if a is None and b is None and len(x) == len(y):
        rows, columns = linear_sum_assignment(cost)
        return float(cost[rows, columns].mean())
    scale = cost.max() or 1.0  # POT's simplex has absolute tolerances
    if a is None and b is None:  # whole numbers, whose sums are exact
        n, m = cost.shape
        masses = np.full(n, float(m)), np.full(m, float(n))
        return scale * float(ot.emd2(*masses, cost / scale)) / (n * m)
    a = np.full(len(x), 1.0) if a is None else a
    b = np.full(len(y), 1.0) if b is None else b
    return scale * float(ot.emd2(a / a.sum(), b / b.sum(), cost / scale))


@st.composite
def clouds(draw, sizes=(1, 12), same_size=False):
    """Two clouds: generic, clustered, with ties, collapsed onto few points, heavy-tailed, far."""
    n = draw(st.integers(*sizes))
    m = n if same_size else draw(st.integers(*sizes))
    d = draw(st.integers(1, 5))
    r = np.random.default_rng(draw(st.integers(0, 2**31)))
    kind = draw(
        st.sampled_from(["normal", "near", "clusters", "grid", "collapsed", "heavy", "far"])
    )
    x, y = r.standard_normal((n, d)), r.standard_normal((m, d))
    if kind == "near":
        y = x[np.arange(m) % n] + 0.01 * y
    elif kind == "clusters":
        x, y = x + 10 * r.integers(0, 3, (n, 1)), y + 10 * r.integers(0, 3, (m, 1))
    elif kind == "grid":
        x, y = r.integers(0, 3, (n, d)).astype(float), r.integers(0, 3, (m, d)).astype(float)
    elif kind == "collapsed":
        x = x[r.integers(0, min(n, 2), n)]
        y = x[r.integers(0, n, m)] + 1e-3 * y
    elif kind == "heavy":
        x, y = r.standard_cauchy((n, d)), r.standard_cauchy((m, d))
    elif kind == "far":
        y = y + 1e4
    scale = draw(st.sampled_from([1.0, 1e-6, 1e6]))
    return scale * x, scale * y


def holds(result, truth: float, rounding: float = 0.0) -> None:
    """The interval contains W2 (truth is squared), but for the reference's own rounding."""
    assert result.lower <= np.sqrt(truth + rounding) * (1 + 1e-12) + 1e-300
    assert np.sqrt(max(truth - rounding, 0)) <= result.upper * (1 + 1e-12) + 1e-300
    assert 0 <= result.lower <= result.distance * (1 + 1e-12)
    assert result.distance <= result.upper * (1 + 1e-12)
    assert isinstance(result.status, Status)
    result.to_dict()


class TestEverySolver:
    @every_solver
    @few
    @given(pair=clouds())
    def test_interval_contains_w2(self, solver, pair):
        x, y = pair
        rounding = 1e-15 * squared(x, y).max() if len(x) != len(y) else 0.0  # of POT's simplex
        holds(wasserstein(x, y, solver=solver), true_cost(x, y), rounding)

    @every_solver
    @few
    @given(pair=clouds(same_size=True))
    def test_cost_is_at_most_that_of_the_networks_own_pairing(self, solver, pair):
        x, y = pair
        paired = np.sqrt(((x - y) ** 2).sum(1).mean())
        result = wasserstein(x, y, solver=solver)
        assert result.upper <= paired * (1 + 1e-12)
        holds(result, true_cost(x, y))

    @every_solver
    @few
    @given(pair=clouds(), seed=st.integers(0, 99))
    def test_weights_act_as_repeated_points(self, solver, pair, seed):
        x, y = pair
        times = np.random.default_rng(seed).integers(0, 4, len(x))
        times[0] += 1
        result = wasserstein(x, y, solver=solver, a=times)
        truth = true_cost(np.repeat(x, times, axis=0), y, np.ones(times.sum()), None)
        scale = np.abs(x).max() ** 2 + np.abs(y).max() ** 2  # POT's simplex rounds relative to it
        assert result.lower**2 <= truth + 1e-11 * scale
        assert truth <= result.upper**2 + 1e-11 * scale

    @every_solver
    @few
    @given(pair=clouds())
    def test_potentials_are_feasible_and_prove_the_lower_end(self, solver, pair):
        x, y = pair
        result = wasserstein(x, y, solver=solver)
        if result.potentials is None:
            return
        f, g = result.potentials
        cost = ((x[:, None] - y[None]) ** 2).sum(-1)
        scale = np.abs(x).max() ** 2 + np.abs(y).max() ** 2
        assert (f[:, None] + g[None] <= cost + 1e-12 * scale).all()
        assert f.mean() + g.mean() == pytest.approx(result.lower**2, rel=1e-9, abs=1e-10 * scale)

    @every_solver
    @few
    @given(pair=clouds(same_size=True))
    def test_permutation_has_the_stated_cost(self, solver, pair):
        x, y = pair
        result = wasserstein(x, y, solver=solver)
        if isinstance(result.coupling, np.ndarray) and solver.name != "gaussian":
            assert sorted(result.coupling) == list(range(len(x)))
            moved = ((x - y[result.coupling]) ** 2).sum(1).mean()
            assert result.cost == pytest.approx(moved, rel=1e-12)

    @every_solver
    def test_identical_clouds_are_at_distance_zero(self, solver, rng):
        x = rng.standard_normal((20, 3))
        result = wasserstein(x, x, solver=solver)
        assert result.upper == 0
        assert result.lower == 0
        assert result.status is Status.CERTIFIED

    @every_solver
    @pytest.mark.parametrize("n", [1, 2, 30])
    def test_a_translation_is_known_exactly(self, solver, rng, n):
        x = rng.standard_normal((n, 3))
        result = wasserstein(x, x + np.array([3.0, 0, 4.0]), solver=solver)
        assert result.distance == pytest.approx(5, rel=1e-9)
        assert result.lower == pytest.approx(5, rel=1e-9)

    @every_solver
    def test_one_point_to_many(self, solver, rng):
        y = rng.standard_normal((15, 4))
        result = wasserstein(np.zeros((1, 4)), y, solver=solver)
        assert result.upper**2 == pytest.approx((y**2).sum(1).mean(), rel=1e-9)
        holds(result, float((y**2).sum(1).mean()))

    @every_solver
    def test_all_points_equal(self, solver):
        result = wasserstein(np.ones((7, 2)), np.zeros((5, 2)), solver=solver)
        assert result.distance == pytest.approx(np.sqrt(2), rel=1e-9)
        assert result.lower == pytest.approx(np.sqrt(2), rel=1e-9)

    @every_solver
    @few
    @given(pair=clouds(sizes=(2, 10)), seed=st.integers(0, 99))
    def test_invariant_under_rigid_motions_and_order(self, solver, pair, seed):
        x, y = pair
        r = np.random.default_rng(seed)
        turn = np.linalg.qr(r.standard_normal((x.shape[1], x.shape[1])))[0]
        move = r.standard_normal(x.shape[1]) * np.abs(x).max()
        order = r.permutation(len(x))
        other = wasserstein((x @ turn + move)[order], y @ turn + move, solver=solver)
        truth, scale = true_cost(x, y), np.abs(x).max() ** 2 + np.abs(y).max() ** 2
        assert other.lower**2 <= truth + 1e-11 * scale
        assert truth <= other.upper**2 + 1e-11 * scale

    @every_solver
    @settings(max_examples=8)
    @given(pair=clouds(sizes=(2, 10)))
    def test_scaling_the_clouds_scales_the_answer(self, solver, pair):
        x, y = pair
        one, many = wasserstein(x, y, solver=solver), wasserstein(8 * x, 8 * y, solver=solver)
        assert many.distance == pytest.approx(8 * one.distance, rel=1e-6)


class TestExactIsAMetric:
    @few
    @given(pair=clouds(same_size=True), seed=st.integers(0, 99))
    def test_symmetry_and_triangle(self, pair, seed):
        x, y = pair
        z = np.random.default_rng(seed).standard_normal((5, x.shape[1])) * np.abs(x).max()
        xy, yx = wasserstein(x, y).distance, wasserstein(y, x).distance
        assert xy == pytest.approx(yx, rel=1e-9, abs=1e-12 * np.abs(x).max())
        through = wasserstein(x, z).distance + wasserstein(z, y).distance
        assert xy <= through * (1 + 1e-9)


class TestKnownAnswers:
    """theory.md's table: measures whose W2^2 is known."""

    @pytest.mark.parametrize(("points", "degrees", "cost"), ROTATED)
    def test_rotated_points(self, points, degrees, cost):
        result = wasserstein(points, rotated(points, degrees))
        assert result.cost == pytest.approx(cost, abs=1e-9)

    @pytest.mark.parametrize(
        ("x", "y", "cost"),
        [
            ([0, 1, 2], [0, -1, -2], 4.0),
            ([0, 1, 3], [4, 1, 2], 1.0),
            ([-1, 1], [2, -1], 0.5),
        ],
    )
    @pytest.mark.parametrize("solver", [wgeo.Exact(), Sliced()], ids=["exact", "sliced"])
    def test_points_on_a_line(self, solver, x, y, cost):
        result = wasserstein(np.array(x), np.array(y), solver=solver)
        assert result.cost == pytest.approx(cost, rel=1e-12)
        assert result.status is Status.CERTIFIED

    def test_an_affine_map_with_symmetric_positive_matrix(self):
        x = np.array([[0.0, 0], [1, 0], [0, 1], [1, 1], [2, 1]])
        y = x @ np.array([[2, 0.5], [0.5, 1]]) + np.array([1, -1])
        result = wasserstein(x, y)
        assert result.cost == pytest.approx(5.65, rel=1e-12)
        assert list(result.coupling) == [0, 1, 2, 3, 4]


class TestDoor:
    def test_different_widths(self):
        with pytest.raises(
            FeatureError,
            match=r"x has 3 features and y has 5.*traj.segments.*traj.embedded\('pad'\)",
        ):
            wasserstein(np.zeros((4, 3)), np.zeros((4, 5)))

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_non_finite_values_are_refused(self, bad):
        y = np.zeros((4, 3))
        y[2, 1] = bad
        with pytest.raises(FeatureError, match=r"y holds NaN or infinity.*sample 2\.$"):
            wasserstein(np.zeros((4, 3)), y)

    @pytest.mark.parametrize(
        ("weights", "message"),
        [
            ([1, 1], "3 numbers"),
            ([1, -1, 1], "not negative"),
            ([1, np.nan, 1], "finite"),
            ([0, 0, 0], "sum to 0"),
            ([[1, 1, 1]], "3 numbers"),
            (["a", "b", "c"], "3 numbers"),
        ],
    )
    def test_weights(self, weights, message):
        with pytest.raises(ArgumentError, match=message):
            wasserstein(np.eye(3), np.eye(3), a=weights)

    def test_weights_are_normalised_and_uniform_ones_dropped(self):
        x = np.arange(6.0).reshape(3, 2)
        plain = wasserstein(x, x + 1)
        assert wasserstein(x, x + 1, a=[7, 7, 7]).coupling.tolist() == plain.coupling.tolist()
        heavy = wasserstein(x, x + 1, a=[1e300, 1e300, 5e299], b=[2, 2, 1])
        assert heavy.distance == pytest.approx(plain.distance, rel=1e-9)

    @pytest.mark.parametrize(
        ("coupling", "message"),
        [([0, 0, 1], "permutation"), ([0, 1], "3 row numbers"), ([0.0, 1.0, 2.0], "row numbers")],
    )
    def test_coupling(self, coupling, message):
        with pytest.raises(ArgumentError, match=message):
            wasserstein(np.eye(3), np.eye(3), coupling=coupling)

    def test_coupling_needs_clouds_of_one_size(self):
        with pytest.raises(ArgumentError, match="equal size"):
            wasserstein(np.zeros((3, 2)), np.zeros((4, 2)), coupling=[0, 1, 2])

    @every_solver
    def test_good_coupling_tightens_the_interval(self, solver, rng):
        x = rng.standard_normal((40, 6))
        order = rng.permutation(40)
        y = (1.1 * x)[order]
        result = wasserstein(x, y, solver=solver, coupling=np.argsort(order))
        assert result.upper == pytest.approx(0.1 * np.sqrt((x**2).sum(1).mean()), rel=1e-9)

    def test_solver_must_be_an_object(self):
        with pytest.raises(ArgumentError, match="solver must be"):
            wasserstein(np.eye(2), np.eye(2), solver=Sliced)  # the class, not an object

    def test_coordinates_out_of_range_are_refused(self):
        for scale in (1e130, 1e-130):
            with pytest.raises(FeatureError, match="only if it is between 1e-120 and 1e\\+120"):
                wasserstein(scale * np.eye(2), scale * np.eye(2))
        for scale in (0.9e120, 1.1e-120):
            x, y = scale * np.eye(2), scale * np.zeros((2, 2))
            assert wasserstein(x, y).distance == pytest.approx(scale, rel=1e-9)

    @every_solver
    def test_any_array_type_is_accepted(self, solver, rng):
        x, y = rng.standard_normal((9, 4)), rng.standard_normal((9, 4))
        want = wasserstein(x, y, solver=solver).distance
        for make in (
            torch.from_numpy,
            np.asfortranarray,
            lambda z: np.repeat(z, 2, axis=0)[::2],
            lambda z: torch.from_numpy(z).requires_grad_(),
        ):
            assert wasserstein(make(x), make(y), solver=solver).distance == pytest.approx(want)
        half = wasserstein(x.astype(np.float16), torch.from_numpy(y).bfloat16(), solver=solver)
        assert half.distance == pytest.approx(want, rel=0.05)

    @every_solver
    def test_many_more_features_than_samples(self, solver, rng):
        x, y = rng.standard_normal((2, 8, 100_000)).astype(np.float32)
        holds(wasserstein(x, y, solver=solver), true_cost(x.astype(float), y.astype(float)))

    @few
    @given(x=arrays(np.float64, (6,), elements=st.floats(-1e3, 1e3)))
    def test_a_list_is_points_on_a_line(self, x):
        y = x[::-1].copy()
        assert wasserstein(x, y).distance == pytest.approx(0, abs=1e-9)


def test_clouds_meet_on_an_accelerator():
    """The meta device stands in for a GPU."""
    cpu, away = torch.zeros(2, 1), torch.zeros(2, 1, device="meta")
    assert [p.device.type for p in on_one_device(cpu, cpu)] == ["cpu", "cpu"]
    for pair in ((cpu, away), (away, cpu)):
        assert [p.device.type for p in on_one_device(*pair)] == ["meta", "meta"]


def a_network(rng, widths=(3, 3, 3, 2, 2), n=20):
    arrays = [rng.standard_normal((n, w)) for w in widths]
    return wgeo.Trajectory.from_arrays(arrays, labels=np.arange(n) % 2)


class TestChain:
    def test_every_block_and_every_segment_is_solved(self, rng):
        traj = a_network(rng)
        found = chain(traj)
        assert len(found.blocks) == len(traj.blocks) == 3
        assert len(found.ends) == len(traj.segments) == 2
        for result, block in zip(found.blocks, traj.blocks, strict=True):
            assert result.cost == pytest.approx(true_cost(block.x, block.y), rel=1e-9)
        for result, segment in zip(found.ends, traj.segments, strict=True):
            truth = true_cost(segment.arrays[0], segment.arrays[-1])
            assert result.cost == pytest.approx(truth, rel=1e-9)

    def test_a_pair_is_solved_once(self, rng):
        calls = []

        class Counting(Sliced):
            def solve(self, *args, **kwargs):
                calls.append(1)
                return super().solve(*args, **kwargs)

        found = chain(a_network(rng), Counting(projections=4))
        assert len(calls) == 4  # three blocks and one end: the other segment is one block
        assert found.blocks[2] is found.ends[1]

    def test_sum_of_w2_is_at_least_end_to_end_w2(self, rng):
        found = chain(a_network(rng, widths=(3,) * 6))
        assert sum(r.distance for r in found.blocks) >= found.ends[0].distance * (1 - 1e-9)

    def test_errors_name_the_layers(self, rng):
        stubborn = Sinkhorn(epsilon=1e-4, iterations=1)
        with pytest.raises(ConvergenceError, match=r"layer. -> layer. \(\(20, 3\) to \(20, 3\)\)"):
            chain(a_network(rng), stubborn)

    def test_to_dict_has_plain_values(self, rng):
        import json

        json.dumps(chain(a_network(rng), Sinkhorn(on_failure="return")).to_dict())


class TestThreads:
    @pytest.fixture(autouse=True)
    def _three_threads(self):
        before = torch.get_num_threads()
        torch.set_num_threads(3)
        yield
        assert torch.get_num_threads() == 3
        torch.set_num_threads(before)

    def test_order_is_kept_and_torch_threads_are_divided(self):
        found = thread_map(lambda i: (i, torch.get_num_threads()), list(range(20)), "")
        assert found == [(i, 1) for i in range(20)]

    def test_functions_are_called_on_all_cores_that_memory_allows(self):
        together = threading.Barrier(3)
        works = [lambda i=i: (together.wait(60), i)[1] for i in range(6)]
        assert map_over_cores(works, "", 1, 0) == list(range(6))  # three at a time
        running, most = [], []

        def work():
            running.append(0)
            most.append(len(running))
            time.sleep(0.01)
            running.pop()

        with memory_limit("2GiB"):
            map_over_cores([work] * 6, "", 2**20, 2**31)
        assert set(most) == {1}

    def test_the_first_error_stops_the_rest(self):
        done = []

        def work(i):
            if i == 2:
                raise ArgumentError("no")
            done.append(i)

        with pytest.raises(ArgumentError, match="no"):
            thread_map(work, list(range(10_000)), "")
        assert len(done) < 10_000

    def test_after_an_error_an_item_ends_unless_it_asks_whether_it_is_needed(self):
        started, release, last = threading.Barrier(3), threading.Event(), threading.Barrier(3)
        ended = []

        def work(what):
            try:
                started.wait(60)
                if what == "fail":
                    raise ArgumentError("no")
                release.wait(60)
                if what == "asks":
                    raise_if_interrupted()
                ended.append(what)
            finally:
                if what != "fail":
                    last.wait(60)

        with pytest.raises(ArgumentError, match="no"):
            thread_map(work, ["fail", "asks", "does not ask", *range(100)], "")
        release.set()  # the caller has not waited for the items
        last.wait(60)
        assert ended == ["does not ask"]

    def test_threads_do_not_affect_the_result(self, rng):
        traj = a_network(rng, widths=(3,) * 4, n=30)
        many = chain(traj, Sinkhorn())
        torch.set_num_threads(1)
        one = chain(traj, Sinkhorn())
        torch.set_num_threads(3)
        assert [r.cost for r in many.blocks] == [r.cost for r in one.blocks]


def test_ctrl_c_ends_a_chain():
    """Interrupted in the middle of work that would take minutes, Python exits by itself."""
    script = """
        import numpy as np, torch, wgeo
        torch.set_num_threads(2)
        layers = list(np.random.default_rng(0).standard_normal((4, 6000, 64)))
        traj = wgeo.Trajectory.from_arrays(layers, labels=np.zeros(6000, int))
        print("ready", flush=True)
        wgeo.transport.chain(traj, wgeo.Sinkhorn(epsilon=1e-3, iterations=10**6))
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    patience.until(child.pid, patience.spent(child.pid) + 1)
    assert child.poll() is None  # it is at work
    child.send_signal(signal.SIGINT)
    _, errors = patience.finished(child, work=120)
    assert "KeyboardInterrupt" in errors


class TestSharedStatistics:
    """What is computed of one cloud alone is computed once for all pairs."""

    def test_once_per_cloud_with_the_same_values(self, rng, monkeypatch):
        counts = Counter()
        norms = WeightedPoints.norms.func

        def counted(cloud):
            counts[cloud.points.data_ptr()] += 1
            return norms(cloud)

        attribute = cached_property(counted)
        attribute.__set_name__(WeightedPoints, "norms")
        monkeypatch.setattr(WeightedPoints, "norms", attribute)
        clouds = [rng.standard_normal((30 + k, 3)) for k in range(4)]
        monkeypatch.setattr("torch.get_num_threads", lambda: 1)  # two pairs may compute it at once
        for solver in SOLVERS.values():
            counts.clear()
            together = wgeo.distances(clouds, solver=solver)
            assert set(counts.values()) == {1}
            for i, x in enumerate(clouds):
                for j, y in enumerate(clouds[:i]):
                    alone = wasserstein(y, x, solver=solver)
                    assert (alone.lower, alone.upper, alone.distance) == (
                        together.lower[j, i],
                        together.upper[j, i],
                        together.distance[j, i],
                    )

    def test_nothing_is_kept_after_an_error(self, rng):
        x, y = rng.standard_normal((20, 2)), rng.standard_normal((20, 2))
        with pytest.raises(ConvergenceError) as error:
            wgeo.distances([x, y], solver=Sinkhorn(iterations=1))
        x += 100.0
        distance = wasserstein(x, y, solver=Gaussian()).distance
        assert distance == pytest.approx(np.hypot(100, 100), abs=5)
        del error  # its traceback keeps the clouds until here

    def test_nothing_is_kept_after_the_call(self, rng):
        clouds = [rng.standard_normal((20, 2)) for _ in range(3)]
        before = wgeo.distances(clouds)
        clouds[0] += 100.0  # in place: the same memory, with other points
        after = wgeo.distances(clouds)
        assert after.distance[0, 1] == pytest.approx(np.hypot(100, 100), abs=5)
        assert after.distance[1, 2] == before.distance[1, 2]
        assert wasserstein(clouds[0], clouds[1]).distance == after.distance[0, 1]

    def test_weights_read_only_arrays_and_slices_are_measured_as_given(self, rng):
        points = rng.standard_normal((40, 4))
        read_only = points.copy()
        read_only.setflags(write=False)
        clouds = [points, points[::2], points[:20], points[:, ::-1], read_only]
        together = wgeo.distances(clouds).distance
        expected = [[wasserstein(x.copy(), y.copy()).distance for y in clouds] for x in clouds]
        assert together == pytest.approx(np.array(expected), abs=1e-12)
        weights = np.arange(40.0)
        with shared_statistics([points]):
            weighted = wasserstein(points, points + 1, a=weights, b=weights)
            reference = WeightedPoints.of(torch.from_numpy(points), weights / weights.sum())
        assert reference.center.numpy() == pytest.approx(weights @ points / weights.sum())
        assert weighted.distance == pytest.approx(2, rel=1e-6)
