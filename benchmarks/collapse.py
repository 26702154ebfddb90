"""Collapse metrics compared with the straightforward d x d form, and with a plain forward pass.

    python benchmarks/collapse.py                     # d = 64 to 16384, N = 10000, K = 10
    python benchmarks/collapse.py --widths 100000 --samples 2000
    python benchmarks/collapse.py --stream --samples 4096    # all layers of a CIFAR ResNet-20

Every measurement runs in a separate process; columns marked "x" are multiples of wgeo's values. CPU
seconds are summed over threads. Memory is the peak of resident memory above what the process held
with its libraries and the features loaded. The peers compute NC1 alone, as published scripts do:
Sigma_W and Sigma_B in full, then `numpy.linalg.pinv`, or the truncated decomposition of Papyan's
script. wgeo computes every metric of its record, without the ranks if the table says so.

With ``--stream``, random images go through a CIFAR ResNet-20, alternately with and without metrics
of all layers (the pixels, the stem and nine blocks); the ratio is the median over turns. Beyond
about 4,800 images the pixels exceed the memory that the stream may use. NC1 and nearest class means
of the pixels, which need a second pass, are then omitted.

Results go into `benchmarks/collapse.json`; earlier results for other sizes stay there.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.sparse.linalg import svds

from wgeo import models
from wgeo.data import Images
from wgeo.data.images import normalization
from wgeo.features import stream
from wgeo.neural_collapse import collapse_of, collapse_stream
from wgeo.runtime.progress import show_progress, track

BATCH = 256
TURNS = 5  # forward passes with metrics, and as many without


def features(n: int, d: int, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Rectified clusters in float32, similar to the output of a network's last layer."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % num_classes
    means = rng.standard_normal((num_classes, d), dtype=np.float32)
    H = rng.standard_normal((n, d), dtype=np.float32)
    for start in range(0, n, BATCH):  # in place: no temporary of the features' size
        rows = slice(start, start + BATCH)
        np.maximum(H[rows] + means[y[rows]], 0, out=H[rows])
    return H, y


def covariances(H: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Sigma_W and Sigma_B in full, in float64, one class at a time."""
    classes = np.unique(y)
    d, K = H.shape[1], len(classes)
    means = np.array([H[y == k].mean(0, dtype=np.float64) for k in classes])
    sigma_w = np.zeros((d, d))
    for k, mean in zip(classes, means, strict=True):
        R = H[y == k] - mean
        sigma_w += R.T @ R / len(H)
    M = means - means.mean(0)
    return sigma_w, M.T @ M / K, K


def full_pinv(H: np.ndarray, y: np.ndarray) -> float:
    """tr(Sigma_W pinv(Sigma_B)) / K with the pseudo-inverse of a d x d matrix."""
    sigma_w, sigma_b, K = covariances(H, y)
    return float(np.trace(sigma_w @ np.linalg.pinv(sigma_b, rcond=1e-13)) / K)


def full_svds(H: np.ndarray, y: np.ndarray) -> float:
    """NC1 from K - 1 singular triples of Sigma_B, as in Papyan's published script."""
    sigma_w, sigma_b, K = covariances(H, y)
    vectors, values, _ = svds(sigma_b, k=min(K, len(sigma_b)) - 1)
    inverse = vectors @ np.diag(1 / values) @ vectors.T
    return float(np.trace(sigma_w @ inverse) / K)


def in_memory(H: np.ndarray, y: np.ndarray) -> float:
    """`wgeo.collapse` of features in memory: all metrics."""
    return collapse_of(H, y).nc1 or 0.0


def without_ranks(H: np.ndarray, y: np.ndarray) -> float:
    """`wgeo.collapse` of features in memory, NC1 to NC4 alone."""
    return collapse_of(H, y, spectrum_size=0).nc1 or 0.0


