"""MUFM against its verified numbers, its own full objective, and finite differences."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from wgeo.errors import ArgumentError
from wgeo.ufm import fit_mufm
from wgeo.ufm.likelihood import Likelihood
from wgeo.ufm.reduced import Reduced, Statistics


def det_data(classes, n, d):
    """The deterministic data of the verified tables: (N, d) and labels."""
    labels = np.repeat(np.arange(classes), n)
    i, j = np.arange(d)[:, None], np.arange(classes * n)
    x = (i % classes == labels) + 0.5 * np.sin(1 + 1.7 * i + 2.3 * j + 0.9 * i * j)
    return x.T, labels


@pytest.mark.parametrize(
    ("shape", "mu", "held", "bias", "value", "size", "certificate"),
    [
        ((3, 4, 5), 0.3, 0.0, False, 0.018849244329, 2.2829122728, 0.81588755),
        ((3, 4, 5), 0.3, 0.1, False, 0.100777171963, 3.2887829805, 0.76318784),
        ((3, 4, 5), 0.3, 0.0, True, 0.013785418964, 1.5415392805, 0.78268552),
        ((3, 4, 5), 0.01, 0.0, False, 0.007018968540, 0.9540181717, 0.78630501),
        ((4, 5, 2), 0.1, 0.0, False, 0.264130876486, 1.2217463461, 15.81138830),
    ],
)
def test_verified_numbers(shape, mu, held, bias, value, size, certificate):
    x, labels = det_data(*shape)
    m = fit_mufm(
        x, labels, layers=4, weight_decay=1e-2, transport=4 * mu, feature_decay=held, bias=bias
    )
    assert m.objective == pytest.approx(value, abs=1e-11)
    assert np.sum(m.W**2) == pytest.approx(size, rel=1e-7)
    assert m.certificate.spectral_norm == pytest.approx(certificate, rel=1e-6)
    assert (m.certificate.verdict == "global") == (certificate < 1)
    assert m.monotone


def test_the_padded_problem_bounds_from_below():
    x, labels = det_data(4, 5, 2)
    m = fit_mufm(x, labels, layers=1, weight_decay=1e-2, transport=0.1)
    assert m.certificate.lower_bound == pytest.approx(0.044105482889, abs=1e-10)
    x, labels = det_data(3, 4, 3)
    m = fit_mufm(x, labels, layers=1, weight_decay=5e-3, transport=0.02)
    assert m.objective == pytest.approx(0.007582706637, abs=1e-11)
    assert m.certificate.lower_bound == pytest.approx(0.007236544021, abs=1e-10)


@pytest.mark.parametrize("loss", ["mse", "ce"])
@pytest.mark.parametrize("bias", [False, True, 0.3])
def test_no_features_nearby_do_better(loss, bias, rng):
    """The solution is a minimum of the full objective over W, b and every layer."""
    x, labels = det_data(3, 4, 5)
    m = fit_mufm(x, labels, layers=3, weight_decay=1e-2, transport=0.6, bias=bias, loss=loss)
    y = np.eye(3)[labels]
    decay = bias if isinstance(bias, float) else 0.0

    def objective(w, b, layers):
        z = layers[-1] @ w.T + b
        if loss == "mse":
            fit = np.sum((z - y) ** 2) / 2
        else:
            fit = -np.sum(y * (z - np.log(np.exp(z).sum(1, keepdims=True))))
        steps = sum(np.sum((q - p) ** 2) for p, q in pairwise(layers))
        n = len(x)
        return fit / n + 0.005 * np.sum(w**2) + 0.3 * steps / n + decay * np.sum(b**2) / 2

    layers = [m.layer(i) for i in range(4)]
    best = objective(m.W, m.b, layers)
    assert best == pytest.approx(m.objective, rel=1e-12)
    for _ in range(20):
        moved = [layers[0], *(h + 1e-4 * rng.normal(size=h.shape) for h in layers[1:])]
        w = m.W + 1e-4 * rng.normal(size=m.W.shape)
        b = m.b + 1e-4 * rng.normal(size=3) * (bias is not False)
        assert objective(w, b, moved) > best - 1e-13


@pytest.mark.parametrize("decay", [0.0, 0.3, np.inf])
def test_derivatives_against_differences(decay, rng):
    x, labels = det_data(4, 5, 6)
    problems = [
        Reduced(Statistics.of(x, labels, 4), 0.2, 0.01, decay),
        Likelihood(x, labels, 0.2, 0.01, decay),
    ]
    for problem in problems:
        w, v = rng.normal(size=problem.shape), rng.normal(size=problem.shape)
        up, down = problem.at(w + 1e-5 * v), problem.at(w - 1e-5 * v)
        slope = (up.value() - down.value()) / 2e-5
        assert np.sum(problem.at(w).gradient() * v) == pytest.approx(slope, rel=1e-6)
        turn = (up.gradient() - down.gradient()) / 2e-5
        assert np.allclose(problem.at(w).hessian_product(v), turn, atol=1e-7)


def test_class_means_that_cross_are_not_monotone():
    x, labels = det_data(2, 3, 2)
    m = fit_mufm(x, labels, layers=2, weight_decay=1e-2, transport=0.5)
    means = np.stack([x[labels == k].mean(0) for k in (0, 1)])
    swapped = x + means[1 - labels] - means[labels]  # deviations stay, the means change places
    crossed = type(m)(**{**vars(m), "H": swapped.T})
    assert m.monotone
    assert not crossed.monotone


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": 0}, "layers"),
        ({"weight_decay": 0.0}, "weight_decay"),
        ({"transport": -1.0}, "transport"),
        ({"feature_decay": -1.0}, "feature_decay"),
        ({"bias": -1.0}, "bias"),
        ({"loss": "hinge"}, "loss"),
        ({"labels": [0, 0, 0]}, "two classes"),
        ({"labels": [0, 2, 2]}, "class 1"),
    ],
)
def test_bad_settings_are_refused_in_words(change, message, rng):
    call = {"labels": [0, 1, 1], "layers": 2, "weight_decay": 0.1, "transport": 1.0} | change
    with pytest.raises(Exception, match=message) as raised:
        fit_mufm(rng.normal(size=(3, 4)), call.pop("labels"), **call)
    if "loss" not in change:  # under pytest the type checker answers first
        assert isinstance(raised.value, ArgumentError)
