"""The solution of a multilayer unconstrained feature model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ...arrays.checks import as_labels
from ...arrays.rows import (
    LazyRows,
    Sliceable,
    as_float64,
    check_features,
    class_means,
    materialize,
    max_width,
    sum_over_rows,
)
from ...errors import ArgumentError
from ...neural_collapse import LayerCollapse, collapse_of
from ...results import Result, plain
from ...runtime.processes import local_only
from ..arguments import check_layer
from ..solution import Certificate
from .newton import Matrix


@dataclass(frozen=True, eq=False, repr=False)
class MUFMSolution(Result):
    """A minimizer of the MUFM objective (`fit_mufm`).

    Attributes
    ----------
    W : ndarray, (K, d)
    b : ndarray, (K,)
    X, H : ndarray, (N, d)
        First and last layer; rows are samples (the transposes of the paper's X and H_L). `layer`
        returns any layer. If the input is a memory map, X and H are memory maps of temporary files.
    labels : ndarray of int, (N,)
    layers : int
        L, the number of layers after the input.
    objective : float
        F at the solution.
    terms : dict
        F split into ``fit``, ``weight_decay``, ``transport``, ``feature_decay``, ``bias_decay``.
    certificate : Certificate
    values : tuple of float
        Final objective of each start of the search that found the solution, ascending. With
        ``coupling="free"`` there is a search for every coupling tried, and only the first one has
        random starts.
    settings : dict
        ``mu`` (transport / layers), and the settings of `fit_mufm` other than ``layers`` and
        ``tolerance``.
    effort : dict
        Newton ``steps`` and Hessian ``products`` of all starts of the search that found the
        solution, and the ``decrement`` at the solution. Times in seconds: ``statistics``, until the
        first search begins; ``search``, for the search that found the solution; ``certificate``;
        and ``seconds``, for the whole fit.
    assignment : ndarray of int, (N,), or None
        With ``coupling="free"``: the index in ``x`` of the input at which each path starts.

    Examples
    --------
    Samples move on straight lines:

    >>> import numpy as np
    >>> from wgeo import ufm
    >>> labels = np.arange(30) % 2
    >>> x = np.eye(2, 3)[labels] + 0.1 * np.random.default_rng(0).normal(size=(30, 3))
    >>> solution = ufm.fit_mufm(x, labels, layers=2, weight_decay=1e-3, transport=0.1)
    >>> np.allclose(solution.layer(1), (solution.layer(0) + solution.layer(2)) / 2)
    True
    """

    W: Matrix
    b: Float[np.ndarray, " K"]
    X: Float[np.ndarray, "N d"]
    H: Float[np.ndarray, "N d"]
    labels: Int[np.ndarray, " N"]
    layers: int
    objective: float
    terms: dict[str, float]
    certificate: Certificate
    values: tuple[float, ...]
    settings: dict[str, Any]
    effort: dict[str, Any]
    assignment: Int[np.ndarray, " N"] | None = field(default=None, repr=False)

    def layer(self, index: int) -> Float[np.ndarray, "N d"]:
        """Return the features of layer 0, ..., L; rows are samples."""
        check_layer(index, self.layers)
        t = index / self.layers
        path = LazyRows(self.X.shape, lambda rows: (1 - t) * self.X[rows] + t * self.H[rows])
        with local_only():
            return materialize([self.X, self.H], path)

    def apply(self, x: Any, labels: Any) -> Float[np.ndarray, "n d"]:
        """Return H_L of other labeled samples for the fitted W and b; rows are samples.

        H_L = X' + W^T (W W^T + mu' I)^-1 (Y - W X' - b 1^T) with X' = mu X / mu', mu' = mu + lh
        and the feature decay lh. In this formula samples are columns.

        Raises
        ------
        ArgumentError
            The loss is cross-entropy, or x or the labels do not fit the model.

        Examples
        --------
        >>> import numpy as np
        >>> from wgeo import ufm
        >>> labels = np.arange(30) % 2
        >>> x = np.eye(2, 3)[labels] + 0.1 * np.random.default_rng(0).normal(size=(30, 3))
        >>> solution = ufm.fit_mufm(x, labels, layers=2, weight_decay=1e-3, transport=0.1)
        >>> np.allclose(solution.apply(x[:5], labels[:5]), solution.layer(2)[:5])
        True
        """
        if self.settings["loss"] != "mse":
            raise ArgumentError("apply is for the squared loss; fit with `loss='mse'`.")
        points, classes = check_features(x, "x"), len(self.W)
        y = as_labels(labels, len(points))
        if points.shape[1] != self.W.shape[1] or y.max() >= classes:
            raise ArgumentError(
                f"The model has {self.W.shape[1]} features and classes 0 to {classes - 1}; x has "
                f"{points.shape[1]} features and labels go up to {y.max()}."
            )
        mu, strength = self.settings["mu"], self.settings["mu"] + self.settings["feature_decay"]
        scaled = LazyRows(points.shape, lambda rows: as_float64(points[rows]) * (mu / strength))
        with local_only():
            return materialize([points], last_layer(scaled, y, self.W, self.b, strength))

    @property
    def seconds(self) -> float:
        """Wall time of the fit."""
        return float(self.effort["seconds"])

    @property
    def contraction(self) -> Float[np.ndarray, " k"] | None:
        """Factors by which within-class deviations shrink along W's right singular vectors, (k,).

        The factors are mu / (sigma_i^2 + mu + lh) for the k = min(K, d) singular values sigma_i of
        W and the feature decay lh; variances shrink by their squares. In the null space of W, the
        factor is mu / (mu + lh): 1 without feature decay. None with cross-entropy, for which
        deviations of different samples shrink differently.
        """
        if self.settings["loss"] != "mse":
            return None
        mu, decay = self.settings["mu"], self.settings["feature_decay"]
        return mu / (np.linalg.svd(self.W, compute_uv=False) ** 2 + mu + decay)

    def collapse(self, index: int | None = None) -> LayerCollapse:
        """Return the collapse metrics of a layer, the last by default."""
        index = self.layers if index is None else index
        return collapse_of(self.layer(index), self.labels, name=f"layer{index}")

    def curve(self) -> list[LayerCollapse]:
        """Return the collapse metrics of every layer, first to last.

        Examples
        --------
        >>> import numpy as np
        >>> from wgeo import ufm
        >>> labels = np.arange(30) % 2
        >>> x = np.eye(2, 3)[labels] + 0.1 * np.random.default_rng(0).normal(size=(30, 3))
        >>> solution = ufm.fit_mufm(x, labels, layers=2, weight_decay=1e-3, transport=0.1)
        >>> values = [layer.nc1_quotient for layer in solution.curve()]
        >>> values == sorted(values, reverse=True)
        True
        """
        return [self.collapse(index) for index in range(self.layers + 1)]

    @property
    def monotone(self) -> bool:
        """Whether tr Sigma_W / tr Sigma_B never increases from X to H_L, except for rounding.

        On the path (1 - t) X + t H,

            tr Sigma_W = w0 - 2 t w1 + t^2 w2,    tr Sigma_B = b0 + 2 t b1 + t^2 b2,

        and the derivative of their ratio has the sign of
        q(t) = -(w1 b0 + w0 b1) + t (w2 b0 - w0 b2) + t^2 (w2 b1 + w1 b2).
        """
        with local_only():  # a record may be written by one process
            q = _ratio_slope(self.X, self.H, self.labels)
        times = [0.0, 1.0]
        if q[2] < 0:
            times.append(float(np.clip(-q[1] / (2 * q[2]), 0, 1)))
        scale = float(np.abs(q).sum())
        return all(q[0] + q[1] * t + q[2] * t * t <= 1e-12 * scale for t in times)

    def to_dict(self) -> dict[str, Any]:
        """Return everything except the arrays, ready for JSON."""
        return {
            "model": "mufm",
            "layers": self.layers,
            "objective": self.objective,
            "terms": self.terms,
            "certificate": self.certificate.to_dict(),
            "spread": [min(self.values), max(self.values)],
            "contraction": plain(self.contraction),
            "monotone": self.monotone,
            "settings": self.settings,
            "effort": self.effort,
            "seconds": self.seconds,
        }

    def _description(self) -> str:
        return (
            f"{self.layers} layers, {len(self.labels)} samples: objective {self.objective:.6g}, "
            f"{self.certificate.verdict}, gradient norm {self.certificate.gradient_norm:.2g}"
        )


def last_layer(
    x: LazyRows,
    labels: Int[np.ndarray, " n"],
    w: Float[np.ndarray, "K d"],
    b: Float[np.ndarray, " K"],
    mu: float,
) -> LazyRows:
    """Return H_L = X + W^T (W W^T + mu I)^-1 (Y - W X - b 1^T); in this formula, X^T is `x`."""
    eye = np.eye(len(w))
    pull = np.linalg.solve(w @ w.T + mu * eye, w)

    def ends(rows: Any) -> Float[np.ndarray, "b d"]:
        start = x[rows]
        return start + (eye[labels[rows]] - b - start @ w.T) @ pull

    return LazyRows(x.shape, ends, max(len(w), max_width(x)))


def _ratio_slope(
    first: Sliceable, last: Sliceable, labels: Int[np.ndarray, " n"]
) -> tuple[float, float, float]:
    """Return the coefficients of q(t) in `MUFMSolution.monotone`."""
    first_means, last_means = (class_means(each, labels) for each in (first, last))

    def within(rows: slice, start: Matrix, end: Matrix) -> list[float]:
        d0 = start - first_means[labels[rows]]
        change = d0 - (end - last_means[labels[rows]])
        return [float(np.vdot(*pair)) for pair in ((d0, d0), (d0, change), (change, change))]

    w0, w1, w2 = (w / len(labels) for w in sum_over_rows(within, first, last))
    k = len(first_means)
    m0, m1 = (means - means.mean(0) for means in (first_means, last_means))
    b0, b1, b2 = np.sum(m0**2) / k, np.sum(m0 * (m1 - m0)) / k, np.sum((m1 - m0) ** 2) / k
    return (
        float(-(w1 * b0 + w0 * b1)),
        float(w2 * b0 - w0 * b2),
        float(w2 * b1 + w1 * b2),
    )
