"""Memory: block sizes follow from a limit and are halved if memory runs out; results are equal."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import wgeo
from wgeo import Trajectory
from wgeo.cli import main
from wgeo.errors import ArgumentError, FeatureError
from wgeo.runtime import memory
from wgeo.storage.records import read_record
from wgeo.trajectory import Classifier
from wgeo.transport import chain as solve_chain
from wgeo.transport import geometry, kernel, tiles


@pytest.fixture(autouse=True)
def _as_before():
    yield
    memory._state.update(limit=None, halvings=0)


@pytest.fixture
def clouds(rng):
    x = rng.normal(size=(300, 6))
    return x, x + 0.8 * rng.normal(size=x.shape)


class Small(torch.nn.Module):
    """A device with memory for `capacity` images."""

    def __init__(self, net, capacity):
        super().__init__()
        self.net, self.capacity, self.sizes = net, capacity, []

    def forward(self, x):
        if len(x) > self.capacity:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.sizes.append(len(x))
        return self.net(x)


def test_tracing_halves_the_batch_and_continues(tmp_path):
    options = {"width": 4, "depth": 2, "num_classes": 2, "in_channels": 1, "image_size": 8}
    net = wgeo.models.build("isoresnet", **options).eval()
    images = torch.rand(40, 1, 8, 8), np.arange(40) % 2
    small = Small(net, 5)
    expected = wgeo.trace(net, images, batch_size=32)
    for store in (None, tmp_path / "s"):
        small.sizes.clear()
        found = wgeo.trace(small, images, batch_size=32, store=store)
        for a, b in zip(found.layers, expected.layers, strict=True):
            np.testing.assert_allclose(a.features, b.features, rtol=1e-6, atol=1e-6)
        assert max(small.sizes) <= 5
        assert sum(small.sizes[-10:]) == 40  # fours, once that was found out
    with pytest.raises(torch.OutOfMemoryError):
        wgeo.trace(Small(net, 0), images, layers=["net.blocks.0"])


@pytest.mark.parametrize(
    ("solver", "rounding"),
    [(wgeo.Exact(), 1e-9), (wgeo.Sinkhorn(epsilon=0.5), 1e-6)],
    ids=["exact", "sinkhorn"],
)
def test_solvers_halve_their_blocks_without_changing_results(clouds, monkeypatch, solver, rounding):
    """A tile is computed again in halves, whether filling it or reducing it ran out of memory."""
    expected = wgeo.wasserstein(*clouds, solver=solver)
    sizes = []

    def short(work, fill, *args):
        def check(tile, most):
            if tile.numel() > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            sizes.append(tile.numel())
            return tile

        return tiles.map_tiles(
            lambda rows, tile: work(rows, check(tile, 20 * 300)),
            lambda rows, out: fill(rows, check(out, 40 * 300)),
            *args,
        )

    for module in (geometry, kernel):
        monkeypatch.setattr(module, "map_tiles", short)
    found = wgeo.wasserstein(*clouds, solver=solver)
    assert found.distance == pytest.approx(expected.distance, rel=rounding)
    assert found.lower == pytest.approx(expected.lower, rel=rounding)
    assert found.upper == pytest.approx(expected.upper, rel=rounding)
    assert 20 * 300 < max(sizes) <= 40 * 300


def test_device_without_memory_is_an_error(clouds, monkeypatch):
    def none(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tiles, "products", none)
    monkeypatch.setattr(geometry, "products", none)
    with pytest.raises(torch.OutOfMemoryError):
        wgeo.wasserstein(*clouds)


def test_memory_limit_does_not_affect_results(clouds):
    traj = Trajectory.from_arrays([clouds[0], *(clouds[1] * k for k in (1, 2))], np.arange(300) % 3)
    held = wgeo.straightness(traj, bootstrap=20).to_dict()
    with memory.memory_limit("1100 MiB"):
        assert memory.limited_size(2**40, 0.5) == (1100 - 512) * 2**19
        bound = wgeo.straightness(traj, bootstrap=20).to_dict()
    assert memory.limited_size(7, 0.5) == 7
    for rows in ("blocks", "segments"):
        for a, b in zip(held[rows], bound[rows], strict=True):
            for name in ("distance", "paired", "resolution", "ot_score"):
                assert a[name] == pytest.approx(b[name], rel=1e-12)


def test_memory_limit_sets_the_number_of_parallel_pairs(clouds, monkeypatch):
    traj = Trajectory.from_arrays([*clouds, clouds[0] * 2], np.arange(300) % 2)
    asked = []
    monkeypatch.setattr(
        sys.modules["wgeo.transport.chains"],
        "thread_map",
        lambda work, items, what, max_threads: (
            asked.append(max_threads),
            [work(item) for item in items],
        )[1],
    )
    solve_chain(traj)
    with memory.memory_limit("2GiB"):
        solve_chain(traj)
    assert asked[0] is None
    assert 1 <= asked[1] <= 8
    monkeypatch.setattr(memory, "_LIBRARY_BYTES", 2**31 - 2**16)
    memory._state["limit"] = 2**31
    with pytest.raises(FeatureError, match=r"needs about 0\.0 GiB; 0\.0 GiB is available"):
        solve_chain(traj)


def test_features_beyond_the_memory_limit_need_a_store(monkeypatch):
    net = wgeo.models.build("mlp", num_classes=2, in_channels=1, image_size=8, width=8, depth=1)
    images = torch.rand(20, 1, 8, 8), np.arange(20) % 2
    memory._state["limit"] = memory._LIBRARY_BYTES + 1000
    with pytest.raises(FeatureError, match="store=DIR"):
        wgeo.trace(net, images, pool="flat")


def test_memory_limit_applies_to_the_gpu(monkeypatch):
    """The limit is set in PyTorch's allocator and reset; without a limit no GPU is touched."""
    told = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda k: SimpleNamespace(total_memory=2**34 >> k)
    )
    # With a device it would make that device the current one.
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda part: told.append(part)
    )
    with memory.memory_limit(None):
        assert told == []
    with memory.memory_limit("6GiB"):
        assert told == [0.75]
        with memory.memory_limit("2GiB"):
            assert told == [0.75, 0.25]
        assert told == [0.75, 0.25, 0.75]
        with memory.memory_limit(None):
            assert told[3:] == [1.0]
        assert told[3:] == [1.0, 0.75]
    assert told[5:] == [1.0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_respects_the_memory_limit_without_changing_results(rng):
    x, y = rng.normal(size=(2, 20_000, 64)).astype(np.float32)
    y = x + 0.05 * y
    solvers = [wgeo.Exact(device="cuda"), wgeo.Sinkhorn(epsilon=0.5, device="cuda")]
    expected = [wgeo.wasserstein(x, y, solver=solver) for solver in solvers]
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with memory.memory_limit("1GiB"):
        found = [wgeo.wasserstein(x, y, solver=solver) for solver in solvers]
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(2**31, dtype=torch.uint8, device="cuda")
    assert torch.cuda.max_memory_reserved() <= 2**30
    for a, b in zip(found, expected, strict=True):
        assert a.distance == pytest.approx(b.distance, rel=1e-6)


def test_memory_is_that_of_the_container(tmp_path, monkeypatch):
    """Control groups of both versions: the least that any of those around allows."""
    groups, proc = tmp_path / "cgroup", tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    assert memory._cgroup_limit(proc, groups) == sys.maxsize  # not of this family of systems
    for folder, name, limit in (
        ("job/step", "memory.max", "max"),
        ("job", "memory.max", str(3 * 2**30)),
        ("memory/batch", "memory.limit_in_bytes", str(2**30)),
        ("memory", "memory.limit_in_bytes", str(2**63 - 4096)),
    ):
        (groups / folder).mkdir(parents=True, exist_ok=True)
        (groups / folder / name).write_text(limit + "\n")
    (tmp_path / "memory.max").write_text("7")  # none of theirs
    said = proc / "self" / "cgroup"
    for lines, allowed in (
        (["0::/job/step"], 3 * 2**30),
        (["9:cpu:/job", "4:cpuset,memory:/batch/inner", "0::/"], 2**30),
        (["0::/../.."], sys.maxsize),
        (["0::/elsewhere", "nonsense"], sys.maxsize),
    ):
        said.write_text("\n".join(lines))
        assert memory._cgroup_limit(proc, groups) == allowed
    monkeypatch.setattr(memory, "_cgroup_limit", lambda: 2**28)
    assert memory.total_memory() == 2**28


@pytest.mark.parametrize("size", ["much", "100MiB", "-1", "9" * 310])
def test_invalid_memory_size_is_refused(size, tmp_path):
    with pytest.raises(ArgumentError, match="memory"), memory.memory_limit(size):
        pass
    traj = Trajectory.from_arrays([np.eye(4), np.eye(4) + 1], [0, 1, 0, 1])
    traj.save(tmp_path / "s")
    words = ["analyze", str(tmp_path / "s"), "--out", str(tmp_path / "o"), "--memory", size]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert "memory" in result.output


def numbers(record, place=()):
    """Every number of a record by its place, except those about the run itself."""
    if isinstance(record, dict):
        for key, value in record.items():
            if key not in ("seconds", "effort", "provenance", "stats", "settings"):
                yield from numbers(value, (*place, key))
    elif isinstance(record, list):
        for k, value in enumerate(record):
            yield from numbers(value, (*place, k))
    elif isinstance(record, (int, float)):
        yield place, record


def test_batches_and_blocks_do_not_affect_the_record(rng):
    options = {"width": 4, "depth": 2, "num_classes": 2, "in_channels": 1, "image_size": 8}
    torch.manual_seed(0)
    net = wgeo.models.build("isoresnet", **options).eval()
    images = torch.from_numpy(rng.random((60, 1, 8, 8), dtype=np.float32)), np.arange(60) % 2

    def analysed(batch_size, bound):
        with memory.memory_limit(bound):
            words = {"bootstrap": 20, "reference": "none", "brenier": 0, "alignment": 0}
            found = wgeo.analyze(net, images, batch_size=batch_size, **words)
            return dict(numbers(found.record))

    expected = analysed(512, None)
    assert len(expected) > 100
    for found in (analysed(7, None), analysed(512, "1025MiB")):
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-9, nan_ok=True)


