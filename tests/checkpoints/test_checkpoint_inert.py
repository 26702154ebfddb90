"""Objects saved in addition to weights are read as inert stand-ins, and listed."""

from __future__ import annotations

import argparse
import collections
import copy
import dataclasses
import enum
import importlib.util
import json
import pathlib
import random
import tarfile
import warnings
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm

from wgeo import models, trace
from wgeo.checkpoints import Network, load_checkpoint
from wgeo.checkpoints.choosing import fold_parts
from wgeo.checkpoints.loading import claimed_accuracy
from wgeo.checkpoints.reading import fingerprint, read
from wgeo.checkpoints.standins import StandIn, as_array
from wgeo.errors import CheckpointError
from wgeo.models.parts import head_of

IMAGES = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def net():
    return models.build("cifar_resnet8", num_classes=4, in_channels=2, width=4).eval()


def prefixed(prefix, state):
    return {prefix + key: tensor for key, tensor in state.items()}


def assert_same(loaded, net):
    assert torch.equal(loaded.module(IMAGES), net(IMAGES))


class Meter:
    def __init__(self):
        self.sum, self.count = 0.0, 0


class Phase(enum.Enum):
    TRAIN = 1


@dataclasses.dataclass
class Config:
    lr: float = 0.1


class Attributes(dict):
    """A dict with attributes, as EasyDict and its like."""


class Entries(list):
    """A list of some library's own."""


def attributes():
    made = Attributes(lr=0.1)
    made.name = "x"
    return made


def optimizer():
    net = nn.Linear(2, 2)
    return torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)


BESIDE = {
    "namespace": lambda: argparse.Namespace(lr=0.1, out=pathlib.PurePosixPath("runs")),
    "numpy scalar": lambda: np.float64(91.5),
    "numpy state": lambda: np.random.default_rng(0).bit_generator.state,
    "old numpy state": lambda: np.random.RandomState(0).get_state(),
    "python state": random.getstate,
    "path": lambda: pathlib.PosixPath("/data"),
    "meter": Meter,
    "enum": lambda: Phase.TRAIN,
    "dataclass": Config,
    "optimizer": optimizer,
    "scheduler": lambda: torch.optim.lr_scheduler.StepLR(optimizer(), 10),
    "defaultdict": lambda: collections.defaultdict(list, a=[1.0]),
    "empty defaultdict": lambda: collections.defaultdict(list),
    "deque": lambda: collections.deque([1.0, 2.0], maxlen=5),
    "counter": lambda: collections.Counter("abca"),
    "dict with attributes": attributes,
    "list of its own": lambda: Entries([1, 2]),
    "bytes": lambda: b"\xff\x00a",
    "bound method": lambda: Meter().__repr__,
    "class": lambda: Config,
}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("what", BESIDE)
def test_other_objects_next_to_the_tensors_do_no_harm(net, save, what, legacy):
    value = {"args": BESIDE[what](), "state_dict": net.state_dict(), "epoch": 3}
    loaded = load_checkpoint(save(value, _use_new_zipfile_serialization=not legacy))
    assert_same(loaded, net)
    assert loaded.provenance.epoch == 3
    assert loaded.provenance.arch_from == "tensors"
    assert json.dumps(loaded.provenance.to_dict())


def test_stand_ins_are_reported_and_know_nothing_of_the_class(net, save):
    path = save({"args": Config(), "state_dict": net.state_dict()})
    report = load_checkpoint(path).provenance.report
    assert report.stand_ins == (f"{__name__}.Config",)
    value = read(path).value["args"]
    assert isinstance(value, StandIn)
    assert value.state == {"lr": 0.1}
    assert not isinstance(value, Config)


def test_classes_that_others_declared_safe_are_not_trusted(net, save):
    """Code that a program of the user's allows torch to run is not run for wgeo."""
    path = save({"args": Config(), "state_dict": net.state_dict()})
    with torch.serialization.safe_globals([Config]):
        before = set(torch.serialization.get_safe_globals())
        assert isinstance(read(path).value["args"], StandIn)
        assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("kind", ["<f4", ">f8", "<f2", "<i8", "|u1", "|b1"])
