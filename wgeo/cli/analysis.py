"""``wgeo demo``, ``wgeo analyze``, ``wgeo report``: networks measured, and what is written."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import ArgumentError, WgeoError
from ..progress import track
from .root import SEED, F, as_typed, command, settings_of

if TYPE_CHECKING:
    from ..checkpoint import Network
    from ..data import Images

SOLVERS = {
    "exact": "W2 itself, with a certificate; any size that fits the time",
    "sinkhorn": "entropic, on the GPU where there is one; an interval that contains W2",
    "sliced": "mean over random directions; fast, an interval that contains W2",
    "gaussian": "Bures distance of the fitted Gaussians; a lower bound of W2",
}


def data_options(function: F) -> F:
    """Options that say which images."""
    options = (
        click.option("--split", default="train", show_default=True, help="Part of the data set."),
        click.option("--samples", default=2000, show_default=True, help="Images, class-balanced."),
        click.option("--normalize", help="Preset (imagenet, cifar10, ...) or 'mean,..;std,..'."),
        click.option("--image-size", type=int, help="Resize and centre-crop to this many pixels."),
        click.option(
            "--skip-broken", is_flag=True, help="Leave out images that can't be decoded; say which."
        ),
        click.option(
            "--seed", type=SEED, default=0, show_default=True, help="Of everything random."
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


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
    )
    for option in reversed(options):
        function = option(function)
    return function


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
            "none, or a checkpoint such as RUN/checkpoints/epoch-0000.pt.",
        ),
        click.option(
            "--brenier",
            default=0,
            show_default=True,
            metavar="POINTS",
            type=click.IntRange(min=0),
            help="Test every block at so many images for being the gradient of a convex function.",
        ),
        click.option(
            "--mufm",
            is_flag=True,
            help="Fit the MUFM model too: seconds, but for very wide features.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


@command("demo", "Train on digits, analyse, report: start here.", "wgeo demo --out runs/demo")
@click.option("--out", default="runs/demo", show_default=True, help="Folder of the run.")
@click.option("--epochs", default=30, show_default=True, help="Training epochs.")
@click.option("--seed", type=SEED, default=0, show_default=True)
def demo(out: str, epochs: int, seed: int) -> None:
    """Train a small ResNet on real digits, analyse it, write its report.

    Takes about a minute on two cores and downloads nothing.
    """
    from ..checkpoint import load_checkpoint
    from ..data import load_images
    from ..files import writable
    from ..training import train as fit

    folder = writable(out)
    images = load_images("digits", split="train", seed=seed)
    recipe: dict[str, Any] = {
        "lr": 0.05,
        "weight_decay": 5e-3,
        "evaluate_every": 5,
        "options": {"stride": 2},
    }
    run = fit("isoresnet", images, folder, epochs=epochs, seed=seed, **recipe)
    click.echo(f"Trained isoresnet on digits to training accuracy {run.accuracy:.3f}.")
    net = load_checkpoint(run.last)
    _analyze_one(net, images, folder, seed=seed)


@command(
    "analyze",
    "Analyse saved networks: record and report.",
    "wgeo analyze resnet20.th --arch cifar_resnet20 --data cifar10.zip --out runs/r20\n"
    "wgeo analyze runs/digits/checkpoints/*.pt --data digits --out runs/digits/analysis",
)
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINT...")
@click.option("--arch", help="Architecture; checkpoints made by wgeo know theirs.")
@click.option("--num-classes", type=int, help="Where the checkpoint's head doesn't say.")
@click.option("--data", "source", required=True, help="A name or path; see `wgeo list datasets`.")
@click.option("--out", required=True, help="Folder of the run.")
@data_options
@reading_options
@measuring_options
@click.option("--trust-checkpoint", is_flag=True, help="Unpickle: runs code from the file.")
@click.option("--report/--no-report", "with_report", default=True, help="Build the HTML report.")
def analyze(
    checkpoints: tuple[str, ...],
    arch: str | None,
    num_classes: int | None,
    source: str,
    out: str,
    split: str,
    samples: int,
    normalize: str | None,
    image_size: int | None,
    skip_broken: bool,
    seed: int,
    trust_checkpoint: bool,
    with_report: bool,
    layers: str | None,
    solver: str,
    **features: Any,
) -> None:
    """Analyse saved networks: transport, straightness, collapse; a record and a report.

    Writes OUT/analysis.json, OUT/figures and OUT/report. Several checkpoints get a folder each, and
    OUT/series.json and OUT/report set them side by side: over the epochs of a training, or network
    beside network.
    """
    from ..analysis.beside import REFERENCES
    from ..checkpoint import load_checkpoint
    from ..data import load_images
    from ..files import writable
    from ..records import ANALYSIS, claim

    chosen = parse_solver(solver)
    folder = writable(out)
    load: dict[str, Any] = {
        "seed": seed,
        "normalize": normalize,
        "size": image_size,
        "skip_broken": skip_broken,
    }

    def network(path: str) -> Network:
        return load_checkpoint(path, arch, num_classes, trust=trust_checkpoint)

    if features["reference"] not in REFERENCES:
        features["reference"] = network(features["reference"])
    features |= {
        "seed": seed,
        "solver": chosen,
        "layers": [name.strip() for name in layers.split(",")] if layers else None,
    }
    if len(checkpoints) == 1:
        claim(folder, ANALYSIS)
        net = network(checkpoints[0])
        images = load_images(source, split=split, limit=samples, **load)
        _analyze_one(net, images, folder, with_report=with_report, **features)
        return
    images = load_images(source, split=split, limit=samples, **load)
    _analyze_several(network, checkpoints, images, folder, with_report=with_report, **features)


@command(
    "report",
    "(Re)build the report of saved analyses.",
    "wgeo report runs/r20 --open\n"
    "wgeo report runs/r20 --pdf\n"
    "wgeo report runs/r20 runs/r32 --out runs/r20-r32",
)
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Folder of a report on several runs.")
@click.option("--open", "open_it", is_flag=True, help="Open it in the browser.")
@click.option("--pdf", is_flag=True, help="Typeset it too, as RUN/report/report.pdf; takes TeX.")
def report(runs: tuple[Path, ...], out: Path | None, open_it: bool, pdf: bool) -> None:
    """(Re)build the Sphinx report of a saved analysis, or one that sets several side by side."""
    from .. import report as reports
    from ..analysis import Series

    if pdf:
        reports.engine()  # none is said before the work
    if len(runs) > 1:
        if out is None:
            raise ArgumentError("A report on several runs needs a folder of its own: --out DIR.")
        Series.of_folders(runs).save(out)
    elif out is not None:
        raise ArgumentError("--out is for several runs; one run's report lies in its own folder.")
    click.echo(reports.build(out or runs[0], pdf=pdf, open=open_it))


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


def _apart(paths: tuple[str, ...]) -> list[str]:
    """A folder's name for each file: its stem, numbered where another has it already."""
    names = ["report", "figures"]  # which the series itself needs
    for path in paths:
        stem = Path(path).stem
        tried = (stem if i == 1 else f"{stem}-{i}" for i in itertools.count(1))
        names.append(next(name for name in tried if name not in names))
    return names[2:]


