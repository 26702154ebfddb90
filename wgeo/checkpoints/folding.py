"""Fold weights stored in parts into the weights that the network computes with."""

from __future__ import annotations

import re

import torch

from ..errors import CheckpointError
from ..text import printable

# Suffixes of the names of a weight's parts, by role, in the old and new formats of torch.nn.utils.
_PARTS = (
    ("weight normalization", {"g": "_g", "v": "_v"}),
    ("weight normalization", {"g": ".original0", "v": ".original1"}),
    ("spectral normalization", {"w": "_orig", "left": "_u", "right": "_v"}),
    ("spectral normalization", {"w": ".original", "left": ".0._u", "right": ".0._v"}),
    ("a pruning mask", {"w": "_orig", "mask": "_mask"}),
)
_UNFOLDED = re.compile(r"(.+)(_orig|_mask|_g|\.original\d?)")


def fold_parts(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """Return a state with weight_norm, spectral_norm and pruning masks folded into its weights.

    Weight normalization is w = g v / |v| (Salimans and Kingma 2016). Spectral normalization is
    w = W / (u^T W v) with the saved vectors u and v, as in eval mode (Miyato et al. 2018). A
    weight is multiplied by its pruning mask. Also returned are notes that
    give the numbers of folded weights.

    Raises
    ------
    CheckpointError
        Parts of a weight are missing or do not fit together.
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
