"""``wgeo`` and ``python -m wgeo``: the command line."""

from __future__ import annotations

import os
import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is still being loaded is no traceback, either."""
    _keep_streams()
    _leave_current_folder()
    try:
        from .cli import main as run

        run()
    except KeyboardInterrupt:
        print("\nwgeo: stopped before anything was done.", file=sys.stderr)
        sys.exit(130)


def _keep_streams() -> None:
    """Take the places of closed streams: what a library prints must not land in a file of results.

    A file that is opened gets the lowest number that is free, and 2 is where errors are printed.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _leave_current_folder() -> None:
    """Import nothing from the current folder, here or in the Python processes that are started.

    It may be a folder of downloads, in which a ``random.py`` takes the place of Python's own.
    ``python -m wgeo`` puts it first on the path; ``python -P -m wgeo`` and ``wgeo`` do not.
    """
    os.environ["PYTHONSAFEPATH"] = "1"  # inherited by the workers of multiprocessing, among others
    here = os.getcwd()
    if sys.path[0] == here and not sys.flags.safe_path:
        del sys.path[0]
        if here == os.path.dirname(os.path.dirname(os.path.abspath(__file__))):
            sys.path.append(here)  # a source tree that is not installed: workers import it


if __name__ == "__main__":
    main()
