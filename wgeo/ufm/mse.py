"""The unconstrained feature model with squared loss (Tirer, Bruna 2022; Zhou et al. 2022).

    F(W, H, b) = (1/2N) ||W H + b 1^T - Y||_F^2
                 + (lw/2) ||W||_F^2 + (lh/2) ||H||_F^2 [+ (lb/2) ||b||^2]

W (K x d) is the classifier, H (d x N) are the features, Y (K x N) are the one-hot labels, and lw,
lh and lb are the decays. Without a bias, or with a free one, `spectral` computes the minimum for
any class sizes and any d. With a regularized bias, P = nu nu^T and theta = lb/(1 + lb) in the
notation of `spectral`, it remains to solve

    min_A  ||(A - D^(1/2)) (I - P + sqrt(theta) P)||_F^2 / (2N) + c ||A||_*,   c = sqrt(lw lh).

The solution is A = D^(1/2) - N c I - (N c/lb) P if that is positive semi-definite. Balanced classes
have a closed form in any case; otherwise A is eliminated by soft-thresholding and a smooth convex
problem in b remains.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize

from ..errors import ArgumentError
from .bias import accepts_former_bias
from .certify import evaluate
from .descent import multistart, random_points
from .problem import Problem, check_method
from .solution import UFMSolution
from .spectral import spectral_optimum
from .theorems import factorize


@accepts_former_bias
def fit_mse(
    labels: Any,
    *,
    dim: int,
    weight_decay: float,
    feature_decay: float,
    bias: str | float | int = "none",
    method: str = "auto",
    restarts: int | None = None,
    seed: int = 0,
    tolerance: float = 1e-9,
    max_steps: int = 10_000,
    collapsed: bool = True,
) -> UFMSolution:
    """Solve the squared-loss model and certify the solution.

    For balanced classes and d >= K, the class means form an orthogonal frame without a bias, and a
    simplex ETF with a free one. With a regularized bias the result lies between the two; it is
    still an ETF if lb/(1 + lb) <= K sqrt(n lw lh). Without a bias, the means of classes with
    n_k <= N^2 lw lh vanish (minority collapse).

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
        "auto" uses singular-value thresholding if it is exact, and otherwise L-BFGS ("numerical").
    restarts : int, optional
        Number of random starts of the numerical method; default 1 for d >= K, otherwise 20.
    seed, tolerance, max_steps, collapsed
        See `fit_ce`.

    Raises
    ------
    ArgumentError
        See `Problem.checked`. Also raised for ``method="closed"`` with a regularized bias if the
        rank of the solution exceeds d.

    Examples
    --------
    Without a bias the class means are orthogonal, and their norms are equal:

    >>> import numpy as np
    >>> from wgeo import ufm
    >>> solution = ufm.fit_mse([0, 1, 2] * 5, dim=4, weight_decay=1e-3, feature_decay=1e-3)
    >>> means = solution.H[:, :3]
    >>> gram = means.T @ means
    >>> np.allclose(gram, gram[0, 0] * np.eye(3))
    True
    """
    start_time = time.perf_counter()
    problem = Problem.checked(labels, dim, (feature_decay, weight_decay), bias)
    check_method(method)
    if method != "numerical":
        closed = _closed(problem)
        if closed is not None:
            return replace(closed, seconds=time.perf_counter() - start_time)
        if method == "closed":
            raise ArgumentError(
                f"With a regularized bias the optimum needs more than dim = {dim} directions, and "
                "no closed form is known for fewer; use `method='numerical'`."
            )
    restarts = (1 if dim >= problem.num_classes else 20) if restarts is None else restarts
    x = random_points(problem.collapsed() if collapsed else problem, restarts, seed)
    solution = multistart(problem, x, collapsed, tolerance, max_steps, seed)
    return replace(solution, seconds=time.perf_counter() - start_time)


def _closed(problem: Problem) -> UFMSolution | None:
    settings = {"method": "closed"}
    if problem.bias_decay in (0.0, math.inf):
        optimum = spectral_optimum(problem)
        H, W = optimum.factors
        b = optimum.b if problem.with_bias else None
        return evaluate(problem, H=H, weights=[W], b=b, settings=settings)
    A, b = regularized_bias(problem.counts, problem.decay_mean, problem.bias_decay)
    U, z, V = np.linalg.svd(A)
    z[z < 1e-12 * max(1.0, z[0])] = 0.0
    if np.count_nonzero(z) > problem.dim:
        return None
    classes = V / np.sqrt(problem.counts) @ np.eye(len(z))[:, problem.labels]
    H, W = factorize(problem, U, z, classes)
    return evaluate(problem, H=H, weights=[W], b=b, settings=settings)


def regularized_bias(
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
    """Minimize over b alone, with A = SVT_{Nc}(D^(1/2) - b s^T) and s = diag D^(1/2)."""
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
    for _ in range(20):  # BFGS stops at rounding errors of F; this map contracts further
        b = (roots**2 - best(b)[0] @ roots) / (N * (1 + lb))
    return best(b)[0], b
