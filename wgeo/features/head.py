"""Find a network's classifier by what it computes: the linear layer whose outputs are the logits.

A network may return several tensors, such as its features and its logits. It may also contain
linear layers that are registered after the classifier, such as an auxiliary head or a projector.
Therefore the network is run on a few images, and its outputs are compared with those of its linear
layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..models.parts import logits_of, tables_in, usual_head
from .residual_blocks import evaluating, first_tensor, hooked, run

_TOLERANCE = 1e-3  # relative; in half precision, rounding depends on the batch


@dataclass(frozen=True)
class Head:
    """The classifier of a network.

    Attributes
    ----------
    name : str or None
        The linear layer that computes the logits, up to a scale, a softmax or its logarithm; None
        if there is no such layer.
    output : int or None
        Index of the logits among the tensors (n, k) that the network returns; None if unknown.
    """

    name: str | None = None
    output: int | None = None


def find_head(module: nn.Module, images: torch.Tensor) -> Head:
    """Find the classifier of a network, and the logits among its outputs.

    If several outputs come from linear layers, the logits are the output named ``logits``, or else
    the output of the layer with a usual name (`usual_head`). If no output comes from a linear
    layer, the logits are known only if the network returns a single tensor (n, k) or names one
    ``logits``.

    Parameters
    ----------
    module : nn.Module
        Unchanged afterwards.
    images : Tensor, (n, ...)
        A few inputs of the network, on its device.
    """
    calls: list[tuple[str, torch.Tensor, torch.Tensor]] = []  # the layer, its input and output

    def record(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], y: Any) -> None:
            x = first_tensor(args)
            if x is not None and isinstance(y, torch.Tensor) and x.ndim == y.ndim == 2:
                calls.append((name, x.clone(), y.clone()))

        return hook

    with evaluating(module), torch.no_grad(), hooked() as keep:
        for name, part in module.named_modules():
            if isinstance(part, nn.Linear):
                keep(part.register_forward_hook(record(name)))
        output = run(module, images.clone())
    if logits_of(module, output) is None:  # no logits, or read without its head
        return Head()
    tables = tables_in(output)
    for alike in (_equal, _rescaled):
        found = [
            (index, name, x, y)
            for index, table in enumerate(tables)
            for name, x, y in reversed(calls)
            if alike(y, table)
        ]
        if found:
            return _choose(found, module, output)
    single = len(tables) == 1 or _is_named(output)
    return Head(None, 0 if single else None)


def _choose(
    found: list[tuple[int, str, torch.Tensor, torch.Tensor]], module: nn.Module, output: Any
) -> Head:
    if len({index for index, *_ in found}) > 1 and not _is_named(output):
        usual = usual_head(module)
        found = [each for each in found if usual is not None and each[1] == usual[0]]
    if not found:
        return Head()
    index, name, x, y = found[0]
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    linear = _equal(nn.functional.linear(x, layer.weight, layer.bias), y)  # not a cosine classifier
    return Head(name if linear else None, index)


def _is_named(output: Any) -> bool:
    return not isinstance(output, torch.Tensor) and (
        "logits" in output if isinstance(output, dict) else hasattr(output, "logits")
    )


def _equal(y: torch.Tensor, table: torch.Tensor) -> bool:
    return y.shape == table.shape and bool(
        (y - table).abs().max() <= _TOLERANCE * table.abs().max()
    )


def _rescaled(y: torch.Tensor, table: torch.Tensor) -> bool:
    """Whether the table is a y + b with a > 0 and one b per sample, or the exponential of that."""
    if y.shape != table.shape:
        return False
    tables = [table, table.log()] if bool((table > 0).all()) else [table]
    centred = y.double() - y.double().mean(1, keepdim=True)
    for each in tables:
        other = each.double() - each.double().mean(1, keepdim=True)
        slope = (centred * other).sum() / centred.square().sum()
        close = (other - slope * centred).abs().max() <= _TOLERANCE * other.abs().max()
        if bool(slope > 0) and bool(close):
            return True
    return False
