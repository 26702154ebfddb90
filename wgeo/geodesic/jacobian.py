"""Products with a map's Jacobian, its lowest eigenvalue and its largest singular triplets."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch.nn.attention import SDPBackend, sdpa_kernel

Map = Callable[[torch.Tensor], torch.Tensor]
# One generator per point, so that random draws do not depend on the batch size.
Streams = list[torch.Generator]
_RANK = 1e-9  # singular values below this fraction of the largest count as zero
_BREAKDOWN = 1e-10  # relative norm below which a Krylov direction is rounding error
_TRACE_FROM = 2**14  # entries of a batch above which tracing the derivative (0.3 s) saves time
_FIRST_CHECK, _CHECK_EVERY = 12, 4  # Lanczos steps at which convergence is checked


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
        """Prepare products at `x`; for `many` products at a large `x`, trace the map first."""
        self.x, self.points, self.dimension = x, len(x), x[0].numel()
        self._pull = torch.func.vjp(map_, x)[1]
        self._push: Map = lambda v: jvp(map_, x, v)
        if many and x.numel() >= _TRACE_FROM:
            self._push = _linearized(map_, x) or self._push

    def zeros(self, *shape: int) -> torch.Tensor:
        """Return zeros (n, *shape), with the device and precision of the points."""
        return torch.zeros(self.points, *shape).to(self.x)

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
    """Return each point's smallest eigenvalue, its error bound, and the largest absolute one.

    The eigenvalues are those of the Jacobian's symmetric part S. The Lanczos method with full
    reorthogonalization (Golub and Van Loan 2013, sec. 10.3) runs for all points at once. If a
    Krylov space is exhausted, the method continues from a new random direction, to find eigenvalues
    outside this space. The smallest Ritz value theta, with Ritz vector u, bounds the smallest
    eigenvalue from above, and some eigenvalue lies within ||S u - theta u|| of theta. A point has
    converged when this error bound is at most `tolerance` times its largest absolute Ritz value.
    The point keeps the values of this step, which do not depend on the rest of its batch.
    """
    shape, dimension = jacobian.x.shape, jacobian.dimension
    steps = min(steps, dimension)
    basis, tridiagonal = jacobian.zeros(steps, dimension), jacobian.zeros(steps, steps)
    q = _new_direction(basis[:, :0], streams)
    estimates = torch.zeros(3, jacobian.points).to(q)
    active = torch.ones(jacobian.points, dtype=torch.bool, device=q.device)
    for k in range(steps):
        basis[:, k] = q
        image = jacobian.symmetric(q.reshape(shape)).flatten(1)
        tridiagonal[:, k, k] = (q * image).sum(1)
        rest = _orthogonalize(image, basis[:, : k + 1])
        scale = tridiagonal.abs().amax((1, 2)).clamp_min(torch.finfo(q.dtype).tiny)
        q, beta = _normalized_or_new(rest, rest.norm(dim=1), scale, basis[:, : k + 1], streams)
        last = k + 1 == steps
        if last or (k + 1 >= _FIRST_CHECK and (k + 1) % _CHECK_EVERY == 0 and tolerance > 0):
            current = _ritz_values(tridiagonal[:, : k + 1, : k + 1], beta * (k + 1 < dimension))
            estimates[:, active] = current[:, active]
            active &= current[1] > tolerance * current[2]
            if last or not bool(active.any()):
                break
        tridiagonal[:, k, k + 1] = tridiagonal[:, k + 1, k] = beta
    return estimates[0], estimates[1], estimates[2]


def _ritz_values(
    tridiagonal: Float[torch.Tensor, "n k k"], beta: Float[torch.Tensor, " n"]
) -> Float[torch.Tensor, "3 n"]:
    """Return the smallest Ritz value, a bound on its error, and the largest absolute Ritz value."""
    values, vectors = torch.linalg.eigh(tridiagonal)
    return torch.stack([values[:, 0], beta * vectors[:, -1, 0].abs(), values.abs().amax(1)])


@dataclass(frozen=True, eq=False)
class Triplets:
    """The K largest singular triplets of a Jacobian at every point, J v_k = s_k u_k.

    Beyond the rank, triplets are zero.
    """

    u: Float[torch.Tensor, "n K d"]
    s: Float[torch.Tensor, "n K"]  # descending
    v: Float[torch.Tensor, "n K d"]
    residual: Float[torch.Tensor, " n"]  # largest ||J^T u_k - s_k v_k|| / smallest nonzero s_k
    gap: Float[torch.Tensor, " n"]  # 1 - s_{K+1} / s_K; if it is 0, the subspaces are arbitrary

    @property
    def rank(self) -> Float[torch.Tensor, " n"]:
        """Number of triplets at every point, at most K."""
        return (self.s > 0).sum(1).to(self.s)


def top_triplets(
    jacobian: Jacobian, count: int, steps: int, tolerance: float, streams: Streams
) -> Triplets:
    """Return the `count` largest triplets, by Golub-Kahan-Lanczos bidiagonalization.

    The method (Golub and Van Loan 2013, sec. 10.4) uses full reorthogonalization and runs for all
    points at once. If a Krylov space is exhausted, the method continues from a new random
    direction, to find repeated singular values. Each point keeps the triplets of the step at which
    its residual fell to `tolerance`; they do not depend on the rest of its batch. The triplets are
    exact if `steps` is at least the dimension.
    """
    n, d = jacobian.points, jacobian.dimension
    steps, count = min(steps, d), min(count, d)
    left, right = jacobian.zeros(steps, d), jacobian.zeros(steps, d)
    bidiagonal = jacobian.zeros(steps, steps)
    shapes = ((count, d), (count,), (count, d), (), ())
    best = Triplets(*(jacobian.zeros(*shape) for shape in shapes))
    active = torch.ones(n, dtype=torch.bool, device=left.device)
    scale = jacobian.zeros() + torch.finfo(left.dtype).tiny
    q = _new_direction(right[:, :0], streams)
    for k in range(steps):
        right[:, k] = q
        p = _orthogonalize(jacobian.forward(q), left[:, :k])
        alpha = p.norm(dim=1)
        scale = torch.maximum(scale, alpha)
        p, alpha = _normalized_or_new(p, alpha, scale, left[:, :k], streams)
        left[:, k], bidiagonal[:, k, k] = p, alpha
        rest = _orthogonalize(jacobian.transpose(p), right[:, : k + 1])
        beta = rest.norm(dim=1)
        last = k + 1 == steps
        if last or (k + 1 > count and (k + 1) % _CHECK_EVERY == 0):
            bound = beta * (k + 1 < d)
            current = _ritz_triplets(bidiagonal[:, : k + 1, : k + 1], bound, left, right, count)
            for name in ("u", "s", "v", "residual", "gap"):
                getattr(best, name)[active] = getattr(current, name)[active]
            active &= best.residual > tolerance
            if last or not bool(active.any()):
                break
        q, beta = _normalized_or_new(rest, beta, scale, right[:, : k + 1], streams)
        bidiagonal[:, k, k + 1] = beta
    return best


def _ritz_triplets(
    bidiagonal: torch.Tensor,
    beta: torch.Tensor,
    left: torch.Tensor,
    right: torch.Tensor,
    count: int,
) -> Triplets:
    x, s, yt = torch.linalg.svd(bidiagonal)
    k = bidiagonal.shape[1]
    kept = s[:, :count] > _RANK * s[:, :1]
    s_kept = torch.where(kept, s[:, :count], 0.0)
    errors = beta[:, None] * x[:, -1, :count].abs()
    smallest = torch.where(kept, s[:, :count], torch.inf).amin(1)
    relative = torch.where(kept, errors, 0.0).amax(1) / smallest
    after = s[:, count] if k > count else torch.zeros_like(beta)
    gap = 1 - after / s[:, count - 1].clamp_min(torch.finfo(s.dtype).tiny)
    return Triplets(
        (x.mT @ left[:, :k])[:, :count] * kept[..., None],
        s_kept,
        (yt @ right[:, :k])[:, :count] * kept[..., None],
        relative.nan_to_num(0.0),
        gap,
    )


def energies(
    jacobian: Jacobian, top: Triplets, probes: int, streams: Streams
) -> dict[str, Float[torch.Tensor, " n"]]:
    """Return ratios of squared norms at every point; NaN if a ratio is undefined.

    * ``share``: sum_{k <= K} s_k^2 / ||J||_F^2;
    * ``participation``: ||J||_F^4 / ||J^T J||_F^2;
    * ``asymmetry``: (||J||_F^2 - tr J^2) / (||J||_F^2 + tr J^2).

    The ratios are estimated from random sign vectors (Hutchinson 1990), which take three products
    each. For `share` and `participation`, the contribution of the triplets is known, and only the
    rest is estimated (Meyer et al. 2021); these two are therefore exact if the rank is at most K.
    With at least as many probes as dimensions, unit vectors are used, and all three are exact.
    """
    d, exact = jacobian.dimension, probes >= jacobian.dimension
    weight = 1.0 if exact else 1 / probes  # the expected sum of weight v v^T is I
    rest, rest_4, anti, symmetric = (jacobian.zeros() for _ in range(4))
    for k in range(min(probes, d)):
        v = jacobian.zeros(d)
        if exact:
            v[:, k] = 1.0
        else:
            v = random_signs(v, streams)
        forward, transpose = jacobian.forward(v), jacobian.transpose(v)
        both = jacobian.transpose(forward)
        coefficients = (top.v @ v[..., None])[..., 0]  # (n, K)
        out = forward - ((top.s * coefficients)[:, None] @ top.u)[:, 0]
        out_4 = both - ((top.s**2 * coefficients)[:, None] @ top.v)[:, 0]
        rest += weight * out.square().sum(1)
        rest_4 += weight * out_4.square().sum(1)
        anti += (forward - transpose).square().sum(1)
        symmetric += (forward + transpose).square().sum(1)
    squares = (top.s**2).sum(1)
    norm, norm_4 = squares + rest, (top.s**4).sum(1) + rest_4
    moves, not_antisymmetric = norm > 0, symmetric > _RANK * anti
    return {
        "share": torch.where(moves, squares / norm, torch.nan),
        "participation": torch.where(moves, norm**2 / norm_4, torch.nan),
        "asymmetry": torch.where(moves & not_antisymmetric, anti / symmetric, torch.nan),
    }


def _new_direction(basis: torch.Tensor, streams: Streams) -> torch.Tensor:
    """Return a random unit vector per point, orthogonal to the basis (n, k, dimension)."""
    draws = [torch.randn(basis.shape[2], generator=s, dtype=torch.float64) for s in streams]
    v = _orthogonalize(torch.stack(draws).to(basis), basis)
    return v / v.norm(dim=1, keepdim=True)


def _normalized_or_new(
    v: torch.Tensor, norm: torch.Tensor, scale: torch.Tensor, basis: torch.Tensor, streams: Streams
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the normalized vectors, and their norms before normalization.

    A vanishing vector gets the norm 0 and, unless the basis is complete, a new random direction.
    """
    stuck = norm <= _BREAKDOWN * scale
    v = v / torch.where(stuck, 1.0, norm)[:, None]
    if bool(stuck.any()) and basis.shape[1] < basis.shape[2]:
        stuck_streams = [s for s, is_stuck in zip(streams, stuck, strict=True) if is_stuck]
        v[stuck] = _new_direction(basis[stuck], stuck_streams)
    return v, torch.where(stuck, 0.0, norm)


def _orthogonalize(v: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    for _ in range(2):  # twice is enough (Kahan, in Parlett 1980, sec. 6.9)
        v = v - ((basis @ v[..., None]).mT @ basis)[:, 0]
    return v
