"""The unconstrained feature model with cross-entropy (Zhu et al. 2021).

F(W, H, b) = (1/N) sum_i CE(W h_i + b, y_i)
             + (lw/2) ||W||_F^2 + (lh/2) ||H||_F^2 + (lb/2) ||b||^2
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..arrays.checks import as_count
from ..errors import ArgumentError
from .bias import accepts_former_bias
from .certify import evaluate
from .descent import multistart, random_points
from .problem import Problem, check_decays, check_method
from .solution import UFMSolution
from .theorems import factorize

_ROUNDING = 4 * float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class CrossEntropyOptimum:
    """The global minimum for K balanced classes of n samples and d >= K - 1.

    Attributes
    ----------
    value : float
        F* = -log(1 - p) + p a, or log K if zero is optimal.
    margin : float
        a = log((K - 1)(1 - p)/p), the difference between the correct logit and each other logit.
    error : float
        p = (K - 1) q with q = sqrt(n lw lh), the total softmax probability of the wrong classes;
        (K - 1)/K if zero is optimal.
    rho : float
        ||W||_F^2 = a sqrt(n lh/lw) (K - 1).
    """

    value: float
    margin: float
    error: float
    rho: float


def closed_form_ce(
    num_classes: int, per_class: int, weight_decay: float, feature_decay: float
) -> CrossEntropyOptimum:
    """Return the value and the scale of the simplex ETF that minimizes F (Zhu et al. 2021).

    Zero is optimal if K sqrt(n lw lh) >= 1.

    Raises
    ------
    ArgumentError
        K < 2, n < 1, or a decay that is not a positive number.

    Examples
    --------
    >>> from wgeo import ufm
    >>> decays = {"weight_decay": 1e-3, "feature_decay": 1e-4}
    >>> optimum = ufm.closed_form_ce(num_classes=4, per_class=10, **decays)
    >>> solution = ufm.fit_ce([0, 1, 2, 3] * 10, dim=4, **decays, method="numerical")
    >>> round(optimum.value, 6), round(solution.objective, 6)
    (0.023719, 0.023719)
    """
    as_count(num_classes, "num_classes", 2)
    as_count(per_class, "per_class", 1)
    check_decays({"weight_decay": weight_decay, "feature_decay": feature_decay})
    K = num_classes
    q = math.sqrt(per_class) * math.sqrt(weight_decay) * math.sqrt(feature_decay)  # no underflow
    if not K * q < 1 - _ROUNDING:  # at the threshold, q has rounding errors
        return CrossEntropyOptimum(math.log(K), 0.0, (K - 1) / K, 0.0)
    p = (K - 1) * q
    margin = math.log1p(-p) - math.log(q)
    rho = margin * (K - 1) * math.sqrt(per_class * feature_decay / weight_decay)
    return CrossEntropyOptimum(-math.log1p(-p) + p * margin, margin, p, rho)


@accepts_former_bias
def fit_ce(
    labels: Any,
    *,
    dim: int,
    weight_decay: float,
    feature_decay: float,
    bias: str | float | int = "free",
    method: str = "auto",
    restarts: int | None = None,
    seed: int = 0,
    tolerance: float = 1e-9,
    max_steps: int = 10_000,
    collapsed: bool = True,
) -> UFMSolution:
    """Solve the cross-entropy model and certify the solution.

    For d >= K - 1 every critical point is a global minimum or a strict saddle, whether or not
    classes are balanced, and a descent from one random start finds the minimum. For balanced
    classes there is a closed form. For d < K - 1 there can be spurious local minima, and the best
    result of several starts is returned.

    Parameters
    ----------
    labels : array_like of int, (N,)
        Classes 0, ..., K - 1, each present.
    dim : int
        Feature dimension d.
    weight_decay, feature_decay : float
        lw, lh > 0.
    bias : {"free", "none"} or float, optional
        A number is its decay lb >= 0 (0: free, ``math.inf``: none).
    method : {"auto", "closed", "numerical"}
        "auto" uses the closed form if there is one, and otherwise L-BFGS ("numerical").
    restarts : int, optional
        Number of random starts of the numerical method. Default 1 for d >= K - 1, otherwise 20.
    seed : int
        Random seed of the starts.
    tolerance : float
        Norm of the gradient at which a descent stops; > 0.
    max_steps : int
        Limit on iterations for each start.
    collapsed : bool
        Descend with one feature vector per class instead of N vectors; the minimum is the same.

    Raises
    ------
    ArgumentError
        See `Problem.checked`. Also raised for ``method="closed"`` with imbalanced classes or
        d < K - 1.

    Examples
    --------
    >>> from wgeo import ufm
    >>> solution = ufm.fit_ce([0, 1, 2] * 5, dim=4, weight_decay=1e-3, feature_decay=1e-3)
    >>> layer = solution.collapse()
    >>> solution.certificate.verdict, round(layer.nc1, 6), round(layer.nc2_etf, 6)
    ('global', 0.0, 0.0)
    """
    start_time = time.perf_counter()
    problem = Problem.checked(labels, dim, (feature_decay, weight_decay), bias, loss="ce")
    K = problem.num_classes
    has_closed_form = problem.balanced and dim >= K - 1
    check_method(method)
    if method == "closed" and not has_closed_form:
        raise ArgumentError(
            "The closed form is for balanced classes and dim >= K - 1; use `method='numerical'`."
        )
    if has_closed_form and method != "numerical":
        return replace(_closed(problem), seconds=time.perf_counter() - start_time)
    restarts = (1 if dim >= K - 1 else 20) if restarts is None else restarts
    x = random_points(problem.collapsed() if collapsed else problem, restarts, seed)
    solution = multistart(problem, x, collapsed, tolerance, max_steps, seed)
    return replace(solution, seconds=time.perf_counter() - start_time)


def _closed(problem: Problem) -> UFMSolution:
    """Return the solution with W H = a (I - J/K) Y, whose K - 1 singular values are a sqrt(n)."""
    K, n = problem.num_classes, int(problem.counts[0])
    lh, lw = problem.decays
    margin = closed_form_ce(K, n, lw, lh).margin
    U, z, V = np.linalg.svd(np.eye(K) - 1 / K)
    z[-1] = 0.0
    classes = V / math.sqrt(n) @ np.eye(K)[:, problem.labels]
    H, W = factorize(problem, U, z * margin * math.sqrt(n), classes)
    return evaluate(problem, H=H, weights=[W], settings={"method": "closed"})
