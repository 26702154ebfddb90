"""Checkpoints: all common formats are read, and no code in a file is run."""

from __future__ import annotations

import collections
import copy
import hashlib
import io
import json
import os
import pickle
import sys
import textwrap
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from wgeo import models
from wgeo.checkpoints import Network, load_checkpoint
from wgeo.errors import ArgumentError, CheckpointError, WgeoError

IMAGES = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(3))


def tiny(**options):
    net = models.build("cifar_resnet8", num_classes=4, in_channels=2, width=4, **options)
    return net.eval()


@pytest.fixture
def net():
    return tiny()


def assert_same(loaded, net):
    assert not loaded.module.training
    assert torch.equal(loaded.module(IMAGES), net(IMAGES))


# What people save.

WRAPPERS = {
    "plain": lambda s: s,
    "ordered": lambda s: collections.OrderedDict(s),
    "state_dict": lambda s: {"state_dict": s, "epoch": 7, "best_prec1": torch.tensor(91.0)},
    "model": lambda s: {"model": s, "optimizer": {"state": {0: {"m": torch.ones(3)}}}},
    "model_state_dict": lambda s: {"loss": 0.1, "model_state_dict": s},
    "net": lambda s: {"net": s, "acc": 91.5},
    "ema": lambda s: {"ema": s},
    "state_dict_ema": lambda s: {"state_dict_ema": s},
    "nested": lambda s: {"model": {"state_dict": s}},
    "nested ema": lambda s: {"ema": {"module": s, "decay": 0.999}},
    "unusual": lambda s: {"student": s, "epoch": 7},
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_every_wrapper_is_opened(net, save, wrapper, legacy):
    path = save(WRAPPERS[wrapper](net.state_dict()), _use_new_zipfile_serialization=not legacy)
    loaded = load_checkpoint(path)
    assert_same(loaded, net)
    assert loaded.arch == "cifar_resnet8"
    assert loaded.num_classes == 4
    report = loaded.provenance.to_dict()["report"]
    assert report["kind"] == ("torch (before 1.6)" if legacy else "torch")
    assert report["keys"]["matched"] == report["tensors"] == len(net.state_dict())


@pytest.mark.parametrize(
    "prefix",
    [
        "module.",
        "_orig_mod.",
        "model.",
        "net.",
        "module._orig_mod.",
        "_orig_mod.module.",
        "module.module.",
        "model.module._orig_mod.model.",
    ],
)
def test_every_known_prefix_is_removed(net, save, prefix):
    state = {prefix + key: tensor for key, tensor in net.state_dict().items()}
    loaded = load_checkpoint(save({"state_dict": state}), "cifar_resnet8", 4)
    assert_same(loaded, net)
    found = loaded.provenance.report.prefix
    assert sorted(found.split(".")) == sorted(prefix.replace("_orig_mod.", "", 1).split(".")) or (
        sorted(found.split(".")) == sorted(prefix.split("."))
    )


def test_compiled_parts_and_averaged_weights(net, save):
    state = {k.replace("layer1.", "layer1._orig_mod."): t for k, t in net.state_dict().items()}
    assert_same(load_checkpoint(save(state)), net)
    average = {f"module.{key}": tensor for key, tensor in net.state_dict().items()}
    average["n_averaged"] = torch.tensor(12)
    loaded = load_checkpoint(save(average))
    assert_same(loaded, net)
    assert "n_averaged" in loaded.provenance.report.keys.ignored
    both = net.state_dict() | state  # one name without the wrapper would hide the other
    with pytest.raises(CheckpointError, match="_orig_mod"):
        load_checkpoint(save(both), "cifar_resnet8")


def test_counters_of_batch_norm_may_be_missing(net, save):
    state = {k: t for k, t in net.state_dict().items() if "num_batches" not in k}
    loaded = load_checkpoint(save(state))
    assert_same(loaded, net)
    assert len(loaded.provenance.report.keys.ignored) == 7
    assert loaded.provenance.report.keys.missing == ()


def test_unused_averaged_weights_are_reported(net, save):
    state = net.state_dict()
    other = {key: torch.zeros_like(tensor) for key, tensor in state.items()}
    loaded = load_checkpoint(save({"ema": other, "model": state}))
    assert_same(loaded, net)
    assert loaded.provenance.report.container == "model"
    assert "used 'model', not 'ema'" in loaded.provenance.report.notes


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_become_float32(net, save, dtype):
    state = {k: t.to(dtype) if t.is_floating_point() else t for k, t in net.state_dict().items()}
    module = load_checkpoint(save(state)).module
    assert all(p.dtype is torch.float32 for p in module.parameters())
    assert torch.equal(module.conv1.weight, state["conv1.weight"].float())


def test_safetensors_file_is_read(net, tmp_path):
    path = tmp_path / "net.safetensors"
    save_file(net.state_dict(), path)
    loaded = load_checkpoint(path)
    assert_same(loaded, net)
    assert loaded.provenance.report.kind == "safetensors"
    meta = {"arch": "cifar_resnet8", "options": {"activation": "tanh"}, "normalize": "half"}
    save_file(net.state_dict(), tmp_path / "meta", metadata={"wgeo": json.dumps(meta)})
    loaded = load_checkpoint(tmp_path / "meta")
    assert loaded.normalize == "half"
    assert isinstance(loaded.module.act1, nn.Tanh)


def test_safetensors_header_may_resemble_another_format(tmp_path):
    # The header's length comes first; 19280 is b"PK", 15932 starts with "<", 35615 is gzip's.
    for length in (0x4B50, 0x3E3C, 0x8B1F, 0x0280):
        tensors = {"stem.weight": torch.ones(2, 3), "blocks.0.fc.weight": torch.ones(2, 2)}
        path = tmp_path / f"{length}"
        save_file(tensors, path)
        body = path.read_bytes()
        old = int.from_bytes(body[:8], "little")
        head = body[8 : 8 + old].ljust(length)
        path.write_bytes(length.to_bytes(8, "little") + head + body[8 + old :])
        with pytest.raises(CheckpointError, match=r"does not fit mlp: .*missing"):
            load_checkpoint(path, "mlp")


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d"])
def test_torchvision_resnets_from_disk(save, name):
    net = models.build(f"torchvision:{name}", num_classes=11).eval()
    state = {f"module.{key}": tensor for key, tensor in net.state_dict().items()}
    loaded = load_checkpoint(save({"state_dict": state}))
    assert loaded.arch == f"torchvision:{name}"
    assert loaded.num_classes == 11
    assert loaded.normalize == "imagenet"
    assert "recognized" in loaded.provenance.report.notes[0]
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded.module(images), net(images))


