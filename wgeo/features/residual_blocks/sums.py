"""Sums of two tensors in a forward pass: residual additions that no block module holds.

A `SumWatch` sees every function that a network calls on tensors, so that ``self.res(x) + x`` in the
network's own forward is found: of the two summands, one is computed from the other. A `SumTap`
finds the same sums again in later passes, by their address: which call of which module, and which
of its sums.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_ADDING = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__"})
_SCALING = frozenset({"mul", "mul_", "div", "div_", "true_divide", "__truediv__", "__mul__"})
_BENDING = frozenset(
    {"relu", "relu_", "leaky_relu", "leaky_relu_", "relu6", "gelu", "silu", "mish", "elu", "elu_"}
    | {"celu", "selu", "hardswish", "hardtanh", "tanh", "sigmoid", "softplus"}
)
_LONGEST_TAIL = 2  # a scaling and an activation

Address = tuple[str, int, int]  # module, which of its calls, which of the call's sums
Node = tuple[int, int]  # a tensor object, and how often it was overwritten


@dataclass
class Sum:
    """A sum of two tensors of one shape, both computed from the images.

    Attributes
    ----------
    address : (str, int, int)
    path : tuple of str
        The modules that were running, the innermost last.
    order : int
        When, on the pass's clock.
    nodes : tuple
        The two summands, as nodes of the data flow.
    partial : bool
        Whether a summand is a slice of a larger tensor, so that the sum is not all there is.
    tail : list of str
        The functions that follow at once and alone: a scaling, an activation.
    """

    address: Address
    path: tuple[str, ...]
    order: int
    nodes: tuple[Node, Node]
    partial: bool = False
    tail: list[str] = field(default_factory=list)


@dataclass
class Ran:
    """A module's call: what it received and returned, as nodes of the data flow."""

    name: str
    order: int
    x: Node | None
    y: Node | None


class _Addressed(TorchFunctionMode):
    """Gives every sum of two tensors its address; told by hooks which module is running."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[tuple[str, int]] = [("", 0)]
        self._calls: Counter[str] = Counter()
        self._places: Counter[tuple[str, int]] = Counter()
        self._silent = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._silent:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        address: Address | None = None
        # Whether shapes agree may depend on the size of the batch: an address counts every sum.
        if name in _ADDING and len(args) > 1 and all(_floats(a) for a in args[:2]):
            host = self.running[-1]
            address = (*host, self._places[host])
            self._places[host] += 1
        return self._called(name, address, lambda: func(*args, **kwargs), args, kwargs)

    def _called(
        self,
        name: str,
        address: Address | None,
        compute: Callable[[], Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        raise NotImplementedError

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Do not look at what hooks compute."""
        before, self._silent = self._silent, True
        try:
            yield
        finally:
            self._silent = before

    def enter(self, name: str) -> None:
        """A module begins."""
        self.running.append((name, self._calls[name]))
        self._calls[name] += 1

    def leave(self, name: str) -> None:
        """A module has ended."""
        while self.running[-1][0] != name:  # hooks of modules that raised, and were caught
            self.running.pop()
        self.running.pop()


