"""Progress of long work: a bar on a terminal, plain lines on a pipe, silence unless asked.

Library code calls `track`; whoever wants to see it (the command line) opens `shown()`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, TypeVar

from ..text import printable

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")
_display: ContextVar[Progress | _Lines | None] = ContextVar("wgeo_progress", default=None)


class _Lines:
    """What a pipe or a log file gets: a line every few seconds, none for what is quickly done."""

    SECONDS = 5.0

    def start(self, what: str, total: int | None) -> Callable[[int], None]:
        began = said = time.monotonic()

        def advance(done: int) -> None:
            nonlocal said
            now = time.monotonic()
            last = done == total and now - began >= self.SECONDS
            if now - said < self.SECONDS and not last:
                return
            said = now
            left = f", {(total - done) * (now - began) / done:.0f} s left" if total else ""
            of = f"/{total}" if total else ""
            print(f"{what}: {done}{of} ({now - began:.0f} s{left})", file=sys.stderr, flush=True)

        return advance


@contextmanager
def shown() -> Iterator[None]:
    """Show progress of everything `track`-ed inside the block, on standard error."""
    if _display.get() is not None or sys.stderr is None:  # closed, as by ``2>&-``
        yield
        return
    if not sys.stderr.isatty():
        token = _display.set(_Lines())
        try:
            yield
        finally:
            _display.reset(token)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        token = _display.set(bar)
        try:
            yield
        finally:
            _display.reset(token)


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield from `items`, showing `what` is being done and how long is left."""
    what = printable(what, None)
    if total is None and isinstance(items, Sized):
        total = len(items)
    display = _display.get()
    if display is None:
        yield from items
    elif isinstance(display, _Lines):
        advance = display.start(what, total)
        for done, item in enumerate(items, 1):
            yield item
            advance(done)
    else:
        task = display.add_task(what, total=total)
        try:
            for item in items:
                yield item
                display.advance(task)
        finally:
            display.remove_task(task)
