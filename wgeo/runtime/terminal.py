"""A console on which a string is one line of text, whatever its characters."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from ..text import printable


class Terminal(Console):
    """A console for tables and sentences that contain names of files, layers and classes.

    Strings (cells, titles, sentences) are plain text: square brackets are not markup, and control
    characters are escaped. Style is given by `rich.text.Text` or ``style=``.

    Parameters
    ----------
    width : int
        Columns if the output is not a terminal.
    """

    def __init__(self, width: int) -> None:
        super().__init__(markup=False, emoji=False, highlight=False)
        if not self.is_terminal:
            self.width = width

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the string as plain text; rich passes every string to this method."""
        return super().render_str(printable(text, None), **options)

    def on_broken_pipe(self) -> None:
        """Let the command handle a closed pipe; rich would end the process."""
        raise  # rich calls this while it handles the error
