"""Architectures: their outputs, their names, and the one that fits a state dict."""

from __future__ import annotations

import json
import pickle
import re
import sys
import textwrap
from contextlib import nullcontext

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.models.resnet import ResNet

from wgeo import load_checkpoint, models
from wgeo.errors import ArgumentError, CheckpointError, DependencyError
from wgeo.models import parts
from wgeo.text import printable

OWN = [name for name in models.registry.ARCHS if ":" not in name]
SMALL = {  # of each kind, one that is quick to build and run
    "cifar_resnet8": {},
    "isoresnet": {"width": 6, "depth": 2},
    "isoplain": {"width": 6, "depth": 2, "stride": 2},
    "mlp": {"width": 9, "depth": 2},
    "resmlp": {"width": 9, "depth": 2, "hidden": 5, "batch_norm": False},
    "vgg": {"width": 4, "depth": 4},
    "vit": {"width": 32, "depth": 2, "hidden": 24},
}


def small(name, **options):
    common = {"num_classes": 4, "in_channels": 2, "image_size": 8}
    return models.build(name, **{**common, **SMALL[name], **options})


def randomised(net):
    """Statistics and affine parameters away from their starting values, so that each one counts."""
    for key, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            low, high = (0.5, 1.5) if key.endswith("running_var") else (-0.5, 0.5)
            tensor.uniform_(low, high)
    return net.eval()


# Known answers.


@pytest.mark.parametrize(
    ("depth", "parameters"),
    [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)],
)
def test_cifar_resnets_have_the_published_number_of_parameters(depth, parameters):
    net = models.build(f"cifar_resnet{depth}", num_classes=10)
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_cifar_resnet_keys_are_those_of_published_checkpoints():
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    expected = ["conv1.weight", *(f"bn1.{k}" for k in norm), "linear.weight", "linear.bias"]
    for stage in (1, 2, 3):
        for i in range(3):
            for j in (1, 2):
                expected.append(f"layer{stage}.{i}.conv{j}.weight")
                expected += [f"layer{stage}.{i}.bn{j}.{k}" for k in norm]
    state = models.build("cifar_resnet20", num_classes=10).state_dict()
    assert sorted(state) == sorted(expected)
    assert state["conv1.weight"].shape == (16, 3, 3, 3)
    assert state["layer3.2.conv2.weight"].shape == (64, 64, 3, 3)
    assert state["linear.weight"].shape == (10, 64)


def test_option_a_takes_every_other_pixel_and_pads_channels_on_both_sides():
    net = small("cifar_resnet8")
    x = torch.randn(2, 16, 8, 8)
    y = net.layer2[0].shortcut(x)
    assert y.shape == (2, 32, 4, 4)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()


def test_cifar_resnet_matches_the_formula_of_he_et_al():
    net = randomised(small("cifar_resnet8", activation="tanh"))
    state = net.state_dict()
    functional = nn.functional

    def norm(x, name):
        mean, var = (state[f"{name}.running_{k}"][:, None, None] for k in ("mean", "var"))
        weight, bias = (state[f"{name}.{k}"][:, None, None] for k in ("weight", "bias"))
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def conv(x, name, stride=1):
        return functional.conv2d(x, state[f"{name}.weight"], stride=stride, padding=1)

    images = torch.randn(3, 2, 8, 8)
    x = torch.tanh(norm(conv(images, "conv1"), "bn1"))
    for stage in (1, 2, 3):
        name, stride = f"layer{stage}.0", 1 if stage == 1 else 2
        branch = torch.tanh(norm(conv(x, f"{name}.conv1", stride), f"{name}.bn1"))
        branch = norm(conv(branch, f"{name}.conv2"), f"{name}.bn2")
        if stride == 2:
            extra = x.shape[1] // 2
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, extra, extra))
        x = torch.tanh(x + branch)
    logits = x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]
    torch.testing.assert_close(net(images), logits, rtol=1e-4, atol=1e-5)


