"""Does a network move its samples along a Wasserstein geodesic? Trajectory -> Straightness.

For each block, optimal transport is compared with the network's own pairing. For each segment, a
run of layers in one feature space, two paths are measured: that of the distribution, and that of
each sample.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ..arrays.checks import as_count, as_numpy
from ..arrays.rows import LazyRows, as_float64, materialize
from ..errors import ArgumentError, FeatureError, RecordError, WgeoWarning
from ..results import defined
from ..runtime.progress import track
from ..runtime.threads import map_over_cores
from ..trajectory import Block, Segment, Trajectory, as_trajectory
from ..transport import Chain, Exact, Solver, Status, TransportResult, wasserstein
from ..transport import chain as solve_chain
from ..transport.chains import solve_pairs
from .correlation import CenteredPair, Moments
from .influence import LINEARIZED, MOVING, TRAJECTORY_MEASURES, TRANSPORT_MEASURES, SegmentSample
from .nulls import distinct_rows, has_power, null_bytes, null_scores
from .pairs import (
    SAME_COST,
    as_matrices,
    is_result_of,
    length_over_runs,
    missing_pairs,
    paired_cost,
)
from .paths import PathMeasures, neighbor_distance, resolution
from .reliability import Ends, costs, effective_samples, length_ratio_at_most
from .resampling import Resampled
from .result import BlockTransport, Interval, NullScore, SegmentStraightness, Straightness

Null = Mapping[Ends, Sequence[NullScore]]
_ROUNDING = 4  # an interval up to this multiple of the rounding bound is only rounding error
_PATH = (*TRANSPORT_MEASURES, *MOVING, *TRAJECTORY_MEASURES, "paired")


def straightness(
    traj: Trajectory,
    *,
    solver: Solver | None = None,
    chain: Chain | None = None,
    bootstrap: int = 200,
    pairs: bool | None = None,
    nulls: int = 1,
    groups: Any = None,
    seed: int = 0,
) -> Straightness:
    """Measure every block's transport and every segment's straightness.

    Parameters
    ----------
    traj : Trajectory
        At least two samples and one block.
    solver : Solver, optional
        Default `Exact()`.
    chain : Chain, optional
        ``wgeo.transport.chain(traj)``, if already computed. The layers' names are checked, and the
        sizes of the results, and the cost of a permutation.
    bootstrap : int
        Number of resamples for the 95 % BCa intervals; 0 for none.
    pairs : bool, optional
        Whether to solve all pairs of layers of each segment (for more than 10 layers, of 9 evenly
        spaced ones), for `SegmentStraightness.pairs` and `length_over_runs`. By default, they are
        solved if this takes at most about half a minute per segment on one core, as for 8 blocks
        and 2,000 samples of 64 features. (k missing pairs of n samples with d features are solved
        if k n^2 (d + 100) <= 4e10.)
    nulls : int
        Number of null maps of each kind (`NullScore`) for every block and every segment; 0 for
        none. If `pairs` are solved, also for the map from each of their layers to the last layer.
    groups : array_like of int, (n,), optional
        Samples with the same number are copies of one image. They are resampled together, and null
        maps use one sample per group.
    seed : int
        Random seed of the resamples and of the null maps.

    Notes
    -----
    Measures of the samples' paths (line shapes, ``turning_angle``, ``orthogonal_share``,
    ``paired``) are computed exactly on every resample; their intervals cover the population's
    values.

    Measures that contain W2 are linearized. With optimal potentials f and g, the influence of a
    sample on W2^2 is f(x_i) + g(y_i) (del Barrio and Loubes 2019, thm 4.1). To first order, the
    W2^2 of a resample with weights w is therefore sum_i w_i (f(x_i) + g(y_i)). **These intervals
    cover the expected value at this number of samples**, not its limit: empirical W2 is biased
    (upwards if clouds move little compared with their spacing), and no resampling can remove this
    bias. `bias_curve` shows how it depends on the number of samples. Without potentials from the
    solver, these measures have no interval.

    Centered values are linearized in the same way, with the layers' means fixed; the variation of
    the means has only a second-order effect on every cost.

    Raises
    ------
    FeatureError
        There are fewer than two samples, or no block between layers of one space.
    ArgumentError
        `groups` is not one whole number per sample, `chain` belongs to other layers or other
        samples, `bootstrap` is 1, or `bootstrap`, `nulls` or `seed` is not a whole number of at
        least 0.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x = np.random.default_rng(0).normal(size=(40, 3))
    >>> traj = wgeo.Trajectory.from_arrays([x, 1.5 * x, 2 * x], np.arange(40) % 2)
    >>> segment = wgeo.straightness(traj, bootstrap=0).segments[0]
    >>> round(segment.length_ratio, 6), round(segment.ot_score, 6)
    (1.0, 1.0)
    """
    traj = as_trajectory(traj)
    if len(traj) < 2:
        raise FeatureError(f"straightness needs at least two samples, not {len(traj)}.")
    if not traj.blocks:
        raise FeatureError(
            "No two consecutive layers share a feature space, so there is no block to measure. "
            "Trace at least two layers of one width, or record the shortcut at a change of width."
        )
    nulls = as_count(nulls, "nulls")
    solver = Exact() if solver is None else solver
    if chain is None:
        chain = solve_chain(traj, solver)
    else:
        _check_chain(chain, traj)
    groups = None if groups is None else _as_groups(groups, len(traj))
    blocks: list[BlockTransport] = []
    segments: list[SegmentStraightness] = []
    steps, maps = iter(chain.blocks), iter(traj.blocks)
    ends = list(zip(traj.segments, chain.ends, strict=True))
    for index, (segment, end) in enumerate(track(ends, "measuring straightness")):
        results = [next(steps) for _ in segment.arrays[1:]]
        solutions = {(i, i + 1): result for i, result in enumerate(results)}
        solutions[0, len(results)] = end
        solutions |= _solve_missing(segment, pairs, solver, traj.nbytes)
        sample = _MeasuredSegment.of(segment, solutions, bootstrap, seed, groups)
        null = _null(sample, nulls, (seed, index))
        spacing = [neighbor_distance(x) for x in segment.arrays[:-1]]
        blocks += [
            _block(next(maps), sample, null, step, spacing[step]) for step in range(len(results))
        ]
        segments.append(_segment(sample, null, spacing[0], traj, solver, seed))
    return Straightness(tuple(blocks), tuple(segments))


@dataclass(frozen=True, eq=False)
class _MeasuredSegment:
    """A segment with its transport solutions and its measures, raw and centered."""

    segment: Segment
    solutions: Mapping[Ends, TransportResult]
    pairs: Mapping[Ends, CenteredPair]
    moments: Moments
    raw: SegmentSample
    resampled_raw: Resampled
    centered_path: PathMeasures
    centered_costs: Mapping[Ends, Float[np.ndarray, " n"]]
    resampled_centered: Resampled
    groups: Int[np.ndarray, " n"] | None

    @classmethod
    def of(
        cls,
        segment: Segment,
        solutions: Mapping[Ends, TransportResult],
        bootstrap: int,
        seed: int,
        groups: Int[np.ndarray, " n"] | None,
    ) -> _MeasuredSegment:
        last = len(segment.arrays) - 1
        chain = [(i, i + 1) for i in range(last)] + [(0, last)]
        raw = SegmentSample.of(segment, [solutions[key] for key in chain[:-1]], solutions[0, last])
        moments = Moments.of(segment.arrays, raw.floor)
        pairs = {
            (i, j): moments.pair(i, j, solutions[i, j], potentials=(i, j) in chain)
            for i, j in solutions
        }
        *steps, end = (pairs[key].transport for key in chain)
        centered = SegmentSample.centered_of(moments, steps, end)
        resampled_raw, resampled_centered = (
            each.resampled(bootstrap, seed, groups) for each in (raw, centered)
        )
        paired_costs = [*centered.path.step_cost.T, centered.path.chord_cost]
        centered_costs = {
            key: costs(moments, *key, solutions[key], each)
            for key, each in zip(chain, paired_costs, strict=True)
        }
        measures = (raw, resampled_raw, centered.path, centered_costs, resampled_centered)
        return cls(segment, solutions, pairs, moments, *measures, groups)

    @property
    def last(self) -> int:
        return len(self.segment.arrays) - 1

    def optimality(self, i: int, j: int, null: Null, suffix: str) -> dict[str, Any]:
        """Return the fields of `Optimality` of layers i to j; names of measures end in `suffix`."""
        pair, spread = self.pairs[i, j], self.moments.spread
        n = len(self.segment.arrays[0])
        paired = self.resampled_raw.values[f"paired{suffix}"]
        moved = self.resampled_centered.values[f"paired{suffix}"]
        largest = max(spread[i], spread[j])
        return {
            "samples": n,
            "distinct": n if self.groups is None else len(np.unique(self.groups)),
            "spread": tuple(map(float, spread[i : j + 1])),
            "spread_ratio": float(spread[j] / spread[i]) if spread[i] > 0 else None,
            "effective_samples": effective_samples(
                self.centered_path, self.centered_costs, i, j, self.groups
            ),
            "relative_displacement": float(moved / largest) if largest > 0 else None,
            "relative_rounding": float(self.moments.floor / largest) if largest > 0 else None,
            "shift_share": min(pair.squared_shift / paired**2, 1.0) if paired > 0 else None,
            "ot_score_centred": defined(self.resampled_centered.values[f"ot_score{suffix}"]),
            "corr_score": pair.corr_score,
            "null": null.get((i, j), ()),
            "power": has_power(null.get((i, j), ())),
        }

    def length_ratio_at_most(self, seed: int) -> float | None:
        """Return the bound from second moments, on the number of samples of a null map."""
        arrays = self.segment.arrays
        if self.last < 2:
            return None  # a single step has length ratio 1
        rng = np.random.default_rng((seed, self.last))
        rows = distinct_rows(len(arrays[0]), arrays[0].shape[1], self.groups, rng)
        u, v = (as_float64(arrays[k][rows]) - self.moments.centers[k] for k in (0, -1))
        return length_ratio_at_most(u, v, self.centered_path.step_cost[rows], seed=seed)

    def intervals(self, names: Mapping[str, str], centered: bool = False) -> dict[str, Interval]:
        """Return the defined intervals of `names`, {name in the record: name of the measure}."""
        resampled = self.resampled_centered if centered else self.resampled_raw
        intervals = {
            name: resampled.interval(measure)
            for name, measure in names.items()
            if self.raw.linearized or name not in LINEARIZED
        }
        return {name: interval for name, interval in intervals.items() if interval is not None}


def _check_chain(chain: Chain, traj: Trajectory) -> None:
    layers = (
        tuple((block.source, block.target) for block in traj.blocks),
        tuple((segment.names[0], segment.names[-1]) for segment in traj.segments),
    )
    clouds = [(block.x, block.y) for block in traj.blocks]
    clouds += [(segment.arrays[0], segment.arrays[-1]) for segment in traj.segments]
    results = (*chain.blocks, *chain.ends)
    if layers != (chain.block_layers, chain.end_layers) or not all(
        is_result_of(result, x, y) for result, (x, y) in zip(results, clouds, strict=True)
    ):
        raise ArgumentError(
            "chain was solved for other layers or other samples. Solve it for this trajectory, "
            "with wgeo.transport.chain(traj), or leave it out."
        )


def _as_groups(groups: Any, n: int) -> Int[np.ndarray, " n"]:
    array = as_numpy(groups)
    if array.shape != (n,) or array.dtype.kind not in "iu":
        raise ArgumentError(
            f"groups must be {n} whole numbers, one per sample and the same for copies of one "
            f"image; it has shape {array.shape} and dtype {array.dtype}."
        )
    return array.astype(np.int64)


def _solve_missing(
    segment: Segment, pairs: bool | None, solver: Solver, feature_bytes: int
) -> dict[Ends, TransportResult]:
    """Solve the pairs of layers that are not part of a chain (`missing_pairs`)."""
    keys = missing_pairs(segment, pairs)
    clouds = [
        (f"{segment.names[i]} -> {segment.names[j]}", segment.arrays[i], segment.arrays[j])
        for i, j in keys
    ]
    return (
        dict(zip(keys, solve_pairs(clouds, solver, feature_bytes=feature_bytes), strict=True))
        if keys
        else {}
    )


def _null(sample: _MeasuredSegment, draws: int, seed: tuple[int, int]) -> Null:
    """Return the null scores of every block, and of the solved maps to the last layer."""
    arrays, last = sample.segment.arrays, sample.last
    ends = [(i, j) for i, j in sample.solutions if j == i + 1 or j == last] if draws else []
    tasks = [
        partial(
            null_scores,
            arrays[i],
            arrays[j],
            own=sample.pairs[i, j].corr_score,
            draws=draws,
            seed=(*seed, i, j),
            groups=sample.groups,
        )
        for i, j in ends
    ]
    held = sum(each.nbytes for each in arrays)
    scores = map_over_cores(tasks, "null maps", null_bytes(*arrays[0].shape), held)
    return dict(zip(ends, scores, strict=True))


def _block(
    block: Block, sample: _MeasuredSegment, null: Null, step: int, spacing: float
) -> BlockTransport:
    names = {name: f"{name} {step}" for name in ("distance", "paired", "ot_score")}
    scores = {"ot_score_centred": f"ot_score {step}", "corr_score": f"corr_score {step}"}
    result, values = sample.solutions[step, step + 1], sample.resampled_raw.values
    return BlockTransport(
        source=block.source,
        target=block.target,
        stage=block.stage,
        via=block.via,
        distance=result.distance,
        lower=result.lower,
        upper=result.upper,
        paired=values[names["paired"]],
        ot_score=defined(values[names["ot_score"]]),
        resolution=resolution(block.x, block.y, neighbours=spacing),
        status=str(result.status),
        solver=result.solver,
        seconds=result.seconds,
        intervals={**sample.intervals(names), **sample.intervals(scores, centered=True)},
        **sample.optimality(step, step + 1, null, f" {step}"),
    )


def _segment(
    sample: _MeasuredSegment,
    null: Null,
    spacing: float,
    traj: Trajectory,
    solver: Solver,
    seed: int,
) -> SegmentStraightness:
    segment, raw, last = sample.segment, sample.raw, sample.last
    gap, time = _interpolation(segment, raw, sample.resampled_raw.values, solver)
    scores = {"ot_score_centred": "ot_score", "corr_score": "corr_score"}
    distances = {key: result.distance for key, result in sample.solutions.items()}
    return SegmentStraightness(
        layers=segment.names,
        stage=segment.stage,
        **_path(sample.resampled_raw),
        resolution=resolution(segment.arrays[0], segment.arrays[-1], neighbours=spacing),
        interpolation_gap=gap,
        interpolation_time=time,
        quantiles=raw.quantiles(traj),
        undefined_samples={
            name: int(np.isnan(getattr(raw.path, name)).sum()) for name in TRAJECTORY_MEASURES
        },
        length_over_runs=length_over_runs(last, distances),
        centred=_centered(sample, null, seed),
        pairs=as_matrices(segment, sample.solutions, sample.pairs, null),
        intervals={
            **sample.intervals({name: name for name in _PATH}),
            **sample.intervals(scores, centered=True),
        },
        **sample.optimality(0, last, null, ""),
    )


def _path(resampled: Resampled) -> dict[str, Any]:
    return {name: defined(resampled.values[name]) for name in _PATH}


def _centered(sample: _MeasuredSegment, null: Null, seed: int) -> dict[str, Any]:
    """Return the measures of the path with each layer's mean subtracted."""
    distances = {key: pair.transport.distance for key, pair in sample.pairs.items()}
    return {
        **_path(sample.resampled_centered),
        "length_over_runs": length_over_runs(sample.last, distances),
        "null_length_ratio": _null_length_ratio(sample, null.get((0, sample.last), ())),
        "length_ratio_at_most": sample.length_ratio_at_most(seed),
        "intervals": sample.intervals({name: name for name in _PATH}, centered=True),
    }