def test_numpy_arrays_are_decoded(save, kind):
    for array in (np.arange(12).reshape(3, 4).astype(kind), np.asfortranarray(np.ones((2, 3)))):
        found = as_array(read(save({"a": array})).value["a"])
        assert found.shape == array.shape
        assert np.array_equal(found, array)
    words = read(save({"a": np.array(["x"])})).value["a"]
    assert as_array(words) is None


def test_a_state_dict_of_numpy_arrays(net, save):
    path = save({key: tensor.numpy() for key, tensor in net.state_dict().items()})
    assert_same(load_checkpoint(path), net)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = models.build("cifar_resnet8", num_classes=4, in_channels=2, width=4)
        self.again = self.body
        self.register_buffer("kept", torch.ones(3))
        self.register_buffer("passing", torch.ones(3), persistent=False)


def test_a_whole_network_gives_its_state_dict(save, net):
    whole = Tied()
    path = save(whole)
    found = read(path)
    from wgeo.checkpoints.standins import state_of

    state = state_of(found.value, "x")
    assert state.keys() == whole.state_dict().keys()
    assert all(torch.equal(state[key], t) for key, t in whole.state_dict().items())
    loaded = load_checkpoint(path, prefix="body.")
    assert_same(loaded, whole.body.eval())
    assert any("none of its code" in note for note in loaded.provenance.report.notes)


def test_false_buffers_of_a_whole_network_are_ignored(save):
    whole = Tied()
    expected = whole.body.eval()
    whole.__dict__["_buffers"] = "not a dict"
    assert_same(load_checkpoint(save(whole), prefix="body."), expected)


@pytest.mark.parametrize(
    "prefix",
    ["backbone.", "encoder_q.", "module.1.", "student.backbone.", "model.net.encoder.", "a.b.c.d."],
)
def test_any_prefix_that_fits_is_taken(net, save, prefix):
    beside = {"criterion.weight": torch.ones(4), "queue": torch.ones(3, 5)}
    path = save({"state_dict": {**prefixed(prefix, net.state_dict()), **beside}})
    loaded = load_checkpoint(path)
    assert_same(loaded, net)
    assert loaded.provenance.report.prefix == prefix
    assert loaded.provenance.report.aside == tuple(beside)
    assert_same(load_checkpoint(path, "cifar_resnet8"), net)
    assert_same(load_checkpoint(path, prefix=prefix.removesuffix(".")), net)
    with pytest.raises(CheckpointError, match=r"begins with 'other'.*prefix=.* can be .*"):
        load_checkpoint(path, prefix="other")


def test_two_matching_state_dicts_require_a_choice(net, save):
    other = {k: t + 1 if t.is_floating_point() else t for k, t in net.state_dict().items()}
    state = {**prefixed("encoder_q.", net.state_dict()), **prefixed("encoder_k.", other)}
    for arch in (None, "cifar_resnet8"):
        with pytest.raises(CheckpointError, match=r"'encoder_q\.' and 'encoder_k\.'.*prefix="):
            load_checkpoint(save(state), arch)
        assert_same(load_checkpoint(save(state), arch, prefix="encoder_q."), net)
    path = save({"student": net.state_dict(), "teacher": other})
    with pytest.raises(CheckpointError, match=r"'student' and 'teacher'.*container="):
        load_checkpoint(path)
    assert_same(load_checkpoint(path, container="student"), net)
    with pytest.raises(CheckpointError, match=r"under 'pupil'.*'student', 'teacher'"):
        load_checkpoint(path, container="pupil")
    copies = {
        **prefixed("encoder_q.", net.state_dict()),
        **prefixed("encoder_k.", net.state_dict()),
    }
    assert_same(load_checkpoint(save(copies)), net)  # the same weights twice are no choice


def test_averaged_weights_by_container(net, save):
    other = {k: torch.zeros_like(t) for k, t in net.state_dict().items()}
    path = save(
        {"state_dict": other, "state_dict_ema": net.state_dict(), "optimizer": {"w": other}}
    )
    loaded = load_checkpoint(path, container="state_dict_ema")
    assert_same(loaded, net)
    assert loaded.provenance.report.container == "state_dict_ema"
    assert load_checkpoint(path).provenance.report.container == "state_dict"


