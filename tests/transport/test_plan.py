"""The plan of a result, its images, proof and file; distances between many clouds."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import squared
from scipy.sparse import csr_array
from test_sinkhorn import Largest
from test_transport import SOLVERS, clouds, every_solver

import wgeo
from wgeo.errors import ArgumentError, ConvergenceError, FeatureError, RecordError
from wgeo.storage.ownership import owned
from wgeo.transport import Exact, Gaussian, Sinkhorn, Sliced, TransportResult, tiles, wasserstein

few = settings(max_examples=10)


def weights(r, n):
    """Weights of n points, some of them 0."""
    a = r.random(n) * r.integers(0, 3, n)
    a[0] += 0.1
    return a / a.sum()


class TestPlan:
    def test_a_permutation(self, rng):
        x, y = rng.standard_normal((6, 3)), rng.standard_normal((6, 3))
        result = wasserstein(x, y)
        assert result.coupling.shape == (6,)
        assert isinstance(result.plan, csr_array)
        assert result.plan.dtype == np.float64
        dense = np.zeros((6, 6))
        dense[np.arange(6), result.coupling] = 1 / 6
        assert result.plan.toarray() == pytest.approx(dense, abs=0)
        assert np.array_equal(result.push(y), y[result.coupling])
        points, masses = result.interpolate(x, torch.from_numpy(y), 0.25)
        assert points == pytest.approx(0.75 * x + 0.25 * y[result.coupling], abs=1e-15)
        assert masses == pytest.approx(np.full(6, 1 / 6), abs=0)

    @every_solver
    def test_weights_on_a_line(self, solver):
        x, y = np.array([0.0, 10.0]), np.array([0.0, 4.0, 12.0])
        result = wasserstein(x, y, solver=solver, b=[1, 1, 2])
        if solver.name == "gaussian":
            assert result.plan.toarray() == pytest.approx(np.array([[1, 1, 2]] * 2) / 8)
            return
        if solver.name == "sinkhorn":
            result = wasserstein(x, y, solver=Sinkhorn(epsilon=0.01), b=[1, 1, 2])
        assert result.plan.toarray() == pytest.approx(np.array([[1, 1, 0], [0, 0, 2]]) / 4)
        assert result.push(y).ravel() == pytest.approx([2, 12])
        points, masses = result.interpolate(x, y, 0.5)
        assert points.ravel() == pytest.approx([0, 2, 11])
        assert masses == pytest.approx([0.25, 0.25, 0.5])

    @every_solver
    @few
    @given(pair=clouds(), seed=st.integers(0, 2**31))
    def test_every_solver_returns_a_feasible_plan_that_verifies(self, solver, pair, seed):
        x, y = pair
        r = np.random.default_rng(seed)
        a, b = (weights(r, len(z)) if r.integers(2) else None for z in pair)
        result = wasserstein(x, y, solver=solver, a=a, b=b)
        plan = result.plan.toarray()
        assert plan.min() >= 0
        want = [np.full(len(z), 1 / len(z)) if w is None else w for z, w in ((x, a), (y, b))]
        assert plan.sum(1) == pytest.approx(want[0], abs=1e-13)
        assert plan.sum(0) == pytest.approx(want[1], abs=1e-13)
        assert (plan.sum(1)[want[0] == 0] == 0).all()
        cost, scale = (plan * squared(x, y)).sum(), abs(x).max() ** 2 + abs(y).max() ** 2
        assert result.upper**2 == pytest.approx(cost, rel=1e-9, abs=1e-13 * scale)
        if solver.name != "gaussian":
            assert result.cost == pytest.approx(cost, rel=1e-9, abs=1e-13 * scale)
        checked = result.verify(x, y)
        assert checked.valid, checked
        assert checked.upper == pytest.approx(result.upper, rel=1e-6, abs=1e-6 * scale**0.5)
        if checked.lower is not None:
            assert checked.lower <= checked.upper

    @pytest.mark.parametrize(("n", "m"), [(12, 12), (15, 9)])
    def test_agrees_with_pot(self, rng, n, m):
        x, y = rng.standard_normal((n, 3)), rng.standard_normal((m, 3)) + 1
        a, b = rng.dirichlet(np.ones(n)), rng.dirichlet(np.ones(m))
        result = wasserstein(x, y, a=a, b=b)
        plan = ot.emd(a, b, squared(x, y))
        assert result.cost == pytest.approx((plan * squared(x, y)).sum(), rel=1e-9)
        assert result.plan.toarray() == pytest.approx(plan, abs=1e-9)  # it is unique
        want = ot.da.EMDTransport().fit(Xs=x, Xt=y)
        pushed = wasserstein(x, y).push(y)
        assert pushed == pytest.approx(want.transform(Xs=x), abs=1e-9)

    def test_the_gradient_of_a_convex_function_is_pushed_to(self, rng):
        """x -> x + W^T relu(W x), also with weights and points in another order."""
        x, turn = rng.standard_normal((40, 5)), rng.standard_normal((7, 5))
        image = x + np.maximum(x @ turn.T, 0) @ turn
        order, a = rng.permutation(40), weights(rng, 40)
        assert wasserstein(x, image[order]).push(image[order]) == pytest.approx(image, abs=1e-12)
        weighted = wasserstein(x, image[order], a=a, b=a[order])
        pushed = weighted.push(image[order])
        assert pushed[a > 0] == pytest.approx(image[a > 0], abs=1e-9)
        assert np.isnan(pushed[a == 0]).all()
        sinkhorn = wasserstein(x, image[order], a=a, b=a[order], solver=Sinkhorn())
        assert abs(sinkhorn.push(image[order]) - image)[a > 0].mean() < 0.1

    @settings(max_examples=20)
    @given(pair=clouds(), t=st.floats(0, 1), seed=st.integers(0, 2**31), weighted=st.booleans())
    def test_interpolation_is_a_geodesic(self, pair, t, seed, weighted):
        """W2(x, mu_t) = t W2 and W2(mu_t, y) = (1 - t) W2 (McCann)."""
        x, y = pair
        r = np.random.default_rng(seed)
        a, b = (weights(r, len(z)) if weighted else None for z in pair)
        result = wasserstein(x, y, a=a, b=b)
        points, masses = result.interpolate(x, y, t)
        assert masses.sum() == pytest.approx(1, abs=1e-12)
        tiny = 1e-7 * max(abs(x).max(), abs(y).max())
        first, last = (wasserstein(x, points, a=a, b=masses), wasserstein(y, points, a=b, b=masses))
        assert first.distance == pytest.approx(t * result.distance, rel=1e-6, abs=tiny)
        assert last.distance == pytest.approx((1 - t) * result.distance, rel=1e-6, abs=tiny)

    def test_interpolation_of_gaussians(self, rng):
        """Of an affine map: covariances are those of ((1 - t) I + t A) x (McCann 1997)."""
        x, root = rng.standard_normal((50, 4)), rng.standard_normal((4, 4))
        A = root @ root.T
        result = wasserstein(x, x @ A + 2, solver=Gaussian())
        points, _ = result.interpolate(x, x @ A + 2, 0.3)
        part = wasserstein(x, points, solver=Gaussian())
        assert part.distance == pytest.approx(0.3 * result.distance, rel=1e-9)

    @pytest.mark.parametrize("solver", [wgeo.Exact(), Sinkhorn(epsilon=3e-3, iterations=5000)])
    def test_potentials_are_the_gradient_in_the_weights(self, rng, solver):
        x, y = rng.standard_normal((9, 2)), rng.standard_normal((7, 2)) + 1
        a, b = rng.dirichlet(np.full(9, 5.0)), rng.dirichlet(np.full(7, 5.0))
        f, g = wasserstein(x, y, a=a, b=b, solver=solver).potentials
        da, db = rng.standard_normal(9), rng.standard_normal(7)
        da, db = 1e-5 * (da - da.mean()), 1e-5 * (db - db.mean())
        up, down = (wasserstein(x, y, a=a + s * da, b=b + s * db).cost for s in (1, -1))
        exact = 1e-6 if solver.name == "exact" else 0.05
        assert (up - down) / 2 == pytest.approx(f @ da + g @ db, rel=exact)

    def test_unusable_arguments_are_refused(self, rng):
        x, y = rng.standard_normal((5, 2)), rng.standard_normal((4, 2))
        result = wasserstein(x, y)
        with pytest.raises(
            ArgumentError, match="y has 5 rows, but the clouds of this result have 5 and 4"
        ):
            result.push(x)
        for t in (-0.1, 1.1, np.nan):
            with pytest.raises(ArgumentError, match="t must be between 0 and 1"):
                result.interpolate(x, y, t)
        with pytest.raises(ArgumentError, match="2 features and y has 1"):
            result.interpolate(x, y[:, :1], 0.5)
        with pytest.raises(ArgumentError, match="x and y have 4 and 5 rows"):
            result.verify(y, x)
        bare = TransportResult(1.0, 1.0, 1.0, result.status, "mine", 0.0)
        with pytest.raises(ArgumentError, match="'mine' has no plan: its solver returned no"):
            bare.push(y)


class TestVerify:
    @pytest.fixture
    def pair(self, rng):
        return rng.standard_normal((30, 4)), rng.standard_normal((25, 4)) + 5

    @pytest.mark.parametrize(
        ("change", "fault"),
        [
            (lambda r: {"coupling": r.plan * 1.01}, "marginals are off by 0.02"),
            (lambda r: {"coupling": r.plan[::-1]}, "marginals|proves W2 <="),
            (
                lambda r: {
                    "coupling": r.plan + csr_array(([-0.1, 0.1], ([0, 1], [0, 0])), r.plan.shape)
                },
                "negative mass",
            ),
            (
                lambda r: {"potentials": (r.potentials[0] + 0.1, r.potentials[1])},
                "exceed a cost by 0.1",
            ),
            (lambda r: {"potentials": (r.potentials[0] - 1, r.potentials[1])}, "prove W2 >="),
            (
                lambda r: {
                    "lower": r.lower * 1.001,
                    "cost": (r.lower * 1.001) ** 2,
                    "upper": r.upper * 1.001,
                },
                "prove W2 >=",
            ),
            (
                lambda r: {"upper": r.upper * 0.999, "cost": (r.upper * 0.999) ** 2, "lower": 0.0},
                "proves W2 <=",
            ),
            (lambda r: {"cost": r.cost * 1.1}, "is outside"),
            (lambda r: {"weights": (np.arange(30) / 435, np.full(25, 1 / 25))}, "marginals"),
        ],
    )
    def test_a_false_proof_is_refused(self, pair, change, fault):
        x, y = pair
        result = wasserstein(x, y)
        assert result.verify(x, y).valid
        checked = replace(result, **change(result)).verify(x, y)
        assert not checked.valid
        assert any(re.search(fault, text) for text in checked.faults), checked.faults
        truth = result.distance  # the interval that is left is true all the same
        if "weights" not in change(result):
            assert checked.lower <= truth * (1 + 1e-12)
            assert truth <= checked.upper * (1 + 1e-12) or "negative mass" in str(checked.faults)

    def test_a_plan_of_other_clouds_is_refused(self, pair):
        x, y = pair
        assert not wasserstein(x, y).verify(x, y + 0.01).valid
        result = wasserstein(x, x + 0.1)
        assert not replace(result, coupling=np.roll(np.arange(30), 1)).verify(x, x + 0.1).valid

    @pytest.mark.parametrize("apart", [1e-9, 1.0, 1e4])
    def test_near_and_far_clouds_keep_their_digits(self, rng, apart):
        x = rng.standard_normal((300, 20)).astype(np.float32)
        y = x + apart * rng.standard_normal((300, 20))
        result = wasserstein(x, y)
        checked = result.verify(x, y)
        assert checked.valid
        assert checked.lower == pytest.approx(result.lower, rel=1e-4)
        assert checked.upper == pytest.approx(result.upper, rel=1e-9)

    def test_ends_without_proof_are_not_checked(self, pair):
        checked = wasserstein(*pair, solver=Sliced()).verify(*pair)
        assert checked.lower is None
        assert "lower not checked" in repr(checked)
        assert checked.to_dict()["valid"]

    def test_a_result_without_proof_is_not_valid(self, rng, monkeypatch):
        x, y = rng.standard_normal((30, 2)), rng.standard_normal((25, 2))
        monkeypatch.setattr("wgeo.transport.plans.MAX_ENTRIES", 30 * 25 - 1)
        result = wasserstein(x, y, solver=Gaussian())
        assert (result.coupling, result.potentials) == (None, None)
        checked = result.verify(x, y)
        assert not checked.valid
        assert "neither a plan nor" in repr(checked)

    def test_no_dense_matrix_is_allocated(self, rng, monkeypatch):
        x, y = rng.standard_normal((300, 3)), rng.standard_normal((250, 3))
        result = wasserstein(x, y)
        monkeypatch.setitem(tiles.TILE_ENTRIES, "cpu", 1 << 12)
        with Largest() as seen:
            assert result.verify(x, y).valid
        assert seen.entries <= 64 * 320


class TestFile:
    @every_solver
    @pytest.mark.parametrize("kind", ["paired", "weighted"])
    def test_round_trip(self, rng, solver, kind, tmp_path):
        x, y = rng.standard_normal((8, 2)), rng.standard_normal((8 + (kind == "weighted"), 2))
        a = weights(rng, 8) if kind == "weighted" else None
        result = wasserstein(x, y, solver=solver, a=a)
        result.save(tmp_path / "new" / "r.npz")
        again = TransportResult.load(str(tmp_path / "new" / "r.npz"))
        assert again.to_dict() == json.loads(json.dumps(result.to_dict()))
        assert again.status is result.status
        assert type(again.coupling) is (
            np.ndarray
            if kind == "paired" and isinstance(result.coupling, np.ndarray)
            else csr_array
        )
        assert (again.plan != result.plan).nnz == 0
        for name in ("potentials", "weights"):
            ours, theirs = getattr(result, name), getattr(again, name)
            assert (ours is None) == (theirs is None)
            if ours is not None:
                assert all(map(np.array_equal, ours, theirs))
        assert again.verify(x, y).to_dict() == result.verify(x, y).to_dict()

    def test_only_results_of_wgeo_are_replaced(self, rng, tmp_path):
        result = wasserstein(rng.standard_normal((5, 2)), rng.standard_normal((5, 2)))
        path = tmp_path / "r.npz"
        path.write_bytes(b"mine")
        with pytest.raises(RecordError, match="wgeo did not write it"):
            result.save(path)
        assert path.read_bytes() == b"mine"
        path.unlink()
        result.save(path)
        replace(result, seconds=2.0).save(path)
        assert TransportResult.load(path).seconds == 2

    @pytest.fixture
    def parts(self, rng, tmp_path):
        path = tmp_path / "r.npz"
        wasserstein(rng.standard_normal((8, 2)), rng.standard_normal((6, 2)), a=range(8)).save(path)
        with np.load(path) as archive:
            return path, dict(archive)

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"about": np.frombuffer(b'{"version": 1}', np.uint8)}, "cost is damaged"),
            ({"about": np.frombuffer(b"[1", np.uint8)}, "not a result"),
            ({"about": np.array([{}], dtype=object)}, "pickle|Object"),
            ({"plan_indices": lambda v: v + 1}, "indices|index|column"),
            ({"plan_indptr": lambda v: v[::-1]}, "ind"),
            ({"plan_shape": lambda v: v[::-1]}, "shape"),
            ({"plan_shape": lambda v: v * 0 - 1}, "shape"),
            ({"plan_data": lambda v: v * np.nan}, "NaN"),
            ({"f": lambda v: v[1:]}, "inconsistent sizes"),
            ({"f": lambda v: v.astype("U")}, "type"),
            ({"a": lambda v: v + 0.1}, "sum to 1"),
            ({"a": lambda v: -v}, "negative"),
            ({"b": None}, "b"),
            ({"permutation": np.array([0, 0])}, "permutation"),
            ({"permutation": np.arange(8)}, "inconsistent sizes"),
        ],
    )
    def test_damaged_files_are_refused(self, parts, change, reason):
        path, arrays = parts
        for name, value in change.items():
            arrays[name] = value(arrays[name]) if callable(value) else value
            if value is None:
                del arrays[name]
        np.savez(path, **arrays)
        with pytest.raises(RecordError, match=reason):
            TransportResult.load(path)

    def test_bytes_changed_at_random_are_read_or_refused(self, rng, tmp_path):
        path = tmp_path / "r.npz"
        replace(wasserstein(np.arange(4.0), np.arange(3.0)), seconds=0.0).save(path)
        sound = path.read_bytes()
        for _ in range(200):
            body = bytearray(sound)
            for place in rng.integers(0, len(body), rng.integers(1, 5)):
                body[place] = rng.integers(256)
            path.write_bytes(body[: rng.integers(len(body)) if rng.integers(4) == 0 else None])
            try:
                result = TransportResult.load(path)
            except RecordError:
                continue
            assert result.plan.shape == (4, 3)

    def test_other_files_are_refused(self, tmp_path):
        with pytest.raises(RecordError, match=r"No result at .*r.npz; write one"):
            TransportResult.load(tmp_path / "r.npz")
        for name, body in (("text", b"hello"), ("none", b"")):
            (tmp_path / name).write_bytes(body)
            with pytest.raises(RecordError, match="is not a result that wgeo wrote"):
                TransportResult.load(tmp_path / name)
        with pytest.raises(RecordError, match="not a regular file"):
            TransportResult.load(tmp_path)


class TestDistances:
    @settings(max_examples=8)
    @given(seed=st.integers(0, 2**31), solver=st.sampled_from(list(SOLVERS.values())))
    def test_it_is_a_metric_within_its_intervals(self, seed, solver):
        r = np.random.default_rng(seed)
        sizes = r.integers(1, 12, 4)
        found = wgeo.distances(
            [r.standard_normal((n, 2)) + r.normal() for n in sizes], solver=solver
        )
        assert found.symmetric
        for matrix in (found.distance, found.lower, found.upper):
            assert np.array_equal(matrix, matrix.T)
            assert (matrix.diagonal() == 0).all()
        assert found.certified.diagonal().all()
        assert (found.lower <= found.distance * (1 + 1e-12)).all()
        assert (found.distance <= found.upper * (1 + 1e-12)).all()
        through = (found.upper[:, :, None] + found.upper[None]).min(1)
        assert (found.lower <= through * (1 + 1e-9)).all()

    @pytest.mark.parametrize("form", ["list", "array", "tensor", "trajectory", "mapping"])
    def test_every_form_gives_the_distances_of_its_pairs(self, rng, form):
        stack = rng.standard_normal((3, 10, 2))
        traj = wgeo.Trajectory.from_arrays(list(stack), np.arange(10) % 2, ["a", "b", "c"])
        forms = {
            "list": list(stack),
            "array": stack,
            "tensor": torch.from_numpy(stack),
            "trajectory": traj,
            "mapping": dict(zip("abc", stack, strict=True)),
        }
        found = wgeo.distances(forms[form])
        names = ("0", "1", "2") if form in ("list", "array", "tensor") else ("a", "b", "c")
        assert found.names == found.other_names == names
        for i, j in ((0, 1), (0, 2), (1, 2)):
            want = wasserstein(stack[i], stack[j])
            assert found.distance[i, j] == pytest.approx(want.distance, rel=1e-12)
            assert found.lower[i, j] == pytest.approx(want.lower, rel=1e-12)
        table = found.to_pandas()
        assert list(table["target"]) == [names[1], names[2], names[2]]
        assert table["distance"][2] == found.distance[1, 2]
        json.dumps(found.to_dict())
        assert "3 of 3 pairs certified" in repr(found)

    def test_others(self, rng):
        clouds = [rng.standard_normal((n, 2)) for n in (4, 5)]
        found = wgeo.distances(clouds, {"far": clouds[0] + 100}, solver=Sliced(projections=4))
        assert found.distance.shape == (2, 1)
        assert found.distance[0, 0] == pytest.approx(np.sqrt(2) * 100, rel=1e-3)
        assert not found.symmetric
        assert len(found.to_pandas()) == 2
        assert "2 clouds and 1 other cloud;" in repr(found)
        assert wgeo.distances(clouds[:1]).distance.tolist() == [[0.0]]

    def test_each_pair_is_solved_once(self, rng):
        calls = []

        class Counting(Sliced):
            def solve(self, *args, **kwargs):
                calls.append(1)
                return super().solve(*args, **kwargs)

        wgeo.distances(rng.standard_normal((4, 6, 2)), solver=Counting(projections=2))
        assert len(calls) == 6

    def test_layers_of_several_networks(self, rng):
        labels = np.arange(10) % 2
        nets = {
            name: wgeo.Trajectory.from_arrays(list(rng.standard_normal((2, 10, 3))), labels)
            for name in "ab"
        }
        found = wgeo.distances(nets)
        (first, _), _ = (net.layers for net in nets.values())
        assert found.names == ("a: layer0", "a: layer1", "b: layer0", "b: layer1")
        want = wasserstein(first.features, nets["b"].layers[1].features).distance
        assert found.distance[0, 3] == pytest.approx(want, rel=1e-12)
        narrow = wgeo.Trajectory.from_arrays([rng.standard_normal((10, 2))] * 2, labels)
        with pytest.raises(FeatureError, match=r"layer 'layer0' of 'narrow' 2: W2 needs"):
            wgeo.distances({**nets, "narrow": narrow})

    def test_an_interrupted_call_continues(self, rng, tmp_path, monkeypatch):
        clouds, path = list(rng.standard_normal((4, 6, 2))), tmp_path / "w2" / "pairs.json"
        calls = []

        class Interrupted(Sliced):
            def solve(self, *args, **kwargs):
                calls.append(1)
                if len(calls) == stop:
                    raise KeyboardInterrupt
                return super().solve(*args, **kwargs)

        monkeypatch.setattr("wgeo.runtime.threads.torch.get_num_threads", lambda: 1)
        solver, stop = Interrupted(projections=2), 4
        with pytest.raises(KeyboardInterrupt):
            wgeo.distances(clouds, solver=solver, store=path)
        assert len(json.loads(path.read_text())["pairs"]) == 3
        found = wgeo.distances(clouds, solver=solver, store=path)
        assert len(calls) == 4 + 3
        want = wgeo.distances(clouds, solver=Sliced(projections=2))
        for name in ("distance", "lower", "upper", "certified"):
            assert np.array_equal(getattr(found, name), getattr(want, name))
        written = path.stat().st_mtime_ns
        wgeo.distances(clouds, solver=solver, store=path)
        assert path.stat().st_mtime_ns == written  # nothing is new
        # Only what has changed is measured again: a cloud, or the solver.
        clouds[0] = clouds[0] + 1
        wgeo.distances(clouds, solver=solver, store=path)
        assert len(calls) == 4 + 3 + 3
        wgeo.distances(clouds, solver=Interrupted(projections=3), store=path)
        assert len(calls) == 4 + 3 + 3 + 6
        wgeo.distances(clouds, clouds, solver=solver, store=path)
        assert len(calls) == 4 + 3 + 3 + 6 + 10  # the pairs in the other direction, and the same

    def test_a_store_is_written_while_pairs_are_solved(self, rng, tmp_path, monkeypatch):
        monkeypatch.setattr("wgeo.transport.matrix._SECONDS", 0.0)
        path, sizes = tmp_path / "pairs.json", []

        class Watching(Sliced):
            def solve(self, *args, **kwargs):
                sizes.append(len(json.loads(path.read_text())["pairs"]) if path.exists() else 0)
                return super().solve(*args, **kwargs)

        monkeypatch.setattr("wgeo.runtime.threads.torch.get_num_threads", lambda: 1)
        wgeo.distances(rng.standard_normal((3, 6, 2)), solver=Watching(projections=2), store=path)
        assert sizes == [0, 1, 2]

    @pytest.mark.parametrize("owner", ["stranger", "damaged"])
    def test_a_file_that_is_no_store_is_not_replaced(self, rng, tmp_path, owner):
        clouds, path = rng.standard_normal((3, 6, 2)), tmp_path / "pairs.json"
        if owner == "damaged":
            wgeo.distances(clouds, solver=Sliced(projections=2), store=path)
        for text in ("mine", "[]", '{"pairs": {"a": [1, 2, 1, true]}}', '{"pairs": 3}'):
            path.write_text(text)
            with pytest.raises(RecordError, match=r"pairs\.json"):
                wgeo.distances(clouds, solver=Sliced(projections=2), store=path)
            assert path.read_text() == text
        with pytest.raises(RecordError):
            wgeo.distances(clouds, solver=Sliced(projections=2), store=tmp_path)
        with owned(tmp_path) as folder:  # another kind of file that wgeo wrote
            folder.write({"analysis.json": '{"schema": 2}'})
        with pytest.raises(RecordError, match="does not contain distances"):
            wgeo.distances(clouds, store=tmp_path / "analysis.json")

    def test_a_store_needs_the_options_of_the_solver(self, rng, tmp_path):
        class Unknown:
            name = "unknown"

            def solve(self, x, y, a=None, b=None, coupling=None):
                return Exact().solve(x, y, a, b)

        clouds = rng.standard_normal((2, 6, 2))
        with pytest.raises(ArgumentError, match="__repr__"):
            wgeo.distances(clouds, solver=Unknown(), store=tmp_path / "pairs.json")
        assert wgeo.distances(clouds, solver=Unknown()).certified.all()

    def test_errors_name_the_cloud(self, rng):
        x, y = rng.standard_normal((4, 2)), rng.standard_normal((4, 3))
        with pytest.raises(FeatureError, match=r"clouds\[0\] has 2 features and clouds\[1\] 3"):
            wgeo.distances([x, y])
        with pytest.raises(FeatureError, match=r"others\[b\] holds NaN"):
            wgeo.distances([x], {"b": x * np.nan})
        for bad in (x, 3, "abc"):
            with pytest.raises((ArgumentError, FeatureError)):
                wgeo.distances(bad)
        with pytest.raises(ArgumentError, match="clouds is empty"):
            wgeo.distances([])
        stubborn = Sinkhorn(epsilon=1e-4, iterations=1)
        with pytest.raises(ConvergenceError, match=r"clouds\[0\] -> clouds\[1\] \(\(4, 2\)"):
            wgeo.distances([x, x[::-1] ** 2], solver=stubborn)
