"""Thresholds at which a measured number is called optimal or sufficient, or counts as evidence.

The modules that measure these numbers import torch; this module does not, so that the figures and
pages of a stored record can use the thresholds without it.
"""

from __future__ import annotations

import math
from typing import Any

LOW_RESOLUTION = 0.5
"""Smallest sufficient resolution: below it, an OT score of 1 is not evidence of an optimal map."""

OPTIMAL, NEARLY_OPTIMAL = 0.99, 0.95
"""Smallest correlation scores of maps that are called optimal and nearly optimal."""

FEW_SAMPLES = 20
"""Size of the smallest class below which collapse metrics are biased by sampling."""

POWER_MARGIN = 0.05
"""Smallest difference between a correlation score and its null scores that counts as evidence."""


def clearly_above(low: Any, null: Any, samples: int | None) -> Any:
    """Return whether a score exceeds the null scores by more than the `margin`, entry by entry.

    `low` is a lower bound of the score, and `null` an upper bound of the null scores.
    """
    return low > null + margin(samples)


def margin(samples: int | None) -> float:
    """Return the amount by which a score must exceed its null scores to be evidence.

    It is max(`POWER_MARGIN`, 1 / sqrt(n)) for n samples, and 1 if n is unknown. In one dimension,
    the score of an unrelated pairing has a standard deviation of about 1 / sqrt(n); in more
    dimensions, less. `POWER_MARGIN` is about 1 - cos(18 degrees): a rotation by 18 degrees lowers
    the score of an optimal map by this amount.
    """
    return max(POWER_MARGIN, 1 / math.sqrt(samples or 1))
