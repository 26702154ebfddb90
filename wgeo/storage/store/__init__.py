"""Stores: folders of arrays, written in ranges of rows; resumable, and readable once complete.

An unfinished store contains ``NAME.npy.part``, ``unfinished.json`` (the job) and ``rows-*.log``,
with a line for every range of rows that has reached the disk. At the end, the suffix ``.part`` is
removed, and ``manifest.json`` is written last; a store without it cannot be opened.
"""

from .reading import (
    DTYPES,
    MANIFEST,
    Column,
    Stored,
    digest,
    holds,
    is_store,
    manifest_of,
    read_store,
    shards,
)
from .writing import Writer

__all__ = [
    "DTYPES",
    "MANIFEST",
    "Column",
    "Stored",
    "Writer",
    "digest",
    "holds",
    "is_store",
    "manifest_of",
    "read_store",
    "shards",
]
