"""Residual additions in a forward pass, outside of every block module: ``self.res(x) + x``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from torch import nn

from .probing import Probe
from .spec import BlockSpec
from .sums import Node, Ran, Sum, SumWatch


def forward_sums(
    modules: Mapping[str, nn.Module], probe: Probe, blocks: Collection[str]
) -> tuple[list[tuple[int, BlockSpec]], dict[str, int]]:
    """Return the residual sums outside the block modules, and where there are other sums.

    A sum is residual if one summand was computed from the other by something with weights (the
    identity is the shortcut), or if one is what a module made of a tensor that the other was
    computed from as well (that module is the shortcut). The innermost counts: a sum around blocks
    that were found already is none.

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
        name, carried, shortcut = judged
        names[name] += 1
        name += f".{names[name]}" * (names[name] > 1)
        inside.add(watch.result_of(total))
        spec = BlockSpec(
            name, True, shortcut, None, argument=carried, sum=total.address, tail=tuple(total.tail)
        )
        found.append((total.order, spec))
    return found, dict(others)


def _judged(
    total: Sum, modules: Mapping[str, nn.Module], watch: SumWatch, inside: Collection[Node | None]
) -> tuple[str, int, str | None] | None:
    """Name a residual sum; say which summand is the shortcut's, and which module made it."""
    sources = [watch.sources(node) for node in total.nodes]
    candidates: list[tuple[int, int, Node, str | None]] = []
    for carried in (1, 0):
        node, others = total.nodes[carried], sources[1 - carried]
        if node in others:
            return _named(total, carried, node, None, modules, watch, inside)
        made = next((run for run in reversed(watch.ran) if run.y == node), None)
        if made is not None and made.x is not None and made.x in others:
            weight = sum(p.numel() for p in modules[made.name].parameters())
            candidates.append((weight, carried, made.x, made.name))
    if not candidates:
        return None
    _, carried, root, shortcut = min(candidates)
    return _named(total, carried, root, shortcut, modules, watch, inside)


def _named(
    total: Sum,
    carried: int,
    root: Node,
    shortcut: str | None,
    modules: Mapping[str, nn.Module],
    watch: SumWatch,
    inside: Collection[Node | None],
) -> tuple[str, int, str | None] | None:
    branch = total.nodes[1 - carried]
    between = (watch.sources(branch) & watch.results(root)) - {root}
    if any(node in between for node in inside):
        return None
    path: list[Ran] = [run for run in watch.ran if run.y in between and _holds(modules[run.name])]
    if not path:
        return None
    whole = [run for run in path if run.y == branch]
    last = (whole or path)[-1].name
    return f"{last}+x", carried, shortcut


def _holds(part: nn.Module) -> bool:
    return any(p.ndim > 1 for p in part.parameters())
