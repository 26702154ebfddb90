"""Squared-loss models without activation, solved one singular value at a time.

Let m be the number of factors, lambda_i their decays, Y (K x N) the one-hot labels, and n the
vector of the class sizes n_k. The logits Z = Zbar Y are constant on classes. With D = diag(n_k) and
M = Zbar D^(1/2), the loss is ||M - T||_F^2 / (2N). Without a bias, T = D^(1/2). A free bias is
eliminated, which leaves T = D^(1/2) (I - nu nu^T) with nu = (n/N)^(1/2).

Theorem M1 (Shang, Liu, Cheng 2016): the least penalty of m factors with the product Z is
(m/2) (lambda_1 ... lambda_m)^(1/m) sum_j sigma_j(Z)^(2/m), attained by `factorize`. By von
Neumann's trace inequality, M then has the singular vectors of T. Each singular value y of T is
shrunk independently to the minimizer of

    phi(z) = (y - z)^2 / (2N) + (m/2) (lambda_1 ... lambda_m)^(1/m) z^(2/m),

that is, by a soft threshold for two factors (Tirer, Bruna 2022) and a hard one for more. There z
jumps from 0 to y (m-2)/(m-1) when the product of decays falls below

    Lambda* = y^(2(m-1)) (m-2)^(m-2) / (N^m (m-1)^(2(m-1))).

Without a bias T is diagonal, and the factors can be non-negative. The same point then belongs to
the ReLU model: deep neural collapse with orthogonal class means (Súkeník, Mondelli, Lampert 2023).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.optimize import brentq

from ..arrays.checks import as_count
from ..errors import ArgumentError
from .problem import Problem


def shrink(y: float, kappa: float, factors: int) -> tuple[float, float]:
    """Minimize (y - z)^2 / 2 + (m/2) kappa z^(2/m) over z >= 0; return (z, value).

    The stationary points are the roots of z^((m-2)/m) (y - z) = kappa. The larger one is the local
    minimum. Its value is below that of z = 0 if kappa^m is below `_threshold`.
    """
    as_count(factors, "factors", 2)
    m = factors
    if not kappa**m < _threshold(y, m):
        return 0.0, y * y / 2
    if m == 2:
        z = y - kappa
    else:
        peak = y * (m - 2) / (2 * (m - 1))  # of the left side, between the two roots
        z = brentq(lambda t: t ** ((m - 2) / m) * (y - t) - kappa, peak, y, xtol=1e-300, rtol=1e-15)
    return z, (y - z) ** 2 / 2 + m / 2 * kappa * z ** (2 / m)


def _threshold(y: float, m: int) -> float:
    """Return N^m Lambda* = y^(2(m-1)) (m-2)^(m-2) / (m-1)^(2(m-1)), with 0^0 = 1."""
    return y ** (2 * (m - 1)) * (float(m - 2) ** (m - 2) / (m - 1) ** (2 * (m - 1)))


def factorize(
    problem: Problem,
    U: Float[np.ndarray, "K r"],
    z: Float[np.ndarray, " r"],
    V: Float[np.ndarray, "r n"],
) -> list[Float[np.ndarray, "_ _"]]:
    """Return A_1, ..., A_m of least penalty with A_m ... A_1 = U diag(z) V (theorem M1).

    The singular values of every factor are proportional to z^(1/m), scaled such that
    decay_i ||A_i||^2 is the same for all i. The bases of the hidden spaces are unit vectors. If U
    and V are non-negative, so are the A_i, and ReLUs between them have no effect.
    """
    keep = z > 0
    U, z, V = U[:, keep], z[keep], V[keep]
    if len(z) > problem.dim:
        raise ArgumentError(f"A product of rank {len(z)} needs dim >= {len(z)}.")
    m, d = problem.depth, problem.dim
    size = [np.sqrt(problem.decay_mean / decay) * z ** (1 / m) for decay in problem.decays]
    basis = np.eye(d, len(z))
    first = basis * size[0] @ V
    return [first, *((basis * s) @ basis.T for s in size[1:-1]), (U * size[-1]) @ basis.T]


@dataclass(frozen=True, eq=False)
class SpectralOptimum:
    """The global minimum of a linear model with squared loss."""

    value: float
    targets: Float[np.ndarray, " K"]  # singular values of T, descending
    singular_values: Float[np.ndarray, " K"]  # the corresponding ones of M
    factors: tuple[Float[np.ndarray, "_ _"], ...]  # A_1 = H, A_2, ..., A_m = W
    b: Float[np.ndarray, " K"]


def spectral_optimum(problem: Problem) -> SpectralOptimum:
    """Solve a linear squared-loss model of any depth, with a free bias or without one.

    The d largest singular values are kept. Raises ArgumentError for cross-entropy and for a
    regularized bias, because these problems do not separate into one for each singular value.
    """
    if problem.loss != "mse" or 0 < problem.bias_decay < math.inf:
        raise ArgumentError(
            "The closed form is for the squared loss, with a free bias or without one; use "
            "`method='numerical'`."
        )
    N, m = problem.num_samples, problem.depth
    roots = np.sqrt(problem.counts)
    nu = roots / math.sqrt(N)
    if problem.with_bias:
        U, y, V = np.linalg.svd(np.diag(roots) - np.outer(roots * nu, nu))
        y[-1] = 0.0  # exactly: nu is in the kernel
    else:
        order = np.argsort(-roots, kind="stable")
        U = np.eye(len(roots))[:, order]
        y, V = roots[order], U.T
    kappa = N * problem.decay_mean
    minima = [shrink(t, kappa, m) if i < problem.dim else (0.0, t * t / 2) for i, t in enumerate(y)]
    z = np.array([minimizer for minimizer, _ in minima])
    value = float(sum(v for _, v in minima)) / N
    classes = V / roots @ np.eye(len(roots))[:, problem.labels]
    b = problem.counts / N if problem.with_bias else np.zeros(len(roots))
    return SpectralOptimum(value, y, z, tuple(factorize(problem, U, z, classes)), b)
