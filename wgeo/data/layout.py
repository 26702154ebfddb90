"""Where the classes of image files come from: their folders, or a table beside them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Int

from ..errors import DataError
from ..storage.files import printable
from .source import checked_labels, first_label
from .tables import Entry, Labelled, Parts, is_table, labels_of

Read = Callable[[str], bytes]

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff"),
    *(".webp", ".ppm", ".pgm", ".pbm"),
)
SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation", "eval", "dev")


@dataclass(frozen=True, eq=False)
class Listing:
    """What lies in a folder or zip: images, folders without files, tables, other endings."""

    images: list[Entry]
    empty: list[Parts]
    tables: list[Entry]
    others: Counter[str]


@dataclass(frozen=True, eq=False)
class Arranged:
    """Image files in order, with classes that are numbered over all splits."""

    names: list[str]
    labels: Int[np.ndarray, " n"]
    class_names: tuple[str, ...]
    split: str | None
    notes: tuple[str, ...]


def sorted_out(names: Iterable[str]) -> Listing:
    """Sort names by what they are; a name that ends in ``/`` is a folder without files."""
    listing = Listing([], [], [], Counter())
    for name in names:
        parts = tuple(part for part in name.replace("\\", "/").split("/") if part)
        if not parts or any(part.startswith(".") or part == "__MACOSX" for part in parts):
            continue
        if name.endswith("/"):
            listing.empty.append(parts)
        elif parts[-1].lower().endswith(SUFFIXES):
            listing.images.append((parts, name))
        elif is_table(parts[-1]):
            listing.tables.append((parts, name))
        else:
            listing.others[Path(parts[-1]).suffix.lower()[:20]] += 1
    listing.images.sort()
    return listing


def folder_names(path: Path) -> Iterator[str]:
    """Yield the files below a folder, relative to it, and folders without any as ``name/``."""

    def refuse(error: OSError) -> None:
        raise DataError(f"Cannot read the folder {error.filename!r}: {error.strerror}.")

    seen = set()
    for here, folders, files in os.walk(path, followlinks=True, onerror=refuse):
        real = os.path.realpath(here)
        if real in seen:  # a link that leads back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if not folders and all(name.startswith(".") for name in files):
            yield os.path.relpath(here, path) + "/"
        yield from (os.path.relpath(os.path.join(here, name), path) for name in files)


def arrange(listing: Listing, split: str | None, path: Path, read: Read) -> Arranged:
    """Say which images a split has, and their classes.

    Parameters
    ----------
    listing : Listing
    split : str or None
        None and ``all`` take every split that has classes.
    path : Path
        For messages.
    read : callable
        Bytes of a file of the listing.

    Raises
    ------
    DataError
        No images, the split missing (what is there is listed), images without classes.
    """
    deep = [entry for entry in listing.images if len(entry[0]) > 1]
    if not deep and not (listing.images and listing.tables):
        raise DataError(_nothing(listing, path))
    wrap = _wrapper(deep, split)
    files = [(parts[wrap:], name) for parts, name in deep]
    empty = [parts[wrap:] for parts in listing.empty if deep and parts[:wrap] == deep[0][0][:wrap]]
    least: dict[str, int] = {}
    for parts, _ in files:
        least[parts[0]] = min(len(parts), least.get(parts[0], len(parts)))
    about = _About(path, _groups(files, empty, _splits(least, split)))
    named = [entry for entry in deep if entry[0][wrap] == split]
    if about.groups and split in (None, "all", *about.groups):
        wanted = list(about.groups) if split in (None, "all") else [str(split)]
        known = [name for name in wanted if not about.unlabelled(name)]
        if not known:
            inside = [entry for entry in deep if entry[0][wrap] in wanted]
            return _from_table(listing, inside, split or "all", about, read)
        rows = [(parts[1:], name) for parts, name in files if parts[0] in known]
        return _from_folders(rows, about.union(known), split or "all", about.lacking(known))
    tops = set(least) | {parts[0] for parts in empty}
    if about.groups or (least and set(least) <= set(SPLITS)):  # splits without classes
        if not named and split not in (None, "all"):
            raise DataError(about.missing(split, sorted(about.groups or least)))
        return _from_table(listing, named or listing.images, split, about, read, bool(named))
    if len(tops) < 2:
        return _from_table(listing, listing.images, split, about, read, False)
    return _from_folders(files, sorted(tops), None)


def by_table(listing: Listing, table: str, split: str | None, path: Path, read: Read) -> Arranged:
    """Say which images a table that was asked for names, and their classes; see `arrange`."""
    about = _About(path / table, {})
    only = replace(listing, tables=[((table,), table)])
    found = labels_of(only.images, only.tables, read, str(about.path))
    if found is None:
        raise DataError(
            f"{about.path} names no image below its folder; wanted are rows of an image's name "
            "and its label, with a header such as file,label."
        )
    return _from_table(only, only.images, split, about, read, False)


def _nothing(listing: Listing, path: Path) -> str:
    others = ", ".join(
        f"{n} {printable(e, 20) or 'other'}" for e, n in listing.others.most_common(3)
    )
    there = f" There are {len(listing.images)} images outside folders." if listing.images else ""
    there += f" It holds other files ({others}); convert images to PNG or JPEG." if others else ""
    return (
        f"No images in the folders of {path}; wanted is one folder a class with images "
        f"({', '.join(SUFFIXES[:4])}, ...) in it, such folders under train and test, or images "
        f"and a CSV of their names and labels.{there}"
    )


def _wrapper(files: list[Entry], split: str | None) -> int:
    """How many folders wrap everything, none of which is a split or the class."""
    depth = 0
    while files:
        tops = {parts[depth] for parts, _ in files}
        shallow = min(len(parts) for parts, _ in files) - depth < 3
        if len(tops) > 1 or shallow or tops & {split, *SPLITS}:
            break
        depth += 1
    return depth


def _splits(least: dict[str, int], split: str | None) -> list[str]:
    """The top folders that are splits; none if images lie directly in class folders.

    A top folder that holds images itself is a class; one that holds only folders is a split. If
    both are there, a split's name decides: a training set may have a test set without classes
    beside it, and one of many classes may have its images in folders of their own.
    """
    splits = sorted(top for top, depth in least.items() if depth > 2)
    if len(splits) < len(least) and not {split, *SPLITS} & set(splits):
        return []
    return splits


def _groups(files: list[Entry], empty: list[Parts], splits: list[str]) -> dict[str, dict[str, int]]:
    """The class folders of each split, with their numbers of images."""
    groups: dict[str, dict[str, int]] = {name: {} for name in splits}
    for parts, _ in files:
        if parts[0] in groups:
            groups[parts[0]][parts[1]] = groups[parts[0]].get(parts[1], 0) + 1
    for parts in empty:
        if parts[0] in groups and len(parts) > 1:
            groups[parts[0]].setdefault(parts[1], 0)
    return groups


@dataclass(frozen=True, eq=False)
class _About:
    """The class folders of each split."""

    path: Path
    groups: dict[str, dict[str, int]]

    def unlabelled(self, name: str) -> bool:
        """Whether a split has all its images in one folder that is no class of another split."""
        mine = self.groups[name]
        others = [classes for classes in self.groups.values() if len(classes) > 1]
        return len(mine) == 1 and not any(mine.keys() & classes for classes in others)

    def classes(self) -> list[str]:
        """The classes of all splits that have any."""
        return self.union(name for name in self.groups if not self.unlabelled(name))

    def union(self, names: Iterable[str]) -> list[str]:
        """Return the classes of some splits and of all that share one with them, in order.

        Splits without a common class are of different tasks, as in sets for few-shot learning.
        """
        classes = {label for name in names for label in self.groups[name]}
        rest = {name: set(labels) for name, labels in self.groups.items()}
        while sharing := [name for name, labels in rest.items() if labels & classes]:
            for name in sharing:
                classes |= rest.pop(name)
        return sorted(classes)

    def lacking(self, names: list[str]) -> tuple[str, ...]:
        """What is to be said if the training split has fewer classes than the numbering."""
        union = self.union(names)
        for name in {"train", "training"} & self.groups.keys():
            lacking = [label for label in union if label not in self.groups[name]]
            if lacking and len(lacking) < len(union):
                return (
                    f"the split {name!r} lacks {len(lacking)} of the {len(union)} classes "
                    f"({_few(lacking)}), which are numbered over all splits: a network that was "
                    f"trained on {name!r} alone may number its classes differently",
                )
        return ()

    def missing(self, split: str | None, there: list[str]) -> str:
        """What to say of a split that is not there, or has no classes."""
        return (
            f"{self.path} has no split {split!r} with a folder for each class; it has "
            f"{', '.join(map(repr, there))}."
        )

    def without(self, split: str | None) -> str:
        """What to say of images whose classes nothing tells."""
        labelled = [name for name in self.groups if not self.unlabelled(name)]
        why = (
            self.missing(split, labelled)
            if labelled
            else f"{self.path} has images of one class only, or without folders for the classes."
        )
        return (
            f"{why} Put its images into one folder a class, or put a table of their names and "
            "labels beside them: a CSV (file, label), ImageNet's LOC_val_solution.csv or Tiny "
            "ImageNet's val_annotations.txt."
        )


def _few(names: Iterable[str]) -> str:
    shown = [printable(name, 40) for name in names]
    return ", ".join(shown[:3]) + (", ..." if len(shown) > 3 else "")


def _from_folders(
    files: list[Entry], classes: list[str], split: str | None, notes: tuple[str, ...] = ()
) -> Arranged:
    index = {name: k for k, name in enumerate(classes)}
    files = sorted(files)
    labels = np.array([index[parts[0]] for parts, _ in files], dtype=np.int64)
    return Arranged(
        [name for _, name in files], labels, tuple(classes), split, (*notes, *_order(classes))
    )


def _order(classes: list[str]) -> tuple[str, ...]:
    """What is to be said where all class folders are numbers whose order is not the letters'."""
    if not all(name.isascii() and name.isdigit() for name in classes):
        return ()
    by_value = sorted(classes, key=int)
    if by_value == classes:
        return ()
    k = next(k for k in range(len(classes)) if classes[k] != by_value[k])
    return (
        f"the class folders are numbers, taken in the order of their letters, as torchvision's "
        f"ImageFolder takes them: class {k} is {classes[k]!r}, not {by_value[k]!r}. If the network "
        "was trained with their values as labels, give a CSV of file names and labels",
    )


