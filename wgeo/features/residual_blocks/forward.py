"""Residual additions in a forward pass, outside of every block module: ``self.res(x) + x``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from torch import nn

from .probing import Probe
from .spec import BlockSpec
from .sums import Node, Sum, SumWatch


def forward_sums(
    modules: Mapping[str, nn.Module], probe: Probe, blocks: Collection[str]
) -> tuple[list[tuple[int, BlockSpec]], dict[str, int]]:
    """Return the residual sums outside the block modules, and which modules add something else.

    A sum is residual if one summand was computed from the other by something with weights. The
    innermost counts: a sum around blocks that were found already is none. Parallel branches of one
    input, which are added up as well, are not told apart from a shortcut with weights, and are
    therefore no blocks.

    Returns
    -------
    found : list of (order, BlockSpec)
    others : dict of str to int
        By the name of the module whose forward holds them: sums of equal shapes that were not
        followed.
    """
    watch, found = probe.watch, []
    others: Counter[str] = Counter()
    inside = {run.y for run in watch.ran if run.name in blocks}
    names: Counter[str] = Counter()
    for total in watch.sums:
        if any(host in blocks for host in total.path):
            continue
        judged = _judged(total, modules, watch, inside)
        if judged is None:
            others[total.path[-1]] += 1
            continue
        name, carried = judged
        names[name] += 1
        name += f".{names[name]}" * (names[name] > 1)
        inside.add(watch.result_of(total))
        spec = BlockSpec(
            name, True, None, None, argument=carried, sum=total.address, tail=tuple(total.tail)
        )
        found.append((total.order, spec))
    return found, dict(others)


def _judged(
    total: Sum, modules: Mapping[str, nn.Module], watch: SumWatch, inside: Collection[Node | None]
) -> tuple[str, int] | None:
    """Name a residual sum, and say which summand is the identity; None if it is no such sum."""
    for carried in (1, 0):
        root, branch = total.nodes[carried], total.nodes[1 - carried]
        sources = watch.sources(branch)
        if total.partial or root not in sources:
            continue
        between = (sources & watch.results(root)) - {root}
        path = [run for run in watch.ran if run.y in between and _holds(modules[run.name])]
        if path and not any(node in between for node in inside):
            whole = [run for run in path if run.y == branch]
            return f"{(whole or path)[-1].name}+x", carried
    return None


def _holds(part: nn.Module) -> bool:
    return any(p.ndim > 1 for p in part.parameters())
