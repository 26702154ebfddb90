"""MUFM: the multilayer unconstrained-feature model, its layers tied by optimal transport.

    F = (1/2N) ||W H_L + b 1^T - Y||^2 + (lw/2) ||W||^2
        + (lam/2N) sum_l ||H_l - H_{l-1}||^2 [+ (lh/2N) ||H_L||^2] [+ (lb/2) ||b||^2],   H_0 = X

(Wang, Gai, Zhang 2024, arXiv 2405.00985; ``transport`` is lam). The inner layers of an optimum lie
on straight lines from X to H_L, so that F depends on lam and the number of layers L through
mu = lam / L alone, and H_L is a ridge problem given W: what is left is `reduced.Reduced`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from scipy.special import log_softmax

from ..arrays.checks import as_labels
from ..arrays.rows import (
    LazyRows,
    Sliceable,
    as_float64,
    check_features,
    class_means,
    materialize,
    max_width,
    select_rows,
    sum_over_rows,
)
from ..errors import ArgumentError, ConvergenceError
from ..neural_collapse import LayerCollapse, collapse_of
from ..runtime import processes
from ..transport import Exact, wasserstein
from .likelihood import Likelihood
from .reduced import Matrix, Reduced, Statistics
from .search import Found, Problem, certify, search
from .solution import Certificate

UNCONVERGED = 1e-4  # a decrement above it is an error: an excess of about 5e-9 of the objective


@dataclass(frozen=True, eq=False)
class MUFMSolution:
    """A minimiser of the MUFM objective.

    Attributes
    ----------
    W : ndarray, (K, d)
    b : ndarray, (K,)
    X, H : ndarray, (d, N)
        First and last layer, columns are samples as in the papers; `layer` has the others. Of
        inputs on the disk (memory maps) they are on the disk, in files without a name.
    objective : float
        F at the solution.
    terms : dict
        F split into ``fit``, ``weight_decay``, ``transport``, ``feature_decay``, ``bias_decay``.
    certificate : Certificate
    values : tuple of float
        The objective each start ended at, best first: the spread over restarts.
    settings : dict
    effort : dict
        Newton ``steps`` and Hessian ``products`` over all starts, the best one's ``decrement``, and
        seconds: for the ``statistics`` (the only pass over the samples), the last ``search``, the
        ``certificate``, and in all (``seconds``).
    assignment : ndarray of int, (N,), or None
        With ``coupling="free"``: the input that each sample's path starts from.
    """

    W: Matrix
    b: Float[np.ndarray, " K"]
    X: Float[np.ndarray, "d N"]
    H: Float[np.ndarray, "d N"]
    labels: Int[np.ndarray, " N"]
    layers: int
    objective: float
    terms: dict[str, float]
    certificate: Certificate
    values: tuple[float, ...]
    settings: dict[str, Any]
    effort: dict[str, Any]
    assignment: Int[np.ndarray, " N"] | None = field(default=None, repr=False)

    def layer(self, index: int) -> Float[np.ndarray, "N d"]:
        """Return the features of layer 0, ..., L, a row a sample: points of straight lines."""
        if not 0 <= index <= self.layers:
            raise ArgumentError(f"Layers go from 0 to {self.layers}; there is none {index}.")
        t, first, last = index / self.layers, self.X.T, self.H.T
        path = LazyRows(first.shape, lambda rows: (1 - t) * first[rows] + t * last[rows])
        with processes.local_only():
            return materialize([first, last], path)

    def apply(self, x: Any, labels: Any) -> Float[np.ndarray, "n d"]:
        """Return H_L of other labelled samples, W and b held: the model's prediction for them.

        H_L = X' + W^T (W W^T + mu' I)^-1 (Y - W X' - b 1^T), rows are samples. Squared loss only.
        """
        if self.settings["loss"] != "mse":
            raise ArgumentError("apply is for the squared loss; fit with loss='mse'.")
        points, classes = check_features(x, "x"), len(self.W)
        y, eye = as_labels(labels, len(points)), np.eye(classes)
        if points.shape[1] != self.W.shape[1] or y.max() >= classes:
            raise ArgumentError(
                f"The model is of {self.W.shape[1]} features and classes 0 to {classes - 1}; given "
                f"are {points.shape[1]} features and classes up to {y.max()}."
            )
        mu, held = self.settings["mu"], self.settings["feature_decay"]
        pull = np.linalg.solve(self.W @ self.W.T + (mu + held) * eye, self.W)

        def ends(rows: slice) -> Float[np.ndarray, "b d"]:
            start = as_float64(points[rows]) * (mu / (mu + held))
            return start + (eye[y[rows]] - self.b - start @ self.W.T) @ pull

        with processes.local_only():
            return materialize([points], LazyRows(points.shape, ends, classes))

    @property
    def seconds(self) -> float:
        """Wall time of the fit."""
        return float(self.effort["seconds"])

    @property
    def contraction(self) -> Float[np.ndarray, " K"]:
        """kappa_i: what within-class deviations shrink by along W's right singular vectors.

        mu / (sigma_i^2 + mu + lh); variances shrink by its square. In directions that W does not
        see they are untouched (with feature decay: shrink by mu / (mu + lh)).
        """
        mu, held = self.settings["mu"], self.settings["feature_decay"]
        return mu / (np.linalg.svd(self.W, compute_uv=False) ** 2 + mu + held)

    def collapse(self, index: int | None = None) -> LayerCollapse:
        """Return the collapse metrics of a layer, the last by default."""
        index = self.layers if index is None else index
        return collapse_of(self.layer(index), self.labels, name=f"layer{index}")

    def curve(self) -> list[LayerCollapse]:
        """Return the collapse metrics of every layer: the model's progressive collapse."""
        return [self.collapse(index) for index in range(self.layers + 1)]

    @property
    def monotone(self) -> bool:
        """Whether tr Sigma_W / tr Sigma_B falls all the way from X to H_L, decided exactly.

        Along (1 - t) X + t H the ratio w/b falls on [0, 1] iff the quadratic
        q(t) = -(w1 b0 + w0 b1) + t (w2 b0 - w0 b2) + t^2 (w2 b1 + w1 b2) is nowhere positive.
        """
        with processes.local_only():  # a record may be written by one process
            q = monotonicity(self.X.T, self.H.T, self.labels)
        at = [0.0, 1.0]
        if q[2] < 0:
            at.append(float(np.clip(-q[1] / (2 * q[2]), 0, 1)))
        scale = float(np.abs(q).sum())
        return all(q[0] + q[1] * t + q[2] * t * t <= 1e-12 * scale for t in at)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the features, ready for JSON."""
        return {
            "model": "mufm",
            "layers": self.layers,
            "objective": self.objective,
            "terms": self.terms,
            "certificate": self.certificate.to_dict(),
            "spread": [min(self.values), max(self.values)],
            "contraction": self.contraction.tolist(),
            "monotone": self.monotone,
            "settings": self.settings,
            "effort": self.effort,
            "seconds": self.seconds,
        }


def fit_mufm(
    x: Any,
    labels: Any,
    *,
    layers: int,
    weight_decay: float,
    transport: float,
    feature_decay: float = 0.0,
    bias: bool | float = False,
    loss: Literal["mse", "ce"] = "mse",
    coupling: Literal["trajectory", "class", "free"] = "trajectory",
    restarts: int = 4,
    tolerance: float = 1e-10,
    seed: int = 0,
) -> MUFMSolution:
    """Minimise the MUFM objective over W, b and the features of every layer.

    Parameters
    ----------
    x : array_like, (n, d)
        What enters the first layer, a row a sample. A memory map is read a few rows at a time (with
        cross-entropy the samples are held in their principal axes).
    labels : array_like of int, (n,)
        Classes 0, ..., K - 1, each present.
    layers : int
        L >= 1.
    weight_decay, transport : float
        lw > 0 and lam > 0.
    feature_decay : float
        lh >= 0 on the last layer, per sample.
    bias : bool or float
        False for none, True for a free one, a number for its decay lb > 0.
    loss : {"mse", "ce"}
        Squared error to one-hot labels, or cross-entropy.
    coupling : {"trajectory", "class", "free"}
        Which input each feature is tied to. ``trajectory`` (its own) and ``class`` (any input of
        its class, by optimal transport) have the same solutions. ``free`` ties the two
        distributions without labels: another problem, which ignores which input has which label;
        solved by alternation, to a local optimum.
    restarts : int
        Random starts beside the ridge start.
    tolerance : float
        At which Newton's decrement, sqrt(g^T M g / F) with the Gauss-Newton inverse M, counts as
        zero: its square is about the relative excess of the objective, twice.
    seed : int

    Raises
    ------
    ArgumentError
        A setting out of range, labels that miss a class or are of one.
    """
    began = time.perf_counter()
    given = check_features(x, "x")
    points = materialize([given], LazyRows(given.shape, lambda rows: given[rows]))
    y = as_labels(labels, len(points))
    classes = _classes(y)
    _check(layers, weight_decay, transport, feature_decay, loss, coupling, restarts)
    decay = _bias_decay(bias)
    mu = transport / layers
    strength = mu + feature_decay  # a penalty on H_L itself only rescales X and mu
    factor = mu / strength
    scaled, assignment = LazyRows(points.shape, lambda rows: factor * points[rows]), None
    rng = np.random.default_rng(seed)

    def solved(inputs: LazyRows, restarts: int = 0) -> tuple[Found, Statistics]:
        stats = Statistics.of(inputs, y, classes)
        terms = {"mu": strength, "weight_decay": weight_decay, "bias_decay": decay}
        problem: Problem = (
            Reduced(stats, **terms) if loss == "mse" else Likelihood.of(inputs, y, stats, **terms)
        )
        return search(problem, restarts=restarts, tolerance=tolerance, rng=rng), stats

    # One process for all: what is nearly flat must not follow the rounding of their sums.
    found, stats = processes.on_rank_zero(partial(solved, scaled, restarts))
    counted = time.perf_counter()
    if coupling == "free":
        assignment, found, stats = _rematch(points, scaled, y, solved, found, stats)
    check_converged(found)
    first = points
    if assignment is not None:
        first = materialize([points], select_rows(points, assignment))
    w = found.point.weights @ stats.basis.T
    b = found.point.bias()
    ends = features_of(found, stats, LazyRows(first.shape, lambda rows: factor * first[rows]), y)
    last = materialize([points], ends)
    fit, moved, size = _sums(first, last, w, b, y, loss)
    terms = {
        "fit": fit,
        "weight_decay": weight_decay * float(np.sum(w**2)) / 2,
        "transport": mu * moved / 2,
        "feature_decay": feature_decay * size / 2,
        "bias_decay": decay * float(np.sum(b**2)) / 2 if np.isfinite(decay) else 0.0,
    }
    objective = sum(terms.values())
    rest = objective - found.point.value()  # what the feature decay holds whatever W is
    done = time.perf_counter()
    certificate = processes.on_rank_zero(partial(certify, found, objective, tolerance))
    ended = time.perf_counter()
    return MUFMSolution(
        W=w,
        b=b,
        X=first.T,
        H=last.T,
        labels=y,
        layers=layers,
        objective=objective,
        terms=terms,
        certificate=certificate,
        values=tuple(value + rest for value in found.values),
        settings={
            "weight_decay": weight_decay,
            "transport": transport,
            "mu": mu,
            "feature_decay": feature_decay,
            "bias": bias,
            "loss": loss,
            "coupling": coupling,
            "restarts": restarts,
            "seed": seed,
        },
        effort={
            "steps": found.steps,
            "products": found.products,
            "decrement": found.decrement,
            "statistics": counted - began - found.seconds,
            "search": found.seconds,
            "certificate": ended - done,
            "seconds": ended - began,
        },
        assignment=assignment,
    )


def _rematch(
    points: Float[np.ndarray, "n d"],
    scaled: LazyRows,
    labels: Int[np.ndarray, " n"],
    solve: Callable[[LazyRows], tuple[Found, Statistics]],
    solved: Found,
    stats: Statistics,
) -> tuple[Int[np.ndarray, " n"], Found, Statistics]:
    """Alternate between the features and the optimal coupling of inputs with them."""
    chosen, inputs = np.arange(len(points)), materialize([points], scaled)
    for _ in range(100):
        ends = features_of(solved, stats, select_rows(inputs, chosen), labels)
        features = materialize([points], ends)
        matched = wasserstein(features, inputs, solver=Exact()).coupling
        trial, fresh = processes.on_rank_zero(partial(solve, select_rows(inputs, matched)))
        if trial.point.value() >= solved.point.value() * (1 - 1e-12):
            break
        chosen, solved, stats = matched, trial, fresh
    return chosen, solved, stats


# --- pieces --------------------------------------------------------------------------------------


def features_of(
    found: Found, stats: Statistics, inputs: LazyRows, labels: Int[np.ndarray, " n"]
) -> LazyRows:
    """H_L of the samples whose inputs, scaled as those of `stats`, are given."""
    w = found.point.weights @ stats.basis.T
    onehot = np.eye(len(w))
    return LazyRows(
        inputs.shape,
        lambda rows: found.point.features(inputs[rows], w, onehot[labels[rows]], rows),
        max(len(w), max_width(inputs)),
    )


def check_converged(found: Found) -> None:
    """Refuse a point at which Newton's steps stopped early."""
    if found.decrement > UNCONVERGED:
        problem = found.problem
        raise ConvergenceError(
            f"MUFM's Newton steps stopped at a decrement of {found.decrement:.1e}, above "
            f"{UNCONVERGED:g}; weight_decay={problem.weight_decay:g} and a transport strength of "
            f"{problem.mu:g} for the whole path are too far apart for these features: rescale x, "
            "or change them."
        )


def monotonicity(
    first: Sliceable, last: Sliceable, labels: Int[np.ndarray, " n"]
) -> tuple[float, float, float]:
    """Return the coefficients of q(t), whose sign is that of d/dt of w(t)/b(t) on the line."""
    _, labels = np.unique(labels, return_inverse=True)
    first_means, last_means = (class_means(each, labels) for each in (first, last))

    def within(rows: slice, start: Matrix, end: Matrix) -> list[float]:
        d0 = start - first_means[labels[rows]]
        moved = d0 - (end - last_means[labels[rows]])
        return [float(np.vdot(*pair)) for pair in ((d0, d0), (d0, moved), (moved, moved))]

    w0, w1, w2 = (w / len(labels) for w in sum_over_rows(within, first, last))
    k = len(first_means)
    m0, m1 = (means - means.mean(0) for means in (first_means, last_means))
    b0, b1, b2 = np.sum(m0**2) / k, np.sum(m0 * (m1 - m0)) / k, np.sum((m1 - m0) ** 2) / k
    return (
        float(-(w1 * b0 + w0 * b1)),
        float(w2 * b0 - w0 * b2),
        float(w2 * b1 + w1 * b2),
    )


def _sums(
    first: Sliceable,
    last: Sliceable,
    w: Matrix,
    b: Float[np.ndarray, " K"],
    labels: Int[np.ndarray, " n"],
    loss: str,
) -> tuple[float, float, float]:
    """Mean loss, mean |H - X|^2 and mean |H|^2."""

    def terms(rows: slice, start: Matrix, end: Matrix) -> list[float]:
        logits, y = end @ w.T + b, (np.arange(end.shape[0]), labels[rows])
        if loss == "mse":
            logits[y] -= 1
            fit = float(np.vdot(logits, logits)) / 2
        else:
            fit = -float(np.sum(log_softmax(logits, axis=1)[y]))
        return [fit, float(np.sum((end - start) ** 2)), float(np.vdot(end, end))]

    fit, moved, size = sum_over_rows(terms, first, last, width=len(w))
    return fit / len(labels), moved / len(labels), size / len(labels)


def _classes(labels: Int[np.ndarray, " n"]) -> int:
    classes = int(labels.max()) + 1
    missing = np.flatnonzero(np.bincount(labels, minlength=classes) == 0)
    if classes < 2:
        raise ArgumentError("MUFM needs at least two classes; all labels are 0.")
    if len(missing):
        raise ArgumentError(f"No sample of class {missing[0]}; number the classes 0 to K - 1.")
    return classes


def _bias_decay(bias: bool | float) -> float:
    """The decay lb of the bias: 0 for a free one, infinite for none."""
    if isinstance(bias, bool):
        return 0.0 if bias else float("inf")
    if not bias > 0:
        raise ArgumentError(f"bias is True (free), False (none) or its decay > 0, not {bias}.")
    return float(bias)


def _check(
    layers: int,
    weight_decay: float,
    transport: float,
    feature_decay: float,
    loss: str,
    coupling: str,
    restarts: int,
) -> None:
    if layers < 1:
        raise ArgumentError(f"layers must be at least 1, not {layers}.")
    for name, value in (("weight_decay", weight_decay), ("transport", transport)):
        if not (value > 0 and np.isfinite(value)):
            raise ArgumentError(f"{name} must be positive, not {value}.")
    if not (feature_decay >= 0 and np.isfinite(feature_decay)):
        raise ArgumentError(f"feature_decay must be at least 0, not {feature_decay}.")
    if loss not in ("mse", "ce"):
        raise ArgumentError(f"Unknown loss {loss!r}; choose mse or ce.")
    if coupling not in ("trajectory", "class", "free"):
        raise ArgumentError(f"Unknown coupling {coupling!r}; choose trajectory, class or free.")
    if restarts < 0:
        raise ArgumentError(f"restarts must be at least 0, not {restarts}.")
