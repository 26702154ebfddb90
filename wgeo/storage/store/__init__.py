"""Arrays on disk that come in disjoint ranges of rows: resumable, and whole or not there at all.

While they come, a folder holds ``NAME.npy.part``, ``unfinished.json`` (whose job it is) and
``rows-*.log``, a line for every range that is safely on the disk. Once all rows are there the parts
lose their ending and ``manifest.json`` is written, last: without it there is nothing to open.
"""

from .layout import DTYPES, MANIFEST, SHARD, Column, digest, shards
from .reading import Stored, holds, is_store, manifest_of, read_store
from .writing import Writer

__all__ = [
    "DTYPES",
    "MANIFEST",
    "SHARD",
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
