"""Text for messages: untrusted names are escaped, so that a terminal does not interpret them."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Sequence

UNDEFINED = "undefined"  # shown instead of a number that is undefined


def printable(name: str | os.PathLike[str], limit: int | None = 100) -> str:
    """Return an untrusted name as printable text of at most `limit` characters.

    Unprintable characters, including line breaks and lone surrogates, are escaped as Python
    escapes them. `limit=None` keeps the whole text.
    """
    text = os.fsdecode(name)
    start = text if limit is None else text[: limit + 1]
    plain = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in start)
    return plain if limit is None or len(plain) <= limit else plain[: limit - 3] + "..."


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 image``, ``1,437 images``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(share: float | None, decimals: int = 1) -> str:
    """Return ``98.3 %`` for ``0.9833``; near 0 and 1 there are more decimals, as in ``99.96 %``.

    A difference of less than 5e-12 from 0 or 1 is taken for a rounding error.
    """
    if share is None:
        return UNDEFINED
    for digits in range(decimals, 10):
        text = f"{100 * share:z.{digits}f}"
        if share in (0, 1) or abs(float(text)) not in (0, 100):
            return f"{text} %"
    return f"{100 * share:z.{decimals}f} %"


def stage_number(stage: int | None, index: int = 0) -> int:
    """Return the number of a stage for readers, who count from 1; records count from 0.

    `index` is the stage's position, for records that do not contain `stage`.
    """
    return (index if stage is None else stage) + 1


def first_names(names: Sequence[str], limit: int, total: int | None = None) -> str:
    """Return the first `limit` names as printable text, with an ellipsis if there are more.

    `total` is the number of all names, if `names` contains only some of them.
    """
    more = ", ..." if (len(names) if total is None else total) > limit else ""
    return ", ".join(printable(name) for name in names[:limit]) + more


def suggestion(word: str, names: Iterable[str]) -> str:
    """Return `` (did you mean ...?)`` with the names closest to `word`, or an empty text."""
    originals = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower(), originals, n=3, cutoff=0.6)
    quoted = " or ".join(repr(originals[each]) for each in close)
    return f" (did you mean {quoted}?)" if close else ""
