"""The unconstrained-feature model with squared loss (Tirer, Bruna 2022; Zhou et al. 2022).

    F(W, H, b) = (1/2N) ||W H + b 1^T - Y||_F^2
                 + (lw/2) ||W||_F^2 + (lh/2) ||H||_F^2 [+ (lb/2) ||b||^2]

Without a bias, or with a free one, `spectral` has the minimum for any class sizes and any d. With
a regularised bias, in the notation there and P = nu nu^T, theta = lb/(1 + lb), what is left is

    min_A  ||(A - D^(1/2)) (I - P + sqrt(theta) P)||_F^2 / (2N) + c ||A||_*,   c = sqrt(lw lh),

solved here by A = D^(1/2) - N c I - (N c/lb) P where that is positive semi-definite, for balanced
classes always, and otherwise as the smooth convex problem in b that remains when A is minimised
out by soft-thresholding.
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize

from ..errors import ArgumentError
from .certify import place
from .descent import random_points, search
from .problem import Problem, check_method
from .solution import UFMSolution
from .spectral import spectral_optimum
from .theorems import factorise


def fit_mse(
    labels: Any,
    *,
    dim: int,
    weight_decay: float,
    feature_decay: float,
    bias_decay: float | int | None = None,
    method: str = "auto",
    restarts: int | None = None,
    seed: int = 0,
    tolerance: float = 1e-9,
    max_steps: int = 10_000,
    collapsed: bool = True,
) -> UFMSolution:
    """Solve the squared-loss model and certify what was found.

    Without a bias the class means form an orthogonal frame, with a free one a simplex ETF; with a
    regularised one something between, an ETF still where lb/(1 + lb) <= K sqrt(n lw lh). Of
    imbalanced classes those with n_k <= N^2 lw lh vanish (minority collapse).

    Parameters
    ----------
    labels : array_like of int, (N,)
        Every class 0, ..., K - 1 occurs.
    dim : int
        Feature dimension d.
    weight_decay, feature_decay : float
        lw, lh > 0.
    bias_decay : float, optional
        lb; None (the default) and ``math.inf``: no bias; 0: a free one.
    method : {"auto", "closed", "numerical"}
        Singular-value thresholding where it is exact and L-BFGS elsewhere, or one of the two.
    restarts : int, optional
        Random starts of the numerical method; 1 for d >= K, else 20.
    seed, tolerance, max_steps, collapsed
        See `fit_ce`.

    Raises
    ------
    ArgumentError
        See `Problem.checked`; ``method="closed"`` with a regularised bias whose solution has a
        rank above d.
    """
    began = time.perf_counter()
    lb = math.inf if bias_decay is None else bias_decay
    problem = Problem.checked(labels, dim, (feature_decay, weight_decay), lb)
    check_method(method)
    if method != "numerical":
        found = _closed(problem, began)
        if found is not None:
            return found
        if method == "closed":
            raise ArgumentError(
                f"With a regularised bias the optimum needs more than dim = {dim} directions, and "
                "no closed form is known below; use `method='numerical'`."
            )
    restarts = (1 if dim >= problem.num_classes else 20) if restarts is None else restarts
    inner = problem.collapsed() if collapsed else problem
    return search(
        problem,
        random_points(inner, restarts, seed),
        collapsed=collapsed,
        began=began,
        tolerance=tolerance,
        max_steps=max_steps,
        seed=seed,
        settings={"method": "numerical", "collapsed": collapsed},
    )


def _closed(problem: Problem, began: float) -> UFMSolution | None:
    settings = {"method": "closed"}
    if problem.bias_decay in (0.0, math.inf):
        optimum = spectral_optimum(problem)
        H, W = optimum.factors
        b = optimum.b if problem.with_bias else None
        return place(problem, H=H, weights=[W], b=b, settings=settings, began=began)
    A, b = regularised_bias(problem.counts, problem.decay_mean, problem.bias_decay)
    U, z, V = np.linalg.svd(A)
    z[z < 1e-12 * max(1.0, z[0])] = 0.0
    if np.count_nonzero(z) > problem.dim:
        return None
    classes = V / np.sqrt(problem.counts) @ np.eye(len(z))[:, problem.labels]
    H, W = factorise(problem, U, z, classes)
    return place(problem, H=H, weights=[W], b=b, settings=settings, began=began)


def regularised_bias(
    counts: Float[np.ndarray, " K"] | Any, c: float, lb: float
) -> tuple[Float[np.ndarray, "K K"], Float[np.ndarray, " K"]]:
    """Return A = Zbar D^(1/2) and b at the minimum with 0 < lb < infinity; c = sqrt(lw lh)."""
    counts = np.asarray(counts, dtype=float)
    N, roots = counts.sum(), np.sqrt(counts)
    K, nu = len(counts), roots / math.sqrt(N)
    P = np.outer(nu, nu)
    A = np.diag(roots) - N * c * np.eye(K) - N * c / lb * P
    if np.linalg.eigvalsh(A)[0] >= 0:
        return A, c * roots / lb
    if np.ptp(counts) == 0:  # then alpha (I - J/K) + beta J/K, and beta = 0 here
        alpha = max(1 - N * c / roots[0], 0.0)
        return roots[0] * alpha * (np.eye(K) - P), np.full(K, 1 / (K * (1 + lb)))
    return _by_bias(roots, c, lb)


def _by_bias(
    roots: Float[np.ndarray, " K"], c: float, lb: float
) -> tuple[Float[np.ndarray, "K K"], Float[np.ndarray, " K"]]:
    """Minimise over b what is left when A = SVT_{Nc}(D^(1/2) - b s^T), s = diag D^(1/2)."""
    N = float(roots @ roots)

    def best(b: Float[np.ndarray, " K"]) -> tuple[Float[np.ndarray, "K K"], float]:
        U, y, V = np.linalg.svd(np.diag(roots) - np.outer(b, roots))
        z = np.maximum(y - N * c, 0.0)
        return U * z @ V, float(((y - z) ** 2).sum() / (2 * N) + c * z.sum())

    def objective(b: Float[np.ndarray, " K"]) -> tuple[float, Float[np.ndarray, " K"]]:
        A, value = best(b)
        residual = A + np.outer(b, roots) - np.diag(roots)
        return value + lb / 2 * float(b @ b), residual @ roots / N + lb * b

    b = minimize(objective, roots**2 / N, jac=True, method="BFGS", options={"gtol": 1e-13}).x
    for _ in range(20):  # BFGS ends where differences of F are rounding; the map contracts further
        b = (roots**2 - best(b)[0] @ roots) / (N * (1 + lb))
    return best(b)[0], b
