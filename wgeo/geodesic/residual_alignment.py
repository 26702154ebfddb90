"""Do the blocks of a network compute the same map to first order? Compare their Jacobians.

Along a Wasserstein geodesic x_t = x_0 + t g(x_0) of constant speed, H = Dg is symmetric, and the
block from t to t + dt has the residual Jacobian dt H (I + t H)^-1. All blocks then share the
eigenvectors of H. For an eigenvalue lambda > 0, the block's singular value s satisfies
dt / s = 1 / lambda + t.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from ..arrays.checks import as_count
from ..arrays.rows import spaced_rows
from ..checkpoints import Network
from ..data.loaders import as_images
from ..errors import ArgumentError
from ..features.layout import Layout, find_layouts
from ..features.network import inputs, module_of, sample
from ..features.residual_blocks import find_blocks
from ..runtime.progress import track
from ..trajectory.trajectory import features_key
from .alignment_result import Alignment, BlockJacobian, PairAlignment, SegmentAlignment
from .branches import Coordinates, ResidualJacobian, Visit, branch_of, runs_of, visits
from .jacobian import (
    Streams,
    Triplets,
    differentiable_everywhere,
    energies,
    seeded_streams,
    top_triplets,
)
from .resampling import mean_interval

_VECTORS = 10
_TOLERANCE = 1e-2  # relative to s_K; overlaps then have errors of about 0.01
_BASIS_BYTES = 2**28  # bytes of Lanczos vectors in memory
_OF_BLOCKS = ("overlap", "sign", "share", "participation", "asymmetry", "along")
_OVERLAPS = ("overlap_uv", "overlap_uu", "overlap_vv")
_COUPLINGS = ("coupling", "coupling_signed")
Values = dict[str, Float[np.ndarray, "n ..."]]
Pair = tuple[int, int]


def alignment(
    net: Network | nn.Module,
    images: Any,
    *,
    layers: Sequence[str] | None = None,
    vectors: int | None = None,
    points: int = 16,
    steps: int | None = None,
    tolerance: float = _TOLERANCE,
    probes: int = 8,
    jacobian: str = "residual",
    seed: int = 0,
) -> Alignment:
    """Measure whether the blocks of a network compute the same map to first order.

    The residual Jacobian of a block a(x + F(x)), with branch F and last activation a (which may be
    the identity), leaves out the shortcut:

        J = a'(x + F(x)) F'(x).

    U, S and V are the K largest singular triplets of J. Blocks i and j are compared by two
    measures:

        overlap_uv(i, j) = ||U_i^T V_j||_F^2 / K
        coupling(i, j) = || abs(U_j^T J_i V_j) - S_i ||_F / ||S_i||_F

    A third measure is the slope of dt / s_k over t, where s_k is a block's k-th singular value, dt
    the fraction of the path's length that the block covers, and t that of all blocks before it. The
    slope is 1 along a geodesic that expands, and -1 along one that contracts.

    The coupling is that of Aubry, Meng, Sugolov and Papyan (2025, arXiv:2407.07810). The overlap
    and the slope are wgeo's summaries of the matrices that Li and Papyan (2023, arXiv:2401.09018)
    plot for their claims RA2 and RA4. All arithmetic is in float64.

    Parameters
    ----------
    net : Network or nn.Module
    images : Images, (x, labels), Dataset or DataLoader
    layers : sequence of str, optional
        Modules to use as blocks instead of detected ones.
    vectors : int, optional
        K; by default 10, or the number of classes of `images` if that is less.
    points : int
        Number of images at which J is computed, evenly spaced in `images`; all if there are fewer.
    steps : int, optional
        Maximum number of Lanczos steps per point and block, more than K; by default 4 K + 20. Each
        takes two products with J or J^T.
    tolerance : float
        The steps of a point stop when its `BlockJacobian.residual` is at most this.
    probes : int
        Number of random sign vectors that estimate a block's share, participation and asymmetry.
        Each takes three products. With at least as many probes as dimensions, the values are exact.
    jacobian : str
        ``residual``: J as above, of all features. ``branch``: F'(x) alone. ``pooled``: J between
        features that are constant over space (channels x channels), as for global average pooling.
        ``token`` or ``token:INDEX``: J of one token (d x d), by default the last, as for the
        transformers of Aubry et al.
    seed : int
        Random seed; every block and every point has a different random start.

    Returns
    -------
    Alignment
        ``left_out`` names the blocks that were not compared: those that change the feature space,
        run several times, or do not map a tensor of samples to one tensor; and blocks that are sums
        in a forward method, not modules.

    Raises
    ------
    ArgumentError
        `points`, `probes`, `vectors` or `steps` is not a whole number >= 1; `seed` is not a whole
        number >= 0; `steps` is at most K; `tolerance` is negative; `jacobian` is unknown or does
        not fit the features; the samples of a block influence each other; or a block cannot run in
        float64.
    FeatureError
        No block was found, or a module of `layers` does not exist or did not run.

    Examples
    --------
    Three blocks x + W x with the same symmetric W of rank 2 are aligned:

    >>> import torch
    >>> import wgeo
    >>> class Block(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.linear = torch.nn.Linear(6, 6, bias=False)
    ...         self.linear.weight.data = torch.diag(torch.tensor([0.5, 0.25, 0, 0, 0, 0]))
    ...
    ...     def forward(self, x):
    ...         return x + self.linear(x)
    >>> net = torch.nn.Sequential(Block(), Block(), Block(), torch.nn.Linear(6, 2))
    >>> x, labels = torch.randn(20, 6), torch.arange(20) % 2
    >>> result = wgeo.alignment(net, (x, labels), points=4)
    >>> [round(result.segments[0].overlap_uv, 3), round(result.blocks[0].sign, 3)]
    [1.0, 1.0]
    """
    start_time = time.perf_counter()
    counts = {"points": points, "probes": probes, "vectors": vectors, "steps": steps}
    for name, value in counts.items():
        if value is not None:
            as_count(value, name, 1)
    seed = as_count(seed, "seed")
    kind, index = _parse(jacobian)
    module, images = module_of(net), as_images(images)
    count = vectors or min(_VECTORS, len(np.unique(images.y)))
    steps = 4 * count + 20 if steps is None else steps
    if steps <= count or not tolerance >= 0:
        raise ArgumentError("steps must be more than vectors, and tolerance at least 0.")
    small_batch = sample(net, module, images)
    specs = find_blocks(module, small_batch, layers)
    x = inputs(net, images, spaced_rows(len(images), points))
    layouts = (
        {} if kind in ("residual", "branch") else find_layouts(module, specs, "post", small_batch)
    )
    block_calls, left_out = visits(module, x, specs)
    for visit in block_calls:
        if not visit.keeps_space:
            left_out[visit.spec.name] = "it changes the feature space"
    settings = _Settings(kind, index, layouts, count, steps, tolerance, probes, seed)
    runs: list[_Run] = []
    with differentiable_everywhere():
        for run in track(runs_of(block_calls), "comparing residual Jacobians"):
            runs.append(_Run(run, sum(len(each.names) for each in runs), settings))
    return Alignment(
        tuple(block for run in runs for block in run.blocks()),
        tuple(pair for run in runs for pair in run.pairs()),
        tuple(run.segment() for run in runs if len(run.names) > 1),
        jacobian=jacobian,
        vectors=count,
        points=len(x),
        left_out=left_out,
        reset_statistics=_has_initial_statistics(module),
        seconds=time.perf_counter() - start_time,
    )


def _parse(jacobian: Any) -> tuple[str, int]:
    """Parse ``token:0`` to ``("token", 0)``."""
    kind, separator, index = str(jacobian).partition(":")
    whole = index.removeprefix("-").isdecimal() if separator else True
    if kind not in ("residual", "branch", "pooled", "token") or not whole:
        raise ArgumentError(
            f"Unknown jacobian {jacobian!r}; choose residual, branch, pooled, token or token:INDEX."
        )
    if separator and kind != "token":
        raise ArgumentError(f"jacobian={jacobian!r}: only a token has an index.")
    return kind, int(index) if separator else -1


def _has_initial_statistics(module: nn.Module) -> bool:
    """Return whether there is batch normalization and all of it has its initial statistics."""
    parts = [p for p in module.modules() if isinstance(p, nn.modules.batchnorm._BatchNorm)]
    initial = [
        not bool(p.running_mean.any()) and bool((p.running_var == 1).all())
        for p in parts
        if p.running_mean is not None and p.running_var is not None
    ]
    return bool(initial) and all(initial)


@dataclass(frozen=True, eq=False)
class _Settings:
    """The options of `alignment`, checked."""

    kind: str
    index: int
    layouts: dict[str, Layout]
    vectors: int
    steps: int
    tolerance: float
    probes: int
    seed: int

    def coordinates(self, name: str) -> Coordinates:
        """Return the coordinates of a block's features in the subspace on which J acts."""
        if self.kind in ("residual", "branch"):
            return lambda maps: maps.flatten(1)
        layout = self.layouts[features_key(name)]
        if layout.samples or layout.folded or layout.channels is None:
            raise ArgumentError(
                f"jacobian={self.kind!r} needs the channel axis of {name!r}, which is not known; "
                "use jacobian='residual'."
            )
        if self.kind == "pooled":

            def pooled(maps: torch.Tensor) -> torch.Tensor:
                channels = layout.channels_first(maps, len(maps)).flatten(2)
                return channels.sum(2) / channels.shape[2] ** 0.5

            return pooled
        if len(layout.shape) != 2:
            raise ArgumentError(
                f"jacobian='token' needs tokens (n, t, d); {name!r} returns maps of shape (n, "
                f"{', '.join(map(str, layout.shape))}). Use jacobian='pooled' or 'residual'."
            )
        if not -layout.space[1] <= self.index < layout.space[1]:
            raise ArgumentError(
                f"no token {self.index}: {name!r} returns {layout.space[1]} tokens (from 0)."
            )
        return lambda maps: layout.channels_first(maps, len(maps))[:, :, self.index]


class _Run:
    """Consecutive blocks in one space.

    `values` contains arrays over points, by block or pair of blocks.
    """

    def __init__(self, run: Sequence[Visit], first: int, settings: _Settings) -> None:
        self.run, self.settings = run, settings
        self.names = [visit.spec.name for visit in run]
        self.ends: list[str | None] = [None] * len(run)
        self.dimension = 0
        n, size = len(run[0].x), run[0].x[0].numel()
        rows = max(1, _BASIS_BYTES // (2 * 8 * settings.steps * size))
        starts = range(0, n, rows)
        chunks = [self._measure(slice(start, start + rows), first) for start in starts]
        self.values: dict[int | Pair, Values] = {
            key: {
                name: np.concatenate([chunk[key][name] for chunk in chunks])
                for name in chunks[0][key]
            }
            for key in chunks[0]
        }
        lengths = [(each.y.double() - each.x.double()).flatten(1).norm(dim=1) for each in run]
        self.steps = torch.stack(lengths, 1).cpu().numpy()  # (n, L)

    def _measure(self, rows: slice, first: int) -> dict[int | Pair, Values]:
        """Measure some of the points, with only two Jacobians in memory."""
        settings = self.settings
        values: dict[int | Pair, dict[str, torch.Tensor]] = {}
        tops: list[Triplets] = []
        last: ResidualJacobian | None = None
        for k, visit in enumerate(self.run):
            branch = branch_of(visit, rows, gated=settings.kind != "branch")
            self.ends[k] = branch.end
            coordinates = settings.coordinates(visit.spec.name)
            jacobian = ResidualJacobian(branch, coordinates)
            self.dimension = jacobian.dimension
            streams = self._streams(first + k, rows)
            top = top_triplets(
                jacobian, settings.vectors, settings.steps, settings.tolerance, streams
            )
            tops.append(top)
            displacement = coordinates(visit.y[rows].double() - visit.x[rows].double())
            values[k] = _of_block(top, displacement)
            values[k] |= energies(jacobian, top, settings.probes, streams)
            for j in range(k):
                for a, b in ((j, k), (k, j)):
                    values[a, b] = _of_pair(tops[a], tops[b])
            if last is not None:
                values[k - 1, k] |= _coupling(last, tops[k - 1], top)
                values[k, k - 1] |= _coupling(jacobian, top, tops[k - 1])
            last = jacobian
        return {
            key: {name: v.cpu().numpy() for name, v in each.items()} for key, each in values.items()
        }

    def _streams(self, block: int, rows: slice) -> Streams:
        """Return a block's own random streams; equal random starts would align the blocks."""
        seed = int(np.random.SeedSequence([self.settings.seed, block]).generate_state(1)[0])
        return seeded_streams(len(self.run[0].x), seed)[rows]

    def blocks(self) -> list[BlockJacobian]:
        total = self.steps.sum()
        return [
            BlockJacobian(
                name=name,
                end=self.ends[k],
                dimension=self.dimension,
                singular_values=tuple(self.values[k]["s"].mean(0).tolist()),
                **{key: _mean(self.values[k][key]) for key in _OF_BLOCKS},
                path_share=float(self.steps[:, k].sum() / total) if total else 0.0,
                residual=float(self.values[k]["residual"].max()),
                gap=float(self.values[k]["gap"].mean()),
            )
            for k, name in enumerate(self.names)
        ]

    def pairs(self) -> list[PairAlignment]:
        missing = dict.fromkeys(_COUPLINGS)
        return [
            PairAlignment(
                self.names[key[0]],
                self.names[key[1]],
                **missing | {name: _mean(values) for name, values in self.values[key].items()},
            )
            for key in sorted(k for k in self.values if isinstance(k, tuple))
        ]

    def segment(self) -> SegmentAlignment:
        d, count = self.dimension, min(self.settings.vectors, self.dimension)
        pairs = [each for key, each in self.values.items() if isinstance(key, tuple)]
        columns = {  # each point's mean over pairs; NaN if one of them is undefined
            name: np.stack([each[name] for each in pairs if name in each]).mean(0)
            for name in (*_OVERLAPS, *_COUPLINGS)
        }
        slopes = self._slopes() if len(self.run) > 2 else None
        intervals = {name: mean_interval(v, positive=True) for name, v in columns.items()}
        if slopes is not None:
            intervals["slope"] = mean_interval(slopes[:, 0])
        ranks = np.stack([(self.values[k]["s"] > 0).sum(1) for k in range(len(self.run))])  # (L, n)
        largest = [np.maximum(a, b)[ranks.min(0) > 0] for a, b in combinations(ranks, 2)]
        rank = float(np.mean(largest)) if np.size(largest) else count
        chance = rank / d
        return SegmentAlignment(
            blocks=tuple(self.names),
            dimension=d,
            vectors=count,
            chance=chance,
            **{name: _mean(v) for name, v in columns.items()},
            chance_coupling=math.sqrt(
                max(0.0, 1 + chance**2 - 2 * math.sqrt(2 / math.pi * rank) / d)
            ),
            slopes=None if slopes is None else tuple(_mean(column) for column in slopes.T),
            intervals={name: pair for name, pair in intervals.items() if pair is not None},
        )

    def _slopes(self) -> Float[np.ndarray, "n K"]:
        """Return each point's slopes of `SegmentAlignment`; NaN if undefined."""
        s = np.stack([self.values[k]["s"] for k in range(len(self.run))], 1)  # (n, L, K)
        with np.errstate(divide="ignore", invalid="ignore"):
            dt = self.steps / self.steps.sum(1, keepdims=True)
            times = np.cumsum(dt, 1) - dt
            y = np.where(s > 0, dt[..., None] / s, np.nan)
            t = (times - times.mean(1, keepdims=True))[..., None]
            return (t * (y - y.mean(1, keepdims=True))).sum(1) / (t**2).sum(1)


def _overlap(a: torch.Tensor, b: torch.Tensor, rank: torch.Tensor) -> torch.Tensor:
    """Return ||A^T B||_F^2 / rank; NaN if the rank is 0."""
    return (a @ b.mT).square().sum((1, 2)) / rank


def _of_block(top: Triplets, displacement: torch.Tensor) -> dict[str, torch.Tensor]:
    e = displacement / displacement.norm(dim=1, keepdim=True)
    return {
        "s": top.s,
        "overlap": _overlap(top.u, top.v, top.rank),
        "sign": (top.u * top.v).sum((1, 2)) / top.rank,
        "along": (top.u @ e[..., None])[..., 0].square().sum(1),
        "residual": top.residual,
        "gap": top.gap,
    }


def _of_pair(i: Triplets, j: Triplets) -> dict[str, torch.Tensor]:
    rank = torch.minimum(i.rank, j.rank)
    return {
        "overlap_uv": _overlap(i.u, j.v, rank),
        "overlap_uu": _overlap(i.u, j.u, rank),
        "overlap_vv": _overlap(i.v, j.v, rank),
        "diagonal": (i.u * j.v).sum(2).abs().sum(1) / rank,
    }


def _coupling(jacobian: ResidualJacobian, i: Triplets, j: Triplets) -> dict[str, torch.Tensor]:
    """Return the coupling of blocks i and j; `jacobian` is that of block i."""
    images = torch.stack([jacobian.forward(j.v[:, k]) for k in range(j.v.shape[1])], 1)
    m = j.u @ images.mT  # (n, K, K)
    s = torch.diag_embed(i.s)
    size = i.s.norm(dim=1)
    return {
        "coupling": (m.abs() - s).flatten(1).norm(dim=1) / size,
        "coupling_signed": (m - s).flatten(1).norm(dim=1) / size,
    }


def _mean(values: Float[np.ndarray, " n"]) -> float | None:
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else None
