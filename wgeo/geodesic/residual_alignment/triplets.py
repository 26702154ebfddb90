"""The largest singular values of a residual Jacobian, their vectors, and the energy of the rest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float

from ..jacobian import CHECK_EVERY, Streams, new_direction, normalized_or_new, orthogonalize
from .operators import ResidualJacobian

_RANK = 1e-9  # singular values below this fraction of the largest count as zero


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
    jacobian: ResidualJacobian, count: int, steps: int, tolerance: float, streams: Streams
) -> Triplets:
    """Return the `count` largest triplets, by Golub-Kahan-Lanczos bidiagonalization.

    The method (Golub and Van Loan 2013, sec. 10.4) uses full reorthogonalization and runs for all
    points at once. If a Krylov space is exhausted, it continues from a new random direction, so
    that multiple singular values are found. Each point keeps the triplets of the step at which its
    residual fell to `tolerance`, so that they do not depend on the rest of its batch. They are
    exact if `steps` is at least the dimension.
    """
    n, d = jacobian.points, jacobian.dimension
    steps, count = min(steps, d), min(count, d)
    left, right = jacobian.zeros(steps, d), jacobian.zeros(steps, d)
    bidiagonal = jacobian.zeros(steps, steps)
    best = Triplets(
        jacobian.zeros(count, d),
        jacobian.zeros(count),
        jacobian.zeros(count, d),
        jacobian.zeros(),
        jacobian.zeros(),
    )
    active = torch.ones(n, dtype=torch.bool, device=left.device)
    scale = jacobian.zeros() + torch.finfo(left.dtype).tiny
    q = new_direction(right[:, :0], streams)
    for k in range(steps):
        right[:, k] = q
        p = orthogonalize(jacobian.forward(q), left[:, :k])
        alpha = p.norm(dim=1)
        scale = torch.maximum(scale, alpha)
        p, alpha = normalized_or_new(p, alpha, scale, left[:, :k], streams)
        left[:, k], bidiagonal[:, k, k] = p, alpha
        rest = orthogonalize(jacobian.transpose(p), right[:, : k + 1])
        beta = rest.norm(dim=1)
        last = k + 1 == steps
        if last or (k + 1 > count and (k + 1) % CHECK_EVERY == 0):
            bound = beta * (k + 1 < d)
            current = _ritz(bidiagonal[:, : k + 1, : k + 1], bound, left, right, count)
            for name in ("u", "s", "v", "residual", "gap"):
                getattr(best, name)[active] = getattr(current, name)[active]
            active &= best.residual > tolerance
            if last or not bool(active.any()):
                break
        q, beta = normalized_or_new(rest, beta, scale, right[:, : k + 1], streams)
        bidiagonal[:, k, k + 1] = beta
    return best


def _ritz(
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


@dataclass(frozen=True, eq=False)
class Energies:
    """Ratios of squared norms of a Jacobian at every point, (n,); NaN if a ratio is undefined."""

    share: torch.Tensor  # sum_{k <= K} s_k^2 / ||J||_F^2
    participation: torch.Tensor  # ||J||_F^4 / ||J^T J||_F^2
    asymmetry: torch.Tensor  # (||J||_F^2 - tr J^2) / (||J||_F^2 + tr J^2)


def energies(jacobian: ResidualJacobian, top: Triplets, probes: int, streams: Streams) -> Energies:
    """Estimate the energies from random sign vectors (Hutchinson 1990), three products each.

    For ``share`` and ``participation``, the contribution of the triplets is subtracted first (Meyer
    et al. 2021), so they are exact if the rank is at most K. With at least as many probes as
    dimensions, unit vectors are used, and all energies are exact.
    """
    zero = jacobian.zeros()
    rest, rest_4, anti, symmetric = zero.clone(), zero.clone(), zero.clone(), zero.clone()
    vectors, weight = _probes(jacobian, probes, streams)
    for v in vectors:
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
    undefined = torch.nan + zero
    moves, not_antisymmetric = norm > 0, symmetric > _RANK * anti
    return Energies(
        torch.where(moves, squares / norm, undefined),
        torch.where(moves, norm**2 / norm_4, undefined),
        torch.where(moves & not_antisymmetric, anti / symmetric, undefined),
    )


def _probes(
    jacobian: ResidualJacobian, probes: int, streams: Streams
) -> tuple[Iterator[torch.Tensor], float]:
    """Return vectors v and a weight w for which the expected sum of w v v^T is I."""
    d = jacobian.dimension
    if probes < d:
        return (jacobian.signs(streams) for _ in range(probes)), 1 / probes
    units = torch.eye(d).to(jacobian.zeros())
    return (units[k].expand(jacobian.points, d) for k in range(d)), 1.0
