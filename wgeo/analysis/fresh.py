"""A network beside many of its architecture with fresh weights: is training what made it straight?

The networks are the sample, not the images: two trainings of one recipe differ by more than images
can tell, so a p-value over images finds a difference between any two networks. Here the rank of the
network among fresh ones decides. Under the null hypothesis that it is one of them, all are
exchangeable, whatever the images, and a p-value of at most 1/20 comes up in one case of 20.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import nn

from ..arrays.checks import pick_device
from ..checkpoints import Network
from ..data import Images
from ..errors import ArgumentError
from ..features import trace
from ..features.network import as_images, inputs, module_of, normalization_for, on_device
from ..geodesic.paths import path_figures
from ..models import untrained
from ..models.fresh import reestimate_statistics
from ..runtime import processes
from ..trajectory import Trajectory

SIGNIFICANT = 0.05  # adjusted p-value up to which a direction is named
_IMAGES = 200  # at most; more would cost time alone: any number of images gives a valid rank
_AT_ONCE = 50  # images whose batch statistics are averaged, whatever the batches of the analysis
_MOST_KEPT = 0.01  # share of the parameters without fresh weights beyond which nothing is fresh


@dataclass(frozen=True)
class Ratios:
    """Mean line-shape ratio of a segment's samples; NaN if it is undefined for all of them.

    ``centred`` is of the paths with each layer's mean subtracted, ``raw`` of the paths as they are.
    """

    centred: float
    raw: float


def fresh_networks(
    traj: Trajectory,
    net: Network | nn.Module,
    images: Any,
    count: int,
    reading: Mapping[str, Any],
    seed: int,
) -> dict[str, Any]:
    """Compare a network's line-shape ratios with those of `count` networks with fresh weights.

    All of them see the same images, at most 200; the batch statistics of the fresh ones are
    estimated on these (`reestimate_statistics`).

    Parameters
    ----------
    traj : Trajectory
        Of `net` and `images`.
    net : Network or nn.Module
    images : Images, or (x, labels)
    count : int
        Number of fresh networks R; the smallest p-value is 1 / (R + 1).
    reading : mapping
        ``pool``, ``tap``, ``batch_size`` and ``device``; as for `trace`.
    seed : int
        From which the networks' seeds are derived.

    Returns
    -------
    dict
        ``statistic``; ``images``, their number; ``networks``, for each fresh network its ``seed``
        and ``segments``, with the ``centred`` and the ``raw`` ratio; ``segments``, see
        `rank_test`; ``kept``, names of the parameters without fresh weights.

    Raises
    ------
    ArgumentError
        Most of the network cannot be given fresh weights.
    """
    rows = np.unique(np.linspace(0, len(traj) - 1, min(_IMAGES, len(traj))).astype(np.int64))
    module, few = module_of(net), _chosen(net, images, rows)
    layers = [layer.name for layer in traj.staged][1:]  # all but the stem
    seeds = np.random.SeedSequence(seed).generate_state(count).tolist()
    measured = partial(_fresh_ratios, module, few, {**reading, "layers": layers})
    found = processes.map_over_ranks([partial(measured, each) for each in seeds], "fresh networks")
    segments = traj.segments
    ratios = [ratios for ratios, _ in found]
    if any(len(each) != len(segments) for each in ratios):
        raise ArgumentError("Networks with fresh weights have other segments than this one.")
    own = [_ratios([array[rows] for array in segment.arrays]) for segment in segments]
    return {
        "statistic": "line_shape_ratio_centred",
        "images": len(rows),
        "networks": [
            {"seed": each, "segments": [vars(ratio) for ratio in row]}
            for each, row in zip(seeds, ratios, strict=True)
        ],
        "segments": _compared(traj, own, ratios),
        "kept": list(found[0][1]),
    }


def _chosen(net: Network | nn.Module, images: Any, rows: Int[np.ndarray, " r"]) -> Images:
    """Some of the images, normalized for `net` whatever network they are given to."""
    images = as_images(images)
    normalize = normalization_for(net, images)
    return replace(images, x=images.x[rows], y=images.y[rows], normalize=normalize)


def _fresh_ratios(
    module: nn.Module, images: Images, reading: Mapping[str, Any], seed: int
) -> tuple[list[Ratios], tuple[str, ...]]:
    fresh, kept = untrained(module, seed)
    _check_fresh(fresh, kept)
    parts = _parts(len(images), _AT_ONCE)
    with on_device(fresh, pick_device(reading["device"])):
        reestimate_statistics(fresh, (inputs(fresh, images, part) for part in parts))
        traj = trace(fresh, images, **reading)
    return [_ratios(segment.arrays) for segment in traj.segments], kept


def _check_fresh(fresh: nn.Module, kept: Sequence[str]) -> None:
    sizes = {name: parameter.numel() for name, parameter in fresh.named_parameters()}
    share = sum(sizes[name] for name in kept) / max(sum(sizes.values()), 1)
    if share > _MOST_KEPT:
        raise ArgumentError(
            f"{share:.0%} of the parameters have no reset of their own ({', '.join(kept[:3])}, "
            "...), so there are no fresh weights to test against. Give a checkpoint of epoch 0 as "
            "the reference."
        )


def _parts(count: int, size: int) -> list[Int[np.ndarray, " b"]]:
    """Rows in batches of equal size, since each counts the same; of two or more, if possible."""
    parts = min(-(-count // size), count // 2)
    return np.array_split(np.arange(count), max(parts, 1))


def _ratios(arrays: Sequence[Float[np.ndarray, "n d"]]) -> Ratios:
    centred = [array - array.mean(0, dtype=np.float64) for array in arrays]
    return Ratios(*(_mean(path_figures(path).line_shape_ratio) for path in (centred, arrays)))


def _mean(values: Float[np.ndarray, " n"]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def _compared(
    traj: Trajectory, own: Sequence[Ratios], fresh: Sequence[Sequence[Ratios]]
) -> list[dict[str, Any]]:
    """`rank_test` of the segments of at least two blocks whose ratio is defined."""
    judged = [
        k
        for k, (segment, ratio) in enumerate(zip(traj.segments, own, strict=True))
        if len(segment.names) > 2 and not np.isnan(ratio.centred)
    ]
    if not judged:
        return []
    values = np.array([own[k].centred for k in judged])
    others = np.array([[row[k].centred for k in judged] for row in fresh])
    return [
        {"layers": list(traj.segments[k].names), "stage": traj.segments[k].stage, **row}
        for k, row in zip(judged, rank_test(values, others), strict=True)
    ]


def rank_test(
    values: Float[np.ndarray, " s"], fresh: Float[np.ndarray, "r s"]
) -> list[dict[str, Any]]:
    r"""Rank a network among R others, by how far its ratios lie from what is common among all.

    For segment s the distance of network j is :math:`z_{js} = |\log v_{js} - m_s| / \sigma_s`, m
    the median and sigma the standard deviation over all R + 1 networks. ``rank_p`` is
    :math:`\#\{j : z_{js} \ge z_s\} / (R + 1)`, the network itself counted: two-sided, and exact
    since medians and deviations treat all networks alike. ``adjusted_p`` compares with the largest
    distance of each network over the segments instead, which bounds the probability of any false
    claim (Westfall and Young 1993, single-step maxT), and needs no more networks for several
    segments than for one. (Twice the smaller one-sided rank is at least 2 / (R + 1), 0.095 for 20
    networks, and Holm's factor comes on top: that test could claim nothing.)

    Parameters
    ----------
    values : ndarray, (s,)
        The network's ratio in every segment, positive.
    fresh : ndarray, (R, s)
        The others'; NaN, if undefined, counts as infinitely far.

    Returns
    -------
    list of dict
        For each segment ``value``; ``median``, ``low`` and ``high`` (smallest and largest) of the
        fresh networks; ``as_straight`` and ``as_bent``, how many of them are at least and at most
        as straight; ``rank_p``, ``adjusted_p``; ``direction``, "straighter" or "less straight" if
        ``adjusted_p`` is at most `SIGNIFICANT`, else "neither".
    """
    pooled = np.log(np.vstack([values, fresh]))
    centre, scale = np.nanmedian(pooled, axis=0), np.nanstd(pooled, axis=0)
    away = np.abs(pooled - centre)
    # Equal networks differ by rounding; those that are undefined may be anything.
    distance = np.where(away > 1e-9, away / np.where(scale > 0, scale, 1.0), 0.0)
    distance = np.where(np.isnan(pooled), np.inf, distance)
    largest = distance.max(1)
    rows = []
    for s, value in enumerate(values):
        others = fresh[~np.isnan(fresh[:, s]), s]
        unknown = len(fresh) - len(others)
        adjusted = float((largest >= distance[0, s]).mean())
        median = float(np.median(others)) if len(others) else float("nan")
        rows.append(
            {
                "value": float(value),
                "median": median,
                "low": float(others.min(initial=np.inf)),
                "high": float(others.max(initial=-np.inf)),
                "as_straight": int((others <= value).sum()) + unknown,
                "as_bent": int((others >= value).sum()) + unknown,
                "rank_p": float((distance[:, s] >= distance[0, s]).mean()),
                "adjusted_p": adjusted,
                "direction": _direction(value, median, adjusted),
            }
        )
    return rows


def _direction(value: float, median: float, p: float) -> str:
    if not p <= SIGNIFICANT or value == median:
        return "neither"
    return "straighter" if value < median else "less straight"
