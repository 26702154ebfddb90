"""Arrays on disk, written in disjoint ranges of rows: resumable, and readable only if complete.

Until it is complete, a store's folder holds ``NAME.npy.part``, ``unfinished.json`` (the job) and
``rows-*.log``, with a line for every range that is safely on the disk. Once all rows are written,
the files lose the suffix ``.part`` and ``manifest.json`` is written last: without it a store cannot
be opened.
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
