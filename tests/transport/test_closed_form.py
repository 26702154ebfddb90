"""Gaussians and lines compared with known values, POT, and properties they must satisfy."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wgeo.errors import ArgumentError
from wgeo.transport import Gaussian, Sliced, Status, closed_form, point_clouds, wasserstein
from wgeo.transport.closed_form import line_costs
from wgeo.transport.point_clouds import PointClouds


def bures(x, y, **weights) -> float:
    """Squared Bures distance of the two clouds' Gaussians."""
    return wasserstein(x, y, solver=Gaussian(), **weights).cost


def sliced(x, y, projections=64, seed=0, **weights):
    return wasserstein(x, y, solver=Sliced(projections=projections, seed=seed), **weights)


class TestGaussian:
    @pytest.mark.parametrize(
        ("degrees", "cost"),
        [(30, 0.4606079858), (45, 0.9446148619), (60, 1.4559962547), (90, 2.0)],
    )
    def test_rotated_ellipse_has_known_bures_distance(self, degrees, cost):
        half = np.diag([np.sqrt(8), np.sqrt(2)])
        cloud = np.concatenate([half, -half])  # covariance diag(4, 1)
        t = np.deg2rad(degrees)
        turn = np.array([[np.cos(t), np.sin(t)], [-np.sin(t), np.cos(t)]])
        assert bures(cloud, cloud @ turn) == pytest.approx(cost, abs=1e-9)

    @pytest.mark.parametrize(("n", "m", "d"), [(40, 40, 5), (30, 50, 8)])
    def test_agrees_with_pot(self, rng, n, m, d):
        x, y = rng.standard_normal((n, d)), 2 * rng.standard_normal((m, d)) + 1
        want = ot.gaussian.bures_wasserstein_distance(
            x.mean(0), y.mean(0), np.cov(x.T, bias=True), np.cov(y.T, bias=True)
        )
        assert np.sqrt(bures(x, y)) == pytest.approx(float(want), rel=1e-6)

    @pytest.mark.parametrize(("n", "m", "d"), [(40, 40, 5), (6, 9, 20), (4, 40, 10)])
    def test_agrees_with_eigenvalues_of_the_covariances_product(self, rng, n, m, d):
        x, y = rng.standard_normal((n, d)), 2 * rng.standard_normal((m, d)) + 1
        cov_x, cov_y = np.cov(x.T, bias=True), np.cov(y.T, bias=True)
        roots = np.sqrt(np.linalg.eigvals(cov_x @ cov_y).real.clip(min=0)).sum()
        want = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cov_x + cov_y) - 2 * roots
        assert bures(x, y) == pytest.approx(want, rel=1e-6)

    def test_weights_are_those_of_the_covariance(self, rng):
        x, y = rng.standard_normal((20, 4)), rng.standard_normal((30, 4))
        times = rng.integers(1, 4, 20)
        repeated = bures(np.repeat(x, times, axis=0), y)
        assert bures(x, y, a=times) == pytest.approx(repeated, rel=1e-10)

    def test_an_affine_map_with_symmetric_positive_matrix_is_optimal(self, rng):
        x = rng.standard_normal((50, 6))
        root = rng.standard_normal((6, 6))
        y = x @ (root @ root.T) + 3
        result = wasserstein(x, y, solver=Gaussian())
        assert result.cost == pytest.approx(((x - y) ** 2).sum(1).mean(), rel=1e-10)
        assert result.status is Status.CERTIFIED  # the pairing meets the Gaussian bound

    @pytest.mark.parametrize("size", [1e-2, 1e-5, 1e-8])
    def test_nearly_equal_clouds_keep_their_digits(self, rng, size):
        x = rng.standard_normal((40, 6))
        x -= x.mean(0)
        want = size * np.sqrt((x**2).sum(1).mean())
        got = wasserstein(x, (1 + size) * x, solver=Gaussian()).distance
        assert got == pytest.approx(want, rel=1e-12 / size + 1e-10)

    def test_empty_dimensions_and_rotations_do_not_matter(self, rng):
        x, y = rng.standard_normal((30, 5)), rng.standard_normal((20, 5)) + 1
        into = np.linalg.qr(rng.standard_normal((700, 5)))[0].T
        assert bures(x @ into, y @ into) == pytest.approx(bures(x, y), rel=1e-10)

    def test_clouds_on_different_lines(self):
        x, y = np.array([[1.0, 0], [-1, 0]]), np.array([[0, 1.0], [0, -1]])
        assert bures(x, y) == pytest.approx(2, rel=1e-12)  # tr + tr, no common direction

    def test_gaussian_result_states_what_it_estimates(self, rng):
        x, y = rng.standard_normal((30, 5)), rng.standard_normal((20, 5)) + 1
        result = wasserstein(x, y, solver=Gaussian())
        assert result.stats["means"] + result.stats["covariances"] == pytest.approx(result.cost)
        assert result.lower <= result.distance <= result.lower * (1 + 1e-9)

    def test_upper_bound_is_the_cheaper_of_pairing_and_product_coupling(self, rng):
        x = rng.standard_normal((30, 5))
        near, away = x + 0.1, -x  # the farthest pairing there is costs more than none
        for y, origin in ((near, "pairing"), (away, "product")):
            result = wasserstein(x, y, solver=Gaussian())
            assert result.stats["upper_from"] == origin
            cost = (result.plan.toarray() * ((x[:, None] - y[None]) ** 2).sum(2)).sum()
            assert result.upper == pytest.approx(np.sqrt(cost), rel=1e-9)
        product = ((x[:, None] - away[None]) ** 2).sum(2).mean()
        assert result.upper == pytest.approx(np.sqrt(product))
        assert result.stats["means"] == pytest.approx(4 * (x.mean(0) ** 2).sum())
        centred = wasserstein(x - x.mean(0), x.mean(0) - x, solver=Gaussian())
        assert centred.stats["means"] == pytest.approx(0, abs=1e-20)
        assert 0 <= result.seconds < 60

    def test_a_product_with_too_many_entries_is_not_returned(self, rng, monkeypatch):
        x, a = rng.standard_normal((30, 5)), np.arange(30) % 2
        whole = wasserstein(x, -x, solver=Gaussian(), a=a)
        assert whole.plan.nnz == 15 * 30
        assert whole.plan.sum(1) == pytest.approx(a / 15, abs=1e-15)
        monkeypatch.setattr("wgeo.transport.plans.MAX_ENTRIES", 15 * 30 - 1)
        result = wasserstein(x, -x, solver=Gaussian(), a=a)
        assert result.upper == whole.upper
        with pytest.raises(ArgumentError, match=r"no plan: .* more than 4,194,304 entries"):
            result.push(x)

    def test_block_size_of_the_factorization_does_not_matter(self, rng, monkeypatch):
        x, y = rng.standard_normal((50, 3)) + 1, rng.standard_normal((40, 3))
        a = rng.dirichlet(np.ones(50))
        at_once = bures(x, y, a=a)
        monkeypatch.setattr(point_clouds, "_FACTOR_ENTRIES", 21)
        assert bures(x, y, a=a) == pytest.approx(at_once, rel=1e-12)


