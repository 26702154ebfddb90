"""Input normalization stored in a checkpoint: buffers of means and standard deviations."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ..text import printable

_STD_OF_MEAN = {
    "mean": "std",  # torchattacks, and most scripts
    "mu": "sigma",  # RobustBench
    "new_mean": "new_std",  # the robustness library
}
_MAX_PIXEL = 255.0


def normalizers(state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the names of means, with those of their standard deviations."""
    pairs = {}
    for name in state:
        module, dot, last = name.rpartition(".")
        std = f"{module}{dot}{_STD_OF_MEAN.get(last, '')}"
        if last in _STD_OF_MEAN and _is_vector(state[name]) and _is_vector(state.get(std)):
            pairs[name] = std
    return pairs


def without_normalizers(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state without its normalization buffers."""
    pairs = normalizers(state)
    return {k: v for k, v in state.items() if k not in pairs.keys() | pairs.values()}


def own_normalization(module: torch.nn.Module) -> tuple[str, str] | None:
    """Return the `normalize=` of a network that normalizes images itself, and a note; else None.

    The network's input is pixels in [0, 1]; or in [0, 255], if a mean or standard deviation exceeds
    1, as in mmdetection.
    """
    state = module.state_dict()
    pairs = normalizers(state)
    if not pairs:
        return None
    mean, std = next(iter(pairs.items()))  # later ones may normalize features
    top = _top_pixel(state[mean], state[std])
    normalize = "none" if top == 1 else f"0;{1 / top}"
    note = f"the network normalizes images itself ({printable(mean)}): its input is pixels in"
    return normalize, f"{note} [0, {top:g}]"


def normalization_of(
    state: Mapping[str, torch.Tensor], module: torch.nn.Module
) -> tuple[str | None, tuple[str, ...]]:
    """Return the normalization stored in a state dict, and notes about it.

    It is in the format of `wgeo.data.images.normalization`; None if the state has no valid
    normalization, or several different ones. If the network built from it, `module`, has such
    buffers too, it normalizes images itself: see `own_normalization`.
    """
    if own := own_normalization(module):
        return own[0], (own[1],)
    specs = {}
    for mean, std in normalizers(state).items():
        m, s = (state[each].detach().float().reshape(-1).numpy() for each in (mean, std))
        scale = np.float32(_top_pixel(state[mean], state[std]))
        if m.shape == s.shape and np.isfinite([m, s]).all() and (s > 0).all():
            specs[";".join(",".join(map(str, each / scale)) for each in (m, s))] = printable(mean)
    if len(specs) == 1:
        ((spec, name),) = specs.items()
        return spec, (f"images are normalized with {name} from the file",)
    if specs:
        names = ", ".join(specs.values())
        return None, (f"the file has several normalizations ({names}): pass `normalize=`",)
    return None, ()


def _top_pixel(mean: torch.Tensor, std: torch.Tensor) -> float:
    """Return the largest value of a pixel: 255 if a mean or deviation exceeds 1, else 1."""
    largest = max(float(each.detach().max()) for each in (mean, std))
    return _MAX_PIXEL if largest > 1 else 1.0


def _is_vector(tensor: torch.Tensor | None) -> bool:
    """Return whether a tensor has one number for all channels, or one for each of three."""
    return tensor is not None and tensor.is_floating_point() and tensor.numel() in (1, 3)
