"""Which axis holds the channels: the same features as plain hooks, however maps lie in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from wgeo import trace
from wgeo.errors import ArgumentError, FeatureError
from wgeo.features.layout import Layout, _with_channels
from wgeo.features.recorder import pooling

N, CLASSES, SIDE, WIDTH = 9, 3, 8, 8  # a map of 8 x 8 with 8 channels: lengths tell nothing


def pair(side=SIDE):
    g = torch.Generator().manual_seed(1)
    return torch.rand(N, 3, side, side, generator=g), np.arange(N) % CLASSES


class MapBlock(nn.Module):
    """x + F(x) for maps (n, h, w, c) or (n, c, h, w)."""

    def __init__(self, last):
        super().__init__()
        self.last = last
        self.norm, self.mlp = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, 1, 1)

    def forward(self, x):
        if self.last:
            return x + torch.relu(self.mlp(self.norm(x)))
        return x + self.conv(torch.relu(x))


class TokenBlock(nn.Module):
    """x + MLP(LN(x)) for tokens in one of three orders, mixing tokens first."""

    def __init__(self, order, tokens):
        super().__init__()
        self.order = order
        self.norm = nn.LayerNorm(WIDTH)
        self.tokens, self.channels = nn.Linear(tokens, tokens), nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        inner = {"ntc": (0, 1, 2), "nct": (0, 2, 1), "tnc": (1, 0, 2)}[self.order]
        z = x.permute(inner)  # (n, t, c); each of the three permutations is its own inverse
        z = z + self.tokens(z.mT).mT
        z = z + self.channels(self.norm(z))
        return z.permute(inner)


class Video(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv3d(WIDTH, WIDTH, 3, 1, 1)

    def forward(self, x):
        return x + torch.relu(self.conv(x))


class Windows(nn.Module):
    """Attention's shape: parts of a sample folded into the batch."""

    def __init__(self):
        super().__init__()
        self.mlp = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return x + torch.relu(self.mlp(x))


