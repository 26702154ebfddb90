"""What long work needs from the machine: processes, threads, memory, progress, a terminal."""

from .processes import launched, local_only

__all__ = ["launched", "local_only"]