class SumWatch(_Addressed):
    """Everything that a pass computes, as a graph of what came from what."""

    def __init__(self, images: torch.Tensor) -> None:
        super().__init__()
        self.sums: list[Sum] = []
        self.ran: list[Ran] = []
        self._clock = 0
        self._alive: list[torch.Tensor] = [images]  # or another tensor would take a dead one's id
        self._versions: Counter[int] = Counter()
        self._parents: dict[Node, set[Node]] = {self._node(images): set()}
        self._received: dict[int, Node | None] = {}  # by how deep the module lies
        self._children: dict[Node, set[Node]] = {}
        self._uses: dict[Node, list[tuple[str, Node, bool]]] = {}
        self._results: dict[Node, Sum] = {}
        self._scaled: dict[Node, Node] = {}  # what a multiple is of

    def begin(self, name: str, x: torch.Tensor | None) -> None:
        """A module begins, with `x` as its first tensor."""
        self.enter(name)
        self._received[len(self.running)] = None if x is None else self._node(x)

    def end(self, name: str, y: torch.Tensor | None) -> int:
        """A module returned `y`; return when."""
        x = self._received.get(len(self.running))
        self.leave(name)
        self._clock += 1
        node = None if y is None else self._node(y)
        if node is not None and node not in self._parents and x in self._parents:
            assert y is not None
            self._alive.append(y)
            self._parents[node] = {x}  # compiled code, whose functions are not seen
        self.ran.append(Ran(name, self._clock, x, node))
        return self._clock

    def sources(self, node: Node) -> set[Node]:
        """All that a tensor was computed from, itself included."""
        return _reached(node, self._parents)

    def results(self, node: Node) -> set[Node]:
        """All that was computed from a tensor, itself included; after `finish`."""
        return _reached(node, self._children)

    def finish(self) -> None:
        """Find what follows each sum at once and alone, and what came of what."""
        for node, parents in self._parents.items():
            for parent in parents:
                self._children.setdefault(parent, set()).add(node)
        for result, total in self._results.items():
            node = result
            while len(total.tail) < _LONGEST_TAIL and len(uses := self._uses.get(node, [])) == 1:
                name, after, elementwise = uses[0]
                if not elementwise:
                    break
                total.tail.append(name)
                node = after

    def _called(
        self,
        name: str,
        address: Address | None,
        compute: Callable[[], Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        given = list(_tensors((args, kwargs)))
        nodes = [self._node(t) for t in given]
        alike = address is not None and args[0].shape == args[1].shape and args[0].ndim > 1
        partial = alike and any(_slices(t) for t in args[:2])
        out = compute()
        self._clock += 1
        for result in _tensors(out):
            known = [n for n in nodes if n in self._parents]
            if any(result is t for t in given):
                self._versions[id(result)] += 1
            node = self._node(result)
            self._alive.append(result)
            if known:
                self._parents[node] = set(known)
                if name in _SCALING and _elementwise(name, args):
                    self._scaled[node] = known[0]
            for source in known[:1]:
                self._uses.setdefault(source, []).append((name, node, _elementwise(name, args)))
            for source in known[1:]:
                self._uses.setdefault(source, []).append((name, node, False))
        a_and_b = nodes[:2]
        if alike and all(n in self._parents for n in a_and_b) and isinstance(out, torch.Tensor):
            assert address is not None
            path = tuple(host for host, _ in self.running)
            total = Sum(address, path, self._clock, (a_and_b[0], a_and_b[1]), partial)
            self.sums.append(total)
            self._results[self._node(out)] = total
        return out

    def _node(self, tensor: torch.Tensor) -> Node:
        return id(tensor), self._versions[id(tensor)]

    def multiples(self, node: Node) -> set[Node]:
        """A tensor, and all that it is a multiple of by plain numbers."""
        found = {node}
        while node in self._scaled:
            node = self._scaled[node]
            found.add(node)
        return found

    def result_of(self, total: Sum) -> Node:
        """The node of a sum's value."""
        return next(node for node, other in self._results.items() if other is total)


class SumTap(_Addressed):
    """Hands out the summands and the value of chosen sums, each time that a pass computes them.

    Parameters
    ----------
    wanted : mapping of address to (tail, put)
        ``put(operands, sum, value)`` takes what was added, the sum, and what is left after its
        tail.
    """

    def __init__(self, wanted: dict[Address, tuple[tuple[str, ...], Callable[..., None]]]) -> None:
        super().__init__()
        self._wanted = wanted
        self._open: list[tuple[torch.Tensor, list[str], Callable[[torch.Tensor], None]]] = []

    def _called(
        self,
        name: str,
        address: Address | None,
        compute: Callable[[], Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if address in self._wanted:
            tail, put = self._wanted[address]
            operands = [a.clone() for a in args[:2]]
            out = compute()
            before = out.clone()
            self._go_on(out, list(tail), lambda value: put(operands, before, value))
            return out
        first = args[0] if args else None
        waiting = next((w for w in self._open if w[0] is first and w[1][0] == name), None)
        out = compute()
        if waiting is not None:
            self._open.remove(waiting)
            self._go_on(out, waiting[1][1:], waiting[2])
        return out

    def _go_on(
        self, value: torch.Tensor, tail: list[str], put: Callable[[torch.Tensor], None]
    ) -> None:
        if tail:
            self._open.append((value, tail, put))
        else:
            put(value)


def follow_running(module: nn.Module, watch: _Addressed, keep: Callable[[Any], None]) -> None:
    """Tell a watch which module is running, by hooks on all of them."""
    for name, part in module.named_modules():
        if name:
            keep(part.register_forward_pre_hook(lambda *_, name=name: watch.enter(name)))
            keep(part.register_forward_hook(lambda *_, name=name: watch.leave(name)))


def _reached(node: Node, edges: dict[Node, set[Node]]) -> set[Node]:
    found: set[Node] = set()
    todo = [node]
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += edges.get(node, ())
    return found


def _floats(value: Any) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and not isinstance(value, nn.Parameter)
        and value.is_floating_point()
    )


def _slices(tensor: torch.Tensor) -> bool:
    """Whether a tensor is a part of what lies in its memory."""
    return tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()


def _tensors(value: Any) -> Iterable[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _elementwise(name: str, args: tuple[Any, ...]) -> bool:
    scaled = name in _SCALING and len(args) == 2 and isinstance(args[1], int | float)
    return name in _BENDING or scaled
