"""The result of a comparison, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ..arrays.rows import LazyRows, Sliceable, as_float64, materialize, max_width, mean_of
from ..neural_collapse import LayerCollapse
from ..results import Result
from ..runtime.processes import local_only
from ..ufm.mufm.solution import MUFMSolution, last_layer


@dataclass(frozen=True, repr=False)
class ModelLayer(Result):
    """A model's prediction of one layer, compared with the network's features.

    Errors are sums of squared distances over samples. The baseline is the segment's first layer,
    fitted to the layer with the same degrees of freedom as the model; see `compare`.

    Attributes
    ----------
    name, stage
        The layer of the network.
    time : float
        Time of the layer on the model's path from first to last layer, in [0, 1].
    gain : float in [0, inf)
        The factor by which the model's features are multiplied to fit the layer.
    relative_error : float in [0, inf), or None
        sqrt(error of the model / error of the baseline): 0 for a perfect prediction, 1 for one as
        good as the baseline. None if the baseline has no error.
    r2 : float in (-inf, 1], or None
        1 - relative_error^2.
    r2_means : float in (-inf, 1], or None
        The same as `r2`, with errors of the class means only, weighted by samples.
    r2_line : float in (-inf, 1], or None
        Gain over the straight line: 1 - error of the model / error of the geodesic model. None for
        the geodesic model itself, and if its error is zero, as for the first and last layer.
    missed : float in [0, inf), or None
        Unexplained variance: error of the model / variance of the layer. None if the variance is 0.
    w2 : float in [0, inf), or None
        W2 between the model's and the network's features of about 300 samples, divided by the
        layer's root mean squared distance from its mean. It is 0 if the distributions agree,
        whatever the pairing of samples, and about 1 if the prediction is a single point. None if
        the variance is 0.
    collapse : LayerCollapse
        Collapse metrics of the predicted features.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> labels, noise = np.arange(60) % 3, np.random.default_rng(0).normal(size=(60, 4))
    >>> layers = [np.eye(3, 4)[labels] + scale * noise for scale in (0.3, 0.2, 0.1)]
    >>> result = wgeo.compare(wgeo.Trajectory.from_arrays(layers, labels), mufm=False)
    >>> layer = result.geodesic[1]
    >>> round(layer.missed, 6), round(layer.w2, 6), layer.collapse.ncc_accuracy
    (0.0, 0.0, 1.0)
    """

    name: str
    stage: int
    time: float
    gain: float
    relative_error: float | None
    r2: float | None
    r2_means: float | None
    r2_line: float | None
    missed: float | None
    w2: float | None
    collapse: LayerCollapse

    def to_dict(self) -> dict[str, Any]:
        """Return the plain values, ready for JSON; ``collapse`` without the layer's name."""
        return {**super().to_dict(), "collapse": self.collapse.to_dict()["collapse"]}


@dataclass(frozen=True, repr=False)
class HeldOut(Result):
    """Scores of a model on held-out samples, all layers together.

    Attributes
    ----------
    r2, r2_means : float or None
        As in `ModelLayer`, from sums of errors over all layers after the first, each divided
        by the layer's variance. None if a class has only one sample, the model was not fitted, or
        the baseline has no error.
    """

    r2: float | None = None
    r2_means: float | None = None


