"""``wgeo train``: networks to measure."""

from __future__ import annotations

import shlex
from typing import Any

import click

from .root import SEED, command, number, own_folder, say, settings_of


@command(
    "train",
    "Train to the terminal phase, with checkpoints.",
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
    type=click.Choice(["all", "unnormalized"]),
    default="all",
    show_default=True,
    help="unnormalized: no decay of convolutions that a batch norm follows.",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    default="float32",
    show_default=True,
    help="Of the training steps; bfloat16 is faster.",
)
@click.option("--batch-size", default=128, show_default=True)
@click.option(
    "--schedule",
    type=click.Choice(["cosine", "onecycle", "constant"]),
    default="cosine",
    show_default=True,
)
@click.option("--loss", type=click.Choice(["ce", "mse"]), default="ce", show_default=True)
@click.option(
    "--activation",
    type=click.Choice(["relu", "leaky_relu", "tanh", "sigmoid", "silu"]),
    default="relu",
    show_default=True,
)
@click.option(
    "--classifier",
    type=click.Choice(["learned", "etf", "etf-keep"]),
    default="learned",
    show_default=True,
    help="etf: fixed to a simplex ETF, a feature a class; etf-keep: fixed, features as wide.",
)
@click.option("--option", "options", multiple=True, help="Of the architecture, as width=64.")
@click.option("--checkpoints", default="auto", show_default=True, help="auto, all, or 0,1,10,60.")
@click.option("--augment/--no-augment", default=False, show_default=True, help="Crops and flips.")
@click.option("--samples", type=int, help="Train on this many images, class-balanced.")
@click.option("--normalize", help="Preset or 'mean,..;std,..'.")
@click.option("--image-size", type=int, help="Resize and centre-crop to this many pixels.")
@click.option(
    "--skip-broken", is_flag=True, help="Leave out images that cannot be decoded; say which."
)
@click.option("--device", default="auto", show_default=True)
@click.option("--seed", type=SEED, default=0, show_default=True)
def train(
    arch: str,
    source: str,
    out: str,
    options: tuple[str, ...],
    checkpoints: str,
    samples: int | None,
    normalize: str | None,
    image_size: int | None,
    skip_broken: bool,
    **settings: Any,
) -> None:
    """Train to the terminal phase, saving checkpoints on the way; resumes where it stopped.

    Writes OUT/checkpoints/epoch-*.pt and OUT/history.json. SGD with momentum goes on after training
    accuracy 1, where neural collapse happens.
    """
    from ..data import load_images
    from ..training import train as fit

    folder = own_folder(out)
    seed = settings["seed"]
    load: dict[str, Any] = {
        "seed": seed,
        "normalize": normalize,
        "size": image_size,
        "skip_broken": skip_broken,
    }
    images = load_images(source, split="train", limit=samples, **load)
    chosen: Any = checkpoints
    if checkpoints not in ("auto", "all"):
        chosen = [number(text, "--checkpoints") for text in checkpoints.split(",")]
    run = fit(arch, images, folder, options=settings_of(options), checkpoints=chosen, **settings)
    say(f"Training accuracy {run.accuracy:.4f}; checkpoints in {folder / 'checkpoints'}")
    following = ["wgeo", "analyze", run.last, "--data", source, "--out", folder / "analysis"]
    following += ["--image-size", image_size] if image_size else []
    say(f"Next: {shlex.join(map(str, following))}")
