"""Input normalization stored in a checkpoint: buffers of means and standard deviations."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ..text import printable

# Names of a mean and its standard deviation in torchattacks and most scripts, in RobustBench, and
# in the robustness library.
_STD_OF_MEAN = {"mean": "std", "mu": "sigma", "new_mean": "new_std"}
_MAX_PIXEL = 255.0


def normalizers(state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Return the names of means and of their standard deviations, both of 1 or 3 numbers."""
    pairs = {}
    for name in state:
        module, dot, last = name.rpartition(".")
        std = f"{module}{dot}{_STD_OF_MEAN.get(last, '')}"
        if last in _STD_OF_MEAN and _is_vector(state[name]) and _is_vector(state.get(std)):
            pairs[name] = std
    return pairs


def without_normalizers(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state without its normalization buffers, for an architecture that has none."""
    pairs = normalizers(state)
    return {k: v for k, v in state.items() if k not in pairs.keys() | pairs.values()}


def own_normalization(module: torch.nn.Module) -> tuple[str, str] | None:
    """Return the `normalize=` that a network which normalizes images needs, and a note about it.

    Its input is pixels in [0, 1]; or in [0, 255], if the mean or standard deviation in its first
    normalization exceeds 1 (as in mmdetection). None if the network has no normalization of its
    own.
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
    """Return the stored normalization, and notes about it.

    Parameters
    ----------
    state : mapping of str to Tensor
        The state dict as saved.
    module : nn.Module
        The network built from the state; a network with such buffers normalizes pixels itself.

    Returns
    -------
    spec : str or None
        Means and standard deviations as `wgeo.data.images.normalization` reads them, such as
        ``"0.5,0.5,0.5;0.25,0.25,0.25"``. See `own_normalization` if the network normalizes pixels
        itself; None if the file contains no valid normalization, or several different ones.
    notes : tuple of str
    """
    if own := own_normalization(module):
        return own[0], (own[1],)
    specs = {}
    for mean, std in normalizers(state).items():
        m, s = (state[each].detach().float().reshape(-1).numpy() for each in (mean, std))
        scale = np.float32(_top_pixel(state[mean], state[std]))
        if np.isfinite([m, s]).all() and (s > 0).all() and m.shape == s.shape:
            specs[";".join(",".join(map(str, each / scale)) for each in (m, s))] = printable(mean)
    if len(specs) == 1:
        ((spec, name),) = specs.items()
        return spec, (f"images are normalized with {name} from the file",)
    if specs:
        names = ", ".join(specs.values())
        return None, (f"the file has several normalizations ({names}): pass `normalize=`",)
    return None, ()


def _top_pixel(mean: torch.Tensor, std: torch.Tensor) -> float:
    """Return the largest value of a pixel: 255 if a mean (as in mmcv) or deviation exceeds 1."""
    largest = max(float(each.detach().max()) for each in (mean, std))
    return _MAX_PIXEL if largest > 1 else 1.0


def _is_vector(tensor: torch.Tensor | None) -> bool:
    """Return whether a tensor has one number for each of three channels, or one for all."""
    return tensor is not None and tensor.is_floating_point() and tensor.numel() in (1, 3)
