"""The result of every transport solver: a distance, and an interval that contains it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from scipy.sparse import csr_array

from ..arrays.checks import as_numpy, as_points
from ..errors import ArgumentError
from ..results import Result, plain

if TYPE_CHECKING:
    from .verification import Verification


class Status(StrEnum):
    """Whether a result is certified to the solver's tolerance.

    Examples
    --------
    >>> import wgeo
    >>> wgeo.wasserstein([0.0, 1.0], [2.0, 3.0]).status == "certified"
    True
    """

    CERTIFIED = "certified"
    BOUNDED = "bounded"


@dataclass(frozen=True, eq=False, repr=False)
class TransportResult(Result):
    r"""W2 between two point clouds, an interval that contains it, and the proof of the interval.

    ``upper`` comes from a feasible coupling. ``lower`` comes from feasible dual potentials
    (Kantorovich duality); `Gaussian` and `Sliced` have lower bounds of their own, and return no
    potentials.

    Optimal potentials are a subgradient of W2^2 with respect to the weights (Peyre, Cuturi 2019,
    Section 9.1). If they are unique up to a constant, they are the gradient: for changes da and db
    of the weights, each of which sums to 0,

    .. math:: \mathrm{d} W_2^2 = \sum_i f_i\, \mathrm{d}a_i + \sum_j g_j\, \mathrm{d}b_j.

    Attributes
    ----------
    cost : float
        Mean squared Euclidean displacement under `coupling`, not halved: W2^2 if the coupling is
        optimal, as that of `Exact` is. For `Gaussian`, W2^2 between the Gaussians instead.
    lower, upper : float
        Interval that contains W2, in the units of the features.
    status : Status
        ``certified`` if (upper - lower) / upper is within the solver's tolerance (1e-6 for
        `Gaussian` and `Sliced`), otherwise ``bounded``.
    solver : str
        Name of the solver.
    seconds : float
        Wall-clock time of the solver.
    coupling : ndarray of int, (n,), or scipy sparse array, (n, m), or None
        The permutation i -> coupling[i], or the transport plan if that is not a permutation.
        `plan` is a sparse array in both cases.
    potentials : tuple of ndarray (n,), (m,), or None
        Feasible potentials f, g: f_i + g_j <= ||x_i - y_j||^2 for all i, j.
    divergence : float or None
        The debiased Sinkhorn divergence, if the solver estimates it.
    stats : mapping
        Diagnostics of the solver, such as passes, arcs, epsilon or marginal errors.
    weights : tuple of ndarray (n,), (m,), or None
        Weights of the points, each summing to 1; None if both are uniform.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> x, y = np.array([[0.0], [1.0]]), np.array([[4.0], [2.0]])
    >>> r = wgeo.wasserstein(x, y)
    >>> r.plan.toarray().tolist()
    [[0.0, 0.5], [0.5, 0.0]]
    >>> r.push(y).ravel().tolist()
    [2.0, 4.0]
    >>> points, weights = r.interpolate(x, y, 0.5)
    >>> points.ravel().tolist(), weights.tolist()
    ([1.0, 2.5], [0.5, 0.5])
    >>> r.verify(x, y).valid
    True
    """

    cost: float
    lower: float
    upper: float
    status: Status
    solver: str
    seconds: float
    coupling: Any = field(default=None, repr=False)
    potentials: tuple[np.ndarray, np.ndarray] | None = field(default=None, repr=False)
    divergence: float | None = None
    stats: dict[str, Any] = field(default_factory=dict, repr=False)
    weights: tuple[np.ndarray, np.ndarray] | None = field(default=None, repr=False)

    @property
    def distance(self) -> float:
        """W2, the square root of `cost`."""
        return float(np.sqrt(max(self.cost, 0.0)))

    @property
    def gap(self) -> float:
        """Relative width of the interval, (upper - lower) / upper; 0 if upper is 0."""
        return (self.upper - self.lower) / self.upper if self.upper > 0 else 0.0

    @cached_property
    def plan(self) -> csr_array:
        """The coupling as a sparse array, (n, m), of float64 masses that sum to 1.

        Rows sum to the weights of x, columns to those of y.

        Raises
        ------
        ArgumentError
            The solver returned no coupling, for example because it would have too many entries.
        """
        if self.coupling is None:
            reason = self.stats.get("no_plan", "its solver returned no coupling")
            raise ArgumentError(
                f"This result of {self.solver!r} has no plan: {reason}. wgeo.Exact() always "
                "returns one."
            )
        if not isinstance(self.coupling, np.ndarray):
            plan = csr_array(self.coupling, dtype=np.float64, copy=True)
            plan.eliminate_zeros()
            return plan
        n = len(self.coupling)
        return csr_array((np.full(n, 1 / n), self.coupling, np.arange(n + 1)), shape=(n, n))

    def push(self, y: Any) -> Float[np.ndarray, "n k"]:
        r"""Return the barycentric image of every point of x.

        .. math:: T(x_i) = \frac{1}{a_i} \sum_j P_{ij}\, y_j

        For a permutation these are the rows ``y[coupling]``. If the plan is optimal and moves each
        point as a whole, T is the optimal map.

        Parameters
        ----------
        y : array_like, (m, k)
            The second cloud, or any values at its points, such as one-hot labels.

        Returns
        -------
        ndarray of float64, (n, k)
            NaN for points of weight 0, which have no image.

        Raises
        ------
        ArgumentError
            The plan does not have a column for each row of `y`, or there is no plan.
        FeatureError
            `y` is empty, not numeric, or contains NaN or infinity.

        Examples
        --------
        The labels of the points to which the points of x are moved:

        >>> import wgeo
        >>> r = wgeo.wasserstein([0.0, 1.0], [4.0, 2.0])
        >>> r.push([[1, 0], [0, 1]]).tolist()
        [[0.0, 1.0], [1.0, 0.0]]
        """
        values = self._cloud(y, "y", 1)
        if isinstance(self.coupling, np.ndarray):
            return values[self.coupling]
        mass = self.plan.sum(1)[:, None]
        with np.errstate(invalid="ignore"):
            return np.where(mass > 0, (self.plan @ values) / mass, np.nan)

    def interpolate(
        self, x: Any, y: Any, t: float
    ) -> tuple[Float[np.ndarray, "k d"], Float[np.ndarray, " k"]]:
        r"""Return McCann's displacement interpolation between the clouds at time t.

        .. math:: \mu_t = \sum_{ij} P_{ij}\, \delta_{(1 - t) x_i + t y_j}

        If the plan is optimal, mu_t is the geodesic from x to y: W2(x, mu_t) = t W2(x, y) and
        W2(mu_t, y) = (1 - t) W2(x, y) (McCann 1997).

        Parameters
        ----------
        x, y : array_like, (n, d), (m, d)
            The clouds of this result.
        t : float
            From 0 (x) to 1 (y).

        Returns
        -------
        points : ndarray of float64, (k, d)
            One point for each nonzero entry of `plan`, in the order of its rows; for a permutation
            these are ``(1 - t) * x + t * y[coupling]``.
        weights : ndarray of float64, (k,)

        Raises
        ------
        ArgumentError
            `t` is outside [0, 1], the clouds do not fit each other or the plan, or there is no
            plan.
        FeatureError
            A cloud is empty, not numeric, or contains NaN or infinity.

        Examples
        --------
        >>> import wgeo
        >>> x, y = [0.0, 1.0], [4.0, 2.0]
        >>> points, weights = wgeo.wasserstein(x, y).interpolate(x, y, 0.25)
        >>> part, whole = wgeo.wasserstein(x, points, b=weights), wgeo.wasserstein(x, y)
        >>> round(part.distance / whole.distance, 6)
        0.25
        """
        if not 0 <= t <= 1:
            raise ArgumentError(f"t must be between 0 and 1, not {t!r}.")
        first, last = self._cloud(x, "x", 0), self._cloud(y, "y", 1)
        if first.shape[1] != last.shape[1]:
            raise ArgumentError(f"x has {first.shape[1]} features and y has {last.shape[1]}.")
        plan = self.plan.tocoo()
        i, j = plan.coords
        return (1 - t) * first[i] + t * last[j], plan.data

    def verify(self, x: Any, y: Any) -> Verification:
        """Check the proof of this result against its clouds, without trusting the solver.

        The marginals and the cost of the plan, and the potentials' slack
        ``||x_i - y_j||^2 - f_i - g_j`` for all pairs, are computed again and give an interval.

        Parameters
        ----------
        x, y : array_like, (n, d), (m, d)
            The clouds of this result.

        Returns
        -------
        Verification
            ``valid``, and what fails if it is not.

        Raises
        ------
        ArgumentError
            The numbers of rows are not those of the result.
        FeatureError
            NaN, infinity, an empty cloud, or clouds of different widths.

        Examples
        --------
        >>> import numpy as np
        >>> import wgeo
        >>> x, y = np.array([0.0, 1.0]), np.array([4.0, 2.0])
        >>> r = wgeo.wasserstein(x, y)
        >>> r.verify(x, y).valid
        True
        >>> r.verify(x, y + 1).valid
        False
        """
        from .verification import verify  # imports this module

        return verify(self, x, y)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the result with its coupling and potentials to a NumPy archive, without pickles.

        The folder's ``.wgeo.json`` lists the files that wgeo wrote; only these are ever replaced.

        Parameters
        ----------
        path : path
            For example ``results/layer3.npz``; the folder is created if needed.

        Raises
        ------
        RecordError
            A file of this name exists that wgeo did not write, or the folder cannot be written.

        Examples
        --------
        >>> import wgeo
        >>> wgeo.wasserstein([0.0, 1.0], [4.0, 2.0]).save("results/pair.npz")
        >>> wgeo.TransportResult.load("results/pair.npz").coupling.tolist()
        [1, 0]
        """
        from .saving import save  # imports this module

        save(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TransportResult:
        """Read a result that `save` wrote.

        Arrays are checked for consistency; `verify` checks that they prove the distance.

        Parameters
        ----------
        path : path
            A file that `save` wrote.

        Raises
        ------
        RecordError
            The file is missing, damaged, or was not written by `save`.

        Examples
        --------
        >>> import wgeo
        >>> x, y = [0.0, 1.0], [4.0, 2.0]
        >>> wgeo.wasserstein(x, y).save("pair.npz")
        >>> wgeo.TransportResult.load("pair.npz").verify(x, y).valid
        True
        """
        from .saving import load

        return load(path)

    def _cloud(self, values: Any, name: str, axis: int) -> Float[np.ndarray, "n d"]:
        """Return a cloud as float64; its number of rows must be the plan's size along `axis`."""
        array = as_numpy(as_points(values, name=name)).astype(np.float64)
        if len(array) != self.plan.shape[axis]:
            n, m = self.plan.shape
            raise ArgumentError(
                f"{name} has {len(array)} rows, but the clouds of this result have {n} and {m}."
            )
        return array

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values, ready for JSON, without coupling, potentials and weights."""
        return {"distance": self.distance, **super().to_dict(), "stats": plain(self.stats)}

    def _record(self) -> dict[str, Any]:
        return {"blocks": [{"source": "x", "target": "x → y", "stage": 0, **self.to_dict()}]}

    def _table(self) -> list[dict[str, Any]]:
        values = self.to_dict()
        del values["stats"]
        return [values]

    def _description(self) -> str:
        debiased = self.divergence
        divergence = "" if debiased is None else f"; Sinkhorn divergence {debiased:.4g}"
        return (
            f"W2 = {self.distance:.6g} in [{self.lower:.6g}, {self.upper:.6g}], {self.status}, by "
            f"{self.solver} in {self.seconds:.2g} s{divergence}"
        )
