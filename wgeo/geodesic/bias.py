"""Dependence of W2, ot_score and resolution on the number of samples: the bias curve."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from ..arrays.checks import as_count, as_numpy, as_points
from ..errors import ArgumentError
from ..results import Result
from ..runtime.progress import track
from ..runtime.threads import map_over_cores
from ..thresholds import LOW_RESOLUTION
from ..transport import Exact, Solver, TransportResult, wasserstein
from ..transport.chains import solver_bytes
from .pairs import is_result_of
from .paths import resolution


@dataclass(frozen=True, eq=False, repr=False)
class BiasPoint(Result):
    """Means over random subsets of one size, and standard deviations between subsets.

    An undefined value is None, and so is the deviation of a single subset.
    """

    size: int
    repeats: int
    distance: float
    distance_deviation: float | None
    ot_score: float | None
    ot_score_deviation: float | None
    resolution: float | None


@dataclass(frozen=True, eq=False, repr=False)
class BiasCurve(Result):
    """Measures of a pair of layers at increasing numbers of samples.

    ``to_pandas()`` has a row per number of samples.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x = np.random.default_rng(0).normal(size=(64, 2))
    >>> curve = wgeo.bias_curve(x, x + [3.0, 4.0], sizes=[16, 64])
    >>> [(point.size, round(point.distance, 6)) for point in curve.points]
    [(16, 5.0), (64, 5.0)]
    """

    points: tuple[BiasPoint, ...]

    def samples_for(self, wanted: float = LOW_RESOLUTION) -> int | None:
        """Return the number of samples at which the resolution is `wanted`.

        Between measured sizes, the curve is interpolated. Beyond them, it is extended by a power
        law fitted to all sizes: in k effective dimensions, distances to nearest neighbors decrease
        like N^(-1/k), while displacements do not. None if fewer than two sizes have a resolution,
        if the fitted law does not increase, or if the result exceeds 1e12 samples.

        Examples
        --------
        >>> import numpy as np
        >>> import wgeo
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(64, 2))
        >>> curve = wgeo.bias_curve(x, x + 0.1 * rng.normal(size=(64, 2)))
        >>> curve.points[-1].resolution < 0.9 and curve.samples_for(0.9) > 64
        True
        """
        resolutions = [(p.size, p.resolution) for p in self.points if p.resolution]
        if len(resolutions) < 2:
            return None
        sizes, values = np.log(np.array(resolutions)).T
        target, below = np.log(wanted), np.flatnonzero(values < np.log(wanted))
        if below.size and below[-1] + 1 < len(values):  # reached between two measured sizes
            i = below[-1]
            exponent = np.interp(target, values[i : i + 2], sizes[i : i + 2])
        else:
            slope, _ = np.polyfit(sizes, values, 1)
            if slope <= 0:
                return None
            nearest = -1 if below.size else 0
            exponent = sizes[nearest] + (target - values[nearest]) / slope
        return int(np.ceil(np.exp(exponent))) if exponent < np.log(1e12) else None

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values, ready for JSON; ``enough`` is ``samples_for()``."""
        return {**super().to_dict(), "enough": self.samples_for()}

    def _record(self) -> dict[str, Any]:
        return {"segments": [{"sample_sizes": self.to_dict()}]}

    def _table(self) -> list[dict[str, Any]]:
        return [point.to_dict() for point in self.points]

    _rows = _table

    def _description(self) -> str:
        enough = self.samples_for()
        needed = "unknown" if enough is None else f"about {enough}"
        return f"measures over the number of samples; samples for a resolved OT score: {needed}"


