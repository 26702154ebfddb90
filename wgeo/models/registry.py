"""All architectures by name, and `build`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from ..errors import ArgumentError
from ..text import printable, suggestion
from .external import ANY_HEAD, COMMON, Arch, timm_arch, torchvision_arch, user_arch
from .huggingface import huggingface_arch
from .names import CIFAR_DEPTHS, RESNETS
from .parts import require_positive
from .plain import infer_mlp, infer_resmlp, infer_vgg, mlp, resmlp, vgg
from .residual import cifar_resnet, infer_cifar_resnet, infer_iso, isotropic
from .vit import infer_vit, vit

_MAX_DEPTH = 2000  # He et al. went to 1202; a network named in a file must not take hours to build


def _cifar(depth: int) -> Arch:
    return Arch(
        f"cifar_resnet{depth}",
        partial(cifar_resnet, depth),
        infer_cifar_resnet,
        normalize="imagenet",
        required_key=rf"^layer3\.{(depth - 2) // 6 - 1}\.conv2\.",
        determined_by_shapes=True,
        rename=(
            (f"^{ANY_HEAD}\\.", "linear."),
            (r"^(layer\d+\.\d+)\.downsample\.", r"\1.shortcut."),
        ),
    )


_OWN = (
    *(_cifar(depth) for depth in CIFAR_DEPTHS),
    Arch("isoresnet", partial(isotropic, True), infer_iso, required_key=r"^blocks\.\d+\.conv1\."),
    Arch("isoplain", partial(isotropic, False), infer_iso, required_key=r"^blocks\.\d+\.conv1\."),
    Arch("mlp", mlp, infer_mlp, required_key=r"^blocks\.\d+\.fc\."),
    Arch("resmlp", resmlp, infer_resmlp, required_key=r"^blocks\.\d+\.fc1\."),
    Arch("vgg", vgg, infer_vgg, required_key=r"^blocks\.\d+\.conv\."),
    Arch("vit", vit, infer_vit, required_key=r"^encoder\.layers\.", imports="torchvision.models"),
)

_LIBRARIES = {"torchvision": torchvision_arch, "timm": timm_arch, "hf": huggingface_arch}

ARCHS: Mapping[str, Arch] = {
    arch.name: arch for arch in (*_OWN, *(torchvision_arch(name) for name in RESNETS))
}


def find(name: str) -> Arch:
    """Return the architecture with a name that `build` accepts, or raise the errors of `build`."""
    if name in ARCHS:
        return ARCHS[name]
    library, colon, rest = name.partition(":")
    if colon and library in _LIBRARIES:
        return _LIBRARIES[library](rest)
    if rest and re.fullmatch(r"[\w.]+", library):
        return user_arch(name)
    depth = re.fullmatch(r"cifar_resnet(\d{1,5})", name)
    if depth and 8 <= int(depth[1]) <= _MAX_DEPTH and int(depth[1]) % 6 == 2:
        return _cifar(int(depth[1]))
    raise ArgumentError(
        f"Unknown architecture {printable(name)!r}{suggestion(name, ARCHS)}. Choose "
        f"{', '.join(arch.name for arch in _OWN)}, torchvision:NAME, timm:NAME, hf:FOLDER or "
        "your own package.module:factory; see `wgeo list archs`."
    )


def build(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: int | None = None,
    activation: str = "relu",
    **options: Any,
) -> nn.Module:
    """Build a network with random weights, drawn from torch's global generator.

    Parameters
    ----------
    name : str
        A name from ``wgeo list archs``, ``cifar_resnetN`` with N = 6n + 2, ``torchvision:NAME``,
        ``timm:NAME``, ``hf:FOLDER`` with a ``config.json`` of transformers, or your own function as
        ``package.module:factory``.
    num_classes, in_channels : int
        At least 1.
    image_size : int, optional
        Pixels per side; needed by ``mlp``, ``resmlp`` and ``vit``.
    activation : str
        For wgeo's own architectures: relu, leaky_relu, tanh, sigmoid, silu or gelu.
    **options
        Options of the architecture, such as ``width=64``.

    Raises
    ------
    ArgumentError
        A name or option is unknown, or a value is invalid.
    DependencyError
        timm or transformers is needed but not installed.

    Examples
    --------
    >>> import torch
    >>> import wgeo
    >>> net = wgeo.models.build("isoresnet", num_classes=10, in_channels=1, width=8, depth=2)
    >>> net(torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 10])
    """
    arch = find(name)
    require_positive(num_classes=num_classes, in_channels=in_channels)
    if image_size is not None:
        require_positive(image_size=image_size)
    parameters = inspect.signature(arch.build).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        unknown = sorted(set(options) - set(parameters))
        if unknown:
            names = sorted(set(parameters) - COMMON)
            raise ArgumentError(
                f"{name} does not take {', '.join(unknown)}; its options are "
                f"{', '.join(names) or 'none'}."
            )
    return arch.build(
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        activation=activation,
        **options,
    )
