"""MUFM with squared loss as an objective of W alone, at a cost independent of N.

All features are eliminated: the optimal path from X to H_L is a straight line, and H_L solves a
ridge problem. The remaining objective depends on the data only through S = X X^T / N, T = Y X^T / N
and C_Y = Y Y^T / N.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ...arrays.rows import Sliceable, as_float64, mean_of, sum_over_rows, sums_by_class
from .escapes import CrossMoment, saddle_direction
from .newton import Matrix
from .preconditioner import EigenbasisInverse, LowRankInverse, gauss_newton

EPS = float(np.finfo(float).eps)


@dataclass(frozen=True, eq=False)
class Statistics:
    """Second moments of features and labels, in the eigenbasis of the features' covariance.

    The basis contains all directions in which the samples vary, and up to K + 1 in which they do
    not; an optimal W needs no more.
    """

    basis: Float[np.ndarray, "d r"]  # orthonormal columns
    s: Float[np.ndarray, " r"]  # the variances: centered S is diagonal in this basis
    t: Matrix  # centered T in this basis
    c_y: Float[np.ndarray, "K K"]  # centered C_Y
    x_mean: Float[np.ndarray, " r"]
    y_mean: Float[np.ndarray, " K"]

    @classmethod
    def of(cls, x: Sliceable, labels: Int[np.ndarray, " n"], classes: int) -> Statistics:
        """Form the statistics of samples (rows) and labels.

        Samples are read in chunks of rows, except if there are fewer samples than features.
        """
        n, d = x.shape
        mean, y_mean = mean_of(x), np.bincount(labels, minlength=classes) / n
        c_y = np.diag(y_mean) - np.outer(y_mean, y_mean)
        if d <= n:

            def moments(
                rows: slice, block: Float[np.ndarray, "b d"]
            ) -> tuple[Float[np.ndarray, "K d"], Float[np.ndarray, "d d"]]:
                centered = block - mean
                return sums_by_class(centered, labels[rows], classes), centered.T @ centered

            t, second = sum_over_rows(moments, x)
            s, axes = np.linalg.eigh(second / n)
            s, axes = s[::-1], axes[:, ::-1]
        else:
            centered = as_float64(x[:]) - mean
            t = sums_by_class(centered, labels, classes)
            _, scales, right = np.linalg.svd(centered, full_matrices=False)
            s, axes = scales**2 / n, right.T
        t = t / n
        rank = int((s > max(1e-14, d * EPS) * s[0]).sum()) if s[0] > 0 else 0
        constant = _constant_directions(axes[:, :rank], mean, min(d - rank, classes + 1))
        width = rank + constant.shape[1]
        kept = np.concatenate([axes[:, :rank], constant], axis=1)
        x_mean = mean @ kept
        x_mean[rank + 1 :] = 0  # exact: the rest is rounding
        t = np.pad(t @ kept[:, :rank], ((0, 0), (0, width - rank)))
        return cls(kept, np.pad(s[:rank], (0, width - rank)), t, c_y, x_mean, y_mean)

    def padded(self) -> Statistics:
        """Add K directions in which the samples are zero, so that no minimum is spurious."""
        classes = len(self.y_mean)
        wider = ((0, 0), (0, classes))
        return Statistics(
            basis=np.pad(self.basis, ((0, classes), (0, classes))),
            s=np.pad(self.s, (0, classes)),
            t=np.pad(self.t, wider),
            c_y=self.c_y,
            x_mean=np.pad(self.x_mean, (0, classes)),
            y_mean=self.y_mean,
        )


def _constant_directions(
    varied: Float[np.ndarray, "d rank"], mean: Float[np.ndarray, " d"], count: int
) -> Float[np.ndarray, "d count"]:
    """Return directions in which no sample varies; the first contains the mean's component."""
    if count == 0:
        return np.zeros((len(mean), 0))
    directions = np.random.default_rng(0).standard_normal((len(mean), count))
    size = np.linalg.norm(mean)
    if size > 0:
        rest = mean / size - varied @ (varied.T @ mean) / size
        if np.linalg.norm(rest) > 1e-10:
            directions[:, 0] = rest / np.linalg.norm(rest)
    for _ in range(2):  # twice, for orthogonality to rounding
        directions = np.linalg.qr(directions - varied @ (varied.T @ directions))[0]
    return directions


