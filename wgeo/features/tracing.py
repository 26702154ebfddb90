"""Features of every sample at every layer, in memory or on disk, or batch by batch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn

from ..arrays.checks import as_labels, as_numpy, check_finite, pick_device
from ..checkpoints import Network
from ..data import Images
from ..data.images import Normalization
from ..data.loaders import as_images
from ..errors import ArgumentError, FeatureError, WgeoWarning
from ..models.parts import classifier_of
from ..runtime import processes
from ..runtime.memory import free
from ..runtime.progress import track
from ..storage.files import memory_limit
from ..storage.store import DTYPES, Column, Writer, holds, shards
from ..trajectory.trajectory import (
    PREDICTIONS,
    Classifier,
    Trajectory,
    assembled,
    features_key,
    outline,
    whole_arrays,
)
from .network import identity, module_of, normalization_for, placed, provenance, sample
from .pooling import pooling
from .projection import Projection
from .recorder import HEAD, LOGITS, Batch, Recorder
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
    """Follow labelled images through every block of a network.

    The layers are ``input`` (the normalised pixels, flat), ``stem`` (what enters the first block)
    and one for each block. Where a block changes the feature space, its own shortcut s gives the
    identification: the layer's ``entry`` is s(x) of the old layer's features.

    Parameters
    ----------
    net : Network or nn.Module
        Left as it was: weights, hooks, device, train or eval mode of every part.
    images : Images, (x, labels), Dataset or DataLoader
        A pair, x (n, c, h, w), is taken as it is: floats count as normalized. So are the pairs
        that a torch Dataset or DataLoader gives; a loader that shuffles is read in the order of
        its data set, with a warning.
    pool : str
        See `pooling`; the record says which.
    tap : {"post", "pre"}
        Take a block's features after its final activation, or the sum before it.
    layers : sequence of str, optional
        Names of modules to follow, for networks without residual blocks.
    batch_size : int
        Halved when the GPU runs out of memory.
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``.
    store : path, optional
        Write the features into this folder as they come, and return them as memory maps
        (`Trajectory.load`). Killed at any moment, the same call goes on where it was; done
        already, it returns at once.
    dtype : {"float32", "float16", "bfloat16", "float64"}, optional
        How a store keeps them; by default in the network's own precision.
    project : int, optional
        Project layers of more than so many features onto so many (`Projection`); the settings say
        what that does to distances.

    Raises
    ------
    FeatureError
        No blocks, NaN in a layer (named), images the network cannot take.
    ArgumentError
        An unknown pool, tap, device or dtype.
    RecordError
        The store is another job's, or its disk is full; rows already there are kept.
    """
    images, module, where = as_images(images), module_of(net), pick_device(device)
    _check(images, pool, tap, batch_size)
    narrow = None if project is None else Projection(project)
    if dtype is not None and (store is None or dtype not in DTYPES or dtype == "int64"):
        kinds = ", ".join(kind for kind in DTYPES if kind != "int64")
        raise ArgumentError(f"dtype is how `store=` keeps features: {kinds}; not {dtype!r}.")
    settings: dict[str, Any] = {**provenance(net, images), "pool": pool, "tap": tap}
    job: dict[str, Any] = {}
    if store is not None:
        how = {"pool": pool, "tap": tap, "layers": layers, "dtype": dtype, "project": project}
        job = {**identity(net, images), **how}
        if processes.on_rank_zero(partial(holds, store, job)):
            return Trajectory.load(store)
    with placed(module, where):
        probe = sample(net, module, images)
        found = survey(module, probe, layers)
        recorder = Recorder.of(module, found.specs, pool, tap, probe)
        settings["axes"] = recorder.described()
        settings |= _other_sums(found)
        seen = recorder.follow(probe, where)
        stages, few = recorder.stages(), _kept(seen, narrow)
        if narrow is not None:
            points = len(images) * sum(row.ndim > 1 for row in few.values())
            settings["projected"] = {"width": project, **narrow.distortion(points)}
        about = outline(stages, images.class_names, settings)
        labels = as_labels(images.y, len(images))
        _require_classes(seen, labels)
        whole = whole_arrays(labels, _classifier(module, seen, few, stages[-1][0]))
        follow = _Following(recorder, images, normalization_for(net, images), where, narrow)
        if store is None:
            held = processes.raise_on_any(partial(_Held, few, len(images)))
            follow.into(held, batch_size)
            arrays = {key: processes.all_reduce_sum(array) for key, array in held.arrays.items()}
            return assembled({**arrays, **whole}, about)
        columns = {key: _column(row, dtype) for key, row in few.items()}
        with _written_together(store, job, len(images), columns) as writer:
            follow.into(writer, batch_size)
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
    """Follow labelled images as `trace` does, and hand out each batch as it comes.

    For `wgeo.collapse`, which needs no more at a time: ``wgeo.collapse(lambda: wgeo.stream(net,
    images))`` measures any number of images in the memory of a batch and of the class means.

    Parameters
    ----------
    net, images, pool, tap, layers, batch_size, device
        As in `trace`.

    Yields
    ------
    features : dict of str to ndarray, (b, d)
        By the layers' names, in execution order.
    labels : ndarray of int, (b,)
    predictions : ndarray of int, (b,), or None
        The network's decisions, where it returns logits.

    Raises
    ------
    FeatureError, ArgumentError
        As `trace`, when the first batch is asked for.
    """
    images, module, where = as_images(images), module_of(net), pick_device(device)
    _check(images, pool, tap, batch_size)
    with placed(module, where):
        probe = sample(net, module, images)
        found = survey(module, probe, layers)
        _other_sums(found)
        recorder = Recorder.of(module, found.specs, pool, tap, probe)
        names = ("input", "stem", *(spec.name for spec in found.specs))
        for x, y in images.batches(batch_size, normalization_for(net, images)):
            rows = recorder.follow(x, where)
            _require_classes(rows, y)
            decided = decisions(rows[LOGITS]) if LOGITS in rows else None
            yield {name: rows[features_key(name)] for name in names}, y, decided


def _other_sums(found: Blocks) -> dict[str, Any]:
    """Warn of sums outside the blocks, since blocks may have been missed; return them to record."""
    if not found.other_sums:
        return {}
    names = [f"{name or 'the network itself'} ({n})" for name, n in found.other_sums.items()]
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    warnings.warn(
        f"{len(found.specs)} residual blocks are followed. Tensors of equal shapes are also added "
        f"in the forward of {shown}, outside of them. If these are residual blocks too, name all "
        "that are to be followed with `layers=`.",
        WgeoWarning,
        stacklevel=3,
    )
    return {"other_sums": found.other_sums}


def _check(images: Images, pool: str, tap: str, batch_size: int) -> None:
    """Refuse what cannot be traced, before anything is computed."""
    pooling(pool)
    if tap not in ("post", "pre"):
        raise ArgumentError(f"Unknown tap {tap!r}; choose post (after the activation) or pre.")
    if batch_size < 1:
        raise ArgumentError(f"batch_size must be at least 1, not {batch_size}.")
    if len(images) < 2:
        raise FeatureError("At least two images are needed to say anything of a distribution.")


@runtime_checkable
class _Sink(Protocol):
    """Where rows go: this process's memory, or a store."""

    @property
    def row_bytes(self) -> int: ...

    def missing(self) -> list[slice]: ...

    def write(self, start: int, arrays: Batch) -> None: ...


