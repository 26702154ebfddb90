"""Is a block an optimal map? A test of its Jacobian, which works with any number of samples.

A map is optimal for the squared cost if and only if it is the gradient of a convex function
(Brenier 1991). Its Jacobian J is then symmetric and positive semi-definite. Both properties are
tested with products J v (forward mode) and J^T v (reverse mode), without forming J.

No block of a trained network has these properties exactly. A block is therefore called different
from such a gradient only if it deviates by more than ``SYMMETRIC`` or ``CONVEX``.
"""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import scipy
import torch
from jaxtyping import Float
from torch import nn

from ..arrays.checks import as_array, as_count, check_plain
from ..errors import ArgumentError
from ..features.residual_blocks import BlockSpec
from ..features.residual_blocks.functions import is_clamped
from ..results import Result
from ..runtime.memory import OUT_OF_MEMORY
from ..runtime.progress import track
from .branches import Visit, runs_of, visits
from .jacobian import (
    Jacobian,
    Map,
    Streams,
    differentiable_everywhere,
    lowest_eigenvalue,
    random_signs,
    seeded_streams,
)
from .resampling import LEVEL, mean_interval

SYMMETRIC = 0.01
"""Largest asymmetry at which a Jacobian counts as symmetric.

The norm of the antisymmetric part is then a tenth of that of the symmetric part, as for a planar
rotation by 5.7 degrees.
"""
NEARLY_SYMMETRIC = 0.1
"""Largest asymmetry at which a Jacobian counts as nearly symmetric.

A planar rotation by 17.5 degrees has this asymmetry. On an isotropic cloud, this rotation has the
correlation score 0.95, the smallest at which a map of samples is called nearly optimal.
"""
CONVEX = 0.01
"""A negative eigenvalue up to this size, relative to the largest absolute one, counts as 0."""

_BASIS_BYTES = 2**29  # bytes of Lanczos vectors in memory
_NEGATIVE = 1e-9  # rounding error of an eigenvalue, relative to the largest
_ASYMMETRIES = ("asymmetry", "displacement_asymmetry", "branch_asymmetry")
_EIGENVALUES = ("min_eigenvalue", "residual", "scale")


