"""MUFM fitted by wgeo, compared with descent over all features: CPU seconds to the same objective.

    python benchmarks/mufm.py                          # N = 500, 2000, 10,000, 100,000
    python benchmarks/mufm.py --samples 2000 --times 1000
    python benchmarks/mufm.py --samples --pixels cifar10.zip         # d = 3072 instead, wgeo alone

K = 10 classes, d = 64 rectified features, L = 8 layers, free bias. The peers minimize the same
objective over (H_1, ..., H_L, W, b) in float64, with gradients written by hand, until they are
within 1e-6 (relative) of the minimum. They are stopped after ``--times`` times wgeo's CPU seconds;
the table then gives their distance from the minimum, and a lower bound of the ratio. Adam's
learning rate is the fastest of several at the smallest N, and is halved every thousand steps.
L-BFGS is SciPy's; it is left out if it needs more than 4 GiB. Times are CPU seconds on one thread.
wgeo's time covers everything from the features to the certified solution, with all default starts.
"Newton" is the part after the statistics, and "/ product" is that time per Hessian product, which
should not depend on N. Memory is the peak above that of a process with its libraries loaded, and
includes the features.

Adds its rows to `benchmarks/mufm.json`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize

from wgeo import load_images
from wgeo.runtime.progress import show_progress, track
from wgeo.ufm import MUFMSolution, fit_mufm

LAYERS, CLASSES, WIDTH = 8, 10, 64
SETTINGS: dict[str, Any] = {
    "layers": LAYERS,
    "weight_decay": 5e-3,
    "transport": 0.4,
    "bias": "free",
}
GAP = 1e-6
RATES = (1e-1, 3e-2)  # of Adam, in the units of `Whole`


def features(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Rectified clusters, similar to the output of a network's first block."""
    rng = np.random.default_rng(0)
    y = np.arange(n) % CLASSES
    means = 0.7 * rng.standard_normal((CLASSES, WIDTH))
    return np.maximum(means[y] + rng.standard_normal((n, WIDTH)), 0), y


class Whole:
    """The objective of all features, the classifier and its bias; features in units of sqrt(N)."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.n, self.d = x.shape
        self.first = torch.from_numpy(x) / self.n**0.5
        self.onehot = torch.eye(CLASSES, dtype=torch.float64)[torch.from_numpy(y)] / self.n**0.5
        self.ones = self.n**-0.5
        self.steps = torch.empty(LAYERS, self.n, self.d, dtype=torch.float64)
        self.sizes = [LAYERS * self.n * self.d, CLASSES * self.d, CLASSES]

    def start(self) -> torch.Tensor:
        """Every layer like the input; a small random classifier."""
        w = 0.1 * torch.randn(CLASSES * self.d, generator=torch.Generator().manual_seed(0))
        still = self.first.expand(LAYERS, self.n, self.d).reshape(-1)
        return torch.cat([still, w.double(), torch.zeros(CLASSES, dtype=torch.float64)])

    def __call__(self, point: torch.Tensor) -> tuple[float, torch.Tensor]:
        h, w, b = point.split(self.sizes)
        h, w = h.view(LAYERS, self.n, self.d), w.view(CLASSES, self.d)
        lam, decay = SETTINGS["transport"], SETTINGS["weight_decay"]
        gradient = torch.empty_like(point)
        gh, gw, gb = gradient.split(self.sizes)
        gh = gh.view(LAYERS, self.n, self.d)
        steps = self.steps
        torch.sub(h[1:], h[:-1], out=steps[1:])
        torch.sub(h[0], self.first, out=steps[0])
        value = lam / 2 * float(torch.linalg.vector_norm(steps)) ** 2
        torch.sub(steps[:-1], steps[1:], out=gh[:-1])
        gh[-1] = steps[-1]
        gh *= lam
        error = h[-1] @ w.T + self.ones * b - self.onehot
        gh[-1] += error @ w
        gw.copy_((error.T @ h[-1] + decay * w).reshape(-1))
        gb.copy_(self.ones * error.sum(0))
        value += float(error.square().sum() + decay * w.square().sum()) / 2
        return value, gradient


def adam(whole: Whole, goal: float, cap: float, rate: float) -> tuple[float, float, int]:
    """Seconds, relative gap and steps of torch's Adam."""
    began, best = time.process_time(), np.inf
    point = whole.start()
    cut = whole.sizes[0]
    parts = [point[:cut].requires_grad_(), point[cut:].requires_grad_()]  # views of one tensor
    groups = [
        {"params": [parts[0]], "lr": rate * whole.n**-0.5},  # features are of order N^-1/2 each
        {"params": [parts[1]], "lr": rate},
    ]
    optimiser = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, 0.5 ** (1 / 1000))
    for step in range(1, 10**7):
        with torch.no_grad():
            value, gradient = whole(point)
        best = min(best, value / goal - 1)
        if best <= GAP or time.process_time() - began > cap:
            return time.process_time() - began, best, step
        parts[0].grad, parts[1].grad = gradient[:cut], gradient[cut:]
        optimiser.step()
        schedule.step()
    raise AssertionError


