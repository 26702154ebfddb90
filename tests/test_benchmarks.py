"""The benchmark for GPUs runs without one, at tiny sizes, in this process."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import pytest
import torch


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import gpu

    return gpu


def test_every_section_measures_and_compares_with_a_floor(gpu):
    args = Namespace(device="cpu", small=True)
    sections = {name: list(gpu.rows_of(name, args)) for name in gpu.LIMITS if name != "tests"}
    assert [row["name"] for row in sections["rates"]] == ["copy", "float32", "float64"]
    differences = [row["difference"] for row in sections["agreement"] if "difference" in row]
    assert len(differences) == 8
    assert max(differences) == 0  # the device is the CPU
    blocks, fused, geomloss, flash, *_ = sections["sinkhorn"]
    assert blocks["error"] <= gpu.TOLERANCE
    n, d = 300, gpu.WIDTH
    assert blocks["work"][0]["operations"] == 2 * n * n * d
    assert blocks["work"][0]["bytes"] == 8 * n * n * 4
    assert "seconds" in geomloss
    assert "CUDA" in fused["skipped"]
    assert "CUDA" in flash["skipped"]
    assert [row["status"] for row in sections["exact"]] == ["certified", "certified"]
    assert all(row["same"] for row in sections["nccl"])
    for rows in sections.values():
        assert json.loads(json.dumps(rows, default=str))
    record = {"device": "cpu", "versions": gpu.versions(), "sections": sections}
    lines = gpu.tables(record).splitlines()
    near = next(line for line in lines if line.startswith("| 300 | near |"))
    assert "certified" in near
    speeds = {"copy": 1e9, "float32": 1e9, "float64": 1e9}
    work = [{"dtype": "float32", "operations": 3e9, "bytes": 2e9}]
    assert gpu.floor({"work": work}, speeds) == 3


def test_a_section_is_ended_at_its_time_limit(gpu):
    rows = gpu.collect("rates", Namespace(device="cpu", small=True, limit=0.01))
    assert rows == [{"name": "rates", "skipped": "ended at its time limit"}]


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would run")
def test_without_a_gpu_it_says_so(gpu, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["gpu.py"])
    assert gpu.main() == 1
    assert "--device cpu --small" in capsys.readouterr().err
