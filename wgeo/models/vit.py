"""A small vision transformer: torchvision's, with other defaults and any activation."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from math import isqrt
from typing import Any

from torch import nn

from ..errors import ArgumentError
from .parts import Block, State, activation, axis_length, require_positive

_HEAD_WIDTH = 16  # default number of features per attention head


def vit(
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: int | None = None,
    activation: str = "relu",
    width: int = 64,
    depth: int = 6,
    heads: int | None = None,
    hidden: int | None = None,
    patch: int | None = None,
) -> nn.Module:
    """Build a small ViT (Dosovitskiy et al. 2021) of `depth` blocks with a class token.

    - `heads`: by default the largest divisor of `width` that leaves each head at least 16 features,
      or else 1.
    - `hidden`: units inside each block's MLP, by default twice `width`.
    - `patch`: pixels per side of a patch, by default the largest divisor of `image_size` that
      leaves at least six patches per side (4 for 28 and 32 pixels), or else 1.
    """
    if image_size is None:
        raise ArgumentError("A vit needs image_size: it has a position embedding for every patch.")
    require_positive(width=width, depth=depth)
    heads = _largest_divisor(width, width // _HEAD_WIDTH) if heads is None else heads
    hidden = 2 * width if hidden is None else hidden
    patch = _largest_divisor(image_size, image_size // 6) if patch is None else patch
    require_positive(heads=heads, hidden=hidden, patch=patch)
    if image_size % patch or width % heads:
        raise ArgumentError(
            f"`patch={patch}` must divide `image_size={image_size}`, "
            f"and `heads={heads}` must divide `width={width}`."
        )
    from torchvision.models import VisionTransformer

    net = VisionTransformer(image_size, patch, depth, heads, width, hidden, num_classes=num_classes)
    for name, _ in list(net.encoder.layers.named_children()):
        setattr(net.encoder.layers, name, _block_class()(heads, width, hidden, activation))
    if in_channels != 3:
        net.conv_proj = nn.Conv2d(in_channels, width, patch, patch)
    # With torchvision's head of zeros, features would get no gradient in the first step.
    nn.init.normal_(net.heads.head.weight, std=width**-0.5)
    return net


def _largest_divisor(number: int, limit: int) -> int:
    """Return the largest divisor of a number that is at most `limit`; 1 if there is none."""
    return max(d for d in range(1, max(1, limit) + 1) if number % d == 0)


def infer_vit(state: State, options: Mapping[str, Any]) -> dict[str, Any]:
    """Infer the settings of a ViT from the shapes in its state dict, and `heads` from `options`."""
    patch = axis_length(state, "conv_proj.weight", 2, 4)
    tokens = axis_length(state, "encoder.pos_embedding", 1, 65)
    width = axis_length(state, "conv_proj.weight", 0, 64)
    layers = {key.split(".")[2] for key in state if key.startswith("encoder.layers.encoder_layer_")}
    return {
        "num_classes": axis_length(state, "heads.head.weight", 0, 10),
        "in_channels": axis_length(state, "conv_proj.weight", 1, 3),
        "image_size": patch * max(1, isqrt(tokens - 1)),
        "width": width,
        "depth": max(1, len(layers)),
        "hidden": axis_length(state, "encoder.layers.encoder_layer_0.mlp.0.weight", 0, 2 * width),
        "patch": patch,
        **({"heads": options["heads"]} if "heads" in options else {}),
    }


@cache
def _block_class() -> type[Block]:
    """Return `TransformerBlock`, whose base class takes seconds to import."""
    from torchvision.models.vision_transformer import EncoderBlock

    class TransformerBlock(EncoderBlock, Block):
        """torchvision's block with any activation: u + MLP(norm(u)), u = x + attention(norm(x))."""

        def __init__(self, heads: int, width: int, hidden: int, activation_name: str) -> None:
            super().__init__(heads, width, hidden, dropout=0.0, attention_dropout=0.0)
            setattr(self.mlp, "1", activation(activation_name))
            self.shortcut = nn.Identity()

    TransformerBlock.__qualname__ = "TransformerBlock"
    return TransformerBlock


def __getattr__(name: str) -> Any:
    if name == "TransformerBlock":  # a file of a whole network names it as this module's class
        return _block_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