def streamed(H: np.ndarray, y: np.ndarray) -> float:
    """`wgeo.collapse_stream` in batches, nothing kept, two passes: all metrics."""

    def batches():
        for start in range(0, len(y), BATCH):
            yield {"h": H[start : start + BATCH]}, y[start : start + BATCH]

    return collapse_stream(batches, keep=0).layers[0].nc1 or 0.0


FORMS = {
    "wgeo": in_memory,
    "wgeo, no ranks": without_ranks,
    "wgeo, streamed": streamed,
    "svds": full_svds,
    "pinv": full_pinv,
}
MATRICES = {"svds": 5, "pinv": 9}  # d x d float64 arrays that must fit in memory


def resident(key: str) -> int:
    """Bytes of resident memory now (VmRSS) or at its peak (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"no {key} in /proc/self/status")


def measure(form: str, n: int, d: int, num_classes: int, threads: int, result) -> None:
    """Run one form in this process and send (nc1, seconds, CPU seconds, peak bytes)."""
    torch.set_num_threads(threads)
    H, y = features(n, d, num_classes)
    FORMS[form](H[:64, :48], y[:64])  # libraries load and warm up
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before, start, cpu = resident("VmRSS"), time.perf_counter(), time.process_time()
    nc1 = FORMS[form](H, y)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    result.send((nc1, seconds, cpu, resident("VmHWM") - before))


def run(form: str, n: int, d: int, num_classes: int, threads: int, limit: float) -> dict:
    """Measure in a new process; return the reason if there is no result."""
    needed = MATRICES.get(form, 0) * 8 * d * d
    if needed > 0.4 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"):
        return {"skipped": f"~ {needed / 1e9:.0f} GB"}
    receive, send = mp.get_context("spawn").Pipe(duplex=False)
    process = mp.get_context("spawn").Process(
        target=measure, args=(form, n, d, num_classes, threads, send)
    )
    process.start()
    send.close()
    found: dict = {"skipped": f"> {limit:.0f} s"}
    try:
        if receive.poll(limit):
            keys = ("nc1", "seconds", "cpu_seconds", "peak_bytes")
            found = dict(zip(keys, receive.recv(), strict=True))
    except EOFError:
        found = {"skipped": "no memory"}
    process.kill()
    process.join()
    return found


def overhead(n: int, threads: int, result) -> None:
    """Send (seconds, CPU seconds) of plain forward passes, and of those that measure collapse."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    net = models.build("cifar_resnet20", num_classes=10).eval()
    x = torch.randint(256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8)
    names = tuple(str(k) for k in range(10))
    images = Images(x, np.arange(n) % 10, names, "random", normalize=normalization("cifar10"))

    def plain(images: Images) -> None:
        with torch.no_grad():
            for batch, _ in images.batches(BATCH, normalization("cifar10")):
                net(batch)

    def measured(images: Images) -> None:
        found = collapse_stream(stream(net, images, batch_size=BATCH))
        assert all(layer.nc1 is not None for layer in found.layers[1:])

    few = Images(x[:BATCH], images.y[:BATCH], names, "random", normalize=images.normalize)
    seconds: dict[str, list[tuple[float, float]]] = {"plain": [], "measured": []}
    for turn in range(TURNS + 1):
        for name, passed in (("plain", plain), ("measured", measured)):
            start, cpu = time.perf_counter(), time.process_time()
            passed(images if turn else few)  # the first turn warms up
            if turn:
                found = time.perf_counter() - start, time.process_time() - cpu
                seconds[name].append(found)
    result.send(seconds)


def run_stream(n: int, threads: int) -> list[dict]:
    """Measure the overhead of streaming in a new process."""
    receive, send = mp.get_context("spawn").Pipe(duplex=False)
    process = mp.get_context("spawn").Process(target=overhead, args=(n, threads, send))
    process.start()
    send.close()
    seconds = {name: np.array(turns) for name, turns in receive.recv().items()}
    process.join()
    wall, cpu = np.median(seconds["measured"] / seconds["plain"], axis=0)
    turns = {name: found[:, 0].tolist() for name, found in seconds.items()}
    return [
        {"samples": n, "threads": threads, "ratio": float(wall), "cpu_ratio": float(cpu), **turns}
    ]


