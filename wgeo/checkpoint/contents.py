"""What a training script saved -> the state dict in it, under plain names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import CheckpointError
from ..files import printable

_CONTAINERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "module",
    "weights",
    "params",
    "state_dict_ema",
    "ema_state_dict",
    "model_ema",
    "ema",
)
_PREFIXES = ("module.", "model.", "net.", "network.")
_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")
_DEPTH = 3  # a state dict lies at most in a container of a container
_SLACK = 2**20
_MOST = 10_000  # tensors; a network of a thousand layers has six thousand


@dataclass(frozen=True, eq=False)
class Found:
    """A state dict and where it lay.

    Attributes
    ----------
    state : dict of str to Tensor
        As saved, prefixes included.
    container : str
        Such as ``state_dict`` or ``model.ema``; empty for a plain state dict.
    others : tuple of str
        Other containers beside it, not used.
    """

    state: dict[str, torch.Tensor]
    container: str
    others: tuple[str, ...]


def find_state(value: Any, name: str, size: int) -> Found:
    """Find the state dict in what a file held, and check that its tensors can be weights.

    Raises
    ------
    CheckpointError
        There is none, it is empty, or its tensors are sparse, complex or larger than
        the file.
    """
    if not isinstance(value, dict):
        raise CheckpointError(
            f"{name} holds {_kind(value)}, not a state dict or a dict with one. "
            "Save it with torch.save(model.state_dict(), path)."
        )
    found = _search(value, _DEPTH)
    if found is None:
        keys = ", ".join(_name(key) for key in list(dict.keys(value))[:8]) or "nothing"
        raise CheckpointError(
            f"{name} holds no tensors that make a state dict (its entries: {keys}). "
            "Save it with torch.save(model.state_dict(), path)."
        )
    _check_tensors(found.state, name, size)
    return found


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "a single tensor"
    return "nothing" if value is None else f"a {type(value).__name__}"


def _search(value: Any, depth: int) -> Found | None:
    if isinstance(value, nn.Module):  # only where the file was trusted
        value = value.state_dict()
    if not isinstance(value, dict) or depth == 0:
        return None
    # dict's own methods: an unpickled OrderedDict may carry attributes that hide its methods.
    entries = dict(dict.items(value))
    inside = {key: entries[key] for key in _CONTAINERS if _holds_more(entries.get(key))}
    for key, part in inside.items():
        found = _search(part, depth - 1)
        if found is not None:
            container = f"{key}.{found.container}" if found.container else key
            return Found(found.state, container, tuple(other for other in inside if other != key))
    # A tensor of a file may carry attributes that hide its methods, too: without them.
    state = {
        k: torch.Tensor.detach(t)
        for k, t in entries.items()
        if isinstance(k, str) and isinstance(t, torch.Tensor)
    }
    if any(tensor.ndim > 0 for tensor in state.values()):
        return Found(state, "", ())
    unusual = [(key, _search(part, 1)) for key, part in entries.items() if key not in inside]
    states = [(key, found) for key, found in unusual if found is not None]
    if len(states) != 1:
        return None
    ((key, only),) = states
    return Found(only.state, _name(key), ())


def _name(key: Any) -> str:
    """A key as it may be printed; one that is no word or small number by its kind alone."""
    if isinstance(key, str):
        return printable(key)
    small = isinstance(key, int | float) and abs(key) < 2**63
    return str(key) if small else f"a {type(key).__name__}"


def _holds_more(value: Any) -> bool:
    return isinstance(value, dict | nn.Module)


def _check_tensors(state: Mapping[str, torch.Tensor], name: str, size: int) -> None:
    if len(state) > _MOST:
        raise CheckpointError(
            f"{name} holds {len(state)} tensors, far more than a network of images has. Save the "
            "state dict of the network alone."
        )
    declared = 0
    for key, tensor in state.items():
        what = None
        if tensor.layout != torch.strided:
            what = "sparse"
        elif tensor.is_complex():
            what = "complex"
        elif tensor.is_meta:
            what = "without values"
        if what is not None:
            raise CheckpointError(
                f"{name}: the tensor {printable(key)} is {what}; wgeo takes dense real weights."
            )
        declared += tensor.numel() * tensor.element_size()
    # Tied weights are stored once and counted twice or so; a giant view of one number is a trap.
    if declared > 4 * size + _SLACK:
        raise CheckpointError(
            f"{name} declares {declared} bytes of weights and has {size}: damaged, or made to "
            "exhaust memory. It was not expanded."
        )


def stripped(state: Mapping[str, torch.Tensor]) -> Iterator[tuple[dict[str, torch.Tensor], str]]:
    """Yield a state under ever plainer names, and the prefix taken off; the plainest comes last.

    ``_orig_mod`` (torch.compile) and its like go wherever they stand; ``module.`` (DataParallel),
    ``model.``, ``net.`` and ``network.`` go from the front, as often as they come. A prefix goes
    only if all keys but bookkeeping ones have it.
    """
    plain = {_WRAPPERS.sub("", key).removeprefix("."): tensor for key, tensor in state.items()}
    if len(plain) != len(state):
        plain = dict(state)
    taken = "_orig_mod." if list(plain) != list(state) else ""
    yield plain, taken
    while True:
        keys = [key for key in plain if key != "n_averaged"]
        prefix = next((p for p in _PREFIXES if keys and all(k.startswith(p) for k in keys)), None)
        if prefix is None:
            return
        plain = {key.removeprefix(prefix): tensor for key, tensor in plain.items()}
        taken += prefix
        yield plain, taken