@dataclass(frozen=True, eq=False)
class ReducedMSE:
    """J(W): the MUFM objective with squared loss, minimized over b and all features.

    With A = W W^T + mu I and A_b = A + (mu / lb) I,

        J(W) = (mu/2) [tr(A^-1 R) + e^T A_b^-1 e] + (lw/2) ||W||^2

    with R = C_Y - T W^T - W T^T + W S W^T of the centered statistics and e = mean(y) - W mean(x).
    Without a bias lb is infinite and A_b = A; with a free bias the second term vanishes.
    """

    stats: Statistics
    mu: float
    weight_decay: float
    bias_decay: float

    @property
    def shape(self) -> tuple[int, int]:
        """(K, r)."""
        return self.stats.t.shape[0], self.stats.t.shape[1]

    def at(self, w: Matrix) -> ReducedMSEPoint:
        """Return the objective and its derivatives at W."""
        return ReducedMSEPoint(self, w)

    def ridge(self) -> Matrix:
        """Return the first start, the minimizer as mu tends to infinity.

        With a free bias this is T (S + lw I)^-1 of the centered statistics.
        """
        s, t = self.stats.s, self.stats.t
        if self.bias_decay == 0:
            return t / (s + self.weight_decay)
        fraction = self.bias_decay / (1 + self.bias_decay) if np.isfinite(self.bias_decay) else 1.0
        second = np.diag(s + self.weight_decay) + fraction * np.outer(
            self.stats.x_mean, self.stats.x_mean
        )
        cross = t + fraction * np.outer(self.stats.y_mean, self.stats.x_mean)
        return np.linalg.solve(second, cross.T).T

    def padded(self) -> ReducedMSE:
        """Return the problem with K more feature dimensions, zero in every sample."""
        return ReducedMSE(self.stats.padded(), self.mu, self.weight_decay, self.bias_decay)

    def widen(self, w: Matrix) -> Float[np.ndarray, "K wider"]:
        """Return W as a point of the padded problem."""
        return np.pad(w, ((0, 0), (0, len(w))))


