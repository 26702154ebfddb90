"""The command line on other people's checkpoints: which part, which entry, whole folders."""

from __future__ import annotations

import argparse
import json
import os

import pytest
import torch
from command_line import run
from safetensors.torch import save_file

from wgeo import Trajectory, analyze, load_checkpoint, load_images, models
from wgeo.cli.tables import print_analysis

DATA = ("--data", "digits", "--samples", "20")


def network(seed):
    torch.manual_seed(seed)
    return models.build("cifar_resnet8", num_classes=10, in_channels=1, width=4).eval()


def prefixed(prefix, net):
    return {prefix + key: tensor for key, tensor in net.state_dict().items()}


def features(store):
    return torch.from_numpy(Trajectory.load(store).last.copy())


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """Two networks with the features that the command gives of each in a file of its own."""
    folder = tmp_path_factory.mktemp("nets")
    found = []
    for seed in (0, 1):
        net = network(seed)
        torch.save(net.state_dict(), folder / f"{seed}.pt")
        run("trace", folder / f"{seed}.pt", *DATA, "--store", folder / f"store{seed}")
        found.append((net, features(folder / f"store{seed}")))
    assert not torch.equal(found[0][1], found[1][1])
    return found


def test_a_prefix_chooses_between_two_networks(nets, tmp_path):
    (a, _), (b, theirs) = nets
    queue = {"module.queue": torch.ones(8, 16)}
    both = prefixed("module.encoder_q.", a) | prefixed("module.encoder_k.", b) | queue
    torch.save({"state_dict": both}, tmp_path / "moco.pt")
    words = ("trace", tmp_path / "moco.pt", *DATA)
    said = run(*words, "--store", tmp_path / "none", code=2)
    assert len(said.strip().splitlines()) == 1
    assert "module.encoder_q." in said
    assert "--prefix" in said
    run(*words, "--store", tmp_path / "k", "--prefix", "module.encoder_k.")
    assert torch.equal(features(tmp_path / "k"), theirs)
    said = run(*words, "--store", tmp_path / "x", "--prefix", "nothing.", code=2)
    assert "module.encoder_k." in said


def test_a_container_chooses_the_average(nets, tmp_path):
    (a, ours), (b, theirs) = nets
    torch.save({"state_dict": a.state_dict(), "state_dict_ema": b.state_dict()}, tmp_path / "a.pt")
    words = ("trace", tmp_path / "a.pt", *DATA)
    run(*words, "--store", tmp_path / "first")
    assert torch.equal(features(tmp_path / "first"), ours)
    run(*words, "--store", tmp_path / "ema", "--container", "state_dict_ema")
    assert torch.equal(features(tmp_path / "ema"), theirs)
    said = run(*words, "--store", tmp_path / "x", "--container", "teacher", code=2)
    assert "'state_dict_ema'" in said
    assert "--container" in said


@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_of_save_pretrained_is_a_network(nets, tmp_path, shards):
    (a, ours), _ = nets
    folder = tmp_path / "net"
    folder.mkdir()
    state = {key: tensor.contiguous() for key, tensor in a.state_dict().items()}
    keys = list(state)
    if shards == 1:
        save_file(state, folder / "model.safetensors")
    else:
        names = [f"model-{k + 1:05d}-of-{shards:05d}.safetensors" for k in range(shards)]
        for k, name in enumerate(names):
            save_file({key: state[key] for key in keys[k::shards]}, folder / name)
        index = {"weight_map": {key: names[i % shards] for i, key in enumerate(keys)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    files = [folder, *sorted(folder.glob("model*"))[: 3 if shards > 1 else 1]]
    for k, path in enumerate(files):
        run("trace", path, *DATA, "--store", tmp_path / f"store{k}")
        assert torch.equal(features(tmp_path / f"store{k}"), ours)
    if shards > 1:
        os.remove(folder / names[1])
        said = run("trace", folder, *DATA, "--store", tmp_path / "x", code=2)
        assert names[1] in said


def test_analysis_reports_how_the_checkpoint_was_read(nets, tmp_path, capsys):
    (a, _), (b, _) = nets
    state = {key.replace("linear.", "fc."): tensor for key, tensor in a.state_dict().items()}
    saved = {
        "model": {f"module.{key}": tensor for key, tensor in state.items()},
        "args": argparse.Namespace(lr=0.1),
        "best_acc1": 91.5,
    }
    folder = tmp_path / "net"
    folder.mkdir()
    torch.save(saved, folder / "pytorch_model.bin")
    images = load_images("digits", limit=20)
    quick = {"bootstrap": 0, "reference": "none", "mufm": False, "brenier": 0, "alignment": 0}
    done = analyze(load_checkpoint(folder), images, **quick)
    print_analysis(done)
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("cifar_resnet8 (recognized by its tensors) on digits (train)")
    assert "the file states 0.915" in said
    assert (
        "weights: entry 'model' of the file; prefix 'module.' removed; renamed tensors: 2 "
        "(fc.weight -> linear.weight, fc.bias -> linear.bias); classes read as inert "
        "stand-ins: 1 (argparse.Namespace)"
    ) in said
    about = json.loads(json.dumps(done.record["provenance"]))
    assert about["arch_from"] == "tensors"
    assert about["claimed_accuracy"] == {"key": "best_acc1", "value": 0.915}
    report = about["report"]
    assert (report["container"], report["prefix"]) == ("model", "module.")
    assert report["renamed"]["first"] == ["fc.weight -> linear.weight", "fc.bias -> linear.bias"]
    assert report["stand_ins"] == {"count": 1, "first": ["argparse.Namespace"]}
    assert len(about["sha256"]) == 64
    done.record["provenance"]["arch_from"] = "asked"
    print_analysis(done)
    assert capsys.readouterr().out.startswith("cifar_resnet8 on digits")
    both = prefixed("a.", a) | prefixed("b.", b)
    torch.save({"state_dict": both}, tmp_path / "both.pt")
    for words in ((), ("--prefix", "c."), ("--container", "c")):  # analyze passes them on, too
        said = run("analyze", tmp_path / "both.pt", *DATA, "--out", tmp_path / "x", *words, code=2)
        assert (words or ("--prefix",))[0] in said
