"""Choose, among the state dicts and prefixes in a file, those that fit an architecture."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import CheckpointError
from ..models import matching
from ..models.matching import Fit
from ..models.registry import find
from ..text import percent, printable
from .contents import SavedState, View, views
from .normalizing import without_normalizers

# torch.nn.utils stores some weights in parts. These are the suffixes of the parts' names, by the
# part's role, in the old and in the new format.
_PARTS = (
    ("weight normalization", {"g": "_g", "v": "_v"}),
    ("weight normalization", {"g": ".original0", "v": ".original1"}),
    ("spectral normalization", {"w": "_orig", "left": "_u", "right": "_v"}),
    ("spectral normalization", {"w": ".original", "left": ".0._u", "right": ".0._v"}),
    ("a pruning mask", {"w": "_orig", "mask": "_mask"}),
)
_UNFOLDED = re.compile(r"(.+)(_orig|_mask|_g|\.original\d?)")


@dataclass(frozen=True, eq=False)
class Choice:
    """The chosen state dict, the network built from it, and notes on the choices."""

    saved: SavedState
    view: View
    fit: Fit
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Candidate:
    saved: SavedState
    view: View
    arch: str
    fit: Fit | None  # None if the architecture was recognized and the network not built yet
    notes: tuple[str, ...]


def choose(
    states: list[SavedState],
    arch: str | None,
    num_classes: int | None,
    settings: Callable[[str], Mapping[str, Any]],
    prefix: str | None,
) -> Choice:
    """Choose the state dict and prefix that fit, and build the network.

    State dicts under usual names are tried first, and the first that fits is chosen. If none fits,
    state dicts under other names are tried; those that fit must have the same weights. If nothing
    fits, the error raised is that of the first of `states`, the most likely one.

    If `arch` is None, it is the built-in architecture that fits; the shapes of the tensors must
    determine its network.
    If `prefix` is None, any prefix may fit. `settings` takes an architecture's name and returns the
    settings that shapes do not determine.
    """

    def build(arch: str, view: View) -> Fit:
        return matching.fit(arch, view.state, num_classes, **settings(arch))

    first_error: CheckpointError | None = None  # others would keep their networks in memory
    fitting: list[_Candidate] = []
    for saved in states:
        if fitting and fitting[0].saved.usual:
            break  # the first one that fits under a usual name is used
        try:
            fitting += _fitting(saved, arch, prefix, build)
        except CheckpointError as error:
            first_error = first_error or error
    if not fitting:
        assert first_error is not None
        raise first_error
    require_one_network([(each.saved, each.view) for each in fitting])
    chosen = fitting[0]
    others = [f"{each.container!r}" for each in states if each is not chosen.saved]
    notes = [*chosen.notes, *(f"used {chosen.saved.container!r}, not {each}" for each in others)]
    fit = chosen.fit or build(chosen.arch, chosen.view)
    return Choice(chosen.saved, chosen.view, fit, tuple(notes))


def _fitting(
    saved: SavedState, arch: str | None, prefix: str | None, build: Callable[[str, View], Fit]
) -> list[_Candidate]:
    """Return the fitting candidates of one state dict.

    If there are none, try again without its buffers of input normalization (mean, std).
    """
    state, folds = fold_parts(saved.state)
    bare = without_normalizers(state)
    try:
        return _fitting_views(saved, state, folds, arch, prefix, build)
    except CheckpointError:
        if len(bare) == len(state):
            raise
    return _fitting_views(saved, bare, folds, arch, prefix, build)


def _fitting_views(
    saved: SavedState,
    state: Mapping[str, torch.Tensor],
    folds: tuple[str, ...],
    arch: str | None,
    prefix: str | None,
    build: Callable[[str, View], Fit],
) -> list[_Candidate]:
    """Return the views that fit; if one of them uses all tensors, only that one."""
    first_error: CheckpointError | None = None
    fitting: list[_Candidate] = []
    candidates = views(state, prefix)
    for view in candidates:
        if fitting and not view.aside:
            continue
        try:
            if arch is None:
                name, note = _recognize(view)
                fitting.append(_Candidate(saved, view, name, None, (note, *folds)))
            else:
                fitting.append(_Candidate(saved, view, arch, build(arch, view), folds))
        except CheckpointError as error:
            first_error = first_error or error
            continue
        if not view.aside:
            return fitting[-1:]
    if not candidates:
        raise CheckpointError("it contains no tensors.")
    if not fitting:
        assert first_error is not None
        raise _best_error(candidates, arch) or first_error
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
    if one is other:
        return True
    return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)


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
        f"{percent(report.matched_fraction, 0)} of the tensors in common; the differences are: "
        f"{report.describe()}."
    )


def fold_parts(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Fold weights stored in parts into those that the network computes with; also return notes.

    Weight normalization is w = g v / |v| (Salimans and Kingma 2016). Spectral normalization is
    w = W / (u^T W v) with the saved vectors u and v, as in eval mode (Miyato et al. 2018). A
    weight is multiplied by its pruning mask. The notes give the numbers of folded weights.
    """
    state = dict(state)
    notes = []
    for kind, parts in _PARTS:
        count = 0
        first = next(iter(parts.values()))
        for key in [key for key in state if key.endswith(first)]:
            start = key.removesuffix(first)
            if not all(start + end in state for end in parts.values()):
                continue
            pieces = {part: state.pop(start + end) for part, end in parts.items()}
            name = re.sub(r"(^|\.)parametrizations\.(?=[^.]+$)", r"\1", start)
            state[name] = _weight(pieces, name)
            count += 1
        if count:
            notes.append(f"folded {kind} into {count} weight{'s' * (count != 1)}")
    for key in state:
        split = _UNFOLDED.fullmatch(key)
        if split and "weight" in split[1].rpartition(".")[2] and split[1] not in state:
            raise CheckpointError(
                f"it stores {printable(split[1])} in parts, but contains only {printable(key)}. "
                "Fold the parts with the training code (torch.nn.utils.remove_spectral_norm, "
                "remove_weight_norm, prune.remove or parametrize.remove_parametrizations), then "
                "save the state dict."
            )
    return state, tuple(notes)


def _weight(pieces: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    try:
        if "g" in pieces:
            sizes = pieces["g"].shape
            dim = next((axis for axis, size in enumerate(sizes) if size > 1), 0)
            return torch._weight_norm(pieces["v"], pieces["g"], dim)
        if "mask" in pieces:
            return pieces["w"] * pieces["mask"].to(pieces["w"].dtype)
        weight, left, right = pieces["w"], pieces["left"], pieces["right"]
        # u has one entry per output. Outputs are on axis 0, or on axis 1 in a transposed
        # convolution. If both axes have this length, the larger product decides: u and v are the
        # leading singular vectors.
        axes = [axis for axis in (0, 1) if weight.shape[axis] == len(left)]
        images = [torch.mv(weight.transpose(0, axis).flatten(1), right) for axis in axes]
        return weight / max(torch.dot(left, image) for image in images)
    except (RuntimeError, IndexError, ValueError) as error:
        raise CheckpointError(
            f"the stored parts of {printable(name)} do not fit together. Save the state dict again "
            "with the training code."
        ) from error
