"""Is a block an optimal map? Its Jacobian says so at every point, whatever the number of samples.

A map T is optimal for the squared cost exactly where it is the gradient of a convex function
(Brenier 1991): its Jacobian J is then symmetric and positive semi-definite. Products J v
(forward mode) and J^T v (reverse mode) test both without ever forming J.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .arrays import as_array, check_plain
from .blocks import evaluating, hooked, run
from .errors import ArgumentError
from .geodesic.resampling import mean_interval
from .geodesic.result import table
from .progress import track

if TYPE_CHECKING:
    import pandas as pd

Map = Callable[[torch.Tensor], torch.Tensor]
Streams = list[torch.Generator]  # one a point, so that batching changes nothing that is drawn
_BREAKDOWN = 1e-10  # a Krylov direction this small, relative to the Jacobian's scale, is rounding
_BASIS_BYTES = 2**29  # of Lanczos vectors held at once
_NEGATIVE = 1e-9  # an eigenvalue counts as negative below minus this, relative to the largest


@dataclass(frozen=True, eq=False)
class BrenierResult:
    """How far a map is from the gradient of a convex function, at sampled points.

    Attributes
    ----------
    asymmetry : float in [0, inf), or None where undefined
        Mean over points of E||J v - J^T v||^2 / E||J v + J^T v||^2: squared norm of the Jacobian's
        antisymmetric part over that of its symmetric part. 0 for a gradient; tan^2(delta) for a
        rotation by delta in the plane; about 1 for a matrix of independent entries.
    displacement_asymmetry : float or None
        The same of the displacement T(x) - x alone, J - I in place of J.
    min_eigenvalue : float
        Mean over points of the smallest eigenvalue of (J + J^T) / 2. Negative where no convex
        function has this gradient. Lanczos approaches it from above, within `residual`.
    lowest_eigenvalue : float
        The smallest of them over all points.
    negative_share : float in [0, 1]
        Share of points where it is negative.
    residual : float
        Largest bound, over points, on the distance from the value found to an eigenvalue.
    intervals : dict of (low, high)
        95 % BCa bootstrap intervals over points of the means and the share above.
    per_point : dict of ndarray, (points,)
        ``asymmetry``, ``displacement_asymmetry``, ``min_eigenvalue``, ``residual``; NaN where
        undefined.
    probes, lanczos : int
        Probes for the asymmetries, Lanczos steps (at most the dimension) for the eigenvalue.
    seconds : float
    """

    asymmetry: float | None
    displacement_asymmetry: float | None
    min_eigenvalue: float
    lowest_eigenvalue: float
    negative_share: float
    residual: float
    probes: int
    lanczos: int
    seconds: float
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    per_point: Mapping[str, Float[np.ndarray, " n"]] = field(default_factory=dict, repr=False)

    @property
    def points(self) -> int:
        """Number of points at which the map was tested."""
        return len(self.per_point["min_eigenvalue"])

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists, ready for JSON; None where undefined."""
        return {
            "asymmetry": self.asymmetry,
            "displacement_asymmetry": self.displacement_asymmetry,
            "min_eigenvalue": self.min_eigenvalue,
            "lowest_eigenvalue": self.lowest_eigenvalue,
            "negative_share": self.negative_share,
            "residual": self.residual,
            "points": self.points,
            "probes": self.probes,
            "lanczos": self.lanczos,
            "seconds": self.seconds,
            "intervals": {name: list(pair) for name, pair in self.intervals.items()},
        }

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with a row a point."""
        return table(dict(self.per_point))


def brenier(
    module: nn.Module | Map,
    x: Any,
    *,
    probes: int = 8,
    lanczos: int = 40,
    batch_size: int = 16,
    bootstrap: int = 200,
    seed: int = 0,
) -> BrenierResult:
    """Test whether a map is the gradient of a convex function, at the points `x`.

    Parameters
    ----------
    module : nn.Module or callable, (n, ...) -> (n, ...)
        A block, several in a row (``nn.Sequential``), or any function that treats samples one by
        one. A module is copied, in float64 and eval mode, and left as it was.
    x : array_like, (n, ...)
        Points of its input space, of any shape: full spatial features, not pooled ones.
    probes : int
        Random vectors of signs a point (Hutchinson 1990), two products each.
    lanczos : int
        Steps a point at most, two products each; exact from the dimension on.
    batch_size : int
        Points at once; no influence on the result beyond rounding.
    bootstrap : int
        Resamples of the points for the intervals.
    seed : int

    Raises
    ------
    ArgumentError
        The output has another shape than the input (an optimal map is defined within one space: at
        a change of stage test what follows it), samples influence each other, or the map cannot be
        differentiated.
    """
    if min(probes, lanczos, batch_size) < 1:
        raise ArgumentError("probes, lanczos and batch_size must be at least 1.")
    began = time.perf_counter()
    points = (x if isinstance(x, torch.Tensor) else torch.as_tensor(as_array(x, "x"))).detach()
    check_plain(points, "x")
    map_, device = _in_float64(module, points.device)
    points = points.to(device, torch.float64)
    parts: list[tuple[torch.Tensor, ...]] = []
    with _differentiable_everywhere():
        _check(map_, points)
        rows = min(batch_size, max(1, _BASIS_BYTES // (8 * lanczos * points[0].numel())))
        streams = _streams(len(points), seed)
        chunks = range(0, len(points), rows)
        for start in track(chunks, "testing for gradient maps"):
            jacobian = _Jacobian(map_, points[start : start + rows])
            own = streams[start : start + rows]
            parts.append((*_asymmetries(jacobian, probes, own), *_lowest(jacobian, lanczos, own)))
    columns = [torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)]
    names = ("asymmetry", "displacement_asymmetry", "min_eigenvalue", "residual", "scale")
    per_point = dict(zip(names, columns, strict=True))
    negative = per_point["min_eigenvalue"] < -_NEGATIVE * per_point.pop("scale")
    averaged = {
        **{name: per_point[name] for name in names[:3]},
        "negative_share": negative.astype(np.float64),
    }
    intervals = {
        name: mean_interval(values, draws=bootstrap, seed=seed) for name, values in averaged.items()
    }
    return BrenierResult(
        asymmetry=_mean(per_point["asymmetry"]),
        displacement_asymmetry=_mean(per_point["displacement_asymmetry"]),
        min_eigenvalue=float(per_point["min_eigenvalue"].mean()),
        lowest_eigenvalue=float(per_point["min_eigenvalue"].min()),
        negative_share=float(negative.mean()),
        residual=float(per_point["residual"].max()),
        probes=probes,
        lanczos=min(lanczos, points[0].numel()),
        seconds=time.perf_counter() - began,
        intervals={name: pair for name, pair in intervals.items() if pair is not None},
        per_point=per_point,
    )


@dataclass(frozen=True, eq=False)
class BrenierBlocks:
    """The test at every block of a network, and over every run of blocks within one space.

    ``blocks`` maps a block's name, and ``segments`` the names of blocks in a row, to its result;
    blocks that change the space are in neither.
    """

    blocks: Mapping[str, BrenierResult]
    segments: Mapping[tuple[str, ...], BrenierResult]


def brenier_blocks(
    module: nn.Module, x: torch.Tensor, names: Sequence[str], **options: Any
) -> BrenierBlocks:
    """Test the blocks of a network at the features that enter them.

    Parameters
    ----------
    module : nn.Module
        The network; left as it was.
    x : Tensor, (n, ...)
        Inputs of the network, normalised; a few dozen are plenty.
    names : sequence of str
        The blocks, in execution order (`wgeo.blocks` finds them).
    **options
        As for `brenier`.
    """
    parts = dict(module.named_modules())
    entering: dict[str, torch.Tensor] = {}
    leaving: dict[str, torch.Tensor] = {}
    with evaluating(module), torch.no_grad(), hooked() as keep:
        for name in names:
            keep(parts[name].register_forward_pre_hook(_into(entering, name)))
            keep(parts[name].register_forward_hook(_into(leaving, name)))
        run(module, x)
    runs: list[list[str]] = []
    for name in names:
        if entering[name].shape != leaving[name].shape:
            continue
        if not runs or not torch.equal(leaving[runs[-1][-1]], entering[name]):
            runs.append([])
        runs[-1].append(name)
    blocks = {
        name: brenier(parts[name], entering[name], **options)
        for name in track([name for names in runs for name in names], "testing blocks")
    }
    segments = {
        tuple(names): brenier(
            nn.Sequential(*(parts[name] for name in names)), entering[names[0]], **options
        )
        for names in track([names for names in runs if len(names) > 1], "testing segments")
    }
    return BrenierBlocks(blocks, segments)


def _into(store: dict[str, torch.Tensor], name: str) -> Callable[..., None]:
    """Return a hook, before or after a module, that keeps a copy of the tensor passing there."""

    def hook(_: nn.Module, args: tuple[Any, ...], out: torch.Tensor | None = None) -> None:
        store[name] = (args[0] if out is None else out).detach().clone()

    return hook


def _mean(values: np.ndarray) -> float | None:
    return None if np.isnan(values).all() else float(np.nanmean(values))


def _in_float64(module: nn.Module | Map, device: torch.device) -> tuple[Map, torch.device]:
    """Return the map in float64 and eval mode, and where it lives; the caller's is not touched."""
    if not isinstance(module, nn.Module):
        return lambda z: module(z.clone()), device
    own = copy.deepcopy(module).double().eval().requires_grad_(False)
    home = next((p.device for p in own.parameters()), device)
    # A pre-activation block may overwrite its own input; a copy keeps the point where it is.
    return lambda z: own(z.clone()), home


