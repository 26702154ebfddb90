"""Sinkhorn against closed forms, POT and GeomLoss; its kernel against dense float64."""

from __future__ import annotations

import numpy as np
import ot
import pytest
import torch
from geomloss import SamplesLoss
from hypothesis import given, settings
from hypothesis import strategies as st
from references import squared
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from wgeo.errors import ArgumentError, ConvergenceError, DependencyError
from wgeo.transport import (
    Sinkhorn,
    Status,
    annealing,
    fused,
    sinkhorn,
    sinkhorn_divergence,
    tiles,
    wasserstein,
)
from wgeo.transport.annealing import SinkhornState
from wgeo.transport.fused import FusedKernel
from wgeo.transport.kernel import Kernel
from wgeo.transport.point_clouds import PointClouds, WeightedPoints
from wgeo.transport.rounding import compute_bounds, couple_in_order, with_plan
from wgeo.transport.tiles import full_precision

TIGHT = {"marginal_tolerance": 1e-10, "iterations": 5000}


def two_clouds(rng, n=30, m=20, d=4, apart=1.0):
    return rng.standard_normal((n, d)), rng.standard_normal((m, d)) + apart


def entropic(x, y, eps, **settings):
    solver = Sinkhorn(epsilon=eps, unit="absolute", **{**TIGHT, **settings})
    return wasserstein(x, y, solver=solver)


class TestKnownAnswers:
    @pytest.mark.parametrize("eps", [0.3, 1.0, 10.0])
    def test_two_pairs_of_points_have_a_known_plan(self, eps):
        """P has 1/2 / (1 + e^(-4/eps)) where the cost is 0, the rest where it is 4."""
        x, y = np.array([-1.0, 1]), np.array([1.0, -1])
        result = entropic(x, y, eps)
        share = np.exp(-4 / eps)
        assert result.stats["entropic_cost"] == pytest.approx(4 * share / (1 + share), abs=1e-9)
        value = -eps * np.log((1 + share) / 2)
        assert result.stats["entropic_value"] == pytest.approx(value, rel=1e-9)
        assert result.divergence == pytest.approx(0, abs=1e-9)  # one measure, twice
        assert result.upper == 0  # read off the plan, whatever epsilon is

    def test_a_translations_divergence_is_exact_at_any_epsilon(self, rng):
        x = rng.standard_normal((25, 3))
        y = rng.permutation(x) + np.array([3.0, 0, 4])
        for eps in (1.0, 100.0):
            assert entropic(x, y, eps).divergence == pytest.approx(25, rel=1e-7)

    def test_an_infinite_epsilon_couples_independently(self, rng):
        x, y = two_clouds(rng)
        result = entropic(x, y, 1e7)
        assert result.stats["entropic_cost"] == pytest.approx(squared(x, y).mean(), rel=1e-5)
        means = ((x.mean(0) - y.mean(0)) ** 2).sum()  # the divergence becomes that of the means
        assert result.divergence == pytest.approx(means, rel=1e-5)

    def test_a_small_epsilon_gives_w2(self, rng):
        x, y = two_clouds(rng)
        truth = float(ot.emd2(np.full(30, 1 / 30), np.full(20, 1 / 20), squared(x, y)))
        costs = [entropic(x, y, eps).stats["entropic_cost"] for eps in (2.0, 0.5, 0.1)]
        assert costs == sorted(costs, reverse=True)
        assert costs[-1] == pytest.approx(truth, rel=0.02)
        assert costs[-1] > truth


