"""Does a network move its samples along a Wasserstein geodesic? Trajectory -> Straightness.

Per block, optimal transport beside the network's own pairing; per segment (a run of layers in one
feature space), how straight the path of measures and the samples' own paths are, with intervals.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ..errors import FeatureError, RecordError, WgeoWarning
from ..progress import track
from ..rows import Rows, made_like, picked, summed, wide
from ..trajectory import Block, Segment, Trajectory, as_trajectory
from ..transport import Chain, Exact, TransportResult, wasserstein
from ..transport import chain as solve_chain
from .influence import TRAJECTORY_FIGURES, TRANSPORT_FIGURES, SegmentSample
from .paths import neighbour_distance, resolution
from .resampling import Resampled
from .result import BlockTransport, Interval, SegmentStraightness, Straightness

_SAME_COST = 1e-6
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def straightness(
    traj: Trajectory,
    *,
    solver: Any = None,
    chain: Chain | None = None,
    bootstrap: int = 200,
    seed: int = 0,
) -> Straightness:
    """Measure every block's transport and every segment's straightness.

    Parameters
    ----------
    traj : Trajectory
        At least two samples and one block.
    solver : solver, optional
        Default `Exact()`.
    chain : Chain, optional
        The distances, where they were solved before (`wgeo.transport.chain`).
    bootstrap : int
        Resamples of the samples for the 95 % BCa intervals; 0 for none.
    seed : int

    Notes
    -----
    Trajectory figures (line shapes, angles, shares, ``paired``) are recomputed exactly on every
    resample, and their intervals cover the population's values. Figures with W2 in them are
    linearised: with optimal potentials f, g the influence of a sample on W2^2 is
    f(x_i) + g(y_i) (del Barrio and Loubes 2019, thm 4.1), so a resample with weights w costs
    sum_i w_i (f_i + g_i) and no solve. **Their intervals cover the expected figure at this number
    of samples**, not its limit: empirical W2 is biased (upwards for distances of clouds that move
    little against their spacing), by an amount that no resampling of one sample can remove.
    `bias_curve` shows it. Resampling m < n of n and solving again (`bias_curve` too) has the same
    spread and a larger bias. A solver without potentials has no interval for these figures.

    Raises
    ------
    FeatureError
        Fewer than two samples, or no block between layers of one space.
    """
    traj = as_trajectory(traj)
    if len(traj) < 2:
        raise FeatureError(f"straightness needs at least two samples, not {len(traj)}.")
    if not traj.blocks:
        raise FeatureError(
            "No two consecutive layers share a feature space, so there is no block to measure. "
            "Trace at least two layers of one width, or record the shortcut at a change of width."
        )
    solver = Exact() if solver is None else solver
    chain = solve_chain(traj, solver) if chain is None else chain
    blocks: list[BlockTransport] = []
    segments: list[SegmentStraightness] = []
    steps, maps = iter(chain.blocks), iter(traj.blocks)
    pairs = list(zip(traj.segments, chain.ends, strict=True))
    for segment, end in track(pairs, "measuring straightness"):
        results = [next(steps) for _ in segment.arrays[1:]]
        sample = SegmentSample.of(segment, results, end)
        figures = sample.resampled(bootstrap, seed)
        spacing = [neighbour_distance(x) for x in segment.arrays[:-1]]
        blocks += [
            _block(next(maps), result, sample, figures, step, spacing[step])
            for step, result in enumerate(results)
        ]
        segments.append(_segment(segment, sample, figures, spacing[0], traj, solver))
    return Straightness(tuple(blocks), tuple(segments))


def _block(
    block: Block,
    result: TransportResult,
    sample: SegmentSample,
    figures: Resampled,
    step: int,
    spacing: float,
) -> BlockTransport:
    names = {name: f"{name} {step}" for name in ("distance", "paired", "ot_score")}
    return BlockTransport(
        source=block.source,
        target=block.target,
        stage=block.stage,
        via=block.via,
        distance=result.distance,
        lower=result.lower,
        upper=result.upper,
        paired=figures.values[names["paired"]],
        ot_score=_defined(figures.values[names["ot_score"]]),
        resolution=resolution(block.x, block.y, neighbours=spacing),
        status=str(result.status),
        solver=result.solver,
        seconds=result.seconds,
        intervals=_intervals(sample, figures, names),
    )


def _segment(
    segment: Segment,
    sample: SegmentSample,
    figures: Resampled,
    spacing: float,
    traj: Trajectory,
    solver: Any,
) -> SegmentStraightness:
    values = figures.values
    gap, time = _interpolation(segment, sample, values, solver)
    names = (*TRANSPORT_FIGURES, *TRAJECTORY_FIGURES, "paired")
    return SegmentStraightness(
        layers=segment.names,
        stage=segment.stage,
        distance=values["distance"],
        length=values["length"],
        length_ratio=_defined(values["length_ratio"]),
        action_ratio=_defined(values["action_ratio"]),
        speed_deviation=_defined(values["speed_deviation"]),
        line_shape_score=_defined(values["line_shape_score"]),
        line_shape_ratio=_defined(values["line_shape_ratio"]),
        turning_angle=_defined(values["turning_angle"]),
        orthogonal_share=_defined(values["orthogonal_share"]),
        paired=values["paired"],
        ot_score=_defined(values["ot_score"]),
        resolution=resolution(segment.arrays[0], segment.arrays[-1], neighbours=spacing),
        interpolation_gap=gap,
        interpolation_time=time,
        quantiles=_quantiles(sample, traj),
        undefined_samples={
            name: int(np.isnan(getattr(sample.path, name)).sum()) for name in TRAJECTORY_FIGURES
        },
        intervals=_intervals(sample, figures, {name: name for name in names}),
    )


def _interpolation(
    segment: Segment, sample: SegmentSample, values: Mapping[str, float], solver: Any
) -> tuple[tuple[float | None, ...], tuple[float | None, ...]]:
    """Return each layer's distance to the geodesic at its share of the length, and that share."""
    end, layers = sample.end, segment.arrays
    if end is None or not values["distance"] > 0:
        return (None,) * len(layers), (None,) * len(layers)
    lengths = np.cumsum([0.0, *(values[f"distance {step}"] for step in range(len(layers) - 1))])
    times = [float(t) for t in lengths / lengths[-1]]
    if not _is_optimal_permutation(end, segment):
        return (None,) * len(layers), tuple(times)
    inverse = np.argsort(end.coupling)
    starts = (np.arange(len(inverse)), inverse)
    gaps: list[float | None] = [0.0]
    for t, layer in zip(times[1:-1], layers[1:-1], strict=True):

        def between(rows: slice, t: float = t) -> np.ndarray:
            first, last = layers[0][rows], layers[-1][end.coupling[rows]]
            return (1 - t) * wide(first) + t * wide(last)

        try:
            geodesic = made_like(layers, Rows(layers[0].shape, between))
        except RecordError as error:  # a full disk, after what may have taken hours
            warnings.warn(f"No interpolation gaps: {error}", WgeoWarning, stacklevel=2)
            return (None,) * len(layers), tuple(times)
        # Sample j is near geodesic j early on, and later near the one that ends in j's place.
        start = min(starts, key=lambda match: _apart(layer, geodesic, match))
        result = wasserstein(layer, geodesic, solver=solver, coupling=start)
        gaps.append(result.distance / values["distance"])
    return (*gaps, 0.0), tuple(times)


