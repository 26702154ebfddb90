"""Several processes that do one job: ``torchrun --nproc-per-node=4 --no-python wgeo analyze ...``.

Every process runs the same program on the same features, and all of them come to each function
below in the same order. Heavy loops go over a process's own `share` of the rows, contiguous and
without padding, and what they find is put together (`total`, `everyone`); what cannot be cut is
done by one process for all (`first`, `dealt`). So the answer is one process's up to the rounding of
sums in another order, and every process has it. Where there is one process, or inside `alone`,
nothing here does anything.
"""

from __future__ import annotations

import datetime
import os
import pickle
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, overload

from .errors import ProcessError, WgeoError
from .progress import track

if TYPE_CHECKING:  # the command line asks who speaks before it needs libraries
    import numpy as np
    import torch

T = TypeVar("T")

_MEETING = datetime.timedelta(minutes=5)  # that processes launched together take to meet
_PATIENCE = datetime.timedelta(days=7)  # one process may solve for long; a death is told at once


@dataclass(frozen=True, eq=False)
class _Launch:
    """A running launch: which process this is, of how many, and who adds up tensors on a GPU.

    The `board` is where processes leave each other notes; `hosts` are their machines' names.
    """

    rank: int
    ranks: int
    hosts: Sequence[str] = ()
    board: Any = None
    device_group: Any = None


_launch: _Launch | None = None
_apart = 0  # how many `alone` blocks this process is inside of


