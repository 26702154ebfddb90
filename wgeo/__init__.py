"""wgeo: the optimal-transport geometry of trained deep networks.

Names are imported on first use, so that ``import wgeo`` and ``wgeo --help`` take little time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._lazy import lazy_names

if TYPE_CHECKING:
    from . import analysis as analysis
    from . import checkpoints as checkpoints
    from . import comparison as comparison
    from . import data as data
    from . import errors as errors
    from . import features as features
    from . import geodesic as geodesic
    from . import models as models
    from . import neural_collapse as neural_collapse
    from . import plots as plots
    from . import report as report
    from . import training as training
    from . import trajectory as trajectory
    from . import transport as transport
    from . import ufm as ufm
    from .analysis import Analysis as Analysis
    from .analysis import analyze as analyze
    from .checkpoints import Network as Network
    from .checkpoints import load_checkpoint as load_checkpoint
    from .comparison import compare as compare
    from .data import Images as Images
    from .data import load_images as load_images
    from .errors import WgeoError as WgeoError
    from .features import blocks as blocks
    from .features import stream as stream
    from .features import trace as trace
    from .geodesic import Alignment as Alignment
    from .geodesic import Straightness as Straightness
    from .geodesic import alignment as alignment
    from .geodesic import bias_curve as bias_curve
    from .geodesic import straighter_than as straighter_than
    from .geodesic import straightness as straightness
    from .geodesic.gradient_maps import brenier as brenier
    from .neural_collapse import Collapse as Collapse
    from .neural_collapse import SeparationLaw as SeparationLaw
    from .neural_collapse import collapse as collapse
    from .neural_collapse import separation_law as separation_law
    from .training import train as train
    from .trajectory import Trajectory as Trajectory
    from .transport import Exact as Exact
    from .transport import Gaussian as Gaussian
    from .transport import Sinkhorn as Sinkhorn
    from .transport import Sliced as Sliced
    from .transport import TransportResult as TransportResult
    from .transport import distances as distances
    from .transport import sinkhorn_divergence as sinkhorn_divergence
    from .transport import wasserstein as wasserstein

__version__ = "0.2.0"

_NAMES: dict[str, tuple[str, ...]] = {
    "analysis": ("Analysis", "analyze"),
    "checkpoints": ("Network", "load_checkpoint"),
    "comparison": ("compare",),
    "data": ("Images", "load_images"),
    "errors": ("WgeoError",),
    "features": ("blocks", "stream", "trace"),
    "geodesic": (
        *("Alignment", "Straightness", "alignment", "bias_curve", "brenier"),
        *("straighter_than", "straightness"),
    ),
    "models": (),
    "neural_collapse": ("Collapse", "SeparationLaw", "collapse", "separation_law"),
    "plots": (),
    "report": (),
    "training": ("train",),
    "trajectory": ("Trajectory",),
    "transport": (
        *("Exact", "Gaussian", "Sinkhorn", "Sliced", "TransportResult"),
        *("distances", "sinkhorn_divergence", "wasserstein"),
    ),
    "ufm": (),
}
_PACKAGE_OF = {name: package for package, names in _NAMES.items() for name in names}

__all__ = ["__version__", *sorted((*_NAMES, *_PACKAGE_OF))]


if not TYPE_CHECKING:  # otherwise type checkers would accept every name
    __getattr__ = lazy_names(__name__, _PACKAGE_OF)


def __dir__() -> list[str]:
    return __all__
