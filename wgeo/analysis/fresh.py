"""Compare a network with randomly initialized ones: is it straighter because of training?

Two training runs with the same recipe usually differ by more than the sampling error over images,
so a test over images finds a difference between almost any two networks. This test is over
networks: the p-value follows from the rank of the network among randomly initialized ("fresh")
networks. The null hypothesis is that the network is itself randomly initialized. Then all networks
are exchangeable, whatever the images, and p <= 0.05 has a probability of at most 0.05.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import nn

from ..arrays.checks import pick_device
from ..arrays.rows import spaced_rows
from ..checkpoints import Network
from ..data import Images
from ..data.loaders import as_images
from ..errors import ArgumentError
from ..features import trace
from ..features.network import inputs, module_of, normalization_for, on_device
from ..geodesic.paths import path_measures
from ..geodesic.significance import SIGNIFICANT
from ..models import untrained
from ..models.fresh import reestimate_statistics
from ..runtime import processes
from ..text import first_names, percent
from ..trajectory import Trajectory

_MAX_IMAGES = 200  # the rank is valid for any number of images
_STATISTICS_BATCH = 50  # number of images per batch for estimating batch statistics
_MAX_KEPT = 0.01  # largest fraction of the parameters that may keep their trained values


@dataclass(frozen=True)
class MeanRatios:
    """The mean line-shape ratio of a segment's samples; NaN if no sample has a defined ratio.

    For ``centred``, each layer's mean is subtracted from the features.
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
    """Compare a network's line-shape ratios with those of randomly initialized networks.

    All networks process the same images, at most 200. The batch statistics of the randomly
    initialized networks are estimated on these images (`reestimate_statistics`).

    Parameters
    ----------
    traj : Trajectory
        The features of `images` in `net`.
    net : Network or nn.Module
    images : Images, or (x, labels)
    count : int
        Number R of randomly initialized networks.
    reading : mapping
        Parameters of `trace`; its ``layers`` are replaced by those of `traj`.
    seed : int
        Random seed.

    Returns
    -------
    dict
        ``statistic``; ``images``, the number of images; ``networks``, the ``seed`` of each randomly
        initialized network and its ratios in all ``segments``; ``segments``, the rows of
        `rank_test` for the segments of at least two blocks; ``kept``, the names of the parameters
        that kept their trained values.

    Raises
    ------
    ArgumentError
        More than 1 % of the parameters cannot be randomly initialized, or a randomly initialized
        network has a different number of segments.
    """
    rows = spaced_rows(len(traj), _MAX_IMAGES)
    images = as_images(images)
    # All networks use the normalization of `net`.
    normalize = normalization_for(net, images)
    subset = replace(images, x=images.x[rows], y=images.y[rows], normalize=normalize)
    layers = [layer.name for layer in traj.staged][1:]  # all but the stem
    seeds = np.random.SeedSequence(seed).generate_state(count).tolist()
    measure = partial(_fresh_ratios, module_of(net), subset, {**reading, "layers": layers})
    works = [partial(measure, each) for each in seeds]
    results = processes.map_over_ranks(works, "randomly initialized networks")
    ratios = [ratios for ratios, _ in results]
    if any(len(each) != len(traj.segments) for each in ratios):
        raise ArgumentError(
            "Randomly initialized networks have different segments from this network."
        )
    own = [_ratios([array[rows] for array in segment.arrays]) for segment in traj.segments]
    return {
        "statistic": "line_shape_ratio_centred",
        "images": len(rows),
        "networks": [
            {"seed": each, "segments": [vars(ratio) for ratio in row]}
            for each, row in zip(seeds, ratios, strict=True)
        ],
        "segments": _ranked_segments(traj, own, ratios),
        "kept": list(results[0][1]),
    }


