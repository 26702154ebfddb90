"""MUFM's transport strength and weight decay, chosen for the best held-out predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
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
from ..ufm.mufm.fit import (
    SearchResult,
    check_converged,
    features_of,
    fit_mufm,
    multistart_newton,
)
from ..ufm.mufm.newton import trust_region_newton
from ..ufm.mufm.reduced_mse import ReducedMSE, Statistics, categorical_covariance
from ..ufm.mufm.solution import MUFMSolution
from .predictions import (
    MAX_DIRECTIONS,
    Block,
    Errors,
    Prediction,
    StraightPath,
    TargetSubspace,
    end_time,
    fit_scale,
    nuclear_norm,
    path_predictions,
    relative_gain,
)
from .result import ClassifierModel, HeldOut

# Newton's decrement at which a fit during the search stops; features are accurate to about 0.1 %
_SEARCH_TOLERANCE = 1e-3
_TOLERANCE = 1e-6  # Newton's decrement of the final fit
# Evaluations of Nelder-Mead after the grid; 4 times as many for the network's own classifier
REFINEMENTS = 20
# Grid of log10 sqrt(lw mu) and log10 (sqrt(lw / mu) / energy), with lw the weight decay and energy
# the mean squared distance of the first layer's samples from their mean. With K balanced classes
# and inputs near zero, the best W is zero if sqrt(lw mu) >= 1 / sqrt(K). sqrt(lw / mu) / energy is
# about the ratio of the last layer's variance to the first layer's.
GRID = [
    (strength, growth) for strength in (-1.3, -2.0, -3.0, -4.0) for growth in (-1.0, 0.0, 1.0, 2.0)
]
LIMITS = ((-8.0, 1.0), (-6.0, 6.0))  # lowest and highest value of each logarithm


@dataclass(frozen=True)
class Settings:
    """The two free parameters of MUFM."""

    mu: float  # transport strength of the whole path
    weight_decay: float

    @classmethod
    def at(cls, logs: Sequence[float], energy: float) -> Settings:
        """Convert logarithms as in `GRID`."""
        strength, growth = (
            float(np.clip(log, *limits)) for log, limits in zip(logs, LIMITS, strict=True)
        )
        ratio = 10**growth * energy
        return cls(10**strength / ratio, 10**strength * ratio)


@dataclass(frozen=True, eq=False)
class Scorer:
    """Scores classifiers W and strengths mu by how well MUFM predicts a segment's layers.

    Sums over samples are formed once, so the cost of each further score does not depend on n.
    """

    layers: Sequence[Sliceable]  # beginning with the input
    labels: Int[np.ndarray, " n"]
    basis: Float[np.ndarray, "d r"]  # orthonormal; spans the rows of every classifier
    times: Sequence[float] | None  # of the layers; if None, those of inner layers are fitted

    @cached_property
    def _moments(self) -> tuple[np.ndarray, ...]:
        """Sums over samples, from which all scores are computed.

        X is the first layer, Y are the one-hot labels, and H_l is a later layer, all centered. The
        first five results are X^T X, Y^T X, Y^T Y, every X^T H_l and every Y^T H_l. In these, X and
        H_l are in coordinates of the basis. The last two use all features: <X, X> followed by every
        <X, H_l>, and every <H_l, H_l>.
        """
        first, classes = self.layers[0], int(self.labels.max()) + 1
        first_mean = mean_of(first)

        def of_first(rows: slice, x: Block) -> list[Any]:
            centered = x - first_mean
            z, size = centered @ self.basis, float(np.sum(centered**2))
            return [z.T @ z, sums_by_class(z, self.labels[rows], classes), size]

        def of_later(layer: Sliceable) -> list[Any]:
            mean = mean_of(layer)

            def sums(rows: slice, x: Block, h: Block) -> list[Any]:
                start, centered = x - first_mean, h - mean
                z = centered @ self.basis
                of_y = sums_by_class(z, self.labels[rows], classes)
                sizes = [float(np.vdot(start, centered)), float(np.vdot(centered, centered))]
                return [(start @ self.basis).T @ z, of_y, *sizes]

            return sum_over_rows(sums, first, layer)

        xx, yx, first_size = sum_over_rows(of_first, first)
        yy = _label_products(self.labels, classes)
        later = map(of_later, self.layers[1:])
        of_x, of_y, with_first, sizes = map(np.stack, zip(*later, strict=True))
        return xx, yx, yy, of_x, of_y, np.array([first_size, *with_first]), sizes

    def unexplained_variance(self, w: Float[np.ndarray, "K r"], mu: float) -> float:
        """Return the unexplained fraction of variance, averaged over the later layers.

        The prediction of a layer is X + t (H - X), shifted and scaled to fit, with
        H - X = (Y - X W^T - b) (W W^T + mu I)^-1 W. W is in coordinates of the basis.
        """
        xx, yx, yy, x_layers, y_layers, with_first, sizes = self._moments
        pull = np.linalg.solve(w @ w.T + mu * np.eye(len(w)), w)
        forward, distance = _path_products(pull, w, xx, yx, yy)
        with_layers = (pull * (y_layers - w @ x_layers)).sum((1, 2))  # <H - X, H_l>
        products = (float(with_first[0]), forward, distance)
        unexplained = []
        for i, size in enumerate(sizes, start=1):
            t = end_time(i, len(self.layers)) if self.times is None else self.times[i]
            layer_products = (float(with_first[i]), float(with_layers[i - 1]))
            explained = fit_scale(products, layer_products, t)[2]
            unexplained.append(1 - explained / size if size > 0 else 0.0)
        return float(np.mean(unexplained))


def _label_products(labels: Int[np.ndarray, " n"], classes: int) -> Float[np.ndarray, "K K"]:
    """Return Y^T Y of the centered one-hot labels Y."""
    frequencies = np.bincount(labels, minlength=classes) / len(labels)
    return len(labels) * categorical_covariance(frequencies)


def _path_products(
    pull: Float[np.ndarray, "K r"],
    w: Float[np.ndarray, "K r"],
    xx: Float[np.ndarray, "r r"],
    yx: Float[np.ndarray, "K r"],
    yy: Float[np.ndarray, "K K"],
) -> tuple[float, float]:
    """Return <H - X, X> and |H - X|^2 for H - X = E `pull`, with the residuals E = Y - X W^T."""
    residuals = yy - yx @ w.T - w @ yx.T + w @ xx @ w.T  # E^T E
    return float(np.vdot(pull, yx - w @ xx)), float(np.vdot(pull, residuals @ pull))


def choose_classifier_model(
    scorer: Scorer, unit: Float[np.ndarray, "K d"], energy: float
) -> ClassifierModel:
    """Choose mu and the classifier's norm, which is 1 for `unit`, to predict the layers best."""

    def model_at(logs: Sequence[float]) -> ClassifierModel:
        # The norm is in units of 1 / sqrt(energy), and mu in units of the squared norm.
        norm, mu = (10 ** float(np.clip(log, -6, 6)) for log in logs)
        return ClassifierModel(unit * norm / np.sqrt(energy), mu * norm**2 / energy)

    def score(logs: Sequence[float]) -> float:
        model = model_at(logs)
        return scorer.unexplained_variance(model.w @ scorer.basis, model.mu)

    grid = [
        (log_norm, log_mu) for log_norm in (-2.0, -1.0, 0.0, 1.0) for log_mu in (-2.0, -1.0, 0.0)
    ]
    best = min(grid, key=score)
    options = {"maxfev": 4 * REFINEMENTS, "xatol": 0.01, "fatol": 1e-6}
    optimum = minimize(lambda x: score(x.tolist()), best, method="Nelder-Mead", options=options)
    return model_at(optimum.x.tolist())


