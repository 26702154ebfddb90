"""L-BFGS descents from many starting points of a model, in one batch.

`descend` works in balanced variables, in which all factors, and all columns of H, have the same
decay c (the geometric mean of the decays).

`minimize_batch` minimizes any function of the rows of x. Every row is an independent descent with
its own line search and memory. An iteration evaluates all rows at their trial points in one batch.
Rows that have converged leave the batch. The direction is -B g, with the gradient g and the L-BFGS
approximation B of the inverse Hessian in the compact form of Byrd, Nocedal, Schnabel (1994, eq.
3.1). The line search is the weak Wolfe bisection of Lewis, Overton (2013), which also works at
kinks of F. Near a minimum, differences of F are rounding errors; there the slope test of Hager and
Zhang (2005) replaces the sufficient decrease.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..arrays.checks import as_count
from ..runtime.threads import one_thread
from .arguments import check_tolerance
from .certify import evaluate
from .problem import Problem
from .solution import UFMSolution

FIRST_ROUND = (20, 700)  # memory and iterations of L-BFGS
LATER_ROUNDS = (60, 3000)  # the same for rows that have not converged in the first round
FLOPS = 40  # approximate operations per iteration and variable
JITTER = 1e-4  # relative perturbation off the ReLUs' kinks before a later round
RISE = 1e-12  # relative increase of F over a round that counts as rounding

ARMIJO, WOLFE = 1e-4, 0.9
ROUNDING = 1e-15  # relative error allowed in a value of F
CHECK = 5  # iterations between tests for convergence
MEMORY = torch.float32  # its rounding affects only the direction; decisions are made in float64
RESETS = 3  # a row whose line search fails more often than this has stalled


@dataclass(frozen=True, eq=False)
class Minima:
    """End points of S descents, their values, gradient norms and numbers of iterations."""

    x: Float[Tensor, "S P"]
    value: Float[Tensor, " S"]
    gradient_norm: Float[Tensor, " S"]
    steps: Int[Tensor, " S"]


def scales(problem: Problem) -> Tensor:
    """Return (original variable) / (balanced variable), (size,): sqrt(c / decay); 1 for a bias."""
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

    The norm is that of the gradient in the original variables. Rows that have not converged
    continue in further rounds with a longer memory. With ReLUs rows stall where many kinks meet, so
    they continue from a perturbed point. The end of a round is kept if it has converged, or if the
    objective there is not higher than before the round.
    """
    check_tolerance(tolerance)
    as_count(max_steps, "max_steps", 1)
    scale = scales(problem).to(x.device)

    def objective(u: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = problem.value_and_gradient(scale * u)
        return value, scale * gradient

    def norm(gradient: Tensor) -> Tensor:
        return torch.linalg.vector_norm(gradient / scale, dim=-1)

    descent = partial(minimize_batch, objective, tolerance=tolerance, norm=norm)
    memory, iterations = FIRST_ROUND
    minima = descent(x / scale, memory=memory, max_steps=min(iterations, max_steps))
    memory, iterations = LATER_ROUNDS
    for budget in range(max_steps - FIRST_ROUND[1], 0, -iterations):
        rows = (minima.gradient_norm > tolerance).nonzero()[:, 0]
        if len(rows) == 0:
            break
        u = minima.x[rows]
        if problem.activation == "relu":
            noise = _normal(len(u), problem.size, seed + budget).to(u.device)
            u = u + JITTER * u.abs().mean(-1, keepdim=True) * noise
        end = descent(u, memory=memory, max_steps=min(iterations, budget))
        minima.steps[rows] += end.steps
        lower = end.value <= minima.value[rows] * (1 + RISE)
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


@dataclass(eq=False)
class _State:
    """State of every row; the first axis of every tensor is the row."""

    row: Tensor  # index of the row in the result
    x: Tensor
    f: Tensor
    g: Tensor
    d: Tensor  # search direction
    slope: Tensor  # <d, g>
    t: Tensor  # trial step, in the bracket [low, high]
    low: Tensor
    high: Tensor
    memory: Tensor  # (S, 2m, P): slots for m displacements s, then for m gradient changes y
    # the next three are in order of age, the oldest pair (s, y) first:
    products: Tensor  # (S, 2, m): <s_i, g> and <y_i, g>
    sy: Tensor  # (S, m, m): <s_i, y_j> if s_i is not younger than y_j, else 0
    yy: Tensor  # (S, m, m): <y_i, y_j>
    count: Tensor  # pairs ever stored
    resets: Tensor

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[rows])


