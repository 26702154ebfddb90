"""The command line: parse options, call the library, and print results.

Each module of commands adds them to `main` when it is imported.
"""

from . import analysis, lists, sweeps, tracing, training, ufm
from .root import main

__all__ = ["analysis", "lists", "main", "sweeps", "tracing", "training", "ufm"]
