"""Every architecture by its name, and building one from scratch."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from ..errors import ArgumentError
from ..storage.files import printable
from .external import ANY_HEAD, RESNETS, Arch, suggest, timm_arch, torchvision_arch, user_arch
from .huggingface import huggingface_arch
from .parts import positive
from .plain import infer_mlp, infer_resmlp, infer_vgg, mlp, resmlp, vgg
from .residual import cifar_resnet, infer_cifar_resnet, infer_iso, isotropic
from .vit import infer_vit, vit

_CIFAR_DEPTHS = (20, 32, 44, 56, 110)
_DEEPEST = 2000  # He et al. went to 1202; a name in a file must not ask for hours


def _cifar(depth: int) -> Arch:
    return Arch(
        f"cifar_resnet{depth}",
        f"He's CIFAR ResNet of {depth} layers; options width=16, option=A or B",
        partial(cifar_resnet, depth),
        infer_cifar_resnet,
        normalize="imagenet",
        mark=rf"^layer3\.{(depth - 2) // 6 - 1}\.conv2\.",
        settled=True,
        rename=(
            (f"^{ANY_HEAD}\\.", "linear."),
            (r"^(layer\d+\.\d+)\.downsample\.", r"\1.shortcut."),
        ),
    )


_OWN = (
    *(_cifar(depth) for depth in _CIFAR_DEPTHS),
    Arch(
        "isoresnet",
        "ResNet of one width and resolution, so one feature space; options width=32, depth=8, "
        "stride=1",
        partial(isotropic, True),
        infer_iso,
        mark=r"^blocks\.\d+\.conv1\.",
    ),
    Arch(
        "isoplain",
        "isoresnet's plain twin, without shortcuts",
        partial(isotropic, False),
        infer_iso,
        mark=r"^blocks\.\d+\.conv1\.",
    ),
    Arch(
        "mlp",
        "plain MLP; options width=128, depth=6, batch_norm=true",
        mlp,
        infer_mlp,
        mark=r"^blocks\.\d+\.fc\.",
    ),
    Arch(
        "resmlp",
        "residual MLP; options width=128, depth=6, hidden=width, batch_norm=true",
        resmlp,
        infer_resmlp,
        mark=r"^blocks\.\d+\.fc1\.",
    ),
    Arch(
        "vgg",
        "small plain CNN in three stages; options width=32, depth=6",
        vgg,
        infer_vgg,
        mark=r"^blocks\.\d+\.conv\.",
    ),
    Arch(
        "vit",
        "small vision transformer; options width=64, depth=6, heads, hidden, patch",
        vit,
        infer_vit,
        mark=r"^encoder\.layers\.",
    ),
)

ARCHS: Mapping[str, Arch] = {
    arch.name: arch for arch in (*_OWN, *(torchvision_arch(name) for name in RESNETS))
}


def find(name: str) -> Arch:
    """Return an architecture by its name.

    Parameters
    ----------
    name : str
        One of `ARCHS`, ``cifar_resnetN`` with N = 6n + 2, ``torchvision:NAME``, ``timm:NAME``,
        ``hf:FOLDER`` with a ``config.json`` of transformers, or a function of yours as
        ``package.module:factory``.

    Raises
    ------
    ArgumentError
        There is none of this name, or the factory cannot be imported.
    DependencyError
        timm or transformers is needed and not installed.
    """
    if name in ARCHS:
        return ARCHS[name]
    home, colon, rest = name.partition(":")
    if colon and home == "torchvision":
        return torchvision_arch(rest)
    if colon and home == "timm":
        return timm_arch(rest)
    if colon and home == "hf":
        return huggingface_arch(rest)
    if colon and rest and re.fullmatch(r"[\w.]+", home):
        return user_arch(name)
    depth = re.fullmatch(r"cifar_resnet(\d{1,5})", name)
    if depth and 8 <= int(depth[1]) <= _DEEPEST and int(depth[1]) % 6 == 2:
        return _cifar(int(depth[1]))
    raise ArgumentError(
        f"Unknown architecture {printable(name)!r}{suggest(name, list(ARCHS))}. There are "
        f"{', '.join(arch.name for arch in _OWN)}, torchvision:NAME, timm:NAME, hf:FOLDER and "
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
    """Build a network with fresh weights, drawn from torch's global generator.

    Parameters
    ----------
    name : str
        As `find` takes it.
    num_classes, in_channels : int
    image_size : int, optional
        Pixels along a side; needed by ``mlp``, ``resmlp`` and ``vit``.
    activation : str
        relu, leaky_relu, tanh, sigmoid, silu or gelu, for wgeo's own architectures.
    **options
        The architecture's own, such as ``width=64``.

    Raises
    ------
    ArgumentError
        An unknown name or option, or a value that cannot be built.
    """
    arch = find(name)
    positive(num_classes=num_classes, in_channels=in_channels)
    if image_size is not None:
        positive(image_size=image_size)
    parameters = inspect.signature(arch.build).parameters
    common = {"num_classes", "in_channels", "image_size", "activation"}
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        unknown = sorted(set(options) - set(parameters))
        if unknown:
            takes = sorted(set(parameters) - common)
            raise ArgumentError(
                f"{name} does not take {', '.join(unknown)}; its options are "
                f"{', '.join(takes) or 'none'}."
            )
    return arch.build(
        num_classes=num_classes,
        in_channels=in_channels,
        image_size=image_size,
        activation=activation,
        **options,
    )
