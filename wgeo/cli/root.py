"""Common parts of all commands: errors in one line, help that ends in an example."""

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
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
from ..text import printable, suggestion

F = TypeVar("F", bound=Callable[..., Any])
SEED = click.IntRange(min=0)
SIGPIPE = 13  # Windows has no such signal
STOPPED = "wgeo: stopped; finished results are kept, and no file is incomplete."
_PARAMETER = re.compile(r"`(\w+)=([^`]*)`")
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100, "show_default": True}


def say(*lines: object, err: bool = False) -> None:
    """Print lines to standard output or error, with unprintable characters escaped."""
    for line in lines:
        click.echo(printable(str(line), None), err=err)


def with_flags(text: str, command: click.Command | None = None) -> str:
    """Replace parameters in a library message by options: `` `pool='gap'` `` by ``--pool gap``.

    The library writes parameters in backquotes. `command` is the running command by default;
    parameters that are not its options are unchanged.
    """
    if command is None and (ctx := click.get_current_context(silent=True)):
        command = ctx.meta.get("wgeo.command")
    options = {each.name: each for each in command.params} if command else {}

    def flag(match: re.Match[str]) -> str:
        option = options.get(match[1])
        return (option and _flags(option, match[2])) or match[0]

    return _PARAMETER.sub(flag, text)


def _flags(option: click.Parameter, value: str) -> str | None:
    """Return an option with its value as typed in a shell; None if it cannot be typed."""
    if not isinstance(option, click.Option):
        return None
    name = max(option.opts, key=len)
    if option.is_flag:
        off = option.secondary_opts[0] if option.secondary_opts else None
        return {"": name, "True": name, "False": off}.get(value)
    try:
        parsed = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        parsed = value  # empty, or a placeholder in capitals
    values = parsed if isinstance(parsed, list | tuple) else [parsed]
    text = ",".join("..." if each is ... else str(each) for each in values)
    return f"{name} {shlex.quote(text)}" if value else name


class Choice(click.Choice):  # type: ignore[type-arg]  # generic since click 8.2 only
    """A choice whose error message suggests the closest names."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            close = suggestion(str(value), self.choices)
            self.fail(f"{error.message.removesuffix('.')}{close}.", param, ctx)


class Command(click.Command):
    """A command that records itself in the context, so that errors can name its options."""

    def invoke(self, ctx: click.Context) -> Any:
        ctx.meta["wgeo.command"] = self
        return super().invoke(ctx)


class Commands(click.Group):
    """A group that prints errors, except click's own, in one line and exits with code 2.

    `--debug` shows the traceback instead.
    """

    def main(self, *args: Any, **extra: Any) -> Any:
        try:
            return super().main(*args, **extra)
        except OSError as error:  # for example while help is printed
            say(f"wgeo: {_error_text(error)}", err=True)
            sys.exit(2)

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **extra: Any) -> Any:
        command_line = shlex.join(["wgeo", *args])  # before parsing consumes the arguments
        with _printable_errors(), _quiet_on_closed_pipe():
            ctx = super().make_context(info_name, args, *more, **extra)
        ctx.meta["wgeo.typed"] = command_line
        return ctx

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with (
                _quiet_on_closed_pipe(),
                _stoppable(),
                _warnings_in_one_line(),
                _printable_errors(),
                show_progress() if is_rank_zero() else nullcontext(),
            ):
                return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit) as error:
            if isinstance(error, click.ClickException) and not reports_error(error):
                ctx.exit(error.exit_code)
            raise  # click handles these itself
        except Exception as error:
            if ctx.meta.get("wgeo.debug"):
                raise
            if reports_error(error):
                process = f" [process {os.environ['RANK']}]" if launched_world_size() > 1 else ""
                say(f"wgeo{process}: {_error_text(error)}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt as stop:
            if reports_error(stop):
                say("", STOPPED, err=True)
            ctx.exit(128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT))


@contextmanager
def _quiet_on_closed_pipe() -> Iterator[None]:
    """Exit silently if the program that reads the output has ended, as in ``| head -1``."""
    try:
        yield
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):  # otherwise Python reports an error when it flushes them at exit
            os.dup2(nowhere, stream)
        sys.exit(128 + SIGPIPE)


@contextmanager
def _printable_errors() -> Iterator[None]:
    """Escape unprintable characters in click's own errors, which can quote file names."""
    try:
        yield
    except click.ClickException as error:
        vars(error)["message"] = printable(error.message, None)  # the attribute is declared final
        raise


