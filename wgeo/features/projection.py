"""Random projection of wide features, with bounds on the distortion of distances."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy
from jaxtyping import Float

from ..errors import ArgumentError

_FAILURE = 0.01  # probability that any distance is distorted by more than the bounds


@dataclass(frozen=True, eq=False)
class Projection:
    r"""Random projection of features to `width` dimensions (Johnson and Lindenstrauss 1984).

    x becomes R x, where the entries of R are independent and normal with variance 1 / width. For
    all x and y, :math:`\|R(x - y)\|^2 / \|x - y\|^2` is therefore distributed as chi-squared with
    `width` degrees of freedom, divided by `width`. Layers of equal width use the same R, so
    distances between them are preserved too. Features that are not wider than `width` are
    unchanged.

    Parameters
    ----------
    width : int
        Number of dimensions of the projection, at least 1.
    seed : int
        R depends only on the seed, `width`, and the width of the features.

    Raises
    ------
    ArgumentError
        `width` is not a positive integer.

    Examples
    --------
    >>> import torch
    >>> import wgeo
    >>> net = torch.nn.Sequential(torch.nn.Linear(900, 90), torch.nn.ReLU(), torch.nn.Linear(90, 3))
    >>> traj = wgeo.trace(net, (torch.randn(4, 900), [0, 1, 0, 1]), layers=["0", "1"], project=50)
    >>> [(layer.name, layer.width) for layer in traj.layers]
    [('input', 50), ('stem', 50), ('0', 50), ('1', 50)]
    """

    width: int
    seed: int = 0
    _matrices: dict[int, np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if isinstance(self.width, bool) or not isinstance(self.width, int) or self.width < 1:
            raise ArgumentError(
                f"project must be a positive number of features, not {self.width!r}."
            )

    def __call__(self, rows: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        """Project rows; rows of at most `width` entries are unchanged."""
        d = rows.shape[1]
        if d <= self.width:
            return rows
        if d not in self._matrices:
            rng = np.random.default_rng([self.seed, d])
            normal = rng.standard_normal((d, self.width), dtype=np.float32)
            self._matrices[d] = normal / np.float32(np.sqrt(self.width))
        return rows @ self._matrices[d].astype(rows.dtype, copy=False)

    def distortion(self, points: int) -> dict[str, Any]:
        """Return bounds on the distortion of distances between `points` points.

        Returns
        -------
        dict
            ``all``: two factors. With probability at least 99 %, every distance changes by a factor
            between them, and so does W2 between projected layers of equal width. ``typical``: the
            standard deviation of one distance's factor, whose mean is about 1.

        Examples
        --------
        >>> import wgeo
        >>> bounds = wgeo.features.Projection(200).distortion(1000)
        >>> [round(factor, 2) for factor in bounds["all"]], round(bounds["typical"], 2)
        ([0.73, 1.29], 0.05)
        """
        tail = _FAILURE / max(points * (points - 1), 1)  # on each side, for points^2 / 2 pairs
        squared = scipy.stats.chi2(self.width)
        low, high = (np.sqrt(f(tail) / self.width) for f in (squared.ppf, squared.isf))
        return {
            "all": [float(low), float(high)],
            "typical": float(np.sqrt(0.5 / self.width)),
        }
