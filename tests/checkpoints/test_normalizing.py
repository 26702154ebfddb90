"""Networks saved with their normalization: it is done once, and as the file says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from wgeo import Network, load_checkpoint, load_images, models, trace
from wgeo.checkpoints.normalizing import normalization_of, normalizers
from wgeo.data.images import Images, normalization
from wgeo.features.network import normalization_for

MEAN, STD = (0.49, 0.48, 0.45), (0.2, 0.21, 0.25)


class Normalize(nn.Module):
    def __init__(self, mean=MEAN, std=STD):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def forward(self, x):
        return (x - self.mean) / self.std


def network():
    return models.build("cifar_resnet8", num_classes=4, width=4).eval()


def wrapped(num_classes=4):
    torch.manual_seed(0)
    return nn.Sequential(Normalize(), network()).eval()


def robust(net, second=MEAN):
    """Return a state as the robustness library saves it: normalizer, network, attacker."""
    state = {f"module.model.{k}": v for k, v in net.state_dict().items()}
    state |= {f"module.attacker.model.{k}": v for k, v in net.state_dict().items()}
    for name, mean in (("normalizer", MEAN), ("attacker.normalize", second)):
        state[f"module.{name}.new_mean"] = torch.tensor(mean).view(3, 1, 1)
        state[f"module.{name}.new_std"] = torch.tensor(STD).view(3, 1, 1)
    return {"model": state, "epoch": 3}


def states(net):
    plain = net.state_dict()
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    return {
        "sequential": nn.Sequential(Normalize(), net).state_dict(),
        "attribute": {"mean": mean, "std": std, **{f"model.{k}": v for k, v in plain.items()}},
        "beside the layers": {"mu": mean.view(3, 1, 1), "sigma": std.view(3, 1, 1), **plain},
        "parallel": {"state_dict": {f"module.{k}": v for k, v in plain.items()}
                     | {"module.mean": mean, "module.std": std}},
        "robustness": robust(net),
    }  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["sequential", "attribute", "beside the layers", "parallel", "robustness"]
)
@pytest.mark.parametrize("arch", [None, "cifar_resnet8"])
def test_normalization_is_read_from_the_file(tmp_path, kind, arch):
    net = models.build("cifar_resnet20", num_classes=4) if arch is None else network()
    torch.save(states(net)[kind], tmp_path / "net.pt")
    found = load_checkpoint(tmp_path / "net.pt", arch)
    read = normalization(found.normalize)
    np.testing.assert_array_equal(np.float32(read.mean), np.float32(MEAN))
    np.testing.assert_array_equal(np.float32(read.std), np.float32(STD))
    assert found.provenance.normalize_source == "file"
    assert any("normalized with" in note for note in found.provenance.report.notes)
    for key, tensor in net.state_dict().items():
        assert torch.equal(found.module.state_dict()[key], tensor)


def test_bytes_are_scaled_to_the_unit_interval():
    state = {"mean": torch.tensor([127.5, 51.0, 25.5]), "std": torch.tensor([51.0, 25.5, 255.0])}
    spec, _ = normalization_of(state, nn.Identity())
    assert normalization(spec).mean == pytest.approx((0.5, 0.2, 0.1))
    assert normalization(spec).std == pytest.approx((0.2, 0.1, 1.0))


def test_several_normalizations_require_a_choice(tmp_path):
    torch.save(robust(network(), second=(0.0, 0.0, 0.0)), tmp_path / "net.pt")
    found = load_checkpoint(tmp_path / "net.pt", "cifar_resnet8")
    assert found.provenance.normalize_source == "architecture"
    (note,) = (note for note in found.provenance.report.notes if "several" in note)
    assert "module.normalizer.new_mean" in note
    assert "module.attacker.normalize.new_mean" in note


@pytest.mark.parametrize("way", ["module", "from_module", "file"])
def test_network_that_normalizes_receives_raw_pixels(tmp_path, way):
    """Else images would be normalized twice: by the data set's values, and by the network."""
    net = wrapped()
    given = net
    if way == "from_module":
        given = Network.from_module(net)
    elif way == "file":
        torch.save(net.state_dict(), tmp_path / "net.pt")
        given = load_checkpoint(tmp_path / "net.pt", f"{__name__}:wrapped")
        assert given.normalize == "none"
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (8, 3, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(8) % 4)
    images = load_images(tmp_path / "d.npz")
    used = normalization_for(given, images)
    assert used == normalization("none")
    asked = load_images(tmp_path / "d.npz", normalize="half")
    assert normalization_for(given, asked) == normalization("half")  # who asks is obeyed
    first = trace(given, images, device="cpu").layers[0].features
    assert first.min() >= 0
    assert first.max() <= 1


def test_network_that_normalizes_bytes_receives_bytes():
    net = nn.Sequential()
    net.register_buffer("mean", torch.tensor([123.7, 116.3, 103.5]))
    net.register_buffer("std", torch.tensor([58.4, 57.1, 57.4]))
    spec, (note,) = normalization_of(net.state_dict(), net)
    assert "[0, 255]" in note
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    torch.testing.assert_close(normalization(spec)(pixels), pixels.float())
    images = Images(torch.zeros(2, 3, 4, 4), np.arange(2), ("a", "b"), "x")
    assert normalization_for(net, images) == normalization(spec)


@pytest.mark.parametrize(
    ("mean", "std", "feature_mean", "top"),
    [(MEAN, STD, [5.0], 1), ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0), [0.5], 255)],
)
def test_pixels_are_those_of_the_first_normalization(mean, std, feature_mean, top):
    """A later one normalizes features; a division by 255 has the mean 0, as in YOLO."""
    net = nn.Sequential()
    net.normalize, net.head = Normalize(mean, std), Normalize(feature_mean, [0.5])
    spec, (note,) = normalization_of(net.state_dict(), net)
    assert f"(normalize.mean): its input is pixels in [0, {top}]" in note
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    torch.testing.assert_close(normalization(spec)(pixels), pixels.float() * (top / 255))


def test_unknown_normalization_has_no_source(tmp_path):
    net = models.build("isoresnet", num_classes=3, width=4, depth=1)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    provenance = load_checkpoint(tmp_path / "net.pt", "isoresnet").provenance
    assert (provenance.normalize, provenance.normalize_source) == (None, None)


@pytest.mark.parametrize(
    "state",
    [
        {"mean": torch.ones(3)},  # no spread
        {"bn.running_mean": torch.ones(3), "bn.running_var": torch.ones(3)},
        {"mean": torch.ones(3), "std": torch.ones(64)},
        {"mean": torch.ones(64), "std": torch.ones(64)},
        {"mean": torch.ones(3, dtype=torch.long), "std": torch.ones(3)},
        {"a.mean": torch.ones(3), "b.std": torch.ones(3)},
    ],
)
def test_invalid_normalizations_are_ignored(state):
    assert not normalizers(state)
    assert normalization_of(state, nn.Identity()) == (None, ())


@pytest.mark.parametrize(
    "std", [(0.0, 1.0, 1.0), (-1.0, 1.0, 1.0), (float("nan"), 1.0, 1.0), (1.0,)]
)
def test_invalid_deviations_are_not_a_normalization(std):
    state = {"mean": torch.tensor(MEAN), "std": torch.tensor(std)}
    assert normalization_of(state, nn.Identity()) == (None, ())
