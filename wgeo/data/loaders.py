"""Images out of what Python programs hold them in: pairs, data sets and loaders of torch."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    default_collate,
    default_convert,
)

from ..arrays.checks import as_array, as_labels, check_finite, check_plain
from ..errors import ArgumentError, DataError, WgeoError, WgeoWarning
from ..runtime.processes import all_gather
from ..runtime.progress import track
from .images import PRESETS, Images
from .pixels import kept

_X = ("pixel_values", "image", "img", "images", "x", "inputs")
_Y = ("label", "labels", "y", "target", "targets", "fine_label")
_BATCH = 64
_SHAPES = (
    "The images of the data set have several shapes; give it a transform that makes them alike."
)
_TAKEN = (
    "images must come from wgeo.load_images, be a pair (x, labels), or a Dataset or DataLoader of "
    "torch that gives such pairs"
)


def as_images(images: Any) -> Images:
    """Return labelled images of whatever stands for them.

    Parameters
    ----------
    images : Images, (x, labels), Dataset or DataLoader
        A pair is taken as it is: floats count as normalized by whoever made them, uint8 is
        divided by 255 and normalized as the network asks. So are the pairs of a map-style or
        iterable Dataset, whose ``transform`` is applied; PIL images are taken as uint8. A
        DataLoader that shuffles is read in the data set's own order, which is said: a result must
        not depend on a draw.

    Raises
    ------
    ArgumentError
        Something else, or a loader that draws samples with replacement.
    DataError
        Items that are no pairs of an image and a class index, or of several shapes.
    """
    if isinstance(images, Images):
        return images
    if isinstance(images, DataLoader):
        return _of_loader(images)
    if isinstance(images, Dataset) and not isinstance(images, tuple | list):
        return _of_loader(DataLoader(images, batch_size=_BATCH, collate_fn=_collate))
    if isinstance(images, tuple | list) and len(images) == 2:
        x, y = images
        if isinstance(x, torch.Tensor):
            check_plain(x, "images")
        else:
            x = torch.from_numpy(np.ascontiguousarray(as_array(x, "images")))
        return _as_given(x, as_labels(y, len(x)), "arrays", (), ())
    raise ArgumentError(f"{_TAKEN}; not {type(images).__name__}.")


def _as_given(
    x: torch.Tensor, labels: np.ndarray, name: str, classes: tuple[str, ...], notes: tuple[str, ...]
) -> Images:
    check_finite(x, "images")
    most = int(labels.max()) + 1
    names = classes if len(classes) >= most else tuple(str(k) for k in range(most))
    normalized = None if x.dtype == torch.uint8 else PRESETS["none"]
    return Images(x, labels, names, name, None, normalized, None, (), notes)


def _of_loader(loader: DataLoader) -> Images:
    data: Any = loader.dataset
    notes: list[str] = []
    with torch.random.fork_rng(devices=[]):  # a loader draws seeds for its workers
        if isinstance(data, IterableDataset):
            x, y = _gathered(loader)
        else:
            rows = _rows(loader, notes)
            x, y = _in_order(loader, data if rows is None else Subset(data, rows), notes)
    while isinstance(data, Subset):
        data = data.dataset
    name = type(data).__name__
    for note in notes:
        warnings.warn(f"{name}: {note}.", WgeoWarning, stacklevel=4)
    classes = getattr(data, "classes", None)
    known = isinstance(classes, list | tuple) and all(isinstance(each, str) for each in classes)
    names = tuple(map(str, classes or ())) if known else ()
    return _as_given(x, as_labels(y, len(x)), name, names, tuple(notes))


def _in_order(loader: DataLoader, data: Any, notes: list[str]) -> tuple[torch.Tensor, np.ndarray]:
    """Images and labels of a map-style data set, each read once, by a loader's workers."""
    if len(data) == 0:
        raise DataError("The data set is empty.")
    usual = loader.collate_fn in (default_collate, default_convert)
    collate = _collate if usual else loader.collate_fn

    def batches(rows: Sequence[int]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        reading = DataLoader(
            Subset(data, rows),
            batch_size=loader.batch_size or _BATCH,
            num_workers=loader.num_workers,
            collate_fn=collate,
            worker_init_fn=loader.worker_init_fn,
        )
        yield from _pairs(reading)

    (first, _), (again, _) = (next(batches([0])) for _ in range(2))
    if not np.array_equal(first.numpy(), again.numpy(), equal_nan=True):
        notes.append(
            "it gives another image each time (a random transform); without one, as for testing, "
            "a result can be computed again"
        )
    shape = (len(data), *first.shape[1:])
    labels = np.zeros(len(data), dtype=np.int64)

    def decoded(rows: slice) -> Iterator[np.ndarray]:
        row, span = rows.start or 0, range(*rows.indices(len(data)))
        for x, y in track(batches(span), "reading the data set", -(-len(span) // _BATCH)):
            if x.shape[1:] != shape[1:]:
                raise DataError(_SHAPES)
            labels[row : row + len(x)] = as_labels(y)
            row += len(x)
            yield from x.numpy()

    x = kept(decoded, shape, first.numpy().dtype)
    return x, np.maximum.reduce(all_gather(labels))


def _rows(loader: DataLoader, notes: list[str]) -> list[int] | None:
    """The rows that a loader goes over, in the data set's order; None: all of them."""
    sampler: Any = loader.sampler
    batches = getattr(loader, "batch_sampler", None)
    plain = batches is None or type(batches) is torch.utils.data.BatchSampler
    if plain and isinstance(sampler, SequentialSampler):
        return None
    whole = isinstance(sampler, RandomSampler) and not sampler.replacement
    data: Any = loader.dataset
    if plain and whole and len(sampler) == len(data):
        notes.append("the DataLoader shuffles; its data set was read in its own order")
        return None
    if isinstance(sampler, SubsetRandomSampler) and plain:
        notes.append("the DataLoader shuffles; its subset was read in the data set's order")
        return sorted(int(row) for row in sampler.indices)
    raise ArgumentError(
        f"A DataLoader with a {type(sampler if plain else batches).__name__} draws samples anew "
        "each time. Give its data set, or a Subset of it, in an order that stays."
    )


def _collate(items: list[Any]) -> Any:
    """torch's own, but images of PIL become uint8 (c, h, w)."""
    return default_collate([_plain(item) for item in items])


def _plain(item: Any) -> Any:
    if isinstance(item, Image.Image):
        item = item if item.mode in ("L", "RGB") else item.convert("RGB")
        pixels = np.array(item)
        return torch.from_numpy(
            pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy()
        )
    if isinstance(item, Mapping):
        return {key: _plain(item[key]) for key in item if key in (*_X, *_Y)}
    if isinstance(item, tuple | list):
        return tuple(_plain(part) for part in item[:2])
    return item


def _pair(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels of a batch: a pair, or a mapping with the usual names."""
    if isinstance(batch, Mapping):
        keys = [next((key for key in names if key in batch), None) for names in (_X, _Y)]
        batch = () if None in keys else [batch[key] for key in keys]
    if isinstance(batch, tuple | list) and len(batch) >= 2:
        x, y = (torch.as_tensor(part) for part in batch[:2])
        y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
        if x.ndim > 1 and y.ndim == 1 and len(x) == len(y):
            return x, y
    raise DataError(
        "The data set must give pairs of an image and a class index, or mappings with "
        f"{_X[0]!r} or {_X[1]!r} and {_Y[0]!r}."
    )


def _pairs(loader: DataLoader) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The batches of a loader, checked; whatever its data set raises is said."""
    try:
        for batch in loader:
            x, y = _pair(batch)
            yield x.detach().cpu(), y.detach().cpu()
    except WgeoError:
        raise
    except Exception as error:  # a data set of one's own can raise anything
        why = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        raise DataError(
            f"The data set cannot be read ({why}). Its items must be pairs of an image and a class "
            "index, images of one shape: give it a transform such as transforms.ToTensor()."
        ) from error


def _gathered(loader: DataLoader) -> tuple[torch.Tensor, np.ndarray]:
    """All images and labels of a loader that has no length, in its order; one pass."""
    parts = list(_pairs(loader))
    if not parts:
        raise DataError("The data set is empty.")
    if len({x.shape[1:] for x, _ in parts}) > 1:
        raise DataError(_SHAPES)
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]).numpy()
