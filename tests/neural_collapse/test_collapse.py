"""Collapse: known answers, an explicit d x d reference, streams, undefined values, progress."""

from __future__ import annotations

import importlib
import itertools
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from wgeo.errors import ArgumentError, FeatureError
from wgeo.neural_collapse import (
    CollapseStream,
    LayerCollapse,
    collapse,
    collapse_of,
    collapse_stream,
)
from wgeo.neural_collapse.bootstrap import with_interval
from wgeo.neural_collapse.depth import FALLING, Progress, progress
from wgeo.neural_collapse.measure import LayerPasses
from wgeo.neural_collapse.metrics import Frame, distance_to_etf
from wgeo.neural_collapse.moments import WEIGHTS, ClassIndex, RowSample
from wgeo.trajectory import Classifier, Trajectory

RECORD = [
    *("nc1", "nc1_quotient", "nc2_equinorm", "nc2_equiangle", "nc2_etf"),
    *("ncc_accuracy", "cdnv", "effective_rank", "within", "between"),
]
NUMBERS = [*RECORD, "mean_angle", "max_coherence", "stable_rank", "participation_ratio"]


# --- published scripts ----------------------------------------------------------------------------


def test_values_of_published_scripts_after_conversion(rng, monkeypatch):
    """Every definition of benchmarks/definitions.py agrees in float64, for unequal classes."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    scripts = importlib.import_module("definitions")
    H, y = clusters(rng, [60, 40, 25, 12, 8], 7)
    rows = scripts.compare(H, y, rng.normal(size=(5, 7)), rng.normal(size=5))
    assert len(rows) == len(scripts.DEFINITIONS)
    for row in rows:
        assert row["float64"] > 10, row
        assert row["float32"] > 3, row
    by_weights = {row["weights"]: abs(row["uniform"]) for row in rows if "NC1" in row["metric"]}
    assert by_weights["sample_mean"] > 0.01 > by_weights["uniform"]  # the choice matters here


# --- the slow obvious reference: every matrix explicit, float64 -----------------------------------


def reference(H, y, *, W=None, predictions=None, weights="uniform"):
    """All metrics by their definitions, through the d x d covariances and numpy's pinv."""
    H, classes = np.asarray(H, dtype=np.float64), np.unique(y)
    N, d = H.shape
    K = len(classes)
    means = np.array([H[y == k].mean(0) for k in classes])
    equal, sizes = np.full(K, 1 / K), np.array([np.mean(y == k) for k in classes])
    share = sizes if weights == "frequency" else equal
    g = (equal[:, None] * means).sum(0) if weights == "uniform" else H.mean(0)
    M = means - g
    sigma_w, sigma_b = np.zeros((d, d)), np.zeros((d, d))
    for k in range(K):
        R = H[y == classes[k]] - means[k]
        sigma_w += R.T @ R / N
        sigma_b += share[k] * np.outer(M[k], M[k])
    pairs = list(itertools.permutations(range(K), 2))
    norms = [np.linalg.norm(m) for m in M]
    cosines = [M[a] @ M[b] / (norms[a] * norms[b]) for a, b in pairs]
    var = [np.mean(np.sum((H[y == classes[k]] - means[k]) ** 2, 1)) for k in range(K)]
    etf = (np.eye(K) - 1 / K) / math.sqrt(K - 1)
    gram = M @ M.T
    nearest = np.array([np.argmin([np.sum((h - m) ** 2) for m in means]) for h in H])
    s = np.linalg.svd(H - g, compute_uv=False)
    p = s[s > 1e-12 * s[0]] / s.sum()
    found = {
        "nc1": np.trace(sigma_w @ np.linalg.pinv(sigma_b, rcond=1e-13, hermitian=True)) / K,
        "nc1_quotient": np.trace(sigma_w) / np.trace(sigma_b),
        "nc2_equinorm": np.std(norms) / np.mean(norms),
        "nc2_equiangle": np.mean([abs(c + 1 / (K - 1)) for c in cosines]),
        "nc2_etf": np.linalg.norm(gram / np.linalg.norm(gram) - etf),
        "ncc_accuracy": np.mean(classes[nearest] == y),
        "cdnv": np.mean(
            [(var[a] + var[b]) / (2 * np.sum((means[a] - means[b]) ** 2)) for a, b in pairs]
        ),
        "effective_rank": math.exp(-np.sum(p * np.log(p))),
        "stable_rank": np.sum(s**2) / s[0] ** 2,
        "participation_ratio": np.sum(s**2) ** 2 / np.sum(s**4),
        "within": np.trace(sigma_w),
        "between": np.trace(sigma_b),
        "mean_angle": np.mean(np.degrees(np.arccos(np.clip(cosines, -1, 1)))),
        "max_coherence": np.max(np.abs(cosines)),
    }
    if W is not None:
        W = np.asarray(W, dtype=np.float64)[classes]
        cross = W @ M.T
        found["nc3"] = np.linalg.norm(cross / np.linalg.norm(cross) - etf)
        found["nc3_papyan"] = np.linalg.norm(W / np.linalg.norm(W) - M / np.linalg.norm(M))
    if predictions is not None:
        found["ncc_mismatch"] = np.mean(classes[nearest] != predictions)
    return found


def assert_equal(layer: LayerCollapse, expected: dict[str, float], rtol=1e-8) -> None:
    for metric, value in expected.items():
        assert getattr(layer, metric) == pytest.approx(value, rel=rtol, abs=1e-12), metric


def clusters(rng, counts, d, *, spread=0.7, rank=None):
    """Classes of the given sizes around random means, which span `rank` directions if given."""
    K = len(counts)
    means = rng.normal(size=(K, d))
    if rank is not None:
        means = rng.normal(size=(K, rank)) @ rng.normal(size=(rank, d))
    y = rng.permutation(np.repeat(np.arange(K), counts))
    return means[y] + spread * rng.normal(size=(len(y), d)) * rng.uniform(0.2, 1, d), y


def simplex(K, d, rng):
    Q = np.linalg.qr(rng.normal(size=(d, K)))[0].T
    return (np.eye(K) - 1 / K) @ Q


SHAPES = {
    "d < K": ([20, 20, 20, 20, 20, 20], 3),
    "d = K": ([30, 30, 30, 30], 4),
    "d >> K": ([25, 25, 25], 200),
    "d > spectrum size": ([20, 25, 30], 700),
    "K = 2": ([40, 30], 12),
    "d = 1": ([9, 8, 7], 1),
    "imbalanced": ([90, 12, 3, 1], 20),
}