def stream_table(rows: list[dict]) -> Table:
    """Seconds of a plain forward pass and of one that measures collapse, medians over turns."""
    out = Table(title=f"CIFAR ResNet-20, batches of {BATCH}, {rows[0]['threads']} threads")
    for column in ("images", "plain s", "measured s", "ratio", "ratio of CPU s"):
        out.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        plain, measured = (f"{np.median(row[key]):.2f}" for key in ("plain", "measured"))
        ratios = (f"{row['ratio']:.3f}", f"{row['cpu_ratio']:.3f}")
        out.add_row(str(row["samples"]), plain, measured, *ratios)
    return out


def table(rows: list[dict]) -> Table:
    """Seconds and peak memory by width, and the peers' ratio to wgeo in memory."""
    shape = f"N = {rows[0]['samples']}, K = {rows[0]['classes']}, {rows[0]['threads']} threads"
    out = Table(title=shape)
    for column in ("width", "form"):
        out.add_column(column, no_wrap=True)
    for column in ("seconds", "CPU s", "peak MB", "x seconds", "x CPU s", "x MB"):
        out.add_column(column, justify="right", no_wrap=True)
    base: dict = {}
    for row in rows:
        base = row if row["form"] == "wgeo" else base
        last = row["form"] == "pinv"
        if "skipped" in row:
            out.add_row(str(row["width"]), row["form"], row["skipped"], end_section=last)
            continue
        cells = [f"{row['seconds']:.3f}", f"{row['cpu_seconds']:.3f}"]
        cells.append(f"{row['peak_bytes'] / 1e6:.1f}")
        if "seconds" in base and row is not base:
            figures = ("seconds", "cpu_seconds", "peak_bytes")
            cells += [f"{row[key] / base[key]:.1f}" for key in figures]
        out.add_row(str(row["width"]), row["form"], *cells, end_section=last)
    return out


def run_widths(args: argparse.Namespace) -> list[dict]:
    rows = []
    for d, form in track([(d, form) for d in args.widths for form in FORMS], "measuring"):
        found = run(form, args.samples, d, args.classes, args.threads, args.limit)
        shape = {"samples": args.samples, "classes": args.classes, "threads": args.threads}
        rows.append({"width": d, "form": form, **shape, "load": os.getloadavg()[0], **found})
    for d in args.widths:
        values = [row["nc1"] for row in rows if row["width"] == d and "nc1" in row]
        assert np.allclose(values, values[0], rtol=1e-8), (d, values)
    return rows


def keep(out: Path, kind: str, rows: list[dict], keys: tuple[str, ...]) -> None:
    """Write rows into the JSON file, replacing those with the same `keys`."""
    found = json.loads(out.read_text()) if out.exists() else {}
    fresh = {tuple(row[key] for key in keys) for row in rows}
    old = [row for row in found.get(kind, []) if tuple(row[key] for key in keys) not in fresh]
    found[kind] = sorted(old + rows, key=lambda row: row[keys[0]])
    found["versions"] = {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    out.write_text(json.dumps(found, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 512, 4096, 16384])
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--limit", type=float, default=300, help="seconds a measurement may take")
    parser.add_argument(
        "--stream", action="store_true", help="measure only the overhead of streaming"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    for key in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[key] = str(args.threads)  # for the processes started below
    if args.stream:
        rows = run_stream(args.samples, args.threads)
        keep(args.out, "stream", rows, ("samples",))
        Console(width=100).print(stream_table(rows))
        return
    with show_progress():
        rows = run_widths(args)
    keep(args.out, "rows", rows, ("width", "form", "samples"))
    Console(width=100).print(table(rows))


if __name__ == "__main__":
    main()
