"""Few samples per class: undefined values, and estimates of the population's values."""

from __future__ import annotations

import numpy as np
import pytest

import wgeo
from wgeo.neural_collapse import collapse_of
from wgeo.neural_collapse.bootstrap import layer_with_intervals
from wgeo.neural_collapse.small_samples import SmallSampleEstimates
from wgeo.thresholds import FEW_SAMPLES


def population(rng, classes, width, each, *, within=1.96, between=1.0):
    """Normal classes: means N(0, between I), samples N(mean, within I)."""
    means = np.sqrt(between) * rng.standard_normal((classes, width))
    labels = np.repeat(np.arange(classes), each)
    noise = np.sqrt(within) * rng.standard_normal((len(labels), width))
    return means, means[labels] + noise, labels


def test_one_sample_per_class_leaves_metrics_undefined(rng):
    _, x, y = population(rng, 6, 4, 1)
    found = collapse_of(x, y)
    for metric in ("nc1", "nc1_quotient", "cdnv", "ncc_accuracy", "nc2_etf", "nc2_equinorm"):
        assert getattr(found, metric) is None
        assert found.undefined[metric] == "every class has a single sample"
    assert found.samples_per_class == 1
    assert found.nc1_corrected is found.cdnv_corrected is found.ncc_accuracy_corrected is None


def test_the_rank_of_single_samples_leaves_out_rounding(rng):
    """Four samples in a plane, apart from the rounding of float32 along the third axis."""
    x = rng.standard_normal((4, 3)) * [1, 1, 1e-9]
    for points in (x, x.astype(np.float32) + np.float32([0, 0, 1])):
        expected = collapse_of(points.repeat(2, 0), np.arange(4).repeat(2)).rank
        assert collapse_of(points, np.arange(4)).rank == expected == 2


@pytest.mark.parametrize("draw", range(8))
def test_four_samples_per_class_estimate_the_population(draw):
    """K = 1,000, d = 64: the population's NC1 is 64 * 1.96 / 1000 = 0.125, its CDNV 0.98.

    In some draws sampling hides the distance of a pair or two of 499,500; they decide nothing.
    """
    _, x, y = population(np.random.default_rng(draw), 1000, 64, 4)
    found = collapse_of(x, y)
    assert found.nc1 == pytest.approx(0.067, rel=0.05)  # the plug-in value, half as large
    assert found.cdnv == pytest.approx(0.505, rel=0.05)
    assert found.nc1_corrected == pytest.approx(0.1254, rel=0.1)
    assert found.cdnv_corrected == pytest.approx(0.98, rel=0.1)


def estimates_of(counts, variances):
    """Classes with these variances, whose means span one axis."""
    one, means = np.ones((1, 1)), np.zeros((len(counts), 1))
    moments = np.array(counts), np.array(variances), "uniform", one[0], means
    return SmallSampleEstimates(*moments, 0 * one, width=3, within_square=0.0)


