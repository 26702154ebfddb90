"""MUFM, the multilayer unconstrained feature model: layers tied by optimal transport.

    F = (1/2N) ||W H_L + b 1^T - Y||^2 + (lw/2) ||W||^2
        + (lam/2N) sum_l ||H_l - H_{l-1}||^2 [+ (lh/2N) ||H_L||^2] [+ (lb/2) ||b||^2],   H_0 = X

(Wang, Gai, Zhang 2024, arXiv 2405.00985). X (d x N) is the input of the first layer, H_l (d x N)
are the features of layer l, Y (K x N) are the one-hot labels, lw, lh and lb are decays, and lam is
``transport``. The inner layers of an optimum lie on straight lines from X to H_L. F therefore
depends on lam and the number of layers L only through mu = lam / L. W and b determine H_L.
`reduced_mse` and `reduced_ce` contain the remaining objective of W and b, which is minimized here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.special import log_softmax

from ...arrays.checks import as_count, as_float
from ...arrays.rows import (
    LazyRows,
    Sliceable,
    check_features,
    materialize,
    max_width,
    select_rows,
    sum_over_rows,
)
from ...errors import ArgumentError, ConvergenceError
from ...runtime import processes
from ...transport import Exact, wasserstein
from ..arguments import (
    accepts_former_bias,
    bias_decay_of,
    check_decays,
    check_tolerance,
    class_labels,
)
from ..solution import Certificate, Verdict
from .newton import Matrix, NewtonResult, trust_region_newton
from .reduced_ce import ReducedCE
from .reduced_mse import ReducedMSE, Statistics
from .solution import MUFMSolution

ReducedProblem = ReducedMSE | ReducedCE
COARSE = 1e-4  # decrement at which starts are compared: a relative excess of about 5e-9
MAX_DECREMENT = 1e-4  # a larger one is an error; this is a relative excess of about 5e-9


@accepts_former_bias
def fit_mufm(
    x: Any,
    labels: Any,
    *,
    layers: int,
    weight_decay: float,
    transport: float,
    feature_decay: float = 0.0,
    bias: str | float | int = "none",
    loss: Literal["mse", "ce"] = "mse",
    coupling: Literal["trajectory", "class", "free"] = "trajectory",
    restarts: int = 4,
    tolerance: float = 1e-10,
    seed: int = 0,
) -> MUFMSolution:
    """Minimize the MUFM objective over W, b and the features of every layer.

    Parameters
    ----------
    x : array_like, (n, d)
        Input of the first layer; rows are samples. A memory map is read in chunks of rows. With
        cross-entropy, the samples' principal components are kept in memory.
    labels : array_like of int, (n,)
        Classes 0, ..., K - 1, each present.
    layers : int
        L >= 1.
    weight_decay, transport : float
        lw > 0 and lam > 0.
    feature_decay : float
        lh >= 0, for the last layer.
    bias : {"free", "none"} or float, optional
        A number is its decay lb >= 0 (0: free, ``math.inf``: none).
    loss : {"mse", "ce"}
        Squared error to one-hot labels, or cross-entropy.
    coupling : {"trajectory", "class", "free"}
        Which inputs the features may be coupled with: that of the same sample (``trajectory``), or
        those of the same class (``class``); both problems have the same solutions. ``free`` couples
        the two distributions regardless of labels. That is a different problem, of which a local
        optimum is found by alternating between features and coupling.
    restarts : int
        Number of random starts, in addition to a start from ridge regression.
    tolerance : float
        The search stops at this Newton decrement sqrt(g^T M g / F), with g the gradient and M an
        approximate inverse of the Hessian. The decrement's square is about twice the relative
        excess of the objective.
    seed : int
        Random seed of the starts.

    Raises
    ------
    ArgumentError
        A setting is out of range, a class has no samples, or there is only one class.
    ConvergenceError
        Newton's method stopped at a decrement above 1e-4.

    Examples
    --------
    >>> import numpy as np
    >>> from wgeo import ufm
    >>> labels = np.arange(30) % 2
    >>> x = np.eye(2, 3)[labels] + 0.1 * np.random.default_rng(0).normal(size=(30, 3))
    >>> solution = ufm.fit_mufm(x, labels, layers=2, weight_decay=1e-3, transport=0.1)
    >>> solution.certificate.verdict, solution.monotone
    ('global', True)
    """
    start_time = time.perf_counter()
    inputs = check_features(x, "x")
    points = materialize([inputs], LazyRows(inputs.shape, lambda rows: inputs[rows]))
    y = class_labels(labels, len(points))
    check_tolerance(tolerance)
    settings = _checked_settings(
        layers,
        weight_decay=weight_decay,
        transport=transport,
        feature_decay=feature_decay,
        bias=bias,
        loss=loss,
        coupling=coupling,
        restarts=restarts,
        seed=seed,
    )
    decay, mu = bias_decay_of(bias), settings["mu"]
    strength = mu + feature_decay  # a penalty on H_L only rescales X and mu
    factor = mu / strength
    scaled, assignment = LazyRows(points.shape, lambda rows: factor * points[rows]), None
    rng = np.random.default_rng(seed)
    terms = {"mu": strength, "weight_decay": weight_decay, "bias_decay": decay}
    solve = partial(_solve, labels=y, loss=loss, terms=terms, tolerance=tolerance, rng=rng)
    result, stats = solve(scaled, restarts=restarts)
    statistics_time = time.perf_counter() - start_time - result.seconds
    if coupling == "free":
        assignment, result, stats = _rematch(points, scaled, y, solve, result, stats)
    check_converged(result)
    rematched = None if assignment is None else select_rows(points, assignment)
    first = points if rematched is None else materialize([points], rematched)
    w = result.point.weights @ stats.basis.T
    b = result.point.bias()
    ends = features_of(result, stats, LazyRows(first.shape, lambda rows: factor * first[rows]), y)
    last = materialize([points], ends)
    terms = _objective_terms(first, last, w, b, y, decay, settings)
    objective = sum(terms.values())
    constant = objective - result.point.value()  # part of the feature decay independent of W
    certificate_start = time.perf_counter()
    certificate = processes.on_rank_zero(partial(certify_minimum, result, objective, tolerance))
    seconds = {
        "statistics": statistics_time,
        "certificate": time.perf_counter() - certificate_start,
        "seconds": time.perf_counter() - start_time,
    }
    return MUFMSolution(
        W=w,
        b=b,
        X=first,
        H=last,
        labels=y,
        layers=layers,
        objective=objective,
        terms=terms,
        certificate=certificate,
        values=tuple(value + constant for value in result.values),
        settings=settings,
        effort={**result.effort, **seconds},
        assignment=assignment,
    )


def _solve(
    inputs: LazyRows,
    *,
    labels: Int[np.ndarray, " n"],
    loss: str,
    terms: Mapping[str, float],
    tolerance: float,
    rng: np.random.Generator,
    restarts: int = 0,
) -> tuple[SearchResult, Statistics]:
    """Return the lowest critical point of W and b that is found, and the statistics of the inputs.

    Only one process solves: along nearly flat directions, rounding differences of distributed sums
    would change the solution.
    """

    def solve() -> tuple[SearchResult, Statistics]:
        stats = Statistics.of(inputs, labels, int(labels.max()) + 1)
        problem: ReducedProblem = (
            ReducedMSE(stats, **terms)
            if loss == "mse"
            else ReducedCE.of(inputs, labels, stats, **terms)
        )
        return multistart_newton(problem, restarts=restarts, tolerance=tolerance, rng=rng), stats

    return processes.on_rank_zero(solve)


def _rematch(
    points: Float[np.ndarray, "n d"],
    scaled: LazyRows,
    labels: Int[np.ndarray, " n"],
    solve: Callable[[LazyRows], tuple[SearchResult, Statistics]],
    result: SearchResult,
    stats: Statistics,
) -> tuple[Int[np.ndarray, " n"], SearchResult, Statistics]:
    """Alternate between finding the best features for a coupling and the best coupling for these.

    Stop when the objective no longer decreases.
    """
    assignment, inputs = np.arange(len(points)), materialize([points], scaled)
    for _ in range(100):
        ends = features_of(result, stats, select_rows(inputs, assignment), labels)
        features = materialize([points], ends)
        coupling = wasserstein(features, inputs, solver=Exact()).coupling
        trial, trial_stats = solve(select_rows(inputs, coupling))
        if trial.point.value() >= result.point.value() * (1 - 1e-12):
            break
        assignment, result, stats = coupling, trial, trial_stats
    return assignment, result, stats


def features_of(
    result: SearchResult, stats: Statistics, inputs: LazyRows, labels: Int[np.ndarray, " n"]
) -> LazyRows:
    """Return H_L of labeled samples; `inputs` are scaled like the samples of `stats`."""
    w = result.point.weights @ stats.basis.T
    onehot = np.eye(len(w))
    return LazyRows(
        inputs.shape,
        lambda rows: result.point.features(inputs[rows], w, onehot[labels[rows]], rows),
        max(len(w), max_width(inputs)),
    )


def check_converged(result: SearchResult) -> None:
    """Raise ConvergenceError if Newton's steps stopped at too large a decrement."""
    if result.decrement > MAX_DECREMENT:
        problem = result.problem
        raise ConvergenceError(
            f"MUFM's Newton steps stopped at a decrement of {result.decrement:.1e}, above "
            f"{MAX_DECREMENT:g}. `weight_decay={problem.weight_decay:g}` and a transport strength "
            f"of {problem.mu:g} for the whole path are too far apart for these features; rescale x "
            "or change these settings."
        )