def test_provenance_identifies_the_file(net, save):
    path = save({"state_dict": net.state_dict(), "epoch": 180})
    provenance = load_checkpoint(path, "cifar_resnet8").provenance
    assert provenance.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert provenance.epoch == 180
    found = provenance.to_dict()
    assert json.loads(json.dumps(found)) == found
    assert found["checkpoint"] == str(path)
    assert found["report"]["container"] == "state_dict"
    assert found["report"]["settings"]["width"] == 4
    assert found["report"]["parameters"] == sum(p.numel() for p in net.parameters())
    for epoch, told in ((torch.tensor(7), 7), (torch.ones(2), None), (True, None), ("9", None)):
        path = save({"state_dict": net.state_dict(), "epoch": epoch})
        assert load_checkpoint(path, "cifar_resnet8").provenance.epoch == told


def test_normalisation_is_from_the_file_then_the_architecture(save):
    color = models.build("cifar_resnet8", num_classes=3)
    grey = models.build("cifar_resnet8", num_classes=3, in_channels=1)
    small = models.build("torchvision:resnet18", num_classes=3, image_size=32)
    assert load_checkpoint(save(color.state_dict())).normalize == "imagenet"
    assert load_checkpoint(save(grey.state_dict())).normalize is None
    loaded = load_checkpoint(save(small.state_dict()))
    assert loaded.normalize is None
    assert any("3 x 3" in note for note in loaded.provenance.report.notes)
    meta = {"arch": "cifar_resnet8", "normalize": "cifar10"}
    assert load_checkpoint(save({"model": color.state_dict(), "wgeo": meta})).normalize == "cifar10"


def test_wgeos_own_checkpoints_know_their_architecture(save):
    for arch, options in [
        ("isoplain", {"width": 5, "depth": 2, "activation": "tanh"}),
        ("vit", {"width": 32, "depth": 1, "heads": 8, "activation": "silu"}),
    ]:
        net = models.build(arch, num_classes=4, in_channels=2, image_size=8, **options).eval()
        meta = {"arch": arch, "options": options, "num_classes": 4, "in_channels": 2, "seed": 0}
        loaded = load_checkpoint(save({"state_dict": net.state_dict(), "wgeo": meta, "epoch": 3}))
        assert_same(loaded, net)
        assert (loaded.arch, loaded.provenance.epoch) == (arch, 3)
        # Someone may store the activation beside the options.
        meta = {**meta, "options": {"heads": 8}, "activation": options["activation"]}
        assert_same(load_checkpoint(save({"state_dict": net.state_dict(), "wgeo": meta})), net)