class TestAgainstPeers:
    @pytest.mark.parametrize("eps", [0.2, 1.0])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_agrees_with_pot(self, rng, eps, weighted):
        x, y = two_clouds(rng)
        a = rng.dirichlet(np.ones(30)) if weighted else np.full(30, 1 / 30)
        b = rng.dirichlet(np.ones(20)) if weighted else np.full(20, 1 / 20)
        cost = squared(x, y)
        plan = ot.sinkhorn(a, b, cost, eps, "sinkhorn_log", numItermax=20000, stopThr=1e-12)
        solver = Sinkhorn(epsilon=eps, unit="absolute", **TIGHT)
        result = wasserstein(x, y, solver=solver, a=a, b=b)
        want = float((plan * cost).sum())
        assert result.stats["entropic_cost"] == pytest.approx(want, rel=1e-7)
        value = want + eps * float((plan * np.log(plan / np.outer(a, b))).sum())
        assert result.stats["entropic_value"] == pytest.approx(value, rel=1e-7)
        assert result.stats["row_error"] < 1e-12
        assert result.stats["column_error"] < 1e-10

    @pytest.mark.parametrize("eps", [0.5, 2.0])
    def test_divergence_agrees_with_geomloss(self, rng, eps):
        x, y = two_clouds(rng)
        # Its cost is halved: the same plan has half the epsilon, and half the value.
        loss = SamplesLoss("sinkhorn", p=2, blur=np.sqrt(eps / 2), scaling=0.99)
        want = 2 * float(loss(torch.from_numpy(x), torch.from_numpy(y)))
        assert entropic(x, y, eps).divergence == pytest.approx(want, rel=1e-3)

    def test_geomloss_as_engine(self, rng):
        x, y = two_clouds(rng, 40, 40)
        ours = entropic(x, y, 1.0)
        theirs = entropic(
            x, y, 1.0, engine="geomloss", scaling=0.98, marginal_tolerance=1e-2, iterations=100
        )
        assert theirs.stats["engine"] == "geomloss"
        assert theirs.stats["entropic_cost"] == pytest.approx(ours.stats["entropic_cost"], rel=1e-3)
        assert theirs.divergence == pytest.approx(ours.divergence, rel=1e-2)
        assert theirs.lower <= ours.upper
        assert ours.lower <= theirs.upper

    def test_an_engine_that_stops_early_does_not_pass_silently(self, rng):
        x, y = two_clouds(rng)
        with pytest.raises(ConvergenceError, match=r"geomloss.*scaling closer to 1"):
            entropic(x, y, 0.05, engine="geomloss", scaling=0.5)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="it would run")
    def test_flash_needs_cuda(self, rng):
        with pytest.raises(DependencyError, match="CUDA"):
            entropic(*two_clouds(rng), 1.0, engine="flash")

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_flash_as_engine(self, rng):
        pytest.importorskip("flash_sinkhorn")
        x, y = two_clouds(rng, 300, 200, 16)
        loose = {"scaling": 0.98, "marginal_tolerance": 1e-2, "device": "cuda"}
        ours, theirs = (entropic(x, y, 2.0, engine=who, **loose) for who in ("wgeo", "flash"))
        want = ours.stats["entropic_cost"]
        assert theirs.stats["entropic_cost"] == pytest.approx(want, rel=1e-2)

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_gpu_gives_the_same_result(self, rng):
        x, y = two_clouds(rng, 300, 200, 16)
        host, device = (entropic(x, y, 1.0, device=place) for place in ("cpu", "cuda"))
        assert device.stats["entropic_value"] == pytest.approx(host.stats["entropic_value"])
        assert device.divergence == pytest.approx(host.divergence, rel=1e-8)
        assert device.lower == pytest.approx(host.lower, rel=1e-8)


@pytest.fixture
def uncompiled(monkeypatch):
    """Fused attention runs on the CPU, without torch's compiler, in many operations."""
    from torch.nn.attention import flex_attention

    debug = "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"
    if not hasattr(flex_attention, debug):
        pytest.skip("this version of torch compiles attention in any case")
    monkeypatch.setattr(flex_attention, debug, True)
    monkeypatch.setattr(fused, "_log_sum_exp", lambda: fused.log_sum_exp)


