"""Names of version 0.1 that have changed: until version 0.3 they work, with a warning."""

from __future__ import annotations

import pkgutil
import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from .errors import ArgumentError

Function = TypeVar("Function", bound=Callable[..., Any])

_MOVED: dict[str, dict[str, str]] = {
    "wgeo": {
        "checkpoint": "wgeo.checkpoints",
        "distributed": "wgeo.runtime.processes",
        "store": "wgeo.storage.store",
    },
    "wgeo.models": {
        "ACTIVATIONS": "wgeo.models.parts.ACTIVATIONS",
        "ARCHS": "wgeo.models.registry.ARCHS",
        "Arch": "wgeo.models.external.Arch",
        "Block": "wgeo.models.parts.Block",
        "Fit": "wgeo.models.matching.Fit",
        "FixedLinear": "wgeo.models.etf.FixedLinear",
        "KeyReport": "wgeo.models.matching.KeyReport",
        "State": "wgeo.models.parts.State",
        "arch_of_config": "wgeo.models.huggingface.arch_of_config",
        "classifier_of": "wgeo.models.parts.classifier_of",
        "closest": "wgeo.models.matching.closest",
        "exact_fits": "wgeo.models.matching.exact_fits",
        "find": "wgeo.models.registry.find",
        "fit": "wgeo.models.matching.fit",
        "from_state": "wgeo.models.matching.from_state",
        "logits_of": "wgeo.models.parts.logits_of",
    },
    "wgeo.data": {
        "PRESETS": "wgeo.data.images.PRESETS",
        "as_images": "wgeo.data.loaders.as_images",
    },
    "wgeo.training": {
        "AUGMENTATIONS": "wgeo.training.recipe.AUGMENTATIONS",
        "DECAYED": "wgeo.training.recipe.DECAYED",
        "LOSSES": "wgeo.training.recipe.LOSSES",
        "PRECISIONS": "wgeo.training.recipe.PRECISIONS",
        "SCHEDULES": "wgeo.training.recipe.SCHEDULES",
        "learning_rate": "wgeo.training.recipe.learning_rate",
    },
    "wgeo.features": {
        "inputs": "wgeo.features.network.inputs",
        "normalization_for": "wgeo.features.network.normalization_for",
    },
    "wgeo.geodesic": {
        "BiasPoint": "wgeo.geodesic.bias.BiasPoint",
        "LOW_RESOLUTION": "wgeo.thresholds.LOW_RESOLUTION",
        "NullScore": "wgeo.geodesic.result.NullScore",
        "Optimality": "wgeo.geodesic.result.Optimality",
        "POWER_MARGIN": "wgeo.thresholds.POWER_MARGIN",
        "Pairs": "wgeo.geodesic.result.Pairs",
        "PathFigures": "wgeo.geodesic.paths.PathMeasures",
        "STATISTICS": "wgeo.geodesic.significance.STATISTICS",
        "null_scores": "wgeo.geodesic.reliability.null_scores",
        "path_figures": "wgeo.geodesic.paths.path_measures",
        "powerful": "wgeo.geodesic.reliability.has_power",
        "resolution": "wgeo.geodesic.paths.resolution",
        "shuffled": "wgeo.geodesic.significance.shuffled",
    },
    "wgeo.ufm": {
        "Problem": "wgeo.ufm.problem.Problem",
        "SpectralOptimum": "wgeo.ufm.spectral.SpectralOptimum",
        "configuration": "wgeo.ufm.configurations.configuration",
        "configuration_value": "wgeo.ufm.configurations.configuration_value",
        "deep_collapse_of": "wgeo.ufm.deep.deep_collapse_of",
        "place": "wgeo.ufm.certify.evaluate",
        "record_of": "wgeo.ufm.record.record_of",
        "shrink": "wgeo.ufm.spectral.shrink",
        "spectral_optimum": "wgeo.ufm.spectral.spectral_optimum",
    },
    "wgeo.plots": {
        "ERRORS": "wgeo.plots.predictions.ERRORS",
        "METRICS": "wgeo.plots.depth.METRICS",
        "Plot": "wgeo.plots.sources.Plot",
        "RATIOS": "wgeo.plots.paths.RATIOS",
        "SCORES": "wgeo.plots.paths.SCORES",
        "SIZES": "wgeo.plots.style.SIZES",
        "catalogue": "wgeo.plots.files.catalog",
        "model_layers": "wgeo.plots.models.model_layers",
        "model_means": "wgeo.plots.models.model_means",
        "model_starts": "wgeo.plots.models.model_starts",
        "model_terms": "wgeo.plots.models.model_terms",
        "series_rows": "wgeo.plots.series.series_rows",
    },
    "wgeo.analysis": {
        "class_view": "wgeo.trajectory.views.class_view",
        "training_view": "wgeo.analysis.series.training_view",
        "versions": "wgeo.analysis.result.versions",
    },
}


def moved_names(package: str, stacklevel: int = 2) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for a module that finds objects moved since version 0.1.

    If the module's own ``__getattr__`` calls the returned function, `stacklevel` is 3.
    """

    def find(name: str) -> Any:
        target = _MOVED.get(package, {}).get(name)
        if target is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        warnings.warn(
            f"{package}.{name} is now {target}; the old name will be removed in version 0.3.",
            DeprecationWarning,
            stacklevel=stacklevel,
        )
        return pkgutil.resolve_name(target)

    return find


def renamed_parameter(old: str, new: str) -> Callable[[Function], Function]:
    """Return a decorator that accepts a parameter under its former name, with a warning."""

    def decorate(function: Function) -> Function:
        @wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            if old in options and new in options:
                raise ArgumentError(f"Give `{new}=` alone: `{old}=` is its former name.")
            if old in options:
                warnings.warn(
                    f"{old}= is now {new}=; the old name will be removed in version 0.3.",
                    DeprecationWarning,
                    stacklevel=2,
                )
                options[new] = options.pop(old)
            return function(*args, **options)

        return call  # type: ignore[return-value]

    return decorate
