"""Check a result against its clouds: marginals and cost of the plan, slack of the potentials."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from ..errors import ArgumentError
from ..results import Result
from ..runtime.memory import limited_size
from .all_pairs import find_violations
from .arcs import Potentials
from .entry import comparable_points
from .exact import lower_bound
from .geometry import Geometry
from .point_clouds import UNIT_ROUNDOFF, PointClouds
from .result import TransportResult
from .tiles import full_precision

_MEMORY = 2**30  # bytes for blocks of costs
_TOLERANCE = 1e-9  # largest marginal error, and relative error of W2^2, that count as rounding


@dataclass(frozen=True, eq=False, repr=False)
class Verification(Result):
    """What a result's plan and potentials prove (`TransportResult.verify`).

    Attributes
    ----------
    lower, upper : float or None
        The interval that the plan and the potentials prove, computed again from the clouds.
        `lower` is None without potentials, and `upper` is None without a plan.
    marginal_error : float or None
        L1 distance of the plan's marginals from the weights; `upper` accounts for it.
    dual_violation : float or None
        Bound on the largest f_i + g_j - ||x_i - y_j||^2, at least 0; `lower` accounts for it.
    faults : tuple of str
        Claims of the result that its plan and potentials do not prove, beyond rounding.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x, y = np.array([0.0, 1.0]), np.array([4.0, 2.0])
    >>> r = wgeo.wasserstein(x, y)
    >>> check = r.verify(x, y)
    >>> check.valid, round(check.lower, 6) <= round(r.distance, 6) <= round(check.upper, 6)
    (True, True)
    >>> for fault in r.verify(x, y + 1).faults:
    ...     print(fault)
    the plan proves W2 <= 3.53553, not 2.54951
    """

    lower: float | None
    upper: float | None
    marginal_error: float | None
    dual_violation: float | None
    faults: tuple[str, ...]
    _included: ClassVar[tuple[str, ...]] = ("valid",)

    @property
    def valid(self) -> bool:
        """Whether at least one end of the interval was checked, and no check failed."""
        return not self.faults and not (self.lower is None and self.upper is None)

    def _description(self) -> str:
        ends = ["not checked" if v is None else f"{v:.6g}" for v in (self.lower, self.upper)]
        unchecked = "there is neither a plan nor a potential to check"
        verdict = "; ".join(self.faults) or ("valid" if self.valid else unchecked)
        return f"lower {ends[0]}, upper {ends[1]}: {verdict}"


def verify(result: TransportResult, x: Any, y: Any) -> Verification:
    """Return what a result's plan and potentials prove; see `TransportResult.verify`."""
    x, y = comparable_points(x, y)
    for name, shape in _shapes(result):
        if shape != (len(x), len(y)):
            raise ArgumentError(
                f"x and y have {len(x)} and {len(y)} rows, but this result is for clouds of "
                f"{shape[0]} and {shape[1]}, by its {name}. Pass the clouds for which it was "
                "computed."
            )
    clouds = PointClouds.of(x, y, *(result.weights or (None, None)))
    rounding = 8 * clouds.rounding + _TOLERANCE * result.upper**2
    faults = [*_interval_faults(result)]
    upper = marginal_error = lower = violation = None
    if result.coupling is not None:
        upper, marginal_error, smallest = _upper_bound(clouds, result)
        if smallest < 0:
            faults.append(f"the plan has a negative mass of {smallest:.3g}")
        if marginal_error > _TOLERANCE:
            faults.append(f"the plan's marginals are off by {marginal_error:.3g} (L1)")
        if upper**2 > result.upper**2 + rounding:
            faults.append(f"the plan proves W2 <= {upper:.6g}, not {result.upper:.6g}")
    if result.potentials is not None:
        f, g = result.potentials
        rounding += 256 * UNIT_ROUNDOFF * float(abs(f).max() + abs(g).max())
        with full_precision:
            lower, violation = _lower_bound(clouds, f, g)
        if violation > rounding:
            faults.append(f"the potentials exceed a cost by {violation:.3g}")
        if lower**2 < result.lower**2 - rounding:
            faults.append(f"the potentials prove W2 >= {lower:.6g}, not {result.lower:.6g}")
    return Verification(lower, upper, marginal_error, violation, tuple(faults))


def _shapes(result: TransportResult) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the numbers of points in x and y that the plan, potentials and weights imply."""
    if result.coupling is not None:
        yield "plan", result.plan.shape
    for name, pair in (("potentials", result.potentials), ("weights", result.weights)):
        if pair is not None:
            yield name, (len(pair[0]), len(pair[1]))


def _interval_faults(result: TransportResult) -> Iterator[str]:
    low, high = result.lower * (1 - _TOLERANCE), result.upper * (1 + _TOLERANCE)
    if not low <= result.distance <= high:
        yield f"W2 = {result.distance:.6g} is outside [{result.lower:.6g}, {result.upper:.6g}]"


def _upper_bound(clouds: PointClouds, result: TransportResult) -> tuple[float, float, float]:
    """Return an upper bound of W2 from the plan, its marginal error, and its smallest mass."""
    plan = result.plan
    error = clouds.marginal_error(plan)
    farthest = clouds.radius + float(clouds.offset.norm())
    cost = clouds.plan_cost(plan) * (1 + clouds.relative_rounding) + error * farthest**2
    return float(np.sqrt(max(cost, 0.0))), error, float(plan.data.min(initial=np.inf))


def _lower_bound(
    clouds: PointClouds, f: Float[np.ndarray, " n"], g: Float[np.ndarray, " m"]
) -> tuple[float, float]:
    """Return a lower bound of W2 from potentials, and the largest violation of a constraint."""
    geometry = Geometry.of(clouds, limited_size(_MEMORY, 1 / 8))
    potentials = Potentials(*geometry.centered_potentials(f, g))
    violations = find_violations(geometry, potentials, 0.0)
    if violations.undecided.any():
        violations = find_violations(geometry.double_precision, potentials, 0.0)
    feasible = Potentials(potentials.f, potentials.g - violations.excess)
    lower = max(lower_bound(geometry, feasible), 0.0)
    return float(np.sqrt(lower)), float(violations.excess.max()) / geometry.scale**2
