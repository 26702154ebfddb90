"""Architectures defined elsewhere: torchvision's, timm's, and the user's own factories."""

from __future__ import annotations

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from math import isqrt
from typing import Any

from torch import nn

from ..errors import ArgumentError, DependencyError
from ..text import suggestion
from .names import RESNETS, SMALL_IMAGE
from .parts import USUAL_HEADS, State, axis_length

Infer = Callable[[State, Mapping[str, Any]], dict[str, Any]]

_NO_KEY = r"(?!)"  # matches nothing
_TORCHVISION = "torchvision.models"
TIMM_SIZES = {"img_size", "dynamic_img_size"}  # timm's options for images of another size


@dataclass(frozen=True)
class Arch:
    """An architecture wgeo can build.

    Attributes
    ----------
    name : str
    build : callable
        ``build(*, num_classes, in_channels, image_size, activation, **options) -> nn.Module``.
    infer : callable
        ``infer(state, options)`` returns the arguments of `build` that fit a state dict.
        ``options`` are the settings that the state dict's shapes do not determine.
    normalize : str or None
        The normalization of its published checkpoints, in the format of
        `wgeo.data.images.normalization`.
    rename : tuple of (pattern, replacement)
        Regular expressions that convert keys of other implementations to this architecture's.
    required_key : str
        Regular expression that matches at least one key of every such network. An architecture is
        tried automatically only if a key of the state dict matches. The default matches nothing.
    determined_by_shapes : bool
        Whether the shapes of a state dict determine the network, including its activation and
        number of heads. Only then is the architecture chosen automatically.
    user_code : bool
        Whether the code is the user's, which may not support the meta device.
    imports : str
        A module that `build` imports. Its first import must not be on the meta device.
    translate : callable or None
        ``translate(state, settings)`` converts the names in older files to today's.
    """

    name: str
    build: Callable[..., nn.Module]
    infer: Infer
    normalize: str | None = None
    rename: tuple[tuple[str, str], ...] = ()
    required_key: str = _NO_KEY
    determined_by_shapes: bool = False
    user_code: bool = False
    imports: str = ""
    translate: Callable[[State, Mapping[str, Any]], State] | None = None


_DEEPEST_MODULE = {  # for each torchvision ResNet, a module that shallower ResNets lack
    "resnet18": "layer3.1.conv2",
    "resnet34": "layer3.5.conv2",
    "resnet50": "layer3.5.conv3",
    "resnet101": "layer3.22.conv3",
    "resnet152": "layer3.35.conv3",
    "resnext50_32x4d": "layer3.5.conv3",
    "resnext101_32x8d": "layer3.22.conv3",
    "resnext101_64x4d": "layer3.22.conv3",
    "wide_resnet50_2": "layer3.5.conv3",
    "wide_resnet101_2": "layer3.22.conv3",
}
VITS = ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14")
HEADS = (*USUAL_HEADS, "classifier.1")
# The longest first, since "head" is also the start of "head.fc".
ANY_HEAD = f"(?:{'|'.join(re.escape(name) for name in sorted(HEADS, key=len, reverse=True))})"
COMMON = {"num_classes", "in_channels", "image_size", "activation"}  # settings of every network
# transformers' ResNet is torchvision's with other names.
HUGGINGFACE_RESNET = (
    (r"^(?:resnet\.)?embedder\.embedder\.convolution\.", "conv1."),
    (r"^(?:resnet\.)?embedder\.embedder\.normalization\.", "bn1."),
    *(
        (rf"^(?:resnet\.)?encoder\.stages\.{stage}\.layers\.(\d+)\.", rf"layer{stage + 1}.\1.")
        for stage in range(4)
    ),
    (r"^(layer\d\.\d+)\.shortcut\.convolution\.", r"\1.downsample.0."),
    (r"^(layer\d\.\d+)\.shortcut\.normalization\.", r"\1.downsample.1."),
    *(
        (rf"^(layer\d\.\d+)\.layer\.{i}\.{name}\.", rf"\1.{renamed}{i + 1}.")
        for i in range(3)
        for name, renamed in (("convolution", "conv"), ("normalization", "bn"))
    ),
)
# nn.Sequential(*resnet.children()), as in lightly and fastai.
_NUMBERED_RESNET = (
    (r"^0\.(?=weight$)", "conv1."),
    (r"^1\.(?=(?:weight|bias|running_mean|running_var|num_batches_tracked)$)", "bn1."),
    *((rf"^{k + 3}\.(?=\d+\.(?:conv\d|bn\d|downsample)\.)", f"layer{k}.") for k in range(1, 5)),
)


