"""The batched descent, and the calculus of the objective it descends."""

from __future__ import annotations

import math
from inspect import unwrap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wgeo.errors import ArgumentError
from wgeo.ufm.descent import descend, minimize_batch, random_points
from wgeo.ufm.problem import Problem

LABELS = np.array([0, 1, 2, 0, 1, 0])
MODELS = [
    (loss, activation, m, lb, copies)
    for loss in ("ce", "mse")
    for activation in ("linear", "relu")
    for m in (2, 4)
    for lb in (math.inf, 0.0, 0.3)
    for copies in (False, True)
]


def _problem(loss, activation, m, lb, copies) -> Problem:
    decays = tuple(0.01 * (1 + i) for i in range(m))
    problem = Problem.checked(LABELS, 4, decays, lb, loss, activation)
    return problem.collapsed() if copies else problem


def _slow(problem: Problem, x: torch.Tensor) -> torch.Tensor:
    """F for one point, sample by sample, as the docstring writes it."""
    factors, b = problem.split(x)
    total = 0.5 * sum(
        (decay * A.square()).sum() for decay, A in zip(problem.decays[1:], factors[1:], strict=True)
    )
    for j, k in enumerate(problem.labels):
        times = 1 if problem.copies is None else int(problem.copies[j])
        h = factors[0][:, j]
        total = total + times * problem.decays[0] / 2 * h @ h
        for W in factors[1:-1]:
            h = (W @ h).clamp_min(0) if problem.activation == "relu" else W @ h
        z = factors[-1] @ h + (0 if b is None else b)
        if problem.loss == "ce":
            loss = z.exp().sum().log() - z[k]
        else:
            loss = 0.5 * (z - torch.eye(3, dtype=torch.float64)[k]).square().sum()
        total = total + times * loss / problem.num_samples
    return total if b is None else total + problem.bias_decay / 2 * b @ b


@pytest.mark.parametrize("model", MODELS)
def test_value_gradient_and_hessian_vector_product(model):
    problem = _problem(*model)
    x = torch.randn(3, problem.size, dtype=torch.float64)
    value, gradient = problem.value_and_gradient(x)
    for i in range(3):
        point = x[i].clone().requires_grad_()
        slow = _slow(problem, point)
        (exact,) = torch.autograd.grad(slow, point)
        assert float(slow.detach()) == pytest.approx(float(value[i]), rel=1e-13)
        assert float(problem.value(x[i])) == pytest.approx(float(value[i]), rel=1e-13)
        torch.testing.assert_close(gradient[i], exact, rtol=1e-11, atol=1e-14)
    v = torch.randn(problem.size, dtype=torch.float64)
    h = 1e-6
    slope = (problem.gradient(x[0] + h * v) - problem.gradient(x[0] - h * v)) / (2 * h)
    torch.testing.assert_close(problem.hvp(x[0], v), slope, rtol=1e-6, atol=1e-7)


@settings(max_examples=15)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(2, 12))
def test_quadratics_are_minimised_whatever_their_conditioning(seed, rows, size):
    rng = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(rng.standard_normal((size, size)))
    A = torch.from_numpy(Q * 10 ** rng.uniform(-1.5, 1.5, size) @ Q.T)
    target = torch.from_numpy(rng.standard_normal((rows, size)))

    def quadratic(x):  # every row shares A; rows differ by where they start from
        return ((x @ A) * x).sum(-1) / 2, x @ A

    end = minimize_batch(quadratic, target, tolerance=1e-9)
    assert float(end.gradient_norm.max()) <= 1e-9
    assert float(end.x.abs().max()) < 1e-6


def test_rows_of_a_batch_descend_independently():
    """Rosenbrock from six points together, and one by one: the same ends, in the same ticks."""

    def rosenbrock(x):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            f = ((1 - x[:, :-1]) ** 2 + 100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2).sum(-1)
            return f.detach(), torch.autograd.grad(f.sum(), x)[0]

    starts = torch.randn(6, 5, dtype=torch.float64) * 2
    together = minimize_batch(rosenbrock, starts, tolerance=1e-9)
    assert float(together.gradient_norm.max()) <= 1e-9
    for i in range(6):
        alone = minimize_batch(rosenbrock, starts[i : i + 1], tolerance=1e-9)
        assert int(alone.steps) <= int(together.steps[i])
        torch.testing.assert_close(alone.x[0], together.x[i], rtol=1e-6, atol=1e-7)


def test_kinks_do_not_stop_the_descent_of_a_nonsmooth_function():
    """|x_1| + 10 |x_2| + ... has no small gradient anywhere; the values still reach the kink."""
    weights = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)

    def folded(x):
        return (weights * x.abs()).sum(-1), weights * x.sign()

    end = minimize_batch(
        folded, torch.randn(5, 3, dtype=torch.float64), tolerance=1e-9, max_steps=2000
    )
    assert float(end.value.max()) < 1e-6


def test_infinite_and_undefined_values_end_only_their_row():
    def partly(x):
        f = torch.where(x[:, 0] > 5, torch.nan, x.square().sum(-1))
        return f, 2 * x

    end = minimize_batch(partly, torch.tensor([[9.0, 1.0], [1.0, 2.0]]).double(), tolerance=1e-9)
    assert torch.isnan(end.value[0])
    assert float(end.value[1]) < 1e-15


def test_a_perturbed_round_never_raises_an_unconverged_row(monkeypatch):
    monkeypatch.setattr("wgeo.ufm.descent.FIRST_ROUND", (20, 50))
    problem = _problem("mse", "relu", 4, 0.0, False)
    x = random_points(problem, 8, 0)
    first, more = (descend(problem, x, max_steps=steps) for steps in (50, 51))
    assert (first.gradient_norm > 1e-9).all()
    assert (more.value <= first.value * (1 + 1e-12)).all()
    torch.testing.assert_close(more.value, problem.value(more.x))


def test_starts_depend_on_the_seed_alone_and_settings_are_checked():
    problem = _problem("mse", "relu", 4, 0.0, False)
    assert torch.equal(random_points(problem, 3, 1), random_points(problem, 3, 1))
    assert not torch.equal(random_points(problem, 3, 1), random_points(problem, 3, 2))
    x = random_points(problem, 2, 0)
    a, b = descend(problem, x, tolerance=1e-6), descend(problem, x, tolerance=1e-6)
    assert torch.equal(a.x, b.x)
    for bad in ({"tolerance": 0.0}, {"tolerance": math.nan}, {"tolerance": True}, {"max_steps": 0}):
        with pytest.raises(ArgumentError, match="must be"):
            unwrap(descend)(problem, x, **bad)
    with pytest.raises(ArgumentError, match="restarts"):
        random_points(problem, 0, 0)
