"""MUFM's transport strength and weight decay, chosen by how well they predict samples left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize

from ..arrays.rows import (
    LazyRows,
    Sliceable,
    as_float64,
    mean_of,
    select_rows,
    sum_over_rows,
    sums_by_class,
)
from ..errors import FeatureError
from ..runtime import processes
from ..runtime.progress import track
from ..trajectory import Segment
from ..ufm.multilayer import MUFMSolution, check_converged, features_of, fit_mufm
from ..ufm.newton import descend
from ..ufm.reduced import Reduced, Statistics
from ..ufm.search import Found, search
from .predictions import Errors, Line, Prediction, along, fixed_time, gained, place
from .procrustes import TURNED, Aim, Block, nuclear
from .result import HeldOut, Reading

SKETCH = 1e-3  # Newton's decrement in the search: features to about a thousandth
_TOLERANCE = 1e-6  # Newton's decrement at the end
REFINED = 20  # evaluations after the grid
# log10 of sqrt(lw mu), the threshold of collapse being 1 / K, and of sqrt(lw / mu), which is about
# the energy that features end with over what they begin with: a grid to start from
GRID = [
    (strength, growth) for strength in (-1.3, -2.0, -3.0, -4.0) for growth in (-1.0, 0.0, 1.0, 2.0)
]
LIMITS = ((-8.0, 1.0), (-6.0, 6.0))


@dataclass(frozen=True)
class Settings:
    """MUFM's two free parameters, mu being the transport strength of the whole path."""

    mu: float
    weight_decay: float

    @classmethod
    def at(cls, logs: tuple[float, float], energy: float) -> Settings:
        """From the logarithms of the grid; `energy` is the input's variance."""
        strength, growth = (
            float(np.clip(log, *limits)) for log, limits in zip(logs, LIMITS, strict=True)
        )
        ratio = 10**growth * energy
        return cls(10**strength / ratio, 10**strength * ratio)


@dataclass(frozen=True, eq=False)
class Judge:
    """Layers of samples that a readout was not fitted to; scores it at a cost free of their number.

    Attributes
    ----------
    layers : sequence of features, (n, d)
        Of the segment, the input first.
    labels : ndarray of int, (n,)
    basis : ndarray, (d, r)
        Orthonormal directions that hold the rows of every readout to be judged.
    at : sequence of float, or None
        Time of every layer; None where it is the nearest on the path.
    """

    layers: Sequence[Sliceable]
    labels: Int[np.ndarray, " n"]
    basis: Float[np.ndarray, "d r"]
    at: Sequence[float] | None

    @cached_property
    def _moments(self) -> tuple[np.ndarray, ...]:
        """Second moments of x with itself, labels and layers; sums over samples."""
        first, classes = self.layers[0], int(self.labels.max()) + 1
        middle, shares = mean_of(first), np.bincount(self.labels) / len(self.labels)

        def of_first(rows: slice, x: Block) -> list[Any]:
            seen, size = (x - middle) @ self.basis, float(np.sum((x - middle) ** 2))
            return [seen.T @ seen, sums_by_class(seen, self.labels[rows], classes), size]

        xx, yx, first_size = sum_over_rows(of_first, first)
        yy = len(self.labels) * (np.diag(shares) - np.outer(shares, shares))
        of_x, of_y, with_first, sizes = [], [], [first_size], []
        for layer in self.layers[1:]:
            mean = mean_of(layer)

            def of_layer(rows: slice, x: Block, h: Block, mean: Any = mean) -> list[Any]:
                start, spread = x - middle, h - mean
                seen = spread @ self.basis
                of_y = sums_by_class(seen, self.labels[rows], classes)
                sizes = [float(np.vdot(start, spread)), float(np.vdot(spread, spread))]
                return [(start @ self.basis).T @ seen, of_y, *sizes]

            x_seen, y_seen, onto, size = sum_over_rows(of_layer, first, layer)
            of_x.append(x_seen)
            of_y.append(y_seen)
            with_first.append(onto)
            sizes.append(size)
        sums = (np.stack(of_x), np.stack(of_y), np.array(with_first), np.array(sizes))
        return (xx, yx, yy, *sums)

    def missed(self, w: Float[np.ndarray, "K r"], mu: float) -> float:
        """Share of a layer's variance that the prediction misses, mean over the layers.

        The prediction X + t (H - X), H - X = (Y - X W^T - b) (W W^T + mu)^-1 W, is shifted and
        scaled to fit; W is given in the basis.
        """
        xx, yx, yy, x_layers, y_layers, with_first, sizes = self._moments
        pull = np.linalg.solve(w @ w.T + mu * np.eye(len(w)), w)
        error = yx - w @ xx  # E^T X
        second = yy - yx @ w.T - w @ yx.T + w @ xx @ w.T  # E^T E
        forward = float(np.vdot(pull, error))  # <H - X, X>
        moved = float(np.vdot(pull, second @ pull))  # |H - X|^2
        onto = (pull * (y_layers - w @ x_layers)).sum((1, 2))  # <H - X, H_l>
        products = (float(with_first[0]), forward, moved)
        missed = []
        for i, size in enumerate(sizes, start=1):
            t = fixed_time(i, len(self.layers)) if self.at is None else self.at[i]
            explained = place(products, (float(with_first[i]), float(onto[i - 1])), t)[2]
            missed.append(1 - explained / size if size > 0 else 0.0)
        return float(np.mean(missed))


