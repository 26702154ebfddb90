"""Waiting for other processes: a process that works is waited for, one that hangs is not."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import patience
import pytest

BUSY = "import time\nwhile time.process_time() < {}: pass\n"
START = "import subprocess, sys; subprocess.run([sys.executable, '-c', {!r}])"


def test_working_process_is_waited_for():
    done = patience.run([sys.executable, "-c", BUSY.format(1.5) + "print(input())"], input="told",
                        capture_output=True, text=True, still=60)  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "told\n")
    with pytest.raises(subprocess.CalledProcessError):
        patience.run([sys.executable, "-c", "raise SystemExit(3)"], check=True)


@pytest.mark.parametrize("script", ["import time; time.sleep(600)", BUSY.format(600)])
@pytest.mark.parametrize("by", ["{}", START])
def test_hanging_process_is_killed_with_its_children(script, by):
    code = script if by == "{}" else by.format(script)
    with (
        subprocess.Popen([sys.executable, "-c", code]) as process,
        pytest.raises(subprocess.TimeoutExpired),
    ):
        patience.finished(process, work=2, still=2 if "sleep" in script else 60)
    assert process.returncode == -9


def test_call_without_end_in_this_process_is_stopped(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TimeoutError), patience.limited(clock=0.2):
        (tmp_path / "pipe").read_bytes()
    with pytest.raises(TimeoutError), patience.limited(work=0.1):
        exec(BUSY.format(600))
    with patience.limited(work=0.1, clock=0.1):
        pass
    time.sleep(0.2)
