"""The lowest critical point of a reduced MUFM problem, and its certificate."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..solution import Certificate
from .newton import Matrix, NewtonResult, trust_region_newton
from .reduced_ce import ReducedCE
from .reduced_mse import ReducedMSE

ReducedProblem = ReducedMSE | ReducedCE
_COARSE = 1e-4  # decrement at which starts are compared: a relative excess of about 5e-9


@dataclass(frozen=True, eq=False)
class SearchResult:
    """The best critical point over all starts."""

    problem: ReducedProblem
    point: Any  # a `NewtonPoint` of the problem
    values: tuple[float, ...]  # final objective of each start, ascending
    steps: int  # Newton steps of all starts
    products: int  # Hessian products of all starts
    decrement: float  # see `NewtonResult`; at the best point
    seconds: float


def multistart_newton(
    problem: ReducedProblem,
    *,
    restarts: int = 0,
    tolerance: float,
    rng: np.random.Generator | None = None,
    start: Matrix | None = None,
) -> SearchResult:
    """Descend from the ridge start (or `start`) and from random ones; return the lowest point.

    Every descent continues with reflections and with escapes from strict saddles as long as the
    objective decreases.
    """
    start_time = time.perf_counter()
    rng = rng or np.random.default_rng(0)
    first = problem.ridge() if start is None else start
    size = float(np.sqrt(np.mean(first**2)))
    # The scale of W's singular values at which the penalties of W and of the features are about
    # equal.
    natural = (problem.mu / problem.weight_decay) ** 0.25
    if size < 1e-6 * natural:  # x and labels are uncorrelated, and zero is a saddle
        size = natural / np.sqrt(problem.shape[1])
        first = first + size * rng.standard_normal(problem.shape)
    starts = [first, *(size * rng.standard_normal(problem.shape) for _ in range(restarts))]
    coarse = max(tolerance, _COARSE)
    ends = [_descend_and_escape(problem, start, coarse) for start in starts]
    values = [end.point.value() for end in ends]
    best = int(np.argmin(values))
    last = ends[best]
    if tolerance < coarse:
        last = _descend_and_escape(problem, last.point.w, tolerance)
        values[best] = last.point.value()
        ends.append(last)
    return SearchResult(
        problem,
        last.point,
        tuple(sorted(values)),
        sum(end.steps for end in ends),
        sum(end.products for end in ends),
        last.decrement,
        time.perf_counter() - start_time,
    )


def _descend_and_escape(
    problem: ReducedProblem, start: Matrix, tolerance: float
) -> NewtonResult[Any]:
    """Descend; then reflect and escape from saddles while the objective decreases."""
    end: NewtonResult[Any] = trust_region_newton(problem.at, start, tolerance=tolerance)
    steps, products = end.steps, end.products
    for _ in range(2 * min(problem.shape) + 4):
        threshold = max(1e-13, tolerance**2) * end.point.value()
        lower = _next_start(problem, end.point, threshold)
        if lower is None:
            break
        trial: NewtonResult[Any] = trust_region_newton(problem.at, lower, tolerance=tolerance)
        steps, products = steps + trial.steps, products + trial.products
        if trial.point.value() >= end.point.value() - threshold:
            break
        end = trial
    return NewtonResult(end.point, end.decrement, steps, products)


def _next_start(problem: ReducedProblem, point: Any, threshold: float) -> Matrix | None:
    """Return a lower point from which to continue the descent; None if none is known.

    This is W reflected along the most negative direction of H X^T (see `escapes`), if that is
    predicted to lower the objective by more than `threshold`, or else a lower point along the
    escape direction.
    """
    negative = point.cross_moment().most_negative()
    if negative is not None and 2 * problem.mu * -negative[0] > threshold:
        axis = negative[1]
        axis = np.pad(axis, (0, problem.shape[1] - len(axis)))  # a bias is not reflected
        return point.w - 2 * np.outer(point.w @ axis, axis)
    direction = point.escape_direction()
    if direction is None:
        return None
    length = (problem.mu / problem.weight_decay) ** 0.25
    for _ in range(60):
        if problem.at(point.w + length * direction).value() < point.value():
            return point.w + length * direction
        length /= 2
    return None


def certify_minimum(result: SearchResult, objective: float, tolerance: float) -> Certificate:
    """Certify a minimum by the spectral-norm test, or by the lower bound of the padded problem.

    The certificate's ``spectral_norm`` and ``threshold`` are both divided by sqrt(lw mu / N). The
    padded problem has K more feature dimensions, in which the inputs are zero. It has no spurious
    minima, and its minimum is at most that of the original problem.
    """
    point = result.point
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
            evidence="||dF/d(WH)||_2 <= sqrt(lw mu / N): no (W, H) has a lower objective.",
        )
    wider = result.problem.padded()
    bound = _descend_and_escape(wider, result.problem.widen(point.w), tolerance).point.value()
    bound = min(bound, point.value())  # where the descent starts
    gap = point.value() - bound
    verdict: Literal["global", "undecided"] = (
        "global" if gap <= 1e-10 * abs(point.value()) else "undecided"
    )
    return Certificate(
        verdict,
        **common,
        lower_bound=objective - gap,
        gap=gap,
        evidence="The problem padded with K zero dimensions, which has no spurious minima, has "
        + ("the same minimum." if verdict == "global" else "a lower minimum."),
    )