def _objective_terms(
    first: Sliceable,
    last: Sliceable,
    w: Matrix,
    b: Float[np.ndarray, " K"],
    labels: Int[np.ndarray, " n"],
    bias_decay: float,
    settings: Mapping[str, Any],
) -> dict[str, float]:
    def sums(rows: slice, start: Matrix, end: Matrix) -> list[float]:
        logits, y = end @ w.T + b, (np.arange(end.shape[0]), labels[rows])
        if settings["loss"] == "mse":
            logits[y] -= 1
            fit = float(np.vdot(logits, logits)) / 2
        else:
            fit = -float(np.sum(log_softmax(logits, axis=1)[y]))
        return [fit, float(np.sum((end - start) ** 2)), float(np.vdot(end, end))]

    totals = sum_over_rows(sums, first, last, width=len(w))
    fit, distance, size = (total / len(labels) for total in totals)
    return {
        "fit": fit,
        "weight_decay": settings["weight_decay"] * float(np.sum(w**2)) / 2,
        "transport": settings["mu"] * distance / 2,
        "feature_decay": settings["feature_decay"] * size / 2,
        "bias_decay": bias_decay * float(np.sum(b**2)) / 2 if np.isfinite(bias_decay) else 0.0,
    }


def _checked_settings(layers: int, **settings: Any) -> dict[str, Any]:
    """Return the settings of a solution, with mu, after checking them."""
    feature_decay, loss, coupling = (settings[k] for k in ("feature_decay", "loss", "coupling"))
    as_count(layers, "layers", 1)
    as_count(settings["restarts"], "restarts")
    decays = {name: settings.pop(name) for name in ("weight_decay", "transport")}
    check_decays(decays)
    if not 0 <= as_float(feature_decay, "feature_decay") < np.inf:
        raise ArgumentError(f"feature_decay must be a number >= 0, not {feature_decay!r}.")
    if loss not in ("mse", "ce"):
        raise ArgumentError(f"Unknown loss {loss!r}; choose mse or ce.")
    if coupling not in ("trajectory", "class", "free"):
        raise ArgumentError(f"Unknown coupling {coupling!r}; choose trajectory, class or free.")
    return {**decays, "mu": decays["transport"] / layers, **settings}