@pytest.mark.parametrize("case", SHAPES)
@pytest.mark.parametrize("weights", WEIGHTS)
def test_agrees_with_explicit_covariances(case, weights, rng):
    counts, d = SHAPES[case]
    H, y = clusters(rng, counts, d)
    W, predictions = rng.normal(size=(len(counts), d)), rng.integers(len(counts), size=len(y))
    found = collapse_of(H, y, W, predictions, weights=weights)
    assert_equal(found, reference(H, y, W=W, predictions=predictions, weights=weights))
    assert found.rank == min(len(counts) - 1, d)
    assert found.spectrum_rows is None


@pytest.mark.parametrize("d", [40, 800])
def test_rank_deficient_class_means(d, rng):
    H, y = clusters(rng, [15] * 8, d, rank=3)
    planted = np.zeros_like(H)
    for k in range(8):  # residuals exactly mean-free up to rounding: Sigma_B has rank 3
        R = H[y == k] - H[y == k].mean(0)
        planted[y == k] = R - R.mean(0)
    means = rng.normal(size=(8, 3)) @ rng.normal(size=(3, d))
    found = collapse_of(planted + means[y], y)
    assert found.rank == 3
    assert_equal(found, reference(planted + means[y], y))


@given(
    counts=st.lists(st.integers(1, 12), min_size=2, max_size=5),
    d=st.integers(1, 9),
    seed=st.integers(0, 10**6),
)
def test_agrees_for_any_shape(counts, d, seed):
    assume(max(counts) > 1)
    H, y = clusters(np.random.default_rng(seed), counts, d)
    assert_equal(collapse_of(H, y), reference(H, y), rtol=1e-6)  # they can be ill-conditioned


# --- known answers --------------------------------------------------------------------------------


@pytest.mark.parametrize(("K", "d"), [(2, 2), (3, 5), (10, 64), (7, 600)])
def test_a_simplex_etf_is_complete_collapse(K, d, rng):
    M = simplex(K, d, rng)
    y = np.repeat(np.arange(K), 5)
    found = collapse_of(3 * M[y] + rng.normal(size=d), y, 0.5 * M, predictions=y)
    for metric in ("nc1", "nc1_quotient", "cdnv", "within", "ncc_mismatch"):
        assert getattr(found, metric) == pytest.approx(0, abs=1e-24)
    for metric in ("nc2_equinorm", "nc2_equiangle", "nc2_etf", "nc3", "nc3_papyan"):
        assert getattr(found, metric) == pytest.approx(0, abs=1e-12)
    assert found.ncc_accuracy == 1
    assert found.mean_angle == pytest.approx(np.degrees(np.arccos(-1 / (K - 1))))
    assert found.max_coherence == pytest.approx(1 / (K - 1))
    for rank in (found.effective_rank, found.stable_rank, found.participation_ratio, found.rank):
        assert rank == pytest.approx(K - 1)


def test_two_points_by_hand():
    H = np.array([[-3.0, 0], [-1, 0], [1, 1], [3, -1], [2, 0], [2, 0]])
    found = collapse_of(H, [0, 0, 1, 1, 1, 1])
    # means (-2, 0), (2, 0); g = 0; Sigma_W = diag(4/6, 2/6) ; Sigma_B = diag(4, 0)
    assert found.nc1 == pytest.approx(4 / 6 / 4 / 2)
    assert found.nc1_quotient == pytest.approx(1 / 4)
    assert found.class_variability == pytest.approx((1 / 4, 1 / 4))
    assert found.cdnv == pytest.approx((1 + 1) / (2 * 16))
    weighted = collapse_of(H, [0, 0, 1, 1, 1, 1], weights="frequency")
    # g = (2/3, 0): Sigma_B = 1/3 (8/3)^2 + 2/3 (4/3)^2
    assert weighted.between == pytest.approx(64 / 27 + 32 / 27)
    assert weighted.nc1 == pytest.approx(4 / 6 / (96 / 27) / 2)
    mixed = collapse_of(H, [0, 0, 1, 1, 1, 1], weights="sample_mean")
    # g = (2/3, 0), classes weighted equally: Sigma_B = 1/2 (8/3)^2 + 1/2 (4/3)^2 = 40/9
    assert mixed.between == pytest.approx(40 / 9)
    assert mixed.nc1 == pytest.approx(4 / 6 / (40 / 9) / 2)
    assert mixed.nc2_equinorm == pytest.approx(1 / 3)  # norms 8/3 and 4/3
    assert mixed.within == found.within


def test_weights_do_not_matter_for_classes_of_one_size(rng):
    H, y = clusters(rng, [12] * 4, 6)
    W = rng.normal(size=(4, 6))
    expected = reference(H, y, W=W)
    for weights in WEIGHTS:
        assert_equal(collapse_of(H, y, W, weights=weights), expected, rtol=1e-12)


@given(st.lists(st.integers(1, 20), min_size=2, max_size=6), st.integers(0, 2**16))
def test_the_choices_of_weights_differ_by_the_distance_of_the_global_means(counts, seed):
    """Both scatters are about a point other than their mean, which adds its squared distance."""
    assume(max(counts) > 1)
    H, y = clusters(np.random.default_rng(seed), counts, 5)
    equal, sizes, mixed = (collapse_of(H, y, weights=weights) for weights in WEIGHTS)
    means = np.array([H[y == k].mean(0) for k in range(len(counts))])
    shift = np.sum((means.mean(0) - H.mean(0)) ** 2)
    assert mixed.between == pytest.approx(equal.between + shift)
    assert sizes.between + sizes.within == pytest.approx(np.sum((H - H.mean(0)) ** 2) / len(H))
    assert mixed.rank == equal.rank
    assert (mixed.within, mixed.cdnv) == (equal.within, pytest.approx(equal.cdnv))


def test_frames_by_hand():
    square = Frame.of(np.array([[1.0, 0], [0, 1], [-1, 0], [0, -1]]))
    assert square.equinorm == 0
    assert square.mean_angle == pytest.approx((90 + 90 + 180) / 3)
    assert square.max_coherence == 1
    assert square.equiangle == pytest.approx((1 / 3 + 1 / 3 + 2 / 3) / 3)
    assert Frame.of(np.array([[1.0], [3.0]])).equinorm == pytest.approx(1 / 2)
    assert Frame.of(np.zeros((3, 2))) == Frame(None, None, None, None, None)
    assert distance_to_etf(np.zeros((3, 3))) is None


