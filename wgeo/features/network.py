"""A network and images as tracing takes them: whatever was given, where it lies, what it is."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn

from ..checkpoints import Network
from ..checkpoints.normalizing import normalizers
from ..data import Images
from ..data.images import Normalization, normalization
from ..data.loaders import as_images
from ..errors import ArgumentError
from ..runtime.processes import on_rank_zero
from .residual_blocks import find_blocks


def normalization_for(net: Network | nn.Module, images: Images) -> Normalization:
    """Return how pixels are normalised: as asked, else as the network, else as the data has it."""
    return images.normalize or normalization(declared_normalization(net) or images.preset)


def declared_normalization(net: Network | nn.Module) -> str | None:
    """Return what a network says of its images: none is left to do if its own forward does it."""
    if isinstance(net, Network) and net.normalize is not None:
        return net.normalize
    return "none" if normalizers(module_of(net).state_dict()) else None


def blocks(net: Network | nn.Module, images: Any, layers: Sequence[str] | None = None) -> list[str]:
    """Return the names of the blocks that `trace` would follow, in execution order.

    Parameters
    ----------
    net : Network or nn.Module
    images : Images, (x, labels), Dataset or DataLoader
        A few are enough.
    layers : sequence of str, optional
        Modules to take instead of finding them; checked against the network.
    """
    images, module = as_images(images), module_of(net)
    return [spec.name for spec in find_blocks(module, sample(net, module, images), layers)]


def inputs(
    net: Network | nn.Module, images: Any, rows: Int[np.ndarray, " r"]
) -> Float[torch.Tensor, "r ..."]:
    """Return some images as the network takes them: normalised, in its precision, on its device."""
    images, module = as_images(images), module_of(net)
    home, precision = home_of(module)
    return normalization_for(net, images)(images.x[torch.from_numpy(rows)]).to(home, precision)


def provenance(net: Network | nn.Module, images: Images) -> dict[str, Any]:
    """What a record says of where features come from: network, images, normalisation."""
    found: dict[str, Any] = (
        net.provenance.to_dict() if isinstance(net, Network) else {"arch": type(net).__name__}
    )
    used = normalization_for(net, images)
    found["normalize"] = {"name": used.name, "mean": list(used.mean), "std": list(used.std)}
    if images.skipped:
        found["skipped_images"] = list(images.skipped)
    if images.notes:
        found["data_notes"] = list(images.notes)
    return {**found, "data": images.name, "split": images.split}


def identity(net: Network | nn.Module, images: Images) -> dict[str, Any]:
    """What decides the features: weights, structure, images, normalisation, each as plain values.

    The weights count, not the file they came from; a checkpoint saved again is the same network.
    """
    module, used = module_of(net), normalization_for(net, images)
    weights = hashlib.sha256()
    for name, value in module.state_dict().items():
        weights.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        data = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        weights.update(data.numpy().data)
    structure = re.sub(r"0x[0-9a-f]+", "", repr(module))  # functions show where they lie
    return {
        "weights": weights.hexdigest(),
        "structure": hashlib.sha256(structure.encode()).hexdigest(),
        "checkpoint": net.provenance.sha256 if isinstance(net, Network) else None,
        "images": on_rank_zero(lambda: images.fingerprint),
        "normalization": [list(used.mean), list(used.std)],
    }


def sample(net: Network | nn.Module, module: nn.Module, images: Images) -> torch.Tensor:
    """Normalised images on the network's device, to probe it with.

    Two of the data's, and the two with noise: images that are all alike would tell nothing.
    """
    x, _ = next(iter(images.batches(2, normalization_for(net, images))))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return torch.cat([x, x + noise.to(x)]).to(*home_of(module))


def module_of(net: Any) -> nn.Module:
    """The module of a network; ArgumentError otherwise."""
    module = net.module if isinstance(net, Network) else net
    if not isinstance(module, nn.Module):
        raise ArgumentError(f"net must be an nn.Module or a Network, not {type(module).__name__}.")
    return module


def home_of(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a network's weights lie, and their precision."""
    first = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    return first.device, first.dtype


@contextmanager
def placed(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Move a network to a device, and back."""
    home, _ = home_of(module)
    if home == device or not any(True for _ in module.parameters()):
        yield
        return
    module.to(device)
    try:
        yield
    finally:
        module.to(home)
