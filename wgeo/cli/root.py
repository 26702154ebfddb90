"""What every command shares: the group, errors in one line, help that ends in an example."""

from __future__ import annotations

import ast
import functools
import os
import re
import shlex
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import click

from .. import __version__
from ..errors import ArgumentError, WgeoError, WgeoWarning
from ..runtime.processes import (
    is_rank_zero,
    launched,
    launched_world_size,
    on_rank_zero,
    reports_error,
)
from ..runtime.progress import show_progress
from ..storage.files import locked
from ..text import printable

F = TypeVar("F", bound=Callable[..., Any])
SEED = click.IntRange(min=0)
SIGPIPE = 13  # Windows has no such signal
STOPPED = "wgeo: stopped; what was finished is kept, nothing is half-written."
_PARAMETER = re.compile(r"`(\w+)=([^`]*)`")
_OPTION = {"limit": "samples", "size": "image_size", "trust": "trust_checkpoint"}  # other names
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def say(*lines: object, err: bool = False) -> None:
    """Print lines of text, whatever names they hold, on standard output or standard error."""
    for line in lines:
        click.echo(printable(str(line), None), err=err)


def with_flags(text: str, command: click.Command | None = None) -> str:
    """A message of the library as a command has it: ``--pool gap`` for `` `pool='gap'` ``.

    The library names its parameters, in backquotes. What the command has no option for stays.

    Parameters
    ----------
    text : str
    command : click.Command, optional
        By default the one that runs.
    """
    if command is None and (ctx := click.get_current_context(silent=True)):
        command = ctx.meta.get("wgeo.command")
    known = {each.name: each for each in command.params} if command else {}

    def flag(found: re.Match[str]) -> str:
        option = known.get(_OPTION.get(found[1], found[1]))
        return (option and _flags(option, found[2])) or found[0]

    return _PARAMETER.sub(flag, text)


def _flags(option: click.Parameter, value: str) -> str | None:
    """The option with a value that Python's syntax gives; None if it cannot have that."""
    if not isinstance(option, click.Option):
        return None
    name = max(option.opts, key=len)
    if option.is_flag:
        off = option.secondary_opts[0] if option.secondary_opts else None
        return {"": name, "True": name, "False": off}.get(value)
    try:
        parsed = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        parsed = value  # nothing, or a word in capitals that stands for a value
    several = parsed if isinstance(parsed, list | tuple) else [parsed]
    words = ",".join("..." if each is ... else str(each) for each in several)
    return f"{name} {shlex.quote(words)}" if value else name


class Command(click.Command):
    """A command that is known to run while it does, and when its error is printed."""

    def invoke(self, ctx: click.Context) -> Any:
        ctx.meta["wgeo.command"] = self
        return super().invoke(ctx)


class Commands(click.Group):
    """Turns every error into one line and exit code 2; `--debug` lets it through."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command; help of which nothing can be written is an error like any other."""
        try:
            return super().main(*args, **extra)
        except OSError as error:
            say(f"wgeo: {_in_words(error)}", err=True)
            sys.exit(2)

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        typed = shlex.join(["wgeo", *args])  # before parsing uses the words up
        with _shown_as_text(), _ended_with_its_reader():
            ctx = super().make_context(info_name, args, parent, **extra)
        ctx.meta["wgeo.typed"] = typed
        return ctx

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _ended_with_its_reader(), _stoppable(), _told(), _shown_as_text(), _progress():
                return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit) as error:
            if isinstance(error, click.ClickException) and not reports_error(error):
                ctx.exit(error.exit_code)
            raise  # click answers these itself
        except Exception as error:
            if ctx.meta.get("wgeo.debug"):
                raise
            if reports_error(error):
                say(f"wgeo{_which()}: {_in_words(error)}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt as stop:
            if reports_error(stop):
                say("", STOPPED, err=True)
            ctx.exit(128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT))


def _progress() -> AbstractContextManager[None]:
    return show_progress() if is_rank_zero() else nullcontext()


