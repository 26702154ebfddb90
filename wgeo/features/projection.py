"""Wide features made narrow by random projection, with what that does to distances."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import chi2

from ..errors import ArgumentError

_DOUBT = 0.01  # probability that any distance of all is distorted by more than is said


@dataclass(frozen=True, eq=False)
class Projection:
    r"""Features of more than `width` numbers, projected onto `width` (Johnson, Lindenstrauss 1984).

    x becomes R x, the entries of R independent and normal with variance 1 / width, so that
    :math:`\|R(x - y)\|^2 / \|x - y\|^2` is chi-squared with `width` degrees of freedom over
    `width`, whatever x and y. Layers of one width share one R: distances between them are kept too.

    Parameters
    ----------
    width : int
    seed : int
        R depends on it and on the width of the features alone.
    """

    width: int
    seed: int = 0
    _matrices: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.width, bool) or not isinstance(self.width, int) or self.width < 1:
            raise ArgumentError(f"project is a number of features from 1, not {self.width!r}.")

    def __call__(self, rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        """Project rows; those already as narrow stay as they are."""
        d = rows.shape[1]
        if d <= self.width:
            return rows
        if d not in self._matrices:
            rng = np.random.default_rng([self.seed, d])
            normal = rng.standard_normal((d, self.width), dtype=np.float32)
            self._matrices[d] = normal / np.float32(np.sqrt(self.width))
        return rows @ self._matrices[d].astype(rows.dtype, copy=False)

    def distortion(self, points: int) -> dict[str, Any]:
        """What is true of all distances between so many points, and of one.

        Returns
        -------
        dict
            ``all``: the least and the largest factor by which any distance is changed, with a
            probability of 99 %; W2 between projected layers is changed by a factor in the same
            range. ``typical``: the standard deviation of one distance's factor, which is 1 on
            average.
        """
        tail = _DOUBT / max(points * (points - 1), 1)  # of each side, for points^2 / 2 pairs
        least, most = (np.sqrt(f(tail, self.width) / self.width) for f in (chi2.ppf, chi2.isf))
        return {
            "all": [float(least), float(most)],
            "typical": float(np.sqrt(0.5 / self.width)),
        }
