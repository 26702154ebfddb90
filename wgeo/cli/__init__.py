"""The command line: parse options, call the library, and print results.

There is one module per group of commands; importing it adds the commands to `main`.
"""

from . import analysis, lists, sweeps, tracing, training, ufm
from .root import main

__all__ = ["analysis", "lists", "main", "sweeps", "tracing", "training", "ufm"]