@contextmanager
def _ended_with_its_reader() -> Iterator[None]:
    """End without a word, as programs do, if the one that reads the output has (``| head -1``)."""
    try:
        yield
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):  # else what they still hold is an error when Python ends
            os.dup2(nowhere, stream)
        sys.exit(128 + SIGPIPE)


@contextmanager
def _shown_as_text() -> Iterator[None]:
    """Click's own errors quote words of the command line: names of files among them (``*``)."""
    try:
        yield
    except click.ClickException as error:
        vars(error)["message"] = printable(error.message, None)  # declared final
        raise


class Stopped(KeyboardInterrupt):
    """A signal to stop, as an exception, so that files are closed and locks let go."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGTERM stop a command as Ctrl-C does; a second signal ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's
        return
    signals = (signal.SIGINT, signal.SIGTERM)

    def stop(number: int, _: Any) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_DFL)
        raise Stopped(number)

    before = [signal.signal(each, stop) for each in signals]
    try:
        yield
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)


@contextmanager
def _told() -> Iterator[None]:
    """Say wgeo's own warnings in a line, as its errors are; others as Python does."""
    usual = warnings.showwarning

    def show(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, WgeoWarning):
            if is_rank_zero():
                say(f"wgeo: {with_flags(str(message))}", err=True)
        else:
            usual(message, category, *where, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = usual


def _which() -> str:
    """Which of several processes speaks."""
    return f" [process {os.environ['RANK']}]" if launched_world_size() > 1 else ""


def _in_words(error: BaseException) -> str:
    if isinstance(error, WgeoError):
        return with_flags(str(error))
    text = " ".join(str(error).split())
    short = ("t allocate memory", "out of memory", "failed to map segment")  # a library, the last
    if isinstance(error, MemoryError) or any(said in text for said in short):
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


def command(
    name: str,
    short: str,
    example: str,
    within: click.Group | None = None,
    together: bool = False,
) -> Callable[[F], click.Command]:
    """A command (of `main`, or `within` a group) whose help ends in an example to paste.

    Several processes may do it `together` (`wgeo.runtime.processes`), or one alone.
    """

    def wrap(function: F) -> click.Command:
        function = launched()(function) if together else _by_one(name, function)
        lines = "\n".join(f"  {line}" for line in example.strip().splitlines())
        epilog = f"\b\nExample:\n{lines}"
        made = click.command(
            name, Command, context_settings=CONTEXT, short_help=short, epilog=epilog
        )(debug_option(function))
        (within or main).add_command(made)
        return made

    return wrap


def _by_one(name: str, function: F) -> F:
    """A command that refuses to be run by several processes."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if launched_world_size() > 1:
            raise ArgumentError(
                f"`wgeo {name}` is the work of one process; torchrun is for `wgeo analyze` and "
                "`wgeo trace`."
            )
        return function(*args, **kwargs)

    return run  # type: ignore[return-value]


@click.group(cls=Commands, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="wgeo")
@debug_option
def main() -> None:
    """The optimal-transport geometry of trained deep networks.

    Takes a saved checkpoint and labelled images; measures Wasserstein distances between layers,
    how straight the network's path is, and how its classes collapse; writes a report.

    New here? Start with:  wgeo demo
    """


def own_folder(out: str) -> Path:
    """A command's folder, made if need be and kept to it until it has ended."""
    ctx = click.get_current_context()
    return on_rank_zero(lambda: ctx.with_resource(locked(out)))


def settings_of(texts: Iterable[str]) -> dict[str, Any]:
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


def number(text: str, option: str) -> int:
    """The whole number that an option's text is."""
    if not text.strip().isdecimal():
        raise ArgumentError(f"{option}: {text!r} is not a whole number.")
    return int(text)


def as_typed() -> str:
    """The command as it was typed, for the record."""
    return str(click.get_current_context().find_root().meta["wgeo.typed"])
