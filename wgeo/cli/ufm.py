"""``wgeo ufm``: solve unconstrained feature models."""

from __future__ import annotations

import datetime
import io
import json
from pathlib import Path
from typing import Any

import click

from ..errors import ArgumentError
from ..storage.ownership import owned, require_writable
from .options import require_inputs, samples_option
from .root import (
    CONTEXT,
    SEED,
    Choice,
    as_typed,
    combined,
    command,
    lock_folder,
    main,
    say,
    whole_number,
)

DECAY = {"weight_decay": 5e-3, "feature_decay": 5e-4}


@main.group("ufm", context_settings=CONTEXT, short_help="Solve an unconstrained feature model.")
def ufm() -> None:
    """Solve an unconstrained feature model, and certify, print and plot the solution.

    In ce (cross-entropy) and mse (squared loss), the last-layer features of a network are free
    variables. In deep, several layers of weights follow the free features. In mufm, the features of
    all layers are free, and optimal transport ties them to data.
    """


label_options = combined(
    click.option("--classes", default=4, help="Number K of classes."),
    click.option("--per-class", default=10, help="Samples per class."),
    click.option(
        "--counts",
        help="Samples of each class, such as 6,3,2; replaces --classes and --per-class.",
    ),
    click.option("--dim", type=int, help="Dimension d of the features; K by default."),
)
"""Options for the number of samples per class."""

output_options = combined(
    click.option("--seed", type=SEED, default=0, help="Random seed."),
    click.option("--out", help="Folder for solution.json, solution.npz and the figure."),
)
"""Options for the seed and the output."""


def decay_options(layers: bool) -> Any:
    """Return options for the penalties; with `layers`, every layer can have its own."""
    several = " One number, or one per layer, such as 1e-3,2e-3." if layers else ""
    kind: Any = str if layers else float
    return combined(
        click.option(
            "--weight-decay",
            type=kind,
            default=kind(DECAY["weight_decay"]),
            help="lambda_W, in the term (lambda_W/2) ||W||^2 of F." + several,
        ),
        click.option(
            "--feature-decay",
            default=DECAY["feature_decay"],
            help="lambda_H, in the term (lambda_H/2) ||H||^2 of F.",
        ),
    )


def bias_option(default: str) -> Any:
    """Return the option ``--bias``, whose default depends on the model."""
    return click.option(
        "--bias",
        default=default,
        callback=_bias,
        help="none, free (without decay), or the weight decay lambda_b of the bias.",
    )


def _bias(_ctx: click.Context, _option: click.Parameter, text: str) -> str | float:
    try:
        return text if text in ("free", "none") else float(text)
    except ValueError:
        raise ArgumentError(f"--bias: {text!r} must be none, free or a number.") from None


def search_options(methods: tuple[str, ...], method_help: str, restarts: int | None = None) -> Any:
    """Return options for solving the model; `restarts` is the default number of starts."""
    by_default = "" if restarts else "; by default 1, or 20 if d is small"
    return combined(
        click.option("--method", type=Choice(methods), default="auto", help=method_help),
        click.option(
            "--restarts", type=int, default=restarts, help=f"Number of random starts{by_default}."
        ),
        click.option(
            "--landscape",
            "with_landscape",
            is_flag=True,
            help="Also compute gradient, curvature, and a descent direction if there is one.",
        ),
    )


PLAIN = ("auto", "closed", "numerical")


def plain_options(bias: str) -> Any:
    """Return the options of a model with one layer of weights and the given default of the bias."""
    return combined(
        label_options,
        decay_options(layers=False),
        bias_option(bias),
        search_options(PLAIN, "auto: the closed form if there is one, else numerical."),
        output_options,
    )