class ReducedMSEPoint:
    """The reduced objective and its derivatives at one W."""

    def __init__(self, problem: ReducedMSE, w: Matrix) -> None:
        self.problem, self.w = problem, w
        self.shifted = w @ w.T + problem.mu * np.eye(len(w))  # A
        self.inverse = np.linalg.inv(self.shifted)
        self.fit = problem.stats.t - w * problem.stats.s  # T - W S
        cross = problem.stats.t @ w.T
        self.residual = problem.stats.c_y - cross - cross.T + (w * problem.stats.s) @ w.T  # R
        self.residual = (self.residual + self.residual.T) / 2

    @cached_property
    def bias_inverse(self) -> Float[np.ndarray, "K K"]:
        """A_b^-1; zero if the bias is free."""
        problem = self.problem
        if problem.bias_decay == 0:
            return np.zeros_like(self.inverse)
        extra = problem.mu / problem.bias_decay if np.isfinite(problem.bias_decay) else 0.0
        return np.linalg.inv(self.shifted + extra * np.eye(len(self.w)))

    @cached_property
    def mean_residual(self) -> Float[np.ndarray, " K"]:
        """e = mean(y) - W mean(x)."""
        return self.problem.stats.y_mean - self.w @ self.problem.stats.x_mean

    @cached_property
    def scaled_residual(self) -> Float[np.ndarray, " K"]:
        """A_b^-1 e."""
        return self.bias_inverse @ self.mean_residual

    @cached_property
    def inner(self) -> Float[np.ndarray, "K K"]:
        """A^-1 R A^-1."""
        return self.inverse @ self.residual @ self.inverse

    def value(self) -> float:
        """Return J(W)."""
        fit = float(np.einsum("ij,ji->", self.inverse, self.residual)) + float(
            self.mean_residual @ self.scaled_residual
        )
        decay = self.problem.weight_decay * float(np.sum(self.w**2))
        return (self.problem.mu * fit + decay) / 2

    def gradient(self) -> Matrix:
        """Return -mu (Q W + A^-1 (T - W S) + A_b^-1 e (W^T A_b^-1 e + mean(x))^T) + lw W."""
        of_mean = np.outer(
            self.scaled_residual, self.scaled_residual @ self.w + self.problem.stats.x_mean
        )
        total = self.inner @ self.w + self.inverse @ self.fit + of_mean
        return self.problem.weight_decay * self.w - self.problem.mu * total

    def hessian_product(self, v: Matrix) -> Matrix:
        """Return the Hessian of J along V."""
        stats = self.problem.stats
        change = v @ self.w.T + self.w @ v.T  # of A
        d_inverse = -self.inverse @ change @ self.inverse
        step = self.fit @ v.T
        d_residual = -(step + step.T)
        half = d_inverse @ self.residual @ self.inverse
        d_inner = half + half.T + self.inverse @ d_residual @ self.inverse
        d_scaled = -self.bias_inverse @ (change @ self.scaled_residual + v @ stats.x_mean)
        toward = self.scaled_residual @ self.w + stats.x_mean
        total = (
            d_inner @ self.w
            + self.inner @ v
            + d_inverse @ self.fit
            - self.inverse @ (v * stats.s)
            + np.outer(d_scaled, toward)
            + np.outer(self.scaled_residual, d_scaled @ self.w + self.scaled_residual @ v)
        )
        return self.problem.weight_decay * v - self.problem.mu * total

    def preconditioner(self) -> LowRankInverse | EigenbasisInverse:
        """Return the inverse Gauss-Newton matrix, with the second moments of H instead of S."""
        problem, stats = self.problem, self.problem.stats
        classes, width = self.w.shape
        free = problem.bias_decay == 0
        extra = problem.mu / problem.bias_decay if 0 < problem.bias_decay < np.inf else 0.0
        eye = np.eye(classes)
        middle = np.zeros((2 * classes + 1,) * 2)
        middle[:classes, :classes] = self.residual
        middle[:classes, classes:-1] = middle[classes:-1, :classes] = eye
        middle[-1, -1] = 1.0
        pull = self.w.T @ self.inverse  # C
        mean = np.zeros(width) if free else stats.x_mean + pull @ (self.mean_residual - self.bias())
        return gauss_newton(
            shifted=self.shifted,
            s=stats.s,
            mu=problem.mu,
            weight_decay=problem.weight_decay,
            thin=np.column_stack([pull, self.fit.T, mean]),
            middle=middle,
            bias_shift=extra,
        )

    def bias(self) -> Float[np.ndarray, " K"]:
        """Return the optimal b: zero without a bias, mean(y) - W mean(x) for a free one."""
        if not np.isfinite(self.problem.bias_decay):
            return np.zeros(len(self.w))
        if self.problem.bias_decay == 0:
            return self.mean_residual
        return self.problem.mu * self.scaled_residual / self.problem.bias_decay

    @property
    def weights(self) -> Matrix:
        """W."""
        return self.w

    def features(
        self,
        x: Float[np.ndarray, "n d"],
        w: Float[np.ndarray, "K d"],
        onehot: Float[np.ndarray, "n K"],
        rows: Any = slice(None),
    ) -> Float[np.ndarray, "n d"]:
        """Return H_L = X + W^T A^-1 (Y - W X - b 1^T) in the coordinates of `x` and `w`."""
        return x + (onehot - self.bias() - x @ w.T) @ self.inverse @ w

    def cross_moment(self) -> CrossMoment:
        """Return H X^T / N, positive semi-definite at a global minimum (centered if b is free)."""
        stats = self.problem.stats
        pull = self.w.T @ self.inverse  # C; (H - X) X^T / N = C (T - W S) for centered samples
        if self.problem.bias_decay == 0:
            return CrossMoment.of(stats.s, np.zeros(len(stats.s)), self.w, pull, self.fit)
        shift = np.outer(self.mean_residual - self.bias(), stats.x_mean)
        return CrossMoment.of(stats.s, stats.x_mean, self.w, pull, self.fit + shift)

    def escape_direction(self) -> Matrix | None:
        """Return a direction that leaves a strict saddle; None if none is known.

        It changes W only along features that are zero in every sample.
        """
        stats = self.problem.stats
        mean = stats.x_mean if self.problem.bias_decay > 0 else 0 * stats.x_mean
        inner = self.inner + np.outer(self.scaled_residual, self.scaled_residual)
        return saddle_direction(self.w, (stats.s == 0) & (mean == 0), inner, self.certificate())

    def certificate(self) -> float:
        """Return ||W H_L + b 1^T - Y||_2 / sqrt(N lw mu).

        A critical point is a global minimum if this is at most 1.
        """
        inner = self.inner + np.outer(self.scaled_residual, self.scaled_residual)
        top = float(np.linalg.eigvalsh((inner + inner.T) / 2)[-1])
        return float(np.sqrt(self.problem.mu * max(top, 0.0) / self.problem.weight_decay))
