"""The collapse metrics of one layer, from the geometry of its class means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.spatial.distance import pdist

from ..arrays.checks import as_float
from ..errors import ArgumentError, FeatureError
from ..results import Result
from .moments import ClassGeometry, Spectrum
from .small_samples import LeaveOneOut, SmallSampleEstimates

RANK_TOLERANCE = 1e-7
"""Directions of the class means whose singular value is below this fraction of the largest are
ignored. Its square, 1e-14, is about the cutoff of a d x d pseudo-inverse in float64. Directions
that rounding in the features' dtype can cause are also ignored; see `ClassGeometry.rounding`."""

_ZERO_NORM = 1e-12
_SECOND_PASS = "needs a second pass over the data, with the final class means"
_COMPARISONS = (
    *("nc1", "nc1_quotient", "class_variability", "cdnv", "ncc_accuracy"),
    *("nc2_equinorm", "nc2_etf", "nc2_equiangle", "mean_angle", "max_coherence"),
)
"""Metrics that compare samples or class means with each other."""

_CORRECTED = ("nc1_corrected", "cdnv_corrected", "ncc_accuracy_corrected")
_NOT_IN_TABLE = ("intervals", "undefined", "class_variability")
_OPTIONAL = ("nc3", "nc3_papyan", "nc5", "ncc_mismatch", *_CORRECTED)


def check_rank_tolerance(value: Any) -> float:
    """Return `value` as a float; raise `ArgumentError` if it is not a number in [0, 1)."""
    if not 0 <= as_float(value, "rank_tolerance") < 1:
        raise ArgumentError(f"rank_tolerance must be at least 0 and below 1, not {value!r}.")
    return float(value)


@dataclass(frozen=True)
class Frame:
    """Distance of K vectors v_k from a simplex equiangular tight frame (NC2).

    All values are None if every vector is 0. If only some are 0, equiangle, mean_angle and
    max_coherence are None. V has the rows v_k, and J is the matrix of ones.

    Attributes
    ----------
    equinorm : float or None
        std_k ||v_k|| / mean_k ||v_k||, in [0, sqrt(K - 1)] (Papyan, Han and Donoho 2020), where
        std_k divides by K, not by K - 1.
    equiangle : float or None
        ``mean_{k != l} |cos(v_k, v_l) + 1/(K - 1)|``, in [0, 1 + 1/(K - 1)] (same source).
    etf : float or None
        || V V^T / ||V V^T||_F - (I - J/K) / sqrt(K - 1) ||_F, in [0, sqrt(2)], since both matrices
        are positive semidefinite (Zhu et al. 2021).
    mean_angle : float or None
        Mean angle between pairs of vectors, in degrees; arccos(-1/(K - 1)) for a simplex ETF.
    max_coherence : float or None
        ``max_{k != l} |cos(v_k, v_l)|``, in [0, 1]. For vectors that sum to 0, such as centered
        means, it is at least 1/(K - 1), and only a simplex ETF attains this (Welch bound).
    """

    equinorm: float | None
    equiangle: float | None
    etf: float | None
    mean_angle: float | None
    max_coherence: float | None

    @classmethod
    def of(cls, vectors: Float[np.ndarray, "K d"]) -> Frame:
        """Measure K >= 2 vectors, given as rows."""
        vectors = rescaled(vectors)
        norms = np.linalg.norm(vectors, axis=1)
        if not norms.any():
            return cls(None, None, None, None, None)
        K = len(vectors)
        equinorm = float(norms.std() / norms.mean())
        etf = distance_to_etf(vectors @ vectors.T)
        cosines = _cosines(vectors)
        if cosines is None:
            return cls(equinorm, None, etf, None, None)
        return cls(
            equinorm,
            float(np.abs(cosines + 1 / (K - 1)).mean()),
            etf,
            float(np.degrees(np.arccos(cosines.clip(-1, 1))).mean()),
            float(np.abs(cosines).max().clip(max=1)),
        )


def rescaled(x: np.ndarray) -> np.ndarray:
    """Scale the largest entry to 1, so that fourth powers of entries do not overflow."""
    largest = np.abs(x).max(initial=0.0)
    return x / largest if largest > 0 else x


def _cosines(vectors: Float[np.ndarray, "K d"]) -> Float[np.ndarray, " pairs"] | None:
    """Return cos(v_k, v_l) for all k != l; None if a vector is 0."""
    norms = np.linalg.norm(vectors, axis=1)
    if norms.min() <= _ZERO_NORM * norms.max():
        return None
    units = vectors / norms[:, None]
    return (units @ units.T)[~np.eye(len(units), dtype=bool)]


