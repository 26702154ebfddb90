"""Small networks: plain and residual MLPs, and a VGG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import ArgumentError
from .parts import (
    Block,
    State,
    activation,
    axis_length,
    conv_stem,
    count_children,
    initialize,
    require_positive,
)


class DenseBlock(Block):
    """One hidden layer of a plain MLP: y = act(norm(W x + b))."""

    def __init__(self, width: int, activation_name: str, batch_norm: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)
        self.bn = nn.BatchNorm1d(width) if batch_norm else nn.Identity()
        self.act = activation(activation_name)
        self.shortcut = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.bn(self.fc(x)))


class DenseResidualBlock(Block):
    """y = x + W2 act(norm(W1 x + b1)) + b2; nothing follows the sum."""

    def __init__(self, width: int, hidden: int, activation_name: str, batch_norm: bool) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.bn = nn.BatchNorm1d(hidden) if batch_norm else nn.Identity()
        self.act = activation(activation_name)
        self.fc2 = nn.Linear(hidden, width)
        self.shortcut = nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc2(self.act(self.bn(self.fc1(x))))


class MLP(nn.Module):
    """Flat pixels, a linear stem, blocks of one width, a linear head."""

    def __init__(
        self,
        inputs: int,
        width: int,
        blocks: Sequence[Block],
        num_classes: int,
        activation_name: str,
    ) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.stem = nn.Linear(inputs, width)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, num_classes)
        initialize(self, "linear")
        initialize(self.blocks, activation_name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.stem(self.flatten(x))))


def mlp(
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: int | None = None,
    activation: str = "relu",
    width: int = 128,
    depth: int = 6,
    batch_norm: bool = True,
    inputs: int | None = None,
) -> nn.Module:
    """Build a plain MLP of `depth` hidden layers.

    By default, `inputs` is in_channels x image_size^2.
    """
    require_positive(width=width, depth=depth)
    blocks = [DenseBlock(width, activation, bool(batch_norm)) for _ in range(depth)]
    inputs = _count_inputs(inputs, in_channels, image_size)
    return MLP(inputs, width, blocks, num_classes, activation)


def resmlp(
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: int | None = None,
    activation: str = "relu",
    width: int = 128,
    depth: int = 6,
    hidden: int | None = None,
    batch_norm: bool = True,
    inputs: int | None = None,
) -> nn.Module:
    """Build a residual MLP of `depth` blocks, each with `hidden` (default `width`) units inside."""
    hidden = width if hidden is None else hidden
    require_positive(width=width, depth=depth, hidden=hidden)
    blocks = [DenseResidualBlock(width, hidden, activation, bool(batch_norm)) for _ in range(depth)]
    inputs = _count_inputs(inputs, in_channels, image_size)
    net = MLP(inputs, width, blocks, num_classes, activation)
    for block in blocks:
        # Each branch adds variance. This scale bounds the sum at any depth, even without a norm.
        initialize(block.fc2, "linear")
        block.fc2.weight.data.mul_(depth**-0.5)
    return net


def _count_inputs(inputs: int | None, in_channels: int, image_size: int | None) -> int:
    if inputs is None:
        if image_size is None:
            raise ArgumentError("An MLP needs image_size: its first layer reads every pixel.")
        inputs = in_channels * image_size**2
    require_positive(inputs=inputs)
    return inputs


def infer_mlp(state: State, options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "num_classes": axis_length(state, "head.weight", 0, 10),
        "inputs": axis_length(state, "stem.weight", 1, 1),
        "width": axis_length(state, "stem.weight", 0, 128),
        "depth": max(1, count_children(state, "blocks")),
        "batch_norm": "blocks.0.bn.weight" in state,
    }


def infer_resmlp(state: State, options: Mapping[str, Any]) -> dict[str, Any]:
    hidden = axis_length(state, "blocks.0.fc1.weight", 0, 128)
    return {**infer_mlp(state, options), "hidden": hidden}


class ConvLayer(Block):
    """y = act(bn(conv(x))), after a 2 x 2 max pool at the start of a new stage."""

    def __init__(self, inputs: int, outputs: int, activation_name: str, pool: bool) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.conv = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.act = activation(activation_name)
        self.shortcut = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.bn(self.conv(self.pool(x))))


class VGG(nn.Module):
    """A small plain CNN similar to Simonyan and Zisserman 2015, with batch norm."""

    def __init__(
        self, num_classes: int, in_channels: int, width: int, depth: int, activation_name: str
    ) -> None:
        super().__init__()
        self.stem = conv_stem(in_channels, width, 3, 1)
        self.stem.append(activation(activation_name))
        widths = [width * 2 ** (3 * i // depth) for i in range(depth)]  # three stages: w, 2w, 4w
        inputs = [width, *widths[:-1]]
        self.blocks = nn.Sequential(
            *(
                ConvLayer(a, b, activation_name, pool=a != b)
                for a, b in zip(inputs, widths, strict=True)
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.pool(self.blocks(self.stem(x))).flatten(1))


def vgg(
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: int | None = None,
    activation: str = "relu",
    width: int = 32,
    depth: int = 6,
) -> nn.Module:
    """Build a plain CNN of `depth` convolutions after the stem, in three stages."""
    require_positive(width=width, depth=depth)
    if depth < 3:
        raise ArgumentError(f"A vgg has three stages and needs a depth of at least 3, not {depth}.")
    net = VGG(num_classes, in_channels, width, depth, activation)
    initialize(net, activation)
    return net


def infer_vgg(state: State, options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "num_classes": axis_length(state, "head.weight", 0, 10),
        "in_channels": axis_length(state, "stem.conv.weight", 1, 3),
        "width": axis_length(state, "stem.conv.weight", 0, 32),
        "depth": max(3, count_children(state, "blocks")),
    }