def test_angles_of_vectors_along_a_line_stay_within_range(rng):
    """Rounding can make a cosine larger than 1, but angles stay within their range."""
    past = 0
    for v in rng.normal(size=(200, 3)):
        frame = Frame.of(np.array([v, 3 * v, -v]))
        units = np.array([v, 3 * v, -v]) / np.linalg.norm([v, 3 * v, -v], axis=1)[:, None]
        past += bool((np.abs(units @ units.T)[0, 1:] > 1).any())
        assert frame.mean_angle == pytest.approx(120, abs=1e-5)
        assert frame.max_coherence <= 1
    assert past > 10


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_a_vector_counts_as_zero_below_a_trillionth_of_the_longest(scale):
    for share, angle in ((5e-13, None), (1.5e-12, 90.0)):
        frame = Frame.of(scale * np.array([[1.0, 0.0], [0.0, share]]))
        assert frame.mean_angle == (angle and pytest.approx(angle))
        assert frame.equinorm == pytest.approx(1)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_class_means_coincide_below_a_trillionth_of_their_size(scale):
    for share, defined in ((5e-13, False), (1.5e-12, True)):
        means = scale * np.array([[1.0, 0.0], [-0.5, share / 2], [-0.5, -share / 2]])
        found = collapse_of(np.repeat(means, 2, 0), np.repeat(np.arange(3), 2))
        assert (found.cdnv is not None) == defined


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_directions_of_the_means_below_the_tolerance_do_not_count(scale):
    for share, rank in ((0.8e-7, 1), (1.5e-7, 2)):
        means = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, share * math.sqrt(2)]])
        means -= means.mean(0)
        sigma = np.linalg.svd(means, compute_uv=False)
        means[:, 1] *= share * sigma[0] / sigma[1]
        means *= scale
        assert collapse_of(np.repeat(means, 2, 0), np.repeat(np.arange(3), 2)).rank == rank


def test_nc5_matches_hand_computed_values(rng):
    H = np.array([[1.0, 0, 0], [3, 0, 0], [0, 2, 0], [0, 2, 0]])
    labels = [0, 0, 1, 1]
    assert collapse_of(H, labels, ood=[[0, 0, 5.0], [0, 0, 1]]).nc5 == 0
    assert collapse_of(H, labels, ood=np.array([[1.0, 0, 0]])).nc5 == pytest.approx(0.5)
    assert collapse_of(H, labels).nc5 is None
    three = np.diag([2.0, 1, 5])
    away = np.array([[3.0, 4, 0], [3, 4, 0]])
    assert collapse_of(three, [0, 1, 2], ood=away).nc5 == pytest.approx((3 / 5 + 4 / 5) / 3)
    assert collapse_of(H, labels, ood=np.zeros((1, 3))).nc5 is None  # the origin is no direction
    assert collapse_of(H, labels, ood=np.zeros((1, 3))).ncc_error == 0


def test_matches_the_closed_form_of_the_scalar_family():
    # theory.md E: X columns a e_k +- s sqrt(3) e_j, K = d = 3, N = 18
    a, s, d = 1.0, 0.3, 3
    rows = [
        a * np.eye(d)[k] + sign * s * math.sqrt(3) * np.eye(d)[j]
        for k in range(3)
        for j in range(3)
        for sign in (1, -1)
    ]
    found = collapse_of(np.array(rows), np.repeat(np.arange(3), 6))
    # Sigma_W = s^2 I, Sigma_B = (a^2/3)(I - J/3): tr = 2 * s^2 * 3 / a^2, over K = 3
    assert found.nc1 == pytest.approx(2 * s**2 / a**2)


# --- invariances ----------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3), shift=st.floats(-100, 100))
def test_metrics_are_invariant_under_similarities_and_relabelling(seed, scale, shift):
    rng = np.random.default_rng(seed)
    H, y = clusters(rng, [9, 12, 15, 8], 6)
    Q = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    order = rng.permutation(len(y))
    first = collapse_of(H, y)
    second = collapse_of((scale * H @ Q + shift)[order], rng.permutation(50)[:4][y][order])
    for metric in NUMBERS:
        value = getattr(first, metric)
        if metric in ("within", "between"):
            value *= scale**2
        assert getattr(second, metric) == pytest.approx(value, rel=1e-7, abs=1e-12), metric


def test_every_kind_of_array_gives_the_same(rng):
    H, y = clusters(rng, [20, 20, 20], 8)
    H = H.astype(np.float32)
    expected = collapse_of(H, y)
    frozen = H.copy()
    frozen.flags.writeable = False
    traced = torch.from_numpy(H).clone().requires_grad_()
    for same in (torch.from_numpy(H), H.astype(np.float64), frozen, np.asfortranarray(H), traced):
        assert collapse_of(same, torch.from_numpy(y)) == expected
    half = collapse_of(torch.from_numpy(H).bfloat16(), y)
    assert half.nc1 == pytest.approx(expected.nc1, rel=0.1)


# --- numerics -------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [30, 600])
def test_float32_with_means_ten_thousand_times_the_spread(d, rng):
    H, y = clusters(rng, [200, 150, 100], d)
    stored = (H + 1e4 * rng.normal(size=d)).astype(np.float32)
    assert_equal(collapse_of(stored, y), reference(stored, y), rtol=1e-8)


def test_float32_rounding_adds_no_directions(rng):
    # Means on a line, as of the mean pixel: in float32 the other directions of the class means are
    # rounding errors, whose ratio of variances is of the order of the samples in a class.
    y = np.repeat(np.arange(6), 100)
    line = rng.normal(size=6)[y] + rng.normal(size=600)
    exact = line[:, None] * rng.normal(size=20) + 300 * rng.normal(size=20)
    stored = exact.astype(np.float32) * np.float32(1.1)
    expected = collapse_of(line, y).nc1
    for H in (stored, torch.from_numpy(stored), exact):
        found = collapse_of(H, y)
        assert found.rank == 1
        assert found.nc1 == pytest.approx(expected, rel=1e-4)
    # the definition to the letter, without a tolerance, is dominated by them
    assert reference(stored, y)["nc1"] > 2 * expected
    same = np.tile(rng.normal(size=20), (600, 1)) * (1 + 1e-8 * rng.normal(size=(600, 1)))
    assert collapse_of(same.astype(np.float32), y).nc1 is None


