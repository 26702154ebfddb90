"""Run the command line inside the process of a test."""

from __future__ import annotations

from click.testing import CliRunner

from wgeo.cli import main


def run(*words, code=0):
    """Return what a command prints; its exit code must be `code`."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result.output
