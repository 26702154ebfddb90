"""A run of blocks in one space, whose residual Jacobians are compared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from jaxtyping import Float

from ...errors import ArgumentError
from ...features.layout import Layout
from ...trajectory.trajectory import features_key
from ..jacobian import Streams, seeded_streams
from ..resampling import mean_interval
from .branches import Visit, branch_of
from .operators import Pooled, ResidualJacobian, Token, View, Whole
from .result import BlockJacobian, PairAlignment, SegmentAlignment
from .triplets import Triplets, energies, top_triplets

_BASIS_BYTES = 2**28  # bytes of Lanczos vectors in memory
_OVERLAPS = ("overlap_uv", "overlap_uu", "overlap_vv")
_COUPLINGS = ("coupling", "coupling_signed")
Values = dict[str, Float[np.ndarray, "n ..."]]
Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Settings:
    """The options of `alignment`, checked."""

    kind: str
    index: int
    layouts: dict[str, Layout]
    vectors: int
    steps: int
    tolerance: float
    probes: int
    seed: int

    def view(self, name: str) -> View:
        """Return the subspace of a block's features on which its Jacobian acts."""
        if self.kind in ("residual", "branch"):
            return Whole()
        layout = self.layouts[features_key(name)]
        if layout.samples or layout.folded or layout.channels is None:
            raise ArgumentError(
                f"jacobian={self.kind!r} needs the channel axis of {name!r}, which is not known; "
                "use jacobian='residual'."
            )
        if self.kind == "pooled":
            return Pooled(layout)
        if len(layout.shape) != 2:
            raise ArgumentError(
                f"jacobian='token' needs tokens (n, t, d); {name!r} returns maps of shape (n, "
                f"{', '.join(map(str, layout.shape))}). Use jacobian='pooled' or 'residual'."
            )
        if not -layout.space[1] <= self.index < layout.space[1]:
            raise ArgumentError(
                f"no token {self.index}: {name!r} returns {layout.space[1]} tokens (from 0)."
            )
        return Token(layout, self.index)


class Run:
    """A run of blocks in one space; `values` has arrays over points, by block or pair of blocks."""

    def __init__(self, run: Sequence[Visit], first: int, settings: Settings) -> None:
        self.run, self.settings = run, settings
        self.names = [visit.spec.name for visit in run]
        self.ends: list[str | None] = [None] * len(run)
        self.dimension = 0
        chunks = [self._measure(rows, first) for rows in self._chunks()]
        self.values: dict[int | Pair, Values] = {
            key: {
                name: np.concatenate([chunk[key][name] for chunk in chunks])
                for name in chunks[0][key]
            }
            for key in chunks[0]
        }
        self.steps = _lengths(run)  # (n, L)

    def _chunks(self) -> Iterator[slice]:
        n, size = len(self.run[0].x), self.run[0].x[0].numel()
        rows = max(1, _BASIS_BYTES // (2 * 8 * self.settings.steps * size))
        return (slice(start, min(n, start + rows)) for start in range(0, n, rows))

    def _measure(self, rows: slice, first: int) -> dict[int | Pair, Values]:
        """Measure some of the points, with only two Jacobians in memory."""
        values: dict[int | Pair, dict[str, torch.Tensor]] = {}
        tops: list[Triplets] = []
        last: ResidualJacobian | None = None
        for k, visit in enumerate(self.run):
            branch = branch_of(visit, rows, gated=self.settings.kind != "branch")
            self.ends[k] = branch.end
            jacobian = ResidualJacobian(branch, self.settings.view(visit.spec.name))
            self.dimension = jacobian.dimension
            streams = self._streams(first + k, rows)
            s = self.settings
            tops.append(top_triplets(jacobian, s.vectors, s.steps, s.tolerance, streams))
            values[k] = self._of_block(jacobian, tops[k], visit, rows, streams)
            for j in range(k):
                for a, b in ((j, k), (k, j)):
                    values[a, b] = _of_pair(tops[a], tops[b])
            if last is not None:
                values[k - 1, k] |= _coupling(last, tops[k - 1], tops[k])
                values[k, k - 1] |= _coupling(jacobian, tops[k], tops[k - 1])
            last = jacobian
        return {
            key: {name: v.cpu().numpy() for name, v in each.items()} for key, each in values.items()
        }

    def _streams(self, block: int, rows: slice) -> Streams:
        """Return a block's own random streams; equal random starts would align the blocks."""
        seed = int(np.random.SeedSequence([self.settings.seed, block]).generate_state(1)[0])
        return seeded_streams(len(self.run[0].x), seed)[rows]

    def _of_block(
        self,
        jacobian: ResidualJacobian,
        top: Triplets,
        visit: Visit,
        rows: slice,
        streams: Streams,
    ) -> dict[str, torch.Tensor]:
        energy = energies(jacobian, top, self.settings.probes, streams)
        view = self.settings.view(visit.spec.name)
        e = view.read(visit.y[rows].double() - visit.x[rows].double())
        e = e / e.norm(dim=1, keepdim=True)
        return {
            "s": top.s,
            "overlap": _overlap(top.u, top.v, top, top),
            "sign": (top.u * top.v).sum((1, 2)) / top.rank,
            "along": (top.u @ e[..., None])[..., 0].square().sum(1),
            "residual": top.residual,
            "gap": top.gap,
            **vars(energy),
        }

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


_OF_BLOCKS = ("overlap", "sign", "share", "participation", "asymmetry", "along")


def _lengths(run: Sequence[Visit]) -> Float[np.ndarray, "n L"]:
    steps = [(visit.y.double() - visit.x.double()).flatten(1).norm(dim=1) for visit in run]
    return torch.stack(steps, 1).cpu().numpy()


def _overlap(a: torch.Tensor, b: torch.Tensor, of_a: Triplets, of_b: Triplets) -> torch.Tensor:
    """Return ||A^T B||_F^2 divided by the smaller rank; NaN if that is 0."""
    return (a @ b.mT).square().sum((1, 2)) / torch.minimum(of_a.rank, of_b.rank)


def _of_pair(i: Triplets, j: Triplets) -> dict[str, torch.Tensor]:
    return {
        "overlap_uv": _overlap(i.u, j.v, i, j),
        "overlap_uu": _overlap(i.u, j.u, i, j),
        "overlap_vv": _overlap(i.v, j.v, i, j),
        "diagonal": (i.u * j.v).sum(2).abs().sum(1) / torch.minimum(i.rank, j.rank),
    }


def _coupling(jacobian: ResidualJacobian, i: Triplets, j: Triplets) -> dict[str, torch.Tensor]:
    """Return the coupling of block j with block i, whose Jacobian is given."""
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
