"""The three theorems on factored objectives behind every certificate in this package.

For F(W, H, b) = g(W H, b) + (lw/2) ||W||^2 + (lh/2) ||H||^2 + (lb/2) ||b||^2 with g convex,
let c = sqrt(lw lh), and let G be the gradient of g in its matrix argument:

M1. The least penalty of a product Z is c ||Z||_* (and (m/2) c_m sum sigma_j^(2/m) for m factors,
    with c_m the geometric mean of their decays; Shang, Liu, Cheng 2016), attained by `factorize`.
M2. A critical point with ||G||_2 <= c is global for every d: -G / c is then a subgradient of the
    nuclear norm at W H, so Z = W H solves the convex problem min g(Z, b) + c ||Z||_*
    (Haeffele, Vidal 2015; Zhu et al. 2021). Any G scaled down to ||G||_2 <= c proves a lower bound
    by Fenchel duality, at a critical point or not: `lower_bound`.
M3. A critical point with W a = 0, H^T a = 0 for a unit vector a and ||G||_2 = sigma > c is a strict
    saddle: on the plane of (u a^T, 0) and (0, a v^T), with (u, v) the top singular pair of G, the
    Hessian is [[lw, sigma], [sigma, lh]] up to signs, with a negative determinant:
    `escape_direction`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ArgumentError
from .problem import Problem

NULL = 1e-6  # relative size below which W a and H^T a count as zero


def factorize(
    problem: Problem,
    U: Float[np.ndarray, "K r"],
    z: Float[np.ndarray, " r"],
    V: Float[np.ndarray, "r n"],
) -> list[Float[np.ndarray, "_ _"]]:
    """Return A_1, ..., A_m of least penalty with A_m ... A_1 = U diag(z) V (theorem M1).

    The singular values of every factor are proportional to z^(1/m), scaled such that
    decay_i ||A_i||^2 is the same for all i. The bases of the hidden spaces are unit vectors. The
    A_i are therefore non-negative if U and V are; then ReLUs between them have no effect.
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


def scaled_gradient(problem: Problem, x: Tensor) -> Float[Tensor, "K n"]:
    """Return G with the column of a class of n_k samples divided by sqrt(n_k).

    Its singular values are those of the gradient for all N samples.
    """
    return problem.product_gradient(x) / problem.mass.sqrt()


def lower_bound(problem: Problem, x: Tensor) -> float:
    """Return a lower bound of a two-factor problem's objective (theorem M2).

    The dual of min_Z,b g(Z + b 1^T) + c ||Z||_* + (lb/2) ||b||^2 at U = t G is
    -g*(U) - ||U 1||^2 / (2 lb), for ||U||_2 <= c. A free bias requires U 1 = 0; without a bias the
    last term vanishes.
    """
    U, Y, p = problem.product_gradient(x), problem.targets, problem.column_weights
    if problem.bias_decay == 0:
        U = _without_bias(problem, U)
    norm = float(torch.linalg.matrix_norm(U / problem.mass.sqrt(), 2))
    U = U * min(1.0, problem.decay_mean / norm if norm > 0 else 1.0)
    bound = -problem.criterion.conjugate(U, Y, p)
    if 0 < problem.bias_decay < math.inf:
        bound -= float(U.sum(-1).square().sum()) / (2 * problem.bias_decay)
    return bound


def _without_bias(problem: Problem, U: Tensor) -> Tensor:
    """Return a nearby dual point with U 1 = 0 in the domain of the conjugate.

    Unless the gradient in b is zero, subtracting the mean can make a probability of the
    cross-entropy negative. A convex combination with the class frequencies corrects this.
    """
    Y, p = problem.targets, problem.column_weights
    U = U - U.sum(-1, keepdim=True) * p
    if problem.loss == "ce":
        prior = (Y * p).sum(-1, keepdim=True)
        mix = float(((-(Y + U / p)).amax(-1, keepdim=True) / prior).max().clamp(0.0, 1.0))
        U = (1 - mix) * U + mix * (prior - Y) * p
    return U


@dataclass(frozen=True, eq=False)
class EscapeDirection:
    """A direction of negative curvature of F at a critical point."""

    direction: Float[Tensor, " P"]  # of unit norm
    curvature: float  # along the direction, an eigenvalue of the Hessian


def escape_direction(problem: Problem, x: Tensor) -> EscapeDirection | None:
    """Return the direction of theorem M3; None if ||G||_2 <= c or if there is no null vector a.

    The eigenvalue is (lw + lh)/2 - sqrt(((lw - lh)/2)^2 + sigma^2).

    Raises
    ------
    ArgumentError
        The model has more than two factors, or samples share a column of H.
    """
    if problem.depth != 2 or problem.copies is not None:
        raise ArgumentError(
            "The explicit direction is for models with two factors and one column per sample."
        )
    (H, W), _ = problem.split(x)
    left, values, right = torch.linalg.svd(problem.product_gradient(x), full_matrices=False)
    sigma, u, v = float(values[0]), left[:, 0], right[0]
    if sigma <= problem.decay_mean * (1 + 1e-9):
        return None
    a = torch.linalg.eigh(W.T @ W + H @ H.T)[1][:, 0]  # the direction that W and H use least
    if float((W @ a).norm() + (a @ H).norm()) > NULL * max(1.0, float(W.norm() + H.norm())):
        return None
    lh, lw = problem.decays
    curvature = (lw + lh) / 2 - math.hypot((lw - lh) / 2, sigma)
    along_w, along_h = sigma, lw - curvature  # the eigenvector of [[lw, -sigma], [-sigma, lh]]
    direction = problem.join([-along_h * torch.outer(a, v), along_w * torch.outer(u, a)])
    return EscapeDirection(direction / direction.norm(), curvature)