def test_nested_lists_and_dicts_are_searched(net, save):
    for value in (
        {"state_dict": [net.state_dict()]},
        [net.state_dict()],
        (3, net.state_dict(), {"state": {}, "param_groups": []}),
        {"run": {"best": {"weights_of": net.state_dict()}}},
        {"checkpoint": {"ema": {"module": net.state_dict()}}},
    ):
        assert_same(load_checkpoint(save(value)), net)


def test_networks_in_a_list_are_chosen_by_number(net, save):
    torch.manual_seed(7)
    other = models.build("cifar_resnet8", num_classes=4, in_channels=2, width=4).eval()
    history = [{"loss": 0.1, "epoch": k} for k in range(20_000)]  # of more dicts than are searched
    path = save({"models": [net.state_dict(), other.state_dict()], "history": history})
    with pytest.raises(CheckpointError, match=r"'models\.0' and 'models\.1'\. Pass `container=`"):
        load_checkpoint(path)
    assert_same(load_checkpoint(path, container="models.1"), other)


def test_a_prefix_without_its_wrapper_is_enough(net, save):
    path = save({**prefixed("module.encoder_q.", net.state_dict()), "module.queue": torch.ones(4)})
    assert_same(load_checkpoint(path, prefix="encoder_q"), net)
    with pytest.raises(CheckpointError, match="no tensor's name begins with 'encoder_k'"):
        load_checkpoint(path, prefix="encoder_k")


def test_averaged_parameters_alone_say_what_is_absent(net, save):
    with pytest.raises(CheckpointError, match="A list of tensors has no names of layers"):
        load_checkpoint(save({"decay": 0.9, "shadow_params": [p.data for p in net.parameters()]}))
    with pytest.raises(CheckpointError, match="A list of tensors has no names of layers"):
        load_checkpoint(save([p.data for p in net.parameters()]))
    shadow = {key: p.data for key, p in net.named_parameters()}
    for arch in (None, "cifar_resnet8"):
        with pytest.raises(CheckpointError, match="no statistics of batch normalization"):
            load_checkpoint(save({"shadow": shadow}), arch)


def test_weights_that_deepspeed_keeps_elsewhere(net, save):
    own = dict(net.named_parameters())
    state = {key: torch.empty(0) if key in own else t for key, t in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"python zero_to_fp32\.py FOLDER OUTPUT"):
        load_checkpoint(save({"module": state, "ds_version": "0.14"}))


def test_head_stored_separately_from_the_backbone(net, save):
    state = {
        ("head.fc." + key[7:] if key.startswith("linear.") else "backbone." + key): tensor
        for key, tensor in net.state_dict().items()
    }
    loaded = load_checkpoint(save(state))
    assert_same(loaded, net)
    report = loaded.provenance.report
    assert "its head, head.fc, is outside the prefix" in report.notes
    assert "fc.weight -> linear.weight" in report.renamed
    assert report.aside == ()


@pytest.mark.parametrize(
    ("arch", "bias"),
    [("torchvision:resnet18", True), ("cifar_resnet20", True), ("cifar_resnet20", False)],
)
def test_a_head_behind_a_dropout(save, arch, bias):
    """``net.fc = Sequential(Dropout(), Linear(d, K))``, as fine-tuning scripts write it."""
    net = models.build(arch, num_classes=7).eval()
    name, head = head_of(net)
    setattr(net, name, nn.Sequential(nn.Dropout(), nn.Linear(head.in_features, 7, bias=bias)))
    loaded = load_checkpoint(save({"model": prefixed("module.", net.state_dict())}))
    assert (loaded.arch, loaded.num_classes) == (arch, 7)
    assert torch.equal(head_of(loaded.module)[1].weight, getattr(net, name)[1].weight)
    assert f"{name}.1.weight -> {name}.weight" in loaded.provenance.report.renamed
    x = torch.randn(2, 3, 32, 32)
    if arch.startswith("cifar") and bias:
        assert torch.equal(loaded.module(x), net.eval()(x))


