"""Networks: wgeo's own, torchvision's, timm's and a user's, by name; and which one fits a file.

`build` makes one with fresh weights, `from_state` the one that a state dict fits.
"""

from __future__ import annotations

from torch import nn

from ..files import printable
from .etf import FixedLinear, simplex_etf, with_etf_classifier
from .fit import Fit, KeyReport, closest, exact_fits, fit, from_state
from .fresh import untrained
from .outside import Arch
from .parts import ACTIVATIONS, Block, State
from .registry import ARCHS, build, find

__all__ = [
    "ACTIVATIONS",
    "ARCHS",
    "Arch",
    "Block",
    "Fit",
    "FixedLinear",
    "KeyReport",
    "State",
    "build",
    "classifier_of",
    "closest",
    "exact_fits",
    "find",
    "fit",
    "from_state",
    "printable",
    "simplex_etf",
    "untrained",
    "with_etf_classifier",
]


def classifier_of(module: nn.Module) -> nn.Linear | None:
    """Return a network's last linear layer, in the order of registration; None if it has none."""
    linear = [part for part in module.modules() if isinstance(part, nn.Linear)]
    return linear[-1] if linear else None