def test_options_that_shapes_do_not_determine_are_required_or_reported(save):
    net = models.build("isoresnet", num_classes=4, in_channels=2, activation="tanh", depth=1).eval()
    path = save(net.state_dict())
    with pytest.raises(CheckpointError, match=r"fit isoresnet and isoplain.*Pass"):
        load_checkpoint(path)
    assert_same(load_checkpoint(path, "isoresnet", options={"activation": "tanh"}), net)
    assumed = load_checkpoint(path, "isoresnet")
    assert any("assumed to be relu" in note for note in assumed.provenance.report.notes)
    with pytest.raises(ArgumentError, match="depth is determined by the checkpoint"):
        load_checkpoint(path, "isoresnet", options={"depth": 3})
    options = {"activation": "relu", "depth": 1}
    vit = models.build("vit", num_classes=4, in_channels=2, image_size=8, **options)
    path = save({"state_dict": vit.state_dict()})
    (note,) = load_checkpoint(path, "vit", options={"activation": "relu"}).provenance.report.notes
    assert note.startswith("its number of attention heads is unknown: assumed to be 4")
    both = {"activation": "relu", "heads": 8}
    assert not load_checkpoint(path, "vit", options=both).provenance.report.notes
    meta = {"arch": "vit", "options": {"depth": 1}, "activation": "relu"}
    path = save({"state_dict": vit.state_dict(), "wgeo": meta})
    assert not load_checkpoint(path).provenance.report.notes


def test_a_user_network_with_parts_called_model(tmp_path, monkeypatch, save):
    (tmp_path / "their_code.py").write_text(
        textwrap.dedent("""
        from torch import nn

        class Wrapped(nn.Module):
            def __init__(self, num_classes, hidden=3):
                super().__init__()
                self.model = nn.Sequential(nn.Flatten(), nn.Linear(128, hidden), nn.Tanh(),
                                           nn.Linear(hidden, num_classes))

            def forward(self, x):
                return self.model(x)
        """)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    net = models.build("their_code:Wrapped", num_classes=4, hidden=6).eval()
    state = {f"module.{key}": tensor for key, tensor in net.state_dict().items()}
    loaded = load_checkpoint(save(state), "their_code:Wrapped", options={"hidden": 6})
    assert_same(loaded, net)
    assert loaded.provenance.report.prefix == "module."
    with pytest.raises(CheckpointError, match=r"misshapen: .*model\.1|missing: model\.1"):
        load_checkpoint(save(state), "their_code:Wrapped")
    meta = {"arch": "their_code:Wrapped", "options": {"hidden": 6, "activation": "relu"}}
    path = save({"state_dict": net.state_dict(), "wgeo": meta})
    assert_same(load_checkpoint(path, "their_code:Wrapped"), net)
    with pytest.raises(CheckpointError, match="A file must not decide which code runs"):
        load_checkpoint(path)


def test_networks_in_memory():
    net = tiny()
    wrapped = Network.from_module(net, normalize="half")
    assert (wrapped.arch, wrapped.num_classes, wrapped.normalize) == ("CifarResNet", 4, "half")
    assert wrapped.provenance.sha256 is None
    with pytest.raises(CheckpointError, match="num_classes="):
        Network.from_module(nn.Sequential(nn.ReLU()))
    assert Network.from_module(nn.Sequential(nn.ReLU()), num_classes=3).num_classes == 3


# What does not fit.


def test_error_for_a_wrong_architecture_names_the_right_one(save):
    path = save({"state_dict": models.build("cifar_resnet20", num_classes=10).state_dict()})
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(path, "cifar_resnet32")
    assert str(path) in str(error.value)
    assert "60 missing: layer1.3.conv1.weight" in str(error.value)
    assert "arch='cifar_resnet20'" in str(error.value)
    with pytest.raises(CheckpointError, match="It fits cifar_resnet20"):
        load_checkpoint(path, "torchvision:resnet18")
    with pytest.raises(CheckpointError, match="head has 10 classes, but num_classes is 100"):
        load_checkpoint(path, "cifar_resnet20", 100)
    with pytest.raises(ArgumentError, match="Unknown architecture"):
        load_checkpoint(path, "cifar_resnet21")


def test_error_for_unknown_weights_names_the_closest_architecture_if_any(save):
    state = models.build("cifar_resnet20", num_classes=10).state_dict()
    state["extra.weight"] = torch.ones(2)
    with pytest.raises(CheckpointError, match=r"closest is cifar_resnet20.*1 unexpected: extra\.w"):
        load_checkpoint(save(state))
    state = models.build("cifar_resnet110", num_classes=10).state_dict()
    state["extra.weight"] = torch.ones(2)  # 1 of 548
    with pytest.raises(CheckpointError, match=r"closest is cifar_resnet110, with 99\.8 %"):
        load_checkpoint(save(state))
    with pytest.raises(CheckpointError, match=r"no built-in .* is close.*some\.weight.*factory"):
        load_checkpoint(save({"some.weight": torch.ones(3, 3)}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_weights_are_refused(net, save, value):
    state = net.state_dict()
    spoilt = [k for k in state if k.startswith("layer1") and state[k].is_floating_point()]
    for key in spoilt:
        state[key].view(-1)[0] = value
    with pytest.raises(CheckpointError, match="NaN or infinity in 10 tensors") as error:
        load_checkpoint(save(state))
    assert ", ".join(spoilt[:5]) in str(error.value)
    assert spoilt[5] not in str(error.value)
    assert "earlier checkpoint" in str(error.value)


def test_numbers_too_large_for_float32(net, save):
    state = {**net.state_dict(), "linear.bias": torch.full((4,), 1e300, dtype=torch.float64)}
    with pytest.raises(CheckpointError, match=r"infinity in 1 tensors: linear\.bias"):
        load_checkpoint(save(state))


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.eye(4).to_sparse(), "is sparse"),
        (torch.ones(4, 4, dtype=torch.complex64), "is complex"),
        (torch.ones(4, 4, device="meta"), "without values"),
        (torch.ones(4, 16, dtype=torch.int64), "int64"),
        (torch.zeros(1).expand(10**9, 10**3), "exhaust memory"),
        (torch.zeros(2**19, 1).expand(2**19, 2**12), "exhaust memory"),
    ],
)
def test_tensors_that_are_not_weights_are_refused(net, save, tensor, said):
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(save({**net.state_dict(), "linear.weight": tensor}))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([torch.ones(3)], "its entries: nothing"),
        ((torch.ones(3), torch.ones(3)), "A list of tensors has no names"),
        (torch.ones(3), "contains a single tensor"),
        (None, "contains nothing"),
        (7, "contains a int"),
        ({}, "its entries: nothing"),
        ({"state_dict": {}}, "no tensors.*its entries: state_dict"),
        ({"a": 1, "b": "c"}, "its entries: a, b"),
        ({"epoch": torch.tensor(3)}, "no tensors"),
        ({1: torch.ones(3)}, "no tensors"),
        ({"G": {"w": torch.ones(3)}, "D": {"w": torch.ones(3)}}, r"no built-in .* close.*\(w, "),
        ({"\x1b[2J": 3}, r"entries: \\x1b\[2J"),
    ],
)
def test_files_without_a_state_dict_are_refused(save, value, said):
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(save(value))


