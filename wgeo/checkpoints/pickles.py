"""Static analysis of a pickle: the names it imports and how it uses them, without running it.

A pickle is a program for a stack machine. Its instructions are followed here with placeholders
instead of objects, so that a file is checked before torch's reader builds anything from it.
"""

from __future__ import annotations

import io
import pickletools
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from ..text import printable

File = io.BufferedReader | io.BytesIO

_MAX_OPS = 750_000  # pickle instructions; a state dict of a thousand tensors has about 40,000
_MAX_LEAVES = 1_000_000  # entries of nested tuples, counted at every occurrence
_MAX_NAMES = 1_000  # classes replaced by stand-ins
_MAX_WORK = 20_000_000  # comparisons: torch compares each object with all replaced classes
_PROTOCOL = 2  # used by torch.save; torch's restricted reader supports no later one

_PLAIN = re.compile(  # names that torch's restricted reader builds itself and wgeo allows
    r"collections\.(OrderedDict|Counter)"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state"
    r"|sparse_tensor|meta_tensor_no_storage)"
    r"|torch\._tensor\._rebuild_from_type_v2"
    r"|torch\.nn\.parameter\.Parameter"
    r"|torch\.serialization\._get_layout"
    r"|torch\.(Size|Tensor|device|\w+Storage|storage\.(TypedStorage|UntypedStorage))"
    r"|torch\.(bool|u?int\d+|float\d+(_\w+)?|bfloat16|complex\d+)"
    r"|builtins\.(set|complex)"
    r"|_codecs\.encode"
)
# No honest checkpoint imports these. Stand-ins would make them harmless, but the user is warned.
_ATTACK = re.compile(
    r"(os|posix|nt|sys|subprocess|pty|runpy|ctypes|importlib)\..*"
    r"|_?io\.open\w*"
    r"|builtins\.(eval|exec|execfile|compile|open|apply|input|__import__|breakpoint)"
)
_INT8 = re.compile(r"torch\._utils\._rebuild_qtensor|torch\.(per_\w+_(affine|symmetric)\w*|q\w+)")
# torch's reader builds these itself, even if they have a stand-in, and of any size.
_UNSAFE = re.compile(r"builtins\.bytearray|torch\._utils\._rebuild_\w+")
WHOLE_STATE = (  # advice for training that distributes the weights over processes
    "Save the whole state dict with the training program: `get_model_state_dict` returns it with "
    "`StateDictOptions(full_state_dict=True, cpu_offload=True)`; both are in "
    "torch.distributed.checkpoint.state_dict."
)
_REBUILT = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3")
_ADD_OPS = ("APPEND", "APPENDS", "SETITEM", "SETITEMS")


@dataclass(eq=False, slots=True)
class _Item:
    """A placeholder for an object on the stack."""

    tag: str = ""  # such as "global torch.Size", "result of torch.Size", "text latin1", "tuple"
    leaves: int = 1  # entries of nested tuples, counted at every occurrence
    parts: tuple[_Item, ...] = ()  # of a short tuple


_ANY = _Item()
_MARK = _Item("mark")


def inspect_pickles(file: File, count: int, name: str) -> dict[str, str]:
    """Follow the instructions of `count` consecutive pickles without executing them.

    Return the classes and functions that the pickles import, except those that torch's reader may
    build, such as tensors. The values say how their objects are used: ``dict`` or ``list`` if
    entries are added to them, else ``object``. Pickles that would run programs or exhaust memory
    are a `CheckpointError`, as are damaged and unsupported ones.
    """
    reader = _Reader(name)
    failure: Exception | None = None
    try:
        for _ in range(count):
            reader.pickle(file)
    except CheckpointError:
        raise
    except Exception as error:  # a truncated or invalid instruction
        failure = error
    reader.check(failure)
    return reader.names


