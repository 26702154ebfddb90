"""A corpus of hostile and broken files, written by a script, and a child process that reads it.

    python tests/hostile.py write FOLDER     write the corpus and FOLDER/manifest.json
    python tests/hostile.py read FOLDER      read it under a limit of memory, one JSON line a file

The reader is watched by an audit hook: whatever would run a program, unpickle by Python's own
machine, open a socket or write a file is named in its answer. Nothing here does harm even where it
runs: a gadget that worked would leave a file called ``canary``.
"""

from __future__ import annotations

import importlib
import io
import itertools
import json
import os
import pickletools
import random
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

MEMORY = 2**28  # bytes that a reader may take beyond what it has after reading a sound file
LARGE = 2**30  # bytes that bombs unpack to
SECONDS = 10


class Case(NamedTuple):
    """A file, by which door it comes, and whether it must be refused."""

    name: str
    kind: str  # checkpoint, images, record, result, series or store
    path: str  # relative to the corpus; surrogates stand for bytes that are no UTF-8
    refused: bool = True
    says: str = ""  # a regular expression that the message matches


# --- pickles, instruction by instruction -----------------------------------------------------


def text(value: str) -> bytes:
    """BINUNICODE."""
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def name(module: str, attribute: str) -> bytes:
    """GLOBAL."""
    return f"c{module}\n{attribute}\n".encode()


def number(value: int) -> bytes:
    """The instruction LONG1, or LONG4 for long integers."""
    raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return (
        b"\x8a" + bytes([len(raw)]) + raw
        if len(raw) < 256
        else b"\x8b" + struct.pack("<i", len(raw)) + raw
    )


