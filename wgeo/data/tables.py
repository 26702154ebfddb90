"""Classes of images from a table: a CSV, or the lists that come with ImageNet data sets."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ..errors import DataError
from ..text import counted, first_names, printable

Parts = tuple[str, ...]
Entry = tuple[Parts, str]  # the parts of a path, and the name for reading the file

MAX_BYTES = 2**26  # of a table; a million rows take about half of this
_MAX_TABLES = 50
_LISTS = re.compile(
    r"(train|val|test)(_annotations|_list)?|(file_?)?list|labels|annotations|.*ground_truth.*|.*synset_labels.*"
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
class LabelTable:
    """Labels of images, as read from a table."""

    labels: dict[str, str]  # by image file
    values: set[str]  # all labels, including those of missing images
    splits: dict[str, str] = field(default_factory=dict)  # by image file, if there is a column
    notes: tuple[str, ...] = ()  # numbers of rows that were ignored, and why


def is_table(name: str) -> bool:
    """Return whether a file may be a table of labels."""
    stem, _, suffix = name.lower().rpartition(".")
    if stem.startswith("sample_submission"):
        return False
    return suffix in ("csv", "tsv", "jsonl") or (suffix == "txt" and bool(_LISTS.fullmatch(stem)))


def labels_of(
    files: list[Entry], tables: list[Entry], read: Callable[[str], bytes], source: str
) -> LabelTable | None:
    """Return the labels from the table that names the most image files; None if no table does.

    Paths in a table are only compared with `files`, never opened. A table that cannot be read is an
    error only if no other table names an image.
    """
    matches: list[tuple[str, LabelTable]] = []
    errors: list[DataError] = []
    for parts, name in sorted(tables, key=lambda entry: (len(entry[0]), entry))[:_MAX_TABLES]:
        try:
            table = _parse(_Finder(files, parts[:-1]), _text(read, name, parts[-1]), parts[-1])
        except DataError as error:
            errors.append(error)
            continue
        if table.labels:
            matches.append((name, table))
    if not matches:
        if errors:
            raise DataError(f"{source}: {errors[0]}") from errors[0]
        return None
    matches.sort(key=lambda match: -len(match[1].labels))
    max_count = len(matches[0][1].labels)
    best = [match for match in matches if len(match[1].labels) == max_count]
    if any(other.labels != best[0][1].labels for _, other in best[1:]):
        names = ", ".join(printable(name, 100) for name, _ in best[:3])
        raise DataError(
            f"{source} has several tables with different labels for the same images: {names}. Pass "
            "the path of one of them instead of the folder."
        )
    return best[0][1]


def _text(read: Callable[[str], bytes], path: str, name: str) -> str:
    try:
        body = read(path)
    except Exception as error:  # a file is missing or not readable, or a member of a zip is damaged
        reason = printable(str(error), 200)
        raise DataError(f"The table {printable(name)!r} cannot be read: {reason}.") from error
    if len(body) > MAX_BYTES:
        raise DataError(f"The table {printable(name)!r} is too large ({len(body)} bytes).")
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):  # Excel's "Unicode text"
        return body.decode("utf-16", errors="replace")
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError:
        return body.decode("latin-1")


class _Finder:
    """Finds the image file that a table refers to: by its path, or by a unique name."""

    def __init__(self, files: Iterable[Entry], folder: Parts) -> None:
        self.folder = folder
        self.order = [name for _, name in sorted(files)]
        self.paths: dict[Parts, str] = {}
        self.short: dict[str, str | None] = {}  # None: ambiguous
        for parts, name in files:
            self.paths[parts] = name
            for key in {parts[-1], parts[-1].rpartition(".")[0]}:
                self.short[key] = None if key in self.short else name

    def __call__(self, reference: str) -> str | None:
        parts = tuple(
            part for part in reference.replace("\\", "/").split("/") if part not in ("", ".")
        )
        if not parts:
            return None
        for path in (self.folder + parts, parts):
            if path in self.paths:
                return self.paths[path]
        return self.short.get(parts[-1])


def _parse(find: _Finder, text: str, name: str) -> LabelTable:
    """Parse a table with a header, (file, label) rows without a header, or a list of labels."""
    rows = _rows(text, name)
    if not rows:
        return LabelTable({}, set())
    if max(map(len, rows)) == 1:
        return _by_order(find, [row[0] for row in rows], name)
    head = [cell.strip().lower() for cell in rows[0]]
    file, label = _column(head, _FILE), _column(head, _LABEL)
    split = _column(head, _SPLIT)
    if file is not None and label is None and len(head) > 2:
        columns = [printable(cell.strip(), 40) for k, cell in enumerate(rows[0]) if k != file]
        raise DataError(
            f"{printable(name)} has no column of labels among {first_names(columns, 5)}. Rename "
            "the column of the classes to 'label'; if there is one column per class, add a "
            "column 'label' with the class or its index, such as "
            "table[classes].to_numpy().argmax(1)."
        )
    if file is not None and label is None and len(head) == 2:
        label = 1 - file
    if file is None or label is None:
        file, label, split = 0, 1, None
    else:
        rows = rows[1:]
    labels: dict[str, str] = {}
    splits: dict[str, str] = {}
    values, missing, unlabeled = set(), 0, 0
    for row in rows:
        if len(row) <= max(file, label):
            continue
        value = row[label].strip()
        if head[label : label + 1] == ["predictionstring"]:  # followed by boxes
            value = value.split(" ")[0]
        if value.lower() in ("", "nan"):
            unlabeled += 1
            continue
        image = find(row[file].strip())
        if image is None:
            missing += 1
            values.add(value)
            continue
        if labels.setdefault(image, value) != value:
            raise DataError(
                f"{printable(name)} gives {printable(image)!r} two labels: "
                f"{printable(labels[image])!r} and {printable(value)!r}."
            )
        values.add(value)
        if split is not None and split < len(row):
            splits[image] = row[split].strip()
    counts = ((missing, "whose image is missing"), (unlabeled, "without a label"))
    notes = tuple(
        f"ignored {counted(count, 'row')} of {printable(name)} {what}"
        for count, what in counts
        if count
    )
    return LabelTable(labels, values, splits, notes)


def _by_order(find: _Finder, labels: list[str], name: str) -> LabelTable:
    """Assign a list of labels to the images in the order of their names, if the lengths match."""
    if "ground_truth" in name.lower() and all(label.isdigit() for label in labels):
        raise DataError(
            f"{printable(name)} contains the class numbers of the ImageNet development kit, which "
            "networks do not use. Replace it by LOC_val_solution.csv, by a val.txt of names and "
            "class indices or by a list of one WordNet id per line "
            "(imagenet_2012_validation_synset_labels.txt), or sort the images into one folder per "
            "class."
        )
    if len(labels) != len(find.order):
        return LabelTable({}, set())
    return LabelTable(dict(zip(find.order, labels, strict=True)), set(labels))


def _column(head: list[str], names: Iterable[str]) -> int | None:
    return next((head.index(name) for name in names if name in head), None)


def _rows(text: str, name: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return []
    first = lines[0]
    if name.lower().endswith(".jsonl"):
        return _json_rows(lines, name)
    if "\t" in first:
        delimiter = "\t"
    elif name.lower().endswith(".txt"):
        return [line.rsplit(None, 1) for line in lines]
    else:
        delimiter = ";" if first.count(";") > first.count(",") else ","
    try:
        return [row for row in csv.reader(io.StringIO(text), delimiter=delimiter) if row]
    except csv.Error as error:
        raise DataError(f"The table {printable(name)!r} cannot be read: {error}.") from error


def _json_rows(lines: list[str], name: str) -> list[list[str]]:
    """Return rows from lines of one JSON object each, as in a Hugging Face folder of images."""
    try:
        objects = [json.loads(line) for line in lines]
    except (ValueError, RecursionError) as error:
        raise DataError(f"The table {printable(name)!r} cannot be read: {error}.") from error
    head = list(objects[0]) if isinstance(objects[0], dict) else []
    rows = [[str(each.get(key, "")) for key in head] for each in objects if isinstance(each, dict)]
    return [head, *rows] if head else []
