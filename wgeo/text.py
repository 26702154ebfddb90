"""Untrusted text, escaped so that a terminal does not interpret it."""

from __future__ import annotations

import os


def printable(name: str | os.PathLike[str], limit: int | None = 100) -> str:
    """Return an untrusted name as printable text of at most `limit` characters.

    Unprintable characters, including line breaks and lone surrogates, are escaped as Python
    escapes them. `limit=None` keeps the whole text.
    """
    text = os.fsdecode(name)
    start = text if limit is None else text[: limit + 1]
    plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in start)
    return plain if limit is None or len(plain) <= limit else plain[: limit - 3] + "..."
