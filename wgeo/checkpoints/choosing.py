"""Of the state dicts in a file, under all their prefixes: the one that an architecture fits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import CheckpointError
from ..models import matching
from ..models.matching import Fit
from ..models.registry import find
from ..storage.files import printable
from .contents import Found, View, views
from .folding import folded
from .normalizing import without_normalizers


@dataclass(frozen=True, eq=False)
class Choice:
    """What was taken, and the network that it makes.

    Attributes
    ----------
    found : Found
    view : View
    fitted : Fit
    notes : tuple of str
        What a reader should know: what was assumed or chosen.
    """

    found: Found
    view: View
    fitted: Fit
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Candidate:
    found: Found
    view: View
    arch: str
    notes: tuple[str, ...]


def choose(
    states: list[Found],
    arch: str | None,
    num_classes: int | None,
    settings: Callable[[str], Mapping[str, Any]],
    prefix: str | None,
) -> Choice:
    """Choose the state dict and prefix that fit; the first of usual name, else the only one.

    Parameters
    ----------
    states : list of Found
        The likeliest first, as `find_states` returns them.
    arch : str or None
        None: whatever built-in architecture fits.
    num_classes : int or None
    settings : callable
        What an architecture is built with beyond what shapes tell.
    prefix : str or None
        The one to take.

    Raises
    ------
    CheckpointError
        None fits (the error of the likeliest), or several do and hold different weights.
    """

    def attempt(candidate: _Candidate) -> Fit:
        given = settings(candidate.arch)
        return matching.fit(candidate.arch, candidate.view.state, num_classes, **given)

    error: CheckpointError | None = None
    fitting: list[tuple[_Candidate, Fit | None]] = []
    for found in states:
        if fitting and (found.usual or fitting[0][0].found.usual):
            break  # the first of usual name that fits is taken
        try:
            fitting += _fitting(found, arch, prefix, attempt)
        except CheckpointError as failed:
            error = error or failed
    if not fitting:
        raise error or CheckpointError("it holds no state dict.")
    _refuse_several(fitting)
    chosen, fitted = fitting[0]
    others = [f"{each.container!r}" for each in states if each is not chosen.found]
    notes = [*chosen.notes, *(f"used {chosen.found.container!r}, not {each}" for each in others)]
    return Choice(chosen.found, chosen.view, fitted or attempt(chosen), tuple(notes))


def _fitting(
    found: Found, arch: str | None, prefix: str | None, attempt: Callable[[_Candidate], Fit]
) -> list[tuple[_Candidate, Fit | None]]:
    """Return what fits of one state dict, with its normalization if need be without."""
    state, folds = folded(found.state)
    bare = without_normalizers(state)
    try:
        return _fitting_of(found, state, folds, arch, prefix, attempt)
    except CheckpointError:
        if len(bare) == len(state):
            raise
    return _fitting_of(found, bare, folds, arch, prefix, attempt)


def _fitting_of(
    found: Found,
    state: Mapping[str, torch.Tensor],
    folds: tuple[str, ...],
    arch: str | None,
    prefix: str | None,
    attempt: Callable[[_Candidate], Fit],
) -> list[tuple[_Candidate, Fit | None]]:
    """Return what fits of a state; one whose names all have the prefix is enough."""
    error: CheckpointError | None = None
    fitting: list[tuple[_Candidate, Fit | None]] = []
    seen = views(state, prefix)
    for view in seen:
        if fitting and not view.aside:
            continue
        try:
            if arch is None:
                name, note = _recognised(view)
                fitting.append((_Candidate(found, view, name, (note, *folds)), None))
            else:
                candidate = _Candidate(found, view, arch, folds)
                fitting.append((candidate, attempt(candidate)))
        except CheckpointError as failed:
            error = error or failed
            continue
        if not view.aside:
            return fitting[-1:]
    if not fitting:
        raise _best_error(seen, arch) or error or CheckpointError("it holds no tensors.")
    return fitting


def _best_error(seen: list[View], arch: str | None) -> CheckpointError | None:
    """The error of the view that comes closest to anything, if that is not the first."""
    if arch is not None or len(seen) < 2:
        return None
    close = [(best[1].share, view) for view in seen if (best := matching.closest(view.state))]
    if not close:
        return None
    try:
        _recognised(max(close, key=lambda pair: pair[0])[1])
    except CheckpointError as error:
        return error
    return None


def _refuse_several(fitting: list[tuple[_Candidate, Fit | None]]) -> None:
    """Refuse when different weights fit; copies of the same are one."""
    first = fitting[0][0]
    different = [each for each, _ in fitting if not _same(each.view.state, first.view.state)]
    if not different:
        return
    options = [first, *different]
    if len({each.found.container for each in options}) > 1:
        named = " and ".join(repr(each.found.container) for each in options[:5])
        raise CheckpointError(f"several networks in it fit, {named}. Say which with `container=`.")
    named = " and ".join(repr(each.view.prefix) for each in options[:5])
    raise CheckpointError(f"several networks in it fit, {named}. Say which with `prefix=`.")


def _same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Whether two states hold the same bits, of any type."""
    return one is other or (
        one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    )


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    bits = [each.reshape(-1).contiguous().view(torch.uint8) for each in (a, b)]
    return torch.equal(*bits)


def _recognised(view: View) -> tuple[str, str]:
    state = view.state
    fitting = matching.exact_fits(state)
    if len(fitting) == 1 and find(fitting[0]).settled:
        return fitting[0], f"recognized as {fitting[0]} by its tensors: every one fits"
    if fitting:
        raise CheckpointError(
            f"its tensors fit {' and '.join(fitting)}, and shapes don't tell the rest "
            "(shortcuts, activation, heads). Say which with `arch=`."
        )
    best = matching.closest(state)
    if best is None:
        keys = ", ".join(printable(view.prefix + key) for key in list(state)[:5])
        raise CheckpointError(
            f"no built-in architecture is close to its tensors ({keys}, ...). Say which it is "
            "with `arch=`; your own network is 'package.module:factory'."
        )
    closest, report = best
    raise CheckpointError(
        f"say which architecture it is with `arch=`. The closest is {closest}, with "
        f"{report.share:.0%} of the tensors in common; it differs by {report.describe()}."
    )
