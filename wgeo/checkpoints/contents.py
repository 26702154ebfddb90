"""Find the state dicts in the contents of a checkpoint, and remove name prefixes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import CheckpointError
from ..models.parts import USUAL_HEADS
from ..text import printable
from .pickles import WHOLE_STATE
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
# Entries of training scripts that contain tensors but no network.
_NOT_NETWORK = re.compile(r"optim|sched|scaler|rng|random|queue|center|grad|moment", re.IGNORECASE)
_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)(?=\.)")
_FLAT = re.compile(r"(.*\.)?_?flat_param(_\d+)?")  # FSDP's vector of all weights in a wrapper
_DEPTH = 6  # a state dict is nested at most five levels deep, as in VISSL's files
_SLACK = 2**20  # bytes by which weights may exceed four times the file's size
_MAX_TENSORS = 10_000  # a network of a thousand layers has six thousand
_MAX_CONTAINERS = 10_000  # dicts and lists that are searched
_MAX_LIST = 100  # items; a longer list is not searched for networks
_MIN_FRACTION = 0.1  # of all tensors; a prefix that fewer tensors have is not tried
_MAX_PREFIXES = 12
_MAX_PREFIX_PARTS = 6  # names between dots
_HEAD = rf"(?:{'|'.join(map(re.escape, USUAL_HEADS))})\.(?:weight|bias)"


@dataclass(frozen=True, eq=False)
class SavedState:
    """A state dict and its place in the file."""

    state: dict[str, torch.Tensor]  # as saved, prefixes included
    container: str  # the entry that contains it, such as model.ema; empty for a plain state dict
    usual: bool = True  # whether all names in `container` are usual ones
    whole: bool = False  # whether it was taken from a whole pickled network
    keys: tuple[str, ...] = ()  # keys that lead to a whole network, one per dict, list or object


@dataclass(frozen=True, eq=False)
class View:
    """A state dict with one prefix removed from its names."""

    state: dict[str, torch.Tensor]
    prefix: str
    aside: tuple[str, ...] = ()  # names without the prefix, whose tensors are ignored
    head: str = ""  # name of a head outside the prefix, which `state` contains as "fc"


def find_states(value: Any, name: str, size: int, container: str | None) -> list[SavedState]:
    """Find the state dicts in a file's contents, the most likely first.

    `CheckpointError` is raised if the most likely one lacks layers (FSDP, DeepSpeed), or if its
    tensors cannot be weights. Others whose tensors cannot be weights are left out. `size` is the
    size of the file in bytes.
    """
    if not isinstance(value, dict | list | tuple | StandIn):
        kind = "single tensor" if isinstance(value, torch.Tensor) else type(value).__name__
        contents = "nothing" if value is None else f"a {kind}"
        raise CheckpointError(
            f"{name} contains {contents}, not a state dict or a dict with one. "
            "Save it with torch.save(model.state_dict(), path)."
        )
    states = list(_search(value, (), True, _DEPTH, {}, name))
    states.sort(key=lambda each: not each.usual)  # a stable sort keeps the order of the search
    if not states:
        entries = attributes(value) if isinstance(value, StandIn) else value
        entries = entries if isinstance(entries, dict) else {}
        names = ", ".join(_name(key) for key in list(dict.keys(entries))[:8]) or "nothing"
        raise CheckpointError(
            f"{name} contains no tensors that form a state dict (its entries: {names})."
            f"{_unnamed([value, *dict.values(entries)])} "
            "Save it with torch.save(model.state_dict(), path)."
        )
    if container is not None:
        chosen = [each for each in states if each.container == container]
        if not chosen:
            names = ", ".join(repr(each.container) for each in states[:8])
            raise CheckpointError(
                f"{name} contains no state dict under {printable(container)!r}. "
                f"`container=` can be {names}."
            )
        states = chosen
    _require_layers(states[0].state, name)
    _check_tensors(states[0].state, name, size)
    valid = states[:1]
    for each in states[1:]:
        with suppress(CheckpointError):
            _check_tensors(each.state, name, size)
            valid.append(each)
    return valid


def _unnamed(values: list[Any]) -> str:
    """Return advice on parameters that were saved without their names, if there are any."""
    lists = [each for each in values if isinstance(each, list | tuple) and len(each) > 1]
    if not any(all(isinstance(part, torch.Tensor) for part in each) for each in lists):
        return ""
    return (
        " A list of tensors has no names of layers: copy it into the network with the program that "
        "wrote it (such as ema.copy_to(model.parameters()))."
    )


def _require_layers(state: Mapping[str, torch.Tensor], name: str) -> None:
    """Raise an error if FSDP flattened the weights into one vector, or DeepSpeed left them out."""
    empty = [key for key, tensor in state.items() if tensor.shape == (0,)]
    if 2 * len(empty) > len(state):
        raise CheckpointError(
            f"{name} contains names without weights ({printable(empty[0])} is empty): DeepSpeed's "
            "ZeRO-3 saves the weights in several files. Its folder has a script that joins them: "
            "python zero_to_fp32.py FOLDER OUTPUT."
        )
    flat = next((key for key in state if _FLAT.fullmatch(key)), None)
    if flat is not None:
        raise CheckpointError(
            f"{name} contains weights that FSDP flattened ({printable(flat)}): the names and "
            "shapes of the layers are lost, and it may be only one process's part. "
            f"{WHOLE_STATE}"
        )


def only_item(value: Any) -> Any:
    """Return the item of a list that has only one, and any other value unchanged."""
    return value[0] if isinstance(value, list | tuple) and len(value) == 1 else value


def _search(
    value: Any, keys: tuple[str, ...], usual: bool, depth: int, seen: dict[int, None], name: str
) -> Iterator[SavedState]:
    """Yield state dicts: those under usual names, the value itself, those under other names."""
    value, container = only_item(value), ".".join(map(printable, keys))
    own = id(value)
    if isinstance(value, list | tuple):  # networks in a list have the names 0, 1, ...
        value = value if len(value) <= _MAX_LIST else ()  # too long: a history, for example
        value = {str(i): part for i, part in enumerate(value) if isinstance(part, dict | StandIn)}
    if not isinstance(value, dict | StandIn) or not value or depth == 0 or own in seen:
        return
    if len(seen) > _MAX_CONTAINERS:
        raise CheckpointError(
            f"{name} contains more than {_MAX_CONTAINERS} nested containers. Save only "
            "the state dict: torch.save(model.state_dict(), path)."
        )
    seen[own] = None
    if is_module(value):
        state = _tensors(state_of(value, name))
        if any(tensor.ndim > 0 for tensor in state.values()):
            yield SavedState(state, container, usual, True, keys)
        return
    # dict's own methods: an unpickled OrderedDict may carry attributes that hide its methods.
    entries = dict(dict.items(attributes(value) if isinstance(value, StandIn) else value))
    for key in _CONTAINERS:
        yield from _search(entries.get(key), (*keys, key), usual, depth - 1, seen, name)
    state = _tensors(entries)
    if any(tensor.ndim > 0 for tensor in state.values()):
        yield SavedState(state, container, usual)
    for key, part in entries.items():
        if isinstance(key, str) and key not in _CONTAINERS and not _NOT_NETWORK.search(key):
            yield from _search(part, (*keys, key), False, depth - 1, seen, name)


def _tensors(entries: Mapping[Any, Any]) -> dict[str, torch.Tensor]:
    """Return the tensors among entries, without attributes that could hide their methods."""
    tensors = {}
    for key, value in entries.items():
        if isinstance(key, str) and isinstance(value, torch.Tensor):
            tensors[key] = torch.Tensor.detach(value)
        elif isinstance(key, str) and (array := as_array(value)) is not None:
            tensors[key] = torch.from_numpy(array)
    return tensors


def _name(key: Any) -> str:
    """Return a key as printable text, or its type if it is neither text nor a small number."""
    if isinstance(key, str):
        return printable(key)
    small = isinstance(key, int | float) and abs(key) < 2**63
    return str(key) if small else f"a {type(key).__name__}"


def _check_tensors(state: Mapping[str, torch.Tensor], name: str, size: int) -> None:
    if len(state) > _MAX_TENSORS:
        raise CheckpointError(
            f"{name} contains {len(state)} tensors, far more than an image network has. Save only "
            "the state dict of the network."
        )
    declared = 0
    for key, tensor in state.items():
        problem = None
        if tensor.layout != torch.strided:
            problem = "sparse"
        elif tensor.is_complex():
            problem = "complex"
        elif tensor.is_meta:
            problem = "on the meta device, without values"
        if problem is not None:
            raise CheckpointError(
                f"{name}: the tensor {printable(key)} is {problem}; wgeo needs dense real weights."
            )
        declared += tensor.numel() * tensor.element_size()
    # Tied weights are stored once but counted several times, hence the factor. A single number
    # expanded to a large tensor is an attack on memory.
    if declared > 4 * size + _SLACK:
        raise CheckpointError(
            f"{name} declares {declared} bytes of weights but has only {size} bytes: it is "
            "damaged or made to exhaust memory. It was not expanded."
        )


def views(state: Mapping[str, torch.Tensor], prefix: str | None) -> list[View]:
    """Return one view of a state for each candidate prefix, the most likely first.

    ``_orig_mod`` (torch.compile) and similar wrappers are removed wherever they occur. Any other
    dotted prefix, such as ``module.`` or ``module.encoder_q.``, is a candidate if at least a tenth
    of the tensors have it. Prefixes common to all tensors come first, the longest of them before
    shorter ones, which the network itself may need. Then come prefixes of some tensors, the most
    frequent first. At most twelve views are returned.

    If there is a `prefix`, it is the only candidate. What precedes it may be omitted:
    ``encoder_q.`` for ``module.encoder_q.``.
    """
    plain = {_WRAPPERS.sub("", key).removeprefix("."): tensor for key, tensor in state.items()}
    wrapper = next((f"{match[2]}." for match in map(_WRAPPERS.search, state) if match), "")
    if len(plain) != len(state):
        plain, wrapper = dict(state), ""
    prefixes = _prefixes(plain)
    if prefix is not None:
        dotted = prefix if not prefix or prefix.endswith(".") else prefix + "."
        dotted = _WRAPPERS.sub("", dotted).removeprefix(".")
        if not any(key.startswith(dotted) for key in plain):
            longer = [each for each in prefixes if each.endswith("." + dotted)]
            if len(longer) != 1:
                choices = ", ".join(repr(each) for each in prefixes[:8])
                raise CheckpointError(
                    f"no tensor's name begins with {printable(prefix)!r}. `prefix=` can be "
                    f"{choices}."
                )
            dotted = longer[0]  # module.encoder_q. for encoder_q.
        prefixes = [dotted]
    return [_view(plain, each, wrapper) for each in prefixes]


def _prefixes(state: Mapping[str, torch.Tensor]) -> list[str]:
    keys = [key for key in state if key != "n_averaged"]
    counts: Counter[str] = Counter()
    for key in keys:
        parts = key.split(".")[:-1][:_MAX_PREFIX_PARTS]
        counts.update("".join(f"{part}." for part in parts[:i]) for i in range(len(parts) + 1))
    common = [each for each, count in counts.items() if count == len(keys)]
    rest = [
        each for each, count in counts.items() if _MIN_FRACTION * len(keys) <= count < len(keys)
    ]
    rest.sort(key=lambda each: (-counts[each], len(each)))
    return [*sorted(common, key=len, reverse=True), *rest][:_MAX_PREFIXES]


def _view(state: Mapping[str, torch.Tensor], prefix: str, wrapper: str) -> View:
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
    return View(inside, wrapper + prefix, tuple(printable(key) for key in outside), head)


def _is_matrix(tensor: torch.Tensor | None) -> bool:
    return tensor is not None and tensor.ndim == 2
