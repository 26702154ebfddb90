"""Networks by name: wgeo's own, torchvision's, timm's and the user's.

`build` returns a network with fresh weights.
"""

from typing import TYPE_CHECKING

from .._deprecated import moved_names
from .etf import simplex_etf, with_etf_classifier
from .fresh import untrained
from .registry import build

__all__ = ["build", "simplex_etf", "untrained", "with_etf_classifier"]

if not TYPE_CHECKING:  # otherwise every name would count as defined
    __getattr__ = moved_names(__name__)
