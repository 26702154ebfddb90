"""Tracing: every block is found, in order, and the recorded values are the network's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from wgeo import blocks, collapse, stream, trace
from wgeo.errors import ArgumentError, FeatureError
from wgeo.features.head import Head, find_head
from wgeo.features.network import module_of
from wgeo.features.recorder import pooling
from wgeo.features.residual_blocks import find_blocks
from wgeo.models import build
from wgeo.neural_collapse import collapse_of


def pair(n=12, c=3, side=32, classes=3):
    g = torch.Generator().manual_seed(1)
    return torch.rand(n, c, side, side, generator=g), np.arange(n) % classes


class PreAct(nn.Module):
    """x + conv(act(bn(conv(act(bn(x)))))), shortcut from the shared pre-activation."""

    def __init__(self, c, d, stride=1):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(c), nn.BatchNorm2d(d)
        self.conv1 = nn.Conv2d(c, d, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(d, d, 3, 1, 1, bias=False)
        if stride != 1 or c != d:
            self.shortcut = nn.Sequential(nn.Conv2d(c, d, 1, stride, bias=False))

    def forward(self, x):
        out = torch.relu(self.bn1(x))
        s = self.shortcut(out) if hasattr(self, "shortcut") else x
        return self.conv2(torch.relu(self.bn2(self.conv1(out)))) + s


class Symmetric(nn.Module):
    """A branch and a shortcut that are both Sequentials ending in batch norm."""

    def __init__(self, c, d, stride=1):
        super().__init__()
        self.residual_function = nn.Sequential(
            nn.Conv2d(c, d, 3, stride, 1, bias=False),
            nn.BatchNorm2d(d),
            nn.ReLU(inplace=True),
            nn.Conv2d(d, d, 3, 1, 1, bias=False),
            nn.BatchNorm2d(d),
        )
        self.way = nn.Sequential()
        if stride != 1 or c != d:
            self.way = nn.Sequential(nn.Conv2d(c, d, 1, stride, bias=False), nn.BatchNorm2d(d))

    def forward(self, x):
        return torch.relu(self.residual_function(x) + self.way(x))


def stack(kind):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1),
        nn.ReLU(inplace=True),
        nn.Sequential(kind(8, 8), kind(8, 8)),
        nn.Sequential(kind(8, 16, 2), kind(16, 16)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 3),
    )


@pytest.mark.parametrize("kind", [PreAct, Symmetric])
def test_finds_blocks_of_third_party_networks(kind):
    net = stack(kind)
    specs = find_blocks(net, pair()[0])
    assert [s.name for s in specs] == ["2.0", "2.1", "3.0", "3.1"]
    shortcut = {"PreAct": "3.0.shortcut", "Symmetric": "3.0.way"}[kind.__name__]
    assert [s.shortcut for s in specs] == [None, None, shortcut, None]


@pytest.mark.parametrize(
    ("name", "count", "changes"),
    [("resnet18", 8, 3), ("resnet50", 16, 4), ("resnext50_32x4d", 16, 4), ("resnet34", 16, 3)],
)
def test_finds_every_block_of_torchvision_resnets(name, count, changes):
    net = torchvision.models.get_model(name, num_classes=3)
    specs = find_blocks(net, pair(n=3)[0])
    expected = [f"layer{i}.{j}" for i in range(1, 5) for j in range(len(getattr(net, f"layer{i}")))]
    assert [s.name for s in specs] == expected
    assert len(specs) == count
    assert sum(s.shortcut is not None for s in specs) == changes


def test_change_of_space_between_blocks_starts_at_the_next_blocks_input():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = timm.create_model("convnext_atto", num_classes=3).eval()
    x = torch.rand(4, 3, 64, 64)
    traj = trace(net, (x, np.arange(4) % 3))
    assert len(traj.segments) == 4
    assert len(traj.blocks) == len(traj.staged) - 1  # the blocks after a change are measured too
    second = next(layer for layer in traj.layers if layer.name == "stages.1.blocks.0")
    with torch.no_grad():
        entering = net.stages[1].downsample(net.stages[0](net.stem(x)))
    np.testing.assert_allclose(second.entry, entering.mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_finds_every_block_of_timm_resnets():
    timm = pytest.importorskip("timm")
    for name, count in (("resnet26", 8), ("resnetv2_50", 16), ("seresnet50", 16)):
        net = timm.create_model(name, num_classes=3)
        specs = find_blocks(net, pair(side=64)[0][:4])
        assert len(specs) == count, name
        assert all(s.residual for s in specs)


def test_finds_the_blocks_of_a_vision_transformer():
    net = torchvision.models.VisionTransformer(32, 8, 3, 4, 24, 48, num_classes=3)
    nn.init.normal_(net.heads.head.weight)
    specs = find_blocks(net, pair()[0])
    assert [s.name for s in specs] == [f"encoder.layers.encoder_layer_{i}" for i in range(3)]
    traj = trace(net, pair(), pool="cls")
    assert [layer.width for layer in traj.staged] == [24, 24, 24, 24]


def test_recorded_features_match_the_forward_pass():
    net = torchvision.models.resnet18(num_classes=3).eval()
    x, y = pair()
    traj = trace(net, (x, y), batch_size=5)
    with torch.no_grad():
        h = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        assert np.allclose(traj.layers[1].features, h.mean((2, 3)), atol=1e-5)
        position = 2
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            for block in stage:
                layer = traj.layers[position]
                if block.downsample is not None:
                    assert np.allclose(layer.entry, block.downsample(h).mean((2, 3)), atol=1e-5)
                else:
                    assert layer.entry is None
                h = block(h)
                assert np.allclose(layer.features, h.mean((2, 3)), atol=1e-5)
                position += 1
        logits = net(x)
    assert position == len(traj.layers)
    assert np.array_equal(traj.predictions, logits.argmax(1))
    assert traj.classifier is not None
    assert np.array_equal(traj.classifier.weight, net.fc.weight.detach())
    assert [len(s.names) for s in traj.segments] == [3, 3, 3, 3]
    assert [b.via for b in traj.blocks].count("shortcut") == 3


def test_in_place_activations_do_not_corrupt_features():
    net = stack(Symmetric).eval()  # relu(inplace) follows every flat view
    x, y = pair()
    flat = trace(net, (x, y), pool="flat")
    with torch.no_grad():
        stem = net[1](net[0](x))
        first = net[2][0](stem)
    assert np.allclose(flat.layers[1].features, stem.flatten(1), atol=1e-6)
    assert np.allclose(flat.layers[2].features, first.flatten(1), atol=1e-6)


def test_the_sum_before_the_activation():
    net = torchvision.models.resnet18(num_classes=3).eval()
    post, pre = (trace(net, pair(), pool="flat", tap=tap) for tap in ("post", "pre"))
    for a, b in zip(post.staged[1:], pre.staged[1:], strict=True):
        assert b.features.min() < 0
        assert np.allclose(a.features, np.maximum(b.features, 0), atol=1e-6)


def test_network_is_left_unchanged():
    net = torchvision.models.resnet18(num_classes=3).train()
    net.layer1.eval()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    modes = [m.training for m in net.modules()]
    x, y = pair()
    x[3] = float("nan")
    with pytest.raises(FeatureError, match="sample 3"):
        trace(net, (x, y))
    trace(net, pair())
    assert modes == [m.training for m in net.modules()]
    assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_batch_size_does_not_matter():
    net = torchvision.models.resnet18(num_classes=3)
    a, b = (trace(net, pair(), batch_size=size) for size in (5, 512))
    for p, q in zip(a.layers, b.layers, strict=True):
        assert np.allclose(p.features, q.features, atol=1e-5)


def test_poolings_have_known_values():
    maps = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    assert torch.equal(pooling("gap")(maps), maps.mean((2, 3)))
    assert pooling("flat")(maps).shape == (2, 48)
    assert pooling("grid:2")(maps).shape == (2, 12)
    assert torch.equal(pooling("grid:1")(maps), pooling("gap")(maps))
    assert pooling("grid:9999")(maps).shape == (2, 48)  # not finer than the pixels
    for bad in ("max", "grid:0", "grid:", "gap:2x", "grid:²"):
        with pytest.raises(ArgumentError, match="choose gap"):
            pooling(bad)


def test_plain_networks_are_followed_by_layer_names():
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))
    x, y = pair(side=4)
    with pytest.raises(FeatureError, match="layers="):
        trace(net, (x, y))
    with pytest.raises(FeatureError, match="No module 'nine'"):
        trace(net, (x, y), layers=["nine"])
    traj = trace(net, (x, y), layers=["1", "3"])
    assert [layer.width for layer in traj.layers] == [48, 48, 8, 8]
    assert [s.names for s in traj.segments] == [("1", "3")]


def test_untraceable_networks_are_clear_errors():
    net = torchvision.models.resnet18(num_classes=3)
    x, y = pair()
    with pytest.raises(FeatureError, match="cannot process images of shape"):
        trace(net, (x[:, :1], y))
    with pytest.raises(FeatureError, match="label 5"):
        trace(net, (x, y + 3))
    with pytest.raises(ArgumentError, match="tap"):
        trace(net, (x, y), tap="middle")
    for device in ("cuda:77", "meta"):
        with pytest.raises(ArgumentError, match="Device"):
            trace(net, (x, y), device=device)
    with pytest.raises(FeatureError, match=r"^`pool='cls'` needs tokens"):
        trace(net, (x, y), pool="cls")
    with pytest.raises(ArgumentError, match="11 labels for 12"):
        trace(net, (x, y[:11]))
    with pytest.raises(FeatureError, match="images is not numeric"):
        trace(net, ([["a"]] * 12, y))
    with pytest.raises(ArgumentError, match=r"must be an nn\.Module.*function"):
        module_of(torchvision.models.resnet18)
    with pytest.raises(FeatureError, match="two images"):
        trace(net, (x[:1], y[:1]))


def test_identical_first_images_do_not_hide_the_blocks():
    net = torchvision.models.resnet18(num_classes=3)
    x, y = pair()
    x[:8] = x[0]
    assert len(blocks(net, (x, y))) == 8


class Halves(nn.Module):
    """The mean logits of both halves of an image, after a function of its pixels."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.net = build("isoresnet", num_classes=3, in_channels=3, width=4, depth=2)

    def forward(self, x):
        halves = self.function(x).unflatten(2, (2, -1)).transpose(1, 2)
        return self.net(halves.flatten(0, 1)).unflatten(0, (-1, 2)).mean(1)


