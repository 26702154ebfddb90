"""Continuous ranks: effective rank, stable rank, participation ratio."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt64

from ..runtime import processes

SPECTRUM_SIZE = 512
"""A spectrum is exact up to this many samples or features; with more of both, it is computed from
this many samples."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of the centered features A = [h_i - g].

    Values below sqrt(max(rows, d) eps) times the largest are rounding errors and are set to 0.
    """

    values: Float[np.ndarray, " r"]  # ascending
    rows: int  # number of samples from which they were computed
    exact: bool  # whether these are all samples

    @classmethod
    def of_gram(
        cls, gram: Float[torch.Tensor, "r r"], *, width: int, rows: int, samples: int
    ) -> Spectrum:
        """Compute the spectrum from the Gram matrix A A^T or A^T A of `rows` of all `samples`."""
        squares = torch.linalg.eigvalsh(gram).clamp_min(0).numpy()
        floor = max(rows, width) * np.finfo(np.float64).eps * squares.max()
        values = np.sqrt(np.where(squares > floor, squares, 0.0))
        return cls(values, rows, rows == samples)

    @property
    def vanishes(self) -> bool:
        """Whether all samples coincide, so that no rank is defined."""
        return not self.values.any()

    def ranks(self) -> dict[str, float]:
        """Return three continuous ranks, each at least 1 and at most the rank of A.

        effective_rank: exp of the entropy of s_j / sum s (Roy and Vetterli 2007, definition 1).
        stable_rank: ||A||_F^2 / ||A||_2^2 (Rudelson and Vershynin 2007).
        participation_ratio: (sum s_j^2)^2 / sum s_j^4, the covariance's effective dimension.
        """
        s = self.values
        p = s[s > 0]
        p = p / p.sum()
        energy = (s / s.max()) ** 2  # relative, so that the squares of energies do not overflow
        return {
            "effective_rank": float(np.exp(-(p @ np.log(p)))),
            "stable_rank": float(s @ s / s.max() ** 2),
            "participation_ratio": float(energy.sum() ** 2 / (energy @ energy)),
        }


class RowSample:
    """A sample of rows that depends only on their values, not on batches or their order.

    Each row gets a key, a multilinear hash of its float64 bits with fixed random multipliers. The
    rows with the `size` smallest keys are the sample ("bottom-k", Cohen and Kaplan 2007). It is
    uniform over distinct rows.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size = size
        self._seed = seed
        self._keys = np.empty(0, dtype=np.uint64)
        self._rows: torch.Tensor | None = None
        self._multipliers: torch.Tensor | None = None

    @property
    def rows(self) -> Float[torch.Tensor, "m d"]:
        """The sampled rows, in no particular order."""
        assert self._rows is not None
        return self._rows[: len(self._keys)]

    def __len__(self) -> int:
        return len(self._keys)

    def update(self, block: Float[torch.Tensor, "b d"]) -> None:
        """Offer rows to the sample."""
        keys = self._hash(block)
        if self._rows is None:
            self._rows = torch.empty((self.size, block.shape[1]), dtype=block.dtype)
        self._rows = self._rows.to(torch.promote_types(self._rows.dtype, block.dtype))
        size = len(self._keys)
        all_keys = np.concatenate([self._keys, keys])
        indices = np.arange(len(all_keys))
        if len(all_keys) > self.size:
            indices = np.argpartition(all_keys, self.size - 1)[: self.size]
        old, new = indices[indices < size], indices[indices >= size] - size
        free = np.setdiff1d(np.arange(len(indices)), old)
        new_rows = block[torch.from_numpy(new).to(block.device)]
        self._rows[torch.from_numpy(free)] = new_rows.to("cpu", self._rows.dtype)
        new_keys = np.empty(len(indices), dtype=np.uint64)
        new_keys[old], new_keys[free] = self._keys[old], keys[new]
        self._keys = new_keys

    def all_reduce(self) -> RowSample:
        """Return the sample of the rows of all processes."""
        if processes.world_size() == 1:
            return self
        whole = RowSample(self.size, self._seed)
        for part in processes.all_gather(self):
            if len(part):
                whole.update(part.rows)
        return whole

    def _hash(self, block: Float[torch.Tensor, "b d"]) -> UInt64[np.ndarray, " b"]:
        if self._multipliers is None:
            rng = np.random.default_rng(self._seed)
            odd = rng.integers(-(2**63), 2**63 - 1, block.shape[1] + 1, dtype=np.int64) | 1
            self._multipliers = torch.from_numpy(odd).to(block.device)
        zero = torch.zeros(1, dtype=torch.float64, device=block.device)
        bits = (block + zero).view(torch.int64)  # in float64; -0.0 becomes 0.0
        # Products propagate bits only upwards, but sign and exponent are the upper bits.
        bits ^= bits >> 32
        bits *= self._multipliers[:-1]
        key = bits.sum(1) + self._multipliers[-1]
        return _mix(key.cpu().numpy().view(np.uint64))


def _mix(key: UInt64[np.ndarray, " b"]) -> UInt64[np.ndarray, " b"]:
    """Make every bit depend on every other, by the finalizer of splitmix64 (Steele et al. 2014)."""
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))
