"""``wgeo list``, ``wgeo train``, ``wgeo trace``: the steps before an analysis."""

from __future__ import annotations

import shlex
from typing import Any

import click

from ..analysis.plan import SOLVERS, AnalysisPlan, settings_of
from ..runtime.processes import is_rank_zero
from .options import (
    data_options,
    given_settings,
    image_options,
    network_options,
    reading_options,
    require_inputs,
)
from .root import Choice, command, lock_folder, say, whole_number


@command("list", "List architectures, data sets or solvers.", "wgeo list archs")
@click.argument("what", type=Choice(["archs", "datasets", "solvers"]))
def list_(what: str) -> None:
    """List the architectures, data sets or solvers that wgeo knows."""
    if what == "archs":
        from ..models.names import SUMMARIES

        rows = [
            *SUMMARIES.items(),
            ("torchvision:NAME", "any torchvision classifier, such as torchvision:vit_b_16"),
            ("timm:NAME", "any timm model, if timm is installed"),
            ("package.module:factory", "your own function that returns the network"),
        ]
    elif what == "datasets":
        from ..data.names import NAMES

        download = "downloaded by torchvision into ./data or $WGEO_DATA"
        bundled = "8 x 8 handwritten digits, with scikit-learn; no download"
        rows = [(name, bundled if name == "digits" else download) for name in NAMES]
        rows += [
            ("npz:PATH", "NumPy archive with x, y or x_train, y_train, x_test, y_test"),
            (
                "folder:PATH",
                "folder of images, class/image or split/class/image, or a zip archive of such a "
                "folder",
            ),
            ("csv:PATH", "names and labels of images in the same folder; tsv:PATH with tabs"),
            ("parquet:PATH", "columns image and label; needs wgeo[hf]"),
        ]
    else:
        rows = list(SOLVERS.items())
    width = max(len(name) for name, _ in rows)
    for name, summary in rows:
        say(f"{name:<{width}}  {summary}")


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
@click.option("--epochs", default=60)
@click.option("--lr", default=0.1, help="Peak learning rate.")
@click.option("--momentum", default=0.9)
@click.option("--weight-decay", default=5e-4)
@click.option(
    "--decayed",
    type=Choice(["all", "unnormalized"]),
    default="all",
    help="unnormalized: no weight decay on layers followed by a batch norm.",
)
@click.option(
    "--precision",
    type=Choice(["float32", "bfloat16"]),
    default="float32",
    help="Precision of the training steps; bfloat16 is faster.",
)
@click.option("--batch-size", default=128)
@click.option("--schedule", type=Choice(["cosine", "onecycle", "constant"]), default="cosine")
@click.option("--loss", type=Choice(["ce", "mse"]), default="ce")
@click.option(
    "--activation", type=Choice(["relu", "leaky_relu", "tanh", "sigmoid", "silu"]), default="relu"
)
@click.option(
    "--classifier",
    type=Choice(["learned", "etf", "etf-keep"]),
    default="learned",
    help="etf: a fixed simplex ETF, with the number of features reduced to the number of "
    "classes; etf-keep: a fixed simplex ETF that keeps the number of features.",
)
@click.option(
    "--option",
    "options",
    multiple=True,
    help="Option of the architecture, such as width=64; may be repeated.",
)
@click.option(
    "--checkpoints", default="auto", help="Epochs to save: auto, all, or a list such as 0,1,10,60."
)
@click.option("--augment/--no-augment", default=False, help="Random crops and flips.")
@image_options(limit=0)
@click.option(
    "--resume/--no-resume",
    default=True,
    help="Continue the run in OUT, if there is one; with --no-resume, replace it by a new run.",
)
@click.option("--device", default="auto")
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
    images = load_images(
        source,
        split="train",
        limit=limit or None,
        normalize=normalize,
        size=size,
        skip_broken=skip_broken,
        seed=seed,
    )
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


@command(
    "trace",
    "Store a network's features on disk.",
    "wgeo trace resnet50.pth --arch torchvision:resnet50 --data imagenet/ "
    "--dtype float16 --store features/r50\n"
    "wgeo analyze features/r50 --solver sliced --out runs/r50",
    distributed=True,
)
@click.argument("checkpoint")
@click.option("--data", "source", required=True, help="A name or path; see `wgeo list datasets`.")
@click.option("--store", required=True, metavar="DIR", help="Folder for the features.")
@click.option(
    "--dtype",
    type=Choice(["float32", "float16", "bfloat16", "float64"]),
    help="Number format; by default that of the network.",
)
@click.option(
    "--project",
    type=click.IntRange(min=1),
    metavar="K",
    help="Project layers of more than K features onto K random ones (Johnson-Lindenstrauss).",
)
@network_options
@data_options(limit=0)
@reading_options
@click.pass_context
def trace(
    ctx: click.Context,
    checkpoint: str,
    source: str,
    store: str,
    dtype: str | None,
    project: int | None,
    **_: Any,
) -> None:
    """Store the features before and after every block, to be read from the disk as needed.

    If the command was killed or the disk was full, run it again: it resumes, with the same result
    as an uninterrupted run. Open the stored features with `wgeo analyze DIR` or
    `wgeo.Trajectory.load(DIR)`.
    """
    require_inputs([checkpoint], source)

    from ..features import trace as follow
    from ..runtime.memory import memory_limit

    plan = AnalysisPlan.of(**{"limit": 0, **given_settings(ctx)})
    net = plan.loading.network(checkpoint)
    with memory_limit(plan.memory):
        reading = plan.reading.parameters()
        traj = follow(net, plan.images(), store=store, dtype=dtype, project=project, **reading)
    if not is_rank_zero():
        return
    say(f"{len(traj)} samples, {len(traj.layers)} layers: {store}")
    if (projected := traj.settings.get("projected")) is not None:
        low, high = projected["all"]
        say(
            f"Projected onto {projected['width']} features: with probability 99 %, every distance "
            f"is preserved up to a factor between {low:.2f} and {high:.2f}; a typical distance "
            f"changes by {projected['typical']:.1%}."
        )
    say(f"Next: {shlex.join(['wgeo', 'analyze', store, '--out', 'runs/analysis'])}")