def distance_to_etf(gram: Float[np.ndarray, "K K"]) -> float | None:
    """Return || G/||G||_F - (I - J/K)/sqrt(K - 1) ||_F; None if G = 0."""
    norm = np.linalg.norm(gram)
    if norm == 0:
        return None
    K = len(gram)
    return float(np.linalg.norm(gram / norm - (np.eye(K) - 1 / K) / np.sqrt(K - 1)))


@dataclass(frozen=True, repr=False)
class LayerCollapse(Result):
    """How far the classes have collapsed at one layer.

    Notation: h_i are the N samples of the K classes that occur. Class k has N_k samples, their mean
    is m_k, and var_k is the mean of their ||h - m_k||^2. With uniform weights (the default), the
    global mean is g = (1/K) sum m_k, and the between-class covariance is
    Sigma_B = (1/K) sum (m_k - g)(m_k - g)^T. With frequency weights, N_k/N replaces 1/K in both;
    with ``sample_mean``, only in g. The within-class covariance is always
    Sigma_W = (1/N) sum (h_i - m_{y_i})(h_i - m_{y_i})^T. J is the matrix of ones.

    The metrics whose names begin with nc1, nc2, nc3 or cdnv are 0 at complete collapse. Undefined
    metrics are None; `undefined` gives the reasons, except for nc3, nc5, ncc_mismatch and the
    corrected estimates.

    Attributes
    ----------
    name, stage, width
        Of the layer.
    nc1 : float or None
        tr(Sigma_W pinv(Sigma_B)) / K, in [0, inf) (Papyan, Han and Donoho 2020), over the `rank`
        directions of Sigma_B.
    nc1_quotient : float or None
        tr Sigma_W / tr Sigma_B, in [0, inf).
    class_variability : tuple of float, (K,), or None
        var_k / tr Sigma_B, in [0, inf), one per class in ascending order of the labels; their mean,
        weighted by the classes' numbers of samples, is nc1_quotient.
    nc2_equinorm, nc2_equiangle, nc2_etf, mean_angle, max_coherence : float or None
        See `Frame`, for the vectors m_k - g.
    nc3 : float or None
        || W M^T / ||W M^T||_F - (I - J/K)/sqrt(K - 1) ||_F, in [0, 2] (Zhu et al. 2021), where W
        contains the classifier's rows for the classes that occur, and M = [m_k - g]. Only for the
        last layer.
    nc3_papyan : float or None
        || W/||W||_F - M/||M||_F ||_F, in [0, 2] (Papyan, Han and Donoho 2020).
    nc5 : float or None
        ``mean_k |cos(m_k, m_ood)|``, in [0, 1], where neither the class means nor the mean m_ood of
        out-of-distribution samples are centered (Ammar et al. 2024, NC5).
    ncc_accuracy : float or None
        Fraction of samples whose nearest class mean is that of their own class, in [0, 1].
    ncc_mismatch : float or None
        Fraction of samples for which the network's prediction and the nearest class mean differ
        (NC4), in [0, 1].
    cdnv : float or None
        mean_{k != l} (var_k + var_l) / (2 ||m_k - m_l||^2), in [0, inf), with var_k = 0 for a class
        of one sample (Galanti, Gyorgy and Hutter 2021).
    effective_rank, stable_rank, participation_ratio : float or None
        Ranks of the features centered by g; see `Spectrum.ranks`.
    within, between : float
        tr Sigma_W and tr Sigma_B, in squared units of the features.
    rank : int
        Rank of Sigma_B, without directions below the rank tolerance or the rounding of the
        features' dtype.
    spectrum_rows : int or None
        Number of samples from which the ranks were computed; None if these are all samples.
    discrimination : float or None
        ``1 - max_{k != l} cos(m_k, m_l)``, in [0, 2], of class means that are not centered (Wang et
        al. 2025). It is not a measure of collapse: nonnegative means, as after a ReLU, make it at
        most 1, and usually near 0 in the first layers.
    classes : int
        Number of classes that occur, K.
    samples_per_class : int
        Number of samples of the smallest class that occurs. If every class has one sample, nc1,
        nc2, cdnv and ncc_accuracy are undefined.
    nc1_corrected, cdnv_corrected, ncc_accuracy_corrected : float or None
        Estimates of the population's values, if a class has fewer than ``thresholds.FEW_SAMPLES``
        samples: the values above are then biased (``small_samples``). For the last one, a sample is
        left out of its own class mean before it is classified.
    intervals : mapping of str to (low, high)
        95 % intervals over samples drawn within classes; see `collapse`.
    undefined : mapping
        Reasons why metrics are None.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> features = np.array([[-1.0], [-3.0], [1.0], [3.0]])
    >>> layer = wgeo.neural_collapse.collapse_of(features, [0, 0, 1, 1])
    >>> [round(value, 6) for value in (layer.within, layer.between, layer.nc1, layer.cdnv)]
    [1.0, 4.0, 0.125, 0.0625]
    """

    name: str
    stage: int | None
    width: int
    nc1: float | None
    nc1_quotient: float | None
    nc2_equinorm: float | None
    nc2_equiangle: float | None
    nc2_etf: float | None
    nc3: float | None
    nc3_papyan: float | None
    nc5: float | None
    ncc_accuracy: float | None
    ncc_mismatch: float | None
    cdnv: float | None
    effective_rank: float | None
    stable_rank: float | None
    participation_ratio: float | None
    within: float
    between: float
    mean_angle: float | None
    max_coherence: float | None
    rank: int
    spectrum_rows: int | None
    samples_per_class: int = 0
    nc1_corrected: float | None = None
    cdnv_corrected: float | None = None
    ncc_accuracy_corrected: float | None = None
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    undefined: Mapping[str, str] = field(default_factory=dict)
    discrimination: float | None = None
    classes: int = 0
    class_variability: tuple[float, ...] | None = None

    @property
    def ncc_error(self) -> float | None:
        """1 - ncc_accuracy."""
        return None if self.ncc_accuracy is None else 1 - self.ncc_accuracy

    def to_dict(self) -> dict[str, Any]:
        """Return the record's entry for a layer, without metrics that do not apply (nc3, ...)."""
        values = super().to_dict()
        layer = {key: values.pop(key) for key in ("name", "stage", "width")}
        kept = {k: v for k, v in values.items() if v is not None or k not in _OPTIONAL}
        return {**layer, "collapse": kept}

    def _table(self) -> list[dict[str, Any]]:
        values = super().to_dict()
        return [{key: value for key, value in values.items() if key not in _NOT_IN_TABLE}]


