"""Work in threads that an error or Ctrl-C can stop: long loops ask `check` now and then."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from . import processes
from .progress import track

T = TypeVar("T")
R = TypeVar("R")

_GRACE = 1.0  # seconds that threads get to notice they were stopped
_local = threading.local()


class Stopped(BaseException):
    """Raised by `check` inside a thread whose work is no longer wanted."""


def check() -> None:
    """Raise `Stopped` where the work of this thread is no longer wanted."""
    stop = getattr(_local, "stop", None)
    if stop is not None and stop.is_set():
        raise Stopped


def spread(
    work: Callable[[T], R], items: Sequence[T], what: str, most: int | None = None
) -> list[R]:
    """Return ``[work(item) for item in items]``, made in as many threads as there are cores to use.

    `most` are at work at once where it is given.

    Torch's own threads are shared out among them. The first error, or Ctrl-C, stops the rest: at
    once where `work` calls `check`, else when a call into compiled code returns; the threads are
    daemons, so that neither the caller nor the interpreter's end waits for such a call.
    """
    cores = torch.get_num_threads()
    threads = min(cores, len(items), most or cores)
    # One device serves one pair at a time best, and processes meet about one thing at a time.
    if threads <= 1 or torch.cuda.is_available() or processes.world_size() > 1:
        return [work(item) for item in track(items, what)]
    todo: queue.SimpleQueue[tuple[int, T]] = queue.SimpleQueue()
    done: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()
    for numbered in enumerate(items):
        todo.put(numbered)
    stop = threading.Event()

    def serve() -> None:
        _local.stop = stop
        while not stop.is_set():
            try:
                i, item = todo.get_nowait()
            except queue.Empty:
                return
            try:
                done.put((i, work(item), None))
            except BaseException as error:
                done.put((i, None, error))

    servants = [threading.Thread(target=serve, daemon=True) for _ in range(threads)]
    results: dict[int, R] = {}
    torch.set_num_threads(max(1, cores // threads))
    try:
        for servant in servants:
            servant.start()
        for _ in track(items, what):
            i, result, error = done.get()
            if error is not None:
                raise error
            results[i] = result
    except BaseException:
        stop.set()
        for servant in servants:
            servant.join(_GRACE / threads)
        raise
    finally:
        torch.set_num_threads(cores)
    return [results[i] for i in range(len(items))]