def test_attributes_that_shadow_dict_methods_do_no_harm(net, save):
    class Shadowed:
        def __reduce__(self):
            attributes = {"items": 3, "keys": "no", "values": None, "get": 0}
            return collections.OrderedDict, (), attributes, None, iter(net.state_dict().items())

    path = save(Shadowed())
    assert torch.load(path, weights_only=True).items == 3
    assert_same(load_checkpoint(path), net)


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        (3, "'wgeo' entry is damaged"),
        ({}, "'wgeo' entry is damaged"),
        ({"arch": 3}, "'wgeo' entry is damaged"),
        ({"arch": "cifar_resnet8", "options": 3}, "options .* are damaged"),
        ({"arch": "no_such"}, "Unknown architecture"),
        ({"arch": "cifar_resnet20"}, "does not fit cifar_resnet20.*It fits cifar_resnet8"),
        (
            {"arch": "cifar_resnet8", "note": "x" * 10_000},
            "note in its 'wgeo' entry is not printable text",
        ),
        (
            {"arch": "cifar_resnet8", "options": {"a": "\x1b[2J"}},
            "a in its 'wgeo' entry is not printable text",
        ),
        ({"arch": "os:system"}, "A file must not decide which code runs"),
        ({"arch": "their_gadget:build"}, "A file must not decide which code runs"),
    ],
)
def test_metadata_of_a_file_is_checked(net, save, tmp_path, monkeypatch, meta, said):
    (tmp_path / "their_gadget.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WgeoError, match=said):
        load_checkpoint(save({"state_dict": net.state_dict(), "wgeo": meta}))


@pytest.mark.parametrize("meta", [3, {"arch": 3}, {"arch": "x", "options": 3}, {"arch": "\n"}])
def test_damaged_metadata_are_ignored_if_the_architecture_is_passed(net, save, meta):
    path = save({"state_dict": net.state_dict(), "wgeo": meta})
    with pytest.raises(CheckpointError, match=r"'wgeo' entry .*Pass `arch=`"):
        load_checkpoint(path)
    loaded = load_checkpoint(path, "cifar_resnet8")
    assert_same(loaded, net)
    assert any("'wgeo' entry" in note for note in loaded.provenance.report.notes)


def test_only_the_damaged_metadata_are_ignored(save):
    torch.manual_seed(0)
    settings = {"image_size": 4, "width": 8, "depth": 2}
    mlp = models.build("mlp", num_classes=3, activation="tanh", **settings)
    meta = {"arch": "mlp", "dataset": "my\u00a0set", "normalize": "cifar10"}
    meta["options"] = {"activation": "tanh", "comment": "\n"}
    loaded = load_checkpoint(save({"state_dict": mlp.state_dict(), "wgeo": meta}), "mlp")
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(loaded.module(x), mlp.eval()(x))
    assert loaded.provenance.normalize == "cifar10"
    ignored = [note for note in loaded.provenance.report.notes if "was ignored" in note]
    assert [note.partition(" ")[0] for note in ignored] == ["dataset", "comment"]


@pytest.mark.parametrize("meta", [3, {"arch": "\n"}])
def test_a_checkpoint_of_wgeo_has_no_usual_normalization(save, meta):
    color = models.build("cifar_resnet8", num_classes=3, width=4)
    state = {"state_dict": color.state_dict()}
    usual = load_checkpoint(save(state), "cifar_resnet8").provenance
    assert usual.normalize_source == "architecture"
    damaged = load_checkpoint(save({**state, "wgeo": meta}), "cifar_resnet8").provenance
    assert (damaged.normalize, damaged.normalize_source) == (None, None)


def test_false_sizes_are_not_trusted(net, save):
    options = {"width": 10**9, "depth": 10**9, "activation": "relu"}
    meta = {"arch": "cifar_resnet8", "options": options, "num_classes": 10**12}
    assert_same(load_checkpoint(save({"state_dict": net.state_dict(), "wgeo": meta})), net)


# Files that are no checkpoints.


def test_invalid_paths_are_explained(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "epoch-9.pt").write_bytes(b"x")
    (tmp_path / "run" / "global_step9").mkdir(parents=True)
    for kind in ("model", "optim"):
        (tmp_path / "run" / "global_step9" / f"mp_rank_00_{kind}_states.pt").write_bytes(b"x")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "checkpoint_0009.pth.tar").write_bytes(b"x")
    (tmp_path / "link").symlink_to("gone.pt")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    for name, said in {
        "absent.pt": "There is no checkpoint",
        "folder": "is a folder.*contains no checkpoint",
        "full": r"is a folder.*It contains epoch-9\.pt",
        "run": r"It contains global_step9/mp_rank_00_model_states\.pt\.$",
        "old": r"It contains checkpoint_0009\.pth\.tar\.$",
        "link": r"is a link to gone\.pt, which does not exist",
        "loop": "Cannot read|symbolic links",
        "pipe": "is not a regular file",
        "folder/absent/x.pt": "There is no checkpoint",
        "null\0byte": r"null\\x00byte is not a valid path",
        "x" * 5000: "Cannot read the checkpoint",
    }.items():
        with pytest.raises(CheckpointError, match=said):
            load_checkpoint(str(tmp_path) + "/" + name, "mlp")

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "closed.pt").write_bytes(b"x")
    monkeypatch.setattr("wgeo.checkpoints.reading.open", refuse, raising=False)
    with pytest.raises(CheckpointError, match=r"Cannot read .*closed\.pt: Permission denied"):
        load_checkpoint(tmp_path / "closed.pt")


