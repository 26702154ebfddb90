"""The command line: parses, calls, prints. No science lives here."""

from __future__ import annotations

import ast
import dataclasses
import itertools
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from . import __version__
from .errors import ArgumentError, WgeoError
from .progress import shown

F = TypeVar("F", bound=Callable[..., Any])
SEED = click.IntRange(min=0)
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
SOLVERS = {
    "exact": "W2 itself, with a certificate; any size that fits the time",
    "sinkhorn": "entropic, on the GPU where there is one; an interval that contains W2",
    "sliced": "mean over random directions; fast, an interval that contains W2",
    "gaussian": "Bures distance of the fitted Gaussians; a lower bound of W2",
}


class Commands(click.Group):
    """Turns every error into one line and exit code 2; `--debug` lets it through."""

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        typed = shlex.join(["wgeo", *args])  # before parsing uses the words up
        ctx = super().make_context(info_name, args, parent, **extra)
        ctx.meta["wgeo.typed"] = typed
        return ctx

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with shown():
                return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise  # click answers these itself
        except Exception as error:
            if ctx.meta.get("wgeo.debug"):
                raise
            click.echo(f"wgeo: {_in_words(error)}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt:
            click.echo(
                "\nwgeo: stopped; what was finished is kept, nothing is half-written.", err=True
            )
            ctx.exit(130)


def _in_words(error: BaseException) -> str:
    if isinstance(error, WgeoError):
        return str(error)
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "t allocate memory" in text or "out of memory" in text:
        return "This needs more memory than there is; take fewer --samples or --pool gap."
    if isinstance(error, OSError):
        return text or type(error).__name__
    return (
        f"A mistake that wgeo did not foresee ({type(error).__name__}: {text}). "
        "--debug shows where; please report it."
    )


def _remember_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_root().meta["wgeo.debug"] = True


debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    callback=_remember_debug,
    help="Show tracebacks instead of one-line errors.",
)


def command(name: str, short: str, example: str) -> Callable[[F], click.Command]:
    """A command whose help ends in an example that can be pasted."""

    def wrap(function: F) -> click.Command:
        lines = "\n".join(f"  {line}" for line in example.strip().splitlines())
        epilog = f"\b\nExample:\n{lines}"
        made = click.command(name, context_settings=CONTEXT, short_help=short, epilog=epilog)(
            debug_option(function)
        )
        main.add_command(made)
        return made

    return wrap


@click.group(cls=Commands, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="wgeo")
@debug_option
def main() -> None:
    """The optimal-transport geometry of trained deep networks.

    Takes a saved checkpoint and labelled images; measures Wasserstein distances between layers,
    how straight the network's path is, and how its classes collapse; writes a report.

    New here? Start with:  wgeo demo
    """


def data_options(function: F) -> F:
    """Options that say which images."""
    options = (
        click.option("--split", default="train", show_default=True, help="Part of the data set."),
        click.option("--samples", default=2000, show_default=True, help="Images, class-balanced."),
        click.option("--normalize", help="Preset (imagenet, cifar10, ...) or 'mean,..;std,..'."),
        click.option("--image-size", type=int, help="Resize and centre-crop to this many pixels."),
        click.option(
            "--seed", type=SEED, default=0, show_default=True, help="Of everything random."
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def feature_options(function: F) -> F:
    """Options that say how features are read and measured."""
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
        click.option(
            "--solver",
            default="exact",
            show_default=True,
            help="exact, sinkhorn, sliced or gaussian; options as sinkhorn:epsilon=0.01.",
        ),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, ..."),
        click.option("--batch-size", default=256, show_default=True),
        click.option("--bootstrap", default=200, show_default=True, help="Resamples; 0 for none."),
        click.option("--mufm", is_flag=True, help="Fit the MUFM model too; up to minutes."),
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
    from .checkpoint import load_checkpoint
    from .data import load_images
    from .files import writable
    from .training import train as fit

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
    "train",
    "Train to the terminal phase, with checkpoints.",
    "wgeo train --arch isoresnet --dataset digits --out runs/digits --weight-decay 5e-3\n"
    "wgeo train --arch cifar_resnet20 --dataset cifar10 --epochs 200 --augment --out runs/r20",
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
@click.option("--option", "options", multiple=True, help="Of the architecture, as width=64.")
@click.option("--checkpoints", default="auto", show_default=True, help="auto, all, or 0,1,10,60.")
@click.option("--augment/--no-augment", default=False, show_default=True, help="Crops and flips.")
@click.option("--samples", type=int, help="Train on this many images, class-balanced.")
@click.option("--normalize", help="Preset or 'mean,..;std,..'.")
@click.option("--image-size", type=int, help="Resize and centre-crop to this many pixels.")
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
    **settings: Any,
) -> None:
    """Train to the terminal phase, saving checkpoints on the way; resumes where it stopped.

    Writes OUT/checkpoints/epoch-*.pt and OUT/history.json. SGD with momentum goes on after training
    accuracy 1, where neural collapse happens.
    """
    from .data import load_images
    from .files import writable
    from .training import train as fit

    folder = writable(out)
    seed = settings["seed"]
    load: dict[str, Any] = {"seed": seed, "normalize": normalize, "size": image_size}
    images = load_images(source, split="train", limit=samples, **load)
    chosen: Any = checkpoints
    if checkpoints not in ("auto", "all"):
        chosen = [_number(text, "--checkpoints") for text in checkpoints.split(",")]
    run = fit(arch, images, folder, options=_settings(options), checkpoints=chosen, **settings)
    click.echo(f"Training accuracy {run.accuracy:.4f}; checkpoints in {folder / 'checkpoints'}")
    following = ["wgeo", "analyze", run.last, "--data", source, "--out", folder / "analysis"]
    following += ["--image-size", image_size] if image_size else []
    click.echo(f"Next: {shlex.join(map(str, following))}")


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
@feature_options
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
    seed: int,
    trust_checkpoint: bool,
    with_report: bool,
    layers: str | None,
    solver: str,
    **features: Any,
) -> None:
    """Analyse saved networks: transport, straightness, collapse; a record and a report.

    Writes OUT/analysis.json, OUT/figures and OUT/report; with several checkpoints, a folder each.
    """
    from .checkpoint import load_checkpoint
    from .data import load_images
    from .files import writable

    chosen = parse_solver(solver)
    folder = writable(out)
    load: dict[str, Any] = {"seed": seed, "normalize": normalize, "size": image_size}
    nets = [
        load_checkpoint(path, arch, num_classes, trust=trust_checkpoint) for path in checkpoints
    ]
    images = load_images(source, split=split, limit=samples, **load)
    places = [folder] if len(nets) == 1 else [folder / name for name in _apart(checkpoints)]
    for net, place in zip(nets, places, strict=True):
        _analyze_one(
            net,
            images,
            writable(place),
            seed=seed,
            solver=chosen,
            layers=[name.strip() for name in layers.split(",")] if layers else None,
            with_report=with_report,
            **features,
        )