@st.composite
def weighted_lines(draw):
    r = np.random.default_rng(draw(st.integers(0, 2**31)))
    n, m = draw(st.integers(1, 15)), draw(st.integers(1, 15))
    x, y = r.standard_normal(n), r.standard_normal(m)
    if draw(st.booleans()):  # ties
        x, y = np.round(x), np.round(y)
    a, b = r.random(n) * r.integers(0, 2, n), r.random(m)
    a[0] = max(a[0], 0.1)
    return x, y, a / a.sum(), b / b.sum()


class TestLine:
    @settings(max_examples=20)
    @given(weighted_lines())
    def test_agrees_with_pot(self, case):
        x, y, a, b = case
        result = sliced(x, y, a=a, b=b)
        want = float(ot.emd2_1d(x, y, a, b))
        assert result.cost == pytest.approx(want, rel=1e-9, abs=1e-12)
        assert result.lower**2 <= want + 1e-12
        assert want <= result.upper**2 + 1e-12

    @settings(max_examples=20)
    @given(weighted_lines())
    def test_line_coupling_has_the_marginals(self, case):
        x, y, a, b = case
        plan = sliced(x, y, a=a, b=b).coupling
        if plan is None or isinstance(plan, np.ndarray):
            return
        assert plan.sum(1) == pytest.approx(a, abs=1e-12)
        assert plan.sum(0) == pytest.approx(b, abs=1e-12)
        assert plan.nnz <= len(x) + len(y)

    def test_batched_lines_equal_single_lines(self, rng):
        x, y = rng.standard_normal((7, 9)), rng.standard_normal((7, 4))
        a, b = rng.dirichlet(np.ones(9)), rng.dirichlet(np.ones(4))
        tensors = [torch.from_numpy(z) for z in (x, y, a, b)]
        want = [float(ot.emd2_1d(x[k], y[k], a, b)) for k in range(7)]
        assert line_costs(*tensors).numpy() == pytest.approx(np.array(want), rel=1e-9)

    def test_line_transport_is_certified(self, rng):
        x, y = rng.standard_normal(50), rng.standard_normal(70)
        assert sliced(x, y).status is Status.CERTIFIED