@pytest.mark.parametrize("name", ["output", "logits", "cls_head", "new_fc", "pred", "last_linear"])
@pytest.mark.parametrize("arch", [None, "cifar_resnet8"])
def test_a_head_of_another_name(net, save, name, arch):
    state = {key.replace("linear.", f"{name}."): t for key, t in net.state_dict().items()}
    loaded = load_checkpoint(save(prefixed("net.", state)), arch)
    assert_same(loaded, net)
    assert f"{name}.weight -> linear.weight" in loaded.provenance.report.renamed


@pytest.mark.parametrize("name", ["embedding", "embed_fc", "contrast_fc", "fc" * 10**5 + "-"])
def test_a_projector_is_no_head(net, save, name):
    state = {key.replace("linear.", f"{name}."): t for key, t in net.state_dict().items()}
    with pytest.raises(CheckpointError, match="2 unexpected"):
        load_checkpoint(save(state), "cifar_resnet8")


def test_head_of_several_layers_is_reported(save):
    net = models.build("torchvision:resnet18", num_classes=7).eval()
    net.fc = nn.Sequential(nn.Linear(512, 16), nn.ReLU(), nn.Linear(16, 7))
    loaded = load_checkpoint(save(net.state_dict()))
    assert loaded.num_classes is None
    (note,) = (each for each in loaded.provenance.report.notes if "no accuracy" in each)
    assert note.startswith("the head in the file is not a linear layer")


def test_an_encoder_without_a_head(net, save):
    state = {k: t for k, t in net.state_dict().items() if not k.startswith("linear")}
    for arch in (None, "cifar_resnet8"):
        for projector in ({}, {"fc.0.weight": torch.ones(4, 16), "fc.2.weight": torch.ones(4, 4)}):
            loaded = load_checkpoint(save({**state, **projector}), arch)
            assert loaded.num_classes is None
            assert any("no accuracy" in note for note in loaded.provenance.report.notes)
    images = (torch.randn(40, 2, 8, 8), np.arange(40) % 4)
    traj = trace(loaded, images, device="cpu")
    assert traj.classifier is None
    assert traj.predictions is None
    net.linear = nn.Identity()
    assert_same(loaded, net)
    body = models.build("torchvision:mnasnet0_5", num_classes=3)  # its head is not called fc
    state = {k: t for k, t in body.state_dict().items() if not k.startswith("classifier")}
    loaded = load_checkpoint(save(state), "torchvision:mnasnet0_5")
    assert models.parts.classifier_of(loaded.module) is None


def test_encoders_of_self_supervised_training_are_read(net, save):
    body = {k: t for k, t in net.state_dict().items() if not k.startswith("linear")}
    projector = {
        "projection_head.0.weight": torch.ones(4, 16),
        "prototypes.weight": torch.ones(9, 4),
    }
    swav = {f"module.{key}": tensor for key, tensor in (body | projector).items()}
    trunk = {f"_feature_blocks.{key}": tensor for key, tensor in body.items()}
    vissl = {"classy_state_dict": {"base_model": {"model": {"trunk": trunk, "heads": {}}}}}
    net.linear = nn.Identity()
    for saved, prefix in ((swav, "module."), (vissl, "_feature_blocks.")):
        loaded = load_checkpoint(save(saved))
        assert loaded.num_classes is None
        assert loaded.provenance.report.prefix == prefix
        assert_same(loaded, net)
    more = {**swav, "module.layer4.0.conv1.weight": torch.ones(2)}  # part of what it computes
    with pytest.raises(CheckpointError, match="layer4"):
        load_checkpoint(save(more), "cifar_resnet8")


@pytest.mark.parametrize("wrapper", ["_fsdp_wrapped_module.", "_orig_mod."])
def test_removed_prefix_is_reported(net, save, wrapper):
    saved = {f"{wrapper}{key}": tensor for key, tensor in net.state_dict().items()}
    loaded = load_checkpoint(save(saved))
    assert loaded.provenance.report.prefix == wrapper
    assert_same(loaded, net)


