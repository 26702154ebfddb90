"""wgeo on a GPU: does it agree with the CPU, how long does it take, and what is the lower bound?

    python benchmarks/gpu.py                          # on one large GPU, at most 8 minutes
    python benchmarks/gpu.py --device cpu --small     # the same code at tiny sizes, without a GPU

Sections, each in a process of its own that is ended at its time limit (``--only`` selects some):

rates      the device's rates: copying, matrix products in float32 (no TF32) and float64
agreement  every solver at N = 4000, on the device and on the CPU
sinkhorn   iterations of wgeo in blocks and fused, GeomLoss and flash-sinkhorn (if installed), and
           wgeo's whole solution with its interval; N = 10,000 and 50,000
exact      a near and a far pair at N = 10,000, 50,000 and 100,000
nccl       collective operations of a group of one process
tests      the tests that need a GPU

Clouds are synthetic: d = 64, ten clusters; `near` moves every point a little, `far` is another
sample of moved clusters. The floor of a time is a lower bound: for each pass, the time of its
matrix products at the measured rate, or of its accesses to blocks of scores at the measured
bandwidth, whichever is longer. An iteration of Sinkhorn accesses each entry of a block eight times
(not at all if fused), a pass of Exact twice. The floor does not include exponentials, sparse
problems on the CPU, or kernels for small arrays. Every solution is computed twice: `first` is the
time of the first call, which includes compilation, and `seconds` that of the second. Memory is the
peak of what torch allocated on the device.

Writes `benchmarks/gpu.json`, and its tables into `gpu.md`; with ``--small``, only if ``--out`` is
given.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import wgeo
from wgeo.transport import annealing
from wgeo.transport.annealing import ENGINES
from wgeo.transport.fused import FusedKernel
from wgeo.transport.kernel import Kernel
from wgeo.transport.point_clouds import PointClouds
from wgeo.transport.tiles import full_precision

ROOT = Path(__file__).resolve().parents[1]
WIDTH, EPSILON, TOLERANCE = 64, 0.05, 1e-3  # epsilon is a fraction of the scale (`wgeo.Sinkhorn`)
ACCESSES = {"blocks": 8, "fused": 0, "exact": 2}  # of each entry of a block, per pass
LIMITS = {"rates": 40, "agreement": 70, "sinkhorn": 120, "exact": 130, "nccl": 40, "tests": 80}
SIZES = {"agreement": [4000], "sinkhorn": [10_000, 50_000], "exact": [10_000, 50_000, 100_000]}
SMALL = {"agreement": [200], "sinkhorn": [300], "exact": [300]}
Row = dict[str, Any]


# --- sections: each yields rows ---------------------------------------------------------------


def rates(device: str, small: bool) -> Iterator[Row]:
    """Measure bytes per second of a copy, and operations per second of matrix products."""
    size = 1 << (16 if small else 28)
    source = torch.ones(size, device=device)
    target = torch.empty_like(source)
    seconds = timed(lambda: target.copy_(source), device, 20)
    yield {"name": "copy", "rate": 2 * source.nbytes / seconds, "unit": "B/s"}
    n = 128 if small else 8192
    for dtype in (torch.float32, torch.float64):
        a = torch.ones(n, n, dtype=dtype, device=device)
        with full_precision:
            seconds = timed(lambda a=a: a @ a, device, 5)
        yield {"name": name_of(dtype), "rate": 2 * n**3 / seconds, "unit": "FLOP/s"}


def agreement(device: str, sizes: list[int]) -> Iterator[Row]:
    """Compare results on the device with those on the CPU: the largest relative difference."""
    solvers: dict[str, Callable[..., Any]] = {
        "Exact": wgeo.Exact,
        "Sinkhorn": lambda **o: wgeo.Sinkhorn(epsilon=EPSILON, **o),
        "Sliced": wgeo.Sliced,
        "Gaussian": wgeo.Gaussian,
    }
    for n in sizes:
        for kind in ("near", "far"):
            x, y = clouds(n, kind)
            for name, solver in solvers.items():
                both = solver(device=device), solver(device="cpu")
                yield {"n": n, "pair": kind, "name": name, **compared(x, y, both)}
            both = tuple(
                wgeo.Sinkhorn(epsilon=EPSILON, engine=engine, device=device)
                for engine in ("fused", "wgeo")
            )
            row = compared(x, y, both)
            yield {"n": n, "pair": kind, "name": "Sinkhorn, fused and in blocks", **row}


def compared(x: torch.Tensor, y: torch.Tensor, solvers: tuple[Any, Any]) -> Row:
    """Return the largest relative difference of the numbers of two results."""
    try:
        a, b = (wgeo.wasserstein(x, y, solver=solver) for solver in solvers)
    except Exception as error:  # as in `measured`
        return skipped(error)
    pairs = [(a.lower, b.lower), (a.upper, b.upper), (a.cost, b.cost)]
    if a.divergence is not None and b.divergence is not None:
        pairs.append((a.divergence, b.divergence))
    return {"difference": max(abs(p - q) / max(abs(p), abs(q), 1e-300) for p, q in pairs)}


def sinkhorn(device: str, sizes: list[int]) -> Iterator[Row]:
    """Time the iterations of several engines to one epsilon, and whole solutions of wgeo."""
    for n in sizes:
        x, y = clouds(n, "far")
        problem = PointClouds.of(x, y, device=torch.device(device))
        scale = min(problem.pairing_cost - problem.translation_cost, problem.total_variance)
        eps = EPSILON * scale

        def iterations(
            fused: bool, problem: PointClouds = problem, scale: float = scale, eps: float = eps
        ) -> torch.Tensor:
            if fused and device == "cpu":
                raise RuntimeError("fused attention needs CUDA")
            settings = (eps, TOLERANCE, annealing.SCALING, annealing.Budget(500))
            return annealing.anneal(problem, scale, *settings, fused=fused)[0].g

        engines: dict[str, Callable[[], torch.Tensor]] = {
            "wgeo, in blocks": partial(iterations, fused=False),
            "wgeo, fused": partial(iterations, fused=True),
            "GeomLoss": partial(ENGINES["geomloss"], problem, eps, annealing.SCALING),
            "flash-sinkhorn": partial(ENGINES["flash"], problem, eps, annealing.SCALING),
        }
        for name, engine in engines.items():
            row = measured(engine, device)
            if "value" in row:
                with full_precision:
                    row["error"] = annealing.iterate(Kernel(problem), row.pop("value"), eps).error
            yield {"n": n, "name": name, **row}
        for engine in ("wgeo", "fused"):
            solver = wgeo.Sinkhorn(epsilon=EPSILON, engine=engine, debias=False, device=device)
            row = measured(partial(wgeo.wasserstein, x, y, solver=solver), device)
            result = row.pop("value", None)
            if result is not None:
                row |= {"gap": result.gap, "engine": result.stats["engine"]}
            yield {"n": n, "name": f"whole solution, {engine}", **row}


def exact(device: str, sizes: list[int]) -> Iterator[Row]:
    """Time `Exact`; its floor counts the passes over all pairs that it made."""
    for n in sizes:
        for kind in ("near", "far"):
            x, y = (z.to(device) for z in clouds(n, kind))
            solver = wgeo.Exact(device=device)
            work = partial(wgeo.wasserstein, x, y, solver=solver)
            row = measured(work, device, times=2 if n < 100_000 else 1)
            result = row.pop("value", None)
            if result is not None:
                row |= {"status": str(result.status), "gap": result.gap, **result.stats}
                row["work"] = [count("exact", "float32", n, n, WIDTH, result.stats["passes"])]
            yield {"n": n, "name": kind, **row}


def nccl(device: str) -> Iterator[Row]:
    """Run the collective operations that wgeo uses in a group of one process."""
    import torch.distributed as dist

    backend = "nccl" if device.startswith("cuda") else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(str(Path(folder) / "store"), 1)
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
        try:
            part = torch.arange(1 << 20, dtype=torch.float64, device=device)
            for name in ("SUM", "MAX"):
                whole = part.clone()
                operation = getattr(dist.ReduceOp, name)
                seconds = timed(lambda w=whole, o=operation: dist.all_reduce(w, o), device, 10)
                same = bool(torch.equal(whole, part))
                yield {"name": f"{backend}: all_reduce {name}", "seconds": seconds, "same": same}
        finally:
            dist.destroy_process_group()


def tests(device: str) -> Iterator[Row]:
    """Run the tests marked `gpu`."""
    marked = "pytest.mark.gpu"
    files = [
        f for f in sorted((ROOT / "tests").rglob("test_*.py")) if marked in f.read_text("utf-8")
    ]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    last = (done.stdout.strip().splitlines() or [done.stderr.strip()[-300:]])[-1]
    yield {"name": "pytest -m gpu", "passed": done.returncode == 0, "summary": last}


# --- clouds and measurements ------------------------------------------------------------------


def clouds(n: int, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return n points around ten centers, and these moved a little, or n around moved centers."""
    rng = np.random.default_rng(0)
    centers, moved = rng.normal(size=(2, 10, WIDTH)).astype(np.float32)
    x = centers[np.arange(n) % 10] + 0.5 * rng.normal(size=(n, WIDTH)).astype(np.float32)
    noise = rng.normal(size=(n, WIDTH)).astype(np.float32)
    labels = np.arange(n) % 10
    y = x + 0.1 * noise if kind == "near" else centers[labels] + 0.3 * moved[labels] + 0.5 * noise
    return torch.from_numpy(x), torch.from_numpy(y.astype(np.float32))


