"""Unconstrained feature models: solutions with certificates.

In these models the last-layer features of a network are free variables, with the network's loss and
weight decay. The loss is cross-entropy (`fit_ce`) or squared loss (`fit_mse`); there may be more
layers of weights (`fit_deep`), or features tied to the data by optimal transport (`fit_mufm`).
"""

from typing import TYPE_CHECKING

from .._deprecated import moved_names
from .configurations import lower_rank
from .curvature import Landscape, landscape
from .deep import DeepCollapse, deep_collapse, fit_deep
from .mufm.fit import fit_mufm
from .mufm.solution import MUFMSolution
from .plain import closed_form_ce, fit_ce, fit_mse
from .solution import Certificate, UFMSolution

__all__ = [
    "Certificate",
    "DeepCollapse",
    "Landscape",
    "MUFMSolution",
    "UFMSolution",
    "closed_form_ce",
    "deep_collapse",
    "fit_ce",
    "fit_deep",
    "fit_mse",
    "fit_mufm",
    "landscape",
    "lower_rank",
]

if not TYPE_CHECKING:  # with this function, type checkers would accept any name
    __getattr__ = moved_names(__name__)
