"""Device code on an emulated accelerator: the CPU's numbers, within budgets of what a GPU is asked.

`test_accelerator.py` runs these tests in a separate process. Or: ``pytest tests/emulated.py``.

A budget is what was measured plus a few, so that an operation added to a loop, and above all one
for which the host waits, is noticed without a GPU.
"""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from accelerator import DEVICE, counted
from records import differences

import wgeo
from wgeo.neural_collapse import CollapseStream
from wgeo.transport import annealing, tiles
from wgeo.transport.all_pairs import c_transform, find_violations, nearest
from wgeo.transport.arcs import Potentials
from wgeo.transport.geometry import Geometry
from wgeo.transport.kernel import Kernel
from wgeo.transport.point_clouds import PointClouds

BLOCKS = (tiles.TILE_ENTRIES, tiles.STORED_ENTRIES)


@pytest.fixture(autouse=True)
def _blocks_of_a_gpu(monkeypatch):
    for table in BLOCKS:
        monkeypatch.setitem(table, DEVICE, table["cuda"])


@pytest.fixture
def clouds(rng):
    x = rng.normal(size=(400, 8)).astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy(x + rng.normal(size=x.shape).astype(np.float32))


def same(there, here):
    """Compare two results, except for their times."""
    for each in fields(here):
        a, b = getattr(there, each.name), getattr(here, each.name)
        if each.name != "seconds":
            compare(a, b)


def compare(a, b):
    if isinstance(b, dict):
        assert a.keys() == b.keys()
        for key in b:
            compare(a[key], b[key])
    elif isinstance(b, tuple):
        for pair in zip(a, b, strict=True):
            compare(*pair)
    elif isinstance(b, np.ndarray | float):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
    elif hasattr(b, "toarray"):
        np.testing.assert_allclose(a.toarray(), b.toarray(), rtol=1e-9, atol=1e-12)
    else:
        assert a == b


class TestTheEmulation:
    def test_numbers_are_those_of_the_cpu_and_stay_on_the_device(self):
        x = torch.arange(6.0).reshape(2, 3)
        there = x.to(DEVICE)
        product = there @ there.T + 1
        assert product.device.type == DEVICE
        torch.testing.assert_close(product.cpu(), x @ x.T + 1)
        there[0].mul_(2)  # a view shares its memory
        assert there.cpu()[0].tolist() == [0, 2, 4]

    def test_it_refuses_what_a_gpu_refuses(self):
        there = torch.ones(3, device=DEVICE)
        with pytest.raises(RuntimeError, match="same device"):
            there + torch.ones(3)
        with pytest.raises(RuntimeError, match="not supported"):
            there.numpy()
        with pytest.raises(RuntimeError, match="same device"):
            torch.rand(3, device=DEVICE, generator=torch.Generator())
        assert (there + torch.tensor(1.0)).sum() == 6  # a number may come from the CPU

    def test_kernels_and_waits_are_counted_and_views_are_not(self):
        x = torch.ones(4, 3, device=DEVICE)
        with counted() as tally:
            x.T[1:].unsqueeze(0)
        assert tally.launches.total() == tally.waits.total() == 0
        with counted() as tally:
            x.add_(1).exp()
        assert (tally.launches.total(), tally.waits.total()) == (2, 0)
        for waiting in (
            lambda: float(x[0, 0]),
            lambda: x.cpu(),
            lambda: torch.ones(3).to(DEVICE),
            lambda: x.nonzero(),
            lambda: x[x > 0],
            lambda: torch.linalg.pinv(x),
        ):
            with counted() as tally:
                waiting()
            assert tally.waits.total() == 1


