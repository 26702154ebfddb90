"""Write the state of a run to a file, and read it back as an untrusted file."""

from __future__ import annotations

import io
import sys
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.reading import read
from ..errors import WgeoError
from ..storage.files import require_regular
from ..text import printable

# Errors that a damaged state may cause
READ_ERRORS = (
    *(OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError),
    WgeoError,
)
_ROW = {"epoch", "loss", "running_accuracy", "lr", "train_accuracy", "seconds"}


def serialized(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(_on_cpu(state), buffer)
    return buffer.getvalue()


def _on_cpu(state: Any) -> Any:
    """Return a state with all tensors on the CPU."""
    if isinstance(state, torch.Tensor):
        return state.detach().cpu()
    if type(state) in (dict, OrderedDict):  # other types may not accept pairs
        return type(state)((key, _on_cpu(value)) for key, value in state.items())
    if isinstance(state, list):
        return [_on_cpu(value) for value in state]
    return state


def read_state(path: Path) -> dict[str, Any]:
    """Return the saved state of a run; raise one of `READ_ERRORS` if it cannot be read."""
    require_regular(path)
    contents = read(path)
    if contents.stand_ins or type(contents.value) is not dict:
        raise ValueError("it is not the saved state of a wgeo run")
    return contents.value


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return the settings that differ, as ``name was X, now Y``.

    With a constant learning rate, the number of epochs may differ, since finished epochs do not
    depend on it.
    """
    # Older runs did not record these settings, which had only one value.
    defaults = {"classifier": "learned", "decayed": "all", "precision": "float32"}
    old, new = ({**defaults, **p, **p["training"], "training": None} for p in (before, now))
    ignored = {"epochs"} if new["schedule"] == "constant" else set()
    keys = [key for key in {**old, **new} if key not in ignored and old.get(key) != new.get(key)]
    return [f"{key} was {shortened(old.get(key))}, now {new.get(key)!r}" for key in keys]


def require_state(saved: Mapping[str, Any], expected: Mapping[str, Any], steps: int) -> None:
    """Raise a ValueError unless a saved state can be that of a run with these settings.

    `expected` is the state of a new run with these settings, which has `steps` steps per epoch.
    """
    epoch = saved["epoch"]
    if type(epoch) is not int or epoch < 0:
        raise ValueError(f"its epoch is {shortened(epoch)}")
    _require_history(saved["progress"], epoch)
    if saved["scheduler"] != {**expected["scheduler"], "step": epoch * steps}:
        raise ValueError(f"its scheduler is not at epoch {epoch} of this run")
    weights = saved["state_dict"]
    if not isinstance(weights, dict) or dict.keys(weights) != expected["state_dict"].keys():
        raise ValueError("its weights have other names than the network's")
    for name, tensor in expected["state_dict"].items():
        if isinstance(tensor, torch.Tensor):
            _require_like(dict.__getitem__(weights, name), tensor, f"its weights {name!r}")


def with_momenta(
    saved: Mapping[str, Any],
    expected: Mapping[str, Any],
    parameters: list[torch.Tensor],
    *,
    required: bool,
) -> dict[str, Any]:
    """Return `expected`, the optimizer state of a new run, with the momenta of the saved state.

    `parameters` are in the order of the optimizer's groups. Raise ValueError if the momenta do not
    belong to them, or are missing although `required`.
    """
    groups = [group["params"] for group in saved["param_groups"]]
    if groups != [group["params"] for group in expected["param_groups"]]:
        raise ValueError("its optimizer has other groups of parameters")
    state: dict[int, dict[str, Any]] = {}
    for index, entry in saved["state"].items():
        if type(index) is not int or not 0 <= index < len(parameters):
            raise ValueError("its optimizer has other parameters than the network")
        if entry.keys() != {"momentum_buffer"}:
            raise ValueError("its optimizer is of another kind")
        _require_like(entry["momentum_buffer"], parameters[index], f"momentum {index}")
        # Tensors in a file may share memory.
        state[index] = {"momentum_buffer": entry["momentum_buffer"].clone()}
    trained = {i for i, parameter in enumerate(parameters) if parameter.requires_grad}
    if required and trained and not trained & state.keys():
        raise ValueError("its optimizer has no momenta")
    # Without a saved momentum, a parameter has had no gradient yet: its momentum is zero.
    for index in trained - state.keys() if state else ():
        state[index] = {"momentum_buffer": torch.zeros_like(parameters[index])}
    return {**expected, "state": state}


def shortened(value: Any) -> str:
    """Return a value from a file as shortened, printable text."""
    return printable(repr(value))


def _require_history(progress: Any, epoch: int) -> None:
    """Raise a ValueError unless the history has one valid row per epoch."""
    history = progress["history"]
    if not isinstance(history, list) or len(history) != epoch + 1:
        raise ValueError(f"its history must have one row per epoch from 0 to {shortened(epoch)}")
    for i, row in enumerate(history):
        if not isinstance(row, dict) or row.keys() - {"test_accuracy"} != _ROW:
            raise ValueError(f"row {i} of its history is damaged")
        valid = type(row["epoch"]) is int and row["epoch"] == i and _is_number(row["seconds"])
        for key in ("loss", "running_accuracy", "lr"):  # the initialization has none
            valid &= row[key] is None if i == 0 else _is_number(row[key])
        for key in {"running_accuracy", "train_accuracy", "test_accuracy"} & row.keys():
            valid &= row[key] is None or (_is_number(row[key]) and row[key] <= 1)
        if not valid:
            raise ValueError(f"row {i} of its history has impossible values")


def _is_number(value: Any) -> bool:
    """Return whether a value is a finite number of at least 0."""
    return type(value) in (int, float) and 0 <= value <= sys.float_info.max


def _require_like(value: Any, tensor: torch.Tensor, name: str) -> None:
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
        raise ValueError(f"{name} must be a dense tensor")
    if value.shape != tensor.shape or value.dtype != tensor.dtype or value.device.type != "cpu":
        raise ValueError(
            f"{name} are {value.dtype} {tuple(value.shape)}, but this run's are {tensor.dtype} "
            f"{tuple(tensor.shape)}"
        )
    if is_finite(tensor) and not is_finite(value):
        raise ValueError(f"{name} contain NaN or infinity")


def is_finite(value: Any) -> bool:
    """Return False for a tensor with NaN or infinity, and True for anything else."""
    return not isinstance(value, torch.Tensor) or bool(torch.isfinite(value).all())
