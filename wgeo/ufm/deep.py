"""Deep unconstrained-feature models: linear, and with ReLUs.

    F = (1/2N) ||W_L s(W_{L-1} ... s(W_1 H)) - Y||_F^2
        + sum_l (lambda_l / 2) ||W_l||_F^2 + (lambda_H / 2) ||H||_F^2

L = 2 is the extended model (Tirer, Bruna 2022), larger L the deep one (Súkeník, Mondelli, Lampert
2023). The first activation is after W_1: H itself is free to be negative.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from ..errors import ArgumentError
from .certify import place
from .descent import points_around, random_points, search
from .problem import Problem, all_decays, check_method
from .solution import UFMSolution
from .spectral import spectral_optimum

ACTIVE = 1e-4  # rows of a weight below this share of the largest take part in no metric


def fit_deep(
    labels: Any,
    *,
    dim: int,
    weight_decays: Sequence[float],
    feature_decay: float,
    bias_decay: float | int | None = None,
    activation: str = "linear",
    method: str = "auto",
    restarts: int = 10,
    seed: int = 0,
    tolerance: float = 1e-6,
    max_steps: int = 10_000,
    collapsed: bool = False,
    start: UFMSolution | None = None,
    spread: float = 0.1,
    device: str = "cpu",
) -> UFMSolution:
    """Solve a model with L layers of weights.

    Linear models without a bias, or with a free one, are solved in closed form. For ReLU models
    the closed form is deep neural collapse, orthogonal frames at every layer: the minimum for two
    classes, and not for more (`lower_rank`). "auto" solves linear models in closed form and
    searches for ReLU ones from random starts, all in one tensor program: zero, and every point
    that gives up some classes, is a local minimum, so several starts are needed; zero itself is
    always among the candidates.

    Parameters
    ----------
    labels : array_like of int, (N,)
        Every class 0, ..., K - 1 occurs.
    dim : int
        Width d of the features and of every hidden layer.
    weight_decays : sequence of float, (L,)
        lambda_1, ..., lambda_L > 0, the classifier's last.
    feature_decay : float
        lambda_H > 0.
    bias_decay : float, optional
        None (the default) and ``math.inf``: no bias; 0: a free one.
    activation : {"linear", "relu"}
    method : {"auto", "closed", "numerical"}
    restarts : int
        Random starts.
    seed : int
    tolerance : float
        On the norm of the gradient; the ReLU's derivative at 0 counts as 0.
    max_steps : int
        Evaluations that a start may take.
    collapsed : bool
        Descend with one feature a class, which is no loss at the minimum, instead of all N.
    start : UFMSolution, optional
        Search around this point instead: the first start is the point itself, the others are
        `spread` (relative, entrywise Gaussian) aside. Always with all N features.
    device : str
        Where the tensor program runs.

    Raises
    ------
    ArgumentError
        See `Problem.checked`; a closed form that does not exist.
    """
    began = time.perf_counter()
    lb = math.inf if bias_decay is None else bias_decay
    decays = all_decays(feature_decay, weight_decays)
    problem = Problem.checked(labels, dim, decays, lb, activation=activation)
    check_method(method)
    splits = problem.bias_decay == 0 or not problem.with_bias
    if method == "closed" or (method == "auto" and activation == "linear" and splits and not start):
        return _closed(problem, began)
    if start is None:
        x = random_points(problem.collapsed() if collapsed else problem, restarts, seed)
    else:
        collapsed = False
        x = points_around(start, restarts, spread, seed)
    found = search(
        problem,
        x.to(device),
        collapsed=collapsed,
        began=began,
        tolerance=tolerance,
        max_steps=max_steps,
        seed=seed,
        settings={"method": "numerical", "collapsed": collapsed},
    )
    zero = _zero(found)
    return zero if zero.objective < found.objective else found


def _zero(found: UFMSolution) -> UFMSolution:
    """The point without features and weights, which no random start reaches exactly."""
    problem = found.problem
    b = problem.counts / problem.num_samples / (1 + problem.bias_decay)
    zero = place(
        problem,
        H=0 * found.H,
        weights=[0 * W for W in found.weights],
        b=b if problem.with_bias else None,
    )
    return replace(
        found,
        H=zero.H,
        weights=zero.weights,
        b=zero.b,
        objective=zero.objective,
        certificate=zero.certificate,
    )


def _closed(problem: Problem, began: float) -> UFMSolution:
    relu = problem.activation == "relu"
    if relu and (problem.with_bias or problem.dim < problem.num_classes):
        raise ArgumentError(
            "Orthogonal frames at every layer of a ReLU model need dim >= K and no bias; use "
            "`method='numerical'`."
        )
    optimum = spectral_optimum(problem)
    H, *weights = optimum.factors
    b = optimum.b if problem.with_bias else None
    return place(problem, H=H, weights=weights, b=b, settings={"method": "closed"}, began=began)


@dataclass(frozen=True)
class DeepCollapse:
    """Deep neural collapse at the input of W_l (Súkeník, Mondelli, Lampert 2023, definition 3).

    Attributes
    ----------
    layer : int
        l, counted from 1.
    dnc1 : float
        tr Sigma_W / mean ||x||^2 of the features that enter W_l, in [0, 1]; 0 at collapse.
    dnc2 : float or None
        Condition number of the matrix of their class means minus 1; 0 for an orthogonal frame.
        None for l = 1, where the optimum leaves the features' angles open, and for features of
        rank below K.
    dnc3 : float or None
        1 - the least cosine between a row of W_l and the class mean nearest to it in angle, in
        [0, 2]; rows of vanishing norm do not count. 0 at collapse; None for l = 1.
    """

    layer: int
    dnc1: float
    dnc2: float | None
    dnc3: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, ready for JSON."""
        return asdict(self)


def deep_collapse(solution: UFMSolution) -> tuple[DeepCollapse, ...]:
    """Measure DNC1 to DNC3 at every layer of a solution, the classifier's last."""
    found = []
    y = solution.labels
    pairs = zip(solution.layers, solution.weights, strict=True)
    for l, (X, W) in enumerate(pairs, 1):  # noqa: E741
        found.append(deep_collapse_of(X, y, W, layer=l))
    return tuple(found)


def deep_collapse_of(
    X: Float[np.ndarray, "d N"], labels: Any, W: Float[np.ndarray, "r d"], *, layer: int
) -> DeepCollapse:
    """Measure one layer: features X that enter it (columns are samples) and its weights W."""
    y = np.asarray(labels)
    counts = np.bincount(y)
    means = np.stack([X[:, y == k].mean(1) for k in range(len(counts))], 1)
    power = float((X**2).sum()) / len(y)
    within = float(((X - means[:, y]) ** 2).sum()) / len(y)
    dnc1 = within / power if power > 0 else 0.0
    if layer == 1 or power == 0:
        return DeepCollapse(layer, dnc1, None, None)
    sizes = np.linalg.svd(means, compute_uv=False)
    full = len(sizes) == len(counts) and sizes[-1] > 1e-9 * sizes[0]
    norms = np.linalg.norm(W, axis=1)
    rows = W[norms > ACTIVE * max(float(norms.max()), 1e-300)]
    lengths = np.linalg.norm(rows, axis=1)[:, None] * np.maximum(
        np.linalg.norm(means, axis=0), 1e-300
    )
    cosines = (rows @ means / lengths).max(1)
    return DeepCollapse(
        layer,
        dnc1,
        float(sizes[0] / sizes[-1]) - 1 if full else None,
        1 - float(cosines.min()) if len(rows) else None,
    )