def choose(
    stats: Statistics,
    first: Sliceable,
    last: Sliceable,
    labels: Int[np.ndarray, " n"],
    energy: float,
) -> Settings:
    """Search for the settings whose readout, fitted to `stats`, predicts `last` best in shape.

    `first` and `last` are layers of other samples. H may be shifted, scaled and turned to fit the
    last layer M: it misses 1 - ||H^T M||_*^2 / (||H||^2 ||M||^2) of it. Of a wide M only the
    leading directions count, as in `Aim`.
    """
    x_mean, m_mean = mean_of(first), mean_of(last)
    aim = Aim.at(last, m_mean)
    classes = len(stats.y_mean)
    shares = np.bincount(labels, minlength=classes) / len(labels)
    yy = len(labels) * (np.diag(shares) - np.outer(shares, shares))

    def moments(rows: slice, start: Block, end: Block) -> list[Any]:
        x, m = start - x_mean, aim.seen(end - m_mean)
        seen = x @ stats.basis
        of_y = (sums_by_class(each, labels[rows], classes) for each in (seen, m))
        return [float(np.vdot(x, x)), seen.T @ seen, x.T @ m, *of_y]

    energy_here, xx, x_m, yx, y_m = sum_over_rows(moments, first, last)
    seen_m = stats.basis.T @ x_m

    def missed(logs: tuple[float, float]) -> float:
        settings = Settings.at(logs, energy)
        problem = Reduced(stats, settings.mu, settings.weight_decay, bias_decay=0.0)
        end = descend(problem.at, problem.ridge(), tolerance=SKETCH, max_steps=60).point
        w, pull = end.w, end.inverse @ end.w  # H - X = (Y - X W^T - b) A^-1 W
        forward = float(np.vdot(pull, yx - w @ xx))
        second = yy - yx @ w.T - w @ yx.T + w @ xx @ w.T
        size = energy_here + 2 * forward + float(np.vdot(pull, second @ pull))
        explained = nuclear(x_m + stats.basis @ (pull.T @ (y_m - w @ seen_m))) ** 2
        return -explained / size if size > 0 else 0.0

    tried = {logs: missed(logs) for logs in track(GRID, "fitting MUFM")}
    best = min(tried, key=lambda logs: tried[logs])
    found = minimize(
        lambda logs: missed((logs.tolist()[0], logs.tolist()[1])),
        best,
        method="Nelder-Mead",
        options={"maxfev": REFINED, "xatol": 0.02, "fatol": 1e-5 * abs(tried[best])},
    )
    return Settings.at((found.x.tolist()[0], found.x.tolist()[1]), energy)


def choose_reading(judge: Judge, unit: Float[np.ndarray, "K d"], energy: float) -> Reading:
    """Search for the size of a readout of norm 1, and mu, of which the judge misses least."""

    def reading(logs: Sequence[float]) -> Reading:
        size, strength = (10 ** float(np.clip(log, -6, 6)) for log in logs)
        return Reading(unit * size / np.sqrt(energy), strength * size**2 / energy)

    def missed(logs: Sequence[float]) -> float:
        chosen = reading(logs)
        return judge.missed(chosen.w @ judge.basis, chosen.mu)

    grid = [(size, strength) for size in (-2.0, -1.0, 0.0, 1.0) for strength in (-2.0, -1.0, 0.0)]
    best = min(grid, key=missed)
    options = {"maxfev": 4 * REFINED, "xatol": 0.01, "fatol": 1e-6}
    found = minimize(lambda x: missed(x.tolist()), best, method="Nelder-Mead", options=options)
    return reading(found.x.tolist())


def expected_seconds(segment: Segment, classes: int) -> float:
    """About how long `Fit` takes on one core, within a factor of two: fitted to measurements."""
    n, d = segment.arrays[0].shape
    rank = min(n, d)
    newton = 2e-7 * min(rank**3, classes * (2 * classes + 1) ** 3) + 7e-7 * classes**3
    statistics = 1.2e-9 * n * d * rank
    layers = 4.5e-9 * len(segment.arrays) * n * d * min(rank, TURNED)
    return 1 + newton + statistics + layers


