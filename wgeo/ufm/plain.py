"""The unconstrained feature model with one layer of weights: cross-entropy and squared loss.

F(W, H, b) = (1/N) sum_i l(W h_i + b, y_i)
             + (lw/2) ||W||_F^2 + (lh/2) ||H||_F^2 + (lb/2) ||b||^2

W (K x d) is the classifier, H (d x N) are the features, and lw, lh and lb are the decays. The loss
is the cross-entropy (Zhu et al. 2021) or ||W h_i + b - y_i||^2 / 2 with one-hot labels y_i (Tirer,
Bruna 2022; Zhou et al. 2022).

Squared loss: without a bias, or with a free one, `spectral` computes the minimum for any class
sizes and any d. With a regularized bias, let P = nu nu^T and theta = lb/(1 + lb), with nu, D and
Zbar as in `spectral`. It remains to find A = Zbar D^(1/2) from

    min_A  ||(A - D^(1/2)) (I - P + sqrt(theta) P)||_F^2 / (2N) + c ||A||_*,   c = sqrt(lw lh).

The solution is A = D^(1/2) - N c I - (N c/lb) P if that is positive semi-definite. If it is not,
balanced classes have another closed form. For other class sizes A is eliminated by
soft-thresholding, which leaves a smooth convex problem in b.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import minimize

from ..arrays.checks import as_count
from ..errors import ArgumentError
from .arguments import accepts_former_bias, check_decays, check_method
from .certify import evaluate
from .descent import multistart, random_points
from .problem import Problem
from .solution import UFMSolution
from .spectral import factorize, spectral_optimum

_ROUNDING = 4 * float(np.finfo(np.float64).eps)  # relative error of K sqrt(n lw lh)


@dataclass(frozen=True)
class CrossEntropyOptimum:
    """The global minimum of the cross-entropy model for K classes of n samples and d >= K - 1.

    Attributes
    ----------
    value : float
        F* = -log(1 - p) + p a, with the `error` p and the `margin` a; log K if zero is optimal.
    margin : float
        a = log((K - 1)(1 - p)/p), the difference between the correct logit and each other logit.
    error : float
        p, the total softmax probability of the wrong classes: (K - 1) q with q = sqrt(n lw lh), or
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

    The loss is the cross-entropy. W = 0, H = 0 is optimal if K sqrt(n lw lh) >= 1.

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
    # separate roots, because the product of the decays can underflow
    q = math.sqrt(per_class) * math.sqrt(weight_decay) * math.sqrt(feature_decay)
    if not K * q < 1 - _ROUNDING:
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

    For d >= K - 1, every critical point is a global minimum or a strict saddle, whether or not
    classes are balanced. A descent from one random start finds the minimum, and for balanced
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
    check_method(method)
    wide = dim >= problem.num_classes - 1
    has_closed_form = problem.balanced and wide
    if method == "closed" and not has_closed_form:
        raise ArgumentError(
            "The closed form is for balanced classes and dim >= K - 1; use `method='numerical'`."
        )
    if has_closed_form and method != "numerical":
        solution = _closed_ce(problem)
    else:
        restarts = (1 if wide else 20) if restarts is None else restarts
        x = random_points(problem.collapsed() if collapsed else problem, restarts, seed)
        solution = multistart(problem, x, collapsed, tolerance, max_steps, seed)
    return replace(solution, seconds=time.perf_counter() - start_time)


def _closed_ce(problem: Problem) -> UFMSolution:
    """Return the solution with W H = a (I - J/K) Y, whose K - 1 singular values are a sqrt(n)."""
    K, n = problem.num_classes, int(problem.counts[0])
    lh, lw = problem.decays
    margin = closed_form_ce(K, n, lw, lh).margin
    U, z, V = np.linalg.svd(np.eye(K) - 1 / K)
    z[-1] = 0.0
    classes = V / math.sqrt(n) @ problem.targets.numpy()
    H, W = factorize(problem, U, z * margin * math.sqrt(n), classes)
    return evaluate(problem, H=H, weights=[W], settings={"method": "closed"})


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
    simplex ETF with a free one. With a regularized bias the result lies between the two, and is an
    ETF if lb/(1 + lb) <= K sqrt(n lw lh). Without a bias, the means of classes with
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
        "auto" uses the closed form if there is one, and otherwise L-BFGS ("numerical").
    restarts : int, optional
        Number of random starts of the numerical method. Default 1 for d >= K, otherwise 20.
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
    solution = None if method == "numerical" else _closed_mse(problem)
    if solution is None and method == "closed":
        raise ArgumentError(
            f"With a regularized bias the optimum needs more than dim = {dim} directions, and "
            "no closed form is known for fewer; use `method='numerical'`."
        )
    if solution is None:
        restarts = (1 if dim >= problem.num_classes else 20) if restarts is None else restarts
        x = random_points(problem.collapsed() if collapsed else problem, restarts, seed)
        solution = multistart(problem, x, collapsed, tolerance, max_steps, seed)
    return replace(solution, seconds=time.perf_counter() - start_time)


def _closed_mse(problem: Problem) -> UFMSolution | None:
    """Return the minimum; None if the bias is regularized and A has a rank above d."""
    if problem.bias_decay in (0.0, math.inf):
        optimum = spectral_optimum(problem)
        (H, W), b = optimum.factors, optimum.b
    else:
        A, b = _regularized_bias(problem)
        U, z, V = np.linalg.svd(A)
        z[z < 1e-12 * max(1.0, z[0])] = 0.0
        if np.count_nonzero(z) > problem.dim:
            return None
        classes = V / np.sqrt(problem.counts) @ problem.targets.numpy()
        H, W = factorize(problem, U, z, classes)
    return evaluate(problem, H=H, weights=[W], b=b, settings={"method": "closed"})


def _regularized_bias(
    problem: Problem,
) -> tuple[Float[np.ndarray, "K K"], Float[np.ndarray, " K"]]:
    """Return A = Zbar D^(1/2) and b at the minimum for 0 < lb < infinity."""
    N, K, c, lb = problem.num_samples, problem.num_classes, problem.decay_mean, problem.bias_decay
    roots = np.sqrt(problem.counts)
    nu = roots / math.sqrt(N)
    P = np.outer(nu, nu)
    A = np.diag(roots) - N * c * np.eye(K) - N * c / lb * P
    if np.linalg.eigvalsh(A)[0] >= 0:
        return A, c * roots / lb
    if problem.balanced:  # then A / roots[0] = alpha (I - J/K) + beta J/K, and beta = 0 here
        alpha = max(1 - N * c / roots[0], 0.0)
        return roots[0] * alpha * (np.eye(K) - P), np.full(K, 1 / (K * (1 + lb)))
    return _by_bias(roots, c, lb)


def _by_bias(
    roots: Float[np.ndarray, " K"], c: float, lb: float
) -> tuple[Float[np.ndarray, "K K"], Float[np.ndarray, " K"]]:
    """Minimize over b alone, with A = SVT_{Nc}(D^(1/2) - b s^T) for s = `roots`.

    SVT_t lowers every singular value by t, but not below 0.
    """
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
    for _ in range(20):  # BFGS stops at rounding errors of F; this map contracts
        b = (roots**2 - best(b)[0] @ roots) / (N * (1 + lb))
    return best(b)[0], b
