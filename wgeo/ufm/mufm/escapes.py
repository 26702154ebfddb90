"""Escapes from critical points that are not minima, at a cost linear in the width.

At a global minimum of MUFM the matrix H X^T is positive semi-definite. If v^T (H X^T / N) v < 0,
the reflections W (I - 2 v v^T) and (I - 2 v v^T) H lower the objective by 2 mu |v^T (H X^T / N) v|.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

NEGLIGIBLE = 1e-9  # eigenvalues this small, relative to the matrix, do not count as negative


@dataclass(frozen=True, eq=False)
class CrossMoment:
    """H X^T / N at a critical point: diag(s) + m m^T + V Z V^T.

    The first two terms are X X^T / N; (H - X) X^T is symmetric, with the row space of W.
    """

    s: Float[np.ndarray, " r"]  # variances of the columns of X, in the eigenbasis of covariance
    mean: Float[np.ndarray, " r"]  # m
    axes: Float[np.ndarray, "r k"]  # V, an orthonormal basis of W's row space
    update: Float[np.ndarray, "k k"]  # Z

    @classmethod
    def of(
        cls,
        s: Float[np.ndarray, " r"],
        mean: Float[np.ndarray, " r"],
        w: Float[np.ndarray, "K r"],
        left: Float[np.ndarray, "r m"],
        right: Float[np.ndarray, "m r"],
    ) -> CrossMoment:
        """Form Z from W and (H - X) X^T / N = left @ right."""
        axes = np.linalg.svd(w, full_matrices=False)[2].T
        inner = (axes.T @ left) @ (right @ axes)
        return cls(s, mean, axes, (inner + inner.T) / 2)

    def most_negative(self) -> tuple[float, Float[np.ndarray, " r"]] | None:
        """Return the most negative eigenvalue and its eigenvector; None if it is negligible.

        theta < 0 is below all eigenvalues iff Z + (V^T M(theta)^-1 V)^-1 is positive definite,
        M(theta) = diag(s) + m m^T - theta I: a k x k problem, monotone in theta.
        """
        largest = float(self.s.max(initial=0.0) + self.mean @ self.mean)
        scale = max(largest, float(np.linalg.norm(self.update, 2)))
        if scale == 0:
            return None
        low, high = -2 * scale, -NEGLIGIBLE * scale
        if self._secular(high)[0] >= 0:
            return None
        for _ in range(40):
            middle = -np.sqrt(low * high)
            low, high = (low, middle) if self._secular(middle)[0] < 0 else (middle, high)
        _, kernel, m_inverse_v, gram = self._secular(high)
        axis = m_inverse_v @ np.linalg.solve(gram, kernel)
        return high, axis / np.linalg.norm(axis)

    def _secular(self, theta: float) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
        """Return the least eigenpair of Z + (V^T M^-1 V)^-1, and M^-1 V and V^T M^-1 V."""
        inverse = 1 / (self.s - theta)
        m_inverse_v = inverse[:, None] * self.axes
        scaled_mean = inverse * self.mean
        m_inverse_v -= np.outer(
            scaled_mean, (self.mean @ m_inverse_v) / (1 + self.mean @ scaled_mean)
        )
        gram = self.axes.T @ m_inverse_v
        values, vectors = np.linalg.eigh(self.update + np.linalg.inv(gram))
        return float(values[0]), vectors[:, 0], m_inverse_v, gram


def saddle_direction(
    w: Float[np.ndarray, "K r"],
    zero: Bool[np.ndarray, " r"],
    inner: Float[np.ndarray, "K K"],
    certificate: float,
) -> Float[np.ndarray, "K r"] | None:
    """Return u a^T, a direction of negative curvature at a critical point; None if none is known.

    If W a = 0 and every sample is zero along a, the curvature along u a^T is lw - mu u^T Q u, where
    Q is `inner`. It is smallest for the top eigenvector u of Q, and negative iff the certificate
    exceeds 1 (as in Zhu et al. 2021, arXiv 2105.02375, for free features). `zero` marks the
    coordinates in which every sample is zero.
    """
    if not zero.any() or certificate <= 1 + 1e-7:
        return None
    _, scales, rows = np.linalg.svd(w[:, zero])
    if int((scales > 1e-6 * np.linalg.norm(w)).sum()) == int(zero.sum()):
        return None
    axis = np.zeros(w.shape[1])
    axis[zero] = rows[-1]
    return np.outer(np.linalg.eigh((inner + inner.T) / 2)[1][:, -1], axis)
