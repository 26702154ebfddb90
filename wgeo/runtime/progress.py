"""Progress of long computations: a bar on a terminal, lines on a pipe, nothing by default.

Library code calls `track`; the command line displays progress by opening `show_progress()`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal, TypeVar

from ..text import printable

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")
_display: ContextVar[Progress | Literal["lines"] | None] = ContextVar("progress", default=None)
_SECONDS = 5.0  # between two lines


@contextmanager
def show_progress() -> Iterator[None]:
    """Show the progress of all `track` calls inside the block, on standard error."""
    if _display.get() is not None or sys.stderr is None:  # standard error is closed, as by ``2>&-``
        yield
        return
    with ExitStack() as stack:
        terminal = sys.stderr.isatty()
        display: Progress | Literal["lines"] = stack.enter_context(_bar()) if terminal else "lines"
        stack.callback(_display.reset, _display.set(display))
        yield


def _bar() -> Progress:
    """Return a progress bar for a terminal."""
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    return progress.Progress(*columns, console=Console(stderr=True), transient=True)


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield from `items`, and show the description `what`, the progress and the time left.

    `total` is the number of items; it is needed only if they have no length.
    """
    what = printable(what, None)
    if total is None and isinstance(items, Sized):
        total = len(items)
    display = _display.get()
    if display is None:
        yield from items
    elif display == "lines":
        yield from _with_lines(items, what, total)
    else:
        task = display.add_task(what, total=total)
        try:
            for item in items:
                yield item
                display.advance(task)
        finally:
            display.remove_task(task)


def _with_lines(items: Iterable[T], what: str, total: int | None) -> Iterator[T]:
    """Yield from `items`; print a line every few seconds, for a pipe or a log file."""
    start_time = last_time = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        seconds = now - start_time
        last = done == total and seconds >= _SECONDS
        if now - last_time >= _SECONDS or last:
            last_time = now
            left = f", {(total - done) * seconds / done:.0f} s left" if total else ""
            of = f"/{total}" if total else ""
            print(f"{what}: {done}{of} ({seconds:.0f} s{left})", file=sys.stderr, flush=True)
