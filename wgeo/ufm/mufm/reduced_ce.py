"""MUFM with cross-entropy: features eliminated by a K-dimensional Newton solve per sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.special import log_softmax, softmax

from ...arrays.rows import Sliceable, row_chunks
from .newton import CrossMoment, Matrix, saddle_direction
from .reduced_mse import Statistics, categorical_covariance


@dataclass(frozen=True, eq=False)
class ReducedCE:
    """J(W, b): the MUFM objective with cross-entropy, minimized over all features.

    Paths are straight lines and, with samples as columns, H = X - W^T G / mu. The columns of G are
    g_i = softmax(z_i) - y_i, where z_i solves z = W x_i + b - W W^T (softmax(z) - y_i) / mu. With a
    bias, the last column of `w` is b. Samples are rows of `x`, in the eigenbasis of their
    covariance, because the preconditioner neglects correlations of features.
    """

    x: Float[np.ndarray, "n r"]
    labels: Int[np.ndarray, " n"]
    mu: float
    weight_decay: float
    bias_decay: float  # 0 for a free bias, infinity for none
    offset: Float[np.ndarray, " r"] | None = None  # mean subtracted from x if the bias is free

    @classmethod
    def of(
        cls,
        x: Sliceable,
        labels: Int[np.ndarray, " n"],
        stats: Statistics,
        *,
        mu: float,
        weight_decay: float,
        bias_decay: float,
    ) -> ReducedCE:
        """Transform samples to the basis of their statistics; subtract the mean if b is free.

        If the mean stayed far from zero, changes of W and of b could have nearly the same effect on
        the logits.
        """
        samples = np.concatenate([block @ stats.basis for _, (block,) in row_chunks(x)])
        if bias_decay > 0:
            return cls(samples, labels, mu, weight_decay, bias_decay)
        centered = np.where(stats.s > 0, samples - stats.x_mean, 0.0)
        return cls(centered, labels, mu, weight_decay, bias_decay, stats.x_mean)

    @property
    def has_bias(self) -> bool:
        """Whether b is a variable."""
        return bool(np.isfinite(self.bias_decay))

    @cached_property
    def onehot(self) -> Float[np.ndarray, "n K"]:
        """Y^T."""
        return np.eye(int(self.labels.max()) + 1)[self.labels]

    @property
    def shape(self) -> tuple[int, int]:
        """(K, r), with one more column for a bias."""
        return self.onehot.shape[1], self.x.shape[1] + self.has_bias

    def at(self, w: Matrix) -> ReducedCEPoint:
        """Return the objective and its derivatives at (W, b)."""
        return ReducedCEPoint(self, w)

    def ridge(self) -> Matrix:
        """Return the first start: 4 times the ridge regression onto centered one-hot labels, b = 0.

        One-hot labels differ by 1; the logits of a fitted classifier differ by several units.
        """
        x, y = self.x - self.x.mean(0), self.onehot - self.onehot.mean(0)
        second = x.T @ x / len(x) + self.weight_decay * np.eye(x.shape[1])
        w = 4 * np.linalg.solve(second, x.T @ y / len(x)).T
        return np.pad(w, ((0, 0), (0, int(self.has_bias))))

    def padded(self) -> ReducedCE:
        """Return the problem with K more feature dimensions, zero in every sample."""
        wider = np.pad(self.x, ((0, 0), (0, self.onehot.shape[1])))
        offset = None if self.offset is None else np.pad(self.offset, (0, self.onehot.shape[1]))
        return replace(self, x=wider, offset=offset)

    def widen(self, w: Matrix) -> Float[np.ndarray, "K wider"]:
        """Return W as a point of the padded problem."""
        width = self.x.shape[1]
        zeros = np.zeros((len(w), self.onehot.shape[1]))
        return np.concatenate([w[:, :width], zeros, w[:, width:]], axis=1)


class ReducedCEPoint:
    """The reduced objective and its derivatives at one (W, b)."""

    def __init__(self, problem: ReducedCE, w: Matrix) -> None:
        self.problem, self.w = problem, w
        width = problem.x.shape[1]
        self.weights = w[:, :width]
        self._bias = w[:, width] if problem.has_bias else np.zeros(len(w))
        self._m = self.weights @ self.weights.T / problem.mu

    @cached_property
    def residual(self) -> Float[np.ndarray, "n K"]:
        """G^T."""
        logits = self.problem.x @ self.weights.T + self._bias
        return residuals(logits, self.problem.onehot, self._m)

    @cached_property
    def last_layer(self) -> Float[np.ndarray, "n r"]:
        """H^T."""
        return self.problem.x - self.residual @ self.weights / self.problem.mu

    def value(self) -> float:
        """Return J(W, b)."""
        problem = self.problem
        logits = self.last_layer @ self.weights.T + self._bias
        loss = -float(np.mean(np.sum(problem.onehot * log_softmax(logits, axis=1), axis=1)))
        transport = problem.mu * float(np.sum((self.last_layer - problem.x) ** 2)) / len(problem.x)
        decay = problem.weight_decay * float(np.sum(self.weights**2))
        bias_decay = problem.bias_decay * float(np.sum(self._bias**2)) if problem.has_bias else 0.0
        return loss + (transport + decay + bias_decay) / 2

    def gradient(self) -> Matrix:
        """Return G H^T / N + lw W, and G 1 / N + lb b in the last column.

        Since the features are optimal, J has no derivative through them.
        """
        problem = self.problem
        of_weights = self.residual.T @ self.last_layer / len(problem.x)
        of_weights = of_weights + problem.weight_decay * self.weights
        if not problem.has_bias:
            return of_weights
        of_bias = self.residual.mean(0) + problem.bias_decay * self._bias
        return np.column_stack([of_weights, of_bias])

    @cached_property
    def curvature(self) -> Float[np.ndarray, "n K K"]:
        """(I + P M)^-1 P for every sample: Hessian of its minimal loss as a function of W x + b.

        The loss, including the transport cost, is minimized over the sample's features.
        P = diag(p) - p p^T is the Hessian of the cross-entropy, M = W W^T / mu.
        """
        hessian = categorical_covariance(self.residual + self.problem.onehot)
        return np.linalg.solve(np.eye(len(self.w)) + hessian @ self._m, hessian)

    def hessian_product(self, v: Matrix) -> Matrix:
        """Return the Hessian of J along V."""
        problem, w = self.problem, self.weights
        d_w, d_bias = v[:, : w.shape[1]], v[:, w.shape[1] :]
        d_m = (d_w @ w.T + w @ d_w.T) / problem.mu
        logits = problem.x @ d_w.T - self.residual @ d_m
        if problem.has_bias:
            logits = logits + d_bias[:, 0]
        d_residual = np.einsum("nij,nj->ni", self.curvature, logits)
        d_last = -(d_residual @ w + self.residual @ d_w) / problem.mu
        product = (d_residual.T @ self.last_layer + self.residual.T @ d_last) / len(problem.x)
        product = product + problem.weight_decay * d_w
        if not problem.has_bias:
            return product
        return np.column_stack([product, d_residual.mean(0) + problem.bias_decay * d_bias[:, 0]])

    def preconditioner(self) -> Callable[[Matrix], Matrix]:
        """Return the inverse of kron(C, D) + lw I.

        C is the mean of `curvature`, and D is the diagonal of the second moments of H.
        """
        problem = self.problem
        values, vectors = np.linalg.eigh(self.curvature.mean(0))
        # A common shift of all logits has no curvature.
        values = np.maximum(values, 1e-8 * values[-1])[:, None]
        scale = values * (self.last_layer**2).mean(0) + problem.weight_decay
        if problem.has_bias:
            scale = np.column_stack([scale, values + problem.bias_decay])
        scale[scale == 0] = 1  # only for a free bias, if the curvature of every sample vanishes
        return lambda v: vectors @ ((vectors.T @ v) / scale)

    def bias(self) -> Float[np.ndarray, " K"]:
        """Return b for the samples before `offset` was subtracted; zero without a bias."""
        offset = self.problem.offset
        return self._bias if offset is None else self._bias - self.weights @ offset

    def cross_moment(self) -> CrossMoment:
        """Return H X^T / N, positive semi-definite at a global minimum (centered if b is free)."""
        x, g = self.problem.x, self.residual
        s, mean = x.var(0), x.mean(0)
        if self.problem.bias_decay == 0:
            x, mean = x - mean, np.zeros(x.shape[1])
        right = -g.T @ x / (self.problem.mu * len(x))
        return CrossMoment.of(s, mean, self.weights, self.weights.T, right)

    def escape_direction(self) -> Matrix | None:
        """Return a direction that leaves a strict saddle (`saddle_direction`)."""
        zero = (self.problem.x == 0).all(axis=0)
        inner = self.residual.T @ self.residual
        direction = saddle_direction(self.weights, zero, inner, self.certificate())
        if direction is None or not self.problem.has_bias:
            return direction
        return np.pad(direction, ((0, 0), (0, 1)))

    def certificate(self) -> float:
        """Return ||G||_2 / sqrt(N lw mu); a critical point is global if this is at most 1."""
        problem = self.problem
        size = float(np.linalg.norm(self.residual, 2)) / np.sqrt(len(problem.x))
        return size / float(np.sqrt(problem.weight_decay * problem.mu))

    def features(
        self,
        x: Float[np.ndarray, "n d"],
        w: Float[np.ndarray, "K d"],
        onehot: Float[np.ndarray, "n K"],
        rows: Any = slice(None),
    ) -> Float[np.ndarray, "n d"]:
        """Return H in the coordinates of `x` for the samples `rows`."""
        return x - self.residual[rows] @ w / self.problem.mu


def residuals(
    a: Float[np.ndarray, "n K"], onehot: Float[np.ndarray, "n K"], m: Float[np.ndarray, "K K"]
) -> Float[np.ndarray, "n K"]:
    """Return g with g = softmax(a - M g) - y, row by row.

    It minimizes CE(a - M g, y) + g^T M g / 2, which is convex. Newton steps are halved until this
    function does not increase.
    """

    def merit(g: np.ndarray, z: np.ndarray) -> np.ndarray:
        return -np.sum(onehot * log_softmax(z, axis=1), axis=1) + np.sum(g * (g @ m), axis=1) / 2

    g = softmax(a, axis=1) - onehot
    g[merit(np.zeros_like(g), a) < merit(g, a - g @ m)] = 0.0
    z = a - g @ m
    value = merit(g, z)
    eye = np.eye(len(m))
    worst = np.inf
    for _ in range(100):
        p = softmax(z, axis=1)
        error = p - onehot - g
        before, worst = worst, float(np.abs(error).max())
        if worst < 1e-13 or before / 2 < worst < 1e-8:  # the rest is rounding errors
            break
        hessian = categorical_covariance(p)
        step = np.linalg.solve(eye + hessian @ m, error[:, :, None])[:, :, 0]
        size = np.ones(len(a))
        for _ in range(40):
            trial = g + size[:, None] * step
            z_trial = a - trial @ m
            v_trial = merit(trial, z_trial)
            worse = v_trial > value + 1e-14 * np.abs(value)
            if not worse.any():
                break
            size[worse] /= 2
        g, z, value = trial, z_trial, v_trial
    return g
