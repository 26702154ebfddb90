"""Find the residual blocks of a network by what they compute, not by their names.

A residual block computes s(x) + F(x), with a shortcut s and a branch F. To test a module, every
weight outside its shortcut is set to zero. If the module then computes s(x), up to a scaling and a
final activation, it is a residual block. This test also recognizes pre-activation blocks and
transformers.

A residual sum can also be outside all such modules, as ``self.res(x) + x`` in a network's own
forward. It is found by tracing the data flow: one summand is computed from the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from ...arrays.checks import OF_NETWORK, check_finite
from ...errors import FeatureError
from ...models.parts import Block as OwnBlock
from ...models.parts import evaluating
from ...text import first_names
from .functions import Activations, Node, Sum, SumTap, SumWatch, follow_running
from .probing import Call, Probe, copied, probe_network, returned, run
from .residual import BlockSpec, block_spec, has_weights

__all__ = [
    "Activations",
    "BlockSpec",
    "Blocks",
    "SumTap",
    "copied",
    "find_blocks",
    "follow_running",
    "returned",
    "run",
    "survey",
]

_MAX_NAMES = 12  # layers listed in an error

_Ordered = list[tuple[int, BlockSpec]]  # each with the time at which its call or its sum ended


@dataclass(frozen=True)
class Blocks:
    """The blocks of a network in execution order, and its other sums.

    The other sums add two tensors of equal shape outside the blocks. They may belong to residual
    blocks that were not found. `other_sums` counts them by the name of the module whose forward
    computes them. It is empty if `layers` was given.
    """

    specs: tuple[BlockSpec, ...]
    other_sums: dict[str, int]


def find_blocks(
    module: nn.Module, images: torch.Tensor, layers: Sequence[str] | None = None
) -> tuple[BlockSpec, ...]:
    """Return the blocks of a network in execution order; see `survey`."""
    return survey(module, images, layers).specs


def survey(module: nn.Module, images: torch.Tensor, layers: Sequence[str] | None = None) -> Blocks:
    """Return the blocks of a network in execution order, and its sums outside them.

    Parameters
    ----------
    module : nn.Module
    images : Tensor, (n, ...)
        A few inputs of the network, at least two of them different.
    layers : sequence of str, optional
        Names of modules to use as blocks instead of detected ones, or names returned by `survey`.

    Raises
    ------
    FeatureError
        No block was found, the network updates two streams of features alternately, a named module
        does not exist or did not run, or `layers` is empty, a string, or names a module twice.
    """
    modules = dict(module.named_modules())
    if layers is not None and (isinstance(layers, str) or not layers):
        raise FeatureError("layers must be a non-empty list of module names.")
    others: dict[str, int] = {}
    with evaluating(module), torch.no_grad():
        probe = probe_network(module, images)
        if layers is not None and all(name in modules for name in layers):
            ordered = _select(layers, modules, probe, [])
        else:
            residual = _search(modules, probe)
            if not residual:
                _require_finite(probe)
            names = {spec.module for _, spec in residual}
            sums, others, crossed = _forward_sums(modules, probe, names)
            if crossed and layers is None:
                raise FeatureError(_two_streams(crossed))
            ordered = residual + sums
            if layers is not None:
                ordered, others = _select(layers, modules, probe, ordered), {}
    ordered.sort(key=lambda item: item[0])
    if not ordered:
        raise FeatureError(_no_blocks(module, probe, others))
    return Blocks(tuple(spec for _, spec in ordered), others)


def _search(modules: dict[str, nn.Module], probe: Probe) -> _Ordered:
    """Return the innermost residual modules, and wgeo's own plain blocks."""
    blocks: _Ordered = []
    for name in sorted(modules, key=lambda n: -n.count(".")):  # children before their parents
        part, call = modules[name], probe.get(name)
        has_blocks = any(spec.module.startswith(name + ".") for _, spec in blocks)
        if not name or has_blocks or call is None:
            continue
        if not isinstance(part, OwnBlock) and not (any(part.children()) and has_weights(part)):
            continue
        specs = _blocks_of(name, part, call, probe)
        if specs[0][1].residual or (isinstance(part, OwnBlock) and call.count == 1):
            blocks += specs
    return blocks


def _select(
    layers: Sequence[str], modules: dict[str, nn.Module], probe: Probe, blocks: _Ordered
) -> _Ordered:
    by_name = {spec.name: (order, spec) for order, spec in blocks}
    if len(set(layers)) != len(layers):
        raise FeatureError("A layer is named twice.")
    selected: _Ordered = []
    for name in layers:
        if name in by_name:
            selected.append(by_name[name])
            continue
        if name not in modules or not name:
            others = (other for other in modules if other and other not in by_name)
            listing = first_names([*by_name, *others], _MAX_NAMES)
            raise FeatureError(f"No module {name!r} in this network; it has {listing}.")
        call = probe.get(name)
        if call is None:
            raise FeatureError(
                f"Module {name!r} did not run, or does not map a tensor to a tensor. "
                f"Choose others, such as {first_names(_followable(modules, probe), _MAX_NAMES)}."
            )
        selected += _blocks_of(name, modules[name], call, probe)
    return selected


def _blocks_of(name: str, part: nn.Module, call: Call, probe: Probe) -> _Ordered:
    """Return one block per call of a module."""
    spec = block_spec(name, part, call, probe)
    names = [name] if call.count == 1 else [f"{name}[{k}]" for k in range(call.count)]
    return [(order, replace(spec, name=names[k], call=k)) for k, order in enumerate(call.orders)]


