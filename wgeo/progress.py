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

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")
_display: ContextVar[Progress | _Lines | None] = ContextVar("wgeo_progress", default=None)


class _Lines:
    """What a pipe or a log file gets: a line when a task starts, every tenth, and its end."""

    def start(self, what: str, total: int | None) -> Callable[[int], None]:
        began, said = time.monotonic(), 0
        print(f"{what} ...", file=sys.stderr, flush=True)

        def advance(done: int) -> None:
            nonlocal said
            tenth = 10 * done // total if total else 0
            if total and (tenth > said or done == total):
                said = tenth
                seconds = time.monotonic() - began
                print(f"{what}: {done}/{total} ({seconds:.0f} s)", file=sys.stderr, flush=True)

        return advance


@contextmanager
def shown() -> Iterator[None]:
    """Show progress of everything `track`-ed inside the block, on standard error."""
    if _display.get() is not None:
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
        TextColumn("{task.description}"),
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