def test_isoresnet_has_nothing_after_the_sum():
    net = randomised(small("isoresnet"))
    block = net.blocks[1]
    x = torch.randn(3, 6, 8, 8) - 5
    branch = block.bn2(block.conv2(block.act1(block.bn1(block.conv1(x)))))
    torch.testing.assert_close(block(x), x + branch)
    assert (block(x) < 0).any()


def test_isoresnet_with_zero_blocks_is_stem_and_classifier():
    net = randomised(small("isoresnet"))
    for block in net.blocks:
        nn.init.zeros_(block.bn2.weight)
        nn.init.zeros_(block.bn2.bias)
    images = torch.randn(3, 2, 8, 8)
    torch.testing.assert_close(net(images), net.head(net.stem(images).mean((2, 3))))


def test_isoplain_is_isoresnet_without_the_shortcut():
    residual = randomised(small("isoresnet", stride=2))
    plain = small("isoplain")
    plain.load_state_dict(residual.state_dict())
    x = torch.randn(3, 6, 4, 4)
    plain.eval()
    torch.testing.assert_close(plain.blocks[0](x) + x, residual.blocks[0](x))
    assert plain.blocks[0].shortcut is None


def test_resmlp_and_mlp_blocks():
    net = randomised(small("resmlp", activation="silu"))
    x = torch.randn(3, 9)
    block = net.blocks[0]
    expected = x + block.fc2(nn.functional.silu(block.fc1(x)))
    torch.testing.assert_close(block(x), expected)
    plain = randomised(small("mlp", batch_norm=False)).blocks[0]
    torch.testing.assert_close(plain(x), plain.fc(x).relu())


# Every architecture.


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "tanh", "sigmoid", "silu"])
@pytest.mark.parametrize("name", SMALL)
def test_activations_are_modules_used_once_each(name, activation):
    net = small(name, activation=activation).eval()
    kind = type(models.parts.ACTIVATIONS[activation]())
    found = [part for part in net.modules() if isinstance(part, kind)]
    others = [k for n, k in models.parts.ACTIVATIONS.items() if n != activation]
    assert not any(type(part) in others for part in net.modules())
    calls = []
    for part in found:
        part.register_forward_hook(lambda module, args, out: calls.append(module))
    assert net(torch.randn(2, 2, 8, 8)).shape == (2, 4)
    assert len(found) >= 2
    assert len(calls) == len(set(calls)) == len(found)


@pytest.mark.parametrize("name", ["cifar_resnet8", "isoresnet", "isoplain", "mlp", "resmlp"])
def test_activation_modules_are_the_only_nonlinearities(name):
    net = randomised(small(name)).double()
    for part in list(net.modules()):
        for child, module in part.named_children():
            if isinstance(module, nn.ReLU):
                setattr(part, child, nn.Identity())
    x, zero = torch.randn(2, 2, 8, 8).double(), torch.zeros(2, 2, 8, 8).double()
    torch.testing.assert_close(net(x) + net(-x), 2 * net(zero))


@pytest.mark.parametrize(
    ("name", "blocks", "shortcuts"),
    [
        ("cifar_resnet8", 3, [nn.Identity, "PadShortcut", "PadShortcut"]),
        ("isoresnet", 2, [nn.Identity] * 2),
        ("isoplain", 2, [type(None)] * 2),
        ("mlp", 2, [type(None)] * 2),
        ("resmlp", 2, [nn.Identity] * 2),
        ("vgg", 4, [type(None)] * 4),
        ("vit", 2, [nn.Identity] * 2),
    ],
)
def test_blocks_are_marked_with_their_shortcut(name, blocks, shortcuts):
    found = [part for part in small(name).modules() if isinstance(part, models.parts.Block)]
    assert len(found) == blocks
    for block, kind in zip(found, shortcuts, strict=True):
        assert type(block.shortcut) is kind or type(block.shortcut).__name__ == kind


