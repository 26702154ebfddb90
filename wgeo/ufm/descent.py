"""L-BFGS descents from S starting points of a model, in one batch.

They run in balanced variables, in which all factors, and all columns of H, have the same decay c
(the geometric mean of the decays).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..arrays.checks import as_count
from ..runtime.threads import one_thread
from .certify import evaluate
from .lbfgs import Minima, minimize_batch
from .problem import Problem, check_tolerance
from .solution import UFMSolution

FIRST_ROUND = (20, 700)  # memory and iterations of L-BFGS
LATER_ROUNDS = (60, 3000)  # memory and iterations for rows that stalled or are slow
FLOPS = 40  # approximate operations per iteration and variable
JITTER = 1e-4  # relative perturbation off the ReLUs' kinks before a later round
ROUNDING = 1e-12  # relative increase of F that counts as rounding


def scales(problem: Problem) -> Tensor:
    """Return original / balanced variable, (size,): sqrt(c / decay); 1 for a bias."""
    s = (problem.decay_mean / problem.penalties).sqrt()
    if problem.with_bias:
        s[-problem.num_classes :] = 1.0
    return s


def random_points(problem: Problem, restarts: int, seed: int) -> Float[Tensor, "S P"]:
    """Return Gaussian starting points with zero bias; their factors have singular values near 1.

    Each point is multiplied by 2^e, with e uniform in [-1/2, 1], because the best scale depends on
    the decays. Descents from smaller points end at zero, a local minimum of every deep model.
    """
    gain = (problem.num_samples / problem.num_classes) ** (0.5 / problem.depth)
    x = _normal(restarts, problem.size, seed) * (gain / problem.dim**0.5 * scales(problem))
    exponents = np.random.default_rng([seed, 1]).uniform(-0.5, 1.0, (len(x), 1))
    x *= torch.from_numpy(2.0**exponents)
    if problem.with_bias:
        x[:, -problem.num_classes :] = 0.0
    return x


def points_around(
    solution: UFMSolution, restarts: int, spread: float, seed: int
) -> Float[Tensor, "S P"]:
    """Return the solution's point, and others with noise of `spread` times its mean |entry|."""
    x = solution.point()
    noise = _normal(restarts, len(x), seed) * (spread * x.abs().mean())
    noise[0] = 0.0
    return x + noise


def _normal(restarts: int, size: int, seed: int) -> Float[Tensor, "S P"]:
    shape = as_count(restarts, "restarts", 1), size
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def descend(
    problem: Problem,
    x: Float[Tensor, "S P"],
    *,
    tolerance: float = 1e-9,
    max_steps: int = 10_000,
    seed: int = 0,
) -> Minima:
    """Minimize from every row of x by L-BFGS until the gradient's norm is at most `tolerance`.

    The norm is that of the gradient in the original variables. Rows that stall continue in further
    rounds with a longer memory. With ReLUs they stall where many kinks meet, so they continue from
    a perturbed point. The end of a round replaces the row's point if it has converged or is no
    higher.
    """
    check_tolerance(tolerance)
    as_count(max_steps, "max_steps", 1)
    scale = scales(problem).to(x.device)

    def objective(u: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = problem.value_and_gradient(scale * u)
        return value, scale * gradient

    def norm(gradient: Tensor) -> Tensor:
        return torch.linalg.vector_norm(gradient / scale, dim=-1)

    def descent(u: Tensor, memory: int, iterations: int) -> Minima:
        return minimize_batch(
            objective, u, tolerance=tolerance, memory=memory, max_steps=iterations, norm=norm
        )

    memory, iterations = FIRST_ROUND
    minima = descent(x / scale, memory, min(iterations, max_steps))
    memory, iterations = LATER_ROUNDS
    for budget in range(max_steps - FIRST_ROUND[1], 0, -iterations):
        rows = (minima.gradient_norm > tolerance).nonzero()[:, 0]
        if len(rows) == 0:
            break
        u = minima.x[rows]
        if problem.activation == "relu":
            noise = _normal(len(u), problem.size, seed + budget).to(u.device)
            u = u + JITTER * u.abs().mean(-1, keepdim=True) * noise
        end = descent(u, memory, min(iterations, budget))
        minima.steps[rows] += end.steps
        lower = end.value <= minima.value[rows] * (1 + ROUNDING)
        kept = lower | (end.gradient_norm <= tolerance)
        rows = rows[kept]
        minima.x[rows], minima.value[rows] = end.x[kept], end.value[kept]
        minima.gradient_norm[rows] = end.gradient_norm[kept]
    return replace(minima, x=minima.x * scale)


def multistart(
    problem: Problem,
    x: Float[Tensor, "S P"],
    collapsed: bool,
    tolerance: float,
    max_steps: int,
    seed: int,
) -> UFMSolution:
    """Descend from every row of x and return the lowest end point as a solution.

    With `collapsed`, x contains points of ``problem.collapsed()``.
    """
    inner = problem.collapsed() if collapsed else problem
    with one_thread(FLOPS * max_steps * x.numel()):
        minima = descend(inner, x, tolerance=tolerance, max_steps=max_steps, seed=seed)
    order = minima.value.argsort()
    (H, *weights), b = inner.split(minima.x[order[0]].cpu())
    settings = {"method": "numerical", "collapsed": collapsed, "restarts": len(x)}
    solution = evaluate(
        problem,
        H=H[:, problem.labels] if collapsed else H,
        weights=weights,
        b=b,
        settings={**settings, "seed": seed, "tolerance": tolerance},
    )
    return replace(
        solution,
        values=tuple(minima.value[order].tolist()),
        gradient_norms=tuple(minima.gradient_norm[order].tolist()),
        steps=tuple(minima.steps[order].tolist()),
    )