def _forward_sums(
    modules: Mapping[str, nn.Module], probe: Probe, blocks: Collection[str]
) -> tuple[_Ordered, dict[str, int], list[str]]:
    """Return the residual sums outside the block modules, and the other sums.

    A sum is residual if one summand was computed from the other by modules with weights, and no
    block lies between them. A sum of two parallel branches is not residual: one of them may be a
    shortcut with weights, but nothing shows which one.

    The other sums are counted by the name of the module whose forward computes them. The third
    result names those of these modules that update two streams alternately (`_crosses`).
    """
    watch = probe.watch
    specs: _Ordered = []
    others: Counter[str] = Counter()
    crossed: list[str] = []
    roots: dict[Node, Node] = {}  # from the result of each residual sum to its identity summand
    ends = {call.y for call in watch.calls if call.name in blocks}
    names: Counter[str] = Counter()
    for total in watch.sums:
        if any(name in blocks for name in total.running):
            continue
        residual = _as_residual(total, modules, watch, ends)
        if residual is None:
            others[total.running[-1]] += 1
            if _crosses(total, watch, roots) and total.running[-1] not in crossed:
                crossed.append(total.running[-1])
            continue
        name, identity = residual
        names[name] += 1
        name += f".{names[name]}" * (names[name] > 1)
        ends.add(total.result)
        roots[total.result] = total.nodes[identity]
        tail = tuple(total.tail)
        spec = BlockSpec(name, True, None, argument=identity, sum=total.address, tail=tail)
        specs.append((total.order, spec))
    return specs, dict(others), crossed


def _as_residual(
    total: Sum, modules: Mapping[str, nn.Module], watch: SumWatch, ends: Collection[Node | None]
) -> tuple[str, int] | None:
    """Return the name of a residual sum and the index of its identity summand, or None."""
    if total.partial:
        return None
    for identity, between, _ in _shortcuts(total, watch):
        path = [c for c in watch.calls if c.y in between and has_weights(modules[c.name])]
        if path and between.isdisjoint(ends):
            last = [call for call in path if call.y == total.nodes[1 - identity]]
            return f"{(last or path)[-1].name}+x", identity
    return None


def _crosses(total: Sum, watch: SumWatch, roots: Mapping[Node, Node]) -> bool:
    """Return whether a sum updates one stream with a value computed from a sum in another stream.

    A reversible network computes ``a = a + f(b)`` and then ``b = b + g(a)``. The second sum looks
    like a shortcut around the first, since g(a) is computed from b. But the first sum's identity
    summand, the old a, is not computed from b. If b were the input of a shortcut around the first
    sum, the old a would be computed from b.
    """
    return any(
        node in between and other not in results
        for _, between, results in _shortcuts(total, watch)
        for node, other in roots.items()
    )


def _shortcuts(total: Sum, watch: SumWatch) -> Iterator[tuple[int, set[Node], set[Node]]]:
    """Yield each summand from which the other is computed: its index, and two sets of tensors.

    The first set contains the tensors between the two summands. The second contains all tensors
    computed from the summand.
    """
    for identity in (1, 0):
        root, branch = total.nodes[identity], total.nodes[1 - identity]
        sources = watch.sources(branch)
        if root in sources:
            results = watch.results(root)
            yield identity, (sources & results) - {root}, results


def _require_finite(probe: Probe) -> None:
    """Raise an error if a module's output is not finite: then no module passes the test."""
    for name, call in sorted(probe.calls.items(), key=lambda item: item[1].orders[0]):
        if call.y is not None:
            check_finite(call.y, f"the output of {name!r}", advice=OF_NETWORK)


def _no_blocks(module: nn.Module, probe: Probe, others: dict[str, int]) -> str:
    modules = dict(module.named_modules())
    children = ", ".join(name for name, _ in module.named_children()) or "none"
    added = (
        f" Tensors of equal shapes are added in the forward of {_listing(others)}, but no summand "
        "is computed from the other by separate modules."
        if others
        else ""
    )
    names = _followable(modules, probe)
    suggestion = f", such as `layers={names[:_MAX_NAMES]}`" if names else ""
    return (
        f"No residual block found in {type(module).__name__} (its children: {children}).{added} "
        f"Choose the modules to analyze: `layers=['name', ...]`{suggestion}."
    )


def _two_streams(crossed: Sequence[str]) -> str:
    return (
        f"The forward of {_listing(crossed)} updates two streams of features alternately, each "
        "from the other, as in RevNet. Neither stream alone gives a map from layer to layer. Let "
        "each block take and return both streams as one tensor, concatenated along the channels, "
        "or choose the modules to analyze: `layers=['name', ...]`."
    )


def _listing(modules: Iterable[str]) -> str:
    return first_names([name or "the network itself" for name in modules], _MAX_NAMES)


def _followable(modules: dict[str, nn.Module], probe: Probe) -> list[str]:
    """Return the parts of the network that could be layers, in execution order."""
    names: list[str] = []

    def add(prefix: str, part: nn.Module) -> None:
        for key, child in part.named_children():
            name = f"{prefix}.{key}" if prefix else key
            if type(child) in (nn.Sequential, nn.ModuleList, nn.ModuleDict):
                add(name, child)
            elif probe.get(name) is not None and has_weights(child):
                names.append(name)

    add("", modules[""])
    return sorted(names, key=lambda name: probe.calls[name].orders[0])
