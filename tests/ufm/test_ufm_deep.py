"""More layers: linear models by singular values, ReLU models by search, points below collapse."""

from __future__ import annotations

import math
from inspect import unwrap

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from wgeo.errors import ArgumentError
from wgeo.ufm import deep_collapse, fit_deep, fit_mse, lower_rank
from wgeo.ufm.certify import certify, evaluate
from wgeo.ufm.configurations import _norm_product, configuration, configuration_value
from wgeo.ufm.deep import deep_collapse_of
from wgeo.ufm.spectral import _threshold, shrink, spectral_optimum

LINEAR = [
    ([4, 4, 4], (3e-3, 2e-3), 1e-3, 0.012942695890, (1.9826426462,) * 3),
    ([6, 3, 2], (3e-3, 2e-3), 1e-3, 0.012281023594, (2.4346315718, 1.7153530329, 1.3963302876)),
    ([4, 4, 4], (2e-3, 3e-3, 2e-3), 1e-3, 0.015761587165, (1.9841441347,) * 3),
    ([7, 4, 1], (2e-3, 3e-3), 1.5e-3, 0.013985411039, (2.6276626865, 1.9801223637, 0.9748259521)),
    ([20, 5, 1], (1e-2, 1e-2), 0.1, 0.156132301114, (4.12280058, 1.77328135, 0)),
]
BINARY = {2: 0.011967914131, 3: 0.015967870965, 4: 0.019967844991, 5: 0.023967827643}


def _fit(counts, weight_decays, feature_decay, **given):
    given.setdefault("dim", len(counts))
    labels = np.repeat(np.arange(len(counts)), counts)
    return fit_deep(labels, weight_decays=weight_decays, feature_decay=feature_decay, **given)


def _binary(layers, **given):
    return _fit([3, 3], [4e-3] * layers, 4e-3 / 3, activation="relu", **given)


@pytest.mark.parametrize(("counts", "decays", "lh", "value", "sizes"), LINEAR)
def test_linear_closed_form(counts, decays, lh, value, sizes):
    found = _fit(counts, decays, lh)
    assert found.objective == pytest.approx(value, abs=6e-13)
    assert spectral_optimum(found.problem).singular_values == pytest.approx(sizes, abs=6e-9)
    assert found.certificate.verdict == "global"
    assert found.certificate.gradient_norm < 1e-13
    # every factor carries the same penalty, singular value by singular value
    penalties = [
        decay * (A**2).sum()
        for decay, A in zip(found.problem.decays, (found.H, *found.weights), strict=True)
    ]
    np.testing.assert_allclose(penalties, penalties[0], rtol=1e-12)


@given(st.floats(0.1, 4), st.floats(1e-6, 2), st.integers(2, 7))
def test_shrinking_a_singular_value_is_a_global_minimum(y, kappa, m):
    z, value = shrink(y, kappa, m)

    def phi(t):
        return (y - t) ** 2 / 2 + m / 2 * kappa * abs(t) ** (2 / m)

    assert value == pytest.approx(phi(z), rel=1e-12)
    grid = np.linspace(0, y, 2001)
    assert value <= phi(grid).min() + 1e-12
    if z > 0:
        near = minimize_scalar(phi, bounds=(0.9 * z, min(1.1 * z, y)), method="bounded")
        assert value <= near.fun + 1e-13


def threshold(y, samples, factors):
    """Below this product of decays a singular value y survives."""
    return _threshold(y, factors) / samples**factors


@pytest.mark.parametrize(
    ("m", "Lambda"),
    [(2, 2.22222222222e-2), (3, 4.629629630e-4), (4, 1.354807025e-5), (5, 3.390842014e-7)],
)
def test_threshold_and_jump(m, Lambda):
    y, N = math.sqrt(5), 15
    assert threshold(y, N, m) == pytest.approx(Lambda, rel=5e-9)
    exact = threshold(y, N, m)
    above, below = (shrink(y, N * (exact * f) ** (1 / m), m)[0] for f in (1 + 1e-9, 1 - 1e-9))
    assert above == 0
    assert below == pytest.approx(y * (m - 2) / (m - 1), abs=1e-5)


@pytest.mark.parametrize("layers", [2, 3, 4, 5])
def test_thresholds_of_two_classes(layers):
    """n Lambda < (L-1)^(L-1) / (2^(L+1) L^(2L))."""
    known = {2: 7.8125e-3, 3: 3.4293552812e-4, 4: 1.2874603271e-5, 5: 4.096e-7}[layers]
    assert 5 * threshold(math.sqrt(5), 10, layers + 1) == pytest.approx(known, rel=1e-9)


