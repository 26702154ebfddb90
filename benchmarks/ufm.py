"""Many seeds of a deep ReLU model in one tensor program, beside one seed after another.

    python benchmarks/ufm.py                  # 100 seeds, K = 2, d = 20, n = 20, 4 layers
    python benchmarks/ufm.py --seeds 20 --layers 3

"one by one" is the same solver, a seed at a time; "SciPy" is `scipy.optimize.minimize` with
L-BFGS-B on NumPy with the gradient written by hand, as one would without wgeo, stopped by the same
gradient norm. Both are timed on the first seeds (``--sample``) and scaled up to all. All descents
are in the same balanced variables. Writes `benchmarks/ufm.json`.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize

from wgeo.progress import shown, track
from wgeo.ufm import Problem, spectral_optimum
from wgeo.ufm.descent import descend, random_points, scales

DECAY = 4e-3


class Flat:
    """The same objective for one point, in NumPy and in balanced variables."""

    def __init__(self, problem: Problem) -> None:
        self.scale = scales(problem).numpy()
        self.shapes, self.c = problem.shapes, problem.decay_mean
        self.Y, self.N = problem.targets.numpy(), problem.num_samples
        ends = np.cumsum(problem.sizes)
        self.cuts = [slice(end - size, end) for end, size in zip(ends, problem.sizes, strict=True)]
        # in balanced variables the product of all factors keeps its scale block by block
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
    """Value and gradient norm that SciPy's L-BFGS-B ends at from one starting point."""
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
    parser.add_argument("--tolerance", type=float, default=1e-6)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    asked = parser.parse_args()

    labels = np.repeat(np.arange(asked.classes), asked.per_class)
    decays = [DECAY / asked.per_class] + [DECAY] * asked.layers
    problem = Problem.checked(labels, asked.dim, decays, activation="relu")
    x = random_points(problem, asked.seeds, 0)
    goal = spectral_optimum(problem).value
    sample = min(asked.sample, asked.seeds)

    def row(name: str, seconds: float, values: torch.Tensor, norms: torch.Tensor) -> dict:
        return {
            "name": name,
            "seconds": seconds,
            "below_tolerance": float((norms <= asked.tolerance).double().mean()),
            "at_collapse": float(((values - goal).abs() < 1e-7).double().mean()),
            "lowest_minus_collapse": float(values.min()) - goal,
        }

    began = time.perf_counter()
    together = descend(problem, x, tolerance=asked.tolerance)
    rows = [
        row("in one program", time.perf_counter() - began, together.value, together.gradient_norm)
    ]
    inner = problem.collapsed()
    began = time.perf_counter()
    small = descend(inner, random_points(inner, asked.seeds, 0), tolerance=asked.tolerance)
    rows.append(
        row(
            "in one program, a feature a class",
            time.perf_counter() - began,
            small.value,
            small.gradient_norm,
        )
    )
    began = time.perf_counter()
    alone = [
        descend(problem, x[i : i + 1], tolerance=asked.tolerance)
        for i in track(range(sample), "one by one")
    ]
    seconds = (time.perf_counter() - began) * asked.seeds / sample
    rows.append(
        row(
            "one by one",
            seconds,
            torch.cat([end.value for end in alone]),
            torch.cat([end.gradient_norm for end in alone]),
        )
    )
    began = time.perf_counter()
    peer = torch.tensor(
        [scipy_descent(problem, x[i], asked.tolerance) for i in track(range(sample), "SciPy")],
        dtype=torch.float64,
    )
    seconds = (time.perf_counter() - began) * asked.seeds / sample
    rows.append(row("SciPy L-BFGS-B one by one", seconds, peer[:, 0], peer[:, 1]))

    table = Table(title=f"{asked.seeds} seeds, {problem.size} variables each", box=None)
    for head in ("", "seconds", "ratio", "below tolerance", "at collapse", "lowest - collapse"):
        table.add_column(head, justify="left" if not head else "right")
    for line in rows:
        table.add_row(
            line["name"],
            f"{line['seconds']:.1f}",
            f"{line['seconds'] / rows[0]['seconds']:.1f}",
            f"{line['below_tolerance']:.0%}",
            f"{line['at_collapse']:.0%}",
            f"{line['lowest_minus_collapse']:.1e}",
        )
    Console(width=100).print(table)
    record = {
        "settings": {k: v for k, v in vars(asked).items() if k != "out"},
        "decay": DECAY,
        "machine": {
            "processor": platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        "rows": rows,
    }
    asked.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    with shown():
        main()
