"""MUFM's transport strength and weight decay, chosen by how well they predict samples left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize

from ..errors import FeatureError
from ..progress import track
from ..trajectory import Segment
from ..ufm.multilayer import MUFMSolution, fit_mufm
from ..ufm.newton import descend
from ..ufm.reduced import Reduced, Statistics
from .placing import TURNED, Aim, Features, Placing, centred, nuclear
from .predictions import Errors, Prediction, along, fixed_time, gained, place, placed
from .result import HeldOut, Reading

SKETCH = 1e-3  # Newton's decrement in the search: features to about a thousandth
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
    layers : sequence of ndarray, (n, d)
        Of the segment, the input first.
    labels : ndarray of int, (n,)
    basis : ndarray, (d, r)
        Orthonormal directions that hold the rows of every readout to be judged.
    at : sequence of float, or None
        Time of every layer; None where it is the nearest on the path.
    """

    layers: Sequence[Float[np.ndarray, "n d"]]
    labels: Int[np.ndarray, " n"]
    basis: Float[np.ndarray, "d r"]
    at: Sequence[float] | None

    @cached_property
    def _moments(self) -> tuple[np.ndarray, ...]:
        """Second moments of x with itself, labels and layers; sums over samples."""
        first = centred(self.layers[0].astype(np.float64))
        x = first @ self.basis
        y = centred(np.eye(int(self.labels.max()) + 1)[self.labels])
        of_x, of_y, with_first, sizes = [], [], [np.vdot(first, first)], []
        for array in self.layers[1:]:
            layer = centred(array.astype(np.float64))
            seen = layer @ self.basis
            of_x.append(x.T @ seen)
            of_y.append(y.T @ seen)
            with_first.append(np.vdot(first, layer))
            sizes.append(np.vdot(layer, layer))
        sums = (np.stack(of_x), np.stack(of_y), np.array(with_first), np.array(sizes))
        return (x.T @ x, y.T @ x, y.T @ y, *sums)

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
    first: Features,
    last: Features,
    labels: Int[np.ndarray, " n"],
    energy: float,
) -> Settings:
    """Search for the settings whose readout, fitted to `stats`, predicts `last` best in shape.

    `first` and `last` are layers of other samples. H may be shifted, scaled and turned to fit the
    last layer M: it misses 1 - ||H^T M||_*^2 / (||H||^2 ||M||^2) of it. Of a wide M only the
    leading directions count, as in `Aim`.
    """
    x, m = centred(first), centred(last)
    y = centred(np.eye(int(labels.max()) + 1)[labels])
    seen = x @ stats.basis
    xx, yx, yy, energy_here = seen.T @ seen, y.T @ seen, y.T @ y, float(np.vdot(x, x))
    aim = Aim.at(m).seen
    x_m, seen_m, y_m = x.T @ aim, seen.T @ aim, y.T @ aim

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
    judges. What is returned uses all samples.

    Raises
    ------
    FeatureError
        All samples enter the segment alike.
    """

    def __init__(
        self, segment: Segment, labels: Int[np.ndarray, " n"], at: Sequence[float] | None, seed: int
    ) -> None:
        self.segment, self.labels, self.at = segment, labels, at
        self.first, self.last = (segment.arrays[i].astype(np.float64) for i in (0, -1))
        self.energy = float(np.sum(self.first.var(0)))
        if self.energy <= 1e-24 * float(np.mean(np.sum(self.first**2, axis=1))):
            raise FeatureError(
                "MUFM has nothing to go by: all samples enter the last segment alike."
            )
        self.half = halves(labels, seed)
        everyone = np.ones(len(labels), dtype=bool)
        self.here = everyone if self.half is None else self.half
        self.there = everyone if self.half is None else ~self.half

    def mufm(self) -> tuple[MUFMSolution, Iterator[Prediction], HeldOut]:
        """MUFM with the settings that predict best."""
        first, classes = self.first, int(self.labels.max()) + 1
        stats = Statistics.of(first[self.here], self.labels[self.here], classes)
        there = self.there
        settings = choose(stats, first[there], self.last[there], self.labels[there], self.energy)

        def solved(rows: np.ndarray) -> MUFMSolution:
            steps = len(self.segment.arrays) - 1
            return fit_mufm(
                first[rows],
                self.labels[rows],
                layers=steps,
                weight_decay=settings.weight_decay,
                transport=settings.mu * steps,
                bias=True,
                restarts=0,
                tolerance=1e-6,
            )

        everyone = solved(np.ones(len(first), dtype=bool))
        held_out = HeldOut()
        if self.half is not None:
            held_out = self._held_out(solved(there).apply(first, self.labels), rotate=True)
        predicted = along(self.segment, self.at, everyone.X.T, everyone.H.T, rotate=True)
        return everyone, predicted, held_out

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
        reading = choose_reading(self._judge(basis), shared / top, self.energy)
        last = reading.features(self.first, self.labels)
        held_out = HeldOut() if self.half is None else self._held_out(last, rotate=False)
        return reading, along(self.segment, self.at, centred(self.first), last), held_out

    def _judge(self, basis: Float[np.ndarray, "d r"]) -> Judge:
        return Judge(self._of(self.there), self.labels[self.there], basis, self.at)

    def _of(self, rows: np.ndarray) -> list[Float[np.ndarray, "n d"]]:
        return [array[rows] for array in self.segment.arrays]

    def _held_out(self, last: Features, *, rotate: bool) -> HeldOut:
        """Judge the path to `last` on half A, with the times and places of half B."""
        first, taught = self.first, self.there
        places = placed(self._of(taught), self.at, first[taught], last[taught], rotate)
        sums = np.zeros(4)
        pairs = zip(places, self.segment.arrays, strict=True)
        for (t, placing, aim), array in islice(pairs, 1, None):
            layer = array.astype(np.float64)
            stay = Placing.of(centred(first[taught]), centred(layer[taught]), aim)
            measured, path = layer[~taught], ((1 - t) * first + t * last)[~taught]
            mean = measured.mean(0)
            errors = Errors.of(
                mean + placing(centred(path)),
                mean + stay(centred(first[~taught])),
                measured,
                self.labels[~taught],
            )
            if errors.variance > 0:  # every layer counts alike
                each = [errors.model, errors.input, errors.model_means, errors.input_means]
                sums += np.array(each) / errors.variance
        return HeldOut(gained(sums[0], sums[1]), gained(sums[2], sums[3]))


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
