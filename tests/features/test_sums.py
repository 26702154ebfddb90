"""Residual blocks of other kinds: sums in a forward, scaled sums, one block several times."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from wgeo import analyze, blocks, trace
from wgeo.errors import ArgumentError, FeatureError, WgeoWarning

N, CLASSES, WIDTH = 12, 3, 8


def pair(side=16):
    g = torch.Generator().manual_seed(1)
    return torch.rand(N, 3, side, side, generator=g), np.arange(N) % CLASSES


def conv(c, d, pool=False):
    parts = [nn.Conv2d(c, d, 3, 1, 1, bias=False), nn.BatchNorm2d(d), nn.ReLU(inplace=True)]
    return nn.Sequential(*parts, *[nn.MaxPool2d(2)] * pool)


class ResNet9(nn.Module):
    """res1(x) + x in the network's own forward."""

    def __init__(self):
        super().__init__()
        self.conv1, self.res1 = conv(3, 8, True), nn.Sequential(conv(8, 8), conv(8, 8))
        self.conv2, self.res2 = conv(8, 16, True), nn.Sequential(conv(16, 16), conv(16, 16))
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x):
        x = self.conv1(x)
        x = self.res1(x) + x
        x = self.conv2(x)
        x = x + self.res2(x)
        return self.head(x.amax((2, 3)))


