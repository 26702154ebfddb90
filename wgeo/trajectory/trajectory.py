"""Features of the same samples at every layer of a network, in one object.

Transport, straightness, collapse and the models use nothing of a network except its `Trajectory`.
"""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Int

from ..arrays.checks import as_labels, as_numpy, as_points, require_whole
from ..arrays.rows import is_memmapped
from ..errors import ArgumentError, FeatureError, RecordError
from ..results import Displayed
from ..runtime.progress import track
from ..storage.schema import as_json, read
from ..storage.store import Column, Writer, holds, read_store, shards
from .parts import Block, Classifier, Layer, Outline, Segment
from .views import class_view, embedded

_ROWS = 256  # rows read at a time; the shards of a saved trajectory are multiples of it


@dataclass(frozen=True, eq=False, repr=False)
class Trajectory(Displayed):
    """Features of labeled samples through the layers of a network; row i is always the same sample.

    Attributes
    ----------
    layers : tuple of Layer
        In execution order.
    labels : ndarray of int, (n,)
    predictions : ndarray of int, (n,), optional
        The classes that the network predicts.
    classifier : Classifier, optional
        The linear layer that computes the logits, if its input is the last layer's features.
    class_names : tuple of str
    settings : mapping
        How the network was traced: pool, tap, and other entries for the record.

    Examples
    --------
    >>> import numpy as np
    >>> import wgeo
    >>> layers = [np.zeros((4, 3)), np.ones((4, 3)), np.ones((4, 2)), np.zeros((4, 2))]
    >>> traj = wgeo.Trajectory.from_arrays(layers, [0, 1, 0, 1])
    >>> [segment.names for segment in traj.segments]
    [('layer0', 'layer1'), ('layer2', 'layer3')]
    >>> traj.embedded("pad").segments[0].names
    ('layer0', 'layer1', 'layer2', 'layer3')
    """

    layers: tuple[Layer, ...]
    labels: Int[np.ndarray, " n"]
    predictions: Int[np.ndarray, " n"] | None = None
    classifier: Classifier | None = None
    class_names: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_arrays(
        cls,
        arrays: Sequence[Any],
        labels: Any,
        names: Sequence[str] | None = None,
        *,
        predictions: Any = None,
        classifier: Classifier | None = None,
    ) -> Trajectory:
        """Make a trajectory from your own features.

        Parameters
        ----------
        arrays : sequence of array_like, each (n, d_l)
            Features layer by layer. A change of width starts a new segment.
        labels : array_like of int, (n,)
        names : sequence of str, optional
            Names of the layers, all different; by default ``layer0``, ``layer1``, ...
        predictions : array_like of int, (n,), optional
            The classes that the network predicts.
        classifier : Classifier, optional
            The linear layer that computes the logits from the last layer's features.

        Raises
        ------
        FeatureError
            There are no layers, there is NaN or infinity, layers have different numbers of samples,
            or `names` has another length or duplicates.
        ArgumentError
            `arrays` is not a sequence, or there is not one label or prediction per sample.
        """
        if not hasattr(arrays, "__len__") or isinstance(arrays, str | Mapping):
            raise ArgumentError(f"arrays must be a list of arrays, not {type(arrays).__name__}.")
        if len(arrays) == 0:
            raise FeatureError("A trajectory needs at least one layer.")
        names = [f"layer{i}" for i in range(len(arrays))] if names is None else list(names)
        if len(names) != len(arrays):
            raise FeatureError(f"{len(names)} names for {len(arrays)} layers.")
        if len(set(names)) != len(names):
            raise FeatureError("Layer names must differ from each other.")
        layers: list[Layer] = []
        stage = 0
        for name, array in zip(names, arrays, strict=True):
            features = as_numpy(as_points(array, name=f"layer {name!r}"))
            if layers and len(features) != len(layers[0].features):
                raise FeatureError(
                    f"layer {name!r} has {len(features)} samples, "
                    f"layer {layers[0].name!r} has {len(layers[0].features)}."
                )
            if layers and features.shape[1] != layers[-1].width:
                stage += 1
            layers.append(Layer(name, features, stage))
        n = len(layers[0].features)
        return cls(
            layers=tuple(layers),
            labels=as_labels(labels, n),
            predictions=None if predictions is None else as_labels(predictions, n),
            classifier=classifier,
        )

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, verify: bool = True) -> Trajectory:
        """Open features that `wgeo.trace` or `save` stored; layers are memory maps.

        wgeo reads them a few rows at a time (see :doc:`/scale`). Layers stored as bfloat16, which
        NumPy lacks, are widened to float32 in a temporary file.

        Parameters
        ----------
        folder : path
        verify : bool
            Whether to read all files and compare checksums; False opens a large store immediately.

        Raises
        ------
        RecordError
            The folder contains no finished store, or a damaged one.
        """
        stored = read_store(folder, verify=verify)
        for fault in _faults(stored.arrays, stored.about):
            raise RecordError(
                f"{folder} is not a stored trajectory: its {fault} is damaged. Trace again."
            )
        return assemble(stored.arrays, stored.about)

    def save(self, folder: str | os.PathLike[str], *, dtype: str | None = None) -> Trajectory:
        """Store the features in a folder, as `wgeo.trace` does, and return `load` of it.

        After an interruption, the same call continues; if everything is stored, it writes nothing.

        Parameters
        ----------
        folder : path
            Empty, or with this same trajectory in it.
        dtype : str, optional
            ``float32``, ``float16``, ``bfloat16`` or ``float64``; by default each array's own.

        Raises
        ------
        RecordError
            The folder contains something else, or the disk is full.
        FeatureError
            A number is too large for float16.
        ArgumentError
            The dtype is unknown.

        Examples
        --------
        >>> import wgeo
        >>> traj = wgeo.Trajectory.from_arrays([[[0.0], [1.0]], [[2.0], [3.0]]], [0, 1])
        >>> stored = traj.save("features")
        >>> len(wgeo.Trajectory.load("features").layers), stored.nbytes
        (2, 0)
        """
        arrays = {features_key(layer.name): layer.features for layer in self.layers}
        arrays |= {entry_key(a.name): a.entry for a in self.layers if a.entry is not None}
        columns = {key: Column(dtype or a.dtype.name, a.shape[1]) for key, a in arrays.items()}
        if self.predictions is not None:
            arrays[PREDICTIONS], columns[PREDICTIONS] = self.predictions, Column("int64")
        stages = [(layer.name, layer.stage) for layer in self.layers]
        about = outline(stages, self.class_names, self.settings)
        job = {
            "saved": {key: _checksum(array) for key, array in arrays.items()},
            "labels": _checksum(self.labels),
            "about": about,
            "dtype": dtype,
        }
        if self.classifier is not None:
            job["classifier"] = [
                _checksum(a) for a in (self.classifier.weight, self.classifier.bias)
            ]
        if not holds(folder, job):
            with Writer(folder, job, len(self), columns) as writer:
                parts = [
                    part
                    for span in writer.missing()
                    for part in shards(span, _ROWS, writer.row_bytes)
                ]
                for part in track(parts, "storing features"):
                    writer.write(part.start, {key: array[part] for key, array in arrays.items()})
                writer.finish(about, whole_arrays(self.labels, self.classifier))
        return type(self).load(folder)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def nbytes(self) -> int:
        """Bytes of features in this process's memory; memory maps do not count."""
        layers = [a for layer in self.layers for a in (layer.features, layer.entry)]
        return sum(a.nbytes for a in layers if a is not None and not is_memmapped(a))

    @property
    def held(self) -> int:
        """Deprecated name of `nbytes`."""
        warnings.warn(
            "held is now nbytes; the old name will be removed in 0.3.",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.nbytes

    @property
    def num_classes(self) -> int:
        """Number of classes K: the classifier's, or the number of distinct labels."""
        if self.classifier is not None:
            return len(self.classifier.weight)
        return len(np.unique(self.labels))

    @property
    def accuracy(self) -> float | None:
        """Fraction of samples whose prediction equals their label, in [0, 1]."""
        if self.predictions is None:
            return None
        return float(np.mean(self.predictions == self.labels))

    @property
    def staged(self) -> tuple[Layer, ...]:
        """The layers between which blocks map, without the image and the classifier's input."""
        return tuple(layer for layer in self.layers if layer.stage is not None)

    @property
    def first(self) -> np.ndarray:
        """Features that enter the first block, (n, d)."""
        return self.staged[0].features

    @property
    def last(self) -> np.ndarray:
        """Features of the last layer that has a stage, the last block's output, (n, d)."""
        return self.staged[-1].features

    def embedded(self, embed: str) -> Trajectory:
        """Return the whole network in one feature space, as one segment.

        Parameters
        ----------
        embed : str
            ``pad``: narrower layers are padded with zeros. ``pca:D``: padded, then projected onto
            the first D principal components of all layers' samples. The result is on disk, in
            anonymous temporary files, if the layers are.

        Raises
        ------
        ArgumentError
            `embed` is anything else, or D is not between 1 and the widest layer's width.
        """
        arrays = embedded([layer.features for layer in self.staged], embed)
        layers = tuple(
            Layer(layer.name, array) for layer, array in zip(self.staged, arrays, strict=True)
        )
        return replace(
            self, layers=layers, classifier=None, settings={**self.settings, "embed": embed}
        )

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Every block as a pushforward x -> y in one space, in execution order.

        No block leads to a layer that changes the space without a shortcut.
        """
        blocks = []
        for a, b in pairwise(self.staged):
            if b.entry is not None:
                blocks.append(Block(a.name, b.name, b.stage or 0, b.entry, b.features, "shortcut"))
            elif a.stage == b.stage:
                blocks.append(Block(a.name, b.name, b.stage or 0, a.features, b.features))
        return tuple(blocks)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """Two or more consecutive layers in one space; a shortcut's output begins a segment."""
        runs: list[tuple[int, list[str], list[np.ndarray]]] = []
        for layer in self.staged:
            stage = layer.stage or 0
            if layer.entry is not None:
                runs.append((stage, [f"{layer.name}.shortcut"], [layer.entry]))
            elif not runs or runs[-1][0] != stage:
                runs.append((stage, [], []))
            runs[-1][1].append(layer.name)
            runs[-1][2].append(layer.features)
        return tuple(
            Segment(stage, tuple(names), tuple(arrays))
            for stage, names, arrays in runs
            if len(arrays) > 1
        )

    def _record(self) -> dict[str, Any]:
        """Return the layers and the views of every segment, as in a record, for figures."""
        return {
            "provenance": {"class_names": list(self.class_names)},
            "layers": [
                {"name": layer.name, "stage": layer.stage, "width": layer.width}
                for layer in self.layers
            ],
            "segments": [
                {
                    "layers": list(segment.names),
                    "stage": segment.stage,
                    "view": class_view(segment, self.labels),
                }
                for segment in self.segments
            ],
        }

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {"layer": layer.name, "width": layer.features.shape[1], "stage": layer.stage}
            for layer in self.layers
        ]

    def _description(self) -> str:
        classes = len(self.class_names) or len(np.unique(self.labels))
        return f"{len(self.labels)} samples of {classes} classes through {len(self.layers)} layers"


