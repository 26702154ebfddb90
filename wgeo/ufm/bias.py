"""The argument ``bias`` of all ``fit_*`` functions: free, none, or a decay."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import wraps
from numbers import Real
from typing import Any, TypeVar

from ..errors import ArgumentError

Fit = TypeVar("Fit", bound=Callable[..., Any])


def bias_decay_of(bias: Any) -> float:
    """Return the decay lambda_b: 0 for "free", infinity for "none", or the given number >= 0.

    Raises ArgumentError for anything else, also for True and False.
    """
    if isinstance(bias, str) and bias in ("free", "none"):
        return 0.0 if bias == "free" else math.inf
    if isinstance(bias, Real) and not isinstance(bias, bool) and float(bias) >= 0:
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
