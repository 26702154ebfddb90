"""Does a network move its samples along a Wasserstein geodesic? Trajectory -> Straightness.

For each block, optimal transport is compared with the network's own pairing. For each segment
(consecutive layers in one feature space), two paths are measured: that of the distribution, and
that of each sample.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Int

from ..arrays.checks import as_count, as_numpy
from ..arrays.rows import LazyRows, as_float64, materialize
from ..errors import ArgumentError, FeatureError, RecordError, WgeoWarning
from ..results import defined
from ..runtime.progress import track
from ..runtime.threads import map_over_cores
from ..trajectory import Block, Segment, Trajectory, as_trajectory
from ..transport import Chain, Exact, Solver, TransportResult, wasserstein
from ..transport import chain as solve_chain
from ..transport.chains import solve_pairs
from .pairs import (
    Ends,
    Moments,
    as_matrices,
    is_optimal_permutation,
    is_result_of,
    length_over_runs,
    missing_pairs,
    paired_cost,
)
from .paths import neighbor_distance, resolution
from .reliability import (
    costs,
    distinct_rows,
    effective_samples,
    has_power,
    length_ratio_at_most,
    null_bytes,
    null_scores,
)
from .resampling import (
    LINEARIZED,
    MOVING,
    TRAJECTORY_MEASURES,
    TRANSPORT_MEASURES,
    Resampled,
    SegmentSample,
)
from .result import BlockTransport, Interval, NullScore, SegmentStraightness, Straightness

_PATH = (*TRANSPORT_MEASURES, *MOVING, *TRAJECTORY_MEASURES, "paired")
_CENTERED_SCORES = {"ot_score": "ot_score_centred", "corr_score": "corr_score"}


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
        ``wgeo.transport.chain(traj)``, if already computed. The names of its layers, the sizes of
        its results and the costs of its permutations must be those of `traj`.
    bootstrap : int
        Number of resamples for the 95 % BCa intervals; 0 for none.
    pairs : bool, optional
        Whether to solve all pairs of layers of each segment, which `SegmentStraightness.pairs` and
        `length_over_runs` need. Of more than 10 layers, 9 evenly spaced ones are used. By default,
        the pairs are solved if this takes at most about half a minute per segment on one core; 8
        blocks and 2,000 samples of 64 features, for example, are within this limit. (The rule is
        k n^2 (d + 100) <= 4e10, for k missing pairs of n samples with d features.)
    nulls : int
        Number of null maps of each kind (`NullScore`) for every block and every segment; 0 for
        none. If `pairs` are solved, the maps from each of their layers to the last layer have null
        maps too.
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
    cover the expected value at this number of samples**, not the limit of many samples: empirical
    W2 is biased (upwards if clouds move little compared with their spacing), and no resampling can
    remove this bias. `bias_curve` shows how it depends on the number of samples. Without potentials
    from the solver, these measures have no interval.

    Centered values are linearized in the same way, with the layers' means fixed; the variation of
    the means has only a second-order effect on every cost.

    Raises
    ------
    FeatureError
        There are fewer than two samples, or no block between layers of one space.
    ArgumentError
        `groups` is not one whole number per sample, `chain` is for other layers or other samples,
        `bootstrap` is 1, or `bootstrap`, `nulls` or `seed` is not a whole number of at least 0.

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
    nulls, seed = as_count(nulls, "nulls"), as_count(seed, "seed")
    bootstrap = as_count(bootstrap, "bootstrap")
    if bootstrap == 1:
        raise ArgumentError("bootstrap must be 0 or at least 2, not 1.")
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
        keys = missing_pairs(segment, pairs)
        clouds = [
            (f"{segment.names[i]} -> {segment.names[j]}", segment.arrays[i], segment.arrays[j])
            for i, j in keys
        ]
        others = solve_pairs(clouds, solver, feature_bytes=traj.nbytes) if keys else []
        solutions |= zip(keys, others, strict=True)
        sample = _MeasuredSegment(segment, solutions, bootstrap, nulls, (seed, index), groups)
        spacing = [neighbor_distance(x) for x in segment.arrays[:-1]]
        blocks += [_block(next(maps), sample, step, spacing[step]) for step in range(len(results))]
        segments.append(_segment(sample, spacing[0], traj, solver, seed))
    return Straightness(tuple(blocks), tuple(segments))


class _MeasuredSegment:
    """A segment with its transport solutions, its null scores, and its measures."""

    def __init__(
        self,
        segment: Segment,
        solutions: Mapping[Ends, TransportResult],
        bootstrap: int,
        nulls: int,
        seed: tuple[int, int],
        groups: Int[np.ndarray, " n"] | None,
    ) -> None:
        self.segment, self.solutions, self.groups = segment, solutions, groups
        self.last = len(segment.arrays) - 1
        chain = [(i, i + 1) for i in range(self.last)] + [(0, self.last)]
        *steps, end = (solutions[key] for key in chain)
        self.raw = SegmentSample.of(segment, steps, end)
        self.moments = Moments.of(segment.arrays, self.raw.floor)
        self.pairs = {
            (i, j): self.moments.pair(i, j, solutions[i, j], potentials=(i, j) in chain)
            for i, j in solutions
        }
        *steps, end = (self.pairs[key].transport for key in chain)
        centered = SegmentSample.centered_of(self.moments, steps, end)
        self.resampled_raw, self.resampled_centered = (
            each.resampled(bootstrap, seed[0], groups) for each in (self.raw, centered)
        )
        self.centered_path = centered.path
        paired_costs = [*centered.path.step_cost.T, centered.path.chord_cost]
        self.centered_costs = {
            key: costs(self.moments, *key, solutions[key], each)
            for key, each in zip(chain, paired_costs, strict=True)
        }
        self.null = self._null_scores(nulls, seed)

    def _null_scores(self, draws: int, seed: tuple[int, int]) -> dict[Ends, tuple[NullScore, ...]]:
        """Return the null scores of every block, and of the solved maps to the last layer."""
        arrays = self.segment.arrays
        ends = [(i, j) for i, j in self.pairs if j in (i + 1, self.last)] if draws else []
        tasks = [
            partial(
                null_scores,
                arrays[i],
                arrays[j],
                own=self.pairs[i, j].corr_score,
                draws=draws,
                seed=(*seed, i, j),
                groups=self.groups,
            )
            for i, j in ends
        ]
        held = sum(each.nbytes for each in arrays)
        scores = map_over_cores(tasks, "null maps", null_bytes(*arrays[0].shape), held)
        return dict(zip(ends, scores, strict=True))

    def optimality(self, i: int, j: int, suffix: str, measures: Iterable[str]) -> dict[str, Any]:
        """Return the fields of `Optimality` of layers i to j, and the intervals of `measures`.

        In the resampled values, the names of measures end in `suffix`.
        """
        pair, spread, null = self.pairs[i, j], self.moments.spread, self.null.get((i, j), ())
        n = len(self.segment.arrays[0])
        paired = self.resampled_raw.values[f"paired{suffix}"]
        moved = self.resampled_centered.values[f"paired{suffix}"]
        largest = max(spread[i], spread[j])
        of_scores = self.intervals(self.resampled_centered, _CENTERED_SCORES, suffix)
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
            "null": null,
            "power": has_power(null),
            "intervals": {
                **self.intervals(self.resampled_raw, measures, suffix),
                **{_CENTERED_SCORES[name]: interval for name, interval in of_scores.items()},
            },
        }

    def intervals(
        self, resampled: Resampled, measures: Iterable[str], suffix: str = ""
    ) -> dict[str, Interval]:
        intervals = {
            name: resampled.interval(f"{name}{suffix}")
            for name in measures
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


def _block(block: Block, sample: _MeasuredSegment, step: int, spacing: float) -> BlockTransport:
    result, values = sample.solutions[step, step + 1], sample.resampled_raw.values
    return BlockTransport(
        source=block.source,
        target=block.target,
        stage=block.stage,
        via=block.via,
        distance=result.distance,
        lower=result.lower,
        upper=result.upper,
        paired=values[f"paired {step}"],
        ot_score=defined(values[f"ot_score {step}"]),
        resolution=resolution(block.x, block.y, neighbours=spacing),
        status=str(result.status),
        solver=result.solver,
        seconds=result.seconds,
        **sample.optimality(step, step + 1, f" {step}", ("distance", "paired", "ot_score")),
    )


def _segment(
    sample: _MeasuredSegment, spacing: float, traj: Trajectory, solver: Solver, seed: int
) -> SegmentStraightness:
    segment, raw, last = sample.segment, sample.raw, sample.last
    gap, time = _interpolation(segment, raw, sample.resampled_raw.values, solver)
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
        length_over_runs=length_over_runs(last, sample.solutions),
        centred=_centered(sample, seed),
        pairs=as_matrices(segment, sample.solutions, sample.pairs, sample.null),
        **sample.optimality(0, last, "", _PATH),
    )


def _path(resampled: Resampled) -> dict[str, Any]:
    return {name: defined(resampled.values[name]) for name in _PATH}


def _centered(sample: _MeasuredSegment, seed: int) -> dict[str, Any]:
    """Return the measures of the path with each layer's mean subtracted."""
    arrays, last, values = sample.segment.arrays, sample.last, sample.resampled_centered.values
    transport = {key: pair.transport for key, pair in sample.pairs.items()}
    # The largest W2 of a null map is estimated from OT scores: a null map may use fewer samples.
    highest = max((each.ot_score for each in sample.null.get((0, last), ())), default=0.0)
    null_distance = values["paired"] * np.sqrt(highest)
    bound = None
    if last > 1:  # a single step has length ratio 1
        rng = np.random.default_rng((seed, last))
        rows = distinct_rows(len(arrays[0]), arrays[0].shape[1], sample.groups, rng)
        u, v = (as_float64(arrays[k][rows]) - sample.moments.centers[k] for k in (0, -1))
        bound = length_ratio_at_most(u, v, sample.centered_path.step_cost[rows], seed=seed)
    return {
        **_path(sample.resampled_centered),
        "length_over_runs": length_over_runs(last, transport),
        "null_length_ratio": float(values["length"] / null_distance) if null_distance > 0 else None,
        "length_ratio_at_most": bound,
        "intervals": sample.intervals(sample.resampled_centered, _PATH),
    }


def _interpolation(
    segment: Segment, sample: SegmentSample, values: Mapping[str, float], solver: Solver
) -> tuple[tuple[float | None, ...], tuple[float | None, ...]]:
    """Return ``interpolation_gap`` and ``interpolation_time`` of `SegmentStraightness`."""
    end, layers = sample.end, segment.arrays
    undefined = (None,) * len(layers)
    if not values["distance"] > 0:
        return undefined, undefined
    lengths = np.cumsum([0.0, *(values[f"distance {step}"] for step in range(len(layers) - 1))])
    times = tuple(float(t) for t in lengths / lengths[-1])
    if not is_optimal_permutation(end, segment, sample.floor):
        return undefined, times
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
            return undefined, times
        # Start from the better of two pairings of sample i with a point of the geodesic: the point
        # that starts at x_i in the first layer (good in early layers), or the one that ends at x_i
        # in the last layer.
        start = min(starts, key=lambda match: paired_cost(layer, geodesic, match))
        result = wasserstein(layer, geodesic, solver=solver, coupling=start)
        gaps.append(result.distance / values["distance"])
    return (*gaps, 0.0), times
