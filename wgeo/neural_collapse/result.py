"""The collapse of a network: every layer, and the progress from one to the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from ..results import Result, as_table
from .depth import Progress, progress_of_layers
from .metrics import Frame, LayerCollapse
from .separation import SeparationLaw, law_of_layers

if TYPE_CHECKING:
    import pandas

_LEARNED = 0.99
# Metrics shown in the short text.
_SHOWN = ("nc1", "nc2_etf", "nc3", "ncc_accuracy", "cdnv", "effective_rank")


@dataclass(frozen=True, eq=False, repr=False)
class Collapse(Result):
    """Neural collapse at every layer of a network.

    Attributes
    ----------
    layers : tuple of LayerCollapse
        In execution order.
    progress : dict of str to Progress
        For every metric that should decrease with depth, whether it does.
    separation : Progress
        Whether the mean angle between class means increases with depth. Here a violation is a layer
        at which it decreases.
    classes, counts : tuple of int
        The classes that occur, and their numbers of samples.
    weights : str
        ``uniform`` (g is the mean of the class means and Sigma_B is unweighted), ``frequency`` or
        ``sample_mean``; see `wgeo.collapse`.
    classifier : Frame or None
        NC2 of the classifier's rows, not centered.
    accuracy : float or None
        The accuracy of the network, if its predictions are known.
    separation_law : SeparationLaw
        Whether the classes separate by the same factor at every layer; see `wgeo.separation_law`.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> labels = np.arange(60) % 3
    >>> noise = np.random.default_rng(0).normal(size=(60, 4))
    >>> layers = [np.eye(3, 4)[labels] + scale * noise for scale in (1.0, 0.01)]
    >>> result = wgeo.collapse(wgeo.Trajectory.from_arrays(layers, labels))
    >>> [layer.name for layer in result.layers], result.learned_at, result.counts
    (['layer0', 'layer1'], 'layer1', (20, 20, 20))
    """

    layers: tuple[LayerCollapse, ...]
    progress: Mapping[str, Progress]
    separation: Progress
    classes: tuple[int, ...]
    counts: tuple[int, ...]
    weights: str
    classifier: Frame | None = None
    accuracy: float | None = None
    separation_law: SeparationLaw = field(default_factory=lambda: SeparationLaw(()))
    _included: ClassVar[tuple[str, ...]] = ("learned_at",)

    @classmethod
    def of_layers(cls, layers: Sequence[LayerCollapse], **fields: Any) -> Collapse:
        """Combine layers and measure the progress from one to the next."""
        falling, separation = progress_of_layers(layers)
        return cls(
            layers=tuple(layers),
            progress=falling,
            separation=separation,
            separation_law=law_of_layers(layers),
            **fields,
        )

    @property
    def learned_at(self) -> str | None:
        """The first layer whose nearest-class-mean accuracy is at least 99 % of the network's.

        If the network's predictions are unknown, the nearest-class-mean accuracy of the last layer
        replaces the network's accuracy (Parker et al. 2023). None if there is no such layer.
        """
        accuracies = [
            (layer.name, layer.ncc_accuracy)
            for layer in self.layers
            if layer.stage is not None and layer.ncc_accuracy is not None
        ]
        if not accuracies:
            return None
        goal = accuracies[-1][1] if self.accuracy is None else self.accuracy
        return next((name for name, accuracy in accuracies if accuracy >= _LEARNED * goal), None)

    def to_pandas(self) -> pandas.DataFrame:
        """Return a data frame with a row per layer and a column per metric, without intervals.

        Raises
        ------
        DependencyError
            pandas is not installed.
        """
        return as_table([row for layer in self.layers for row in layer._table()]).set_index("name")

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {"layer": layer.name, "width": layer.width}
            | {name: getattr(layer, name) for name in _SHOWN}
            for layer in self.layers
        ]

    def _description(self) -> str:
        n, accuracy = sum(self.counts), self.accuracy
        read = "" if accuracy is None else f"; accuracy {accuracy:.4g}"
        return f"{len(self.layers)} layers, {n} samples of {len(self.classes)} classes{read}"

    def _curve(self) -> tuple[str, list[float | None]]:
        return "NC1 from layer to layer", [layer.nc1 for layer in self.layers]