@pytest.mark.parametrize("name", SMALL)
def test_architecture_options_are_read_from_the_state_dict(name):
    net = randomised(small(name, activation="tanh"))
    rng = torch.get_rng_state()
    twin = models.matching.from_state(name, net.state_dict(), activation="tanh")
    assert torch.equal(torch.get_rng_state(), rng), "loading must not disturb anyone's seed"
    images = torch.randn(2, 2, 8, 8)
    assert not twin.training
    assert torch.equal(twin(images), net(images))


@settings(max_examples=25)
@given(
    name=st.sampled_from(["isoresnet", "mlp", "resmlp", "vgg", "cifar_resnet14"]),
    width=st.integers(2, 12),
    depth=st.integers(3, 9),
    classes=st.integers(2, 30),
    channels=st.integers(1, 4),
    batch_norm=st.booleans(),
)
def test_width_depth_and_channels_are_read_from_shapes(
    name, width, depth, classes, channels, batch_norm
):
    options = {} if name.startswith("cifar") else {"depth": depth}
    options |= {"batch_norm": batch_norm} if name.endswith("mlp") else {}
    options |= {"option": "ab"[batch_norm]} if name.startswith("cifar") else {}
    net = models.build(
        name, num_classes=classes, in_channels=channels, image_size=8, width=width, **options
    )
    twin = models.matching.from_state(name, net.state_dict())
    shapes = [(k, t.shape) for k, t in net.state_dict().items()]
    assert shapes == [(k, t.shape) for k, t in twin.state_dict().items()]


def test_vit_heads_are_the_only_option_not_read_from_shapes():
    net = randomised(small("vit", heads=8))
    images = torch.randn(2, 2, 8, 8)
    state = net.state_dict()
    assert torch.equal(models.matching.from_state("vit", state, heads=8)(images), net(images))
    assert not torch.allclose(models.matching.from_state("vit", state)(images), net(images))


@pytest.mark.parametrize(("size", "patch"), [(28, 4), (32, 4), (8, 1), (64, 8), (7, 1)])
def test_vit_patches_divide_the_image(size, patch):
    net = models.build("vit", num_classes=3, image_size=size, depth=1, width=16)
    assert net.patch_size == patch


@pytest.mark.parametrize(("width", "heads"), [(64, 4), (56, 2), (40, 2), (36, 2), (16, 1), (7, 1)])
def test_vit_heads_divide_the_width_by_default(width, heads):
    net = models.build("vit", num_classes=3, image_size=8, depth=1, width=width)
    assert net.encoder.layers[0].num_heads == heads


@pytest.mark.parametrize("name", ["torchvision:vgg11", "torchvision:vit_b_16"])
def test_a_head_that_is_no_matrix_is_a_misfit(name):
    state = {"classifier.weight": torch.zeros(3), "encoder.layers.0.weight": torch.zeros(4, 3)}
    with pytest.raises(CheckpointError, match="does not fit"):
        models.matching.from_state(name, state)
    assert models.matching.closest(state) is None


@pytest.mark.parametrize("name", [n for n in models.registry.ARCHS if n.startswith("torchvision:")])
def test_torchvision_resnets_are_recognised_by_their_shapes(name):
    with torch.device("meta"):
        net = models.build(name, num_classes=12, in_channels=1)
    assert isinstance(net, ResNet)
    assert models.matching.exact_fits(net.state_dict()) == [name]


@pytest.mark.parametrize("depth", [8, 20, 110, 140])
def test_cifar_resnets_are_recognised_by_their_shapes(depth):
    with torch.device("meta"):
        net = models.build(f"cifar_resnet{depth}", num_classes=100, option="B")
    assert models.matching.exact_fits(net.state_dict()) == [f"cifar_resnet{depth}"]


def test_small_images_get_the_small_stem():
    small = models.build("torchvision:resnet18", num_classes=3, image_size=32)
    large = models.build("torchvision:resnet18", num_classes=3, image_size=224)
    asked = models.build("torchvision:resnet18", num_classes=3, image_size=32, stem="imagenet")
    assert small.conv1.kernel_size == (3, 3)
    assert isinstance(small.maxpool, nn.Identity)
    assert large.conv1.kernel_size == asked.conv1.kernel_size == (7, 7)
    twin = models.matching.from_state("torchvision:resnet18", small.state_dict())
    images = torch.randn(1, 3, 16, 16)
    assert torch.equal(twin(images), small.eval()(images))


