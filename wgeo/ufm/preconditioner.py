"""The Gauss-Newton matrix of the reduced MUFM objective, inverted at a cost linear in d.

Linearising W H with the features eliminated, the curvature of J along V is

    lw V + mu A^-1 V (H H^T / N)  [centred; + mu A_b^-1 V m m^T for the mean m of H],

a sum of Kronecker products whose left factors share the eigenvectors of A. For the eigenvalue a_i
what remains is lw I + (mu / a_i) H H^T / N + ..., diagonal (S, in its own basis) plus rank 2K + 1:

    H H^T / N = S + C G + G^T C^T + C R C^T,     C = W^T A^-1,  G = T - W S,  R = E E^T / N.

Of K such matrices the inverses cost K (2K + 1)^3 by their low rank. Where the samples have few
directions for so many classes, the eigenvectors of H H^T / N diagonalise all of them at r^3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Matrix = Float[np.ndarray, "K r"]
EIGEN = 0.5  # of r^3 and K m^3, the first counts half: BLAS makes up for more arithmetic


def gauss_newton(
    *,
    shifted: Float[np.ndarray, "K K"],
    s: Float[np.ndarray, " r"],
    mu: float,
    weight_decay: float,
    thin: Float[np.ndarray, "r m"],
    middle: Float[np.ndarray, "m m"],
    of_mean: float,
) -> GaussNewton | FewDirections:
    """Prepare for W W^T + mu I (`shifted`) and H H^T / N = diag(s) + thin middle thin^T.

    The last column of `thin` is the mean of H. It meets A_b = A + of_mean I in the place of A;
    where of_mean is infinite (a free bias) it does not count.
    """
    a, turn = np.linalg.eigh(shifted)
    if EIGEN * len(s) ** 3 < len(a) * len(middle) ** 3:
        return FewDirections.of(a, turn, s, mu, weight_decay, thin, middle, of_mean)
    return GaussNewton.of(a, turn, s, mu, weight_decay, thin, middle, of_mean)


@dataclass(frozen=True, eq=False)
class GaussNewton:
    """An inverse of the Gauss-Newton matrix; call it on V.

    Attributes
    ----------
    turn : ndarray, (K, K)
        Eigenvectors of A, columns.
    diagonal : ndarray, (K, r)
        lw + mu s / a_i.
    thin : ndarray, (r, m)
        The columns that make up the part of low rank.
    core : ndarray, (K, m, m)
        What that part subtracts from the diagonal's inverse.
    """

    turn: Float[np.ndarray, "K K"]
    diagonal: Matrix
    thin: Float[np.ndarray, "r m"]
    core: Float[np.ndarray, "K m m"]

    @classmethod
    def of(
        cls,
        a: Float[np.ndarray, " K"],
        turn: Float[np.ndarray, "K K"],
        s: Float[np.ndarray, " r"],
        mu: float,
        weight_decay: float,
        thin: Float[np.ndarray, "r m"],
        middle: Float[np.ndarray, "m m"],
        of_mean: float,
    ) -> GaussNewton:
        """By the low rank; see `gauss_newton`."""
        diagonal = weight_decay + mu * s / a[:, None]
        eye = np.eye(len(middle))
        core = np.empty((len(a), *middle.shape))
        for i, row in enumerate(diagonal):
            weight = middle * (mu / a[i])
            weight[-1, -1] = mu * middle[-1, -1] / (a[i] + of_mean)
            gram = (thin.T / row) @ thin
            core[i] = weight @ np.linalg.inv(eye + gram @ weight)
        return cls(turn, diagonal, thin, (core + core.transpose(0, 2, 1)) / 2)

    def __call__(self, v: Matrix) -> Matrix:
        """Return the matrix's inverse applied to V."""
        found = (self.turn.T @ v) / self.diagonal
        low = np.matmul(self.core, (found @ self.thin)[:, :, None])[:, :, 0]
        return self.turn @ (found - (low @ self.thin.T) / self.diagonal)


@dataclass(frozen=True, eq=False)
class FewDirections:
    """The same inverse by the eigenvectors of H H^T / N; call it on V.

    Attributes
    ----------
    turn : ndarray, (K, K)
        Eigenvectors of A, columns.
    axes : ndarray, (r, r)
        Eigenvectors of H H^T / N, its mean apart.
    diagonal : ndarray, (K, r)
        lw + mu times its eigenvalues / a_i.
    mean : ndarray, (r,)
        The mean of H in these axes.
    share : ndarray, (K,)
        mu / (a_i + of_mean).
    """

    turn: Float[np.ndarray, "K K"]
    axes: Float[np.ndarray, "r r"]
    diagonal: Matrix
    mean: Float[np.ndarray, " r"]
    share: Float[np.ndarray, " K"]

    @classmethod
    def of(
        cls,
        a: Float[np.ndarray, " K"],
        turn: Float[np.ndarray, "K K"],
        s: Float[np.ndarray, " r"],
        mu: float,
        weight_decay: float,
        thin: Float[np.ndarray, "r m"],
        middle: Float[np.ndarray, "m m"],
        of_mean: float,
    ) -> FewDirections:
        """By the eigenvectors; see `gauss_newton`."""
        spread = thin[:, :-1] @ middle[:-1, :-1] @ thin[:, :-1].T
        values, axes = np.linalg.eigh(np.diag(s) + (spread + spread.T) / 2)
        return cls(
            turn,
            axes,
            weight_decay + mu * np.maximum(values, 0) / a[:, None],
            np.sqrt(middle[-1, -1]) * (axes.T @ thin[:, -1]),
            mu / (a + of_mean),
        )

    def __call__(self, v: Matrix) -> Matrix:
        """Return the matrix's inverse applied to V."""
        found = (self.turn.T @ v @ self.axes) / self.diagonal
        low = self.mean / self.diagonal
        part = self.share * (found @ self.mean) / (1 + self.share * (low @ self.mean))
        return self.turn @ (found - part[:, None] * low) @ self.axes.T
