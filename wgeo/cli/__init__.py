"""The command line: parse options, call the library, and print results.

Each module of commands adds them to `main` when it is imported.
"""

from . import analysis, preparing, sweeps, ufm
from .root import main

__all__ = ["analysis", "main", "preparing", "sweeps", "ufm"]