def not_negative(x):
    assert bool((x >= 0).all()), "a negative pixel"
    return x


@pytest.mark.parametrize(
    "function", [torch.sqrt, torch.log, torch.acos, lambda x: x.clamp_min(0).log(), not_negative]
)
def test_probes_stay_in_the_domain_of_the_network(function):
    x, y = pair(side=8)
    net, x = Halves(function).eval(), 0.05 + 0.9 * x
    traced = trace(net, (x, y))
    assert [layer.name for layer in traced.layers[2:]] == ["net.blocks.0", "net.blocks.1"]
    with torch.no_grad():
        halves = net.net.stem(function(x).unflatten(2, (2, -1)).transpose(1, 2).flatten(0, 1))
        stem = halves.mean((2, 3)).unflatten(0, (-1, 2)).mean(1)
    assert np.allclose(traced.layers[1].features, stem, atol=1e-5)


def test_network_with_nan_is_not_reported_as_having_no_blocks():
    net = torchvision.models.resnet18(num_classes=3)
    net.bn1.weight.data[0] = float("nan")
    with pytest.raises(FeatureError, match=r"the output of 'bn1' holds NaN.*Check the checkpoint"):
        trace(net, pair())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_images_are_converted_to_the_networks_precision(dtype):
    net = torchvision.models.resnet18(num_classes=3)
    single = trace(net, pair()).last
    traj = trace(net.to(dtype), pair())
    assert traj.last.dtype == (np.float64 if dtype is torch.float64 else np.float32)
    error = np.abs(traj.last - single).max() / np.abs(single).max()
    assert error < (1e-5 if dtype is torch.float64 else 0.1)