@pytest.mark.parametrize("key", ["_flat_param", "layer1._fsdp_wrapped_module._flat_param"])
def test_weights_that_fsdp_flattened_are_told(save, key):
    for arch in (None, "cifar_resnet8"):
        with pytest.raises(CheckpointError, match=r"FSDP flattened .*get_model_state_dict"):
            load_checkpoint(save({"model": {key: torch.ones(9), "bn.weight": torch.ones(3)}}), arch)


def test_distributed_checkpoints_are_told(save, tmp_path):
    class Distributed:
        """What FSDP2 saves for one tensor."""

        def __reduce__(self):
            from torch.distributed.tensor import DTensor

            arguments = (DTensor, torch.float32, (3,), (1,), 0, torch.strided, "cpu", False)
            return torch._utils._rebuild_wrapper_subclass, arguments

    with pytest.raises(CheckpointError, match=r"DTensor.*get_model_state_dict"):
        load_checkpoint(save({"weight": Distributed()}))
    folder = tmp_path / "distributed"
    folder.mkdir()
    (folder / ".metadata").write_bytes(b"x")
    (folder / "__0_0.distcp").write_bytes(b"x")
    for path in (folder, folder / "__0_0.distcp"):
        with pytest.raises(CheckpointError, match="dcp_to_torch FOLDER FILE"):
            load_checkpoint(path)


CLAIMS = (
    *("acc", "best_acc", "best_acc1", "best_prec1", "best_top1", "test_acc", "prec1", "val_acc"),
    *("accuracy", "acc@1", "val/acc"),
)


@pytest.mark.parametrize("key", CLAIMS)
def test_the_claimed_accuracy_is_kept(save, key):
    for said, value in [
        (91.5, 0.915),
        (0.915, 0.915),
        (torch.tensor(91.5), 0.915),
        (np.float64(91.5), 0.915),
        (100, 1.0),
        (0, 0.0),
    ]:
        path = save({"state_dict": {"w": torch.ones(2)}, "metrics": {key: said}, "lr": 0.1})
        claim = claimed_accuracy(read(path).value)
        assert claim["key"] == f"metrics.{key}"
        assert claim["value"] == pytest.approx(value)


def test_a_network_carries_the_claim_of_its_file(net, save):
    path = save({"state_dict": net.state_dict(), "best_acc1": 91.5})
    claim = load_checkpoint(path).provenance.claimed_accuracy
    assert claim == {"key": "best_acc1", "value": 0.915}


def test_values_that_are_not_accuracies_are_not_claimed():
    for entries in ({"acc": True}, {"acc": float("nan")}, {"acc": -1}, {"acc": "91"}, {"top": 3},
                    {"train_acc": 0.9}, {"accumulate": 2}, {"acc": torch.ones(2)}, {"acc": 10**400},
                    {"precision": 16}):  # fmt: skip
        assert claimed_accuracy(entries) is None


@pytest.mark.parametrize("word", ["prec", "precision", "top"])
@pytest.mark.parametrize(
    "form", ["{}", "valid_{}", "eval/{}", "{}_val", "val-{}", "best {}", "{}_best", "final_{}"]
)
def test_precision_without_a_rank_is_not_an_accuracy(form, word):
    key = form.format(word)
    assert claimed_accuracy({key: 0.5}) is None
    assert claimed_accuracy({form.format(word + "1"): 0.5}) is not None
    assert claimed_accuracy({form.format("acc"): 0.5}) is not None


def unfolded():
    torch.manual_seed(0)
    yield "spectral", spectral_norm(nn.Conv2d(3, 5, 3)), "spectral"
    yield "transposed", spectral_norm(nn.ConvTranspose2d(4, 4, 3)), "spectral"
    yield "new spectral", parametrizations.spectral_norm(nn.Linear(4, 3)), "spectral"
    yield "new weight", parametrizations.weight_norm(nn.Conv2d(3, 5, 3)), "weight norm"
    yield "other axis", parametrizations.weight_norm(nn.Linear(4, 3), dim=1), "weight norm"
    yield "mask", prune.l1_unstructured(nn.Linear(8, 3), "weight", amount=0.5), "mask"


