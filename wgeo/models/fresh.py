"""A network as it was before training, for comparison."""

from __future__ import annotations

import copy

import torch
from torch import nn


def untrained(module: nn.Module, seed: int = 0) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a copy with fresh weights, on the CPU, and the parameters that kept theirs.

    Every part is reset by its own ``reset_parameters``, PyTorch's default initialisation, batch
    statistics included. A network's author may have initialised it otherwise, and parameters that
    belong to no resettable part (a class token, a layer scale) stay as they were trained; a
    checkpoint of epoch 0, where there is one, is the better reference.
    """
    fresh = copy.deepcopy(module).cpu()  # where the same seed gives the same weights
    kept: list[str] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for name, part in fresh.named_modules():
            reset = getattr(part, "reset_parameters", getattr(part, "_reset_parameters", None))
            if callable(reset):
                reset()
            else:
                inside = part.named_parameters(prefix=name, recurse=False)
                kept += [parameter for parameter, _ in inside]
    return fresh, tuple(kept)
