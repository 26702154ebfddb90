"""``wgeo trace``: store features on disk, to be analyzed repeatedly."""

from __future__ import annotations

import shlex
from functools import partial
from typing import Any

import click

from ..runtime.processes import is_rank_zero
from .job import require_inputs, split_names
from .options import data_options, network_options, reading_options
from .root import command, say


@command(
    "trace",
    "Store a network's features on disk.",
    "wgeo trace resnet50.pth --arch torchvision:resnet50 --data imagenet/ "
    "--dtype float16 --store features/r50\n"
    "wgeo analyze features/r50 --solver sliced --out runs/r50",
    together=True,
)
@click.argument("checkpoint")
@click.option("--data", "source", required=True, help="A name or path; see `wgeo list datasets`.")
@click.option("--store", required=True, metavar="DIR", help="Folder for the features.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16", "float64"]),
    help="Number format; by default that of the network.",
)
@click.option(
    "--project",
    type=click.IntRange(min=1),
    metavar="K",
    help="Project layers of more than K features onto K at random (Johnson-Lindenstrauss).",
)
@network_options
@partial(data_options, samples=0)
@reading_options
def trace(
    checkpoint: str,
    arch: str | None,
    num_classes: int | None,
    source: str,
    split: str,
    samples: int,
    normalize: str | None,
    image_size: int | None,
    skip_broken: bool,
    seed: int,
    layers: str | None,
    memory: str | None,
    trust_checkpoint: bool,
    prefix: str | None,
    container: str | None,
    **settings: Any,
) -> None:
    """Store features before and after every block, one memory map per layer; resumable.

    If the command was killed or the disk was full, run it again: it resumes, and produces the same
    bytes. Open the result with `wgeo analyze DIR` or `wgeo.Trajectory.load(DIR)`.
    """
    require_inputs([checkpoint], source)

    from ..checkpoints import load_checkpoint
    from ..data import load_images
    from ..features import trace as follow
    from ..runtime.memory import memory_limit

    net = load_checkpoint(
        checkpoint,
        arch,
        num_classes,
        trust=trust_checkpoint,
        prefix=prefix,
        container=container,
    )
    with memory_limit(memory):
        images = load_images(
            source,
            split=split,
            limit=samples or None,
            seed=seed,
            normalize=normalize,
            size=image_size,
            skip_broken=skip_broken,
        )
        traj = follow(net, images, layers=split_names(layers), **settings)
    if not is_rank_zero():
        return
    say(f"{len(traj)} samples, {len(traj.layers)} layers: {settings['store']}")
    if (projected := traj.settings.get("projected")) is not None:
        low, high = projected["all"]
        say(
            f"Projected onto {projected['width']} features: every distance is preserved up to a "
            f"factor between {low:.2f} and {high:.2f} (99 %), and a typical distance to within "
            f"{projected['typical']:.1%}."
        )
    next_command = ["wgeo", "analyze", settings["store"], "--out", "runs/analysis"]
    say(f"Next: {shlex.join(next_command)}")
