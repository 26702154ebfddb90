"""A sentence with its evidence, and the numbers at which words change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ...geodesic.gradient_maps import NEARLY_SYMMETRIC, SYMMETRIC
from ...geodesic.nulls import POWER_MARGIN

Record = Mapping[str, Any]
Strength = Literal["shown", "suggested", "undecided", "warning"]

THRESHOLDS: dict[str, float] = {
    "straight": 1.05,
    "close": 1.2,
    "bent": 1.5,
    "orthogonal": 0.5,
    "few_moving": 1.1,
    "returned": 100.0,
    "optimal": 0.99,
    "nearly_optimal": 0.95,
    "power_margin": POWER_MARGIN,
    "nearly_a_point": 10.0,
    "mostly_shift": 0.5,
    "rounding": 1e-6,
    "above_rounding": 10.0,
    "fewest_samples": 20,
    "few_a_class": 20,
    "carrying_share": 0.1,
    "chance_level": 0.01,
    "below_claim": 0.05,
    "gradient_map": SYMMETRIC,
    "nearly_gradient_map": NEARLY_SYMMETRIC,
    "collapsed": 0.1,
    "partly_collapsed": 1.0,
    "significant": 0.05,
}
"""The numbers at which words change.

straight, close, bent
    Centred length ratios up to which a path is called straight, close to straight, and bent. A
    quarter circle has 1.11, a zigzag of 45 degrees 1.41.
orthogonal
    How far from 1 towards sqrt(B) a length ratio may lie and still be called straight, where B is
    the effective number of moving blocks: mutually orthogonal steps have exactly sqrt(B).
few_moving
    sqrt(B) below which one block makes nearly all of a path, and its length ratio says little.
returned
    Length ratio from which a path is said to end where it began.
optimal, nearly_optimal
    Correlation scores from which a map is called optimal, and nearly optimal.
power_margin
    How far a correlation score must lie above those of null maps, and a length ratio below theirs,
    for the samples to tell.
nearly_a_point
    Spread of the last cloud over that of the first from which the start is nearly a point, so that
    almost every coupling would be optimal.
mostly_shift
    Share of the squared displacement that is one common shift, from which it is mentioned.
rounding, above_rounding
    Displacements over the spread below which nothing has moved, nor has it below so many times what
    rounding of the features can move. Scatter below the square of the first, relative to other
    scatter, cannot be told from none.
fewest_samples, few_a_class
    Samples below which nothing is said, and samples a class below which it is a warning.
carrying_share
    Share of the samples that must carry a value, and `fewest_samples` of them, for it to be judged.
chance_level
    One-sided level of the binomial test of "better than chance".
below_claim
    How far below the accuracy that a file claims is a warning.
gradient_map, nearly_gradient_map
    Asymmetries of the Jacobian, and shares of its largest eigenvalue down to minus which the
    smallest lies, up to which a map may be, and may nearly be, the gradient of a convex function.
    A planar rotation of asymmetry 0.1 has the correlation score 0.95, of 0.01 0.995.
collapsed, partly_collapsed
    NC1 of the last layer up to which the classes are called collapsed, and partly collapsed.
significant
    Level of tests against a reference.
"""


@dataclass(frozen=True)
class Sentence:
    """One sentence of a verdict, with the numbers it rests on.

    Attributes
    ----------
    claim : str
        What it is about: ``accuracy``, ``normalization``, ``classes``, ``samples``,
        ``straightness``, ``optimality``, ``blocks``, ``collapse``, ``reference``, ``next``.
    words : str
    evidence : dict
        The numbers that decided the words.
    strength : {"shown", "suggested", "undecided", "warning"}
        ``shown``: an interval, a certificate or a test supports it; ``suggested``: a value alone;
        ``undecided``: these samples cannot tell; ``warning``: a reason to doubt the rest.
    """

    claim: str
    words: str
    evidence: Mapping[str, Any]
    strength: Strength

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for a record."""
        return asdict(self)
