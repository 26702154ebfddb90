"""What a pickle would do, found without doing it: the names it imports, and how it uses them.

A pickle is a program for a machine with a stack. Its instructions are followed here with marks
instead of objects, so that a file is known before torch's reader builds anything from it.
"""

from __future__ import annotations

import io
import pickletools
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from dataclasses import dataclass
from typing import Any

from ..errors import CheckpointError
from ..storage.files import printable

File = io.BufferedReader | io.BytesIO

_MAX_OPS = 750_000  # pickle instructions; a state dict of a thousand tensors has some 40,000
_MAX_LEAVES = 1_000_000  # of nested tuples, written out
_MAX_NAMES = 1_000  # classes that are stood in for
_MAX_WORK = 20_000_000  # names times instructions that use one: torch looks through all each time
_PROTOCOL = 2  # of every file of torch.save; torch's restricted reader knows no later one

_PLAIN = re.compile(  # what torch's restricted reader makes itself, and wgeo lets it
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
# No honest checkpoint names these. They would be as inert as any other stand-in; a file that asks
# for them is refused because whoever has it should know.
_ATTACK = re.compile(
    r"(os|posix|nt|sys|subprocess|pty|runpy|ctypes|importlib)\..*"
    r"|_?io\.open\w*"
    r"|builtins\.(eval|exec|execfile|compile|open|apply|input|__import__|breakpoint)"
)
_INT8 = re.compile(r"torch\._utils\._rebuild_qtensor|torch\.(per_\w+_(affine|symmetric)\w*|q\w+)")
# torch's reader makes these itself whatever stands in for them, from sizes and objects that a file
# chooses freely.
_UNSAFE = re.compile(r"builtins\.bytearray|torch\._utils\._rebuild_\w+")
_REBUILT = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3")
_ADDING = ("APPEND", "APPENDS", "SETITEM", "SETITEMS")


@dataclass(eq=False, slots=True)
class _Item:
    """A mark for an object on the stack."""

    tag: str = ""  # such as "global torch.Size", "made by torch.Size", "text latin1", "tuple"
    leaves: int = 1  # entries, when all tuples inside are written out
    parts: tuple[_Item, ...] = ()  # of a short tuple


_ANY = _Item()
_MARK = _Item("mark")


def inspect_pickles(file: File, number: int, name: str) -> dict[str, str]:
    """Follow the instructions of so many pickles in a row without carrying them out.

    Returns
    -------
    dict of str to str
        Every class or function that they name beyond those that make tensors, and how its objects
        are used: ``dict`` or ``list`` if entries are put into them, else ``object``.

    Raises
    ------
    CheckpointError
        They are damaged, run programs, ask for memory, or are of a kind that is not read.
    """
    reader = _Reader(name)
    reason: Exception | None = None
    try:
        for _ in range(number):
            reader.pickle(file)
    except CheckpointError:
        raise
    except Exception as error:  # an instruction cut short, or bytes that are none
        reason = error
    reader.check(reason)
    return reader.names


class _Reader:
    def __init__(self, name: str) -> None:
        self.name = name
        self.names: dict[str, str] = {}
        self.attacks: dict[str, None] = {}  # a set that keeps its order
        self.refused = ""
        self.steps = self.work = 0

    def refuse(self, why: str) -> None:
        """Remember the first reason; an attack found later goes before it."""
        self.refused = self.refused or why

    def check(self, reason: Exception | None) -> None:
        """Raise what was found."""
        if self.attacks:
            named = ", ".join(printable(found, 80) for found in list(self.attacks)[:5])
            raise CheckpointError(
                f"{self.name} would run {named}{', ...' if len(self.attacks) > 5 else ''}, which "
                "no checkpoint needs: it was made to attack whoever loads it. Nothing of it was "
                "run. Get the weights elsewhere, as safetensors."
            )
        if self.refused:
            raise CheckpointError(f"{self.name} {self.refused}")
        if reason is not None:
            raise CheckpointError(damaged(self.name, reason)) from reason

    def pickle(self, file: File) -> None:
        self.stack: list[_Item] = []
        self.memo: dict[int, _Item] = {}
        strings = ["", ""]
        for op, argument, _ in pickletools.genops(file):
            self.steps += 1
            if self.steps > _MAX_OPS:
                raise CheckpointError(
                    f"{self.name} holds more than {_MAX_OPS} pickle instructions, far more than a "
                    "state dict needs. Save only the state dict."
                )
            if op.proto > _PROTOCOL:
                self.refuse(
                    f"is a pickle of protocol {op.proto}, and torch.save writes protocol 2. Load "
                    "it where it was made and save it anew: torch.save(state_dict, path)."
                )
            if op.name == "STACK_GLOBAL":  # its names can come from anywhere; torch has none
                self._named(".".join(strings))
            elif isinstance(argument, str):
                strings = [strings[1], argument]
            if self._after(op, argument).leaves > _MAX_LEAVES:
                raise CheckpointError(
                    f"{self.name} holds a tuple of tuples with more than {_MAX_LEAVES} entries, "
                    "made to exhaust whoever hashes it. It was not read."
                )

    def _named(self, found: str) -> str:
        """Take note of a name that the pickle imports."""
        if _ATTACK.fullmatch(found):
            self.attacks[found] = None
        elif _INT8.fullmatch(found):
            self.refuse(
                "holds int8 weights of torch's quantisation, and wgeo reads floating-point "
                "weights. Save the network's state dict before it is quantised."
            )
        elif not _PLAIN.fullmatch(found):
            if _UNSAFE.fullmatch(found):
                self.refuse(
                    f"holds {printable(found, 80)}, which could ask for any amount of memory. "
                    "Save only the state dict: torch.save(model.state_dict(), path)."
                )
            self.names.setdefault(found, "object")
            if len(self.names) > _MAX_NAMES:
                raise CheckpointError(
                    f"{self.name} names more than {_MAX_NAMES} classes, far more than a training "
                    "script has. Save only the state dict."
                )
        return found

    def _after(self, op: pickletools.OpcodeInfo, argument: Any) -> _Item:
        """Follow one instruction; return what it leaves on top."""
        if op.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            at = len(self.memo) if argument is None else argument
            self.memo[at] = self.stack[-1] if self.stack else _ANY
            return _ANY
        if op.name in ("GET", "BINGET", "LONG_BINGET"):
            made = self.memo.get(argument, _ANY)
            self.stack.append(made)
            return made
        if op.name in ("MARK", "POP_MARK"):
            if op.name == "MARK":
                self.stack.append(_MARK)
            else:
                self._taken(op)
            return _ANY
        taken = self._taken(op)
        made = self._made(op, argument, taken)
        self.stack.extend([made] * len(op.stack_after))
        return made

    def _taken(self, op: pickletools.OpcodeInfo) -> list[_Item]:
        """What an instruction takes off the stack, the deepest first."""
        taken: list[_Item] = []
        for wanted in reversed(op.stack_before):
            if wanted is pickletools.stackslice:
                while self.stack and self.stack[-1] is not _MARK:
                    taken.append(self.stack.pop())
            elif self.stack:
                item = self.stack.pop()
                if item is not _MARK:
                    taken.append(item)
        return taken[::-1]

    def _made(self, op: pickletools.OpcodeInfo, argument: Any, taken: list[_Item]) -> _Item:
        if op.name in ("GLOBAL", "INST"):
            module, _, attribute = str(argument).partition(" ")
            if (module, attribute) in NAME_MAPPING:  # Python 2's names, as torch translates them
                module, attribute = NAME_MAPPING[module, attribute]
            module = IMPORT_MAPPING.get(module, module)
            return _Item("global " + self._named(f"{module}.{attribute}"))
        leaves = 1 + sum(item.leaves for item in taken)
        if op.name.startswith("TUPLE"):
            return _Item("tuple", leaves, tuple(taken) if len(taken) <= 4 else ())
        if op.name == "EMPTY_TUPLE":
            return _Item("tuple")
        if op.name in ("REDUCE", "NEWOBJ") and len(taken) == 2:
            return self._called(taken[0], taken[1], leaves)
        if op.name == "BUILD" and taken:
            self._count()
            return taken[0]
        if op.name in _ADDING and taken:
            self._filled(taken[0], "dict" if "SET" in op.name else "list")
            return taken[0]
        if op.name == "DUP" and taken:
            return taken[0]
        if op.name == "BINPERSID" and taken and taken[0].parts:
            if taken[0].parts[0].tag == "text module":
                self.refuse(
                    "holds a whole network in the format of before torch 1.6, with its source "
                    "code. Load it where it was made and save its state dict: "
                    "torch.save(model.state_dict(), path)."
                )
            return _ANY
        if op.name == "EMPTY_DICT":
            return _Item("dict")
        if argument in ("latin1", "module"):
            return _Item(f"text {argument}")
        return _ANY

    def _called(self, function: _Item, arguments: _Item, leaves: int) -> _Item:
        """Check a call: what torch's reader itself would do with these arguments."""
        called = function.tag.removeprefix("global ")
        parts = arguments.parts
        kinds = [part.tag for part in parts]
        if called == function.tag:
            # torch's reader refuses it too, and prints it, which may take for ever.
            self.refuse("is damaged or made to confuse: it calls what is no name.")
        elif called == "_codecs.encode":  # bytes, as old pickles have them
            if kinds[1:] != ["text latin1"]:
                self.refuse("encodes text by another codec than latin1, which only attacks do.")
            return _ANY
        elif called == "torch._utils._rebuild_sparse_tensor":
            if kinds[:1] != ["made by torch.serialization._get_layout"]:
                self.refuse("is damaged: it holds a sparse tensor without a layout.")
        elif called == "torch._tensor._rebuild_from_type_v2":
            if not (kinds and kinds[0].removeprefix("global ") in _REBUILT and _stateful(parts)):
                self.refuse(
                    "holds tensors of an unusual class. Save plain ones: "
                    "torch.save({k: v.as_subclass(torch.Tensor) for k, v in "
                    "model.state_dict().items()}, path)."
                )
        elif called == "torch._utils._rebuild_parameter_with_state" and not _stateful(parts):
            self.refuse("is damaged: it holds a parameter without its state.")
        self._count()
        # Of what is made, only sizes are hashed by what they hold.
        return _Item(f"made by {called}", leaves if called == "torch.Size" else 1)

    def _count(self) -> None:
        self.work += len(self.names)
        if self.work > _MAX_WORK:
            raise CheckpointError(
                f"{self.name} builds too many objects of too many classes, made to exhaust "
                "whoever reads it. Save only the state dict."
            )

    def _filled(self, item: _Item, kind: str) -> None:
        called = item.tag.removeprefix("made by ")
        if called in self.names and called != item.tag:
            self.names[called] = kind


def _stateful(parts: tuple[_Item, ...]) -> bool:
    """Whether the last of four arguments is a state that torch accepts, or would print."""
    state = parts[3] if len(parts) == 4 else _Item("tuple")
    return state.tag != "tuple" or len(state.parts) == 2


def damaged(name: str, error: Exception) -> str:
    """What to say of a file that a reader gave up on."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # torch's reader says first how to switch it off, and later what it met.
    told = [line.partition("WeightsUnpickler error:")[2].strip() for line in lines]
    reason = printable(next(filter(None, told), lines[0]), 200)
    return f"{name} is damaged or not a checkpoint ({reason}). Save or download it again."