def test_deep_collapse_is_not_lost_in_rounding(rng):
    M = simplex(4, 40, rng)
    y = np.repeat(np.arange(4), 50)
    R = rng.normal(size=(200, 40))
    for k in range(4):
        R[y == k] -= R[y == k].mean(0)
    tiny = 2.0**-24  # exact scaling: the spread is a tiny share of the distance of the means
    found, wide = collapse_of(M[y] + tiny * R, y), collapse_of(M[y] + R, y)
    assert found.within == pytest.approx(tiny**2 * wide.within, rel=1e-6)
    assert found.nc1 == pytest.approx(tiny**2 * wide.nc1, rel=1e-6)
    assert found.cdnv == pytest.approx(tiny**2 * wide.cdnv, rel=1e-6)


# --- streams --------------------------------------------------------------------------------------


def layers_of(rng, n=300, K=5, widths=(40, 6, 6, 700)):
    y = rng.integers(K, size=n)
    y[:K] = np.arange(K)
    names = ["input", *(f"block{i}" for i in range(len(widths) - 1))]
    features = {
        name: rng.normal(size=(K, d))[y] + rng.normal(size=(n, d))
        for name, d in zip(names, widths, strict=True)
    }
    return features, y, np.where(rng.random(n) < 0.8, y, rng.integers(K, size=n))


def batches_of(features, y, predictions, cuts):
    for rows in np.split(np.arange(len(y)), cuts):
        if len(rows):
            yield {k: v[rows] for k, v in features.items()}, y[rows], predictions[rows]


@settings(max_examples=12)
@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(1, 299), max_size=12))
def test_a_stream_agrees_in_any_batch_size_and_order(seed, cuts):
    rng = np.random.default_rng(seed)
    features, y, predictions = layers_of(rng)
    W = rng.normal(size=(5, 700))
    expected = [
        collapse_of(h, y, W if name == "block2" else None, predictions)
        for name, h in features.items()
    ]
    order = rng.permutation(len(y))
    shuffled = {k: v[order] for k, v in features.items()}, y[order], predictions[order]
    for keep in (0, 2**26):
        found = collapse_stream(
            lambda: batches_of(*shuffled, sorted(cuts)), classifier=W, keep=keep
        )
        assert [layer.name for layer in found.layers] == list(features)
        assert [layer.stage for layer in found.layers] == [None, 0, 0, 1]
        assert found.accuracy == pytest.approx(np.mean(y == predictions))
        for layer, other in zip(found.layers, expected, strict=True):
            matched = [*NUMBERS, "ncc_mismatch", *(["nc3", "nc3_papyan"] if other.nc3 else [])]
            assert_equal(layer, {m: getattr(other, m) for m in matched}, rtol=1e-10)
            assert (layer.nc3 is None) == (other.nc3 is None)


def test_a_sampled_spectrum_does_not_depend_on_batches_or_order(rng):
    H, y = clusters(rng, [700, 900], 600)
    H = H.astype(np.float32)
    whole = collapse_of(H, y)
    assert whole.spectrum_rows == 512
    order = rng.permutation(len(y))
    for cuts in ([3, 100, 1000], [799]):
        batches = batches_of({"h": H[order]}, y[order], y[order], cuts)
        layer = collapse_stream(batches).layers[0]
        assert layer.effective_rank == pytest.approx(whole.effective_rank, rel=1e-10)
        assert layer.spectrum_rows == 512
    exact = collapse_of(H, y, spectrum_size=1600)
    assert exact.spectrum_rows is None
    assert exact.effective_rank == pytest.approx(reference(H, y)["effective_rank"], rel=1e-8)
    assert collapse_of(H, y, spectrum_size=0).effective_rank is None


def test_the_row_sample_is_fair(rng):
    # of rows that differ in one number only, each is as likely to be drawn
    drawn = np.zeros(64)
    for seed in range(300):
        sample = RowSample(16, seed=seed)
        rows = torch.zeros(64, 9)
        rows[:, 4] = torch.arange(64)
        sample.update(rows[:40])
        sample.update(rows[40:])
        picked = sample.rows[:, 4].long().numpy()
        assert len(set(picked.tolist())) == 16
        drawn[picked] += 1
    expected = 300 * 16 / 64
    chi2 = ((drawn - expected) ** 2 / (expected * (1 - 16 / 64))).sum()
    assert chi2 < 110  # 64 degrees of freedom: beyond 99.97 %


def test_one_pass_marks_what_needs_a_second_pass(rng):
    features, y, predictions = layers_of(rng)
    once = collapse_stream(batches_of(features, y, predictions, [100, 200]), keep=0)
    for layer, (name, h) in zip(once.layers, features.items(), strict=True):
        expected = collapse_of(h, y)
        assert layer.ncc_accuracy is layer.ncc_mismatch is None
        assert "second pass" in layer.undefined["ncc_accuracy"]
        known = set(NUMBERS) - {"ncc_accuracy"}
        if name == "block2":
            assert layer.nc1 is None
            assert "second pass" in layer.undefined["nc1"]
            known -= {"nc1"}
        for metric in known:
            assert getattr(layer, metric) == pytest.approx(getattr(expected, metric), rel=1e-10)
    assert once.progress["ncc_error"].kendall_tau is None


def test_widest_layers_are_dropped_first(rng):
    features, y, predictions = layers_of(rng)
    for keep, held in ((300 * 8 * 52, ("input", "block0", "block1")), (300 * 8 * 6, ("block1",))):
        found = collapse_stream(batches_of(features, y, predictions, [10, 20, 250]), keep=keep)
        known = {layer.name for layer in found.layers if layer.ncc_accuracy is not None}
        assert known in ({*held}, {"block0"} if len(held) == 1 else {*held})


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_stream_copies_the_rows_it_keeps(kind, rng):
    features, y, _ = layers_of(rng, widths=(4, 6))
    stream, buffer = CollapseStream(), kind(np.empty((100, 6)))
    for start in range(0, 300, 100):
        buffer[:] = kind(features["block0"][start : start + 100])
        stream.update({"block0": buffer}, y[start : start + 100])
    expected = collapse_of(features["block0"], y)
    assert stream.result().layers[0].ncc_accuracy == expected.ncc_accuracy


