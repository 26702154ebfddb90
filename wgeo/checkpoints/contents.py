"""What a training script saved -> the state dicts in it, under the names of one network."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import CheckpointError
from ..storage.files import printable
from .standins import StandIn, as_array, attributes, is_module, state_of

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
# What training scripts keep beside a network, and what holds tensors that are no network's.
_BESIDE = re.compile(r"optim|sched|scaler|rng|random|queue|center|grad|moment", re.IGNORECASE)
_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")
_DEPTH = 6  # a state dict lies at most five dicts down, as in VISSL's files
_SLACK = 2**20
_MOST = 10_000  # tensors; a network of a thousand layers has six thousand
_MOST_CONTAINERS = 10_000  # looked into
_SHARE = 0.1  # of all tensors: what a part holds at least that is taken for a network
_MOST_PREFIXES = 12
_LONGEST_PREFIX = 6  # parts
_HEAD = r"(?:head\.fc|heads\.head|head|fc|linear|classifier)\.(?:weight|bias)"


@dataclass(frozen=True, eq=False)
class Found:
    """A state dict and where it lay.

    Attributes
    ----------
    state : dict of str to Tensor
        As saved, prefixes included.
    container : str
        Such as ``state_dict`` or ``model.ema``; empty for a plain state dict.
    usual : bool
        Whether the container has one of the usual names of a network's.
    whole : bool
        Whether a whole network was saved, not its state dict.
    """

    state: dict[str, torch.Tensor]
    container: str
    usual: bool = True
    whole: bool = False


@dataclass(frozen=True, eq=False)
class View:
    """A state dict under the names that one prefix leaves.

    Attributes
    ----------
    state : dict of str to Tensor
    prefix : str
        What was taken off the front of every name.
    aside : tuple of str
        Tensors without the prefix, left out.
    head : str
        The name under which a head was found outside the prefix; empty if it was not.
    """

    state: dict[str, torch.Tensor]
    prefix: str
    aside: tuple[str, ...] = ()
    head: str = ""


def find_states(value: Any, name: str, size: int, container: str | None = None) -> list[Found]:
    """Find the state dicts in what a file held, and check that their tensors can be weights.

    Parameters
    ----------
    value : object
        What the file held.
    name : str
        The file's, for errors.
    size : int
        Bytes of the file.
    container : str, optional
        Which one; default all, the likeliest first.

    Raises
    ------
    CheckpointError
        There is none, it is empty, or its tensors are sparse, complex or larger than the file.
    """
    if not isinstance(value, dict | list | StandIn):
        raise CheckpointError(
            f"{name} holds {_kind(value)}, not a state dict or a dict with one. "
            "Save it with torch.save(model.state_dict(), path)."
        )
    found = list(_search(value, "", True, _DEPTH, {}, name))
    found.sort(key=lambda each: not each.usual)  # stable: else in the order of the search
    if not found:
        entries = attributes(value) if isinstance(value, StandIn) else value
        keys = dict.keys(entries) if isinstance(entries, dict) else ()
        told = ", ".join(_name(key) for key in list(keys)[:8]) or "nothing"
        raise CheckpointError(
            f"{name} holds no tensors that make a state dict (its entries: {told}). "
            "Save it with torch.save(model.state_dict(), path)."
        )
    if container is not None:
        chosen = [each for each in found if each.container == container]
        if not chosen:
            names = ", ".join(repr(each.container) for each in found[:8])
            raise CheckpointError(
                f"{name} holds no state dict under {printable(container)!r}. "
                f"`container=` can be {names}."
            )
        found = chosen
    _check_tensors(found[0].state, name, size)
    return [found[0], *(each for each in found[1:] if _sound(each.state, size))]


def _sound(state: Mapping[str, torch.Tensor], size: int) -> bool:
    try:
        _check_tensors(state, "", size)
    except CheckpointError:
        return False
    return True


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "a single tensor"
    return "nothing" if value is None else f"a {type(value).__name__}"


def _search(
    value: Any, path: str, usual: bool, depth: int, seen: dict[int, None], name: str
) -> Iterator[Found]:
    """Yield state dicts; those of usual names first, then the value's own tensors, then others."""
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if not isinstance(value, dict | StandIn) or depth == 0 or id(value) in seen:
        return
    if len(seen) > _MOST_CONTAINERS:
        raise CheckpointError(
            f"{name} holds more than {_MOST_CONTAINERS} containers inside each other. Save only "
            "the state dict: torch.save(model.state_dict(), path)."
        )
    seen[id(value)] = None
    if is_module(value):
        state = _tensors(state_of(value, name))
        if any(tensor.ndim > 0 for tensor in state.values()):
            yield Found(state, path, usual, whole=True)
        return
    # dict's own methods: an unpickled OrderedDict may carry attributes that hide its methods.
    entries = dict(dict.items(attributes(value) if isinstance(value, StandIn) else value))
    for key in _CONTAINERS:
        yield from _search(entries.get(key), _joined(path, key), usual, depth - 1, seen, name)
    state = _tensors(entries)
    if any(tensor.ndim > 0 for tensor in state.values()):
        yield Found(state, path, usual)
    for key, part in entries.items():
        if isinstance(key, str) and key not in _CONTAINERS and not _BESIDE.search(key):
            yield from _search(part, _joined(path, printable(key)), False, depth - 1, seen, name)


