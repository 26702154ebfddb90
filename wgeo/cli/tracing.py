"""``wgeo trace``: store features on disk, to be analyzed repeatedly."""

from __future__ import annotations

import shlex
from typing import Any

import click

from ..analysis.plan import AnalysisPlan
from ..runtime.processes import is_rank_zero
from .job import require_inputs
from .options import data_options, given_settings, network_options, reading_options
from .root import command, say


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
    type=click.Choice(["float32", "float16", "bfloat16", "float64"]),
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

    If the command was killed or the disk was full, run it again: it resumes, and the result is the
    same. Open it with `wgeo analyze DIR` or `wgeo.Trajectory.load(DIR)`.
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