@command(
    "ce",
    "Cross-entropy: the simplex ETF (Zhu et al. 2021).",
    "wgeo ufm ce --classes 10 --per-class 50 --dim 64 --out runs/ce\n"
    "wgeo ufm ce --counts 60,30,20 --method numerical --restarts 8 --landscape",
    within=ufm,
)
@plain_options("free")
def ce(**settings: Any) -> None:
    """Solve the cross-entropy model.

    \b
    F = (1/N) sum CE(W h + b, y)
        + (lambda_W/2) ||W||^2 + (lambda_H/2) ||H||^2 + (lambda_b/2) ||b||^2
    """
    from ..ufm import fit_ce

    _solve(fit_ce, settings)


@command(
    "mse",
    "Squared loss (Tirer, Bruna 2022).",
    "wgeo ufm mse --classes 10 --per-class 50 --bias free --out runs/mse\n"
    "wgeo ufm mse --counts 500,20 --weight-decay 0.01 --feature-decay 0.01",
    within=ufm,
)
@plain_options("none")
def mse(**settings: Any) -> None:
    """Solve the squared-loss model.

    \b
    F = (1/2N) ||W H + b 1^T - Y||^2
        + (lambda_W/2) ||W||^2 + (lambda_H/2) ||H||^2 + (lambda_b/2) ||b||^2

    If the classes are balanced, their means form an orthogonal frame without a bias, and a simplex
    ETF with a free bias.
    """
    from ..ufm import fit_mse

    _solve(fit_mse, settings)


@command(
    "deep",
    "Several layers of weights, with or without ReLUs.",
    "wgeo ufm deep --classes 2 --layers 4 --dim 20 --restarts 100 --out runs/deep\n"
    "wgeo ufm deep --classes 6 --layers 4 --method lower-rank",
    within=ufm,
)
@label_options
@click.option("--layers", default=3, help="Number L of weight matrices.")
@decay_options(layers=True)
@bias_option("none")
@click.option("--activation", type=Choice(["relu", "linear"]), default="relu")
@search_options(
    (*PLAIN, "lower-rank"),
    "closed: orthogonal frames at every layer; lower-rank: a ReLU solution with a lower objective.",
    restarts=10,
)
@output_options
def deep(layers: int, weight_decay: str, method: str, **settings: Any) -> None:
    """Solve the deep model (Súkeník, Mondelli, Lampert 2023; L = 2: Tirer, Bruna 2022).

    \b
    F = (1/2N) ||W_L s(W_{L-1} ... s(W_1 H)) + b 1^T - Y||^2
        + sum_l (lambda_l/2) ||W_l||^2 + (lambda_H/2) ||H||^2 + (lambda_b/2) ||b||^2,
    with s the ReLU or the identity
    """
    from ..ufm import fit_deep, lower_rank

    settings["weight_decays"] = _decays(weight_decay, layers)
    if method != "lower-rank":
        _solve(fit_deep, {**settings, "method": method})
        return
    if settings["activation"] != "relu" or settings["bias"] != "none":
        raise ArgumentError("--method lower-rank is for ReLU models without a bias.")
    ctx, default = click.get_current_context(), click.core.ParameterSource.DEFAULT
    random = ("restarts", "seed")
    if given := [f"--{name}" for name in random if ctx.get_parameter_source(name) is not default]:
        raise ArgumentError(
            f"--method lower-rank has no random starts: leave out {' and '.join(given)}."
        )
    for name in ("activation", "bias", *random):
        del settings[name]
    _solve(lower_rank, settings)


