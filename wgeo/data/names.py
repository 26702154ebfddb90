"""Check names of data sets and paths before any large library is imported."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import DataError
from ..storage.files import as_path
from ..text import printable, suggestion

# torchvision's class, its splits, and where its files are below the root.
TORCHVISION = {
    "mnist": ("MNIST", ("train", "test"), "MNIST/raw/"),
    "fashion_mnist": ("FashionMNIST", ("train", "test"), "FashionMNIST/raw/"),
    "cifar10": ("CIFAR10", ("train", "test"), "cifar-10-batches-py/"),
    "cifar100": ("CIFAR100", ("train", "test"), "cifar-100-python/"),
    "svhn": ("SVHN", ("train", "test", "extra"), "{split}_32x32.mat"),
    "stl10": ("STL10", ("train", "test"), "stl10_binary/"),
}
NAMES = ("digits", *TORCHVISION)
KINDS = ("npz", "folder", "zip", "csv", "tsv", "parquet")  # file types, and prefixes of paths

_ADVICE = {
    "npy": "A .npy file has one array without labels: save both, "
    "np.savez('data.npz', x=images, y=labels).",
    **dict.fromkeys(
        ("pt", "pth"),
        "Pass tensors in Python: x, y = torch.load(path, weights_only=True), then "
        "wgeo.trace(net, (x, y)).",
    ),
    **dict.fromkeys(
        ("tar", "tgz", "gz", "bz2", "xz", "7z", "rar"),
        "Unpack the archive and pass its folder, or a zip of it.",
    ),
    **dict.fromkeys(
        ("txt", "json", "jsonl", "xml", "xlsx"),
        "Write the names and labels into a CSV (file, label) in the folder of the images.",
    ),
    **dict.fromkeys(
        ("heic", "avif", "jxl", "svg", "pdf", "dng", "dcm", "nii"), "Convert images to PNG or JPEG."
    ),
}


def advice_on(ending: str) -> str:
    """Return advice on a file that wgeo does not read, given its extension without the dot."""
    return _ADVICE.get(
        ending.lower(),
        "Read it in Python and pass the pair (x, y), or a Dataset, to wgeo.trace or wgeo.analyze.",
    )


def locate(source: str | os.PathLike[str]) -> tuple[str, Path | None]:
    """Return a data set's name and None, or a prefix of `KINDS` ("" if not given) and a path.

    The data set, file or folder must exist.
    """
    name = os.fspath(as_path(source, "source"))
    if name in NAMES:
        return name, None
    kind, colon, location = name.partition(":")
    if not colon or kind not in KINDS:
        kind, location = "", name
    path = Path(location)
    try:
        exists = bool(location) and path.exists()
    except (OSError, ValueError) as error:  # a name too long, a null byte
        raise DataError(
            f"Cannot access the data at {printable(path, 300)!r}: {printable(str(error), 300)}"
        ) from error
    if not exists:
        raise DataError(
            f"No data set or file {printable(name, 300)!r}{suggestion(name, NAMES)}. Choose one "
            f"of {', '.join(NAMES)}, or pass a path: npz:PATH, folder:PATH (or a zip of a folder)."
        )
    return kind, path
