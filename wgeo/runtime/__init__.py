"""Support for long computations: processes, threads, a memory limit, progress, a terminal."""

from .processes import launched, local_only

__all__ = ["launched", "local_only"]