def _joined(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def _tensors(entries: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    """The tensors among entries, without the attributes that could hide their methods."""
    found = {}
    for key, value in entries.items():
        if isinstance(key, str) and isinstance(value, torch.Tensor):
            found[key] = torch.Tensor.detach(value)
        elif isinstance(key, str) and (array := as_array(value)) is not None:
            found[key] = torch.from_numpy(array)
    return found


def _name(key: Any) -> str:
    """A key as it may be printed; only its type if it is neither text nor a small number."""
    if isinstance(key, str):
        return printable(key)
    small = isinstance(key, int | float) and abs(key) < 2**63
    return str(key) if small else f"a {type(key).__name__}"


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


def views(state: Mapping[str, torch.Tensor], prefix: str | None = None) -> list[View]:
    """Return a state under the names that its prefixes leave, the likeliest first.

    ``_orig_mod`` (torch.compile) and its like go wherever they stand. Any other dotted prefix,
    such as ``module.``, ``model.``, ``backbone.`` or ``module.encoder_q.``, is tried if enough
    tensors have it: the longest that all tensors share comes first, then shorter ones, which a
    network with a part of that name of its own needs, then those of parts.

    Parameters
    ----------
    state : mapping of str to Tensor
    prefix : str, optional
        The one to take off; default all that could be one.

    Raises
    ------
    CheckpointError
        No name begins with the prefix that was asked for.
    """
    plain = {_WRAPPERS.sub("", key).removeprefix("."): tensor for key, tensor in state.items()}
    if len(plain) != len(state):
        plain = dict(state)
    wrappers = (_WRAPPERS.search(key) for key in state) if list(plain) != list(state) else ()
    wrapped = next((f"{each[2]}." for each in wrappers if each), "")
    counts = _prefixes(plain)
    if prefix is not None:
        asked = prefix if not prefix or prefix.endswith(".") else prefix + "."
        asked = _WRAPPERS.sub("", asked).removeprefix(".")
        if not any(key.startswith(asked) for key in plain):
            known = ", ".join(repr(each) for each in list(counts)[:8])
            raise CheckpointError(
                f"no tensor's name begins with {printable(prefix)!r}. `prefix=` can be {known}."
            )
        return [_view(plain, asked, wrapped)]
    return [_view(plain, each, wrapped) for each in counts]


def _prefixes(state: Mapping[str, torch.Tensor]) -> list[str]:
    """Prefixes that leave a network, the likeliest first: all share it, then by size."""
    keys = [key for key in state if key != "n_averaged"]
    counts: Counter[str] = Counter()
    for key in keys:
        parts = key.split(".")[:-1][:_LONGEST_PREFIX]
        counts.update("".join(f"{part}." for part in parts[:i]) for i in range(len(parts) + 1))
    common = [each for each, count in counts.items() if count == len(keys)]
    rest = [each for each, count in counts.items() if _SHARE * len(keys) <= count < len(keys)]
    rest.sort(key=lambda each: (-counts[each], len(each)))
    return [*sorted(common, key=len, reverse=True), *rest][:_MOST_PREFIXES]


def _view(state: Mapping[str, torch.Tensor], prefix: str, wrapped: str) -> View:
    inside = {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
    outside = [key for key in state if not key.startswith(prefix) and key != "n_averaged"]
    if "n_averaged" in state:
        inside["n_averaged"] = state["n_averaged"]
    head = ""
    if outside and not any(re.fullmatch(_HEAD, key) and _is_matrix(inside[key]) for key in inside):
        heads = {k.rpartition(".")[0] for k in outside if re.fullmatch(rf"(.*\.)?{_HEAD}", k)}
        heads = {each for each in heads if _is_matrix(state.get(f"{each}.weight"))}
        if len(heads) == 1:
            (head,) = heads
            for part in ("weight", "bias"):
                if f"{head}.{part}" in state:
                    inside[f"fc.{part}"] = state[f"{head}.{part}"]
            outside = [key for key in outside if key.rpartition(".")[0] != head]
    return View(inside, wrapped + prefix, tuple(printable(key) for key in outside), head)


def _is_matrix(tensor: torch.Tensor | None) -> bool:
    """Whether a tensor can be a linear layer's weight."""
    return tensor is not None and tensor.ndim == 2
