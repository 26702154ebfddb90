"""Checks of the arguments of all ``fit_*`` functions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import wraps
from numbers import Real
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Int

from ..arrays.checks import as_float, as_labels
from ..errors import ArgumentError

Fit = TypeVar("Fit", bound=Callable[..., Any])


def class_labels(labels: Any, n: int | None = None) -> Int[np.ndarray, " n"]:
    """Return labels as `as_labels` does; check that K >= 2 and that no class is empty."""
    y = as_labels(labels, n)
    counts = np.bincount(y)
    if len(counts) < 2:
        raise ArgumentError("All labels are 0; an unconstrained feature model needs K >= 2.")
    if (counts == 0).any():
        missing = ", ".join(map(str, np.flatnonzero(counts == 0)[:10]))
        raise ArgumentError(
            f"No sample has label {missing}, though labels go up to {len(counts) - 1}; "
            "number the classes 0, ..., K - 1 without gaps."
        )
    return y


def check_decays(decays: Mapping[str, Any]) -> None:
    """Raise ArgumentError for penalties that are not positive numbers."""
    for name, value in decays.items():
        if not 0 < as_float(value, name) < math.inf:
            raise ArgumentError(
                f"{name} must be a positive number, not {value!r}; without a penalty there may be "
                "no minimum."
            )


def all_decays(feature_decay: Any, weight_decays: Any) -> tuple[Any, ...]:
    """Return (lambda_H, lambda_1, ..., lambda_L) of a deep model, for `Problem.checked`."""
    if isinstance(weight_decays, str) or not isinstance(weight_decays, Iterable):
        raise ArgumentError(
            f"weight_decays must be a list, one number per layer of weights, not {weight_decays!r}."
        )
    return (feature_decay, *weight_decays)


def check_method(method: str) -> None:
    """Raise ArgumentError for an unknown method."""
    if method not in ("auto", "closed", "numerical"):
        raise ArgumentError(f"method must be 'auto', 'closed' or 'numerical', not {method!r}.")


def check_tolerance(tolerance: Any) -> None:
    """Raise ArgumentError for a tolerance that is not a positive number."""
    if not as_float(tolerance, "tolerance") > 0:
        raise ArgumentError(f"tolerance must be > 0, not {tolerance!r}.")


def check_layer(index: int, last: int) -> None:
    """Raise ArgumentError for a layer of a solution that is not one of 0, ..., `last`."""
    if not 0 <= index <= last:
        raise ArgumentError(f"Layers go from 0 to {last}; there is no layer {index}.")


def bias_decay_of(bias: Any) -> float:
    """Return the decay lambda_b: 0 for "free", infinity for "none", or the given number >= 0.

    Raises ArgumentError for anything else, also for True and False.
    """
    if isinstance(bias, str) and bias in ("free", "none"):
        return 0.0 if bias == "free" else math.inf
    if isinstance(bias, Real) and not isinstance(bias, bool):
        with suppress(OverflowError):  # of an integer that is too large for a float
            if float(bias) >= 0:
                return float(bias)
    raise ArgumentError(f"bias must be 'free', 'none' or a decay >= 0, not {bias!r}.")


def accepts_former_bias(fit: Fit) -> Fit:
    """Accept ``bias_decay=`` and ``bias=True`` or ``False``, as in version 0.1, with a warning."""

    @wraps(fit)
    def call(*args: Any, **settings: Any) -> Any:
        if "bias_decay" in settings:
            if "bias" in settings:
                raise ArgumentError(
                    "Give `bias=` alone: `bias_decay=` is a former name of the same setting."
                )
            decay = settings.pop("bias_decay")
            _warn("`bias_decay=` is now `bias=`, which takes 'free', 'none' or a decay")
            if decay is not None:  # None was the default in version 0.1
                settings["bias"] = decay
        elif isinstance(settings.get("bias"), bool):
            former, settings["bias"] = settings["bias"], "free" if settings["bias"] else "none"
            _warn(f"`bias={former}` is now `bias={settings['bias']!r}`")
        return fit(*args, **settings)

    return call  # type: ignore[return-value]


def _warn(change: str) -> None:
    warnings.warn(
        f"{change}; the old form will be removed in version 0.3.", DeprecationWarning, stacklevel=3
    )
