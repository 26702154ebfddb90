"""Deep unconstrained feature models: linear, and with ReLUs.

    F = (1/2N) ||W_L s(W_{L-1} ... s(W_1 H)) + b 1^T - Y||_F^2
        + sum_l (lambda_l / 2) ||W_l||_F^2 + (lambda_H / 2) ||H||_F^2 + (lambda_b / 2) ||b||^2

s is the identity or the ReLU, H (d x N) are the features, and Y (K x N) are the one-hot labels.
L = 2 is the extended model (Tirer, Bruna 2022), L > 2 the deep one (Súkeník, Mondelli, Lampert
2023). The first activation is after W_1: H itself may be negative.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from ..errors import ArgumentError
from ..results import Result
from .arguments import accepts_former_bias, all_decays, check_method
from .certify import evaluate
from .descent import multistart, points_around, random_points
from .problem import Problem
from .solution import UFMSolution
from .spectral import spectral_optimum

ACTIVE = 1e-4  # DNC3 leaves out rows of W_l with a norm of at most this fraction of the largest


@accepts_former_bias
def fit_deep(
    labels: Any,
    *,
    dim: int,
    weight_decays: Sequence[float],
    feature_decay: float,
    bias: str | float | int = "none",
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
    """Solve a model with L layers of weights and squared loss.

    Linear models without a bias, or with a free one, are solved in closed form. For ReLU models the
    closed form is deep neural collapse: orthogonal class means at every layer. It is the minimum
    for two balanced classes, but not in general for more (`lower_rank`). By default ReLU models are
    therefore solved numerically. Several random starts are needed because zero is a local minimum,
    and so are points that fit only some of the classes. If every start ends above the objective of
    zero, zero is returned.

    Parameters
    ----------
    labels : array_like of int, (N,)
        Classes 0, ..., K - 1, each present.
    dim : int
        Width d of the features and of every hidden layer.
    weight_decays : sequence of float, (L,)
        lambda_1, ..., lambda_L > 0; the last one is for the classifier.
    feature_decay : float
        lambda_H > 0.
    bias : {"free", "none"} or float, optional
        A number is its decay lb >= 0 (0: free, ``math.inf``: none).
    activation : {"linear", "relu"}
    method : {"auto", "closed", "numerical"}
        "auto" uses the closed form for linear models without a bias or with a free one, unless
        `start` is given, and otherwise L-BFGS ("numerical").
    restarts : int
        Number of random starts.
    tolerance : float
        Norm of the gradient at which a descent stops; the ReLU's derivative at 0 is taken as 0.
    seed, max_steps, collapsed
        See `fit_ce`.
    start : UFMSolution, optional
        Search near this point: the starts are the point itself and Gaussian perturbations of it,
        with all N feature vectors (`collapsed` is ignored). The labels, `dim` and the number of
        layers must be those of the model, and there must be a bias if and only if the model has
        one; decays and activation may differ.
    spread : float
        Standard deviation of these perturbations, relative to the mean absolute entry of `start`.
    device : str
        PyTorch device of the descents.

    Raises
    ------
    ArgumentError
        See `Problem.checked`. Also raised if a closed form is requested that does not exist, or if
        `start` is of a model with other variables.

    Examples
    --------
    >>> from wgeo import ufm
    >>> decays = {"weight_decays": [1e-3] * 3, "feature_decay": 1e-3}
    >>> solution = ufm.fit_deep([0, 1] * 5, dim=4, **decays)
    >>> solution.model, solution.certificate.verdict, round(solution.collapse().nc1, 6)
    ('dufm-mse-linear', 'global', 0.0)
    """
    start_time = time.perf_counter()
    decays = all_decays(feature_decay, weight_decays)
    problem = Problem.checked(labels, dim, decays, bias, activation=activation)
    check_method(method)
    if start is not None:
        _check_start(start, problem)
    separable = problem.bias_decay == 0 or not problem.with_bias
    if method == "closed" or (
        method == "auto" and activation == "linear" and separable and start is None
    ):
        return replace(_closed(problem), seconds=time.perf_counter() - start_time)
    if start is None:
        x = random_points(problem.collapsed() if collapsed else problem, restarts, seed)
    else:
        collapsed = False
        x = points_around(start, restarts, spread, seed)
    solution = multistart(problem, x.to(device), collapsed, tolerance, max_steps, seed)
    zero = _zero(solution)
    best = zero if zero.objective < solution.objective else solution
    return replace(best, seconds=time.perf_counter() - start_time)


def _check_start(start: UFMSolution, problem: Problem) -> None:
    """Raise ArgumentError if the variables of `start` are not those of the problem."""
    if not isinstance(start, UFMSolution):
        raise ArgumentError(f"`start` must be a UFMSolution, not {type(start).__name__}.")
    if not np.array_equal(start.labels, problem.labels):
        raise ArgumentError("`start` has other labels than the model; pass the labels of `start`.")
    if start.problem.shapes != problem.shapes:
        raise ArgumentError(
            f"The factors and bias of `start` have shapes {start.problem.shapes}; the model's are "
            f"{problem.shapes}."
        )


def _zero(solution: UFMSolution) -> UFMSolution:
    """Return the solution moved to zero features and weights, which no random start reaches."""
    problem = solution.problem
    zero = evaluate(
        problem,
        H=0 * solution.H,
        weights=[0 * W for W in solution.weights],
        b=problem.counts / problem.num_samples / (1 + problem.bias_decay),
        settings=solution.settings,
    )
    return replace(
        zero,
        values=solution.values,
        gradient_norms=solution.gradient_norms,
        steps=solution.steps,
    )


def _closed(problem: Problem) -> UFMSolution:
    narrow = problem.dim < problem.num_classes
    if problem.activation == "relu" and (problem.with_bias or narrow):
        raise ArgumentError(
            "Orthogonal class means at every layer of a ReLU model need dim >= K and no bias; use "
            "`method='numerical'`."
        )
    optimum = spectral_optimum(problem)
    H, *weights = optimum.factors
    return evaluate(problem, H=H, weights=weights, b=optimum.b, settings={"method": "closed"})


@dataclass(frozen=True, repr=False)
class DeepCollapse(Result):
    """Deep neural collapse at the input of W_l (Súkeník, Mondelli, Lampert 2023, definition 3).

    Attributes
    ----------
    layer : int
        l, counted from 1.
    dnc1 : float
        tr Sigma_W / mean ||x||^2 of the input of W_l, in [0, 1]; 0 at collapse.
    dnc2 : float or None
        (Condition number of the matrix of the input's class means) - 1; 0 for orthogonal means of
        equal norms. None for class means of rank below K, and for l = 1, because the optimum does
        not determine the angles of H.
    dnc3 : float or None
        1 - min_i max_k cos(row i of W_l, mean of class k) over the rows that do not vanish; in
        [0, 2], 0 at collapse. None for l = 1, or if the input or W_l is zero.

    Examples
    --------
    >>> from wgeo import ufm
    >>> decays = {"weight_decays": [1e-3] * 3, "feature_decay": 1e-3}
    >>> solution = ufm.fit_deep([0, 1] * 5, dim=4, activation="relu", method="closed", **decays)
    >>> last = ufm.deep_collapse(solution)[-1]
    >>> last.layer, round(last.dnc1, 6), round(last.dnc2, 6), abs(round(last.dnc3, 6))
    (3, 0.0, 0.0, 0.0)
    """

    layer: int
    dnc1: float
    dnc2: float | None
    dnc3: float | None


def deep_collapse(solution: UFMSolution) -> tuple[DeepCollapse, ...]:
    """Measure DNC1 to DNC3 of a solution at the input of every W_l, l = 1, ..., L.

    Examples
    --------
    >>> from wgeo import ufm
    >>> decays = {"weight_decays": [1e-3] * 3, "feature_decay": 1e-3}
    >>> solution = ufm.fit_deep([0, 1] * 5, dim=4, activation="relu", method="closed", **decays)
    >>> [round(row.dnc1, 6) for row in ufm.deep_collapse(solution)]
    [0.0, 0.0, 0.0]
    """
    pairs = zip(solution.layers, solution.weights, strict=True)
    return tuple(
        deep_collapse_of(X, solution.labels, W, layer=layer)
        for layer, (X, W) in enumerate(pairs, 1)
    )


def deep_collapse_of(
    X: Float[np.ndarray, "d N"], labels: Any, W: Float[np.ndarray, "r d"], *, layer: int
) -> DeepCollapse:
    """Measure a layer from its input X (columns are samples) and its weights W."""
    y = np.asarray(labels)
    counts = np.bincount(y)
    means = np.stack([X[:, y == k].mean(1) for k in range(len(counts))], 1)
    power = float((X**2).sum()) / len(y)
    within = float(((X - means[:, y]) ** 2).sum()) / len(y)
    dnc1 = within / power if power > 0 else 0.0
    if layer == 1 or power == 0:
        return DeepCollapse(layer, dnc1, None, None)
    sizes = np.linalg.svd(means, compute_uv=False)
    full_rank = len(sizes) == len(counts) and sizes[-1] > 1e-9 * sizes[0]
    norms = np.linalg.norm(W, axis=1)
    active = norms > ACTIVE * max(float(norms.max()), 1e-300)
    lengths = np.outer(norms[active], np.maximum(np.linalg.norm(means, axis=0), 1e-300))
    cosines = (W[active] @ means / lengths).max(1)
    return DeepCollapse(
        layer,
        dnc1,
        float(sizes[0] / sizes[-1]) - 1 if full_rank else None,
        1 - float(cosines.min()) if active.any() else None,
    )