def _analyze_one(
    net: Network, images: Images, folder: Path, *, with_report: bool = True, **settings: Any
) -> None:
    """Analyse, save, report and print."""
    from ..analysis import analyze as measure
    from ..table import print_analysis

    done = measure(net, images, command=as_typed(), **settings)
    done.save(folder)
    print_analysis(done)
    if with_report:
        from .. import report as reports

        click.echo(f"Report: {reports.build(folder)}")
    click.echo(f"Record: {folder / 'analysis.json'}")


def _analyze_several(
    network: Callable[[str], Network],
    checkpoints: tuple[str, ...],
    images: Images,
    folder: Path,
    *,
    with_report: bool,
    **settings: Any,
) -> None:
    """Analyse each into a folder of its own, and set them side by side; one failing is told."""
    from ..analysis import Series
    from ..analysis import analyze as measure
    from ..files import writable
    from ..records import SERIES, claim
    from ..table import print_series

    claim(folder, SERIES)
    if missing := [path for path in checkpoints if not Path(path).is_file()]:
        raise ArgumentError(f"There is no checkpoint {', '.join(missing[:5])}.")
    done: dict[str, dict[str, Any]] = {}
    failed = []
    todo = list(zip(checkpoints, _apart(checkpoints), strict=True))
    try:
        for path, name in track(todo, "analysing checkpoints"):
            try:
                found = measure(network(path), images, command=as_typed(), **settings)
                found.save(writable(folder / name))
            except (WgeoError, RuntimeError) as error:
                failed.append(path)
                click.echo(f"wgeo: {path}: {' '.join(str(error).split())}", err=True)
            else:
                done[name] = found.record
    finally:  # stopped half-way, the finished ones still stand side by side
        if len(done) > 1:
            series = Series.of(done, [folder / name for name in done])
            series.save(folder)
    if len(done) > 1:
        print_series(series)
        if with_report:
            from .. import report as reports

            click.echo(f"Report: {reports.build(folder)}")
        click.echo(f"Record: {folder / 'series.json'}; each checkpoint's in {folder}/NAME")
    if failed:
        raise WgeoError(
            f"{len(failed)} of {len(checkpoints)} checkpoints could not be analysed (see above); "
            "the others are kept."
        )
