"""A sentence with its evidence, and the thresholds at which the wording changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ...geodesic.gradient_maps import CONVEX, NEARLY_SYMMETRIC, SYMMETRIC
from ...geodesic.significance import SIGNIFICANT
from ...results import Result, plain
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
    A path is called straight only if the interval of its length ratio ends within this fraction of
    the way from 1 to sqrt(B). B is the effective number of moving blocks, and sqrt(B) the length
    ratio of mutually orthogonal steps.
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
    more than this and by more than 1 / sqrt(n) for n samples. A path is called straight only if its
    length ratio is below that of null maps by more than this, or if a bound on the true length
    ratio excludes a turn.
low_resolution
    If the resolution is below this, an OT score is not evidence, and is printed in parentheses.
nearly_a_point
    If the last cloud's spread divided by the first cloud's is at least this, the first cloud is
    nearly a point, and almost any map has a high OT score.
mostly_shift
    A common shift is mentioned if it makes up at least this fraction of the squared displacement.
rounding, above_rounding
    A displacement relative to the spread counts as zero below ``rounding``, and below
    ``above_rounding`` times the largest displacement that rounding of the features can cause.
    Scatter relative to other scatter counts as zero below the square of ``rounding``.
fewest_samples, few_a_class
    With fewer samples than ``fewest_samples``, the verdict makes no statement, and one based on the
    Jacobians at fewer images is only ``suggested``. With fewer samples per class than
    ``few_a_class``, there is a warning.
carrying_share
    A value is judged only if the effective number of samples that determine it is at least this
    fraction of all samples, and at least ``fewest_samples``.
chance_level
    Level of the one-sided binomial test of "better than chance".
good_accuracy
    If the accuracy is at least this, no other normalization is tried.
below_claim, near_claim, claim_deviations
    There is a warning if the accuracy is lower than stated in the file by more than
    ``below_claim``. There is also one if the difference is more than ``near_claim`` and more than
    ``claim_deviations`` standard deviations of a binomial proportion.
gradient_map, convex
    Largest asymmetry of the Jacobian, and largest size of a negative eigenvalue relative to the
    largest eigenvalue, at which a map may be the gradient of a convex function.
nearly_gradient_map
    Largest value of both quantities at which a map may nearly be such a gradient. A planar rotation
    with asymmetry 0.1 has a correlation score of 0.95; with asymmetry 0.01 it has a score of 0.995.
collapsed, partly_collapsed
    Largest NC1 of the last layer at which classes are called collapsed, and partly collapsed.
significant
    Level of tests against a reference, and of tests of other normalizations.
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
    A smaller overlap is called more than random if it is more than this many times that of random
    directions.
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
        The text.
    evidence : dict
        The numbers on which the text is based.
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
