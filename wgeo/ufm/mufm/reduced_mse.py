"""MUFM with squared loss as an objective of W alone, at a cost independent of N.

All features are eliminated: the optimal path from X to H_L is a straight line, and H_L solves a
ridge problem. The remaining objective depends on the data only through the means and, for centered
X and Y, through S = X X^T / N, T = Y X^T / N and C_Y = Y Y^T / N.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from ...arrays.rows import Sliceable, as_float64, mean_of, sum_over_rows, sums_by_class
from .newton import CrossMoment, Matrix, saddle_direction

EPS = float(np.finfo(float).eps)
EIGH_COST = 0.5  # (cost of eigh / r^3) / (cost of an inverse of size m / m^3)


@dataclass(frozen=True, eq=False)
class Statistics:
    """Second moments of features and labels, in the eigenbasis of the features' covariance.

    The basis contains all directions in which the samples vary, and up to K + 1 in which they do
    not vary. An optimal W needs no more.
    """

    basis: Float[np.ndarray, "d r"]  # orthonormal columns
    s: Float[np.ndarray, " r"]  # the variances; S is diagonal in this basis
    t: Matrix  # T in this basis
    c_y: Float[np.ndarray, "K K"]  # C_Y
    x_mean: Float[np.ndarray, " r"]
    y_mean: Float[np.ndarray, " K"]

    @classmethod
    def of(cls, x: Sliceable, labels: Int[np.ndarray, " n"], classes: int) -> Statistics:
        """Return the statistics of samples (rows) and labels.

        Samples are read in chunks of rows, unless there are fewer samples than features.
        """
        n, d = x.shape
        mean, y_mean = mean_of(x), np.bincount(labels, minlength=classes) / n
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
        x_mean[rank + 1 :] = 0  # up to rounding: constant[:, 0] contains the rest of the mean
        t = np.pad(t @ kept[:, :rank], ((0, 0), (0, width - rank)))
        s = np.pad(s[:rank], (0, width - rank))
        return cls(kept, s, t, categorical_covariance(y_mean), x_mean, y_mean)


def categorical_covariance(p: Float[np.ndarray, "*batch K"]) -> Float[np.ndarray, "*batch K K"]:
    """Return diag(p) - p p^T, the covariance of one-hot labels with probabilities p."""
    return p[..., :, None] * np.eye(p.shape[-1]) - p[..., :, None] * p[..., None, :]


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
    for _ in range(2):  # the second time removes the rounding errors of the first
        directions = np.linalg.qr(directions - varied @ (varied.T @ directions))[0]
    return directions


@dataclass(frozen=True, eq=False)
class ReducedMSE:
    """J(W): the MUFM objective with squared loss, minimized over b and all features.

    With A = W W^T + mu I and A_b = A + (mu / lb) I,

        J(W) = (mu/2) [tr(A^-1 R) + e^T A_b^-1 e] + (lw/2) ||W||^2,

    where R = C_Y - T W^T - W T^T + W S W^T and e = mean(y) - W mean(x). Without a bias lb is
    infinite and A_b = A; with a free bias the term of e vanishes.
    """

    stats: Statistics
    mu: float
    weight_decay: float
    bias_decay: float

    @property
    def shape(self) -> tuple[int, int]:
        """(K, r)."""
        return self.stats.t.shape[0], self.stats.t.shape[1]

    @property
    def bias_shift(self) -> float:
        """mu / lb for a regularized bias, else 0."""
        return self.mu / self.bias_decay if 0 < self.bias_decay < np.inf else 0.0

    def at(self, w: Matrix) -> ReducedMSEPoint:
        """Return the objective and its derivatives at W."""
        return ReducedMSEPoint(self, w)

    def ridge(self) -> Matrix:
        """Return the first start, the minimizer as mu tends to infinity.

        With a free bias this is T (S + lw I)^-1.
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
        stats, classes = self.stats, self.shape[0]
        wider = replace(
            stats,
            basis=np.pad(stats.basis, (0, classes)),
            s=np.pad(stats.s, (0, classes)),
            t=self.widen(stats.t),
            x_mean=np.pad(stats.x_mean, (0, classes)),
        )
        return replace(self, stats=wider)

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
        if self.problem.bias_decay == 0:
            return np.zeros_like(self.inverse)
        return np.linalg.inv(self.shifted + self.problem.bias_shift * np.eye(len(self.w)))

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

    @cached_property
    def logit_moment(self) -> Float[np.ndarray, "K K"]:
        """E E^T / (N mu^2) of the residuals E = W H_L + b 1^T - Y."""
        return self.inner + np.outer(self.scaled_residual, self.scaled_residual)

    def value(self) -> float:
        """Return J(W)."""
        fit = float(np.einsum("ij,ji->", self.inverse, self.residual)) + float(
            self.mean_residual @ self.scaled_residual
        )
        decay = self.problem.weight_decay * float(np.sum(self.w**2))
        return (self.problem.mu * fit + decay) / 2

    def gradient(self) -> Matrix:
        """Return lw W - mu (Q W + A^-1 (T - W S) + q (W^T q + mean(x))^T).

        Q is `inner`, and q = A_b^-1 e.
        """
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
        """Return the inverse of the Gauss-Newton matrix, at a cost linear in d.

        If W H is linearized with the features eliminated, the curvature of J along V is

            lw V + mu A^-1 V (H H^T / N - m m^T) + mu A_b^-1 V m m^T,

        with the mean m of H. For the eigenvector of A with eigenvalue a_i, this is a matrix of size
        r: diagonal plus rank 2K + 1, because, with C = W^T A^-1 and G = T - W S,

            H H^T / N - m m^T = S + C G + G^T C^T + C R C^T.

        The inverses of K such matrices cost K (2K + 1)^3. If r is small compared with the number of
        classes, it is cheaper to diagonalize all of them by the eigenvectors of H H^T / N - m m^T,
        which costs r^3.
        """
        problem, stats = self.problem, self.problem.stats
        classes, width = self.w.shape
        free = problem.bias_decay == 0
        pull = self.w.T @ self.inverse  # C
        mean = np.zeros(width) if free else stats.x_mean + pull @ (self.mean_residual - self.bias())
        a, eigenvectors = np.linalg.eigh(self.shifted)
        mean_weight = problem.mu / (a + problem.bias_shift)
        middle = np.zeros((2 * classes + 1,) * 2)
        middle[:classes, :classes] = self.residual
        middle[:classes, classes:-1] = middle[classes:-1, :classes] = np.eye(classes)
        thin = np.column_stack([pull, self.fit.T, mean])
        if EIGH_COST * width**3 < classes * len(middle) ** 3:
            update = thin[:, :-1] @ middle[:-1, :-1] @ thin[:, :-1].T
            values, axes = np.linalg.eigh(np.diag(stats.s) + (update + update.T) / 2)
            diagonal = problem.weight_decay + problem.mu * np.maximum(values, 0) / a[:, None]
            return EigenbasisInverse(eigenvectors, axes, diagonal, axes.T @ mean, mean_weight)
        diagonal = problem.weight_decay + problem.mu * stats.s / a[:, None]
        eye = np.eye(len(middle))
        core = np.empty((classes, *middle.shape))
        for i, row in enumerate(diagonal):
            weight = middle * (problem.mu / a[i])
            weight[-1, -1] = mean_weight[i]
            gram = (thin.T / row) @ thin
            core[i] = weight @ np.linalg.inv(eye + gram @ weight)
        return LowRankInverse(eigenvectors, diagonal, thin, (core + core.transpose(0, 2, 1)) / 2)

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
        """Return a direction that leaves a strict saddle (`saddle_direction`)."""
        stats = self.problem.stats
        zero = (stats.s == 0) & ((stats.x_mean == 0) | (self.problem.bias_decay == 0))
        return saddle_direction(self.w, zero, self.logit_moment, self.certificate())

    def certificate(self) -> float:
        """Return ||W H_L + b 1^T - Y||_2 / sqrt(N lw mu).

        A critical point is a global minimum if this is at most 1.
        """
        moment = self.logit_moment
        top = float(np.linalg.eigvalsh((moment + moment.T) / 2)[-1])
        return float(np.sqrt(self.problem.mu * max(top, 0.0) / self.problem.weight_decay))


