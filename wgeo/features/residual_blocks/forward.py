"""Residual additions in a forward pass outside all block modules: ``self.res(x) + x``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from torch import nn

from .probing import Probe
from .spec import BlockSpec
from .sums import Node, Sum, SumWatch


def forward_sums(
    modules: Mapping[str, nn.Module], probe: Probe, blocks: Collection[str]
) -> tuple[list[tuple[int, BlockSpec]], dict[str, int], list[str]]:
    """Return the residual sums outside the block modules, and the other sums.

    A sum is residual if one summand was computed from the other by modules with weights, and no
    block lies between them. A sum of two parallel branches is not residual: if one of them is a
    shortcut with weights, nothing shows which one.

    Returns
    -------
    blocks : list of (order, BlockSpec)
    others : dict of str to int
        Number of other sums, by the name of the module whose forward computes them.
    crossed : list of str
        The modules in `others` that update two streams alternately (`_crosses`).
    """
    watch, specs = probe.watch, []
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
        ends.add(watch.result_of(total))
        roots[watch.result_of(total)] = total.nodes[identity]
        spec = BlockSpec(
            name, True, None, argument=identity, sum=total.address, tail=tuple(total.tail)
        )
        specs.append((total.order, spec))
    return specs, dict(others), crossed


def _as_residual(
    total: Sum, modules: Mapping[str, nn.Module], watch: SumWatch, ends: Collection[Node | None]
) -> tuple[str, int] | None:
    """Return the name of a residual sum and the index of its identity summand, or None."""
    for identity in (1, 0):
        root, branch = total.nodes[identity], total.nodes[1 - identity]
        sources = watch.sources(branch)
        if total.partial or root not in sources:
            continue
        between = (sources & watch.results(root)) - {root}
        path = [c for c in watch.calls if c.y in between and _has_matrices(modules[c.name])]
        if path and not any(node in between for node in ends):
            last = [call for call in path if call.y == branch]
            return f"{(last or path)[-1].name}+x", identity
    return None


def _crosses(total: Sum, watch: SumWatch, roots: Mapping[Node, Node]) -> bool:
    """Return whether a sum updates one stream with a value computed from a sum in another stream.

    A reversible network computes ``a = a + f(b)`` and then ``b = b + g(a)``. The second sum looks
    like a shortcut around the first, since g(a) is computed from b. But the first sum's identity
    summand, the old a, is not computed from b. If b were the input of a shortcut, it would be.
    """
    for identity in (1, 0):
        root, branch = total.nodes[identity], total.nodes[1 - identity]
        sources = watch.sources(branch)
        if root in sources:
            results = watch.results(root)
            between = (sources & results) - {root}
            if any(node in between and other not in results for node, other in roots.items()):
                return True
    return False


def _has_matrices(part: nn.Module) -> bool:
    return any(p.ndim > 1 for p in part.parameters())