@pytest.mark.usefixtures("uncompiled")
class TestFused:
    def test_two_pairs_of_points_have_a_known_softmin(self):
        x, y = torch.tensor([[-1.0], [1.0]]), torch.tensor([[1.0], [-1.0]])
        f, log_ratio = FusedKernel(PointClouds.of(x, y)).softmin(torch.zeros(2).double(), 2.0)
        want = -2 * np.log((1 + np.exp(-4 / 2)) / 2)
        np.testing.assert_allclose(f, want, rtol=1e-6)
        np.testing.assert_allclose(log_ratio, 0, atol=1e-6)

    @pytest.mark.parametrize("d", [1, 16, 48])
    def test_agrees_with_blocks(self, rng, d):
        x, y = two_clouds(rng, 60, 50, d, apart=0.2)
        a, b = rng.dirichlet(np.ones(60)), rng.dirichlet(np.ones(50))
        a[3] = b[7] = 0
        a, b = a / a.sum(), b / b.sum()
        clouds = PointClouds.of(torch.from_numpy(x), torch.from_numpy(y), a, b)
        g = torch.from_numpy(rng.normal(size=50))
        eps = 0.5 * d
        f, log_ratio = FusedKernel(clouds).softmin(g, eps)
        want_f, want_log_ratio = Kernel(clouds).softmin(g, eps)
        np.testing.assert_allclose(f / eps, want_f / eps, atol=1e-5)
        np.testing.assert_allclose(log_ratio, want_log_ratio, atol=1e-5)

    def test_two_graphs_serve_all_sizes_of_one_width(self, rng, monkeypatch):
        """A compiled call that needed one for each size would soon be refused."""
        graphs = []
        monkeypatch.setattr(fused, "_log_sum_exp", lambda: compiled)
        compiled = torch.compile(
            fused.log_sum_exp,
            fullgraph=True,
            backend=lambda graph, _: graphs.append(graph) or graph.forward,
        )
        for n, m, d in ((30, 20, 9), (21, 50, 12), (64, 64, 16)):
            clouds = PointClouds.of(*map(torch.from_numpy, two_clouds(rng, n, m, d)))
            g = torch.zeros_like(clouds.b)
            f, _ = FusedKernel(clouds).softmin(g, 20.0)
            np.testing.assert_allclose(f, Kernel(clouds).softmin(g, 20.0)[0], rtol=1e-5)
        assert len(graphs) <= 2

    @pytest.mark.parametrize("epsilon", [0.5, "auto"])
    def test_gives_the_same_result(self, rng, monkeypatch, epsilon):
        x, y = two_clouds(rng, 60, 50)
        ours = wasserstein(x, y, solver=Sinkhorn(epsilon=epsilon))
        passes = []
        softmin = FusedKernel.softmin
        monkeypatch.setattr(FusedKernel, "softmin", lambda *a: passes.append(a) or softmin(*a))
        monkeypatch.setattr(sinkhorn, "uses_fused", lambda *_: True)
        result = wasserstein(x, y, solver=Sinkhorn(epsilon=epsilon, engine="fused"))
        assert passes
        assert (result.stats["engine"], ours.stats["engine"]) == ("fused", "wgeo")
        assert result.stats["column_error"] <= 1e-3
        for name in ("lower", "upper"):
            assert getattr(result, name) == pytest.approx(getattr(ours, name), rel=1e-3)
        assert result.stats["entropic_value"] == pytest.approx(
            ours.stats["entropic_value"], rel=1e-5
        )

    def test_blocks_decide_whether_it_converged(self, rng, monkeypatch):
        """Potentials that are wrong by more than the tolerance are iterated further."""
        softmin = FusedKernel.softmin

        def wrong(*args):
            f, log_ratio = softmin(*args)
            return f, log_ratio * 0.01

        x, y = two_clouds(rng, 60, 50)
        monkeypatch.setattr(FusedKernel, "softmin", wrong)
        monkeypatch.setattr(sinkhorn, "uses_fused", lambda *_: True)
        result = wasserstein(x, y, solver=Sinkhorn(epsilon=0.5, engine="fused"))
        assert result.stats["converged"]
        assert result.stats["column_error"] <= 1e-3

    def test_a_kernel_that_fails_or_uses_tf32_is_refused(self, rng, monkeypatch):
        clouds = PointClouds.of(*map(torch.from_numpy, two_clouds(rng, 60, 50, 16)))
        assert fused.disagreement(clouds) == ""
        monkeypatch.setattr(fused, "_COMPARED", 5)
        weights = torch.cat([torch.zeros(5), torch.ones(55) / 55]).double()
        light = WeightedPoints(clouds.x, weights)
        assert fused.disagreement(PointClouds(light, clouds.target)) == ""

        def rounded(queries, keys, bias):
            mantissas = [torch.frexp(z) for z in (queries, keys)]
            ten_bits = [torch.ldexp((m * 2**11).round() / 2**11, e) for m, e in mantissas]
            return fused.log_sum_exp(*ten_bits, bias)

        monkeypatch.setattr(fused, "_log_sum_exp", lambda: rounded)
        assert "its results differ by" in fused.disagreement(clouds)
        monkeypatch.setattr(fused, "_log_sum_exp", lambda: lambda q, *_: q[0, 0, :, 0] * torch.nan)
        assert "nan" in fused.disagreement(clouds)
        monkeypatch.setattr(fused, "_log_sum_exp", lambda: 1 / 0)
        assert fused.disagreement(clouds) == "ZeroDivisionError: division by zero"

    def test_the_device_the_size_and_a_sample_decide(self, rng, monkeypatch):
        def on(device, n, d):
            with FakeTensorMode():  # no memory, and no device
                x, a = torch.empty(n, d, device=device), torch.empty(n, device=device).double()
            return PointClouds(WeightedPoints(x, a), WeightedPoints(x, a))

        monkeypatch.setattr(fused, "disagreement", lambda _: reason)
        for reason in ("", "no compiler"):
            assert not fused.uses_fused("fused", on("cuda", 100, 257))
            assert fused.uses_fused("auto", on("cuda", 20_000, 64)) == (reason == "")
            assert not fused.uses_fused("auto", on("cuda", 10_000, 64))  # its products are stored
            assert not fused.uses_fused("auto", on("cuda", 20_000, 512))
            assert not fused.uses_fused("auto", on("cpu", 20_000, 64))
            assert not fused.uses_fused("wgeo", on("cuda", 20_000, 64))
        with pytest.raises(DependencyError, match="no compiler"):
            fused.uses_fused("fused", on("cuda", 100, 256))
        reason = ""
        assert fused.uses_fused("fused", on("cuda", 100, 256))
        with pytest.raises(DependencyError, match=r"CUDA.*'cpu'"):
            entropic(*two_clouds(rng), 1.0, engine="fused", device="cpu")
        assert entropic(*two_clouds(rng), 1.0, engine="auto").stats["engine"] == "wgeo"


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore")  # of torch's compiler and Triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_fused_kernel_on_a_gpu(rng):
    x, y = two_clouds(rng, 2000, 1500, 48)
    clouds = PointClouds.of(torch.from_numpy(x), torch.from_numpy(y), device=torch.device("cuda"))
    with full_precision:
        assert fused.disagreement(clouds) == ""
    blocks, attention = (
        wasserstein(x, y, solver=Sinkhorn(epsilon=0.5, engine=engine, device="cuda"))
        for engine in ("wgeo", "fused")
    )
    assert attention.stats["engine"] == "fused"
    assert attention.divergence == pytest.approx(blocks.divergence, rel=1e-4)


