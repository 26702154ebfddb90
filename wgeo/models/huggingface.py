"""Image classifiers of HuggingFace's transformers, built from a ``config.json``."""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ArgumentError, DependencyError
from ..storage.files import printable
from .external import Arch, infer_head, normalization
from .parts import State, head_of

_LARGEST = 1_000_000  # bytes of a config
_DEEPEST = 1_000  # layers
# Settings that choose code, weights or places rather than shapes.
_NOT_SHAPES = ("attn", "dtype", "backbone", "quantization", "auto_map", "path", "timm", "return")


def arch_of_config(config: Mapping[str, Any], path: str | os.PathLike[str]) -> str | None:
    """Return the architecture that a ``config.json`` beside a checkpoint names; None for none.

    transformers' ResNets are torchvision's under other names, and are known by their tensors.

    Parameters
    ----------
    config : mapping
    path : path
        The checkpoint, or its folder.
    """
    kind, timms = config.get("model_type"), config.get("architecture")
    if isinstance(timms, str) and kind is None:  # a folder of timm's
        return f"timm:{timms}"
    if not isinstance(kind, str) or (kind == "resnet" and _is_torchvisions(config)):
        return None
    place = os.fsdecode(path)
    return f"hf:{place if os.path.isdir(place) else os.path.dirname(place) or '.'}"


def _is_torchvisions(config: Mapping[str, Any]) -> bool:
    bottleneck = config.get("layer_type", "bottleneck") == "bottleneck"
    widths = [64, 128, 256, 512]
    return (
        config.get("embedding_size", 64) == 64
        and config.get("hidden_sizes", [256, 512, 1024, 2048])
        == [width * 4 if bottleneck else width for width in widths]
        and config.get("hidden_act", "relu") == "relu"
        and not config.get("downsample_in_first_stage")
        and not config.get("downsample_in_bottleneck")
    )


def huggingface_arch(folder: str) -> Arch:
    """Return the network that a folder's ``config.json`` describes as an `Arch`.

    Only settings that decide shapes are taken from the file; its weights, code and other places
    that it may name are not.

    Raises
    ------
    ArgumentError
        No such file, or it describes no image classifier of transformers.
    DependencyError
        transformers is not installed.
    """
    name = f"hf:{folder}"
    config = _read(Path(folder) / "config.json", name)
    kind = config.get("model_type")
    try:
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
        from transformers.models.auto.modeling_auto import (
            MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES as CLASSIFIERS,
        )
    except ImportError as error:
        raise DependencyError(
            f"{name} is a {printable(str(kind))} of transformers, which is not installed: "
            "pip install 'wgeo[hf]'."
        ) from error
    if not isinstance(kind, str) or kind not in CLASSIFIERS or kind == "timm_wrapper":
        raise ArgumentError(
            f"{name} is a {printable(str(kind))}, which is no image classifier of transformers."
        )
    made = CONFIG_MAPPING[kind]
    takes = inspect.signature(made).parameters
    shapes = {
        key: value
        for key, value in config.items()
        if key in takes and not any(word in key for word in _NOT_SHAPES)
    }
    for key, value in shapes.items():
        depth = sum(value) if isinstance(value, list) and "depth" in key else value
        if ("depth" in key or "layers" in key) and isinstance(depth, int) and depth > _DEEPEST:
            raise ArgumentError(f"{name} claims {depth} layers; wgeo builds up to {_DEEPEST}.")
    shapes.setdefault("num_channels", 3)
    classes = len(config["id2label"]) if isinstance(config.get("id2label"), dict) else None
    return Arch(
        name,
        f"transformers' {kind}",
        partial(_build, made, shapes),
        partial(_infer, classes, shapes["num_channels"]),
        normalize=_normalize(Path(folder) / "preprocessor_config.json"),
        translate=partial(_translated, made, shapes),
    )


def _build(
    made: Any,
    shapes: Mapping[str, Any],
    *,
    num_classes: int | None,
    in_channels: int = 3,
    image_size: int | None = None,
    activation: str = "relu",
) -> nn.Module:
    from transformers import AutoModelForImageClassification

    extra: dict[str, Any] = {"num_labels": num_classes, "num_channels": in_channels}
    if image_size is not None and "image_size" in shapes:
        extra["image_size"] = image_size
    labels = ("id2label", "label2id")
    try:
        config = made(**{k: v for k, v in shapes.items() if k not in labels} | extra)
        net = AutoModelForImageClassification.from_config(config, trust_remote_code=False)
    except Exception as error:  # transformers checks a file's settings in its own ways
        raise ArgumentError(f"transformers could not build it: {error}") from error
    net.register_forward_hook(_logits)
    return net


def _translated(
    made: Any, shapes: Mapping[str, Any], state: State, settings: Mapping[str, Any]
) -> State:
    """The state as transformers itself loads it: its networks are saved under older names.

    An encoder that was saved without a head gets the names it has inside the classifier. All this
    only after its size was compared with the network's, so that no file asks for memory.
    """
    with torch.device("meta"):
        net = _build(made, shapes, **settings)
    numbers = [
        sum(tensor.numel() for tensor in each.values()) for each in (net.state_dict(), state)
    ]
    if state.keys() == net.state_dict().keys() or numbers[0] > 2 * numbers[1]:
        return state
    kind: Any = type(net)
    try:
        with _quiet():
            loaded, info = kind.from_pretrained(
                None, config=net.config, state_dict=dict(state), output_loading_info=True
            )
    except Exception:  # it does not fit; the comparison says how
        return state
    missing = set(info.get("missing_keys", ()))
    found = head_of(net)
    head = {f"{found[0]}.weight", f"{found[0]}.bias"} if found is not None else set()
    others = {key: state[key] for key in info.get("unexpected_keys", ()) if key in state}
    if info.get("mismatched_keys") or not missing <= head or (others and not missing):
        return state
    return {k: tensor for k, tensor in loaded.state_dict().items() if k not in missing} | others


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' warnings and progress bars."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _logits(_: nn.Module, args: Any, output: Any) -> Any:
    """What the network decides by, rather than a record of several outputs."""
    return getattr(output, "logits", output)


def _infer(
    classes: int | None, channels: int, state: State, given: Mapping[str, Any]
) -> dict[str, Any]:
    found = infer_head(state, given)["num_classes"] if classes is None else classes
    return {"num_classes": found, "in_channels": channels}


def _normalize(path: Path) -> str | None:
    try:
        said = _read(path, "")
        mean, std = (tuple(map(float, said[key])) for key in ("image_mean", "image_std"))
    except (ArgumentError, KeyError, TypeError, ValueError):
        return None
    return normalization(mean, std)


def _read(path: Path, name: str) -> dict[str, Any]:
    try:
        if not path.is_file() or path.stat().st_size > _LARGEST:
            raise ArgumentError(f"{name}: there is no {path.name} there. Name the folder of one.")
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ArgumentError(f"{name}: its {path.name} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ArgumentError(f"{name}: its {path.name} is no JSON object.")
    return found