@dataclass(frozen=True, eq=False)
class SearchResult:
    """The best critical point over all starts."""

    problem: ReducedProblem
    point: Any  # of the problem
    values: tuple[float, ...]  # final objective of each start, ascending
    steps: int  # Newton steps of all starts
    products: int  # Hessian products of all starts
    decrement: float  # see `NewtonResult`; at the best point
    seconds: float

    @property
    def effort(self) -> dict[str, Any]:
        """What the search took, as in `MUFMSolution.effort`."""
        counts = {"steps": self.steps, "products": self.products}
        return {**counts, "decrement": self.decrement, "search": self.seconds}


def multistart_newton(
    problem: ReducedProblem,
    *,
    restarts: int = 0,
    tolerance: float,
    rng: np.random.Generator | None = None,
) -> SearchResult:
    """Descend from the ridge start and from random ones; return the lowest point."""
    start_time = time.perf_counter()
    rng = rng or np.random.default_rng(0)
    first = problem.ridge()
    size = float(np.sqrt(np.mean(first**2)))
    # At this scale of W, the penalties of W and of the features are about equal.
    natural = (problem.mu / problem.weight_decay) ** 0.25
    if size < 1e-6 * natural:  # x and the labels are uncorrelated, and zero can be a saddle
        size = natural / np.sqrt(problem.shape[1])
        first = first + size * rng.standard_normal(problem.shape)
    starts = [first, *(size * rng.standard_normal(problem.shape) for _ in range(restarts))]
    coarse = max(tolerance, COARSE)
    ends = [descend_and_escape(problem, start, coarse) for start in starts]
    values = [end.point.value() for end in ends]
    best = int(np.argmin(values))
    last = ends[best]
    if tolerance < coarse:
        last = descend_and_escape(problem, last.point.w, tolerance)
        values[best] = last.point.value()
        ends.append(last)
    return SearchResult(
        problem,
        last.point,
        values=tuple(sorted(values)),
        steps=sum(end.steps for end in ends),
        products=sum(end.products for end in ends),
        decrement=last.decrement,
        seconds=time.perf_counter() - start_time,
    )