def test_other_torchvision_networks_build_and_load():
    net = models.build("torchvision:squeezenet1_1", num_classes=5, in_channels=1).eval()
    twin = models.matching.from_state("torchvision:squeezenet1_1", net.state_dict())
    images = torch.randn(1, 1, 64, 64)
    assert torch.equal(twin(images), net(images))


def test_key_names_of_other_implementations_are_understood():
    net = randomised(small("cifar_resnet8", option="B"))
    state = {
        k.replace("linear.", "fc.").replace(".shortcut.", ".downsample."): t
        for k, t in net.state_dict().items()
    }
    images = torch.randn(2, 2, 8, 8)
    assert torch.equal(models.matching.from_state("cifar_resnet8", state)(images), net(images))
    net = models.build("torchvision:resnet18", num_classes=3, image_size=32).eval()
    state = {
        k.replace("fc.", "linear.").replace(".downsample.", ".shortcut."): t
        for k, t in net.state_dict().items()
    }
    assert models.matching.exact_fits(state) == ["torchvision:resnet18"]


# What does not fit.


def test_error_for_mismatched_weights_names_keys_and_the_fitting_architecture():
    state = models.build("cifar_resnet32", num_classes=10).state_dict()
    shallow = models.build("cifar_resnet20", num_classes=10).state_dict()
    with pytest.raises(CheckpointError) as error:
        models.matching.from_state("cifar_resnet20", state)
    said = str(error.value)
    assert "60 unexpected" in said
    assert "layer1.3.conv1.weight" in said
    assert said.count("layer1.3") == 5, "five names are enough"
    assert "and 55 more" in said
    assert "cifar_resnet32" in said
    with pytest.raises(CheckpointError, match=r"60 missing: layer1\.3\.conv1"):
        models.matching.from_state("cifar_resnet32", shallow)


def test_error_for_mismatched_shapes_names_both_and_the_head():
    state = small("cifar_resnet8").state_dict()
    said = r"linear\.weight \(the file has 4x64, the network 9x64\)"
    with pytest.raises(CheckpointError, match=said):
        models.matching.from_state("cifar_resnet8", state, 9)
    with pytest.raises(CheckpointError, match="head has 4 classes, but num_classes is 9"):
        models.matching.from_state("cifar_resnet8", state, 9)


def test_error_for_nearly_fitting_weights_names_the_closest_architecture():
    state = models.build("cifar_resnet20", num_classes=10).state_dict()
    state["bn1.weight"] = torch.ones(17)
    del state["layer2.0.conv1.weight"]
    assert models.matching.exact_fits(state) == []
    name, report = models.matching.closest(state)
    assert name == "cifar_resnet20"
    assert report.missing == ("layer2.0.conv1.weight",)
    assert len(report.misshapen) == 1
    assert models.matching.closest({"something.else": torch.ones(3)}) is None
    assert models.matching.closest({}) is None


def test_not_quite_all_tensors_are_less_than_100_percent():
    with torch.device("meta"):
        state = models.build("torchvision:resnet152", num_classes=3).state_dict()
    state["bn1.weight"] = torch.ones(63)  # one of several hundred
    with pytest.raises(CheckpointError, match=r"closest is torchvision:resnet152, with 99\.9 % of"):
        models.matching.from_state("torchvision:resnet101", state)


def test_a_number_of_classes_is_checked_for_every_architecture():
    for name in ("mlp", "torchvision:resnet18"):
        state = models.build(name, num_classes=3, image_size=8).state_dict()
        with pytest.raises(ArgumentError, match="num_classes must be a whole number of at least 1"):
            models.matching.from_state(name, state, 0)


def test_integers_are_not_weights():
    state = small("mlp").state_dict()
    state["head.weight"] = (100 * state["head.weight"]).to(torch.int8)
    with pytest.raises(CheckpointError, match=r"head\.weight \(the file has torch\.int8"):
        models.matching.from_state("mlp", state)


