"""``wgeo train``: train networks to analyze."""

from __future__ import annotations

import shlex
from typing import Any

import click

from ..analysis.plan import settings_of
from .job import require_inputs
from .options import image_options
from .root import Choice, command, lock_folder, say, whole_number


@command(
    "train",
    "Train to the terminal phase, saving checkpoints.",
    "wgeo train --arch isoresnet --dataset digits --out runs/digits --weight-decay 5e-3\n"
    "wgeo train --arch cifar_resnet20 --dataset cifar10 --epochs 200 --augment --out runs/r20\n"
    "wgeo train --arch cifar_resnet8 --dataset digits --classifier etf --out runs/etf",
)
@click.option("--arch", required=True, help="An architecture; see `wgeo list archs`.")
@click.option(
    "--dataset", "--data", "source", required=True, help="A name or path; `wgeo list datasets`."
)
@click.option("--out", required=True, help="Folder of the run.")
@click.option("--epochs", default=60, show_default=True)
@click.option("--lr", default=0.1, show_default=True, help="Peak learning rate.")
@click.option("--momentum", default=0.9, show_default=True)
@click.option("--weight-decay", default=5e-4, show_default=True)
@click.option(
    "--decayed",
    type=Choice(["all", "unnormalized"]),
    default="all",
    show_default=True,
    help="unnormalized: no weight decay on layers followed by a batch norm.",
)
@click.option(
    "--precision",
    type=Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Precision of the training steps; bfloat16 is faster.",
)
@click.option("--batch-size", default=128, show_default=True)
@click.option(
    "--schedule",
    type=Choice(["cosine", "onecycle", "constant"]),
    default="cosine",
    show_default=True,
)
@click.option("--loss", type=Choice(["ce", "mse"]), default="ce", show_default=True)
@click.option(
    "--activation",
    type=Choice(["relu", "leaky_relu", "tanh", "sigmoid", "silu"]),
    default="relu",
    show_default=True,
)
@click.option(
    "--classifier",
    type=Choice(["learned", "etf", "etf-keep"]),
    default="learned",
    show_default=True,
    help="etf: a fixed simplex ETF, with the number of features reduced to the number of "
    "classes; etf-keep: the same, without changing the number of features.",
)
@click.option(
    "--option",
    "options",
    multiple=True,
    help="Option of the architecture, such as width=64; may be repeated.",
)
@click.option(
    "--checkpoints",
    default="auto",
    show_default=True,
    help="Epochs to save: auto, all, or a list such as 0,1,10,60.",
)
@click.option(
    "--augment/--no-augment", default=False, show_default=True, help="Random crops and flips."
)
@image_options(limit=0)
@click.option(
    "--resume/--no-resume",
    default=True,
    show_default=True,
    help="Continue the run in OUT, if there is one; with --no-resume, replace it by a new run.",
)
@click.option("--device", default="auto", show_default=True)
def train(
    arch: str,
    source: str,
    out: str,
    options: tuple[str, ...],
    checkpoints: str,
    limit: int,
    normalize: str | None,
    size: int | None,
    skip_broken: bool,
    **settings: Any,
) -> None:
    """Train by SGD with momentum, and save checkpoints; resumable.

    Training continues after training accuracy 1, because neural collapse occurs in this terminal
    phase. The results are OUT/checkpoints/epoch-*.pt and OUT/history.json.
    """
    require_inputs((), source)
    settings |= {"options": settings_of(options), "checkpoints": checkpoints}
    if checkpoints not in ("auto", "all"):
        epochs = [whole_number(text, "--checkpoints") for text in checkpoints.split(",")]
        settings["checkpoints"] = epochs

    from ..data import load_images
    from ..training import train as fit
    from ..training.job import Plan

    Plan.of(settings["checkpoints"], settings["epochs"], 1, None)  # raises errors early
    folder = lock_folder(out)
    seed = settings["seed"]
    load: dict[str, Any] = {
        "seed": seed,
        "normalize": normalize,
        "size": size,
        "skip_broken": skip_broken,
    }
    images = load_images(source, split="train", limit=limit or None, **load)
    run = fit(arch, images, folder, **settings)
    say(f"Training accuracy {run.accuracy:.4f}; checkpoints in {folder / 'checkpoints'}")
    next_command = ["wgeo", "analyze", run.last, "--data", source, "--out", folder / "analysis"]
    for flag, value in (
        ("--samples", limit),
        ("--normalize", normalize),
        ("--image-size", size),
        ("--seed", seed),  # selects the same images
    ):
        next_command += [flag, value] if value else []
    next_command += ["--skip-broken"] if skip_broken else []
    say(f"Next: {shlex.join(map(str, next_command))}")