class TestSliced:
    def test_translation_is_exact_over_complete_frames(self, rng):
        x, move = rng.standard_normal((30, 4)), np.array([1.0, 2, 2, 4])  # |move| = 5
        result = sliced(x, x + move, projections=40)
        assert result.stats["sliced"] == pytest.approx(5 / 2, rel=1e-12)  # |move| / sqrt(d)
        assert result.lower == pytest.approx(5, rel=1e-9)

    def test_agrees_with_pots_estimate(self, rng):
        x, y = rng.standard_normal((50, 6)), 2 * rng.standard_normal((60, 6)) + 0.5
        result = sliced(x, y, projections=600)
        want = ot.sliced_wasserstein_distance(x, y, n_projections=4000, seed=1)
        error = result.stats["sliced_error"]
        assert 0 < error < 0.05 * want
        assert result.stats["sliced"] == pytest.approx(float(want), abs=5 * error)

    def test_sliced_distance_depends_only_on_the_seed(self, rng):
        x, y = rng.standard_normal((20, 5)), rng.standard_normal((20, 5))
        one, same, other = (sliced(x, y, seed=s).stats["sliced"] for s in (1, 1, 2))
        assert one == same != other

    @settings(max_examples=15)
    @given(seed=st.integers(0, 999))
    def test_a_map_along_the_axes_is_found_from_its_principal_frame(self, seed):
        # Monotone on each of orthogonal lines: the principal axes' frame proves it optimal.
        r = np.random.default_rng(seed)
        corners = np.array(np.meshgrid([-3.0, 3], [-2.0, 2], [-1.0, 1])).reshape(3, -1).T
        turn = np.linalg.qr(r.standard_normal((3, 3)))[0]
        y = corners * r.uniform(1, 2, 3)
        result = sliced(corners @ turn, y @ turn)
        assert result.lower == pytest.approx(result.upper, rel=1e-9)

    def test_fewer_directions_than_dimensions(self, rng):
        x, y = rng.standard_normal((2, 20, 3000))
        result = sliced(x, y, projections=5)
        assert result.stats["projections"] == 5
        truth = wasserstein(x, y).distance
        assert result.lower <= truth <= result.upper

    def test_principal_axes_of_many_points_in_many_dimensions(self, rng, monkeypatch):
        """Orthonormal, which makes them a bound, and the directions of most variance."""
        strong = np.linalg.qr(rng.standard_normal((60, 3)))[0].T
        x, y = (20 * rng.standard_normal((50, 3)) @ strong for _ in range(2))
        x, y = x + 0.01 * rng.standard_normal(x.shape), y + 0.01 * rng.standard_normal(y.shape)
        whole = sliced(x, y, projections=1)
        monkeypatch.setattr(closed_form, "_MAX_AXES", 40)
        pair = PointClouds.of(torch.from_numpy(x), torch.from_numpy(y))
        axes = closed_form._principal_axes(pair, 0).numpy()
        assert axes.shape == (5, 60)
        np.testing.assert_allclose(axes @ axes.T, np.eye(5), atol=1e-12)
        np.testing.assert_allclose((axes @ strong.T) ** 2 @ np.ones(3), [1, 1, 1, 0, 0], atol=1e-5)
        some = sliced(x, y, projections=1)
        assert 0.9 * whole.lower < some.lower <= wasserstein(x, y).upper

    def test_block_size_of_lines_does_not_matter(self, rng, monkeypatch):
        x, y = rng.standard_normal((20, 5)), rng.standard_normal((30, 5)) + 1
        at_once = sliced(x, y).to_dict() | {"seconds": 0}
        monkeypatch.setattr(closed_form, "_LINE_ENTRIES", 150)
        assert sliced(x, y).to_dict() | {"seconds": 0} == at_once

    @pytest.mark.parametrize(("projections", "d"), [(5, 3), (6, 3), (2, 40), (1, 1)])
    def test_directions_are_unbiased_orthonormal_frames(self, rng, projections, d):
        pair = PointClouds.of(*(torch.from_numpy(rng.standard_normal((4, d))) for _ in range(2)))
        drawn = [Sliced(projections, seed)._directions(pair).numpy() for seed in range(300)]
        assert {q.shape for q in drawn} == {(projections, d)}
        for q in drawn[:3]:
            for k in range(0, projections, d):
                frame = q[k : k + d]
                np.testing.assert_allclose(frame @ frame.T, np.eye(len(frame)), atol=1e-12)
        assert np.abs(np.mean(drawn, axis=0)).max() < 5 / np.sqrt(300 * d)

    def test_the_error_of_the_mean_over_directions(self):
        error = closed_form._error_of_root_mean
        assert error(torch.tensor([1.0, 9.0])) == pytest.approx(4 / (2 * np.sqrt(5)))
        assert error(torch.tensor([1.0])) is None
        assert error(torch.zeros(3)) is None

    def test_upper_bound_is_the_cost_of_the_returned_coupling(self, rng):
        x = rng.standard_normal((30, 4))
        near, shuffled = x + 0.01 * rng.standard_normal(x.shape), rng.permutation(x) + 1
        for y, origin in ((near, "pairing"), (shuffled, "line")):
            result = sliced(x, y)
            assert result.stats["upper_from"] == origin
            assert sorted(result.coupling) == list(range(30))
            cost = ((x - y[result.coupling]) ** 2).sum(1).mean()
            assert result.upper == pytest.approx(np.sqrt(cost), rel=1e-9)
            assert cost <= ((x - y) ** 2).sum(1).mean() * (1 + 1e-12)
            assert 0 <= result.seconds < 60

    def test_sliced_needs_at_least_one_direction(self):
        with pytest.raises(ArgumentError, match="at least 1"):
            Sliced(projections=0)


@pytest.mark.parametrize("swapped", [False, True])
def test_direction_in_which_only_one_cloud_varies_counts_in_full(swapped):
    """Covariances diag(1, 0, ...) and diag(1, t^2, ...): B = t, of which the traces show little."""
    t, d = 1e-4, 6
    x = np.array([[1.0, 0], [-1, 0]])
    y = np.array([[1, t], [1, -t], [-1, t], [-1, -t]])
    clouds = [np.pad(z, ((0, 0), (0, d - 2))) for z in (x, y)]
    found = wasserstein(*(clouds[::-1] if swapped else clouds), solver=Gaussian())
    assert found.distance == pytest.approx(t, rel=1e-9)


def test_the_error_of_a_root_mean_is_the_delta_methods():
    costs = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    expected = 0.1 / np.sqrt(3) / (2 * np.sqrt(0.2))
    assert closed_form._error_of_root_mean(costs) == pytest.approx(expected)
    assert closed_form._error_of_root_mean(costs[:1]) is None
    assert closed_form._error_of_root_mean(0 * costs) is None