def torchvision_arch(name: str) -> Arch:
    """Return one of torchvision's classification networks as an `Arch`."""
    if name not in RESNETS:
        from torchvision import models  # takes seconds to import, and most networks do not need it

        names = models.list_models(module=models)
        if name not in names:
            raise ArgumentError(f"torchvision has no network {name!r}{suggestion(name, names)}.")
        return Arch(
            f"torchvision:{name}",
            partial(_build_torchvision, name),
            infer_torchvision,
            normalize="imagenet",
            required_key=r"^encoder\.layers\." if name in VITS else _NO_KEY,
            imports=_TORCHVISION,
        )
    return Arch(
        f"torchvision:{name}",
        partial(_build_torchvision_resnet, name),
        infer_torchvision_resnet,
        normalize="imagenet",
        required_key="^" + re.escape(_DEEPEST_MODULE[name]),
        determined_by_shapes=True,
        imports=_TORCHVISION,
        rename=(
            *HUGGINGFACE_RESNET,
            *_NUMBERED_RESNET,
            (f"^{ANY_HEAD}\\.", "fc."),
            (r"^(layer\d+\.\d+)\.shortcut\.", r"\1.downsample."),
        ),
    )


def _build_torchvision_resnet(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: int | None = None,
    activation: str = "relu",
    stem: str = "auto",
) -> nn.Module:
    """Build a ResNet; `stem` is ``imagenet`` (7 x 7, max-pool), ``cifar`` (3 x 3) or ``auto``.

    ``auto`` is ``cifar`` for images of up to 64 pixels per side, else ``imagenet``.
    """
    if stem not in ("auto", "imagenet", "cifar"):
        raise ArgumentError(f"stem must be auto, imagenet or cifar, not {stem!r}.")
    from torchvision.models import ResNet, get_model

    _refuse_activation(name, activation)
    net = get_model(name, weights=None, num_classes=num_classes)
    assert isinstance(net, ResNet)
    small = image_size is not None and image_size <= SMALL_IMAGE
    if stem == "cifar" or (stem == "auto" and small):
        net.conv1 = nn.Conv2d(3, net.conv1.out_channels, 3, 1, 1, bias=False)
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
        net.maxpool = nn.Identity()
    return _with_channels(net, in_channels)


def infer_torchvision_resnet(state: State, options: Mapping[str, Any]) -> dict[str, Any]:
    """Infer a ResNet's settings from its state dict; a 3 x 3 first kernel means the CIFAR stem."""
    return {
        "num_classes": axis_length(state, "fc.weight", 0, 1000),
        "in_channels": axis_length(state, "conv1.weight", 1, 3),
        "stem": "cifar" if axis_length(state, "conv1.weight", 2, 7) == 3 else "imagenet",
    }


def _build_torchvision(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: int | None = None,
    activation: str = "relu",
) -> nn.Module:
    from torchvision.models import get_model

    _refuse_activation(name, activation)
    extra: dict[str, Any] = {}
    if name.startswith("vit_") and image_size is not None:
        extra["image_size"] = image_size
    if name in ("googlenet", "inception_v3"):
        extra["init_weights"] = False  # its scipy initialization takes minutes
    try:
        net = get_model(name, weights=None, num_classes=num_classes, **extra)
    except (AssertionError, TypeError, ValueError) as error:
        raise ArgumentError(f"torchvision could not build {name!r}: {error}") from error
    return _with_channels(net, in_channels)


def infer_torchvision(state: State, options: Mapping[str, Any]) -> dict[str, Any]:
    settings = infer_head(state, options)
    if "encoder.pos_embedding" in state:
        patch = axis_length(state, "conv_proj.weight", 2, 16)
        side = isqrt(max(1, axis_length(state, "encoder.pos_embedding", 1, 197) - 1))
        settings["image_size"] = patch * side
    return settings


