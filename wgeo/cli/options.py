"""What commands that read networks have in common: their options, and what those mean."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import click

from ..errors import ArgumentError
from .root import SEED, F, settings_of

SOLVERS = {
    "exact": "W2 itself, with a certificate; any size that fits the time",
    "sinkhorn": "entropic, on the GPU where there is one; an interval that contains W2",
    "sliced": "mean over random directions; fast, an interval that contains W2",
    "gaussian": "Bures distance of the fitted Gaussians; a lower bound of W2",
}


def network_options(function: F) -> F:
    """Options that say how a checkpoint is read."""
    options = (
        click.option("--arch", help="Architecture; checkpoints made by wgeo know theirs."),
        click.option("--num-classes", type=int, help="Where the checkpoint's head doesn't say."),
        click.option("--prefix", help="Which tensors of the file are the network's: 'encoder_q.'."),
        click.option("--container", help="Which entry of the file, such as state_dict_ema."),
        click.option(
            "--trust-checkpoint",
            is_flag=True,
            help="Take a whole network's own code: runs what the file names.",
        ),
    )
    return _all(options, function)


def data_options(function: F, samples: int = 2000) -> F:
    """Options that select the images; `samples` is the default count."""
    options = (
        click.option("--split", default="train", show_default=True, help="Part of the data set."),
        click.option(
            "--samples",
            default=samples,
            show_default=True,
            type=click.IntRange(min=0),
            help="Images, class-balanced; 0 for all.",
        ),
        click.option("--normalize", help="Preset (imagenet, cifar10, ...) or 'mean,..;std,..'."),
        click.option("--image-size", type=int, help="Resize and centre-crop to this many pixels."),
        click.option(
            "--skip-broken", is_flag=True, help="Leave out images that can't be decoded; say which."
        ),
        click.option("--seed", type=SEED, default=0, show_default=True, help="Random seed."),
    )
    return _all(options, function)


def reading_options(function: F) -> F:
    """Options that say how features are read."""
    options = (
        click.option("--pool", default="gap", show_default=True, help="gap, flat, cls or grid:K."),
        click.option(
            "--tap",
            type=click.Choice(["post", "pre"]),
            default="post",
            show_default=True,
            help="A block's features after its last activation, or before.",
        ),
        click.option("--layers", help="Module names, comma-separated, instead of found blocks."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, ..."),
        click.option("--batch-size", default=256, show_default=True),
        click.option(
            "--memory",
            metavar="SIZE",
            help="Bound of a process's memory, and of a GPU's, such as 4GiB.",
        ),
    )
    return _all(options, function)


def measuring_options(function: F) -> F:
    """Options that say how features are measured."""
    options = (
        click.option(
            "--solver",
            default="exact",
            show_default=True,
            help="exact, sinkhorn, sliced or gaussian; options as sinkhorn:epsilon=0.01.",
        ),
        click.option("--bootstrap", default=200, show_default=True, help="Resamples; 0 for none."),
        click.option(
            "--embed", help="The whole network in one space too: pad, or pca:D (D components)."
        ),
        click.option(
            "--reference",
            default="init",
            show_default=True,
            help="What straightness is tested against: init (fresh weights), shuffled (layers), "
            "none, a checkpoint such as RUN/checkpoints/epoch-0000.pt, or stored features.",
        ),
        click.option(
            "--reference-networks",
            default=20,
            show_default=True,
            type=click.IntRange(min=1),
            help="How many networks with fresh weights to rank this one among (--reference init).",
        ),
        click.option(
            "--brenier",
            default=None,
            metavar="POINTS",
            type=click.IntRange(min=0),
            help="Test every block at so many images for being the gradient of a convex function; "
            "0 for none; by default 4 to 8 if that takes seconds.",
        ),
        click.option(
            "--mufm/--no-mufm",
            default=None,
            help="Fit the MUFM model or leave it out; by default where it takes about a minute at "
            "most.",
        ),
    )
    return _all(options, function)


def _all(options: Sequence[Any], function: F) -> F:
    for option in reversed(options):
        function = option(function)
    return function


def parse_solver(text: str) -> Any:
    """Return the solver that a text such as ``sinkhorn:epsilon=0.01`` means."""
    from .. import transport

    name, _, options = text.partition(":")
    if name not in SOLVERS:
        raise ArgumentError(f"Unknown solver {name!r}; choose {', '.join(SOLVERS)}.")
    solver = getattr(transport, name.capitalize())
    chosen = settings_of(options.split(",") if options else ())
    known = [option.name for option in dataclasses.fields(solver)]
    if unknown := sorted(set(chosen) - set(known)):
        raise ArgumentError(
            f"--solver {text}: {name} does not take {', '.join(unknown)}; its options are "
            f"{', '.join(known) or 'none'}."
        )
    try:
        return solver(**chosen)
    except TypeError as error:
        raise ArgumentError(f"--solver {text}: a value of the wrong kind ({error}).") from error