@contextmanager
def _differentiable_everywhere() -> Iterator[None]:
    """Use the attention that has forward derivatives; the fused kernels have none."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def _check(map_: Map, points: torch.Tensor) -> None:
    if points.ndim < 2 or points.numel() == 0:
        raise ArgumentError(f"x must be (points, ...); it has shape {tuple(points.shape)}.")
    if not bool(torch.isfinite(points).all()):
        raise ArgumentError("x holds NaN or infinity; the map cannot be tested there.")
    few = points[:2]
    try:
        with torch.no_grad():
            together, alone = map_(few), map_(few[:1])
    except (RuntimeError, TypeError) as error:
        raise ArgumentError(
            f"The map cannot take points of shape {tuple(points.shape[1:])} in float64: {error}"
        ) from error
    if not isinstance(together, torch.Tensor) or together.shape != few.shape:
        shape = tuple(together.shape[1:]) if isinstance(together, torch.Tensor) else "no tensor"
        raise ArgumentError(
            f"The map takes {tuple(points.shape[1:])} to {shape}. Only a map within one space can "
            "be the gradient of a function; at a change of stage test the blocks after it."
        )
    scale = together.abs().max()
    if bool((together[:1] - alone).abs().max() > 1e-9 * scale):
        raise ArgumentError(
            "The map's output for a sample depends on the samples beside it (batch normalisation "
            "in training mode?), so it is no map of the feature space."
        )
    try:
        _Jacobian(map_, few).symmetric(torch.ones_like(few))
    except RuntimeError as error:
        raise ArgumentError(
            f"The map cannot be differentiated in forward and reverse mode: {error}"
        ) from error


class _Jacobian:
    """J v and J^T v of a map that treats samples one by one, at all points of a batch at once."""

    def __init__(self, map_: Map, x: torch.Tensor) -> None:
        self.map, self.x = map_, x
        self._pull = torch.func.vjp(map_, x)[1]

    def forward(self, v: torch.Tensor) -> torch.Tensor:
        """J v, a vector a point."""
        return torch.func.jvp(self.map, (self.x,), (v,))[1].detach()

    def transpose(self, v: torch.Tensor) -> torch.Tensor:
        """J^T v, a vector a point."""
        return self._pull(v)[0].detach()

    def symmetric(self, v: torch.Tensor) -> torch.Tensor:
        """(J + J^T) v / 2."""
        return (self.forward(v) + self.transpose(v)) / 2


def _streams(count: int, seed: int) -> Streams:
    seeds = np.random.SeedSequence(seed).generate_state(count, dtype=np.uint64)
    return [torch.Generator().manual_seed(int(s >> np.uint64(1))) for s in seeds]


def _signs(like: torch.Tensor, streams: Streams) -> torch.Tensor:
    """Return a vector of random signs a point."""
    bits = [torch.randint(0, 2, like.shape[1:], generator=stream) for stream in streams]
    return 2 * torch.stack(bits).to(like) - 1


def _asymmetries(
    jacobian: _Jacobian, probes: int, streams: Streams
) -> tuple[Float[torch.Tensor, " n"], Float[torch.Tensor, " n"]]:
    """Return each point's asymmetry, of the map and of its displacement; NaN where both vanish."""
    n = len(jacobian.x)
    anti, whole, moved = (torch.zeros(n).to(jacobian.x) for _ in range(3))
    for _ in range(probes):
        v = _signs(jacobian.x, streams)
        forward, transpose = jacobian.forward(v), jacobian.transpose(v)
        anti += (forward - transpose).flatten(1).square().sum(1)
        whole += (forward + transpose).flatten(1).square().sum(1)
        moved += (forward + transpose - 2 * v).flatten(1).square().sum(1)
    return anti / whole, anti / moved


