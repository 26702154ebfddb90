"""What a comparison says, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from ..arrays.rows import Rows, Sliceable, made_like, mean_of, wide, width_of
from ..neural_collapse import LayerCollapse
from ..runtime.processes import local_only
from ..storage.records import as_table
from ..ufm.multilayer import MUFMSolution

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class ModelLayer:
    """What a model predicts at one layer, beside what was measured there.

    All errors are sums over samples of squared distances; "over the input" compares with the
    features that enter the segment, brought to the layer with the freedom that the model has: see
    `compare`.

    Attributes
    ----------
    name, stage
        The layer of the network.
    time : float
        Where on its path from first to last layer the model has the layer, in [0, 1].
    gain : float
        The scale that the model's features were given to fit the layer.
    relative_error : float or None
        sqrt(error of the model / error of the input): 0 is a perfect prediction, 1 no better than
        that nothing happens but a shift and a scaling. None where nothing else happens.
    r2 : float or None
        1 - relative_error^2.
    r2_means : float or None
        As `r2`, of the class means alone.
    r2_line : float or None
        1 - error of the model / error of the geodesic model there; None for that model itself and
        at the ends of its line, where it is given the layer.
    missed : float or None
        Error of the model / variance of the layer.
    w2 : float or None
        W2 between the model's and the network's features / root of the layer's variance: 0 where
        the distributions agree, whichever sample is where; about 1 where the model says a point.
    collapse : LayerCollapse
        Collapse metrics of the predicted features.
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
        """Plain numbers and strings, ready for JSON."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "collapse"}
        return {**plain, "collapse": self.collapse.to_dict()["collapse"]}


@dataclass(frozen=True)
class HeldOut:
    """How well a model does on samples that nothing was fitted to, all layers together.

    Attributes
    ----------
    r2, r2_means : float or None
        As of `ModelLayer`, every layer weighing by its variance's inverse. None where a class has
        one sample.
    """

    r2: float | None = None
    r2_means: float | None = None


@dataclass(frozen=True, eq=False)
class Reading:
    """MUFM's features given its readout.

    Attributes
    ----------
    w : ndarray, (K, d)
        The network's classifier less what its rows share, in the size that predicts best.
    mu : float
        Transport strength of the whole path.
    """

    w: Float[np.ndarray, "K d"]
    mu: float

    def features(
        self, x: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]
    ) -> Float[np.ndarray, "n d"]:
        """H = X + W^T (W W^T + mu I)^-1 (Y - W X - b 1^T), b free; about their mean."""
        with local_only():
            return made_like([x], self.ends(x, labels))

    def ends(self, x: Sliceable, labels: Int[np.ndarray, " n"]) -> Rows:
        """The same, made when rows are taken."""
        eye, middle = np.eye(len(self.w)), mean_of(x)
        pull = np.linalg.solve(self.w @ self.w.T + self.mu * eye, self.w)
        shares = np.bincount(labels, minlength=len(eye)) / len(labels)

        def make(rows: Any) -> Float[np.ndarray, "b d"]:
            shape = wide(x[rows]) - middle
            return shape + (eye[labels[rows]] - shares - shape @ self.w.T) @ pull

        return Rows(x.shape, make, max(len(eye), width_of(x)))


@dataclass(frozen=True, eq=False)
class Comparison:
    """A trained network's layers beside the geodesic model, MUFM and the plain UFM.

    Attributes
    ----------
    network : tuple of LayerCollapse
        Collapse metrics measured at every layer of every segment.
    geodesic : tuple of ModelLayer
        Of every segment: the straight line from its first to its last layer.
    mufm : tuple of ModelLayer
        Of the last segment, the one whose end the classifier reads.
    given : tuple of ModelLayer
        Of MUFM with the network's own readout; empty where it has none.
    ufm : tuple of ModelLayer
        Of the last layer alone: complete collapse onto a simplex ETF, turned and scaled to fit.
        Empty where an ETF of the classes needs more features than there are.
    solution : MUFMSolution or None
    reading : Reading or None
        The readout of `given`.
    held_out, held_out_given : HeldOut
        Of `mufm` and `given`.
    skipped : str
        Why there is no MUFM, where there is none.
    """

    network: tuple[LayerCollapse, ...] = ()
    geodesic: tuple[ModelLayer, ...] = ()
    mufm: tuple[ModelLayer, ...] = ()
    given: tuple[ModelLayer, ...] = ()
    ufm: tuple[ModelLayer, ...] = ()
    solution: MUFMSolution | None = None
    reading: Reading | None = None
    held_out: HeldOut = HeldOut()
    held_out_given: HeldOut = HeldOut()
    skipped: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The record's ``geodesic_model``, ``mufm``, ``mufm_given`` and ``ufm``."""

        def of(layers: tuple[ModelLayer, ...]) -> dict[str, Any]:
            return {"layers": [layer.to_dict() for layer in layers]}

        model, given = of(self.mufm), of(self.given)
        if self.solution is None:
            model["skipped"] = self.skipped
        else:
            model |= {
                "held_out_r2": self.held_out.r2,
                "held_out_r2_means": self.held_out.r2_means,
                "solution": self.solution.to_dict(),
            }
        if self.reading is not None:
            given |= {
                "held_out_r2": self.held_out_given.r2,
                "held_out_r2_means": self.held_out_given.r2_means,
                "mu": self.reading.mu,
                "readout_norm": float(np.linalg.norm(self.reading.w, 2)),
            }
        return {
            "geodesic_model": of(self.geodesic),
            "mufm": model,
            "mufm_given": given,
            "ufm": of(self.ufm),
        }

    @property
    def record(self) -> dict[str, Any]:
        """What `wgeo.plots` draws: the network's layers and `to_dict`."""
        return {"layers": [layer.to_dict() for layer in self.network], **self.to_dict()}

    def rows(self) -> list[dict[str, Any]]:
        """A row a model and layer: errors beside collapse metrics, the network's among them."""
        found = [
            {"model": "network", "layer": layer.name, **layer.to_dict()["collapse"]}
            for layer in self.network
        ]
        models = {
            "geodesic model": self.geodesic,
            "MUFM": self.mufm,
            "MUFM, readout given": self.given,
            "UFM": self.ufm,
        }
        for model, layers in models.items():
            for layer in layers:
                said = layer.to_dict()
                metrics = said.pop("collapse")
                found.append({"model": model, "layer": said.pop("name"), **said, **metrics})
        for row in found:
            row.pop("undefined", None)
        return found

    def to_pandas(self) -> pandas.DataFrame:
        """`rows` as a table."""
        return as_table(self.rows())
