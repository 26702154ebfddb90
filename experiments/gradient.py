"""Plain gradient descent on the unconstrained feature models, from many starts at once."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from wgeo.runtime.progress import track
from wgeo.ufm.descent import scales
from wgeo.ufm.problem import Problem


def gradient_descent(
    problem: Problem,
    x: Tensor,
    steps: int,
    *,
    at: Collection[int] = (),
    look: Callable[[int, Tensor], None] = lambda step, x: None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Follow the negative gradient in balanced variables; return points, values, gradient norms.

    In balanced variables every factor has the same decay, so that the features move as fast as the
    weights. Each start has its own learning rate, which grows as long as its objective does not
    rise; a step that would raise the objective is not taken, and the rate is halved.
    ``look(step, x)`` is called at the steps `at`.
    """
    scale = scales(problem)
    u = x / scale
    rate = torch.full((len(u), 1), 0.5, dtype=torch.float64)
    value, gradient = problem.value_and_gradient(scale * u)
    for step in track(range(steps + 1), "gradient descent"):
        if step in at:
            look(step, scale * u)
        slope = scale * gradient
        trial = u - rate * slope
        new, fresh = problem.value_and_gradient(scale * trial)
        better = (new <= value)[:, None]
        u = torch.where(better, trial, u)
        gradient = torch.where(better, fresh, gradient)
        value = torch.where(better[:, 0], new, value)
        rate = torch.where(better, (1.01 * rate).clamp_max(2.0), rate / 2)
    return scale * u, value, gradient.norm(dim=-1)
