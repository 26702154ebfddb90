"""Many seeds of a deep ReLU model in one tensor program, compared with one seed at a time.

    python benchmarks/ufm.py                  # 100 seeds, K = 2, d = 20, n = 20, 4 layers
    python benchmarks/ufm.py --seeds 20 --layers 3

"one by one" is the same solver with one seed at a time: timed on some seeds (``--sample``), and
scaled up by the number of evaluations, which differs widely between seeds. "SciPy" is
`scipy.optimize.minimize` with L-BFGS-B on NumPy and a gradient written by hand. It stops at the
same gradient norm, or when it stalls; it is timed on the same seeds, and scaled up by their number.
A batch uses all cores, which a single seed cannot; therefore the ratio is that of wall times, on an
otherwise idle machine, and the CPU time of all threads is reported too. Writes
`benchmarks/ufm.json`.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize
from torch import Tensor

from wgeo.runtime.progress import show_progress, track
from wgeo.ufm.descent import Minima, descend, random_points, scales
from wgeo.ufm.problem import Problem
from wgeo.ufm.spectral import spectral_optimum

DECAY = 4e-3


class Watch:
    def __enter__(self) -> Watch:
        self.began = (time.process_time(), time.perf_counter())
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu = time.process_time() - self.began[0]
        self.wall = time.perf_counter() - self.began[1]


class Flat:
    """The same objective for one point, in NumPy and in balanced variables."""

    def __init__(self, problem: Problem) -> None:
        self.scale = scales(problem).numpy()
        self.shapes, self.c = problem.shapes, problem.decay_mean
        self.Y, self.N = problem.targets.numpy(), problem.num_samples
        ends = np.cumsum(problem.sizes)
        self.cuts = [slice(end - size, end) for end, size in zip(ends, problem.sizes, strict=True)]
        # in balanced variables the product of all factors keeps its scale, block by block
        self.blocks = [float(self.scale[cut][0]) for cut in self.cuts]

    def __call__(self, u: np.ndarray) -> tuple[float, np.ndarray]:
        A = [
            u[cut].reshape(shape) * s
            for cut, shape, s in zip(self.cuts, self.shapes, self.blocks, strict=True)
        ]
        X = [A[0]]
        for W in A[1:-1]:
            X.append(np.maximum(W @ X[-1], 0))
        E = A[-1] @ X[-1] - self.Y
        gradient = self.c * u
        D = E / self.N
        for i in range(len(A) - 1, 0, -1):
            gradient[self.cuts[i]] += self.blocks[i] * (D @ X[i - 1].T).ravel()
            D = A[i].T @ D
            if i > 1:
                D *= X[i - 1] > 0
        gradient[self.cuts[0]] += self.blocks[0] * D.ravel()
        return float((E**2).sum()) / (2 * self.N) + self.c / 2 * float(u @ u), gradient


def scipy_descent(problem: Problem, x: torch.Tensor, tolerance: float) -> tuple[float, float]:
    """Final value and gradient norm of SciPy's L-BFGS-B from one starting point."""
    flat = Flat(problem)
    options = {"maxiter": 10_000, "maxfun": 20_000, "maxcor": 20, "ftol": 0.0, "gtol": 0.0}

    def reached(intermediate_result) -> None:
        if np.linalg.norm(flat(intermediate_result.x)[1] / flat.scale) <= tolerance:
            raise StopIteration

    found = minimize(
        flat,
        (x / scales(problem)).numpy(),
        jac=True,
        method="L-BFGS-B",
        options=options,
        callback=reached,
    )
    value, gradient = flat(found.x)
    return value, float(np.linalg.norm(gradient / flat.scale))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("seeds", 100), ("sample", 10), ("classes", 2), ("dim", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--per-class", type=int, default=20)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--tolerance", type=float, default=1e-6)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()

    torch.set_num_threads(asked.threads)
    labels = np.repeat(np.arange(asked.classes), asked.per_class)
    decays = [DECAY / asked.per_class] + [DECAY] * asked.layers
    problem = Problem.checked(labels, asked.dim, decays, activation="relu")
    x = random_points(problem, asked.seeds, 0)
    goal = spectral_optimum(problem).value
    chosen = np.linspace(0, asked.seeds - 1, min(asked.sample, asked.seeds)).astype(int)

    def row(name: str, watch: Watch, ends: Minima | tuple[Tensor, Tensor], scale: float) -> dict:
        values, norms = (ends.value, ends.gradient_norm) if isinstance(ends, Minima) else ends
        return {
            "name": name,
            "seconds": watch.wall * scale,
            "cpu_seconds": watch.cpu * scale,
            "timed": len(values),
            "below_tolerance": float((norms <= asked.tolerance).double().mean()),
            "at_collapse": float(((values - goal).abs() < 1e-7).double().mean()),
            "lowest_minus_collapse": float(values.min()) - goal,
        }

    with Watch() as watch:
        together = descend(problem, x, tolerance=asked.tolerance)
    rows = [row("in one program", watch, together, 1.0)]
    torch.set_num_threads(1)  # faster for a single seed
    with Watch() as watch:
        alone = [
            descend(problem, x[i : i + 1], tolerance=asked.tolerance)
            for i in track(chosen, "one by one")
        ]
    joined = Minima(*(torch.cat([getattr(end, f.name) for end in alone]) for f in fields(Minima)))
    evaluations = int(together.steps.sum())
    rows.append(row("one by one", watch, joined, evaluations / int(joined.steps.sum())))
    with Watch() as watch:
        peer = torch.tensor(
            [scipy_descent(problem, x[i], asked.tolerance) for i in track(chosen, "SciPy")],
            dtype=torch.float64,
        )
    ends = (peer[:, 0], peer[:, 1])
    rows.append(row("SciPy L-BFGS-B one by one", watch, ends, asked.seeds / len(chosen)))

    table = Table(title=f"{asked.seeds} seeds, {problem.size} variables each", box=None)
    heads = ("", "seconds", "ratio", "CPU s", "CPU ratio", "below tolerance", "at collapse")
    for head in (*heads, "lowest - collapse"):
        table.add_column(head, justify="left" if not head else "right")
    for line in rows:
        table.add_row(
            line["name"],
            f"{line['seconds']:.1f}",
            f"{line['seconds'] / rows[0]['seconds']:.1f}",
            f"{line['cpu_seconds']:.1f}",
            f"{line['cpu_seconds'] / rows[0]['cpu_seconds']:.1f}",
            f"{line['below_tolerance']:.0%}",
            f"{line['at_collapse']:.0%}",
            f"{line['lowest_minus_collapse']:.1e}",
        )
    Console(width=100).print(table)
    record = {
        "settings": {k: v for k, v in vars(asked).items() if k != "out"},
        "decay": DECAY,
        "evaluations": {
            "all": evaluations,
            "of_a_seed": np.quantile(together.steps.numpy(), [0, 0.5, 0.9, 1]).tolist(),
        },
        "machine": {
            "processor": platform.machine(),
            "threads": asked.threads,
            "torch": torch.__version__,
        },
        "rows": rows,
    }
    asked.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    with show_progress():
        main()