@dataclass(frozen=True, eq=False, repr=False)
class BrenierResult(Result):
    """Deviation of a map from the gradient of a convex function, at sampled points.

    Attributes
    ----------
    asymmetry : float in [0, inf], or None if undefined
        Squared norm of the Jacobian's antisymmetric part, divided by that of its symmetric part;
        mean over points. It is estimated by E||J v - J^T v||^2 / E||J v + J^T v||^2 over random
        sign vectors v. It is 0 for a gradient, tan^2(delta) for a rotation by delta in the plane,
        infinite for an antisymmetric matrix, and about 1 for a matrix with independent entries.
    displacement_asymmetry : float or None
        The same for J - I, the Jacobian of the displacement. If the map ends in a ReLU, J - I has
        the entry -1 on the diagonal for every inactive unit, which hides the asymmetry of the
        branch; `branch_asymmetry` shows it.
    branch_asymmetry : float or None
        The same for J - D, where D is the derivative of the map's final ReLU (I if there is none).
        For a block ReLU(x + F(x)), J - D = D F' is the branch's Jacobian at the active units.
    dead_share : float in [0, 1]
        Fraction of the outputs that a final ReLU sets to 0; 0 if there is no final ReLU.
    min_eigenvalue : float
        Mean over points of the smallest eigenvalue of (J + J^T) / 2. If it is negative, the map is
        not the gradient of a convex function. The Lanczos method never underestimates it.
    lowest_eigenvalue : float
        The minimum of the smallest eigenvalue over all points.
    negative_share : float in [0, 1]
        Fraction of points at which the smallest eigenvalue is negative beyond rounding.
    relative_eigenvalue : float in [-1, 1]
        Mean over points of the smallest eigenvalue divided by the largest absolute eigenvalue. A
        negative value proves a negative eigenvalue. Its size can be too large, because the Lanczos
        method underestimates the largest eigenvalue. After k steps in dimension d, the error is at
        most log^2(33 sqrt(d)) / (2 k - 1)^2 times the spectrum's width, with probability 95 %
        (Kuczynski and Wozniakowski 1992, sec. 4): 1 % for k = 40 and d = 10,000.
    residual : float
        At every point, some eigenvalue lies within this distance of the smallest one computed.
    intervals : dict of (low, high)
        95 % intervals over points: Student's t for the means (`mean_interval`), Clopper-Pearson for
        `negative_share`.
    per_point : dict of ndarray, (points,)
        ``asymmetry``, ``displacement_asymmetry``, ``branch_asymmetry``, ``min_eigenvalue``,
        ``relative_eigenvalue``, ``residual``, ``dead_share``; NaN if undefined.
    probes, lanczos : int
        Number of sign vectors, and of Lanczos steps (at most the dimension).
    seconds : float

    Examples
    --------
    >>> import torch
    >>> import wgeo
    >>> rotation = torch.tensor([[0.8, -0.6], [0.6, 0.8]])
    >>> result = wgeo.brenier(lambda x: x @ rotation.to(x), torch.randn(8, 2))
    >>> result.excluded_by, round(result.asymmetry, 6)
    (('asymmetry',), 0.5625)
    """

    asymmetry: float | None
    displacement_asymmetry: float | None
    branch_asymmetry: float | None
    dead_share: float
    min_eigenvalue: float
    lowest_eigenvalue: float
    relative_eigenvalue: float
    negative_share: float
    residual: float
    probes: int
    lanczos: int
    seconds: float
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    per_point: Mapping[str, Float[np.ndarray, " n"]] = field(default_factory=dict, repr=False)
    _included: ClassVar[tuple[str, ...]] = ("points", "excluded", "excluded_by")

    @property
    def points(self) -> int:
        """Number of points at which the map was tested."""
        return len(self.per_point["min_eigenvalue"])

    @property
    def excluded_by(self) -> tuple[str, ...]:
        """Reasons why the map is not the gradient of a convex function, possibly empty.

        ``asymmetry``: the lower end of its interval is above ``SYMMETRIC``. ``eigenvalue``: the
        upper end of the interval of `relative_eigenvalue` is below -``CONVEX``. Without intervals,
        the values themselves are compared.
        """
        reasons = []
        low, _ = self.intervals.get("asymmetry", (self.asymmetry, None))
        _, high = self.intervals.get("relative_eigenvalue", (None, self.relative_eigenvalue))
        if low is not None and low > SYMMETRIC:
            reasons.append("asymmetry")
        if high is not None and high < -CONVEX:
            reasons.append("eigenvalue")
        return tuple(reasons)

    @property
    def excluded(self) -> bool:
        """Whether there is at least one reason in `excluded_by`."""
        return bool(self.excluded_by)

    def _table(self) -> list[dict[str, Any]]:
        columns = self.per_point.values()
        return [dict(zip(self.per_point, row, strict=True)) for row in zip(*columns, strict=True)]