def test_models_that_exceed_memory_are_skipped_and_reported(rng):
    """For 20,000 features rotations take 0.8 GiB, and for 3,000 MUFM's matrices 0.5."""
    labels = np.arange(3000) % 2
    wide, narrower = (
        Trajectory.from_arrays([x, x + 1.0 + 0.1 * labels[: len(x), None]], labels[: len(x)])
        for x in (rng.normal(size=(20, 20_000)), rng.normal(size=(3000, 3000)))
    )
    with memory.memory_limit("1GiB"):
        found = wgeo.compare(wide)
        assert len(found.geodesic) == 2
        assert found.ufm == found.mufm == ()
        assert re.search(r"rotate features need about 0\.8 GiB; .* is available", found.skipped)
        found = wgeo.compare(narrower)
        assert found.ufm
        assert found.mufm == ()
        assert re.search(r"MUFM's matrices need about 0\.7 GiB", found.skipped)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
def test_process_stays_within_its_memory_limit(tmp_path):
    """12,000 x 128 in three layers, all models of it included; all pairs' costs take 1.1 GiB."""
    rng = np.random.default_rng(0)
    labels = np.arange(12_000) % 10
    x = 2 * rng.standard_normal((10, 128))[labels] + rng.standard_normal((12_000, 128))
    layers = [((1 + 0.05 * k) * x + 0.02 * k).astype(np.float32) for k in range(3)]
    reading = Classifier(np.random.default_rng(1).normal(size=(10, 128)), np.zeros(10))
    Trajectory.from_arrays(layers, labels, classifier=reading).save(tmp_path / "s")
    words = ["analyze", str(tmp_path / "s"), "--out", str(tmp_path / "out"), "--no-report"]
    words += ["--reference", "none", "--bootstrap", "5", "--memory", "1GiB"]
    process = subprocess.Popen(
        [sys.executable, "-m", "wgeo", *words], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    most = 0
    while process.poll() is None:
        found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
        most = max(most, 1024 * int(found[1])) if found else most
        time.sleep(0.005)
    assert process.returncode == 0
    record = read_record(tmp_path / "out")
    assert {block["status"] for block in record["blocks"]} == {"certified"}
    assert len(record["mufm"]["layers"]) == len(record["mufm_given"]["layers"]) == 3
    assert 2**28 < most < 2**30


def test_blocks_halved_under_a_limit_have_their_size_again_after_it():
    memory.halve_blocks()
    with memory.memory_limit("2GiB"):
        memory.halve_blocks()
        assert memory.block_entries(64) == 16
    assert memory.block_entries(64) == 32
    with memory.memory_limit(None):
        memory.halve_blocks()
    assert memory.block_entries(64) == 16