@pytest.mark.parametrize("case", list(unfolded()), ids=lambda case: case[0])
def test_weights_kept_in_parts_are_folded(case):
    _, part, said = case
    for _ in range(3):
        part(torch.randn(2, *{nn.Linear: (part.weight.shape[1],)}.get(
            type(part), (part.weight.shape[1 if isinstance(part, nn.Conv2d) else 0], 6, 6))
        )) if not hasattr(part, "parametrizations") else None  # fmt: skip
    part.eval()
    inputs = torch.randn(2, 4, 6, 6) if isinstance(part, nn.ConvTranspose2d) else None
    if inputs is not None:
        part(inputs)
    state, notes = fold_parts({f"a.{key}": tensor for key, tensor in part.state_dict().items()})
    assert state.keys() == {"a.weight", "a.bias"}
    assert torch.allclose(state["a.weight"], part.weight, rtol=1e-6, atol=1e-7)
    assert said in notes[0]


def test_missing_parts_are_reported(net, save):
    state = {k.replace("conv1.weight", "conv1.weight_orig"): t for k, t in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"in parts.*weight_orig.*remove_spectral_norm"):
        load_checkpoint(save(state))


def test_quantised_weights_are_reported(save):
    torch.backends.quantized.engine = torch.backends.quantized.supported_engines[-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch means to give them up
        weight = torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)
    with pytest.raises(CheckpointError, match=r"int8.*before quantization"):
        load_checkpoint(save({"w": weight}))


def test_files_saved_without_checksums(net, save):
    torch.serialization.set_crc32_options(False)
    try:
        path = save(net.state_dict())
    finally:
        torch.serialization.set_crc32_options(True)
    loaded = load_checkpoint(path)
    assert_same(loaded, net)
    assert "without checksums" in loaded.provenance.report.notes[0]


# Shards and folders.


