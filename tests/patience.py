"""Wait for other processes by the work they have done, not by the clock.

On a machine ten times overloaded everything takes ten times as long, and nothing is wrong. Limits
are of processor time; a program hangs if it gets none for minutes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

WORK = 1800.0  # processor seconds that a program may take
STILL = 240.0  # seconds in which it must take one processor second, or it hangs
_PROC = Path("/proc")
_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


def family(pid: int) -> list[int]:
    """A process and all that it has started, and those have."""
    parents = {}
    for stat in _PROC.glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(stat.parent.name)] = int(_fields(stat)[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def spent(pid: int) -> float:
    """Processor seconds of a process and its children; wall-clock time if they are unknown."""
    if not _PROC.is_dir():
        return time.monotonic()
    ticks = 0
    for one in family(pid):
        with suppress(OSError):  # it has ended meanwhile
            ticks += sum(int(value) for value in _fields(_PROC / str(one) / "stat")[11:15])
    return ticks / _TICKS


def _fields(stat: Path) -> list[str]:
    """The fields from the third on; the second is a name, which may hold anything."""
    return stat.read_text().rpartition(")")[2].split()


def until(pid: int, seconds: float) -> None:
    """Return when a child process has used this many processor seconds, or has ended."""
    start = spent(pid) if not _PROC.is_dir() else 0.0
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if spent(pid) - start >= seconds:
            return
        time.sleep(0.02)  # reading the work of all processes is work, too


def waited(pid: int) -> tuple[int, float]:
    """Wait for a child; its status and the processor seconds that it took."""
    _, status, usage = os.wait4(pid, 0)
    return status, usage.ru_utime + usage.ru_stime


def run(
    command: Sequence[Any], *, work: float = WORK, still: float = STILL, **options: Any
) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run` with limits that follow progress, in place of ``timeout=``.

    Raises
    ------
    subprocess.TimeoutExpired
        It took more processor time than `work`, or hangs; all that it started is killed.
    """
    given, check = options.pop("input", None), options.pop("check", False)
    if options.pop("capture_output", False):
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    if given is not None:
        options["stdin"] = subprocess.PIPE
    with subprocess.Popen(list(map(str, command)), **options) as process:
        out, err = finished(process, given, work=work, still=still)
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


def finished(
    process: subprocess.Popen[Any], given: Any = None, *, work: float = WORK, still: float = STILL
) -> tuple[Any, Any]:
    """``process.communicate(given)``, with limits that follow progress; see `run`."""
    before, since = 0.0, time.monotonic()
    while True:
        try:
            return process.communicate(given, timeout=min(1.0, still / 4))
        except subprocess.TimeoutExpired:
            given = None
        now, used = time.monotonic(), spent(process.pid)
        if used - before >= 1:
            before, since = used, now
        if used > work or now - since > still:
            for one in reversed(family(process.pid)):
                with suppress(OSError):
                    os.kill(one, signal.SIGKILL)
            process.communicate()
            raise subprocess.TimeoutExpired(process.args, now - since)


@contextmanager
def limited(work: float = 10.0, clock: float = 60.0) -> Iterator[None]:
    """Raise a TimeoutError in code that takes more processor time, or only waits.

    Signals interrupt a process that waits for a pipe's other end, or reads a device without one.
    """

    def stop(*_: Any) -> None:
        raise TimeoutError("it does not end")

    timers = {signal.SIGPROF: signal.ITIMER_PROF, signal.SIGALRM: signal.ITIMER_REAL}
    before = {number: signal.signal(number, stop) for number in timers}
    try:
        for number, seconds in ((signal.SIGPROF, work), (signal.SIGALRM, clock)):
            signal.setitimer(timers[number], seconds)
        yield
    finally:
        for number, timer in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before[number])
