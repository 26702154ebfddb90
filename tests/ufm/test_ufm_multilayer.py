"""MUFM against its verified numbers, its own full objective, and finite differences."""

from __future__ import annotations

from dataclasses import replace
from inspect import unwrap
from itertools import pairwise

import numpy as np
import pytest
import torch

from wgeo.errors import ArgumentError, ConvergenceError, FeatureError
from wgeo.ufm import fit_mse, fit_mufm
from wgeo.ufm.descent import minimize_batch
from wgeo.ufm.mufm import reduced_mse
from wgeo.ufm.mufm.fit import descend_and_escape, multistart_newton
from wgeo.ufm.mufm.newton import saddle_direction, trust_region_newton
from wgeo.ufm.mufm.reduced_ce import ReducedCE, residuals
from wgeo.ufm.mufm.reduced_mse import EigenbasisInverse, LowRankInverse, ReducedMSE, Statistics


def det_data(classes, n, d):
    """The deterministic data of the verified tables: (N, d) and labels."""
    labels = np.repeat(np.arange(classes), n)
    i, j = np.arange(d)[:, None], np.arange(classes * n)
    x = (i % classes == labels) + 0.5 * np.sin(1 + 1.7 * i + 2.3 * j + 0.9 * i * j)
    return x.T, labels


@pytest.mark.parametrize(
    ("shape", "mu", "held", "bias", "value", "size", "certificate"),
    [
        ((3, 4, 5), 0.3, 0.0, "none", 0.018849244329, 2.2829122728, 0.81588755),
        ((3, 4, 5), 0.3, 0.1, "none", 0.100777171963, 3.2887829805, 0.76318784),
        ((3, 4, 5), 0.3, 0.0, "free", 0.013785418964, 1.5415392805, 0.78268552),
        ((3, 4, 5), 0.01, 0.0, "none", 0.007018968540, 0.9540181717, 0.78630501),
        ((4, 5, 2), 0.1, 0.0, "none", 0.264130876486, 1.2217463461, 15.81138830),
    ],
)
def test_objective_has_known_values(shape, mu, held, bias, value, size, certificate):
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
@pytest.mark.parametrize("bias", ["none", "free", 0.3])
def test_no_nearby_features_have_a_lower_objective(loss, bias, rng):
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
        b = m.b + 1e-4 * rng.normal(size=3) * (bias != "none")
        assert objective(w, b, moved) > best - 1e-13


@pytest.mark.parametrize("decay", [0.0, 0.3, np.inf])
def test_derivatives_match_finite_differences(decay, rng):
    x, labels = det_data(4, 5, 6)
    problems = [
        ReducedMSE(Statistics.of(x, labels, 4), 0.2, 0.01, decay),
        ReducedCE(x, labels, 0.2, 0.01, decay),
    ]
    for problem in problems:
        w, v = rng.normal(size=problem.shape), rng.normal(size=problem.shape)
        up, down = problem.at(w + 1e-5 * v), problem.at(w - 1e-5 * v)
        slope = (up.value() - down.value()) / 2e-5
        assert np.sum(problem.at(w).gradient() * v) == pytest.approx(slope, rel=1e-6)
        turn = (up.gradient() - down.gradient()) / 2e-5
        assert np.allclose(problem.at(w).hessian_product(v), turn, atol=1e-7)


def test_cross_entropy_formulas_are_those_documented(rng):
    """Gradient, certificate and curvature, with G = softmax(Z) - Y, not divided by N."""
    x, labels = det_data(4, 5, 6)
    n, mu, lw, lb = len(x), 0.2, 0.01, 0.3
    point = ReducedCE(x, labels, mu, lw, lb).at(rng.normal(size=(4, 7)))
    g, h, w = point.residual.T, point.last_layer.T, point.weights
    assert np.allclose(h, x.T - w.T @ g / mu)
    of_weights, of_bias = g @ h.T / n + lw * w, g.sum(1) / n + lb * point.w[:, -1]
    assert np.allclose(point.gradient(), np.column_stack([of_weights, of_bias]))
    certificate = np.linalg.norm(g, 2) / np.sqrt(n * lw * mu)
    assert point.certificate() == pytest.approx(certificate)
    # The curvature is the derivative of g in a = W x + b.
    a, m, direction = x @ w.T + point.w[:, -1], w @ w.T / mu, rng.normal(size=(n, 4))
    up, down = (residuals(a + step * direction, np.eye(4)[labels], m) for step in (1e-5, -1e-5))
    along = np.einsum("nij,nj->ni", point.curvature, direction)
    assert np.allclose((up - down) / 2e-5, along, atol=1e-8)


