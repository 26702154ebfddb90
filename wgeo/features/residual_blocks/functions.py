"""Intercept the functions of torch that a network calls: sums of two tensors, and activations.

A `SumWatch` records all sums and the data flow of a pass. A `SumTap` finds selected sums again in
later passes, by their address: the module, its call, and the index of the sum. `Activations`
records the last activation, or skips one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_ADDITIONS = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__"})
_SCALE = frozenset({"mul", "mul_", "div", "div_", "true_divide", "__truediv__", "__mul__"})
_ACTIVATIONS = frozenset(
    {"relu", "relu_", "leaky_relu", "leaky_relu_", "relu6", "gelu", "silu", "mish", "elu", "elu_"}
    | {"celu", "selu", "hardswish", "hardsigmoid", "hardtanh", "hardshrink", "prelu", "tanh"}
    | {"sigmoid", "log_sigmoid", "softplus", "softsign", "softshrink", "tanhshrink"}
    | {"clamp", "clamp_", "clamp_min", "clamp_min_", "threshold", "threshold_"}
)
_MAX_TAIL = 2  # a scaling and an activation
_CLAMPED = 0.01  # smallest fraction of exact zeros after a ReLU

_Compute = Callable[[], Any]  # calls the intercepted function
Address = tuple[str, int, int]  # module, index of its call, index of the sum in the call
Node = tuple[int, int]  # id of a tensor, and the number of times it was overwritten


@dataclass
class Sum:
    """A sum of two tensors of equal shape, both computed from the images."""

    address: Address
    running: tuple[str, ...]  # the modules that are running, the innermost last
    order: int  # time at which it was computed
    nodes: tuple[Node, Node]  # the two summands
    result: Node
    partial: bool  # whether a summand is a slice of a larger tensor
    # Names of at most two scalings or activations that directly follow the sum. Each is the only
    # function that uses the value before it.
    tail: list[str] = field(default_factory=list)


@dataclass
class ModuleCall:
    """A module's call: its input and output, as nodes of the data flow."""

    name: str
    x: Node | None
    y: Node | None


class _Addressed(TorchFunctionMode):
    """Assigns an address to every sum of two tensors; hooks on modules call `enter` and `leave`."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[tuple[str, int]] = [("", 0)]
        self._calls: Counter[str] = Counter()
        self._sum_counts: Counter[tuple[str, int]] = Counter()
        self._silent = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._silent:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        address: Address | None = None
        # All sums are counted, since equality of shapes may depend on the batch size.
        if name in _ADDITIONS and len(args) > 1 and all(_is_float_tensor(a) for a in args[:2]):
            call = self.running[-1]
            address = (*call, self._sum_counts[call])
            self._sum_counts[call] += 1
        return self._intercept(name, address, lambda: func(*args, **kwargs), args, kwargs)

    def _intercept(
        self, name: str, address: Address | None, compute: _Compute, args: Any, kwargs: Any
    ) -> Any:
        raise NotImplementedError

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Ignore all functions inside the ``with`` block."""
        self._silent = True
        try:
            yield
        finally:
            self._silent = False

    def enter(self, name: str) -> None:
        self.running.append((name, self._calls[name]))
        self._calls[name] += 1

    def leave(self, name: str) -> None:
        while self.running[-1][0] != name:  # a module that raised an exception does not leave
            self.running.pop()
        self.running.pop()