def expected_seconds(segment: Segment, classes: int) -> float:
    """Estimate the time of `MUFMFit` on one core, within a factor of two, from measurements."""
    n, d = segment.arrays[0].shape
    rank = min(n, d)
    newton = 2e-7 * min(rank**3, classes * (2 * classes + 1) ** 3) + 7e-7 * classes**3
    statistics = 1.2e-9 * n * d * rank
    layers = 4.5e-9 * len(segment.arrays) * n * d * min(rank, MAX_DIRECTIONS)
    return 1 + newton + statistics + layers


class MUFMFit:
    """MUFM fitted to a segment, with settings chosen and scored on held-out samples.

    The settings are chosen by predictions of half B of the samples, with a classifier fitted to
    the first layer and the labels of half A. Then the halves are swapped: classifier, fitted times
    and layer fits come from B, and the held-out scores from A.
    The solution uses all samples. If a class has a single sample, the settings use all samples too,
    and there are no held-out scores.

    If there are several processes, only one of them fits MUFM. If sums were distributed over the
    processes, their rounding would change a nearly degenerate minimizer (for example with fewer
    features than classes).
    """

    def __init__(
        self,
        segment: Segment,
        labels: Int[np.ndarray, " n"],
        times: Sequence[float] | None,
        seed: int,
    ) -> None:
        self.segment, self.labels, self.times = segment, labels, times
        first = segment.arrays[0]
        mean, self.energy = processes.on_rank_zero(partial(_mean_and_energy, first))
        if self.energy <= 1e-24 * (self.energy + float(mean @ mean)):
            raise FeatureError(
                "MUFM cannot be fitted: all samples have the same features in the first layer of "
                "the last segment."
            )
        half = random_half(labels, seed)
        all_rows = np.arange(len(labels))
        self.half_a = all_rows if half is None else np.flatnonzero(half)
        self.half_b = all_rows if half is None else np.flatnonzero(~half)
        self.halved = half is not None

    def fit(self) -> tuple[MUFMSolution, Iterator[Prediction], HeldOut]:
        """Return the solution with the best settings, its predictions and its held-out scores."""
        arrays = self.segment.arrays
        steps = len(arrays) - 1
        settings = processes.on_rank_zero(self._settings)
        solution = fit_mufm(
            arrays[0],
            self.labels,
            layers=steps,
            weight_decay=settings.weight_decay,
            transport=settings.mu * steps,
            bias="free",
            restarts=0,
            tolerance=_TOLERANCE,
        )
        held_out = HeldOut()
        if self.halved:
            result, stats = processes.on_rank_zero(partial(self._solve, settings))
            check_converged(result)
            inputs = LazyRows(arrays[0].shape, lambda rows: as_float64(arrays[0][rows]))
            ends = features_of(result, stats, inputs, self.labels)
            held_out = self._held_out(ends, rotate=True)
        path = StraightPath(solution.X, solution.H)
        predictions = path_predictions(self.segment, self.times, path, rotate=True)
        return solution, predictions, held_out

    def fit_with_classifier(
        self, weight: Float[np.ndarray, "K d"]
    ) -> tuple[ClassifierModel, Iterator[Prediction], HeldOut] | None:
        """Return MUFM with the network's own classifier, its predictions and its held-out scores.

        The mean of the classifier's rows is subtracted, because it cancels in the softmax. None if
        all rows are equal.
        """
        centered = weight - weight.mean(0)
        norm = float(np.linalg.norm(centered, 2))
        if norm == 0:
            return None
        basis = np.linalg.svd(centered, full_matrices=False)[2].T
        layers = [select_rows(array, self.half_b) for array in self.segment.arrays]
        scorer = Scorer(layers, self.labels[self.half_b], basis, self.times)
        choice = partial(choose_classifier_model, scorer, centered / norm, self.energy)
        model = processes.on_rank_zero(choice)
        ends = model.last_layer(self.segment.arrays[0], self.labels)
        held_out = self._held_out(ends, rotate=False) if self.halved else HeldOut()
        path = StraightPath(self.segment.arrays[0], ends)
        return model, path_predictions(self.segment, self.times, path), held_out

    def _settings(self) -> Settings:
        """Search for the settings for which a classifier fitted to half A predicts half B best.

        The prediction H of half B is shifted, scaled and rotated to fit the measured last layer M.
        The unexplained fraction of M's variance is then 1 - ||H^T M||_*^2 / (||H||^2 ||M||^2). A
        wide M is restricted to its `TargetSubspace`.
        """
        stats, labels = self._statistics(self.half_a), self.labels[self.half_b]
        first, last = (select_rows(self.segment.arrays[i], self.half_b) for i in (0, -1))
        x_mean, m_mean = mean_of(first), mean_of(last)
        target = TargetSubspace.of_layer(last, m_mean)
        classes = len(stats.y_mean)
        yy = _label_products(labels, classes)

        def moments(rows: slice, start: Block, end: Block) -> list[Any]:
            x, m = start - x_mean, target.project(end - m_mean)
            z = x @ stats.basis
            of_y = (sums_by_class(each, labels[rows], classes) for each in (z, m))
            return [float(np.vdot(x, x)), z.T @ z, x.T @ m, *of_y]

        x_size, xx, x_m, yx, y_m = sum_over_rows(moments, first, last)
        z_m = stats.basis.T @ x_m

        def negative_explained(logs: Sequence[float]) -> float:
            settings = Settings.at(logs, self.energy)
            problem = ReducedMSE(stats, settings.mu, settings.weight_decay, bias_decay=0.0)
            end = trust_region_newton(
                problem.at, problem.ridge(), tolerance=_SEARCH_TOLERANCE, max_steps=60
            ).point
            w, pull = end.w, end.inverse @ end.w  # H - X = (Y - X W^T - b) A^-1 W
            forward, distance = _path_products(pull, w, xx, yx, yy)
            size = x_size + 2 * forward + distance
            explained = nuclear_norm(x_m + stats.basis @ (pull.T @ (y_m - w @ z_m))) ** 2
            return -explained / size if size > 0 else 0.0

        scores = {logs: negative_explained(logs) for logs in track(GRID, "fitting MUFM")}
        best = min(scores, key=lambda logs: scores[logs])
        optimum = minimize(
            lambda logs: negative_explained(logs.tolist()),
            best,
            method="Nelder-Mead",
            options={"maxfev": REFINEMENTS, "xatol": 0.02, "fatol": 1e-5 * abs(scores[best])},
        )
        return Settings.at(optimum.x.tolist(), self.energy)

    def _solve(self, settings: Settings) -> tuple[SearchResult, Statistics]:
        """Fit the classifier to half B."""
        stats = self._statistics(self.half_b)
        problem = ReducedMSE(stats, settings.mu, settings.weight_decay, bias_decay=0.0)
        return multistart_newton(problem, tolerance=_TOLERANCE), stats

    def _statistics(self, samples: Int[np.ndarray, " m"]) -> Statistics:
        inputs = select_rows(self.segment.arrays[0], samples)
        return Statistics.of(inputs, self.labels[samples], int(self.labels.max()) + 1)

    def _held_out(self, ends: LazyRows, *, rotate: bool) -> HeldOut:
        """Score the path to `ends` on half A, with times and layer fits from half B."""
        arrays, labels = self.segment.arrays, self.labels[self.half_a]
        score_path, fit_path = (
            StraightPath(select_rows(arrays[0], half), select_rows(ends, half))
            for half in (self.half_a, self.half_b)
        )
        layers = [select_rows(array, self.half_b) for array in arrays]
        fits = fit_path.fit_layers(layers, self.times, rotate=rotate)
        sums = np.zeros(4)
        for fit, array in islice(zip(fits, arrays, strict=True), 1, None):
            layer = select_rows(array, self.half_a)
            prediction = score_path.predict(replace(fit, mean=mean_of(layer)))
            errors = Errors.of(prediction.features, prediction.baseline, layer, labels)
            if errors.variance > 0:  # every layer has the same weight
                terms = [errors.model, errors.baseline, errors.model_means, errors.baseline_means]
                sums += np.array(terms) / errors.variance
        return HeldOut(relative_gain(sums[0], sums[1]), relative_gain(sums[2], sums[3]))


def _mean_and_energy(features: Sliceable) -> tuple[Float[np.ndarray, " d"], float]:
    """Return the mean of the samples, and their mean squared distance from it."""
    mean = mean_of(features)
    (total,) = sum_over_rows(lambda _, block: [float(np.sum((block - mean) ** 2))], features)
    return mean, total / features.shape[0]


def random_half(labels: Int[np.ndarray, " n"], seed: int) -> np.ndarray | None:
    """Return a mask of a random half of every class; None if a class has fewer than two samples."""
    if np.bincount(labels).min() < 2:
        return None
    order = np.random.default_rng(seed).permutation(len(labels))
    rank = np.zeros(len(labels), dtype=np.int64)
    for k in np.unique(labels):
        members = order[labels[order] == k]
        rank[members] = np.arange(len(members))
    return rank % 2 == 0
