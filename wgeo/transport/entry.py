"""`wasserstein`, the entry point to all solvers, which checks the inputs first."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int

from ..arrays.checks import as_numpy, as_points
from ..errors import ArgumentError, FeatureError
from .exact import Exact
from .result import TransportResult

# If the largest absolute coordinate is above this number or below its reciprocal, squares may leave
# the range of float64.
_LARGEST_COORDINATE = 1e120


@runtime_checkable
class Solver(Protocol):
    """The protocol of solvers: a name, and `solve`, which is called on checked inputs.

    ``x`` and ``y`` are finite floating-point tensors, (n, d) and (m, d), on one device. ``a`` and
    ``b`` are float64 weights that sum to 1, or None if uniform. ``coupling`` is a permutation to
    start from. If it is None, clouds of equal size and uniform weights start with row i paired with
    row i.

    Examples
    --------
    A solver of your own, which needs no base class:

    >>> import wgeo
    >>> class ExactIfSmall:
    ...     name = "exact if small"
    ...
    ...     def solve(self, x, y, a=None, b=None, coupling=None):
    ...         solver = wgeo.Exact() if len(x) <= 1000 else wgeo.Sliced()
    ...         return solver.solve(x, y, a, b, coupling)
    >>> wgeo.wasserstein([0.0, 1.0], [2.0, 3.0], solver=ExactIfSmall()).distance
    2.0
    """

    @property
    def name(self) -> str: ...

    def solve(
        self,
        x: Float[torch.Tensor, "n d"],
        y: Float[torch.Tensor, "m d"],
        a: Float[np.ndarray, " n"] | None = None,
        b: Float[np.ndarray, " m"] | None = None,
        coupling: Int[np.ndarray, " n"] | None = None,
    ) -> TransportResult: ...


def wasserstein(
    x: Any,
    y: Any,
    *,
    solver: Solver | None = None,
    a: Any = None,
    b: Any = None,
    coupling: Any = None,
) -> TransportResult:
    r"""Compute W2 between two point clouds, with an interval that contains it.

    .. math:: W_2^2 = \min_{P \geq 0,\ P 1 = a,\ P^T 1 = b} \sum_{ij} P_{ij} \|x_i - y_j\|^2

    Parameters
    ----------
    x : array_like, (n, d)
        NumPy or torch, on any device; rows are samples. One-dimensional input is n points on a
        line. W2 is computed on the solver's ``device``, wherever the clouds are.
    y : array_like, (m, d)
        The number of samples may differ from that of x, but the width must be the same.
    solver : Solver, optional
        `Exact` (default), `Sinkhorn`, `Sliced` or `Gaussian`.
    a, b : array_like, (n,), (m,), optional
        Nonnegative weights, normalized to sum to 1. Uniform by default.
    coupling : array_like of int, (n,), optional
        A permutation to start from, for clouds of equal size and uniform weights: it pairs row i of
        x with row ``coupling[i]`` of y. By default row i is paired with row i, as the network does
        if rows are the same samples at two layers. A good start makes a solver faster or its bounds
        tighter.

    Returns
    -------
    TransportResult
        ``lower <= W2 <= upper`` in the units of the features. ``cost`` is W2^2 for `Exact`, and an
        estimate of it for the other solvers; it is not halved.

    Raises
    ------
    FeatureError
        NaN, infinity, an empty cloud, clouds of different widths, or a largest absolute coordinate
        outside [1e-120, 1e120] (0 is accepted).
    ArgumentError
        Weights that are negative, not finite or all zero; a coupling that is not a permutation; an
        object that is not a solver.
    ConvergenceError
        The solver stopped before reaching its tolerance (see `Sinkhorn`'s ``on_failure``).

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x = np.random.default_rng(0).normal(size=(50, 2))
    >>> r = wgeo.wasserstein(x, x + [3.0, 4.0])
    >>> round(r.distance, 6), r.lower <= 5 <= r.upper, str(r.status)
    (5.0, True, 'certified')
    >>> round(wgeo.wasserstein([0.0, 4.0], [0.0], a=[3, 1]).distance, 6)
    2.0
    """
    x, y = comparable_points(x, y)
    n, m = len(x), len(y)
    weights_a = as_weights(a, n, "a")
    weights_b = as_weights(b, m, "b")
    uniform = weights_a is None and weights_b is None
    start = None if coupling is None else _as_permutation(coupling, n, m, uniform)
    solver = checked_solver(Exact() if solver is None else solver)
    result = solver.solve(x.detach(), y.detach(), weights_a, weights_b, start)
    if uniform or result.weights is not None:
        return result
    a = np.full(n, 1 / n) if weights_a is None else weights_a
    b = np.full(m, 1 / m) if weights_b is None else weights_b
    return replace(result, weights=(a, b))


def checked_solver(solver: Any) -> Solver:
    """Return the solver; raise `ArgumentError` if it has no `solve` method, or is a class."""
    if not callable(getattr(solver, "solve", None)) or isinstance(solver, type):
        raise ArgumentError(
            f"solver must be an object such as wgeo.Exact() or wgeo.Sinkhorn(), not {solver!r}."
        )
    return solver  # type: ignore[no-any-return]


def comparable_points(
    x: Any, y: Any
) -> tuple[Float[torch.Tensor, "n d"], Float[torch.Tensor, "m d"]]:
    """Return two clouds on one device; raise `FeatureError` if they cannot be compared."""
    x, y = on_one_device(as_points(x, name="x"), as_points(y, name="y"))
    d, width = x.shape[1], y.shape[1]
    if d != width:
        raise FeatureError(
            f"x has {d} features and y has {width}: W2 needs one space. Compare the first "
            "and the last layer of a segment, whose layers share one space (traj.segments), or the "
            "two sides of a block (traj.blocks), or embed the whole network in one space "
            "(traj.embedded('pad') or traj.embedded('pca:D'))."
        )
    extremes = [value for z in (x, y) for value in z.detach().aminmax()]  # abs() would copy
    largest = max(abs(float(value)) for value in extremes)
    if largest > _LARGEST_COORDINATE or 0 < largest < 1 / _LARGEST_COORDINATE:
        raise FeatureError(
            f"the largest coordinate is {largest:.1g}: distances are computed only if it is "
            f"between {1 / _LARGEST_COORDINATE:.0e} and {_LARGEST_COORDINATE:.0e} (or 0), so that "
            "products neither overflow nor underflow in float64. Multiply both clouds by the "
            "same factor; W2 is multiplied by it, too."
        )
    return x, y


def as_weights(w: Any, n: int, name: str) -> Float[np.ndarray, " n"] | None:
    """Check weights and return them in float64 with sum 1, or None if they are uniform."""
    if w is None:
        return None
    values = as_numpy(w)
    if values.shape != (n,) or values.dtype.kind not in "fiub":
        raise ArgumentError(
            f"weights {name} must be {n} numbers, one per sample; "
            f"they have shape {values.shape} and dtype {values.dtype}."
        )
    values = values.astype(np.float64)
    bad = ~np.isfinite(values) | (values < 0)
    if bad.any():
        first = int(bad.argmax())
        raise ArgumentError(
            f"weights {name} must be finite and not negative; "
            f"weight {first} is {values[first]} ({int(bad.sum())} such weights). Drop or clip them."
        )
    largest = values.max()
    if largest == 0:
        raise ArgumentError(f"weights {name} sum to 0: give at least one sample a positive weight.")
    if values.min() == largest:
        return None
    values /= largest  # then the sum neither overflows nor underflows
    return values / values.sum()


def on_one_device(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both clouds on one device, an accelerator if either is on one."""
    if x.device == y.device:
        return x, y
    device = y.device if x.device.type == "cpu" else x.device
    return x.to(device), y.to(device)


def _as_permutation(coupling: Any, n: int, m: int, uniform: bool) -> np.ndarray:
    if n != m or not uniform:
        raise ArgumentError(
            "a starting coupling needs clouds of equal size with uniform weights; here there are "
            f"{n} and {m} samples{'' if uniform else ', with weights that are not uniform'}. "
            "Leave it out."
        )
    values = as_numpy(coupling)
    if values.shape != (n,) or values.dtype.kind not in "iu":
        raise ArgumentError(
            f"coupling must be {n} row numbers of y; "
            f"it has shape {values.shape} and dtype {values.dtype}."
        )
    values = values.astype(np.int64)
    if not np.array_equal(np.sort(values), np.arange(n)):
        raise ArgumentError(
            f"coupling must be a permutation: each row number of y from 0 to {n - 1}, exactly once."
        )
    return values
