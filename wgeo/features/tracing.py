"""Features of every sample at every layer, in memory or on disk, or batch by batch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Int
from torch import nn

from ..arrays.checks import OF_NETWORK, as_count, as_labels, as_numpy, check_finite, pick_device
from ..checkpoints import Network
from ..data import Images
from ..data.loaders import as_images
from ..errors import ArgumentError, FeatureError, WgeoWarning
from ..runtime import processes
from ..runtime.memory import available_bytes, total_memory
from ..runtime.progress import track
from ..storage.store import DTYPES, Column, Writer, holds, shards
from ..text import first_names
from ..trajectory.trajectory import (
    PREDICTIONS,
    Classifier,
    Trajectory,
    assemble,
    features_key,
    outline,
    whole_arrays,
)
from .network import identity, module_of, normalization_for, on_device, provenance, sample
from .projection import Projection
from .recorder import HEAD_INPUT, LOGITS, Batch, Recorder, pooling
from .residual_blocks import Blocks, survey


def trace(
    net: Network | nn.Module,
    images: Any,
    pool: str = "gap",
    tap: str = "post",
    *,
    layers: Sequence[str] | None = None,
    batch_size: int = 256,
    device: str | torch.device = "auto",
    store: str | os.PathLike[str] | None = None,
    dtype: str | None = None,
    project: int | None = None,
) -> Trajectory:
    """Follow labeled images through every block of a network.

    The layers are ``input`` (the normalized pixels, flattened), ``stem`` (the input of the first
    block), and one per block. If the classifier's input differs from the features of the last block
    (for example after a final norm), it is the layer ``penultimate``. If a block changes the
    feature space, its shortcut s maps the block's input x to the new space, and the layer's
    ``entry`` is s(x).

    Parameters
    ----------
    net : Network or nn.Module
        Unchanged afterwards: weights, hooks, device, train or eval mode of every module.
    images : Images, (x, labels), Dataset or DataLoader
        Images x (n, c, h, w) in a pair, Dataset or DataLoader are used as they are: floats count as
        normalized. A loader that shuffles is read in the order of its data set, with a warning.
    pool : str
        How feature maps become vectors: ``gap`` (mean over space or tokens), ``flat`` (all
        entries), ``grid:K`` (means over a grid of K x K cells) or ``cls`` (the first token). Append
        ``@first`` or ``@last`` if an error says that the channel axis could not be found.
    tap : {"post", "pre"}
        Record a block's features after its final activation, or the sum before it.
    layers : sequence of str, optional
        Names of modules to follow instead of detected blocks.
    batch_size : int
        Number of images per pass, at least 1; reduced if the GPU runs out of memory.
    device : str
        ``auto`` (the GPU if there is one, otherwise the CPU), ``cpu``, ``cuda``, ``cuda:1``.
    store : path, optional
        Write the features into this folder as they are computed, and return them as memory maps
        (`Trajectory.load`). After an interruption, the same call resumes. If the store is complete,
        the call computes nothing.
    dtype : {"float32", "float16", "bfloat16", "float64"}, optional
        Precision of the store; by default float64 for features in float64, and otherwise float32.
    project : int, optional
        Project layers that are wider than this to this number of features (`Projection`).
        `Trajectory.settings` records the distortion of distances.

    Raises
    ------
    FeatureError
        No blocks were found, a layer contains NaN or infinite values (the message names the
        layer), the images do not fit the network, a label exceeds the network's classes, there are
        fewer than two images, or the features do not fit in memory.
    ArgumentError
        The pool, tap, device or dtype is unknown, `dtype` is given without `store`, `project` is
        not a positive integer, or the batch size is less than 1.
    RecordError
        The store contains features of another network, other images or other options, or its disk
        is full. Rows already written are kept.

    Warns
    -----
    WgeoWarning
        The network also adds tensors outside the blocks. These sums may belong to residual blocks
        too.

    Examples
    --------
    >>> import torch
    >>> import wgeo
    >>> net = wgeo.models.build("isoresnet", num_classes=2, in_channels=1, width=4, depth=2)
    >>> traj = wgeo.trace(net, (torch.randn(6, 1, 8, 8), torch.arange(6) % 2))
    >>> [(layer.name, layer.width) for layer in traj.layers]
    [('input', 64), ('stem', 4), ('blocks.0', 4), ('blocks.1', 4)]
    """
    images, module, target = as_images(images), module_of(net), pick_device(device)
    _check(images, pool, tap, batch_size)
    projection = None if project is None else Projection(project)
    if dtype is not None and (store is None or dtype not in DTYPES or dtype == "int64"):
        kinds = ", ".join(kind for kind in DTYPES if kind != "int64")
        raise ArgumentError(f"dtype is the precision of `store=`, one of {kinds}; not {dtype!r}.")
    settings: dict[str, Any] = {**provenance(net, images), "pool": pool, "tap": tap}
    job: dict[str, Any] = {}
    if store is not None:
        options = {"pool": pool, "tap": tap, "layers": layers, "dtype": dtype, "project": project}
        job = {**identity(net, images), **options}
        if processes.on_rank_zero(partial(holds, store, job)):
            return Trajectory.load(store)
    with on_device(module, target):
        probe = sample(net, module, images)
        blocks = survey(module, probe, layers)
        recorder = Recorder.of(module, blocks.specs, pool, tap, probe)
        settings["axes"] = recorder.describe_axes()
        settings |= _other_sums(blocks)
        probe_rows = recorder.record(probe, target)
        stages, columns = recorder.stages(), _stored_rows(probe_rows, projection)
        if projection is not None:
            points = len(images) * sum(row.ndim > 1 for row in columns.values())
            settings["projected"] = {"width": project, **projection.distortion(points)}
        about = outline(stages, images.class_names, settings)
        labels = as_labels(images.y, len(images))
        _require_classes(probe_rows, labels)
        whole = whole_arrays(labels, _classifier(recorder, columns, stages[-1][0]))
        normalize = normalization_for(net, images)

        def rows_of(batch: slice) -> Batch:
            rows = recorder.record(normalize(images.x[batch]), target)
            return _stored_rows(rows, projection, batch.start)

        if store is None:
            sink = processes.raise_on_any(partial(_MemorySink, columns, len(images)))
            _write(sink, rows_of, batch_size)
            arrays = {key: processes.all_reduce_sum(array) for key, array in sink.arrays.items()}
            return assemble({**arrays, **whole}, about)
        formats = {key: _column(row, dtype) for key, row in columns.items()}
        with _shared_store(store, job, len(images), formats) as writer:
            _write(writer, rows_of, batch_size)
            processes.on_rank_zero(partial(writer.finish, about, whole))
    return Trajectory.load(store)


def stream(
    net: Network | nn.Module,
    images: Any,
    pool: str = "gap",
    tap: str = "post",
    *,
    layers: Sequence[str] | None = None,
    batch_size: int = 256,
    device: str | torch.device = "auto",
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray | None]]:
    """Follow labeled images as `trace` does, and yield the features of each batch.

    The memory of ``wgeo.collapse(lambda: wgeo.stream(net, images))`` does not grow with the number
    of images.

    Parameters
    ----------
    net, images, pool, tap, layers, batch_size, device
        As in `trace`.

    Yields
    ------
    features : dict of str to ndarray, (b, d)
        Features by layer name, in execution order.
    labels : ndarray of int, (b,)
    predictions : ndarray of int, (b,), or None
        The predicted classes; None if the logits are unknown.

    Raises
    ------
    FeatureError, ArgumentError
        As for `trace`, but only when a batch is requested. Labels that exceed the network's
        classes, NaN and infinity are found in the batch that contains them.

    Examples
    --------
    >>> import torch
    >>> import wgeo
    >>> net = wgeo.models.build("isoresnet", num_classes=2, in_channels=1, width=4, depth=2)
    >>> images = torch.randn(6, 1, 8, 8), torch.arange(6) % 2
    >>> for features, labels, predictions in wgeo.stream(net, images, batch_size=4):
    ...     print(list(features), features["stem"].shape, labels)
    ['input', 'stem', 'blocks.0', 'blocks.1'] (4, 4) [0 1 0 1]
    ['input', 'stem', 'blocks.0', 'blocks.1'] (2, 4) [0 1]
    """
    images, module, target = as_images(images), module_of(net), pick_device(device)
    _check(images, pool, tap, batch_size)
    with on_device(module, target):
        probe = sample(net, module, images)
        blocks = survey(module, probe, layers)
        _other_sums(blocks)
        recorder = Recorder.of(module, blocks.specs, pool, tap, probe)
        names, start = [name for name, _ in recorder.stages()], 0
        for x, y in images.batches(batch_size, normalization_for(net, images)):
            rows = recorder.record(x, target)
            _require_classes(rows, y)
            stored = _stored_rows(rows, None, start)
            yield {name: stored[features_key(name)] for name in names}, y, stored.get(PREDICTIONS)
            start += len(y)


def _other_sums(blocks: Blocks) -> dict[str, Any]:
    """Warn of sums outside the blocks; return them as an entry of the settings."""
    if not blocks.other_sums:
        return {}
    names = [f"{name or 'the network itself'} ({n})" for name, n in blocks.other_sums.items()]
    warnings.warn(
        f"{len(blocks.specs)} residual blocks are followed. Tensors of equal shapes are also "
        f"added in the forward of {first_names(names, 8)}, outside them. If these are residual "
        "blocks too, pass the names of all blocks as `layers=`.",
        WgeoWarning,
        stacklevel=3,
    )
    return {"other_sums": blocks.other_sums}


def _check(images: Images, pool: str, tap: str, batch_size: int) -> None:
    pooling(pool)
    check_tap(tap)
    as_count(batch_size, "batch_size", 1)
    if len(images) < 2:
        raise FeatureError("At least two images are needed to describe a distribution.")


def check_tap(tap: str) -> None:
    """Raise an error unless `tap` is ``post`` or ``pre``."""
    if tap not in ("post", "pre"):
        raise ArgumentError(f"Unknown tap {tap!r}; choose post (after the activation) or pre.")


class _MemorySink:
    """The counterpart of a store's `Writer` in this process's memory.

    Raises `FeatureError` if there is not enough memory.
    """

    def __init__(self, columns: Batch, rows: int) -> None:
        self.rows = rows
        self.row_bytes = sum(row[0].nbytes for row in columns.values())
        available = available_bytes()
        limit = 0.8 * total_memory() if available is None else 0.5 * available
        if rows * self.row_bytes > limit:
            raise FeatureError(
                f"The features need {rows * self.row_bytes / 2**30:.2f} GiB, but only "
                f"{limit / 2**30:.2f} GiB of memory can be used. Write them to disk (`store=DIR`), "
                "use fewer samples, or `pool='gap'` instead of 'flat'."
            )
        self.arrays = {
            key: np.zeros((rows, *row.shape[1:]), row.dtype) for key, row in columns.items()
        }

    def missing(self) -> list[slice]:
        return [slice(0, self.rows)]

    def write(self, start: int, arrays: Batch) -> None:
        for key, rows in arrays.items():
            self.arrays[key][start : start + len(rows)] = rows


_Sink: TypeAlias = _MemorySink | Writer


def _write(sink: _Sink, rows_of: Callable[[slice], Batch], batch_size: int) -> None:
    """Write this process's part of the missing rows, and wait for all processes."""
    spans = _local_spans(processes.on_rank_zero(sink.missing), batch_size)
    processes.raise_on_any(partial(_write_spans, sink, rows_of, spans, batch_size))