@pytest.mark.parametrize("layers", [2, 3])
@pytest.mark.parametrize("bias", ["none", "free"])
@pytest.mark.parametrize("counts", [(3, 3, 3), (4, 2, 1)])
@pytest.mark.parametrize("dim", [2, 3, 5])
@pytest.mark.parametrize("active", [0.05, 0.9, 1.1])
def test_linear_search_agrees_with_the_closed_form(layers, bias, counts, dim, active):
    """Class sizes balanced and not, d below, at and above K, both sides of the threshold."""
    m = layers + 1
    decay = (active * threshold(math.sqrt(counts[0]), sum(counts), m)) ** (1 / m)
    given = {"dim": dim, "bias": bias}
    closed = _fit(counts, [decay] * layers, decay, **given)
    found = _fit(
        counts, [decay] * layers, decay, method="numerical", collapsed=True, restarts=40, **given
    )
    assert found.objective == pytest.approx(closed.objective, abs=1e-8)
    assert found.objective >= closed.objective - 1e-12


def test_an_objective_below_the_minimum_by_rounding_is_within_zero_of_it(monkeypatch):
    found = _fit([3, 3], [1e-3] * 3, 1e-3)
    minimum = float(np.nextafter(found.objective, 1))
    monkeypatch.setattr("wgeo.ufm.certify.known_minimum", lambda _: (minimum, "computed"))
    certificate = certify(found.problem, found.point())
    assert certificate.gap < 0
    assert "within 0.0e+00 of the global minimum" in certificate.evidence


def test_two_factors_are_the_plain_model():
    labels = [0, 0, 1, 2, 2]
    deep = fit_deep(labels, dim=3, weight_decays=[0.01], feature_decay=0.02)
    plain = fit_mse(labels, dim=3, weight_decay=0.01, feature_decay=0.02)
    assert deep.objective == pytest.approx(plain.objective, abs=1e-15)
    assert deep.model == plain.model == "ufm-mse"


@pytest.mark.parametrize("layers", BINARY)
def test_deep_neural_collapse_of_two_classes(layers):
    found = _binary(layers, method="closed", dim=4)
    assert found.objective == pytest.approx(BINARY[layers], abs=6e-13)
    assert found.certificate.verdict == "global"
    for layer in deep_collapse(found):
        assert layer.dnc1 == pytest.approx(0, abs=1e-15)
        if layer.layer > 1:
            assert layer.dnc2 == pytest.approx(0, abs=1e-12)
            assert layer.dnc3 == pytest.approx(0, abs=1e-12)
    if layers == 2:
        assert found.logits[0, 0] == pytest.approx(0.9919784942, abs=6e-11)


@pytest.mark.parametrize("layers", [2, 3, 4])
def test_search_over_seeds_finds_deep_neural_collapse(layers):
    """All samples free: the best of the seeds collapses at every layer, none goes below."""
    found = _binary(layers, dim=4, restarts=6)
    assert found.objective == pytest.approx(BINARY[layers], abs=1e-8)
    assert min(found.values) >= BINARY[layers] - 1e-12
    assert found.certificate.verdict == "global"
    for layer in deep_collapse(found):
        assert layer.dnc1 < 1e-5
        if layer.layer > 1:
            assert layer.dnc2 < 0.05
    assert len(found.curve()) == layers
    assert found.collapse().nc1 < 1e-4


@pytest.mark.parametrize("counts", [(1, 1), (2, 2, 2), (4, 2, 1)])
def test_relu_after_one_layer_does_not_change_the_minimum(counts):
    """The extended model with a ReLU reaches the linear model's value, and an orthogonal frame."""
    linear = _fit(counts, (3e-3, 2e-3), 1e-3)
    found = _fit(counts, (3e-3, 2e-3), 1e-3, dim=6, activation="relu", restarts=10)
    assert found.objective == pytest.approx(linear.objective, abs=1e-8)
    assert min(found.values) >= linear.objective - 1e-12
    frame = found.layers[1] / np.linalg.norm(found.layers[1], axis=0)
    gram = frame.T @ frame
    same = np.equal.outer(found.labels, found.labels)
    np.testing.assert_allclose(gram[~same], 0, atol=1e-3)
    np.testing.assert_allclose(gram[same], 1, atol=1e-3)


