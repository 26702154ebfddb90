"""The command line: parses, calls, prints. No science lives here.

A module for every group of commands; importing it adds them to `main`.
"""

from . import analysis, lists, training, ufm
from .analysis import parse_solver
from .root import main

__all__ = ["analysis", "lists", "main", "parse_solver", "training", "ufm"]
