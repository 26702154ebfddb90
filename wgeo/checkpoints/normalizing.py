"""Networks saved with their normalization: buffers of a mean and a spread for every channel."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ..storage.files import printable

# What the two are called in torchattacks and most scripts, RobustBench, and the robustness library.
_SPREAD = {"mean": "std", "mu": "sigma", "new_mean": "new_std"}
_PIXEL = 255.0


def normalizers(state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Names of means, and of the spreads that belong to them: vectors of 1 or 3 numbers."""
    found = {}
    for name in state:
        module, dot, last = name.rpartition(".")
        spread = f"{module}{dot}{_SPREAD.get(last, '')}"
        if last in _SPREAD and _is_vector(state[name]) and _is_vector(state.get(spread)):
            found[name] = spread
    return found


def without_normalizers(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state of a network whose own forward normalizes, for an architecture that does not."""
    pairs = normalizers(state)
    return {k: v for k, v in state.items() if k not in pairs.keys() | pairs.values()}


def normalization_of(
    state: Mapping[str, torch.Tensor], module: torch.nn.Module
) -> tuple[str | None, tuple[str, ...]]:
    """How images are normalized, as ``"mean,...;std,..."``, and what a reader should know of it.

    Parameters
    ----------
    state : mapping of str to Tensor
        As saved.
    module : nn.Module
        The network that was made of it: if it has such buffers, it normalizes pixels itself.

    Returns
    -------
    spec : str or None
        None if the file does not say, or says several things.
    notes : tuple of str
    """
    if own := normalizers(module.state_dict()):
        name = printable(next(iter(own)))
        return "none", (f"it normalizes images itself ({name}): it is given pixels in [0, 1]",)
    specs = {}
    for mean, spread in normalizers(state).items():
        m, s = (state[each].detach().float().reshape(-1).numpy() for each in (mean, spread))
        scale = np.float32(_PIXEL if m.max() > 1 else 1)  # of bytes, as mmcv has them
        if np.isfinite([m, s]).all() and (s > 0).all() and m.shape == s.shape:
            specs[";".join(",".join(map(str, each / scale)) for each in (m, s))] = printable(mean)
    if len(specs) == 1:
        ((spec, name),) = specs.items()
        return spec, (f"images are normalized as {name} in the file says",)
    if specs:
        names = ", ".join(specs.values())
        return None, (f"it has several normalizations ({names}): say which with `normalize=`",)
    return None, ()


def _is_vector(tensor: torch.Tensor | None) -> bool:
    """One number for each channel, or for all; not the counter or the weight of something else."""
    return tensor is not None and tensor.is_floating_point() and tensor.numel() in (1, 3)
