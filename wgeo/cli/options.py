"""Options that several commands share, and their parsing."""

from __future__ import annotations

from typing import Any

import click

from ..analysis.plan import SETTINGS, SOLVERS, Data
from .root import SEED, Choice, combined


def _setting(flag: str, name: str = "", **options: Any) -> Any:
    """Return the option of a setting of `AnalysisPlan`, with its default; the plan checks it.

    `name` is that of Python's parameter, if the flag has another one.
    """
    name = name or flag.partition("/")[0].removeprefix("--").replace("-", "_")
    options = {"default": SETTINGS[name].default, "show_default": True, **options}
    return click.option(flag, name, **options)


network_options = combined(
    _setting("--arch", help="Architecture; checkpoints made by wgeo record theirs."),
    _setting(
        "--num-classes",
        type=int,
        help="Number of classes, if the checkpoint's head does not determine it.",
    ),
    _setting("--prefix", help="Prefix of the network's tensors in the file, such as 'encoder_q.'."),
    _setting(
        "--container", help="Entry of the file that holds the weights, such as state_dict_ema."
    ),
    _setting(
        "--trust-checkpoint",
        "trust",
        is_flag=True,
        help="Load pickled networks, too, which runs code that the file names.",
    ),
)
"""Options for reading a checkpoint."""


def data_options(limit: int = Data.limit) -> Any:
    """Return the options that select the images; `limit` is the default number."""
    return combined(
        _setting("--split", help="Part of the data set."),
        _setting(
            "--samples",
            "limit",
            default=limit,
            help="Number of images, class-balanced; 0 for all.",
        ),
        _setting("--normalize", help="Preset (imagenet, cifar10, ...) or 'mean,..;std,..'."),
        _setting(
            "--image-size", "size", type=int, help="Resize and center-crop to this many pixels."
        ),
        _setting(
            "--skip-broken", is_flag=True, help="Skip images that cannot be decoded, and list them."
        ),
        _setting("--seed", type=SEED, help="Random seed."),
    )


reading_options = combined(
    _setting("--pool", help="Pooling: gap, flat, cls or grid:K."),
    _setting(
        "--tap",
        type=Choice(["post", "pre"]),
        help="Read a block's features after or before its last activation.",
    ),
    _setting("--layers", help="Comma-separated module names, instead of detected blocks."),
    _setting("--device", help="auto, cpu, cuda, ..."),
    _setting("--batch-size"),
    _setting(
        "--memory",
        metavar="SIZE",
        help="Memory limit per process and per GPU, such as 4GiB.",
    ),
)
"""Options for reading features."""


measuring_options = combined(
    _setting(
        "--solver",
        help=f"{', '.join(SOLVERS)}; options as sinkhorn:epsilon=0.01.",
    ),
    _setting("--bootstrap", help="Resamples; 0 for none."),
    _setting(
        "--embed",
        help="Also embed the whole network in one space: pad, or pca:D (D components).",
    ),
    _setting(
        "--reference",
        help="Reference for straightness: init (randomly initialized networks), shuffled "
        "(layers), none, a checkpoint such as RUN/checkpoints/epoch-0000.pt, or stored "
        "features.",
    ),
    _setting(
        "--reference-networks",
        help="Number of randomly initialized networks to compare with (--reference init).",
    ),
    _setting(
        "--brenier",
        metavar="POINTS",
        type=int,
        help="Number of images at which to test whether a block is the gradient of a convex "
        "function; 0 for none; by default 4 to 8 if that takes seconds.",
    ),
    _setting(
        "--alignment",
        metavar="POINTS",
        type=int,
        help="Number of images at which the residual Jacobians of the blocks are compared; 0 "
        "for none; by default 4 if that takes seconds.",
    ),
    _setting(
        "--mufm/--no-mufm",
        help="Whether to fit MUFM; by default only if that takes at most about a minute.",
    ),
)
"""Options for measuring features."""


def given_settings(ctx: click.Context) -> dict[str, Any]:
    """Return the settings of an analysis that were given explicitly, under Python's names."""
    default = click.core.ParameterSource.DEFAULT
    return {
        name: value
        for name, value in ctx.params.items()
        if name in SETTINGS and ctx.get_parameter_source(name) is not default
    }
