"""The parts of a trajectory: layers, blocks, segments and the classifier."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ..results import Displayed
from ..storage.record import Provenance
from ..storage.schema import Part
from ..text import counted


def _size(features: Float[np.ndarray, "n d"]) -> str:
    samples, width = features.shape
    return f"{counted(samples, 'sample')} of {counted(width, 'feature')}"


@dataclass(frozen=True, eq=False, repr=False)
class Layer(Displayed):
    """Features of every sample at one layer.

    Attributes
    ----------
    name : str
        The module's name in the network; ``input`` and ``stem`` for what precedes the blocks;
        ``penultimate`` for the classifier's input, if that is not the last block's output.
    features : ndarray, (n, d)
        One row per sample.
    stage : int or None
        Index of the layer's feature space; None for the image and the classifier's input.
    entry : ndarray, (n, d), optional
        The output of the block's shortcut, if this layer's block changes the space.

    Examples
    --------
    >>> import wgeo
    >>> traj = wgeo.Trajectory.from_arrays([[[0.0], [1.0]], [[2.0], [3.0]]], [0, 1])
    >>> traj.layers[1]
    Layer: layer1, 2 samples of 1 feature, stage 0
    """

    name: str
    features: Float[np.ndarray, "n d"]
    stage: int | None = 0
    entry: Float[np.ndarray, "n d"] | None = None

    @property
    def width(self) -> int:
        """Number of features d."""
        return int(self.features.shape[1])

    def _description(self) -> str:
        return f"{self.name}, {_size(self.features)}, stage {self.stage}"


@dataclass(frozen=True, eq=False, repr=False)
class Block(Displayed):
    """A map between two consecutive layers, in one space: ``x`` -> ``y``, row by row.

    Attributes
    ----------
    source, target : str
        Names of the two layers.
    stage : int
        Stage of the target.
    x, y : ndarray, (n, d)
        Features before and after the block.
    via : {"identity", "shortcut"}
        ``identity`` if x are the features of the source; ``shortcut`` if x is the output of the
        block's shortcut, in the target's space.

    Examples
    --------
    >>> import wgeo
    >>> traj = wgeo.Trajectory.from_arrays([[[0.0], [1.0]], [[2.0], [3.0]]], [0, 1])
    >>> block = traj.blocks[0]
    >>> block
    Block: layer0 -> layer1 (identity), 2 samples of 1 feature, stage 0
    >>> wgeo.wasserstein(block.x, block.y).distance
    2.0
    """

    source: str
    target: str
    stage: int
    x: Float[np.ndarray, "n d"]
    y: Float[np.ndarray, "n d"]
    via: str = "identity"

    def _description(self) -> str:
        return f"{self.source} -> {self.target} ({self.via}), {_size(self.x)}, stage {self.stage}"


@dataclass(frozen=True, eq=False, repr=False)
class Segment(Displayed):
    """Consecutive layers in one feature space.

    Attributes
    ----------
    stage : int
    names : tuple of str
        Names of the layers. If a shortcut leads into the stage, the first is ``NAME.shortcut``, the
        shortcut's output.
    arrays : tuple of ndarray, each (n, d)
        Features of the layers.

    Examples
    --------
    >>> import wgeo
    >>> traj = wgeo.Trajectory.from_arrays([[[0.0], [1.0]], [[2.0], [3.0]]], [0, 1])
    >>> traj.segments[0]
    Segment: layer0 -> layer1, 2 layers of 2 samples of 1 feature, stage 0
    """

    stage: int
    names: tuple[str, ...]
    arrays: tuple[Float[np.ndarray, "n d"], ...]

    def _description(self) -> str:
        ends = f"{self.names[0]} -> {self.names[-1]}"
        return f"{ends}, {len(self.names)} layers of {_size(self.arrays[0])}, stage {self.stage}"


@dataclass(frozen=True, eq=False, repr=False)
class Classifier(Displayed):
    """The last linear layer: logits = features @ weight.T + bias.

    Attributes
    ----------
    weight : ndarray, (K, d)
    bias : ndarray, (K,)

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> classifier = wgeo.trajectory.Classifier(weight=np.eye(2, 3), bias=np.zeros(2))
    >>> features, labels = np.eye(2, 3)[[0, 1, 1]], [0, 1, 1]
    >>> traj = wgeo.Trajectory.from_arrays([features], labels, classifier=classifier)
    >>> round(wgeo.collapse(traj).layers[-1].nc3, 6)
    0.0
    """

    weight: Float[np.ndarray, "K d"]
    bias: Float[np.ndarray, " K"]

    def _description(self) -> str:
        classes, width = self.weight.shape
        return f"{classes} classes, {counted(width, 'feature')}"


class NamedStage(Part):
    """A layer of an `Outline`."""

    name: str
    stage: int | None = None


class Outline(Part):
    """The description of a trajectory in the manifest of a store."""

    layers: tuple[NamedStage, ...]
    class_names: tuple[str, ...]
    settings: Provenance