class _Held:
    """Rows in arrays of this process; as many as fit into its memory."""

    def __init__(self, few: Batch, rows: int) -> None:
        self.rows = rows
        self.row_bytes = sum(row[0].nbytes for row in few.values())
        left = free()
        room = 0.8 * memory_limit() if left is None else 0.5 * left
        if rows * self.row_bytes > room:
            raise FeatureError(
                f"The features need {rows * self.row_bytes / 2**30:.2f} GiB, and there is memory "
                f"for {room / 2**30:.2f} GiB of them. "
                "Write them to disk (`store=DIR`), take fewer samples, or `pool='gap'` instead of "
                "'flat'."
            )
        self.arrays = {key: np.zeros((rows, *row.shape[1:]), row.dtype) for key, row in few.items()}

    def missing(self) -> list[slice]:
        return [slice(0, self.rows)]

    def write(self, start: int, arrays: Batch) -> None:
        for key, rows in arrays.items():
            self.arrays[key][start : start + len(rows)] = rows


@dataclass(frozen=True, eq=False)
class _Following:
    """Images, and how a network follows them."""

    recorder: Recorder
    images: Images
    normalization: Normalization
    where: torch.device
    narrow: Projection | None

    def into(self, sink: _Sink, batch_size: int) -> None:
        """Follow this process's share of the missing rows, and wait until all have theirs."""
        mine = _own_share(processes.on_rank_zero(sink.missing), batch_size)
        processes.raise_on_any(partial(self._write, sink, mine, batch_size))

    def _write(self, sink: _Sink, spans: list[slice], batch_size: int) -> None:
        """Follow images and write their rows, a few batches at a time."""
        batches = [
            (part, batch)
            for span in spans
            for part in shards(span, batch_size, sink.row_bytes)
            for batch in _cut(part, batch_size)
        ]
        held: list[Batch] = []
        for part, batch in track(batches, "tracing features"):
            x = self.normalization(self.images.x[batch])
            held.append(_kept(self.recorder.follow(x, self.where), self.narrow, batch.start))
            if batch.stop == part.stop:
                together = {key: np.concatenate([rows[key] for rows in held]) for key in held[0]}
                sink.write(part.start, together)
                held = []


