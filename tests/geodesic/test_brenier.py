"""The Brenier test against maps whose Jacobian is known, and against dense Jacobians."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable

import numpy as np
import patience
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

import wgeo.geodesic.jacobian as jacobian_module
from wgeo.errors import ArgumentError
from wgeo.geodesic.gradient_maps import SYMMETRIC, _in_float64, brenier, brenier_blocks
from wgeo.geodesic.jacobian import Jacobian
from wgeo.geodesic.resampling import mean_interval


def points(n: int, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed)).double()


def rotation(delta: float) -> torch.Tensor:
    c, s = np.cos(delta), np.sin(delta)
    return torch.tensor([[c, -s], [s, c]], dtype=torch.float64)


class Residual(nn.Module):
    """A convolutional residual block with everything that real ones have."""

    def __init__(self, channels: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + x)


def dense(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Every point's Jacobian, (n, D, D), one output at a time: slow and obvious."""
    own = block.double().eval()
    size = x[0].numel()
    rows = []
    for point in x:
        z = point[None].clone().requires_grad_(True)
        out = own(z + 0).flatten()
        rows.append(
            torch.stack(
                [
                    torch.autograd.grad(out[k], z, retain_graph=True)[0].flatten()
                    for k in range(size)
                ]
            )
        )
    return torch.stack(rows)


@given(st.integers(1, 6), st.integers(0, 10**6))
def test_symmetric_positive_affine_map_is_optimal(d, seed):
    root = points(d, d, seed=seed)
    matrix = root @ root.T + 0.1 * torch.eye(d, dtype=torch.float64)
    result = brenier(lambda x: x @ matrix + 3.0, points(4, d, seed=seed + 1), probes=2, bootstrap=0)
    assert result.asymmetry < 1e-24
    assert result.min_eigenvalue == pytest.approx(
        float(torch.linalg.eigvalsh(matrix)[0]), rel=1e-8, abs=1e-10
    )
    assert result.negative_share == 0
    assert not result.excluded


@given(st.floats(0.05, 3.0))
def test_planar_rotation_has_asymmetry_tan_squared(delta):
    result = brenier(lambda x: x @ rotation(delta).T, points(3, 2), bootstrap=0)
    assert result.asymmetry == pytest.approx(np.tan(delta) ** 2, rel=1e-9)
    assert result.displacement_asymmetry == pytest.approx(1 / np.tan(delta / 2) ** 2, rel=1e-9)
    assert result.min_eigenvalue == pytest.approx(np.cos(delta), abs=1e-12)
    assert result.negative_share == (np.cos(delta) < 0)
    reasons = {"asymmetry": np.tan(delta) ** 2 > SYMMETRIC, "eigenvalue": np.cos(delta) < 0}
    assert set(result.excluded_by) == {reason for reason, known in reasons.items() if known}


def test_a_quarter_turn_is_excluded_by_its_infinite_asymmetry():
    quarter = torch.tensor([[0.0, 1.0], [-1.0, 0.0]]).double()
    result = brenier(lambda x: x @ quarter, points(4, 2))
    assert result.asymmetry == math.inf
    assert "asymmetry" not in result.intervals
    assert result.excluded_by == ("asymmetry",)


def test_tied_weights_relu_block_is_the_gradient_of_a_convex_function():
    weight = points(9, 6, seed=1)
    result = brenier(lambda x: x + torch.relu(x @ weight.T) @ weight, points(8, 6))
    assert result.asymmetry < 1e-24
    assert result.displacement_asymmetry < 1e-24
    assert result.min_eigenvalue >= 1 - 1e-10
    assert result.lowest_eigenvalue >= 1 - 1e-10
    assert result.excluded_by == ()
    assert result.dead_share == 0  # the ReLU is inside


class Clamped(nn.Module):
    """ReLU(x + x B^T) with the last ReLU as a module or a function, or left out."""

    def __init__(self, branch: torch.Tensor, end: str) -> None:
        super().__init__()
        self.branch, self.end = nn.Parameter(branch), end
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = x + x @ self.branch.T
        if self.end == "none":
            return total
        return self.relu(total) if self.end == "module" else torch.relu(total)