def test_a_network_that_works_in_place_leaves_the_images_alone():
    net = nn.Sequential(nn.Hardtanh(0.4, 0.6, inplace=True), *stack(PreAct))
    x, y = pair()
    before = x.clone()
    traj = trace(net, (x, y))
    assert torch.equal(x, before)
    assert np.array_equal(traj.layers[0].features, before.flatten(1))


class Masked(nn.Module):
    """A residual block whose first argument is not a tensor."""

    def __init__(self, d):
        super().__init__()
        self.fc = nn.Linear(d, d)

    def forward(self, scale, x):
        return x + scale * self.fc(x)


def test_a_block_may_take_other_arguments_first():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.head = Masked(48), nn.Linear(48, 3)

        def forward(self, x):
            return self.head(self.block(0.5, x.flatten(1)))

    x, y = pair(side=4)
    traj = trace(Net(), (x, y), layers=["block"])
    assert np.allclose(traj.layers[1].features, x.flatten(1))


def test_block_names():
    net = torchvision.models.resnet18(num_classes=3)
    assert blocks(net, pair())[0] == "layer1.0"


class Heads(nn.Module):
    """A residual block, and a classifier that the order of registration does not reveal."""

    def __init__(self, returns):
        super().__init__()
        self.classifier = nn.Linear(8, 3)
        self.stem = nn.Conv2d(3, 8, 3)
        self.block = PreAct(8, 8)
        self.norm = nn.LayerNorm(8)
        self.auxiliary = nn.Linear(8, 3)
        self.projector = nn.Linear(3, 5)
        self.returns = returns

    def features(self, x, normed=True):
        means = self.block(self.stem(x)).mean((2, 3))
        return self.norm(means) if normed else means

    def logits(self, x):
        return self.classifier(self.features(x))

    def forward(self, x):
        features = self.features(x)
        logits = self.classifier(features)
        auxiliary = self.auxiliary(features)
        return {
            "logits": lambda: logits,
            "features, logits": lambda: (features, logits),
            "logits, features": lambda: [logits, features],
            "projection, logits": lambda: (self.projector(logits), logits),
            "a dict": lambda: {"embedding": features, "out": logits},
            "named": lambda: {"projection": self.projector(logits), "logits": logits},
            "log-softmax": lambda: logits.log_softmax(1),
            "softmax": lambda: (logits / 3).softmax(1),
            "softmax, projection": lambda: (logits.softmax(1), self.projector(logits)),
            "of both": lambda: logits * auxiliary,
            "of both, named": lambda: {"a": self.projector(logits), "logits": logits * auxiliary},
        }[self.returns]()