class SumWatch(_Addressed):
    """Records the data flow of a pass, as a graph of tensors, and all sums.

    The graph is complete after `finish`.
    """

    def __init__(self, images: torch.Tensor) -> None:
        super().__init__()
        self.sums: list[Sum] = []
        self.calls: list[ModuleCall] = []
        self._clock = 0
        self._alive: list[torch.Tensor] = [images]  # so that no tensor's id is used again
        self._versions: Counter[int] = Counter()
        self._parents: dict[Node, set[Node]] = {self._node(images): set()}
        self._inputs: dict[int, Node | None] = {}  # each running module's input, by nesting depth
        self._children: defaultdict[Node, set[Node]] = defaultdict(set)
        # Functions of a tensor: name, result, and whether it is a scaling or an activation.
        self._uses: defaultdict[Node, list[tuple[str, Node, bool]]] = defaultdict(list)
        self._scaled: dict[Node, Node] = {}  # from a multiple to its source

    def begin(self, name: str, x: torch.Tensor | None) -> None:
        """Record that a module started, with `x` as its first tensor argument."""
        self.enter(name)
        self._inputs[len(self.running)] = None if x is None else self._node(x)

    def end(self, name: str, y: torch.Tensor | None) -> int:
        """Record that a module returned `y`; return the time."""
        x = self._inputs.get(len(self.running))
        self.leave(name)
        self._clock += 1
        node = None if y is None else self._node(y)
        if node is not None and node not in self._parents and x in self._parents:
            assert y is not None
            self._alive.append(y)
            self._parents[node] = {x}  # compiled code, whose functions are not intercepted
        self.calls.append(ModuleCall(name, x, node))
        return self._clock

    def sources(self, node: Node) -> set[Node]:
        """Return all tensors from which a tensor was computed, and the tensor itself."""
        return _reachable(node, self._parents)

    def results(self, node: Node) -> set[Node]:
        """Return all tensors computed from a tensor, and the tensor itself."""
        return _reachable(node, self._children)

    def finish(self) -> None:
        """Find what was computed from each tensor, and which functions directly follow a sum."""
        for node, parents in self._parents.items():
            for parent in parents:
                self._children[parent].add(node)
        for total in self.sums:
            node = total.result
            while len(total.tail) < _MAX_TAIL and len(uses := self._uses[node]) == 1:
                name, output, elementwise = uses[0]
                if not elementwise:
                    break
                total.tail.append(name)
                node = output

    def _intercept(
        self, name: str, address: Address | None, compute: _Compute, args: Any, kwargs: Any
    ) -> Any:
        inputs = list(_tensors((args, kwargs)))
        nodes = [self._node(t) for t in inputs]
        is_sum = address is not None and args[0].shape == args[1].shape and args[0].ndim > 1
        partial = is_sum and any(_is_slice(t) for t in args[:2])
        out = compute()
        self._clock += 1
        for result in _tensors(out):
            sources = [n for n in nodes if n in self._parents]
            if any(result is t for t in inputs):
                self._versions[id(result)] += 1
            node = self._node(result)
            self._alive.append(result)
            if sources:
                self._parents[node] = set(sources)
                if name in _SCALE and _elementwise(name, args):
                    self._scaled[node] = sources[0]
            for k, source in enumerate(sources):
                self._uses[source].append((name, node, k == 0 and _elementwise(name, args)))
        summands = nodes[:2]
        if is_sum and all(n in self._parents for n in summands) and isinstance(out, torch.Tensor):
            assert address is not None
            running = tuple(module for module, _ in self.running)
            pair = summands[0], summands[1]
            self.sums.append(Sum(address, running, self._clock, pair, self._node(out), partial))
        return out

    def _node(self, tensor: torch.Tensor) -> Node:
        return id(tensor), self._versions[id(tensor)]

    def multiples(self, node: Node) -> set[Node]:
        """Return a tensor and all tensors of which it is a scalar multiple."""
        nodes = {node}
        while node in self._scaled:
            node = self._scaled[node]
            nodes.add(node)
        return nodes


class SumTap(_Addressed):
    """Reports selected sums whenever they are computed.

    `sums` maps the address of a sum to its tail and a function, which is called with the summands,
    the sum, and the value after the tail.
    """

    def __init__(self, sums: Mapping[Address, tuple[tuple[str, ...], Callable[..., None]]]) -> None:
        super().__init__()
        self._sums = sums
        self._pending: list[tuple[torch.Tensor, list[str], Callable[[torch.Tensor], None]]] = []

    def _intercept(
        self, name: str, address: Address | None, compute: _Compute, args: Any, kwargs: Any
    ) -> Any:
        if address is not None and address in self._sums:
            tail, put = self._sums[address]
            operands = [a.clone() for a in args[:2]]
            out = compute()
            total = out.clone()
            self._advance(out, list(tail), lambda value: put(operands, total, value))
            return out
        first = args[0] if args else None
        pending = next((p for p in self._pending if p[0] is first and p[1][0] == name), None)
        out = compute()
        if pending is not None:
            self._pending = [each for each in self._pending if each is not pending]
            self._advance(out, pending[1][1:], pending[2])
        return out

    def _advance(
        self, value: torch.Tensor, tail: list[str], put: Callable[[torch.Tensor], None]
    ) -> None:
        if tail:
            self._pending.append((value, tail, put))
        else:
            put(value)


def follow_running(module: nn.Module, watch: _Addressed, keep: Callable[[Any], None]) -> None:
    """Let hooks on all modules tell a watch which module is running."""
    for name, part in module.named_modules():
        if name:
            keep(part.register_forward_pre_hook(lambda *_, name=name: watch.enter(name)))
            keep(part.register_forward_hook(lambda *_, name=name: watch.leave(name)))


class Activations(TorchFunctionMode):
    """Records the last activation and the last sum.

    If `skipped` is given, the activation with this index returns its argument unchanged, and only
    `count` is recorded.
    """

    def __init__(self, skipped: int | None = None) -> None:
        super().__init__()
        self.skipped = skipped
        self.forget()

    def forget(self) -> None:
        """Forget all calls."""
        self.count, self.name = 0, ""  # number of activations, and the name of the last
        # The last activation's first argument (a copy), and the activation as a function of it.
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
        if not isinstance(first, torch.Tensor) or name not in _ACTIVATIONS | _ADDITIONS:
            return func(*args, **kwargs)
        if name in _ACTIVATIONS:
            self.count += 1
            if self.count - 1 == self.skipped:
                return first
        if self.skipped is not None:
            return func(*args, **kwargs)
        if name in _ADDITIONS:
            out = func(*args, **kwargs)
            self._sum = out.clone()
            return out
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


def _reachable(node: Node, edges: dict[Node, set[Node]]) -> set[Node]:
    nodes: set[Node] = set()
    stack = [node]
    while stack:
        node = stack.pop()
        if node not in nodes:
            nodes.add(node)
            stack += edges.get(node, ())
    return nodes


def _is_float_tensor(value: Any) -> bool:
    return (
        isinstance(value, torch.Tensor)
        and not isinstance(value, nn.Parameter)
        and value.is_floating_point()
    )


def _is_slice(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is only a part of its storage."""
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
    scaled = name in _SCALE and len(args) == 2 and isinstance(args[1], int | float)
    return name in _ACTIVATIONS or scaled
