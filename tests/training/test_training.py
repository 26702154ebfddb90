"""Training: known updates, schedules, exact resumption, and bad input answered in words."""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import hostile
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from wgeo import load_checkpoint, load_images, train
from wgeo.data import Images
from wgeo.data.images import normalization
from wgeo.errors import ArgumentError, ConvergenceError, DataError, RecordError, WgeoWarning
from wgeo.models import build, simplex_etf
from wgeo.models.etf import FixedLinear
from wgeo.models.parts import classifier_of
from wgeo.training import TrainingRun
from wgeo.training.job import Plan, departure, last_below, terminal_epoch
from wgeo.training.recipe import Recipe, augment, criterion, learning_rate, normalized_weights


def net(seed: int = 0, dropout: float = 0.0) -> nn.Module:
    """A small network with everything that has a state: batch norm, dropout."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.BatchNorm1d(32),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(32, 10),
    )


def blobs(n: int = 60, classes: int = 3, seed: int = 0) -> Images:
    """Images of classes that are far apart."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % classes
    x = (rng.random((n, 1, 4, 4)) * 0.2 + 0.3 * y[:, None, None, None]).astype(np.float32)
    return Images(torch.from_numpy(x), y, tuple("abcdefgh"[:classes]), "blobs")


def small(classes: int = 3) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, classes))


@pytest.fixture(scope="module")
def digits() -> Images:
    return load_images("digits")


def weights(run: TrainingRun) -> dict[str, torch.Tensor]:
    return run.module.state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def saved(path: Path) -> dict:
    return torch.load(path, weights_only=True)


# --- the recipe ------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["ce", "mse"])
def test_one_step_is_the_gradient_step_of_the_stated_objective(loss, tmp_path):
    """theta - lr (grad loss + weight_decay theta), computed here by hand in float64."""
    images, module = blobs(30), small()
    before = {name: p.detach().double() for name, p in module.named_parameters()}
    w1, b1, w2, b2 = before.values()
    x = images.x.flatten(1).double()
    hidden = torch.tanh(x @ w1.T + b1)
    z = hidden @ w2.T + b2
    onehot = torch.eye(3, dtype=torch.float64)[images.y]
    value = {
        "ce": -(torch.log_softmax(z, 1) * onehot).sum(1).mean(),
        "mse": ((z - onehot) ** 2).sum(1).mean() / 2,
    }[loss]
    gz = (torch.softmax(z, 1) - onehot if loss == "ce" else z - onehot) / 30
    gh = gz @ w2 * (1 - hidden**2)
    gradients = [gh.T @ x, gh.sum(0), gz.T @ hidden, gz.sum(0)]
    run = train(
        module,
        images,
        tmp_path,
        epochs=1,
        lr=0.5,
        batch_size=30,
        weight_decay=0.25,
        schedule="constant",
        loss=loss,
    )
    after = dict(run.module.named_parameters())
    for (name, theta), gradient in zip(before.items(), gradients, strict=True):
        expected = theta - 0.5 * (gradient + 0.25 * theta)
        assert torch.allclose(after[name].double(), expected, atol=1e-6), name
    assert run.history[1]["loss"] == pytest.approx(float(value), abs=1e-6)


def test_many_steps_match_a_torch_loop(tmp_path):
    images, module, peer = blobs(40), small(), small()
    recipe = Recipe(epochs=3, lr=0.2, batch_size=16, seed=5)
    train(module, images, tmp_path, epochs=3, lr=0.2, batch_size=16, seed=5)
    optimizer = torch.optim.SGD(peer.parameters(), lr=0.2, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)
    for epoch in (1, 2, 3):
        order = torch.randperm(40, generator=recipe.generator(epoch))
        for rows in (order[:14], order[14:27], order[27:]):
            optimizer.zero_grad()
            labels = torch.from_numpy(images.y)[rows]
            nn.functional.cross_entropy(peer(images.x[rows]), labels).backward()
            optimizer.step()
            schedule.step()
    for ours, theirs in zip(module.parameters(), peer.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)


