"""Train a network to training accuracy 1 and beyond, saving checkpoints along the way.

Neural collapse and straight paths appear in the *terminal phase of training* (Papyan, Han, Donoho
2020): the epochs after the training error has reached zero. All randomness is a function of the
seed and the epoch. A resumed run therefore equals an uninterrupted one, bit for bit on a CPU.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .. import models
from .._deprecated import moved_names
from ..arrays.checks import pick_device
from ..data import Images
from ..data.images import normalization
from ..errors import ArgumentError, WgeoWarning
from ..results import Result
from ..runtime.progress import track
from ..storage.ownership import owned
from .job import Job, Plan, checkpoint_name, checkpoints_in, departure, last_below
from .recipe import Recipe

CLASSIFIERS = ("learned", "etf", "etf-keep")

__all__ = [
    "TrainingRun",
    "train",
]

if not TYPE_CHECKING:  # otherwise type checkers would accept any name
    __getattr__ = moved_names(__name__)


@dataclass(frozen=True, eq=False, repr=False)
class TrainingRun(Result):
    """The result of a training run.

    ``to_pandas()`` has one row per epoch: `history`.

    Attributes
    ----------
    folder : Path
        Contains ``checkpoints/epoch-*.pt``, ``history.json``, and ``last.pt`` to resume from.
    module : nn.Module
        The trained network, in eval mode, on the device it was trained on.
    history : tuple of dict
        One row per epoch, from 0 (the initialization), with the keys ``epoch``; ``loss`` and
        ``running_accuracy``, means over the epoch's images in train mode (None at 0);
        ``train_accuracy`` and, if test images were given, ``test_accuracy``, in eval mode on all
        images (None if not evaluated); ``lr``, the learning rate of the last step; ``seconds``.
    terminal_epoch : int or None
        The first evaluated epoch after `last_below`; since then, the training accuracy has been 1.
        None if the accuracy is below 1 at the end.
    settings : dict
        The metadata stored in every checkpoint under the key ``wgeo``.

    Examples
    --------
    >>> import wgeo
    >>> digits = wgeo.load_images("digits", limit=20)
    >>> run = wgeo.train("mlp", digits, "runs/tiny", epochs=2, options={"width": 4, "depth": 2})
    >>> [row["epoch"] for row in run.history], run.last.name
    ([0, 1, 2], 'epoch-0002.pt')
    """

    folder: Path
    module: nn.Module = field(repr=False)
    history: tuple[dict[str, Any], ...] = field(repr=False)
    terminal_epoch: int | None
    settings: dict[str, Any] = field(repr=False)

    @property
    def checkpoints(self) -> tuple[Path, ...]:
        """The saved checkpoints, by epoch."""
        return tuple(checkpoints_in(self.folder))

    @property
    def last(self) -> Path:
        """The checkpoint of the last epoch."""
        return self.folder / checkpoint_name(self.history[-1]["epoch"])

    @property
    def last_below(self) -> int | None:
        """The last evaluated epoch whose training accuracy was below 1."""
        return last_below(self.history)

    @property
    def accuracy(self) -> float:
        """Training accuracy after the last epoch, in eval mode."""
        return float(self.history[-1]["train_accuracy"])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-serializable values."""
        return {
            "folder": str(self.folder),
            "checkpoints": [path.name for path in self.checkpoints],
            "accuracy": self.accuracy,
            "terminal_epoch": self.terminal_epoch,
            "last_below": self.last_below,
            "settings": self.settings,
            "history": list(self.history),
        }

    def _table(self) -> list[dict[str, Any]]:
        return list(self.history)

    def _description(self) -> str:
        accuracy = f"training accuracy {self.accuracy:.4g} after {len(self.history) - 1} epochs"
        since = self.terminal_epoch
        terminal = "not in the terminal phase" if since is None else f"1 since epoch {since}"
        return f"{accuracy}, {terminal}; {len(self.checkpoints)} checkpoints in {self.folder}"

    def _curve(self) -> tuple[str, list[float | None]]:
        return "training loss over epochs", [row["loss"] for row in self.history]


