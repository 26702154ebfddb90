"""The squared-loss model: thresholded singular values, with every kind of bias."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wgeo.errors import ArgumentError
from wgeo.ufm import fit_mse
from wgeo.ufm.spectral import spectral_optimum

LW, LH = 1e-2, 5e-3
ALPHA = 0.957573593129
BALANCED = [
    (math.inf, ALPHA, 0.0, 0.041526406871),
    (0.0, 0.0, 1 / 3, 0.027684271247),
    (0.01, 0.0, 0.330033003300, 0.029334436264),
    (0.1, 0.533309524417, 0.141421356237, 0.038526406871),
    (0.5, 0.872720779386, 0.028284271247, 0.040926406871),
]
IMBALANCED = [
    (math.inf, 0.038742956790, (0, 0, 0)),
    (0.0, 0.024760324138, (6 / 11, 3 / 11, 2 / 11)),
    (0.01, 0.026697314506, (0.4988280385, 0.2854732029, 0.2057182407)),
    (0.1, 0.035992956790, (0.1732050808, 0.1224744871, 0.1)),
    (0.5, 0.038192956790, (0.0346410162, 0.0244948974, 0.02)),
]


def _fit(counts, dim, lw=LW, lh=LH, **given):
    labels = np.repeat(np.arange(len(counts)), counts)
    return fit_mse(labels, dim=dim, weight_decay=lw, feature_decay=lh, **given)


@pytest.mark.parametrize("method", ["closed", "numerical"])
@pytest.mark.parametrize(("lb", "beta", "b", "value"), BALANCED)
def test_balanced(lb, beta, b, value, method):
    found = _fit([4, 4, 4], 3, bias=lb, method=method)
    atol = 6e-13 if method == "closed" else 1e-8
    assert found.objective == pytest.approx(value, abs=atol)
    assert found.certificate.verdict == "global"
    np.testing.assert_allclose(found.b, b, atol=6e-13 if method == "closed" else 1e-5)
    product = found.W @ found.H[:, ::4]
    expected = ALPHA * (np.eye(3) - 1 / 3) + beta / 3
    np.testing.assert_allclose(product, expected, atol=1e-12 if method == "closed" else 1e-5)
    means = found.H[:, ::4] / np.linalg.norm(found.H[:, ::4], axis=0)
    cosine = (beta - ALPHA) / (2 * ALPHA + beta)
    assert (means.T @ means)[0, 1] == pytest.approx(cosine, abs=1e-4)


@pytest.mark.parametrize("method", ["closed", "numerical"])
@pytest.mark.parametrize(("lb", "value", "b"), IMBALANCED)
def test_imbalanced(lb, value, b, method):
    found = _fit([6, 3, 2], 3, bias=lb, method=method)
    assert found.objective == pytest.approx(value, abs=6e-13 if method == "closed" else 1e-8)
    np.testing.assert_allclose(found.b, b, atol=6e-11 if method == "closed" else 1e-5)
    assert found.certificate.verdict == "global"


def test_singular_values_and_more_values():
    assert spectral_optimum(_fit([6, 3, 2], 3).problem).singular_values == pytest.approx(
        [2.3717079969, 1.6542690616, 1.3364318164], abs=6e-11
    )
    assert spectral_optimum(_fit([6, 3, 2], 3, bias=0).problem).singular_values == pytest.approx(
        [1.9758692124, 1.4479876622, 0], abs=6e-11
    )
    for lb, value in (("none", 0.029442611053), (0, 0.019440029874), (0.1, 0.028012611053)):
        found = _fit([10, 10, 1, 1], 4, lh=1.3e-3, bias=lb)
        assert found.objective == pytest.approx(value, abs=6e-13)


def test_minority_collapse():
    found = _fit([50, 2], 2, 0.04, 0.04)
    assert found.objective == pytest.approx(0.260473481705, abs=6e-13)
    product = found.W @ found.H[:, [0, -1]]
    np.testing.assert_allclose(product, np.diag([4.99106781 / math.sqrt(50), 0]), atol=6e-9)
    assert found.certificate.verdict == "global"


@pytest.mark.parametrize("K", [2, 4])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("dim", [1, 3, 4, 6])
@pytest.mark.parametrize("lb", [math.inf, 0.0])
@pytest.mark.parametrize("active", [0.1, 0.98, 1.02])
def test_numerical_solution_agrees_with_the_closed_form(K, n, dim, lb, active):
    product = (active / K) ** 2 / n
    lw = math.sqrt(product) / 2
    given = {"lw": lw, "lh": product / lw, "bias": lb}
    closed = _fit([n] * K, dim, **given)
    found = _fit([n] * K, dim, method="numerical", restarts=10 if dim < K else 1, **given)
    assert found.objective == pytest.approx(closed.objective, abs=1e-8)
    assert closed.certificate.gradient_norm < 1e-13
    if dim >= K:
        assert closed.certificate.verdict == "global"


@pytest.mark.parametrize("K", [2, 3])
@pytest.mark.parametrize("extra", [-1, 0, 2])
@pytest.mark.parametrize("theta", [0.5, 0.97, 1.03, 4.0])
@pytest.mark.parametrize("active", [0.3, 0.9])
def test_numerical_solution_agrees_around_the_threshold_of_a_regularised_bias(
    K, extra, theta, active
):
    """lb/(1 + lb) below and above K sqrt(n lw lh), at which the rank changes from K - 1 to K."""
    n, q = 2, active / K
    ratio = min(theta * K * q, 0.95)  # lb/(1 + lb)
    lw = q / math.sqrt(n) * 1.5
    given = {"lw": lw, "lh": q**2 / n / lw, "bias": ratio / (1 - ratio)}
    found = _fit([n] * K, K + extra, method="numerical", restarts=4, **given)
    wide = _fit([n] * K, K, method="closed", **given)
    alpha, beta = 1 - K * q, max(1 - K * q / ratio, 0.0)
    known = ((K - 1) * (1 - alpha) ** 2 + ratio * (1 - beta) ** 2) / (2 * K) + q * (
        (K - 1) * alpha + beta
    )
    assert wide.objective == pytest.approx(known, abs=1e-14)
    if extra >= 0 or beta == 0:
        assert found.objective == pytest.approx(known, abs=1e-8)
    else:  # K - 1 dimensions do not hold a solution of rank K
        assert found.objective > known + 1e-9


@given(
    st.lists(st.integers(1, 12), min_size=2, max_size=5),
    st.floats(-5, -1),
    st.floats(-5, -1),
    st.floats(-5, 1),
)
def test_the_dual_bound_meets_every_closed_form(counts, lw, lh, lb):
    """Any class sizes and decays, every kind of bias: value and proved bound coincide."""
    for bias in ("none", "free", 10**lb):
        found = _fit(counts, len(counts), 10**lw, 10**lh, bias=bias)
        assert found.certificate.gap == pytest.approx(0, abs=1e-10)
        assert found.certificate.gap >= -1e-14


def test_all_samples_free_reach_the_same_minimum():
    closed = _fit([4, 2, 2], 3, bias=0.05)
    found = _fit([4, 2, 2], 4, bias=0.05, method="numerical", collapsed=False)
    assert found.objective == pytest.approx(closed.objective, abs=1e-8)
    assert found.collapse().nc1 < 1e-6


def test_a_regularised_bias_needs_all_classes_directions():
    with pytest.raises(ArgumentError, match="numerical"):
        _fit([4, 4, 4], 2, bias=0.5, method="closed")
    found = _fit([4, 4, 4], 2, bias=0.5)
    assert found.settings["method"] == "numerical"
    assert found.objective > 0.040926406871 + 1e-3
    assert found.certificate.verdict == "undecided"
    assert found.certificate.lower_bound <= 0.040926406871 + 1e-12
    etf = _fit([4, 4, 4], 2, bias=0.01)  # rank K - 1 where lb/(1 + lb) <= K q
    assert etf.certificate.verdict == "global"
