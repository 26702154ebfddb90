"""The page of the command line: the output of ``--help`` of every command."""

from __future__ import annotations

from collections.abc import Iterator

import click

from wgeo.cli import main

_WIDTH = 92


def pages() -> dict[str, str]:
    """Return one page for all commands."""
    parts = [
        "# Command line\n",
        "The output of `--help` for every command. An error is one line, with exit code 2; "
        "`--debug` shows where it was raised.\n",
    ]
    for ctx in walk():
        depth = 2 if ctx.command_path.count(" ") < 2 else 3
        parts.append(f"{'#' * depth} {ctx.command_path}\n")
        parts.append(f"```text\n{ctx.get_help()}\n```\n")
    return {"commands.md": "\n".join(parts)}


def walk(
    command: click.Command = main, parent: click.Context | None = None
) -> Iterator[click.Context]:
    """Yield a context for every command, a group before its commands."""
    ctx = click.Context(
        command,
        parent=parent,
        info_name=command.name if parent else "wgeo",
        terminal_width=_WIDTH,
        max_content_width=_WIDTH,
    )
    yield ctx
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            yield from walk(command.get_command(ctx, name), ctx)