def test_paths_that_are_not_utf8_are_read(net, tmp_path):
    path = os.fsencode(tmp_path) + b"/net-\xff\xfe\x1b[2J.pt"
    torch.save(net.state_dict(), os.fsdecode(path))
    loaded = load_checkpoint(os.fsdecode(path))
    assert_same(loaded, net)
    said = loaded.provenance.checkpoint
    assert said.endswith(r"net-\udcff\udcfe\x1b[2J.pt")
    said.encode()
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        load_checkpoint(os.fsdecode(path) + "\udcff")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer"),
        (b"\x1f\x8b\x08\x00", "gzip.*unpack it first"),
        (b"\xfd7zXZ\x00\x00\x04", "xz.*unpack it first"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x93NUMPY\x01\x00", "NumPy"),
        (b"hello", "is not a checkpoint"),
        (b"PK\x03\x04", "is damaged"),
        (b"\x80", "is damaged"),
        (b"\x80\x02}q\x00.", "is damaged"),
        (bytes(range(256)) * 8, "is not a checkpoint"),
    ],
)
def test_other_kinds_of_files_are_named(tmp_path, content, said):
    path = tmp_path / "net.pt"
    path.write_bytes(content)
    for trust in (False, True):
        with pytest.raises(CheckpointError, match=said):
            load_checkpoint(path, "mlp", trust=trust)


