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
    """Open the null device for closed standard streams: no output may land in a result file.

    An opened file gets the lowest free descriptor; errors are printed to descriptor 2.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _leave_current_folder() -> None:
    """Import nothing from the current folder, in this process or in child processes.

    It may be a folder of downloads with a ``random.py`` that shadows Python's own.
    ``python -m wgeo`` puts it first on the path; ``python -P -m wgeo`` and ``wgeo`` do not.
    """
    # Child processes, such as multiprocessing workers, inherit it.
    os.environ["PYTHONSAFEPATH"] = "1"
    here = os.getcwd()
    if sys.path[0] == here and not sys.flags.safe_path:
        del sys.path[0]
        if here == os.path.dirname(os.path.dirname(os.path.abspath(__file__))):
            sys.path.append(here)  # an uninstalled source tree: workers import it


if __name__ == "__main__":
    main()