class TestSameNumbers:
    @pytest.mark.parametrize("kind", ["pairing", "weights"])
    @pytest.mark.parametrize("solver", [wgeo.Exact, wgeo.Sliced, wgeo.Gaussian])
    def test_of_solvers(self, clouds, rng, solver, kind):
        x, y = clouds
        weights = {"a": rng.dirichlet(np.ones(400))} if kind == "weights" else {}
        y = y[:300] if kind == "weights" else y
        there, here = (
            wgeo.wasserstein(x, y, solver=solver(device=device), **weights)
            for device in (DEVICE, "cpu")
        )
        same(there, here)

    @pytest.mark.parametrize(
        "settings",
        [{"epsilon": 0.3}, {"iterations": 8, "on_failure": "return"}],
        ids=["given", "auto"],
    )
    def test_of_sinkhorn(self, clouds, settings):
        x, y = clouds
        there, here = (
            wgeo.wasserstein(x, y[:300], solver=wgeo.Sinkhorn(**settings, device=device))
            for device in (DEVICE, "cpu")
        )
        same(there, here)

    @pytest.mark.parametrize("kind", ["wide", "copies", "line", "zero weights", "enormous"])
    def test_of_exact_in_its_other_ways(self, rng, kind):
        width = {"wide": 600, "line": 1}.get(kind, 5)
        x = rng.normal(size=(300, width))
        y, weights = x + rng.normal(size=x.shape), {}
        if kind == "copies":
            x, y = x[rng.integers(20, size=300)], y[rng.integers(20, size=300)]
        if kind == "zero weights":
            weights["b"] = np.where(np.arange(300) < 30, 0, rng.random(300))
        if kind == "enormous":
            x, y = x * 1e12, y * 1e12
        there, here = (
            wgeo.wasserstein(x, y, solver=wgeo.Exact(device=device), **weights)
            for device in (DEVICE, "cpu")
        )
        same(there, here)

    def test_of_columns_that_underflow(self, rng):
        x = rng.normal(size=(50, 3))
        y = np.concatenate([x[:-1] + 0.1 * rng.normal(size=(49, 3)), [[60.0, 0, 0]]])
        solver = {"epsilon": 0.05, "unit": "absolute", "iterations": 8, "on_failure": "return"}
        there, here = (
            wgeo.wasserstein(x, y, solver=wgeo.Sinkhorn(**solver, device=device))
            for device in (DEVICE, "cpu")
        )
        same(there, here)

    def test_of_what_a_result_offers(self, clouds):
        x, y = clouds
        there, here = (
            wgeo.wasserstein(*(z.to(device) for z in clouds), solver=wgeo.Exact(device=device))
            for device in (DEVICE, "cpu")
        )
        np.testing.assert_allclose(there.push(y.to(DEVICE)), here.push(y))
        args = (x.to(DEVICE), y.to(DEVICE))
        same(there.verify(*args), here.verify(x, y))
        for a, b in zip(there.interpolate(*args, 0.3), here.interpolate(x, y, 0.3), strict=True):
            np.testing.assert_allclose(a, b)

    def test_of_the_divergence_and_its_gradients(self, clouds):
        values, grads = [], []
        for device in (DEVICE, "cpu"):
            x, y = (z.to(device).requires_grad_() for z in clouds)
            value = wgeo.sinkhorn_divergence(x, y, epsilon=4.0)
            value.backward()
            assert value.device.type == x.grad.device.type == device
            values.append(value.item())
            grads.append([z.grad.cpu() for z in (x, y)])
        assert values[0] == pytest.approx(values[1], rel=1e-9)
        torch.testing.assert_close(*grads)

    def test_of_distances_between_clouds_on_the_device(self, clouds):
        x, y = clouds
        there, here = (
            wgeo.distances([z.to(device) for z in (x, y)], solver=wgeo.Exact(device=device))
            for device in (DEVICE, "cpu")
        )
        np.testing.assert_allclose(there.distance, here.distance, rtol=1e-12)

    def test_of_a_stream(self, rng):
        labels = np.arange(60) % 3
        features = np.eye(3, 40)[labels] + 0.3 * rng.normal(size=(60, 40))
        results = []
        for device in (DEVICE, "cpu"):
            stream = CollapseStream(keep=0, spectrum_size=16)
            for go in (stream.update, stream.revisit):
                for rows in (slice(0, 25), slice(25, 60)):
                    go({"last": torch.from_numpy(features[rows]).to(device)}, labels[rows])
            results.append(stream.result().to_dict())
        assert differences(*results, rel=1e-9) == []

    def test_of_an_analysis(self, rng):
        """The network runs on the device: tracing, probes, Jacobians, reference, transport."""
        images = rng.random((9, 3, 8, 8), dtype=np.float32), np.arange(9) % 3
        torch.manual_seed(0)
        net = wgeo.models.build("isoresnet", width=4, depth=2, num_classes=3, image_size=8).eval()
        there, here = (
            wgeo.analyze(
                net,
                images,
                solver=wgeo.Exact(device=device),
                bootstrap=2,
                brenier=1,
                alignment=1,
                reference_networks=1,
                device=device,
            ).record
            for device in (DEVICE, "cpu")
        )
        assert next(net.parameters()).device.type == "cpu"
        assert (there.pop("device"), here.pop("device")) == (DEVICE, "cpu")
        assert differences(there, here, rel=1e-5) == []