def test_other_kinds_of_archives_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones(3))
    with pytest.raises(CheckpointError, match="NumPy archive"):
        load_checkpoint(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "a.pt2", "w") as archive:
        archive.writestr("a/data/weights/weight_0", b"x")
        archive.writestr("a/data/sample_inputs/model.pt", b"x")
    with pytest.raises(CheckpointError, match=r"torch\.export\.load\(path\)\.state_dict"):
        load_checkpoint(tmp_path / "a.pt2")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("../../etc/passwd", "x")
    with pytest.raises(CheckpointError, match="zip archive without"):
        load_checkpoint(tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "c.pt", "w") as archive:
        archive.writestr("c/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("c/constants.pkl", b"\x80\x02)q\x00.")
    with pytest.raises(CheckpointError, match=r"TorchScript.*state_dict"):
        load_checkpoint(tmp_path / "c.pt")


@settings(max_examples=60)
@given(st.data())
def test_a_damaged_file_is_one_clear_error_or_harmless(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "net.pt"
    kind = data.draw(st.sampled_from(["zip", "legacy", "safetensors"]))
    state = models.build("mlp", num_classes=2, image_size=2, width=3, depth=1).state_dict()
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    body = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        body = body[: data.draw(st.integers(0, len(body) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 4))):
            body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(body)
    error = None
    try:
        loaded = load_checkpoint(path, "mlp")
    except CheckpointError as raised:
        error = str(raised)
    if error is None:  # flips in values without a checksum, or in padding, can pass
        assert loaded.num_classes == 2
    else:
        assert str(path) in error
        assert len(error) < 3000


def test_flipped_weight_is_detected_if_the_format_has_a_checksum(net, save):
    path = save(net.state_dict())
    body = bytearray(path.read_bytes())
    needle = net.conv1.weight.detach().numpy().tobytes()[:32]
    at = bytes(body).index(needle)
    body[at + 2] ^= 1
    path.write_bytes(body)
    with pytest.raises(CheckpointError, match=r"checksum of its entry .* is wrong"):
        load_checkpoint(path)


# Hostile files: the code in them must not run.

GADGETS = {
    "os.system": lambda t: (os.system, (f"touch {t}",)),
    "eval": lambda t: (eval, (f"open({t!r}, 'w').close()",)),
    "exec": lambda t: (exec, (f"open({t!r}, 'w').close()",)),
    "open": lambda t: (open, (t, "w")),
    "getattr": lambda t: (getattr, (open, "__call__")),
    "subprocess": lambda t: (__import__("subprocess").check_call, (["touch", t],)),
    "runpy": lambda t: (__import__("runpy").run_path, (t,)),
    "numpy": lambda t: (np.save, (t, 3)),
    "torch": lambda t: (torch.save, (3, t)),
    "import": lambda t: (__import__, ("antigravity",)),
    "partial": lambda t: (__import__("functools").partial, (os.system, f"touch {t}")),
}


# What honest files name, too; it is read as inert as the rest.
STOOD_IN = ("numpy", "torch")


class Gadget:
    def __init__(self, name, target):
        self.made = GADGETS[name](target)

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "pickle 4", "hidden"])
@pytest.mark.parametrize("name", GADGETS)
def test_no_code_in_a_file_is_run(net, tmp_path, name, form):
    target = tmp_path / "touched"
    value = {"state_dict": net.state_dict(), "args": Gadget(name, str(target))}
    path = tmp_path / "net.pt"
    if form == "hidden":  # inside a zip that looks whole, as a second pickle of another name
        value = Gadget(name, str(target))
        torch.save(net.state_dict(), path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("net/other.pkl", pickle.dumps(value, 2))
        load_checkpoint(path)
    else:
        if form.startswith("pickle"):
            path.write_bytes(pickle.dumps(value, 4 if form.endswith("4") else 2))
        else:
            torch.save(value, path, _use_new_zipfile_serialization=form == "zip")
        if name in STOOD_IN and form in ("zip", "legacy"):
            loaded = load_checkpoint(path, "cifar_resnet8")
            assert_same(loaded, net)
            assert loaded.provenance.report.stand_ins
        else:
            said = "protocol 4" if form == "pickle 4" else "program other than torch"
            said = said if name in STOOD_IN else "None of it was run"
            with pytest.raises(CheckpointError, match=said):
                load_checkpoint(path, "cifar_resnet8", trust=True)
    assert not target.exists()


def test_only_a_network_that_needs_its_own_code_needs_trust(net, save):
    for value in (net, nn.DataParallel(net)):
        path = save(value)
        assert_same(load_checkpoint(path), net)
        assert load_checkpoint(path).arch == "cifar_resnet8"
        loaded = load_checkpoint(path, trust=True)
        assert_same(loaded, net)
        assert (loaded.arch, loaded.num_classes) == ("CifarResNet", 4)
        assert "trust=True" in loaded.provenance.report.notes[0]
        assert len(loaded.provenance.sha256) == 64
        assert load_checkpoint(path, "cifar_resnet8", trust=True).arch == "cifar_resnet8"
    assert_same(load_checkpoint(save({"model": net, "epoch": 4}), trust=True), net)
    foreign = nn.Sequential(nn.Flatten(), nn.Linear(128, 4)).eval()
    path = save({"net": [foreign]})
    with pytest.raises(CheckpointError, match=r"whole pickled network.*trust=True"):
        load_checkpoint(path)
    with pytest.raises(CheckpointError, match=r"`trust=True` without `arch=`"):
        load_checkpoint(path, "cifar_resnet8", trust=True)
    assert_same(load_checkpoint(path, trust=True), foreign)
    broken = tiny()
    nn.init.constant_(broken.linear.bias, float("nan"))
    for trust in (False, True):
        with pytest.raises(CheckpointError, match="NaN"):
            load_checkpoint(save(broken), trust=trust)


class Stateful(nn.Linear):
    """A layer with extra state that is not a tensor."""

    def get_extra_state(self):
        return {"calls": 3}

    def set_extra_state(self, state):
        pass


def test_extra_state_can_have_any_type(save):
    net = nn.Sequential(nn.Flatten(), Stateful(128, 4)).eval()
    assert load_checkpoint(save(net), trust=True).num_classes == 4
    nn.init.constant_(net[1].bias, float("nan"))
    with pytest.raises(CheckpointError, match=r"infinity in 1 tensors: 1\.bias"):
        load_checkpoint(save(net), trust=True)


def test_of_several_whole_networks_one_is_named(save):
    one, other = (nn.Sequential(nn.Flatten(), nn.Linear(128, 4)).eval() for _ in range(2))
    for value, names in (([one, other], ("0", "1")), ({"a.b": one, "c": [other]}, ("a.b", "c"))):
        path = save(value)
        with pytest.raises(CheckpointError, match=r"several networks that fit.*`container=`"):
            load_checkpoint(path, trust=True)
        for name, net in zip(names, (one, other), strict=True):
            assert_same(load_checkpoint(path, trust=True, container=name), net)
    assert_same(load_checkpoint(save({"a": one, "b": copy.deepcopy(one)}), trust=True), one)
    assert_same(load_checkpoint(save({"a": other, "model": one}), trust=True), one)  # usual
    assert_same(load_checkpoint(save({"net.v1": one}), trust=True), one)
    assert_same(load_checkpoint(save([{"net": one}, 3]), trust=True), one)


def test_trusted_file_with_missing_code_is_a_clear_error(save, monkeypatch):
    class Gone(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Linear(3, 2)

    Gone.__qualname__ = "Gone"
    monkeypatch.setattr(sys.modules[__name__], "Gone", Gone, raising=False)
    path = save(Gone())
    monkeypatch.delattr(sys.modules[__name__], "Gone")
    with pytest.raises(CheckpointError, match=r"needs code that cannot be imported.*Gone"):
        load_checkpoint(path, trust=True)
    with pytest.raises(CheckpointError, match=r"close to its tensors \(part\.weight, part\.bias"):
        load_checkpoint(path)


def rewritten(path, change, compression=zipfile.ZIP_STORED):
    """The archive again, with its parts changed."""
    with zipfile.ZipFile(path) as old:
        parts = {e.filename: old.read(e) for e in old.infolist()}
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, body in change(parts).items():
            new.writestr(name, body)


def test_zip_bombs_are_not_unpacked(net, save):
    path = save(net.state_dict())
    rewritten(path, lambda parts: {**parts, "net/data/0": bytes(2**26)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**20
    with pytest.raises(CheckpointError, match="zip bomb"):
        load_checkpoint(path)


def test_overlapping_zip_entries_are_not_unpacked(net, save):
    path = save(net.state_dict())
    with zipfile.ZipFile(path, "a") as archive:
        for i in range(100):  # a hundred names for one body
            twin = zipfile.ZipInfo(f"net/data/{100 + i}")
            body = max(archive.infolist(), key=lambda e: e.file_size)
            twin.file_size = twin.compress_size = body.file_size
            twin.CRC, twin.header_offset = body.CRC, body.header_offset
            archive.filelist.append(twin)
        archive._didModify = True
    with pytest.raises(CheckpointError, match="zip bomb"):
        load_checkpoint(path)


def memory_bomb(call):
    return {"net/data.pkl": b"\x80\x02" + call + b".", "net/version": b"3\n"}


@pytest.mark.parametrize(
    "call",
    [
        b"c__builtin__\nbytearray\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R",
        b"c_codecs\nencode\nX\x01\0\0\0aX\x04\0\0\0idna\x86R",
        b"ctorch\nTensor\n\x8a\x06\x00\x00\x00\x00\x00\x01\x85R",
        b"}X\x01\0\0\0wctorch\nTensor\n\x8a\x05\x00\x00\x00\x40\x00\x85Rs",
    ],
    ids=["bytearray", "encode", "Tensor", "lazy Tensor"],
)
def test_pickles_that_allocate_huge_memory_are_refused(save, call):
    path = save({"w": torch.ones(2)})
    rewritten(path, lambda _: memory_bomb(call))
    with pytest.raises(CheckpointError):
        load_checkpoint(path)


def test_endless_pickles_are_refused(save, monkeypatch):
    path = save({"w": torch.ones(2)})
    monkeypatch.setattr("wgeo.checkpoints.pickles._MAX_OPS", 10_000)
    rewritten(path, lambda _: memory_bomb(b"]" + b"]0" * 11_000))
    with pytest.raises(CheckpointError, match="pickle instructions"):
        load_checkpoint(path)


def test_storage_larger_than_its_zip_entry_is_refused(net, save):
    path = save({"w": torch.ones(77)})

    def lie(parts):
        name = next(n for n in parts if n.endswith("data.pkl"))
        return {**parts, name: parts[name].replace(b"K\x4d", b"J\x4d\x00\x00\x40")}

    rewritten(path, lie)
    # torch 2.6 notices nothing, and what the tensor declares is refused.
    with pytest.raises(CheckpointError, match=r"is damaged|It was not expanded"):
        load_checkpoint(path, "mlp")


def header(**entries):
    return json.dumps(entries).encode()


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (2**63 - 1, header(w={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]})),
        (10**8, header(w={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]})),
        (None, header(w={"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]})),
        (None, header(w={"dtype": "F32", "shape": [2**62, 8], "data_offsets": [0, 4]})),
        (None, header(w={"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]})),
        (None, header(w={"dtype": "F32", "shape": [1], "data_offsets": [4, 0]})),
        (None, header(w={"dtype": "X99", "shape": [1], "data_offsets": [0, 4]})),
        (
            None,
            header(
                v={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                w={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            ),
        ),
        (None, b'{"w": '),
        (None, b"{" * 5000),
        (None, b"{}"),
        (None, header(__metadata__={"wgeo": "not JSON"})),
    ],
)
def test_safetensors_with_false_headers_are_refused(tmp_path, length, text):
    path = tmp_path / "net.safetensors"
    count = len(text) if length is None else length
    path.write_bytes(count.to_bytes(8, "little") + text + b"\0\0\0\0")
    with pytest.raises(CheckpointError, match=str(path)):
        load_checkpoint(path, "mlp")


# Real networks.


@pytest.mark.parametrize(("depth", "digest"), [(20, "12fca82f"), (32, "d509ac18")])
def test_published_cifar_resnets_are_read(shared, depth, digest):
    path = shared / "checkpoints" / f"resnet{depth}-{digest}.th"
    named = load_checkpoint(path, f"cifar_resnet{depth}", num_classes=10)
    assert named.provenance.sha256.startswith(digest)
    assert named.normalize == "imagenet"
    assert named.provenance.report.keys.fits
    assert named.provenance.report.prefix == "module."
    assert load_checkpoint(path).arch == f"cifar_resnet{depth}"


def test_resnet20_has_its_published_accuracy(shared):
    net = load_checkpoint(shared / "checkpoints" / "resnet20-12fca82f.th")
    with zipfile.ZipFile(shared / "data" / "cifar10_jpeg.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.startswith("test/") and n[-4:] == ".jpg")
        names = names[::25]
        images = [Image.open(io.BytesIO(archive.read(n))).convert("RGB") for n in names]
    classes = sorted({name.split("/")[1] for name in names})
    labels = torch.tensor([classes.index(name.split("/")[1]) for name in names])
    x = torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2) / 255
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    with torch.no_grad():
        accuracy = (net.module((x - mean) / std).argmax(1) == labels).float().mean()
    assert len(labels) == 400
    assert 0.75 < accuracy < 0.87  # 0.809 on 2,000 such images; guessing would give 0.1