def train(
    arch: str | nn.Module,
    images: Images,
    out: str | os.PathLike[str],
    *,
    epochs: int = 60,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    batch_size: int = 128,
    schedule: str = "cosine",
    loss: str = "ce",
    augment: bool | str = False,
    decayed: str = "all",
    precision: str = "float32",
    options: Mapping[str, Any] | None = None,
    activation: str = "relu",
    classifier: str = "learned",
    test: Images | None = None,
    checkpoints: str | Iterable[int] = "auto",
    evaluate_every: int = 1,
    terminal_epochs: int | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    resume: bool = True,
) -> TrainingRun:
    """Train a network on images; resume if `out` contains a run with the same settings.

    All images are kept on the device. Each epoch visits every image once, in random order, in
    batches of nearly equal size.

    Parameters
    ----------
    arch : str or nn.Module
        A name for `wgeo.models.build`, or your own network, which is trained in place.
    images : Images
        The training images, normalized as they specify, or else as is usual for the data set.
    out : path
        Folder of the run: ``checkpoints/epoch-0000.pt``, ..., ``history.json``, ``last.pt``.
    epochs, lr, momentum, weight_decay, batch_size, schedule, loss, seed
        See `Recipe`.
    augment : bool or str
        ``none`` (also False), ``crop``, ``flip`` or ``crop+flip`` (also True); see `Recipe`.
    decayed : {"all", "unnormalized"}
        ``unnormalized`` exempts weights before a batch norm from weight decay; see `Recipe`.
    precision : {"float32", "bfloat16"}
        Precision of the training steps (torch's autocast); see `Recipe`.
    options : mapping, optional
        Options of the architecture (width, depth, ...), as JSON values; not for your own network.
    activation : str
        Activation of the architecture; not for your own network.
    classifier : {"learned", "etf", "etf-keep"}
        ``etf`` fixes the classifier to a simplex ETF and narrows the features to one per class;
        ``etf-keep`` also fixes it, but keeps the width. See `models.with_etf_classifier`.
    test : Images, optional
        Test images; the history also contains the accuracy on them.
    checkpoints : {"auto", "all"} or iterable of int
        Which epochs to save. ``auto``: 0 (the initialization) and powers of two. The last epoch,
        and the first of the terminal phase, are always saved.
    evaluate_every : int
        Number of epochs between evaluations in eval mode; checkpoints are always evaluated.
    terminal_epochs : int, optional
        Stop this number of epochs after the training accuracy has reached 1. If the accuracy falls
        below 1 again, the count restarts. By default, all epochs are run.
    device : str
        ``auto``, ``cpu``, ``cuda``, ...
    resume : bool
        Whether to resume an earlier run in `out`. If False, the files of that run are removed.

    Raises
    ------
    ArgumentError
        The settings are invalid, or the network does not accept the images.
    DataError
        The test images have another shape or other classes.
    RecordError
        `out` cannot be written, is in use by another run, or contains a run that is damaged or has
        other settings; or the run would replace a file that no run wrote or that was changed since.
    ConvergenceError
        The loss or the weights became NaN or infinite. Earlier epochs are kept.

    Warns
    -----
    WgeoWarning
        The training accuracy reached 1 and fell below it again.

    Examples
    --------
    >>> import wgeo
    >>> digits = wgeo.load_images("digits", limit=100)
    >>> small = {"width": 4, "depth": 2}
    >>> run = wgeo.train("isoresnet", digits, "runs/digits", epochs=3, options=small)
    >>> [path.name for path in run.checkpoints]
    ['epoch-0000.pt', 'epoch-0001.pt', 'epoch-0002.pt', 'epoch-0003.pt']
    """
    if not isinstance(images, Images):
        raise ArgumentError(f"images must come from wgeo.load_images, not {type(images).__name__}.")
    if not isinstance(arch, str | nn.Module):
        raise ArgumentError(f"arch must be a name or a network, not {type(arch).__name__}.")
    if isinstance(augment, bool):
        augment = "crop+flip" if augment else "none"
    recipe = Recipe(
        epochs,
        lr,
        momentum,
        weight_decay,
        batch_size,
        schedule,
        loss,
        augment,
        seed,
        decayed,
        precision,
    )
    plan = Plan.of(checkpoints, recipe.epochs, evaluate_every, terminal_epochs)
    target = pick_device(device)
    is_module = isinstance(arch, nn.Module)
    if is_module and (options or activation != "relu"):
        raise ArgumentError("`options=` and `activation=` are only for named architectures.")
    with owned(out) as owner, _reproducible(recipe.seed, target):
        arch_options = {} if is_module else {"activation": activation, **(options or {})}
        module = _build(arch, images, arch_options, classifier)
        metadata = _metadata(arch, images, arch_options, classifier, recipe)
        job = Job(module.to(target), images, test, recipe, plan, metadata, owner, target)
        job.begin(resume)
        title = f"training {metadata['arch']} on {images.name}"
        for _ in track(job.train(), title, max(0, recipe.epochs - job.epoch) * job.steps):
            pass
    warning = departure(job.history)
    if warning is not None:
        warnings.warn(warning, WgeoWarning, stacklevel=2)
    module.eval()
    return TrainingRun(owner.path, module, tuple(job.history), job.terminal_epoch, metadata)


@contextmanager
def _reproducible(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch and make cuDNN deterministic in a ``with`` block."""
    cuda = [device] if device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=cuda),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
    ):
        torch.manual_seed(seed)
        yield


def _image_size(images: Images) -> int | None:
    _, h, w = images.shape
    return h if h == w else None


def _build(
    arch: str | nn.Module, images: Images, options: Mapping[str, Any], classifier: str
) -> nn.Module:
    if classifier not in CLASSIFIERS:
        raise ArgumentError(
            f"Unknown classifier {classifier!r}; choose one of {', '.join(CLASSIFIERS)}."
        )
    if isinstance(arch, nn.Module):
        if classifier != "learned":
            raise ArgumentError(
                "`classifier=` is for named architectures. To fix your own network's classifier, "
                "train wgeo.models.with_etf_classifier(net)."
            )
        return arch
    net = models.build(
        arch,
        num_classes=images.num_classes,
        in_channels=images.shape[0],
        image_size=_image_size(images),
        **options,
    )
    if classifier == "learned":
        return net
    return models.with_etf_classifier(net, "K" if classifier == "etf" else "keep")


def _metadata(
    arch: str | nn.Module,
    images: Images,
    options: Mapping[str, Any],
    classifier: str,
    recipe: Recipe,
) -> dict[str, Any]:
    """Return the metadata of checkpoints, from which the network can be rebuilt and retrained."""
    cls = type(arch)
    return {
        "arch": arch if isinstance(arch, str) else f"{cls.__module__}:{cls.__qualname__}",
        "options": dict(options),
        "classifier": classifier,
        "num_classes": images.num_classes,
        "in_channels": images.shape[0],
        "image_size": _image_size(images),
        "normalize": (images.normalize or normalization(images.preset)).name,
        "seed": recipe.seed,
        "dataset": images.name,
        "data": {"split": images.split, "samples": len(images), "sha256": images.fingerprint},
        "class_names": list(images.class_names),
        "training": asdict(recipe),
    }
