"""``wgeo demo``, ``wgeo analyze``, ``wgeo report``: analyze networks and write reports."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..analysis.plan import is_stored
from ..errors import ArgumentError
from ..runtime.processes import is_rank_zero, launched_world_size, on_rank_zero
from .jobs import Job, folder_names, gather
from .options import (
    data_options,
    given_settings,
    jobs_option,
    measuring_options,
    network_options,
    reading_options,
    report_option,
    require_inputs,
)
from .root import SEED, as_typed, command, lock_folder, say

if TYPE_CHECKING:
    from ..analysis import Analysis


@command("demo", "Train on digits, analyze, report: start here.", "wgeo demo --out runs/demo")
@click.option("--out", default="runs/demo", help="Folder of the run.")
@click.option("--epochs", default=30, help="Training epochs.")
@click.option("--seed", type=SEED, default=0, help="Random seed.")
def demo(out: str, epochs: int, seed: int) -> None:
    """Train a small ResNet on handwritten digits, analyze it, and write its report.

    Takes about a minute on two cores and downloads nothing.
    """
    from ..analysis import analyze as measure
    from ..analysis.saving import require_writable
    from ..checkpoints import load_checkpoint
    from ..data import load_images
    from ..training import train as fit

    folder = lock_folder(out)
    require_writable(folder, with_report=True)
    images = load_images("digits", split="train", seed=seed)
    run = fit(
        "isoresnet",
        images,
        folder,
        epochs=epochs,
        lr=0.05,
        weight_decay=5e-3,
        evaluate_every=5,
        options={"stride": 2},
        seed=seed,
    )
    say(f"Trained isoresnet on digits to training accuracy {run.accuracy:.3f}.")
    net = load_checkpoint(run.last)
    _finish(measure(net, images, seed=seed, command=as_typed()), folder)


@command(
    "analyze",
    "Analyze saved networks: record and report.",
    "wgeo analyze resnet20.th --arch cifar_resnet20 --data cifar10.zip --out runs/r20\n"
    "wgeo analyze runs/digits/checkpoints/*.pt --data digits --out runs/digits/analysis\n"
    "wgeo analyze features/r50 --solver sliced --out runs/r50    # stored by `wgeo trace`\n"
    "torchrun --nproc-per-node=8 --no-python wgeo analyze r50.pth --arch torchvision:resnet50 "
    "--data imagenet/ --split val --samples 0 --out runs/r50",
    distributed=True,
)
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINT...")
@click.option("--data", "source", help="A name or path; see `wgeo list datasets`.")
@click.option("--out", required=True, help="Folder of the run.")
@network_options
@data_options()
@reading_options
@measuring_options
@jobs_option
@click.option(
    "--store",
    metavar="DIR",
    help="Store the features in this folder, to resume after a stop; by default OUT/features "
    "under torchrun.",
)
@report_option
@click.pass_context
def analyze(
    ctx: click.Context,
    checkpoints: tuple[str, ...],
    out: str,
    jobs: int,
    store: str | None,
    with_report: bool,
    **_: Any,
) -> None:
    """Analyze saved networks: transport, straightness, collapse; write records and a report.

    CHECKPOINT is a saved network, or a folder of features that `wgeo trace` stored. The results are
    OUT/analysis.json, OUT/figures and OUT/report.

    Each of several checkpoints has its own folder in OUT, and OUT/series.json and OUT/report
    compare them: over the epochs of a training run, or network by network. Checkpoints that were
    already analyzed with the same settings are not analyzed again.

    `torchrun --nproc-per-node=N --no-python wgeo analyze ...` runs one analysis in N processes,
    each on its own GPU if there are enough. After a stop, the same command resumes from the stored
    features.
    """
    if launched_world_size() > 1 and len(checkpoints) > 1:
        on_rank_zero(_refuse_several)
    if store is not None and len(checkpoints) > 1:
        raise ArgumentError("--store is for a single checkpoint; there are several.")
    require_inputs(checkpoints, ctx.params["source"])
    if store is not None and is_stored(checkpoints[0]):
        raise ArgumentError(
            f"{checkpoints[0]} already contains stored features; --store is for networks."
        )
    given = given_settings(ctx)
    jobs_by_name = {
        name: Job.of(target, given) for name, target in folder_names(list(checkpoints)).items()
    }
    folder = lock_folder(out)
    if len(jobs_by_name) > 1:
        gather(jobs_by_name, folder, processes=jobs, with_report=with_report)
        return
    from ..analysis.saving import require_writable

    on_rank_zero(lambda: require_writable(folder, with_report=with_report))
    (job,) = jobs_by_name.values()
    if store is None and launched_world_size() > 1:
        store = str(folder / "features")
    analysis = job.measure(as_typed(), store)
    if is_rank_zero():
        _finish(analysis, folder, with_report)


def _refuse_several() -> None:
    raise ArgumentError(
        "With torchrun, all processes analyze one checkpoint. For several checkpoints, run `wgeo "
        "analyze` or `wgeo sweep` without torchrun; --jobs analyzes several in parallel."
    )


@command(
    "report",
    "(Re)build the report of saved analyses.",
    "wgeo report runs/r20 --open\n"
    "wgeo report runs/r20 --pdf\n"
    "wgeo report runs/r20 runs/r32 --out runs/r20-r32",
)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder for a report on several runs.")
@click.option("--open", "open_it", is_flag=True, help="Open the report in the browser.")
@click.option("--pdf", is_flag=True, help="Also write RUN/report/report.pdf; needs TeX.")
def report(runs: tuple[Path, ...], out: Path | None, open_it: bool, pdf: bool) -> None:
    """(Re)build the Sphinx report of a saved analysis, or one that compares several."""
    from ..storage.records import SERIES, kind_of, read_record

    for run in runs:
        read_record(run, kind_of(run))  # errors come before libraries are loaded, which is slow

    from .. import report as reports
    from ..analysis import Series
    from ..analysis.saving import require_writable
    from ..report.building import engine

    if pdf:
        engine()  # fails early if no TeX engine is installed
    if len(runs) > 1:
        if out is None:
            raise ArgumentError("A report on several runs needs a separate folder: --out DIR.")
        require_writable(out, SERIES, with_report=True)
        Series.of_folders(runs).save(out)
    elif out is not None:
        raise ArgumentError("--out is for several runs; one run's report is written to its folder.")
    say(reports.build(out or runs[0], pdf=pdf, open=open_it))


def _finish(analysis: Analysis, folder: Path, with_report: bool = True) -> None:
    from .tables import print_analysis

    try:
        analysis.save(folder)
    finally:
        print_analysis(analysis)  # even if it could not be saved
    if with_report:
        from .. import report as reports

        say(f"Report: {reports.build(folder)}")
    say(f"Record: {folder / 'analysis.json'}")