def _write_spans(
    sink: _Sink, rows_of: Callable[[slice], Batch], spans: list[slice], batch_size: int
) -> None:
    """Compute and write rows, one shard (a few batches) at a time."""
    batches = [
        (part, batch)
        for span in spans
        for part in shards(span, batch_size, sink.row_bytes)
        for batch in _split(part, batch_size)
    ]
    pending: list[Batch] = []
    for part, batch in track(batches, "tracing features"):
        pending.append(rows_of(batch))
        if batch.stop == part.stop:
            arrays = {key: np.concatenate([each[key] for each in pending]) for key in pending[0]}
            sink.write(part.start, arrays)
            pending = []


def _split(span: slice, size: int) -> list[slice]:
    return [
        slice(start, min(start + size, span.stop)) for start in range(span.start, span.stop, size)
    ]


def _local_spans(spans: Sequence[slice], batch_size: int) -> list[slice]:
    """Return this process's part of the spans; batches are the same for any number of processes."""
    batches = [batch for span in spans for batch in _split(span, batch_size)]
    local: list[slice] = []
    for batch in batches[processes.shard(len(batches))]:
        if local and local[-1].stop == batch.start:
            local[-1] = slice(local[-1].start, batch.stop)
        else:
            local.append(batch)
    return local


@contextmanager
def _shared_store(
    store: str | os.PathLike[str],
    job: dict[str, Any],
    rows: int,
    columns: dict[str, Column],
) -> Iterator[Writer]:
    """Open a store for all processes, after the first has claimed the folder."""
    with ExitStack() as stack:
        writers: list[Writer] = []

        def open_writer(part: int = 0) -> None:
            writers.append(stack.enter_context(Writer(store, job, rows, columns, part)))

        processes.on_rank_zero(open_writer)
        part = processes.rank()  # within `raise_on_any`, every process has rank 0
        processes.raise_on_any(lambda: None if writers else open_writer(part))
        yield writers[0]


