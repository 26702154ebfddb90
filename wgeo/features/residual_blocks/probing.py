"""Run a network on a few images, and record all calls of its modules and all sums."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from ...errors import FeatureError, WgeoError
from ...models.parts import first_tensor, hooked
from ...runtime.memory import OUT_OF_MEMORY
from .functions import SumWatch


@dataclass
class Call:
    """A module's calls in one pass; tensors are copies, since the network may overwrite them."""

    args: tuple[Any, ...]  # of the first call
    kwargs: dict[str, Any]
    y: torch.Tensor | None  # the first call's output; None unless it has exactly one tensor
    orders: list[int] = field(default_factory=list)  # time at which each call ended

    @property
    def x(self) -> torch.Tensor | None:
        """The first tensor among the first call's arguments."""
        return first_tensor((*self.args, *self.kwargs.values()))

    @property
    def count(self) -> int:
        """Number of times the module ran."""
        return len(self.orders)


@dataclass
class Probe:
    """What `probe_network` records: the calls of each module that ran, and the sums."""

    calls: dict[str, Call]
    watch: SumWatch

    def get(self, name: str) -> Call | None:
        """Return a module's call; None if it did not run or did not map a tensor to a tensor."""
        call = self.calls.get(name)
        return None if call is None or call.x is None or call.y is None else call


def returned(out: Any) -> torch.Tensor | None:
    """Return a module's output if it is a tensor, or the only tensor in it; otherwise None."""
    if isinstance(out, tuple | list):
        tensors = [item for item in out if isinstance(item, torch.Tensor)]
        return tensors[0] if len(tensors) == 1 else None
    return out if isinstance(out, torch.Tensor) else None


def copied(value: Any) -> Any:
    """Return a copy of nested arguments and their tensors."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if type(value) in (tuple, list):
        return type(value)(copied(item) for item in value)
    if type(value) is dict:
        return {key: copied(item) for key, item in value.items()}
    return value


def probe_network(module: nn.Module, images: torch.Tensor) -> Probe:
    """Run a network on a few images, and record every module's calls and every sum."""
    probe = Probe({}, SumWatch(images))
    watch, calls = probe.watch, probe.calls
    arguments: dict[str, Any] = {}

    def before(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if name not in calls:
            with watch.silent():
                arguments[name] = copied(args), copied(kwargs)
        watch.begin(name, first_tensor((*args, *kwargs.values())))

    def after(name: str, _: nn.Module, args: Any, out: Any) -> None:
        y = returned(out)
        if name not in calls:
            first_args, first_kwargs = arguments.pop(name)
            with watch.silent():
                copy = None if y is None else y.clone()
            calls[name] = Call(first_args, first_kwargs, copy)
        calls[name].orders.append(watch.end(name, y))

    with hooked() as keep:
        for name, part in module.named_modules():
            if name:
                keep(part.register_forward_pre_hook(partial(before, name), with_kwargs=True))
                keep(part.register_forward_hook(partial(after, name)))
        with watch:
            run(module, images)
    watch.finish()
    return probe


def run(module: nn.Module, images: torch.Tensor) -> Any:
    """Call a network on images; its errors become a `FeatureError`."""
    try:
        return module(images)
    except (WgeoError, OUT_OF_MEMORY):  # wgeo's own hooks raise a WgeoError
        raise
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        shape = images.shape
        channels_last = images.ndim == 4 and shape[3] in (1, 3) and shape[1] not in (1, 3)
        advice = (
            "Their channels are last: pass x.permute(0, 3, 1, 2)"
            if channels_last
            else "Check the architecture's channels and image size against the data"
        )
        raise FeatureError(
            f"{type(module).__name__} cannot process images of shape {tuple(images.shape[1:])}: "
            f"{reason}. {advice}."
        ) from error
