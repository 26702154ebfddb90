"""A training run in progress: train its epochs, save checkpoints, and resume after a stop."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..arrays.checks import as_count
from ..data import Images
from ..data.images import normalization
from ..errors import ArgumentError, ConvergenceError, DataError, RecordError
from ..storage.files import read_regular
from ..storage.ownership import Owned
from .recipe import Recipe, augment, criterion, learning_rate, parameter_groups
from .resuming import (
    READ_ERRORS,
    differences,
    is_finite,
    read_state,
    require_state,
    serialized,
    shortened,
    with_momenta,
)

_MAX_HISTORY_BYTES = 2**26
_EVALUATION_BATCH = 512


@dataclass(frozen=True)
class Plan:
    """The epochs at which a run evaluates, saves and stops; see `wgeo.train`."""

    epochs: frozenset[int] | None  # to save; None for all
    evaluate_every: int
    terminal_epochs: int | None

    def __post_init__(self) -> None:
        as_count(self.evaluate_every, "evaluate_every", 1)
        if self.terminal_epochs is not None:
            as_count(self.terminal_epochs, "terminal_epochs")

    @classmethod
    def of(
        cls,
        checkpoints: str | Iterable[int],
        epochs: int,
        evaluate_every: int,
        terminal_epochs: int | None,
    ) -> Plan:
        if isinstance(checkpoints, Iterable) and not isinstance(checkpoints, str):
            saved = frozenset(map(_as_epoch, checkpoints))
            if max(saved, default=0) <= epochs:
                return cls(saved, evaluate_every, terminal_epochs)
        elif checkpoints == "all":
            return cls(None, evaluate_every, terminal_epochs)
        elif checkpoints == "auto":
            powers = (2**k for k in range(epochs.bit_length()))
            return cls(frozenset({0, *powers}), evaluate_every, terminal_epochs)
        raise ArgumentError(
            f"checkpoints must be auto, all, or epochs from 0 to {epochs}, not {checkpoints!r}."
        )

    def saves(self, epoch: int) -> bool:
        return self.epochs is None or epoch in self.epochs


class Pixels:
    """Images on the device, normalized batch by batch."""

    def __init__(self, images: Images, device: torch.device) -> None:
        self.x = images.x.to(device)
        self.y = torch.from_numpy(images.y).to(device)
        self.normalize = images.normalize or normalization(images.preset)

    def batch(self, rows: torch.Tensor | slice) -> tuple[torch.Tensor, torch.Tensor]:
        return self.normalize(self.x[rows]), self.y[rows]


@dataclass
class Job:
    """A training run, which `train` advances step by step."""

    module: nn.Module
    images: Images
    test: Images | None
    recipe: Recipe
    plan: Plan
    metadata: dict[str, Any]
    owner: Owned
    device: torch.device
    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.pixels = Pixels(self.images, self.device)
        self.test_pixels = None if self.test is None else Pixels(self.test, self.device)
        self.steps = -(-len(self.images) // self.recipe.batch_size)
        self._check_shapes()
        recipe = self.recipe
        self.optimizer = torch.optim.SGD(
            parameter_groups(self.module, recipe, self.pixels.batch(slice(0, 2))[0]),
            lr=recipe.lr,
            momentum=recipe.momentum,
            fused=self.device.type in ("cpu", "cuda"),
        )

    @property
    def terminal_epoch(self) -> int | None:
        return terminal_epoch(self.history)

    @property
    def folder(self) -> Path:
        return self.owner.path

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or `terminal_epochs` of the terminal phase."""
        extra = self.plan.terminal_epochs
        if extra is not None and (start := self.terminal_epoch) is not None:
            return self.epoch >= min(self.recipe.epochs, start + extra)
        return self.epoch >= self.recipe.epochs

    def begin(self, resume: bool) -> None:
        """Restore the run in the folder, or save the initialization as epoch 0 of a new one."""
        last = self.folder / "last.pt"
        restores = resume and last.exists()
        if restores:
            self._restore(last)
        # Entries that are infinite from the start, as in a mask, do not show divergence.
        state = self.module.state_dict()
        self.infinite = {k: torch.isinf(v) for k, v in state.items() if not is_finite(v)}
        if restores:
            self._require_remaining_writable()
            evaluated = self.history[-1]["train_accuracy"] is not None
            if self.finished and not (
                evaluated and (self.folder / checkpoint_name(self.epoch)).exists()
            ):
                row = self.history.pop()  # with the new settings, this epoch is the last one
                self._finish_epoch(row, time.perf_counter() - row["seconds"])
            self.owner.write(self._history())
            return
        names = ("last.pt", "history.json", "checkpoints/epoch-*.pt")
        self.owner.require_writable(*names)
        if resume and (later := checkpoints_in(self.folder)[1:]):
            raise RecordError(
                f"{later[-1]} is from an earlier run, but {last}, needed to resume it, is missing. "
                "Choose another folder, or start anew with `resume=False`, which removes the "
                "checkpoints of that run."
            )
        old = (f"checkpoints/{path.name}" for path in checkpoints_in(self.folder))
        self.owner.remove("last.pt", "history.json", *old)
        row = {"epoch": 0, "loss": None, "running_accuracy": None, "lr": None}
        self._finish_epoch(row, time.perf_counter())

    def _require_remaining_writable(self) -> None:
        """Raise RecordError if the rest of this run would replace a file of the user.

        wgeo 0.1 did not record its files. Without a manifest, files whose metadata match this run
        count as written by it.
        """
        later = range(self.epoch + 1, self.recipe.epochs + 1)
        names = ["history.json", *(checkpoint_name(epoch) for epoch in later)]
        if not self.owner.listed():
            self.owner.adopt(*filter(self._belongs_to_run, names))
        self.owner.adopt("last.pt")  # read by `_restore`
        self.owner.require_writable("last.pt", *names)

    def _belongs_to_run(self, name: str) -> bool:
        """Return whether a file's metadata match this run."""
        path = self.folder / name
        try:
            if path.suffix == ".json":
                record = json.loads(read_regular(path, _MAX_HISTORY_BYTES))
                rows = zip(record["epochs"], self.history, strict=False)  # one may be longer
                if not record.keys() <= self.record().keys() or any(a != b for a, b in rows):
                    return False  # the file was edited
                metadata = record["settings"]
            else:
                metadata = read_state(path)["wgeo"]
            return not differences(metadata, self.metadata)
        except READ_ERRORS:
            return False

    def train(self) -> Iterator[None]:
        """Train all remaining epochs; yield after every step."""
        while not self.finished:
            yield from self._train_epoch()

    def _train_epoch(self) -> Iterator[None]:
        start, recipe, epoch = time.perf_counter(), self.recipe, self.epoch + 1
        generator = recipe.generator(epoch)
        torch.manual_seed(generator.initial_seed())  # for dropout and the like
        order = torch.randperm(len(self.images), generator=generator).to(self.device)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        lr = recipe.lr
        self.module.train()
        for step, rows in enumerate(torch.tensor_split(order, self.steps)):
            x, y = self.pixels.batch(rows)
            if recipe.augment != "none":
                x = augment(x, recipe.augment, generator)
            step_of_run = (epoch - 1) * self.steps + step
            lr = learning_rate(recipe, step_of_run, recipe.epochs * self.steps)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            logits = self._logits(x)
            loss = criterion(recipe.loss, logits, y)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            loss_sum += loss.detach() * len(y)
            correct += (logits.detach().argmax(1) == y).sum()
            yield
        self._check_finite(float(loss_sum), epoch)
        self.epoch = epoch
        n = len(self.images)
        row = {"epoch": epoch, "loss": float(loss_sum) / n, "running_accuracy": int(correct) / n}
        self._finish_epoch({**row, "lr": lr}, start)

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        if self.recipe.precision == "float32":
            return self.module(x)
        with torch.autocast(self.device.type, torch.bfloat16):
            return self.module(x).float()

    def _finish_epoch(self, row: dict[str, Any], start: float) -> None:
        """Evaluate if due, append the epoch to the history, and save."""
        due = self.plan.saves(self.epoch) or self.finished
        accuracy = None
        if due or self.epoch % self.plan.evaluate_every == 0:
            accuracy = self._accuracy(self.pixels)
        row["train_accuracy"] = accuracy
        due = due or (self.terminal_epoch is None and accuracy == 1)
        if self.test_pixels is not None:
            row["test_accuracy"] = None if accuracy is None else self._accuracy(self.test_pixels)
        row["seconds"] = time.perf_counter() - start
        self.history.append(row)
        if due:
            self.owner.write({checkpoint_name(self.epoch): serialized(self._state())})
        # Written after the checkpoint, so that no checkpoint is missing when a run is resumed.
        self.owner.write({"last.pt": serialized(self._resume_state()), **self._history()})

    def _history(self) -> dict[str, str]:
        """Return the file ``history.json``, for `Owned.write`; it is not needed to resume."""
        return {"history.json": json.dumps(self.record(), indent=1)}

    def record(self) -> dict[str, Any]:
        """Return the contents of ``history.json``."""
        return {
            "schema": 1,
            "settings": self.metadata,
            "terminal_epoch": self.terminal_epoch,
            "last_below": last_below(self.history),
            "finished": self.finished,
            "epochs": self.history,
        }

    @torch.no_grad()
    def _accuracy(self, pixels: Pixels) -> float:
        self.module.eval()
        correct = torch.zeros((), dtype=torch.int64, device=self.device)
        for start in range(0, len(pixels.y), _EVALUATION_BATCH):
            x, y = pixels.batch(slice(start, start + _EVALUATION_BATCH))
            correct += (self.module(x).argmax(1) == y).sum()
        return int(correct) / len(pixels.y)

    def _check_finite(self, loss: float, epoch: int) -> None:
        state = self.module.state_dict()
        if math.isfinite(loss) and all(
            torch.equal(torch.isinf(value), self.infinite[name]) and not value.isnan().any()
            if name in self.infinite
            else is_finite(value)
            for name, value in state.items()
        ):
            return
        raise ConvergenceError(
            f"Training diverged in epoch {epoch}: the loss or the weights became infinite or NaN. "
            "Start anew in another folder, with a smaller learning rate (it was "
            f"{self.recipe.lr:g}; try a tenth) or `schedule='onecycle'`."
        )

    def _state(self) -> dict[str, Any]:
        return {
            "state_dict": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": {"schedule": self.recipe.schedule, "step": self.epoch * self.steps},
            "epoch": self.epoch,
            "wgeo": self.metadata,
        }

    def _resume_state(self) -> dict[str, Any]:
        return {**self._state(), "progress": {"history": self.history}}

    def _restore(self, path: Path) -> None:
        advice = f"Choose another folder than {path.parent}, or start anew with `resume=False`."
        try:
            saved, new = read_state(path), self._resume_state()
            for problem, names in (
                ("lacks", new.keys() - saved.keys()),
                ("contains entries that wgeo did not write:", saved.keys() - new.keys()),
            ):
                if names:
                    raise ValueError(f"it {problem} {', '.join(sorted(map(shortened, names)))}")
            changed = differences(saved["wgeo"], self.metadata)
            if not changed:
                require_state(saved, new, self.steps)
                parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
                required = saved["epoch"] > 0 and self.recipe.momentum > 0
                optimizer = with_momenta(
                    saved["optimizer"], new["optimizer"], parameters, required=required
                )
                self.module.load_state_dict(dict(saved["state_dict"]))
                self.optimizer.load_state_dict(optimizer)
                self.epoch, self.history = saved["epoch"], saved["progress"]["history"]
        except READ_ERRORS as error:
            raise RecordError(
                f"{path} cannot be resumed from: {str(error).removesuffix('.')}. {advice}"
            ) from error
        if changed:
            raise RecordError(
                f"{path.parent} contains a run with other settings: {'; '.join(changed)}. {advice}"
            )

    def _check_shapes(self) -> None:
        """Raise an error before training if the network or the test images do not fit."""
        self.module.eval()
        x, _ = self.pixels.batch(slice(0, 2))
        try:
            with torch.no_grad():
                shape = tuple(self.module(x).shape)
        except (RuntimeError, ValueError, TypeError, AssertionError) as error:
            raise ArgumentError(
                f"The network does not accept images of shape {self.images.shape}: {error}"
            ) from error
        if shape != (len(x), self.images.num_classes):
            raise ArgumentError(
                f"The network's output for {len(x)} images has shape {shape}; the "
                f"{self.images.num_classes} classes of {self.images.name} need "
                f"{(len(x), self.images.num_classes)}."
            )
        if self.test is not None and (
            self.test.shape != self.images.shape or self.test.class_names != self.images.class_names
        ):
            raise DataError(
                "The test images have another shape or other classes than the training images."
            )


