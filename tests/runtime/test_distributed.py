"""Several processes do one job with the results of one; a lost process ends all others."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import patience
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from records import differences

import wgeo
from wgeo.arrays.rows import map_rows
from wgeo.errors import ProcessError
from wgeo.runtime import processes
from wgeo.storage.records import read_record

TESTS = Path(__file__).parents[1]


def together(*jobs):
    """Run jobs of `tests/together.py`; their outcomes."""
    done = patience.run(
        [sys.executable, str(TESTS / "together.py")],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@given(st.integers(0, 50), st.integers(1, 12))
def test_shards_are_all_rows_once_in_order(n, ranks):
    with pytest.MonkeyPatch.context() as patch:
        rows, sizes = [], []
        for rank in range(ranks):
            patch.setattr(processes, "_launch", processes._Launch(rank, ranks))
            mine = processes.shard(n)
            rows += range(mine.start, mine.stop)
            sizes.append(mine.stop - mine.start)
    assert rows == list(range(n))
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_every_row_is_computed_by_one_process(ranks, monkeypatch):
    x, y, parts = np.arange(6.0).reshape(3, 2), np.ones((3, 1)), []
    monkeypatch.setattr(processes, "all_reduce_sum", lambda part: part)
    for rank in range(ranks):  # of four, one has no row
        monkeypatch.setattr(processes, "_launch", processes._Launch(rank, ranks))
        parts.append(map_rows(lambda _, a, b: [a.sum(1), np.hstack([a, b])], x, y))
    sums, both = (np.sum(each, axis=0) for each in zip(*parts, strict=True))
    np.testing.assert_array_equal(sums, x.sum(1))
    np.testing.assert_array_equal(both, np.hstack([x, y]))


def test_single_process_needs_no_communication(monkeypatch):
    x = torch.ones(3)
    assert processes.all_reduce_sum(x) is x
    assert processes.all_gather(7) == [7]
    assert processes.on_rank_zero(lambda: 3) == 3
    assert processes.map_over_ranks([lambda: 1, lambda: 2], "counting") == [1, 2]
    monkeypatch.setattr(processes, "_launch", processes._Launch(1, 2))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (processes.rank(), processes.world_size(), processes.is_rank_zero()) == (1, 2, False)
    with processes.local_only():
        assert (processes.rank(), processes.world_size(), processes.is_rank_zero()) == (0, 1, False)
        assert processes.all_reduce_sum(x) is x


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A checkpoint with something to find."""
    torch.manual_seed(3)
    net = wgeo.models.build("isoresnet", num_classes=10, in_channels=1, width=8, depth=3)
    path = tmp_path_factory.mktemp("net") / "net.pt"
    meta = {"arch": "isoresnet", "normalize": "digits"}
    torch.save({"state_dict": net.state_dict(), "wgeo": meta}, path)
    return path


def words(network, out, *more):
    common = ["--data", "digits", "--samples", "300", "--batch-size", "32", "--bootstrap", "20"]
    common += ["--reference", "none", "--brenier", "0", "--alignment", "0"]
    common += ["--no-mufm", "--no-report"]
    return ["analyze", str(network), *common, "--out", str(out), *map(str, more)]


@pytest.mark.skipif(not hasattr(torch, "AcceleratorError"), reason="torch >= 2.8")
def test_a_failure_of_the_device_is_not_a_lost_process():
    with pytest.raises(torch.AcceleratorError), processes._connected():
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(ProcessError, match="has ended"), processes._connected():
        raise RuntimeError("Connection closed by peer")


def test_several_processes_give_the_same_result_as_one(network, tmp_path):
    """Other numbers of processes and other batches at once, so that few runs compare all."""
    measured = {ranks: tmp_path / f"{ranks}.json" for ranks in (1, 3)}
    runs = {1: 32, 2: 100, 3: 7}  # processes, and images a batch
    outs = {ranks: tmp_path / f"out-{ranks}" for ranks in runs}
    full = ["--mufm", "--brenier", 1, "--reference", "init"]
    full += ["--reference-networks", 2]  # for one of three processes, none
    done = together(
        *({"ranks": ranks, "call": ["measure", str(out)]} for ranks, out in measured.items()),
        *(
            {"ranks": ranks, "words": words(network, outs[ranks], *full, "--batch-size", size)}
            for ranks, size in runs.items()
        ),
    )
    for row in done:
        assert set(row["codes"]) == {0}, row
        assert "".join(row["said"][1:]) == ""  # one speaks for all
    found = {ranks: json.loads(out.read_text()) for ranks, out in measured.items()}
    assert found[1]["exact"]["status"] == found[1]["far"]["status"] == "certified"
    records = {ranks: read_record(out) for ranks, out in outs.items()}
    assert {"mufm", "brenier", "reference"} <= set(records[1])
    assert differences(found[1], found[3], 1e-6) == []
    for ranks in (2, 3):
        assert differences(records[1], records[ranks], 1e-6) == []
    assert (outs[2] / "features" / "manifest.json").exists()
    assert not (outs[1] / "features").exists()


