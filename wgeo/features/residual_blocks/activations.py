"""The activation function that ends a block, whether a module or the forward method calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .sums import ACTIVATIONS, ADDITIONS

_CLAMPED = 0.01  # smallest fraction of exact zeros after a ReLU


class Activations(TorchFunctionMode):
    """Records the last activation and the last sum, or skips one activation.

    Parameters
    ----------
    skipped : int, optional
        Index of the activation to skip: its call returns its argument unchanged. If given, only
        `count` is recorded.

    Attributes
    ----------
    count : int
        Number of activations called.
    name : str
        Name of the last activation; empty before the first.
    before : Tensor or None
        A copy of the last activation's first argument.
    function : callable or None
        The last activation, as a function of its first argument.
    """

    def __init__(self, skipped: int | None = None) -> None:
        super().__init__()
        self.skipped = skipped
        self.forget()

    def forget(self) -> None:
        """Forget all calls."""
        self.count, self.name = 0, ""
        self.before: torch.Tensor | None = None
        self.function: Callable[[torch.Tensor], torch.Tensor] | None = None
        self._result: torch.Tensor | None = None
        self._sum: torch.Tensor | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        first = args[0] if args else None
        if not isinstance(first, torch.Tensor) or name not in ACTIVATIONS | ADDITIONS:
            return func(*args, **kwargs)
        if name in ADDITIONS:
            out = func(*args, **kwargs)
            if self.skipped is None:
                self._sum = out.clone()
            return out
        self.count += 1
        if self.skipped is not None:
            return first if self.count - 1 == self.skipped else func(*args, **kwargs)
        self.name, self.before = name.rstrip("_"), first.clone()
        self.function = lambda z: func(z.clone(), *args[1:], **kwargs)
        out = func(*args, **kwargs)
        self._result = out.clone()
        return out

    def ended_in(self, out: torch.Tensor) -> bool:
        """Return whether a tensor equals the result of the last activation."""
        return _equal(self._result, out)

    def hides_relu(self, out: torch.Tensor) -> bool:
        """Return whether a tensor seems to come from a ReLU that was not traced.

        It is clamped at 0, but equals neither the last activation's result nor the last sum.
        """
        return is_clamped(out) and not self.ended_in(out) and not _equal(self._sum, out)


def is_clamped(out: torch.Tensor) -> bool:
    """Return whether no entry of a tensor is negative and some are exactly 0, as after a ReLU."""
    return bool((out >= 0).all()) and float((out == 0).double().mean()) >= _CLAMPED


def _equal(a: torch.Tensor | None, b: torch.Tensor) -> bool:
    return a is not None and a.shape == b.shape and torch.equal(a, b)
