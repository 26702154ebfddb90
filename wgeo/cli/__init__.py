"""The command line: parses, calls, prints. No science lives here.

A module for every group of commands; importing it adds them to `main`.
"""

from . import analysis, lists, sweeps, tracing, training, ufm
from .options import parse_solver
from .root import main

__all__ = ["analysis", "lists", "main", "parse_solver", "sweeps", "tracing", "training", "ufm"]
