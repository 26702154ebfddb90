"""wgeo: the optimal-transport geometry of trained deep networks.

Names load on first use, so that ``import wgeo`` and ``wgeo --help`` answer at once.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import analysis as analysis
    from . import models as models
    from . import plots as plots
    from . import transport as transport
    from . import ufm as ufm
    from .analysis import Analysis as Analysis
    from .analysis import analyze as analyze
    from .brenier import brenier as brenier
    from .checkpoint import Network as Network
    from .checkpoint import load_checkpoint as load_checkpoint
    from .collapse import Collapse as Collapse
    from .collapse import collapse as collapse
    from .compare import compare as compare
    from .data import Images as Images
    from .data import load_images as load_images
    from .errors import WgeoError as WgeoError
    from .features import blocks as blocks
    from .features import stream as stream
    from .features import trace as trace
    from .geodesic import Straightness as Straightness
    from .geodesic import bias_curve as bias_curve
    from .geodesic import straighter_than as straighter_than
    from .geodesic import straightness as straightness
    from .training import train as train
    from .trajectory import Trajectory as Trajectory
    from .transport import Exact as Exact
    from .transport import Gaussian as Gaussian
    from .transport import Sinkhorn as Sinkhorn
    from .transport import Sliced as Sliced
    from .transport import TransportResult as TransportResult
    from .transport import wasserstein as wasserstein

__version__ = "0.1.0"

_HOME = {
    "Analysis": "analysis",
    "analyze": "analysis",
    "brenier": "brenier",
    "Network": "checkpoint",
    "load_checkpoint": "checkpoint",
    "Collapse": "collapse",
    "collapse": "collapse",
    "compare": "compare",
    "Images": "data",
    "load_images": "data",
    "WgeoError": "errors",
    "blocks": "features",
    "stream": "features",
    "trace": "features",
    "Straightness": "geodesic",
    "bias_curve": "geodesic",
    "straighter_than": "geodesic",
    "straightness": "geodesic",
    "train": "training",
    "Trajectory": "trajectory",
    "Exact": "transport",
    "Gaussian": "transport",
    "Sinkhorn": "transport",
    "Sliced": "transport",
    "TransportResult": "transport",
    "wasserstein": "transport",
}
_PACKAGES = ("analysis", "models", "plots", "transport", "ufm")

__all__ = ["__version__", *sorted((*_HOME, *_PACKAGES))]


if not TYPE_CHECKING:  # or every name would be right

    def __getattr__(name: str) -> Any:
        if name in _PACKAGES:
            return importlib.import_module(f".{name}", __name__)
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """Keeps ``wgeo.collapse`` the function where importing ``wgeo/collapse.py`` would shadow it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
