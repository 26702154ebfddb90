"""Errors and warnings of wgeo. Every message says what happened and what to do next."""

from .text import printable


class WgeoError(Exception):
    """Base class of all errors that wgeo raises on purpose.

    The text is one line: unprintable characters in quoted names are escaped.

    Examples
    --------
    >>> import wgeo
    >>> try:
    ...     wgeo.load_images("digits", split="tran")
    ... except wgeo.WgeoError as error:
    ...     print(error)
    digits has no split 'tran'; choose from train, test and all.
    """

    def __str__(self) -> str:
        return printable(super().__str__(), None)


class ArgumentError(WgeoError, ValueError):
    """An invalid setting or argument."""


class CheckpointError(WgeoError):
    """A checkpoint cannot be read, or does not fit the architecture."""


class DataError(WgeoError):
    """Images or labels cannot be read or used."""


class FeatureError(WgeoError, ValueError):
    """Features cannot be traced or analyzed (no blocks, NaN, differing widths)."""


class ConvergenceError(WgeoError):
    """A solver stopped before it reached its tolerance."""


class RecordError(WgeoError):
    """A file of wgeo is missing, damaged or of another schema, or it cannot be written."""


class DependencyError(WgeoError, ImportError):
    """A function needs an optional package that is not installed."""


class ProcessError(WgeoError):
    """Another process of a distributed job has ended or cannot be reached."""


class WgeoWarning(UserWarning):
    """A warning of wgeo; the text is one line."""

    def __str__(self) -> str:
        return printable(super().__str__(), None)
