"""What can go wrong, by name. Every message says what happened and what to do next."""

from .text import printable


class WgeoError(Exception):
    """Base of every error that wgeo raises on purpose.

    Its text is one line: what is not printable in a name that it quotes is shown, not obeyed.
    """

    def __str__(self) -> str:
        return printable(super().__str__(), None)


class ArgumentError(WgeoError, ValueError):
    """A setting or argument that cannot be used as given."""


class CheckpointError(WgeoError):
    """A checkpoint that cannot be read, or does not fit the architecture."""


class DataError(WgeoError):
    """Images or labels that cannot be read or used."""


class FeatureError(WgeoError, ValueError):
    """Features that cannot be traced or analysed (no blocks, NaN, widths that differ)."""


class ConvergenceError(WgeoError):
    """A solver stopped before it reached its tolerance."""


class RecordError(WgeoError):
    """A saved analysis or run that is missing, damaged or of another schema."""


class DependencyError(WgeoError, ImportError):
    """An optional package is needed and not installed."""


class ProcessError(WgeoError):
    """Another process of a job that several do together has ended."""


class WgeoWarning(UserWarning):
    """Something the user should know that does not stop the work; its text is one line."""

    def __str__(self) -> str:
        return printable(super().__str__(), None)
