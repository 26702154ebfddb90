"""Hooks for the tensors at a network's stem, blocks and shortcuts during one pass."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from ..errors import ArgumentError, FeatureError
from ..models.parts import first_tensor, hooked
from ..trajectory.trajectory import entry_key, features_key
from .residual_blocks import Activations, BlockSpec, SumTap, follow_running, returned

Put = Callable[[str, torch.Tensor], None]


@contextmanager
def tensor_hooks(
    module: nn.Module, specs: Sequence[BlockSpec], tap: str, put: Put
) -> Iterator[None]:
    """Call ``put(key, tensor)`` for the stem and for every block's features and entry, in a pass.

    Keys are those of a store. The stem is the input of the first block. The entry of a block is the
    output of its shortcut. The network may overwrite tensors later, so `put` must copy them.
    """
    parts = dict(module.named_modules())
    with hooked() as keep, ExitStack() as stack:
        tap_sums = _on_sums(specs, tap, put)
        activations = stack.enter_context(Activations()) if tap == "pre" else None
        _on_modules(parts, specs, activations, put, keep)
        if tap_sums is not None:
            follow_running(module, tap_sums, keep)
            stack.enter_context(tap_sums)
        yield


def _on_modules(
    parts: dict[str, nn.Module],
    specs: Sequence[BlockSpec],
    activations: Activations | None,
    put: Put,
    keep: Callable[[Any], None],
) -> None:
    calls: Counter[str] = Counter()
    by_module: dict[str, dict[int, BlockSpec]] = defaultdict(dict)
    for spec in specs:
        if spec.sum is None:
            by_module[spec.module][spec.call] = spec

    def before(name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if activations is not None:
            activations.forget()
        spec = by_module[name].get(calls[name])
        calls[name] += 1
        if spec is None:
            return
        if spec is specs[0]:
            put(features_key("stem"), _tensor(first_tensor((*args, *kwargs.values())), name))
        if spec.residual and spec.shortcut is None:
            key = spec.argument
            value = kwargs.get(key) if isinstance(key, str) else (*args, None)[min(key, len(args))]
            put(entry_key(spec.name), _tensor(value, name))

    def entry(name: str, _: nn.Module, args: Any, value: Any) -> None:
        spec = by_module[name].get(calls[name] - 1)
        if spec is not None:
            put(entry_key(spec.name), _tensor(value, name))

    def after(name: str, _: nn.Module, args: Any, value: Any) -> None:
        spec = by_module[name].get(calls[name] - 1)
        if spec is not None:
            put(features_key(spec.name), _tapped(spec, _tensor(value, name), activations))

    for name, by_call in by_module.items():
        spec = next(iter(by_call.values()))  # all calls of a module are recorded in the same way
        keep(parts[name].register_forward_pre_hook(partial(before, name), with_kwargs=True))
        if spec.shortcut is not None:
            keep(parts[spec.shortcut].register_forward_hook(partial(entry, name)))
        keep(parts[name].register_forward_hook(partial(after, name)))


def _tapped(spec: BlockSpec, out: torch.Tensor, activations: Activations | None) -> torch.Tensor:
    """Return a block's output, before its final activation if `activations` is given."""
    if activations is None:
        return out
    if activations.ended_in(out):
        assert activations.before is not None
        return activations.before
    if spec.activated or activations.hides_relu(out):
        raise ArgumentError(
            f"An activation follows the sum in block {spec.name!r}, but it is not a function of "
            "torch that wgeo can trace: use `tap='post'`, or let the block call a function such as "
            "torch.nn.functional.relu."
        )
    return out


def _on_sums(specs: Sequence[BlockSpec], tap: str, put: Put) -> SumTap | None:
    def on_sum(
        spec: BlockSpec, operands: list[torch.Tensor], before: torch.Tensor, value: torch.Tensor
    ) -> None:
        assert isinstance(spec.argument, int)
        identity = operands[spec.argument]
        if spec is specs[0]:
            put(features_key("stem"), identity)
        put(entry_key(spec.name), identity)
        put(features_key(spec.name), value if tap == "post" else before)

    sums = {spec.sum: (spec.tail, partial(on_sum, spec)) for spec in specs if spec.sum is not None}
    return SumTap(sums) if sums else None


def _tensor(value: Any, name: str) -> torch.Tensor:
    tensor = returned(value)
    if tensor is None:  # although it was a tensor in the pass that found the blocks
        raise FeatureError(f"{name!r} takes or returns {type(value).__name__}, not a tensor.")
    return tensor
