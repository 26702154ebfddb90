"""``wgeo`` and ``python -m wgeo``: the command line."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is still loading prints no traceback."""
    _keep_streams()
    _leave_current_folder()
    try:
        from .cli import main as run

        run()
    except KeyboardInterrupt:
        print("\nwgeo: stopped before anything was done.", file=sys.stderr)
        sys.exit(130)


def _keep_streams() -> None:
    """Open the null device in place of each closed standard stream.

    Otherwise a file opened later would get the descriptor of the stream, and messages would be
    written into that file.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _leave_current_folder() -> None:
    """Import nothing from the current folder, in this process or in child processes.

    The folder may contain downloads, such as a ``random.py`` that shadows Python's own.
    ``python -m wgeo`` puts the folder first on the path; ``python -P -m wgeo`` and ``wgeo`` do not.
    """
    # Child processes, such as multiprocessing workers, inherit this variable.
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        here = os.getcwd()
    except FileNotFoundError:  # the folder was deleted
        return
    if sys.path[0] == here and not sys.flags.safe_path:
        del sys.path[0]
        if here == os.path.dirname(os.path.dirname(os.path.abspath(__file__))):
            sys.path.append(here)  # wgeo is not installed: workers import it from its source tree


if __name__ == "__main__":
    main()
