"""Processes that do one job together, as `torchrun` starts them: a line of JSON for each job.

    python tests/together.py < PLAN

PLAN is a list of jobs: ``ranks``, how many processes; ``words`` of a command line, or ``call``, the
function below and the path that it is given; ``kill``, ``[rank, seconds]``, whom to kill and after
how much work.
Libraries are loaded once, and every process is a fork.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import ot  # noqa: F401, the libraries that a run loads late are loaded before the forks
import patience
import torch
import torch._dynamo
import torch.distributed as dist

import wgeo
from wgeo import plots
from wgeo.cli import main
from wgeo.data import folder
from wgeo.neural_collapse import collapse_of
from wgeo.neural_collapse.moments import WEIGHTS
from wgeo.runtime import processes
from wgeo.storage.store import reading
from wgeo.trajectory import Classifier
from wgeo.transport import sinkhorn_divergence


def measure(path: str) -> None:
    """Everything that is cut into shares, on clouds and networks with something to find."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(301, 5))
    y = 0.7 * x[:, ::-1] + 0.3 * rng.normal(size=x.shape)
    a, b = rng.random(301), rng.random(200)
    wide = rng.normal(size=(90, 700)).astype(np.float32)
    found: dict[str, Any] = {}
    solvers = {
        "exact": wgeo.Exact(),
        "auto": wgeo.Sinkhorn(),
        "sinkhorn": wgeo.Sinkhorn(epsilon=0.05),
        # So cold that columns underflow and are summed by themselves, over all processes.
        "cold": wgeo.Sinkhorn(epsilon=3e-4, iterations=40, debias=False, on_failure="return"),
        "sliced": wgeo.Sliced(),
    }
    for name, solver in solvers.items():
        found[name] = answer(wgeo.wasserstein(x, y, solver=solver))
    shuffled = x[rng.permutation(len(x))] + 0.01 * y
    found["far"] = answer(wgeo.wasserstein(x, shuffled))
    found["weights"] = answer(wgeo.wasserstein(x, y[:200], a=a, b=b))
    tight = wgeo.Sinkhorn(epsilon=0.1, marginal_tolerance=1e-9, iterations=2000)
    rounded = wgeo.wasserstein(x, y[:200], a=a, b=b, solver=tight)
    found["rounded"] = [rounded.upper, *rounded.push(y[:200])[:9].flatten().tolist()]
    checked = rounded.verify(x, y[:200])
    found["checked"] = [checked.lower, checked.upper, checked.valid]
    found["line"] = answer(wgeo.wasserstein(x[:, 0], y[:, 1]))
    found["wide"] = answer(wgeo.wasserstein(wide, 1.1 * wide[::-1].copy()))
    found["one"] = answer(wgeo.wasserstein(x[:1], y[:1]))
    leaf = torch.from_numpy(x).requires_grad_()
    sinkhorn_divergence(leaf, torch.from_numpy(y), epsilon=1.0).backward()
    found["gradient"] = leaf.grad.flatten()[:50].tolist()
    labels = np.arange(len(x)) % 3
    layers = [x, x + y, np.eye(3, 5)[labels] + 0.1 * y]
    traj = wgeo.Trajectory.from_arrays(layers, labels)
    for weights in WEIGHTS:
        found[weights] = wgeo.collapse(traj, weights=weights, bootstrap=10).to_dict()
    found["sampled"] = wgeo.collapse(traj, spectrum_size=4).to_dict()
    few = wgeo.Trajectory.from_arrays([wide[:2], 2 * wide[:2]], [0, 1])  # fewer than processes
    found["few"] = [layer.within for layer in wgeo.collapse(few).layers]
    found["straightness"] = wgeo.straightness(traj, bootstrap=20).to_dict()
    place = Path(path).with_suffix(".features")
    processes.on_rank_zero(lambda: str(traj.save(place, dtype="bfloat16")))
    stored = wgeo.Trajectory.load(place)
    found["stored"] = wgeo.straightness(stored, bootstrap=0).to_dict()
    shared = stored.embedded("pca:2").layers
    found["embedded"] = [layer.features.astype(float).sum(0).tolist() for layer in shared]
    network = dataclasses.replace(traj, classifier=Classifier(rng.normal(size=(3, 5)), np.zeros(3)))
    kept = dataclasses.replace(stored, classifier=network.classifier)
    narrow = wide[:, :64].astype(
        float
    )  # fewer in each half than features: what leads nowhere stays
    fewer = wgeo.Trajectory.from_arrays([narrow, 0.9 * narrow + wide[::-1, :64]], np.arange(90) % 3)
    found["models"] = [wgeo.compare(t).to_dict() for t in (network, kept, fewer)]
    assert (processes.world_size() > 1) == ("/wgeo-" in Path("/proc/self/maps").read_text())
    net = wgeo.models.build("isoresnet", num_classes=3, in_channels=1, width=4, depth=2)
    images = torch.rand(70, 1, 8, 8), np.arange(70) % 3
    # One machine's processes agree to the bit on batches that are the same.
    traced = wgeo.trace(net, images, batch_size=16)
    found["traced"] = [float(layer.features.sum(dtype=float)) for layer in traced.layers]
    found["decided"] = traced.predictions.tolist()
    if processes.is_rank_zero():
        Path(path).write_text(json.dumps(found))


