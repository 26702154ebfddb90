"""MUFM with cross-entropy: features eliminated by a K-dimensional Newton solve a sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.special import log_softmax, softmax

from ..arrays.rows import Sliceable, row_chunks
from .alignment import Alignment, saddle_direction
from .reduced import Matrix, Statistics


@dataclass(frozen=True, eq=False)
class Likelihood:
    """J(W, b) = min over features of the MUFM objective, for cross-entropy.

    Lines stay straight, and H = X - W^T G / mu with g_i = softmax(z_i) - y_i, where the logits z_i
    solve z = W x_i + b - W W^T (softmax(z) - y_i) / mu. The bias is the last column of `w`.

    Attributes
    ----------
    x : ndarray, (n, r)
        Samples, rows; in the eigenbasis of their covariance, for the preconditioner to be good.
    offset : ndarray, (r,), optional
        What was taken off the samples, a free bias making up for it.
    """

    x: Float[np.ndarray, "n r"]
    labels: Int[np.ndarray, " n"]
    mu: float
    weight_decay: float
    bias_decay: float
    offset: Float[np.ndarray, " r"] | None = None

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
    ) -> Likelihood:
        """Put samples into the basis of their statistics; about their mean if the bias is free.

        A mean far from zero would make W and b nearly the same variable.
        """
        seen = np.concatenate([block @ stats.basis for _, (block,) in row_chunks(x)])
        if bias_decay > 0:
            return cls(seen, labels, mu, weight_decay, bias_decay)
        about = np.where(stats.s > 0, seen - stats.x_mean, 0.0)
        return cls(about, labels, mu, weight_decay, bias_decay, stats.x_mean)

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
        """(K, r), and a column for the bias."""
        return self.onehot.shape[1], self.x.shape[1] + self.has_bias

    def at(self, w: Matrix) -> LikelihoodPoint:
        """Return everything that is computed once at a point."""
        return LikelihoodPoint(self, w)

    def ridge(self) -> Matrix:
        """Regression onto centred one-hot labels, scaled to logits; the solver's start."""
        x, y = self.x - self.x.mean(0), self.onehot - self.onehot.mean(0)
        second = x.T @ x / len(x) + self.weight_decay * np.eye(x.shape[1])
        w = 4 * np.linalg.solve(second, x.T @ y / len(x)).T
        return np.pad(w, ((0, 0), (0, int(self.has_bias))))

    def padded(self) -> Likelihood:
        """The same problem with K feature dimensions more, zero in every sample."""
        wider = np.pad(self.x, ((0, 0), (0, self.onehot.shape[1])))
        return Likelihood(wider, self.labels, self.mu, self.weight_decay, self.bias_decay)

    def widen(self, w: Matrix) -> Float[np.ndarray, "K wider"]:
        """Fit a W of this problem into the padded one."""
        width = self.x.shape[1]
        zeros = np.zeros((len(w), self.onehot.shape[1]))
        return np.concatenate([w[:, :width], zeros, w[:, width:]], axis=1)


