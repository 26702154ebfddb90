"""Products with a map's Jacobian, and the smallest eigenvalue of its symmetric part."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float
from torch.nn.attention import SDPBackend, sdpa_kernel

Map = Callable[[torch.Tensor], torch.Tensor]
# One generator per point, so that random draws do not depend on the batch size.
Streams = list[torch.Generator]
_BREAKDOWN = 1e-10  # relative norm below which a Krylov direction is rounding error
_TRACE_FROM = 2**14  # entries of a batch above which tracing the derivative (0.3 s) saves time
_FIRST_CHECK, CHECK_EVERY = 12, 4  # Lanczos steps at which convergence is checked


@contextmanager
def differentiable_everywhere() -> Iterator[None]:
    """Use an attention kernel with forward derivatives; the fused kernels have none."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def jvp(map_: Map, x: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Return J v, the derivative of the map at `x` along `v`.

    At the first call in a process, torch warns of its own use of `torch.jit.script`. Users can do
    nothing about this warning, so it is ignored.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated")
        return torch.func.jvp(map_, (x,), (v,))[1]


class Jacobian:
    """Products J v and J^T v of a map that treats samples independently, for a batch of points."""

    def __init__(self, map_: Map, x: torch.Tensor, *, many: bool = True) -> None:
        """Prepare products at `x`; trace a large map first if there will be `many`."""
        self.x = x
        self._pull = torch.func.vjp(map_, x)[1]
        self._push: Map = lambda v: jvp(map_, x, v)
        if many and x.numel() >= _TRACE_FROM:
            self._push = _linearized(map_, x) or self._push

    def forward(self, v: torch.Tensor) -> torch.Tensor:
        """Return J v, one vector per point."""
        with torch.no_grad():
            return self._push(v).detach()

    def transpose(self, v: torch.Tensor) -> torch.Tensor:
        """Return J^T v, one vector per point."""
        return self._pull(v)[0].detach()

    def symmetric(self, v: torch.Tensor) -> torch.Tensor:
        """Return (J + J^T) v / 2."""
        return (self.forward(v) + self.transpose(v)) / 2


def _linearized(map_: Map, x: torch.Tensor) -> Map | None:
    """Trace the map once and return v -> J v; None if it cannot be traced.

    A product then takes a quarter to a third of the time of `torch.func.jvp`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.fx warns about constants of the trace
        try:
            push: Map = torch.func.linearize(map_, x)[1]
            push(torch.zeros_like(x))
        except Exception:  # torch.fx does not support the map; `jvp` gives the same numbers
            return None
    return push


def seeded_streams(count: int, seed: int) -> Streams:
    seeds = np.random.SeedSequence(seed).generate_state(count, dtype=np.uint64)
    return [torch.Generator().manual_seed(int(s >> np.uint64(1))) for s in seeds]


def random_signs(like: torch.Tensor, streams: Streams) -> torch.Tensor:
    """Return a random sign vector per point."""
    bits = [torch.randint(0, 2, like.shape[1:], generator=stream) for stream in streams]
    return 2 * torch.stack(bits).to(like) - 1


def lowest_eigenvalue(
    jacobian: Jacobian, steps: int, tolerance: float, streams: Streams
) -> tuple[Float[torch.Tensor, " n"], Float[torch.Tensor, " n"], Float[torch.Tensor, " n"]]:
    """Return each point's smallest eigenvalue, its error bound, and the largest absolute value.

    The eigenvalues are those of the Jacobian's symmetric part S. The Lanczos method with full
    reorthogonalization (Golub and Van Loan 2013, sec. 10.3) runs for all points at once. If a
    Krylov space is exhausted, it continues from a new random direction, so that eigenvalues
    outside it are found. The smallest Ritz value theta, with Ritz vector u, bounds the smallest
    eigenvalue from above, and some eigenvalue lies within ||S u - theta u|| of theta. A point has
    converged when this error bound is at most `tolerance` times its largest absolute Ritz value. It
    keeps the values of this step, so that they do not depend on the rest of its batch.
    """
    n, shape = len(jacobian.x), jacobian.x.shape
    dimension = jacobian.x[0].numel()
    steps = min(steps, dimension)
    basis = torch.zeros(n, steps, dimension).to(jacobian.x)
    tridiagonal = torch.zeros(n, steps, steps).to(jacobian.x)
    q = new_direction(basis[:, :0], streams)
    estimates = torch.zeros(3, n).to(q)
    active = torch.ones(n, dtype=torch.bool, device=q.device)
    for k in range(steps):
        basis[:, k] = q
        image = jacobian.symmetric(q.reshape(shape)).flatten(1)
        tridiagonal[:, k, k] = (q * image).sum(1)
        rest = orthogonalize(image, basis[:, : k + 1])
        scale = tridiagonal.abs().amax((1, 2)).clamp_min(torch.finfo(q.dtype).tiny)
        q, beta = normalized_or_new(rest, rest.norm(dim=1), scale, basis[:, : k + 1], streams)
        last = k + 1 == steps
        if last or (k + 1 >= _FIRST_CHECK and (k + 1) % CHECK_EVERY == 0 and tolerance > 0):
            current = _ritz(tridiagonal[:, : k + 1, : k + 1], beta * (k + 1 < dimension))
            estimates[:, active] = current[:, active]
            active &= current[1] > tolerance * current[2]
            if last or not bool(active.any()):
                break
        tridiagonal[:, k, k + 1] = tridiagonal[:, k + 1, k] = beta
    return estimates[0], estimates[1], estimates[2]


def _ritz(
    tridiagonal: Float[torch.Tensor, "n k k"], beta: Float[torch.Tensor, " n"]
) -> Float[torch.Tensor, "3 n"]:
    """Return the smallest Ritz value, a bound on its error, and the largest absolute Ritz value."""
    values, vectors = torch.linalg.eigh(tridiagonal)
    return torch.stack([values[:, 0], beta * vectors[:, -1, 0].abs(), values.abs().amax(1)])


def new_direction(basis: torch.Tensor, streams: Streams) -> torch.Tensor:
    """Return a random unit vector per point, orthogonal to the basis (n, k, dimension)."""
    draws = [torch.randn(basis.shape[2], generator=s, dtype=torch.float64) for s in streams]
    v = orthogonalize(torch.stack(draws).to(basis), basis)
    return v / v.norm(dim=1, keepdim=True)


def normalized_or_new(
    v: torch.Tensor, norm: torch.Tensor, scale: torch.Tensor, basis: torch.Tensor, streams: Streams
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the normalized vectors, and their norms before.

    A vanishing vector gets the norm 0 and, unless the basis is complete, a new random direction.
    """
    stuck = norm <= _BREAKDOWN * scale
    v = v / torch.where(stuck, 1.0, norm)[:, None]
    if bool(stuck.any()) and basis.shape[1] < basis.shape[2]:
        stuck_streams = [s for s, is_stuck in zip(streams, stuck, strict=True) if is_stuck]
        v[stuck] = new_direction(basis[stuck], stuck_streams)
    return v, torch.where(stuck, 0.0, norm)


def orthogonalize(v: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    for _ in range(2):  # twice is enough (Kahan, in Parlett 1980, sec. 6.9)
        v = v - ((basis @ v[..., None]).mT @ basis)[:, 0]
    return v