def test_a_second_pass_over_other_data_is_refused(rng):
    features, y, _ = layers_of(rng)

    def stream():
        stream = CollapseStream(keep=0)
        stream.update(features, y)
        return stream

    short = stream()
    short.revisit({k: v[:200] for k, v in features.items()}, y[:200])
    with pytest.raises(FeatureError, match="saw 200 samples, the first 300"):
        short.result()
    wide = rng.normal(size=(300, 4000))  # several chunks, of which the last contains NaN
    damaged = wide.copy()
    damaged[-1] = np.nan
    interrupted = CollapseStream(keep=0)
    interrupted.update({"wide": wide}, y)
    with pytest.raises(FeatureError, match="NaN"):
        interrupted.revisit({"wide": damaged}, y)
    interrupted.revisit({"wide": wide}, y)  # some chunks were counted already
    with pytest.raises(FeatureError, match="The second pass saw"):
        interrupted.result()
    noisy = stream()  # as a network left in train mode, or random augmentation, gives
    noisy.revisit({k: v + 0.1 * rng.normal(size=v.shape) for k, v in features.items()}, y)
    with pytest.raises(FeatureError, match=r"differs between.*eval mode"):
        noisy.result()
    strange = stream()
    with pytest.raises(FeatureError, match="class 7 occurs in the second pass"):
        strange.revisit(features, np.where(y == 1, 7, y))
    with pytest.raises(ArgumentError, match="second pass has begun"):
        strange.update(features, y)
    almost = stream()  # what a network's own irreproducible rounding gives
    almost.revisit({k: v * (1 + 1e-7 * rng.normal(size=v.shape)) for k, v in features.items()}, y)
    assert almost.result().layers[0].nc1 == pytest.approx(collapse_of(features["input"], y).nc1)


@pytest.mark.parametrize("given_to", ["update", "revisit", "both"])
def test_predictions_in_one_pass_give_the_accuracy(given_to):
    H, y, predictions = np.eye(2)[[0, 1, 0, 1]], [0, 1, 0, 1], [0, 1, 1, 1]
    stream = CollapseStream(keep=0)
    stream.update({"h": H}, y, None if given_to == "revisit" else predictions)
    stream.revisit({"h": H}, y, None if given_to == "update" else predictions)
    assert stream.result().accuracy == 0.75


def test_a_stream_of_ood_samples(rng):
    features, y, _ = layers_of(rng, widths=(4, 6))
    stream, away = CollapseStream(), rng.normal(size=(50, 6))
    stream.update({"block0": features["block0"]}, y)
    stream.update_ood({"block0": away[:20]})
    stream.update_ood({"block0": away[20:]})
    expected = collapse_of(features["block0"], y, ood=away).nc5
    assert stream.result().layers[0].nc5 == pytest.approx(expected, rel=1e-12)


def test_streams_refuse_layers_that_change(rng):
    stream = CollapseStream()
    with pytest.raises(FeatureError, match="no samples"):
        stream.result()
    stream.update({"a": np.eye(3)}, [0, 1, 1])
    with pytest.raises(FeatureError, match="layers b; the stream began with a"):
        stream.update({"b": np.eye(3)}, [0, 1, 1])
    with pytest.raises(FeatureError, match="'a' has 4 features in this batch and 3"):
        stream.update({"a": np.ones((3, 4))}, [0, 1, 1])


# --- memory ---------------------------------------------------------------------------------------