def _cut(span: slice, size: int) -> list[slice]:
    """A range of rows as batches."""
    return [
        slice(start, min(start + size, span.stop)) for start in range(span.start, span.stop, size)
    ]


def _own_share(spans: Sequence[slice], batch_size: int) -> list[slice]:
    """This process's share of ranges of rows, in whole batches: the same whoever follows them."""
    batches = [batch for span in spans for batch in _cut(span, batch_size)]
    own: list[slice] = []
    for batch in batches[processes.shard(len(batches))]:
        if own and own[-1].stop == batch.start:
            own[-1] = slice(own[-1].start, batch.stop)
        else:
            own.append(batch)
    return own


@contextmanager
def _written_together(
    store: str | os.PathLike[str],
    job: dict[str, Any],
    rows: int,
    columns: dict[str, Column],
) -> Iterator[Writer]:
    """A store that every process writes its rows into, once the first has claimed the folder."""
    with ExitStack() as stack:
        ours: list[Writer] = []

        def claim(part: int = 0) -> None:
            ours.append(stack.enter_context(Writer(store, job, rows, columns, part)))

        part = processes.rank()
        processes.on_rank_zero(claim)
        processes.raise_on_any(lambda: None if ours else claim(part))
        yield ours[0]


def _kept(seen: Batch, narrow: Projection | None, start: int = 0) -> Batch:
    """What a trajectory keeps of a batch's rows: finite, and projected if asked."""
    kept: Batch = {}
    for key, rows in seen.items():
        if key in (HEAD, LOGITS):
            continue
        check_finite(torch.from_numpy(rows), f"layer {key.partition(':')[2]!r}", start)
        kept[key] = rows if narrow is None else narrow(rows)
    if LOGITS in seen:
        kept[PREDICTIONS] = decisions(seen[LOGITS])
    return kept


def _column(row: np.ndarray, dtype: str | None) -> Column:
    if row.ndim == 1:
        return Column("int64")
    return Column(row.dtype.name if dtype is None else dtype, row.shape[1])


def decisions(logits: Float[np.ndarray, "n K"]) -> Int[np.ndarray, " n"]:
    """The classes that a network decides for."""
    return logits.argmax(1).astype(np.int64)


def _require_classes(seen: Batch, labels: Int[np.ndarray, " n"]) -> None:
    """Refuse labels that the network has no class for."""
    logits = seen.get(LOGITS)
    if logits is not None and labels.max() >= logits.shape[1]:
        raise FeatureError(
            f"The data has label {labels.max()}, the network decides among {logits.shape[1]} "
            "classes. Is this the data set it was trained on?"
        )


def _classifier(module: nn.Module, seen: Batch, kept: Batch, last: str) -> Classifier | None:
    """The last linear layer, if it is true that it reads the last layer's features as kept."""
    head, read, features = classifier_of(module), seen.get(HEAD), kept[features_key(last)]
    if head is None or read is None or read.shape != features.shape:
        return None
    if not np.allclose(read, features, rtol=1e-4, atol=1e-4 * float(np.abs(read).max())):
        return None
    weight = as_numpy(head.weight)
    bias = np.zeros(len(weight), weight.dtype) if head.bias is None else as_numpy(head.bias)
    return Classifier(weight.copy(), bias.copy())
