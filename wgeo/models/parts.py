"""Common parts of networks: the class of blocks, activations, initialization, heads, hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..arrays.checks import as_count
from ..errors import ArgumentError

State = Mapping[str, torch.Tensor]  # a state dict: tensors by name

USUAL_HEADS = ("fc", "linear", "head", "heads.head", "head.fc", "classifier")
_HEADLESS = "read_without_head"  # attribute of a network whose file has no head

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
}

# The gain for ReLU and similar functions is that of He et al. 2015, and for tanh the usual 5 / 3.
# For sigmoid it is the inverse of the slope at zero (Glorot and Bengio 2010): with a gain of 1, a
# sigmoid network of six layers does not learn.
_GAINS = {"linear": 1.0, "tanh": 5 / 3, "sigmoid": 4.0}
_RELU_GAIN = 2**0.5


class Block(nn.Module):
    """A block of one of wgeo's own networks.

    Residual blocks are recognized by what they compute, whatever their class. Plain blocks, which
    have no shortcut, are recognized by this class.
    """

    shortcut: nn.Module | None  # its output is added to the branch; None in a plain block


def activation(name: str) -> nn.Module:
    """Return a new module of the activation `name`."""
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ArgumentError(f"Unknown activation {name!r}; choose one of {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]()


def conv_stem(inputs: int, width: int, kernel: int, stride: int) -> nn.Sequential:
    """Return a convolution with padding 1 and its batch norm, as ``conv`` and ``bn``."""
    stem = nn.Sequential()
    stem.add_module("conv", nn.Conv2d(inputs, width, kernel, stride, 1, bias=False))
    stem.add_module("bn", nn.BatchNorm2d(width))
    return stem


def initialize(module: nn.Module, activation: str) -> None:
    """Draw weights that preserve the signal's variance through the layers (He et al. 2015).

    Weights are normal with variance gain^2 / fan_in, where the gain is that of the activation.
    Biases are 0.
    """
    gain = _GAINS.get(activation, _RELU_GAIN)
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            fan_in = part.weight[0].numel()
            nn.init.normal_(part.weight, 0.0, gain / max(fan_in, 1) ** 0.5)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class _WithoutValues(TorchFunctionMode):
    """Skips the drawing of weights, for which torch would load its compiler on the meta device."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        draws = function in (torch.Tensor.normal_, torch.Tensor.uniform_)
        if draws or getattr(function, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


@contextmanager
def shapes_only() -> Iterator[None]:
    """Build networks on the meta device, whose tensors have shapes and no values."""
    with torch.device("meta"), _WithoutValues():
        yield


def has_usual_name(name: str) -> bool:
    """Return whether a layer has a name of `USUAL_HEADS`, after any prefix."""
    return any(f".{name}".endswith(f".{usual}") for usual in USUAL_HEADS)


def usual_head(module: nn.Module) -> tuple[str, nn.Linear] | None:
    """Return the outermost linear layer with a name of `USUAL_HEADS`, and its full name.

    The full name may have a prefix. Return None if there is not exactly one such layer.
    """
    layers = [
        (name, part)
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and has_usual_name(name)
    ]
    depth = min((name.count(".") for name, _ in layers), default=0)
    outermost = [pair for pair in layers if pair[0].count(".") == depth]
    return outermost[0] if len(outermost) == 1 else None


def head_of(module: nn.Module) -> tuple[str, nn.Linear] | None:
    """Return a network's probable classifier, and its name, without running the network.

    It is the layer of `usual_head` if its name has no prefix, otherwise the linear layer that was
    registered last. Return None if there is no linear layer, or the network was loaded without its
    head.
    """
    if getattr(module, _HEADLESS, False):
        return None
    layers = [(name, part) for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    usual = usual_head(module)
    if usual is not None and usual[0] in USUAL_HEADS:
        return usual
    return layers[-1] if layers else None


def classifier_of(module: nn.Module) -> nn.Linear | None:
    """Return the layer that `head_of` finds, without its name."""
    head = head_of(module)
    return None if head is None else head[1]


def without_head(module: nn.Module, name: str) -> nn.Module:
    """Replace a network's head by the identity, in place; `head_of` then returns None."""
    module.set_submodule(name, nn.Identity())
    setattr(module, _HEADLESS, True)
    return module


def tables_in(output: Any) -> list[torch.Tensor]:
    """Return the distinct tensors of shape (n, k) in an output, one named ``logits`` first."""
    values = output.values() if isinstance(output, dict) else output
    parts = list(values) if isinstance(output, dict | tuple | list) else [output]
    parts = [named_logits(output), *parts]
    tables = [part for part in parts if isinstance(part, torch.Tensor) and part.ndim == 2]
    return [part for k, part in enumerate(tables) if not any(part is each for each in tables[:k])]


def named_logits(output: Any) -> Any:
    """Return what an output names ``logits``; None if there is no such name."""
    return output.get("logits") if isinstance(output, dict) else getattr(output, "logits", None)


def logits_of(module: nn.Module, output: Any) -> torch.Tensor | None:
    """Return the tensor named ``logits`` in a network's output, or the first of shape (n, k).

    Return None if there is no such tensor, or the network was loaded without its head.
    """
    tables = tables_in(output)
    return tables[0] if tables and not getattr(module, _HEADLESS, False) else None


def require_positive(**settings: Any) -> None:
    """Raise `ArgumentError` for a setting that is not a whole number of at least 1."""
    for name, value in settings.items():
        as_count(value, name, 1)


def axis_length(state: State, key: str, axis: int, default: int) -> int:
    """Return a tensor's length along one axis; `default` if the axis is missing or empty.

    Missing tensors are reported later, when the state is compared with the network.
    """
    shape = state[key].shape if key in state else ()
    return int(shape[axis]) if -len(shape) <= axis < len(shape) and shape[axis] > 0 else default


def count_children(state: State, prefix: str) -> int:
    """Return the number of different numbers i in keys ``prefix.i.*``.

    The largest i is not used, since it could be huge in a damaged file.
    """
    start = prefix + "."
    children = {key[len(start) :].split(".")[0] for key in state if key.startswith(start)}
    return sum(child.isdigit() for child in children)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a network in eval mode, and restore every submodule's mode afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def hooked() -> Iterator[Callable[[Any], None]]:
    """Return a function that collects the handles of hooks; they are removed on exit."""
    handles: list[Any] = []
    try:
        yield handles.append
    finally:
        for handle in handles:
            handle.remove()


def first_tensor(args: Sequence[Any]) -> torch.Tensor | None:
    """Return the first tensor among a module's arguments."""
    return next((a for a in args if isinstance(a, torch.Tensor)), None)