class Stopped(KeyboardInterrupt):
    """A signal to stop, as an exception, so that files are closed and locks released."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def _stoppable() -> Iterator[None]:
    """Make SIGTERM stop a command like Ctrl-C; a second signal ends it immediately."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can handle signals
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
def _warnings_in_one_line() -> Iterator[None]:
    """Print wgeo's own warnings in one line."""
    original = warnings.showwarning

    def show(message: Any, category: type[Warning], *location: Any, **more: Any) -> None:
        if issubclass(category, WgeoWarning):
            if is_rank_zero():
                say(f"wgeo: {with_flags(str(message))}", err=True)
        else:
            original(message, category, *location, **more)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = original


def _error_text(error: BaseException) -> str:
    if isinstance(error, WgeoError):
        return with_flags(str(error))
    text = " ".join(str(error).split())
    out_of_memory = ("t allocate memory", "out of memory", "failed to map segment")
    if isinstance(error, MemoryError) or any(phrase in text for phrase in out_of_memory):
        return f"Not enough memory{_memory_advice()}."
    if isinstance(error, OSError):
        return text or type(error).__name__
    return (
        f"Unexpected error ({type(error).__name__}: {text}). "
        "Please report it; --debug shows the traceback."
    )


def _memory_advice() -> str:
    """Return which options of the running command would reduce its memory."""
    ctx = click.get_current_context(silent=True)
    command = ctx.meta.get("wgeo.command") if ctx else None
    names = {option.name for option in command.params} if command else set()
    advice = {
        "limit": "fewer `--samples`",
        "per_class": "a smaller `--per-class`",
        "pool": "`--pool gap`",
        "batch_size": "a smaller `--batch-size`",
    }
    known = [text for name, text in advice.items() if name in names]
    return f": use {' or '.join(known)}" if known else ""


def _remember_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.find_root().meta["wgeo.debug"] = True


debug_option = click.option(
    "--debug",
    is_flag=True,
    is_eager=True,  # read first, so that it also applies to errors in the values of other options
    expose_value=False,
    callback=_remember_debug,
    help="Show tracebacks instead of one-line errors.",
)


def command(
    name: str,
    short: str,
    example: str,
    within: click.Group | None = None,
    distributed: bool = False,
) -> Callable[[F], click.Command]:
    """Return a decorator that adds a command to `main` or to the group `within`.

    The command's help ends in `example`. If `distributed` is true, several processes started by
    torchrun can run the command together (see `wgeo.runtime.processes`).
    """

    def wrap(function: F) -> click.Command:
        function = launched()(function) if distributed else _single_process(name, function)
        lines = "\n".join(f"  {line}" for line in example.strip().splitlines())
        epilog = f"\b\nExample:\n{lines}"
        decorated = click.command(
            name, Command, context_settings=CONTEXT, short_help=short, epilog=epilog
        )(debug_option(function))
        (within or main).add_command(decorated)
        return decorated

    return wrap


def combined(*options: Any) -> Any:
    """Combine options, in the order of the help, into one decorator."""

    def wrap(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return wrap


def _single_process(name: str, function: F) -> F:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if launched_world_size() > 1:
            raise ArgumentError(
                f"`wgeo {name}` runs in one process; torchrun is for `wgeo analyze` and "
                "`wgeo trace`."
            )
        return function(*args, **kwargs)

    return run  # type: ignore[return-value]


@click.group(cls=Commands, context_settings=CONTEXT)
@click.version_option(__version__, prog_name="wgeo")
@debug_option
def main() -> None:
    """The optimal-transport geometry of trained deep networks.

    wgeo reads a saved checkpoint and labeled images. It measures Wasserstein distances between
    layers, the straightness of the network's path, and neural collapse, and writes a report.

    New here? Start with:  wgeo demo
    """


def lock_folder(out: str) -> Path:
    """Create a folder if needed, and lock it until the command ends."""
    ctx = click.get_current_context()
    return on_rank_zero(lambda: ctx.with_resource(locked(out)))


def whole_number(text: str, option: str) -> int:
    """Parse the text of an option as a nonnegative integer; any other text is an ArgumentError."""
    if not text.strip().isdecimal():
        raise ArgumentError(f"{option}: {text!r} is not a whole number.")
    return int(text)


def as_typed() -> str:
    """Return the command line as typed, for records."""
    return str(click.get_current_context().find_root().meta["wgeo.typed"])
