"""Several processes on one job: ``torchrun --nproc-per-node=4 --no-python wgeo analyze ...``.

Every process runs the same program on the same features, and calls the functions below in the same
order: they are collective operations. A loop over rows processes a `shard` of the rows;
`all_reduce_sum` or `all_gather` then combines the results. Work that cannot be divided is done by
one process (`on_rank_zero`); several such pieces are distributed (`map_over_ranks`). Every process
then has the result, which differs from that of a single process only by rounding. With one process,
or inside `local_only`, these functions only call the given function or return the value.
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
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import ProcessError, WgeoError
from .progress import track

if TYPE_CHECKING:  # the command line reports errors before it loads libraries
    import numpy as np
    import torch

T = TypeVar("T")
Part = TypeVar("Part", "torch.Tensor", "np.ndarray", float)

_CONNECT_TIMEOUT = datetime.timedelta(minutes=5)  # for all launched processes to connect
_WORK_TIMEOUT = datetime.timedelta(days=7)  # to wait for others; a lost process is noticed at once


@dataclass(frozen=True, eq=False)
class _Launch:
    """The connected processes of a launch.

    `hosts` are the machines' names by rank, `store` is torch.distributed's key-value store, and
    `device_group` is the process group for GPU tensors.
    """

    rank: int
    world_size: int
    hosts: Sequence[str] = ()
    store: Any = None
    device_group: Any = None


_launch: _Launch | None = None
_local_depth = 0  # nesting of `local_only`


def launched_world_size() -> int:
    """Return the number of launched processes, from the environment; 1 without a launch."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def local_world_size() -> int:
    """Return the number of launched processes on this machine, also inside `local_only`."""
    if _launch is None or not _launch.hosts:  # before they connect, only the launcher knows
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if launched_world_size() > 1 else 1
    return _launch.hosts.count(_launch.hosts[_launch.rank])


def local_ranks() -> list[int]:
    """Return the ranks of this job's processes on this machine, including this one."""
    if world_size() == 1 or _launch is None or not _launch.hosts:
        return [rank()]
    own_host = _launch.hosts[_launch.rank]
    return [other for other, host in enumerate(_launch.hosts) if host == own_host]


@contextmanager
def launched() -> Iterator[None]:
    """Connect the processes of a ``torchrun`` launch inside the ``with`` block.

    They communicate through gloo; GPU tensors use NCCL if every process has its own GPU. Each
    process uses the GPU of its local rank. A script opens this context around its calls of wgeo.
    Every process must make the same calls: if one takes another path, for example after it catches
    an error, the others wait for it. Work that each process does by itself, such as reading images,
    belongs inside `local_only`.

    Raises
    ------
    ProcessError
        The other processes cannot be reached.

    Examples
    --------
    A script for ``torchrun --nproc-per-node 4 script.py``, which also runs as one process:

    >>> import numpy as np
    >>> import wgeo
    >>> from wgeo.runtime import launched
    >>> with launched():
    ...     print(wgeo.distances([np.arange(4.0), np.arange(4.0) + 3]).distance.tolist())
    [[0.0, 3.0], [3.0, 0.0]]
    """
    global _launch
    if launched_world_size() == 1 or _launch is not None:
        yield
        return
    import torch
    import torch.distributed as dist

    with _connected():
        store, me, count = next(dist.rendezvous("env://", timeout=_CONNECT_TIMEOUT))
        own_store = dist.PrefixStore("wgeo", store)
        dist.init_process_group(
            "gloo", store=store, rank=me, world_size=count, timeout=_WORK_TIMEOUT
        )
        gpus, group = torch.cuda.device_count(), None
        if gpus:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", me)) % gpus)
        hosts_gpus: list[Any] = [None] * count
        dist.all_gather_object(hosts_gpus, (socket.gethostname(), gpus))
        hosts = [host for host, _ in hosts_gpus]
        # NCCL needs a GPU for each process.
        if all(number >= hosts.count(host) for host, number in hosts_gpus):
            group = dist.new_group(backend="nccl", timeout=_WORK_TIMEOUT)
    _launch = _Launch(me, count, hosts, own_store, group)
    yield
    with _connected():
        dist.barrier()  # no process leaves while others may still need it
        dist.destroy_process_group()
    _launch = None  # but not after an error: `reports_error` still needs it


@contextmanager
def local_only() -> Iterator[None]:
    """Let this process work alone inside the ``with`` block, without waiting for the others.

    Examples
    --------
    >>> import wgeo
    >>> from wgeo.runtime import launched, local_only
    >>> with launched():
    ...     with local_only():
    ...         digits = wgeo.load_images("digits", limit=50)
    ...     print(len(digits.y))
    50
    """
    global _local_depth
    _local_depth += 1
    try:
        yield
    finally:
        _local_depth -= 1


def world_size() -> int:
    """Return the number of processes of this job; 1 inside `local_only`."""
    return 1 if _launch is None or _local_depth else _launch.world_size


def rank() -> int:
    """Return the rank of this process, from 0; 0 inside `local_only`."""
    return 0 if _launch is None or _local_depth else _launch.rank


