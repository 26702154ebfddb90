"""torchvision's transformer block as a `Block`; `vit` imports this only to build a network."""

from __future__ import annotations

from torch import nn
from torchvision.models.vision_transformer import EncoderBlock, VisionTransformer

from .parts import Block, activation

__all__ = ["TransformerBlock", "VisionTransformer"]


class TransformerBlock(EncoderBlock, Block):
    """torchvision's block with any activation: u + MLP(norm(u)), u = x + attention(norm(x))."""

    def __init__(self, heads: int, width: int, hidden: int, activation_name: str) -> None:
        super().__init__(heads, width, hidden, dropout=0.0, attention_dropout=0.0)
        setattr(self.mlp, "1", activation(activation_name))
        self.shortcut = nn.Identity()