@pytest.mark.parametrize("decay", [0.0, 0.3, np.inf])
def test_padded_problem_has_the_same_bias(decay, rng):
    """Also if the mean has been subtracted from the samples."""
    x, labels = det_data(4, 5, 6)
    x = x + 3
    stats = Statistics.of(x, labels, 4)
    settings = {"mu": 0.2, "weight_decay": 0.01, "bias_decay": decay}
    for problem in (ReducedCE.of(x, labels, stats, **settings), ReducedMSE(stats, **settings)):
        w = rng.normal(size=problem.shape)
        point, wider = problem.at(w), problem.padded().at(problem.widen(w))
        assert wider.value() == pytest.approx(point.value())
        assert np.allclose(wider.bias(), point.bias())


@pytest.mark.parametrize(("product", "nonzero"), [(0.8, True), (1.2, False)])
def test_classifier_vanishes_if_decay_times_strength_exceeds_one_over_k(product, nonzero, rng):
    """For inputs near zero, as the grid of settings in `comparison.fitting` says."""
    labels = np.arange(40) % 4
    stats = Statistics.of(1e-3 * rng.normal(size=(40, 6)), labels, 4)
    root = float(np.sqrt(product / 4))
    found = multistart_newton(ReducedMSE(stats, root, root, 0.0), tolerance=1e-6)
    assert (np.linalg.norm(found.point.w) > 0.1) == nonzero


def clusters(rng, classes, n, d, spread=1.0):
    labels = np.arange(n) % classes
    return rng.normal(size=(classes, d))[labels] + spread * rng.normal(size=(n, d)), labels


@pytest.mark.parametrize("way", [EigenbasisInverse, LowRankInverse])
@pytest.mark.parametrize("decay", [0.0, 0.3, np.inf])
def test_the_preconditioner_inverts_the_gauss_newton_matrix(decay, way, rng, monkeypatch):
    """Against the matrix formed from the features themselves."""
    monkeypatch.setattr(reduced_mse, "EIGH_COST", 0.0 if way is EigenbasisInverse else np.inf)
    x, labels = det_data(4, 5, 6)
    stats = Statistics.of(x, labels, 4)
    point = ReducedMSE(stats, 0.2, 0.01, decay).at(rng.normal(size=(4, 6)))
    h = point.features(x @ stats.basis, point.w, np.eye(4)[labels])
    mean, about = h.mean(0), h - h.mean(0)
    v = rng.normal(size=(4, 6))
    image = 0.01 * v + 0.2 * point.inverse @ v @ about.T @ about / len(x)
    if decay > 0:
        extra = 0.2 / decay if np.isfinite(decay) else 0.0
        inverse = np.linalg.inv(point.shifted + extra * np.eye(4))
        image += 0.2 * inverse @ v @ np.outer(mean, mean)
    inverse_of = point.preconditioner()
    assert type(inverse_of) is way
    assert np.allclose(inverse_of(image), v, atol=1e-10)