def is_rank_zero() -> bool:
    """Return whether this process prints and writes for all, also inside `local_only`."""
    return launched_world_size() == 1 or os.environ["RANK"] == "0"


def shard(n: int) -> slice:
    """Return this process's contiguous part of n rows; the parts' lengths differ by at most one."""
    i, count = rank(), world_size()
    return slice(n * i // count, n * (i + 1) // count)


def all_reduce_sum(part: Part) -> Part:
    """Return the sum of all processes' parts; a tensor or a contiguous array is overwritten.

    If each process fills only its `shard` of an array's rows, and its other rows are zero, the sum
    is the whole array.
    """
    return _reduced(part, "SUM")


def all_reduce_max(part: Part) -> Part:
    """Return the elementwise maximum over processes; like `all_reduce_sum`, overwrite `part`."""
    return _reduced(part, "MAX")


def _reduced(part: Any, operation: str) -> Any:
    if world_size() == 1:
        return part
    import numpy as np
    import torch
    import torch.distributed as dist

    if isinstance(part, np.ndarray):
        whole = np.ascontiguousarray(part)
        flags = whole.dtype == bool
        assert not flags or operation == "MAX", "booleans have no sum"
        _reduced(torch.from_numpy(whole.view(np.uint8) if flags else whole), operation)
        return whole
    if not isinstance(part, torch.Tensor):
        return float(_reduced(torch.tensor(part, dtype=torch.float64), operation))
    assert _launch is not None
    with _connected():
        reduction = getattr(dist.ReduceOp, operation)
        dist.all_reduce(part, reduction, _launch.device_group if part.is_cuda else None)
    return part


def all_gather(value: T) -> list[T]:
    """Return the values of all processes, in the order of their ranks."""
    if world_size() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * world_size()
    with _connected():
        dist.all_gather_object(values, value)
    return values


def on_rank_zero(work: Callable[[], T]) -> T:
    """Return ``work()``, called only in the process of rank 0, or raise its error in all."""
    if world_size() == 1:
        return work()
    return _broadcast(_attempt(work) if rank() == 0 else None, 0)


def raise_on_any(work: Callable[[], T]) -> T:
    """Return ``work()`` of this process; if it fails in any process, raise the first error in all.

    `work` must not call collective operations.
    """
    if world_size() == 1:
        return work()
    result, error = _attempt(work)
    for rank_error in all_gather(error):
        if rank_error is not None:
            raise rank_error
    return result


def map_over_ranks(works: Sequence[Callable[[], T]], what: str) -> list[T]:
    """Call all functions in `works`, distributed over the processes, and return their results.

    The first error is raised. The progress bar shows `what`. The functions must not call collective
    operations.
    """
    if world_size() == 1:
        return [work() for work in track(works, what)]
    own_indices = range(rank(), len(works), world_size())
    outcomes = {i: _attempt(works[i]) for i in track(own_indices, what)}
    return [_broadcast(outcomes.get(i), i % world_size()) for i in range(len(works))]


def _attempt(work: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        with local_only():
            return work(), None
    except Exception as error:
        return None, _portable(error)


def _portable(error: Exception) -> Exception:
    """Return the error, or a `WgeoError` with its message if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return WgeoError(f"{type(error).__name__}: {error}")
    return error


def _broadcast(outcome: Any, source: int) -> Any:
    """Send the outcome of the process `source` to all; return the result or raise the error."""
    import torch.distributed as dist

    message: list[Any] = [None]
    if rank() == source:
        try:
            message = [pickle.dumps(outcome)]
        except Exception as error:  # the others are waiting for a message
            failure = WgeoError(f"A result cannot be sent to other processes: {error}")
            message = [pickle.dumps((None, failure))]
    with _connected():
        dist.broadcast_object_list(message, source)
    result, remote_error = pickle.loads(message[0])
    if remote_error is not None:
        raise remote_error
    return result


def reports_error(error: BaseException) -> bool:
    """Return whether this process is the first of those that raise the same error."""
    if _launch is None or _launch.store is None:
        return is_rank_zero()  # before processes are connected, all raise the same error
    try:
        return int(_launch.store.add(f"{type(error).__name__}: {str(error)[:100]}", 1)) == 1
    except (RuntimeError, ValueError):  # the process that serves the store has ended
        return True


@contextmanager
def _connected() -> Iterator[None]:
    """Turn a lost connection into a ProcessError, and let signals end this process while it waits.

    An error of this process's own GPU is raised unchanged. Python handles no signals while compiled
    code waits, so the system's default handlers are used.
    """
    import torch

    out_of_memory = torch.OutOfMemoryError
    device_errors = out_of_memory, getattr(torch, "AcceleratorError", out_of_memory)  # torch 2.8
    main = threading.current_thread() is threading.main_thread()
    signals = (signal.SIGINT, signal.SIGTERM) if main else ()
    before = [signal.signal(each, signal.SIG_DFL) for each in signals]
    try:
        yield
    except device_errors:
        raise
    except (RuntimeError, ValueError) as error:
        raise ProcessError(
            f"Another of the {launched_world_size()} processes of this job has ended or cannot be "
            "reached; its message is above or in its log. Run the same command again: stored "
            f"features are kept. ({str(error).splitlines()[0]:.120})"
        ) from error
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)
