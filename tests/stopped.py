"""Runs of the command line that are stopped at some moment: a line of JSON for each.

    python tests/stopped.py FOLDER SIGNAL SECONDS... -- WORDS...

Libraries are loaded once; every run is a fork, stopped when it has worked so many seconds.
``{out}`` among the words is a folder of its own, ``{tmp}`` the folder given.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import patience
import torch

import wgeo
from wgeo.cli import main


def run(words: list[str], out: Path, number: int, after: float) -> dict[str, object]:
    said = out.with_suffix(".txt")
    child = os.fork()
    if child == 0:
        handle = os.open(said, os.O_WRONLY | os.O_CREAT)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        code = 0
        try:
            main(words)
        except SystemExit as leave:
            code = int(leave.code or 0)
        except BaseException:
            code = 99
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    patience.until(child, after)
    os.kill(child, number)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return {"out": str(out), "code": code, "said": said.read_text(), "after": after}


def stopped() -> None:
    torch.set_num_threads(1)
    folder, number = Path(sys.argv[1]), int(sys.argv[2])
    split = sys.argv.index("--")
    for name in ("analyze", "train", "Exact"):  # imported before the forks, not in each
        getattr(wgeo, name)
    for i, after in enumerate(map(float, sys.argv[3:split])):
        out = folder / f"{number}-{i}"
        words = [word.format(out=out, tmp=folder) for word in sys.argv[split + 1 :]]
        print(json.dumps(run(words, out, number, after)), flush=True)


if __name__ == "__main__":
    if hasattr(signal, "SIGTERM"):
        stopped()