@pytest.mark.parametrize("end", ["module", "function", "none"])
def test_the_last_relu_does_not_hide_the_asymmetry_of_the_branch(end):
    d = 12
    branch = 0.05 * points(d, d, seed=3)
    x = points(6, d, seed=4)
    result = brenier(Clamped(branch, end), x, probes=3000, lanczos=d, bootstrap=0)
    expected = {"displacement_asymmetry": [], "branch_asymmetry": []}
    dead = []
    for point in x:
        on = torch.diag(
            (point + branch @ point > 0).double() if end != "none" else torch.ones(d).double()
        )
        dead.append(1 - float(on.diagonal().mean()))
        jacobian = on @ (torch.eye(d).double() + branch)
        for name, part in zip(expected, (jacobian - torch.eye(d), jacobian - on), strict=True):
            anti, whole = (part - part.T).square().sum(), (part + part.T).square().sum()
            expected[name].append(float(anti / whole))
    np.testing.assert_allclose(result.per_point["dead_share"], dead)
    for name, values in expected.items():
        np.testing.assert_allclose(result.per_point[name], values, rtol=0.1)
    if end == "none":
        assert result.branch_asymmetry == result.displacement_asymmetry
    else:
        assert result.branch_asymmetry > 5 * result.displacement_asymmetry


def test_the_last_relu_of_a_map_of_positive_points_is_recognized():
    x = 0.01 + 2 * torch.rand(6, 8, generator=torch.Generator().manual_seed(0))
    for end, share in ((torch.relu, (x < 1).double().mean()), (lambda z: z, 0.0)):
        result = brenier(lambda z, end=end: end(z - 1 + 0.01 * z.log() * z.log1p()), x, probes=1)
        assert result.dead_share == pytest.approx(float(share), abs=0.1)


@pytest.mark.parametrize("norm", [True, False])
def test_traced_products_are_those_of_forward_mode(norm, monkeypatch):
    torch.manual_seed(2)
    block = Residual() if norm else nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.GELU())
    x, v = points(3, 2, 5, 5), points(3, 2, 5, 5, seed=1)
    map_, _ = _in_float64(block, x.device)
    forward = Jacobian(map_, x).forward(v)
    traced = jacobian_module._linearized(map_, x)
    torch.testing.assert_close(traced(v), forward, rtol=1e-12, atol=1e-12)
    monkeypatch.setattr(jacobian_module, "_TRACE_FROM", 1)
    torch.testing.assert_close(Jacobian(map_, x).forward(v), forward, rtol=1e-12, atol=1e-12)