@pytest.mark.parametrize(
    "returns",
    [
        *("logits", "features, logits", "logits, features", "projection, logits", "a dict"),
        *("named", "log-softmax", "softmax", "softmax, projection"),
    ],
)
def test_the_classifier_is_the_layer_that_computes_the_logits(returns):
    torch.manual_seed(0)
    net = Heads(returns).eval()
    x, y = pair()
    traj = trace(net, (x, y), batch_size=5)
    with torch.no_grad():
        features, logits = net.features(x).numpy(), net.logits(x).numpy()
    assert [layer.name for layer in traj.layers] == ["input", "stem", "block", "penultimate"]
    assert [layer.stage for layer in traj.layers] == [None, 0, 0, None]
    assert [segment.names for segment in traj.segments] == [("stem", "block")]
    np.testing.assert_allclose(traj.layers[-1].features, features, atol=1e-5)
    assert np.array_equal(traj.predictions, logits.argmax(1))
    assert traj.accuracy == np.mean(logits.argmax(1) == y)
    assert np.array_equal(traj.classifier.weight, net.classifier.weight.detach())
    collapsed = collapse(traj)
    assert collapsed.layers[-1].nc3 == pytest.approx(
        collapse_of(features, y, net.classifier.weight).nc3, rel=1e-4
    )
    assert collapsed.layers[-2].nc3 is None
    batches = list(stream(net, (x, y), batch_size=5))
    assert list(batches[0][0]) == ["input", "stem", "block", "penultimate"]
    assert np.array_equal(np.concatenate([p for *_, p in batches]), traj.predictions)


@pytest.mark.parametrize("returns", ["of both", "of both, named"])
def test_logits_that_no_linear_layer_computes_have_no_classifier(returns):
    net, (x, y) = Heads(returns).eval(), pair()
    traj = trace(net, (x, y))
    with torch.no_grad():
        logits = net.logits(x) * net.auxiliary(net.features(x))
    assert np.array_equal(traj.predictions, logits.argmax(1))
    assert traj.classifier is None
    assert [layer.name for layer in traj.layers] == ["input", "stem", "block"]

    class Cosine(nn.Linear):
        def forward(self, x):
            return nn.functional.linear(*map(nn.functional.normalize, (x, self.weight)))

    net = Heads("logits")
    net.classifier = Cosine(8, 3)
    traj = trace(net, pair())
    assert traj.classifier is None
    assert traj.predictions is not None