def test_giant_shapes_allocate_no_memory():
    state = small("mlp").state_dict()
    state["stem.weight"] = torch.zeros(1, 1).expand(10**9, 10**6)
    with pytest.raises(CheckpointError, match="misshapen"):
        models.matching.from_state("mlp", state)
    state = {f"blocks.{10**12}.conv1.weight": torch.zeros(1), "stem.conv.weight": torch.zeros(2, 1)}
    with pytest.raises(CheckpointError, match="does not fit isoresnet"):
        models.matching.from_state("isoresnet", state)


def test_names_from_files_are_escaped():
    assert printable("a\x1b[31mb\n") == r"a\x1b[31mb\n"
    assert len(printable("x" * 10**6)) == 100
    assert printable("größe") == "größe"


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("cifar_resnet21", {}, "Unknown architecture"),
        ("isoresnat", {}, "did you mean 'isoresnet'"),
        ("", {}, "Unknown architecture"),
        ("torchvision:resnet19", {}, "no network 'resnet19'.*resnet18"),
        ("torchvision:vit_b_16", {"image_size": 28}, "could not build"),
        ("torchvision:resnet18", {"activation": "tanh"}, "its own activation"),
        ("torchvision:resnet18", {"stem": "huge"}, "stem must be"),
        ("isoresnet", {"wdith": 3}, "does not take wdith; its options are depth, stride, width"),
        ("isoresnet", {"width": 0}, "width must be a whole number of at least 1, not 0"),
        ("isoresnet", {"activation": "swish"}, "Unknown activation 'swish'; choose one of relu"),
        ("isoresnet", {"num_classes": 0}, "num_classes must be"),
        ("cifar_resnet20", {"option": "C"}, "option must be A"),
        ("mlp", {}, "needs image_size"),
        ("vit", {}, "needs image_size"),
        ("vit", {"image_size": 28, "patch": 5}, "must divide"),
        ("isoresnet", {"activation": ["relu"]}, "Unknown activation"),
        ("vgg", {"depth": 2}, "three stages"),
    ],
)
def test_network_that_cannot_be_built_is_an_explained_error(name, options, said):
    with pytest.raises(ArgumentError, match=said):
        models.build(name, **{"num_classes": 3, **options})


def test_shapes_are_not_overruled_and_options_not_ignored():
    for name, option, said in (
        ("mlp", {"activation": ["relu"]}, "cannot be built with .*unhashable"),
        ("vit", {"heads": [2]}, "cannot be built with .*unhashable"),
        ("mlp", {"heads": 2}, "heads is determined by"),
        ("vit", {"heads": 5}, "`heads=5` must divide"),
    ):
        with pytest.raises(ArgumentError, match=said):
            models.matching.from_state(name, small(name).state_dict(), **option)
    with pytest.raises(ArgumentError, match="width is determined by the checkpoint's shapes"):
        models.matching.from_state("mlp", small("mlp").state_dict(), width=3)


def test_an_error_in_the_code_of_an_architecture_is_not_blamed_on_its_settings(monkeypatch):
    def shapes(*_):
        raise TypeError("a mistake")

    monkeypatch.setattr(models.matching, "_shapes", shapes)
    with pytest.raises(TypeError, match="a mistake"):
        models.matching.from_state("mlp", small("mlp").state_dict())


def test_classifier_of_finds_the_last_linear_layer():
    net = small("isoresnet")
    assert models.parts.classifier_of(net) is net.head
    assert models.parts.classifier_of(nn.Sequential(nn.ReLU())) is None


# The fixed classifier.


@pytest.mark.parametrize(("classes", "dim"), [(2, 2), (3, 3), (3, 7), (10, 10), (10, 64), (7, 8)])
def test_the_frame_is_a_simplex_etf(classes, dim):
    frame = models.simplex_etf(classes, dim).double()
    eye = torch.eye(classes).double()
    gram = (classes * eye - 1) / (classes - 1)  # 1 on the diagonal, -1/(K-1) off it
    torch.testing.assert_close(frame @ frame.T, gram, atol=1e-6, rtol=0)
    # Non-negative features can point every class its own way: those that align best after a ReLU.
    assert torch.equal((frame.relu() @ frame.T).argmax(1), torch.arange(classes))