class _Reader:
    def __init__(self, name: str) -> None:
        self.name = name
        self.names: dict[str, str] = {}
        self.attacks: dict[str, None] = {}  # a set that keeps its order
        self.reason = ""
        self.steps = self.work = 0

    def refuse(self, reason: str) -> None:
        """Store the first reason to refuse the file; attacks are reported before it."""
        self.reason = self.reason or reason

    def check(self, error: Exception | None) -> None:
        """Raise the most important error, if any."""
        if self.attacks:
            names = ", ".join(printable(each, 80) for each in list(self.attacks)[:5])
            raise CheckpointError(
                f"{self.name} would run {names}{', ...' if len(self.attacks) > 5 else ''}, which "
                "no checkpoint needs: it was made to attack whoever loads it. None of it was run. "
                "Get the weights elsewhere, as safetensors."
            )
        if self.reason:
            raise CheckpointError(f"{self.name} {self.reason}")
        if error is not None:
            raise CheckpointError(damaged(self.name, error)) from error

    def pickle(self, file: File) -> None:
        self.stack: list[_Item] = []
        self.memo: dict[int, _Item] = {}
        strings = ["", ""]
        for op, argument, _ in pickletools.genops(file):
            self.steps += 1
            if self.steps > _MAX_OPS:
                raise CheckpointError(
                    f"{self.name} contains more than {_MAX_OPS} pickle instructions, far more than "
                    "a state dict needs. Save only the state dict."
                )
            if op.proto > _PROTOCOL:
                self.refuse(
                    f"is a pickle of protocol {op.proto}, but torch.save writes protocol 2. Load "
                    "it with the program that wrote it and save it again: "
                    "torch.save(state_dict, path)."
                )
            if op.name == "STACK_GLOBAL":  # takes names from the stack; torch never writes it
                self._import(".".join(strings))
            elif isinstance(argument, str):
                strings = [strings[1], argument]
            if self._after(op, argument).leaves > _MAX_LEAVES:
                raise CheckpointError(
                    f"{self.name} contains nested tuples with more than {_MAX_LEAVES} entries. "
                    "Hashing them could take forever. It was not read."
                )

    def _import(self, name: str) -> str:
        """Record a name that the pickle imports."""
        if _ATTACK.fullmatch(name):
            self.attacks[name] = None
        elif _INT8.fullmatch(name):
            self.refuse(
                "contains int8 weights quantized by torch, but wgeo reads floating-point weights. "
                "Save the network's state dict before quantization."
            )
        elif name == "torch._utils._rebuild_wrapper_subclass":
            self.refuse(
                "contains tensors that are distributed over processes (DTensor) or packed in "
                f"another way, without their plain values. {WHOLE_STATE}"
            )
        elif not _PLAIN.fullmatch(name):
            if _UNSAFE.fullmatch(name):
                self.refuse(
                    f"contains {printable(name, 80)}, which could allocate any amount of memory. "
                    "Save only the state dict: torch.save(model.state_dict(), path)."
                )
            self.names.setdefault(name, "object")
            if len(self.names) > _MAX_NAMES:
                raise CheckpointError(
                    f"{self.name} names more than {_MAX_NAMES} classes, far more than a training "
                    "script has. Save only the state dict."
                )
        return name

    def _after(self, op: pickletools.OpcodeInfo, argument: Any) -> _Item:
        """Follow one instruction; return the item that it puts on the stack, if any."""
        if op.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            index = len(self.memo) if argument is None else argument
            self.memo[index] = self.stack[-1] if self.stack else _ANY
            return _ANY
        if op.name in ("GET", "BINGET", "LONG_BINGET"):
            item = self.memo.get(argument, _ANY)
        elif op.name == "MARK":
            item = _MARK
        else:
            item = self._result(op, argument, self._pop(op))
        self.stack.extend([item] * len(op.stack_after))
        return item

    def _pop(self, op: pickletools.OpcodeInfo) -> list[_Item]:
        """Pop the operands of an instruction, and return them in the order of the stack."""
        operands: list[_Item] = []
        for operand in reversed(op.stack_before):
            if operand is pickletools.stackslice:
                while self.stack and self.stack[-1] is not _MARK:
                    operands.append(self.stack.pop())
            elif self.stack:
                item = self.stack.pop()
                if item is not _MARK:
                    operands.append(item)
        return operands[::-1]

    def _result(self, op: pickletools.OpcodeInfo, argument: Any, operands: list[_Item]) -> _Item:
        if op.name in ("GLOBAL", "INST"):
            module, _, attribute = str(argument).partition(" ")
            if (module, attribute) in NAME_MAPPING:  # Python 2's names, as torch translates them
                module, attribute = NAME_MAPPING[module, attribute]
            module = IMPORT_MAPPING.get(module, module)
            return _Item("global " + self._import(f"{module}.{attribute}"))
        leaves = 1 + sum(item.leaves for item in operands)
        if op.name.startswith("TUPLE"):
            return _Item("tuple", leaves, tuple(operands) if len(operands) <= 4 else ())
        if op.name == "EMPTY_TUPLE":
            return _Item("tuple")
        if op.name in ("REDUCE", "NEWOBJ") and len(operands) == 2:
            return self._call(operands[0], operands[1], leaves)
        if op.name == "BUILD" and operands:
            self._count()
            return operands[0]
        if op.name in _ADD_OPS and operands:
            self._fill(operands[0], "dict" if "SET" in op.name else "list")
            return operands[0]
        if op.name == "DUP" and operands:
            return operands[0]
        if op.name == "BINPERSID" and operands and operands[0].parts:
            if operands[0].parts[0].tag == "text module":
                self.refuse(
                    "contains a whole network in the format used before torch 1.6, with its source "
                    "code. Load it with the program that wrote it and save its state dict: "
                    "torch.save(model.state_dict(), path)."
                )
            return _ANY
        if op.name == "EMPTY_DICT":
            return _Item("dict")
        if argument in ("latin1", "module"):
            return _Item(f"text {argument}")
        return _ANY

    def _call(self, function: _Item, arguments: _Item, leaves: int) -> _Item:
        """Check a call that torch's reader would make; return a placeholder for its result."""
        function_name = function.tag.removeprefix("global ")
        parts = arguments.parts
        kinds = [part.tag for part in parts]
        if function_name == function.tag:
            # torch's reader also refuses such a call, but prints the object, which may never end.
            self.refuse("is damaged or malicious: it calls an object that is not an imported name.")
        elif function_name == "_codecs.encode":  # bytes, in old pickles
            if kinds[1:] != ["text latin1"]:
                self.refuse("encodes text with a codec other than latin1, which only attacks do.")
            return _ANY
        elif function_name == "torch._utils._rebuild_sparse_tensor":
            if kinds[:1] != ["result of torch.serialization._get_layout"]:
                self.refuse("is damaged: it contains a sparse tensor without a layout.")
        elif function_name == "torch._tensor._rebuild_from_type_v2":
            if not (kinds and kinds[0].removeprefix("global ") in _REBUILT and _has_state(parts)):
                self.refuse(
                    "contains tensors of an unusual class. Save plain ones: "
                    "torch.save({k: v.as_subclass(torch.Tensor) for k, v in "
                    "model.state_dict().items()}, path)."
                )
        elif function_name == "torch._utils._rebuild_parameter_with_state" and not _has_state(
            parts
        ):
            self.refuse("is damaged: it contains a parameter without its state.")
        self._count()
        # torch.Size is the only result that is hashed by its contents.
        return _Item(f"result of {function_name}", leaves if function_name == "torch.Size" else 1)

    def _count(self) -> None:
        self.work += len(self.names)
        if self.work > _MAX_WORK:
            raise CheckpointError(
                f"{self.name} builds too many objects of too many classes to be read in "
                "reasonable time. Save only the state dict."
            )

    def _fill(self, item: _Item, kind: str) -> None:
        function_name = item.tag.removeprefix("result of ")
        if function_name in self.names and function_name != item.tag:
            self.names[function_name] = kind


def _has_state(parts: tuple[_Item, ...]) -> bool:
    """Return whether there are four arguments, of which the last is a valid state.

    A state that is a tuple must have two entries. Of any other tuple, torch's error prints all
    entries, which may never end.
    """
    state = parts[3] if len(parts) == 4 else _Item("tuple")
    return state.tag != "tuple" or len(state.parts) == 2


def damaged(name: str, error: Exception) -> str:
    """Return the message for a file that a reader could not read."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # torch's message first explains how to switch the reader off, then names the error.
    details = [line.partition("WeightsUnpickler error:")[2].strip() for line in lines]
    reason = printable(next(filter(None, details), lines[0]), 200)
    return f"{name} is damaged or not a checkpoint ({reason}). Save or download it again."