@command(
    "mufm",
    "Layers tied to data by optimal transport.",
    "wgeo ufm mufm --data digits --samples 500 --layers 8 --transport 0.5 --out runs/mufm",
    within=ufm,
)
@click.option("--data", "source", default="digits", help="Images: H_0 = pixels.")
@samples_option(500)
@click.option("--normalize", help="Preset or 'mean,..;std,..'; the data set's own by default.")
@click.option("--layers", default=8, help="Number L of layers.")
@click.option("--weight-decay", default=DECAY["weight_decay"], help="lambda_W.")
@click.option("--transport", default=1.0, help="lambda, the weight of the transport terms.")
@click.option("--feature-decay", default=0.0, help="lambda_H of the last layer.")
@bias_option("none")
@click.option("--loss", type=Choice(["mse", "ce"]), default="mse")
@click.option(
    "--coupling",
    type=Choice(["trajectory", "class", "free"]),
    default="trajectory",
    help="The input to which a sample's features are tied: its own (trajectory), any of its class "
    "(class), or any at all (free).",
)
@click.option("--restarts", default=4, help="Number of random starts.")
@output_options
def mufm(
    source: str, limit: int, normalize: str | None, seed: int, out: str | None, **settings: Any
) -> None:
    """Solve the multilayer model MUFM (Wang, Gai, Zhang 2024).

    \b
    F = (1/2N) ||W H_L + b 1^T - Y||^2 + (lambda_W/2) ||W||^2 + (lambda_b/2) ||b||^2
        + (lambda/2N) sum_l ||H_l - H_{l-1}||^2 + (lambda_H/2N) ||H_L||^2,   H_0 = X the data
    With --loss ce, cross-entropy replaces the squared loss.
    """
    require_inputs((), source)

    from ..data import load_images
    from ..data.images import normalization
    from ..ufm import fit_mufm

    folder = _folder(out)
    images = load_images(source, limit=limit or None, seed=seed, normalize=normalize)
    pixels = (images.normalize or normalization(images.preset))(images.x).flatten(1)
    solution = fit_mufm(pixels, images.y, seed=seed, **settings)
    _show(solution, False, folder)


# --- parsing ---------------------------------------------------------------------------------


def _labels(
    classes: int, per_class: int, counts: str | None, dim: int | None
) -> tuple[list[int], int]:
    sizes = [per_class] * classes
    if counts is not None:
        sizes = [whole_number(text, "--counts") for text in counts.split(",")]
    if min(sizes, default=0) < 1 or len(sizes) < 2:
        raise ArgumentError("A model needs at least two classes with at least one sample each.")
    labels = [k for k, size in enumerate(sizes) for _ in range(size)]
    return labels, len(sizes) if dim is None else dim


def _decays(text: str, layers: int) -> list[float]:
    try:
        decays = [float(part) for part in text.split(",")]
    except ValueError:
        raise ArgumentError(
            f"--weight-decay: {text!r} must be a number, or one per layer."
        ) from None
    if layers < 1 or len(decays) not in (1, layers):
        raise ArgumentError(f"--weight-decay has {len(decays)} numbers for {layers} layers.")
    return decays * layers if len(decays) == 1 else decays


def _folder(out: str | None) -> Path | None:
    """Lock the folder of a solution, if any, and check that it can be written."""
    if out is None:
        return None
    folder = lock_folder(out)
    require_writable(folder, "solution.npz", "solution.json", "model.png", "model.svg")
    return folder


def _solve(fit: Any, settings: dict[str, Any]) -> None:
    size = {name: settings.pop(name) for name in ("classes", "per_class", "counts", "dim")}
    labels, dim = _labels(**size)
    with_landscape, folder = settings.pop("with_landscape"), _folder(settings.pop("out"))
    _show(fit(labels, dim=dim, **settings), with_landscape, folder)


# --- output ----------------------------------------------------------------------------------


def _show(solution: Any, with_landscape: bool, folder: Path | None) -> None:
    import numpy as np

    from ..analysis.result import versions
    from ..ufm import landscape
    from ..ufm.record import arrays_of, record_of
    from .tables import print_solution

    record = record_of(solution, landscape(solution) if with_landscape else None)
    record |= {
        "command": as_typed(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions(),
    }
    print_solution(record)
    if folder is None:
        return
    from ..plots.models import write_model

    arrays = io.BytesIO()
    np.savez_compressed(arrays, **arrays_of(solution))
    text = json.dumps(record, indent=1, allow_nan=False) + "\n"
    with owned(folder) as owner:
        owner.write({"solution.npz": arrays.getvalue(), "solution.json": text})
    figure = write_model(record, folder)[0]
    say(f"Record: {folder / 'solution.json'}", f"Figure: {figure}")