class TestInterval:
    @settings(max_examples=20)
    @given(seed=st.integers(0, 2**31), share=st.sampled_from([1.0, 0.1, 0.01]))
    def test_interval_contains_w2_at_any_epsilon(self, seed, share):
        r = np.random.default_rng(seed)
        x, y = r.standard_normal((25, 3)), r.standard_normal((25, 3)) + r.uniform(0, 3)
        truth = wasserstein(x, y)
        for iterations in (1, 60):
            solver = Sinkhorn(epsilon=share, iterations=iterations, on_failure="return")
            result = wasserstein(x, y, solver=solver)
            assert result.lower <= truth.upper
            assert truth.lower <= result.upper
            assert result.stats["iterations"] <= iterations

    def test_the_rounded_plan_is_feasible(self, rng):
        """Columns are scaled down, and what lacks is coupled (Altschuler et al., Algorithm 2)."""
        x, y = two_clouds(rng)
        a, b = rng.dirichlet(np.ones(30)), rng.dirichlet(np.ones(20))
        a[3] = b[5] = 0.0
        a, b = a / a.sum(), b / b.sum()
        pair = PointClouds.of(torch.from_numpy(x), torch.from_numpy(y), a, b)
        core, eps = Kernel(pair), 0.5
        g = torch.from_numpy(rng.standard_normal(20))
        f, log_ratio = core.softmin(g, eps)
        summary = core.round_plan(f, g, log_ratio, eps)
        cost = squared(x - a @ x, y - b @ y)
        plan = np.exp((f.numpy()[:, None] + g.numpy()[None] - cost) / eps) * np.outer(a, b)
        assert summary.entropic_cost == pytest.approx((plan * cost).sum(), rel=1e-10)
        plan = plan * np.minimum(1, b / np.where(b > 0, plan.sum(0), 1))
        missing_x, missing_y = a - plan.sum(1), b - plan.sum(0)
        assert summary.missing_x.numpy() == pytest.approx(missing_x, abs=1e-14)
        assert summary.missing_y.numpy() == pytest.approx(missing_y, abs=1e-14)
        assert summary.cost == pytest.approx((plan * cost).sum(), rel=1e-10)
        missing = (torch.from_numpy(mass.clip(0)) for mass in (missing_x, missing_y))
        rest = couple_in_order(pair, *missing)
        assert rest.nnz < 50
        plan = plan + rest.toarray()
        assert plan.sum(1) == pytest.approx(a, abs=1e-14)
        assert plan.sum(0) == pytest.approx(b, abs=1e-14)
        state = SinkhornState(f, g, log_ratio, eps, 0.0, 0.0)
        bounds = with_plan(pair, compute_bounds(pair, state))
        assert bounds.upper_from == "plan"
        assert bounds.coupling.toarray() == pytest.approx(plan, abs=1e-12)
        assert bounds.upper == pytest.approx((plan * squared(x, y)).sum(), rel=1e-9)

    @settings(max_examples=15)
    @given(seed=st.integers(0, 2**31), share=st.sampled_from([1.0, 0.1, 0.01]))
    def test_upper_is_the_cost_of_the_returned_plan(self, seed, share):
        r = np.random.default_rng(seed)
        n, m = r.integers(1, 30, 2)
        x, y = r.standard_normal((n, 3)), r.standard_normal((m, 3)) + r.uniform(0, 3)
        a = r.dirichlet(np.ones(n)) * r.integers(0, 2, n)
        a[0] += 0.1
        solver = Sinkhorn(epsilon=share, iterations=int(r.integers(1, 60)), on_failure="return")
        result = wasserstein(x, y, solver=solver, a=a)
        assert result.plan.sum(1) == pytest.approx(a / a.sum(), abs=1e-13)
        assert result.plan.sum(0) == pytest.approx(np.full(m, 1 / m), abs=1e-13)
        cost = (result.plan.toarray() * squared(x, y)).sum()
        assert result.cost == pytest.approx(cost, rel=1e-9, abs=1e-12)
        assert result.upper**2 == pytest.approx(cost, rel=1e-9, abs=1e-12)

    def test_a_small_epsilon_has_a_sparse_plan(self, rng):
        x, y = two_clouds(rng, 300, 200, 2)
        result = wasserstein(x, y, solver=Sinkhorn(epsilon=1e-3, iterations=2000))
        assert result.stats["upper_from"] == "plan"
        assert result.plan.nnz < 300 * 200 / 4

    def test_a_plan_with_too_many_entries_is_not_returned(self, rng, monkeypatch):
        x, y = two_clouds(rng)
        solver = Sinkhorn(epsilon=1.0)
        whole = wasserstein(x, y, solver=solver)
        for most in (whole.plan.nnz - 60, 0):  # n + m - 1 of them may be corrections
            monkeypatch.setattr("wgeo.transport.rounding.MAX_ENTRIES", most)
            result = wasserstein(x, y, solver=solver)
            assert result.coupling is None
            assert "more than 4,194,304 entries" in result.stats["no_plan"]
            assert result.upper == pytest.approx(whole.upper, rel=1e-9)
            with pytest.raises(ArgumentError, match=r"no plan: .* smaller epsilon"):
                result.plan  # noqa: B018
        monkeypatch.setattr("wgeo.transport.kernel._NEGLIGIBLE", 1.0)  # all mass is coupled anew
        monkeypatch.setattr("wgeo.transport.rounding.MAX_ENTRIES", 1)
        assert wasserstein(x, y, solver=solver).plan.nnz < 50

    def test_a_permutation_is_read_off_the_plan(self, rng):
        x = rng.standard_normal((200, 8))
        order = rng.permutation(200)
        result = wasserstein(x, (x + 0.01)[order], solver=Sinkhorn(epsilon=0.01))
        assert result.coupling[order].tolist() == list(range(200))
        assert result.status is Status.CERTIFIED