@pytest.mark.parametrize(("classes", "dim"), [(1, 4), (5, 4), (0, 3)])
def test_frame_of_the_wrong_dimension_is_refused(classes, dim):
    with pytest.raises(ArgumentError):
        models.simplex_etf(classes, dim)


@pytest.mark.parametrize(
    ("name", "saved"), [("resnet18", 2_314_210), ("resnet50", 1_047_522), ("resnext50_32x4d", None)]
)
def test_fixed_classifier_saves_the_predicted_parameters(name, saved):
    # 512 filters of 512 x 3 x 3 become 10, a norm shrinks; a projection comes, the head goes.
    net = models.build(f"torchvision:{name}", num_classes=10)
    fixed = models.with_etf_classifier(net)
    before, after = (sum(p.numel() for p in n.parameters()) for n in (net, fixed))
    if name == "resnet18":
        assert (before - after) / before == pytest.approx(0.2070, abs=5e-5)
    assert saved is None or before - after == saved
    assert after < before
    assert fixed.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 10)
    assert net.fc.in_features in (512, 2048), "the network given stays as it was"


@pytest.mark.parametrize(
    ("name", "dim"), [("cifar_resnet8", "K"), ("isoresnet", "keep"), ("mlp", "keep")]
)
def test_a_fixed_classifier_is_never_trained(name, dim):
    net = models.with_etf_classifier(small(name, num_classes=5), dim).train()
    head = models.parts.classifier_of(net)
    frame = head.weight.clone()
    assert head.bias is None
    assert "weight" not in dict(head.named_parameters())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=1e-3)
    before = {k: p.clone() for k, p in net.named_parameters()}
    images, labels = torch.randn(20, 2, 8, 8), torch.arange(20) % 5
    losses = []
    for _ in range(40):
        loss = nn.functional.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert torch.equal(head.weight, frame)
    assert all(not torch.equal(before[k], p) for k, p in net.named_parameters())
    twin = models.matching.from_state(name, net.state_dict())
    assert isinstance(models.parts.classifier_of(twin), models.etf.FixedLinear)
    assert torch.equal(twin(images), net.eval()(images))


def test_fixed_classifier_needs_enough_width_and_a_block_to_narrow():
    with pytest.raises(ArgumentError, match="needs at least 9 features"):
        models.with_etf_classifier(small("isoresnet", num_classes=9), "keep")
    with pytest.raises(ArgumentError, match="Use `dim='keep'`"):
        models.with_etf_classifier(small("isoresnet"))
    with pytest.raises(ArgumentError, match="Use `dim='keep'`"):
        models.with_etf_classifier(small("mlp"))
    with pytest.raises(ArgumentError, match="no linear classifier"):
        models.with_etf_classifier(nn.Sequential(nn.ReLU()), "keep")
    with pytest.raises(ArgumentError, match="must be 'K' or 'keep'"):
        models.with_etf_classifier(small("mlp"), "L")


def test_the_classifier_is_fixed_not_the_layer_registered_last():
    net = nn.Module()
    net.fc, net.proj = nn.Linear(6, 3), nn.Linear(6, 5)
    fixed = models.with_etf_classifier(net, "keep")
    assert isinstance(fixed.fc, models.etf.FixedLinear)
    assert type(fixed.proj) is nn.Linear


# timm and a user's own code.