def test_features_before_the_first_relu_are_not_determined():
    """H a simplex ETF instead of an orthogonal frame: same objective, same relu(W_1 H)."""
    frame = _fit([2, 2, 2], (3e-3, 2e-3), 1e-3, activation="relu", method="closed")
    W1, W2 = frame.weights
    P = (W1 @ frame.H)[:, ::2]
    # off-diagonals at most 0, positive semi-definite, trace as before: same nuclear norm
    etf = P[0, 0] * (1.5 * np.eye(3) - 0.5)
    values, vectors = np.linalg.eigh(etf)
    root = np.sqrt(np.maximum(values, 0))
    lh, l1, _ = frame.problem.decays
    balance = (2 * lh / l1) ** 0.25  # two samples a class
    W = vectors * root * balance
    H = (root / balance)[:, None] * vectors.T
    other = evaluate(frame.problem, H=np.repeat(H, 2, 1), weights=[W, W2])
    np.testing.assert_allclose(other.layers[1], frame.layers[1], atol=1e-14)
    assert other.objective == pytest.approx(frame.objective, abs=1e-15)
    cosine = H[:, 0] @ H[:, 1] / (H[:, 0] @ H[:, 0])
    assert cosine == pytest.approx(-0.5, abs=1e-12)


@pytest.mark.parametrize(
    ("K", "layers", "C", "value", "dnc"),
    [
        (3, 4, 2.9457918728, 0.007360133143, 0.007495491872),
        (3, 5, None, 0.008281220041, 0.008995490967),
        (6, 4, None, 0.014432255569, 0.014981934755),
        (10, 3, 9.2343742996, 0.018425913062, 0.019949747467),
        (10, 4, None, 0.020386676093, 0.024949696549),
    ],
)
def test_points_below_deep_neural_collapse(K, layers, C, value, dnc):
    found = lower_rank(np.arange(K), dim=K + 1, weight_decays=[1e-3] * layers, feature_decay=1e-3)
    if C is not None:
        assert _norm_product(configuration(K, layers)) == pytest.approx(C, abs=6e-11)
    assert found.objective == pytest.approx(value, abs=6e-13)
    assert found.settings["dnc"] == pytest.approx(dnc, abs=6e-13)
    collapsed = fit_deep(
        np.arange(K),
        dim=K + 1,
        weight_decays=[1e-3] * layers,
        feature_decay=1e-3,
        activation="relu",
        method="closed",
    )
    assert collapsed.objective == pytest.approx(dnc, abs=6e-13)
    assert collapsed.certificate.verdict == "undecided"
    if K == 3:
        assert np.linalg.matrix_rank(found.layers[1]) == 2


def test_counterexamples_and_descents_from_them():
    given = {"dim": 8, "weight_decays": [1e-3] * 4, "feature_decay": 2e-4}
    labels = np.repeat(np.arange(7), 5)
    found = lower_rank(labels, **given)
    x = found.logits[found.labels, range(35)]
    np.testing.assert_allclose(found.logits, np.eye(7)[:, labels] * x, atol=1e-12)
    decays = [2e-4, *[1e-3] * 4]
    assert found.settings["dnc"] == pytest.approx(configuration_value(7, 5, decays))
    assert found.objective < found.settings["dnc"] - 1e-4
    around = {"start": found, "restarts": 4, "spread": 0.02, "max_steps": 300}
    lower = fit_deep(labels, activation="relu", **around, **given)
    assert lower.objective < found.objective - 1e-7
    assert np.linalg.norm(lower.H - found.H) < 0.5 * np.linalg.norm(found.H)


@pytest.mark.parametrize(
    ("K", "layers"), [(3, 4), (3, 6), (6, 4), (6, 5), (15, 4), (10, 3), (10, 5)]
)
def test_configurations_fit_exactly(K, layers):
    X, *weights = configuration(K, layers)
    for W in weights[:-1]:
        X = np.maximum(W @ X, 0)
    np.testing.assert_allclose(weights[-1] @ X, np.eye(K), atol=1e-12)
    assert len(weights) == layers
    assert _norm_product(configuration(K, layers)) < K


def test_the_graph_of_edges_needs_four_layers():
    """Its constant in closed form, and that it exceeds K at three layers."""
    s, K = 4, 6
    nuclear = math.sqrt(2 * s - 2) + (s - 1) * math.sqrt(s - 2)
    assert _norm_product(configuration(K, 4)) == pytest.approx(
        (nuclear**2 * s * (K * s / 4) * K) ** 0.2
    )
    assert (nuclear**2 * (K * s / 4) * K) ** 0.25 > K


