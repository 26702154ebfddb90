"""A console that prints every string as plain text on one line."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from ..text import printable


class Terminal(Console):
    """A console for tables and sentences that contain names of files, layers and classes.

    Strings are printed literally: brackets are not markup, and control characters are escaped.
    Styles are set by `rich.text.Text` or ``style=``. `width` is the number of columns if the output
    is not a terminal.
    """

    def __init__(self, width: int) -> None:
        super().__init__(markup=False, emoji=False, highlight=False)
        if not self.is_terminal:
            self.width = width

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the string as plain text; rich passes every string to this method."""
        return super().render_str(printable(text, None), **options)

    def on_broken_pipe(self) -> None:
        """Re-raise the error of a closed pipe for the command to handle; rich would exit."""
        raise  # rich calls this method while it handles the error
