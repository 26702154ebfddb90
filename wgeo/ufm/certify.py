"""Evaluate and certify a point of an unconstrained feature model.

For F(W, H, b) = g(W H, b) + (lw/2) ||W||^2 + (lh/2) ||H||^2 + (lb/2) ||b||^2 with g convex,
let c = sqrt(lw lh), and let G be the gradient of g in its matrix argument. Besides M1 (`spectral`),
two theorems are used:

M2. A critical point with ||G||_2 <= c is global for every d: -G / c is then a subgradient of the
    nuclear norm at W H, so Z = W H solves the convex problem min g(Z, b) + c ||Z||_*
    (Haeffele, Vidal 2015; Zhu et al. 2021). Any G scaled down to ||G||_2 <= c proves a lower bound
    by Fenchel duality, at a critical point or not: `lower_bound`.
M3. A critical point with W a = 0, H^T a = 0 for a unit vector a and ||G||_2 = sigma > c is a strict
    saddle. On the plane spanned by (u a^T, 0) and (0, a v^T), with (u, v) the top singular pair of
    G, the Hessian is [[lw, sigma], [sigma, lh]] up to signs, with a negative determinant:
    `escape_direction`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import ArgumentError
from .problem import Problem
from .solution import Certificate, UFMSolution, Verdict
from .spectral import spectral_optimum

CLOSE = 1e-6  # largest relative gap to a proved lower bound at which a point counts as global
CRITICAL = 1e-5  # largest norm of the gradient at which a point counts as critical
NULL = 1e-6  # size of W a and H^T a, relative to W and H, below which they count as zero


def evaluate(
    problem: Problem,
    *,
    H: Any,
    weights: Sequence[Any],
    b: Any = None,
    settings: Mapping[str, Any] | None = None,
) -> UFMSolution:
    """Return any point of a model as a solution, with its objective and its certificate.

    Parameters
    ----------
    problem : Problem
        A solution's ``problem``, or one made by `Problem.checked`.
    H : array_like, (d, N)
    weights : sequence of array_like
        W_1, ..., W_L.
    b : array_like, (K,), optional
        Zero by default.
    settings : mapping, optional
        How the point was computed; kept in the solution.

    Raises
    ------
    ArgumentError
        The shapes differ from those of the problem, or b is not zero in a problem without a bias.
    """
    x = problem.join([H, *weights], b)
    (features, *layers), bias = problem.split(x)
    certificate = certify(problem, x)
    return UFMSolution(
        problem=problem,
        H=features.numpy(),
        weights=tuple(W.numpy() for W in layers),
        b=np.zeros(problem.num_classes) if bias is None else bias.numpy(),
        objective=float(problem.value(x)),
        certificate=certificate,
        seconds=0.0,
        settings=dict(settings or {}),
    )


def certify(problem: Problem, x: Tensor) -> Certificate:
    """Certify a point: by theorems M2 and M3, or for a deep model by its known minimum."""
    if problem.depth == 2:
        return _certify_convex(problem, x)
    verdict: Verdict = "undecided"
    bound = gap = None
    minimum = known_minimum(problem)
    if minimum is None:
        evidence = "No global minimum is known for this model to compare with."
    else:
        bound, source = minimum
        gap = float(problem.value(x)) - bound
        evidence = f"Not global: {gap:.3g} above the minimum {bound:.9g} ({source})."
        if gap <= CLOSE * bound:
            verdict = "global"
            evidence = (
                f"The objective is within {max(gap, 0.0):.1e} of the global minimum {bound:.9g}: "
                f"{source}."
            )
    size = float(problem.gradient(x).norm())
    return Certificate(verdict, size, lower_bound=bound, gap=gap, evidence=evidence)


def known_minimum(problem: Problem) -> tuple[float, str] | None:
    """Return the minimum of a deep model and its source; None if the minimum is not known.

    It is known for two kinds of models with squared loss: linear ones without a bias or with a free
    one, and ReLU models of two balanced classes with d >= 2 and no bias.
    """
    if problem.loss != "mse":
        return None
    if problem.activation == "linear" and problem.bias_decay in (0.0, float("inf")):
        return spectral_optimum(problem).value, "closed form by singular values"
    binary = problem.num_classes == 2 and problem.balanced and problem.dim >= 2
    if problem.activation == "relu" and binary and not problem.with_bias:
        source = "deep neural collapse, optimal for two classes (Súkeník, Mondelli, Lampert 2023)"
        return spectral_optimum(problem).value, source
    return None


def _certify_convex(problem: Problem, x: Tensor) -> Certificate:
    objective, gradient = problem.value_and_gradient(x)
    value, size = float(objective), float(gradient.norm())
    G = problem.product_gradient(x) / problem.mass.sqrt()  # singular values as for all N samples
    sigma = float(torch.linalg.matrix_norm(G, 2))
    bound = lower_bound(problem, x)
    gap = value - bound
    verdict: Verdict = "undecided"
    curvature = None
    if gap <= CLOSE * value:
        verdict = "global"
        evidence = (
            f"Within {max(gap, 0.0):.1e} of a lower bound by convex duality: ||G||_2 = "
            f"{sigma:.6g} <= sqrt(weight_decay * feature_decay) = {problem.decay_mean:.6g} "
            "up to rounding."
        )
    elif size > CRITICAL:
        evidence = f"Not a critical point: the gradient has norm {size:.2g}."
    elif (escape := escape_direction(problem, x)) is None:
        evidence = (
            f"||G||_2 = {sigma:.6g} exceeds {problem.decay_mean:.6g}, but W and H use all of "
            f"dim = {problem.dim}: the convex bound need not be attained, and no explicit "
            "direction of descent is known. landscape() searches for one."
        )
    else:
        verdict = "strict saddle"
        curvature = float(escape.direction @ problem.hvp(x, escape.direction))
        evidence = (
            f"||G||_2 = {sigma:.6g} exceeds {problem.decay_mean:.6g}, and W and H have a common "
            f"null direction: along it the Hessian is {escape.curvature:.9g} ({curvature:.9g} "
            "measured by a Hessian-vector product)."
        )
    return Certificate(
        verdict, size, sigma, problem.decay_mean, curvature, bound, gap, evidence=evidence
    )


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
    """Return a dual point near U with U 1 = 0, in the domain of the conjugate.

    Subtracting the mean of U can make probabilities of the cross-entropy negative. A convex
    combination with the class frequencies raises the smallest one to zero.
    """
    Y, p = problem.targets, problem.column_weights
    U = U - U.sum(-1, keepdim=True) * p
    if problem.loss == "ce":
        prior = (Y * p).sum(-1, keepdim=True)
        mix = float(((-(Y + U / p)).amax(-1, keepdim=True) / prior).max().clamp(0.0, 1.0))
        U = (1 - mix) * U + mix * (prior - Y) * p
    return U


class EscapeDirection(NamedTuple):
    """A direction of negative curvature of F at a critical point."""

    direction: Float[Tensor, " P"]  # of unit norm
    curvature: float  # along this direction; it is an eigenvalue of the Hessian


def escape_direction(problem: Problem, x: Tensor) -> EscapeDirection | None:
    """Return the direction of theorem M3; None if ||G||_2 <= c or if there is no null vector a.

    Its curvature is (lw + lh)/2 - sqrt(((lw - lh)/2)^2 + sigma^2). Raises ArgumentError if the
    model has more than two factors, or if samples share a column of H.
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