@pytest.mark.parametrize("name", ["xcit_nano_12_p8_224", "resnet10t"])
def test_timm_networks_of_any_image_size_are_built_for_any(name):
    pytest.importorskip("timm")
    net = models.build(f"timm:{name}", num_classes=3, image_size=32)
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize("size", [{"img_size": 32}, {"dynamic_img_size": True}])
def test_image_size_of_a_timm_network_is_read_or_passed(size, tmp_path):
    pytest.importorskip("timm")
    name = "timm:vit_tiny_patch16_224"
    net = models.build(name, num_classes=3, image_size=32, **size).eval()
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(models.matching.from_state(name, net.state_dict(), **size)(x), net(x))
    meta = {"arch": name, "options": size}
    torch.save({"state_dict": net.state_dict(), "wgeo": meta}, tmp_path / "net.pt")
    assert torch.equal(load_checkpoint(tmp_path / "net.pt").module(x), net(x))


def test_image_sizes_that_a_timm_network_cannot_have(tmp_path):
    pytest.importorskip("timm")
    with pytest.raises(ArgumentError, match="timm could not build 'twins_svt_small'"):
        models.build("timm:twins_svt_small", num_classes=3, img_size=56)
    name = "timm:vit_tiny_patch16_224"
    state = models.build(name, num_classes=3).state_dict()
    for size in (10**5, -16, "x", [16]):  # a file can claim any size
        meta = {"arch": name, "options": {"img_size": size}}
        torch.save({"state_dict": state, "wgeo": meta}, tmp_path / "net.pt")
        assert load_checkpoint(tmp_path / "net.pt").module.pos_embed.shape == (1, 197, 192)


@pytest.mark.parametrize(
    ("key", "value", "fits"),
    [
        ("depths", ["a"], True),
        ("depths", [2, 2], True),
        ("depths", [10**9, -(10**9)], False),
        ("num_hidden_layers", 10**9, False),
        ("num_hidden_layers", 1000, True),
        ("depth_coefficient", 1e9, False),
        ("depth_coefficient", 3.1, True),
        ("depths", [10**400, 1.0], False),
        ("num_block_repeats", [10**9], False),
        ("num_block_repeats", [1, 2, 2, 3, 3, 4, 1], True),
        ("hidden_size", 10**9, True),
    ],
)
def test_a_config_of_too_many_layers_is_refused(key, value, fits):
    from wgeo.models.huggingface import _require_few_layers

    says = f"claims more than 1000 layers .{key}"
    with nullcontext() if fits else pytest.raises(ArgumentError, match=says):
        _require_few_layers({key: value}, "hf:folder")


def test_timm_networks_build_and_load():
    pytest.importorskip("timm")
    net = models.build("timm:resnet10t", num_classes=5, in_channels=1).eval()
    twin = models.matching.from_state("timm:resnet10t", net.state_dict())
    images = torch.randn(1, 1, 64, 64)
    assert torch.equal(twin(images), net(images))
    assert models.registry.find("timm:resnet10t").normalize == "imagenet"
    with pytest.raises(ArgumentError, match=r"did you mean .*'resnet10t'"):
        models.registry.find("timm:resnet10tt")
    with pytest.raises(ArgumentError, match="no network 'hf-hub"):
        models.registry.find("timm:hf-hub:someone/something")