@pytest.mark.parametrize("bias", ["none", "free", 0.1])
@pytest.mark.parametrize("held", [0.0, 0.1])
def test_the_reduced_objective_is_the_full_one(bias, held, rng):
    """At any W, with b and the inner layers optimal: solved here by brute force."""
    x, labels = clusters(rng, 3, 14, 4)
    n, y, layers, lam, lw = len(x), np.eye(3)[labels], 3, 0.6, 0.02
    w = rng.normal(size=(3, 4))
    mu = lam / layers + held
    decay = {"none": np.inf, "free": 0.0}.get(bias, bias)
    stats = Statistics.of(x * (lam / layers / mu), labels, 3)
    reduced = ReducedMSE(stats, mu, lw, decay).at(w @ stats.basis).value()
    # F is quadratic in b and every layer: one linear least-squares problem for all samples
    size = layers * 4
    rows, right = [], []

    def add(block, target, weight):
        rows.append(np.sqrt(weight) * block)
        right.append(np.sqrt(weight) * target)

    with_bias = bias != "none"
    total = n * size + 3 * with_bias
    for i in range(n):
        at = np.zeros((layers, 4, total))
        for layer in range(layers):
            start = i * size + layer * 4
            at[layer, :, start : start + 4] = np.eye(4)
        logits = w @ at[-1]
        if with_bias:
            logits[:, -3:] += np.eye(3)
        add(logits, y[i], 1 / n)
        add(at[0], x[i], lam / n)
        for layer in range(1, layers):
            add(at[layer] - at[layer - 1], np.zeros(4), lam / n)
        add(at[-1], np.zeros(4), held / n)
    if with_bias and decay > 0:
        add(np.eye(total)[-3:], np.zeros(3), decay)
    a, b = np.concatenate(rows), np.concatenate(right)
    left = np.linalg.lstsq(a, b, rcond=None)[0]
    full = np.sum((a @ left - b) ** 2) / 2 + lw * np.sum(w**2) / 2
    constant = lam / layers * held / mu * np.sum(x**2) / (2 * n)
    assert reduced + constant == pytest.approx(full, rel=1e-12)


@pytest.mark.parametrize(("classes", "d"), [(2, 4), (3, 5)])
def test_no_restart_ends_lower_and_the_bound_holds(classes, d):
    """40 instances each, free bias and none: the best of 24 random starts is never below the fit.

    The starts descend in one batch, on J written anew with torch's gradient.
    """
    rng = np.random.default_rng(7)
    instances, found = [], []
    for i in range(40):
        x, labels = clusters(rng, classes, int(rng.integers(classes, 4 * classes)), d, 2.0)
        mu, lw = 10 ** rng.uniform(-2.5, 0, size=2)
        m = fit_mufm(
            x, labels, layers=1, weight_decay=lw, transport=mu, bias=("free", "none")[i % 2]
        )
        assert m.certificate.lower_bound <= m.objective * (1 + 1e-12)
        y = np.eye(classes)[labels]
        if i % 2 == 0:
            x, y = x - x.mean(0), y - y.mean(0)
        moments = (x.T @ x, y.T @ x, y.T @ y)
        instances.append([*(torch.from_numpy(a / len(x)) for a in moments), mu, lw])
        found.append(m.objective)
    each = 24
    s, t, c = (torch.stack([i[j] for i in instances]).repeat(each, 1, 1) for j in range(3))
    mu, lw = (torch.tensor([i[j] for i in instances]).repeat(each) for j in (3, 4))

    def objective(flat):
        # rows that have converged leave the batch: which ones are left is in the first entry
        rows = flat[:, 0].round().long()
        w = flat[:, 1:].detach().unflatten(1, (classes, d)).requires_grad_()
        cross = t[rows] @ w.mT
        residual = c[rows] - cross - cross.mT + w @ s[rows] @ w.mT
        a = w @ w.mT + mu[rows, None, None] * torch.eye(classes, dtype=torch.float64)
        fit = torch.linalg.solve(a, residual).diagonal(dim1=1, dim2=2).sum(1)
        value = (mu[rows] * fit + lw[rows] * w.square().sum((1, 2))) / 2
        (gradient,) = torch.autograd.grad(value.sum(), w)
        still = torch.zeros(len(flat), 1, dtype=torch.float64)
        return value.detach(), torch.cat([still, gradient.flatten(1)], 1)

    starts = torch.from_numpy(2 * rng.standard_normal((40 * each, classes * d)))
    index = torch.arange(40 * each, dtype=torch.float64)[:, None]
    ends = minimize_batch(objective, torch.cat([index, starts], 1), tolerance=1e-5, max_steps=120)
    best = ends.value.view(each, 40).min(0).values.numpy()
    assert np.all(np.array(found) <= best * (1 + 1e-9))
    assert np.mean(np.array(found) > best * (1 - 1e-6)) > 0.9  # and the starts do get there