def test_if_one_process_dies_the_others_stop_and_the_next_run_continues(network, tmp_path):
    """Killed at several moments, the last of two processes or the first; then to the same bytes."""
    moments = [(rank, 0.15 + 0.15 * step) for step in range(3) for rank in (1, 0)]
    killed = [
        {"ranks": 2, "words": words(network, tmp_path / "out"), "kill": [rank, after]}
        for rank, after in moments
    ]
    after = {"ranks": 3, "words": words(network, tmp_path / "out")}
    alone = {"ranks": 1, "words": words(network, tmp_path / "one", "--store", tmp_path / "one/f")}
    *rows, last, one = together(*killed, after, alone)
    told = 0
    for (rank, _), row in zip(moments, rows, strict=True):
        if row["codes"][rank] != -9:
            continue  # it had finished
        other, said = row["codes"][1 - rank], row["said"][1 - rank]
        assert other in (0, 2), row
        assert "Traceback" not in said
        told += "has ended or cannot be reached" in said
    assert told >= 2, rows
    assert set(last["codes"]) == set(one["codes"]) == {0}, (last, one)
    arrays = sorted((tmp_path / "one" / "f").glob("*.npy"))
    assert len(arrays) > 4
    for path in arrays:
        assert path.read_bytes() == (tmp_path / "out" / "features" / path.name).read_bytes()
    assert differences(read_record(tmp_path / "one"), read_record(tmp_path / "out"), 1e-6) == []


@pytest.fixture(scope="module")
def small(network, tmp_path_factory):
    """Outcomes of small jobs by the test that reads them; libraries are loaded once for all."""
    place = tmp_path_factory.mktemp("small")
    bad = words(network, place / "a", "--solver", "guess")
    nowhere = words(network, place / "a", "--data", "nothing.npz")
    several = words(network, place / "b", str(network))
    train = ["train", "--arch", "isoresnet", "--data", "digits", "--out", str(place / "c")]
    failing = {"ranks": 3, "call": ["failing", str(place / "e.json")]}
    folders = str(images_of(place / "images"))
    done = together(
        *({"ranks": 2, "words": each} for each in (bad, nowhere, several, train)),
        failing,
        *({"ranks": ranks, "call": ["loading", folders]} for ranks in (1, 3)),
    )
    return {"mistakes": done[:4], "error": done[4], "images": done[5:]}


def images_of(place):
    """Two folders of ten images, the second with two broken ones, and a folder for the output."""
    rng = np.random.default_rng(0)
    (place / "temporary").mkdir(parents=True)
    for kind in ("whole", "broken"):
        for name in ("cat", "dog"):
            (place / kind / name).mkdir(parents=True)
            for k in range(5):
                pixels = rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / kind / name / f"{k}.png")
    for name in ("cat/4", "dog/3"):
        (place / "broken" / f"{name}.png").write_bytes(b"none")
    return place


def test_errors_are_reported_once(small):
    expected = (
        "Unknown solver",
        "nothing.npz",
        "--jobs analyzes several in parallel",
        "runs in one process",
    )
    for row, part in zip(small["mistakes"], expected, strict=True):
        said = "".join(row["said"])
        assert row["codes"] == [2, 2]
        assert said.count("wgeo [process ") == said.count(part) == 1, row
        assert "Traceback" not in said


def test_error_in_one_process_is_raised_in_all(small):
    """NaN in the last rows, and an error that cannot be pickled; no process is left waiting."""
    row = small["error"]
    assert row["codes"] == [0, 0, 0], row
    assert row["said"] == ["FeatureError 29\n", "FeatureError 29\n", "FeatureError 29\n"]


def test_images_are_decoded_once(small):
    """Ten images decoded by one process, and by three into one anonymous file."""
    one, three = small["images"]
    assert set(one["codes"] + three["codes"]) == {0}, three
    (alone,), each = ([json.loads(text) for text in row["said"]] for row in (one, three))
    assert alone["decoded"] == 10
    assert [said["decoded"] for said in each] == [3, 3, 4]
    for said in each:
        assert said["sha256"] == alone["sha256"]
        assert said["mapped"] or not Path("/proc/self/maps").exists()
        assert said["alone"]
        assert said["decoded alone"] == 10
    for said in (alone, *each):
        assert said["left"] == []
        assert said["broken"] == ["cat/4.png"]
        assert said["skipped"] == ["cat/4.png", "dog/3.png"]


def test_torchrun_starts_an_analysis(network, tmp_path):
    """The command that the help shows."""
    runner = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--no-python"]
    runner += [shutil.which("wgeo", path=Path(sys.executable).parent) or "wgeo"]
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent), "OMP_NUM_THREADS": "1"}
    given = words(network, tmp_path / "out", "--samples", 60)
    done = patience.run([*runner, *given], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    record = read_record(tmp_path / "out")
    assert all(block["status"] == "certified" for block in record["blocks"])
    assert np.isfinite([block["distance"] for block in record["blocks"]]).all()
    assert done.stdout.count("Record: ") == 1
