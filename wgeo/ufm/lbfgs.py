"""L-BFGS for many starting points at once, in one tensor program.

Every row of x is a descent of its own, with its own line search and its own memory; a tick
evaluates all rows at their trial points together. Rows that have converged leave the batch.

The direction is -B g in the compact form of Byrd, Nocedal, Schnabel (1994, eq. 3.1), so that a tick
reads the memory twice. The line search is the weak Wolfe bisection of Lewis, Overton (2013), which
also works where the objective has kinks; next to a minimum, where differences of F are rounding,
Hager and Zhang's (2005) slope test takes over from the sufficient decrease.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

ARMIJO, WOLFE = 1e-4, 0.9
ROUNDING = 1e-15  # relative error allowed to a value of F
CHECK = 5  # ticks between looking whether rows are done
RESETS = 3  # a row whose line search fails this often has stalled


@dataclass(frozen=True, eq=False)
class Minima:
    """Where S descents ended: points, values, gradients' norms and ticks taken."""

    x: Float[Tensor, "S P"]
    value: Float[Tensor, " S"]
    gradient_norm: Float[Tensor, " S"]
    steps: Int[Tensor, " S"]


@dataclass(eq=False)
class _State:
    """Everything a row carries; the first axis of every tensor is the row."""

    row: Tensor  # where the row's answer goes
    x: Tensor
    f: Tensor
    g: Tensor
    d: Tensor  # search direction
    slope: Tensor  # <d, g>
    t: Tensor  # trial step, in the bracket [low, high]
    low: Tensor
    high: Tensor
    memory: Tensor  # (S, 2m, P): m displacements s, then m gradient changes y
    sy: Tensor  # (S, m, m): <s_i, y_j>
    yy: Tensor  # (S, m, m): <y_i, y_j>
    count: Tensor  # pairs ever stored
    resets: Tensor

    def keep(self, rows: Tensor) -> None:
        """Drop all rows but these."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name)[rows])


def minimise(
    objective: Callable[[Tensor], tuple[Tensor, Tensor]],
    x: Float[Tensor, "S P"],
    *,
    tolerance: float,
    memory: int = 10,
    max_steps: int = 10_000,
    norm: Callable[[Tensor], Tensor] | None = None,
) -> Minima:
    """Minimise a function from S starting points.

    Parameters
    ----------
    objective : callable
        Maps (R, P) to values (R,) and gradients (R, P), each row by itself.
    x : Tensor, (S, P), float64
    tolerance : float
        A row is done when `norm` of its gradient is at most this.
    memory : int
        Pairs that each row remembers.
    max_steps : int
        Ticks (evaluations of a row) after which the remaining rows are returned as they are.
    norm : callable, optional
        Maps gradients (R, P) to (R,); Euclidean by default.
    """
    norm = norm or _norm
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
            # leaving costs a copy of the batch: wait until enough rows are ready
            if 10 * ready >= len(done):
                _write(end, state, size, step)
                state.keep(~done)
        _tick(objective, state)
    return end


def _norm(g: Tensor) -> Tensor:
    return torch.linalg.vector_norm(g, dim=-1)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a[:, None] @ b[:, :, None])[:, 0, 0]


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
        memory=x.new_zeros(S, 2 * m, P),
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
    """Forget the memory of these rows and set out along the negative gradient."""
    g = state.g[rows]
    state.d[rows] = -g * (length / _norm(g).clamp_min(1.0))[:, None]
    state.slope[rows] = _dot(state.d[rows], g)
    state.count[rows] = 0
    state.memory[rows] = 0.0
    state.t[rows], state.low[rows], state.high[rows] = 1.0, 0.0, math.inf


def _tick(objective: Callable[[Tensor], tuple[Tensor, Tensor]], state: _State) -> None:
    """Evaluate every row at its trial point; accept it, or move its bracket."""
    trial = torch.addcmul(state.x, state.t[:, None], state.d)
    f, g = objective(trial)
    slope = _dot(state.d, g)
    armijo = f <= state.f + ARMIJO * state.t * state.slope
    flat = f <= state.f + ROUNDING * state.f.abs()
    low_enough = armijo | (flat & (slope <= (2 * ARMIJO - 1) * state.slope))
    short = slope < WOLFE * state.slope
    accepted = low_enough & ~short

    state.high = torch.where(low_enough, state.high, state.t)
    state.low = torch.where(low_enough & short, state.t, state.low)
    middle = (state.low + state.high) / 2
    state.t = torch.where(state.high.isinf(), 2 * state.t, middle)

    if accepted.any():
        _accept(state, accepted, trial, f, g)
    rows = (~(accepted & (state.slope < 0))).nonzero()[:, 0]
    width = (state.high - state.low)[rows] * _norm(state.d[rows])
    wide = (width >= 1e-14 * (1 + _norm(state.x[rows]))) & (state.slope[rows] < 0)
    rows = rows[~wide]  # a NaN is not wide
    if len(rows):
        state.resets[rows] += 1
        _descend_steeply(state, rows, length=1e-3)


def _accept(state: _State, accepted: Tensor, x: Tensor, f: Tensor, g: Tensor) -> None:
    """Move the accepted rows, remember their steps, and point them anew."""
    S, m = len(x), state.sy.shape[1]
    everyone = torch.arange(S, device=x.device)
    slot = state.count % m
    take = accepted[:, None]
    # a row that was not accepted may spoil its oldest pair: nothing reads it before its next
    # accepted step overwrites it
    vectors = torch.stack([x - state.x, g - state.g, g], 1)  # s, y, g
    state.memory[everyone, slot] = vectors[:, 0]
    state.memory[everyone, m + slot] = vectors[:, 1]
    state.x = torch.where(take, x, state.x)
    state.g = torch.where(take, g, state.g)
    state.f = torch.where(accepted, f, state.f)
    state.count = state.count + accepted

    products = vectors @ state.memory.mT  # (S, 3, 2m)
    state.sy[everyone, slot] = products[:, 0, m:]
    state.sy[everyone, :, slot] = products[:, 1, :m]
    state.yy[everyone, slot] = products[:, 1, m:]
    state.yy[everyone, :, slot] = products[:, 1, m:]

    gamma, weights = _compact(state, products[:, 2], state.count.clamp_max(m))
    d = torch.addcmul((weights[:, None] @ state.memory)[:, 0], gamma[:, None], g).neg_()
    state.d = torch.where(take, d, state.d)
    state.slope = torch.where(accepted, _dot(d, g), state.slope)
    state.t = torch.where(accepted, 1.0, state.t)
    state.low = torch.where(accepted, 0.0, state.low)
    state.high = torch.where(accepted, math.inf, state.high)


def _compact(
    state: _State, products: Float[Tensor, "S m2"], held: Int[Tensor, " S"]
) -> tuple[Tensor, Tensor]:
    """B g = gamma g + memory^T weights, from the Gram matrices of the memory alone.

    With R the upper triangle of S^T Y in order of age and D its diagonal, u = R^-1 S^T g:
    weights on S: R^-T ((D + gamma Y^T Y) u - gamma Y^T g); on Y: -gamma u.
    """
    S, m = state.sy.shape[:2]
    age = torch.arange(m, device=products.device)
    order = (state.count[:, None] + age) % m  # slots, the oldest first; empty ones before them
    filled: Bool[Tensor, "S m"] = age >= m - held[:, None]
    both = filled[:, :, None] & filled[:, None, :]
    rows = torch.arange(S, device=products.device)[:, None, None]
    chronological = (rows, order[:, :, None], order[:, None, :])
    R = torch.where(both, state.sy[chronological], torch.eye(m, device=products.device)).triu()
    yy = torch.where(both, state.yy[chronological], 0.0)
    sg = torch.where(filled, products[:, :m].gather(1, order), 0.0)
    yg = torch.where(filled, products[:, m:].gather(1, order), 0.0)

    D = R.diagonal(dim1=1, dim2=2)
    newest = yy[:, -1, -1]
    gamma = torch.where(newest > 0, D[:, -1] / newest.clamp_min(1e-300), 1.0)
    u = torch.linalg.solve_triangular(R, sg[:, :, None], upper=True)
    inner = D[:, :, None] * u + gamma[:, None, None] * (yy @ u - yg[:, :, None])
    top = torch.linalg.solve_triangular(R.mT, inner, upper=False)[:, :, 0]
    weights = torch.zeros_like(products)
    weights.scatter_(1, order, torch.where(filled, top, 0.0))
    weights.scatter_(1, order + m, torch.where(filled, -gamma[:, None] * u[:, :, 0], 0.0))
    return gamma, weights
