"""``wgeo`` and ``python -m wgeo``: the command line."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is still being loaded is no traceback, either."""
    try:
        from .cli import main as run

        run()
    except KeyboardInterrupt:
        print("\nwgeo: stopped before anything was done.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