PEAK = """
import resource, numpy as np
from wgeo.neural_collapse import collapse_of
H = np.random.default_rng(0).normal(size=(300, {d})).astype(np.float32)
collapse_of(H[:, :600], np.arange(300) % 3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
collapse_of(H, np.arange(300) % 3)
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
def test_memory_beyond_the_features_is_linear_in_width():
    d = 12_000  # a d x d matrix would be 1.15 GB, the features are 14 MB
    out = subprocess.run(
        [sys.executable, "-c", PEAK.format(d=d)], capture_output=True, text=True, check=True
    )
    # blocks, a copy of the 300 rows for the spectrum, arrays of K rows; not 1.15 GB
    assert int(out.stdout) < 60e6


@pytest.mark.parametrize("tolerance", [math.nan, -1e-9, 1.0, math.inf])
def test_a_tolerance_of_ranks_outside_its_range_is_refused(tolerance):
    H, y = np.eye(3)[[0, 0, 1, 2]], [0, 0, 1, 2]
    for measure in (
        lambda: collapse(Trajectory.from_arrays([H], y), rank_tolerance=tolerance),
        lambda: collapse_of(H, y, rank_tolerance=tolerance),
        lambda: CollapseStream(rank_tolerance=tolerance),
    ):
        with pytest.raises(ArgumentError, match="rank_tolerance must be"):
            measure()
    assert collapse_of(H, y, rank_tolerance=0.0).rank == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": -1}, "keep must be a whole number of at least 0"),
        ({"spectrum_size": -1}, "spectrum_size must be a whole number"),
        ({"num_classes": 0}, "num_classes must be a whole number of at least 1"),
        ({"stages": {"a": 0, "b": -1}}, r"stages\['b'\] must be a whole number"),
        ({"stages": {"b": 0}}, "stages does not name layer 'a'; a layer's stage may be None"),
        ({"stages": {}}, "stages does not name layer 'a'"),
    ],
)
def test_options_of_a_stream_are_checked_before_samples_are_read(options, message):
    with pytest.raises(ArgumentError, match=message):
        CollapseStream(**options).update({"a": np.eye(2), "b": np.eye(2)}, [0, 1])


def test_given_stages_of_a_stream():
    stream = CollapseStream(stages={"a": None, "b": 1, "unused": 2})
    stream.update({"a": np.eye(2), "b": np.eye(2)}, [0, 1])
    assert [layer.stage for layer in stream.result().layers] == [None, 1]


def test_the_sign_of_a_zero_does_not_change_the_sampled_rows(rng):
    block = torch.from_numpy(np.maximum(rng.normal(size=(200, 4)), 0))
    chosen = []
    for zero in (0.0, -0.0):
        sample = RowSample(20)
        sample.update(torch.where(block == 0, zero, block))
        chosen.append(sample.rows.sort(0).values)
    assert torch.equal(*chosen)


def test_a_stream_holds_means_and_at_most_a_fixed_number_of_rows(rng):
    stream, d = CollapseStream(keep=0, spectrum_size=16), 20_000
    for _ in range(3):
        stream.update({"h": rng.normal(size=(40, d)).astype(np.float32)}, np.arange(40) % 2)
    moments = stream._layers["h"].moments
    held = sum(
        t.nbytes
        for t in (*vars(moments).values(), *vars(moments._sample).values())
        if isinstance(t, torch.Tensor)
    )
    means, shift, multipliers, rows = 8 * 2 * d, 8 * d, 8 * d, 4 * 16 * d
    assert held < means + shift + multipliers + rows + 1000


# --- what is refused, what is undefined -----------------------------------------------------------


def test_error_for_nan_names_layer_and_sample(rng):
    features, y, predictions = layers_of(rng)
    features["block1"][217, 3] = np.nan
    with pytest.raises(FeatureError, match=r"'block1' holds NaN.*first in sample 217"):
        collapse_of(features["block1"], y, name="block1")
    for cuts in ([100, 200], []):
        with pytest.raises(FeatureError, match=r"'block1' holds NaN.*first in sample 217"):
            collapse_stream(batches_of(features, y, predictions, cuts))


def test_invalid_labels_are_refused(rng):
    H = rng.normal(size=(6, 4))
    y = np.array([0, 1, 2, 0, 1, 2])
    W = Classifier(rng.normal(size=(2, 4)), np.zeros(2))
    with pytest.raises(ArgumentError, match=r"label 2 of sample 2 is out of range.*2 classes"):
        collapse_of(H, y, W)
    with pytest.raises(ArgumentError, match=r"label 2 of sample 2"):
        collapse(Trajectory.from_arrays([H, H], y, classifier=W))
    stream = CollapseStream(num_classes=2)
    stream.update({"h": H[:2]}, y[:2])
    with pytest.raises(ArgumentError, match=r"label 2 of sample 2"):
        stream.update({"h": H[2:]}, y[2:])
    with pytest.raises(ArgumentError, match="negative"):
        collapse_of(H, y - 1)
    with pytest.raises(ArgumentError, match="6 labels for 5 samples"):
        collapse_of(H[:5], y)
    with pytest.raises(FeatureError, match="one class"):
        collapse_of(H, np.full(6, 3))
    with pytest.raises(FeatureError, match="reads 5 features"):
        collapse_of(H, y, rng.normal(size=(3, 5)))
    with pytest.raises(FeatureError, match="Pool or flatten"):
        collapse_of(rng.normal(size=(6, 2, 2, 2)), y)
    with pytest.raises(ArgumentError, match="'uniform', 'frequency' or 'sample_mean', not 'b"):
        collapse_of(H, y, weights="balanced")
    with pytest.raises(ArgumentError, match="weights must be"):
        CollapseStream(weights="mixed")


def test_absent_classes_are_ignored(rng):
    H, y = clusters(rng, [30, 30, 30], 8)
    W = rng.normal(size=(5, 8))
    sparse = np.array([0, 2, 4])[y]
    found = collapse_of(H, sparse, W, predictions=np.full(len(y), 1))
    assert_equal(found, reference(H, sparse, W=W))
    assert found == replace(collapse_of(H, y, W[[0, 2, 4]]), ncc_mismatch=1.0)


def test_constant_features_are_undefined_not_collapsed():
    for d in (5, 600):
        H = np.tile(np.linspace(0.1, 7.7, d, dtype=np.float32), (30, 1))
        found = collapse_of(H, np.arange(30) % 3, np.ones((3, d)), predictions=np.arange(30) % 3)
        assert found.within == found.between == 0
        for metric in set(NUMBERS) - {"within", "between"}:
            assert getattr(found, metric) is None, metric
            assert found.undefined[metric]
        assert found.undefined["stable_rank"] == "the features are constant"
        assert found.nc3 is found.ncc_mismatch is None
        assert found.rank == 0


def test_variability_of_single_classes(rng):
    y = np.repeat([5, 2, 9], [4, 10, 30])
    scale = np.array([0, 0, 3.0, 0, 0, 1, 0, 0, 0, 0])[y]  # class 9 has collapsed, class 2 least
    H = rng.normal(size=(3, 6))[np.unique(y, return_inverse=True)[1]]
    H = H + scale[:, None] * rng.normal(size=(44, 6))
    for weights in ("uniform", "frequency"):
        found = collapse_of(H, y, weights=weights)
        two, five, nine = found.class_variability
        assert two > five > nine
        assert nine == pytest.approx(0, abs=1e-12)
        want = np.sum((H[y == 5] - H[y == 5].mean(0)) ** 2) / 4 / found.between
        assert five == pytest.approx(want)
        assert (10 * two + 4 * five + 30 * nine) / 44 == pytest.approx(found.nc1_quotient)


def test_class_means_that_coincide_are_undefined_not_collapsed(rng):
    R = rng.normal(size=(20, 6))
    H = np.concatenate([R, R, R]) + 100.0
    found = collapse_of(H, np.repeat(np.arange(3), 20))
    assert found.within > 0
    assert found.nc1 is found.nc1_quotient is found.cdnv is found.nc2_etf is None
    assert found.class_variability is None
    assert found.undefined["nc1"] == "the class means coincide"
    assert found.effective_rank == pytest.approx(collapse_of(R, np.arange(20) % 2).effective_rank)

    pair = np.concatenate([R, R, R + 5]) + 100.0  # two of three means coincide
    found = collapse_of(pair, np.repeat(np.arange(3), 20))
    assert found.nc1 > 0
    assert found.cdnv is None
    assert found.undefined["cdnv"] == "two class means coincide"


@pytest.mark.parametrize(("apart", "defined"), [(126, False), (130, True)])
def test_class_means_coincide_within_64_roundings_of_the_features(apart, defined):
    """By half their distance; the features spread by 1 about 0, so that every sum is exact."""
    t = apart * np.finfo(np.float64).eps
    found = collapse_of(np.array([[-1.0], [1], [t - 1], [t + 1]]), [0, 0, 1, 1])
    assert (found.nc1 is not None) == defined
    assert found.within == pytest.approx(1)


@pytest.mark.parametrize(
    ("d", "steps", "defined"), [(4, 3, False), (4, 5, True), (16, 1, False), (16, 3, True)]
)
def test_class_means_coincide_within_4_roundings_of_float32(d, steps, defined):
    """Half their distance is steps sqrt(d) / 2 roundings of features that are all 1."""
    one = 1 + steps * np.finfo(np.float32).eps
    H = np.repeat(np.array([[1], [1], [one], [one]], dtype=np.float32), d, axis=1)
    found = collapse_of(H, [0, 0, 1, 1])
    assert (found.nc1 is not None) == defined
    assert collapse_of(H.astype(np.float64), [0, 0, 1, 1]).nc1 == 0


def test_a_class_mean_at_the_centre_has_no_angle():
    H = np.array([[-1.0, 1], [-1, -1], [0, 1], [0, -1], [1, 1], [1, -1]])
    found = collapse_of(H, [0, 0, 1, 1, 2, 2])
    assert found.nc2_equiangle is found.mean_angle is found.max_coherence is None
    assert found.nc2_equinorm == pytest.approx(math.sqrt(1 / 2))
    assert found.nc2_etf > 0
    assert found.rank == 1
    angles = {"nc2_equiangle", "mean_angle", "max_coherence"}
    assert set(found.undefined) == {*angles, "discrimination"}  # its uncentred mean is 0 too
    assert {found.undefined[name] for name in angles} == {"a class mean is the global mean"}
    unasked = collapse_of(H[:4], [0, 0, 1, 1], spectrum_size=0)
    assert unasked.undefined["stable_rank"] == "not computed (spectrum_size=0)"
    assert unasked.mean_angle == 180
    assert "mean_angle" not in unasked.undefined


# --- whole networks -------------------------------------------------------------------------------


def network(rng, *, falls=(3.0, 1.5, 2.0, 0.6, 0.1), n=400, K=4, d=12):
    y = np.arange(n) % K
    M = simplex(K, d, rng)
    arrays = [5 * M[y] + s * rng.normal(size=(n, d)) for s in falls]
    W = Classifier(5 * M, np.zeros(K))
    predictions = (arrays[-1] @ W.weight.T).argmax(1)
    return Trajectory.from_arrays(arrays, y, predictions=predictions, classifier=W)


def test_a_trajectory_is_measured_layer_by_layer(rng):
    traj = network(rng)
    found = collapse(traj)
    for layer, other in zip(found.layers, traj.layers, strict=True):
        assert_equal(layer, reference(other.features, traj.labels, predictions=traj.predictions))
        assert (layer.name, layer.stage, layer.width) == (other.name, other.stage, other.width)
    assert [layer.nc3 is None for layer in found.layers] == [True] * 4 + [False]
    expected = reference(traj.last, traj.labels, W=traj.classifier.weight)
    assert_equal(found.layers[-1], expected)
    assert found.classifier == Frame.of(traj.classifier.weight)
    assert found.classifier.etf < 1e-12
    assert found.classes == (0, 1, 2, 3)
    assert found.counts == (100,) * 4
    assert found.accuracy == traj.accuracy
    assert replace(found, layers=()).learned_at is None


def test_classifier_that_does_not_match_the_last_layer_is_ignored(rng):
    traj = network(rng)
    silent = collapse_of(traj.last, traj.labels, np.zeros((4, 12)))
    assert silent.nc3 is silent.nc3_papyan is None
    other = replace(traj, classifier=Classifier(rng.normal(size=(4, 7)), np.zeros(4)))
    found = collapse(other)
    assert found.classifier is found.layers[-1].nc3 is None
    assert found.layers[-1].nc1 == collapse(traj).layers[-1].nc1


def test_progress_counts_rises(rng):
    found = collapse(network(rng))
    nc1 = found.progress["nc1"]
    values = [layer.nc1 for layer in found.layers]
    assert values[2] > values[1]  # as planted: 1.5 -> 2.0
    assert nc1.kendall_tau == pytest.approx(-8 / 10)  # of ten pairs, one in the wrong order
    assert (nc1.violations, nc1.increases, nc1.monotone) == (1, ("layer2",), False)
    assert nc1.violation_size == pytest.approx((values[2] - values[1]) / (values[0] - values[-1]))
    # (v0 - v_l) / (v0 - v4) reaches 0.9 first at layer3 for variances 9, 2.25, 4, .36, .01
    assert (nc1.reached, nc1.reached_depth) == ("layer3", 3 / 4)
    assert set(found.progress) == set(FALLING)
    assert found.learned_at in ("layer3", "layer4")


def test_progress_of_simple_sequences(rng):
    base = collapse_of(*clusters(rng, [9, 9], 3))

    def over(values, **options):
        layers = [
            replace(base, name=f"l{i}", nc1=None if v is None else float(v), stage=0 if i else None)
            for i, v in enumerate([0.0, *values])  # the input takes no part
        ]
        return progress(layers, "nc1", **options)

    falling = over([8.0, 4, 2, 1])
    assert (falling.kendall_tau, falling.violations, falling.monotone) == (-1, 0, True)
    assert (falling.reached, falling.reached_depth) == ("l4", 1.0)
    rising = over([1.0, 2, 3], rises=True)
    assert (rising.kendall_tau, rising.violations, rising.monotone) == (1, 0, True)
    assert over([1.0, 2, 3]).reached is None
    assert over([1.0, 2, 3]).violation_size == 1
    flat = over([2.0, 2.0, 2.0])
    assert (flat.kendall_tau, flat.violations, flat.monotone) == (None, 0, True)
    gap = over([8.0, None, 2.0])
    assert (gap.kendall_tau, gap.reached) == (-1, "l3")
    assert over([None, 1.0]).kendall_tau is None
    assert over([None, 1.0]).monotone is None


def test_bootstrap_intervals_of_certain_and_uncertain_trends(rng):
    traj = network(rng, falls=(3.0, 1.0, 1.0, 0.3), n=80)
    found = collapse(traj, bootstrap=20, seed=1)
    low, high = found.progress["nc1"].interval
    assert low == pytest.approx(-1)
    assert -1 <= low <= found.progress["nc1"].kendall_tau <= high < 0
    assert high > -1  # the two equal layers change places
    assert (
        found.progress["nc1"].interval
        == collapse(traj, bootstrap=20, seed=1).progress["nc1"].interval
    )
    sure = collapse(network(rng, falls=(4.0, 2.0, 0.5, 0.1)), bootstrap=10).progress["nc1"]
    assert sure.interval == (-1, -1)
    assert collapse(traj).progress["nc1"].interval is None


def test_ends_of_an_interval_are_replicates_if_their_number_allows_it():
    taus = [-0.9, -0.8, *[0.5] * 37, 0.6, 0.9]
    replicates = [Progress("nc1", kendall_tau=tau) for tau in taus]
    assert with_interval(Progress("nc1", kendall_tau=0.5), replicates).interval == (-0.8, 0.6)


def test_record_of_a_layer_has_every_documented_key(rng):
    record = collapse(network(rng)).to_dict()
    for layer in record["layers"]:
        assert {"name", "stage", "width", "collapse"} == set(layer)
        assert set(RECORD) <= set(layer["collapse"])
        assert "ncc_mismatch" in layer["collapse"]
    assert ["nc3" in layer["collapse"] for layer in record["layers"]] == [False] * 4 + [True]
    for entry in record["progress"].values():
        assert {"kendall_tau", "violations", "monotone"} <= set(entry)

    def plain(value):
        if isinstance(value, dict):
            return all(isinstance(k, str) and plain(v) for k, v in value.items())
        if isinstance(value, list):
            return all(map(plain, value))
        return value is None or type(value) in (bool, int, float, str)

    assert plain(record)


def test_ood_features_of_a_whole_network(rng):
    traj, away = network(rng), network(rng)
    found = collapse(traj, ood=away)
    for layer, other in zip(found.layers, away.layers, strict=True):
        expected = collapse_of(traj.layers[0].features, traj.labels, ood=other.features)
        assert 0 <= layer.nc5 <= 1
        if layer.name == "layer0":
            assert layer.nc5 == expected.nc5
    with pytest.raises(FeatureError, match=r"'layer1' are missing"):
        collapse(traj, ood={"layer0": away.first})
    with pytest.raises(FeatureError, match=r"have shape \(400, 3\)"):
        collapse(traj, ood={layer.name: away.first[:, :3] for layer in traj.layers})
    with pytest.raises(ArgumentError, match="ood must be a Trajectory"):
        collapse(traj, ood=[away.first, away.last])


def test_results_convert_to_a_pandas_table(rng):
    pytest.importorskip("pandas")
    found = collapse(network(rng), bootstrap=5)
    table = found.to_pandas()
    assert list(table.index) == [layer.name for layer in found.layers]
    for each in (table, found.layers[-1].to_pandas()):
        assert not each.map(lambda value: isinstance(value, dict | tuple | list)).any(axis=None)
    assert table["nc1"].tolist() == [layer.nc1 for layer in found.layers]


# --- samples in several processes ----------------------------------------------------------------


@pytest.mark.parametrize("spectrum_size", [0, 8, 40])
@pytest.mark.parametrize("cuts", [(0, 30, 75), (0, 0, 75), (0, 20, 50, 75)])
def test_merged_moments_equal_those_of_all_samples(rng, monkeypatch, spectrum_size, cuts):
    """Merging as between processes: a class that one process never saw, and one without samples."""
    x, y = clusters(rng, [40, 20, 15], 12)
    x, y = (x + 1e3).astype(np.float32), np.sort(y)
    index = ClassIndex()
    rows = index.add(y)

    def moments_of(start, stop):
        passes = LayerPasses("l", index, "uniform", spectrum_size)
        passes.moments.add(x[start:stop], rows[start:stop], start)
        return passes.moments

    whole = moments_of(0, 75)
    parts = [moments_of(*span) for span in itertools.pairwise(cuts)]
    monkeypatch.setattr("wgeo.runtime.processes.world_size", lambda: len(parts))
    monkeypatch.setattr("wgeo.runtime.processes.all_gather", lambda _: parts)
    merged = parts[0].all_reduce()
    assert merged is not parts[0]
    assert merged.samples == 75
    assert merged.precision == whole.precision > 0
    found, expected = merged.finish(index, "uniform"), whole.finish(index, "uniform")
    assert found.counts.tolist() == expected.counts.tolist() == [40, 20, 15]
    np.testing.assert_allclose(found.variances, expected.variances, rtol=1e-12)
    np.testing.assert_allclose(found.center, expected.center, rtol=1e-14)
    np.testing.assert_allclose(found.sigma, expected.sigma, rtol=1e-11)
    if spectrum_size == 40:
        np.testing.assert_allclose(found.within_along, expected.within_along, rtol=1e-10)
    if spectrum_size:
        np.testing.assert_allclose(found.spectrum.values, expected.spectrum.values, rtol=1e-9)
        assert found.spectrum.rows == expected.spectrum.rows


# --- scales -------------------------------------------------------------------------------------

SCALES = (1e-135, 1e-120, 1e-100, 1e-77, 1e77, 1e100, 1e135)
"""About the fourth roots and square roots of float64's range."""