def measured(work: Callable[[], Any], device: str, times: int = 2) -> Row:
    """Return the value, seconds of the first and last call, peak memory, and passes made.

    If it fails, return a row that says why.
    """
    row: Row = {}
    try:
        for _ in range(times):
            if device.startswith("cuda"):
                torch.cuda.reset_peak_memory_stats()
            with counted_passes() as passes, full_precision:
                synchronize(device)
                start = time.perf_counter()
                value = work()
                synchronize(device)
                seconds = time.perf_counter() - start
            row = {"first": seconds, **row, "seconds": seconds, "value": value, "work": passes}
    except Exception as error:  # from another package, a compiler, or a lack of memory
        return skipped(error)
    if device.startswith("cuda"):
        row["peak"] = torch.cuda.max_memory_allocated()
    return row


def skipped(error: Exception) -> Row:
    """Return a row that says why nothing was measured."""
    return {"skipped": f"{type(error).__name__}: {error}".splitlines()[0][:160]}


@contextmanager
def counted_passes() -> Iterator[list[Row]]:
    """List the passes of Sinkhorn's kernels over all pairs."""
    passes: list[Row] = []
    originals = [(kind, kind.softmin) for kind in (Kernel, FusedKernel)]

    def counting(softmin: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(self: Kernel, *args: Any) -> Any:
            problem, fused = self.clouds, isinstance(self, FusedKernel)
            n, m, d = len(problem.x), len(problem.y), problem.x.shape[1]
            kind = "fused" if fused else "blocks"
            # A fused pass makes two products, each with d + 16 columns, some of which are zeros.
            passes.append(count(kind, name_of(self.dtype), n, m, 2 * (d + 16) if fused else d))
            return softmin(self, *args)

        return wrapper

    for kind, softmin in originals:
        kind.softmin = counting(softmin)  # type: ignore[method-assign]
    try:
        yield passes
    finally:
        for kind, softmin in originals:
            kind.softmin = softmin  # type: ignore[method-assign]


def count(kind: str, dtype: str, n: int, m: int, d: int, passes: float = 1) -> Row:
    """Count the operations and bytes of passes over n m pairs of d features."""
    accessed = ACCESSES[kind] * n * m * (8 if dtype == "float64" else 4)
    return {
        "kind": kind,
        "dtype": dtype,
        "operations": 2 * n * m * d * passes,
        "bytes": accessed * passes,
    }


def timed(work: Callable[[], Any], device: str, times: int) -> float:
    work()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(times):
        work()
    synchronize(device)
    return (time.perf_counter() - start) / times


def synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


# --- the parent process -----------------------------------------------------------------------


def rows_of(section: str, args: argparse.Namespace) -> Iterator[Row]:
    sizes = (SMALL if args.small else SIZES).get(section)
    if section == "rates":
        return rates(args.device, args.small)
    if sizes is None:
        return {"nccl": nccl, "tests": tests}[section](args.device)
    return {"agreement": agreement, "sinkhorn": sinkhorn, "exact": exact}[section](
        args.device, sizes
    )


def collect(section: str, args: argparse.Namespace) -> list[Row]:
    """Run a section in another process; rows that it had when it failed or was ended are kept."""
    command = [sys.executable, __file__, "--section", section, "--device", args.device]
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [*command, *(["--small"] if args.small else [])],
            stdout=out,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        try:
            why = "" if process.wait(args.limit or LIMITS[section]) == 0 else "failed"
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            why = "ended at its time limit"
        out.seek(0)
        log.seek(0)
        rows = [json.loads(line) for line in out if line.startswith("{")]
        if why:
            message = (log.read().strip().splitlines() or [""])[-1]
            rows.append({"name": section, "skipped": f"{why}: {message}" if message else why})
    print(f"{section}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return rows


def floor(row: Row, speeds: dict[str, float]) -> float | None:
    """Return the seconds that the row's work takes at the measured rates."""
    if not row.get("work") or not speeds:
        return None
    return sum(
        max(each["operations"] / speeds[each["dtype"]], each["bytes"] / speeds["copy"])
        for each in row["work"]
    )


def tables(record: Row) -> str:
    sections = record["sections"]
    speeds = {row["name"]: row["rate"] for row in sections.get("rates", []) if "rate" in row}
    parts = [f"{record['device']}, torch {record['versions']['torch']}.\n"]
    for section, rows in sections.items():
        lines = [cells(row, floor(row, speeds)) for row in rows]
        columns = list(dict.fromkeys(key for line in lines for key in line))
        body = [" | ".join(line.get(key, "") for key in columns) for line in lines]
        head = [" | ".join(columns), " | ".join("---" for _ in columns)]
        parts.append(f"**{section}**\n\n" + "\n".join(f"| {line} |" for line in [*head, *body]))
    return "\n\n".join(parts) + "\n"


def cells(row: Row, least: float | None) -> dict[str, str]:
    out: dict[str, str] = {}
    for key in ("n", "pair", "name", "rate", "unit", "difference", "seconds", "first"):
        value = row.get(key)
        if value is not None:
            out[key] = f"{value:.3g}" if isinstance(value, float) else str(value)
    if least is not None:
        out["floor"] = f"{least:.3g}"
        out["over floor"] = f"{row['seconds'] / least:.1f} ×" if least else ""
    if row.get("work") and "passes" not in row:
        single = sum(each["dtype"] == "float32" for each in row["work"])
        out["passes"] = f"{len(row['work'])} ({single} in float32)"
    for key in ("passes", "rounds", "error", "gap", "engine", "status", "same", "passed"):
        if key in row:
            value = row[key]
            out[key] = f"{value:.2g}" if isinstance(value, float) else str(value)
    if row.get("peak") is not None:
        out["peak MiB"] = f"{row['peak'] / 2**20:.0f}"
    for key in ("summary", "skipped"):
        if key in row:
            out["note"] = row[key].replace("|", "/")
    return out


def versions() -> dict[str, str]:
    out = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("torch", "triton", "numpy", "geomloss", "pykeops", "flash-sinkhorn"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = "not installed"
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to test this script")
    parser.add_argument("--only", nargs="+", choices=list(LIMITS), default=list(LIMITS))
    parser.add_argument("--limit", type=float, help="seconds for each section")
    parser.add_argument("--out", type=Path, help="default: gpu.json beside this file")
    parser.add_argument("--section", choices=list(LIMITS), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        print(
            f"No CUDA device was found by torch {torch.__version__} (built for CUDA "
            f"{torch.version.cuda}), so nothing was measured. Run this on a machine with a GPU, or "
            "test the script with `--device cpu --small`.",
            file=sys.stderr,
        )
        return 1
    if args.section:
        for row in rows_of(args.section, args):
            print(json.dumps(row, default=str), flush=True)
        return 0
    on_gpu = args.device.startswith("cuda")
    record: Row = {
        "device": torch.cuda.get_device_name(args.device) if on_gpu else args.device,
        "versions": versions(),
        "sections": {section: collect(section, args) for section in args.only},
    }
    record["tables"] = tables(record)
    print(record["tables"])
    out = args.out or (None if args.small else Path(__file__).with_suffix(".json"))
    if out is not None:
        out.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        out.with_suffix(".md").write_text(record["tables"], "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
