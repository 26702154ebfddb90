"""Parquet files and Hugging Face data sets: a column of images, a column of labels."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import DataError
from ..storage.files import printable, require_regular
from .layout import SPLITS
from .members import most_unpacked
from .source import Source

_IMAGES = ("image", "img", "pixel_values", "images", "x")
_LABELS = ("label", "labels", "fine_label", "target", "class", "y")
_LARGEST_IMAGE = 2**28
_ROWS = 64  # unpacked at once
_INSTALL = "Parquet and Hugging Face data sets are read with pyarrow: pip install 'wgeo[hf]'."


def tabular(path: Path) -> bool:
    """Whether a folder is a Hugging Face data set: saved to disk, or Parquet as on the hub."""
    return bool(_parts(path))


def _parts(path: Path) -> dict[str, list[Path]]:
    """The files of each split; the split of one that has none is the empty text."""
    if path.is_file():
        return {"": [path]}
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        homes = [path, *sorted(each for each in path.iterdir() if each.is_dir())]
        found = {h.name if h != path else "": sorted(h.glob("*.arrow")) for h in homes}
        return {split: files for split, files in found.items() if files}
    parts: dict[str, list[Path]] = {}
    for file in sorted([*path.glob("*.parquet"), *path.glob("*/*.parquet")]):
        word = file.name.partition("-")[0].partition(".")[0].lower()
        known = word if word in SPLITS else file.parent.name if file.parent != path else ""
        parts.setdefault("" if known == "data" else known, []).append(file)
    return parts


def open_tabular(path: str | os.PathLike[str], split: str | None) -> Source:
    """Open a ``.parquet`` file, or a folder of a Hugging Face data set.

    A column ``image`` (``img``, ...) holds encoded images, ``{bytes, path}`` or bytes; only bytes
    are read, a path is never followed. A column ``label`` holds class indices, whose names the
    file's ``huggingface`` metadata may give, or words. All splits are numbered together.

    Raises
    ------
    DataError
        pyarrow is not installed, columns or split missing, a damaged file.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise DataError(f"{path} cannot be read. {_INSTALL}") from error
    path = Path(path)
    parts = _parts(path)
    names = [name for name in parts if name]
    if names and split not in (None, "all", *names):
        raise DataError(f"{path} has no split {split!r}; it has {', '.join(map(repr, names))}.")
    try:
        tables = {
            name: pyarrow.concat_tables([_table(file) for file in files])
            for name, files in parts.items()
        }
    except DataError:
        raise
    except Exception as error:  # pyarrow raises a dozen kinds on damaged files
        why = printable(str(error).strip() or type(error).__name__, 200)
        raise DataError(
            f"{path} is not a readable Parquet or Arrow file ({why}). Is it whole?"
        ) from error
    wanted = [name for name in tables if not names or split in (None, "all", name)]
    some = next(iter(tables.values()))
    image, label = (_column(some, known, path) for known in (_IMAGES, _LABELS))
    labels = {name: _labels(table.column(label), path) for name, table in tables.items()}
    from .npz import numbered

    numbers, classes, notes = numbered(
        labels,
        path.name,
        _class_names(some, label),
    )
    cells = [table for name in wanted for table in (tables[name].column(image),)]
    offsets = np.cumsum([0, *(len(cell) for cell in cells)])

    def encoded(row: int) -> bytes:
        k = int(np.searchsorted(offsets, row, "right")) - 1
        value: Any = cells[k][row - int(offsets[k])].as_py()
        value = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(value, bytes) or len(value) > _LARGEST_IMAGE:
            raise DataError("it holds no encoded image; a path in it is not followed")
        return value

    def fetch(rows: np.ndarray, size: int | None) -> torch.Tensor:
        from .folder import decoded

        names = [str(row) for row in rows]
        return decoded(path, names, size, lambda name: encoded(int(name)))

    return Source(
        path.stem,
        np.concatenate([numbers[name] for name in wanted]),
        tuple(classes),
        (split or "all") if names else None,
        fetch,
        notes=notes,
    )


def _table(file: Path) -> Any:
    import pyarrow.ipc
    import pyarrow.parquet

    require_regular(file)
    if file.suffix == ".arrow":
        with pyarrow.OSFile(str(file)) as source:
            table = pyarrow.ipc.open_stream(source).read_all()
    else:
        held = pyarrow.parquet.ParquetFile(file)
        if held.metadata.num_rows > file.stat().st_size:
            raise DataError(f"{file} claims more rows than it has bytes. It was not read.")
        table = _unpacked(held, file)
    table.validate(full=True)
    return table


def _unpacked(held: Any, file: Path) -> Any:
    """All rows, a few at a time: values that occur often take no room in a file, and do here."""
    import pyarrow

    most = most_unpacked(file.stat().st_size)
    batches, size = [], 0
    for batch in held.iter_batches(_ROWS):
        size += batch.nbytes
        if size > most:
            raise DataError(f"{file} unpacks to more than {most} bytes, as a bomb does.")
        batches.append(batch)
    return pyarrow.Table.from_batches(batches, held.schema_arrow)


def _labels(column: Any, path: Path) -> np.ndarray:
    import pyarrow

    kinds = pyarrow.types
    kind = column.type.value_type if kinds.is_dictionary(column.type) else column.type
    if column.null_count or not any(
        known(kind) for known in (kinds.is_integer, kinds.is_string, kinds.is_large_string)
    ):
        raise DataError(f"{path}: its labels are neither whole numbers nor words, one a row.")
    return np.asarray(column.to_pylist())


def _column(table: Any, known: tuple[str, ...], path: Path) -> str:
    for name in known:
        if table.column_names.count(name) > 1:
            raise DataError(f"{path} has several columns {name!r}.")
        if name in table.column_names:
            return name
    columns = ", ".join(printable(repr(name), 40) for name in table.column_names[:8])
    raise DataError(f"{path} has the columns {columns}; wanted are {known[0]!r} or {known[1]!r}.")


def _class_names(table: Any, label: str) -> list[str] | None:
    try:
        told = json.loads(table.schema.metadata[b"huggingface"])
        names = told["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        return names
    return None
