"""Classes of image files, from their folders or from a table in the same folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from ..errors import DataError
from ..text import first_names, printable
from .names import advice_on
from .source import chosen_splits, number_texts
from .tables import Entry, LabelTable, Parts, is_table, labels_of

Read = Callable[[str], bytes]

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff"),
    *(".webp", ".ppm", ".pgm", ".pbm"),
)
SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation", "eval", "dev")


@dataclass(frozen=True, eq=False)
class Listing:
    """The contents of a folder or zip: images, empty folders, tables, other file types."""

    images: list[Entry]
    empty: list[Parts]
    tables: list[Entry]
    others: Counter[str]


@dataclass(frozen=True, eq=False)
class LabeledFiles:
    """Image files in order, with classes numbered over all splits."""

    names: list[str]
    labels: Int[np.ndarray, " n"]
    class_names: tuple[str, ...]
    split: str | None
    notes: tuple[str, ...]


def classify_files(names: Iterable[str]) -> Listing:
    """Sort names by file type; a name that ends in ``/`` is a folder without files."""
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
    """Yield the files below a folder, relative to it, and empty folders as ``name/``."""

    def raise_error(error: OSError) -> None:
        raise DataError(f"Cannot read the folder {error.filename!r}: {error.strerror}.")

    visited = set()
    for folder, folders, files in os.walk(path, followlinks=True, onerror=raise_error):
        real = os.path.realpath(folder)
        if real in visited:  # a link to a folder that was already listed
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if not folders and all(name.startswith(".") for name in files):
            yield os.path.relpath(folder, path) + "/"
        yield from (os.path.relpath(os.path.join(folder, name), path) for name in files)


def arrange(listing: Listing, split: str | None, path: Path, read: Read) -> LabeledFiles:
    """Find the images of a split and their classes.

    The splits None and ``all`` select every split that has classes. `path` is for messages; `read`
    returns the bytes of a file in the listing.
    """
    deep = [entry for entry in listing.images if len(entry[0]) > 1]
    if not deep and not (listing.images and listing.tables):
        raise DataError(_no_images(listing, path))
    depth = _wrapper_depth(deep, split)
    files = [(parts[depth:], name) for parts, name in deep]
    empty = [
        parts[depth:] for parts in listing.empty if deep and parts[:depth] == deep[0][0][:depth]
    ]
    min_depths: dict[str, int] = {}
    for parts, _ in files:
        min_depths[parts[0]] = min(len(parts), min_depths.get(parts[0], len(parts)))
    tree = _ClassFolders(path, _groups(files, empty, _splits(min_depths, split)))
    named = [entry for entry in deep if entry[0][depth] == split]
    if tree.groups and split in (None, "all", *tree.groups):
        selected = list(tree.groups) if split in (None, "all") else [str(split)]
        labeled = [name for name in selected if not tree.unlabeled(name)]
        if not labeled:
            inside = [entry for entry in deep if entry[0][depth] in selected]
            return _from_table(listing, inside, split or "all", tree, read)
        rows = [(parts[1:], name) for parts, name in files if parts[0] in labeled]
        return _from_folders(rows, tree.union(labeled), split or "all", tree.notes(labeled))
    tops = set(min_depths) | {parts[0] for parts in empty}
    if tree.groups or (min_depths and set(min_depths) <= set(SPLITS)):  # splits without classes
        if not named and split not in (None, "all"):
            raise DataError(tree.no_split(split, sorted(tree.groups or min_depths)))
        return _from_table(listing, named or listing.images, split, tree, read, bool(named))
    if len(tops) < 2:
        return _from_table(listing, listing.images, split, tree, read, False)
    return _from_folders(files, sorted(tops), None)


def by_table(
    listing: Listing, table: str, split: str | None, path: Path, read: Read
) -> LabeledFiles:
    """Find the images named in a given table and their classes; see `arrange`."""
    tree = _ClassFolders(path / table, {})
    label_table = labels_of(listing.images, [((table,), table)], read, str(tree.path))
    if label_table is None:
        raise DataError(
            f"{tree.path} names no image below its folder; each row must contain the name of an "
            "image and its label, with a header such as file,label."
        )
    return _labeled(listing.images, label_table, split, tree, False)


def _no_images(listing: Listing, path: Path) -> str:
    others = ", ".join(
        f"{n} {printable(e, 20) or 'other'}" for e, n in listing.others.most_common(3)
    )
    contents = f" {len(listing.images)} images are outside folders." if listing.images else ""
    if others:
        ending = listing.others.most_common(1)[0][0].removeprefix(".")
        contents += f" There are other files ({others}). {advice_on(ending)}"
    return (
        f"No images in the folders of {path}; it needs one folder per class with images "
        f"({', '.join(SUFFIXES[:4])}, ...), such folders under train and test, or images and a CSV "
        f"of their names and labels.{contents}"
    )


def _wrapper_depth(files: list[Entry], split: str | None) -> int:
    """Return how many nested folders, each alone in its folder, enclose the splits or classes."""
    depth = 0
    while files:
        tops = {parts[depth] for parts, _ in files}
        shallow = min(len(parts) for parts, _ in files) - depth < 3
        if len(tops) > 1 or shallow or tops & {split, *SPLITS}:
            break
        depth += 1
    return depth


def _splits(min_depths: dict[str, int], split: str | None) -> list[str]:
    """Return the top folders that are splits; empty if the top folders are classes.

    Top folders that contain images are classes; those that contain only folders are splits. If both
    kinds occur, the latter are splits only if one of them has the name of a split: a test set
    without classes may be next to a training set. Otherwise all are classes.
    """
    splits = sorted(top for top, depth in min_depths.items() if depth > 2)
    if len(splits) < len(min_depths) and not {split, *SPLITS} & set(splits):
        return []
    return splits


def _groups(files: list[Entry], empty: list[Parts], splits: list[str]) -> dict[str, dict[str, int]]:
    """Return the class folders of each split, with their numbers of images."""
    groups: dict[str, dict[str, int]] = {name: {} for name in splits}
    for parts, _ in files:
        if parts[0] in groups:
            groups[parts[0]][parts[1]] = groups[parts[0]].get(parts[1], 0) + 1
    for parts in empty:
        if parts[0] in groups and len(parts) > 1:
            groups[parts[0]].setdefault(parts[1], 0)
    return groups


@dataclass(frozen=True, eq=False)
class _ClassFolders:
    """The class folders of each split."""

    path: Path
    groups: dict[str, dict[str, int]]

    def unlabeled(self, name: str) -> bool:
        """Return whether a split has only one folder, and this is not a class of another split."""
        own = self.groups[name]
        others = [classes for classes in self.groups.values() if len(classes) > 1]
        return len(own) == 1 and not any(own.keys() & classes for classes in others)

    def classes(self) -> list[str]:
        """Return the classes of all splits that have classes."""
        return self.union(name for name in self.groups if not self.unlabeled(name))

    def union(self, names: Iterable[str]) -> list[str]:
        """Return the sorted classes of splits, and of all splits that share classes with them.

        Splits without a common class belong to different tasks, as in data for few-shot learning.
        """
        classes = {label for name in names for label in self.groups[name]}
        rest = {name: set(labels) for name, labels in self.groups.items()}
        while sharing := [name for name, labels in rest.items() if labels & classes]:
            for name in sharing:
                classes |= rest.pop(name)
        return sorted(classes)

    def notes(self, names: list[str]) -> tuple[str, ...]:
        """Return a note if the training split lacks some of the numbered classes."""
        union = self.union(names)
        for name in [each for each in ("train", "training") if each in self.groups]:
            absent = [label for label in union if label not in self.groups[name]]
            if absent and len(absent) < len(union):
                return (
                    f"the split {name!r} lacks {len(absent)} of the {len(union)} classes "
                    f"({first_names(absent, 3)}). Classes are numbered over all splits, so a "
                    f"network trained on {name!r} alone may number them differently",
                )
        return ()

    def no_split(self, split: str | None, available: list[str]) -> str:
        has_splits = any(name in each.lower() for each in available for name in SPLITS)
        advice = (
            "" if has_splits else " If these are classes, move their images directly into them."
        )
        return (
            f"{self.path} has no split {split!r} with one folder per class; it has "
            f"{', '.join(map(repr, available))}: choose one of them (`split=`).{advice}"
        )

    def no_classes(self, split: str | None, tables: list[Entry]) -> str:
        """Return the message for images whose classes neither folders nor tables give."""
        labeled = [name for name in self.groups if not self.unlabeled(name)]
        problem = (
            self.no_split(split, labeled)
            if labeled
            else f"{self.path} has images of one class only, or without folders for the classes."
        )
        if tables:
            names = first_names([parts[-1] for parts, _ in tables], 3)
            problem += f" No row of {names} names one of its images."
        return (
            f"{problem} Put its images into one folder per class, or add a table of their names "
            "and labels to the folder: a CSV (file, label), ImageNet's LOC_val_solution.csv or "
            "Tiny ImageNet's val_annotations.txt."
        )


def _from_folders(
    files: list[Entry], classes: list[str], split: str | None, notes: tuple[str, ...] = ()
) -> LabeledFiles:
    index = {name: k for k, name in enumerate(classes)}
    files = sorted(files)
    labels = np.array([index[parts[0]] for parts, _ in files], dtype=np.int64)
    return LabeledFiles(
        [name for _, name in files], labels, tuple(classes), split, (*notes, *_order_notes(classes))
    )


def _order_notes(classes: list[str]) -> tuple[str, ...]:
    """Return a note if all class folders are numbers whose numeric order is not alphabetical."""
    if not all(name.isascii() and name.isdigit() for name in classes):
        return ()
    by_value = sorted(classes, key=int)
    if by_value == classes:
        return ()
    k = next(k for k in range(len(classes)) if classes[k] != by_value[k])
    return (
        f"the class folders are numbers, sorted alphabetically as in torchvision's ImageFolder: "
        f"class {k} is {classes[k]!r}, not {by_value[k]!r}. If the network was trained with their "
        "values as labels, pass a CSV of file names and labels",
    )


def _from_table(
    listing: Listing,
    files: list[Entry],
    split: str | None,
    tree: _ClassFolders,
    read: Read,
    inside: bool = True,
) -> LabeledFiles:
    """Label images from a table; if they are `inside` a split, ignore its column of splits."""
    table = labels_of(files, listing.tables, read, str(tree.path))
    if table is None:
        raise DataError(tree.no_classes(split, listing.tables))
    return _labeled(files, table, split, tree, inside)


def _labeled(
    files: list[Entry], table: LabelTable, split: str | None, tree: _ClassFolders, inside: bool
) -> LabeledFiles:
    selected_names, part = set(table.labels), split if inside else None
    if table.splits and not inside:
        chosen_splits(tree.path, split, sorted(set(table.splits.values())))
        part = "all" if split is None else split
        if part != "all":
            selected_names = {name for name, each in table.splits.items() if each == split}
    index, classes, notes = number_texts(table.values, tree.classes(), f"the table of {tree.path}")
    rows = [name for _, name in sorted(files) if name in selected_names]
    labels = np.array([index[table.labels[name]] for name in rows], dtype=np.int64)
    return LabeledFiles(rows, labels, classes, part, (*table.notes, *notes))