@dataclass(frozen=True, eq=False)
class ProjectionSums:
    """The sums of pass two over all samples of a layer."""

    correct: int  # samples whose nearest class mean is that of their own class
    # Number of samples whose predicted class is not that of the nearest mean; None unless all
    # predictions are known.
    mismatches: int | None
    within_along: Float[np.ndarray, " r"]  # V_j^T Sigma_W V_j, with V_j spanning the means
    leave_one_out: LeaveOneOut | None = None  # only if a class has few samples


def layer_collapse(
    geometry: ClassGeometry,
    projection: ProjectionSums | None,
    *,
    stage: int | None,
    rank_tolerance: float,
    classifier: Float[np.ndarray, "C d"] | None = None,
    ood_mean: Float[np.ndarray, " d"] | None = None,
) -> LayerCollapse:
    """Compute all metrics of a layer from the results of pass one and, if given, of pass two.

    The classifier has a row for every class, including classes without samples. `FeatureError` is
    raised if the classifier does not have as many columns as the layer has features.
    """
    if classifier is not None and classifier.shape[1] != geometry.width:
        raise FeatureError(
            f"The classifier reads {classifier.shape[1]} features, but layer {geometry.name!r} has "
            f"{geometry.width}. Use the features of the layer before the classifier."
        )
    threshold = max(rank_tolerance * geometry.sigma.max(initial=0), geometry.rounding)
    sigma = geometry.sigma[geometry.sigma > threshold]
    reasons: dict[str, str] = {}
    values: dict[str, Any] = dict.fromkeys((*_COMPARISONS, "ncc_mismatch", "nc3", "nc3_papyan"))
    coincide = geometry.means_coincide
    if coincide or geometry.counts.max() == 1:
        reason = "the class means coincide" if coincide else "every class has a single sample"
        reasons |= dict.fromkeys(_COMPARISONS, reason)
    else:
        values |= _variability(geometry, projection, sigma, reasons)
        values |= _nearest_center_metrics(geometry, projection, reasons)
        values |= _nc2(geometry, reasons)
    if classifier is not None and not coincide:
        values |= _self_duality(geometry, classifier)
    means = rescaled(geometry.center + geometry.coordinates @ geometry.basis)  # not centered
    spectrum = geometry.spectrum
    return LayerCollapse(
        name=geometry.name,
        stage=stage,
        width=geometry.width,
        within=geometry.within,
        between=geometry.between,
        rank=0 if coincide else len(sigma),
        **values,
        nc5=None if ood_mean is None else _nc5(means, ood_mean),
        **_ranks(spectrum, reasons),
        spectrum_rows=None if spectrum is None or spectrum.exact else spectrum.rows,
        samples_per_class=int(geometry.counts.min()),
        discrimination=_discrimination(means, reasons),
        classes=len(geometry.classes),
        undefined=reasons,  # last, since the functions above add to it
    )


