"""Networks by name: wgeo's own, torchvision's, timm's and the user's."""

from typing import TYPE_CHECKING

from .._lazy import lazy_names

if TYPE_CHECKING:
    from .etf import simplex_etf as simplex_etf
    from .etf import with_etf_classifier as with_etf_classifier
    from .fresh import untrained as untrained
    from .registry import build as build
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "build": "registry",
            "simplex_etf": "etf",
            "untrained": "fresh",
            "with_etf_classifier": "etf",
        },
    )

__all__ = ["build", "simplex_etf", "untrained", "with_etf_classifier"]