def shards(folder, state, count=3):
    folder.mkdir()
    names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
    keys = list(state)
    for i, name in enumerate(names):
        save_file({key: state[key].contiguous() for key in keys[i::count]}, folder / name)
    index = {key: names[i % count] for i, key in enumerate(keys)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return names


def test_shards_by_folder_index_or_shard(net, tmp_path):
    names = shards(tmp_path / "net", net.state_dict())
    for path in (
        tmp_path / "net",
        tmp_path / "net" / "model.safetensors.index.json",
        tmp_path / "net" / names[1],
    ):
        loaded = load_checkpoint(path)
        assert_same(loaded, net)
        assert loaded.provenance.report.kind == "safetensors, 3 shards"
        assert loaded.provenance.sha256 == fingerprint(path)
    (tmp_path / "net" / names[2]).unlink()
    with pytest.raises(CheckpointError, match=rf"missing from its folder: {names[2]}"):
        load_checkpoint(tmp_path / "net")


def test_shards_without_checksums_are_noted(net, tmp_path):
    state = net.state_dict()
    torch.serialization.set_crc32_options(False)
    try:
        for i in range(2):
            part = dict(list(state.items())[i::2])
            torch.save(part, tmp_path / f"pytorch_model-0000{i + 1}-of-00002.bin")
    finally:
        torch.serialization.set_crc32_options(True)
    loaded = load_checkpoint(tmp_path / "pytorch_model-00001-of-00002.bin")
    assert [n for n in loaded.provenance.report.notes if "without checksums" in n]
    assert len({*loaded.provenance.report.notes}) == len(loaded.provenance.report.notes)


def test_unreadable_file_has_no_fingerprint(net, save, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    path = save(net.state_dict())
    monkeypatch.setattr("wgeo.checkpoints.reading.sha256_of", refuse)
    with pytest.raises(CheckpointError, match=r"Cannot read the checkpoint .*: Permission denied"):
        fingerprint(path)


@pytest.mark.parametrize("where", ["/etc/passwd", "../secret.safetensors", 3, "a/b", "", "\0"])
def test_index_cannot_name_files_outside_its_folder(net, tmp_path, where):
    shards(tmp_path / "net", net.state_dict())
    save_file({"w": torch.ones(2)}, tmp_path / "secret.safetensors")
    index = tmp_path / "net" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": where}}))
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "net")


def test_numbered_resnets_are_torchvisions(save):
    """nn.Sequential(*resnet.children()), as in lightly and fastai, with another head."""
    net = models.build("torchvision:resnet18", num_classes=3).eval()
    body = nn.Sequential(*list(net.children())[:-1])
    images = torch.randn(1, 3, 64, 64)
    projector = {"projection_head.layers.0.weight": torch.ones(4, 512)}
    for path in (
        save({"state_dict": prefixed("backbone.", body.state_dict()) | projector}),
        save({"model": prefixed("0.", body.state_dict()) | {"1.2.weight": torch.ones(9)}}),
    ):
        loaded = load_checkpoint(path)
        assert loaded.arch == "torchvision:resnet18"
        assert loaded.num_classes is None
        assert torch.equal(loaded.module(images), body(images).flatten(1))


@pytest.mark.parametrize("channels", [3, 1])
def test_a_folder_of_timm_fits_and_keeps_its_normalization(tmp_path, channels):
    timm = pytest.importorskip("timm")
    net = timm.create_model("test_resnet", num_classes=5, in_chans=channels).eval()
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    own = {"mean": [0.1] * channels, "std": [0.5] * channels}
    config = {"architecture": "test_resnet", "num_classes": 5, "pretrained_cfg": own}
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = load_checkpoint(tmp_path)
    assert (loaded.arch, loaded.num_classes) == ("timm:test_resnet", 5)
    assert loaded.normalize == ";".join(",".join([value] * channels) for value in ("0.1", "0.5"))
    assert loaded.provenance.normalize_source == "file"
    images = torch.randn(1, channels, 64, 64)
    assert torch.equal(loaded.module(images), net(images))
    for damaged in ({"mean": "x", "std": [1]}, {"mean": [0.1], "std": [0]}, {"mean": []}):
        (tmp_path / "config.json").write_text(json.dumps(config | {"pretrained_cfg": damaged}))
        assert load_checkpoint(tmp_path).provenance.normalize_source != "file"


def test_an_archive_with_a_checkpoint_is_to_be_unpacked(net, save, tmp_path):
    path = save(net.state_dict())
    with zipfile.ZipFile(tmp_path / "net.zip", "w") as archive:
        archive.write(path, "run/net.pt")
    with tarfile.open(tmp_path / "net.tar", "w") as archive:
        archive.add(path, "net.pt")
    with pytest.raises(CheckpointError, match=r"Unpack it, and pass a file in it: run/net\.pt"):
        load_checkpoint(tmp_path / "net.zip")
    with pytest.raises(CheckpointError, match="tar archive; unpack it"):
        load_checkpoint(tmp_path / "net.tar")


def test_transformers_resnets_are_torchvisions_renamed(save):
    net = models.build("torchvision:resnet18", num_classes=3).eval()
    state = {hugging(key): tensor for key, tensor in net.state_dict().items()}
    loaded = load_checkpoint(save(state))
    assert loaded.arch == "torchvision:resnet18"
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded.module(images), net(images))


def hugging(key):
    parts = key.split(".")
    stem = {"conv1": "convolution", "bn1": "normalization"}
    if parts[0] in stem:
        return f"resnet.embedder.embedder.{stem[parts[0]]}.{parts[1]}"
    if parts[0] == "fc":
        return f"classifier.1.{parts[1]}"
    start = f"resnet.encoder.stages.{int(parts[0][-1]) - 1}.layers.{parts[1]}"
    if parts[2] == "downsample":
        return f"{start}.shortcut.{('convolution', 'normalization')[int(parts[3])]}.{parts[4]}"
    kind = "convolution" if parts[2].startswith("conv") else "normalization"
    return f"{start}.layer.{int(parts[2][-1]) - 1}.{kind}.{parts[3]}"


def test_config_without_transformers_installed_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"pip install 'wgeo\[hf\]'"):
        load_checkpoint(tmp_path)


transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
)


