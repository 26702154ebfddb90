"""Several processes on one job: ``torchrun --nproc-per-node=4 --no-python wgeo analyze ...``.

Every process runs the same program on the same features and calls the functions below in the same
order (they are collective operations). Heavy loops take a process's `shard` of the rows, contiguous
and without padding, and combine the results (`all_reduce_sum`, `all_gather`); work that cannot be
divided is done by one process for all (`on_rank_zero`, `map_over_ranks`). The result equals that of
a single process up to the rounding of sums in another order, and every process has it. With one
process, or inside `local_only`, these functions only call the given function, or return the value.
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

from ..errors import ProcessError, WgeoError
from .progress import track

if TYPE_CHECKING:  # the command line reports errors before it needs libraries
    import numpy as np
    import torch

T = TypeVar("T")

_CONNECT = datetime.timedelta(minutes=5)  # for processes launched together to find each other
_WORK = datetime.timedelta(days=7)  # for one process's computation; a lost process is seen at once


@dataclass(frozen=True, eq=False)
class _Launch:
    """A running launch: this process's rank, the number of processes, the group for GPU tensors.

    `store` is torch.distributed's key-value store; `hosts` are the machines' names by rank.
    """

    rank: int
    world_size: int
    hosts: Sequence[str] = ()
    store: Any = None
    device_group: Any = None


_launch: _Launch | None = None
_local_depth = 0  # nesting of `local_only`


def launched_world_size() -> int:
    """Return the number of processes launched together, according to the environment."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def local_world_size() -> int:
    """Return the number of these processes on this machine, also in `local_only`."""
    if _launch is None or not _launch.hosts:  # before they connect, the launcher may know
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if launched_world_size() > 1 else 1
    return _launch.hosts.count(_launch.hosts[_launch.rank])


def local_ranks() -> list[int]:
    """Ranks of the processes of this job on this machine, including this one."""
    if world_size() == 1 or _launch is None or not _launch.hosts:
        return [rank()]
    own_host = _launch.hosts[_launch.rank]
    return [other for other, host in enumerate(_launch.hosts) if host == own_host]


@contextmanager
def launched() -> Iterator[None]:
    """Work together with the processes of a ``torchrun`` launch while the block lasts.

    They communicate through gloo, tensors on a GPU through NCCL; each process takes the GPU of its
    local rank. A script of your own opens this context around its calls of wgeo and makes the same
    calls in every process: one that takes another path, after an error it caught, leaves the others
    waiting. Work of a single process, reading images included, belongs inside `local_only`.

    Raises
    ------
    ProcessError
        The other processes cannot be reached.
    """
    global _launch
    if launched_world_size() == 1 or _launch is not None:
        yield
        return
    import torch
    import torch.distributed as dist

    with _connected():
        store, me, count = next(dist.rendezvous("env://", timeout=_CONNECT))
        own_store = dist.PrefixStore("wgeo", store)
        dist.init_process_group("gloo", store=store, rank=me, world_size=count, timeout=_WORK)
        gpus, group = torch.cuda.device_count(), None
        if gpus:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", me)) % gpus)
        hosts_gpus: list[Any] = [None] * count
        dist.all_gather_object(hosts_gpus, (socket.gethostname(), gpus))
        hosts = [host for host, _ in hosts_gpus]
        if all(number >= hosts.count(host) for host, number in hosts_gpus):  # NCCL: no GPU twice
            group = dist.new_group(backend="nccl", timeout=_WORK)
    _launch = _Launch(me, count, hosts, own_store, group)
    yield
    with _connected():
        dist.barrier()  # no process leaves while another may still need it
        dist.destroy_process_group()
    _launch = None  # but not after an error: `reports_error` still needs it


@contextmanager
def local_only() -> Iterator[None]:
    """Let this process work by itself while the block lasts; the others are not waited for."""
    global _local_depth
    _local_depth += 1
    try:
        yield
    finally:
        _local_depth -= 1


def world_size() -> int:
    """Return the number of processes that do this job."""
    return 1 if _launch is None or _local_depth else _launch.world_size


def rank() -> int:
    """Rank of this process, from 0."""
    return 0 if _launch is None or _local_depth else _launch.rank


def is_rank_zero() -> bool:
    """Return whether this process prints and writes for all, also inside `local_only`."""
    return launched_world_size() == 1 or os.environ["RANK"] == "0"


def shard(n: int) -> slice:
    """Return this process's contiguous part of n rows; lengths of parts differ by at most one."""
    me, all_ = rank(), world_size()
    return slice(n * me // all_, n * (me + 1) // all_)


@overload
def all_reduce_sum(part: torch.Tensor) -> torch.Tensor: ...
@overload
def all_reduce_sum(part: np.ndarray) -> np.ndarray: ...
@overload
def all_reduce_sum(part: float) -> float: ...
def all_reduce_sum(part: Any) -> Any:
    """Sum of every process's part; a tensor or a contiguous array is overwritten with it.

    An array in which each process fills only its `shard` of the rows, zero elsewhere, is completed.
    """
    return _reduced(part, "SUM")


@overload
def all_reduce_max(part: torch.Tensor) -> torch.Tensor: ...
@overload
def all_reduce_max(part: np.ndarray) -> np.ndarray: ...
def all_reduce_max(part: Any) -> Any:
    """Elementwise maximum over the processes; a tensor or a contiguous array is overwritten."""
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
    """Return ``work()``, called by the process of rank 0; the others wait for it.

    An error raised there is raised in all.
    """
    if world_size() == 1:
        return work()
    return _broadcast(_attempt(work) if rank() == 0 else None, 0)


def raise_on_any(work: Callable[[], T]) -> T:
    """Return ``work()`` of this process; if it fails in any process, raise the first error in all.

    For work on a process's own shard, which must not call collective operations.
    """
    if world_size() == 1:
        return work()
    result, error = _attempt(work)
    for rank_error in all_gather(error):
        if rank_error is not None:
            raise rank_error
    return result


def map_over_ranks(works: Sequence[Callable[[], T]], what: str) -> list[T]:
    """Return what each of `works` returns; processes take them in turn. The first error is raised.

    Progress is shown with the text `what`. The works must not call collective operations.
    """
    if world_size() == 1:
        return [work() for work in track(works, what)]
    turns = range(rank(), len(works), world_size())
    outcomes = {i: _attempt(works[i]) for i in track(turns, what)}
    return [_broadcast(outcomes.get(i), i % world_size()) for i in range(len(works))]


def _attempt(work: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        with local_only():
            return work(), None
    except Exception as error:
        return None, _portable(error)


def _portable(error: Exception) -> Exception:
    """Return the error, or its message if the error cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return WgeoError(f"{type(error).__name__}: {error}")
    return error


def _broadcast(outcome: Any, source: int) -> Any:
    """Give every process the outcome of one."""
    import torch.distributed as dist

    message: list[Any] = [None]
    if rank() == source:
        try:
            message = [pickle.dumps(outcome)]
        except Exception as error:  # the others are waiting
            message = [
                pickle.dumps(
                    (None, WgeoError(f"A result cannot be sent to other processes: {error}"))
                )
            ]
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
    except (RuntimeError, ValueError):  # the process that holds the store has ended
        return True


@contextmanager
def _connected() -> Iterator[None]:
    """Turn a lost connection into a ProcessError; let a signal end this process while it waits.

    Waiting is a call into compiled code, during which Python handles no signal.
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
            f"Another of the {launched_world_size()} processes of this job has ended or cannot be "
            "reached; its message is above or in its log. Run the same command again: stored "
            f"features are kept. ({str(error).splitlines()[0]:.120})"
        ) from error
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)
