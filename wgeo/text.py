"""Text that others chose, as it may be shown: nothing in it is obeyed by a terminal."""

from __future__ import annotations

import os


def printable(name: str | os.PathLike[str], limit: int | None = 100) -> str:
    """Return a name that a stranger chose as it may be printed: nothing invisible, not endless.

    What is not printable, a line break and half a surrogate pair included, is shown as Python
    writes it. None for `limit` keeps all of it.
    """
    text = os.fsdecode(name)
    kept = text if limit is None else text[: limit + 1]
    plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in kept)
    return plain if limit is None or len(plain) <= limit else plain[: limit - 3] + "..."
