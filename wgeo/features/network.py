"""Networks and images as inputs of tracing: normalization, device, provenance, identity."""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn

from ..checkpoints import Network
from ..checkpoints.normalizing import own_normalization
from ..data import Images
from ..data.images import Normalization, normalization
from ..data.loaders import as_images
from ..errors import ArgumentError, FeatureError
from ..models.parts import evaluating, hooked
from ..runtime.processes import on_rank_zero
from .residual_blocks import find_blocks, returned, run


def normalization_for(net: Network | nn.Module, images: Images) -> Normalization:
    """Return the normalization given with the images, or else the network's, or the data set's."""
    return images.normalize or normalization(declared_normalization(net) or images.preset)


def declared_normalization(net: Network | nn.Module) -> str | None:
    """Return the normalization that a network declares, or contains as a module, or None."""
    if isinstance(net, Network) and net.normalize is not None:
        return net.normalize
    own = own_normalization(module_of(net))
    return own[0] if own else None


def blocks(net: Network | nn.Module, images: Any, layers: Sequence[str] | None = None) -> list[str]:
    """Return the names of the blocks that `trace` follows, in execution order.

    Parameters
    ----------
    net : Network or nn.Module
    images : Images, (x, labels), Dataset or DataLoader
        A few images are enough.
    layers : sequence of str, optional
        Modules to follow instead of detected blocks; checked against the network.

    Raises
    ------
    FeatureError
        There are no blocks, a module does not exist or did not run, or the images do not fit the
        network.
    ArgumentError
        `net` is not a network, or `images` is of another type.

    Examples
    --------
    >>> import torch
    >>> import wgeo
    >>> net = wgeo.models.build("isoresnet", num_classes=2, in_channels=1, width=4, depth=2)
    >>> wgeo.blocks(net, (torch.randn(4, 1, 8, 8), [0, 1, 0, 1]))
    ['blocks.0', 'blocks.1']
    """
    images, module = as_images(images), module_of(net)
    return [spec.name for spec in find_blocks(module, sample(net, module, images), layers)]


def inputs(
    net: Network | nn.Module, images: Any, rows: Int[np.ndarray, " r"]
) -> Float[torch.Tensor, "r ..."]:
    """Return the images with indices `rows`, normalized, in the network's dtype, on its device."""
    images, module = as_images(images), module_of(net)
    device, dtype = device_and_dtype(module)
    return normalization_for(net, images)(images.x[torch.from_numpy(rows)]).to(device, dtype)


def provenance(net: Network | nn.Module, images: Images) -> dict[str, Any]:
    record: dict[str, Any] = (
        net.provenance.to_dict() if isinstance(net, Network) else {"arch": type(net).__name__}
    )
    norm = normalization_for(net, images)
    record["normalize"] = {"name": norm.name, "mean": list(norm.mean), "std": list(norm.std)}
    if images.skipped:
        record["skipped_images"] = list(images.skipped)
    if images.notes:
        record["data_notes"] = list(images.notes)
    return {**record, "data": images.name, "split": images.split}


def identity(net: Network | nn.Module, images: Images) -> dict[str, Any]:
    """Return what determines the features: weights, structure, images, normalization.

    The hash of the checkpoint's file is included, because it is part of the provenance. A file with
    equal weights but another hash therefore counts as another network.
    """
    module, norm = module_of(net), normalization_for(net, images)
    weights = hashlib.sha256()
    for name, value in _entries(module.state_dict()):
        if not isinstance(value, torch.Tensor):  # in a module's extra state
            weights.update(f"{name}{_without_addresses(value)}".encode())
            continue
        weights.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
        data = value.detach().cpu().contiguous().flatten().view(torch.uint8)
        weights.update(data.numpy().data)
    structure = _without_addresses(module)
    return {
        "weights": weights.hexdigest(),
        "structure": hashlib.sha256(structure.encode()).hexdigest(),
        "checkpoint": net.provenance.sha256 if isinstance(net, Network) else None,
        "images": on_rank_zero(lambda: images.fingerprint),
        "normalization": [list(norm.mean), list(norm.std)],
    }


def _entries(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the entries of nested dicts, with their names."""
    if not isinstance(value, dict):
        yield name, value
        return
    for key, item in value.items():
        yield from _entries(item, f"{name}.{key}" if name else str(key))


def _without_addresses(value: Any) -> str:
    return re.sub(r"0x[0-9a-f]+", "", repr(value))


def sample(net: Network | nn.Module, module: nn.Module, images: Images) -> torch.Tensor:
    """Return a few inputs for probing: the first two images, and both with noise.

    With noise, inputs differ even if the images are equal, and some pixels are negative. A network
    may fail for negative pixels, for example if it takes a logarithm. Then uniform noise in the
    range of each channel's pixels replaces the noisy images. If the network fails for this too, the
    next two images are used.
    """
    x, _ = next(iter(images.batches(4, normalization_for(net, images))))
    x, generator = x.to(*device_and_dtype(module)), torch.Generator().manual_seed(0)
    noise = torch.randn(x[:2].shape, generator=generator).to(x)
    fractions = torch.rand(x[:2].shape, generator=generator).to(x)
    axes = (0, *range(2, x.ndim))
    low, high = x.amin(axes, keepdim=True), x.amax(axes, keepdim=True)
    allowed = _count_faults(module, x)
    for others in (x[:2] + noise, low + (high - low) * fractions):
        probe = torch.cat([x[:2], others])
        if _count_faults(module, probe) <= allowed:
            return probe
    return x


def _count_faults(module: nn.Module, x: torch.Tensor) -> float:
    """Return how many calls of modules return NaN or infinity; `math.inf` if the pass fails."""
    finite: list[bool] = []

    def check(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        y = returned(out)
        if y is not None:
            finite.append(bool(y.isfinite().all()))

    with evaluating(module), torch.no_grad(), hooked() as keep:
        for part in module.modules():
            keep(part.register_forward_hook(check))
        try:
            run(module, x.clone())
        except FeatureError:
            return math.inf
    return float(finite.count(False))


def module_of(net: Any) -> nn.Module:
    """Return the module of a network; raise `ArgumentError` for anything else."""
    module = net.module if isinstance(net, Network) else net
    if isinstance(module, nn.Module) and not isinstance(module, nn.ModuleList | nn.ModuleDict):
        return module
    kind = type(module).__name__
    raise ArgumentError(f"net must be an nn.Module or a Network, not {kind}.{_advice(module)}")


def _advice(value: Any) -> str:
    if isinstance(value, str | os.PathLike):
        return " Load the file first, with `load_checkpoint`."
    parts: list[Any] = []
    if isinstance(value, dict | nn.ModuleDict):
        parts = list(value.values())
    elif isinstance(value, list | tuple | nn.ModuleList):
        parts = list(value)
    if any(isinstance(part, nn.Module | Network) for part in parts):
        return f" Pass {'its networks one by one' if len(parts) > 1 else 'the network in it'}."
    if any(isinstance(part, torch.Tensor) for part in parts):
        return " Load a state dict into its network first, or its file with `load_checkpoint`."
    return ""


def device_and_dtype(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return the device and dtype of a network's first weight; torch's defaults if it has none."""
    first = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    return first.device, first.dtype


@contextmanager
def on_device(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Move a network to a device, and back on exit."""
    original, _ = device_and_dtype(module)
    if original == device or not any(True for _ in module.parameters()):
        yield
        return
    module.to(device)
    try:
        yield
    finally:
        module.to(original)
