"""Options that several commands share, and a check of the paths in them."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import click

from ..analysis.plan import SETTINGS, SOLVERS, Data
from .root import SEED, Choice, combined


def _setting(flag: str, name: str = "", **options: Any) -> Any:
    """Return the option for a setting of `AnalysisPlan`, which checks the value.

    `name` is the name of the setting, if it differs from that of the flag.
    """
    name = name or flag.partition("/")[0].removeprefix("--").replace("-", "_")
    options = {"default": SETTINGS[name].default, **options}
    return click.option(flag, name, **options)


network_options = combined(
    _setting(
        "--arch",
        help="Architecture; see `wgeo list archs`. Checkpoints made by wgeo record theirs.",
    ),
    _setting(
        "--num-classes",
        type=int,
        help="Number of classes, if the checkpoint's head does not determine it.",
    ),
    _setting(
        "--prefix", help="Prefix of the names of the network's tensors, such as 'encoder_q.'."
    ),
    _setting(
        "--container", help="Name of the file's entry with the weights, such as state_dict_ema."
    ),
    _setting(
        "--trust-checkpoint",
        "trust",
        is_flag=True,
        help="Also load pickled networks. This runs code that the file names.",
    ),
)
"""Options for reading a checkpoint."""


def samples_option(limit: int) -> Any:
    """Return the option for the number of images; `limit` is its default."""
    return _setting(
        "--samples",
        "limit",
        default=limit,
        help="Number of images, class-balanced; 0 for all.",
    )


def image_options(limit: int) -> Any:
    """Return the options for the images of a split; `limit` is their default number."""
    return combined(
        samples_option(limit),
        _setting("--normalize", help="Preset (imagenet, cifar10, ...) or 'mean,..;std,..'."),
        _setting(
            "--image-size", "size", type=int, help="Resize and center-crop to this many pixels."
        ),
        _setting(
            "--skip-broken", is_flag=True, help="Skip images that cannot be decoded, and list them."
        ),
        _setting("--seed", type=SEED, help="Random seed."),
    )


def data_options(limit: int = Data.limit) -> Any:
    """Return the options for the images; `limit` is their default number."""
    return combined(_setting("--split", help="Part of the data set."), image_options(limit))


reading_options = combined(
    _setting("--pool", help="Pooling: gap, flat, cls or grid:K."),
    _setting(
        "--tap",
        type=Choice(["post", "pre"]),
        help="Read a block's features after or before its last activation.",
    ),
    _setting(
        "--layers",
        help="Names of modules, separated by commas, to use instead of the detected blocks.",
    ),
    _setting("--device", help="auto, cpu, cuda, ..."),
    _setting("--batch-size", help="Number of images per batch."),
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
        help=f"{', '.join(SOLVERS)}; options follow a colon, as in sinkhorn:epsilon=0.01.",
    ),
    _setting("--bootstrap", help="Number of resamples for 95 % intervals; 0 for none."),
    _setting(
        "--embed",
        help="Also measure the whole network in one space: pad (zeros), or pca:D (D components).",
    ),
    _setting(
        "--reference",
        help="Reference for straightness: init (randomly initialized networks), shuffled (the "
        "network's own layers in another order), none, a checkpoint such as "
        "RUN/checkpoints/epoch-0000.pt, or stored features.",
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
        "function; 0 for none; by default 4 to 8 if the network is small enough.",
    ),
    _setting(
        "--alignment",
        metavar="POINTS",
        type=int,
        help="Number of images at which the residual Jacobians of the blocks are compared; 0 "
        "for none; by default 4 if the network is small enough.",
    ),
    _setting(
        "--mufm/--no-mufm",
        help="Whether to fit the multilayer unconstrained feature model (MUFM); by default only if "
        "that takes at most about a minute.",
    ),
)
"""Options for measuring features."""

jobs_option = click.option(
    "--jobs",
    default=1,
    type=click.IntRange(min=1),
    help="Number of checkpoints analyzed in parallel.",
)
report_option = click.option(
    "--report/--no-report", "with_report", default=True, help="Build the HTML report."
)


def given_settings(ctx: click.Context) -> dict[str, Any]:
    """Return the settings of an analysis that were given explicitly, by name."""
    default = click.core.ParameterSource.DEFAULT
    return {
        name: value
        for name, value in ctx.params.items()
        if name in SETTINGS and ctx.get_parameter_source(name) is not default
    }


def require_inputs(checkpoints: Iterable[str], source: str | None) -> None:
    """Raise an error if a path does not exist, before libraries are loaded, which takes seconds.

    `source` is the name of a data set, or the path of images; None if there are none.
    """
    from ..checkpoints.locating import checked_path, display_path
    from ..data.names import locate

    for path in checkpoints:
        if not os.path.exists(path):
            checked_path(path, display_path(path))  # raises the error
    if source is not None:
        locate(source)