def bias_curve(
    x: Any,
    y: Any,
    sizes: Sequence[int] | None = None,
    *,
    repeats: int = 4,
    solver: Solver | None = None,
    seed: int = 0,
    whole: TransportResult | None = None,
) -> BiasCurve:
    """Measure paired clouds on random subsets of growing size.

    Empirical W2 converges like N^(-1/d) in d > 4 effective dimensions (Fournier and Guillin 2015,
    thm 1), so a distance or an ot_score from few samples is biased. The trend of the means shows
    this bias: if they still change at the largest size, they would change with more samples too.
    The deviation between subsets of m samples, times sqrt(m / n), estimates the sampling error at n
    (m-out-of-n subsampling).

    Parameters
    ----------
    x, y : array_like, (n, d)
        Samples before and after, row by row.
    sizes : sequence of int, optional
        Numbers of samples between 2 and n; default n/16, n/8, n/4, n/2, n.
    repeats : int
        Number of subsets of each size, disjoint if n is large enough. Size n has only one.
    solver : solver, optional
        Default `Exact()`.
    seed : int
        Random seed of the subsets.
    whole : TransportResult, optional
        ``wasserstein(x, y, solver=solver)``, if already computed. It is used for size n, and
        `Exact` starts from its potentials on subsets.

    Raises
    ------
    ArgumentError
        x and y differ in shape; a size, `repeats` or `seed` is not a whole number in its range; or
        `whole` is the result of another solver, or cannot be the result for these samples.

    Examples
    --------
    Two samples of one distribution, whose distance is 0 in the limit of many samples:

    >>> import numpy as np
    >>> import wgeo
    >>> x, y = np.random.default_rng(0).normal(size=(2, 128, 3))
    >>> curve = wgeo.bias_curve(x, y, sizes=[16, 32, 64, 128])
    >>> [round(point.distance, 1) for point in curve.points]
    [1.4, 1.1, 0.9, 0.7]
    """
    x, y = (as_numpy(as_points(p, name=name)) for p, name in ((x, "x"), (y, "y")))
    if x.shape != y.shape:
        raise ArgumentError(
            f"x and y must be paired, row by row; their shapes are {x.shape} and {y.shape}."
        )
    n = len(x)
    repeats, seed = as_count(repeats, "repeats", 1), as_count(seed, "seed")
    fractions = {n // k for k in (16, 8, 4, 2, 1)} - {0, 1}
    sizes = sorted(as_count(size, "a size", 2) for size in (fractions if sizes is None else sizes))
    if not sizes or sizes[-1] > n:
        raise ArgumentError(f"sizes must lie between 2 and {n}.")
    solver = Exact() if solver is None else solver
    if whole is not None and not (whole.solver == solver.name and is_result_of(whole, x, y)):
        raise ArgumentError(f"whole must be the result of {solver.name} for these {n} samples.")
    rng = np.random.default_rng(seed)

    def point(size: int) -> BiasPoint:
        subsets = list(_subsets(n, size, repeats, rng))
        works = [partial(_distance, x, y, rows, solver, whole) for rows in subsets]
        needed, held = solver_bytes(2 * size * x.shape[1]), x.nbytes + y.nbytes
        distances = map_over_cores(works, f"subsets of {size} samples", needed, held)
        return _point([(x[rows], y[rows]) for rows in subsets], distances)

    return BiasCurve(tuple(point(size) for size in track(sizes, "measuring over sample sizes")))


def _subsets(
    n: int, size: int, repeats: int, rng: np.random.Generator
) -> Iterator[Int[np.ndarray, " m"]]:
    order = rng.permutation(n)
    for k in range(1 if size == n else repeats):
        disjoint = (k + 1) * size <= n
        yield order[k * size : (k + 1) * size] if disjoint else rng.permutation(n)[:size]


def _distance(
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "n d"],
    rows: Int[np.ndarray, " m"],
    solver: Solver,
    whole: TransportResult | None,
) -> float:
    """Return W2 of a subset, starting from the potentials of the whole sample if possible."""
    if whole is not None and len(rows) == len(x):
        return whole.distance
    if whole is None or whole.potentials is None or type(solver) is not Exact:
        return wasserstein(x[rows], y[rows], solver=solver).distance
    f, g = whole.potentials
    a, b = (torch.from_numpy(np.ascontiguousarray(each[rows])) for each in (x, y))
    return solver.solve(a, b, potentials=(f[rows], g[rows])).distance


def _point(pairs: Sequence[tuple[np.ndarray, np.ndarray]], distances: list[float]) -> BiasPoint:
    distance = np.array(distances)
    paired = np.array([np.mean(((x - y).astype(np.float64) ** 2).sum(1)) for x, y in pairs])
    resolutions = [r for r in (resolution(x, y) for x, y in pairs) if r is not None]
    scores = np.minimum(distance[paired > 0] ** 2 / paired[paired > 0], 1.0)
    return BiasPoint(
        size=len(pairs[0][0]),
        repeats=len(pairs),
        distance=float(distance.mean()),
        distance_deviation=_deviation(distance),
        ot_score=float(scores.mean()) if len(scores) else None,
        ot_score_deviation=_deviation(scores),
        resolution=float(np.mean(resolutions)) if resolutions else None,
    )


def _deviation(values: Float[np.ndarray, " r"]) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None