def _null_length_ratio(sample: _MeasuredSegment, null: Sequence[NullScore]) -> float | None:
    """Return the centered length divided by the largest W2 of a null map from end to end.

    Null maps may use fewer samples, so this W2 is estimated from their OT scores.
    """
    highest = max((each.ot_score for each in null), default=0.0)
    paired = sample.resampled_centered.values["paired"] * np.sqrt(highest)
    return float(sample.resampled_centered.values["length"] / paired) if paired > 0 else None


def _interpolation(
    segment: Segment, sample: SegmentSample, values: Mapping[str, float], solver: Solver
) -> tuple[tuple[float | None, ...], tuple[float | None, ...]]:
    """Return ``interpolation_gap`` and ``interpolation_time`` of `SegmentStraightness`."""
    end, layers = sample.end, segment.arrays
    if end is None or not values["distance"] > 0:
        return (None,) * len(layers), (None,) * len(layers)
    lengths = np.cumsum([0.0, *(values[f"distance {step}"] for step in range(len(layers) - 1))])
    times = [float(t) for t in lengths / lengths[-1]]
    if not _is_optimal_permutation(end, segment, sample.floor):
        return (None,) * len(layers), tuple(times)
    inverse = np.argsort(end.coupling)
    starts = (np.arange(len(inverse)), inverse)
    gaps: list[float | None] = [0.0]
    for t, layer in zip(times[1:-1], layers[1:-1], strict=True):

        def between(rows: slice, t: float = t) -> np.ndarray:
            first, last = layers[0][rows], layers[-1][end.coupling[rows]]
            return (1 - t) * as_float64(first) + t * as_float64(last)

        try:
            geodesic = materialize(layers, LazyRows(layers[0].shape, between))
        except RecordError as error:  # a full disk, possibly after hours of work
            warnings.warn(f"No interpolation gaps: {error}", WgeoWarning, stacklevel=2)
            return (None,) * len(layers), tuple(times)
        # Start from the better pairing of sample i: with the point that begins at sample i of the
        # first layer (good in early layers), or the one that ends at sample i of the last.
        start = min(starts, key=lambda match: paired_cost(layer, geodesic, match))
        result = wasserstein(layer, geodesic, solver=solver, coupling=start)
        gaps.append(result.distance / values["distance"])
    return (*gaps, 0.0), tuple(times)


def _is_optimal_permutation(end: TransportResult, segment: Segment, floor: float) -> bool:
    """Return whether the coupling is a permutation, proved optimal up to tolerance or rounding."""
    match = end.coupling
    proved = end.status is Status.CERTIFIED or end.upper - end.lower <= _ROUNDING * floor
    if not (proved and isinstance(match, np.ndarray) and match.ndim == 1):
        return False
    first, last = segment.arrays[0], segment.arrays[-1]
    cost = paired_cost(first, last, match)
    return abs(cost - end.cost) <= SAME_COST * max(cost, end.cost)
