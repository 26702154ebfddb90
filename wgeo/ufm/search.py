"""The lowest critical point of a reduced MUFM problem, and what is proved about it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .likelihood import Likelihood
from .newton import Descent, Matrix, descend
from .reduced import Reduced
from .solution import Certificate

Problem = Reduced | Likelihood
SKETCH = 1e-4  # decrement at which the starts are compared: to about 1e-8 of the objective


@dataclass(frozen=True, eq=False)
class Found:
    """The best critical point over all starts.

    Attributes
    ----------
    point
        A `Point` of the problem.
    values : tuple of float
        The objective each start ended at, best first.
    steps, products : int
        Newton steps and Hessian products, of all starts together.
    decrement : float
        See `Descent`; of the best point.
    seconds : float
    """

    problem: Problem
    point: Any
    values: tuple[float, ...]
    steps: int
    products: int
    decrement: float
    seconds: float


def search(
    problem: Problem,
    *,
    restarts: int = 0,
    tolerance: float,
    rng: np.random.Generator | None = None,
    start: Matrix | None = None,
) -> Found:
    """Descend from the ridge start (or another) and from random ones; keep the lowest.

    Every descent goes on, by a reflection or out of a strict saddle, until neither helps.
    """
    began = time.perf_counter()
    rng = rng or np.random.default_rng(0)
    first = problem.ridge() if start is None else start
    size = float(np.sqrt(np.mean(first**2)))
    natural = (problem.mu / problem.weight_decay) ** 0.25  # where W and H weigh alike
    if size < 1e-6 * natural:  # the data say nothing of the labels: zero is critical, and a saddle
        size = natural / np.sqrt(problem.shape[1])
        first = first + size * rng.standard_normal(problem.shape)
    starts = [first, *(size * rng.standard_normal(problem.shape) for _ in range(restarts))]
    sketch = max(tolerance, SKETCH)
    ends = [_settle(problem, start, sketch) for start in starts]
    values = [end.point.value() for end in ends]
    best = int(np.argmin(values))
    last = ends[best]
    if tolerance < sketch:
        last = _settle(problem, last.point.w, tolerance)
        values[best] = last.point.value()
        ends.append(last)
    return Found(
        problem,
        last.point,
        tuple(sorted(values)),
        sum(end.steps for end in ends),
        sum(end.products for end in ends),
        last.decrement,
        time.perf_counter() - began,
    )


def _settle(problem: Problem, start: Matrix, tolerance: float) -> Descent[Any]:
    """Descend, and go on by reflections and out of saddles until neither helps."""
    end: Descent[Any] = descend(problem.at, start, tolerance=tolerance)
    steps, products = end.steps, end.products
    for _ in range(2 * min(problem.shape) + 4):
        worth = max(1e-13, tolerance**2) * end.point.value()
        onward = _onward(problem, end.point, worth)
        if onward is None:
            break
        trial: Descent[Any] = descend(problem.at, onward, tolerance=tolerance)
        steps, products = steps + trial.steps, products + trial.products
        if trial.point.value() >= end.point.value() - worth:
            break
        end = trial
    return Descent(end.point, end.decrement, steps, products)


def _onward(problem: Problem, point: Any, worth: float) -> Matrix | None:
    """A place lower by more than `worth` to go on from; None where none is known."""
    found = point.alignment().least()
    if found is not None and 2 * problem.mu * -found[0] > worth:
        axis = np.pad(found[1], (0, problem.shape[1] - len(found[1])))  # a bias is not turned
        return point.w - 2 * np.outer(point.w @ axis, axis)
    out = point.unused()
    if out is None:
        return None
    length = (problem.mu / problem.weight_decay) ** 0.25
    for _ in range(60):
        if problem.at(point.w + length * out).value() < point.value():
            return point.w + length * out
        length /= 2
    return None


def certify(found: Found, objective: float, tolerance: float) -> Certificate:
    """Global by the spectral-norm test; else by the padded problem, whose value bounds from below.

    With K more feature dimensions in which the inputs are zero no spurious minima exist, so that
    problem's minimum is computed safely, and is never above this one's.
    """
    point = found.point
    ratio = point.certificate()
    common = {
        "gradient_norm": float(np.linalg.norm(point.gradient())),
        "spectral_norm": ratio,
        "threshold": 1.0,
    }
    if ratio <= 1 + 1e-7:
        return Certificate(
            "global",
            **common,
            lower_bound=objective,
            gap=0.0,
            evidence="||dF/d(WH)||_2 <= sqrt(lw mu / N): no other (W, H) can be lower.",
        )
    wider = found.problem.padded()
    bound = _settle(wider, found.problem.widen(point.w), tolerance).point.value()
    bound = min(bound, point.value())  # it began there
    gap = point.value() - bound
    verdict: Literal["global", "undecided"] = (
        "global" if gap <= 1e-10 * abs(point.value()) else "undecided"
    )
    return Certificate(
        verdict,
        **common,
        lower_bound=objective - gap,
        gap=gap,
        evidence="The problem padded with K zero dimensions, a convex relaxation, has "
        + ("the same minimum." if verdict == "global" else "a lower minimum."),
    )
