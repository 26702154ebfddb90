"""Load a network and its provenance from a file; code in it runs only with ``trust=True``."""

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .loading import load_checkpoint as load_checkpoint
    from .provenance import Network as Network
    from .provenance import Provenance as Provenance
else:
    __getattr__ = lazy_names(
        __name__,
        {"load_checkpoint": "loading", "Network": "provenance", "Provenance": "provenance"},
    )

__all__ = ["Network", "Provenance", "load_checkpoint"]