@command("report", "(Re)build the report of a saved analysis.", "wgeo report runs/r20 --open")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--open", "open_it", is_flag=True, help="Open it in the browser.")
def report(run: Path, open_it: bool) -> None:
    """(Re)build the Sphinx report of a saved analysis."""
    from . import report as reports
    from .analysis import Analysis

    Analysis.load(run)
    page = reports.build(run)
    click.echo(page)
    if open_it:
        click.launch(str(page))


@command("list", "List architectures, data sets or solvers.", "wgeo list archs")
@click.argument("what", type=click.Choice(["archs", "datasets", "solvers"]))
def list_(what: str) -> None:
    """List the architectures, data sets or solvers that wgeo knows."""
    if what == "archs":
        from .models import ARCHS

        rows = [(arch.name, arch.summary) for arch in ARCHS.values()]
        rows += [
            ("torchvision:NAME", "any torchvision classification ResNet, as torchvision:resnet18"),
            ("timm:NAME", "any timm model, where timm is installed"),
            ("package.module:factory", "your own: a function that returns the network"),
        ]
    elif what == "datasets":
        from .data import NAMES

        loaded = "downloaded by torchvision into ./data or $WGEO_DATA"
        bundled = "8 x 8 handwritten digits, with scikit-learn; no download"
        rows = [(name, bundled if name == "digits" else loaded) for name in NAMES]
        rows += [
            ("npz:PATH", "NumPy archive with x, y or x_train, y_train, x_test, y_test"),
            ("folder:PATH", "folder of images, class/image or split/class/image, or a zip of one"),
        ]
    else:
        rows = list(SOLVERS.items())
    width = max(len(name) for name, _ in rows)
    for name, summary in rows:
        click.echo(f"{name:<{width}}  {summary}")


def parse_solver(text: str) -> Any:
    """Return the solver that a text such as ``sinkhorn:epsilon=0.01`` means."""
    from . import transport

    name, _, options = text.partition(":")
    if name not in SOLVERS:
        raise ArgumentError(f"Unknown solver {name!r}; choose {', '.join(SOLVERS)}.")
    solver = getattr(transport, name.capitalize())
    chosen = _settings(options.split(",") if options else ())
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


def _settings(texts: Any) -> dict[str, Any]:
    """``("width=64", "mode=fast")`` -> ``{"width": 64, "mode": "fast"}``."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise ArgumentError(f"{text!r} is not of the form name=value.")
        try:
            found[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key] = value
    return found


def _apart(paths: tuple[str, ...]) -> list[str]:
    """A folder's name for each file: its stem, numbered where another has it already."""
    names: list[str] = []
    for path in paths:
        stem = Path(path).stem
        tried = (stem if i == 1 else f"{stem}-{i}" for i in itertools.count(1))
        names.append(next(name for name in tried if name not in names))
    return names


def _number(text: str, option: str) -> int:
    if not text.strip().isdecimal():
        raise ArgumentError(f"{option}: {text!r} is not a whole number.")
    return int(text)


def _analyze_one(
    net: Any, images: Any, folder: Path, *, with_report: bool = True, **settings: Any
) -> None:
    """Analyse, save, report and print."""
    from .analysis import analyze as measure
    from .table import print_analysis

    done = measure(net, images, command=_as_typed(), **settings)
    done.save(folder)
    print_analysis(done)
    if with_report:
        from . import report as reports

        click.echo(f"Report: {reports.build(folder)}")
    click.echo(f"Record: {folder / 'analysis.json'}")


def _as_typed() -> str:
    """The command as it was typed, for the record."""
    return str(click.get_current_context().find_root().meta["wgeo.typed"])