class LikelihoodPoint:
    """The objective and its gradient at one (W, b)."""

    def __init__(self, problem: Likelihood, w: Matrix) -> None:
        self.problem, self.w = problem, w
        width = problem.x.shape[1]
        self.weights = w[:, :width]
        self._bias = w[:, width] if problem.has_bias else np.zeros(len(w))

    @cached_property
    def pull(self) -> Float[np.ndarray, "n K"]:
        """g_i = softmax(z_i) - y_i at the solution of the inner problem."""
        return residuals(
            self.problem.x @ self.weights.T + self._bias,
            self.problem.onehot,
            self.weights @ self.weights.T / self.problem.mu,
        )

    @cached_property
    def moved(self) -> Float[np.ndarray, "n r"]:
        """H, rows are samples."""
        return self.problem.x - self.pull @ self.weights / self.problem.mu

    def value(self) -> float:
        """J(W, b)."""
        problem = self.problem
        logits = self.moved @ self.weights.T + self._bias
        loss = -float(np.mean(np.sum(problem.onehot * log_softmax(logits, axis=1), axis=1)))
        far = problem.mu * float(np.sum((self.moved - problem.x) ** 2)) / len(problem.x)
        decay = problem.weight_decay * float(np.sum(self.weights**2))
        held = problem.bias_decay * float(np.sum(self._bias**2)) if problem.has_bias else 0.0
        return loss + (far + decay + held) / 2

    def gradient(self) -> Matrix:
        """G H^T + lw W, and G 1 + lb b (the envelope theorem: features are optimal)."""
        problem = self.problem
        found = self.pull.T @ self.moved / len(problem.x) + problem.weight_decay * self.weights
        if not problem.has_bias:
            return found
        of_bias = self.pull.mean(0) + problem.bias_decay * self._bias
        return np.column_stack([found, of_bias])

    @cached_property
    def curvature(self) -> Float[np.ndarray, "n K K"]:
        """(P^-1 + M)^-1 of every sample: of its loss in its logits, the features following.

        P = diag(p) - p p^T is the softmax's, M = W W^T / mu.
        """
        p = self.pull + self.problem.onehot
        eye = np.eye(len(self.w))
        softmax_curve = p[:, :, None] * eye - p[:, :, None] * p[:, None, :]
        spread = self.weights @ self.weights.T / self.problem.mu
        return np.linalg.solve(eye + softmax_curve @ spread, softmax_curve)

    def hessian_product(self, v: Matrix) -> Matrix:
        """The Hessian of J along V (and the bias's column)."""
        problem, w = self.problem, self.weights
        along, lift = v[:, : w.shape[1]], v[:, w.shape[1] :]
        turn = (along @ w.T + w @ along.T) / problem.mu
        logits = problem.x @ along.T - self.pull @ turn
        if problem.has_bias:
            logits = logits + lift[:, 0]
        pull = np.einsum("nij,nj->ni", self.curvature, logits)
        moved = -(pull @ w + self.pull @ along) / problem.mu
        found = (pull.T @ self.moved + self.pull.T @ moved) / len(problem.x)
        found = found + problem.weight_decay * along
        if not problem.has_bias:
            return found
        return np.column_stack([found, pull.mean(0) + problem.bias_decay * lift[:, 0]])

    def preconditioner(self) -> Callable[[Matrix], Matrix]:
        """The mean curvature in the logits, times the features' second moments, inverted."""
        problem = self.problem
        values, turn = np.linalg.eigh(self.curvature.mean(0))
        values = np.maximum(values, 1e-8 * values[-1])[:, None]  # logits may all rise alike
        scale = values * (self.moved**2).mean(0) + problem.weight_decay
        if problem.has_bias:
            scale = np.column_stack([scale, values + problem.bias_decay])
        scale[scale == 0] = 1  # no sample's loss has any curvature left: of a free bias alone
        return lambda v: turn @ ((turn.T @ v) / scale)

    def bias(self) -> Float[np.ndarray, " K"]:
        """b; zero without one."""
        offset = self.problem.offset
        return self._bias if offset is None else self._bias - self.weights @ offset

    def alignment(self) -> Alignment:
        """H X^T / N (centred if b is free), positive semi-definite at a global minimum."""
        x, g = self.problem.x, self.pull
        s, mean = x.var(0), x.mean(0)
        if self.problem.bias_decay == 0:
            x, mean = x - mean, np.zeros(x.shape[1])
        right = -g.T @ x / (self.problem.mu * len(x))
        return Alignment.of(s, mean, self.weights, self.weights.T, right)

    def unused(self) -> Matrix | None:
        """A way out of a strict saddle that leaves a direction without data unused; or None."""
        still = (self.problem.x == 0).all(axis=0)
        inner = self.pull.T @ self.pull
        found = saddle_direction(self.weights, still, inner, self.certificate())
        if found is None or not self.problem.has_bias:
            return found
        return np.pad(found, ((0, 0), (0, 1)))

    def certificate(self) -> float:
        """||G||_2 / sqrt(lw mu / N): at most 1 proves a global minimum."""
        problem = self.problem
        size = float(np.linalg.norm(self.pull, 2)) / np.sqrt(len(problem.x))
        return size / float(np.sqrt(problem.weight_decay * problem.mu))

    def features(
        self,
        x: Float[np.ndarray, "n d"],
        w: Float[np.ndarray, "K d"],
        onehot: Float[np.ndarray, "n K"],
        rows: Any = slice(None),
    ) -> Float[np.ndarray, "n d"]:
        """H_L in the coordinates of `x`, the samples `rows`; the labels are in the residuals."""
        return x - self.pull[rows] @ w / self.problem.mu


def residuals(
    a: Float[np.ndarray, "n K"], onehot: Float[np.ndarray, "n K"], m: Float[np.ndarray, "K K"]
) -> Float[np.ndarray, "n K"]:
    """Return g with g = softmax(a - M g) - y, row by row.

    g minimises the convex CE(a - M g, y) + g^T M g / 2; Newton steps, halved until they descend.
    """

    def merit(g: np.ndarray, z: np.ndarray) -> np.ndarray:
        return -np.sum(onehot * log_softmax(z, axis=1), axis=1) + np.sum(g * (g @ m), axis=1) / 2

    g = softmax(a, axis=1) - onehot
    z = a - g @ m
    g, z = (np.where((merit(np.zeros_like(g), a) < merit(g, z))[:, None], 0.0, g), z)
    z = a - g @ m
    value = merit(g, z)
    eye = np.eye(len(m))
    worst = np.inf
    for _ in range(100):
        p = softmax(z, axis=1)
        miss = p - onehot - g
        before, worst = worst, float(np.abs(miss).max())
        if worst < 1e-13 or before / 2 < worst < 1e-8:  # near the end: nothing but rounding
            break
        curve = p[:, :, None] * eye - p[:, :, None] * p[:, None, :]
        step = np.linalg.solve(eye + curve @ m, miss[:, :, None])[:, :, 0]
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
