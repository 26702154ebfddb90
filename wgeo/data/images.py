"""Labeled images, and the normalization of their pixels."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from ..arrays.checks import as_labels
from ..arrays.rows import LazyRows, copies_of
from ..errors import ArgumentError, DataError
from ..results import Displayed
from ..text import suggestion


@dataclass(frozen=True)
class Normalization:
    """Pixels p in [0, 1] become (p - mean) / std, channel by channel.

    Attributes
    ----------
    mean, std : tuple of float
        One value for all channels, or one per channel.
    name : str
        The preset's name; by default, the values in the format of `normalization`.

    Raises
    ------
    ArgumentError
        There are no means, or a different number of standard deviations; a value is not finite; or
        a standard deviation is not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str = ""

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            raise ArgumentError(
                f"A normalization needs equally many means and standard deviations, at least one; "
                f"it has {len(self.mean)} and {len(self.std)}."
            )
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)):
            raise ArgumentError(
                "The means and standard deviations of a normalization must be finite."
            )
        if min(self.std) <= 0:
            raise ArgumentError("The standard deviations of a normalization must be positive.")
        if not self.name:
            values = (
                ",".join(f"{value:g}" for value in numbers) for numbers in (self.mean, self.std)
            )
            object.__setattr__(self, "name", ";".join(values))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Normalize a batch (n, c, ...); uint8 pixels are first divided by 255.

        Raises
        ------
        DataError
            There is more than one mean, but not one for each channel.
        """
        x = x.float().div_(255) if x.dtype == torch.uint8 else x.float()
        if self.mean == (0.0,) and self.std == (1.0,):
            return x
        if len(self.mean) not in (1, x.shape[1]):
            raise DataError(
                f"Normalization {self.name!r} is for {len(self.mean)} channels; the images have "
                f"{x.shape[1]}. Choose another, such as `normalize='none'` or `normalize='half'`."
            )
        shape = (1, -1) + (1,) * (x.ndim - 2)
        mean = torch.tensor(self.mean, dtype=x.dtype, device=x.device).view(shape)
        std = torch.tensor(self.std, dtype=x.dtype, device=x.device).view(shape)
        return (x - mean) / std


# Means and standard deviations of the training sets' pixels; the tests recompute digits and MNIST.
PRESETS: dict[str, Normalization] = {
    name: Normalization(mean, std, name)
    for name, mean, std in (
        ("none", (0.0,), (1.0,)),
        ("half", (0.5,), (0.5,)),
        ("digits", (0.3057,), (0.3764,)),
        ("mnist", (0.1307,), (0.3081,)),
        ("fashion_mnist", (0.2860,), (0.3530,)),
        ("cifar10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
        ("cifar100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
        ("svhn", (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),
        ("stl10", (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)),
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    )
}


def normalization(spec: str | Normalization | None) -> Normalization:
    """Return the normalization for a preset's name (see `PRESETS`) or for values.

    Values have the form ``"mean,...;std,..."``, such as ``"0.5,0.5,0.5;0.25,0.25,0.25"``, with one
    value per channel or one for all. With None, pixels stay in [0, 1].

    Raises
    ------
    ArgumentError
        The name is unknown or the values are invalid.
    """
    if isinstance(spec, Normalization):
        return spec
    if spec is None:
        return PRESETS["none"]
    if not isinstance(spec, str):
        raise ArgumentError(f"normalize is a preset or 'mean,...;std,...', not {spec!r}.")
    if spec in PRESETS:
        return PRESETS[spec]
    try:
        mean, std = (tuple(map(float, values.split(","))) for values in spec.split(";"))
    except ValueError:
        raise ArgumentError(
            f"Unknown normalization {spec!r}{suggestion(spec, PRESETS)}; choose one of "
            f"{', '.join(PRESETS)}, or pass 'mean,...;std,...' such as '0.5,0.5,0.5;0.2,0.2,0.2'."
        ) from None
    return Normalization(mean, std, spec)


@dataclass(frozen=True, eq=False, repr=False)
class Images(Displayed):
    """Labeled images, in a fixed order.

    Attributes
    ----------
    x : Tensor, (n, c, h, w)
        Pixels: uint8 in [0, 255], or float32 in [0, 1]. With the preset ``none`` as `normalize`,
        floats may be normalized already.
    y : ndarray of int64, (n,)
        Class indices; a list or tensor of whole numbers is converted.
    class_names : tuple of str
        In the order of the indices; a class may have no images.
    name : str
        Name of the data set or file.
    split : str or None
        None if the source has no splits.
    normalize : Normalization or None
        The normalization passed explicitly, if any; it is preferred to all others.
    preset : str or None
        Name of the data set's own normalization, if known.
    skipped : tuple of str
        Images that could not be decoded and were skipped (``skip_broken=True``).
    notes : tuple of str
        Notes on what could be unexpected, such as the numbering of the classes.

    Raises
    ------
    ArgumentError, FeatureError
        `y` is not one whole number of at least 0 for each image, or a label has no class name.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> import wgeo
    >>> pixels = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    >>> pets = wgeo.Images(pixels, np.array([0, 1, 0, 1]), ("cat", "dog"), "pets")
    >>> pets.num_classes, pets.shape
    (2, (1, 8, 8))
    """

    x: torch.Tensor
    y: Any  # an array after construction
    class_names: tuple[str, ...]
    name: str
    split: str | None = None
    normalize: Normalization | None = None
    preset: str | None = None
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "y", as_labels(self.y, len(self.x)))
        largest = int(self.y.max())
        if largest >= self.num_classes:
            raise ArgumentError(
                f"class_names has {self.num_classes} names, too few for the label {largest}."
            )

    def __len__(self) -> int:
        return len(self.y)

    @property
    def num_classes(self) -> int:
        """Number of classes K, including those without images."""
        return len(self.class_names)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image, (c, h, w)."""
        return tuple(self.x.shape[1:])

    @property
    def fingerprint(self) -> str:
        """SHA-256 of pixels, shape and labels; class names and notes do not affect it."""
        x = self.x.contiguous().cpu().numpy()
        digest = hashlib.sha256(f"{x.dtype.str}{x.shape}".encode())
        digest.update(x.data)
        digest.update(np.ascontiguousarray(self.y, dtype="<i8").data)
        return digest.hexdigest()

    @cached_property
    def copies_of(self) -> Int[np.ndarray, " n"]:
        """For every image, the index of the first image of which it is a copy, or its own index.

        Copies differ by at most 1e-6 of the median distance between images; labels are ignored.
        """

        def pixels(rows: Any) -> np.ndarray:
            return self.x[rows].flatten(1).double().cpu().numpy()

        return copies_of(LazyRows((len(self), math.prod(self.shape)), pixels))

    @property
    def distinct(self) -> Int[np.ndarray, " m"]:
        """Indices of the images that are not copies of an earlier one."""
        return np.flatnonzero(self.copies_of == np.arange(len(self)))

    def facts(self, head: int | None = None) -> dict[str, Any]:
        """Return counts of samples and classes that affect the reliability of results.

        Parameters
        ----------
        head : int, optional
            Number of the network's classes, if known.

        Returns
        -------
        dict
            Numbers of images: ``samples``; ``samples_per_class``, in the smallest class that has
            any; ``distinct``; ``duplicates``, further copies of distinct images; ``relabelled``,
            duplicates whose label differs from that of the first copy. ``classes`` contains
            ``named``, the number of classes; ``present``, the number with images; ``missing``, at
            most ten names of those without; ``head``; and ``beyond``, the number of images whose
            class has no output in the head, or None if `head` is. ``notes`` are those of the
            images.

        Examples
        --------
        >>> import wgeo
        >>> facts = wgeo.load_images("digits", limit=50).facts(head=10)
        >>> facts["samples"], facts["samples_per_class"], facts["duplicates"]
        (50, 5, 0)
        """
        present, counts = np.unique(self.y, return_counts=True)
        copies = self.copies_of
        distinct = len(self.distinct)
        missing = np.setdiff1d(np.arange(self.num_classes), present)
        return {
            "samples": len(self),
            "samples_per_class": int(counts.min()),
            "distinct": distinct,
            "duplicates": len(self) - distinct,
            "relabelled": int((self.y != self.y[copies]).sum()),
            "classes": {
                "named": self.num_classes,
                "present": len(present),
                "missing": [self.class_names[k] for k in missing[:10]],
                "head": head,
                "beyond": None if head is None else int((self.y >= head).sum()),
            },
            "notes": list(self.notes),
        }

    def batches(
        self, size: int, normalization: Normalization
    ) -> Iterator[tuple[Float[torch.Tensor, "b ..."], Int[np.ndarray, " b"]]]:
        """Yield the images in order: normalized float32 pixels (b, c, h, w), and labels (b,).

        Examples
        --------
        >>> import wgeo
        >>> from wgeo.data.images import normalization
        >>> digits = wgeo.load_images("digits", limit=50)
        >>> for pixels, labels in digits.batches(32, normalization("0.5;0.25")):
        ...     print(tuple(pixels.shape), pixels.min().item(), pixels.max().item())
        (32, 1, 8, 8) -2.0 2.0
        (18, 1, 8, 8) -2.0 2.0
        """
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield normalization(self.x[part]), self.y[part]

    def _rows(self) -> list[dict[str, Any]]:
        counts = np.bincount(self.y, minlength=self.num_classes)
        return [
            {"class": name, "images": int(count)}
            for name, count in zip(self.class_names, counts, strict=True)
        ]

    def _description(self) -> str:
        split = f" ({self.split})" if self.split else ""
        shape = " x ".join(map(str, self.shape))
        normalization = self.preset if self.normalize is None else self.normalize.name
        return (
            f"{self.name}{split}, {len(self)} images of {shape} ({self.x.dtype}), "
            f"{self.num_classes} classes, normalization {normalization or 'unknown'}"
        )