def descend_and_escape(problem: ReducedProblem, start: Matrix, tolerance: float) -> NewtonResult:
    """Descend; then reflect and escape from saddles while the objective decreases."""
    end = trust_region_newton(problem.at, start, tolerance=tolerance)
    steps, products = end.steps, end.products
    for _ in range(2 * min(problem.shape) + 4):
        threshold = max(1e-13, tolerance**2) * end.point.value()
        lower = _next_start(problem, end.point, threshold)
        if lower is None:
            break
        trial = trust_region_newton(problem.at, lower, tolerance=tolerance)
        steps, products = steps + trial.steps, products + trial.products
        if trial.point.value() >= end.point.value() - threshold:
            break
        end = trial
    return NewtonResult(end.point, end.decrement, steps, products)


def _next_start(problem: ReducedProblem, point: Any, threshold: float) -> Matrix | None:
    """Return a lower point from which to continue the descent; None if none is known.

    If a reflection (see `newton`) is predicted to lower the objective by more than `threshold`, the
    result is W reflected along the most negative direction of H X^T. Otherwise the result is a
    lower point along the escape direction.
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

    The padded problem has K more feature dimensions, in which the inputs are zero. It has no
    spurious minima, and its minimum is at most that of the original problem.
    """
    point = result.point
    ratio = point.certificate()
    verdict: Verdict = "global"
    gap = 0.0
    if ratio <= 1 + 1e-7:
        evidence = "||dF/d(WH)||_2 <= sqrt(lw mu / N): no (W, H) has a lower objective."
    else:
        wider = result.problem.padded()
        bound = descend_and_escape(wider, result.problem.widen(point.w), tolerance).point.value()
        gap = max(point.value() - bound, 0.0)  # the descent starts at this point
        evidence = "The problem padded with K zero dimensions, which has no spurious minima, has "
        if gap <= 1e-10 * abs(point.value()):
            evidence += "the same minimum."
        else:
            verdict = "undecided"
            evidence += "a lower minimum."
    return Certificate(
        verdict,
        gradient_norm=float(np.linalg.norm(point.gradient())),
        spectral_norm=ratio,
        threshold=1.0,
        lower_bound=objective - gap,
        gap=gap,
        evidence=evidence,
    )