def test_schedules_match_torch():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.3)
    peer = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
    recipe = Recipe(lr=0.3, schedule="cosine")
    for step in range(40):
        assert learning_rate(recipe, step, 40) == pytest.approx(peer.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        peer.step()


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_one_cycle_rises_then_falls_between_its_stated_ends(steps):
    recipe = Recipe(lr=0.2, schedule="onecycle")
    rates = [learning_rate(recipe, step, steps) for step in range(steps)]
    assert rates[0] == pytest.approx(0.2 / 25)
    assert max(rates) <= 0.2
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert learning_rate(recipe, 30, 100) == pytest.approx(0.2)
    assert learning_rate(recipe, 100, 100) == pytest.approx(0.2e-4)
    assert learning_rate(Recipe(schedule="constant", lr=0.2), steps - 1, steps) == 0.2


def test_mse_is_half_the_mean_squared_distance_to_the_one_hot_labels():
    logits = torch.tensor([[1.0, 0.0, 0.0], [1.0, 2.0, 0.0]])
    assert float(criterion("mse", logits, torch.tensor([0, 1]))) == pytest.approx((0 + 1 + 1) / 4)


@given(st.sampled_from(["none", "crop", "flip", "crop+flip"]), st.integers(0, 50))
def test_augmented_images_are_shifted_and_mirrored_images(kind, seed):
    h, w, pad = 9, 8, 1
    x = torch.rand(3, 2, h, w, generator=torch.Generator().manual_seed(seed)) + 1
    out = augment(x, kind, torch.Generator().manual_seed(seed))
    assert out.shape == x.shape
    shifts = range(-pad, pad + 1) if "crop" in kind else [0]
    for image, got in zip(x, out, strict=True):
        found = []
        for source in [image, image.flip(2)] if "flip" in kind else [image]:
            padded = nn.functional.pad(source, (pad, pad, pad, pad))
            for i in shifts:
                for j in shifts:
                    found.append(padded[:, pad + i : pad + i + h, pad + j : pad + j + w])
        assert any(torch.equal(got, candidate) for candidate in found)


def test_augmentation_varies_and_follows_the_seed():
    x = torch.rand(50, 1, 8, 8)
    a, b, c = (augment(x, "crop+flip", Recipe(seed=0).generator(k)) for k in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    mirrored = augment(x, "flip", Recipe(seed=0).generator(1))
    share = np.mean([torch.equal(i, j) for i, j in zip(x, mirrored, strict=True)])
    assert 0.2 < share < 0.8


# --- what is left behind ---------------------------------------------------------------------


def test_run_reaches_the_terminal_phase_and_reports_it(digits, tmp_path):
    test = load_images("digits", "test")
    with pytest.warns(WgeoWarning, match="reached 1 in epoch .* and fell below it again"):
        run = train(net(), digits, tmp_path, epochs=30, lr=0.2, test=test, device="cpu")
    assert run.accuracy == 1.0
    assert run.history[-1]["test_accuracy"] > 0.9
    rows = {row["epoch"]: row for row in run.history}
    assert sorted(rows) == list(range(31))
    right = [rows[epoch]["train_accuracy"] == 1.0 for epoch in range(31)]
    entered = [epoch for epoch in range(1, 31) if right[epoch] and not right[epoch - 1]]
    assert len(entered) > 1  # the accuracy flickers at this learning rate
    assert run.terminal_epoch == entered[-1] == run.last_below + 1
    assert all(right[entered[-1] :])
    assert [path.name for path in run.checkpoints] == [
        f"epoch-{epoch:04d}.pt" for epoch in sorted({0, 1, 2, 4, 8, 16, 30, *entered})
    ]
    assert run.last.name == "epoch-0030.pt"
    assert rows[0]["loss"] is None
    assert rows[0]["train_accuracy"] < 0.4
    assert rows[30]["loss"] < rows[1]["loss"] / 5
    assert rows[1]["lr"] > rows[30]["lr"] > 0
    assert not run.module.training
    record = json.loads((tmp_path / "history.json").read_text())
    assert record["epochs"] == list(run.history)
    assert (record["finished"], record["terminal_epoch"]) == (True, entered[-1])
    assert record["last_below"] == run.last_below == run.to_dict()["last_below"]
    json.dumps(run.to_dict(), allow_nan=False)


def test_recorded_accuracy_is_that_of_the_saved_network(digits, tmp_path):
    run = train(net(), digits, tmp_path, epochs=2, checkpoints="all")
    for path, row in zip(run.checkpoints, run.history, strict=True):
        module = net(9)
        module.load_state_dict(saved(path)["state_dict"])
        module.eval()
        with torch.no_grad():
            x, y = next(digits.batches(2000, normalization(digits.preset)))
            hits = (module(x).argmax(1).numpy() == y).mean()
        assert row["train_accuracy"] == pytest.approx(hits, abs=1e-9)


def test_checkpoint_contains_what_rebuilds_its_network(digits, tmp_path):
    options = {"width": 4, "depth": 1, "stride": 2}
    run = train("isoresnet", digits, tmp_path, epochs=1, options=options, activation="tanh", seed=7)
    state = saved(run.last)
    assert {"state_dict", "optimizer", "scheduler", "epoch", "wgeo"} <= set(state)
    passport = json.loads(json.dumps(state["wgeo"]))
    assert passport == state["wgeo"] == run.settings
    assert passport["arch"] == "isoresnet"
    assert passport["options"] == {"activation": "tanh", **options}
    assert (passport["num_classes"], passport["in_channels"], passport["image_size"]) == (10, 1, 8)
    assert (passport["normalize"], passport["dataset"], passport["seed"]) == ("digits", "digits", 7)
    assert passport["data"]["sha256"] == digits.fingerprint
    loaded = load_checkpoint(run.last)
    assert loaded.normalize == "digits"
    x, _ = next(digits.batches(50, normalization("digits")))
    with torch.no_grad():
        assert torch.equal(loaded.module(x), run.module(x))


def test_users_network_is_recorded_by_its_class(tmp_path):
    run = train(Own(), blobs(), tmp_path, epochs=1)
    assert saved(run.last)["wgeo"]["arch"] == "test_training:Own"
    loaded = load_checkpoint(run.last, arch="test_training:Own")
    assert same(loaded.module.state_dict(), weights(run))


def test_requested_normalisation_is_used_and_recorded(tmp_path):
    images = load_images("digits", limit=40, normalize="0.25;0.5")
    seen = []
    module = net()
    module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    run = train(module, images, tmp_path, epochs=1)
    assert saved(run.last)["wgeo"]["normalize"] == "0.25;0.5"
    assert torch.equal(seen[0], (images.x[:2] - 0.25) / 0.5)


@pytest.mark.parametrize(
    ("checkpoints", "epochs"),
    [("all", [0, 1, 2, 3, 4, 5]), ([0, 3], [0, 3, 5]), ([], [5]), ("auto", [0, 1, 2, 4, 5])],
)
def test_the_chosen_epochs_are_saved(checkpoints, epochs, tmp_path):
    run = train(small(), blobs(), tmp_path, epochs=5, lr=1e-4, checkpoints=checkpoints)
    assert [int(path.stem.split("-")[1]) for path in run.checkpoints] == epochs
    assert run.terminal_epoch is None


def test_evaluation_every_few_epochs(tmp_path):
    run = train(small(), blobs(), tmp_path, epochs=7, lr=1e-4, checkpoints=[1], evaluate_every=3)
    evaluated = [row["epoch"] for row in run.history if row["train_accuracy"] is not None]
    assert evaluated == [0, 1, 3, 6, 7]
    assert "test_accuracy" not in run.history[-1]


def test_training_stops_after_the_terminal_epochs(tmp_path):
    settings = {"epochs": 200, "lr": 0.2, "schedule": "constant"}
    run = train(small(), blobs(), tmp_path, terminal_epochs=3, checkpoints=[], **settings)
    assert run.terminal_epoch is not None
    assert run.history[-1]["epoch"] == run.terminal_epoch + 3 < 200
    assert [path.name for path in run.checkpoints] == [
        f"epoch-{run.terminal_epoch + k:04d}.pt" for k in (0, 3)
    ]
    again = train(small(), blobs(), tmp_path, terminal_epochs=3, checkpoints=[], **settings)
    assert again.history == run.history


def test_mse_with_tanh_also_reaches_accuracy_one(tmp_path):
    with pytest.warns(WgeoWarning, match="fell below it again"):
        run = train(small(), blobs(), tmp_path, epochs=60, lr=0.2, loss="mse")
    assert run.accuracy == 1.0
    assert run.history[-1]["loss"] < 0.1


def test_random_state_and_settings_of_the_caller_are_restored(tmp_path):
    module = small()
    state, flag = torch.get_rng_state(), torch.backends.cudnn.deterministic
    train(module, blobs(), tmp_path, epochs=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.cudnn.deterministic == flag


# --- the terminal phase, left and entered again ----------------------------------------------


def history_of(accuracies: list[float | None]) -> list[dict]:
    return [{"epoch": k, "train_accuracy": value} for k, value in enumerate(accuracies)]


@pytest.mark.parametrize(
    ("accuracies", "below", "since"),
    [
        ([0.1, None, None], 0, None),
        ([0.1, 0.5, 1.0, 1.0], 1, 2),
        ([0.1, None, 1.0, None, 0.11, None, 1.0, None, 1.0], 4, 6),  # left in epoch 4
        ([0.1, 1.0, 0.99], 2, None),  # left, and not entered again
        ([1.0, 1.0], None, 0),
    ],
)
def test_the_terminal_phase_is_counted_from_the_last_time_accuracy_reached_1(
    accuracies, below, since
):
    history = history_of(accuracies)
    assert (last_below(history), terminal_epoch(history)) == (below, since)


def test_a_departure_is_described():
    assert departure(history_of([0.1, None, 0.5, 1.0, None, 1.0])) is None
    assert departure(history_of([0.1, 0.5])) is None
    collapsed = departure(history_of([0.1, 1.0, 0.11, 0.4, 1.0]))
    assert "reached 1 in epoch 1 and fell below it again, to 0.11 in epoch 2;" in collapsed
    assert "counted from epoch 4" in collapsed
    assert "`decayed='unnormalized'`" in collapsed
    flicker = departure(history_of([0.1, 1.0, 0.9993]))
    assert "; it ended at 0.9993, outside the terminal phase." in flicker


def accuracies(monkeypatch, values: list[float]) -> None:
    """Let evaluations find these accuracies, one after the other."""
    coming = iter(values)
    monkeypatch.setattr("wgeo.training.job.Job._accuracy", lambda *_: next(coming))


def test_run_that_leaves_the_terminal_phase_warns_and_restarts_the_count(tmp_path, monkeypatch):
    accuracies(monkeypatch, [0.3, 0.9, 1.0, 1.0, 0.11, 0.8, 1.0, 1.0, 1.0, 1.0])
    with pytest.warns(WgeoWarning, match="to 0.11 in epoch 4; .* counted from epoch 6"):
        run = train(small(), blobs(), tmp_path, epochs=50, terminal_epochs=3, checkpoints=[1])
    assert (run.terminal_epoch, run.last_below) == (6, 5)
    assert run.history[-1]["epoch"] == 9  # three epochs after the second entry, not the first
    assert [path.name for path in run.checkpoints] == [
        f"epoch-{epoch:04d}.pt" for epoch in (1, 2, 6, 9)
    ]
    record = json.loads((tmp_path / "history.json").read_text())
    assert (record["terminal_epoch"], record["last_below"], record["finished"]) == (6, 5, True)


def test_a_run_that_stops_outside_the_terminal_phase_has_no_terminal_epoch(tmp_path, monkeypatch):
    accuracies(monkeypatch, [0.3, 1.0, 0.5])
    with pytest.warns(WgeoWarning, match="it ended at 0.5, outside the terminal phase"):
        run = train(small(), blobs(), tmp_path, epochs=2)
    assert run.terminal_epoch is None
    assert json.loads((tmp_path / "history.json").read_text())["terminal_epoch"] is None


# --- which weights decay, and at what precision ----------------------------------------------


class Tangled(nn.Module):
    """Layers whose registration order is irrelevant; `forward` determines the order."""

    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)
        self.loose = nn.Conv2d(4, 4, 3, padding=1)
        self.normal = nn.Conv2d(1, 4, 3, padding=1)
        self.twice = nn.Conv2d(4, 4, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.normal(x)))
        x = self.bn2(torch.relu(self.loose(x)))  # a ReLU between: not what is asked for
        x = self.twice(self.bn2(self.twice(x)))  # once before a batch norm, once not
        return self.head(x.mean((2, 3)))


def test_normalized_weights_are_detected_by_computation():
    module = Tangled()
    (found,) = normalized_weights(module, torch.rand(2, 1, 4, 4))
    assert found is module.normal.weight
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.modules())
    assert normalized_weights(small(), torch.rand(2, 1, 4, 4)) == []


