"""Evaluate and certify a point of an unconstrained feature model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .problem import Problem
from .solution import Certificate, UFMSolution
from .spectral import spectral_optimum
from .theorems import escape_direction, lower_bound, scaled_gradient

CLOSE = 1e-6  # largest relative gap to a proved lower bound at which a point counts as global
CRITICAL = 1e-5  # largest norm of the gradient at which a point counts as critical


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
        The problem of another solution (``solution.problem``), or one made by `Problem.checked`.
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
    """Certify a point by theorems M2 and M3, or by comparison with a known minimum of the model."""
    if problem.depth == 2:
        return _certify_convex(problem, x)
    size = float(problem.gradient(x).norm())
    minimum = known_minimum(problem)
    if minimum is None:
        return Certificate(
            "undecided", size, evidence="No global minimum is known for this model to compare with."
        )
    bound, source = minimum
    gap = float(problem.value(x)) - bound
    if gap <= CLOSE * bound:
        evidence = (
            f"The objective is within {max(gap, 0.0):.1e} of the global minimum {bound:.9g}: "
            f"{source}."
        )
        return Certificate("global", size, lower_bound=bound, gap=gap, evidence=evidence)
    evidence = f"Not global: {gap:.3g} above the minimum {bound:.9g} ({source})."
    return Certificate("undecided", size, lower_bound=bound, gap=gap, evidence=evidence)


def known_minimum(problem: Problem) -> tuple[float, str] | None:
    """Return the minimum of a deep model and its source; None if the minimum is not known.

    The minimum is known for two kinds of models with squared loss: linear ones without a bias or
    with a free one (from singular values), and ReLU models of two balanced classes with d >= 2 and
    no bias (deep neural collapse).
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
    value, gradient = problem.value_and_gradient(x)
    F, size = float(value), float(gradient.norm())
    sigma = float(torch.linalg.matrix_norm(scaled_gradient(problem, x), 2))
    bound = lower_bound(problem, x)
    common = {
        "gradient_norm": size,
        "spectral_norm": sigma,
        "threshold": problem.decay_mean,
        "lower_bound": bound,
        "gap": F - bound,
    }
    if F - bound <= CLOSE * F:
        evidence = (
            f"Within {max(F - bound, 0.0):.1e} of a lower bound by convex duality: ||G||_2 = "
            f"{sigma:.6g} <= sqrt(weight_decay * feature_decay) = {problem.decay_mean:.6g} "
            "up to rounding."
        )
        return Certificate("global", evidence=evidence, **common)
    if size > CRITICAL:
        evidence = f"Not a critical point: the gradient has norm {size:.2g}."
        return Certificate("undecided", evidence=evidence, **common)
    escape = escape_direction(problem, x)
    if escape is None:
        evidence = (
            f"||G||_2 = {sigma:.6g} exceeds {problem.decay_mean:.6g}, but W and H use all of "
            f"dim = {problem.dim}: the convex bound need not be attained, and no explicit "
            "direction of descent is known. landscape() searches for one."
        )
        return Certificate("undecided", evidence=evidence, **common)
    curvature = float(escape.direction @ problem.hvp(x, escape.direction))
    evidence = (
        f"||G||_2 = {sigma:.6g} exceeds {problem.decay_mean:.6g}, and W and H have a common null "
        f"direction: along it the Hessian is {escape.curvature:.9g} ({curvature:.9g} measured by a "
        "Hessian-vector product)."
    )
    return Certificate("strict saddle", curvature=curvature, evidence=evidence, **common)
