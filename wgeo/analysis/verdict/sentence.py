"""A sentence with its evidence, the thresholds of the wording, and the wording of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ...geodesic.gradient_maps import CONVEX, NEARLY_SYMMETRIC, SYMMETRIC
from ...geodesic.significance import SIGNIFICANT
from ...results import Result, plain
from ...storage.record import Optimality
from ...text import UNDEFINED, counted
from ...thresholds import FEW_SAMPLES, LOW_RESOLUTION, NEARLY_OPTIMAL, OPTIMAL, POWER_MARGIN

Strength = Literal["shown", "suggested", "undecided", "warning"]

THRESHOLDS: dict[str, float] = {
    "straight": 1.05,
    "close": 1.2,
    "bent": 1.5,
    "orthogonal": 0.5,
    "few_moving": 1.1,
    "returned": 100.0,
    "optimal": OPTIMAL,
    "nearly_optimal": NEARLY_OPTIMAL,
    "power_margin": POWER_MARGIN,
    "low_resolution": LOW_RESOLUTION,
    "nearly_a_point": 10.0,
    "mostly_shift": 0.5,
    "rounding": 1e-6,
    "above_rounding": 10.0,
    "fewest_samples": 20,
    "few_a_class": FEW_SAMPLES,
    "carrying_share": 0.1,
    "chance_level": 0.01,
    "good_accuracy": 0.99,
    "below_claim": 0.05,
    "near_claim": 0.02,
    "claim_deviations": 2.5,
    "gradient_map": SYMMETRIC,
    "nearly_gradient_map": NEARLY_SYMMETRIC,
    "convex": CONVEX,
    "collapsed": 0.1,
    "partly_collapsed": 1.0,
    "significant": SIGNIFICANT,
    "fewest_layers": 4,
    "law_correlation": 0.99,
    "law_curvature": 0.3,
    "aligned": 0.5,
    "partly_aligned": 0.1,
    "above_chance": 2.0,
}
"""The thresholds at which the wording changes.

straight, close, bent
    Largest centered length ratios at which a path is called straight, close to straight, and bent.
    The ratio of a quarter circle is 1.11, that of a zigzag of 45 degrees 1.41.
orthogonal
    A path is called straight, or close to straight, only if the interval of its length ratio ends
    at or below 1 + ``orthogonal`` (sqrt(B) - 1). B is the effective number of moving blocks, and
    sqrt(B) the length ratio of mutually orthogonal steps.
few_moving
    If sqrt(B) is below this, one block accounts for nearly all of the path, and the length ratio
    says little.
returned
    Length ratio above which a path is said to end nearly where it began.
optimal, nearly_optimal
    Smallest lower bounds of the correlation score at which a map is called optimal, and nearly
    optimal.
power_margin
    A correlation score is evidence of an optimal map only if it exceeds the scores of null maps by
    more than this, and by more than 1 / sqrt(n) for n samples. A path is called straight, or close
    to straight, only if the interval of its length ratio ends more than this below the length ratio
    of null maps, or if a bound on the true length ratio excludes a turn.
low_resolution
    If the resolution is below this, an OT score is not evidence, and is printed in parentheses.
nearly_a_point
    If the last cloud's spread divided by the first cloud's is at least this, the first cloud is
    nearly a point, and almost any map has a high OT score.
mostly_shift
    A common shift is mentioned if it makes up at least this fraction of the squared displacement.
rounding, above_rounding
    A displacement, divided by the spread, counts as zero if it is below ``rounding``, or below
    ``above_rounding`` times the largest displacement that rounding of the features can cause.
    Scatter, divided by other scatter, counts as zero below the square of ``rounding``.
fewest_samples, few_a_class
    With fewer samples than ``fewest_samples``, the verdict makes no statement. If the Jacobians
    were computed at fewer images, a statement based on them is only ``suggested``. If a class has
    fewer samples than ``few_a_class``, there is a warning.
carrying_share
    A value is judged only if the effective number of samples that determine it is at least this
    fraction of all samples, and at least ``fewest_samples``.
chance_level
    Significance level of the one-sided binomial test of "better than chance".
good_accuracy
    If the accuracy is at least this, no other normalization is tried.
below_claim, near_claim, claim_deviations
    There is a warning if the accuracy is lower than stated in the file by more than
    ``below_claim``. There is also one if the difference is more than ``near_claim`` and more than
    ``claim_deviations`` standard deviations of a binomial proportion.
gradient_map, convex
    A map may be the gradient of a convex function if the asymmetry of its Jacobian is at most
    ``gradient_map``, and no negative eigenvalue, divided by the largest, exceeds ``convex`` in
    size.
nearly_gradient_map
    Largest asymmetry, and largest relative size of a negative eigenvalue, at which a map may nearly
    be the gradient of a convex function. A planar rotation with asymmetry 0.1 has a correlation
    score of 0.95; with asymmetry 0.01 it has a score of 0.995.
collapsed, partly_collapsed
    Largest NC1 of the last layer at which classes are called collapsed, and partly collapsed.
significant
    Significance level of tests against a reference, and of tests of other normalizations.
fewest_layers
    Smallest number of layers for which the rate of separation is judged.