def asked() -> int:
    """How many processes were launched together, by what the environment says."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def neighbours() -> int:
    """How many of them share this machine, its memory and its disks; also inside `alone`."""
    if _launch is None or not _launch.hosts:  # before they meet the launcher may say it
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if asked() > 1 else 1
    return _launch.hosts.count(_launch.hosts[_launch.rank])


def beside() -> list[int]:
    """Which processes work together with this one on its machine, itself among them."""
    if ranks() == 1 or _launch is None or not _launch.hosts:
        return [rank()]
    mine = _launch.hosts[_launch.rank]
    return [other for other, host in enumerate(_launch.hosts) if host == mine]


@contextmanager
def launched() -> Iterator[None]:
    """Work together with the processes of a ``torchrun`` launch while the block lasts.

    They talk through gloo, about tensors on a GPU through NCCL; each takes the GPU of its number on
    its machine. A script of your own opens this around what wgeo is to do, and does the same in
    every process: one that goes its own way, after an error it caught, leaves the others waiting.
    What one of them is to do by itself, it does inside `alone`; that goes for reading images, too.

    Raises
    ------
    ProcessError
        The other processes cannot be reached.
    """
    global _launch
    if asked() == 1 or _launch is not None:
        yield
        return
    import torch
    import torch.distributed as dist

    with _reaching():
        board, me, count = next(dist.rendezvous("env://", timeout=_MEETING))
        notes = dist.PrefixStore("wgeo", board)
        dist.init_process_group("gloo", store=board, rank=me, world_size=count, timeout=_PATIENCE)
        gpus, group = torch.cuda.device_count(), None
        if gpus:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", me)) % gpus)
        seen: list[Any] = [None] * count
        dist.all_gather_object(seen, (socket.gethostname(), gpus))
        hosts = [host for host, _ in seen]
        if all(has >= hosts.count(host) for host, has in seen):  # NCCL shares no GPU
            group = dist.new_group(backend="nccl", timeout=_PATIENCE)
    _launch = _Launch(me, count, hosts, notes, group)
    yield
    with _reaching():
        dist.barrier()  # nobody leaves while another may still need it
        dist.destroy_process_group()
    _launch = None  # but not after an error: whoever tells of it asks who `speaks`


@contextmanager
def alone() -> Iterator[None]:
    """Let this process work by itself while the block lasts; the others are not waited for."""
    global _apart
    _apart += 1
    try:
        yield
    finally:
        _apart -= 1


def ranks() -> int:
    """How many processes do this job."""
    return 1 if _launch is None or _apart else _launch.ranks


def rank() -> int:
    """Which of them this is, from 0."""
    return 0 if _launch is None or _apart else _launch.rank


def is_first() -> bool:
    """Whether this process speaks and writes for all launched with it, also inside `alone`."""
    return asked() == 1 or os.environ["RANK"] == "0"


def share(n: int, start: int = 0) -> slice:
    """This process's part of the rows from `start` to n: contiguous, of equal length to one row."""
    rows, me, all_ = n - start, rank(), ranks()
    return slice(start + rows * me // all_, start + rows * (me + 1) // all_)


@overload
def total(part: torch.Tensor) -> torch.Tensor: ...
@overload
def total(part: np.ndarray) -> np.ndarray: ...
@overload
def total(part: float) -> float: ...
def total(part: Any) -> Any:
    """Sum of every process's part; a tensor or a contiguous array is overwritten with it.

    Rows that each process knows its `share` of, zero elsewhere, come together as they are.
    """
    return _reduced(part, "SUM")


@overload
def largest(part: torch.Tensor) -> torch.Tensor: ...
@overload
def largest(part: np.ndarray) -> np.ndarray: ...
def largest(part: Any) -> Any:
    """Elementwise maximum over the processes; a tensor or a contiguous array is overwritten."""
    return _reduced(part, "MAX")


def _reduced(part: Any, operation: str) -> Any:
    if ranks() == 1:
        return part
    import numpy as np
    import torch
    import torch.distributed as dist

    if isinstance(part, np.ndarray):
        whole = np.ascontiguousarray(part)
        flags = whole.dtype == bool
        assert not flags or operation == "MAX", "a sum of truths is none"
        _reduced(torch.from_numpy(whole.view(np.uint8) if flags else whole), operation)
        return whole
    if not isinstance(part, torch.Tensor):
        return float(_reduced(torch.tensor(part, dtype=torch.float64), operation))
    assert _launch is not None
    with _reaching():
        how = getattr(dist.ReduceOp, operation)
        dist.all_reduce(part, how, _launch.device_group if part.is_cuda else None)
    return part


def everyone(value: T) -> list[T]:
    """Every process's value, in the order of the processes."""
    if ranks() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * ranks()
    with _reaching():
        dist.all_gather_object(values, value)
    return values


def first(work: Callable[[], T]) -> T:
    """What `work` returns in the first process; the others wait for it.

    An error that it raises there is raised in all.
    """
    if ranks() == 1:
        return work()
    return _handed(_attempt(work) if rank() == 0 else None, 0)


def agreed(work: Callable[[], T]) -> T:
    """What `work` returns in this process; where it fails in any, the first error is raised in all.

    For work on a process's own share, which must not need the other processes.
    """
    if ranks() == 1:
        return work()
    result, error = _attempt(work)
    for raised in everyone(error):
        if raised is not None:
            raise raised
    return result


def dealt(works: Sequence[Callable[[], T]], what: str) -> list[T]:
    """What each of `works` returns, done by one process each, in turn; the first error is raised.

    Progress is shown as that of `what` is being done. `works` must not need the other processes.
    """
    if ranks() == 1:
        return [work() for work in track(works, what)]
    turns = range(rank(), len(works), ranks())
    mine = {i: _attempt(works[i]) for i in track(turns, what)}
    return [_handed(mine.get(i), i % ranks()) for i in range(len(works))]


def _attempt(work: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        with alone():
            return work(), None
    except Exception as error:
        return None, _portable(error)


def _portable(error: Exception) -> Exception:
    """The error, or its words where it cannot be told to another process."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return WgeoError(f"{type(error).__name__}: {error}")
    return error


def _handed(outcome: Any, source: int) -> Any:
    """Give everyone the outcome that one process has."""
    import torch.distributed as dist

    held: list[Any] = [None]
    if rank() == source:
        try:
            held = [pickle.dumps(outcome)]
        except Exception as odd:  # the others wait for an answer all the same
            held = [
                pickle.dumps((None, WgeoError(f"What one process found cannot be told: {odd}")))
            ]
    with _reaching():
        dist.broadcast_object_list(held, source)
    result, error = pickle.loads(held[0])
    if error is not None:
        raise error
    return result


def speaks(error: BaseException) -> bool:
    """Whether this process is to say what went wrong: one does, where it went wrong for several."""
    if _launch is None or _launch.board is None:
        return is_first()  # before they meet, all go the same way
    try:
        return int(_launch.board.add(f"{type(error).__name__}: {str(error)[:100]}", 1)) == 1
    except (RuntimeError, ValueError):  # who kept the board is gone
        return True


@contextmanager
def _reaching() -> Iterator[None]:
    """Say in words that another process is gone; let a signal end this one while it waits.

    Waiting is a call into compiled code, during which Python hears of no signal.
    """
    import torch

    main = threading.current_thread() is threading.main_thread()
    signals = (signal.SIGINT, signal.SIGTERM) if main else ()
    before = [signal.signal(each, signal.SIG_DFL) for each in signals]
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError) as error:
        raise ProcessError(
            f"Another of the {asked()} processes of this job has ended, or cannot be reached; what "
            "it said stands above or in its log. Run the same command again: features that were "
            f"stored are kept. ({str(error).splitlines()[0]:.120})"
        ) from error
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)
