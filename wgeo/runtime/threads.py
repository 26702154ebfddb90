"""Threads that an error or Ctrl-C interrupts, and the number of threads that torch uses."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

from . import processes
from .memory import available_bytes
from .progress import track

T = TypeVar("T")
R = TypeVar("R")

_GRACE = 1.0  # seconds to wait for interrupted threads, all together
_POLL = 0.2  # seconds between two checks for an interrupt
_MUCH_WORK = 10**10  # floating-point operations from which several threads are faster
_local = threading.local()


class Interrupted(BaseException):
    """Raised by `raise_if_interrupted` in a thread whose result is no longer needed."""


def raise_if_interrupted() -> None:
    """Raise `Interrupted` if this thread's result is no longer needed; long loops call it."""
    interrupt = getattr(_local, "interrupt", None)
    if interrupt is not None and interrupt.is_set():
        raise Interrupted


def thread_map(
    work: Callable[[T], R], items: Sequence[T], what: str, max_threads: int | None = None
) -> list[R]:
    """Return ``[work(item) for item in items]``, computed by a pool of threads.

    The pool has as many threads as torch may use, but at most `max_threads`; torch's own threads
    are divided among them. After an error or Ctrl-C, the other threads stop at their next call of
    `raise_if_interrupted` or at the end of their item; the caller waits for them for at most a
    second. If a GPU is available, or there are several processes, items are computed one after the
    other. The progress bar shows `what`.
    """
    cores = torch.get_num_threads()
    threads = min(cores, len(items), max_threads or cores)
    # One item at a time is fastest on a GPU, and collective operations need a common order.
    if threads <= 1 or torch.cuda.is_available() or processes.world_size() > 1:
        return [work(item) for item in track(items, what)]
    tasks: queue.SimpleQueue[tuple[int, T]] = queue.SimpleQueue()
    outcomes: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()
    for numbered in enumerate(items):
        tasks.put(numbered)
    interrupt = threading.Event()

    def run_tasks() -> None:
        _local.interrupt = interrupt
        torch.set_num_threads(max(1, cores // threads))  # each thread has its own setting
        while not interrupt.is_set():
            try:
                i, item = tasks.get_nowait()
            except queue.Empty:
                return
            try:
                outcomes.put((i, work(item), None))
            except BaseException as error:
                outcomes.put((i, None, error))

    workers = [threading.Thread(target=run_tasks, daemon=True) for _ in range(threads)]
    results: dict[int, R] = {}
    torch.set_num_threads(max(1, cores // threads))
    try:
        for worker in workers:
            worker.start()
        for _ in track(items, what):
            i, result, error = outcomes.get()
            if error is not None:
                raise error
            results[i] = result
    except BaseException:
        interrupt.set()
        for worker in workers:
            worker.join(_GRACE / threads)
        raise
    finally:
        torch.set_num_threads(cores)
    return [results[i] for i in range(len(items))]


def map_over_cores(
    works: Sequence[Callable[[], R]], what: str, nbytes: int, feature_bytes: int
) -> list[R]:
    """Call all functions in `works`, and return their results.

    Several processes use `map_over_ranks`; a single process uses `thread_map`. Under a memory
    limit, only as many functions run at once as fit into memory: each needs `nbytes`, and the
    features need `feature_bytes`.
    """
    if processes.world_size() > 1:
        return processes.map_over_ranks(works, what)
    available = available_bytes()
    most = None if available is None else max(1, (available - feature_bytes) // nbytes)
    return thread_map(lambda work: work(), works, what, most)


def interruptible(work: Callable[[], T]) -> T:
    """Return ``work()``, a long call into compiled code; Ctrl-C interrupts the wait for it."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_POLL)
        raise_if_interrupted()
    if errors:
        raise errors[0]
    return results[0]


@contextmanager
def one_thread(work: int = 0) -> Iterator[None]:
    """Run torch's CPU operators on one thread inside the block, unless `work` (flops) is large.

    On arrays that fit into a cache, several threads are never much faster than one thread. When
    other processes competed for the cores, several threads were 20 to 60 times slower.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if work < _MUCH_WORK else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