def failing(path: str) -> None:
    """Errors that one process alone meets, caught by all; then work that takes all."""
    x = np.random.default_rng(0).normal(size=(30, 3))
    broken = np.where(np.arange(30)[:, None] == 29, np.nan, x)
    try:
        collapse_of(broken, np.arange(30) % 2)
    except wgeo.errors.FeatureError as error:
        print(type(error).__name__, *re.findall(r"sample (\d+)", str(error)))
    try:
        processes.on_rank_zero(lambda: 1 / 0 if processes.is_rank_zero() else None)
        raise AssertionError("nothing was raised")
    except ZeroDivisionError:
        pass
    try:
        processes.on_rank_zero(odd)
    except wgeo.errors.WgeoError as error:
        told = str(error)
    assert told == "OddError: here"
    # Fewer rows than processes, wide enough to be folded: all or none are.
    wide = np.random.default_rng(0).normal(size=(2, 300))
    assert wgeo.wasserstein(wide, -wide).status == "certified"


def loading(path: str) -> None:
    """Images of a folder: those this process decodes, and the file that contains all of them."""
    decoded: list[str] = []
    usual = folder._pixels

    def counting(image: Any, **settings: Any) -> np.ndarray:
        decoded.append("")
        return usual(image, **settings)

    folder._pixels = counting
    place = Path(path)
    tempfile.tempdir = str(place / "temporary")
    whole = wgeo.load_images(place / "whole")
    said: dict[str, Any] = {"decoded": len(decoded), "sha256": whole.fingerprint}
    said["left"] = sorted(os.listdir(tempfile.tempdir))
    said["mapped"] = "/wgeo-" in Path("/proc/self/maps").read_text()
    try:
        wgeo.load_images(place / "broken")
    except wgeo.errors.DataError as error:
        said["broken"] = re.findall(r"[a-z]+/\d+\.png", str(error))
    warnings.simplefilter("ignore")
    said["skipped"] = wgeo.load_images(place / "broken", skip_broken=True).skipped
    none = shutil.disk_usage("/")._replace(free=0)
    shutil.disk_usage = lambda _: none  # each on its own, in memory
    decoded.clear()
    said["alone"] = wgeo.load_images(place / "whole").fingerprint == whole.fingerprint
    said["decoded alone"] = len(decoded)
    print(json.dumps(said))


def odd() -> None:
    class OddError(Exception):
        """Known here alone."""

    raise OddError("here")


def answer(result: wgeo.TransportResult) -> dict[str, Any]:
    f, g = result.potentials or (np.zeros(1), np.zeros(1))
    found = {"status": str(result.status), "lower": result.lower, "upper": result.upper}
    return {**found, "divergence": result.divergence, "dual": float(f.mean() + g.mean())}


def process(job: dict[str, Any], rank: int, said: Path, port: int) -> int:
    """Start one process of a job."""
    child = os.fork()
    if child:
        return child
    handle = os.open(said, os.O_WRONLY | os.O_CREAT)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    if job["ranks"] > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ |= {"WORLD_SIZE": str(job["ranks"]), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    code = 0
    try:
        torch.manual_seed(0)
        if "call" in job:
            name, path = job["call"]
            with processes.launched():
                globals()[name](path)
        else:
            main(job["words"])
    except SystemExit as leave:
        code = int(leave.code or 0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        code = 99
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Run a job; return the output and the exit code of each process."""
    # Where they meet; ours, as it is torchrun's own, so that it outlives them all.
    meeting = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    files = [folder / f"{meeting.port}-{rank}.txt" for rank in range(job["ranks"])]
    began = time.monotonic()
    children = [process(job, rank, said, meeting.port) for rank, said in enumerate(files)]
    if job.get("kill"):
        rank, after = job["kill"]
        patience.until(children[rank], after)
        os.kill(children[rank], signal.SIGKILL)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    seconds = time.monotonic() - began
    return {"codes": codes, "said": [said.read_text() for said in files], "seconds": seconds}


if __name__ == "__main__":
    torch.set_num_threads(1)
    reading.SHARD = 1  # a batch is a shard: there is something to go on from
    for name in ("analyze", "Exact"):
        getattr(wgeo, name)
    plots.figures = lambda *_, **__: []  # the first process's work alone, and seconds of it
    with tempfile.TemporaryDirectory() as place:
        for planned in json.load(sys.stdin):
            print(json.dumps(run(planned, Path(place))), flush=True)
