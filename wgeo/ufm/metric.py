"""The Gauss-Newton matrix of the reduced MUFM objective, inverted at a cost linear in d.

Linearising W H with the features eliminated, the curvature of J along V is

    lw V + mu A^-1 V (H H^T / N)  [centred; + mu A_b^-1 V m m^T for the mean m of H],

a sum of Kronecker products whose left factors share the eigenvectors of A. For the eigenvalue a_i
what remains is lw I + (mu / a_i) H H^T / N + ..., diagonal (S, in its own basis) plus rank 2K + 1:

    H H^T / N = S + C G + G^T C^T + C R C^T,     C = W^T A^-1,  G = T - W S,  R = E E^T / N.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Matrix = Float[np.ndarray, "K r"]


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
        *,
        shifted: Float[np.ndarray, "K K"],
        s: Float[np.ndarray, " r"],
        mu: float,
        weight_decay: float,
        thin: Float[np.ndarray, "r m"],
        middle: Float[np.ndarray, "m m"],
        of_mean: float,
    ) -> GaussNewton:
        """Prepare for W W^T + mu I (`shifted`) and H H^T / N = diag(s) + thin middle thin^T.

        The last column of `thin` is the mean of H. It meets A_b = A + of_mean I in the place of A;
        where of_mean is infinite (a free bias) it does not count.
        """
        a, turn = np.linalg.eigh(shifted)
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
