"""Products with residual Jacobians: of all features, of one token, or of channel means."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float

from ...features.layout import Layout
from ..jacobian import Jacobian, Streams, random_signs
from .branches import Branch


class View(ABC):
    """A subspace of a block's features; `embed` is an isometry into them, `read` its adjoint."""

    @abstractmethod
    def read(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the coordinates (n, d) of features (n, ...)."""

    @abstractmethod
    def embed(self, v: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        """Return the features that have the coordinates v, in the shape of `like`."""


class Whole(View):
    """All features."""

    def read(self, maps: torch.Tensor) -> torch.Tensor:
        return maps.flatten(1)

    def embed(self, v: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        return v.reshape(like.shape)


@dataclass(frozen=True)
class Pooled(View):
    """Features that are constant over space: one number per channel."""

    layout: Layout

    def read(self, maps: torch.Tensor) -> torch.Tensor:
        channels = self.layout.channels_first(maps, len(maps)).flatten(2)
        return channels.sum(2) / channels.shape[2] ** 0.5

    def embed(self, v: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        assert self.layout.channels is not None
        shape = self.layout.channels_first(like, len(like)).shape
        positions = shape[2:].numel()
        maps = (v / positions**0.5)[(...,) + (None,) * (len(shape) - 2)].expand(shape)
        return maps.movedim(1, self.layout.channels).contiguous()


@dataclass(frozen=True)
class Token(View):
    """The features of one token; the others are fixed."""

    layout: Layout
    index: int

    def read(self, maps: torch.Tensor) -> torch.Tensor:
        return self.layout.channels_first(maps, len(maps))[:, :, self.index]

    def embed(self, v: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
        assert self.layout.channels is not None
        maps = torch.zeros_like(self.layout.channels_first(like, len(like)))
        maps[:, :, self.index] = v
        return maps.movedim(1, self.layout.channels).contiguous()


class ResidualJacobian:
    """Products J v and J^T u of a block's residual Jacobian at n points, with v and u (n, d)."""

    def __init__(self, branch: Branch, view: View) -> None:
        self._branch, self._view = branch, view
        self._jacobian = Jacobian(branch.map, branch.x)
        self.points = len(branch.x)
        self.dimension = view.read(branch.x).shape[1]

    def forward(self, v: Float[torch.Tensor, "n d"]) -> Float[torch.Tensor, "n d"]:
        out = self._jacobian.forward(self._view.embed(v, self._branch.x))
        return self._view.read(out if self._branch.gate is None else self._branch.gate * out)

    def transpose(self, u: Float[torch.Tensor, "n d"]) -> Float[torch.Tensor, "n d"]:
        maps = self._view.embed(u, self._branch.x)
        maps = maps if self._branch.gate is None else self._branch.gate * maps
        return self._view.read(self._jacobian.transpose(maps))

    def zeros(self, *shape: int) -> torch.Tensor:
        """Return zeros (n, *shape), with the device and precision of the points."""
        return torch.zeros(self.points, *shape).to(self._branch.x)

    def signs(self, streams: Streams) -> Float[torch.Tensor, "n d"]:
        """Return a random sign vector per point."""
        return random_signs(self.zeros(self.dimension), streams)
