"""The cross-entropy model: closed form, numerical solution, certificate."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from wgeo.errors import ArgumentError
from wgeo.ufm import closed_form_ce, fit_ce, fit_mse
from wgeo.ufm.certify import evaluate, lower_bound
from wgeo.ufm.problem import LOSSES, Problem

TABLE = [
    (2, 3, 1e-2, 1e-3, 2.849068878, 5.201664308, 0.033982969352),
    (3, 5, 5e-3, 5e-4, 7.973045826, 5.637794771, 0.046961415423),
    (4, 5, 5e-3, 5e-4, 11.952001849, 5.634227704, 0.070423261902),
    (5, 4, 1e-2, 1e-3, 12.744464264, 5.037691829, 0.153068365394),
    (10, 3, 1e-3, 1e-4, 36.994934187, 7.504799988, 0.041936627282),
    (4, 5, 2e-2, 1e-2, 15.910380805, 3.354202786, 0.417882470030),
    (4, 25, 0.06, 0.06, 0.0, 0.0, 1.386294361120),
]


def _etf_gram(K):
    return np.eye(K) - 1 / K


@pytest.mark.parametrize(("K", "n", "lw", "lh", "rho", "margin", "value"), TABLE)
def test_closed_form(K, n, lw, lh, rho, margin, value):
    known = closed_form_ce(K, n, lw, lh)
    assert known.rho == pytest.approx(rho, abs=6e-10)
    assert known.margin == pytest.approx(margin, abs=6e-10)
    assert known.value == pytest.approx(value, abs=6e-13)
    found = fit_ce(np.repeat(np.arange(K), n), dim=K - 1, weight_decay=lw, feature_decay=lh)
    assert found.objective == pytest.approx(value, abs=6e-13)
    assert found.certificate.verdict == "global"
    assert found.certificate.gap == pytest.approx(0, abs=1e-14)
    assert found.certificate.gradient_norm < 1e-14
    W, H = found.W, found.H
    assert (W**2).sum() == pytest.approx(known.rho, abs=1e-9)
    np.testing.assert_allclose(W @ W.T, known.rho / (K - 1) * _etf_gram(K), atol=1e-9)
    np.testing.assert_allclose(
        H, math.sqrt(lw / (lh * n)) * np.repeat(W, n, 0).T, atol=1e-9 * (1 + abs(H).max())
    )
    if margin:
        softmax = np.exp(found.logits) / np.exp(found.logits).sum(0)
        np.testing.assert_allclose(softmax[found.labels, range(K * n)], 1 - known.error, rtol=1e-9)


@pytest.mark.parametrize("K", [2, 3, 5])
@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("extra", [-1, 0, 3])
@pytest.mark.parametrize("active", [0.02, 0.97, 1.0, 1.1])
def test_numerical_solution_agrees_with_the_closed_form(K, n, extra, active):
    """Around the threshold K sqrt(n lw lh) = 1, below, at and above d = K."""
    product = (active / K) ** 2 / n
    lw = 3 * math.sqrt(product)
    found = fit_ce(
        np.tile(np.arange(K), n),
        dim=K + extra,
        weight_decay=lw,
        feature_decay=product / lw,
        bias=0.1 if extra else "free",
        method="numerical",
    )
    known = closed_form_ce(K, n, lw, product / lw)
    assert found.objective == pytest.approx(known.value, abs=1e-8)
    assert found.certificate.verdict == "global"
    assert (known.rho == 0) == (active >= 1)


@pytest.mark.parametrize("bias", ["free", 0.05, "none"])
@pytest.mark.parametrize("counts", [(6, 3, 2), (5, 1), (4, 4, 1, 1)])
def test_imbalanced_classes_are_solved_and_certified_from_any_start(counts, bias):
    labels = np.repeat(np.arange(len(counts)), counts)
    given = {"weight_decay": 1e-2, "feature_decay": 5e-3, "bias": bias}
    found = fit_ce(labels, dim=len(counts) - 1, restarts=8, **given)
    assert found.certificate.verdict == "global"
    assert found.values[-1] - found.values[0] < 1e-8  # no seed is left in a local minimum
    assert found.certificate.lower_bound <= found.objective + 1e-15
    everyone = fit_ce(labels, dim=len(counts) + 1, collapsed=False, seed=3, **given)
    assert everyone.objective == pytest.approx(found.objective, abs=1e-8)
    assert everyone.collapse().nc1 < 1e-6  # nobody asked the samples of a class to agree


def test_the_bound_is_below_every_point():
    problem = fit_ce([0, 1, 1, 2], dim=3, weight_decay=0.02, feature_decay=0.01).problem
    best = fit_ce([0, 1, 1, 2], dim=3, weight_decay=0.02, feature_decay=0.01).objective
    for scale in (0.01, 1.0, 30.0):
        x = scale * torch.randn(problem.size, dtype=torch.float64)
        assert lower_bound(problem, x) <= best + 1e-12


def test_too_few_dimensions_give_softmax_codes_and_spurious_minima():
    labels = np.repeat(np.arange(4), 2)
    given = {"weight_decay": 5e-3, "feature_decay": 2e-3}
    square = fit_ce(labels, dim=2, **given)
    assert square.objective == pytest.approx(0.102183949502, abs=6e-13)
    a = math.log(1 / (2 * math.sqrt(2 * 5e-3 * 2e-3)) - 1)
    assert a == pytest.approx(4.7077574496, abs=6e-11)
    # the square: right minus opposite logit is 2a, right minus neighbour a
    Z = square.logits[:, ::2]
    gaps = np.sort(Z.diagonal() - Z, 0)
    np.testing.assert_allclose(gaps[[1, 2]], a, atol=1e-5)
    np.testing.assert_allclose(gaps[3], 2 * a, atol=1e-5)
    line = fit_ce(labels, dim=1, bias=1e-2, **given)
    assert line.objective == pytest.approx(0.30214478, abs=6e-9)
    assert abs(line.b).max() > 1
    assert fit_ce(labels, dim=3, **given).objective == pytest.approx(0.085907281887, abs=6e-13)

    given = {"weight_decay": 5e-3, "feature_decay": 1e-3, "bias": 1e-2}
    hexagon = fit_ce(np.arange(6), dim=2, **given)
    assert hexagon.objective == pytest.approx(0.14215838, abs=6e-9)
    assert hexagon.values[-1] == pytest.approx(0.17601774, abs=6e-9)
    assert hexagon.certificate.verdict == "undecided"
    assert hexagon.certificate.spectral_norm > hexagon.certificate.threshold
    assert fit_ce(np.arange(6), dim=3, **given).objective == pytest.approx(0.08977833, abs=6e-9)
    assert fit_ce(np.arange(6), dim=5, **given).objective == pytest.approx(
        0.079351626087, abs=6e-13
    )


def test_metrics_and_record_of_a_solution():
    found = fit_ce(np.repeat(np.arange(3), 4), dim=5, weight_decay=1e-2, feature_decay=1e-3)
    metrics = found.collapse()
    assert metrics.nc1 == pytest.approx(0, abs=1e-12)
    assert metrics.nc2_etf == pytest.approx(0, abs=1e-12)
    assert metrics.nc3 == pytest.approx(0, abs=1e-12)
    assert [layer.name for layer in found.curve()] == ["layer0"]
    record = json.loads(json.dumps(found.to_dict()))
    assert record["model"] == "ufm-ce"
    assert record["certificate"]["verdict"] == "global"
    with pytest.raises(ArgumentError, match="there is no layer 1"):
        found.layer(1)


@pytest.mark.parametrize("fit", [fit_ce, fit_mse])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight_decay": 0.0}, "weight_decay must be a positive number"),
        ({"feature_decay": -1.0}, "feature_decay must be a positive number"),
        ({"weight_decay": math.nan}, "weight_decay"),
        ({"feature_decay": math.inf}, "feature_decay"),
        ({"dim": 0}, "dim must be a whole number of at least 1"),
        ({"dim": True}, "dim must be"),
        ({"labels": np.array([0, 0])}, "K >= 2"),
        ({"bias": -0.1}, "bias must be 'free', 'none' or a decay >= 0"),
        ({"bias": math.nan}, "bias must be"),
        ({"bias": "some"}, "bias must be"),
        ({"labels": [0, 2, 2]}, "No sample has label 1"),
        ({"labels": [0, 0, 0]}, "K >= 2"),
        ({"labels": []}, "labels"),
        ({"labels": [0, -1]}, "negative"),
        ({"labels": [0.5, 1.0]}, "whole numbers"),
        ({"method": "magic"}, "method must be"),
        ({"method": "numerical", "restarts": 0}, "restarts"),
        ({"method": "numerical", "tolerance": -1.0}, "tolerance"),
    ],
)
def test_unsolvable_problems_are_clear_errors(fit, change, said):
    given = {"labels": [0, 1, 2], "dim": 3, "weight_decay": 0.01, "feature_decay": 0.01} | change
    with pytest.raises(ArgumentError, match=said):
        fit(given.pop("labels"), **given)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((1, 5, 1e-2, 1e-2), "num_classes must be a whole number of at least 2"),
        ((3, 0, 1e-2, 1e-2), "per_class must be a whole number of at least 1"),
        ((3, 5, 0.0, 1e-2), "weight_decay must be a positive number"),
        ((3, 5, 1e-2, -1.0), "feature_decay must be a positive number"),
    ],
)
def test_closed_form_refuses_cases_it_does_not_cover(given, said):
    with pytest.raises(ArgumentError, match=said):
        closed_form_ce(*given)


def test_the_formula_holds_for_tiny_decays():
    known = closed_form_ce(3, 1, 1e-200, 1e-200)
    assert known.margin == pytest.approx(200 * math.log(10), rel=1e-12)
    assert known.value == pytest.approx(0, abs=1e-190)


@pytest.mark.parametrize("bias", ["free", "none", 0.3])
def test_terms_add_up_to_the_objective(bias):
    found = fit_ce([0, 0, 1, 2], dim=2, weight_decay=1e-2, feature_decay=2e-2, bias=bias)
    terms = found.terms
    assert sum(terms.values()) == pytest.approx(found.objective, rel=1e-14)
    shifted = np.exp(found.logits - found.logits.max(0))
    fit = -np.log(shifted[found.labels, range(4)] / shifted.sum(0)).mean()
    assert terms["fit"] == pytest.approx(fit, rel=1e-12)
    assert terms["weight_decay"] == pytest.approx(0.5e-2 * (found.W**2).sum())
    assert terms["feature_decay"] == pytest.approx(1e-2 * (found.H**2).sum())
    assert ("bias_decay" in terms) == (bias != "none")
    assert terms["weight_decay"] == pytest.approx(terms["feature_decay"])  # balanced factors


def test_missing_closed_form_is_an_error():
    given = {"weight_decay": 0.01, "feature_decay": 0.01, "method": "closed"}
    with pytest.raises(ArgumentError, match="balanced"):
        fit_ce([0, 0, 1], dim=2, **given)
    with pytest.raises(ArgumentError, match="dim >= K - 1"):
        fit_ce([0, 1, 2], dim=1, **given)
    found = fit_ce([0, 1, 2], dim=2, **given)
    with pytest.raises(ArgumentError, match="shapes"):
        evaluate(found.problem, H=np.zeros((2, 4)), weights=[found.W])
    bare = fit_ce([0, 1, 2], dim=2, bias="none", **given)
    with pytest.raises(ArgumentError, match="no bias"):
        evaluate(bare.problem, H=bare.H, weights=[bare.W], b=np.ones(3))
    with pytest.raises(ArgumentError, match=r"one of \['ce', 'mse'\], not 'hinge'"):
        Problem.checked([0, 1], 2, (0.1, 0.1), loss="hinge")


def test_deep_cross_entropy_has_no_known_minimum():
    deep = Problem.checked([0, 0, 1, 1], 2, (0.1, 0.1, 0.1), loss="ce")
    zero = evaluate(deep, H=np.zeros((2, 4)), weights=[np.zeros((2, 2))] * 2)
    assert zero.objective == pytest.approx(math.log(2))
    assert zero.certificate.verdict == "undecided"
    assert "No global minimum is known" in zero.certificate.evidence


def test_the_conjugate_is_the_entropy_and_infinite_off_the_simplex():
    Y, p = torch.eye(2, dtype=torch.float64), torch.tensor([0.5, 0.5], dtype=torch.float64)
    loss = LOSSES["ce"]
    even = (0.5 - Y) * p  # the gradient at Z = 0: Fenchel's inequality holds with equality
    value = float(loss.value(torch.zeros(2, 2, dtype=torch.float64), Y, p))
    assert loss.conjugate(even, Y, p) == pytest.approx(-value)
    assert loss.conjugate(-even, Y, p) == math.inf