def lbfgs(whole: Whole, goal: float, cap: float) -> tuple[float, float, int]:
    """Seconds, relative gap and evaluations of SciPy's L-BFGS-B with 10 pairs."""
    began, best, count = time.process_time(), np.inf, 0

    def evaluate(flat: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best, count
        value, gradient = whole(torch.from_numpy(flat))
        best, count = min(best, value / goal - 1), count + 1
        return value, gradient.numpy()

    def enough(_: np.ndarray) -> None:
        if best <= GAP or time.process_time() - began > cap:
            raise StopIteration

    options = {"maxiter": 10**6, "maxfun": 10**6, "ftol": 0.0, "gtol": 0.0}
    minimize(
        evaluate,
        whole.start().numpy(),
        jac=True,
        method="L-BFGS-B",
        options=options,
        callback=enough,
    )
    return time.process_time() - began, best, count


def in_process(work: Callable[..., Any], *arguments: Any) -> Any:
    """Run in a separate process; return its result and its peak memory in MiB."""
    with mp.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (work, *arguments))


def _measured(work: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux

    torch.set_num_threads(1)
    before = peak()
    found = work(*arguments)
    return {**found, "memory": peak() - before}


def of_wgeo(n: int) -> dict[str, Any]:
    """The fastest of three fits, after a warm-up fit."""
    x, y = features(n)
    fit_mufm(*features(500), **SETTINGS)
    seconds, newton, found = min((_fitted(x, y) for _ in range(3)), key=lambda run: run[0])
    return {
        "seconds": seconds,
        "newton": newton,
        "per_product": newton / found.effort["products"],
        "steps": found.effort["steps"],
        "objective": found.objective,
        "verdict": found.certificate.verdict,
    }


def _fitted(x: np.ndarray, y: np.ndarray, **more: Any) -> tuple[float, float, MUFMSolution]:
    """Total seconds, seconds of Newton's method alone, and the solution."""
    began = time.process_time()
    found = fit_mufm(x, y, **SETTINGS, **more)
    seconds = time.process_time() - began
    return seconds, seconds * found.effort["search"] / found.seconds, found


def of_peer(name: str, n: int, goal: float, cap: float, rate: float) -> dict[str, Any]:
    """One run of Adam or of L-BFGS."""
    whole = Whole(*features(n))
    seconds, gap, steps = (
        adam(whole, goal, cap, rate) if name == "adam" else lbfgs(whole, goal, cap)
    )
    return {"seconds": seconds, "gap": gap, "steps": steps, "rate": rate, "reached": gap <= GAP}


def measured(n: int, times: float, rate: float | None) -> dict[str, Any]:
    """A row of the table; if no rate is given for Adam, the fastest of `RATES`."""
    row: dict[str, Any] = {"n": n, "times": times, "wgeo": in_process(of_wgeo, n)}
    goal, cap = row["wgeo"]["objective"], times * row["wgeo"]["seconds"]
    rates = RATES if rate is None else (rate,)
    tried = [in_process(of_peer, "adam", n, goal, cap, r) for r in rates]
    row["adam"] = min(tried, key=lambda run: run["seconds"] if run["reached"] else cap + run["gap"])
    fits = 25 * 8 * LAYERS * n * WIDTH <= 2**32  # SciPy's workspace: 2 m + 5 vectors
    row["lbfgs"] = in_process(of_peer, "lbfgs", n, goal, cap, 0.0) if fits else None
    return row


def of_pixels(source: str, n: int) -> dict[str, Any]:
    """wgeo alone on raw images, from one start, to 1e-6 of the objective and to convergence."""
    images = load_images(source, limit=n)
    x = np.asarray(images.x, dtype=np.float64).reshape(len(images), -1) / 255
    (seconds, rough_search, rough), (_, sharp_search, sharp) = (
        _fitted(x, images.y, restarts=0, tolerance=tolerance) for tolerance in (1e-4, 1e-10)
    )
    return {
        "n": len(x),
        "d": x.shape[1],
        "statistics": seconds * rough.effort["statistics"] / rough.seconds,
        "newton": rough_search,
        "gap": rough.objective / sharp.objective - 1,
        "converged": sharp_search,
        "decrement": sharp.effort["decrement"],
        "objective": sharp.objective,
        "verdict": sharp.certificate.verdict,
    }


def tables(found: dict[str, Any]) -> list[Table]:
    main = Table(title=f"MUFM, d = {WIDTH}, L = {LAYERS}, K = {CLASSES}, to {GAP:g} of the minimum")
    for name in (
        "N",
        "wgeo",
        "Newton",
        "/ product",
        "MiB",
        "Adam",
        "x",
        "MiB",
        "L-BFGS",
        "x",
        "MiB",
    ):
        main.add_column(name, justify="right")
    for row in sorted(found["rows"].values(), key=lambda row: row["n"]):
        w = row["wgeo"]
        cells = [f"{row['n']}", f"{w['seconds']:.3f} s", f"{w['newton']:.3f} s"]
        cells += [f"{1e6 * w['per_product']:.0f} us", f"{w['memory']:.0f}"]
        for name in ("adam", "lbfgs"):
            peer = row[name]
            if peer is None:
                cells += ["not run: > 4 GiB", "", ""]
                continue
            ratio = peer["seconds"] / w["seconds"]
            if peer["reached"]:
                cells += [f"{peer['seconds']:.1f} s", f"{ratio:.0f}"]
            else:
                cells += [f"gap {peer['gap']:.0e} at {peer['seconds']:.0f} s", f"> {ratio:.0f}"]
            cells.append(f"{peer['memory']:.0f}")
        main.add_row(*cells)
    if "pixels" not in found:
        return [main]
    images = Table(title="Raw pixels, wgeo alone, one start")
    for name in ("N", "d", "statistics", "to 1e-6", "gap there", "to convergence"):
        images.add_column(name, justify="right")
    p = found["pixels"]
    images.add_row(
        f"{p['n']}",
        f"{p['d']}",
        f"{p['statistics']:.1f} s",
        f"{p['newton']:.2f} s",
        f"{p['gap']:.0e}",
        f"{p['converged']:.2f} s",
    )
    return [main, images]


def main() -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # for the processes below
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, nargs="*", default=[500, 2000, 10_000, 100_000])
    parser.add_argument(
        "--times", type=float, default=150.0, help="time limit of a peer, as a multiple of wgeo's"
    )
    parser.add_argument(
        "--rate", type=float, help="Adam's learning rate (default: the fastest of several)"
    )
    parser.add_argument("--pixels", help="images, as `wgeo.load_images` takes them")
    parser.add_argument("--limit", type=int, default=10_000, help="number of images")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()
    found = json.loads(asked.out.read_text()) if asked.out.exists() else {"rows": {}}
    found |= {
        "settings": {**SETTINGS, "classes": CLASSES, "width": WIDTH, "gap": GAP},
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
    }
    rate = asked.rate
    with show_progress():
        for n in track(asked.samples, "N"):
            found["rows"][str(n)] = row = measured(n, asked.times, rate)
            rate = rate or row["adam"]["rate"]
            asked.out.write_text(json.dumps(found, indent=1) + "\n")
        if asked.pixels:
            found["pixels"] = in_process(of_pixels, asked.pixels, asked.limit)
            asked.out.write_text(json.dumps(found, indent=1) + "\n")
    for table in tables(found):
        Console(width=120).print(table)


if __name__ == "__main__":
    main()