@pytest.mark.parametrize("scale", SCALES)
def test_no_metric_depends_on_the_scale(scale):
    """But within and between, which scale with its square; NaN is not equal to anything."""
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = np.eye(3, 5)[y] + 0.3 * rng.normal(size=(60, 5))
    arguments = (y, np.eye(3, 5), y)
    usual = collapse_of(x, *arguments, ood=x[:5]).to_dict()["collapse"]
    found = collapse_of(x * scale, *arguments, ood=x[:5] * scale).to_dict()["collapse"]
    for key, value in usual.items():
        if isinstance(value, float):
            by = scale**2 if key in ("within", "between") else 1.0
            assert found[key] / by == pytest.approx(value, rel=1e-9), key
        elif key == "class_variability":
            assert found[key] == pytest.approx(value, rel=1e-9)
        else:
            assert found[key] == value, key
    stream = CollapseStream(classifier=np.eye(3, 5))
    stream.update({"features": x * scale}, y, y)
    assert stream.result().layers[0].nc2_etf == pytest.approx(usual["nc2_etf"], rel=1e-9)
    nearer = np.eye(3, 5)[y] + 0.1 * rng.normal(size=(60, 5))
    traj = Trajectory.from_arrays([x * scale, nearer * scale], y)
    assert collapse(traj, bootstrap=3).progress["nc1"].interval is not None


@pytest.mark.parametrize("scale", [5e-324, 1e-300, 1e-160, 1e-145, 1e145, 1e154, 1e200, 1e307])
def test_features_beyond_the_range_of_squares_are_an_explained_error(scale):
    y = np.arange(60) % 3
    x = (np.eye(3, 5)[y] + 0.3 * np.random.default_rng(0).normal(size=(60, 5))) * scale
    with np.errstate(all="ignore"), pytest.raises(FeatureError, match="squares leave float64's"):
        collapse_of(x, y)