def _from_table(
    listing: Listing,
    files: list[Entry],
    split: str | None,
    about: _About,
    read: Read,
    inside: bool = True,
) -> Arranged:
    """Images whose folders are no classes: a table beside them must name their classes.

    `inside` says that the files lie in the split's own folder; if not, a table may know splits.
    """
    found = labels_of(files, listing.tables, read, str(about.path))
    if found is None:
        raise DataError(about.without(split))
    if inside or not found.splits:
        chosen, used = set(found.labels), split if inside else None
    else:
        chosen, used = _part(found, split, about.path)
    index, classes, notes = numbered(found.every, about.classes(), f"the table of {about.path}")
    rows = [name for _, name in sorted(files) if name in chosen]
    labels = np.array([index[found.labels[name]] for name in rows], dtype=np.int64)
    return Arranged(rows, labels, classes, used, (*found.notes, *notes))


def _part(found: Labelled, split: str | None, path: Path) -> tuple[set[str], str | None]:
    """The images of a split that the table knows."""
    there = sorted(set(found.splits.values()))
    if split not in (None, "all", *there):
        raise DataError(
            f"{path} has no split {split!r}; its table has {', '.join(map(repr, there))}."
        )
    if split in (None, "all"):
        return set(found.labels), "all"
    return {name for name, part in found.splits.items() if part == split}, split


def numbered(
    labels: set[str], classes: list[str], where: str
) -> tuple[dict[str, int], tuple[str, ...], tuple[str, ...]]:
    """Number labels given as text: by value if all are numbers, else with `classes`, sorted.

    Returns
    -------
    index : dict of str to int
    class_names : tuple of str
    notes : tuple of str
    """
    if not all(label.isascii() and label.isdigit() and len(label) < 10 for label in labels):
        names = sorted(labels.union(classes))
        return {name: k for k, name in enumerate(names)}, tuple(names), ()
    values = np.array([int(label) for label in labels])
    if int(values.max()) < len(classes):  # indices of the folders beside them
        return {label: int(label) for label in labels}, tuple(classes), ()
    checked_labels(values, where, None)
    first, notes = first_label(values)
    index = {label: int(label) - first for label in labels}
    return index, tuple(str(k) for k in range(first, int(values.max()) + 1)), notes