def test_the_reflection_leaves_a_spurious_minimum():
    """K = d = N = 1: from the spurious side the search crosses over."""
    one = np.ones(1)
    stats = Statistics(np.eye(1), one * 0.04, 0.2 * np.eye(1), np.eye(1), 0 * one, 0 * one)
    problem = ReducedMSE(stats, 0.01, 0.01, 0.0)
    stuck = trust_region_newton(problem.at, -np.eye(1), tolerance=1e-12)
    assert stuck.point.value() == pytest.approx(0.012091861793, abs=1e-11)
    assert stuck.point.w[0, 0] == pytest.approx(-1.0432306048, rel=1e-8)
    found = descend_and_escape(problem, -np.eye(1), 1e-12)
    assert found.point.value() == pytest.approx(0.008106878148, abs=1e-11)
    assert found.point.w[0, 0] == pytest.approx(0.9442419573, rel=1e-8)
    assert found.point.certificate() == pytest.approx(0.899687, abs=1e-6)


@pytest.mark.parametrize(
    ("a", "s", "mu", "lw", "omega", "value", "ratio"),
    [
        (1, 0.3, 0.1, 0.01, 0.8178865050, 0.023934973562, 0.0118692159),
        (1, 0.5, 1, 0.01, 0.6728658951, 0.160492333991, 0.3573368013),
        (2, 0.5, 0.05, 0.005, 0.4750905940, 0.017267580990, 0.0302362182),
    ],
)
def test_the_scalar_family(a, s, mu, lw, omega, value, ratio):
    spokes = np.sqrt(3) * s * np.concatenate([np.eye(3), -np.eye(3)])
    x = np.concatenate([a * np.eye(3)[k] + spokes for k in range(3)])
    labels = np.repeat(np.arange(3), 6)
    m = fit_mufm(x, labels, layers=2, weight_decay=lw, transport=2.0 * mu)
    assert m.objective == pytest.approx(value, abs=1e-11)
    assert np.allclose(m.W, omega * np.eye(3), atol=1e-7)
    before, after = m.collapse(0), m.collapse()
    assert after.nc1_quotient / before.nc1_quotient == pytest.approx(ratio, rel=1e-6)
    assert np.allclose(m.contraction, mu / (omega**2 + mu), rtol=1e-7)


def test_the_limits_of_strong_and_weak_transport(rng):
    x, labels = clusters(rng, 3, 60, 5)
    onehot, lw = np.eye(3)[labels], 0.01
    second = x.T @ x / 60 + lw * np.eye(5)
    ridge = np.linalg.solve(second, x.T @ onehot / 60).T
    m = fit_mufm(x, labels, layers=3, weight_decay=lw, transport=3e6)
    assert np.allclose(m.W, ridge, atol=1e-5)
    assert np.allclose(m.H, m.X, atol=1e-5)
    assert m.certificate.verdict == "global"
    mu = 1e-7
    m = fit_mufm(x, labels, layers=1, weight_decay=lw, transport=mu)
    cross = np.linalg.svd(onehot.T @ x / 60, compute_uv=False).sum()
    expected = np.sqrt(3 * lw * mu) - (3 * lw) ** 0.25 * mu**0.75 * cross
    assert m.objective == pytest.approx(expected, rel=2e-2)
    assert m.collapse().nc1_quotient < 1e-2 * m.collapse(0).nc1_quotient
    many = [
        fit_mufm(x, labels, layers=layers, weight_decay=lw, transport=0.2 * layers)
        for layers in (1, 50)
    ]
    assert many[0].objective == pytest.approx(many[1].objective, rel=1e-12)


def test_uninformative_inputs_give_the_plain_model(rng):
    """X = 0: MUFM is UFM with feature decay mu / N, and zero is only a saddle."""
    labels = np.arange(12) % 3
    m = fit_mufm(np.zeros((12, 4)), labels, layers=1, weight_decay=0.01, transport=0.1, restarts=0)
    plain = fit_mse(labels, dim=4, weight_decay=0.01, feature_decay=0.1 / 12)
    assert m.objective == pytest.approx(plain.objective, rel=1e-9)
    assert m.certificate.verdict == "global"