def _norm(g: Tensor) -> Tensor:
    return torch.linalg.vector_norm(g, dim=-1)


def minimize_batch(
    objective: Callable[[Tensor], tuple[Tensor, Tensor]],
    x: Float[Tensor, "S P"],
    *,
    tolerance: float,
    memory: int = 10,
    max_steps: int = 10_000,
    norm: Callable[[Tensor], Tensor] = _norm,
) -> Minima:
    """Minimize a function from S starting points.

    Parameters
    ----------
    objective : callable
        Maps (R, P) to values (R,) and gradients (R, P), each row independently.
    x : Tensor, (S, P), float64
    tolerance : float
        A row has converged when `norm` of its gradient is at most this.
    memory : int
        Number of stored pairs for each row; a pair is a step and its change of the gradient.
    max_steps : int
        Limit on iterations; rows that have not converged by then are returned as they are.
    norm : callable
        Maps gradients (R, P) to (R,).
    """
    f, g = objective(x)
    end = Minima(x.clone(), f.clone(), norm(g), x.new_zeros(len(x), dtype=torch.int64))
    state = _start(x, f, g, memory)
    for step in range(max_steps + 1):
        if step % CHECK == 0 or step == max_steps:
            size = norm(state.g)
            done = (size <= tolerance) | (state.resets > RESETS) | ~torch.isfinite(state.f)
            ready = int(done.sum())
            if step == max_steps or ready == len(done):
                _write(end, state, size, step)
                break
            # dropping rows copies the batch, so wait until enough rows are ready
            if 10 * ready >= len(done):
                _write(end, state, size, step)
                state.keep(~done)
        _iterate(objective, state)
    return end


def _start(x: Tensor, f: Tensor, g: Tensor, m: int) -> _State:
    S, P = x.shape
    number = x.new_zeros(S)
    state = _State(
        row=torch.arange(S, device=x.device),
        x=x.clone(),
        f=f.clone(),
        g=g.clone(),
        d=torch.empty_like(x),
        slope=number.clone(),
        t=number + 1,
        low=number.clone(),
        high=number + math.inf,
        memory=x.new_zeros(S, 2 * m, P, dtype=MEMORY),
        products=x.new_zeros(S, 2, m),
        sy=x.new_zeros(S, m, m),
        yy=x.new_zeros(S, m, m),
        count=x.new_zeros(S, dtype=torch.int64),
        resets=x.new_zeros(S, dtype=torch.int64),
    )
    _descend_steeply(state, state.row, length=1.0)
    return state


def _write(end: Minima, state: _State, size: Tensor, step: int) -> None:
    end.x[state.row], end.value[state.row] = state.x, state.f
    end.gradient_norm[state.row], end.steps[state.row] = size, step


def _descend_steeply(state: _State, rows: Tensor, length: float) -> None:
    """Clear the memory of these rows and restart along the negative gradient."""
    g = state.g[rows]
    state.d[rows] = -g * (length / _norm(g).clamp_min(1.0))[:, None]
    state.slope[rows] = torch.linalg.vecdot(state.d[rows], g)
    state.count[rows] = 0
    state.memory[rows] = 0.0
    state.products[rows] = 0.0
    state.yy[rows] = 0.0
    state.sy[rows] = torch.eye(state.sy.shape[1], dtype=g.dtype, device=g.device)
    state.t[rows], state.low[rows], state.high[rows] = 1.0, 0.0, math.inf


def _iterate(objective: Callable[[Tensor], tuple[Tensor, Tensor]], state: _State) -> None:
    """Evaluate every row at its trial point; accept it, or update its bracket."""
    trial = torch.addcmul(state.x, state.t[:, None], state.d)
    f, g = objective(trial)
    slope = torch.linalg.vecdot(state.d, g)
    armijo = f <= state.f + ARMIJO * state.t * state.slope
    flat = f <= state.f + ROUNDING * state.f.abs()
    low_enough = armijo | (flat & (slope <= (2 * ARMIJO - 1) * state.slope))
    short = slope < WOLFE * state.slope
    accepted = low_enough & ~short
    step = state.t

    state.high = torch.where(low_enough, state.high, state.t)
    state.low = torch.where(low_enough & short, state.t, state.low)
    middle = (state.low + state.high) / 2
    state.t = torch.where(state.high.isinf(), 2 * state.t, middle)

    if accepted.any():
        state.f = torch.where(accepted, f, state.f)
        _accept(state, accepted, step, g, slope)
    downhill = (state.slope < 0) & state.slope.isfinite()
    rows = (~(accepted & downhill)).nonzero()[:, 0]
    width = (state.high - state.low)[rows] * _norm(state.d[rows])
    wide = (width >= 1e-14 * (1 + _norm(state.x[rows]))) & downhill[rows]
    rows = rows[~wide]  # a NaN is not wide
    if len(rows):
        state.resets[rows] += 1
        _descend_steeply(state, rows, length=1e-3)