def infer_head(state: State, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the probable number of classes and of input channels of an unknown network.

    The classes are the rows of the head's weight. The head is a layer with a usual name (`HEADS`),
    or else the last weight with two or four axes. The channels are those of the first convolution.
    But if it has neither 1 nor 3 channels, and another convolution has 3, the number is 3.
    """
    usual = [f"{name}.weight" for name in HEADS]
    kernels = [k for k, t in state.items() if t.ndim in (2, 4) and k.endswith("weight")]
    head = next((key for key in usual if key in state), kernels[-1] if kernels else "")
    if head.startswith("classifier."):  # the last of several, as in AlexNet
        head = next((key for key in reversed(kernels) if key.startswith("classifier.")), head)
    channels = [int(state[key].shape[1]) for key in kernels if state[key].ndim == 4] or [3]
    # A safetensors file does not keep the network's order, and 3 is likelier than 64.
    first = channels[0] if channels[0] in (1, 3) or 3 not in channels else 3
    return {"num_classes": axis_length(state, head, 0, 1000), "in_channels": max(1, first)}


def _infer_timm(config: Any, state: State, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the classes and channels of the layers that timm's config names.

    Shapes may not determine the image size, so it is taken from `options`.
    """
    settings = infer_head(state, options)
    named = (("num_classes", "classifier", 0), ("in_channels", "first_conv", 1))
    for setting, kind, axis in named:
        names = getattr(config, kind, None)
        name = names[0] if isinstance(names, tuple | list) and names else names
        settings[setting] = axis_length(state, f"{name}.weight", axis, settings[setting])
    return settings | {key: options[key] for key in TIMM_SIZES & options.keys()}


def _refuse_activation(name: str, activation: str) -> None:
    if activation != "relu":
        raise ArgumentError(
            f"torchvision:{name} has its own activation; omit `activation={activation!r}`, "
            "or choose one of wgeo's architectures."
        )


def _with_channels(net: nn.Module, channels: int) -> nn.Module:
    """Give the first convolution this number of input channels."""
    name, old = next((n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d))
    if channels != old.in_channels:
        if old.groups != 1:
            raise ArgumentError(f"{type(net).__name__} cannot read {channels} channels.")
        new = nn.Conv2d(
            channels,
            old.out_channels,
            old.kernel_size,  # type: ignore[arg-type]
            old.stride,  # type: ignore[arg-type]
            old.padding,  # type: ignore[arg-type]
            bias=old.bias is not None,
        )
        net.set_submodule(name, new)
    return net


def timm_arch(name: str) -> Arch:
    """Return one of timm's networks as an `Arch`.

    Names of networks that timm would download (``hf-hub:...``) are not accepted.
    """
    try:
        import timm
    except ImportError as error:
        raise DependencyError(
            f"timm:{name} needs timm, which is not installed: pip install 'wgeo[timm]'."
        ) from error
    if not timm.is_model(name):
        names = timm.list_models()
        raise ArgumentError(f"timm has no network {name!r}{suggestion(name, names)}.")
    config = timm.get_pretrained_cfg(name)
    normalize = normalization(config.mean, config.std) if config is not None else None
    return Arch(
        f"timm:{name}",
        partial(_build_timm, name),
        partial(_infer_timm, config),
        normalize=normalize,
    )


def _build_timm(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: int | None = None,
    activation: str = "relu",
    **options: Any,
) -> nn.Module:
    import timm

    if activation != "relu":
        options["act_layer"] = activation
    try:
        return timm.create_model(
            name, pretrained=False, num_classes=num_classes, in_chans=in_channels, **options
        )
    except (AssertionError, TypeError, ValueError, KeyError) as error:
        raise ArgumentError(f"timm could not build {name!r}: {error}") from error


def normalization(mean: tuple[float, ...], std: tuple[float, ...]) -> str:
    """Return the text that `wgeo.data.images.normalization` reads as this mean and deviation."""
    if tuple(mean) == (0.485, 0.456, 0.406) and tuple(std) == (0.229, 0.224, 0.225):
        return "imagenet"
    if set(mean) == {0.5} and set(std) == {0.5}:
        return "half"
    return ";".join(",".join(f"{value:g}" for value in values) for values in (mean, std))


def user_arch(name: str) -> Arch:
    """Return a user's ``package.module:factory`` as an `Arch`.

    The module may also be in the current folder. The factory must return a network, and accept
    every option. It receives num_classes, in_channels, image_size and activation only if they are
    in its signature.
    """
    module_name, _, attribute = name.partition(":")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # last, so that nothing there replaces an installed module
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module can raise anything
        raise ArgumentError(
            f"Cannot import {module_name!r} for the architecture {name!r}: "
            f"{type(error).__name__}: {error}. wgeo searches the current folder "
            "and the installed packages."
        ) from error
    factory: Any = module
    for part in attribute.split("."):
        factory = getattr(factory, part, None)
    if isinstance(factory, nn.Module) or not callable(factory):
        names = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        if factory is None:
            problem = f"does not exist in {module_name}"
        elif isinstance(factory, nn.Module):
            problem = f"of {module_name} is already a network"
        else:
            problem = f"of {module_name} is not a function"
        raise ArgumentError(
            f"{attribute!r} {problem}; pass a function or class that returns a "
            f"network{suggestion(attribute, names)}."
        )
    return Arch(name, partial(_build_user, name, factory), infer_head, user_code=True)


def _build_user(name: str, factory: Callable[..., Any], /, **settings: Any) -> nn.Module:
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # written in C
        parameters = inspect.Signature().parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    accepted = {
        key: value
        for key, value in settings.items()
        if key in parameters or (key not in COMMON and inspect.Parameter.VAR_KEYWORD in kinds)
    }
    unknown = sorted(set(settings) - set(accepted) - COMMON)
    if unknown:
        raise ArgumentError(f"{name} does not take {', '.join(unknown)}.")
    try:
        net = factory(**accepted)
    except Exception as error:  # a user's factory can raise anything
        arguments = ", ".join(f"{key}={value!r}" for key, value in accepted.items())
        raise ArgumentError(
            f"{name}({arguments}) failed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(net, nn.Module):
        raise ArgumentError(f"{name} returned {type(net).__name__}, not a torch.nn.Module.")
    return net