def _as_epoch(value: Any) -> int:
    """Return an epoch, such as 2.0 or an element of an array or tensor, as an int."""
    number = value.item() if getattr(value, "ndim", None) == 0 else value
    whole = isinstance(number, float) and number.is_integer()
    return as_count(int(number) if whole else number, "an epoch of checkpoints")


def checkpoint_name(epoch: int) -> str:
    """Return the path of an epoch's checkpoint in the run's folder."""
    return f"checkpoints/epoch-{epoch:04d}.pt"


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints of a run, by epoch."""
    paths = (folder / "checkpoints").glob("epoch-*.pt")
    return sorted(paths, key=lambda path: (len(path.name), path.name))


# --- the terminal phase --------------------------------------------------------------------------

# The phase begins when the training accuracy reaches 1 for the last time. Before, the accuracy may
# reach 1 and fall again, for example because weight decay shrinks weights before a batch norm until
# a step is too large (Lobacheva et al. 2021, arXiv:2106.15739).


def last_below(history: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the last evaluated epoch whose training accuracy was below 1, or None."""
    return max((epoch for epoch, accuracy in _evaluated(history) if accuracy < 1), default=None)


def terminal_epoch(history: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the first evaluated epoch after `last_below`, or None."""
    below = last_below(history)
    later = (epoch for epoch, _ in _evaluated(history) if below is None or epoch > below)
    return min(later, default=None)


def departure(history: Sequence[Mapping[str, Any]]) -> str | None:
    """Return a warning if the training accuracy reached 1 and fell again, else None."""
    rows = _evaluated(history)
    first = next((epoch for epoch, accuracy in rows if accuracy == 1), math.inf)
    later = ((accuracy, epoch) for epoch, accuracy in rows if epoch > first)
    lowest, worst = min(later, default=(1, 0))
    if lowest == 1:
        return None
    again = terminal_epoch(history)
    now = (
        f"it ended at {rows[-1][1]:.4g}, outside the terminal phase"
        if again is None
        else f"the terminal phase is counted from epoch {again}, when it reached 1 again"
    )
    return (
        f"Training accuracy reached 1 in epoch {first} and fell below it again, to {lowest:.4g} in "
        f"epoch {worst}; {now}. To prevent this, use a smaller lr or, if weight decay shrinks "
        "convolutions before a batch norm, `decayed='unnormalized'`."
    )


def _evaluated(history: Sequence[Mapping[str, Any]]) -> list[tuple[int, float]]:
    """Return every evaluated epoch and its training accuracy."""
    return [
        (row["epoch"], row["train_accuracy"])
        for row in history
        if row["train_accuracy"] is not None
    ]
