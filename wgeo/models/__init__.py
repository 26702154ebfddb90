"""Networks: wgeo's own, torchvision's, timm's and a user's, by name; and which one fits a file.

`build` makes one with fresh weights.
"""

from typing import TYPE_CHECKING

from .._deprecated import moved_names
from .etf import simplex_etf, with_etf_classifier
from .fresh import untrained
from .registry import build

__all__ = ["build", "simplex_etf", "untrained", "with_etf_classifier"]

if not TYPE_CHECKING:  # or every name would count as defined
    __getattr__ = moved_names(__name__)
