"""Residual alignment and block coupling: known answers, dense references, difficult cases."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import wgeo
from wgeo.errors import ArgumentError
from wgeo.features import blocks as block_names
from wgeo.features.residual_blocks import BlockSpec
from wgeo.geodesic import residual_alignment
from wgeo.geodesic.branches import branch_of, visits
from wgeo.geodesic.jacobian import top_triplets
from wgeo.models.fresh import reestimate_statistics

D, K = 16, 5
S = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2]).double()


class Added(nn.Module):
    """end(scale (x + A x))."""

    def __init__(self, matrix: torch.Tensor, end: Callable | None = None, scale: float = 1) -> None:
        super().__init__()
        self.linear = nn.Linear(len(matrix), len(matrix), bias=False)
        self.linear.weight.data = matrix.clone()
        self.end, self.scale = end, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = (x + self.linear(x)) * self.scale if self.scale != 1 else x + self.linear(x)
        return out if self.end is None else self.end(out)


def frames(count: int = 2, d: int = D, k: int = K, seed: int = 0) -> list[torch.Tensor]:
    """Mutually orthogonal d x k matrices with orthonormal columns."""
    g = torch.Generator().manual_seed(seed)
    whole = torch.linalg.qr(torch.randn(d, count * k, generator=g, dtype=torch.float64))[0]
    return list(whole.split(k, 1))


def align(*matrices: torch.Tensor, points: int = 2, **options) -> wgeo.Alignment:
    return align_net(nn.Sequential(*map(Added, matrices)), len(matrices[0]), points, **options)


def align_net(net: nn.Module, *shape: int, **options) -> wgeo.Alignment:
    *shape, points = shape
    x = torch.randn(12, *shape, generator=torch.Generator().manual_seed(1)).double()
    options = {"vectors": K, "points": points, "tolerance": 1e-9, "probes": 2} | options
    return wgeo.alignment(net.double().eval(), (x, np.arange(12) % 2), **options)


def spectral(u: torch.Tensor, s: torch.Tensor, v: torch.Tensor | None = None) -> torch.Tensor:
    return u @ torch.diag(s) @ (u if v is None else v).T


def test_shared_singular_vectors_are_aligned_and_coupled_whatever_the_scale():
    (u,) = frames(1)
    result = align(spectral(u, S), spectral(u, 0.3 * S))
    np.testing.assert_allclose(result.blocks[0].singular_values, S, rtol=1e-9)
    np.testing.assert_allclose(result.blocks[1].singular_values, 0.3 * S, rtol=1e-9)
    for block in result.blocks:
        assert block.overlap == pytest.approx(1)
        assert block.sign == pytest.approx(1)
        assert block.share == pytest.approx(1)
        assert block.asymmetry == pytest.approx(0, abs=1e-12)
        assert 0 <= block.along <= 1 + 1e-12
        assert block.participation == pytest.approx(float(S.square().sum() ** 2 / (S**4).sum()))
    for pair in result.pairs:
        for name in ("overlap_uv", "overlap_uu", "overlap_vv", "diagonal"):
            assert getattr(pair, name) == pytest.approx(1)
        assert pair.coupling == pytest.approx(0, abs=1e-8)
        assert pair.coupling_signed == pytest.approx(0, abs=1e-8)
    (segment,) = result.segments
    assert segment.chance == K / D
    assert segment.slopes is None  # of two blocks
    assert len(repr(result).splitlines()) <= 10
    assert len(result.to_pandas()) == 2
    json.dumps(result.to_dict())


def test_contraction_is_aligned_with_expansion_but_of_the_other_sign():
    (u,) = frames(1)
    result = align(-spectral(u, S), spectral(u, S))
    assert [round(block.sign, 9) for block in result.blocks] == [-1, 1]
    for pair in result.pairs:
        assert pair.overlap_uv == pytest.approx(1)
        assert pair.coupling == pytest.approx(0, abs=1e-8)
        assert pair.coupling_signed == pytest.approx(2)


@pytest.mark.parametrize("degrees", [30, 60])
def test_subspaces_at_an_angle(degrees):
    u, w = frames(2)
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    result = align(spectral(u, S), spectral(c * u + s * w, 0.5 * S))
    for pair in result.pairs:
        assert pair.diagonal == pytest.approx(c)
        assert pair.overlap_uv == pytest.approx(c**2)
        assert pair.coupling == pytest.approx(1 - c**2)


def test_a_rotation_has_overlap_one_and_sign_zero():
    (u,) = frames(1, k=4)
    plane = torch.zeros(4, 4).double()
    for k, size in enumerate((1.0, 0.6)):
        plane[2 * k, 2 * k + 1], plane[2 * k + 1, 2 * k] = -size, size
    (block,) = align(u @ plane @ u.T, vectors=4).blocks
    np.testing.assert_allclose(block.singular_values, [1, 1, 0.6, 0.6], rtol=1e-9)
    assert block.overlap == pytest.approx(1)
    assert block.sign == pytest.approx(0, abs=1e-8)
    assert block.asymmetry is None


@pytest.mark.parametrize("degrees", [0, 45, 90])
def test_asymmetry_of_rank_one(degrees):
    u, w = (frame[:, :1] for frame in frames(2))
    c = math.cos(math.radians(degrees))
    v = c * u + math.sin(math.radians(degrees)) * w
    (block,) = align(spectral(u, S[:1], v), probes=D, points=1).blocks
    assert block.asymmetry == pytest.approx((1 - c**2) / (1 + c**2), abs=1e-9)
    assert block.overlap == pytest.approx(c**2, abs=1e-9)


def test_a_rank_below_the_vectors_gives_fewer_triplets_and_no_noise():
    u, w = frames(2, k=2)
    result = align(spectral(u, S[:2]), spectral(w, S[:2]), vectors=6)
    for block in result.blocks:
        assert sum(s > 0 for s in block.singular_values) == 2
        assert block.overlap == pytest.approx(1)
    assert all(pair.overlap_uv == pytest.approx(0, abs=1e-12) for pair in result.pairs)
    silent = align(torch.zeros(D, D).double(), spectral(u, S[:2]))
    assert silent.blocks[0].overlap is None
    assert silent.segments[0].overlap_uv is None


def test_tied_singular_values_are_judged_by_subspaces():
    """The vectors are arbitrary, and so is the diagonal; overlap and coupling are not."""
    (u,) = frames(1)
    tied = 0.5 * torch.ones(K).double()
    result = align(spectral(u, tied), spectral(u, tied))
    for pair in result.pairs:
        assert pair.overlap_uv == pytest.approx(1)
        assert pair.coupling_signed == pytest.approx(0, abs=1e-8)
        assert pair.diagonal < 0.9
    cut = align(spectral(u, tied), spectral(u, tied), vectors=3)  # K inside the cluster
    assert all(block.gap == pytest.approx(0, abs=1e-9) for block in cut.blocks)
    assert all(block.gap == pytest.approx(1) for block in result.blocks)


def test_independent_subspaces_are_at_chance():
    d = 32
    matrices = []
    for seed in range(8):
        u, w = frames(1, d, seed=2 * seed)[0], frames(1, d, seed=2 * seed + 1)[0]
        matrices.append(0.01 * spectral(u, torch.ones(K).double(), w))
    result = align(*matrices, points=1)
    pairs = result.pairs
    (segment,) = result.segments
    assert segment.chance == K / d
    for name in ("overlap_uv", "overlap_uu", "overlap_vv"):
        assert np.mean([getattr(p, name) for p in pairs]) == pytest.approx(K / d, rel=0.1)
        assert getattr(segment, name) == pytest.approx(np.mean([getattr(p, name) for p in pairs]))
    expected = math.gamma(d / 2) / (math.sqrt(math.pi) * math.gamma((d + 1) / 2))
    assert np.mean([p.diagonal for p in pairs]) == pytest.approx(expected, rel=0.1)
    coupled = [p for p in pairs if p.coupling is not None]
    assert len(coupled) == 2 * 7  # neighbours
    squares = np.mean([p.coupling**2 for p in coupled])
    formula = 1 + (K / d) ** 2 - 2 * math.sqrt(2 / math.pi) * math.sqrt(K) / d
    assert squares == pytest.approx(formula, rel=0.02)
    assert segment.chance_coupling == pytest.approx(math.sqrt(formula))
    signed = np.mean([p.coupling_signed**2 for p in coupled])
    assert signed == pytest.approx(1 + (K / d) ** 2, rel=0.03)


def test_chance_is_that_of_the_rank_if_it_is_below_the_vectors():
    d, rank = 32, 2
    matrices = []
    for seed in range(8):
        u, w = (frames(1, d, k=rank, seed=2 * seed + i)[0] for i in range(2))
        matrices.append(0.01 * spectral(u, torch.ones(rank).double(), w))
    result = align(*matrices, points=1)
    (segment,) = result.segments
    assert segment.vectors == K
    assert segment.chance == rank / d
    overlaps = [p.overlap_uv for p in result.pairs]
    assert np.mean(overlaps) == pytest.approx(rank / d, rel=0.25)
    squares = np.mean([p.coupling**2 for p in result.pairs if p.coupling is not None])
    assert squares == pytest.approx(segment.chance_coupling**2, rel=0.03)


# --- geodesics ------------------------------------------------------------------------------------


def geodesic(eigenvalues: list[float], times: np.ndarray) -> list[torch.Tensor]:
    """(I + t' H)(I + t H)^-1 - I for consecutive times t, t'."""
    (q,) = frames(1)
    values = torch.tensor(eigenvalues).double()
    return [spectral(q, (b - a) * values / (1 + a * values)) for a, b in pairwise(times)]


def test_a_geodesic_of_both_signs_keeps_its_subspace_though_the_order_changes():
    blocks = geodesic([3, 2, 1, -0.4, -0.6], np.linspace(0, 1, 7))
    result = align(*blocks)
    (pair,) = [p for p in result.pairs if (p.source, p.target) == ("0", "5")]
    assert pair.overlap_uv == pytest.approx(1)
    assert pair.diagonal == pytest.approx(0, abs=1e-8)
    top = [3 / 6 / (1 + t * 3) for t in np.arange(6) / 6]
    assert result.blocks[0].singular_values[0] == pytest.approx(top[0])
    assert result.segments[0].overlap_uv == pytest.approx(1)
    ends = nn.Sequential(Added(blocks[0]), Added(blocks[5]))  # neighbours, for the coupling
    assert align_net(ends, D, 2).pairs[0].coupling == pytest.approx(0.7497, abs=1e-4)


@pytest.mark.parametrize("times", [np.linspace(0, 1, 7), np.array([0, 0.1, 0.15, 0.4, 0.7, 1])])
def test_singular_values_along_a_geodesic_have_slope_one_in_its_own_time(times):
    """Of points whose displacement is that of the geodesic: every step is proportional to dt."""
    result = align(*geodesic([3, 2, 1.5, 1, 0.5], times))
    np.testing.assert_allclose(result.segments[0].slopes, 1, atol=1e-7)
    low, high = result.segments[0].intervals["slope"]
    assert low == pytest.approx(1, abs=1e-6)
    assert high == pytest.approx(1, abs=1e-6)
    contraction = align(*geodesic([-0.8, -0.7, -0.5, -0.4, -0.2], times))
    np.testing.assert_allclose(contraction.segments[0].slopes, -1, atol=1e-7)
    shares = [block.path_share for block in result.blocks]
    np.testing.assert_allclose(shares, np.diff(times), atol=1e-9)


# --- against slow references ----------------------------------------------------------------------


class Conv(nn.Module):
    """A convolutional block ReLU(x + F(x)), the last ReLU as a module or a function."""

    def __init__(self, channels: int = 2, end: str = "module", norm: bool = True) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.end = end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = x + self.conv2(self.relu(self.norm(self.conv1(x))))
        return {
            "module": self.relu,
            "function": functional.relu,
            "in place": lambda z: functional.relu(z, inplace=True),
            "method": lambda z: z.relu_(),
            "clamp": lambda z: z.clamp(min=0),
            "maximum": lambda z: torch.maximum(z, torch.zeros(())),
            "leaky": lambda z: functional.leaky_relu(z, 0.1),
            "gelu": functional.gelu,
            "none": lambda z: z,
        }[self.end](out)


def conv_net(*ends: str, norm: bool = False) -> nn.Module:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(2, 2, 1), *(Conv(2, end, norm) for end in ends), nn.Flatten())
    x = torch.randn(64, 2, 4, 4)
    reestimate_statistics(net, [x])
    return net.double().eval()


SLOPES = {
    "leaky": lambda z: torch.where(z > 0, 1.0, 0.1),
    "gelu": lambda z: torch.func.vjp(functional.gelu, z)[1](torch.ones_like(z))[0],
    "none": torch.ones_like,
}


def dense(block: Conv, point: torch.Tensor) -> np.ndarray:
    """a'(x + F(x)) F'(x) at one point, by reverse mode, one output at a time: slow and obvious."""

    def branch(z: torch.Tensor) -> torch.Tensor:
        return block.conv2(torch.relu(block.norm(block.conv1(z))))

    z = point[None].clone()
    rows = torch.autograd.functional.jacobian(branch, z).reshape(z.numel(), z.numel())
    slope = SLOPES.get(block.end, lambda total: (total > 0).double())
    return (slope(z + branch(z)).flatten()[:, None] * rows).detach().numpy()


@pytest.mark.parametrize(
    ("ends", "norm"),
    [(("module", "function", "none"), True), (("leaky", "gelu", "maximum"), False)],
)
def test_values_agree_with_dense_jacobians(ends, norm):
    net, d, points = conv_net(*ends, norm=norm), 32, 2
    x = torch.randn(12, 2, 4, 4, generator=torch.Generator().manual_seed(1)).double()
    options = {"vectors": K, "steps": d, "tolerance": 0.0, "probes": d}
    result = wgeo.alignment(net, (x, np.arange(12) % 2), points=points, **options)
    chosen = x[np.linspace(0, 11, points).astype(int)]
    per_point = []
    for point in chosen:
        z = net[0](point[None])[0].detach()
        jacobians, lengths = [], []
        for block in net[1:-1]:
            jacobians.append(dense(block, z))
            after = block(z[None])[0].detach()
            lengths.append(float((after - z).norm()))
            z = after
        per_point.append((jacobians, np.array(lengths)))
    svds = [[np.linalg.svd(j) for j in jacobians] for jacobians, _ in per_point]
    for k, row in enumerate(result.blocks):
        of_block = [
            (jacobians[k], svd[k]) for (jacobians, _), svd in zip(per_point, svds, strict=True)
        ]
        s = np.array([svd[1] for _, svd in of_block])
        np.testing.assert_allclose(row.singular_values, s[:, :K].mean(0), rtol=1e-6)
        shares = (s[:, :K] ** 2).sum(1) / (s**2).sum(1)
        assert row.share == pytest.approx(shares.mean(), rel=1e-6)
        effective = (s**2).sum(1) ** 2 / (s**4).sum(1)
        assert row.participation == pytest.approx(effective.mean(), rel=1e-6)
        parts = [((j - j.T) ** 2).sum() / ((j + j.T) ** 2).sum() for j, _ in of_block]
        assert row.asymmetry == pytest.approx(np.mean(parts), rel=1e-6)
        signs = [np.mean(np.sum(u[:, :K] * vt[:K].T, 0)) for _, (u, _, vt) in of_block]
        assert row.sign == pytest.approx(np.mean(signs), abs=1e-6)
    for pair in result.pairs:
        i, j = (result_names(result).index(name) for name in (pair.source, pair.target))
        overlaps, couplings = [], []
        for (jacobians, _), svd in zip(per_point, svds, strict=True):
            u, s, _ = svd[i]
            uj, _, vtj = svd[j]
            overlaps.append(((u[:, :K].T @ vtj[:K].T) ** 2).sum() / K)
            m = np.abs(uj[:, :K].T @ jacobians[i] @ vtj[:K].T) - np.diag(s[:K])
            couplings.append(np.linalg.norm(m) / np.linalg.norm(s[:K]))
        assert pair.overlap_uv == pytest.approx(np.mean(overlaps), rel=1e-6)
        expected = pytest.approx(np.mean(couplings), rel=1e-6) if abs(i - j) == 1 else None
        assert pair.coupling == expected
    slopes = []
    for (_, lengths), svd in zip(per_point, svds, strict=True):
        dt = lengths / lengths.sum()
        t = np.cumsum(dt) - dt
        slopes.append(np.polyfit(t, dt / [s[0] for _, s, _ in svd], 1)[0])
    assert result.segments[0].slopes[0] == pytest.approx(np.mean(slopes), rel=1e-6)


def result_names(result: wgeo.Alignment) -> list[str]:
    return [block.name for block in result.blocks]


def test_pooled_jacobians_are_those_between_constant_maps():
    net = conv_net("module", "none")
    x = torch.randn(4, 2, 4, 4, generator=torch.Generator().manual_seed(2)).double()
    result = wgeo.alignment(net, (x, np.arange(4) % 2), points=1, vectors=2, jacobian="pooled")
    block, z = net[1], net[0](x[:1]).detach()
    whole = torch.tensor(dense(block, z[0])).reshape(2, 16, 2, 16)
    expected = np.linalg.svd(whole.sum((1, 3)).numpy() / 16)[1]
    np.testing.assert_allclose(result.blocks[0].singular_values, expected, rtol=1e-6)
    assert result.segments[0].chance == 1
    assert result.blocks[0].dimension == 2


def test_a_tokens_jacobian_leaves_the_other_tokens_fixed():
    torch.manual_seed(0)
    small = {"image_size": 8, "in_channels": 1, "width": 16, "depth": 2, "patch": 4}
    net = wgeo.models.build("vit", num_classes=3, **small).double().eval()
    x = torch.randn(4, 1, 8, 8).double()
    images = (x, np.arange(4) % 2)
    names = block_names(net, images)
    few = {"tolerance": 1e-6, "probes": 1}
    result = wgeo.alignment(
        net, images, points=1, vectors=3, jacobian="token:1", layers=names[:2], **few
    )
    captured = []
    block = net.get_submodule(names[0])
    with torch.no_grad():
        handle = block.register_forward_pre_hook(lambda _, args: captured.append(args[0].clone()))
        net(x[:1])
        handle.remove()
    tokens = captured[0]

    def branch(token: torch.Tensor) -> torch.Tensor:
        z = tokens.clone()
        z[0, 1] = token
        return block(z)[0, 1] - token

    jacobian = torch.autograd.functional.jacobian(branch, tokens[0, 1]).numpy()
    expected = np.linalg.svd(jacobian)[1]
    np.testing.assert_allclose(result.blocks[0].singular_values, expected[:3], rtol=1e-6)
    assert result.blocks[0].dimension == tokens.shape[2]
    with pytest.raises(ArgumentError, match="no token 99"):
        wgeo.alignment(net, images, points=1, jacobian="token:99", layers=names[:2])


# --- difficult cases ------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["function", "in place", "method", "clamp", "maximum"])
def test_a_relu_after_the_sum_is_taken_off_however_it_is_written(end):
    """J - I is -1 at dead units, whose singular values of 1 hide a small branch."""
    few = {"vectors": 2, "probes": 2}
    expected = align_net(conv_net("module"), 2, 4, 4, 2, **few)
    result = align_net(conv_net(end), 2, 4, 4, 2, **few)
    assert expected.blocks[0].end == "relu"
    for own, other in zip(result.blocks, expected.blocks, strict=True):
        np.testing.assert_allclose(own.singular_values, other.singular_values, rtol=1e-9)
        assert own.asymmetry == pytest.approx(other.asymmetry)
    if end == "maximum":
        with pytest.raises(ArgumentError, match="cannot be removed"):
            align_net(conv_net(end), 2, 4, 4, 2, jacobian="branch")
        return
    whole = align_net(conv_net(end), 2, 4, 4, 2, jacobian="branch", **few)
    free = align_net(conv_net("none"), 2, 4, 4, 2, jacobian="branch", **few)
    np.testing.assert_allclose(  # of the same weights
        whole.blocks[0].singular_values, free.blocks[0].singular_values, rtol=1e-9
    )


def test_a_small_branch_before_a_relu_is_not_drowned_by_dead_units():
    (u,) = frames(1)
    result = align_net(nn.Sequential(Added(0.1 * spectral(u, S), torch.relu)), D, 2)
    assert max(result.blocks[0].singular_values) <= 0.1 + 1e-12
    displacement = wgeo.brenier(Added(spectral(u, S), torch.relu), torch.randn(2, D).double())
    assert displacement.dead_share > 0.2


def test_a_scaled_sum_is_not_mistaken_for_a_contraction():
    (u,) = frames(1)
    result = align_net(nn.Sequential(Added(spectral(u, S), scale=0.5)), D, 2)
    np.testing.assert_allclose(result.blocks[0].singular_values, 0.5 * S, atol=1e-6)
    assert result.blocks[0].sign == pytest.approx(1)


def test_blocks_that_change_the_space_are_left_out_and_end_a_run():
    net = wgeo.models.build("cifar_resnet8", num_classes=3, in_channels=1).double().eval()
    x = torch.randn(4, 1, 8, 8).double()
    reestimate_statistics(net, [x])
    result = wgeo.alignment(net, (x, np.arange(4) % 2), points=1, vectors=2)
    assert result.segments == ()  # one block of each stage keeps the space
    assert set(result.left_out) == {"layer2.0", "layer3.0"}
    assert "changes the feature space" in result.left_out["layer2.0"]
    assert not result.reset_statistics


class Returning(nn.Module):
    """A residual block that returns its output twice, and a network that takes the first."""

    def __init__(self, outer: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(D, D)
        self.blocks = nn.ModuleList([Returning(False)] if outer else [])

    def forward(self, x: torch.Tensor):
        for block in self.blocks:
            return self.linear(block(x)[0])
        return (x + self.linear(x),) * 2


def test_blocks_left_out_have_their_own_reason():
    x = torch.randn(3, D).double()
    specs = [BlockSpec(name, True, None) for name in ("0", "0+x")]
    (seen,), left_out = visits(nn.Sequential(Added(torch.eye(D))).double(), x, specs)
    assert seen.spec.name == "0"
    assert "forward method" in left_out["0+x"]
    seen, left_out = visits(Returning().double(), x, [BlockSpec("blocks.0", False, None)])
    assert (seen, left_out) == ([], {"blocks.0": "it does not map a tensor to one tensor"})


class Masked(nn.Module):
    """A network whose block takes a mask between tokens, or the block itself."""

    def __init__(self, outer: bool = True) -> None:
        super().__init__()
        self.linear = nn.Linear(D, D)
        self.block = Masked(False) if outer else None

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        if self.block is not None:
            return self.block(x, mask=torch.ones(5, 5).tril().to(x))
        return x + mask @ self.linear(x)


def test_an_argument_without_a_row_per_sample_is_passed_whole():
    net = Masked().double()
    for n in (3, 5):  # the mask is 5 x 5
        x = torch.randn(n, 5, D).double()
        (visit,), _ = visits(net, x, [BlockSpec("block", True, None)])
        branch = branch_of(visit, slice(0, 2), gated=True)
        torch.testing.assert_close(branch.map(x[:2]), (net(x) - x)[:2].detach())


def test_statistics_that_were_never_estimated_are_reported():
    torch.manual_seed(0)
    few = {"vectors": 2, "probes": 1, "tolerance": 1.0}
    result = align_net(nn.Sequential(Conv()), 2, 4, 4, 1, **few)
    assert result.reset_statistics
    assert "normalization has its initial" in repr(result)
    assert not align_net(conv_net("none", norm=True), 2, 4, 4, 1, **few).reset_statistics


def test_every_block_has_its_own_random_start():
    """With one start, unconverged vectors of unrelated blocks look aligned."""
    d, few = 400, {"vectors": 10, "steps": 11, "tolerance": 0.0, "probes": 1}
    g = torch.Generator().manual_seed(0)
    matrices = [
        0.01 * torch.randn(d, d, generator=g, dtype=torch.float64) / math.sqrt(d) for _ in range(4)
    ]
    (segment,) = align(*matrices, points=2, **few).segments
    assert segment.overlap_vv < 1.25 * segment.chance


def test_batches_of_points_and_precision_do_not_matter(monkeypatch):
    net = conv_net("module", "module", "none")
    few = {"tolerance": 1e-3, "vectors": 2, "probes": 2}
    whole = align_net(net, 2, 4, 4, 3, **few)
    monkeypatch.setattr(residual_alignment, "_BASIS_BYTES", 1)
    single = align_net(net, 2, 4, 4, 3, **few)
    for a, b in zip(whole.pairs, single.pairs, strict=True):
        assert a.overlap_uv == pytest.approx(b.overlap_uv, abs=1e-9)
        if a.coupling is not None:
            assert a.coupling == pytest.approx(b.coupling, abs=1e-9)
    assert whole.segments[0].slopes == pytest.approx(single.segments[0].slopes)
    x = torch.randn(12, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    narrow = wgeo.alignment(
        conv_net("module", "module", "none").float(), (x, np.arange(12) % 2), points=3, **few
    )
    assert narrow.segments[0].overlap_uv == pytest.approx(whole.segments[0].overlap_uv, abs=1e-2)


def test_the_order_of_linear_blocks_permutes_the_pairs():
    u, w = frames(2)
    matrices = [spectral(u, S), spectral(u, 0.5 * S, w), spectral(w, S)]
    forward = {(p.source, p.target): p.overlap_uv for p in align(*matrices).pairs}
    backward = {(p.source, p.target): p.overlap_uv for p in align(*matrices[::-1]).pairs}
    for (i, j), value in forward.items():
        assert backward[str(2 - int(i)), str(2 - int(j))] == pytest.approx(value, abs=1e-9)


def test_options_are_checked():
    (u,) = frames(1)
    for options, message in (
        ({"points": 0}, "points must be a whole number of at least 1"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"tolerance": math.nan}, "tolerance at least 0"),
        ({"jacobian": "total"}, "Unknown jacobian 'total'"),
        ({"jacobian": "pooled:1"}, "only a token has an index"),
        ({"steps": 5}, "steps must be more than vectors"),
    ):
        with pytest.raises(ArgumentError, match=message):
            align(spectral(u, S), **({"points": 2} | options))
    with pytest.raises(ArgumentError, match=r"needs tokens \(n, t, d\)"):
        align_net(conv_net("none"), 2, 4, 4, 1, jacobian="token")


def test_an_exhausted_krylov_space_still_finds_multiple_singular_values():
    class Matrix:
        points, dimension = 1, 8
        matrix = torch.diag(torch.tensor([2.0, 2, 2, 1, 1, 0, 0, 0])).double()

        def forward(self, v: torch.Tensor) -> torch.Tensor:
            return v @ self.matrix.T

        def transpose(self, u: torch.Tensor) -> torch.Tensor:
            return u @ self.matrix

        def zeros(self, *shape: int) -> torch.Tensor:
            return torch.zeros(1, *shape).double()

    find = getattr(top_triplets, "__wrapped__", top_triplets)
    top = find(Matrix(), 5, 8, 0.0, [torch.Generator().manual_seed(0)])
    np.testing.assert_allclose(top.s[0], [2, 2, 2, 1, 1], atol=1e-9)
