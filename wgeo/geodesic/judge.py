"""Is a network straighter than another, over images?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import t as student

from ..arrays.checks import as_count
from ..arrays.rows import row_chunks
from ..errors import ArgumentError
from ..trajectory import Segment, Trajectory, as_trajectory
from ..transport import Exact, wasserstein
from .influence import TRAJECTORY_FIGURES, TRANSPORT_FIGURES, SegmentSample
from .resampling import LEVEL, permutation_p_value, sign_flip_p_value
from .result import plain

_SIGNIFICANT = 0.05
_HIGHER_IS_STRAIGHTER = frozenset({"ot_score"})
_PER_BLOCK_COUNT = frozenset({"line_shape_score", "action_ratio"})
STATISTICS = (
    *TRAJECTORY_FIGURES,
    *(name for name in TRANSPORT_FIGURES if name not in ("distance", "length")),
)


@dataclass(frozen=True, eq=False)
class StraighterThan:
    """One segment against the same segment of a reference, by one statistic, over images.

    Only these two networks are compared: another training of either may come out otherwise.

    Attributes
    ----------
    layers : tuple of str
    stage : int
    statistic : str
    value, reference : float
        The statistic of the network and of the reference.
    difference : float
        value - reference.
    interval : (low, high)
        95 % interval of the difference, from per-sample (pseudo-)values.
    effect_size : float
        Gain in straightness over the per-sample standard deviation (Cohen's d; of the paired
        differences where paired); positive where the network is straighter.
    p_value : float in (0, 1]
        One-sided, of "the network is not straighter than the reference".
    p_value_less_straight : float in (0, 1]
        One-sided, of "the network is not less straight than the reference".
    paired : bool
        Whether both saw the same samples.
    samples : int
        Samples of the network for which the statistic is defined.
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

    @property
    def two_sided_p(self) -> float:
        """Twice the smaller of `p_value` and `p_value_less_straight`, at most 1."""
        return min(1.0, 2 * min(self.p_value, self.p_value_less_straight))

    @property
    def direction(self) -> str:
        """``straighter``, ``less straight``, or ``neither`` if `two_sided_p` is above 0.05."""
        if self.two_sided_p > _SIGNIFICANT:
            return "neither"
        return "straighter" if self.p_value < self.p_value_less_straight else "less straight"

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, ready for JSON."""
        return {**plain(self), "two_sided_p": self.two_sided_p, "direction": self.direction}


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

    The images are resampled, the networks are these two: two trainings of one recipe differ by more
    than images can tell, so no p-value here says that a *kind* of network is straighter. For that
    rank a network among many, as `analyze` does with fresh weights.

    Good references: the same architecture at initialisation, its plain twin, the network with its
    layers in another order (`shuffled`).

    Parameters
    ----------
    traj, reference : Trajectory
        With as many segments each, compared in order.
    statistic : str
        Any straightness figure of `STATISTICS`.
    paired : bool, optional
        Whether both saw the same samples, row by row; by default they did where labels and the
        first layer (the images) agree.
    solver : solver, optional
        For statistics of W2; default `Exact()`.
    draws : int
        Resamples; the smallest p-value is 1 / (draws + 1).
    seed : int

    Notes
    -----
    Samples are resampled: signs of the differences flipped where paired, membership permuted with
    Welch's t where not. Both are exact where the two are exchangeable (p-values are uniform under
    one distribution) and asymptotically valid where only the statistic agrees. Statistics of W2
    have no per-sample values; their jackknife pseudo-values (Tukey 1958), linearised as in
    `straightness`, take that place. Their finite-sample bias depends on the number of samples,
    which must therefore agree.

    Raises
    ------
    ArgumentError
        An unknown statistic; segments that cannot be compared.
    """
    if statistic not in STATISTICS:
        raise ArgumentError(f"Unknown statistic {statistic!r}; choose {', '.join(STATISTICS)}.")
    traj, reference = as_trajectory(traj), as_trajectory(reference, "reference")
    pairs = _matched(traj, reference, statistic)
    same = _same_samples(traj, reference) if paired is None else paired
    if len(traj) != len(reference) and (same or statistic not in TRAJECTORY_FIGURES):
        why = "paired samples" if same else f"the finite-sample bias of {statistic}"
        raise ArgumentError(
            f"{len(traj)} samples against {len(reference)}: {why} need equal numbers."
        )
    return tuple(_compare(a, b, statistic, same, solver, draws, seed) for a, b in pairs)


def _matched(
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
    reach = float(student.ppf((1 + LEVEL) / 2, max(freedom, 1))) * error
    return StraighterThan(
        layers=ours.names,
        stage=ours.stage,
        statistic=statistic,
        value=float(a.mean()),
        reference=float(b.mean()),
        difference=difference,
        interval=(difference - reach, difference + reach),
        effect_size=sign * difference / spread if spread > 0 else 0.0,
        p_value=p_values[0],
        p_value_less_straight=p_values[1],
        paired=paired,
        samples=len(a),
    )


def _per_sample(segment: Segment, statistic: str, solver: Any) -> Float[np.ndarray, " n"]:
    """Return values whose mean is the statistic: the samples' own, or pseudo-values."""
    if statistic in TRAJECTORY_FIGURES:
        values = getattr(SegmentSample.of(segment).path, statistic)
    else:
        values = _pseudo_values(segment, statistic, Exact() if solver is None else solver)
    if np.isnan(values).all():
        raise ArgumentError(
            f"{statistic} is undefined from {segment.names[0]} to {segment.names[-1]}: "
            "no sample (or no distribution) ends elsewhere than it began."
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

    The ends of every segment stay, so distances end to end are unchanged, and what remains of
    straightness is what any order of these layers has. A reference for `straighter_than`.

    Raises
    ------
    ArgumentError
        No segment has two inner layers to exchange.
    """
    rng = np.random.default_rng(as_count(seed, "seed"))
    layers = list(as_trajectory(traj).layers)
    changed = False
    place = {layer.name: i for i, layer in enumerate(layers)}
    for segment in traj.segments:
        inner = [place[name] for name in segment.names[1:-1]]
        if len(inner) < 2:
            continue
        order = rng.permutation(len(inner))
        while np.array_equal(order, np.arange(len(inner))):
            order = rng.permutation(len(inner))
        # A stage's entry stays where the stage begins: it is the segment's first layer.
        moved = [
            replace(layers[inner[k]], entry=layers[i].entry)
            for i, k in zip(inner, order, strict=True)
        ]
        for i, layer in zip(inner, moved, strict=True):
            layers[i] = layer
        changed = True
    if not changed:
        raise ArgumentError("No segment has two inner layers, so there is no other order.")
    return replace(traj, layers=tuple(layers))
