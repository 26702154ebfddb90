"""Find a network's classifier by what it computes: the linear layer whose outputs are the logits.

The network is run on a few images, and its outputs are compared with those of its linear layers.
The order of outputs or layers does not help: a network may return its features first, or register
an auxiliary head last.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from ..models.parts import (
    evaluating,
    first_tensor,
    has_usual_name,
    hooked,
    logits_of,
    named_logits,
    tables_in,
    usual_head,
)
from .residual_blocks import run

# The tolerance is relative to the largest logit. In 15 networks of torchvision and timm, the
# classifier's outputs differed from the network's by at most 1e-6 in float32, after a softmax or a
# scaling. The closest wrong layer differed by 1e-2. In half precision, a softmax rounds so much
# that the layer before it is not found.
_TOLERANCE = 1e-3
_TINY = 1e-300  # prevents division by 0 if all logits are 0

_Call = tuple[str, torch.Tensor, torch.Tensor]  # a layer, its input and output
_Match = tuple[int, str, torch.Tensor, torch.Tensor]  # index of an output, and a call
_Distance = Callable[[torch.Tensor, torch.Tensor], float]


@dataclass(frozen=True)
class Head:
    """The linear layer that computes a network's logits, up to a scale or (log-)softmax."""

    name: str | None = None  # None if unknown
    output: int | None = None  # index of the logits in `tables_in(output)`; None if unknown


def find_head(module: nn.Module, images: torch.Tensor) -> Head:
    """Find the classifier of a network, and the logits among its outputs.

    The logits are the output named ``logits``, if there is one. Otherwise they are

    - if one linear layer computes outputs: the output of this layer. But suppose that this layer
      has an unusual name (`has_usual_name`), and that the network also returns a narrower table
      that is not the layer's input. Then that table may be the logits, so the logits count as
      unknown;
    - if several layers compute outputs: that of the layer with a usual name, or else that of the
      only layer whose values, or their (log-)softmax, are returned without a scale;
    - if no layer computes an output: the only output.

    In all other cases, the logits are unknown.
    """
    calls: list[_Call] = []

    def record(name: str, _: nn.Module, args: tuple[Any, ...], y: Any) -> None:
        x = first_tensor(args)
        if x is not None and isinstance(y, torch.Tensor) and x.ndim == y.ndim == 2:
            calls.append((name, x.clone(), y.clone()))

    with evaluating(module), torch.no_grad(), hooked() as keep:
        for name, part in module.named_modules():
            if isinstance(part, nn.Linear):
                keep(part.register_forward_hook(partial(record, name)))
        output = run(module, images.clone())
    if logits_of(module, output) is None:  # no logits, or loaded without its classifier
        return Head()
    tables = tables_in(output)
    if named_logits(output) is tables[0]:
        tables = tables[:1]
    exact, rescaled = (_matches(calls, tables, each) for each in (_distance, _distance_rescaled))
    matches = exact + rescaled
    if not matches:
        return Head(None, 0 if len(tables) == 1 else None)
    alone = len(_layers(matches)) == 1
    if not alone:
        usual = usual_head(module)
        named = [each for each in matches if usual is not None and each[1] == usual[0]]
        normalized = [each for each in rescaled if _is_normalized(tables[each[0]])]
        matches = named or (exact and exact + normalized)
        if len(_layers(matches)) != 1:
            return Head()
    index, name, x, y = matches[0]
    if alone and not has_usual_name(name):
        narrower = [t for t in tables if t.is_floating_point() and t.shape[1] < y.shape[1]]
        if any(_distance(x, table) > _TOLERANCE for table in narrower):
            return Head()
    layer = module.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    parts = [None if t is None else t.detach().to(y.dtype) for t in (x, layer.weight, layer.bias)]
    again = nn.functional.linear(*parts)  # in the layer's own precision, as under autocast
    linear = _distance(again, y) <= _TOLERANCE  # false for a subclass that computes cosines
    return Head(name if linear else None, index)


def _matches(calls: list[_Call], tables: list[torch.Tensor], distance: _Distance) -> list[_Match]:
    """Return the calls that match each table, the closest first; among equals, the last first."""
    matches: list[_Match] = []
    for index, table in enumerate(tables):
        candidates = [(distance(y, table), (index, name, x, y)) for name, x, y in reversed(calls)]
        candidates.sort(key=lambda pair: pair[0])
        matches += [match for d, match in candidates if d <= _TOLERANCE]
    return matches


def _layers(matches: list[_Match]) -> set[str]:
    """Return the names of the layers that match the outputs best."""
    closest: dict[int, str] = {}
    for index, name, *_ in matches:
        closest.setdefault(index, name)
    return set(closest.values())


def _is_normalized(table: torch.Tensor) -> bool:
    """Return whether the rows of a table are probabilities, or their logarithms."""
    table = table.double()
    sums = [each.sum(1) for each in (table, table.exp()) if bool((each >= 0).all())]
    return any(bool(((each - 1).abs() <= _TOLERANCE).all()) for each in sums)


def _distance(y: torch.Tensor, table: torch.Tensor) -> float:
    """Return the largest difference relative to the table's largest entry; inf if undefined."""
    if y.shape != table.shape or not y.numel():
        return math.inf
    y, table = y.double(), table.double()
    return _finite((y - table).abs().max() / table.abs().max().clamp_min(_TINY))


def _distance_rescaled(y: torch.Tensor, table: torch.Tensor) -> float:
    """Return the distance of a y + b from the table or its log, whichever is smaller.

    The scale a > 0 and one offset b per sample are fitted.
    """
    if y.shape != table.shape or not y.numel():
        return math.inf
    distances = [math.inf]
    y, table = y.double(), table.double()
    centered = y - y.mean(1, keepdim=True)
    for each in [table, table.log()] if bool((table > 0).all()) else [table]:
        other = each - each.mean(1, keepdim=True)
        slope = (centered * other).sum() / centered.square().sum()
        if bool(slope > 0):
            distances.append(_finite((other - slope * centered).abs().max() / other.abs().max()))
    return min(distances)


def _finite(distance: torch.Tensor) -> float:
    return math.inf if bool(distance.isnan()) else float(distance)
