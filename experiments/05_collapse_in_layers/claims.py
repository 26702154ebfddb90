"""The claims P1 and I1 to I4, each a function of the metrics of one network by depth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import kendalltau

Result = dict[str, Any]


def falls(view: Result, metric: str) -> bool | None:
    """Whether the metric is never larger than at the previous layer."""
    return view["progress"][metric]["monotone"]


def sinks(view: Result, metric: str) -> bool | None:
    """Whether Kendall's tau with depth is negative."""
    tau_of_metric = view["progress"][metric]["kendall_tau"]
    return None if tau_of_metric is None else tau_of_metric < 0


def trends(found: Result, sign: int) -> bool | None:
    """Whether the 95 % interval over images of Kendall's tau with depth has this sign."""
    if found["kendall_tau"] is None or found["interval"] is None:
        return None
    low, high = found["interval"]
    return high < 0 if sign < 0 else low > 0


def collapsed(view: Result) -> float | None:
    """Return the fraction of inner layers with less than half of their NC1 before training.

    Inner layers are all except the first and the last.
    """
    now, before = view["layers"]["nc1"][1:-1], view["start"]["nc1"][1:-1]
    known = [a < b / 2 for a, b in zip(now, before, strict=True) if None not in (a, b)]
    return sum(known) / len(known) if known else None


def emerges(view: Result) -> bool | None:
    """Whether in most inner layers NC1 is less than half of its value before training."""
    share = collapsed(view)
    return None if share is None else share > 0.5


def early(view: Result, metric: str) -> bool | None:
    """Whether 90 % of the metric's fall is reached in the first half of the layers."""
    depth = view["progress"][metric]["reached_depth"]
    return None if depth is None else depth <= 0.5


def early_in_logarithms(view: Result, metric: str) -> bool | None:
    """Whether the first half of the layers has 90 % of the fall of the metric's logarithm."""
    share = first_half(view, metric, logarithms=True)
    return None if share is None else share >= 0.9


def first_half(view: Result, metric: str, *, logarithms: bool) -> float | None:
    """Return the share of a metric's fall, or of its logarithm's, in the first half of layers."""
    values = np.array([v for v in view["layers"][metric] if v is not None])
    if len(values) < 3 or values[-1] >= values[0] or (logarithms and values.min() <= 0):
        return None
    scale = np.log(values) if logarithms else values
    fall = scale[0] - scale
    return float(np.interp(0.5, np.linspace(0, 1, len(fall)), fall) / fall[-1])


def tau(values: Sequence[float]) -> float:
    """Return Kendall's tau with depth."""
    return float(kendalltau(np.arange(len(values)), values).statistic)


def opens(view: Result, *, strictly: bool) -> bool | None:
    """Whether the mean angle of uncentered class means grows: at every layer, or by tau."""
    angles = view["uncentred_angle"]
    if strictly:
        return bool(np.all(np.diff(angles) >= 0))
    return tau(angles) > 0


def learned_early(view: Result) -> bool:
    """Whether the nearest class mean has 99 % of the network's accuracy before the last layer."""
    return view["learned"] is not None and view["learned"] < 1


Claim = Callable[[Result], bool | None]
CLAIMS: dict[str, Claim] = {
    "P1: NC1 falls at every layer": lambda v: falls(v, "nc1"),
    "P1: NC2 (distance to an ETF) falls at every layer": lambda v: falls(v, "nc2_etf"),
    "P1: nearest-center error falls at every layer": lambda v: falls(v, "ncc_error"),
    "P1: all three": lambda v: _all(falls(v, m) for m in ("nc1", "nc2_etf", "ncc_error")),
    "P1, weaker: NC1 falls with depth (tau)": lambda v: trends(v["progress"]["nc1"], -1),
    "P1, weaker: NC2 falls with depth (tau)": lambda v: trends(v["progress"]["nc2_etf"], -1),
    "P1, weaker: the error falls with depth (tau)": lambda v: trends(
        v["progress"]["ncc_error"], -1
    ),
    "I1: most inner layers: NC1 under half of its start": emerges,
    "I2: 90 % of the fall of tr W / tr B in the first half": lambda v: early(v, "nc1_quotient"),
    "I2: 90 % of the fall of NC1 in the first half": lambda v: early(v, "nc1"),
    "I2, in logarithms: 90 % of the fall of log NC1": lambda v: early_in_logarithms(v, "nc1"),
    "I3: the mean angle of class means grows at every layer": lambda v: opens(v, strictly=True),
    "I3, weaker: it grows with depth (sign of tau)": lambda v: opens(v, strictly=False),
    "I3, centered: the angle grows at every layer": lambda v: v["separation"]["monotone"],
    "I3, centered, weaker: it grows (sign of tau)": lambda v: v["separation"]["kendall_tau"] > 0,
    "I3, centered, weaker: it grows with depth (tau)": lambda v: trends(v["separation"], +1),
    "I3, centered: angles even out with depth (tau)": lambda v: trends(
        v["progress"]["nc2_equiangle"], -1
    ),
    "I4: learned before the last layer (training images)": learned_early,
    "I4: learned before the last layer (test images)": lambda v: learned_early(v["test"]),
}


def _all(verdicts: Any) -> bool | None:
    verdicts = list(verdicts)
    return None if None in verdicts else all(verdicts)


# Claims by the authors' measures, at the inputs of the layers that they record.
AUTHORS_CLAIMS: dict[str, Claim] = {
    "NC1 falls with depth (tau)": lambda v: sinks(v, "nc1"),
    "NC1 falls at every layer": lambda v: falls(v, "nc1"),
    "I1: most inner layers: NC1 under half of its start": emerges,
    "I2: 90 % of the fall of NC1 in the first half": lambda v: early(v, "nc1"),
    "I2, in logarithms: 90 % of the fall of log NC1": lambda v: early_in_logarithms(v, "nc1"),
    "I3: the angle measure falls with depth (tau)": lambda v: sinks(v, "nc2_equiangle"),
    "I3: the angle measure falls at every layer": lambda v: falls(v, "nc2_equiangle"),
    "I4: learned before the last layer (training images)": learned_early,
}