class TestBudgets:
    """Of what a GPU runs, and of how often the host waits for it."""

    def problem(self, n=320, d=8):
        rng = np.random.default_rng(0)
        x, y = (torch.from_numpy(rng.normal(size=(n, d))).to(DEVICE) for _ in "xy")
        return PointClouds.of(x, y)

    def split(self, monkeypatch, blocks, n=320):
        """Let passes over n x n pairs take this number of blocks."""
        monkeypatch.setitem(tiles.TILE_ENTRIES, DEVICE, n * n // blocks)

    def per_block(self, monkeypatch, work):
        """Return the launches and waits that one more block of rows costs."""
        work()  # what is computed once and kept
        tallies = []
        for blocks in (2, 4):
            self.split(monkeypatch, blocks)
            with counted() as tally:
                work()
            tallies.append(tally)
        few, many = tallies
        launches, waits = many.launches - few.launches, many.waits - few.waits
        return launches.total() / 2, waits.total() / 2

    def test_of_an_iteration_of_sinkhorn(self):
        """Waits: underflown columns, error and value, and a small matrix to the host and back."""
        kernel_ = Kernel(self.problem())
        tallies = []
        for passes in (4, 5):
            start = torch.zeros(320, dtype=torch.float64, device=DEVICE)
            with counted() as tally:
                budget = annealing.Budget(passes)
                _, converged = annealing.converge(kernel_, start, 0.05, 1e-15, budget)
            assert not converged
            tallies.append(tally)
        assert (tallies[1].launches - tallies[0].launches).total() <= 65
        assert (tallies[1].waits - tallies[0].waits).total() <= 4

    def test_of_a_block_of_sinkhorn(self, monkeypatch):
        """The host never waits between blocks, whichever pass it is."""
        clouds = self.problem()
        f, g = torch.zeros(2, 320, dtype=torch.float64, device=DEVICE).unbind()
        for stored, budget in ((1 << 27, 13), (0, 15)):
            monkeypatch.setitem(tiles.STORED_ENTRIES, DEVICE, stored)
            kernel_ = Kernel(clouds)
            launches, waits = self.per_block(monkeypatch, lambda k=kernel_: k.softmin(g, 1.0))
            assert launches <= budget
            assert waits == 0
            for work in (
                lambda k=kernel_: k.c_transform(g),
                lambda k=kernel_: k.round_plan(f, g, g, 1.0),
                lambda k=kernel_: k.apply_plan(f, g, 1.0),
            ):
                assert self.per_block(monkeypatch, work)[1] == 0

    def test_of_a_block_of_exact(self, monkeypatch):
        """Where pairs are listed, the host waits for their number, and for the pairs at once."""
        costs = Geometry.of(self.problem(), 1 << 30)
        f = torch.zeros(320, dtype=torch.float64, device=DEVICE)
        feasible = Potentials(np.full(320, -1.0), np.zeros(320))
        launches, waits = self.per_block(
            monkeypatch, lambda: c_transform(costs, costs.y, costs.x, f)
        )
        assert (launches <= 5, waits) == (True, 0)
        launches, waits = self.per_block(
            monkeypatch, lambda: nearest(costs, costs.y, costs.x, f, 4)
        )
        assert (launches <= 21, waits) == (True, 1)
        launches, waits = self.per_block(monkeypatch, lambda: find_violations(costs, feasible, 0.0))
        assert (launches <= 5, waits) == (True, 1)

    def test_of_a_pair_that_is_optimal(self, rng):
        x = torch.from_numpy(rng.normal(size=(1000, 16)).astype(np.float32))
        y = x + 0.1 * torch.randn(x.shape)
        with counted() as tally:
            result = wgeo.wasserstein(x, y, solver=wgeo.Exact(device=DEVICE))
        assert result.stats["rounds"] == 0
        assert tally.launches.total() <= 245
        assert tally.waits.total() <= 48
