"""What a terminal is shown: a string is one line of text, whatever it holds."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from ..text import printable


class Terminal(Console):
    """A console for tables and sentences in which names of files, layers and classes occur.

    A string (a cell, a title, a sentence) is text: square brackets are no markup, and control
    characters are shown, not obeyed. Style is given by `rich.text.Text` or ``style=``.

    Parameters
    ----------
    width : int
        Columns where the output is no terminal.
    """

    def __init__(self, width: int) -> None:
        super().__init__(markup=False, emoji=False, highlight=False)
        if not self.is_terminal:
            self.width = width

    def render_str(self, text: str, **options: Any) -> Text:
        """Text as it is; rich has every string come here."""
        return super().render_str(printable(text, None), **options)

    def on_broken_pipe(self) -> None:
        """Leave to the command what it does if nobody reads on; rich would end the process."""
        raise  # rich calls this while it handles the error