class Net(nn.Module):
    """Patches of 1 pixel, blocks on maps as `lay` puts them, a linear head on their mean."""

    def __init__(self, blocks, lay, space):
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, WIDTH, 1), nn.ModuleList(blocks)
        self.head, self.lay, self.space = nn.Linear(WIDTH, CLASSES), lay, space

    def forward(self, x):
        x = self.lay(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(self.space(x, len(x)) if callable(self.space) else x.mean(self.space))


def hooked(net, names, x):
    """What plain hooks see."""
    seen, parts = {}, dict(net.named_modules())
    handles = [
        parts[name].register_forward_hook(lambda _, i, o, name=name: seen.update({name: o.clone()}))
        for name in names
    ]
    with torch.no_grad():
        net.eval()(x)
    for handle in handles:
        handle.remove()
    return seen


T = SIDE  # tokens, after a mean over one axis of space: as many as channels
CASES = {
    "n c h w": ([MapBlock(False) for _ in range(2)], lambda x: x, (2, 3)),
    "n h w c": ([MapBlock(True) for _ in range(2)], lambda x: x.permute(0, 2, 3, 1), (1, 2)),
    "n t c": ([TokenBlock("ntc", T) for _ in range(2)], lambda x: x.mean(2).mT, 1),
    "n c t": ([TokenBlock("nct", T) for _ in range(2)], lambda x: x.mean(2), 2),
    "t n c": ([TokenBlock("tnc", T) for _ in range(2)], lambda x: x.mean(2).permute(2, 0, 1), 0),
    "n c t h w": ([Video() for _ in range(2)], lambda x: x.unflatten(3, (2, 4)).transpose(2, 3),
                  (2, 3, 4)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_channel_axis_is_detected_if_all_axes_have_equal_length(case, seed):
    blocks, lay, space = CASES[case]
    torch.manual_seed(seed)
    net = Net(blocks, lay, space)
    for parameter in net.parameters():
        nn.init.normal_(parameter, 0, 0.3)
    x, y = pair()
    truth = hooked(net, ["blocks.0", "blocks.1"], x)
    traj = trace(net, (x, y), batch_size=4)
    for layer in traj.layers[2:]:
        np.testing.assert_allclose(
            layer.features, truth[layer.name].mean(space).numpy(), rtol=1e-4, atol=1e-5
        )
    stem = net.stem(x).mean((2, 3)).detach().numpy()
    np.testing.assert_allclose(traj.layers[1].features, stem, rtol=1e-4, atol=1e-5)
    assert traj.classifier is not None  # it reads the mean of the last layer
    axis = case.split().index("c")
    found = traj.settings["axes"][-1]
    assert found["samples"] == case.split().index("n")
    assert found["channels"] == axis + (found["samples"] > axis)
    assert "acts on one slice" in found["evidence"]


class ClassBlock(nn.Module):
    """Only the class token is changed, as in VOLO's last blocks."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x):
        token = x[:, :1] + self.fc2(torch.relu(self.fc1(x.mean(1, keepdim=True))))
        return torch.cat([token, x[:, 1:]], 1)


@pytest.mark.parametrize("seed", [0, 1])
def test_operations_on_the_class_token_alone_are_no_evidence(seed):
    torch.manual_seed(seed)
    net = Net([Windows(), ClassBlock()], lambda x: x.mean(2).mT, 1)
    x, y = pair()
    traj = trace(net, (x, y), layers=["blocks.0", "blocks.1"])
    truth = hooked(net, ["blocks.1"], x)["blocks.1"].mean(1)
    np.testing.assert_allclose(traj.last, truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fold", ["outer", "inner"])
def test_windows_folded_into_the_batch_are_unfolded(fold):
    def lay(x):
        rows = x.permute(0, 2, 3, 1)  # (n, h, w, c): every row is a window of w tokens
        return (rows if fold == "outer" else rows.transpose(0, 1)).flatten(0, 1)

    def unlay(z, size):
        n = size // SIDE
        rows = z.unflatten(0, (n, SIDE) if fold == "outer" else (SIDE, n))
        return (rows if fold == "outer" else rows.transpose(0, 1)).mean((1, 2))

    torch.manual_seed(0)
    net = Net([Windows(), Windows()], lay, unlay)
    x, y = pair()
    truth = hooked(net, ["blocks.0", "blocks.1"], x)
    traj = trace(net, (x, y), batch_size=5)
    for layer in traj.layers[2:]:
        mean = unlay(truth[layer.name], N * SIDE)
        np.testing.assert_allclose(layer.features, mean.numpy(), rtol=1e-4, atol=1e-5)
    assert traj.settings["axes"][-1]["folded"] == fold
    flat = trace(net, (x, y), pool="flat")
    assert flat.last.shape == (N, SIDE * SIDE * WIDTH)


@pytest.mark.parametrize("pool", ["gap", "flat", "grid:2"])
def test_swin_features_match_plain_hooks(pool):
    torch.manual_seed(0)
    net = torchvision.models.SwinTransformer([4, 4], 8, [1, 1], [1, 2], [2, 2], num_classes=3)
    x, y = pair(side=32)
    names = ["features.1.0", "features.3.0"]
    truth = hooked(net, names, x)  # (n, h, w, c)
    traj = trace(net, (x, y), pool=pool)
    assert [layer.name for layer in traj.layers[2:]] == [*names, "penultimate"]
    for layer in traj.layers[2:-1]:
        maps = truth[layer.name]
        h, w = maps.shape[1:3]
        expected = {
            "gap": lambda m: m.mean((1, 2)),
            "flat": lambda m: m.flatten(1),
            "grid:2": lambda m: (
                m.unflatten(2, (2, w // 2)).unflatten(1, (2, h // 2)).mean((2, 4))  # noqa: B023
                .permute(0, 3, 1, 2).flatten(1)
            ),
        }[pool](maps)  # fmt: skip
        np.testing.assert_allclose(layer.features, expected.numpy(), rtol=1e-4, atol=1e-5)


class Mute(nn.Module):
    """A layer without weights, whose channel axis cannot be determined."""

    def forward(self, x):
        return torch.fft.fft2(x).abs()


def test_undetermined_axis_is_refused_and_can_be_specified():
    net = nn.Sequential(Mute(), Mute(), nn.Flatten(), nn.Linear(3 * SIDE * SIDE, CLASSES))
    x, y = pair()
    with pytest.raises(FeatureError, match="gap@first"):
        trace(net, (x, y), layers=["0", "1"])
    truth = hooked(net, ["0"], x)["0"]
    for axis, space in (("first", (2, 3)), ("last", (1, 2))):
        traj = trace(net, (x, y), layers=["0", "1"], pool=f"gap@{axis}")
        np.testing.assert_allclose(traj.layers[2].features, truth.mean(space), rtol=1e-4)
        assert traj.settings["axes"][0]["evidence"] == f"as specified (@{axis})"
    assert trace(net, (x, y), layers=["0", "1"], pool="flat").last.shape == (N, 3 * SIDE * SIDE)
    with pytest.raises(ArgumentError, match="@first"):
        trace(net, (x, y), layers=["0", "1"], pool="gap@middle")


def test_a_parameter_of_the_network_itself_is_named_without_a_dot():
    unknown = Layout((4, 6), channels=None, evidence="")
    net = nn.LayerNorm(6)
    found = _with_channels(unknown, torch.zeros(2, 4, 6), [("", net)])
    assert (found.channels, found.evidence) == (2, "the only axis as long as weight")


def test_a_layer_without_samples_is_refused():
    class Gram(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(5, 5)

        def forward(self, x):
            return self.fc((x.flatten(1).T @ x.flatten(1))[:5, :5])

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.gram, self.head = Gram(), nn.Linear(48, CLASSES)

        def forward(self, x):
            return self.head(x.flatten(1)) + self.gram(x).mean()

    x, y = pair(side=4)
    with pytest.raises(FeatureError, match="no axis of this tensor is the sample axis"):
        trace(Net(), (x, y), layers=["gram"])


def test_images_outside_the_domain_of_a_network_with_windows_are_named():
    net = Net([nn.Identity()], lambda x: x.log().permute(0, 2, 3, 1).flatten(0, 1), (1,))
    x, y = pair()
    with pytest.raises(FeatureError, match=r"contains NaN or infinity.*normalization"):
        trace(net, (-x, y), layers=["blocks.0"])


class OnceDifferentiable(nn.Module):
    """x + conv(x), whose second derivative raises an error."""

    def __init__(self, error):
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, 1, 1)

        class Slope(torch.autograd.Function):
            @staticmethod
            def forward(ctx, slope):
                return slope.clone()

            @staticmethod
            def backward(ctx, *_):
                raise error

        class Identity(Slope):
            @staticmethod
            def backward(ctx, slope):
                return Slope.apply(slope)

        self.identity = Identity.apply

    def forward(self, x):
        return x + self.identity(self.conv(x))


def test_a_full_device_is_not_taken_for_a_missing_derivative():
    x, y = pair()
    net = Net([OnceDifferentiable(RuntimeError("no second derivative"))], lambda x: x, (2, 3))
    with pytest.raises(FeatureError, match="@first"):  # the axis is undetermined
        trace(net, (x, y))
    error = torch.OutOfMemoryError("CUDA out of memory")
    net = Net([OnceDifferentiable(error)], lambda x: x, (2, 3))
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        trace(net, (x, y))


def test_frozen_parameters_stay_frozen():
    net = torchvision.models.resnet18(num_classes=3)
    net.conv1.weight.requires_grad_(False)
    trace(net, pair(side=32))
    assert not net.conv1.weight.requires_grad
    assert net.fc.weight.requires_grad
    assert all(p.grad is None for p in net.parameters())


def test_pooling_expects_channels_second():
    tokens = torch.arange(24.0).reshape(2, 3, 4)  # (n, c, t)
    assert torch.equal(pooling("gap")(tokens), tokens.mean(2))
    assert torch.equal(pooling("cls")(tokens), tokens[:, :, 0])
    video = torch.arange(2 * 3 * 2 * 4 * 4.0).reshape(2, 3, 2, 4, 4)
    assert torch.equal(pooling("gap")(video), video.mean((2, 3, 4)))
    assert pooling("grid:2")(video).shape == (2, 3 * 8)
