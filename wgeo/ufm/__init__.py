"""Unconstrained-feature models: solved, and certified for what was found.

The last-layer features of a network are taken for free variables, under the network's own loss and
weight decay: with cross-entropy (`fit_ce`) or squared loss (`fit_mse`), with more layers of weights
(`fit_deep`), or tied to the data by optimal transport (`fit_mufm`).
"""

from .certify import place
from .cross_entropy import closed_form_ce, fit_ce
from .deep import DeepCollapse, deep_collapse, deep_collapse_of, fit_deep
from .landscape import Landscape, landscape
from .lower_rank import configuration, configuration_value, constant, lower_rank
from .mse import fit_mse
from .multilayer import MUFMSolution, fit_mufm
from .problem import Problem
from .record import record_of
from .solution import Certificate, UFMSolution
from .spectral import SpectralOptimum, shrink, spectral_optimum, threshold

__all__ = [
    "Certificate",
    "DeepCollapse",
    "Landscape",
    "MUFMSolution",
    "Problem",
    "SpectralOptimum",
    "UFMSolution",
    "closed_form_ce",
    "configuration",
    "configuration_value",
    "constant",
    "deep_collapse",
    "deep_collapse_of",
    "fit_ce",
    "fit_deep",
    "fit_mse",
    "fit_mufm",
    "landscape",
    "lower_rank",
    "place",
    "record_of",
    "shrink",
    "spectral_optimum",
    "threshold",
]