def test_resnet9_is_traced_by_its_sums():
    torch.manual_seed(0)
    net = ResNet9().eval()
    x, y = pair()
    traj = trace(net, (x, y), batch_size=5)
    with torch.no_grad():
        a = net.conv1(x)
        b = net.res1(a) + a
        c = net.conv2(b)
        d = net.res2(c) + c
    names = [layer.name for layer in traj.layers]
    assert names == ["input", "stem", "res1+x", "res2+x", "penultimate"]
    np.testing.assert_allclose(traj.layers[4].features, d.amax((2, 3)), rtol=1e-4, atol=1e-5)
    for layer, maps in zip(traj.layers[1:-1], (a, b, d), strict=True):
        np.testing.assert_allclose(layer.features, maps.mean((2, 3)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(traj.layers[3].entry, c.mean((2, 3)), rtol=1e-4, atol=1e-5)
    assert [(block.source, block.target) for block in traj.blocks] == [
        ("stem", "res1+x"),
        ("res1+x", "res2+x"),
    ]
    again = trace(net, (x, y), layers=["res2+x"])  # names that wgeo gives can be given back
    np.testing.assert_allclose(again.layers[2].features, traj.layers[3].features)


class InForward(nn.Module):
    """Sums over a ModuleList in the forward, followed by the requested functions."""

    def __init__(self, end, inplace=False):
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, 1, 1)
        self.convs = nn.ModuleList(nn.Conv2d(WIDTH, WIDTH, 3, 1, 1) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(WIDTH) for _ in range(3))
        self.head, self.end, self.inplace = nn.Linear(WIDTH, CLASSES), end, inplace

    def forward(self, x):
        x = self.stem(x)
        for a, b in zip(self.convs, self.norms, strict=True):
            h = functional.relu(b(a(x)))
            if self.inplace:
                x += h
            else:
                x = self.end(x + h)
        return self.head(x.mean((2, 3)))


ENDS = {
    "nothing": lambda t: t,
    "relu": functional.relu,
    "clamp": lambda t: t.clamp(min=0),
    "leaky": lambda t: functional.leaky_relu(t, 0.1),
    "scaled": lambda t: t / 2**0.5,
    "scaled and bent": lambda t: functional.gelu(t * 0.7),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("tap", ["post", "pre"])
def test_sums_over_a_module_list_are_found(end, tap):
    torch.manual_seed(0)
    net = InForward(ENDS[end]).eval()
    x, y = pair()
    traj = trace(net, (x, y), tap=tap)
    assert blocks(net, (x, y)) == [f"convs.{k}+x" for k in range(3)]
    with torch.no_grad():
        z = net.stem(x)
        for k, layer in enumerate(traj.staged[1:]):
            total = z + functional.relu(net.norms[k](net.convs[k](z)))
            z = ENDS[end](total)
            expected = (z if tap == "post" else total).mean((2, 3))
            np.testing.assert_allclose(layer.features, expected, rtol=1e-4, atol=1e-5)


class Ended(nn.Module):
    """A residual block whose forward calls a function after the sum."""

    def __init__(self, end):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(WIDTH, WIDTH, 3, 1, 1), nn.Conv2d(WIDTH, WIDTH, 3, 1, 1)
        self.end = end

    def sum(self, x):
        return x + self.conv2(functional.relu(self.conv1(x)))

    def forward(self, x):
        return self.end(self.sum(x))


def ended(end):
    torch.manual_seed(0)
    parts = nn.Conv2d(3, WIDTH, 3, 1, 1), Ended(end), Ended(end), nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(WIDTH, CLASSES)).eval()


@pytest.mark.parametrize(
    "end",
    [
        functional.relu,
        functional.gelu,
        lambda t: functional.relu(t, inplace=True),
        lambda t: t.clamp_(min=0),
        lambda t: functional.dropout(t.relu(), 0.5, training=False),
        lambda t: t,
    ],
    ids=["relu", "gelu", "in place", "clamp", "dropout after it", "nothing"],
)
def test_the_sum_before_a_functional_activation(end):
    net, (x, y) = ended(end), pair()
    traj = trace(net, (x, y), tap="pre", pool="flat")
    with torch.no_grad():
        h = net[0](x)
        for block, layer in zip(net[1:3], traj.staged[1:], strict=True):
            total = block.sum(h)
            np.testing.assert_allclose(layer.features, total.flatten(1), rtol=1e-4, atol=1e-5)
            h = end(total)


@pytest.mark.parametrize(
    "end",
    [
        lambda t: torch.maximum(t, torch.zeros_like(t)),
        lambda t: torch.where(t > 0, t, 0.0),
        lambda t: t * torch.sigmoid(t),
    ],
    ids=["maximum", "where", "swish"],
)
def test_an_activation_that_cannot_be_traced_is_not_taken_for_the_sum(end):
    with pytest.raises(ArgumentError, match="use `tap='post'`"):
        trace(ended(end), pair(), tap="pre")
    assert len(trace(ended(end), pair()).staged) == 3


def test_sums_in_place_are_taken_as_they_are():
    torch.manual_seed(0)
    net, twin = InForward(None, inplace=True).eval(), InForward(ENDS["nothing"]).eval()
    twin.load_state_dict(net.state_dict())
    a, b = trace(net, pair()), trace(twin, pair())
    for p, q in zip(a.layers, b.layers, strict=True):
        np.testing.assert_allclose(p.features, q.features, rtol=1e-5, atol=1e-6)


def test_two_sums_may_both_await_their_activations():
    class Parallel(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.a, self.b = (nn.Conv2d(c, WIDTH, 3, 1, 1) for c in (3, WIDTH, WIDTH))
            self.head = nn.Linear(WIDTH, CLASSES)

        def streams(self, x):
            x = self.stem(x)
            first, second = x + self.a(x), x + self.b(x)
            second = functional.relu(second)
            return functional.relu(first), second

        def forward(self, x):
            return self.head(torch.cat(self.streams(x), 3).mean((2, 3)))

    torch.manual_seed(0)
    net, (x, y) = Parallel().eval(), pair()
    traj = trace(net, (x, y))
    assert [layer.name for layer in traj.staged[1:]] == ["a+x", "b+x"]
    with torch.no_grad():
        for layer, maps in zip(traj.staged[1:], net.streams(x), strict=True):
            np.testing.assert_allclose(layer.features, maps.mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_a_batch_of_one_does_not_shift_the_sums():
    class Net(InForward):
        def __init__(self):
            super().__init__(ENDS["nothing"])
            self.place = nn.Parameter(torch.randn(1, WIDTH, 16, 16))

        def forward(self, x):
            x = self.stem(x)
            x = x + self.place[:1].abs()  # of the batch's shape if the batch is of one
            for a in self.convs:
                x = x + a(x)
            return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    net = Net()
    one, all_ = trace(net, pair(), batch_size=1), trace(net, pair())
    assert len(all_.layers) == 5
    for p, q in zip(one.layers, all_.layers, strict=True):
        np.testing.assert_allclose(p.features, q.features, rtol=1e-4, atol=1e-5)


class Scaled(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.conv, self.how = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, 1, 1)), how

    def forward(self, x):
        return self.how(x, torch.relu(self.conv(x)))


def stack(kind, n=3):
    return nn.Sequential(
        nn.Conv2d(3, WIDTH, 3, 1, 1),
        nn.Sequential(*(kind() for _ in range(n))),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(WIDTH, CLASSES),
    )


@pytest.mark.parametrize(
    "how",
    [
        lambda x, f: (x + f) / 2**0.5,
        lambda x, f: 0.7 * x + 0.3 * f,
        lambda x, f: functional.leaky_relu(x + f, 0.2),
        lambda x, f: functional.silu(x + f),
        lambda x, f: functional.gelu(x + f),
    ],
)
def test_blocks_that_transform_their_sum_are_found(how):
    assert blocks(stack(lambda: Scaled(how)), pair()) == ["1.0", "1.1", "1.2"]


def test_gate_is_not_a_residual_block():
    """With its weights set to zero, x * sigmoid(f(x)) is x / 2: a scaling, but not of a sum."""
    gated = stack(lambda: Scaled(lambda x, f: x * torch.sigmoid(f)))
    with pytest.raises(FeatureError, match=r"layers=\['0', '1.0', '1.1', '1.2'"):
        blocks(gated, pair())


class Attention(nn.Module):
    """No residual block: with its table of biases alone silenced, it still is its projection."""

    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.biases = nn.Parameter(torch.zeros(256, 256))

    def forward(self, x):
        q, k, v = self.qkv(x.flatten(2).mT).chunk(3, 2)
        z = ((q @ k.mT + self.biases).softmax(2) @ v).contiguous()
        return self.proj(z).mT.reshape(x.shape)


def test_attention_projection_is_not_a_residual_block():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.attn = nn.Conv2d(3, WIDTH, 3, 1, 1), Attention()
            self.head = nn.Linear(WIDTH, CLASSES)

        def forward(self, x):
            x = self.stem(x)
            x = x + self.attn(x)
            return self.head(x.mean((2, 3)))

    assert blocks(Net(), pair()) == ["attn+x"]


class Shared(nn.Module):
    """One block, applied three times."""

    def __init__(self):
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, WIDTH, 3, 1, 1), Scaled(lambda x, f: x + f)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        for _ in range(3):
            x = self.block(x)
        return self.head(x.mean((2, 3)))


def test_a_block_that_runs_three_times_is_three_layers():
    torch.manual_seed(0)
    net = Shared().eval()
    x, y = pair()
    traj = trace(net, (x, y), batch_size=5)
    assert [layer.name for layer in traj.layers[2:]] == ["block[0]", "block[1]", "block[2]"]
    with torch.no_grad():
        z = net.stem(x)
        for layer in traj.layers[2:]:
            z = net.block(z)
            np.testing.assert_allclose(layer.features, z.mean((2, 3)), rtol=1e-4, atol=1e-5)
    named = trace(net, (x, y), layers=["block"])
    assert [layer.name for layer in named.layers] == [layer.name for layer in traj.layers]


class Handed(nn.Module):
    """A block that adds another of its arguments, as in DLA."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, 1, 1))

    def forward(self, x, shortcut=None):
        return torch.relu(self.conv(x) + (x if shortcut is None else shortcut))


def test_a_block_may_add_another_of_its_arguments():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.proj = nn.Conv2d(3, WIDTH, 3, 1, 1), nn.Conv2d(WIDTH, WIDTH, 1)
            self.a, self.b = Handed(), Handed()
            self.head = nn.Linear(WIDTH, CLASSES)

        def forward(self, x):
            x = self.a(self.stem(x))
            return self.head(self.b(x, shortcut=self.proj(x)).mean((2, 3)))

    torch.manual_seed(0)
    net = Net().eval()
    x, y = pair()
    traj = trace(net, (x, y))
    assert [layer.name for layer in traj.layers[2:]] == ["a", "b"]
    with torch.no_grad():
        entry = net.proj(net.a(net.stem(x)))
    np.testing.assert_allclose(traj.layers[3].entry, entry.mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_sums_outside_the_blocks_are_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = stack(lambda: Scaled(lambda x, f: x + f))
            self.left, self.right = nn.Conv2d(3, 3, 3, 1, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.body(torch.sin(self.left(x)) + torch.sin(self.right(x)))

    net = Net()
    with pytest.warns(WgeoWarning, match=r"3 residual blocks.*the network itself \(1\)"):
        traj = trace(net, pair())
    assert traj.settings["other_sums"] == {"": 1}


def test_candidates_that_cannot_be_judged_are_skipped():
    class Stubborn(Scaled):
        def __deepcopy__(self, memo):
            raise KeyError("not to be copied")

    net = stack(lambda: Scaled(lambda x, f: x + f))
    net[1].add_module("3", Stubborn(lambda x, f: torch.tanh(f)))
    assert blocks(net, pair()) == ["1.0", "1.1", "1.2"]


def test_logits_may_be_the_first_of_several():
    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = stack(lambda: Scaled(lambda x, f: x + f))

        def forward(self, x):
            return self.net(x), x

    assert trace(Several(), pair()).accuracy is not None


def test_layers_without_a_common_space_are_measured_separately(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, 2, 1),
        nn.Flatten(),
        nn.Linear(256, CLASSES),
    )
    done = analyze(net, pair(), layers=["2", "4"], bootstrap=0, brenier=1)
    names = [layer["name"] for layer in done.record["layers"]]
    assert names == ["input", "stem", "2", "4", "penultimate"]
    assert all(layer["collapse"]["nc1"] is not None for layer in done.record["layers"])
    assert done.record["blocks"] == done.record["segments"] == []
    assert "transport and straightness are left out" in done.record["transport_skipped"]
    assert not {row["claim"] for row in done.record["verdict"]} & {"straightness", "optimality"}
    done.save(tmp_path / "run")
    assert done.report(tmp_path / "run").exists()


class Reversible(nn.Module):
    """A RevNet: blocks that update two streams alternately, which are one tensor or a pair."""

    class Block(nn.Module):
        def __init__(self, paired):
            super().__init__()
            self.f, self.g = conv(WIDTH, WIDTH), conv(WIDTH, WIDTH)
            self.paired = paired

        def forward(self, x):
            a, b = x if self.paired else x.chunk(2, 1)
            a = a + self.f(b)
            b = b + self.g(a)
            return (a, b) if self.paired else torch.cat((a, b), 1)

    def __init__(self, paired):
        super().__init__()
        self.stem = nn.Conv2d(3, 2 * WIDTH, 3)
        self.blocks = nn.ModuleList([self.Block(paired) for _ in range(3)])
        self.head = nn.Linear(2 * WIDTH, CLASSES)
        self.paired = paired

    def forward(self, x):
        x = self.stem(x)
        streams = x.chunk(2, 1) if self.paired else x
        for block in self.blocks:
            streams = block(streams)
        return self.head((torch.cat(streams, 1) if self.paired else streams).mean((2, 3)))


def test_two_streams_are_told_and_followed_as_one_tensor():
    torch.manual_seed(0)
    with pytest.raises(FeatureError, match=r"blocks\.1, blocks\.2 updates two streams .*RevNet"):
        trace(Reversible(paired=True), pair())
    traj = trace(Reversible(paired=True), pair(), layers=["blocks.1.f+x", "blocks.2.f+x"])
    assert [layer.name for layer in traj.layers[2:4]] == ["blocks.1.f+x", "blocks.2.f+x"]
    assert blocks(Reversible(paired=False), pair()) == ["blocks.0", "blocks.1", "blocks.2"]


def test_a_shortcut_around_residual_sums_is_not_a_second_stream():
    class Nested(ResNet9):
        def forward(self, x):
            x = self.conv1(x)
            y = x + self.res1(x)
            z = y + self.res1(y + self.res1(y))
            return self.head(torch.cat([x + z, z], 1).mean((2, 3)))

    with pytest.warns(WgeoWarning, match="also added in the forward of the network itself"):
        traj = trace(Nested(), pair())
    assert [layer.name for layer in traj.layers[2:4]] == ["res1+x", "res1+x.2"]