@dataclass(frozen=True, eq=False)
class LowRankInverse:
    """The inverse of the Gauss-Newton matrix, from its low-rank part; call it on V.

    For the eigenvalue a_i of A, the inverse is D^-1 - D^-1 thin core_i thin^T D^-1, where D is the
    diagonal matrix of row i of `diagonal`.
    """

    eigenvectors: Float[np.ndarray, "K K"]  # of A, as columns
    diagonal: Matrix  # lw + mu s / a_i
    thin: Float[np.ndarray, "r m"]  # C, G^T and m, as in `ReducedMSEPoint.preconditioner`
    core: Float[np.ndarray, "K m m"]

    def __call__(self, v: Matrix) -> Matrix:
        """Return the inverse applied to V."""
        scaled = (self.eigenvectors.T @ v) / self.diagonal
        low = np.matmul(self.core, (scaled @ self.thin)[:, :, None])[:, :, 0]
        return self.eigenvectors @ (scaled - (low @ self.thin.T) / self.diagonal)


@dataclass(frozen=True, eq=False)
class EigenbasisInverse:
    """The inverse of the Gauss-Newton matrix, from the eigenvectors of B; call it on V.

    B is H H^T / N - m m^T (see `ReducedMSEPoint.preconditioner`).
    """

    eigenvectors: Float[np.ndarray, "K K"]  # of A, as columns
    axes: Float[np.ndarray, "r r"]  # eigenvectors of B, as columns
    diagonal: Matrix  # lw + mu e_j / a_i, with the eigenvalues e_j of B
    mean: Float[np.ndarray, " r"]  # m, in these axes
    mean_weight: Float[np.ndarray, " K"]  # mu / (a_i + bias_shift)

    def __call__(self, v: Matrix) -> Matrix:
        """Return the inverse applied to V."""
        scaled = (self.eigenvectors.T @ v @ self.axes) / self.diagonal
        low = self.mean / self.diagonal
        part = self.mean_weight * (scaled @ self.mean) / (1 + self.mean_weight * (low @ self.mean))
        return self.eigenvectors @ (scaled - part[:, None] * low) @ self.axes.T
