"""Networks: wgeo's own, torchvision's, timm's and a user's, by name; and which one fits a file.

`build` makes one with fresh weights, `from_state` the one that a state dict fits.
"""

from __future__ import annotations

from torch import nn

from ..storage.files import printable
from .etf import FixedLinear, simplex_etf, with_etf_classifier
from .external import Arch
from .fit import Fit, KeyReport, closest, exact_fits, fit, from_state
from .fresh import untrained
from .huggingface import arch_of_config
from .parts import ACTIVATIONS, Block, State, head_of, logits_of
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
    "arch_of_config",
    "build",
    "classifier_of",
    "closest",
    "exact_fits",
    "find",
    "fit",
    "from_state",
    "logits_of",
    "printable",
    "simplex_etf",
    "untrained",
    "with_etf_classifier",
]


def classifier_of(module: nn.Module) -> nn.Linear | None:
    """Return a network's last linear layer, in the order of registration.

    None if it has none, or was read from a file without its head.
    """
    found = head_of(module)
    return None if found is None else found[1]