def _lowest(
    jacobian: _Jacobian, steps: int, streams: Streams
) -> tuple[Float[torch.Tensor, " n"], Float[torch.Tensor, " n"], Float[torch.Tensor, " n"]]:
    """Return, a point: the smallest eigenvalue of the symmetric part, its error bound, the largest.

    Lanczos with full reorthogonalisation (Golub and Van Loan 2013, sec. 10.3), all points at once.
    Where the Krylov space is exhausted it goes on from a new random direction, so that an
    eigenvalue invisible to the first is not missed. The smallest Ritz value theta bounds the
    smallest eigenvalue from above, and some eigenvalue lies within ||S u - theta u|| of it.
    """
    n, shape = len(jacobian.x), jacobian.x.shape
    dimension = jacobian.x[0].numel()
    steps = min(steps, dimension)
    basis = torch.zeros(n, steps, dimension).to(jacobian.x)
    tridiagonal = torch.zeros(n, steps, steps).to(jacobian.x)
    q = _fresh(basis[:, :0], streams)
    beta = torch.zeros(n).to(q)
    for k in range(steps):
        basis[:, k] = q
        image = jacobian.symmetric(q.reshape(shape)).flatten(1)
        tridiagonal[:, k, k] = (q * image).sum(1)
        rest = _orthogonal(image, basis[:, : k + 1])
        beta = rest.norm(dim=1)
        scale = tridiagonal.abs().amax((1, 2)).clamp_min(torch.finfo(q.dtype).tiny)
        stuck = beta <= _BREAKDOWN * scale
        beta = torch.where(stuck, 0.0, beta)
        if k + 1 < steps:
            q = rest / torch.where(stuck, 1.0, beta)[:, None]
            if bool(stuck.any()):
                again = [
                    stream for stream, is_stuck in zip(streams, stuck, strict=True) if is_stuck
                ]
                q[stuck] = _fresh(basis[stuck, : k + 1], again)
            tridiagonal[:, k, k + 1] = tridiagonal[:, k + 1, k] = beta
    values, vectors = torch.linalg.eigh(tridiagonal)
    residual = beta * vectors[:, -1, 0].abs()
    if steps == dimension:
        residual = torch.zeros_like(residual)
    return values[:, 0], residual, values.abs().amax(1)


def _fresh(basis: torch.Tensor, streams: Streams) -> torch.Tensor:
    """Return a random unit vector a point, orthogonal to the basis (n, k, dimension)."""
    drawn = [torch.randn(basis.shape[2], generator=s, dtype=torch.float64) for s in streams]
    v = _orthogonal(torch.stack(drawn).to(basis), basis)
    return v / v.norm(dim=1, keepdim=True)


def _orthogonal(v: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    for _ in range(2):  # twice is enough (Kahan, in Parlett 1980, sec. 6.9)
        v = v - ((basis @ v[..., None]).mT @ basis)[:, 0]
    return v