def test_of_two_classifiers_that_almost_agree_the_one_that_is_returned_is_found():
    """A copy with averaged weights, as in mean teachers, that runs later in the same forward."""
    net = Heads("logits")
    net.auxiliary.load_state_dict({k: 1.0001 * t for k, t in net.classifier.state_dict().items()})
    traj = trace(net, pair())
    assert np.array_equal(traj.classifier.weight, net.classifier.weight.detach())


@pytest.mark.parametrize(
    ("returns", "head"),
    [
        (lambda cls, projection: (cls, projection / 0.07), Head("cls", 0)),
        (lambda cls, projection: (projection / 0.07, cls), Head("cls", 1)),
        (lambda cls, projection: (projection / 0.07, cls.softmax(1), cls), Head("cls", 2)),
        (lambda cls, projection: (cls.log_softmax(1), projection), Head()),
        (lambda cls, projection: (cls, projection), Head()),
        (lambda cls, projection: (cls / 2, projection / 0.07), Head()),
        (lambda cls, projection: (cls, cls.topk(2).indices), Head("cls", 0)),  # not narrow logits
    ],
)
def test_a_scaled_projection_is_not_taken_for_logits(returns, head):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.cls, self.projector = nn.Linear(8, 3), nn.Linear(8, 5)

        def forward(self, x):
            return returns(self.cls(x), self.projector(x))

    torch.manual_seed(0)
    assert find_head(Net().eval(), torch.rand(4, 8)) == head


class CosineHead(nn.Module):
    """Logits that are cosines, and a projection by a linear layer with the name `projection`."""

    def __init__(self, projection):
        super().__init__()
        self.prototypes, self.projection = nn.Parameter(torch.randn(3, 8)), projection

    def forward(self, x):
        cosines = nn.functional.normalize(x) @ nn.functional.normalize(self.prototypes).T
        return cosines, self.projection(x)


def test_a_projection_beside_cosines_is_not_taken_for_logits():
    torch.manual_seed(0)
    assert find_head(CosineHead(nn.Linear(8, 5)), torch.rand(4, 8)) == Head()

    class Returning(nn.Module):
        def __init__(self):
            super().__init__()
            self.cls = nn.Linear(3, 5)

        def forward(self, x):
            return x, self.cls(x)  # narrower than the logits, but their layer's input

    assert find_head(Returning(), torch.rand(4, 3)) == Head("cls", 1)


class Autocast(Heads):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


@pytest.mark.parametrize("normed", [True, False])
def test_a_classifier_that_runs_in_half_precision_is_found(normed):
    net = Autocast("logits")
    net.norm = net.norm if normed else nn.Identity()  # float32 or bfloat16 into the classifier
    traj = trace(net, pair(), layers=["block"])
    assert np.array_equal(traj.classifier.weight, net.classifier.weight.detach())
    assert (traj.layers[-1].name == "penultimate") == normed


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ([nn.Identity(), nn.Identity()], "one by one"),
        (nn.ModuleList([nn.Identity(), nn.Identity()]), "one by one"),
        ({"model": nn.Identity()}, "Pass the network in it"),
        (nn.Linear(2, 2).state_dict(), "into its network first"),
        ("net.pth", "load_checkpoint"),
    ],
)
def test_what_is_not_one_network_is_told(given, advice):
    with pytest.raises(ArgumentError, match=f"net must be an nn.Module.*{advice}"):
        module_of(given)


def test_a_classifier_of_the_last_block_adds_no_layer():
    net = Heads("logits")
    net.norm = nn.Identity()
    traj = trace(net, pair())
    assert [layer.name for layer in traj.layers] == ["input", "stem", "block"]
    assert np.array_equal(traj.classifier.weight, net.classifier.weight.detach())


def test_a_stream_refuses_features_that_are_not_finite():
    net, (x, y) = Heads("logits").eval(), pair()
    x[7] = -1e30  # its square overflows
    net.block.register_forward_hook(lambda _, args, out: out * out)
    with pytest.raises(FeatureError, match=r"layer 'block' holds NaN or infinity .* sample 7\."):
        list(stream(net, (x, y), layers=["block"], batch_size=5))


def test_channels_last_pixels_are_told():
    with pytest.raises(FeatureError, match=r"channels are last: pass x.permute\(0, 3, 1, 2\)"):
        trace(Heads("logits"), (torch.rand(6, 32, 32, 3), np.arange(6) % 3))
