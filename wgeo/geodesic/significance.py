"""Is one network significantly straighter than another? Tests over images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from scipy.stats import t as student

from ..arrays.checks import as_count
from ..arrays.rows import row_chunks
from ..errors import ArgumentError
from ..results import Result
from ..trajectory import Segment, Trajectory, as_trajectory
from ..transport import Exact, wasserstein
from .influence import TRAJECTORY_MEASURES, TRANSPORT_MEASURES, SegmentSample
from .resampling import LEVEL, permutation_p_value, sign_flip_p_value

SIGNIFICANT = 0.05  # largest p-value at which a direction is reported
_HIGHER_IS_STRAIGHTER = frozenset({"ot_score"})
_PER_BLOCK_COUNT = frozenset({"line_shape_score", "action_ratio"})
STATISTICS = (
    *TRAJECTORY_MEASURES,
    *(name for name in TRANSPORT_MEASURES if name not in ("distance", "length")),
)


@dataclass(frozen=True, eq=False, repr=False)
class StraighterThan(Result):
    """Test of one segment against the same segment of a reference, by one statistic.

    Only these two networks are compared: other training runs may give different results.

    Attributes
    ----------
    layers : tuple of str
    stage : int
    statistic : str
    value, reference : float
        The statistic for the network and for the reference.
    difference : float
        value - reference.
    interval : (low, high)
        95 % interval of the difference, from per-sample (pseudo-)values.
    effect_size : float
        Gain in straightness over the per-sample standard deviation (Cohen's d; that of the
        differences for paired samples); positive if the network is straighter.
    p_value : float in (0, 1]
        One-sided, for the null hypothesis "the network is not straighter than the reference".
    p_value_less_straight : float in (0, 1]
        One-sided, for "the network is not less straight than the reference".
    paired : bool
        Whether both networks saw the same samples.
    samples : int
        Number of samples of the network for which the statistic is defined.
    """

    layers: tuple[str, ...]
    stage: int
    statistic: str
    value: float
    reference: float
    difference: float
    interval: tuple[float, float]
    effect_size: float
    p_value: float
    p_value_less_straight: float
    paired: bool
    samples: int
    _computed: ClassVar[tuple[str, ...]] = ("two_sided_p", "direction")

    @property
    def two_sided_p(self) -> float:
        """Twice the smaller of `p_value` and `p_value_less_straight`, at most 1."""
        return min(1.0, 2 * min(self.p_value, self.p_value_less_straight))

    @property
    def direction(self) -> str:
        """``straighter``, ``less straight``, or ``neither`` if `two_sided_p` is above 0.05."""
        if self.two_sided_p > SIGNIFICANT:
            return "neither"
        return "straighter" if self.p_value < self.p_value_less_straight else "less straight"


def straighter_than(
    traj: Trajectory,
    reference: Trajectory,
    *,
    statistic: str = "line_shape_ratio",
    paired: bool | None = None,
    solver: Any = None,
    draws: int = 999,
    seed: int = 0,
) -> tuple[StraighterThan, ...]:
    """Test over images, segment by segment, whether a network is straighter than a reference.

    The images are resampled, the two networks are fixed. Two training runs of one recipe differ by
    more than the sampling error over images, so no p-value here says that a *kind* of network is
    straighter. To test that, rank a network among many, as `analyze` does with fresh weights.

    Good references are the same architecture at initialization, its counterpart without shortcuts,
    and the network with its layers in another order (`shuffled`).

    Parameters
    ----------
    traj, reference : Trajectory
        Trajectories with equal numbers of segments, which are compared in order.
    statistic : str
        A straightness measure in `STATISTICS`.
    paired : bool, optional
        Whether both networks saw the same samples, row by row; by default, whether the labels and
        the first layers (the images) agree.
    solver : solver, optional
        Solver for statistics of W2; default `Exact()`.
    draws : int
        Number of resamples; the smallest p-value is 1 / (draws + 1).
    seed : int

    Notes
    -----
    For paired samples the signs of the differences are flipped; otherwise the membership is
    permuted, with Welch's t as the statistic. Both tests are exact if the two are exchangeable
    (p-values are uniform under one distribution) and asymptotically valid if only the statistic
    agrees. Statistics of W2 have no per-sample values; their jackknife pseudo-values (Tukey 1958),
    linearized as in `straightness`, take their place. The finite-sample bias of these statistics
    depends on the number of samples, which must therefore agree.

    Raises
    ------
    ArgumentError
        The statistic is unknown, or the segments cannot be compared.
    """
    if statistic not in STATISTICS:
        raise ArgumentError(f"Unknown statistic {statistic!r}; choose {', '.join(STATISTICS)}.")
    traj, reference = as_trajectory(traj), as_trajectory(reference, "reference")
    pairs = _matching_segments(traj, reference, statistic)
    paired = _same_samples(traj, reference) if paired is None else paired
    if len(traj) != len(reference) and (paired or statistic not in TRAJECTORY_MEASURES):
        why = "paired samples" if paired else f"the finite-sample bias of {statistic}"
        raise ArgumentError(
            f"{len(traj)} samples against {len(reference)}: {why} need equal numbers."
        )
    return tuple(_compare(a, b, statistic, paired, solver, draws, seed) for a, b in pairs)


def _matching_segments(
    traj: Trajectory, reference: Trajectory, statistic: str
) -> list[tuple[Segment, Segment]]:
    ours, theirs = traj.segments, reference.segments
    if not ours or len(ours) != len(theirs):
        raise ArgumentError(
            f"{len(ours)} segments against {len(theirs)}: compare networks of one architecture."
        )
    for a, b in zip(ours, theirs, strict=True):
        if len(a.arrays) != len(b.arrays) and statistic in _PER_BLOCK_COUNT:
            raise ArgumentError(
                f"{statistic} depends on the number of blocks, and segment {a.names[0]} has "
                f"{len(a.arrays) - 1} against {len(b.arrays) - 1}. Use line_shape_ratio or "
                "length_ratio, which do not."
            )
    return list(zip(ours, theirs, strict=True))


def _same_samples(a: Trajectory, b: Trajectory) -> bool:
    x, y = a.layers[0].features, b.layers[0].features
    return (
        np.array_equal(a.labels, b.labels)
        and x.shape == y.shape
        and all(np.array_equal(p, q) for _, (p, q) in row_chunks(x, y))
    )


def _compare(
    ours: Segment,
    theirs: Segment,
    statistic: str,
    paired: bool,
    solver: Any,
    draws: int,
    seed: int,
) -> StraighterThan:
    sign = 1.0 if statistic in _HIGHER_IS_STRAIGHTER else -1.0
    a, b = (_per_sample(segment, statistic, solver) for segment in (ours, theirs))
    if paired:
        both = ~(np.isnan(a) | np.isnan(b))
        a, b = a[both], b[both]
        gain = sign * (a - b)
        p_values = [sign_flip_p_value(side, draws=draws, seed=seed) for side in (gain, -gain)]
        spread = _deviation(gain)
        error, freedom = spread / np.sqrt(max(len(gain), 1)), len(gain) - 1
    else:
        a, b = a[~np.isnan(a)], b[~np.isnan(b)]
        p_values = [
            permutation_p_value(side * a, side * b, draws=draws, seed=seed)
            for side in (sign, -sign)
        ]
        spread = float(np.sqrt((_deviation(a) ** 2 + _deviation(b) ** 2) / 2))
        error = float(np.sqrt(_deviation(a) ** 2 / len(a) + _deviation(b) ** 2 / len(b)))
        freedom = min(len(a), len(b)) - 1
    difference = float(a.mean() - b.mean())
    half_width = float(student.ppf((1 + LEVEL) / 2, max(freedom, 1))) * error
    return StraighterThan(
        layers=ours.names,
        stage=ours.stage,
        statistic=statistic,
        value=float(a.mean()),
        reference=float(b.mean()),
        difference=difference,
        interval=(difference - half_width, difference + half_width),
        effect_size=sign * difference / spread if spread > 0 else 0.0,
        p_value=p_values[0],
        p_value_less_straight=p_values[1],
        paired=paired,
        samples=len(a),
    )


def _per_sample(segment: Segment, statistic: str, solver: Any) -> Float[np.ndarray, " n"]:
    """Return per-sample values or pseudo-values whose mean is the statistic."""
    if statistic in TRAJECTORY_MEASURES:
        values = getattr(SegmentSample.of(segment).path, statistic)
    else:
        values = _pseudo_values(segment, statistic, Exact() if solver is None else solver)
    if np.isnan(values).all():
        raise ArgumentError(
            f"{statistic} is undefined from {segment.names[0]} to {segment.names[-1]}: "
            "every sample (or distribution) ends where it began."
        )
    return values


def _pseudo_values(segment: Segment, statistic: str, solver: Any) -> Float[np.ndarray, " n"]:
    steps = [wasserstein(x, y, solver=solver) for x, y in pairwise(segment.arrays)]
    end = wasserstein(segment.arrays[0], segment.arrays[-1], solver=solver)
    sample = SegmentSample.of(segment, steps, end)
    if not sample.linearised:
        raise ArgumentError(
            f"{statistic} needs dual potentials to be tested, and {solver.name} has none. "
            "Use Exact() or Sinkhorn()."
        )
    return sample.resampled(draws=0, seed=0).pseudo_values(statistic)


def _deviation(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def shuffled(traj: Trajectory, *, seed: int = 0) -> Trajectory:
    """Return the trajectory with the inner layers of every segment in another order.

    The ends of every segment stay, so distances end to end are unchanged; the remaining
    straightness does not depend on the order of the layers. A reference for `straighter_than`.

    Raises
    ------
    ArgumentError
        No segment has two inner layers to exchange.
    """
    rng = np.random.default_rng(as_count(seed, "seed"))
    layers = list(as_trajectory(traj).layers)
    changed = False
    index = {layer.name: i for i, layer in enumerate(layers)}
    for segment in traj.segments:
        inner = [index[name] for name in segment.names[1:-1]]
        if len(inner) < 2:
            continue
        order = rng.permutation(len(inner))
        while np.array_equal(order, np.arange(len(inner))):
            order = rng.permutation(len(inner))
        # A stage's entry remains at the beginning of the stage, the segment's first layer.
        reordered = [
            replace(layers[inner[k]], entry=layers[i].entry)
            for i, k in zip(inner, order, strict=True)
        ]
        for i, layer in zip(inner, reordered, strict=True):
            layers[i] = layer
        changed = True
    if not changed:
        raise ArgumentError("No segment has two inner layers, so there is no other order.")
    return replace(traj, layers=tuple(layers))