def _fresh_ratios(
    module: nn.Module, images: Images, reading: Mapping[str, Any], seed: int
) -> tuple[list[MeanRatios], tuple[str, ...]]:
    fresh, unchanged_names = untrained(module, seed)
    _check_fresh(fresh, unchanged_names)
    # All batches have the same weight, so their sizes are nearly equal. If possible, each has at
    # least two images.
    count = min(-(-len(images) // _STATISTICS_BATCH), len(images) // 2)
    batches = np.array_split(np.arange(len(images)), max(count, 1))
    with on_device(fresh, pick_device(reading["device"])):
        reestimate_statistics(fresh, (inputs(fresh, images, batch) for batch in batches))
        traj = trace(fresh, images, **reading)
    return [_ratios(segment.arrays) for segment in traj.segments], unchanged_names


def _check_fresh(fresh: nn.Module, unchanged_names: Sequence[str]) -> None:
    sizes = {name: parameter.numel() for name, parameter in fresh.named_parameters()}
    share = sum(sizes[name] for name in unchanged_names) / max(sum(sizes.values()), 1)
    if share > _MAX_KEPT:
        raise ArgumentError(
            f"{percent(share)} of the parameters belong to modules that have no method to reset "
            f"them ({first_names(unchanged_names, 3)}), so the network cannot be randomly "
            "initialized. Give a checkpoint of epoch 0 as the reference."
        )


def _ratios(arrays: Sequence[Float[np.ndarray, "n d"]]) -> MeanRatios:
    means = np.stack([array.mean(0, dtype=np.float64) for array in arrays])
    # The means are not subtracted here, because `path_measures` estimates the rounding error from
    # the features themselves.
    paths = path_measures(arrays, centres=means), path_measures(arrays)
    return MeanRatios(*(_mean(path.line_shape_ratio) for path in paths))


def _mean(values: Float[np.ndarray, " n"]) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def _ranked_segments(
    traj: Trajectory, own: Sequence[MeanRatios], fresh: Sequence[Sequence[MeanRatios]]
) -> list[dict[str, Any]]:
    """Apply `rank_test` to the segments of at least two blocks with a defined ratio."""
    tested = [
        k
        for k, (segment, ratio) in enumerate(zip(traj.segments, own, strict=True))
        if len(segment.names) > 2 and not np.isnan(ratio.centred)
    ]
    if not tested:
        return []
    values = np.array([own[k].centred for k in tested])
    others = np.array([[row[k].centred for k in tested] for row in fresh])
    return [
        {"layers": list(traj.segments[k].names), "stage": traj.segments[k].stage, **row}
        for k, row in zip(tested, rank_test(values, others), strict=True)
    ]


def rank_test(
    values: Float[np.ndarray, " s"], fresh: Float[np.ndarray, "r s"]
) -> list[dict[str, Any]]:
    r"""Rank a network among R others by the distance of its ratios from the median.

    For segment s the distance of network j is :math:`z_{js} = |\log v_{js} - m_s| / \sigma_s`. Here
    :math:`m_s` is the median, and :math:`\sigma_s` the standard deviation, of the logarithms over
    all R + 1 networks. Network 0 is the one to be ranked. Its ``rank_p`` is the fraction of all
    networks, including itself, with :math:`z_{js} \ge z_{0s}`. This two-sided test is exact,
    because the median and the standard deviation treat all networks alike.

    For ``adjusted_p``, :math:`z_{0s}` is compared with the largest distance of each network over
    the segments. This bounds the probability of any false claim (Westfall and Young 1993,
    single-step maxT) and needs no more networks for several segments than for one. (Twice the
    smaller one-sided p-value would be at least 2 / (R + 1), which is not significant for R = 20.)

    Parameters
    ----------
    values : ndarray, (s,)
        The network's ratio in every segment, positive.
    fresh : ndarray, (R, s)
        The ratios of the other networks; an undefined ratio (NaN) counts as infinitely distant.

    Returns
    -------
    list of dict
        For each segment: ``value``; the ``median``, ``low`` (smallest) and ``high`` (largest) ratio
        of the other networks; ``as_straight`` and ``as_bent``, the numbers of other networks that
        are at least as straight and at least as bent, both including undefined ratios; ``rank_p``
        and ``adjusted_p``; ``direction``, "straighter" or "less straight" than the median if
        ``adjusted_p`` is at most `SIGNIFICANT`, else "neither".
    """
    pooled = np.log(np.vstack([values, fresh]))
    center, scale = np.nanmedian(pooled, axis=0), np.nanstd(pooled, axis=0)
    deviation = np.abs(pooled - center)
    # Equal networks have the same ratio up to rounding.
    distance = np.where(deviation > 1e-9, deviation / np.where(scale > 0, scale, 1.0), 0.0)
    distance = np.where(np.isnan(pooled), np.inf, distance)
    largest = distance.max(1)
    rows = []
    for s, value in enumerate(values):
        others = fresh[~np.isnan(fresh[:, s]), s]
        undefined = len(fresh) - len(others)
        adjusted = float((largest >= distance[0, s]).mean())
        median = float(np.median(others)) if len(others) else float("nan")
        rows.append(
            {
                "value": float(value),
                "median": median,
                "low": float(others.min(initial=np.inf)),
                "high": float(others.max(initial=-np.inf)),
                "as_straight": int((others <= value).sum()) + undefined,
                "as_bent": int((others >= value).sum()) + undefined,
                "rank_p": float((distance[:, s] >= distance[0, s]).mean()),
                "adjusted_p": adjusted,
                "direction": _direction(value, median, adjusted),
            }
        )
    return rows


def _direction(value: float, median: float, p: float) -> str:
    if p > SIGNIFICANT or value == median:
        return "neither"
    return "straighter" if value < median else "less straight"