class Keyword(nn.Module):
    """A batch norm that is called with a keyword."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

    def forward(self, x):
        return self.norm(input=self.conv(x))


def test_a_weight_is_normalized_only_if_nothing_changes_its_output_before_the_batch_norm():
    x, module = torch.rand(2, 1, 8, 8), Keyword()
    assert normalized_weights(module, x) == [module.conv.weight]
    assert all(part.training for part in module.modules())
    changed = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(2))
    assert normalized_weights(changed, x) == []
    with torch.no_grad():  # with a bias, the function depends on the scale of the weight
        before = changed(x)
        changed[0].weight *= 10
        assert not torch.allclose(changed(x), before, atol=1e-2)
    after = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True))
    assert normalized_weights(after, x) == [after[0].weight]


@pytest.mark.parametrize("arch", ["isoresnet", "isoplain", "cifar_resnet8"])
def test_all_convolutions_of_the_usual_networks_are_normalized(arch):
    module = build(arch, num_classes=3, in_channels=1, image_size=8)
    found = {id(weight) for weight in normalized_weights(module, torch.rand(2, 1, 8, 8))}
    assert found == {id(m.weight) for m in module.modules() if isinstance(m, nn.Conv2d)}


def test_only_normalized_weights_are_exempt_from_decay(tmp_path):
    """Two runs of one step differ by lr weight_decay theta in every weight that decays in one."""
    settings = {"epochs": 1, "lr": 0.5, "batch_size": 60, "schedule": "constant", "momentum": 0.0}

    def after(name: str, **more) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        run = train(Tangled(), blobs(), tmp_path / name, **settings, **more)
        return dict(run.module.named_parameters())

    torch.manual_seed(0)
    theta = dict(Tangled().named_parameters())
    none = after("none", weight_decay=0.0)
    some = after("some", weight_decay=0.25, decayed="unnormalized")
    for name in theta:
        gone = 0 if name == "normal.weight" else 0.5 * 0.25 * theta[name]
        assert torch.allclose(
            none[name] - some[name], torch.as_tensor(gone, dtype=torch.float32), atol=1e-6
        ), name
    assert saved(tmp_path / "some" / "last.pt")["wgeo"]["training"]["decayed"] == "unnormalized"


def test_bfloat16_steps_are_near_float32_steps_and_weights_stay_float32(digits, tmp_path):
    images = part_of(digits)
    runs = {
        precision: train(
            "isoresnet", images, tmp_path / precision, options=TINY, precision=precision, **SETTINGS
        )
        for precision in ("float32", "bfloat16")
    }
    one, other = (weights(run) for run in runs.values())
    assert all(w.dtype == other[name].dtype for name, w in one.items())
    assert not same(one, other)
    first = [run.history[1]["loss"] for run in runs.values()]
    assert first[0] == pytest.approx(first[1], rel=0.02)
    assert runs["bfloat16"].settings["training"]["precision"] == "bfloat16"
    with pytest.raises(RecordError, match="precision was 'bfloat16', now 'float32'"):
        train("isoresnet", images, tmp_path / "bfloat16", options=TINY, **SETTINGS)


# --- determinism and resumption --------------------------------------------------------------


def test_resumed_run_may_end_at_once(tmp_path, monkeypatch):
    settings = {"epochs": 200, "lr": 0.2, "checkpoints": [0], "evaluate_every": 2}
    with monkeypatch.context() as patch:
        interrupt(patch, after_steps=60)
        with pytest.raises(StopError):
            train(small(), blobs(), tmp_path, **settings)
    stood = saved(tmp_path / "last.pt")["epoch"]
    run = train(small(), blobs(), tmp_path, terminal_epochs=0, **settings)
    assert run.terminal_epoch < run.history[-1]["epoch"] == stood
    assert run.last.exists()
    assert run.accuracy == 1.0


SETTINGS = {"epochs": 6, "lr": 0.1, "batch_size": 50, "augment": "crop", "seed": 3}


def part_of(digits: Images, n: int = 330) -> Images:
    return Images(digits.x[:n], digits.y[:n], digits.class_names, "digits", "train", None, "digits")


class StopError(Exception):
    pass


def interrupt(monkeypatch, after_steps: int, kind: type[BaseException] = StopError) -> None:
    """Raise in the middle of an epoch, once."""
    counted = 0

    def counting(*args):
        nonlocal counted
        counted += 1
        if counted == after_steps:
            raise kind
        return criterion(*args)

    monkeypatch.setattr("wgeo.training.job.criterion", counting)


def test_same_seed_same_weights(digits, tmp_path):
    images = part_of(digits)
    a, b = (train("isoresnet", images, tmp_path / k, options=TINY, **SETTINGS) for k in "ab")
    assert same(weights(a), weights(b))
    other = train("isoresnet", images, tmp_path / "c", options=TINY, **{**SETTINGS, "seed": 4})
    assert not same(weights(a), weights(other))


TINY = {"width": 4, "depth": 2, "stride": 2}


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (StopError, {}),
        (KeyboardInterrupt, {}),
        (StopError, {"precision": "bfloat16", "decayed": "unnormalized"}),
    ],
)
def test_an_interrupted_run_resumes_to_the_same_bits(kind, more, digits, tmp_path, monkeypatch):
    images = part_of(digits)

    def go(folder):
        return train(net(dropout=0.3), images, folder, checkpoints="all", **SETTINGS, **more)

    whole = go(tmp_path / "whole")
    for stop in (3, 7 * 2 + 4, 7 * 2):  # in epoch 1; two epochs later, and so on
        with monkeypatch.context() as patch:
            interrupt(patch, stop, kind)
            with pytest.raises(kind):
                go(tmp_path / "parts")
    parts = go(tmp_path / "parts")
    assert same(weights(whole), weights(parts))
    assert len(whole.checkpoints) == len(parts.checkpoints) == 7
    for a, b in zip(whole.checkpoints, parts.checkpoints, strict=True):
        assert same(saved(a)["state_dict"], saved(b)["state_dict"])
        momenta = [saved(path)["optimizer"]["state"] for path in (a, b)]
        for key in momenta[0]:
            one, other = (m[key]["momentum_buffer"] for m in momenta)
            assert torch.equal(one, other)

    def timeless(run):
        return [{k: v for k, v in row.items() if k != "seconds"} for row in run.history]

    assert timeless(whole) == timeless(parts)
    assert whole.terminal_epoch == parts.terminal_epoch


def test_a_finished_run_is_not_trained_again(tmp_path, monkeypatch):
    first = train(small(), blobs(), tmp_path, epochs=2)
    (tmp_path / "history.json").unlink()
    monkeypatch.setattr("wgeo.training.job.criterion", None)
    again = train(small(), blobs(), tmp_path, epochs=2)
    assert same(weights(first), weights(again))
    assert again.history == first.history
    assert json.loads((tmp_path / "history.json").read_text())["epochs"] == list(first.history)


def traced_network() -> nn.Module:
    """A network that says so at every training step, so that a test can kill it between two."""
    torch.manual_seed(0)
    layers = nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 10)
    module = nn.Sequential(nn.Flatten(), *layers)

    def say(module: nn.Module, _: object) -> None:
        if module.training:
            print("step", flush=True)

    module.register_forward_pre_hook(say)
    return module


def train_eight_epochs(folder: str) -> TrainingRun:
    torch.set_num_threads(1)
    images = load_images("digits", limit=300)
    settings = {"epochs": 8, "batch_size": 60, "checkpoints": "all", "device": "cpu"}
    return train(traced_network(), images, folder, **settings)


@pytest.mark.skipif(sys.platform == "win32", reason="kills a process by a POSIX signal")
def test_killed_training_leaves_complete_files_and_continues(tmp_path):
    here = Path(__file__)
    paths = map(str, (here.parents[2], here.parents[1], here.parent))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    script = "import sys, test_training as t; t.train_eight_epochs(sys.argv[1])"
    command = [sys.executable, "-c", script, str(tmp_path / "parts")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        for _ in range(13):  # five steps an epoch: into the third
            assert process.stdout.readline() == b"step\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    left = sorted((tmp_path / "parts").rglob("*.pt"))
    assert [saved(path)["epoch"] for path in left][:2] == [0, 1]  # all open: none is half-written
    threads = torch.get_num_threads()
    try:
        parts, whole = (train_eight_epochs(str(tmp_path / name)) for name in ("parts", "whole"))
    finally:
        torch.set_num_threads(threads)
    assert same(weights(whole), weights(parts))
    assert [path.name for path in whole.checkpoints] == [path.name for path in parts.checkpoints]
    assert not list((tmp_path / "parts").rglob("*.part"))


def test_a_fixed_classifier_is_trained_around_saved_and_loaded(tmp_path):
    images = load_images("digits", limit=200)
    settings = {"epochs": 2, "options": {"width": 4}, "lr": 0.05}
    run = train("cifar_resnet8", images, tmp_path / "etf", classifier="etf", **settings)
    head = classifier_of(run.module)
    assert torch.equal(head.weight, simplex_etf(10))
    assert saved(run.last)["wgeo"]["classifier"] == "etf"
    loaded = load_checkpoint(run.last)
    assert isinstance(classifier_of(loaded.module), FixedLinear)
    assert same(loaded.module.state_dict(), weights(run))
    x, _ = next(images.batches(50, normalization("digits")))
    with torch.no_grad():
        assert torch.equal(loaded.module(x), run.module(x))
    again = train("cifar_resnet8", images, tmp_path / "etf", classifier="etf", **settings)
    assert same(weights(again), weights(run))
    with pytest.raises(RecordError, match="classifier was 'etf', now 'learned'"):
        train("cifar_resnet8", images, tmp_path / "etf", **settings)


def test_a_fixed_classifier_may_keep_the_features_wide(tmp_path):
    images = load_images("digits", limit=100)
    options = {"width": 16, "depth": 1, "stride": 2}
    run = train(
        "isoresnet", images, tmp_path / "a", epochs=1, classifier="etf-keep", options=options
    )
    assert torch.equal(classifier_of(run.module).weight, simplex_etf(10, 16))
    assert same(load_checkpoint(run.last).module.state_dict(), weights(run))
    with pytest.raises(ArgumentError, match="classifier='etf-keep'"):
        train("isoresnet", images, tmp_path / "b", epochs=1, classifier="etf", options=options)
    with pytest.raises(ArgumentError, match="with_etf_classifier"):
        train(small(), blobs(), tmp_path / "b", epochs=1, classifier="etf")


def test_run_without_recorded_settings_continues(tmp_path):
    train(small(), blobs(), tmp_path, epochs=2, schedule="constant")
    state = saved(tmp_path / "last.pt")
    del state["wgeo"]["classifier"]
    for name in ("decayed", "precision"):
        del state["wgeo"]["training"][name]
    state["progress"]["terminal_epoch"] = None
    torch.save(state, tmp_path / "last.pt")
    longer = train(small(), blobs(), tmp_path, epochs=3, schedule="constant")
    assert longer.history[-1]["epoch"] == 3


def test_other_settings_in_the_same_folder_are_refused(tmp_path):
    images = blobs()
    settings = {"epochs": 2, "lr": 0.1}
    train(small(), images, tmp_path, **settings)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for other, says in (
        ({"lr": 0.2}, "lr was 0.1, now 0.2"),
        ({"epochs": 3}, "epochs was 2, now 3"),
        ({"loss": "mse"}, "loss was 'ce', now 'mse'"),
        ({"augment": True}, "augment was 'none', now 'crop\\+flip'"),
    ):
        with pytest.raises(RecordError, match=says) as caught:
            train(small(), images, tmp_path, **{**settings, **other})
        assert "resume=False" in str(caught.value)
    with pytest.raises(RecordError, match="data was"):
        train(small(), blobs(seed=1), tmp_path, **settings)
    with pytest.raises(RecordError, match="arch was"):
        train(Own(), images, tmp_path, **settings)
    assert before == {path: path.read_bytes() for path in before}
    fresh = train(small(), images, tmp_path, epochs=3, lr=0.2, checkpoints=[3], resume=False)
    assert [path.name for path in fresh.checkpoints] == ["epoch-0003.pt"]


class Own(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(16, 3))


def test_a_constant_schedule_may_be_prolonged(tmp_path):
    settings = {"schedule": "constant", "lr": 0.05}
    straight = train(small(), blobs(), tmp_path / "a", epochs=5, **settings)
    train(small(), blobs(), tmp_path / "b", epochs=2, **settings)
    longer = train(small(), blobs(), tmp_path / "b", epochs=5, **settings)
    assert same(weights(straight), weights(longer))
    assert saved(longer.last)["wgeo"]["training"]["epochs"] == 5


def test_damaged_run_is_refused(tmp_path):
    train(small(), blobs(), tmp_path, epochs=1)
    last = tmp_path / "last.pt"
    whole = last.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"nonsense" * 100):
        last.write_bytes(content)
        with pytest.raises(RecordError, match="cannot be resumed from"):
            train(small(), blobs(), tmp_path, epochs=1)
    for state in ({"epoch": 1}, [1, 2], {"wgeo": {}}, {"wgeo": 3}):
        torch.save(state, last)
        with pytest.raises(RecordError):
            train(small(), blobs(), tmp_path, epochs=1)


WRONG = (None, math.nan, math.inf, -5, True, "\x1b[31m", [], {}, torch.zeros(2), 10**400, "x" * 999)


def places(value, path=()):
    """Every place in nested dicts and lists."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield (*path, key)
            yield from places(value[key], (*path, key))