def brenier(
    module: nn.Module | Map,
    x: Any,
    *,
    probes: int = 8,
    lanczos: int = 40,
    tolerance: float = 0.0,
    batch_size: int = 16,
    bootstrap: int = 200,
    seed: int = 0,
) -> BrenierResult:
    """Test whether a map is the gradient of a convex function, at the points `x`.

    Parameters
    ----------
    module : nn.Module or callable, (n, ...) -> (n, ...)
        A block, a composition of blocks (``nn.Sequential``), or any function that treats samples
        independently. A module is copied (to float64, eval mode) and not modified.
    x : array_like, (n, ...)
        Points of the map's input space. Use full spatial features, not pooled ones.
    probes : int
        Number of random sign vectors per point (Hutchinson 1990); each takes two products.
    lanczos : int
        Maximum number of Lanczos steps per point; each takes two products. The eigenvalues are
        exact if it is at least the dimension.
    tolerance : float
        The Lanczos steps of a point stop when its `residual` is at most this fraction of its
        largest absolute eigenvalue. With 0, all `lanczos` steps are taken.
    batch_size : int
        Number of points per batch; it affects the result only by rounding.
    bootstrap : int
        0 for no intervals. Any other number has the same effect as 200: the intervals are not
        computed from resamples, because with a few points they would be too narrow.
    seed : int
        Random seed of the sign vectors and of the Lanczos starts.

    Raises
    ------
    ArgumentError
        `probes`, `lanczos` or `batch_size` is not a whole number >= 1; `bootstrap` or `seed` is not
        a whole number >= 0; `tolerance` is negative; `x` is empty or not finite; the output and the
        input have different shapes (at a change of stage, test the blocks after it); samples
        influence each other; or the map cannot be differentiated.

    Examples
    --------
    >>> import torch
    >>> import wgeo
    >>> matrix = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    >>> result = wgeo.brenier(lambda x: x @ matrix.to(x), torch.randn(8, 2))
    >>> result.excluded, round(result.asymmetry, 6), round(result.min_eigenvalue, 6)
    (False, 0.0, 1.0)
    """
    for name, value in (("probes", probes), ("lanczos", lanczos), ("batch_size", batch_size)):
        as_count(value, name, 1)
    bootstrap, seed = as_count(bootstrap, "bootstrap"), as_count(seed, "seed")
    if not tolerance >= 0:
        raise ArgumentError(f"tolerance must be at least 0, not {tolerance!r}.")
    start_time = time.perf_counter()
    points = (x if isinstance(x, torch.Tensor) else torch.as_tensor(as_array(x, "x"))).detach()
    check_plain(points, "x")
    map_, device = _in_float64(module, points.device)
    points = points.to(device, torch.float64)
    parts: list[tuple[torch.Tensor, ...]] = []
    with differentiable_everywhere():
        _check(map_, points)
        clamped = _ends_in_relu(map_, points)
        rows = min(batch_size, max(1, _BASIS_BYTES // (8 * lanczos * points[0].numel())))
        streams = seeded_streams(len(points), seed)
        chunks = range(0, len(points), rows)
        for start in track(chunks, "testing for gradient maps"):
            jacobian = Jacobian(map_, points[start : start + rows])
            generators = streams[start : start + rows]
            active = _active(map_, jacobian.x, clamped)
            parts.append(
                (
                    *_asymmetries(jacobian, probes, generators, active),
                    (1 - active).flatten(1).mean(1),
                    *lowest_eigenvalue(jacobian, lanczos, tolerance, generators),
                )
            )
    columns = [torch.cat(column).cpu().numpy() for column in zip(*parts, strict=True)]
    per_point = dict(zip((*_ASYMMETRIES, "dead_share", *_EIGENVALUES), columns, strict=True))
    scale = per_point.pop("scale")
    lowest = per_point["min_eigenvalue"]
    with np.errstate(invalid="ignore"):
        per_point["relative_eigenvalue"] = np.where(scale > 0, lowest / scale, 0.0)
    negative = lowest < -_NEGATIVE * scale
    negative_share = scipy.stats.binomtest(int(negative.sum()), len(negative))
    intervals = {
        **{name: mean_interval(per_point[name], positive=True) for name in _ASYMMETRIES},
        "min_eigenvalue": mean_interval(lowest),
        "relative_eigenvalue": mean_interval(per_point["relative_eigenvalue"]),
        "negative_share": tuple(negative_share.proportion_ci(LEVEL)),
    }
    return BrenierResult(
        asymmetry=_mean(per_point["asymmetry"]),
        displacement_asymmetry=_mean(per_point["displacement_asymmetry"]),
        branch_asymmetry=_mean(per_point["branch_asymmetry"]),
        dead_share=float(per_point["dead_share"].mean()),
        min_eigenvalue=float(lowest.mean()),
        lowest_eigenvalue=float(lowest.min()),
        relative_eigenvalue=float(per_point["relative_eigenvalue"].mean()),
        negative_share=float(negative.mean()),
        residual=float(per_point["residual"].max()),
        probes=probes,
        lanczos=min(lanczos, points[0].numel()),
        seconds=time.perf_counter() - start_time,
        intervals={name: pair for name, pair in intervals.items() if bootstrap and pair},
        per_point=per_point,
    )


@dataclass(frozen=True, eq=False)
class BrenierBlocks:
    """The tests of a network's blocks, and of compositions of consecutive blocks in one space.

    Sums in a forward method are left out, and so are blocks that change the space, do not map one
    tensor to one tensor, or have a further argument with a row per sample.
    """

    blocks: Mapping[str, BrenierResult]  # by name
    segments: Mapping[tuple[str, ...], BrenierResult]  # by the names of at least two blocks


def brenier_blocks(
    module: nn.Module, x: torch.Tensor, names: Sequence[str], **options: Any
) -> BrenierBlocks:
    """Test a network's blocks `names` (`wgeo.blocks`) at the features that enter them.

    `x` are a few dozen normalized inputs of the network; `options` are those of `brenier`.
    """
    calls, _ = visits(module, x, [BlockSpec(name, False, None) for name in names])
    runs = runs_of([visit for visit in calls if not visit.has_rows_beside_x])
    blocks = {
        visit.spec.name: brenier(visit.in_float64(), visit.x, **options)
        for visit in track([visit for run in runs for visit in run], "testing blocks")
    }
    segments = {
        tuple(visit.spec.name for visit in run): brenier(_composed(run), run[0].x, **options)
        for run in track([run for run in runs if len(run) > 1], "testing segments")
    }
    return BrenierBlocks(blocks, segments)


def _composed(run: Sequence[Visit]) -> Map:
    maps = [visit.in_float64() for visit in run]
    return lambda z: functools.reduce(lambda y, map_: map_(y), maps, z)


def _mean(values: np.ndarray) -> float | None:
    return None if np.isnan(values).all() else float(np.nanmean(values))


def _in_float64(module: nn.Module | Map, device: torch.device) -> tuple[Map, torch.device]:
    """Return a copy of the map in float64 and eval mode, and its device."""
    if not isinstance(module, nn.Module):
        return lambda z: module(z.clone()), device
    module = copy.deepcopy(module).double().eval().requires_grad_(False)
    module_device = next((p.device for p in module.parameters()), device)
    # A pre-activation block may overwrite its input, so it receives a copy.
    return lambda z: module(z.clone()), module_device


def _check(map_: Map, points: torch.Tensor) -> None:
    if points.ndim < 2 or points.numel() == 0:
        raise ArgumentError(f"x must have shape (points, ...), not {tuple(points.shape)}.")
    if not bool(torch.isfinite(points).all()):
        raise ArgumentError("x contains NaN or infinity; the map cannot be tested there.")
    few = points[:2]
    try:
        with torch.no_grad():
            joint, single = map_(few), map_(few[:1])
    except OUT_OF_MEMORY:
        raise
    except (RuntimeError, TypeError) as error:
        raise ArgumentError(
            f"The map cannot take points of shape {tuple(points.shape[1:])} in float64: {error}"
        ) from error
    if not isinstance(joint, torch.Tensor) or joint.shape != few.shape:
        shape = tuple(joint.shape[1:]) if isinstance(joint, torch.Tensor) else type(joint).__name__
        raise ArgumentError(
            f"The map takes {tuple(points.shape[1:])} to {shape}. Only a map within one space can "
            "be the gradient of a function; at a change of stage, test the blocks after it."
        )
    scale = joint.abs().max()
    if bool((joint[:1] - single).abs().max() > 1e-9 * scale):
        raise ArgumentError(
            "The map's output for a sample depends on the other samples of its batch (batch "
            "normalization in training mode?), so it is not a map of the feature space."
        )
    try:
        Jacobian(map_, few, many=False).symmetric(torch.ones_like(few))
    except OUT_OF_MEMORY:
        raise
    except RuntimeError as error:
        raise ArgumentError(
            f"The map cannot be differentiated in forward and reverse mode: {error}"
        ) from error


def _ends_in_relu(map_: Map, points: torch.Tensor) -> bool:
    """Return whether outputs for random inputs are never negative, and often 0."""
    few, generator = points[:2], torch.Generator().manual_seed(0)
    noise = torch.randn(few.shape, generator=generator)
    with torch.no_grad():
        out = map_(noise.to(points) * points.abs().mean().clamp_min(1e-6))
        if not bool(torch.isfinite(out).all()):  # outside the map's domain: mix the points' entries
            order = torch.randperm(few[0].numel(), generator=generator)
            out = map_((few + few.flatten(1)[:, order].reshape(few.shape)) / 2)
    return is_clamped(out)


def _active(map_: Map, x: torch.Tensor, clamped: bool) -> torch.Tensor:
    """Return the derivative of the final ReLU at every output, 0 or 1; 1 without a final ReLU."""
    if not clamped:
        return torch.ones_like(x)
    with torch.no_grad():
        return (map_(x) > 0).to(x)


def _asymmetries(
    jacobian: Jacobian, probes: int, streams: Streams, active: torch.Tensor
) -> tuple[Float[torch.Tensor, " n"], ...]:
    """Return each point's asymmetries, in the order of `_ASYMMETRIES`; NaN for a zero matrix.

    I and D are diagonal, so J, J - I and J - D have the same antisymmetric part.
    """
    n = len(jacobian.x)
    anti = torch.zeros(n).to(jacobian.x)
    symmetric = [torch.zeros_like(anti) for _ in _ASYMMETRIES]
    for _ in range(probes):
        v = random_signs(jacobian.x, streams)
        forward, transpose = jacobian.forward(v), jacobian.transpose(v)
        anti += (forward - transpose).flatten(1).square().sum(1)
        for part, diagonal in zip(symmetric, (0 * v, 2 * v, 2 * active * v), strict=True):
            part += (forward + transpose - diagonal).flatten(1).square().sum(1)
    return tuple(anti / part for part in symmetric)