def _variability(
    geometry: ClassGeometry,
    projection: ProjectionSums | None,
    sigma: Float[np.ndarray, " r"],
    reasons: dict[str, str],
) -> dict[str, Any]:
    """Return nc1 in all forms, cdnv and, if a class has few samples, the corrected estimates."""
    squares = pdist(geometry.coordinates, "sqeuclidean")  # ||m_k - m_l||^2 for k < l
    cdnv = _cdnv(geometry, squares)
    if cdnv is None:
        reasons["cdnv"] = "two class means coincide"
    within_along = geometry.within_along
    if within_along is None and projection is not None:
        within_along = projection.within_along
    nc1 = None
    if within_along is None:
        reasons["nc1"] = _SECOND_PASS
    else:
        nc1 = float((within_along[: len(sigma)] / sigma**2).sum() / len(geometry.classes))
    values = {
        "nc1": nc1,
        "nc1_quotient": geometry.within / geometry.between,
        "class_variability": tuple((geometry.variances / geometry.between).tolist()),
        "cdnv": cdnv,
    }
    if projection is None or projection.leave_one_out is None:
        return values
    r, sums = len(sigma), projection.leave_one_out
    estimates = SmallSampleEstimates(
        geometry.counts,
        geometry.variances,
        geometry.weights,
        sigma,
        geometry.coordinates[:, :r],
        sums.within[:r, :r],
        geometry.width,
        sums.within_square,
    )
    corrected = (estimates.nc1(), estimates.cdnv(squares), sums.accuracy)
    return values | dict(zip(_CORRECTED, corrected, strict=True))


def _cdnv(geometry: ClassGeometry, squares: Float[np.ndarray, " pairs"]) -> float | None:
    variances, norms = geometry.variances, np.linalg.norm(geometry.coordinates, axis=1)
    if squares.min() <= (_ZERO_NORM * norms.max()) ** 2:
        return None
    first, second = np.triu_indices(len(variances), 1)  # the summand is symmetric
    return float(((variances[first] + variances[second]) / (2 * squares)).mean())


def _nearest_center_metrics(
    geometry: ClassGeometry, projection: ProjectionSums | None, reasons: dict[str, str]
) -> dict[str, float | None]:
    if projection is None:
        reasons["ncc_accuracy"] = _SECOND_PASS
        return {}
    n, mismatches = int(geometry.counts.sum()), projection.mismatches
    return {
        "ncc_accuracy": projection.correct / n,
        "ncc_mismatch": None if mismatches is None else mismatches / n,
    }


def _nc2(geometry: ClassGeometry, reasons: dict[str, str]) -> dict[str, float | None]:
    frame = Frame.of(geometry.coordinates)
    if frame.mean_angle is None:
        angles = ("nc2_equiangle", "mean_angle", "max_coherence")
        reasons |= dict.fromkeys(angles, "a class mean is the global mean")
    return {
        "nc2_equinorm": frame.equinorm,
        "nc2_equiangle": frame.equiangle,
        "nc2_etf": frame.etf,
        "mean_angle": frame.mean_angle,
        "max_coherence": frame.max_coherence,
    }


def _ranks(spectrum: Spectrum | None, reasons: dict[str, str]) -> dict[str, Any]:
    if spectrum is not None and not spectrum.vanishes:
        return spectrum.ranks()
    reason = "not computed (spectrum_size=0)" if spectrum is None else "the features are constant"
    names = ("effective_rank", "stable_rank", "participation_ratio")
    reasons |= dict.fromkeys(names, reason)
    return dict.fromkeys(names)


def _self_duality(
    geometry: ClassGeometry, classifier: Float[np.ndarray, "C d"]
) -> dict[str, float | None]:
    W = rescaled(classifier[geometry.classes])
    means = rescaled(geometry.coordinates @ geometry.basis)
    norm = np.linalg.norm(W)
    if norm == 0:
        return {}
    papyan = float(np.linalg.norm(W / norm - means / np.linalg.norm(means)))
    return {"nc3": distance_to_etf(W @ means.T), "nc3_papyan": papyan}


def _nc5(means: Float[np.ndarray, "K d"], ood_mean: Float[np.ndarray, " d"]) -> float | None:
    ood_mean = rescaled(ood_mean)
    norms = np.linalg.norm(means, axis=1) * np.linalg.norm(ood_mean)
    if not norms.all():
        return None
    return float(np.abs(means @ ood_mean / norms).mean())


def _discrimination(means: Float[np.ndarray, "K d"], reasons: dict[str, str]) -> float | None:
    cosines = _cosines(means)
    if cosines is None:
        reasons["discrimination"] = "a class mean is zero"
        return None
    return float(1 - cosines.max().clip(-1, 1))
