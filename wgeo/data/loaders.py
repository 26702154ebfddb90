"""Images from Python objects: pairs, and torch data sets and loaders."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import (
    BatchSampler,
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

from ..arrays.checks import as_array, as_labels, as_numpy, check_finite, check_plain
from ..errors import ArgumentError, DataError, WgeoError, WgeoWarning
from ..runtime.processes import all_gather
from ..runtime.progress import track
from .images import PRESETS, Images
from .pixels import pixel_tensor, refuse_black, refuse_empty
from .source import checked_labels

_X = ("pixel_values", "image", "img", "images", "x", "inputs")
_Y = ("label", "labels", "y", "target", "targets", "fine_label")
_BATCH = 64
# Normalized pixels are below 5 with any preset; the largest raw pixel of each image in CIFAR-10 and
# MNIST is at least 140.
_MAX_NORMALIZED = 50.0
_SHAPES = "The images of the data set have different shapes; add a transform that makes them equal."


def as_images(images: Any) -> Images:
    """Convert a pair, Dataset or DataLoader to labeled images.

    Parameters
    ----------
    images : Images, (x, labels), Dataset or DataLoader
        Pixels of type uint8 are divided by 255 and normalized for the network. All other types
        count as already normalized. A Dataset may be map-style or iterable; its ``transform``
        applies first, and PIL images are converted to uint8. A DataLoader that shuffles is read in
        the data set's own order, with a warning. If it does not shuffle but drops an incomplete
        last batch (``drop_last``), the images of that batch are left out.

    Raises
    ------
    ArgumentError
        The argument is something else, or a loader that can draw different samples each time; or
        the labels are not one class index per image.
    FeatureError
        The pixels of a pair are not numbers, or contain NaN or infinity.
    DataError
        The data set is empty or cannot be read; its items are not pairs of an image and a class
        index; its images have different shapes; a class index is 100,000 or more; or the largest
        uint8 pixel is 1.
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
        return _as_images(x, as_labels(y, len(x)), "arrays", (), ())
    raise ArgumentError(
        "images must be the result of wgeo.load_images, a pair (x, labels), or a torch Dataset or "
        f"DataLoader of such pairs; not {type(images).__name__}."
    )


def _as_images(
    x: torch.Tensor, labels: np.ndarray, name: str, classes: tuple[str, ...], notes: tuple[str, ...]
) -> Images:
    refuse_empty(x.shape, name)
    check_finite(x, "images")
    labels = checked_labels(labels, name)
    if x.dtype == torch.uint8:
        refuse_black(int(x.max()), name)
    low, high = (0.0, 0.0) if x.dtype == torch.uint8 or x.is_complex() else _range(x)
    if low >= 0 and high > _MAX_NORMALIZED:
        kind = "floats" if x.is_floating_point() else "integers"
        note = (
            f"the images are {kind} from {low:g} to {high:g}, which count as already normalized; "
            "pass uint8 pixels to have them normalized"
        )
        warnings.warn(f"{name}: {note}.", WgeoWarning, stacklevel=4)
        notes = (*notes, note)
    count = int(labels.max()) + 1
    names = classes if len(classes) >= count else tuple(str(k) for k in range(count))
    normalized = None if x.dtype == torch.uint8 else PRESETS["none"]
    return Images(x, labels, names, name, None, normalized, None, (), notes)


def _range(x: torch.Tensor) -> tuple[float, float]:
    # Some devices and versions of torch have no minimum of uint16, uint32 and uint64.
    values = x if x.is_floating_point() else as_numpy(x)
    return float(values.min()), float(values.max())


def _of_loader(loader: DataLoader) -> Images:
    data: Any = loader.dataset
    notes: list[str] = []
    with torch.random.fork_rng(devices=[]):  # a loader draws seeds for its workers
        if isinstance(data, IterableDataset):
            x, y = _read_iterable(loader)
        else:
            rows = _rows(loader, notes)
            x, y = _in_order(loader, data if rows is None else Subset(data, rows), notes)
    while isinstance(data, Subset):
        data = data.dataset
    name = type(data).__name__
    for note in notes:
        warnings.warn(f"{name}: {note}.", WgeoWarning, stacklevel=4)
    classes: Any = getattr(data, "classes", None)
    named = isinstance(classes, list | tuple) and all(isinstance(each, str) for each in classes)
    names = tuple(map(str, classes)) if named else ()  # strings of NumPy become str
    return _as_images(x, as_labels(y, len(x)), name, names, tuple(notes))