def as_trajectory(value: Any, name: str = "traj") -> Trajectory:
    """Return `value` if it is a trajectory; otherwise raise `ArgumentError`."""
    if isinstance(value, Trajectory):
        return value
    raise ArgumentError(
        f"{name} must be a Trajectory, not {type(value).__name__}: wgeo.trace(net, images), "
        "Trajectory.load(folder) or Trajectory.from_arrays(arrays, labels)."
    )


PREDICTIONS = "predictions"


def features_key(name: str) -> str:
    """Return the key of a layer's features in a store."""
    return f"features:{name}"


def entry_key(name: str) -> str:
    """Return the key of a layer's `entry` in a store."""
    return f"entry:{name}"


def outline(
    stages: Sequence[tuple[str, int | None]],
    class_names: Sequence[str],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return a trajectory's description for a store's manifest; `stages` are (name, stage)."""
    return {
        "layers": [{"name": name, "stage": stage} for name, stage in stages],
        "class_names": list(class_names),
        "settings": as_json(settings),
    }


def _faults(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of parts of a store that `assemble` cannot use."""
    yield from (f"manifest, about.{f.location}," for f in read(Outline, about)[1])
    names = [row["name"] for row in about["layers"]]
    if not names or len(set(names)) != len(names):
        yield "list of layers"
    labels = arrays.get("labels", np.empty(0))
    n = len(labels)
    for key in ("labels", PREDICTIONS):
        each = arrays.get(key, labels)
        if each.dtype != np.int64 or each.shape != (n,) or not n or each.min() < 0:
            yield key
    for name in names:
        features = arrays.get(features_key(name), np.empty(0))
        for each in (features, arrays.get(entry_key(name), features)):
            if each.dtype.kind != "f" or each.shape != (n, *features.shape[1:]) or each.ndim != 2:
                yield f"layer {name!r}"
    weight = arrays.get("classifier.weight", np.empty((0, 0)))
    bias = arrays.get("classifier.bias", np.empty(0))
    if (
        weight.ndim != 2
        or bias.shape != weight.shape[:1]
        or {"f"} != {weight.dtype.kind, bias.dtype.kind}
    ):
        yield "classifier"


def assemble(arrays: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> Trajectory:
    """Return the trajectory made of a store's arrays and its `outline`."""
    layers = tuple(
        Layer(
            name=row["name"],
            features=arrays[features_key(row["name"])],
            stage=row["stage"],
            entry=arrays.get(entry_key(row["name"])),
        )
        for row in about["layers"]
    )
    weight = arrays.get("classifier.weight")
    return Trajectory(
        layers=layers,
        labels=as_labels(arrays["labels"], len(layers[0].features)),
        predictions=arrays.get(PREDICTIONS),
        classifier=None if weight is None else Classifier(weight, arrays["classifier.bias"]),
        class_names=tuple(about["class_names"]),
        settings=about["settings"],
    )


def whole_arrays(
    labels: Int[np.ndarray, " n"], classifier: Classifier | None
) -> dict[str, np.ndarray]:
    """Return the arrays that are written in one piece."""
    arrays = {"labels": labels}
    if classifier is not None:
        arrays |= {"classifier.weight": classifier.weight, "classifier.bias": classifier.bias}
    return arrays


def _checksum(array: np.ndarray) -> int:
    """Return the CRC-32 of an array's bytes."""
    require_whole(array)
    checksum = 0
    for start in range(0, len(array), _ROWS):
        chunk = np.ascontiguousarray(array[start : start + _ROWS])
        checksum = zlib.crc32(chunk.data, checksum)
    return checksum