def _accept(state: _State, accepted: Tensor, t: Tensor, g: Tensor, slope: Tensor) -> None:
    """Move the accepted rows by t d, store the step, and compute their new directions."""
    S, m = len(g), state.sy.shape[1]
    all_rows = torch.arange(S, device=g.device)
    newest = state.count % m
    y = g - state.g
    # The oldest pair is overwritten in all rows. In rows that were not accepted, the next accepted
    # step overwrites the same slot before it is read.
    state.memory[all_rows, newest] = (t[:, None] * state.d).to(MEMORY)
    state.memory[all_rows, m + newest] = y.to(MEMORY)
    age = torch.arange(1, m + 1, device=g.device)
    order = (newest[:, None] + age) % m  # of the slots, the oldest first
    order = torch.cat([order, order + m], 1)

    products = (g[:, None].to(MEMORY) @ state.memory.mT)[:, 0].double()
    products = products.gather(1, order).unflatten(1, (2, m))
    change = products - state.products.roll(-1, 2)  # products of the memory with y
    change[:, 0, -1] = t * (slope - state.slope)  # of the new pair
    change[:, 1, -1] = torch.linalg.vecdot(y, y)
    sy, yy = state.sy.roll((-1, -1), (1, 2)), state.yy.roll((-1, -1), (1, 2))
    sy[:, -1] = 0.0
    sy[:, :, -1] = change[:, 0]
    yy[:, -1] = yy[:, :, -1] = change[:, 1]
    gamma, weights = _compact(sy, yy, products)
    slots = torch.empty_like(weights).scatter_(1, order, weights)
    d = (slots[:, None].to(MEMORY) @ state.memory)[:, 0].double().addcmul_(-gamma[:, None], g)

    def if_accepted(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(accepted[(..., *[None] * (new.ndim - 1))], new, old)

    state.x.addcmul_(if_accepted(t, torch.zeros_like(t))[:, None], state.d)
    state.slope = if_accepted(torch.linalg.vecdot(d, g), state.slope)
    state.g, state.d = if_accepted(g, state.g), if_accepted(d, state.d)
    state.products, state.sy, state.yy = (
        if_accepted(new, old)
        for new, old in ((products, state.products), (sy, state.sy), (yy, state.yy))
    )
    state.count = state.count + accepted
    state.t = state.t.masked_fill(accepted, 1.0)
    state.low = state.low.masked_fill(accepted, 0.0)
    state.high = state.high.masked_fill(accepted, math.inf)


def _compact(
    sy: Float[Tensor, "S m m"], yy: Float[Tensor, "S m m"], products: Float[Tensor, "S 2 m"]
) -> tuple[Float[Tensor, " S"], Float[Tensor, "S m2"]]:
    """Return gamma and weights with -B g = memory^T weights - gamma g.

    R = `sy` is the upper triangle of S^T Y, D its diagonal, and u = R^-1 S^T g. The weights of S
    are -R^-T ((D + gamma Y^T Y) u - gamma Y^T g), those of Y are gamma u. The weight of an empty
    slot is 0, because its products are 0 and its entry of D is 1.
    """
    D = sy.diagonal(dim1=1, dim2=2)
    latest = yy[:, -1, -1]
    gamma = torch.where(latest > 0, D[:, -1] / latest.clamp_min(1e-300), 1.0)
    sg, yg = products[..., None].unbind(1)
    u = torch.linalg.solve_triangular(sy, sg, upper=True)
    inner = torch.addcmul(gamma[:, None, None] * (yg - yy @ u), D[..., None], u, value=-1)
    top = torch.linalg.solve_triangular(sy.mT, inner, upper=False)
    return gamma, torch.cat([top, gamma[:, None, None] * u], 1)[..., 0]
