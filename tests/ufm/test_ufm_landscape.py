"""Saddles are recognised, with a way down that evaluation confirms."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from inspect import unwrap

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import ArpackNoConvergence, eigsh

from wgeo.errors import ArgumentError, ConvergenceError
from wgeo.ufm import fit_ce, fit_deep, fit_mse, landscape
from wgeo.ufm.certify import escape_direction, evaluate
from wgeo.ufm.spectral import factorize


def _dense(problem, x):
    """The Hessian, column by column."""
    columns = [problem.hvp(x, e) for e in torch.eye(problem.size, dtype=torch.float64)]
    H = torch.stack(columns)
    torch.testing.assert_close(H, H.T, atol=1e-12, rtol=1e-9)
    return torch.linalg.eigvalsh(H).numpy()


def _falls(solution, found):
    """Evaluate the direction by `evaluate`, independently of the code that found it."""
    t, v = found.step, found.direction
    weights = [W + t * v[f"W{i}"] for i, W in enumerate(solution.weights, 1)]
    b = solution.b + t * v["b"] if "b" in v else None
    moved = evaluate(solution.problem, H=solution.H + t * v["H"], weights=weights, b=b)
    assert moved.objective == pytest.approx(solution.objective - found.decrease, rel=1e-12)
    assert found.decrease > 0
    assert found.curvature < 0


def _zero(solution):
    return evaluate(
        solution.problem, H=0 * solution.H, weights=[0 * W for W in solution.weights], b=solution.b
    )


def _partial(solution, rank):
    """Critical points of the squared loss: some of the singular values dropped."""
    problem = solution.problem
    U, z, V = np.linalg.svd(solution.W @ solution.H, full_matrices=False)
    z[rank:] = 0
    H, W = factorize(problem, U, z, V)
    return evaluate(problem, H=H, weights=[W], b=solution.b)


def test_zero_is_a_strict_saddle_with_a_known_eigenvalue():
    labels = np.repeat(np.arange(4), 2)
    solution = fit_ce(labels, dim=4, weight_decay=5e-3, feature_decay=2e-3, bias=0.1)
    zero = _zero(solution)
    found = landscape(zero)
    assert found.verdict == zero.certificate.verdict == "strict saddle"
    assert found.eigenvalues[0] == pytest.approx(-0.173283059143, abs=6e-13)
    assert found.curvature == pytest.approx(-0.173283059143, abs=6e-13)
    assert zero.certificate.curvature == pytest.approx(-0.173283059143, abs=6e-13)
    assert zero.certificate.spectral_norm == pytest.approx(1 / (4 * math.sqrt(2)))
    _falls(zero, found)
    json.dumps(found.to_dict())


@pytest.mark.parametrize("lb", [math.inf, 0.0])
@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize("dim", [4, 7])
def test_dropped_classes_are_strict_saddles(lb, rank, dim):
    labels = np.repeat(np.arange(4), [5, 4, 3, 3])
    solution = fit_mse(labels, dim=dim, weight_decay=1e-2, feature_decay=4e-3, bias=lb)
    partial = _partial(solution, rank)
    assert partial.certificate.verdict == "strict saddle"
    assert partial.certificate.gradient_norm < 1e-13
    found = landscape(partial, eigenvalues=2)
    assert found.verdict == "strict saddle"
    _falls(partial, found)
    problem, x = partial.problem, partial.point()
    spectrum = _dense(problem, x)
    np.testing.assert_allclose(found.eigenvalues, spectrum[:2], atol=1e-10)
    escape = escape_direction(problem, x)
    v = escape.direction
    torch.testing.assert_close(problem.hvp(x, v), escape.curvature * v, atol=1e-12, rtol=1e-9)
    assert min(abs(spectrum - escape.curvature)) < 1e-12  # an eigenvalue, exactly
    lh, lw = problem.decays
    sigma = partial.certificate.spectral_norm
    assert escape.curvature == pytest.approx((lw + lh) / 2 - math.hypot((lw - lh) / 2, sigma))


def test_cross_entropy_of_low_rank_is_a_saddle_in_a_larger_space():
    """The square, a local minimum for d = 2, is a saddle if there is a third dimension."""
    labels = np.repeat(np.arange(4), 2)
    given = {"weight_decay": 5e-3, "feature_decay": 2e-3}
    square = fit_ce(labels, dim=2, tolerance=1e-10, **given)
    wide = fit_ce(labels, dim=4, **given)
    H = np.vstack([square.H, np.zeros((2, 8))])
    W = np.hstack([square.W, np.zeros((4, 2))])
    lifted = evaluate(wide.problem, H=H, weights=[W], b=square.b)
    assert lifted.objective == pytest.approx(square.objective, abs=1e-14)
    assert lifted.certificate.verdict == "strict saddle"
    found = landscape(lifted)
    assert found.verdict == "strict saddle"
    _falls(lifted, found)
    below = landscape(square)
    assert below.verdict == "undecided"
    assert below.eigenvalues[0] > -1e-9


def test_minima_are_global_and_flat_where_the_model_is_symmetric():
    solution = fit_ce([0, 0, 1, 1, 2, 2], dim=3, weight_decay=1e-2, feature_decay=5e-3)
    found = landscape(solution)
    assert found.verdict == "global"
    assert found.direction is None
    np.testing.assert_allclose(found.eigenvalues, 0, atol=1e-10)  # rotations, and b + beta 1
    assert (found.residuals < 1e-8).all()


def test_deep_models_zero_is_a_local_minimum_and_partial_points_too():
    solution = fit_deep(
        [0, 0, 1, 1], dim=3, weight_decays=[4e-3] * 3, feature_decay=2e-3, activation="relu",
        method="closed",
    )  # fmt: skip
    zero = landscape(_zero(solution))
    assert zero.verdict == "undecided"
    assert zero.eigenvalues[0] == pytest.approx(2e-3)
    best = landscape(solution)
    assert best.verdict == "global"
    assert best.kinks > 0
    linear = fit_deep([0, 0, 1, 1], dim=3, weight_decays=[4e-3] * 2, feature_decay=2e-3)
    assert "Not global" in landscape(_zero(linear)).evidence


def test_point_that_is_not_critical_is_reported():
    solution = fit_mse([0, 1, 2], dim=3, weight_decay=0.01, feature_decay=0.01)
    moved = evaluate(solution.problem, H=2 * solution.H, weights=solution.weights)
    assert moved.certificate.verdict == "undecided"
    assert "Not a critical point" in moved.certificate.evidence
    assert landscape(moved).verdict == "undecided"
    for count in (0, 2.5, True, "2", None, solution.problem.size):
        with pytest.raises(ArgumentError, match="eigenvalues must be"):
            unwrap(landscape)(solution, eigenvalues=count)
    with pytest.raises(ArgumentError, match="not for dict"):
        landscape({})


def test_converged_lanczos_eigenvalues_are_kept(monkeypatch):
    solution = fit_mse([0, 1, 2, 2], dim=3, weight_decay=0.01, feature_decay=0.01)
    found = 2

    def stopped(*given, **settings):
        values, vectors = eigsh(*given, **settings)
        raise ArpackNoConvergence("stopped", values[:found], vectors[:, :found])

    whole = landscape(solution, eigenvalues=3)
    monkeypatch.setattr("wgeo.ufm.curvature.eigsh", stopped)
    part = landscape(solution, eigenvalues=3)
    np.testing.assert_allclose(part.eigenvalues, whole.eigenvalues[:2], atol=1e-12)
    found = 0
    with pytest.raises(ConvergenceError, match="another seed"):
        landscape(solution, eigenvalues=3)


def test_points_without_an_explicit_descent_direction():
    """No direction if the certificate holds; otherwise two factors with all samples have one."""
    best = fit_mse([0, 0, 1], dim=3, weight_decay=0.01, feature_decay=0.01)
    assert escape_direction(best.problem, best.point()) is None
    problem = best.problem.collapsed()
    with pytest.raises(ArgumentError, match="two factors and one column per sample"):
        escape_direction(problem, torch.zeros(problem.size, dtype=torch.float64))
    deep = fit_deep([0, 0, 1], dim=3, weight_decays=[1e-3] * 2, feature_decay=1e-3)
    with pytest.raises(ArgumentError, match="two factors and one column per sample"):
        escape_direction(deep.problem, deep.point())
    with pytest.raises(ArgumentError, match="rank 2 needs dim >= 2"):
        factorize(
            fit_mse([0, 1], dim=1, weight_decay=1.0, feature_decay=1.0).problem,
            np.eye(2),
            np.ones(2),
            np.eye(2),
        )


def test_a_solution_with_changed_factors_is_refused():
    """Its certificate is for another point, and would call any point global."""
    solution = fit_mse([0, 1] * 3, dim=2, weight_decay=0.01, feature_decay=0.01)
    assert landscape(solution).verdict == "global"
    zero = replace(solution, H=0 * solution.H, weights=tuple(0 * W for W in solution.weights))
    with pytest.raises(ArgumentError, match="as a fit returned it"):
        landscape(zero)