def _stored_rows(batch: Batch, projection: Projection | None, start: int = 0) -> Batch:
    """Return rows as a trajectory stores them; raise `FeatureError` if they are not finite."""
    stored: Batch = {}
    for key, rows in batch.items():
        if key in (HEAD_INPUT, LOGITS):
            continue
        layer = f"layer {key.partition(':')[2]!r}"
        check_finite(torch.from_numpy(rows), layer, start, OF_NETWORK)
        stored[key] = rows if projection is None else projection(rows)
    if LOGITS in batch:
        stored[PREDICTIONS] = batch[LOGITS].argmax(1).astype(np.int64)
    return stored


def _column(row: np.ndarray, dtype: str | None) -> Column:
    if row.ndim == 1:
        return Column("int64")
    return Column(row.dtype.name if dtype is None else dtype, row.shape[1])


def _require_classes(rows: Batch, labels: Int[np.ndarray, " n"]) -> None:
    """Raise `FeatureError` if a label exceeds the network's classes."""
    logits = rows.get(LOGITS)
    if logits is not None and labels.max() >= logits.shape[1]:
        raise FeatureError(
            f"The data has label {labels.max()}, but the network has only {logits.shape[1]} "
            "classes. Is this the data set it was trained on?"
        )


def _classifier(recorder: Recorder, stored: Batch, last: str) -> Classifier | None:
    """Return the classifier; None if it is unknown, or the last layer is projected."""
    name = recorder.head.name
    if name is None:
        return None
    layer = recorder.module.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    weight = as_numpy(layer.weight)
    if weight.shape[1] != stored[features_key(last)].shape[1]:
        return None
    bias = np.zeros(len(weight), weight.dtype) if layer.bias is None else as_numpy(layer.bias)
    return Classifier(weight.copy(), bias.copy())