def _in_order(loader: DataLoader, data: Any, notes: list[str]) -> tuple[torch.Tensor, np.ndarray]:
    """Return images and labels in the order of a map-style data set, collated as by the loader."""
    if len(data) == 0:
        raise DataError("The data set is empty.")
    default = loader.collate_fn in (default_collate, default_convert)
    collate = _collate if default else loader.collate_fn
    batch_size = loader.batch_size or _BATCH

    def batches(rows: Sequence[int]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        ordered = DataLoader(
            Subset(data, rows),
            batch_size=batch_size,
            num_workers=loader.num_workers,
            collate_fn=collate,
            worker_init_fn=loader.worker_init_fn,
        )
        yield from _batches(ordered)

    (first, _), (again, _) = (next(batches([0])) for _ in range(2))
    if not np.array_equal(first.numpy(), again.numpy(), equal_nan=True):
        notes.append(
            "it returns a different image each time (a random transform); use the transform of the "
            "test images, so that results are reproducible"
        )
    shape = (len(data), *first.shape[1:])
    labels = np.zeros(len(data), dtype=np.int64)

    def read_rows(rows: slice) -> Iterator[np.ndarray]:
        row, span = rows.start or 0, range(*rows.indices(len(data)))
        for x, y in track(batches(span), "reading the data set", -(-len(span) // batch_size)):
            if x.shape[1:] != shape[1:]:
                raise DataError(_SHAPES)
            labels[row : row + len(x)] = as_labels(y)
            row += len(x)
            yield from x.numpy()

    x = pixel_tensor(read_rows, shape, first.numpy().dtype)
    return x, np.maximum.reduce(all_gather(labels))


def _rows(loader: DataLoader, notes: list[str]) -> list[int] | None:
    """Return the rows that a loader reads; None for all rows in the data set's order.

    They are in the loader's order if it is fixed, and in the data set's order if it shuffles.
    """
    batches: Any = loader.batch_sampler
    batched = type(batches) is BatchSampler
    plain = batches is None or batched
    sampler: Any = batches.sampler if batched else loader.sampler
    data: Any = loader.dataset
    if plain and isinstance(sampler, SequentialSampler | range | list | tuple):
        rows = [int(row) for row in sampler]
        if batched and batches.drop_last:
            rows = rows[: len(rows) - len(rows) % batches.batch_size]
        return None if rows == list(range(len(data))) else rows
    whole = isinstance(sampler, RandomSampler) and not sampler.replacement
    if plain and whole and len(sampler) == len(data):
        notes.append("the DataLoader shuffles; its data set was read in its own order")
        return None
    if isinstance(sampler, SubsetRandomSampler) and plain:
        notes.append("the DataLoader shuffles; its subset was read in the data set's order")
        return sorted(int(row) for row in sampler.indices)
    raise ArgumentError(
        f"A DataLoader with a {type(sampler if plain else batches).__name__} can draw different "
        "samples each time. Pass its data set, or a Subset of it, in a fixed order."
    )


def _collate(items: list[Any]) -> Any:
    """Collate as torch does, with PIL images converted to uint8 (c, h, w)."""
    return default_collate([_as_tensors(item) for item in items])


def _as_tensors(item: Any) -> Any:
    if isinstance(item, Image.Image):
        item = item if item.mode in ("L", "RGB") else item.convert("RGB")
        pixels = np.array(item)
        return torch.from_numpy(
            pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy()
        )
    if isinstance(item, Mapping):
        return {key: _as_tensors(item[key]) for key in item if key in (*_X, *_Y)}
    if isinstance(item, tuple | list):
        return tuple(_as_tensors(part) for part in item[:2])
    return item


def _pair(batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images and labels of a batch: a pair, or a mapping with the usual names."""
    if isinstance(batch, Mapping):
        keys = [next((key for key in names if key in batch), None) for names in (_X, _Y)]
        batch = () if None in keys else [batch[key] for key in keys]
    if isinstance(batch, tuple | list) and len(batch) >= 2:
        x, y = (torch.as_tensor(part) for part in batch[:2])
        y = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
        if x.ndim > 1 and y.ndim == 1 and len(x) == len(y):
            return x, y
    raise DataError(
        "The data set must return pairs of an image and a class index, or mappings with "
        f"{_X[0]!r} or {_X[1]!r} and {_Y[0]!r}."
    )


def _batches(loader: DataLoader) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield the batches of a loader; errors of its data set become a `DataError`."""
    try:
        for batch in loader:
            x, y = _pair(batch)
            yield x.detach().cpu(), y.detach().cpu()
    except WgeoError:
        raise
    except Exception as error:  # a user's data set can raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        raise DataError(
            f"The data set cannot be read ({reason}). Its items must be pairs of an image and a "
            "class index, with images of one shape: add a transform such as transforms.ToTensor()."
        ) from error


def _read_iterable(loader: DataLoader) -> tuple[torch.Tensor, np.ndarray]:
    """Return all images and labels of an iterable data set, in the loader's order."""
    parts = list(_batches(loader))
    if not parts:
        raise DataError("The data set is empty.")
    if len({x.shape[1:] for x, _ in parts}) > 1:
        raise DataError(_SHAPES)
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]).numpy()