@dataclass(frozen=True, eq=False)
class ClassifierModel:
    """MUFM with the network's own classifier."""

    w: Float[np.ndarray, "K d"]  # the classifier minus the mean of its rows, scaled
    mu: float  # transport strength of the whole path

    def features(
        self, x: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]
    ) -> Float[np.ndarray, "n d"]:
        """Return H = X + (Y - X W^T - 1 b^T) (W W^T + mu I)^-1 W for centered X and the best b."""
        with local_only():
            return materialize([x], self.last_layer(x, labels))

    def last_layer(self, x: Sliceable, labels: Int[np.ndarray, " n"]) -> LazyRows:
        """Return the H of `features`, whose rows are computed when they are read."""
        mean = mean_of(x)
        centered = LazyRows(x.shape, lambda rows: as_float64(x[rows]) - mean, max_width(x))
        frequencies = np.bincount(labels, minlength=len(self.w)) / len(labels)
        return last_layer(centered, labels, self.w, frequencies, self.mu)


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Result):
    """A trained network compared with the geodesic model, MUFM and the plain UFM.

    ``to_pandas()`` has the rows of `rows`.

    Attributes
    ----------
    network : tuple of LayerCollapse
        Collapse metrics measured at every layer of every segment.
    geodesic : tuple of ModelLayer
        The geodesic model of every segment: the straight line from its first to its last layer.
    mufm : tuple of ModelLayer
        MUFM of the last segment; empty without a `solution`.
    given : tuple of ModelLayer
        MUFM of the last segment with the network's own classifier; empty if MUFM was not fitted or
        the classifier does not read the segment's last layer.
    ufm : tuple of ModelLayer
        The plain UFM of the last layer: complete collapse onto a simplex ETF, rotated and scaled to
        fit. Empty if the layer has fewer than K - 1 features.
    solution : MUFMSolution or None
        The model of `mufm`.
    reading : ClassifierModel or None
        The model of `given`.
    held_out, held_out_given : HeldOut
        Scores of `mufm` and `given` on held-out samples.
    skipped : str
        Why MUFM was not fitted; empty if it was.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> labels, noise = np.arange(60) % 3, np.random.default_rng(0).normal(size=(60, 4))
    >>> layers = [np.eye(3, 4)[labels] + scale * noise for scale in (0.3, 0.2, 0.1)]
    >>> result = wgeo.compare(wgeo.Trajectory.from_arrays(layers, labels), mufm=False)
    >>> [layer.name for layer in result.ufm], result.mufm, result.skipped
    (['layer2'], (), 'MUFM was left out, as requested (`mufm=False`).')
    """

    network: tuple[LayerCollapse, ...] = ()
    geodesic: tuple[ModelLayer, ...] = ()
    mufm: tuple[ModelLayer, ...] = ()
    given: tuple[ModelLayer, ...] = ()
    ufm: tuple[ModelLayer, ...] = ()
    solution: MUFMSolution | None = None
    reading: ClassifierModel | None = None
    held_out: HeldOut = HeldOut()
    held_out_given: HeldOut = HeldOut()
    skipped: str = ""

    def _record(self) -> dict[str, Any]:
        return self.record

    def to_dict(self) -> dict[str, Any]:
        """Return the record's ``geodesic_model``, ``mufm``, ``mufm_given`` and ``ufm``."""

        def of(layers: tuple[ModelLayer, ...]) -> dict[str, Any]:
            return {"layers": [layer.to_dict() for layer in layers]}

        def scores(held_out: HeldOut) -> dict[str, Any]:
            return {"held_out_r2": held_out.r2, "held_out_r2_means": held_out.r2_means}

        model, given = of(self.mufm), of(self.given)
        if self.solution is None:
            model["skipped"] = self.skipped
        else:
            model |= scores(self.held_out) | {"solution": self.solution.to_dict()}
        if self.reading is not None:
            norm = float(np.linalg.norm(self.reading.w, 2))
            given |= scores(self.held_out_given) | {"mu": self.reading.mu, "readout_norm": norm}
        return {
            "geodesic_model": of(self.geodesic),
            "mufm": model,
            "mufm_given": given,
            "ufm": of(self.ufm),
        }

    @property
    def record(self) -> dict[str, Any]:
        """A record for plots: the collapse metrics of the network, and the entries of `to_dict`."""
        return {"layers": [layer.to_dict() for layer in self.network], **self.to_dict()}

    def rows(self) -> list[dict[str, Any]]:
        """Return errors and metrics: one row per layer of the network and of each model.

        Examples
        --------
        >>> import numpy as np
        >>> import wgeo
        >>> labels, noise = np.arange(60) % 3, np.random.default_rng(0).normal(size=(60, 4))
        >>> layers = [np.eye(3, 4)[labels] + scale * noise for scale in (0.3, 0.2, 0.1)]
        >>> result = wgeo.compare(wgeo.Trajectory.from_arrays(layers, labels), mufm=False)
        >>> for row in result.rows():
        ...     print(f"{row['layer']}, {row['model']}: nc1 = {row['nc1']:.4f}")
        layer0, network: nc1 = 0.1315
        layer1, network: nc1 = 0.0596
        layer2, network: nc1 = 0.0152
        layer0, geodesic model: nc1 = 0.1315
        layer1, geodesic model: nc1 = 0.0596
        layer2, geodesic model: nc1 = 0.0152
        layer2, UFM: nc1 = 0.0000
        """
        rows = [
            {"model": "network", "layer": layer.name, **layer.to_dict()["collapse"]}
            for layer in self.network
        ]
        models = {
            "geodesic model": self.geodesic,
            "MUFM": self.mufm,
            "MUFM with the network's own classifier": self.given,
            "UFM": self.ufm,
        }
        for model, layers in models.items():
            for layer in layers:
                errors = layer.to_dict()
                metrics = errors.pop("collapse")
                rows.append({"model": model, "layer": errors.pop("name"), **errors, **metrics})
        for row in rows:
            row.pop("undefined", None)
        return rows

    _table = rows

    def _rows(self) -> list[dict[str, Any]]:
        columns = ("model", "layer", "relative_error", "nc1", "nc2_etf", "ncc_accuracy")
        return [{name: row.get(name) for name in columns} for row in self.rows()]

    def _description(self) -> str:
        fitted = f"MUFM not fitted: {self.skipped}" if self.solution is None else "MUFM fitted"
        return f"a network of {len(self.network)} layers and its models; {fitted}"
