"""Options that several commands share, and their parsing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import click

from ..errors import ArgumentError
from .root import SEED, Choice, F, settings_of

SOLVERS = {
    "exact": "W2 itself, with a certificate",
    "sinkhorn": "entropic, on the GPU if there is one; with bounds of W2",
    "sliced": "mean over random directions; fast, with bounds of W2",
    "gaussian": "Bures distance of the fitted Gaussians; a lower bound of W2",
}


def network_options(function: F) -> F:
    """Add options for reading a checkpoint."""
    options = (
        click.option("--arch", help="Architecture; checkpoints made by wgeo record theirs."),
        click.option(
            "--num-classes",
            type=int,
            help="Number of classes, if the checkpoint's head does not determine it.",
        ),
        click.option(
            "--prefix", help="Prefix of the network's tensors in the file, such as 'encoder_q.'."
        ),
        click.option(
            "--container", help="Entry of the file that holds the weights, such as state_dict_ema."
        ),
        click.option(
            "--trust-checkpoint",
            is_flag=True,
            help="Load pickled networks, too, which runs code that the file names.",
        ),
    )
    return _all(options, function)


def data_options(function: F, samples: int = 2000) -> F:
    """Add options that select the images; `samples` is the default count."""
    options = (
        click.option("--split", default="train", show_default=True, help="Part of the data set."),
        click.option(
            "--samples",
            default=samples,
            show_default=True,
            type=click.IntRange(min=0),
            help="Number of images, class-balanced; 0 for all.",
        ),
        click.option("--normalize", help="Preset (imagenet, cifar10, ...) or 'mean,..;std,..'."),
        click.option("--image-size", type=int, help="Resize and center-crop to this many pixels."),
        click.option(
            "--skip-broken", is_flag=True, help="Skip images that cannot be decoded, and list them."
        ),
        click.option("--seed", type=SEED, default=0, show_default=True, help="Random seed."),
    )
    return _all(options, function)


def reading_options(function: F) -> F:
    """Add options for reading features."""
    options = (
        click.option(
            "--pool", default="gap", show_default=True, help="Pooling: gap, flat, cls or grid:K."
        ),
        click.option(
            "--tap",
            type=Choice(["post", "pre"]),
            default="post",
            show_default=True,
            help="Read a block's features after or before its last activation.",
        ),
        click.option("--layers", help="Comma-separated module names, instead of detected blocks."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, ..."),
        click.option("--batch-size", default=256, show_default=True),
        click.option(
            "--memory",
            metavar="SIZE",
            help="Memory limit per process and per GPU, such as 4GiB.",
        ),
    )
    return _all(options, function)


def measuring_options(function: F) -> F:
    """Add options for measuring features."""
    options = (
        click.option(
            "--solver",
            default="exact",
            show_default=True,
            help="exact, sinkhorn, sliced or gaussian; options as sinkhorn:epsilon=0.01.",
        ),
        click.option("--bootstrap", default=200, show_default=True, help="Resamples; 0 for none."),
        click.option(
            "--embed",
            help="Also embed the whole network in one space: pad, or pca:D (D components).",
        ),
        click.option(
            "--reference",
            default="init",
            show_default=True,
            help="Reference for straightness: init (randomly initialized networks), shuffled "
            "(layers), none, a checkpoint such as RUN/checkpoints/epoch-0000.pt, or stored "
            "features.",
        ),
        click.option(
            "--reference-networks",
            default=20,
            show_default=True,
            type=click.IntRange(min=1),
            help="Number of randomly initialized networks to compare with (--reference init).",
        ),
        click.option(
            "--brenier",
            default=None,
            metavar="POINTS",
            type=click.IntRange(min=0),
            help="Number of images at which to test whether a block is the gradient of a convex "
            "function; 0 for none; by default 4 to 8 if that takes seconds.",
        ),
        click.option(
            "--alignment",
            default=None,
            metavar="POINTS",
            type=click.IntRange(min=0),
            help="Number of images at which the residual Jacobians of the blocks are compared; 0 "
            "for none; by default 4 if that takes seconds.",
        ),
        click.option(
            "--mufm/--no-mufm",
            default=None,
            help="Whether to fit MUFM; by default only if that takes at most about a minute.",
        ),
    )
    return _all(options, function)


def _all(options: Sequence[Any], function: F) -> F:
    for option in reversed(options):
        function = option(function)
    return function


def parse_solver(text: str) -> Any:
    """Parse a solver such as ``sinkhorn:epsilon=0.01``."""
    from .. import transport

    name, _, options = text.partition(":")
    if name not in SOLVERS:
        raise ArgumentError(f"Unknown solver {name!r}; choose {', '.join(SOLVERS)}.")
    solver = getattr(transport, name.capitalize())
    settings = settings_of(options.split(",") if options else ())
    names = [option.name for option in dataclasses.fields(solver)]
    if unknown := sorted(set(settings) - set(names)):
        raise ArgumentError(
            f"--solver {text}: {name} does not take {', '.join(unknown)}; its options are "
            f"{', '.join(names) or 'none'}."
        )
    try:
        return solver(**settings)
    except TypeError as error:
        raise ArgumentError(f"--solver {text}: a value has the wrong type ({error}).") from error
