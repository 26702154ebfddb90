"""Image classifiers of Hugging Face transformers, built from a ``config.json``."""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import ArgumentError, DependencyError
from ..text import printable
from .external import Arch, infer_head, normalization
from .parts import State, head_of, shapes_only

_MAX_BYTES = 10_000_000  # largest config file; the names of 20,000 classes take 2 million bytes
_MAX_LAYERS = 1_000
_DEPTHS = ("depth", "layers", "repeats")  # words in the names of settings that count layers
# Words in the names of settings that select code, weights or paths, not shapes.
_NOT_SHAPES = ("attn", "dtype", "backbone", "quantization", "auto_map", "path", "timm", "return")


def arch_of_config(config: Mapping[str, Any], path: str | os.PathLike[str]) -> str | None:
    """Return the architecture that a checkpoint's ``config.json`` names, or None.

    None is also returned for a ResNet of transformers in a standard size: it is torchvision's with
    other names, and is recognized by its tensors. `path` is the checkpoint, or its folder.
    """
    kind, timm_name = config.get("model_type"), config.get("architecture")
    if isinstance(timm_name, str) and kind is None:  # a folder written by timm
        return f"timm:{timm_name}"
    if not isinstance(kind, str) or (kind == "resnet" and _is_torchvision_resnet(config)):
        return None
    return f"hf:{_folder(path)}"


def normalization_of_config(config: Mapping[str, Any], path: str | os.PathLike[str]) -> str | None:
    """Return the normalization stored with a checkpoint, or None.

    timm stores it in ``config.json``, transformers in ``preprocessor_config.json``. `path` is the
    checkpoint, or its folder. Without a ``config.json``, `config` is empty.
    """
    timm_settings = config.get("pretrained_cfg")
    if isinstance(timm_settings, dict):
        return _mean_and_std(timm_settings, "mean", "std")
    return _normalize(Path(_folder(path)) / "preprocessor_config.json") if config else None


def _folder(path: str | os.PathLike[str]) -> str:
    text = os.fsdecode(path)
    return text if os.path.isdir(text) else os.path.dirname(text) or "."


def _is_torchvision_resnet(config: Mapping[str, Any]) -> bool:
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
    """Return the `Arch` that a folder's ``config.json`` describes.

    Weights, code and paths that the file names are ignored. A file that claims more than 1,000
    layers is rejected.
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
            f"{name} is a {printable(str(kind))}, which needs transformers: pip install 'wgeo[hf]'."
        ) from error
    if not isinstance(kind, str) or kind not in CLASSIFIERS or kind == "timm_wrapper":
        raise ArgumentError(
            f"{name} is a {printable(str(kind))}, which is not an image classifier of transformers."
        )
    config_class = CONFIG_MAPPING[kind]
    parameters = inspect.signature(config_class).parameters
    shapes = {
        key: value
        for key, value in config.items()
        if key in parameters and not any(word in key for word in _NOT_SHAPES)
    }
    _require_few_layers(shapes, name)
    shapes.setdefault("num_channels", 3)
    classes = len(config["id2label"]) if isinstance(config.get("id2label"), dict) else None
    return Arch(
        name,
        partial(_build, config_class, shapes),
        partial(_infer, classes, shapes["num_channels"]),
        normalize=_normalize(Path(folder) / "preprocessor_config.json"),
        translate=partial(_translate, config_class, shapes),
    )


def _require_few_layers(shapes: Mapping[str, Any], name: str) -> None:
    for key, value in shapes.items():
        counts = value if isinstance(value, list) else [value]
        # Numbers are cut just above the limit, so that no sum overflows.
        numbers = [min(n, _MAX_LAYERS + 1) for n in counts if isinstance(n, int | float) and n > 0]
        if any(word in key for word in _DEPTHS) and sum(numbers) > _MAX_LAYERS:
            raise ArgumentError(
                f"{name} claims more than {_MAX_LAYERS} layers ({key}), which wgeo does not build."
            )


def _build(
    config_class: Any,
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
        config = config_class(**{k: v for k, v in shapes.items() if k not in labels} | extra)
        net = AutoModelForImageClassification.from_config(config, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds of errors
        raise ArgumentError(f"transformers could not build it: {error}") from error
    net.register_forward_hook(_logits)
    return net


def _translate(
    config_class: Any, shapes: Mapping[str, Any], state: State, settings: Mapping[str, Any]
) -> State:
    """Return a state under the names that transformers uses today; unchanged if it does not fit.

    transformers itself loads the state, and renames its tensors. The tensors of an encoder
    saved without a head get the names that they have in the whole classifier.
    """
    with shapes_only():
        net = _build(config_class, shapes, **settings)
    sizes = [sum(tensor.numel() for tensor in each.values()) for each in (net.state_dict(), state)]
    # A small file must not make transformers allocate a large network.
    if state.keys() == net.state_dict().keys() or sizes[0] > 2 * sizes[1]:
        return state
    model_class: Any = type(net)
    try:
        with _quiet():
            loaded, info = model_class.from_pretrained(
                None, config=net.config, state_dict=dict(state), output_loading_info=True
            )
    except Exception:  # the later comparison reports the differences
        return state
    missing = set(info.get("missing_keys", ()))
    head = head_of(net)
    head_names = {f"{head[0]}.weight", f"{head[0]}.bias"} if head is not None else set()
    others = {key: state[key] for key in info.get("unexpected_keys", ()) if key in state}
    if info.get("mismatched_keys") or not missing <= head_names or (others and not missing):
        return state
    return {k: tensor for k, tensor in loaded.state_dict().items() if k not in missing} | others


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress transformers' warnings and progress bars."""
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
    return getattr(output, "logits", output)


def _infer(
    classes: int | None, channels: int, state: State, options: Mapping[str, Any]
) -> dict[str, Any]:
    count = infer_head(state, options)["num_classes"] if classes is None else classes
    return {"num_classes": count, "in_channels": channels}


def _normalize(path: Path) -> str | None:
    try:
        return _mean_and_std(_read(path, ""), "image_mean", "image_std")
    except ArgumentError:
        return None


def _mean_and_std(settings: Mapping[str, Any], *keys: str) -> str | None:
    try:
        mean, std = (tuple(map(float, settings[key])) for key in keys)
    except (KeyError, TypeError, ValueError):
        return None
    plausible = len(mean) == len(std) > 0 and all(map(math.isfinite, mean)) and min(std) > 0
    return normalization(mean, std) if plausible else None


def _read(path: Path, name: str) -> dict[str, Any]:
    try:
        if not path.is_file() or path.stat().st_size > _MAX_BYTES:
            raise ArgumentError(f"{name}: it contains no {path.name}. Pass a folder with one.")
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ArgumentError(f"{name}: its {path.name} is damaged: {error}") from error
    if not isinstance(value, dict):
        raise ArgumentError(f"{name}: its {path.name} is not a JSON object.")
    return value