@transformers
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["resnet", "vit", "convnext", "regnet", "swin", "dinov2"])
def test_folders_of_save_pretrained(tmp_path, kind, capfd):
    from transformers import CONFIG_MAPPING, AutoModelForImageClassification

    sizes = {
        "resnet": {"hidden_sizes": [64, 128, 256, 512], "depths": [2] * 4, "layer_type": "basic"},
        "convnext": {"hidden_sizes": [8, 16, 16, 16], "depths": [1] * 4},
        "regnet": {"hidden_sizes": [8, 16, 16, 16], "depths": [1] * 4, "groups_width": 8,
                   "embedding_size": 8},
        "swin": {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1],
                 "num_heads": [1, 2], "window_size": 4},
    }  # fmt: skip
    tokens = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32,
              "patch_size": 8}  # fmt: skip
    config = CONFIG_MAPPING[kind](num_labels=3, **sizes.get(kind, tokens))
    net = AutoModelForImageClassification.from_config(config).eval()
    net.save_pretrained(tmp_path)
    capfd.readouterr()
    loaded = load_checkpoint(tmp_path)
    assert capfd.readouterr().err == ""  # no progress bars of another library
    assert loaded.arch == ("torchvision:resnet18" if kind == "resnet" else f"hf:{tmp_path}")
    assert loaded.num_classes == 3
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.module(images), net(images).logits)
    net.base_model.save_pretrained(tmp_path / "encoder")
    encoder = load_checkpoint(tmp_path / "encoder")
    assert encoder.num_classes is None
    assert "the encoder was read" in encoder.provenance.report.notes[-1]
    entering = []
    head = net.get_submodule(head_of(net)[0])
    head.register_forward_hook(lambda _, args, out: entering.append(args[0]))
    with torch.no_grad():
        net(images)
        assert torch.equal(encoder.module(images), entering[0])


@transformers
@pytest.mark.filterwarnings("ignore")
def test_an_encoder_without_part_of_its_weights_is_refused(tmp_path):
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=32,
                       patch_size=8)  # fmt: skip
    net = ViTModel(config)  # with a pooler, which no classifier has
    net.save_pretrained(tmp_path)
    assert "pooler.dense.weight" in load_checkpoint(tmp_path).provenance.report.keys.ignored
    state = load_file(tmp_path / "model.safetensors")
    lost = next(iter(key for key in state if "query" in key or "q_proj" in key))
    for changed in (
        {key: tensor for key, tensor in state.items() if key != lost},
        {**state, "encoder.more": torch.ones(2)},
        {**state, lost: torch.ones(3)},
    ):
        save_file(changed, tmp_path / "model.safetensors")
        with pytest.raises(CheckpointError, match="does not fit"):
            load_checkpoint(tmp_path)


@transformers
@pytest.mark.filterwarnings("ignore")
def test_config_cannot_select_code_to_run(tmp_path):
    from wgeo.models.huggingface import huggingface_arch

    evil = {
        "model_type": "vit",
        "auto_map": {"AutoModelForImageClassification": "evil.Net"},
        "_attn_implementation": "someone/kernel",
        "attn_implementation": "someone/kernel",
        "quantization_config": {"quant_method": "evil"},
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32,
        "patch_size": 8, "intermediate_size": 16,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(evil))
    net = huggingface_arch(str(tmp_path)).build(num_classes=3)
    assert type(net).__module__.startswith("transformers.models.vit")
    for change in ({"num_hidden_layers": 10**9}, {"model_type": "timm_wrapper"}):
        (tmp_path / "config.json").write_text(json.dumps({**evil, **change}))
        with pytest.raises(Exception, match=r"claims .* layers|not an image classifier"):
            huggingface_arch(str(tmp_path))


def test_network_may_return_several_outputs(net):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = copy.deepcopy(net)

        def forward(self, x):
            return self.net(x), x

    images = (torch.randn(40, 2, 8, 8), np.arange(40) % 4)
    plain, two = (trace(Network.from_module(each), images, device="cpu") for each in (net, Two()))
    assert np.array_equal(plain.predictions, two.predictions)
