"""Parquet files and Hugging Face data sets: a column of images, a column of labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..storage.files import require_regular
from ..text import printable
from .folder import broken_images, decode_images
from .layout import SPLITS
from .members import max_unpacked
from .source import Source, chosen_splits, index_labels

_IMAGES = ("image", "img", "pixel_values", "images", "x")
_LABELS = ("label", "labels", "fine_label", "target", "class", "y")
_MAX_IMAGE = 2**28  # bytes
_BATCH_ROWS = 64


def is_tabular(path: Path) -> bool:
    """Return whether a folder is a Hugging Face data set, saved to disk or as Parquet files."""
    return bool(_parts(path))


def _parts(path: Path) -> dict[str, list[Path]]:
    """Return the files of each split; the key of files without a split is an empty string."""
    if path.is_file():
        return {"": [path]}
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        folders = [path, *sorted(each for each in path.iterdir() if each.is_dir())]
        splits = {
            folder.name if folder != path else "": sorted(folder.glob("*.arrow"))
            for folder in folders
        }
        return {split: files for split, files in splits.items() if files}
    parts: dict[str, list[Path]] = {}
    for file in sorted([*path.glob("*.parquet"), *path.glob("*/*.parquet")]):
        word = file.name.partition("-")[0].partition(".")[0].lower()
        name = word if word in SPLITS else file.parent.name if file.parent != path else ""
        parts.setdefault("" if name == "data" else name, []).append(file)
    return parts


def open_tabular(path: Path, split: str | None) -> Source:
    """Open a ``.parquet`` file, or a folder of a Hugging Face data set.

    A column ``image`` (``img``, ...) contains encoded images, as bytes or ``{bytes, path}``; paths
    are never followed. A column ``label`` contains text or class indices. The classes are the same
    for all splits, and the file's ``huggingface`` metadata may name them. A split whose labels are
    missing, or all -1, is left out; if all selected splits lack labels, an error is raised.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise DataError(
            f"{path} cannot be read. Parquet and Hugging Face data sets need pyarrow: "
            "pip install 'wgeo[hf]'."
        ) from error
    parts = _parts(path)
    names = [name for name in parts if name]
    everything = split in (None, "all") or not names  # includes files that are in no named split
    selected = list(parts) if everything else chosen_splits(path, split, names)
    try:
        tables = {
            name: pyarrow.concat_tables([_table(file) for file in files])
            for name, files in parts.items()
        }
    except DataError:
        raise
    except Exception as error:  # pyarrow raises errors of many types on damaged files
        reason = printable(str(error).strip() or type(error).__name__, 200)
        raise DataError(
            f"{path} is not a readable Parquet or Arrow file ({reason}). Is it complete?"
        ) from error
    labeled = [name for name, table in tables.items() if not _unlabeled(table)]
    left_out = [name for name in selected if name not in labeled]
    # If no split is labeled, the error below says what the selected ones lack.
    selected = [name for name in selected if name in labeled] or selected
    labels = {name: _labels(tables[name], path) for name in dict.fromkeys([*labeled, *selected])}
    numbers, classes, notes = index_labels(
        labels, path.name, _class_names(tables[next(iter(labels))], path)
    )
    if left_out:
        splits = ", ".join(printable(repr(name), 40) for name in left_out)
        notes += (f"splits without labels were left out: {splits}",)
    cells = [tables[name].column(_column(tables[name], _IMAGES, path)) for name in selected]
    offsets = np.cumsum([0, *(len(cell) for cell in cells)])

    def encoded(name: str) -> bytes:
        row = int(name)
        k = int(np.searchsorted(offsets, row, "right")) - 1
        value: Any = cells[k][row - int(offsets[k])].as_py()
        value = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(value, bytes) or len(value) > _MAX_IMAGE:
            raise DataError("it contains no encoded image; paths are not followed")
        return value

    return Source(
        path.stem,
        np.concatenate([numbers[name] for name in selected]),
        classes,
        (split or "all") if names else None,
        lambda rows, size: decode_images(path, list(map(str, rows)), size, encoded),
        broken=lambda rows: broken_images(path, {int(row): str(row) for row in rows}, encoded),
        notes=notes,
    )


def _table(file: Path) -> Any:
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    require_regular(file)
    if file.suffix == ".arrow":
        with pyarrow.OSFile(str(file)) as source:
            table = pyarrow.ipc.open_stream(source).read_all()
    else:
        parquet = pyarrow.parquet.ParquetFile(file)
        if parquet.metadata.num_rows > file.stat().st_size:
            raise DataError(f"{file} claims more rows than it has bytes. It was not read.")
        # Parquet can store a repeated value once, so even a small file can contain a huge table.
        limit = max_unpacked(file.stat().st_size)
        batches, unpacked = [], 0
        for batch in parquet.iter_batches(_BATCH_ROWS):
            unpacked += batch.nbytes
            if unpacked > limit:
                raise DataError(f"{file} unpacks to more than {limit} bytes, like a zip bomb.")
            batches.append(batch)
        table = pyarrow.Table.from_batches(batches, parquet.schema_arrow)
    table.validate(full=True)
    return table


def _unlabeled(table: Any) -> bool:
    """Return whether a table has no labels: no column, or only nulls or -1, as in test sets."""
    columns = [each for each in _LABELS if each in table.column_names]
    values = table.column(table.column_names.index(columns[0])).to_pylist() if columns else []
    return all(value in (None, -1) for value in values)


def _labels(table: Any, path: Path) -> np.ndarray:
    import pyarrow

    column = table.column(_column(table, _LABELS, path))
    kinds = pyarrow.types
    kind = column.type.value_type if kinds.is_dictionary(column.type) else column.type
    if column.null_count or not any(
        is_kind(kind) for is_kind in (kinds.is_integer, kinds.is_string, kinds.is_large_string)
    ):
        raise DataError(f"{path}: its labels must be integers or text, one per row.")
    return np.asarray(column.to_pylist())


def _column(table: Any, names: tuple[str, ...], path: Path) -> str:
    for name in names:
        if table.column_names.count(name) > 1:
            raise DataError(f"{path} has several columns {name!r}.")
        if name in table.column_names:
            return name
    columns = ", ".join(printable(repr(name), 40) for name in table.column_names[:8])
    raise DataError(f"{path} has the columns {columns}; it needs {names[0]!r} or {names[1]!r}.")


def _class_names(table: Any, path: Path) -> tuple[str, ...] | None:
    label = _column(table, _LABELS, path)
    try:
        metadata = json.loads(table.schema.metadata[b"huggingface"])
        names = metadata["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        return tuple(names)
    return None
