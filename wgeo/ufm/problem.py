"""The objective of the unconstrained feature models, and its derivatives.

F(A_1, ..., A_m, b) = (1/N) sum_i l(z_i, y_i)
                      + sum_i (lambda_i / 2) ||A_i||_F^2 + (lambda_b / 2) ||b||^2,
Z = A_m s(A_{m-1} ... s(A_2 A_1)) + b 1^T

A_1 = H (d x N) are the free features, A_2, ..., A_{m-1} (d x d) the hidden weights, and A_m = W
(K x d) is the classifier. s is the identity or the ReLU, l the cross-entropy or the squared error.
m = 2 is the unconstrained feature model (Zhu et al. 2021; Tirer, Bruna 2022), m = 3 the extended
one (Tirer, Bruna 2022), m > 3 the deep one (Súkeník, Mondelli, Lampert 2023).

A point is one float64 vector. The loss is g(Z) = sum_j p_j l(z_j, y_j), where p_j is the fraction
of the data that column j represents: 1/N for a sample, n_k/N for a whole class. Leading axes of
points and logits are a batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from ..arrays.checks import as_count
from ..errors import ArgumentError
from .arguments import accepts_former_bias, bias_decay_of, check_decays, class_labels


class CrossEntropy:
    """l(z, y) = log sum_k exp(z_k) - z_y."""

    def value(self, Z: Tensor, Y: Tensor, p: Tensor) -> Tensor:
        """Return sum_j p_j (logsumexp(z_j) - z_{y_j})."""
        return ((Z.logsumexp(-2) - (Z * Y).sum(-2)) * p).sum(-1)

    def gradient(self, Z: Tensor, Y: Tensor, p: Tensor) -> Tensor:
        """Return p_j (softmax(z_j) - y_j)."""
        return (Z.softmax(-2) - Y) * p

    def conjugate(self, U: Tensor, Y: Tensor, p: Tensor) -> float:
        """Return g*(U) = sup_Z <U, Z> - g(Z) = sum_j p_j sum_k q_kj log q_kj for q = Y + U/p.

        It is infinite if q has negative entries. The columns of U must sum to 0.
        """
        q = Y + U / p
        if float(q.min()) < -1e-15:
            return float("inf")
        return float((torch.special.xlogy(q, q.clamp_min(0)).sum(-2) * p).sum())


class SquaredError:
    """l(z, y) = ||z - y||^2 / 2."""

    def value(self, Z: Tensor, Y: Tensor, p: Tensor) -> Tensor:
        """Return sum_j p_j ||z_j - y_j||^2 / 2."""
        return ((Z - Y).square().sum(-2) * p).sum(-1) / 2

    def gradient(self, Z: Tensor, Y: Tensor, p: Tensor) -> Tensor:
        """Return p_j (z_j - y_j)."""
        return (Z - Y) * p

    def conjugate(self, U: Tensor, Y: Tensor, p: Tensor) -> float:
        """Return g*(U) = sup_Z <U, Z> - g(Z) = sum_j ||u_j||^2 / (2 p_j) + <U, Y>."""
        return float((U.square().sum(-2) / p).sum() / 2 + (U * Y).sum())


Loss = CrossEntropy | SquaredError
LOSSES: dict[str, Loss] = {"ce": CrossEntropy(), "mse": SquaredError()}


@dataclass(frozen=True, eq=False)
class Problem:
    """An unconstrained feature model: labels, sizes and penalties; F and its derivatives."""

    labels: Int[np.ndarray, " n"]  # class of every column of H: 0, ..., K - 1, each present
    dim: int  # width d of the features and of every hidden layer
    decays: tuple[float, ...]  # lambda_H, lambda_1, ..., lambda_L; the last is the classifier's
    bias_decay: float = math.inf  # lambda_b: 0 for a free bias, infinity for none
    loss: str = "mse"  # or "ce"
    activation: str = "linear"  # or "relu"; not used with two factors
    copies: Int[np.ndarray, " n"] | None = None  # samples that each column represents; None: one

    @classmethod
    @accepts_former_bias
    def checked(
        cls,
        labels: Any,
        dim: int,
        decays: Sequence[float],
        bias: str | float | int = "none",
        loss: str = "mse",
        activation: str = "linear",
    ) -> Problem:
        """Make a problem from user input.

        Raises
        ------
        ArgumentError
            There are fewer than two classes, a class has no samples, the width is below 1, a decay
            is not positive, or the bias, loss or activation is unknown.
        """
        y = class_labels(labels)
        dim = as_count(dim, "dim", 1)
        m = len(decays)
        if m < 2:
            raise ArgumentError("A model has features and at least one layer of weights.")
        names = ["weight_decay"] if m == 2 else [f"weight_decays[{i}]" for i in range(m - 1)]
        check_decays(dict(zip(["feature_decay", *names], decays, strict=True)))
        decay = bias_decay_of(bias)
        if activation not in ("linear", "relu"):
            raise ArgumentError(f"activation must be 'linear' or 'relu', not {activation!r}.")
        if loss not in LOSSES:
            raise ArgumentError(f"loss must be one of {sorted(LOSSES)}, not {loss!r}.")
        return cls(y, dim, tuple(map(float, decays)), decay, loss, activation)

    def collapsed(self) -> Problem:
        """Return the problem with one column of H per class, which has the same minimum.

        For given weights, the best features are the same for all samples of a class.
        """
        return replace(self, labels=np.arange(self.num_classes), copies=self.counts)

    # sizes ------------------------------------------------------------------------------------

    @property
    def depth(self) -> int:
        """Number m of factors, including the features."""
        return len(self.decays)

    @cached_property
    def num_classes(self) -> int:
        """K."""
        return int(self.labels.max()) + 1

    @cached_property
    def counts(self) -> Int[np.ndarray, " K"]:
        """Number of samples n_k of every class."""
        return np.bincount(self.labels, self.copies, self.num_classes).astype(np.int64)

    @property
    def num_samples(self) -> int:
        """N."""
        return int(self.counts.sum())

    @property
    def balanced(self) -> bool:
        """Whether all classes have the same number of samples."""
        return bool((self.counts == self.counts[0]).all())

    @property
    def with_bias(self) -> bool:
        """Whether the model has a bias."""
        return math.isfinite(self.bias_decay)

    @property
    def decay_mean(self) -> float:
        """The geometric mean c of the factors' decays; sqrt(lambda_W lambda_H) for m = 2."""
        return float(np.exp(np.mean(np.log(self.decays))))

    @cached_property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of A_1, ..., A_m, and of b if the model has one."""
        d, K, n = self.dim, self.num_classes, len(self.labels)
        factors = ((d, n), *[(d, d)] * (self.depth - 2), (K, d))
        return (*factors, (K,)) if self.with_bias else factors

    @cached_property
    def sizes(self) -> list[int]:
        """Number of entries of every block of a point."""
        return [math.prod(shape) for shape in self.shapes]

    @property
    def size(self) -> int:
        """Number of variables."""
        return sum(self.sizes)

    # constants ----------------------------------------------------------------------------------

    @property
    def criterion(self) -> Loss:
        """g, with its gradient and conjugate."""
        return LOSSES[self.loss]

    @cached_property
    def mass(self) -> Tensor:
        """Number of samples that each column represents, (n,)."""
        copies = np.ones(len(self.labels)) if self.copies is None else self.copies
        return torch.as_tensor(copies, dtype=torch.float64)

    @cached_property
    def column_weights(self) -> Tensor:
        """Fraction of the data that each column represents, (n,)."""
        return self.mass / self.num_samples

    @cached_property
    def targets(self) -> Tensor:
        """One-hot Y, (K, n)."""
        return torch.eye(self.num_classes, dtype=torch.float64)[:, torch.from_numpy(self.labels)]

    @cached_property
    def penalties(self) -> Tensor:
        """The decay of every variable, (size,); the penalty of a point x is sum decay x^2 / 2."""
        blocks = [self.decays[0] * self.mass.expand(self.shapes[0]).reshape(-1)]
        decays = (*self.decays[1:], self.bias_decay) if self.with_bias else self.decays[1:]
        for size, decay in zip(self.sizes[1:], decays, strict=True):
            blocks.append(torch.full((size,), decay, dtype=torch.float64))
        return torch.cat(blocks)

    # points -------------------------------------------------------------------------------------

    def split(self, x: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Return the factors A_1, ..., A_m and the bias of a point, as views."""
        parts, start = [], 0
        for size, shape in zip(self.sizes, self.shapes, strict=True):
            parts.append(x[..., start : start + size].unflatten(-1, shape))
            start += size
        return (parts[:-1], parts[-1]) if self.with_bias else (parts, None)

    def join(self, factors: Sequence[Any], b: Any = None) -> Tensor:
        """Return the point with these factors and this bias (zero by default).

        Raises ArgumentError for other shapes, or for a nonzero bias in a problem without one.
        """
        parts = [torch.as_tensor(np.asarray(a), dtype=torch.float64) for a in factors]
        if self.with_bias:
            zero = torch.zeros(self.num_classes, dtype=torch.float64)
            parts.append(zero if b is None else torch.as_tensor(np.asarray(b)).double())
        elif b is not None and np.any(np.asarray(b) != 0):
            raise ArgumentError("This problem has no bias; leave out b.")
        shapes = tuple(tuple(part.shape) for part in parts)
        if shapes != self.shapes:
            raise ArgumentError(f"Factors have shapes {shapes}; this problem's are {self.shapes}.")
        return torch.cat([part.reshape(-1) for part in parts])

    # calculus -----------------------------------------------------------------------------------

    def layers(self, factors: Sequence[Tensor]) -> list[Tensor]:
        """Return the inputs of A_2, ..., A_m: A_1, s(A_2 A_1), ..., each (..., d, n)."""
        X = [factors[0]]
        for A in factors[1:-1]:
            X.append((A @ X[-1]).relu() if self.activation == "relu" else A @ X[-1])
        return X

    def logits(self, x: Tensor) -> Tensor:
        """Return Z, (..., K, n)."""
        factors, b = self.split(x)
        Z = factors[-1] @ self.layers(factors)[-1]
        return Z if b is None else Z + b[..., None]

    def value(self, x: Tensor) -> Tensor:
        """Return F(x), one number for every leading index."""
        penalty = (self.penalties * x.square()).sum(-1) / 2
        return self.criterion.value(self.logits(x), self.targets, self.column_weights) + penalty

    def terms(self, x: Tensor) -> dict[str, float]:
        """Return the terms of F at one point; their sum is F(x)."""
        penalties = (self.penalties * x.square() / 2).split(self.sizes)
        terms = {
            "fit": float(self.criterion.value(self.logits(x), self.targets, self.column_weights)),
            "weight_decay": sum(float(part.sum()) for part in penalties[1 : self.depth]),
            "feature_decay": float(penalties[0].sum()),
        }
        return terms | ({"bias_decay": float(penalties[-1].sum())} if self.with_bias else {})

    def product_gradient(self, x: Tensor) -> Tensor:
        """Return G, the gradient of g at the logits of x, (..., K, n)."""
        return self.criterion.gradient(self.logits(x), self.targets, self.column_weights)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return F and its gradient, on any device; the ReLU's derivative at 0 is taken as 0."""
        factors, b = self.split(x)
        X = self.layers(factors)
        Z = factors[-1] @ X[-1]
        Z = Z if b is None else Z + b[..., None]
        Y, p = self.targets.to(x.device), self.column_weights.to(x.device)
        gradient = self.penalties.to(x.device) * x
        value = self.criterion.value(Z, Y, p) + torch.linalg.vecdot(gradient, x) / 2
        blocks, bias_block = self.split(gradient)  # views, to which the loss's gradient is added
        D = self.criterion.gradient(Z, Y, p)
        if bias_block is not None:
            bias_block.add_(D.sum(-1))
        for i in range(self.depth - 1, 0, -1):
            blocks[i].add_(D @ X[i - 1].mT)
            D = factors[i].mT @ D
            if self.activation == "relu" and i > 1:
                D = D * X[i - 1].sign()  # 0 or 1 after a ReLU
        blocks[0].add_(D)
        return value, gradient

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient of F, (..., size)."""
        return self.value_and_gradient(x)[1]

    def hvp(self, x: Tensor, v: Tensor) -> Tensor:
        """Return the Hessian-vector product, exact up to rounding."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.gradient(x), x, v)[0]