law_correlation, law_curvature
    The rate is called constant if the correlation of depth and ln D is at most minus the first, and
    the absolute curvature of ln D at most the second. (Along a geodesic on which classes contract
    or expand twofold, their absolute values are 0.995 and 0.34.)
aligned, partly_aligned
    Blocks are called aligned, or partly aligned, if the overlap of their singular directions
    exceeds that of random directions by at least this fraction of the largest possible excess.
above_chance
    An overlap too small for "partly aligned" is called larger than that of random directions only
    if it is more than this many times as large.
"""


@dataclass(frozen=True, repr=False)
class Sentence(Result):
    """One sentence of a verdict, with the numbers that support it.

    Attributes
    ----------
    claim : str
        The topic: ``accuracy``, ``normalization``, ``classes``, ``samples``, ``straightness``,
        ``optimality``, ``blocks``, ``alignment``, ``reference``, ``collapse``, ``separation``,
        ``next`` or ``headline``.
    words : str
        The sentence.
    evidence : dict
        The numbers that determine the words.
    strength : {"shown", "suggested", "undecided", "warning"}
        ``shown``: supported by an interval, a certificate or a test. ``suggested``: supported only
        by a value without an interval, a wide interval or few images. ``undecided``: not decided by
        these samples. ``warning``: a reason to doubt the rest.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x = np.random.default_rng(0).normal(size=(40, 3))
    >>> traj = wgeo.Trajectory.from_arrays([x, 2 * x, 3 * x], np.arange(40) % 2)
    >>> sentence = wgeo.analysis.sentences(wgeo.straightness(traj, bootstrap=0))[1]
    >>> sentence.claim, sentence.strength
    ('optimality', 'shown')
    """

    claim: str
    words: str
    evidence: Mapping[str, Any]
    strength: Strength

    def __post_init__(self) -> None:
        object.__setattr__(self, "evidence", plain(self.evidence))


OVER_IMAGES = ", 95 % interval over images"  # a note for `ranged`


def listed(parts: Sequence[str], last: str = "and") -> str:
    """Join ``["a", "b", "c"]`` as ``a, b and c``."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} {last} {parts[-1]}"


def rounded(value: float | None) -> str:
    """Format with three significant digits; from 1,000 to 10 million, as a whole number."""
    if value is None:
        return UNDEFINED
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def decimals_of(low: float, high: float, minimum: int = 2) -> int:
    """Return the smallest number of decimals, at most 8, at which `low` and `high` differ."""
    for decimals in range(minimum, 9):
        if round(low, decimals) != round(high, decimals):
            return decimals
    return minimum


def ranged(value: float | None, interval: Any, *, certified: bool = False, note: str = "") -> str:
    """Format a value and its interval with enough decimals to show that the ends differ.

    ``1.3384, (1.3381, 1.3392)`` becomes ``1.338 (1.338 to 1.339)``. The interval is left out if its
    ends are equal or if it is `certified` and narrower than 1e-4; otherwise `note` follows it.
    """
    if interval is None or value is None:
        return rounded(value)
    low, high = interval
    if certified and abs(high - low) <= 1e-4:
        return f"{value:z.4f}"  # z: no negative zero
    if not certified and low == high:
        return f"{value:.2f}" if 1 <= value < 10 else rounded(value)
    if high >= 1000 or 0 < high < 0.01:
        return f"{rounded(value)} ({rounded(low)} to {rounded(high)}{note})"
    # At least two significant digits of the value or the interval's width, whichever is larger.
    magnitude = max(abs(value), abs(high - low))
    d = decimals_of(low, high, max(2, 1 - math.floor(math.log10(magnitude))))
    return f"{value:z.{d}f} ({low:z.{d}f} to {high:z.{d}f}{note})"


def start_of(layers: Sequence[str]) -> str:
    """Return the first layer's name, or a description if it is the output of a shortcut."""
    block = layers[0].removesuffix(".shortcut")
    return layers[0] if block == layers[0] else f"the input of {block}, mapped by its shortcut,"


def segment_ends(layers: Sequence[str]) -> str:
    return f"From {start_of(layers)} to {layers[-1]}"


def ends(layers: Sequence[str]) -> list[str]:
    return [layers[0], layers[-1]]


def spreads(row: Optimality) -> list[float]:
    """Return the defined spreads at the layers of a block or segment; [1] if there are none."""
    return [spread for spread in row.spread if spread is not None] or [1.0]


def least_motion(row: Optimality) -> float:
    """Return the relative displacement below which samples count as unmoved."""
    rounding = THRESHOLDS["above_rounding"] * (row.relative_rounding or 0.0)
    return max(THRESHOLDS["rounding"], rounding)


def unmoved(row: Optimality) -> bool:
    moved = row.relative_displacement
    return moved is not None and moved < least_motion(row)


def few_carrying(row: Optimality) -> str:
    """Return ``about 1 sample of 300 determines`` if few samples determine the values, else ""."""
    number, samples = row.effective_samples, row.independent
    if number is None or not samples:
        return ""
    minimum = max(THRESHOLDS["fewest_samples"], THRESHOLDS["carrying_share"] * samples)
    if number >= minimum:
        return ""
    number = round(number)
    verb = "determines" if number == 1 else "determine"
    return f"about {counted(number, 'sample')} of {samples:,} {verb}"