@pytest.mark.parametrize("loss", ["mse", "ce"])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_units_of_the_features_do_not_matter(scale, loss, rng):
    """x in other units, with the decay and the transport strength in them, is the same problem."""
    x, labels = clusters(rng, 3, 30, 5)
    call = {"layers": 2, "bias": "free", "loss": loss, "restarts": 1}
    m = fit_mufm(x, labels, weight_decay=0.01, transport=0.4, **call)
    other = fit_mufm(
        scale * x, labels, weight_decay=0.01 * scale**2, transport=0.4 / scale**2, **call
    )
    assert other.objective == pytest.approx(m.objective, rel=1e-9)
    assert np.allclose(other.W * scale, m.W, atol=1e-5)
    assert np.allclose(other.H / scale, m.H, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("bias", ["none", "free"])
def test_tiny_and_huge_features_with_settings_kept(scale, bias, rng):
    x, labels = clusters(rng, 3, 30, 5)
    m = fit_mufm(scale * x, labels, layers=2, weight_decay=0.01, transport=0.1, bias=bias)
    assert 0 < m.objective < (1 - (bias == "free") / 3) / 2  # below what W = 0 has
    assert m.certificate.lower_bound <= m.objective * (1 + 1e-12)
    assert np.isfinite(m.H).all()


@pytest.mark.parametrize(
    "kind", ["d < K", "d = 1", "one sample a class", "collinear", "duplicates", "constant", "far"]
)
@pytest.mark.parametrize("loss", ["mse", "ce"])
def test_degenerate_inputs_have_a_solution(kind, loss, rng):
    x, labels = clusters(rng, 4, 24, 6)
    if kind == "d < K":
        x = x[:, :2]
    elif kind == "d = 1":
        x = x[:, :1]
    elif kind == "one sample a class":
        x, labels = x[:4], labels[:4]
    elif kind == "collinear":
        x = np.outer(x[:, 0], np.arange(1.0, 7.0))
    elif kind == "duplicates":
        x = x[np.zeros(24, dtype=int)]
    elif kind == "constant":
        x = np.full((24, 6), 3.0)
    else:
        x = x + 1e6
    m = fit_mufm(x, labels, layers=2, weight_decay=0.01, transport=0.1, bias="free", loss=loss)
    assert np.isfinite(m.W).all()
    assert np.isfinite(m.H).all()
    assert m.certificate.gradient_norm < 1e-6
    assert m.certificate.lower_bound <= m.objective * (1 + 1e-12)
    assert m.objective == pytest.approx(sum(m.terms.values()), rel=1e-12)


def test_work_after_the_statistics_does_not_depend_on_the_number_of_samples(rng):
    """The same distribution, ten times the samples: as many steps, and matrices as small."""
    x, labels = clusters(rng, 5, 1000, 16)
    few, many = (
        fit_mufm(
            np.tile(x, (times, 1)),
            np.tile(labels, times),
            layers=8,
            weight_decay=0.01,
            transport=0.5,
            bias="free",
        )
        for times in (1, 10)
    )
    assert many.objective == pytest.approx(few.objective, rel=1e-10)
    assert many.effort["products"] <= 1.5 * few.effort["products"]
    assert few.effort["steps"] < 200


def test_wide_inputs_converge_in_few_steps(rng):
    """d = 1500, variances over eight decades, as pixels have them: the preconditioner's work."""
    d = 1500
    labels = np.arange(600) % 10
    x = rng.normal(size=(600, d)) + 0.3 * rng.normal(size=(10, d))[labels]
    x *= np.arange(1, d + 1) ** -1.3
    m = fit_mufm(x, labels, layers=8, weight_decay=5e-3, transport=0.4, bias="free", restarts=0)
    assert m.effort["decrement"] < 1e-8
    assert m.effort["steps"] < 200


def test_class_coupling_is_trajectory_and_free_coupling_is_not_above(rng):
    x, labels = clusters(rng, 3, 18, 4, 1.5)
    call = {"layers": 2, "weight_decay": 0.01, "transport": 0.2}
    m, same, free = (
        fit_mufm(x, labels, coupling=c, **call) for c in ("trajectory", "class", "free")
    )
    assert same.objective == m.objective
    assert free.objective <= m.objective * (1 + 1e-12)
    assert sorted(free.assignment) == list(range(18))


def test_free_coupling_reassigns_outliers():
    """One sample of each class lies in the other class, so optimal paths need not be its own."""
    x = np.array([[-1.0], [-1.1], [-1.2], [1.3], [1.0], [1.1], [1.2], [-1.3]])
    labels = np.repeat([0, 1], 4)
    call = {"layers": 1, "weight_decay": 1e-3, "transport": 0.1}
    own, free = (fit_mufm(x, labels, coupling=c, **call) for c in ("trajectory", "free"))
    assert free.objective < 0.9 * own.objective
    assert sorted(free.assignment) == list(range(8))
    assert set(free.assignment[:4]) == {0, 1, 2, 7}
    np.testing.assert_array_equal(free.X, x[free.assignment])


def test_times_of_a_fit_that_searches_again(monkeypatch):
    """The time of the statistics is what the first search leaves of the time before it ends."""
    seconds = iter([0.0, *[-1e6] * 100])

    def search(*args, **options):
        return replace(multistart_newton(*args, **options), seconds=next(seconds))

    monkeypatch.setattr("wgeo.ufm.mufm.fit.multistart_newton", search)
    x = np.array([[-1.0], [-1.1], [-1.2], [1.3], [1.0], [1.1], [1.2], [-1.3]])
    call = {"layers": 1, "weight_decay": 1e-3, "transport": 0.1, "coupling": "free"}
    effort = fit_mufm(x, np.repeat([0, 1], 4), **call).effort
    assert effort["search"] == -1e6
    assert 0 < effort["statistics"] < effort["seconds"]


def test_a_coarse_tolerance_is_the_sketch_alone(rng):
    x, labels = clusters(rng, 3, 18, 4, 1.5)
    call = {"layers": 2, "weight_decay": 0.01, "transport": 0.2}
    fine, coarse = (fit_mufm(x, labels, tolerance=t, **call) for t in (1e-10, 1e-4))
    assert fine.objective <= coarse.objective <= fine.objective * (1 + 1e-7)
    assert len(coarse.values) == 5
    assert coarse.effort["steps"] < fine.effort["steps"]
    assert coarse.effort["decrement"] < 1e-4


def test_truncated_steps_end_at_the_same_minimum(rng, monkeypatch):
    x, labels = clusters(rng, 3, 18, 4, 1.5)
    call = {"layers": 2, "weight_decay": 0.01, "transport": 0.2, "loss": "ce", "restarts": 0}
    whole = fit_mufm(x, labels, **call)
    monkeypatch.setattr("wgeo.ufm.mufm.newton.INNER", 1)
    short = fit_mufm(x, labels, **call)
    assert short.objective == pytest.approx(whole.objective, rel=1e-9)
    assert short.effort["steps"] > whole.effort["steps"]


def test_descent_direction_uses_free_dimensions():
    inner = np.diag([3.0, 2.0])
    w = np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    zero = np.array([False, True, True])
    out = saddle_direction(w, zero, inner, 3.0)
    np.testing.assert_allclose(np.abs(out).sum(), 1)
    assert np.abs(out[0, 1:]).sum() == pytest.approx(1)  # Q's top eigenvector, a still coordinate
    assert saddle_direction(w, zero, inner, 1.0) is None
    assert saddle_direction(w, np.zeros(3, bool), inner, 3.0) is None
    used = np.array([[1.0, 0.0, 0.0], [0.0, 0.5, 0.0]])
    assert saddle_direction(used, np.array([False, True, False]), inner, 3.0) is None


def test_unconverged_newton_is_an_error(rng, monkeypatch):
    monkeypatch.setattr("wgeo.ufm.mufm.fit.MAX_DECREMENT", 0.0)
    with pytest.raises(ConvergenceError, match="too far apart"):
        fit_mufm(rng.normal(size=(4, 3)), [0, 0, 1, 1], layers=1, weight_decay=0.1, transport=0.1)


def test_invalid_layer_and_unsupported_loss_are_errors(rng):
    x = rng.normal(size=(4, 3))
    m = fit_mufm(x, [0, 0, 1, 1], layers=2, weight_decay=0.1, transport=0.1, loss="ce")
    np.testing.assert_array_equal(m.layer(0), x)
    np.testing.assert_array_equal(m.X, x)  # rows are samples, as in the input
    np.testing.assert_array_equal(m.layer(2), m.H)
    for index in (-1, 3):
        with pytest.raises(ArgumentError, match="from 0 to 2"):
            m.layer(index)
    with pytest.raises(ArgumentError, match="squared loss"):
        m.apply(x, [0, 0, 1, 1])
    assert m.contraction is m.to_dict()["contraction"] is None


def test_one_contraction_for_each_singular_value_of_the_classifier(rng):
    labels = np.arange(12) % 4
    m = fit_mufm(rng.normal(size=(12, 2)), labels, layers=2, weight_decay=0.01, transport=0.1)
    assert m.contraction.shape == (2,)
    assert m.to_dict()["contraction"] == m.contraction.tolist()


def test_class_means_that_cross_are_not_monotone():
    x, labels = det_data(2, 3, 2)
    m = fit_mufm(x, labels, layers=2, weight_decay=1e-2, transport=0.5)
    means = np.stack([x[labels == k].mean(0) for k in (0, 1)])
    swapped = x + means[1 - labels] - means[labels]  # deviations stay, the means change places
    crossed = type(m)(**{**vars(m), "H": swapped})
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
        ({"loss": "hinge"}, "loss 'hinge'"),
        ({"coupling": "none"}, "coupling 'none'"),
        ({"restarts": -1}, "restarts"),
        ({"restarts": "1"}, "restarts"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"tolerance": np.nan}, "tolerance"),
        ({"tolerance": "small"}, "tolerance"),
        ({"tolerance": True}, "tolerance must be a number"),
        ({"weight_decay": True}, "weight_decay must be a number"),
        ({"feature_decay": False}, "feature_decay must be a number"),
        ({"weight_decay": "0.1"}, "weight_decay"),
        ({"transport": None}, "transport"),
        ({"feature_decay": "0.1"}, "feature_decay"),
        ({"labels": [0, 0, 0]}, "K >= 2"),
        ({"labels": [0, 2, 2]}, "No sample has label 1"),
    ],
)
def test_invalid_settings_are_clear_errors(change, message, rng):
    call = {"labels": [0, 1, 1], "layers": 2, "weight_decay": 0.1, "transport": 1.0} | change
    fit = unwrap(fit_mufm)  # or the type checker, which only the tests have, answers first
    with pytest.raises(ArgumentError, match=message):
        fit(rng.normal(size=(3, 4)), call.pop("labels"), **call)


def test_invalid_input_is_a_clear_error(rng):
    x, labels = rng.normal(size=(12, 3)), np.arange(12) % 2
    call = {"layers": 1, "weight_decay": 0.1, "transport": 0.1}
    for odd, said in (
        ([[1.0, 2.0], [3.0]] * 6, "x cannot be read as an array"),
        (np.where(np.arange(12)[:, None] == 11, np.nan, x), "first in sample 11"),
        (np.zeros((12, 2, 2)), r"shape \(12, 2, 2\)"),
        (np.zeros((0, 3)), "empty"),
    ):
        with pytest.raises(FeatureError, match=said):
            fit_mufm(odd, labels, **call)
    model = fit_mufm(x, labels, **call)
    np.testing.assert_allclose(model.apply(torch.from_numpy(x), labels), model.H, atol=1e-9)
    for odd, of in ((x[:, :2], labels), (x, labels + 1)):
        with pytest.raises(ArgumentError, match="3 features and classes 0 to 1"):
            model.apply(odd, of)