class Fit:
    """MUFM fitted to a segment, its settings chosen and judged on samples left out.

    Settings are chosen on half B of the samples, with the readout of half A. Then each half changes
    its part: readout, times and places come from B, and A, whose deeper layers nothing has seen,
    judges. What is returned uses all samples. Of processes that work together one fits: a minimiser
    that is hardly unique, of fewer features than classes say, follows the last digit of a sum.

    Raises
    ------
    FeatureError
        All samples enter the segment alike.
    """

    def __init__(
        self, segment: Segment, labels: Int[np.ndarray, " n"], at: Sequence[float] | None, seed: int
    ) -> None:
        self.segment, self.labels, self.at = segment, labels, at
        first = segment.arrays[0]
        mean, self.energy = processes.on_rank_zero(partial(_mean_and_energy, first))
        if self.energy <= 1e-24 * (self.energy + float(mean @ mean)):
            raise FeatureError(
                "MUFM has nothing to go by: all samples enter the last segment alike."
            )
        half = halves(labels, seed)
        whole = np.arange(len(labels))
        self.here = whole if half is None else np.flatnonzero(half)
        self.there = whole if half is None else np.flatnonzero(~half)
        self.halved = half is not None

    def mufm(self) -> tuple[MUFMSolution, Iterator[Prediction], HeldOut]:
        """MUFM with the settings that predict best."""
        there, arrays = self.there, self.segment.arrays
        steps = len(arrays) - 1
        settings = processes.on_rank_zero(self._settings)
        solution = fit_mufm(
            arrays[0],
            self.labels,
            layers=steps,
            weight_decay=settings.weight_decay,
            transport=settings.mu * steps,
            bias=True,
            restarts=0,
            tolerance=_TOLERANCE,
        )
        held_out = HeldOut()
        if self.halved:
            found, stats = processes.on_rank_zero(partial(self._solved, there, settings))
            check_converged(found)
            inputs = LazyRows(arrays[0].shape, lambda rows: as_float64(arrays[0][rows]))
            ends = features_of(found, stats, inputs, self.labels)
            held_out = self._held_out(ends, rotate=True)
        line = Line(solution.X.T, solution.H.T)
        return solution, along(self.segment, self.at, line, rotate=True), held_out

    def given(
        self, readout: Float[np.ndarray, "K d"]
    ) -> tuple[Reading, Iterator[Prediction], HeldOut] | None:
        """MUFM with the network's own readout; None where its rows do not differ.

        What all rows share cancels in the softmax, and is taken off.
        """
        shared = readout - readout.mean(0)
        top = float(np.linalg.norm(shared, 2))
        if top == 0:
            return None
        basis = np.linalg.svd(shared, full_matrices=False)[2].T
        layers = [select_rows(array, self.there) for array in self.segment.arrays]
        judge = Judge(layers, self.labels[self.there], basis, self.at)
        reading = processes.on_rank_zero(partial(choose_reading, judge, shared / top, self.energy))
        ends = reading.ends(self.segment.arrays[0], self.labels)
        held_out = self._held_out(ends, rotate=False) if self.halved else HeldOut()
        line = Line(self.segment.arrays[0], ends)
        return reading, along(self.segment, self.at, line), held_out

    def _settings(self) -> Settings:
        first, last = (select_rows(self.segment.arrays[i], self.there) for i in (0, -1))
        known = self._statistics(self.here)
        return choose(known, first, last, self.labels[self.there], self.energy)

    def _solved(
        self, chosen: Int[np.ndarray, " m"], settings: Settings
    ) -> tuple[Found, Statistics]:
        stats = self._statistics(chosen)
        problem = Reduced(stats, settings.mu, settings.weight_decay, bias_decay=0.0)
        return search(problem, tolerance=_TOLERANCE), stats

    def _statistics(self, chosen: Int[np.ndarray, " m"]) -> Statistics:
        inputs = select_rows(self.segment.arrays[0], chosen)
        return Statistics.of(inputs, self.labels[chosen], int(self.labels.max()) + 1)

    def _held_out(self, ends: LazyRows, *, rotate: bool) -> HeldOut:
        """Judge the path to `ends` on half A, with the times and places of half B."""
        here, there, arrays = self.here, self.there, self.segment.arrays
        judged, taught = (
            Line(select_rows(arrays[0], half), select_rows(ends, half)) for half in (here, there)
        )
        places = taught.places(
            [select_rows(array, there) for array in arrays], self.at, rotate=rotate
        )
        sums = np.zeros(4)
        for place_, array in islice(zip(places, arrays, strict=True), 1, None):
            layer = select_rows(array, here)
            said = judged.brought(place_, mean_of(layer))
            errors = Errors.of(said.features, said.still, layer, self.labels[here])
            if errors.variance > 0:  # every layer counts alike
                each = [errors.model, errors.input, errors.model_means, errors.input_means]
                sums += np.array(each) / errors.variance
        return HeldOut(gained(sums[0], sums[1]), gained(sums[2], sums[3]))


def _mean_and_energy(features: Sliceable) -> tuple[Float[np.ndarray, " d"], float]:
    """Mean of the samples, and their variance, of all features together."""
    mean = mean_of(features)
    (spread,) = sum_over_rows(lambda _, block: [float(np.sum((block - mean) ** 2))], features)
    return mean, spread / features.shape[0]


def halves(labels: Int[np.ndarray, " n"], seed: int) -> np.ndarray | None:
    """Half of every class, drawn at random; None where a class has one sample."""
    if np.bincount(labels).min() < 2:
        return None
    order = np.random.default_rng(seed).permutation(len(labels))
    rank = np.zeros(len(labels), dtype=np.int64)
    for k in np.unique(labels):
        mine = order[labels[order] == k]
        rank[mine] = np.arange(len(mine))
    return rank % 2 == 0
