"""Growth of time and memory with samples, width and layers.

    python benchmarks/scale.py                    # N = 1000 to 16000 doubling, d, L
    python benchmarks/scale.py --largest 128000 --tasks collapse paths
    python benchmarks/scale.py --ranks 1 2        # the same work in one process and in two
    python benchmarks/scale.py --large            # 100,000 x 512 x 8 layers from disk, 1.6 GB

Features are synthetic: clusters that contract and drift from layer to layer, written to disk and
opened as `wgeo.Trajectory.load` does. Every measurement runs in a separate process. ``anon`` is the
peak of anonymous memory (RssAnon, sampled every 20 ms). ``peak`` is the largest resident set
(ru_maxrss), which also counts pages of the memory maps; the system can reclaim these. Both include
Python and the libraries, whose memory is ``idle``. CPU seconds are summed over threads.

Results go into `benchmarks/scale.json`; earlier results of other tasks stay there. Exponents are
slopes of log time (or memory above idle) over log size, by least squares.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing as mp
import os
import platform
import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

import wgeo
from wgeo.geodesic.paths import path_measures
from wgeo.runtime import processes
from wgeo.storage.store import Column, Writer
from wgeo.trajectory.trajectory import features_key, outline

CLASSES = 10
ROWS = 4096


def features(folder: Path, n: int, d: int, layers: int) -> Path:
    """Write a synthetic trajectory without holding a whole layer in memory."""
    if (folder / "manifest.json").exists():
        return folder
    rng = np.random.default_rng(0)
    means = rng.standard_normal((CLASSES, d), dtype=np.float32)
    drift = 0.02 * rng.standard_normal((layers, d), dtype=np.float32)
    names = [f"layer{k}" for k in range(layers)]
    columns = {features_key(name): Column("float32", d) for name in names}
    labels = np.arange(n) % CLASSES
    with Writer(folder, {"n": n, "d": d, "layers": layers}, n, columns) as writer:
        for start in range(0, n, ROWS):
            y = labels[start : start + ROWS]
            noise = rng.standard_normal((len(y), d), dtype=np.float32)
            writer.write(
                start,
                {
                    features_key(name): means[y] * np.float32(1 + 0.05 * k)
                    + noise * np.float32(1 - 0.01 * k)
                    + drift[k]
                    for k, name in enumerate(names)
                },
            )
        about = outline([(name, 0) for name in names], [], {})
        writer.finish(about, {"labels": labels})
    return folder


def collapse(traj: wgeo.Trajectory) -> float:
    """Every collapse metric of every layer."""
    return wgeo.collapse(traj).layers[-1].nc1 or 0.0


def paths(traj: wgeo.Trajectory) -> float:
    """Straightness of every sample's own path, under the pairing, without transport."""
    (segment,) = traj.segments
    return float(np.nanmean(path_measures(segment.arrays).line_shape_ratio))


def sliced(traj: wgeo.Trajectory) -> float:
    """All of straightness, with sliced transport and its intervals."""
    return wgeo.straightness(traj, solver=wgeo.Sliced(), bootstrap=50).segments[0].paired


def certified(traj: wgeo.Trajectory) -> float:
    """W2 between the first two layers, certified."""
    result = wgeo.wasserstein(traj.layers[0].features, traj.layers[1].features)
    assert result.status == "certified"
    return result.distance


def sinkhorn(traj: wgeo.Trajectory) -> float:
    """W2 between the first two layers by Sinkhorn at one epsilon."""
    solver = wgeo.Sinkhorn(epsilon=0.25, debias=False, on_failure="return")
    return wgeo.wasserstein(
        traj.layers[0].features, traj.layers[1].features, solver=solver
    ).distance


def compared(traj: wgeo.Trajectory) -> float:
    """Compare the layers with every model; MUFM is fitted to the first and tested on all."""
    return wgeo.compare(traj, mufm=True).held_out.r2 or 0.0


TASKS = {task.__name__: task for task in (collapse, paths, sliced, certified, sinkhorn, compared)}


def resident(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"no {key} in /proc/self/status")


def warm() -> wgeo.Trajectory:
    """A few samples, to load libraries."""
    rng = np.random.default_rng(0)
    first = rng.standard_normal((40, 8), dtype=np.float32)
    return wgeo.Trajectory.from_arrays([first, 0.9 * first + 0.1, 0.8 * first], np.arange(40) % 2)


def measure(task: str, folder: Path, threads: int, answer, environment: dict[str, str]) -> None:
    """Run a task in this process, one of several if `environment` says so; send the result."""
    os.environ |= environment
    torch.set_num_threads(threads)
    with processes.launched():
        answer.send(_measured(task, folder))


def _measured(task: str, folder: Path) -> dict:
    """Value, time and memory of a task."""
    TASKS[task](warm())
    idle, largest, done = resident("RssAnon"), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            largest[0] = max(largest[0], resident("RssAnon"))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start_time, cpu = time.perf_counter(), time.process_time()
    value = TASKS[task](wgeo.Trajectory.load(folder))
    seconds, cpu = time.perf_counter() - start_time, time.process_time() - cpu
    done.set()
    watcher.join()
    anon = max(largest[0], resident("RssAnon"))
    peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = {"value": value, "seconds": seconds, "cpu": cpu, "threads": torch.get_num_threads()}
    return {**result, "idle": idle, "anon": anon, "peak": peak}