class TestEpsilon:
    def test_relative_and_absolute_epsilon_agree(self, rng):
        x, y = two_clouds(rng, 30, 30)
        share = wasserstein(x, y, solver=Sinkhorn(epsilon=0.5))
        paired = (((x - x.mean(0)) - (y - y.mean(0))) ** 2).sum(1).mean()
        assert share.stats["scale"] == pytest.approx(min(paired, share.stats["scale"]))
        assert share.stats["epsilon"] == pytest.approx(0.5 * share.stats["scale"])
        same = entropic(x, y, share.stats["epsilon"], marginal_tolerance=1e-3)
        assert same.divergence == pytest.approx(share.divergence, rel=1e-9)

    def test_scale_of_clouds_that_do_not_pair_up_is_their_spread(self, rng):
        x, y = two_clouds(rng)
        result = wasserstein(x, y, solver=Sinkhorn(epsilon=0.5))
        assert result.stats["scale"] == pytest.approx(x.var(0).sum() + y.var(0).sum())
        assert result.stats["scale_is"] == "spread"

    def test_auto_has_no_divergence(self, rng):
        """Its epsilon depends on the interval: the divergence was 17 times off, or negative."""
        x = rng.standard_normal((200, 32))
        y = (x + 0.1 * rng.standard_normal(x.shape))[rng.permutation(200)]
        result = wasserstein(x, y, solver=Sinkhorn())
        assert result.status is Status.CERTIFIED
        assert result.divergence is None
        assert wasserstein(x, x + 1, solver=Sinkhorn()).divergence is None
        for epsilon in (1.0, 0.1):
            again = wasserstein(x, x[::-1], solver=Sinkhorn(epsilon=epsilon))
            assert again.divergence >= 0

    def test_auto_stops_when_the_interval_is_narrow(self, rng):
        x = rng.standard_normal((60, 5))
        result = wasserstein(x, x + 0.3 * rng.standard_normal((60, 5)), solver=Sinkhorn())
        assert result.status is Status.CERTIFIED
        assert result.gap <= 1e-3
        assert result.stats["epsilon_chosen"] == "interval within tolerance"

    def test_auto_keeps_the_smallest_that_converged(self, rng):
        x, y = two_clouds(rng, 60, 50)
        few, many = (
            wasserstein(x, y, solver=Sinkhorn(tolerance=1e-9, iterations=k)) for k in (30, 300)
        )
        assert few.stats["epsilon_chosen"] == "smallest that converged within the iterations"
        assert few.stats["column_error"] <= 1e-3
        assert few.stats["iterations"] == 30
        assert many.stats["epsilon"] < few.stats["epsilon"]
        assert many.gap < few.gap

    def test_too_small_epsilon_is_refused(self, rng):
        with pytest.raises(ArgumentError, match="below what float64 resolves"):
            entropic(*two_clouds(rng), 1e-14)

    @pytest.mark.parametrize(
        "bad",
        [
            {"epsilon": 0.0},
            {"epsilon": -1.0},
            {"epsilon": np.inf},
            {"tolerance": 0.0},
            {"iterations": 0},
            {"scaling": 1.0},
            {"engine": "geomloss"},  # with epsilon="auto"
        ],
    )
    def test_unusable_settings_are_refused(self, bad):
        with pytest.raises(ArgumentError):
            Sinkhorn(**bad)

    def test_settings_of_wrong_types_are_refused_or_converted(self):
        def checked(name, value):  # the type checker, in tests only, is quicker
            solver = Sinkhorn()
            object.__setattr__(solver, name, value)
            solver.__post_init__()
            return solver

        for name in ("unit", "engine", "on_failure"):
            with pytest.raises(ArgumentError, match=f"{name} must be one of .* not 'none'"):
                checked(name, "none")
        for name, value in [
            *(("epsilon", each) for each in (True, None, np.array([1.0, 2.0]), 10**400)),
            *(("iterations", each) for each in (0.5, True, "9")),
        ]:
            with pytest.raises(ArgumentError, match=name):
                checked(name, value)
        epsilon = checked("epsilon", np.float32(0.1)).epsilon
        assert type(epsilon) is float
        assert epsilon == pytest.approx(0.1)

    def test_auto_that_never_converges(self, rng):
        x, y = two_clouds(rng)
        with pytest.raises(ConvergenceError, match="after 1 passes"):
            wasserstein(x, y, solver=Sinkhorn(iterations=1))
        result = wasserstein(x, y, solver=Sinkhorn(iterations=1, on_failure="return"))
        assert result.stats["epsilon_chosen"] == "none"
        assert not result.stats["converged"]
        assert result.lower <= wasserstein(x, y).distance <= result.upper

    def test_blurred_plan_gives_no_permutation(self, rng, monkeypatch):
        x, y = two_clouds(rng, 30, 30)
        solver = Sinkhorn(epsilon=5.0)
        sharp = wasserstein(x, y, solver=solver)
        monkeypatch.setattr("wgeo.transport.rounding._MAX_UNASSIGNED", 0)
        blurred = wasserstein(x, y, solver=solver)
        assert sharp.stats["upper_from"] == "permutation"
        assert blurred.stats["upper_from"] != "permutation"
        assert blurred.lower == sharp.lower
        assert wasserstein(x, y).distance <= sharp.upper <= blurred.upper

    def test_unconverged_sinkhorn_raises(self, rng):
        x, y = two_clouds(rng)
        with pytest.raises(ConvergenceError, match=r"after 2 passes.*larger epsilon"):
            wasserstein(x, y, solver=Sinkhorn(epsilon=0.01, iterations=2))
        solver = Sinkhorn(epsilon=0.01, iterations=2, on_failure="return")
        result = wasserstein(x, y, solver=solver)
        assert result.status is Status.BOUNDED
        assert not result.stats["converged"]
        assert result.stats["column_error"] > 1e-3
        assert result.stats["epsilon"] > 0.01 * result.stats["scale"]
        assert result.stats["epsilon_chosen"].startswith("larger than given")

    def test_return_on_failure_includes_the_divergence(self, rng, monkeypatch):
        x, y = two_clouds(rng)
        monkeypatch.setattr("wgeo.transport.sinkhorn._SELF_ITERATIONS", 1)
        failing = {"epsilon": 0.05}
        with pytest.raises(ConvergenceError):
            wasserstein(x, y, solver=Sinkhorn(**failing))
        result = wasserstein(x, y, solver=Sinkhorn(**failing, on_failure="return"))
        assert result.divergence is None
        assert result.lower <= wasserstein(x, y).distance <= result.upper

    def test_every_result_has_the_same_statistics(self, rng):
        x, y = two_clouds(rng, 20, 20)
        solver = Sinkhorn(epsilon=0.1)
        other, translated = (wasserstein(x, z, solver=solver).stats for z in (y, x + 3))
        assert set(translated) == set(other)
        assert translated["entropic_value"] == pytest.approx(9 * x.shape[1])
        assert translated["scale"] == pytest.approx(2 * x.var(0).sum())


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation makes."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.entries = max(self.entries, tensor.numel())
        return out