def _is_optimal_permutation(end: TransportResult, segment: Segment) -> bool:
    """Whether the coupling pairs sample with sample, at the cost that the solver reports."""
    match = end.coupling
    if not (isinstance(match, np.ndarray) and match.ndim == 1):
        return False
    first, last = segment.arrays[0], segment.arrays[-1]
    cost = _apart(first, last, match) / len(first)
    return abs(cost - end.cost) <= _SAME_COST * max(cost, end.cost)


def _apart(
    x: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n d"], match: Int[np.ndarray, " n"]
) -> float:
    """Sum of ||x_i - y_match(i)||^2 in float64, some rows at a time."""
    (total,) = summed(lambda _, a, b: [float(np.sum((a - b) ** 2))], x, picked(y, match))
    return float(total)


def _quantiles(sample: SegmentSample, traj: Trajectory) -> dict[str, dict[str, list[float]]]:
    """Return quantiles of each figure over all samples and by class, where any is defined."""
    groups = {"all": np.ones(len(traj), dtype=bool)}
    for k in np.unique(traj.labels):
        groups[traj.class_names[k] if k < len(traj.class_names) else str(k)] = traj.labels == k
    found: dict[str, dict[str, list[float]]] = {}
    for name in TRAJECTORY_FIGURES:
        values = getattr(sample.path, name)
        found[name] = {
            group: [float(q) for q in np.nanquantile(values[members], QUANTILES)]
            for group, members in groups.items()
            if not np.isnan(values[members]).all()
        }
    return found


def _intervals(
    sample: SegmentSample, figures: Resampled, names: Mapping[str, str]
) -> dict[str, Interval]:
    """Return the intervals of `names` {reported as: computed as}, where they are defined."""
    found = {}
    for reported, computed in names.items():
        if reported in TRANSPORT_FIGURES and not sample.linearised:
            continue
        interval = figures.interval(computed)
        if interval is not None:
            found[reported] = interval
    return found


def _defined(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