def test_a_config_with_thousands_of_class_names_is_read(tmp_path):
    config = {"id2label": {str(k): "some kind of plant, some other name" for k in range(30_000)}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert (tmp_path / "config.json").stat().st_size > 1_000_000
    assert models.huggingface._read(tmp_path / "config.json", "hf:x") == config


def test_without_timm_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(DependencyError, match="pip install"):
        models.registry.find("timm:resnet10t")


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the user's in the current folder."""
    (tmp_path / "my_networks.py").write_text(
        textwrap.dedent("""
        from torch import nn

        def tiny(num_classes, width=3):
            return nn.Sequential(nn.Flatten(), nn.Linear(8, width), nn.ReLU(),
                                 nn.Linear(width, num_classes))

        class Wrapped(nn.Module):
            def __init__(self, num_classes):
                super().__init__()
                self.model = tiny(num_classes)

            def forward(self, x):
                return self.model(x)

        def fails(num_classes):
            raise KeyError("no such thing")

        def odd():
            return 3

        made = tiny(2)
        """)
    )
    (tmp_path / "my_broken.py").write_text("import torch\nthis is no Python\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("my_networks", None)


@pytest.mark.usefixtures("mine")
def test_a_factory_in_the_current_folder():
    net = models.build("my_networks:tiny", num_classes=4, in_channels=1, width=5)
    assert models.parts.classifier_of(net).weight.shape == (4, 5)
    state = models.build("my_networks:tiny", num_classes=6).state_dict()
    assert (
        models.parts.classifier_of(
            models.matching.from_state("my_networks:tiny", state)
        ).out_features
        == 6
    )


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("my_networks:tidy", {}, "'tidy' does not exist in my_networks.*did you mean 'tiny'"),
        ("my_networks:made", {}, "is already a network"),
        ("my_networks:fails", {}, r"fails\(num_classes=3\) failed: KeyError"),
        ("my_networks:odd", {}, "returned int, not a torch"),
        ("my_networks:tiny", {"height": 3}, "does not take height"),
        ("my_absent:tiny", {}, "Cannot import 'my_absent'.*ModuleNotFoundError.*current folder"),
        ("my_broken:tiny", {}, "Cannot import 'my_broken'.*SyntaxError"),
    ],
)
def test_a_factory_that_fails_says_how(name, options, said):
    with pytest.raises(ArgumentError, match=re.compile(said, re.DOTALL)):
        models.build(name, num_classes=3, **options)


def test_a_library_is_not_first_imported_on_the_meta_device(tmp_path, monkeypatch):
    (tmp_path / "my_library.py").write_text("import torch\nscale = torch.ones(1)\n")
    monkeypatch.syspath_prepend(tmp_path)

    def build(*, num_classes, in_channels):
        import my_library

        assert my_library.scale.device.type == "cpu"
        return nn.Linear(2, num_classes)

    arch = models.external.Arch("mine", build, models.external.infer_head, imports="my_library")
    monkeypatch.setitem(models.registry.ARCHS, "mine", arch)
    assert models.matching.from_state("mine", nn.Linear(2, 3).state_dict()).out_features == 3


def test_networks_that_do_not_build_without_memory_are_built_for_real():
    """RegNets compute their widths with tensors, which the meta device cannot tell."""
    torch.manual_seed(0)
    net = torchvision.models.get_model("regnet_x_400mf", num_classes=3)
    made = models.matching.from_state("torchvision:regnet_x_400mf", net.state_dict())
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(made(x), net.eval()(x))


@pytest.mark.parametrize("name", ["alexnet", "mnasnet0_5", "squeezenet1_1", "mobilenet_v3_small"])
def test_other_torchvision_networks_round_trip(name):
    """The head is the last of several linear layers; a module may ask how old its weights are."""
    own = torchvision.models.get_model(name, weights=None, num_classes=4).state_dict()
    back = models.matching.from_state(f"torchvision:{name}", dict(own)).state_dict()
    assert own.keys() == back.keys()
    assert all(torch.equal(tensor, back[key]) for key, tensor in own.items())


def test_a_vit_saved_whole_by_an_earlier_version_finds_its_block():
    from wgeo.models import vit

    block = small("vit").encoder.layers[0]
    assert isinstance(block, vit.TransformerBlock)
    assert pickle.loads(pickle.dumps(type(block))) is vit.TransformerBlock
    with pytest.raises(AttributeError, match="no attribute 'Block2'"):
        _ = vit.Block2


@pytest.mark.parametrize("name", ["isoresnet", "cifar_resnet20", "torchvision:resnet18"])
def test_a_network_of_shapes_draws_no_values(name):
    """Torch would load its compiler to draw them, which takes seconds."""
    called = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            called.append(op.name())
            return op(*args, **(kwargs or {}))

    with parts.shapes_only(), Recorder():
        net = models.build(name, num_classes=3)
    assert all(each.is_meta for each in net.parameters())
    assert not {"aten::normal_", "aten::uniform_"} & set(called)
    with torch.device("meta"), Recorder():
        models.build(name, num_classes=3)
    assert "aten::normal_" in called