class TestKernel:
    @staticmethod
    def dense(pair, g, eps):
        cost = torch.cdist(*pair.centered(torch.float64)) ** 2
        f = -eps * ((g - cost) / eps + pair.b.log()).logsumexp(1)
        column = ((f[:, None] - cost) / eps + pair.a.log()[:, None]).logsumexp(0)
        return f, column + g / eps

    @pytest.fixture
    def pair(self, rng):
        x, y = two_clouds(rng, 50, 40)
        return PointClouds.of(torch.from_numpy(x), torch.from_numpy(y))

    @pytest.mark.parametrize("reused", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_softmin_matches_its_definition(self, pair, dtype, reused):
        g, eps = torch.randn(40, dtype=torch.float64), 0.7
        exact = 1e-4 if dtype is torch.float32 else 1e-11
        for got, want in zip(
            Kernel(pair, dtype, reused).softmin(g, eps), self.dense(pair, g, eps), strict=True
        ):
            assert got.numpy() == pytest.approx(want.numpy(), abs=exact)

    def test_columns_without_mass_are_summed_in_the_log_domain(self, pair):
        g = torch.zeros(40, dtype=torch.float64)
        g[[3, 7]] = -50.0
        _, log_ratio = Kernel(pair, torch.float32).softmin(g, 0.05)
        assert log_ratio[3] < -500
        want = self.dense(pair, g, 0.05)[1]
        assert log_ratio.numpy() == pytest.approx(want.numpy(), rel=1e-3, abs=1e-2)

    def test_blocks_do_not_affect_the_result(self, rng, monkeypatch):
        x, y = two_clouds(rng, 300, 200)
        whole = entropic(x, y, 0.5, marginal_tolerance=1e-6)
        for name, entries in (("TILE_ENTRIES", 1), ("STORED_ENTRIES", 0)):
            monkeypatch.setitem(getattr(tiles, name), "cpu", entries)
            parts = entropic(x, y, 0.5, marginal_tolerance=1e-6)
            for name in ("lower", "upper", "divergence"):
                assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-10)

    def test_no_dense_matrix_is_allocated(self, rng, monkeypatch):
        monkeypatch.setitem(tiles.TILE_ENTRIES, "cpu", 1 << 12)
        monkeypatch.setitem(tiles.STORED_ENTRIES, "cpu", 0)
        monkeypatch.setattr("wgeo.transport.rounding.MAX_ENTRIES", 0)  # nor is the plan returned
        x, y = two_clouds(rng, 900, 600)
        with Largest() as seen:
            wasserstein(x, y, solver=Sinkhorn(epsilon=1.0))
        assert seen.entries <= 2 * 64 * 900  # indices of a block's entries

    def test_float32_precision_setting_is_restored(self):
        before = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision("medium")
            with full_precision, full_precision:
                assert torch.get_float32_matmul_precision() == "highest"
            assert torch.get_float32_matmul_precision() == "medium"
        finally:
            torch.set_float32_matmul_precision(before)

    def test_extrapolation_saves_passes_without_changing_the_result(self, rng, monkeypatch):
        x, y = rng.standard_normal((2, 80, 6))
        fast = entropic(x, y, 0.5, marginal_tolerance=1e-6)
        monkeypatch.setattr(annealing._Anderson, "__call__", lambda self, state: state.completed)
        slow = entropic(x, y, 0.5, marginal_tolerance=1e-6)
        assert fast.stats["iterations"] < slow.stats["iterations"] / 3
        assert fast.divergence == pytest.approx(slow.divergence, rel=1e-9)


