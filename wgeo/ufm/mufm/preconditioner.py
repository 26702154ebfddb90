"""The Gauss-Newton matrix of the reduced MUFM objective, inverted at a cost linear in d.

The notation is that of `ReducedMSE`. If W H is linearized with the features eliminated, the
curvature of J along V is

    lw V + mu A^-1 V (H H^T / N)  [centered; + mu A_b^-1 V m m^T for the mean m of H],

a sum of Kronecker products whose left factors have the eigenvectors of A. For the eigenvalue a_i
this is lw I + (mu / a_i) H H^T / N + ..., diagonal (S, in its eigenbasis) plus rank 2K + 1:

    H H^T / N = S + C G + G^T C^T + C R C^T,     C = W^T A^-1,  G = T - W S,  R = E E^T / N,

with E = Y - W X - b 1^T.

Because of the low rank, the inverses of K such matrices cost K (2K + 1)^3. If r is small compared
with the number of classes, it is cheaper to diagonalize all of them by the eigenvectors of H H^T /
N, which costs r^3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from .newton import Matrix

EIGH_COST = 0.5  # (cost of eigh / r^3) / (cost of K inverses / (K m^3))


def gauss_newton(
    *,
    shifted: Float[np.ndarray, "K K"],
    s: Float[np.ndarray, " r"],
    mu: float,
    weight_decay: float,
    thin: Float[np.ndarray, "r m"],
    middle: Float[np.ndarray, "m m"],
    bias_shift: float,
) -> LowRankInverse | EigenbasisInverse:
    """Return the inverse for W W^T + mu I (`shifted`) and H H^T / N = diag(s) + thin middle thin^T.

    The last column of `thin` is the mean m of H, for which A_b = A + bias_shift I replaces A.
    """
    a, eigenvectors = np.linalg.eigh(shifted)
    if EIGH_COST * len(s) ** 3 < len(a) * len(middle) ** 3:
        return EigenbasisInverse.of(a, eigenvectors, s, mu, weight_decay, thin, middle, bias_shift)
    return LowRankInverse.of(a, eigenvectors, s, mu, weight_decay, thin, middle, bias_shift)


@dataclass(frozen=True, eq=False)
class LowRankInverse:
    """The inverse of the Gauss-Newton matrix by its low rank; call it on V.

    For the eigenvalue a_i it is 1/D - (1/D) thin core_i thin^T (1/D), with D row i of `diagonal`.
    """

    eigenvectors: Float[np.ndarray, "K K"]  # of A, as columns
    diagonal: Matrix  # lw + mu s / a_i
    thin: Float[np.ndarray, "r m"]
    core: Float[np.ndarray, "K m m"]

    @classmethod
    def of(
        cls,
        a: Float[np.ndarray, " K"],
        eigenvectors: Float[np.ndarray, "K K"],
        s: Float[np.ndarray, " r"],
        mu: float,
        weight_decay: float,
        thin: Float[np.ndarray, "r m"],
        middle: Float[np.ndarray, "m m"],
        bias_shift: float,
    ) -> LowRankInverse:
        """See `gauss_newton`."""
        diagonal = weight_decay + mu * s / a[:, None]
        eye = np.eye(len(middle))
        core = np.empty((len(a), *middle.shape))
        for i, row in enumerate(diagonal):
            weight = middle * (mu / a[i])
            weight[-1, -1] = mu * middle[-1, -1] / (a[i] + bias_shift)
            gram = (thin.T / row) @ thin
            core[i] = weight @ np.linalg.inv(eye + gram @ weight)
        return cls(eigenvectors, diagonal, thin, (core + core.transpose(0, 2, 1)) / 2)

    def __call__(self, v: Matrix) -> Matrix:
        """Return the inverse applied to V."""
        scaled = (self.eigenvectors.T @ v) / self.diagonal
        low = np.matmul(self.core, (scaled @ self.thin)[:, :, None])[:, :, 0]
        return self.eigenvectors @ (scaled - (low @ self.thin.T) / self.diagonal)


@dataclass(frozen=True, eq=False)
class EigenbasisInverse:
    """The same inverse by the eigenvectors of H H^T / N; call it on V."""

    eigenvectors: Float[np.ndarray, "K K"]  # of A, as columns
    axes: Float[np.ndarray, "r r"]  # eigenvectors of the centered part of H H^T / N
    diagonal: Matrix  # lw + mu e_j / a_i, with e_j the eigenvalues of that part
    mean: Float[np.ndarray, " r"]  # of H, in these axes
    mean_weight: Float[np.ndarray, " K"]  # mu / (a_i + bias_shift)

    @classmethod
    def of(
        cls,
        a: Float[np.ndarray, " K"],
        eigenvectors: Float[np.ndarray, "K K"],
        s: Float[np.ndarray, " r"],
        mu: float,
        weight_decay: float,
        thin: Float[np.ndarray, "r m"],
        middle: Float[np.ndarray, "m m"],
        bias_shift: float,
    ) -> EigenbasisInverse:
        """See `gauss_newton`."""
        update = thin[:, :-1] @ middle[:-1, :-1] @ thin[:, :-1].T
        values, axes = np.linalg.eigh(np.diag(s) + (update + update.T) / 2)
        return cls(
            eigenvectors,
            axes,
            weight_decay + mu * np.maximum(values, 0) / a[:, None],
            np.sqrt(middle[-1, -1]) * (axes.T @ thin[:, -1]),
            mu / (a + bias_shift),
        )

    def __call__(self, v: Matrix) -> Matrix:
        """Return the inverse applied to V."""
        scaled = (self.eigenvectors.T @ v @ self.axes) / self.diagonal
        low = self.mean / self.diagonal
        part = self.mean_weight * (scaled @ self.mean) / (1 + self.mean_weight * (low @ self.mean))
        return self.eigenvectors @ (scaled - part[:, None] * low) @ self.axes.T