def run(task: str, folder: Path, threads: int, ranks: int = 1) -> dict:
    """Measure in a new process, or in several on the same job; return the result of rank 0."""
    context = mp.get_context("spawn")
    meeting = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(meeting.port)}
    rendezvous |= {"WORLD_SIZE": str(ranks), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    answers = []
    os.environ |= {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    for rank in range(ranks):
        receiver, sender = context.Pipe(duplex=False)
        environment = (
            {**rendezvous, "RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
        )
        process = context.Process(target=measure, args=(task, folder, threads, sender, environment))
        process.start()
        sender.close()
        answers.append(receiver)
    try:
        result, *_ = [receiver.recv() for receiver in answers]
        return result
    except EOFError:
        process.join()
        return {"failed": process.exitcode}


def shared(args: argparse.Namespace, home: Path) -> Iterator[tuple[str, dict]]:
    """The same work in one process and in several, with one thread each."""
    pairs, reading = {"n": 16000, "d": 64, "layers": 4}, {"n": 64000, "d": 128, "layers": 4}
    shapes = {"certified": pairs, "sinkhorn": pairs, "sliced": pairs}
    shapes |= {"collapse": reading, "paths": reading, "compared": reading}
    for task, shape in shapes.items():
        place = features(home / f"shared-{shape['n']}", **shape)
        rows = [{**shape, "ranks": r, **run(task, place, 1, r)} for r in args.ranks]
        yield task, {"rows": rows, "ratio": rows[0]["seconds"] / rows[-1]["seconds"]}


def exponent(rows: list[dict], size: str, what: str) -> float | None:
    """Slope of log `what` over log `size`, from at least three points."""
    points = [(row[size], row[what]) for row in rows if row.get(what, 0) > 0]
    if len(points) < 3:
        return None
    x, y = np.log(np.array(points)).T
    return float(np.polyfit(x, y, 1)[0])


MIDDLE = {"n": 4000, "d": 64, "layers": 4}


def axes(largest: int) -> dict[str, list[int]]:
    """Values of n, d and layers; in a sweep over one, the others have their values in `MIDDLE`."""
    return {
        "n": [1000 * 2**k for k in range(1 + int(math.log2(largest / 1000)))],
        "d": [32, 64, 128, 256, 512],
        "layers": [2, 4, 8, 16],
    }


def sweep(args: argparse.Namespace, home: Path) -> Iterator[tuple[str, dict]]:
    for size, values in axes(args.largest).items():
        for task in args.tasks if size in args.axes else ():
            rows = []
            for value in values:
                shape = {**MIDDLE, size: value}
                place = home / "-".join(map(str, shape.values()))
                row = {**shape, **run(task, features(place, **shape), args.threads)}
                row["held"] = row.get("anon", 0) - row.get("idle", 0)
                rows.append(row)
            powers = {key: exponent(rows, size, key) for key in ("cpu", "held")}
            yield f"{task} over {size}", {"rows": rows, "exponents": powers}


def large(args: argparse.Namespace, home: Path) -> Iterator[tuple[str, dict]]:
    """100,000 samples of width 512 at 8 layers: 1.6 GB on disk."""
    place = features(home / "large", args.samples, 512, 8)
    for task in args.tasks:
        yield task, run(task, place, args.threads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--largest", type=int, default=16000)
    parser.add_argument("--large", action="store_true")
    parser.add_argument(
        "--samples", type=int, default=100_000, help="number of samples with --large"
    )
    parser.add_argument("--ranks", type=int, nargs="+", help="processes to compare, such as 1 2")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--axes", nargs="+", choices=axes(1000), default=list(axes(1000)))
    parser.add_argument(
        "--folder", type=Path, help="folder for the features (default: a temporary one)"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    record = json.loads(args.out.read_text()) if args.out.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        home = args.folder or Path(temporary)
        kind, measured = ("ranks", shared) if args.ranks else ("sweep", sweep)
        kind, measured = ("large", large) if args.large else (kind, measured)
        for name, result in measured(args, home):  # written one by one: a run may take hours
            record.setdefault(kind, {})[name] = result
            record["machine"] = {"processor": platform.machine()}
            record["versions"] = {"torch": torch.__version__, "numpy": np.__version__}
            args.out.write_text(json.dumps(record, indent=1) + "\n")
    show(record)


def show(record: dict) -> None:
    console = Console(width=110)
    for name, row in record.get("large", {}).items():
        if "seconds" in row:
            held = ", ".join(f"{k} {row[k] / 2**20:.0f} MiB" for k in ("idle", "anon", "peak"))
            console.print(f"{name}: {row['seconds']:.0f} s, CPU {row['cpu']:.0f} s, {held}")
    for name, row in record.get("ranks", {}).items():
        last = row["rows"][-1]
        console.print(f"{name}, {last['ranks']} processes: {row['ratio']:.2f} times as fast as one")
    table = Table(title="exponents")
    for head in ("task over size", "CPU time", "memory above idle", "largest: CPU s", "MiB"):
        table.add_column(head)
    for name, result in record.get("sweep", {}).items():
        last = result["rows"][-1]
        powers = ["" if power is None else f"{power:.2f}" for power in result["exponents"].values()]
        table.add_row(name, *powers, f"{last.get('cpu', 0):.1f}", f"{last['held'] / 2**20:.0f}")
    console.print(table)


if __name__ == "__main__":
    main()
