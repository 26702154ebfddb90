"""The Sinkhorn divergence as a differentiable function."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch.autograd.function import once_differentiable

from ..arrays.checks import as_count, as_float
from ..errors import ArgumentError
from .annealing import (
    SCALING,
    Budget,
    SinkhornState,
    anneal,
    require_converged,
    require_epsilon,
    solve_itself,
)
from .entry import as_weights, comparable_points
from .kernel import Kernel
from .point_clouds import PointClouds
from .tiles import full_precision


def sinkhorn_divergence(
    x: Any,
    y: Any,
    *,
    epsilon: float,
    a: Any = None,
    b: Any = None,
    marginal_tolerance: float = 1e-6,
    iterations: int = 2000,
) -> Float[torch.Tensor, ""]:
    r"""Compute the debiased Sinkhorn divergence, differentiable with respect to the points.

    .. math:: S_\varepsilon(x, y) = OT_\varepsilon(x, y) - \frac{1}{2} OT_\varepsilon(x, x)
              - \frac{1}{2} OT_\varepsilon(y, y), \qquad
              \nabla_{x_i} OT_\varepsilon(x, y) = 2 \sum_j P_{ij} (x_i - y_j)

    (Feydy et al. 2019, Theorem 1 and Section 3). By the envelope theorem, the potentials count as
    constants, so iterations are not differentiated. Only first derivatives are available. Memory
    grows with (n + m) d.

    Parameters
    ----------
    x, y : array_like, (n, d), (m, d)
        Torch tensors, if gradients are needed.
    epsilon : float
        Absolute and positive, in the units of ||x - y||^2. (A fraction of the data's scale would
        contribute to the gradient.)
    a, b : array_like, (n,), (m,), optional
        Weights; they are not differentiated.
    marginal_tolerance : float
        L1 error of the marginals; the relative error of the gradient is of this order.
    iterations : int
        Maximum number of iterations, each a pass over all pairs, for each of the three problems.

    Returns
    -------
    Tensor, ()
        In squared units, with the dtype of x (at least float32). It can be slightly negative,
        because the marginals are exact only to the tolerance.

    Raises
    ------
    FeatureError
        As `wasserstein`.
    ArgumentError
        The weights are invalid (see `wasserstein`); a setting is not positive; or epsilon is
        smaller than float64 can resolve for these clouds.
    ConvergenceError
        The marginal tolerance was not reached.

    Examples
    --------
    For a translation, the divergence is the squared shift at any epsilon. Its derivative with
    respect to the shift is the sum of the gradient's rows, here 2 times the shift:

    >>> import torch
    >>> import wgeo
    >>> x = torch.tensor([[0.0], [1.0], [5.0]], requires_grad=True)
    >>> divergence = wgeo.sinkhorn_divergence(x, x.detach() - 3, epsilon=0.5)
    >>> divergence.backward()
    >>> round(divergence.item(), 3), round(x.grad.sum().item(), 3)
    (9.0, 6.0)
    """
    x, y = comparable_points(x, y)
    epsilon = as_float(epsilon, "epsilon")
    if not 0 < epsilon < math.inf:
        raise ArgumentError(f"epsilon must be a positive number, not {epsilon!r}.")
    if not as_float(marginal_tolerance, "marginal_tolerance") > 0:
        raise ArgumentError(f"marginal_tolerance must be positive, not {marginal_tolerance!r}.")
    as_count(iterations, "iterations", 1)
    weights = as_weights(a, len(x), "a"), as_weights(b, len(y), "b")
    return _Divergence.apply(x, y, weights, (epsilon, marginal_tolerance, iterations))


class _Divergence(torch.autograd.Function):
    """Computes and stores the gradients in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, y: torch.Tensor, weights: Any, settings: Any
    ) -> torch.Tensor:
        with full_precision:
            value, grad_x, grad_y = _solve(PointClouds.of(x, y, *weights), *settings)
        ctx.save_for_backward(grad_x.to(x.dtype), grad_y.to(y.dtype))
        return x.new_tensor(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        grad_x, grad_y = ctx.saved_tensors
        return grad * grad_x, grad * grad_y, None, None


def _solve(
    clouds: PointClouds, eps: float, tolerance: float, iterations: int
) -> tuple[float, Float[torch.Tensor, "n d"], Float[torch.Tensor, "m d"]]:
    """Return the divergence and its gradients with respect to both clouds."""
    require_epsilon(clouds, eps)
    scale = min(clouds.pairing_cost - clouds.translation_cost, clouds.total_variance)
    settings = (eps, tolerance, SCALING, Budget(iterations))
    state = require_converged(*anneal(clouds, max(scale, 0.0), *settings), "x and y")
    grad_x, grad_y = _centered_gradients(clouds, state)
    shift = 2 * clouds.offset  # the part of x_i - y_j that centering removed
    grads = [
        grad_x + clouds.a[:, None] * shift,
        grad_y - (clouds.b * state.log_ratio.exp())[:, None] * shift,
    ]
    value = clouds.translation_cost + state.value
    for k, itself in enumerate(clouds.self_problems):
        self_state = require_converged(
            *solve_itself(itself, eps, tolerance, Budget(iterations)), "xy"[k] + " and itself"
        )
        # Both arguments of OT(x, x) depend on x.
        first, second = _centered_gradients(itself, self_state)
        grads[k] = grads[k] - (first + second) / 2
        value -= self_state.value / 2
    return value, grads[0], grads[1]


def _centered_gradients(
    clouds: PointClouds, state: SinkhornState
) -> tuple[Float[torch.Tensor, "n d"], Float[torch.Tensor, "m d"]]:
    """Return the gradients of OT_eps between the centered clouds with respect to x and y."""
    onto_x, onto_y = Kernel(clouds).apply_plan(state.f, state.g, state.eps)
    x, y = clouds.centered(torch.float64)
    mass = clouds.b * state.log_ratio.exp()
    return 2 * (clouds.a[:, None] * x - onto_x), 2 * (mass[:, None] * y - onto_y)
