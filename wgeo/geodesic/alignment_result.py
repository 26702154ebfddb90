"""Results of residual alignment: per block, per pair of blocks, and per segment of blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..results import Result
from ..text import counted, first_names
from .result import Interval


@dataclass(frozen=True, repr=False)
class BlockJacobian(Result):
    """Properties of a block's residual Jacobian J: means over points, if not stated otherwise.

    Attributes
    ----------
    name : str
    end : str or None
        The activation after the sum, if there is one. Its derivative is a factor of J, except for
        ``jacobian="branch"``.
    dimension : int
        d, the dimension of the space in which J acts.
    singular_values : tuple of float
        The K largest, s_1 >= ... >= s_K, with K as in `Alignment.vectors`; 0 beyond the rank.
    overlap : float or None
        ``||U^T V||_F^2 / K`` of the block's left and right singular vectors, in [0, 1]; K is
        replaced by the rank of J if that is lower. The overlap of random vectors is K/d on average.
        It is 1 for a symmetric J and for an antisymmetric J; `sign` tells these two apart.
    sign : float or None
        mean_k <u_k, v_k>, in [-1, 1]: 1 if J expands along its singular vectors, -1 if it
        contracts, 0 if it is antisymmetric.
    share : float or None
        sum_{k <= K} s_k^2 / ||J||_F^2, in [0, 1]; 1 if the rank is at most K.
    participation : float or None
        ||J||_F^4 / ||J^T J||_F^2, an effective rank, in [1, d].
    asymmetry : float or None
        Squared norm of the antisymmetric part of J divided by that of its symmetric part, in [0,
        inf): 0 for a gradient, about 1 for a matrix with independent entries; None for an
        antisymmetric J.
    along : float or None
        ||U^T e||^2, in [0, 1], with e the direction of the sample's displacement: the fraction of
        the squared displacement in the span of U.
    path_share : float
        Total length of the samples' steps in this block, divided by the total length of their
        paths through the consecutive blocks of the same space; in [0, 1].
    residual : float
        Largest relative error bound ||J^T u_k - s_k v_k|| / s_K, over k and over points.
    gap : float
        1 - s_{K+1} / s_K, in [0, 1]. If it is 0, the subspaces U and V are arbitrary, and so are
        overlaps.

    Examples
    --------
    >>> import torch
    >>> import wgeo
    >>> size = {"in_channels": 1, "image_size": 2, "width": 6, "depth": 2}
    >>> net = wgeo.models.build("resmlp", num_classes=2, activation="tanh", **size)
    >>> images = torch.randn(8, 1, 2, 2), torch.arange(8) % 2
    >>> block = wgeo.alignment(net, images, vectors=2, points=2).blocks[0]
    >>> block.name, block.dimension, len(block.singular_values), block.end
    ('blocks.0', 6, 2, None)
    """

    name: str
    end: str | None
    dimension: int
    singular_values: tuple[float, ...]
    overlap: float | None
    sign: float | None
    share: float | None
    participation: float | None
    asymmetry: float | None
    along: float | None
    path_share: float
    residual: float
    gap: float


@dataclass(frozen=True, repr=False)
class PairAlignment(Result):
    """Two blocks i (`source`) and j (`target`) compared, as a mean over points.

    Attributes
    ----------
    source, target : str
    overlap_uv, overlap_uu, overlap_vv : float or None
        ||U_i^T V_j||_F^2 / K, ||U_i^T U_j||_F^2 / K and ||V_i^T V_j||_F^2 / K: overlaps of two
        subspaces, in [0, 1]. K is replaced by the lower rank of J_i and J_j if that is below K. If
        singular values are equal, single vectors are arbitrary, but the subspace they span is not.
    diagonal : float or None
        ``mean_k |<u_k^i, v_k^j>|``, in [0, 1], of vectors with the same index. It is arbitrary if
        singular values are equal, and small for aligned blocks whose vectors differ in order.
    coupling, coupling_signed : float or None
        || M - S_i ||_F / ||S_i||_F with M = U_j^T J_i V_j and S_i = diag(s_k^i), in [0, inf). The
        first uses the absolute values of M, as in the code of Aubry et al. (2025); the second uses
        M itself, as in their formula. They are 0 if J_j has the singular vectors of J_i (for the
        second, with the same signs). None unless the blocks are neighbors.

    Examples
    --------
    All 6 directions of a space of 6 dimensions overlap completely:

    >>> import torch
    >>> import wgeo
    >>> size = {"in_channels": 1, "image_size": 2, "width": 6, "depth": 2}
    >>> net = wgeo.models.build("resmlp", num_classes=2, activation="tanh", **size)
    >>> images = torch.randn(8, 1, 2, 2), torch.arange(8) % 2
    >>> pair = wgeo.alignment(net, images, vectors=6, points=2).pairs[0]
    >>> pair.source, pair.target, round(pair.overlap_uv, 3)
    ('blocks.0', 'blocks.1', 1.0)
    """

    source: str
    target: str
    overlap_uv: float | None
    overlap_uu: float | None
    overlap_vv: float | None
    diagonal: float | None
    coupling: float | None
    coupling_signed: float | None


@dataclass(frozen=True, repr=False)
class SegmentAlignment(Result):
    """Consecutive blocks in one space: means over the pairs of these blocks, and over points.

    Attributes
    ----------
    blocks : tuple of str
    dimension, vectors : int
        d and K.
    chance : float
        K/d, the expected overlap of random subspaces. If the rank of a Jacobian is below K, then K
        is replaced by the larger rank in a pair of blocks (at most K), averaged over pairs and
        points.
    overlap_uv, overlap_uu, overlap_vv : float or None
        Means over all ordered pairs of different blocks; see `PairAlignment`.
    coupling, coupling_signed : float or None
        Means over all ordered pairs of neighbors.
    chance_coupling : float
        (1 + K^2/d^2 - 2 sqrt(2/pi) sqrt(K)/d)^(1/2): the coupling of random blocks with equal
        singular values, with the same K as in `chance`. It is less than 1 if K^(3/2) < 1.59 d.
    slopes : tuple of (float or None), or None
        For k = 1, ..., K the least-squares slope of dt_l / s_k(l) over t_l, where block l moves the
        sample from the fraction t_l of its path's length to t_l + dt_l. It is 1 for every k along a
        geodesic that expands, and -1 along one that contracts. None for fewer than three blocks.
        (RA4 of Li and Papyan 2023 states that singular values decrease like 1/depth. Randomly
        initialized networks also have a high correlation of dt_l / s_k and t_l, but a low slope.)
    intervals : mapping of str to (low, high)
        95 % intervals over points; ``slope`` is the interval of the first slope.

    Examples
    --------
    >>> import torch
    >>> import wgeo
    >>> size = {"in_channels": 1, "image_size": 2, "width": 6, "depth": 2}
    >>> net = wgeo.models.build("resmlp", num_classes=2, activation="tanh", **size)
    >>> images = torch.randn(8, 1, 2, 2), torch.arange(8) % 2
    >>> segment = wgeo.alignment(net, images, vectors=2, points=2).segments[0]
    >>> segment.blocks, round(segment.chance, 3)
    (('blocks.0', 'blocks.1'), 0.333)
    """

    blocks: tuple[str, ...]
    dimension: int
    vectors: int
    chance: float
    overlap_uv: float | None
    overlap_uu: float | None
    overlap_vv: float | None
    coupling: float | None
    coupling_signed: float | None
    chance_coupling: float
    slopes: tuple[float | None, ...] | None
    intervals: Mapping[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class Alignment(Result):
    """Residual alignment and block coupling; see `wgeo.alignment`.

    ``to_pandas()`` has a row per ordered pair of blocks.

    Attributes
    ----------
    blocks : tuple of BlockJacobian
    pairs : tuple of PairAlignment
        Every ordered pair of different blocks in one space.
    segments : tuple of SegmentAlignment
        Every sequence of at least two consecutive blocks in one space.
    jacobian : str
        The argument `jacobian`.
    vectors, points : int
        Number of singular vectors K, and of points.
    left_out : mapping of str to str
        Names of the blocks that were not compared, and the reasons.
    reset_statistics : bool
        Whether batch normalization still has its initial statistics (mean 0, variance 1). If so,
        the network does not compute the function from which training starts. First estimate the
        statistics with ``wgeo.models.fresh.reestimate_statistics``.
    seconds : float

    Examples
    --------
    >>> import torch
    >>> import wgeo
    >>> size = {"in_channels": 1, "image_size": 2, "width": 6, "depth": 2}
    >>> net = wgeo.models.build("resmlp", num_classes=2, activation="tanh", **size)
    >>> images = torch.randn(8, 1, 2, 2), torch.arange(8) % 2
    >>> result = wgeo.alignment(net, images, vectors=2, points=2)
    >>> len(result.blocks), len(result.pairs), len(result.segments)
    (2, 2, 1)
    """

    blocks: tuple[BlockJacobian, ...]
    pairs: tuple[PairAlignment, ...]
    segments: tuple[SegmentAlignment, ...]
    jacobian: str
    vectors: int
    points: int
    left_out: Mapping[str, str] = field(default_factory=dict)
    reset_statistics: bool = False
    seconds: float = 0.0

    def _description(self) -> str:
        out = f"; without {first_names(list(self.left_out), 3)}" if self.left_out else ""
        reset = "; batch normalization has its initial statistics" if self.reset_statistics else ""
        return (
            f"{counted(len(self.blocks), 'block')}, {self.vectors} singular vectors at "
            f"{counted(self.points, 'point')}{out}{reset}"
        )

    def _rows(self) -> list[dict[str, Any]]:
        return [
            {
                "from": segment.blocks[0],
                "to": segment.blocks[-1],
                "overlap_uv": segment.overlap_uv,
                "overlap_uu": segment.overlap_uu,
                "chance": segment.chance,
                "coupling": segment.coupling,
                "slope": segment.slopes[0] if segment.slopes else None,
            }
            for segment in self.segments
        ]

    def _record(self) -> dict[str, Any]:
        return {"alignment": self.to_dict()}

    def _table(self) -> list[dict[str, Any]]:
        return [pair.to_dict() for pair in self.pairs]
