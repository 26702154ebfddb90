"""Tests whether one network, or one group of networks, is straighter than another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
import scipy
from jaxtyping import Float

from ..arrays.checks import as_count
from ..arrays.rows import mean_of, row_chunks
from ..errors import ArgumentError
from ..results import Result
from ..trajectory import Segment, Trajectory, as_trajectory
from ..transport import Exact, Solver, wasserstein
from .pairs import Moments
from .paths import path_measures
from .resampling import (
    LEVEL,
    ROUNDING,
    TRAJECTORY_MEASURES,
    TRANSPORT_MEASURES,
    SegmentSample,
    permutation_p_value,
    sign_flip_p_value,
)

SIGNIFICANT = 0.05  # largest two-sided p-value at which a direction is reported
_HIGHER_IS_STRAIGHTER = frozenset({"ot_score"})
_PER_BLOCK_COUNT = frozenset({"line_shape_score", "action_ratio"})
STATISTICS = (
    *TRAJECTORY_MEASURES,
    *(name for name in TRANSPORT_MEASURES if name not in ("distance", "length")),
)


@dataclass(frozen=True, eq=False, repr=False)
class StraighterThan(Result):
    """Test of one segment against the same segment of a reference, by one statistic.

    Attributes
    ----------
    layers : tuple of str
    stage : int
    statistic : str
        Name of the statistic, ending in ``_centred`` if each layer's mean was subtracted.
    value, reference : float
        The statistic of the network and of the reference; the mean if there are several networks.
    difference : float
        value - reference.
    interval : (low, high)
        95 % Student's t interval of the difference, over images or networks.
    effect_size : float or None
        Cohen's d: the gain in straightness (positive if the network is straighter) divided by the
        standard deviation over images or networks (of the differences if paired). None if this
        deviation is 0, but the difference is not.
    p_value : float in (0, 1]
        One-sided, for the null hypothesis "the network is not straighter than the reference".
    p_value_less_straight : float in (0, 1]
        One-sided, for "the network is not less straight than the reference".
    paired : bool
        Whether both networks processed the same images, or each network has a partner on the other
        side.
    samples : int
        Number of images of the network, or number of networks, for which the statistic is defined.
    over : {"images", "networks"}
        What the test samples. ``images``: one network on each side, and the result is only about
        these two; even two training runs of one recipe usually differ significantly. ``networks``:
        several networks on each side, and the result is about the recipes.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x, labels = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 2
    >>> straight = wgeo.Trajectory.from_arrays([x, 1.5 * x, 2 * x], labels)
    >>> bent = wgeo.Trajectory.from_arrays([x, np.roll(x, 1, axis=1), 2 * x], labels)
    >>> (test,) = wgeo.straighter_than(straight, bent, draws=99)
    >>> test.direction, test.p_value, test.over
    ('straighter', 0.01, 'images')
    """

    layers: tuple[str, ...]
    stage: int
    statistic: str
    value: float
    reference: float
    difference: float
    interval: tuple[float, float]
    effect_size: float | None
    p_value: float
    p_value_less_straight: float
    paired: bool
    samples: int
    over: Literal["images", "networks"] = "images"
    _included: ClassVar[tuple[str, ...]] = ("two_sided_p", "direction")

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
    traj: Trajectory | Sequence[Trajectory],
    reference: Trajectory | Sequence[Trajectory],
    *,
    statistic: str = "line_shape_ratio",
    centred: bool = False,
    paired: bool | None = None,
    solver: Solver | None = None,
    draws: int = 999,
    seed: int = 0,
) -> tuple[StraighterThan, ...]:
    """Test, segment by segment, whether a network is straighter than a reference.

    *One network on each side*: the two networks are fixed, and the images are a random sample. Two
    training runs of one recipe differ by more than the sampling error over images, so this test
    says nothing about recipes.

    *Several networks on each side*: the networks are the sample, and each has one value, measured
    on its images. Only this test can show that one recipe gives straighter networks than another.
    With equal numbers of networks, a difference can be significant only with at least four on each
    side, or six pairs if networks are paired.

    Good references are the same architecture at initialization, its counterpart without shortcuts,
    and the network with its layers in another order (`shuffled`).

    Parameters
    ----------
    traj, reference : Trajectory, or sequence of at least two Trajectory
        Trajectories with equal numbers of segments, which are compared in order.
    statistic : str
        A straightness measure in `STATISTICS`.
    centred : bool
        Whether to subtract each layer's mean, so that a shift common to all samples does not count.
    paired : bool, optional
        With one network on each side: whether both networks processed the same samples, row by row;
        by default, whether their labels and first layers (usually the images) are equal. With
        several: whether networks i of both sides belong together, for example because they have the
        same seed; by default false.
    solver : solver, optional
        Solver for statistics of W2; default `Exact()`.
    draws : int
        Number of random sign flips or relabelings; the smallest p-value is 1 / (draws + 1). If
        there are at most `draws` different ones, as for few networks, all are enumerated.
    seed : int
        Random seed of these draws.

    Returns
    -------
    tuple of StraighterThan
        One test per segment, in order.

    Notes
    -----
    If samples are paired, the signs of the differences are flipped at random. Otherwise samples are
    randomly reassigned to the two sides, and the test uses Welch's t. Both tests are exact if the
    two sides are exchangeable, and asymptotically valid if only the expected statistics are equal.

    Statistics of W2 have no per-sample values. Their jackknife pseudo-values (Tukey 1958),
    linearized as in `straightness`, are used instead. The finite-sample bias of these statistics
    depends on the number of samples, so both sides must have the same number.

    Raises
    ------
    ArgumentError
        The statistic is unknown or undefined, only one of the sides has several networks, paired
        sides differ in size, the statistic needs equal numbers of samples, the solver has no
        potentials for a statistic of W2, the segments cannot be compared, or `draws` or `seed` is
        not a whole number of at least 0.

    Examples
    --------
    A straight path, and the same layers in another order:

    >>> import numpy as np
    >>> import wgeo
    >>> x, labels = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 2
    >>> straight = wgeo.Trajectory.from_arrays([x, 2 * x, 3 * x, 4 * x], labels)
    >>> other = wgeo.Trajectory.from_arrays([x, 3 * x, 2 * x, 4 * x], labels)
    >>> (test,) = wgeo.straighter_than(straight, other, draws=99)
    >>> round(test.value, 6), round(test.reference, 6), test.direction
    (1.0, 1.666667, 'straighter')
    """
    draws, seed = as_count(draws, "draws"), as_count(seed, "seed")
    if statistic not in STATISTICS:
        raise ArgumentError(f"Unknown statistic {statistic!r}; choose {', '.join(STATISTICS)}.")
    ours, theirs = _networks(traj, "traj"), _networks(reference, "reference")
    if (len(ours) == 1) != (len(theirs) == 1):
        raise ArgumentError(
            f"{len(ours)} networks against {len(theirs)}: give one on each side (a test over "
            "images) or at least two on each (a test over networks)."
        )
    over: Literal["images", "networks"] = "images" if len(ours) == 1 else "networks"
    if over == "images":
        paired = _same_samples(ours[0], theirs[0]) if paired is None else paired
    elif paired and len(ours) != len(theirs):
        raise ArgumentError(
            f"{len(ours)} networks against {len(theirs)}: paired networks need equal numbers."
        )
    _check_segments([*ours, *theirs], statistic)
    _check_numbers([*ours, *theirs], statistic, over == "images" and bool(paired))
    solver = Exact() if solver is None else solver
    measure = partial(_values, statistic=statistic, centered=centred, solver=solver)
    name = f"{statistic}_centred" if centred else statistic
    sign = 1.0 if statistic in _HIGHER_IS_STRAIGHTER else -1.0
    tests = []
    for k, segment in enumerate(ours[0].segments):
        a, b = (measure([each.segments[k] for each in side]) for side in (ours, theirs))
        comparison = _comparison(a, b, sign, bool(paired), draws, seed)
        tests.append(StraighterThan(segment.names, segment.stage, name, **comparison, over=over))
    return tuple(tests)


def _networks(value: Any, name: str) -> list[Trajectory]:
    several = isinstance(value, list | tuple)
    networks = [as_trajectory(each, name) for each in value] if several else []
    if several and len(networks) < 2:
        raise ArgumentError(
            f"{name} is a sequence of {len(networks)}; give one Trajectory, or a sequence of at "
            "least two."
        )
    return networks or [as_trajectory(value, name)]


def _check_numbers(networks: Sequence[Trajectory], statistic: str, paired: bool) -> None:
    numbers = sorted({len(each) for each in networks})
    if len(numbers) > 1 and (paired or statistic not in TRAJECTORY_MEASURES):
        why = (
            "paired samples need equal numbers"
            if paired
            else f"the finite-sample bias of {statistic} depends on the number, which must be equal"
        )
        raise ArgumentError(f"{numbers[0]} samples against {numbers[-1]}: {why}.")


def _check_segments(networks: Sequence[Trajectory], statistic: str) -> None:
    first, *others = (each.segments for each in networks)
    for segments in others:
        if not first or len(segments) != len(first):
            raise ArgumentError(
                f"{len(first)} segments against {len(segments)}: compare networks of one "
                "architecture."
            )
        for a, b in zip(first, segments, strict=True):
            if len(a.arrays) != len(b.arrays) and statistic in _PER_BLOCK_COUNT:
                raise ArgumentError(
                    f"{statistic} depends on the number of blocks, and segment {a.names[0]} has "
                    f"{len(a.arrays) - 1} against {len(b.arrays) - 1}. Use line_shape_ratio or "
                    "length_ratio, which do not."
                )


def _same_samples(a: Trajectory, b: Trajectory) -> bool:
    x, y = a.layers[0].features, b.layers[0].features
    return (
        np.array_equal(a.labels, b.labels)
        and x.shape == y.shape
        and all(np.array_equal(p, q) for _, (p, q) in row_chunks(x, y))
    )


def _comparison(
    a: Float[np.ndarray, " n"],
    b: Float[np.ndarray, " m"],
    sign: float,
    paired: bool,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """Compare values of images or networks; `sign` is 1 if higher values are straighter."""
    if paired:
        both = ~(np.isnan(a) | np.isnan(b))
        if not both.any():
            raise ArgumentError(
                "The statistic is undefined for every pair, on one side or the other: "
                "compare unpaired samples (paired=False), or another statistic."
            )
        a, b = a[both], b[both]
        gain = sign * (a - b)
        p_values = [sign_flip_p_value(side, draws=draws, seed=seed) for side in (gain, -gain)]
        spread = _deviation(gain)
        error, degrees_of_freedom = spread / len(gain) ** 0.5, len(gain) - 1
    else:
        a, b = a[~np.isnan(a)], b[~np.isnan(b)]
        p_values = [
            permutation_p_value(side * a, side * b, draws=draws, seed=seed)
            for side in (sign, -sign)
        ]
        spread = ((_deviation(a) ** 2 + _deviation(b) ** 2) / 2) ** 0.5
        error = (_deviation(a) ** 2 / len(a) + _deviation(b) ** 2 / len(b)) ** 0.5
        degrees_of_freedom = min(len(a), len(b)) - 1
    difference = float(a.mean() - b.mean())
    if abs(difference) <= ROUNDING * max(abs(a).max(), abs(b).max()):
        difference = 0.0
    half_width = float(scipy.stats.t.ppf((1 + LEVEL) / 2, max(degrees_of_freedom, 1))) * error
    return {
        "value": float(a.mean()),
        "reference": float(b.mean()),
        "difference": difference,
        "interval": (difference - half_width, difference + half_width),
        "effect_size": sign * difference / spread if spread > 0 else None if difference else 0.0,
        "p_value": p_values[0],
        "p_value_less_straight": p_values[1],
        "paired": paired,
        "samples": len(a),
    }


def _values(
    segments: Sequence[Segment], *, statistic: str, centered: bool, solver: Solver
) -> Float[np.ndarray, " n"]:
    """Return one value per image of a single network, or one per network of several."""
    values = [_per_sample(segment, statistic, centered, solver) for segment in segments]
    return values[0] if len(values) == 1 else np.array([np.nanmean(each) for each in values])


def _per_sample(
    segment: Segment, statistic: str, centered: bool, solver: Solver
) -> Float[np.ndarray, " n"]:
    """Return per-sample values or pseudo-values whose mean is the statistic."""
    if statistic in TRAJECTORY_MEASURES:
        centers = np.stack([mean_of(array) for array in segment.arrays]) if centered else None
        values = getattr(path_measures(segment.arrays, centres=centers), statistic)
    else:
        values = _pseudo_values(segment, statistic, centered, solver)
    if np.isnan(values).all():
        raise ArgumentError(
            f"{statistic} is undefined from {segment.names[0]} to {segment.names[-1]}: "
            "every sample (or distribution) ends where it began, or makes too few steps."
        )
    return values


def _pseudo_values(
    segment: Segment, statistic: str, centered: bool, solver: Solver
) -> Float[np.ndarray, " n"]:
    arrays, last = segment.arrays, len(segment.arrays) - 1
    pairs = [*pairwise(range(last + 1)), (0, last)]
    *steps, end = (wasserstein(arrays[i], arrays[j], solver=solver) for i, j in pairs)
    sample = SegmentSample.of(segment, steps, end)
    if centered:
        moments = Moments.of(arrays, sample.floor)
        *steps, end = (
            moments.pair(*ends, result, potentials=True).transport
            for ends, result in zip(pairs, (*steps, end), strict=True)
        )
        sample = SegmentSample.centered_of(moments, steps, end)
    if not sample.linearized:
        raise ArgumentError(
            f"{statistic} needs dual potentials to be tested, and {solver.name} has none. "
            "Use Exact() or Sinkhorn()."
        )
    return sample.resampled(draws=0, seed=0).pseudo_values(statistic)


def _deviation(values: np.ndarray) -> float:
    """Return the standard deviation; 0 if the values differ by no more than rounding."""
    differ = len(values) > 1 and np.ptp(values) > ROUNDING * abs(values).max()
    return float(values.std(ddof=1)) if differ else 0.0


def shuffled(traj: Trajectory, *, seed: int = 0) -> Trajectory:
    """Return the trajectory with the inner layers of every segment in a random, different order.

    The first and last layers of every segment keep their places, so distances from end to end are
    unchanged. Segments with fewer than two inner layers are unchanged. As a reference for
    `straighter_than`, it shows how much straightness is due to the order of the layers.

    Raises
    ------
    ArgumentError
        No segment has two inner layers to exchange.
    """
    rng = np.random.default_rng(as_count(seed, "seed"))
    traj = as_trajectory(traj)
    layers = list(traj.layers)
    index = {layer.name: i for i, layer in enumerate(layers)}
    for segment in traj.segments:
        inner = [index[name] for name in segment.names[1:-1]]
        if len(inner) < 2:
            continue
        order = np.arange(len(inner))
        while np.array_equal(order, np.arange(len(inner))):
            order = rng.permutation(len(inner))
        for i, k in zip(inner, order, strict=True):  # a shortcut keeps its place
            layers[i] = replace(traj.layers[inner[k]], entry=traj.layers[i].entry)
    if layers == list(traj.layers):
        raise ArgumentError("No segment has two inner layers, so there is no other order.")
    return replace(traj, layers=tuple(layers))