def test_classes_are_divided_among_configurations_in_the_best_way():
    def found(K, layers=4):
        given = {"dim": K, "weight_decays": [1e-3] * layers, "feature_decay": 1e-3}
        return lower_rank(np.arange(K), **given).settings

    assert found(3)["blocks"] == [3]
    assert found(6)["blocks"] == [6]  # lower than two blocks of three
    assert sorted(found(13)["blocks"]) == [3, 10]
    assert sorted(found(11, 3)["blocks"]) == [1, 10]
    assert found(11, 3)["constants"][found(11, 3)["blocks"].index(1)] == 1


def test_metrics_of_a_layer_detect_each_deviation():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 10)
    frame = np.eye(4)[:, labels]
    W = np.eye(4)[:2]
    good = deep_collapse_of(frame, labels, W, layer=2)
    assert good.to_dict() == {"layer": 2, "dnc1": 0.0, "dnc2": 0.0, "dnc3": 0.0}
    spread = deep_collapse_of(frame + 0.1 * rng.standard_normal(frame.shape), labels, W, layer=2)
    assert 0.01 < spread.dnc1 < 0.1
    stretched = deep_collapse_of(frame * np.array([3, 1])[labels], labels, W, layer=2)
    assert stretched.dnc2 == pytest.approx(2)
    turned = deep_collapse_of(frame, labels, np.array([[1.0, 1, 0, 0], [0, 1, 0, 0]]), layer=2)
    assert turned.dnc3 == pytest.approx(1 - math.sqrt(0.5))
    faint = deep_collapse_of(frame, labels, np.array([[1e-6, 1e-6, 0, 0], [0, 1, 0, 0]]), layer=3)
    assert faint.dnc3 == pytest.approx(0)
    assert deep_collapse_of(0 * frame, labels, W, layer=2).dnc2 is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight_decays": []}, "at least one layer"),
        ({"weight_decays": 1e-3}, "one number per layer"),
        ({"weight_decays": "12"}, "one number per layer"),
        ({"weight_decays": [1e-3, 0.0]}, r"weight_decays\[1\]"),
        ({"activation": "tanh"}, "activation"),
        ({"restarts": 0, "activation": "relu"}, "restarts"),
        ({"method": "closed", "activation": "relu", "dim": 1}, "dim >= K"),
        ({"method": "closed", "bias": 0.1}, "closed form is for the squared loss"),
    ],
)
def test_unsolvable_problems_are_clear_errors(change, said):
    settings = {"dim": 2, "weight_decays": [1e-3] * 2, "feature_decay": 1e-3} | change
    with pytest.raises(ArgumentError, match=said):
        unwrap(fit_deep)([0, 1], **settings)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dim": 5}, r"start.*\(4, 6\).*model's.*\(5, 6\)"),
        ({"weight_decays": [1e-3] * 2}, "start.*shapes"),
        ({"weight_decays": [1e-3] * 4, "method": "closed"}, "start.*shapes"),
        ({"bias": "free"}, "bias of `start`"),
        ({"labels": [0, 1, 2] * 3}, "other labels"),
        ({"labels": [0, 0, 1, 1, 2, 2]}, "other labels"),
    ],
)
def test_a_start_of_another_model_is_a_clear_error(change, said):
    """Also if the sizes agree: the features of a class would begin in another class."""
    given = {"labels": [0, 1, 2] * 2, "dim": 4, "weight_decays": [1e-3] * 3, "feature_decay": 1e-3}
    near = {"start": fit_deep(**given), "activation": "relu", "restarts": 1, "max_steps": 2}
    with pytest.raises(ArgumentError, match=said):
        fit_deep(**given | near | change)
    assert fit_deep(**given | near | {"weight_decays": [2e-3] * 3}).settings["restarts"] == 1


def test_missing_counterexample_is_an_error():
    given = {"weight_decays": [1e-3] * 3, "feature_decay": 1e-3}
    with pytest.raises(ArgumentError, match="K >= 10 with L >= 3"):
        lower_rank(np.arange(3), dim=3, **given)
    with pytest.raises(ArgumentError, match="dim >= K"):
        lower_rank(np.arange(10), dim=9, **given)
    for classes, layers in ((4, 4), (3, 3), (6, 3), (10, 2)):
        with pytest.raises(ArgumentError, match="No configuration"):
            configuration(classes, layers)
    with pytest.raises(ArgumentError, match="spread"):
        configuration(3, 4, spread=0.0)
    with pytest.raises(ArgumentError, match="factors must be a whole number of at least 2"):
        shrink(1.0, 0.1, 1)