def row(*parts: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(parts) + b"t"


def mapping(*pairs: tuple[bytes, bytes]) -> bytes:
    return b"}" + b"".join(key + value + b"s" for key, value in pairs)


def pickled(program: bytes) -> bytes:
    return b"\x80\x02" + program + b"."


def storage(numel: int, key: str = "0", kind: str = "FloatStorage") -> bytes:
    """A reference to the part ``data/KEY`` of an archive."""
    return row(text("storage"), name("torch", kind), text(key), text("cpu"), number(numel)) + b"Q"


Shape = tuple[int, ...]


def rebuilding(numel: int, offset: int, shape: Shape, stride: Shape, **kw: str) -> bytes:
    """The arguments that a tensor is rebuilt from."""
    dims, steps = (row(*map(number, values)) for values in (shape, stride))
    hooks = name("collections", "OrderedDict") + b")R"
    return row(storage(numel, **kw), number(offset), dims, steps, b"\x89", hooks)


def tensor(numel: int, offset: int, shape: Shape, stride: Shape, **kw: str) -> bytes:
    args = rebuilding(numel, offset, shape, stride, **kw)
    return name("torch._utils", "_rebuild_tensor_v2") + args + b"R"


SOUND = tensor(4, 0, (2, 2), (2, 1))


def archive(program: bytes, data: bytes = bytes(16), **extra: bytes) -> bytes:
    """An archive as torch.save writes it, around a pickle of our own."""
    parts = {
        "net/data.pkl": pickled(program),
        "net/byteorder": b"little",
        "net/data/0": data,
        "net/version": b"3\n",
        **extra,
    }
    return zipped(parts)


def zipped(parts: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as made:
        for part, body in parts.items():
            made.writestr(part, body)
    return out.getvalue()


def inflating(size: int) -> bytes:
    """Raw deflate data of `size` zeros, a thousandth as long, made by repeating one block."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * (size >> 20) + b"\x03\x00"


def bomb(parts: dict[str, bytes], part: str, size: int, before: bytes = b"") -> bytes:
    """An archive with one more part, that many zeros once it is unpacked."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = packer.compress(before) + packer.flush(zlib.Z_FULL_FLUSH)
    out = io.BytesIO(zipped(parts))
    with zipfile.ZipFile(out, "a") as made:
        made.writestr(part, start + inflating(size))
        info = made.infolist()[-1]
        info.compress_type, info.file_size = zipfile.ZIP_DEFLATED, len(before) + size
    return out.getvalue()


def saved(value: Any, *, legacy: bool = False) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=not legacy)
    return out.getvalue()


def state() -> dict[str, torch.Tensor]:
    """The state dict of the smallest network that loads."""
    from wgeo import models

    torch.manual_seed(0)
    options = {"num_classes": 2, "in_channels": 1, "width": 2}
    return models.build("cifar_resnet8", **options).state_dict()


# --- gadgets -----------------------------------------------------------------------------------


def gadgets(canary: str) -> dict[str, bytes]:
    """Programs that would leave a file, by every way that a pickle can call something."""
    touch = f"touch {canary}"
    write = f"open({canary!r},'w').close()"
    shell = (text(touch),)

    def call(module: str, attribute: str, *args: bytes) -> bytes:
        return name(module, attribute) + row(*args) + b"R"

    inner = pickled(call("os", "system", *shell))
    raw = b"B" + struct.pack("<I", len(inner)) + inner
    calls = {
        "os.system": call("os", "system", *shell),
        "posix.system": call("posix", "system", *shell),
        "nt.system": call("nt", "system", *shell),
        "eval": call("builtins", "eval", text(write)),
        "exec": call("builtins", "exec", text(write)),
        "eval of Python 2": call("__builtin__", "eval", text(write)),
        "apply of Python 2": call("__builtin__", "apply", name("os", "system"), row(*shell)),
        "compile": call("builtins", "compile", text(write), text("f"), text("exec")),
        "open": call("builtins", "open", text(canary), text("w")),
        "io.open": call("io", "open", text(canary), text("w")),
        "__import__": call("builtins", "__import__", text("antigravity")),
        "getattr": call("builtins", "getattr", name("os", "path"), text("os")),
        "map": call("builtins", "map", name("os", "system"), row(*shell)),
        "breakpoint": call("builtins", "breakpoint"),
        "partial": call("functools", "partial", name("os", "system"), *shell),
        "reduce": call("functools", "reduce", name("os", "system"), row(*shell, *shell)),
        "methodcaller": call("operator", "methodcaller", text("system"), *shell),
        "attrgetter": call("operator", "attrgetter", text("system")),
        "subprocess": call("subprocess", "check_call", row(text("touch"), text(canary))),
        "Popen": call("subprocess", "Popen", row(text("touch"), text(canary))),
        "asyncio": call("asyncio.unix_events", "_UnixSubprocessTransport"),
        "pty.spawn": call("pty", "spawn", text("true")),
        "runpy": call("runpy", "run_path", text(canary)),
        "timeit": call("timeit", "timeit", text(write)),
        "cProfile": call("cProfile", "run", text(write)),
        "pdb": call("pdb", "run", text(write)),
        "code": call("code", "InteractiveInterpreter"),
        "ctypes": call("ctypes", "CDLL", text("libc.so.6")),
        "importlib": call("importlib", "import_module", text("antigravity")),
        "pip": call("pip", "main", row(text("install"), text("x"))),
        "shutil.rmtree": call("shutil", "rmtree", text(canary + ".d")),
        "os.remove": call("os", "remove", text(canary + ".d")),
        "webbrowser": call("webbrowser", "open", text("http://127.0.0.1:9")),
        "socket": call("socket", "create_connection", row(text("127.0.0.1"), number(9))),
        "urlopen": call("urllib.request", "urlopen", text("http://127.0.0.1:9")),
        "pickle.loads": call("pickle", "loads", raw),
        "_pickle.loads": call("_pickle", "loads", raw),
        "marshal.loads": call("marshal", "loads", raw),
        "logging": call("logging.config", "dictConfig", mapping()),
        "types.CodeType": call("types", "CodeType"),
        "types.FunctionType": call("types", "FunctionType"),
        "copyreg": call("copyreg", "_reconstructor", name("os", "system"), *shell, b"N"),
        "codecs": call("_codecs", "encode", text("a"), text("idna")),
        "numpy.load": call("numpy", "load", text(canary)),
        "numpy.save": call("numpy", "save", text(canary), number(3)),
        "numpy runstring": call(
            "numpy.testing._private.utils", "runstring", text(write), mapping()
        ),
        "numpy._reconstruct": call("numpy.core.multiarray", "_reconstruct"),
        "torch.load": call("torch", "load", text(canary)),
        "torch.save": call("torch", "save", number(3), text(canary)),
        "torch.serialization.load": call("torch.serialization", "load", text(canary)),
        "storage from bytes": call("torch.storage", "_load_from_bytes", raw),
        "torch.hub": call("torch.hub", "load", text("a/b"), text("c")),
        "torch.hub file": call("torch.hub", "load_state_dict_from_url", text("http://127.0.0.1:9")),
        "torch.jit.load": call("torch.jit", "load", text(canary)),
        "torch.jit.script": call("torch.jit.frontend", "get_jit_def"),
        "torch.package": call("torch.package", "PackageImporter", text(canary)),
        "torch.ops": call("torch._ops", "_Ops.load_library", text(canary)),
        "load_library": call("torch", "ops.load_library", text(canary)),
        "cpp_extension": call("torch.utils.cpp_extension", "load_inline"),
        "collect_env": call("torch.utils.collect_env", "run", text(touch)),
        "_import_dotted_name": call("torch._utils", "_import_dotted_name", text("os.system")),
        "torch attribute": call("torch.serialization", "os.system", *shell),
        "torch attribute deep": call("torch", "serialization.os.system", *shell),
        "torch.storage attribute": call("torch.storage", "io.open", text(canary), text("w")),
        "collections attribute": call("collections", "_sys.modules.get", text("os")),
        "tensor's own reduce": call("torch._tensor", "_rebuild_from_type_v2", name("os", "system")),
        "distributed": call("torch.distributed.launcher.api", "elastic_launch"),
        "torch.compile": call("torch", "compile"),
        "inductor": call("torch._inductor.codecache", "AsyncCompile"),
        "sklearn": call("joblib", "load", text(canary)),
        "wgeo": call("wgeo.checkpoints", "load_checkpoint", text(canary)),
        "dotted nothing": call("", ""),
        "a line break": name("os\x0bsystem", "x") + b")R",
    }
    twins = {
        "INST": b"(" + text(touch) + b"ios\nsystem\n",
        "OBJ": b"(" + name("os", "system") + text(touch) + b"o",
        "NEWOBJ": name("subprocess", "Popen") + row(text(touch)) + b"\x81",
        "NEWOBJ_EX": name("subprocess", "Popen") + row(text(touch)) + b"}\x92",
        "STACK_GLOBAL": text("os") + text("system") + b"\x93" + row(text(touch)) + b"R",
        "STACK_GLOBAL from memo": (
            text("os") + b"q\x010" + text("system") + b"q\x020"
            + text("collections") + text("OrderedDict") + b"00"
            + b"h\x01h\x02\x93" + row(text(touch)) + b"R"
        ),
        "EXT": b"\x82\x01" + row(text(touch)) + b"R",
        "PERSID": b"Pos.system\n",
        "BUILD": name("logging", "Handler") + b")\x81" + mapping((text("x"), text("y"))) + b"b",
        "BUILD of a gadget": SOUND + call("os", "system", *shell) + b"b",
        "in a key": mapping((call("os", "system", *shell), number(1))),
        "in a list's append": name("os", "system") + text(touch) + b"a",
        "in a mapping's update": name("os", "environ") + text("A") + text("B") + b"s",
        "popped": call("os", "system", *shell) + b"0" + mapping(),
        "after the end": mapping() + b"." + call("os", "system", *shell),
        "backwards": b"\x95" + struct.pack("<Q", 2**62) + call("os", "system", *shell),
    }  # fmt: skip
    return {**calls, **twins}


def code_checkpoints(canary: str) -> Iterator[tuple[str, bytes]]:
    """Every gadget in an archive; some of them at every position of a pickle."""
    programs = gadgets(canary)
    for title, program in programs.items():
        yield f"code {title}", archive(mapping((text("w"), SOUND), (text("args"), program)))
    shell = programs["os.system"]
    for protocol in range(6):
        head = b"" if protocol < 2 else bytes([0x80, protocol])
        yield f"bare pickle, protocol {protocol}", head + shell + b"."
    # A file of before torch 1.6 is five pickles and then the numbers.
    parts = split_pickles(saved({"w": torch.ones(2, 2)}, legacy=True))
    for at in range(5):
        changed = [pickled(shell) if i == at else part for i, part in enumerate(parts)]
        yield f"old format, pickle {at}", b"".join(changed)
    hidden = mapping((text("w"), SOUND))
    good = archive(hidden)
    evil = archive(shell)
    yield "two programs", archive(hidden, **{"evil/data.pkl": pickled(shell)})
    yield "an archive in front", evil + good
    yield "an archive behind", good + evil
    yield "an archive as a part", archive(shell, **{"net/data/1": good})
    yield "names that differ", good.replace(b"net/data.pkl", b"net/Data.pkl", 1)
    yield "a local header that differs", differing(good, evil)
    yield "tar of torch 0.1", old_tar(shell)
    yield "TorchScript", archive(hidden, **{"net/constants.pkl": pickled(shell)})
    yield "torch.package", archive(hidden, **{"net/.data/python_version": b"3", "net/x.py": b"1/0"})
    parameter = name("torch._utils", "_rebuild_parameter_with_state")
    hooks = name("collections", "OrderedDict") + b")R"
    yield (
        "a parameter's state",
        archive(mapping((text("w"), parameter + row(SOUND, b"\x89", hooks, shell) + b"R"))),
    )
    wrapped = name("torch._tensor", "_rebuild_from_type_v2") + row(
        name("os", "system"), name("torch", "Tensor"), row(text("true")), b"}"
    )
    yield "a tensor's type", archive(mapping((text("w"), wrapped + b"R")))
    for arch in ("os:system", "subprocess:check_call", "timm:hf-hub:evil/model", "hub:a/b:c",
                 "torchvision:../../evil", "builtins:exec", "cifar_resnet99998", "x" * 10**6,
                 "torchvision:" + "resnet" * 10**5, "\x1b[2J", ""):  # fmt: skip
        meta = {"arch": arch, "options": {"cmd": f"touch {canary}", "args": ["touch", canary]}}
        yield f"architecture {arch[:24]!r}", saved({"state_dict": state(), "wgeo": meta})


def split_pickles(body: bytes) -> list[bytes]:
    """The five pickles of a file in the old format, and the data after them."""
    stream = io.BytesIO(body)
    parts = []
    for _ in range(5):
        start = stream.tell()
        list(pickletools.genops(stream))  # goes to its end
        parts.append(body[start : stream.tell()])
    return [*parts, body[stream.tell() :]]


def differing(good: bytes, evil: bytes) -> bytes:
    """The central directory of one archive after the members of another."""
    program, other = (zipfile.ZipFile(io.BytesIO(b)).read("net/data.pkl") for b in (good, evil))
    return good.replace(program, other[:-1].ljust(len(program) - 1, b"0") + b".", 1)


def old_tar(program: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for part in ("sys_info", "pickle", "storages", "tensors"):
            info = tarfile.TarInfo(part)
            info.size = len(pickled(program))
            made.addfile(info, io.BytesIO(pickled(program)))
    return out.getvalue()


# --- bombs and lies ------------------------------------------------------------------------------


def nested(levels: int, step: bytes = b"h\x01h\x01\x86q\x01") -> bytes:
    """A tuple of two of the tuple before it: 2^levels leaves, which a hash or a print would see."""
    return b"(" + b")q\x01" + step * levels + b"t"


def bombs() -> Iterator[tuple[str, bytes]]:
    weight = (text("w"), SOUND)
    big = number(2**40)
    parts = {"net/version": b"3\n"}
    program = pickled(mapping(weight))
    yield "bomb", bomb({**parts, "net/data.pkl": program}, "net/data/0", LARGE)
    yield "bomb of a program", bomb(parts, "net/data.pkl", LARGE)
    yield "bomb bzip2", zipped({"net/data.pkl": bytes(2**22)}, zipfile.ZIP_BZIP2)
    yield "bomb lzma", zipped({"net/data.pkl": bytes(2**22)}, zipfile.ZIP_LZMA)
    good = archive(mapping(weight))
    yield "sizes that lie", with_sizes(good, 2**31)
    yield "sizes of zip64 that lie", with_sizes(good, 0xFFFFFFFF)
    yield (
        "many empty parts",
        archive(mapping(weight), **{f"net/data/{i}": b"" for i in range(1, 30_000)}),
    )
    yield "tuple as key", archive(b"}" + nested(60) + number(1) + b"s")
    wide = b"(" + b"h\x01" * 1000 + b"tq\x01"
    yield "wide tuple as key", archive(b"}" + nested(6, wide) + number(1) + b"s")
    copied = b"2\x86"  # DUP
    yield "tuple copied", archive(b"}" + b")" + copied * 60 + number(1) + b"s")
    size = name("torch", "Size") + b"h\x01\x85Rq\x01"
    yield "Size of a tuple", archive(b"}" + nested(40, b"h\x01h\x01\x86q\x01" + size) + b"Ns")
    yield (
        "tuple as key of short names",
        archive(mapping(weight, (text("state_dict"), b"}" + nested(24) + SOUND + b"s"))),
    )
    yield (
        "tuple in a set",
        archive(
            mapping(
                weight, (text("s"), name("builtins", "set") + row(b"]" + nested(60) + b"a") + b"R")
            )
        ),
    )
    yield (
        "tuple counted",
        archive(name("collections", "Counter") + row(b"}" + nested(60) + number(1) + b"s") + b"R"),
    )
    yield "lists of lists", archive(mapping((text("x"), b"]q\x01" + b"]h\x01h\x01eq\x01" * 50)))
    yield "endless key", archive(b"}" + number(7**40_000) + SOUND + b"s")
    yield "endless number", archive(mapping(weight, (text("epoch"), number(7**100_000))))
    yield "deep lists", archive(mapping((text("x"), b"]" * 100_000 + b"a" * 99_999)))
    yield "deep dicts", archive(b"}" + (text("model") + b"}") * 50_000 + b"s" * 50_000)
    yield "many instructions", archive(b"]" + b"]0" * 1_100_000)
    yield "long name", archive(mapping((text("w" * 3_000_000), SOUND)))
    yield (
        "many names",
        archive(b"}(" + b"".join(text(f"k{i}") + number(i) for i in range(50_000)) + b"u"),
    )
    for kind, program in {
        "bytearray": name("builtins", "bytearray") + row(big) + b"R",
        "set of a range": name("builtins", "set") + row(name("builtins", "range")) + b"R",
        "Tensor": name("torch", "Tensor") + row(big) + b"R",
        "Size": name("torch", "Size") + row(b"]" + big + b"a") + b"R",
        "FloatStorage": name("torch", "FloatStorage") + row(big) + b"R",
        "UntypedStorage": name("torch.storage", "UntypedStorage") + row(big) + b"R",
        "TypedStorage": name("torch.storage", "TypedStorage") + row(big) + b"R",
        "meta": name("torch._utils", "_rebuild_meta_tensor_no_storage")
        + row(name("torch", "float32"), row(big, big), row(number(1), number(1)), b"\x89")
        + b"R",
        "Parameter of it": name("torch.nn.parameter", "Parameter")
        + row(name("torch", "Tensor") + row(big) + b"R")
        + b"R",
    }.items():
        yield f"asks for memory: {kind}", archive(mapping((text("w"), program)))
    for title, lie in {
        "more numbers than stored": tensor(2**34, 0, (2**17, 2**17), (2**17, 1)),
        "one number for all": tensor(4, 0, (2**17, 2**17), (0, 0)),
        "outside its storage": tensor(4, 2**33, (2, 2), (2, 1)),
        "before its storage": tensor(4, -4, (2, 2), (2, 1)),
        "strides backwards": tensor(4, 0, (2, 2), (-2, -1)),
        "strides beyond": tensor(4, 0, (2, 2), (2**40, 1)),
        "sizes that overflow": tensor(4, 0, (2**62, 4), (0, 0)),
        "sizes below zero": tensor(4, 0, (-2, 2), (2, 1)),
        "a hundred dimensions": tensor(4, 0, (1,) * 100, (1,) * 100),
        "no number of rows": tensor(4, 0, (2**62, 0), (1, 1)),
        "a part that is not there": tensor(4, 0, (2, 2), (2, 1), key="99"),
        "a part of another folder": tensor(4, 0, (2, 2), (2, 1), key="../../../etc/passwd"),
        "a part's name with zeros": tensor(4, 0, (2, 2), (2, 1), key="0\0"),
        "another type than stored": tensor(4, 0, (2, 2), (2, 1), kind="ComplexDoubleStorage"),
        "quantised": tensor(4, 0, (2, 2), (2, 1), kind="QInt8Storage"),
    }.items():
        yield f"tensor {title}", archive(mapping((text("w"), lie)))
    for attribute in ("numel", "is_complex", "layout", "shape", "items", "detach", "__class__"):
        masked = name("torch._tensor", "_rebuild_from_type_v2") + row(
            name("torch._utils", "_rebuild_tensor_v2"),
            name("torch", "Tensor"),
            row(
                storage(4),
                number(0),
                row(number(2), number(2)),
                row(number(2), number(1)),
                b"\x89",
                name("collections", "OrderedDict") + b")R",
            ),
            mapping((text(attribute), number(3))),
        )
        yield f"tensor that hides its {attribute}", archive(mapping((text("w"), masked + b"R")))
        ordered = name("collections", "OrderedDict") + b")R" + text("w") + SOUND + b"s"
        yield (
            f"dict that hides its {attribute}",
            archive(ordered + mapping((text(attribute), number(3))) + b"b"),
        )
    cell = torch.tensor([[0], [0]])
    sparse = torch.sparse_coo_tensor(cell, [1.0], (10**6, 10**6), check_invariants=True)
    yield "sparse", saved({"w": sparse})
    yield (
        "sparse declared giant",
        saved({"w": sparse}).replace(
            (10**6).to_bytes(3, "little"), (10**6 + 2**23).to_bytes(3, "little")
        ),
    )
    for key in ("../../../etc/passwd", "", ".", "\0", "a" * 10**6, "\x1b]0;x\x07", "\u202egnp.pt",
                "layer1.99999999999.conv1.weight", "blocks.-1.fc.weight", "\ud800"):  # fmt: skip
        yield f"key {key[:20]!a}", archive(mapping((text(key), SOUND)))
    deep = {f"layer1.{i}.conv1.weight": torch.zeros(1) for i in range(10_001)}
    yield "very many layers", saved(deep)
    wide = {"linear.weight": torch.zeros(2**40, 0), "linear.bias": torch.zeros(2**40, 0)}
    yield "very many classes without weights", saved({**state(), **wide})
    yield "head of very many classes", saved({**state(), "linear.weight": torch.zeros(2**31, 0)})


def with_sizes(body: bytes, size: int) -> bytes:
    """The same archive, every entry of its directory claiming `size`."""
    out = bytearray(body)
    at = body.find(b"PK\x01\x02")
    while at >= 0:
        out[at + 20 : at + 28] = struct.pack("<II", min(size, 2**32 - 1), min(size, 2**32 - 1))
        at = body.find(b"PK\x01\x02", at + 4)
    return bytes(out)


def posing() -> Iterator[tuple[str, bytes, bool]]:
    """What stand-ins for classes could open; and whether it must be refused."""
    weight = (text("w"), SOUND)
    thing = name("my.code", "Thing")

    def made(*args: bytes, state: bytes = b"") -> bytes:
        return thing + row(*args) + b"\x81" + (state + b"b" if state else b"")

    def module(*children: tuple[bytes, bytes], own: bytes = b"}") -> bytes:
        parts = (text("_parameters"), own), (text("_modules"), mapping(*children))
        return made(state=mapping(*parts))

    sound = {key: tensor.numpy() for key, tensor in state().items()}
    start = thing + b")\x81q\xc8"
    loop = start + mapping(
        (text("_parameters"), b"}"), (text("_modules"), mapping((text("m"), b"h\xc8")))
    )
    yield "module that holds itself", archive(loop + b"b"), True
    twins = b"h\x01"
    doubled = module(own=mapping(weight)) + b"q\x01"
    for _ in range(40):
        doubled += module((text("a"), twins), (text("b"), twins)) + b"q\x01"
    yield "module of two of the module before it", archive(doubled), True
    doubles = b"(" + module(own=mapping(weight)) + b"q\x01"
    doubles += (module((text("a"), twins), (text("b"), twins)) + b"q\x01") * 40
    yield "modules in a tuple", archive(doubles + b"t"), True
    deep = b"]q\x01" + b"](h\x01h\x01eq\x01" * 50
    yield "calls a list of lists", archive(b"(" + deep + b")Rt"), True
    yield "calls a stand-in", archive(made() + b")R"), True
    yield "builds what a stand-in made", archive(made() + b")\x81"), True
    yield "parameter whose state is printed", archive(mapping((text("w"), name(
        "torch._utils", "_rebuild_parameter_with_state") + b"(" + SOUND + b"\x89"
        + name("collections", "OrderedDict") + b")R" + row(deep) + b"tR"))), True  # fmt: skip
    yield "sparse layout that is printed", archive(mapping((text("w"), name(
        "torch._utils", "_rebuild_sparse_tensor") + b"(" + deep + b")tR"))), True  # fmt: skip
    rebuild = name("torch._tensor", "_rebuild_from_type_v2")
    yield (
        "tensor made by a stand-in",
        archive(mapping((text("w"), rebuild + row(thing, thing, b")", mapping()) + b"R"))),
        True,
    )
    yield "tensor of a stand-in's type", archive(mapping((text("w"), rebuild + row(
        name("torch._utils", "_rebuild_tensor_v2"), thing,
        rebuilding(4, 0, (2, 2), (2, 1)), mapping()) + b"R"))), True  # fmt: skip
    yield "stand-in's state on a tensor", archive(mapping((text("w"), SOUND + made() + b"b"))), True
    for title, attribute in {
        "Tensor": "Tensor",
        "Parameter": "nn.Parameter",
        "Size": "size",
    }.items():
        pose = name("torch", attribute) if "." in attribute else name("Torch", attribute)
        yield f"poses as {title}", archive(mapping((text("w"), pose + row(SOUND) + b"R"))), True
    yield (
        "poses as OrderedDict",
        archive(name("collections", "orderedDict") + b")R" + text("w") + SOUND + b"s"),
        True,
    )
    yield "dict that hides its items", archive(
        name("easydict", "EasyDict") + b")\x81" + text("w") + SOUND + b"s"
        + mapping((text("items"), number(3)), (text("keys"), number(3))) + b"b"), True  # fmt: skip
    setters = {"__setstate__": thing, "__class__": name("torch", "Tensor"), "__dict__": b"}",
               "state": SOUND, "made_from": b")", "__reduce__": thing}  # fmt: skip
    for key, value in setters.items():
        yield (
            f"state that sets {key}",
            archive(mapping(weight, (text("x"), made(state=mapping((text(key), value)))))),
            True,
        )
        yield (
            f"slots that set {key}",
            archive(
                mapping(weight, (text("x"), made(state=row(b"N", mapping((text(key), value))))))
            ),
            True,
        )
    yield "state twice", archive(mapping(weight, (text("x"), made() + b"}b" * 1000))), True
    yield "enormous arguments", archive(mapping(weight, (text("x"), made(*[b"N"] * 300_000)))), True
    yield "text of 50 MB", archive(mapping(weight, (text("x"), made(text("x" * 50_000_000))))), True
    many = b"".join(name("m", f"c{i}") + b"0" for i in range(5_000))
    yield "five thousand classes", archive(many + mapping(weight)), True
    names = b"".join(name("m", f"c{i}") for i in range(900))
    yield (
        "many objects of many classes",
        archive(b"(" + names + b"t" + (thing + b")\x81b" * 0) + (thing + b")\x81") * 60_000),
        True,
    )
    chain = thing + b")\x81" + b"".join(b"\x85q\x01" + b"0" + thing + b"h\x01\x81"
                                       for _ in range(50_000))  # fmt: skip
    yield "a chain of stand-ins", archive(chain), True
    deepest = thing + b")\x81"
    for _ in range(3):
        deepest = thing + row(deepest) + b"\x81"
    yield "stand-ins in stand-ins", archive(mapping(weight, (text("x"), deepest))), True
    tower = (thing + b"(") * 30_000 + (b"t\x81") * 30_000
    yield "a tower of stand-ins", archive(mapping(weight, (text("x"), tower))), True
    yield (
        "stand-ins as keys",
        archive(b"}" + b"".join(thing + b")\x81" + SOUND + b"s" for _ in range(2_000))),
        True,
    )
    codec = name("_codecs", "encode")
    for other in ("hex", "idna", "utf-32", "zlib", "rot13", "unicode_escape"):
        yield (
            f"text encoded as {other}",
            archive(
                mapping(weight, (text("x"), codec + row(text("a" * 1000), text(other)) + b"R"))
            ),
            True,
        )
    grown = text("a" * 1000)
    for _ in range(30):
        grown = codec + row(grown, text("hex")) + b"R"
    yield "text that doubles", archive(mapping(weight, (text("x"), grown))), True
    numpy = "numpy.core.multiarray"
    plain = name("numpy", "dtype") + row(text("f4")) + b"R"
    latin = codec + row(text("\0" * 16), text("latin1")) + b"R"
    for title, (shape, kind, body) in {
        "of 2^80 rows": (row(number(2**40), number(2**40)), plain, latin),
        "of negative rows": (row(number(-4)), plain, latin),
        "of objects": (row(number(4)), name("numpy", "dtype") + row(text("O")) + b"R", latin),
        "of a nested type": (row(number(4)), name("numpy", "dtype") + row(deep) + b"R", latin),
        "of other bytes": (row(number(4)), plain, b"]"),
        "of a thousand axes": (row(*[number(1)] * 1000), plain, latin),
        "without bytes": (row(number(2**62), number(0)), plain, text("")),
    }.items():
        array = name(numpy, "_reconstruct") + row(name("numpy", "ndarray")) + b"R"
        array += row(number(1), shape, kind, b"\x89", body) + b"b"
        yield f"array {title}", archive(mapping((text("w"), array))), True
    yield "state dict of arrays", saved(sound), False
    yield "state dict beside an object", saved({"net": state(), "x": Case("a", "b", "c")}), False


def bad_weights() -> Iterator[tuple[str, bytes]]:
    sound = state()
    key = next(k for k in sound if k.endswith("weight") and sound[k].ndim == 2)
    for value in (float("nan"), float("inf"), -float("inf")):
        yield f"weights {value}", saved({**sound, key: torch.full_like(sound[key], value)})
    yield (
        "weights too large",
        saved({**sound, key: torch.full(sound[key].shape, 1e300, dtype=torch.float64)}),
    )
    for dtype in (torch.int64, torch.bool, torch.complex64, torch.uint8):
        yield f"weights {dtype}", saved({**sound, key: sound[key].to(dtype)})
    yield (
        "weights float8 NaN",
        saved({**sound, key: torch.full(sound[key].shape, 1e9).to(torch.float8_e5m2)}),
    )
    yield "weights transposed", saved({**sound, key: sound[key].T.repeat(2, 1)})
    yield "weights on another device", saved({**sound, key: sound[key].to("meta")})
    for value in (
        None,
        3,
        [],
        {},
        {"state_dict": 3},
        {"state_dict": {"w": 3}},
        [sound, {**sound, key: 2 * sound[key]}],
        (1, 2),
    ):
        yield f"holds {value!r:.30}", saved(value)
    options: tuple[Any, ...] = (
        3,
        {"activation": "x" * 10**6},
        {"activation": 3.5},
        {"heads": 0},
        {"heads": 10**30},
    )
    metas: list[Any] = [3, [], {"arch": 3}, {"arch": None}]
    metas += [{"arch": "cifar_resnet8", "options": given} for given in options]
    for meta in metas:
        yield f"passport {meta!r:.50}", saved({"state_dict": sound, "wgeo": meta})
    bad = {"arch": "cifar_resnet8", "normalize": "\x1b" + "9" * 10**6}
    yield "passport's normalisation", saved({"state_dict": sound, "wgeo": bad})


def safetensors(header: Any, body: bytes = bytes(16), length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", (len(raw) if length is None else length) % 2**64) + raw + body


def lying_safetensors() -> Iterator[tuple[str, bytes]]:
    def entry(**change: Any) -> dict[str, Any]:
        return {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **change}

    for length in (0, 1, 2**16, 10**8, 2**31, 2**32, 2**63, -1):
        yield f"header of {length} bytes", safetensors({"w": entry()}, length=length)
    lies = {
        "shape beyond": entry(shape=[10**12]),
        "shape overflowing": entry(shape=[2**62, 8]),
        "shape negative": entry(shape=[-1]),
        "shape of a fraction": entry(shape=[1.5]),
        "shape of words": entry(shape=["2", "2"]),
        "shape of NaN": entry(shape=[float("nan")]),
        "no shape": entry(shape=None),
        "a hundred thousand dimensions": entry(shape=[1] * 100_000),
        "empty but wide": entry(shape=[2**62, 0], data_offsets=[0, 0]),
        "offsets beyond": entry(data_offsets=[0, 4 * 10**12], shape=[10**12]),
        "offsets backwards": entry(data_offsets=[16, 0]),
        "offsets negative": entry(data_offsets=[-16, 0]),
        "offsets of three": entry(data_offsets=[0, 8, 16]),
        "offsets that leave a gap": entry(data_offsets=[4, 20]),
        "unknown type": entry(dtype="X99"),
        "type of a number": entry(dtype=3),
        "another field": entry(code="os.system('x')"),
        "sub-byte type": entry(dtype="F4", shape=[3], data_offsets=[0, 2]),
    }
    for title, lie in lies.items():
        yield title, safetensors({"w": lie})
    yield "overlapping", safetensors({"v": entry(), "w": entry()})
    yield "not all of the file", safetensors({"w": entry()}, bytes(64))
    yield "less than it says", safetensors({"w": entry()}, bytes(3))
    yield "no UTF-8", safetensors(b'{"\xff\xfe": {}}')
    yield "keys twice", safetensors(b'{"w":%s,"w":%s}' % ((json.dumps(entry()).encode(),) * 2))
    yield "deep", safetensors(b'{"w":' + b"[" * 200_000)
    yield "deep in metadata", safetensors(b'{"__metadata__":' + b'{"a":' * 200_000)
    yield "endless number", safetensors(b'{"w":' + b"9" * 1_000_000 + b"}")
    yield "many small things", safetensors(b'{"w":[' + b"{}," * 1_000_000 + b"{}]}")
    yield "a list", safetensors([1, 2])
    yield "nothing", safetensors({}, b"")
    yield "spaces", safetensors(b"{" + b" " * 1_000_000)
    for meta in (3, [], {"wgeo": 3}, {"wgeo": "not JSON"}, {"wgeo": "[" * 200_000},
                 {"wgeo": '{"arch": "os:system"}'}, {"wgeo": "NaN"}):  # fmt: skip
        yield f"metadata {meta!r:.30}", safetensors({"__metadata__": meta, "w": entry()})


def damaged(title: str, body: bytes, seed: int) -> Iterator[tuple[str, bytes]]:
    """Cut short, and with bits flipped: some still read, and none may do worse than fail."""
    draw = random.Random(seed)
    for cut in sorted({draw.randrange(len(body)) for _ in range(25)} | {1, len(body) - 1}):
        yield f"{title} cut at {cut}", body[:cut]
    for turn in range(50):
        flipped = bytearray(body)
        for _ in range(1 + turn % 4):
            flipped[draw.randrange(len(body))] ^= 1 << draw.randrange(8)
        yield f"{title} flipped {turn}", bytes(flipped)


# --- images --------------------------------------------------------------------------------------


def png(width: int = 4, height: int = 4, rows: int | None = None) -> bytes:
    """A PNG of zeros that may declare more rows than it has."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        crc = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc)

    lines = bytes((width + 1) * (height if rows is None else rows))
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(lines, 9))
        + chunk(b"IEND", b"")
    )


def pictures(extra: dict[str, bytes]) -> dict[str, bytes]:
    return {"a/0.png": png(), "b/0.png": png(), **extra}


def image_archives() -> Iterator[tuple[str, bytes, bool]]:
    """Zips of image folders: name, bytes, and whether they must be refused."""
    for title, body in {
        "empty": b"",
        "GIF of nothing": b"GIF89a",
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "cut": png()[:40],
        "bomb": png(40_000, 40_000, rows=10),
        "bomb below the limit": png(13_000, 6_000),
        "flat": png(1, 10**7),
        "no pixels": png(0, 0, rows=1),
        "rows missing": png(100, 100, rows=10),
        "negative": png()[:16] + b"\xff" * 8 + png()[24:],
        "TIFF in circles": b"II*\0\x08\0\0\0\x01\0" + b"\0" * 12 + b"\x08\0\0\0",
        "program": b"#!/bin/sh\ntouch canary\n",
        "pickle": pickled(name("os", "system") + row(text("true")) + b"R"),
    }.items():
        # Pillow fills up missing rows with black; a very long image is cropped before it is scaled.
        harmless = title in ("bomb below the limit", "flat", "rows missing")
        yield f"image {title}", zipped(pictures({"a/1.png": body})), not harmless
    yield "member bomb", bomb(pictures({}), "a/1.png", LARGE), True
    yield "member bomb after an image", bomb(pictures({}), "a/1.png", 2**27, png()), True
    sound = zipped(pictures({}))
    yield "sizes that lie", with_sizes(sound, 2**31), True
    twins = io.BytesIO(sound)
    with zipfile.ZipFile(twins, "a", zipfile.ZIP_DEFLATED) as out:
        out.writestr("a/1.png", png() + os.urandom(2**20))
        body = out.infolist()[-1]
        for i in range(2_000):
            twin = zipfile.ZipInfo(f"a/t{i}.png")
            for field in ("file_size", "compress_size", "CRC", "header_offset", "compress_type"):
                setattr(twin, field, getattr(body, field))
            out.filelist.append(twin)
    yield "members that overlap", twins.getvalue(), True
    slips = {"../../evil/x.png": b"evil", "/abs/x.png": png(), "..\\..\\c\\x.png": png(),
             "C:/x/y.png": png(), "a/../../../b/x.png": png()}  # fmt: skip
    yield "slip", zipped(pictures(slips)), False
    yield "names", zipped(pictures({"a/\udcff.png".encode("utf-8", "replace").decode(): png(),
                                    "a/\x1b[2J.png": png(), "a/" + "x" * 60_000 + ".png": png(),
                                    "\u202e/x.png": png()})), False  # fmt: skip
    yield "encrypted", flagged(sound), True
    yield "in a zip", zipped({"a/0.zip": sound, "b/0.zip": sound}), True
    yield "cut", sound[: len(sound) // 2], True
    yield "no zip", b"nothing at all", True
    nameless = zipped(pictures({"QQ": b"x"})).replace(b"QQ", b"\0Q")
    yield "a member without a name", nameless, False
    directory = sound.rindex(b"PK\x01\x02")
    yield "of a later version", sound[: directory + 6] + b"\xab" + sound[directory + 7 :], True


def flagged(body: bytes) -> bytes:
    out = bytearray(body)
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = body.find(mark)
        while at >= 0:
            out[at + place] |= 1
            at = body.find(mark, at + 4)
    return bytes(out)


def npy(header: str | bytes, body: bytes = b"", version: int = 1) -> bytes:
    raw = header.encode() if isinstance(header, str) else header
    size = struct.pack("<H" if version == 1 else "<I", len(raw))
    return b"\x93NUMPY" + bytes([version, 0]) + size + raw + body


def arrays() -> Iterator[tuple[str, bytes, bool]]:
    """NumPy archives."""

    def described(descr: str, shape: str, order: str = "False") -> str:
        return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"

    labels = npy(described("'<i8'", "(4,)"), struct.pack("<4q", 0, 1, 0, 1))
    evil = pickled(name("os", "system") + row(text("touch canary")) + b"R")
    for title, x in {
        "objects": npy(described("'|O'", "(4,)"), evil),
        "a bare pickle": evil,
        "giant": npy(described("'<f4'", "(4, 1000000, 1000000)"), bytes(64)),
        "overflowing": npy(described("'<f4'", "(4611686018427387904, 4)"), bytes(64)),
        "negative": npy(described("'<f4'", "(-4, 2, 2)"), bytes(64)),
        "wide items": npy(described("'|V2147483647'", "(4,)"), bytes(64)),
        "items of arrays": npy(described("('<f4', (100000, 100000))", "(4,)"), bytes(64)),
        "fields": npy(described("[('a', '<f4'), ('b', '|O')]", "(4,)"), bytes(64)),
        "words": npy(described("'<U100000'", "(4, 2, 2)"), bytes(64)),
        "dates": npy(described("'<M8[s]'", "(4, 2, 2)"), bytes(128)),
        "complex": npy(described("'<c16'", "(4, 2, 2)"), bytes(256)),
        "NaN": npy(described("'<f8'", "(4, 2, 2)"), struct.pack("<d", float("nan")) * 16),
        "code": npy("__import__('os').system('touch canary')"),
        "deep": npy("(" * 5_000),
        "long header": npy("{" + " " * 10**6 + "}", version=2),
        "header beyond": npy("{", version=2)[:10] + b"\xff\xff\xff\x7f",
        "no UTF-8": npy(b"\xff\xfe\xfd", version=3),
        "version 9": npy("{}", version=9),
        "cut": npy(described("'<f4'", "(4, 2, 2)"), bytes(10)),
        "nothing": b"",
        "one dimension": npy(described("'<f4'", "()"), bytes(4)),
        "many dimensions": npy(described("'|u1'", "(1,) * 60"), bytes(4)),
    }.items():
        yield f"npz {title}", zipped({"x.npy": x, "y.npy": labels}), True
    pixels = npy(described("'|u1'", "(4, 2, 2)"), bytes(16))
    for title, y in {
        "labels of objects": npy(described("'|O'", "(4,)"), evil),
        "labels beyond": npy(described("'<i8'", "(4,)"), struct.pack("<4q", 0, 1, 2**62, 1)),
        "labels below": npy(described("'<i8'", "(4,)"), struct.pack("<4q", 0, -1, 1, 1)),
        "labels NaN": npy(described("'<f8'", "(4,)"), struct.pack("<d", float("nan")) * 4),
        "labels too few": npy(described("'<i8'", "(2,)"), bytes(16)),
        "labels infinite": npy(described("'<f8'", "(4,)"), struct.pack("<d", float("inf")) * 4),
        "labels of unsigned": npy(described("'<u8'", "(4,)"), b"\xff" * 32),
    }.items():
        yield f"npz {title}", zipped({"x.npy": pixels, "y.npy": y}), True
    names = npy(described("'|O'", "(2,)"), evil)
    yield (
        "npz names of objects",
        zipped({"x.npy": pixels, "y.npy": labels, "classes.npy": names}),
        True,
    )
    head = npy(described("'|u1'", f"({LARGE}, 1, 1)"))
    yield "npz bomb", bomb({"y.npy": labels}, "x.npy", LARGE, head), True
    yield "npz bomb in the header", bomb({"y.npy": labels}, "x.npy", LARGE, head[:9]), True
    yield "npz without keys", zipped({"z.npy": pixels}), True
    yield "npz of other things", zipped({"x": b"", "y": b""}), True
    yield "npz that lies", with_sizes(zipped({"x.npy": pixels, "y.npy": labels}), 2**31), True


def data_folders() -> Iterator[tuple[str, dict[str, bytes]]]:
    """Folders as torchvision downloads them and tables of labels, none of which may be read."""
    run = name("os", "system") + row(text("touch canary")) + b"R"
    for title, program in {
        "code": pickled(run),
        "code in a dict": pickled(mapping((text("data"), run))),
        "many instructions": b"\x80\x02" + b"N" * 2_100_000 + b".",
        "lists": b"\x80\x02" + b"]" * 2_100_000 + b".",
        "a memo far out": b"\x80\x02Nr\xff\xff\xff\x7f.",
        "bytes that are not there": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b".",
        "tuples of tuples": b"\x80\x02}(N\x85q\0" + b"h\0h\0\x86q\0" * 60 + b"Nu.",
        "nothing": b"",
    }.items():
        yield f"CIFAR {title}", {"cifar-10-batches-py/data_batch_1": program}
    labels = struct.pack(">II", 0x801, 4) + bytes(4)
    for title, images in {
        "beyond": struct.pack(">4I", 0x803, 2**31, 2**31, 2**31),
        "cut": struct.pack(">4I", 0x803, 4, 28, 28) + bytes(100),
        "nothing": b"",
    }.items():
        yield f"IDX {title}", {
            "raw/train-images-idx3-ubyte": images, "raw/train-labels-idx1-ubyte": labels,
        }  # fmt: skip
    summed = 0
    for _ in range(2**9):
        summed = zlib.crc32(bytes(2**20), summed)
    head, tail = b"\x1f\x8b\b" + bytes(6) + b"\xff", struct.pack("<2I", summed, 2**29)
    packed = head + inflating(2**29) + tail
    yield "IDX bomb", {
        "raw/train-images-idx3-ubyte.gz": packed, "raw/train-labels-idx1-ubyte": labels,
    }  # fmt: skip
    flat = {f"images/{k}.png": png() for k in range(4)}
    for title, table in {
        "that leads out": b"file,label\n../../evil.png,1\n/etc/passwd,2\n",
        "of one line": b"x," * 2**20,
        "of quotes": b'"' * 2**20,
        "of labels beyond": b"0.png,999999999\n1.png,0\n",
        "of no text": bytes(range(256)) * 100,
    }.items():
        yield f"table {title}", {**flat, "labels.csv": table}


def thrift(*fields: tuple[int, int]) -> bytes:
    """Numbers of a Parquet footer in Thrift's compact protocol: (field's distance, value)."""

    def varint(value: int) -> bytes:
        out, value = bytearray(), 2 * value  # zigzag
        while value > 127:
            out.append(value & 127 | 128)
            value >>= 7
        return bytes(out) + bytes([value])

    return b"".join(bytes([step << 4 | 6]) + varint(value) for step, value in fields) + b"\0"


def tables() -> Iterator[tuple[str, str, bytes, bool]]:
    """Parquet and Arrow files: title, ending, body, must it be refused."""

    def parquet(footer: bytes, length: int | None = None) -> bytes:
        size = len(footer) if length is None else length
        return b"PAR1" + footer + struct.pack("<I", size) + b"PAR1"

    for title, body in {
        "nothing": b"",
        "magic alone": b"PAR1PAR1",
        "footer beyond": parquet(b"x", 2**32 - 1),
        "footer of zeros": parquet(bytes(100)),
        "footer of noise": parquet(random.Random(0).randbytes(2000)),
        "rows beyond": parquet(thrift((1, 1), (2, 2**62))),
        "lists in lists": parquet(b"\x29" + b"\xf9\xff\xff\xff\x7f" * 50_000),
        "structs in structs": parquet(b"\x1c" * 100_000),
        "encrypted": b"PARE" + bytes(50) + b"PARE",
    }.items():
        yield f"Parquet {title}", ".parquet", body, True
    try:
        import pyarrow
        import pyarrow.parquet as pq
    except ImportError:  # all tables are refused without it
        return
    few = pyarrow.table({"image": [{"bytes": png(), "path": ""}] * 4, "label": [0, 1, 0, 1]})
    out = io.BytesIO()
    pq.write_table(few, out)
    for title, body in damaged("Parquet", out.getvalue(), seed=4):
        yield title, ".parquet", body, False
    odd = {
        "a bomb": {"image": [bytes(2**20)] * 512, "label": [0, 1] * 256},
        "paths": {"image": [{"bytes": None, "path": "/etc/passwd"}] * 4, "label": [0, 1, 0, 1]},
        "no images": {"image": [b"no"] * 4, "label": [0, 1, 0, 1]},
        "labels beyond": {"image": [png()] * 2, "label": [0, 2**62]},
        "labels in lists": {"image": [png()] * 2, "label": [[0], [1, 2]]},
        "labels of bytes": {"image": [png()] * 2, "label": [b"\xff", b"\0"]},
        "no labels": {"image": [png()] * 2, "label": pyarrow.array([None, None], pyarrow.int64())},
        "nested images": {"image": [[[png()]], [[png()]]], "label": [0, 1]},
        "columns of one name": None,
    }
    for title, columns in odd.items():
        if columns is None:
            made = pyarrow.Table.from_arrays([few["image"], few["image"], few["label"]],
                                             ["image", "image", "label"])  # fmt: skip
        else:
            made = pyarrow.table(columns)
        out = io.BytesIO()
        pq.write_table(made, out, compression="zstd")
        yield f"Parquet {title}", ".parquet", out.getvalue(), True
    deep = few.replace_schema_metadata({"huggingface": "[" * 100_000})
    out = io.BytesIO()
    pq.write_table(deep, out)
    yield "Parquet deep metadata", ".parquet", out.getvalue(), False


# --- records -------------------------------------------------------------------------------------


def records() -> Iterator[tuple[str, bytes]]:
    """Invalid records: each is a valid one with one change, or is not JSON."""
    from records import sample_record

    whole = json.dumps(sample_record())  # read anew for every change: quicker than made anew
    yield from {
        "empty": b"",
        "a pickle": pickled(name("os", "system") + row(text("touch canary")) + b"R"),
        "no UTF-8": b'{"schema": 1, "\xff": 1}',
        "deep": b'{"schema": 1, "layers":' + b"[" * 100_000,
        "deep and closed": b"[" * 100_000 + b"]" * 100_000,
        "an endless number": b'{"schema": ' + b"9" * 1_000_000 + b"}",
        "twice": b'{"schema": 1} {"schema": 1}',
        "a list": b"[]",
        "a word": b'"analysis"',
        "null": b"null",
        "another schema": b'{"schema": 99}',
        "schema in words": b'{"schema": "1"}',
        "schema true": json.dumps({**json.loads(whole), "schema": True}).encode(),
        "schema 1.0": json.dumps({**json.loads(whole), "schema": 1.0}).encode(),
        "cut": whole.encode()[:-100],
    }.items()

    def changed(title: str, *place: Any, value: Any) -> tuple[str, bytes]:
        record = json.loads(whole)
        inside: Any = record
        for step in place[:-1]:
            inside = inside[step]
        inside[place[-1]] = value
        return title, json.dumps(record).encode()

    places: dict[str, tuple[Any, ...]] = {
        "layers": ("layers",),
        "a layer": ("layers", 1),
        "a layer's name": ("layers", 1, "name"),
        "a layer's collapse": ("layers", 1, "collapse"),
        "nc1": ("layers", 1, "collapse", "nc1"),
        "a block": ("blocks", 0),
        "a distance": ("blocks", 0, "distance"),
        "a target": ("blocks", 0, "target"),
        "segments": ("segments",),
        "a segment's layers": ("segments", 0, "layers"),
        "a ratio": ("segments", 0, "length_ratio"),
        "intervals": ("segments", 0, "intervals"),
        "a view": ("segments", 0, "view"),
        "class means": ("segments", 0, "view", "class_means"),
        "sample sizes": ("segments", 0, "sample_sizes"),
        "provenance": ("provenance",),
        "class names": ("provenance", "class_names"),
        "progress": ("progress",),
        "a trend": ("progress", "nc1"),
        "trust": ("trust",),
        "thresholds": ("thresholds",),
        "verdict": ("verdict",),
        "a sentence": ("verdict", 0),
        "its words": ("verdict", 0, "words"),
        "a correlation score": ("blocks", 0, "corr_score"),
        "null maps": ("blocks", 0, "null"),
        "a centred twin": ("segments", 0, "centred"),
        "pairs": ("segments", 0, "pairs"),
        "lengths over runs": ("segments", 0, "length_over_runs"),
        "reference": ("reference",),
        "accuracy": ("accuracy",),
        "versions": ("versions",),
        "mufm": ("mufm",),
        "mufm's layers": ("mufm", "layers"),
    }
    wrong = {"a word": "wrong", "a list": [[["wrong"]]], "a mapping": {"wrong": {}}, "true": True}
    for (what, place), (kind, value) in itertools.product(places.items(), wrong.items()):
        sound: Any = json.loads(whole)
        for step in place:
            sound = sound[step]
        if type(sound) is not type(value):
            yield changed(f"{what} is {kind}", *place, value=value)
    title, body = changed("a distance beyond", "blocks", 0, "distance", value="here")
    yield title, body.replace(b'"here"', b"1e999")


# --- the corpus ----------------------------------------------------------------------------------


def write(folder: Path) -> list[Case]:
    """Write every file; return the list of files, which is also written to ``manifest.json``."""
    folder.mkdir(parents=True)
    canary = str(folder / "canary")
    cases: list[Case] = []

    def add(title: str, kind: str, body: bytes, ending: str, refused: bool, says: str = "") -> None:
        path = f"{len(cases):04d}{ending}"
        (folder / path).write_bytes(body)
        cases.append(Case(title, kind, path, refused, says))

    for title, body in code_checkpoints(canary):
        harmless = title in ("an archive behind", "torch.package")
        add(title, "checkpoint", body, ".pt", not harmless)
    for title, body in itertools.chain(bombs(), bad_weights()):
        harmless = "heads" in title or "3.5" in title  # told and not needed
        add(title, "checkpoint", body, ".pt", not harmless)
    for title, body, refused in posing():
        add(f"posing: {title}", "checkpoint", body, ".pt", refused)
    for title, body in lying_safetensors():
        add(title, "checkpoint", body, ".safetensors", True)
    sound = state()
    import safetensors.torch as st

    for form, body in {
        "archive": saved(sound),
        "old format": saved(sound, legacy=True),
        "safetensors": st.save({key: t.contiguous() for key, t in sound.items()}),
    }.items():
        for title, broken in damaged(form, body, seed=len(form)):
            add(title, "checkpoint", broken, ".pt", False)
    for title, body, refused in image_archives():
        add(title, "images", body, ".zip", refused)
    for title, body, refused in arrays():
        add(title, "images", body, ".npz", refused)
        add(title, "result", body, ".npz", True)
        names = (("x.npy", "f.npy"), ("y.npy", "g.npy"))
        for before, after in names:  # of the same length, in the archive's two lists
            body = body.replace(before.encode(), after.encode())
        add(f"{title} as potentials", "result", body, ".npz", True)
    for title, ending, body, refused in tables():
        add(title, "images", body, ending, refused)
    for title, files in data_folders():
        home = folder / f"{len(cases):04d}"
        for place, body in files.items():
            (home / place).parent.mkdir(parents=True, exist_ok=True)
            (home / place).write_bytes(body)
        cases.append(Case(title, "images", home.name, True))
    for title, body in records():
        add(title, "record", body, ".json", True)
        add(title, "series", b'{"schema":2,"axis":"name","analyses":[' + body + b"," + body + b"]}",
            ".json", True)  # fmt: skip
    cases += special(folder, saved(sound))
    cases += stores(folder)
    (folder / "manifest.json").write_text(json.dumps(cases))
    return cases


def special(folder: Path, sound: bytes) -> list[Case]:
    """Paths that are not regular files, and names that are not valid text."""
    home = folder / "special"
    home.mkdir()
    os.mkfifo(home / "pipe")
    (home / "dangling").symlink_to(home / "nowhere")
    (home / "loop").symlink_to(home / "loop")
    (home / "zeros").symlink_to("/dev/zero")
    (home / "to-pipe").symlink_to(home / "pipe")
    (home / "empty-folder").mkdir()
    (home / "hub").mkdir()
    (home / "hub" / "hubconf.py").write_text(f"open({str(folder / 'canary')!r}, 'w').close()")
    (home / "closed").write_bytes(b"secret")
    (home / "closed").chmod(0)
    strange = os.fsdecode(b"special/net-\xff\xfe\x1b[2J\n.pt")
    Path(os.fsencode(folder / strange).decode("utf-8", "surrogateescape")).write_bytes(sound)
    broken = os.fsdecode(b"special/bad-\xff\xfe\x1b[2J\n.pt")
    Path(os.fsencode(folder / broken).decode("utf-8", "surrogateescape")).write_bytes(sound[:99])
    (home / "linked.pt").symlink_to(folder / strange)
    cases = [Case("a name of other bytes", "checkpoint", strange, False)]
    cases += [Case("a link", "checkpoint", "special/linked.pt", False)]
    cases += [Case("damaged, under a name of other bytes", "checkpoint", broken)]
    os.mkfifo(home / "pipe.npz")
    os.mkfifo(home / "pipe.zip")
    (home / "zeros.npz").symlink_to("/dev/zero")
    (home / "zeros.zip").symlink_to("/dev/zero")
    (home / "folder.npz").mkdir()
    places = (
        *("pipe", "dangling", "loop", "zeros", "to-pipe", "empty-folder", "hub", "closed"),
        *("pipe.npz", "pipe.zip", "zeros.npz", "zeros.zip", "folder.npz"),
        *("absent", "null\0", "x" * 5000, "pipe/inside"),
    )
    for place, kind in itertools.product(places, ("checkpoint", "images", "record")):
        cases.append(Case(f"{kind} at {place[:20]!a}", kind, f"special/{place}"))
    for trap in ("pipe", "zeros", "dangling", "closed", "loop", "mem"):
        root = home / f"images-{trap}"
        for label in "ab":
            (root / label).mkdir(parents=True)
            (root / label / "0.png").write_bytes(png())
        if trap == "pipe":
            os.mkfifo(root / "a" / "1.png")
        elif trap == "closed":
            (root / "a" / "1.png").write_bytes(b"secret")
            (root / "a" / "1.png").chmod(0)
        else:
            goal = {"zeros": "/dev/zero", "mem": "/proc/self/mem"}.get(trap, "1.png")
            (root / "a" / "1.png").symlink_to(goal)
        cases.append(Case(f"a folder with {trap}", "images", f"special/images-{trap}"))
    return cases


def stores(folder: Path) -> list[Case]:
    """Stored features with an invalid array, or a forged manifest with a correct checksum."""
    import shutil

    import numpy as np

    from wgeo import Trajectory
    from wgeo.storage.store import MANIFEST, digest

    sound = folder / "stores" / "sound"
    x = np.arange(40.0).reshape(10, 4)
    Trajectory.from_arrays([x, x + 1], np.arange(10) % 2, ["a", "b"]).save(sound)
    first = "000-features-a.npy"
    cases = [Case("a sound store", "store", "stores/sound", False)]

    def copy(title: str) -> Path:
        path = folder / "stores" / f"{len(cases):03d}"
        shutil.copytree(sound, path)
        cases.append(Case(title, "store", f"stores/{path.name}"))
        return path

    special: dict[str, Any] = {
        "a pipe": os.mkfifo,
        "zeros": lambda path: path.symlink_to("/dev/zero"),
        "nothing": lambda path: path.symlink_to("nowhere"),
        "a folder": Path.mkdir,
    }
    for name, (title, make) in itertools.product((first, MANIFEST), special.items()):
        place = copy(f"{title} as {name}") / name
        place.unlink()
        make(place)
    raw = (sound / first).read_bytes()
    program = gadgets(str(folder / "canary"))["os.system"]
    head = b"{'descr': '%b', 'fortran_order': %b, 'shape': %b, }"

    def npy(*fields: bytes, version: bytes = b"\1\0") -> bytes:
        text = (head % fields).ljust(117) + b"\n"
        return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + raw[128:]

    bodies = {
        "a pickle": pickled(program),
        "an array of objects": npy(b"|O", b"False", b"(10, 4)")[:128] + pickled(program),
        "an archive": zipped({"x.npy": raw}),
        "a shape beyond memory": npy(b"<f8", b"False", b"(99999999999999999999, 4)"),
        "a giant shape": npy(b"<f8", b"False", b"(1099511627776, 4)"),
        "columns first": npy(b"<f8", b"True", b"(10, 4)"),
        "bytes swapped": npy(b">f8", b"False", b"(10, 4)"),
        "a header that is code": npy(b"<f8", b"False", b"__import__('os').abort()"),
        "a header that does not end": npy(b"<f8", b"False", b"(10, (4)"),
        "a header of brackets": npy(b"<f8", b"False", b"(" * 40),
        "a negative shape": npy(b"<f8", b"False", b"(-10, -4)"),
        "another version": npy(b"<f8", b"False", b"(10, 4)", version=b"\t\0"),
        "an empty file": b"",
        "half a file": raw[:200],
        "a flipped bit": raw[:-1] + bytes([raw[-1] ^ 1]),
    }
    for title, body in bodies.items():
        (copy(title) / first).write_bytes(body)
    manifest = json.loads((sound / MANIFEST).read_text())
    del manifest["checksum"]
    wrong = (None, -1, 10**30, "", "../sound/" + first, "/etc/passwd", [], {}, [1], True, "\x1b[2J")
    places = [("rows",), ("rows", 0), ("arrays",), ("about",), ("about", "layers"), ("job",)]
    places += [("arrays", "features:a", key) for key in manifest["arrays"]["features:a"]]
    places += [("about", "layers", 0, "name"), ("about", "class_names"), ("about", "settings")]
    for place, value in itertools.product(places, wrong):
        forged = json.loads(json.dumps(manifest))
        within = forged
        for step in place[:-1]:
            within = within[step]
        if type(within[place[-1]]) is not type(value) or place[-1] == "file":
            within[place[-1]] = value
            path = copy(f"{place[-1]} is {value!a}") / MANIFEST
            path.write_text(json.dumps({**forged, "checksum": digest(forged)}))
    (copy("a manifest of brackets") / MANIFEST).write_text("[" * 10**6)
    return cases


# --- the reader ----------------------------------------------------------------------------------

_SUSPICIOUS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen",
               "pty.spawn", "socket.connect", "webbrowser.open", "pickle.find_class",
               "ctypes.dlopen", "os.remove", "os.rename", "shutil.rmtree")  # fmt: skip


def watch(seen: list[str]) -> None:
    """Note whatever a file should never bring about."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if event in _SUSPICIOUS or writes:
            seen.append(f"{event} {args!r:.200}")

    sys.addaudithook(hook)


def resident() -> int:
    """The largest amount of memory that this process has used since `forget`, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("no VmHWM in /proc/self/status")


def forget() -> None:
    """Start the count of `resident` anew."""
    fd = os.open("/proc/self/clear_refs", os.O_WRONLY)
    os.write(fd, b"5")
    os.close(fd)


def reader(kind: str, path: str) -> None:
    """Read a file as wgeo would, through every door of its kind."""
    from wgeo.checkpoints import load_checkpoint
    from wgeo.data import load_images
    from wgeo.errors import WgeoError
    from wgeo.storage.records import ANALYSIS, SERIES, read_record
    from wgeo.trajectory import Trajectory
    from wgeo.transport import TransportResult

    if kind == "checkpoint":
        try:
            load_checkpoint(path)
        except WgeoError:
            with suppress(WgeoError):
                load_checkpoint(path, "cifar_resnet8")
            raise
    elif kind == "images":
        load_images(path, None)
    elif kind == "result":
        TransportResult.load(path)
    elif kind == "store":
        Trajectory.load(path)
    else:
        read_record(path, {"record": ANALYSIS, "series": SERIES}[kind])


def read(folder: Path) -> Iterator[dict[str, Any]]:
    """Read the corpus; return the error, the time and the memory of every file."""
    import resource
    import signal
    import time

    from wgeo.errors import WgeoError

    cases = [Case(*case) for case in json.loads((folder / "manifest.json").read_text())]
    sound = next(case for case in cases if case.name == "a link")
    reader("checkpoint", str(folder / sound.path))  # whatever is imported on first use
    importlib.import_module("torchvision.models")
    with_pictures = next(case for case in cases if case.name == "slip")
    reader("images", str(folder / with_pictures.path))
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 2 * LARGE,) * 2)
    seen: list[str] = []
    watch(seen)

    def too_long(*_: Any) -> None:
        raise KeyboardInterrupt("it took too long")  # which nobody takes for a damaged file

    signal.signal(signal.SIGALRM, too_long)
    signal.signal(signal.SIGPROF, too_long)
    for case in cases:
        seen.clear()
        forget()
        before, began, error = resident(), time.process_time(), None
        seen.clear()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)  # for what computes
        signal.setitimer(signal.ITIMER_REAL, 6 * SECONDS)  # for what waits
        try:
            reader(case.kind, f"{folder}/{case.path}")
        except BaseException as raised:  # what is no Exception must be seen, too
            error = raised
        for timer in (signal.ITIMER_PROF, signal.ITIMER_REAL):
            signal.setitimer(timer, 0)
        spent, noticed = time.process_time() - began, list(seen)
        yield {
            **case._asdict(),
            "error": None if error is None else type(error).__name__,
            "ours": isinstance(error, WgeoError),
            "message": str(error),
            "seconds": spent,
            "bytes": resident() - before,
            "noticed": noticed,
        }
        del error


def main() -> None:
    torch.set_num_threads(1)
    what, folder = sys.argv[1], Path(sys.argv[2])
    if what == "write":
        print(len(write(folder)))
        return
    for answer in read(folder):
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