def test_the_inverse_distance_of_a_pair_is_bounded():
    """A pair whose distance is estimated as 0 adds nothing; before, it dominated the mean."""
    points = np.r_[0.0, np.arange(1, 21)]
    squares = (points[:, None] - points)[np.triu_indices(21, 1)] ** 2
    counts, variances = [2] * 21, [0.1] * 21
    whole = estimates_of(counts, variances).cdnv(squares)
    expected = (0.2 / (squares - 0.2)).mean()  # v = 0.2, and v/n of either class taken off
    assert whole == pytest.approx(expected)
    squares[0] = 0.2  # the first pair's estimated distance is 0: hidden
    assert estimates_of(counts, variances).cdnv(squares) == pytest.approx(
        expected - 0.2 / 0.8 / len(squares)
    )
    squares[: len(squares) // 10] = 0.2
    assert estimates_of(counts, variances).cdnv(squares) is None  # of every tenth pair


@pytest.mark.parametrize("each", [4, 8])
def test_in_many_dimensions_the_classes_themselves_are_estimated(each, rng):
    """K = 10 classes in 200 dimensions, whose own NC1 with Sigma_W = 1.96 I is exact."""
    truths, estimates, plugins = [], [], []
    for _ in range(20):
        means, x, y = population(rng, 10, 200, each)
        centered = means - means.mean(0)
        sigma = np.linalg.svd(centered / np.sqrt(10), compute_uv=False)[:9]
        truths.append((1.96 / sigma**2).sum() / 10)
        found = collapse_of(x, y)
        estimates.append(found.nc1_corrected)
        plugins.append(found.nc1)
    assert np.mean(estimates) == pytest.approx(np.mean(truths), rel=0.1)
    assert abs(np.mean(estimates) - np.mean(truths)) < 0.5 * abs(np.mean(plugins) - np.mean(truths))


def test_frequency_weights_reduce_the_noise_of_unequal_classes(rng):
    """Classes of 3 or 40 samples in 200 dimensions: the noise is tr(S_W)/N in every direction.

    Equal weights would put it at four times that, and find no eigenvalue of Sigma_B above it.
    """
    counts = np.tile([3, 40], 5)
    y, weights = np.repeat(np.arange(10), counts), counts / counts.sum()
    truths, estimates = [], []
    for _ in range(20):
        means = rng.standard_normal((10, 200))
        centered = np.sqrt(weights)[:, None] * (means - weights @ means)
        sigma = np.linalg.svd(centered, compute_uv=False)[:9]
        truths.append((1.96 / sigma**2).sum() / 10)
        x = means[y] + 1.4 * rng.standard_normal((len(y), 200))
        estimates.append(collapse_of(x, y, weights="frequency").nc1_corrected)
    assert np.mean(estimates) == pytest.approx(np.mean(truths), rel=0.15)


@pytest.mark.parametrize("weights", ["uniform", "frequency", "sample_mean"])
def test_a_population_of_classes_is_estimated_alike_with_all_weights(weights, rng):
    """K = 200, d = 20, classes of 3 or 40 samples: the population's NC1 is 20 * 0.5 / 200."""
    y = np.repeat(np.arange(200), np.tile([3, 40], 100))
    means = rng.standard_normal((200, 20))
    x = means[y] + np.sqrt(0.5) * rng.standard_normal((len(y), 20))
    assert collapse_of(x, y, weights=weights).nc1_corrected == pytest.approx(0.05, rel=0.1)


def test_nearest_means_leave_out_the_sample(rng):
    _, x, y = population(rng, 8, 5, 3)
    hits = 0
    for i in range(len(y)):
        others = np.arange(len(y)) != i
        means = [x[others & (y == k)].mean(0) for k in range(8)]
        hits += np.argmin([np.sum((x[i] - m) ** 2) for m in means]) == y[i]
    found = collapse_of(x, y)
    assert found.ncc_accuracy_corrected == pytest.approx(hits / len(y))
    assert found.ncc_accuracy_corrected < found.ncc_accuracy


def test_enough_samples_need_no_correction(rng):
    _, x, y = population(rng, 5, 4, FEW_SAMPLES)
    found = collapse_of(x, y)
    assert found.nc1_corrected is found.cdnv_corrected is None
    assert "nc1_corrected" not in found.to_dict()["collapse"]


def test_complete_collapse_stays_complete(rng):
    means = rng.standard_normal((6, 10))
    y = np.repeat(np.arange(6), 3)
    found = collapse_of(means[y], y)
    assert found.nc1_corrected == pytest.approx(0, abs=1e-12)
    assert found.cdnv_corrected == pytest.approx(0, abs=1e-12)
    assert found.ncc_accuracy_corrected == 1


def test_classes_that_sampling_hides_are_undefined(rng):
    _, x, y = population(rng, 40, 5, 2, between=0.0)
    found = collapse_of(x, y)
    assert found.cdnv_corrected is None


def test_corrected_values_do_not_depend_on_batches_or_order(rng):
    _, x, y = population(rng, 30, 40, 4, within=0.02)
    whole = collapse_of(x, y)
    order = rng.permutation(len(y))
    parts = np.array_split(order, 7)
    streamed = wgeo.collapse(lambda: [({"a": x[p]}, y[p]) for p in parts]).layers[0]
    for metric in ("nc1_corrected", "cdnv_corrected", "ncc_accuracy_corrected"):
        assert getattr(streamed, metric) == pytest.approx(getattr(whole, metric), rel=1e-9)


@pytest.mark.parametrize("offset", [0, 3])
def test_the_sample_of_many_rows_does_not_depend_on_batches_or_order(offset, rng):
    """560 samples, of which 512 are compared with each other."""
    _, x, y = population(rng, 40, 50, 14, within=0.1)
    whole = collapse_of(x + offset, y)
    for _ in range(3):
        parts = np.array_split(rng.permutation(len(y)), 5)
        batches = [({"a": x[p] + offset}, y[p]) for p in parts]
        streamed = wgeo.collapse(lambda batches=batches: batches).layers[0]
        for metric in ("nc1_corrected", "cdnv_corrected"):
            assert getattr(streamed, metric) == pytest.approx(getattr(whole, metric), rel=1e-11)


@pytest.mark.parametrize("each", [4, 30])
def test_intervals_cover_the_population(each):
    """About 95 % of them: fewer than 33 of 40 would happen once in 700 times."""
    name = "nc1_corrected" if each < FEW_SAMPLES else "nc1"
    covered = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        means = np.random.default_rng(9).standard_normal((12, 40))
        y = np.repeat(np.arange(12), each)
        x = means[y] + 0.5 * rng.standard_normal((len(y), 40))
        traj = wgeo.Trajectory.from_arrays([x, x], y)
        low, high = wgeo.collapse(traj, bootstrap=40, seed=seed).layers[0].intervals[name]
        sigma = np.linalg.svd((means - means.mean(0)) / np.sqrt(12), compute_uv=False)[:11]
        covered += low <= (0.25 / sigma**2).sum() / 12 <= high
    assert covered >= 33


def test_intervals_are_in_the_record(rng):
    _, x, y = population(rng, 5, 4, 30)
    layer = wgeo.collapse(wgeo.Trajectory.from_arrays([x, x], y), bootstrap=30).layers[0]
    ends = layer.to_dict()["collapse"]["intervals"]
    assert ends["nc1"][0] < layer.nc1 < ends["nc1"][1]
    assert ends["ncc_accuracy"][0] < layer.ncc_accuracy < ends["ncc_accuracy"][1]


def test_an_interval_of_an_undefined_metric_is_left_out(rng):
    _, x, y = population(rng, 4, 3, 1)
    layer = collapse_of(x, y)
    assert layer_with_intervals(layer, [layer, layer], np.ones(4, int)).intervals == {}