class TestGradients:
    def test_gradient_matches_finite_differences(self, rng):
        x, y = (torch.from_numpy(z).requires_grad_() for z in two_clouds(rng, 4, 3, 2))
        a, b = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(3))

        def value(x, y):
            return sinkhorn_divergence(x, y, epsilon=1.0, a=a, b=b, marginal_tolerance=1e-11)

        assert torch.autograd.gradcheck(value, (x, y), eps=1e-5, atol=1e-7)

    def test_gradient_of_a_translation_is_exact(self, rng):
        x = torch.from_numpy(rng.standard_normal((12, 3))).requires_grad_()
        move = torch.tensor([3.0, 0, 4.0], dtype=torch.float64)
        value = sinkhorn_divergence(x, x.detach() + move, epsilon=0.3, marginal_tolerance=1e-10)
        assert value.item() == pytest.approx(25, rel=1e-8)
        value.backward()
        assert x.grad.numpy() == pytest.approx(np.tile(-2 * move / 12, (12, 1)), abs=1e-7)

    def test_gradient_descent_reaches_the_other_cloud(self, rng):
        start, y = two_clouds(rng, 20, 20, 2, apart=3.0)
        x = torch.tensor(start, dtype=torch.float32, requires_grad=True)
        for _ in range(15):
            value = sinkhorn_divergence(x, y, epsilon=0.5, marginal_tolerance=1e-4)
            (grad,) = torch.autograd.grad(value, x)
            assert grad.dtype == value.dtype == torch.float32
            x = (x - 8 * grad).detach().requires_grad_()
        assert value.item() < 0.05

    def test_divergence_equals_the_solvers(self, rng):
        x, y = two_clouds(rng)
        value = float(sinkhorn_divergence(x, y, epsilon=0.5, marginal_tolerance=1e-9))
        assert value == pytest.approx(entropic(x, y, 0.5).divergence, rel=1e-9)

    def test_divergence_errors_are_clear(self, rng):
        x, y = two_clouds(rng)
        with pytest.raises(ArgumentError, match="epsilon"):
            sinkhorn_divergence(x, y, epsilon=0.0)
        for wrong in ({"iterations": 0}, {"marginal_tolerance": -1.0}):
            with pytest.raises(ArgumentError, match=next(iter(wrong))):
                sinkhorn_divergence(x, y, epsilon=0.5, **wrong)
        with pytest.raises(ConvergenceError, match="between x and y"):
            sinkhorn_divergence(x, y, epsilon=0.01, iterations=2)