def put(state, path, value):
    """A copy of a state with one value replaced."""
    changed = copy.deepcopy(state)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        *((("epoch",), value, "its epoch is") for value in (math.inf, -5, True, "1", None)),
        (("epoch",), 1, "one row per epoch from 0 to 1"),
        (("epoch",), 10**400, r"one row per epoch from 0 to 1\d+\.\."),
        (("progress",), {}, "history"),
        (("progress", "history"), [], "one row per epoch"),
        (("progress", "history"), [3, "x", None], "row 0 of its history is damaged"),
        (("progress", "history", 1, "epoch"), 2, "row 1 of its history has"),
        (("progress", "history", 1, "loss"), math.inf, "row 1 of its history has"),
        (("progress", "history", 1, "lr"), 10**400, "row 1 of its history has"),
        (("progress", "history", 2, "train_accuracy"), 1.5, "row 2 of its history has"),
        (("progress", "history", 0, "seconds"), None, "row 0 of its history has"),
        (("progress", "history", 0, "notes"), 1, "row 0 of its history is damaged"),
        (("scheduler", "step"), 7, "scheduler is not at epoch 2"),
        (("state_dict", "1.bias"), torch.full((12,), math.nan), "contain NaN or infinity"),
        (("state_dict", "1.bias"), torch.zeros(1).double(), "this run's are torch.float32"),
        (("state_dict", "1.bias"), torch.eye(12).to_sparse(), "must be a dense tensor"),
        (("state_dict", "more"), torch.zeros(1), "other names"),
        (("optimizer", "state", 9), {"momentum_buffer": None}, "other parameters"),
        (("optimizer", "state", 0, "step"), 3, "another kind"),
        (("optimizer", "state", 0, "momentum_buffer"), torch.zeros(3), "momentum 0"),
        (("optimizer", "state", 0, "momentum_buffer"), None, "momentum 0"),
        (("optimizer", "state"), {}, "no momenta"),
        (("optimizer", "param_groups", 0, "params"), [3, 2, 1, 0], "other groups"),
        (("wgeo", "training"), None, "cannot be resumed"),
        (("notes",), 1, "contains entries that wgeo did not write: 'notes'"),
    ],
)
def test_a_wrong_value_in_the_last_state_is_named(stopped, tmp_path, place, value, says):
    folder = shutil.copytree(stopped, tmp_path / "run")
    torch.save(put(saved(folder / "last.pt"), place, value), folder / "last.pt")
    before = files_of(folder)
    with pytest.raises(RecordError, match=says) as caught:
        train(small(), blobs(), folder, epochs=3, schedule="constant")
    assert "cannot be resumed from" in str(caught.value)
    assert "Choose another folder" in str(caught.value)
    assert files_of(folder) == before


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of two epochs that may go on."""
    folder = tmp_path_factory.mktemp("stopped")
    train(small(), blobs(), folder, epochs=2, schedule="constant")
    return folder


def test_any_last_state_is_refused_or_harmless(stopped, tmp_path):
    state = saved(stopped / "last.pt")
    rng = np.random.default_rng(0)
    whole = train(small(), blobs(), tmp_path / "whole", epochs=3, schedule="constant")
    refused = harmless = 0
    tried = list(places(state))[::3]
    for i, place in enumerate(tried):
        folder = shutil.copytree(stopped, tmp_path / str(i))
        torch.save(put(state, place, WRONG[rng.integers(len(WRONG))]), folder / "last.pt")
        before = files_of(folder)
        try:
            run = train(small(), blobs(), folder, epochs=3, schedule="constant")
        except RecordError as error:
            refused += len(str(error)) < 1500 and files_of(folder) == before
        else:
            harmless += same(weights(run), weights(whole)) and run.history[-1]["epoch"] == 3
    assert refused + harmless == len(tried)
    assert refused > harmless


def test_last_state_is_read_as_an_untrusted_file(stopped, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "run")
    canary = tmp_path / "canary"
    bombs, codes = hostile.bombs(), hostile.code_checkpoints(str(canary))
    small_ones = (body for _, body in itertools.chain(bombs, codes) if len(body) < 20_000)
    for body in itertools.islice(small_ones, 0, None, 12):
        (folder / "last.pt").write_bytes(body)
        with pytest.raises(RecordError, match="cannot be resumed from"):
            train(small(), blobs(), folder, epochs=3, schedule="constant")
    assert not canary.exists()


class Counting(nn.Module):
    """A network whose extra state is a dict: how often it ran, with a tensor."""

    def __init__(self):
        super().__init__()
        self.net, self.calls = small(), {"count": 0, "last": torch.zeros(1)}

    def forward(self, x):
        self.calls = {"count": self.calls["count"] + 1, "last": x.detach().sum()[None]}
        return self.net(x)

    def get_extra_state(self):
        return self.calls

    def set_extra_state(self, state):
        self.calls = state


def test_extra_state_need_not_be_a_tensor(tmp_path):
    whole, resumed, images = Counting(), Counting(), blobs()
    train(whole, images, tmp_path / "whole", epochs=2, schedule="constant")
    train(Counting(), images, tmp_path / "run", epochs=1, schedule="constant")
    run = train(resumed, images, tmp_path / "run", epochs=2, schedule="constant")
    assert len(run.history) == 3
    for name, value in whole.net.state_dict().items():
        assert torch.equal(value, resumed.net.state_dict()[name])


class Masked(nn.Module):
    """A network with a mask of minus infinity, as in attention."""

    def __init__(self):
        super().__init__()
        self.net = small()
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))

    def forward(self, x):
        return torch.softmax(self.mask, 0)[0] * self.net(x)


def test_a_diverged_module_is_not_accepted_when_it_is_trained_again(tmp_path):
    net = Masked()
    for _ in range(2):  # the second call restores the last good epoch, then diverges again
        with pytest.raises(ConvergenceError, match="diverged"):
            train(net, blobs(), tmp_path / "run", epochs=9, schedule="constant", lr=1e20)
    saved = torch.load(tmp_path / "run/last.pt", weights_only=True)["state_dict"]
    assert all(torch.isfinite(value).all() for key, value in saved.items() if key != "mask")
    net = small()
    net[-1].bias.data[0] = math.nan  # a value that is not infinite, from the start
    with pytest.raises(ConvergenceError, match="diverged"):
        train(net, blobs(), tmp_path / "nan", epochs=1, schedule="constant", lr=0.05)


def test_a_mask_of_minus_infinity_is_no_divergence_and_is_resumed(tmp_path):
    settings = {"schedule": "constant", "lr": 0.05}
    whole = train(Masked(), blobs(), tmp_path / "whole", epochs=2, **settings)
    train(Masked(), blobs(), tmp_path / "run", epochs=1, **settings)
    resumed = train(Masked(), blobs(), tmp_path / "run", epochs=2, **settings)
    assert same(weights(whole), weights(resumed))


# --- bad input -------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:overflow")
def test_divergence_is_an_error_and_the_last_good_epoch_stays(tmp_path):
    with pytest.raises(ConvergenceError, match=r"diverged in epoch \d+.*smaller learning rate"):
        train(small(), blobs(), tmp_path, epochs=50, lr=1e20, loss="mse", checkpoints="all")
    kept = saved(tmp_path / "last.pt")
    assert all(bool(torch.isfinite(w).all()) for w in kept["state_dict"].values())
    assert len(list((tmp_path / "checkpoints").iterdir())) == kept["epoch"] + 1


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"epochs": 0}, "epochs must be a whole number of at least 1"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"lr": 0.0}, "lr must be a positive"),
        ({"lr": math.nan}, "lr must be a positive"),
        ({"momentum": 1.0}, "momentum must be"),
        ({"weight_decay": -1e-4}, "weight_decay must be"),
        ({"schedule": "linear"}, "Unknown schedule 'linear'; choose one of cosine"),
        ({"loss": "hinge"}, "Unknown loss"),
        ({"classifier": "fixed"}, "Unknown classifier 'fixed'; choose one of learned, etf"),
        ({"augment": "mixup"}, "Unknown augment"),
        ({"decayed": "biases"}, "Unknown decayed 'biases'; choose one of all, unnormalized"),
        ({"precision": "float16"}, "Unknown precision 'float16'; choose one of float32, bfloat16"),
        ({"checkpoints": "some"}, "checkpoints must be auto, all"),
        ({"checkpoints": [7]}, "epochs from 0 to 3"),
        ({"checkpoints": 2}, "epochs from 0 to 3, not 2"),
        ({"checkpoints": torch.tensor([4])}, "epochs from 0 to 3"),
        ({"checkpoints": [True]}, "must be a whole number of at least 0, not True"),
        ({"checkpoints": [math.nan]}, "must be a whole number of at least 0, not nan"),
        ({"checkpoints": [1.7]}, "checkpoints must be a whole number of at least 0, not 1.7"),
        ({"options": {"width": 4}}, "`options=` and `activation=` are only for named"),
        ({"activation": "tanh"}, "`options=` and `activation=` are only for named"),
        ({"evaluate_every": 0}, "evaluate_every"),
        ({"terminal_epochs": -1}, "terminal_epochs"),
        ({"device": "abacus"}, "Device 'abacus' cannot be used"),
    ],
)
def test_invalid_settings_are_refused_before_anything_is_written(settings, says, tmp_path):
    with pytest.raises(ArgumentError, match=says):
        train(small(), blobs(), tmp_path, **{"epochs": 3, **settings})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "epochs",
    [[0, 4, 8], (0.0, 4.0, 8.0), np.linspace(0, 8, 3), np.float32([0, 4, 8]), range(0, 9, 4),
     torch.tensor([0, 4, 8]), torch.tensor([0.0, 4.0, 8.0])],
    ids=str,
)  # fmt: skip
def test_epochs_of_checkpoints_may_be_an_array_or_whole_floats(epochs):
    assert Plan.of(epochs, 8, 1, None).epochs == {0, 4, 8}


def test_networks_that_do_not_fit_the_images_are_refused(digits, tmp_path):
    with pytest.raises(ArgumentError, match="does not accept images of shape"):
        train(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), digits, tmp_path)
    with pytest.raises(ArgumentError, match=r"need \(2, 10\)"):
        train(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), digits, tmp_path)
    with pytest.raises(ArgumentError, match="isoresne"):
        train("isoresnett", digits, tmp_path)
    with pytest.raises(DataError, match="other classes"):
        train(net(), digits, tmp_path, test=blobs())


def test_unwritable_folder_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RecordError, match="Cannot write"):
        train(small(), blobs(), tmp_path / "file")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_runs_repeat_and_checkpoints_open_without_one(digits, tmp_path):
    runs = [train("isoresnet", digits, tmp_path / k, epochs=2, device="cuda") for k in "ab"]
    assert same(weights(runs[0]), weights(runs[1]))
    state = saved(runs[0].last)
    assert all(w.device.type == "cpu" for w in state["state_dict"].values())
