"""The command line's page, from what every command's ``--help`` prints."""

from __future__ import annotations

from collections.abc import Iterator

import click

from wgeo.cli import main

_WIDTH = 92


def pages() -> dict[str, str]:
    """One page for all commands."""
    parts = [
        "# Command line\n",
        "What `--help` prints of every command. Errors are one line and exit code 2; "
        "`--debug` shows where they came from.\n",
    ]
    for ctx in walk():
        depth = 2 if ctx.command_path.count(" ") < 2 else 3
        parts.append(f"{'#' * depth} {ctx.command_path}\n")
        parts.append(f"```text\n{ctx.get_help()}\n```\n")
    return {"commands.md": "\n".join(parts)}


def walk(
    command: click.Command = main, parent: click.Context | None = None
) -> Iterator[click.Context]:
    """A context for every command, groups before what is in them."""
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
