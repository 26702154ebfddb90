"""The two convex losses of the unconstrained feature models, with their conjugates.

The arguments of a loss are logits Z (K x n), one-hot targets Y, and the fraction p_j of the data
that column j represents (1/N for a sample, n_k/N for a whole class). Leading axes of Z are a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


@runtime_checkable
class Loss(Protocol):
    """A convex function g(Z) = sum_j p_j l(z_j, y_j)."""

    @property
    def name(self) -> str:
        """``ce`` or ``mse``."""
        ...

    def value(self, Z: Tensor, Y: Tensor, p: Tensor) -> Tensor:
        """Return g(Z), one number for every leading index."""
        ...

    def gradient(self, Z: Tensor, Y: Tensor, p: Tensor) -> Tensor:
        """Return the gradient of g in Z, of the shape of Z."""
        ...

    def conjugate(self, U: Tensor, Y: Tensor, p: Tensor) -> float:
        """Return g*(U) = sup_Z <U, Z> - g(Z); infinity outside its domain."""
        ...


@dataclass(frozen=True)
class CrossEntropy:
    """l(z, y) = log sum_k exp(z_k) - z_y."""

    name: str = "ce"

    def value(self, Z: Tensor, Y: Tensor, p: Tensor) -> Tensor:
        """Return sum_j p_j (logsumexp(z_j) - z_{y_j})."""
        return ((Z.logsumexp(-2) - (Z * Y).sum(-2)) * p).sum(-1)

    def gradient(self, Z: Tensor, Y: Tensor, p: Tensor) -> Tensor:
        """Return p_j (softmax(z_j) - y_j)."""
        return (Z.softmax(-2) - Y) * p

    def conjugate(self, U: Tensor, Y: Tensor, p: Tensor) -> float:
        """Return sum_j p_j sum_k q_kj log q_kj for q = Y + U/p; infinity if q has negative entries.

        The columns of U must sum to 0, so that those of q sum to 1; this is not checked.
        """
        q = Y + U / p
        if float(q.min()) < -1e-15:
            return float("inf")
        return float((torch.special.xlogy(q, q.clamp_min(0)).sum(-2) * p).sum())


@dataclass(frozen=True)
class SquaredError:
    """l(z, y) = ||z - y||^2 / 2."""

    name: str = "mse"

    def value(self, Z: Tensor, Y: Tensor, p: Tensor) -> Tensor:
        """Return sum_j p_j ||z_j - y_j||^2 / 2."""
        return ((Z - Y).square().sum(-2) * p).sum(-1) / 2

    def gradient(self, Z: Tensor, Y: Tensor, p: Tensor) -> Tensor:
        """Return p_j (z_j - y_j)."""
        return (Z - Y) * p

    def conjugate(self, U: Tensor, Y: Tensor, p: Tensor) -> float:
        """Return sum_j ||u_j||^2 / (2 p_j) + <U, Y>."""
        return float((U.square().sum(-2) / p).sum() / 2 + (U * Y).sum())


LOSSES: dict[str, Loss] = {"ce": CrossEntropy(), "mse": SquaredError()}