def test_untraceable_functions_are_still_differentiated(monkeypatch):
    def broken(*_: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(jacobian_module, "_TRACE_FROM", 1)
    monkeypatch.setattr(torch.func, "linearize", broken)
    x = points(3, 4)
    torch.testing.assert_close(Jacobian(lambda z: z**2, x).forward(x), 2 * x**2)


def test_the_first_forward_derivative_is_quiet():
    """In a new process, since torch warns about its own imports only once."""
    code = (
        "import torch\n"
        "from wgeo.geodesic.jacobian import Jacobian\n"
        "x = torch.linspace(-1, 1, 6).reshape(2, 3)\n"
        "print(float(Jacobian(torch.square, x).forward(x).sum()))"
    )
    done = patience.run(
        [sys.executable, "-W", "always", "-c", code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "torch.jit" not in done.stderr
    assert float(done.stdout) == pytest.approx(2 * (1 + 0.36 + 0.04) * 2, rel=1e-6)


def test_lanczos_stops_at_its_tolerance_point_by_point():
    spectrum = torch.cat([torch.tensor([-2.0]), torch.linspace(0, 1, 199)]).double()
    calls = []

    def map_(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return x * spectrum

    x = points(5, 200)
    full = brenier(map_, x, lanczos=100)
    made, calls[:] = len(calls), []
    loose = brenier(map_, x, lanczos=100, tolerance=1e-3)
    assert len(calls) < made / 2
    assert 0 < loose.residual <= 1e-3 * 2
    assert loose.min_eigenvalue == pytest.approx(full.min_eigenvalue, abs=1e-3)
    parts = brenier(map_, x, lanczos=100, tolerance=1e-3, batch_size=2)
    np.testing.assert_allclose(
        parts.per_point["min_eigenvalue"], loose.per_point["min_eigenvalue"], rtol=1e-9
    )


def test_agrees_with_dense_jacobians_of_a_convolutional_block():
    torch.manual_seed(3)
    block = Residual()
    for norm in (block.bn1, block.bn2):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    x = points(4, 2, 5, 5)
    result = brenier(block, x, probes=200, lanczos=50, bootstrap=0)
    jacobian = dense(block, x)
    symmetric = (jacobian + jacobian.transpose(1, 2)) / 2
    antisymmetric = (jacobian - jacobian.transpose(1, 2)) / 2
    lowest = torch.linalg.eigvalsh(symmetric)[:, 0].numpy()
    np.testing.assert_allclose(result.per_point["min_eigenvalue"], lowest, atol=1e-8)
    ratio = (antisymmetric.square().sum((1, 2)) / symmetric.square().sum((1, 2))).numpy()
    # 200 probes estimate it within a tenth.
    np.testing.assert_allclose(result.per_point["asymmetry"], ratio, rtol=0.15)


def test_products_agree_with_dense_jacobians_to_1e_8():
    torch.manual_seed(4)
    block, x = Residual(), points(3, 2, 4, 4)
    products = Jacobian(_in_float64(block, x.device)[0], x)
    jacobian, v = dense(block, x), points(3, 32, seed=5)
    shaped = v.reshape(x.shape)
    forward = torch.einsum("nij,nj->ni", jacobian, v)
    transpose = torch.einsum("nji,nj->ni", jacobian, v)
    torch.testing.assert_close(products.forward(shaped).flatten(1), forward, atol=1e-8, rtol=0)
    torch.testing.assert_close(products.transpose(shaped).flatten(1), transpose, atol=1e-8, rtol=0)


def test_few_lanczos_steps_bound_the_eigenvalue_from_above_within_the_residual():
    spectrum = torch.cat([torch.tensor([-2.0]), torch.linspace(0, 1, 199)]).double()
    result = brenier(lambda x: x * spectrum, points(5, 200), lanczos=15)
    lowest = result.per_point["min_eigenvalue"]
    assert (lowest >= -2 - 1e-12).all()
    assert (np.abs(lowest + 2) <= result.per_point["residual"] + 1e-12).all()
    assert result.residual < 0.01
    assert result.negative_share == 1
    assert result.lanczos == 15


def test_an_exhausted_krylov_space_does_not_hide_the_lowest_eigenvalue():
    # 2 I, but -1 in one direction: a start orthogonal to this direction would find only 2.
    scale = torch.tensor([2.0, 2.0, 2.0, -1.0], dtype=torch.float64)
    assert brenier(lambda x: x * scale, points(3, 4)).min_eigenvalue == pytest.approx(-1)
    identity = brenier(lambda x: 1.0 * x, points(3, 50))
    assert identity.min_eigenvalue == pytest.approx(1)
    assert identity.asymmetry == 0
    assert identity.displacement_asymmetry is None  # no displacement, no share of it
    assert "displacement_asymmetry" not in identity.intervals


def test_batches_change_nothing_and_seeds_repeat():
    torch.manual_seed(5)
    block, x = Residual(), points(7, 2, 6, 6)
    whole = brenier(block, x, lanczos=12, batch_size=7, seed=1)
    parts = brenier(block, x, lanczos=12, batch_size=2, seed=1)
    other = brenier(block, x, lanczos=12, batch_size=7, seed=2)
    for name, values in whole.per_point.items():
        np.testing.assert_allclose(parts.per_point[name], values, rtol=1e-9, atol=1e-9)
    for name, interval in whole.intervals.items():
        assert interval == pytest.approx(parts.intervals[name])
    assert whole.asymmetry != other.asymmetry


def test_the_module_is_left_as_it_was():
    block = Residual().train()
    before = {name: value.clone() for name, value in block.state_dict().items()}
    x = points(3, 2, 4, 4).float()
    kept = x.clone()
    brenier(block, x, probes=1, lanczos=3)
    assert block.training
    assert torch.equal(x, kept)
    for name, value in block.state_dict().items():
        assert value.dtype == before[name].dtype
        assert torch.equal(value, before[name])
    assert all(p.requires_grad for p in block.parameters())


def test_intervals_over_points_cover_their_mean():
    # J = diag(x): the smallest eigenvalue at a point is its smallest coordinate, mean 1/(d + 1).
    hits = 0
    for seed in range(40):
        x = torch.rand(30, 3, generator=torch.Generator().manual_seed(seed)).double()
        result = brenier(lambda z: z**2 / 2, x, probes=1, lanczos=3, batch_size=30, seed=seed)
        low, high = result.intervals["min_eigenvalue"]
        hits += low <= 0.25 <= high
    assert hits >= 34


@pytest.mark.parametrize("points", [4, 8])
def test_intervals_over_a_few_points_cover_their_mean(points):
    """Bootstrap intervals covered the mean in only 80 % and 87 % of cases."""
    rng = np.random.default_rng(points)
    runs, hits = 2000, {True: 0, False: 0}
    for _ in range(runs):
        values = 0.3 + 0.05 * rng.standard_normal(points)
        for positive in hits:
            low, high = mean_interval(values, positive=positive)
            hits[positive] += low <= 0.3 <= high
    assert all(count / runs == pytest.approx(0.95, abs=0.02) for count in hits.values())


def test_intervals_of_positive_values_are_positive_and_one_value_has_none():
    low, high = mean_interval(np.array([1e-3, 1.0, np.nan, 2e-3]), positive=True)
    assert 0 < low < 0.334 < high < np.inf
    assert mean_interval(np.zeros(3), positive=True) == (0, 0)
    assert mean_interval(np.array([np.nan, 1.0])) is None
    low, high = mean_interval(np.array([1.0, 2.0, 3.0, 4.0]))
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 3, 2.5, stats.sem([1, 2, 3, 4])))


def test_attention_and_tokens_are_tested_too():
    torch.manual_seed(6)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    result = brenier(layer, points(3, 5, 8), probes=2, lanczos=4)
    assert result.asymmetry > 0


def test_result_converts_to_plain_values():
    record = brenier(lambda x: x @ rotation(0.3).T, points(6, 2)).to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["points"] == 6
    assert set(record["intervals"]) == {
        "asymmetry",
        "displacement_asymmetry",
        "branch_asymmetry",
        "min_eigenvalue",
        "relative_eigenvalue",
        "negative_share",
    }


@pytest.mark.parametrize(
    ("map_", "x", "words"),
    [
        (lambda x: x[:, :2], points(3, 4), "within one space"),
        (lambda x: x - x.mean(0), points(3, 4), "depends on the other samples"),
        (lambda x: x @ torch.ones(3, 3), points(3, 4), "cannot take points"),
        (lambda x: (x, x), points(3, 4), "takes .* to tuple"),
        (lambda x: torch.from_numpy(x.detach().numpy() * 2), points(3, 4), "differentiated"),
        (lambda x: x, points(3, 4) * float("nan"), "NaN"),
        (lambda x: x, torch.zeros(3), "must have shape"),
    ],
)
def test_maps_that_cannot_be_tested_are_clear_errors(map_, x, words):
    with pytest.raises(ArgumentError, match=words):
        brenier(map_, x)


def test_settings_are_checked():
    for name, value in (
        *((n, 0) for n in ("probes", "lanczos", "batch_size")),
        *((n, -5) for n in ("seed", "bootstrap")),
    ):
        with pytest.raises(ArgumentError, match=f"{name} must be a whole number of at least"):
            brenier(lambda x: x, points(3, 4), **{name: value})
    for tolerance in (-1.0, math.nan):
        with pytest.raises(ArgumentError, match="tolerance must be at least 0"):
            brenier(lambda x: x, points(3, 4), tolerance=tolerance)


class Keyed(nn.Module):
    """Blocks that are called with a keyword, and return a tuple or a tensor."""

    def __init__(self, returns: Callable = lambda y: (y, None)) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Turning(returns) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            y = block(x=x, angle=torch.tensor(0.3))
            x = y[0] if isinstance(y, tuple) else y
        return x


class Turning(nn.Module):
    def __init__(self, returns: Callable) -> None:
        super().__init__()
        self.returns = returns

    def forward(self, *, x: torch.Tensor, angle: torch.Tensor):
        a, b, (c, s) = x[:, :1], x[:, 1:], (torch.cos(angle), torch.sin(angle))
        return self.returns(torch.cat([c * a - s * b, s * a + c * b], 1))


@pytest.mark.parametrize("returns", [lambda y: (y, None), lambda y: y])
def test_blocks_with_keywords_and_tuples_are_tested(returns):
    names = ["blocks.0", "blocks.1"]
    found = brenier_blocks(Keyed(returns), points(4, 2).float(), names, probes=2)
    for block in found.blocks.values():
        assert block.asymmetry == pytest.approx(math.tan(0.3) ** 2, rel=1e-6)
    assert found.segments[tuple(names)].asymmetry == pytest.approx(math.tan(0.6) ** 2, rel=1e-6)
    assert brenier_blocks(Keyed(lambda y: (y, y)), points(4, 2), names).blocks == {}


class Conditioned(nn.Module):
    """Blocks with an embedding per sample, and with samples on the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.film, self.turned, self.plain = Scaled(), Shift(), Shift()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.plain(self.turned(self.film(x, x.sum(1, keepdim=True)).T).T)


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor, condition: torch.Tensor) -> torch.Tensor:
        return x + condition * x


class Shift(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def test_blocks_that_need_more_than_one_row_of_one_tensor_are_left_out():
    found = brenier_blocks(Conditioned(), points(5, 3), ["film", "turned", "plain"], probes=2)
    assert list(found.blocks) == ["plain"]


class Tokens(nn.Module):
    """A block with a mask between tokens, and one with the tokens on the first axis."""

    def __init__(self) -> None:
        super().__init__()
        self.masked, self.turned = Mixing(), Shift()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.masked(x, torch.ones(x.shape[1], x.shape[1]).tril().to(x))
        return self.turned(y.transpose(0, 1)).transpose(0, 1)


class Mixing(nn.Module):
    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return x + mask @ x


@pytest.mark.parametrize("n", [4, 5])
def test_an_axis_that_is_as_long_as_the_points_is_not_theirs(n):
    found = brenier_blocks(Tokens(), points(n, 4, 2), ["masked", "turned"], probes=2)
    assert list(found.blocks) == ["masked"]


def test_the_largest_eigenvalue_is_too_small_by_no_more_than_the_stated_fraction():
    d, steps = 300, 20
    values = torch.linspace(-1, 1, d).double()
    result = brenier(lambda x: x * values, points(8, d), probes=1, lanczos=steps)
    scale = result.per_point["min_eigenvalue"] / result.per_point["relative_eigenvalue"]
    assert (scale <= 1 + 1e-9).all()
    assert (scale >= 1 - 2 * (math.log(33 * math.sqrt(d)) / (2 * steps - 1)) ** 2).all()


def test_every_block_and_segment_of_a_network():
    torch.manual_seed(7)
    net = nn.Sequential(Residual(2), Residual(2), nn.Conv2d(2, 3, 1), Residual(3), nn.Flatten())
    x = points(4, 2, 4, 4).float()
    found = brenier_blocks(net, x, ["0", "1", "2", "3"], probes=2, lanczos=48)
    assert list(found.blocks) == ["0", "1", "3"]  # the convolution changes the space
    assert list(found.segments) == [("0", "1")]
    with torch.no_grad():
        inner = net.eval()[0](x)
    alone = brenier(net[1], inner, probes=2, lanczos=48)
    assert found.blocks["1"].asymmetry == pytest.approx(alone.asymmetry)
    whole = dense(nn.Sequential(net[0], net[1]), x.double())
    lowest = torch.linalg.eigvalsh((whole + whole.transpose(1, 2)) / 2)[:, 0].mean()
    assert found.segments["0", "1"].min_eigenvalue == pytest.approx(float(lowest), abs=1e-8)
