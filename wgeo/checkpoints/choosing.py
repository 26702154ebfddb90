"""Choose, among the state dicts and prefixes in a file, those that fit an architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import CheckpointError
from ..models import matching
from ..models.matching import Fit
from ..models.registry import find
from ..text import printable
from .contents import SavedState, View, views
from .folding import fold_parts
from .normalizing import without_normalizers


@dataclass(frozen=True, eq=False)
class Choice:
    """The chosen state dict, the network built from it, and the choices that were made."""

    saved: SavedState
    view: View
    fit: Fit
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Candidate:
    saved: SavedState
    view: View
    arch: str
    notes: tuple[str, ...]


def choose(
    states: list[SavedState],
    arch: str | None,
    num_classes: int | None,
    settings: Callable[[str], Mapping[str, Any]],
    prefix: str | None,
) -> Choice:
    """Choose the state dict and prefix that fit, and build the network.

    The first state dict under a usual name that fits is chosen. If none fits, the first one under
    another name that fits is chosen, and all that fit must have the same weights.

    Parameters
    ----------
    states : list of SavedState
        The most likely first, as returned by `find_states`.
    arch : str or None
        None: the built-in architecture that fits, if its shapes determine the network.
    num_classes : int or None
    settings : callable
        Returns the settings that shapes do not determine, for an architecture's name.
    prefix : str or None
        None: any that fits.

    Raises
    ------
    CheckpointError
        No state dict fits (the error is that of the most likely one), or different weights fit
        under several unusual names or several prefixes.
    """

    def attempt(candidate: _Candidate) -> Fit:
        options = settings(candidate.arch)
        return matching.fit(candidate.arch, candidate.view.state, num_classes, **options)

    error: CheckpointError | None = None
    fitting: list[tuple[_Candidate, Fit | None]] = []
    for saved in states:
        if fitting and fitting[0][0].saved.usual:
            break  # the first one that fits under a usual name is used
        try:
            fitting += _fitting(saved, arch, prefix, attempt)
        except CheckpointError as reason:
            error = error or reason
    if not fitting:
        raise error or CheckpointError("it contains no state dict.")
    require_one_network([(each.saved, each.view) for each, _ in fitting])
    chosen, fit = fitting[0]
    others = [f"{each.container!r}" for each in states if each is not chosen.saved]
    notes = [*chosen.notes, *(f"used {chosen.saved.container!r}, not {each}" for each in others)]
    return Choice(chosen.saved, chosen.view, fit or attempt(chosen), tuple(notes))


def _fitting(
    saved: SavedState, arch: str | None, prefix: str | None, attempt: Callable[[_Candidate], Fit]
) -> list[tuple[_Candidate, Fit | None]]:
    """Return the fitting candidates of one state dict.

    If there are none, try again without its buffers of input normalization (mean, std).
    """
    state, folds = fold_parts(saved.state)
    bare = without_normalizers(state)
    try:
        return _fitting_of(saved, state, folds, arch, prefix, attempt)
    except CheckpointError:
        if len(bare) == len(state):
            raise
    return _fitting_of(saved, bare, folds, arch, prefix, attempt)


def _fitting_of(
    saved: SavedState,
    state: Mapping[str, torch.Tensor],
    folds: tuple[str, ...],
    arch: str | None,
    prefix: str | None,
    attempt: Callable[[_Candidate], Fit],
) -> list[tuple[_Candidate, Fit | None]]:
    """Return the views that fit; if one of them uses all tensors, only that one."""
    error: CheckpointError | None = None
    fitting: list[tuple[_Candidate, Fit | None]] = []
    candidates = views(state, prefix)
    for view in candidates:
        if fitting and not view.aside:
            continue
        try:
            if arch is None:
                name, note = _recognize(view)
                fitting.append((_Candidate(saved, view, name, (note, *folds)), None))
            else:
                candidate = _Candidate(saved, view, arch, folds)
                fitting.append((candidate, attempt(candidate)))
        except CheckpointError as reason:
            error = error or reason
            continue
        if not view.aside:
            return fitting[-1:]
    if not fitting:
        raise _best_error(candidates, arch) or error or CheckpointError("it contains no tensors.")
    return fitting


def _best_error(candidates: list[View], arch: str | None) -> CheckpointError | None:
    """Return the error of the view that is closest to any architecture."""
    if arch is not None or len(candidates) < 2:
        return None
    close = [
        (best[1].matched_fraction, view)
        for view in candidates
        if (best := matching.closest(view.state))
    ]
    if not close:
        return None
    try:
        _recognize(max(close, key=lambda pair: pair[0])[1])
    except CheckpointError as error:
        return error
    return None


def require_one_network(fitting: list[tuple[SavedState, View]]) -> None:
    """Raise `CheckpointError` if different weights fit; copies of the same ones count once."""
    first = fitting[0]
    different = [each for each in fitting if not _same(each[1].state, first[1].state)]
    if not different:
        return
    options = [first, *different]
    if len({saved.container for saved, _ in options}) > 1:
        names = " and ".join(repr(saved.container) for saved, _ in options[:5])
        raise CheckpointError(f"it contains several networks that fit: {names}. Pass `container=`.")
    names = " and ".join(repr(view.prefix) for _, view in options[:5])
    raise CheckpointError(f"it contains several networks that fit: {names}. Pass `prefix=`.")


def _same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    """Return whether two states are equal bit by bit."""
    return one is other or (
        one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    )


def _alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    bits = [each.reshape(-1).contiguous().view(torch.uint8) for each in (a, b)]
    return torch.equal(*bits)


def _recognize(view: View) -> tuple[str, str]:
    state = view.state
    fitting = matching.exact_fits(state)
    if len(fitting) == 1 and find(fitting[0]).determined_by_shapes:
        return fitting[0], f"recognized as {fitting[0]}: all its tensors fit"
    if fitting:
        raise CheckpointError(
            f"its tensors fit {' and '.join(fitting)}; shapes do not determine the rest "
            "(shortcuts, activation, heads). Pass `arch=`."
        )
    best = matching.closest(state)
    if best is None:
        keys = ", ".join(printable(view.prefix + key) for key in list(state)[:5])
        raise CheckpointError(
            f"no built-in architecture is close to its tensors ({keys}, ...). Pass "
            "`arch=`; for your own network, 'package.module:factory'."
        )
    closest, report = best
    raise CheckpointError(
        f"its architecture was not recognized: pass `arch=`. The closest is {closest}, with "
        f"{report.percent} of the tensors in common; the differences are: "
        f"{report.describe()}."
    )
