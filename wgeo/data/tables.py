"""Classes of images from a table beside them: a CSV, or the lists that ImageNet's sets ship."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..errors import DataError
from ..storage.files import printable

Parts = tuple[str, ...]
Entry = tuple[Parts, str]  # a path's parts, and the name by which the file is read

LARGEST = 2**26  # bytes of a table: a million rows take about half of it
_MOST = 50  # tables that are tried
_LISTS = re.compile(
    r"(train|val|test)(_annotations|_list)?|labels|annotations|.*ground_truth.*|.*synset_labels.*"
)
_FILE = (
    *("file", "filename", "file_name", "filepath", "file_path", "path", "name", "fname"),
    *("image", "image_name", "imagename", "image_id", "imageid", "image_path", "img", "id"),
)
_LABEL = (
    *("label", "labels", "class", "category", "target", "targets", "y", "wnid", "synset"),
    *("class_name", "classname", "label_name", "class_id", "predictionstring"),
)
_SPLIT = ("split", "subset", "partition", "set")


@dataclass(frozen=True, eq=False)
class Labelled:
    """Labels of image files, as text, and all labels that the table has."""

    labels: dict[str, str]
    every: set[str]
    splits: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def is_table(name: str) -> bool:
    """Whether a file may say the classes of images."""
    stem, _, ending = name.lower().rpartition(".")
    if stem.startswith("sample_submission"):
        return False
    return ending in ("csv", "tsv") or (ending == "txt" and bool(_LISTS.fullmatch(stem)))


def labels_of(
    files: list[Entry], tables: list[Entry], read: Callable[[str], bytes], place: str
) -> Labelled | None:
    """Return the labels of image files from the table that names most of them; None if none does.

    An image is only ever taken from `files`: whatever path a table gives, nothing else is opened.

    Raises
    ------
    DataError
        A table that names files and cannot be read, or two of which neither names more.
    """
    found: list[tuple[str, Labelled]] = []
    refused: list[DataError] = []
    for parts, name in sorted(tables, key=lambda entry: (len(entry[0]), entry))[:_MOST]:
        try:
            labelled = _labelled(
                _Finder(files, parts[:-1]), _text(read(name), parts[-1]), parts[-1]
            )
        except DataError as error:
            refused.append(error)
            continue
        if labelled.labels:
            found.append((name, labelled))
    if not found:
        if refused:
            raise DataError(f"{place}: {refused[0]}") from refused[0]
        return None
    found.sort(key=lambda one: -len(one[1].labels))
    most = [one for one in found if len(one[1].labels) == len(found[0][1].labels)]
    if any(other.labels != most[0][1].labels for _, other in most[1:]):
        named = ", ".join(printable(name, 100) for name, _ in most[:3])
        raise DataError(
            f"{place} has several tables with other labels for the same images: {named}. Give the "
            "path of one of them in place of the folder."
        )
    return most[0][1]


def _text(body: bytes, name: str) -> str:
    if len(body) > LARGEST:
        raise DataError(f"The table {printable(name)!r} is too large ({len(body)} bytes).")
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError:
        return body.decode("latin-1")


class _Finder:
    """Image files by what a table may call them."""

    def __init__(self, files: Iterable[Entry], home: Parts) -> None:
        self.home = home
        self.order = [name for _, name in sorted(files)]
        self.paths: dict[Parts, str] = {}
        self.short: dict[str, str | None] = {}  # None: several have it
        for parts, name in files:
            self.paths[parts] = name
            for key in {parts[-1], parts[-1].rpartition(".")[0]}:
                self.short[key] = None if key in self.short else name

    def __call__(self, said: str) -> str | None:
        parts = tuple(part for part in said.replace("\\", "/").split("/") if part not in ("", "."))
        if not parts:
            return None
        for path in (self.home + parts, parts):
            if path in self.paths:
                return self.paths[path]
        return self.short.get(parts[-1])


def _labelled(find: _Finder, text: str, name: str) -> Labelled:
    rows = _rows(text, name)
    if not rows:
        return Labelled({}, set())
    if max(map(len, rows)) == 1:
        return _in_order(find, [row[0] for row in rows], name)
    head = [cell.strip().lower() for cell in rows[0]]
    file, label = _column(head, _FILE), _column(head, _LABEL)
    if file is not None and label is None and len(head) == 2:
        label = 1 - file
    split = _column(head, _SPLIT) if file is not None else None
    if file is None or label is None:
        file, label, split = 0, 1, None
    else:
        rows = rows[1:]
    labels: dict[str, str] = {}
    splits: dict[str, str] = {}
    every, absent = set(), 0
    for row in rows:
        if len(row) <= max(file, label):
            continue
        what = row[label].strip()
        if head[label] == "predictionstring":  # and then a box, several times
            what = what.split(" ")[0]
        image = find(row[file].strip())
        if image is None:
            absent += 1
            every.add(what)
            continue
        if labels.setdefault(image, what) != what:
            raise DataError(
                f"{printable(name)} gives {printable(image)!r} two labels: "
                f"{printable(labels[image])!r} and {printable(what)!r}."
            )
        every.add(what)
        if split is not None and split < len(row):
            splits[image] = row[split].strip()
    if not labels:
        return Labelled({}, set())
    notes = (f"{absent} rows of {printable(name)} name no image that is there",) if absent else ()
    return Labelled(labels, every, splits, notes)


def _in_order(find: _Finder, labels: list[str], name: str) -> Labelled:
    """A list of labels alone: as many as there are images, in the order of the images' names."""
    if "ground_truth" in name.lower() and all(label.isdigit() for label in labels):
        raise DataError(
            f"{printable(name)} holds the ImageNet development kit's own numbers, which no network "
            "counts by. Put LOC_val_solution.csv, a val.txt of names and class indices, or a list "
            "of one WordNet id a line (imagenet_2012_validation_synset_labels.txt) beside it in "
            "its place, or sort the images into one folder a class."
        )
    if len(labels) != len(find.order):
        return Labelled({}, set())
    return Labelled(dict(zip(find.order, labels, strict=True)), set(labels))


def _column(head: list[str], names: Iterable[str]) -> int | None:
    return next((head.index(name) for name in names if name in head), None)


def _rows(text: str, name: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return []
    first = lines[0]
    if "\t" in first:
        between = "\t"
    elif name.lower().endswith(".txt"):
        return [line.rsplit(None, 1) for line in lines]
    else:
        between = ";" if first.count(";") > first.count(",") else ","
    try:
        return [row for row in csv.reader(io.StringIO(text), delimiter=between) if row]
    except csv.Error as error:
        raise DataError(f"The table {printable(name)!r} cannot be read: {error}.") from error
