"""Feed hostile input to every reader of files, without end; only errors of wgeo may be raised.

    python tests/fuzz_readers.py --inputs 100000      so many inputs, and a line of figures
    python tests/fuzz_readers.py --seconds 3600 --seed 7
    python tests/fuzz_readers.py FILE...              try files again

Where atheris is installed, it steers by coverage (arguments after ``--`` are libFuzzer's own);
elsewhere sound and hostile files are cut, flipped, spliced and rewritten at random. An input that
brings anything but a `WgeoError`, or takes more than ten seconds, is kept beside this script's
working folder as ``crash-*`` and named, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import io
import itertools
import json
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import hostile
import numpy as np
import torch
from records import sample_record, sample_series

from wgeo.checkpoints import load_checkpoint
from wgeo.checkpoints.reading import read
from wgeo.data import load_images
from wgeo.errors import WgeoError
from wgeo.storage.records import ANALYSIS, SERIES, read_record

SECONDS = 10
# Of a pickle and an array, what stands inside an archive is changed, and then packed whole.
KINDS = ("pickle", "torch", "old torch", "safetensors", "array", "npz", "zip", "record", "series")
ENDINGS = {"npz": ".npz", "array": ".npz", "zip": ".zip", "safetensors": ".safetensors"}
READERS = (  # whose branches steer atheris
    *("wgeo.", "zipfile", "json.", "pickle", "_compat_pickle", "numpy.lib", "PIL."),
    *("safetensors", "torch.serialization", "torch._weights_only_unpickler", "torch._utils"),
)
WORDS = (
    *(b"\x80\x02", b"c", b"R", b"b", b"\x93", b"t", b"q\x01", b"h\x01", b"\x8a\x08", b"."),
    *(b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06\x06", b"data.pkl", b"\x93NUMPY"),
    *(b"null", b"-1", b"1e999", b"[]", b"{}", b'"', b"true", b"\\ud800", b"NaN", b"[[[["),
    *(b"data_offsets", b"F32", b"shape", b"cos\nsystem\n", b"ctorch\nTensor\n", b"descr", b"|O"),
    *(struct.pack("<q", n) for n in (0, -1, 2**31, 2**62, 2**63 - 1)),
)


def seeds() -> dict[str, list[bytes]]:
    """Sound files of every kind, and the corpus's hostile ones."""
    import safetensors.torch as st

    state = hostile.state()
    arrays = io.BytesIO()
    np.savez(arrays, x=np.zeros((4, 2, 2), np.uint8), y=np.array([0, 1, 0, 1]))
    small_arrays = io.BytesIO()
    np.savez_compressed(small_arrays, x=np.zeros((4, 2, 2), np.uint8), y=np.array([0, 1, 0, 1]))
    small = json.dumps(sample_record((2,), ("a", "b"), names="b{stage}.{block}")).encode()
    found = {
        "torch": [hostile.saved(state), hostile.archive(hostile.mapping())],
        "old torch": [hostile.saved({"w": torch.ones(2, 2)}, legacy=True)],
        "safetensors": [st.save({key: tensor.contiguous() for key, tensor in state.items()})],
        "npz": [arrays.getvalue(), small_arrays.getvalue()],
        "zip": [hostile.zipped(hostile.pictures({}))],
        "record": [small],
        "series": [json.dumps(sample_series(2)).encode()],
    }
    with zipfile.ZipFile(io.BytesIO(found["torch"][0])) as made:
        found["pickle"] = [made.read("archive/data.pkl")]
    with zipfile.ZipFile(arrays) as made:
        found["array"] = [made.read("x.npy")]
    hard = {
        "pickle": [(k, hostile.pickled(v)) for k, v in hostile.gadgets("canary").items()],
        "torch": [*hostile.code_checkpoints("canary"), *hostile.bombs()],
        "safetensors": [*hostile.lying_safetensors()],
        "npz": [(title, body) for title, body, _ in hostile.arrays()],
        "zip": [(title, body) for title, body, _ in hostile.image_archives()],
        "record": [*hostile.records()],
    }
    for kind, cases in hard.items():
        bodies = [body for _, body in cases if 0 < len(body) < 20_000]
        found[kind] = found[kind] * (1 + len(bodies) // len(found[kind])) + bodies
    return found


def packed(kind: str, body: bytes) -> bytes:
    """A pickle or an array in a sound archive; anything else as it is."""
    if kind == "pickle":
        parts = {f"net/data/{i}": bytes(64) for i in range(8)}
        return hostile.zipped({"net/data.pkl": body, "net/version": b"3\n", **parts})
    if kind == "array":
        out = io.BytesIO()
        np.save(out, np.array([0, 1, 0, 1]))
        return hostile.zipped({"x.npy": body, "y.npy": out.getvalue()})
    return body


def mutated(draw: random.Random, pool: list[bytes]) -> bytes:
    """One of the files, changed a little or a lot."""
    body = bytearray(draw.choice(pool))
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        at = draw.randrange(len(body) + 1)
        end = min(len(body), at + draw.choice((1, 2, 4, 8, 64, 512)))
        how = draw.randrange(8)
        if how == 0 and body:
            body[at % len(body)] ^= 1 << draw.randrange(8)
        elif how == 1:
            body[at:end] = draw.randbytes(end - at)
        elif how == 2:
            body[at:end] = draw.choice(WORDS)
        elif how == 3:
            body[at:at] = draw.choice(WORDS)
        elif how == 4:
            del body[at:end]
        elif how == 5:
            body[at:at] = body[at:end] * draw.choice((1, 2, 50))
        elif how == 6:
            other = draw.choice(pool)
            start = draw.randrange(len(other) + 1)
            body[at:end] = other[start : start + draw.choice((4, 64, 512))]
        elif how == 7 and draw.random() < 0.3:
            del body[at:]
    return bytes(body)


def target(kind: str) -> Callable[[str], Any]:
    """The function that reads files of one kind."""
    if kind in ("record", "series"):
        return lambda path: read_record(path, {"record": ANALYSIS, "series": SERIES}[kind])
    if kind in ("npz", "array", "zip"):
        return lambda path: load_images(path, None)
    if kind == "safetensors":
        return load_checkpoint

    def checkpoint(path: str) -> None:
        read(path)
        load_checkpoint(path, "cifar_resnet8")

    return checkpoint


class Tally:
    """Tries inputs and counts the outcomes, until it is `over` or interrupted."""

    def __init__(self, home: Path, inputs: float, seconds: float) -> None:
        self.home, self.inputs = home, inputs
        self.seconds = seconds
        self.counts: Counter[str] = Counter()
        self.crashes: list[str] = []
        self.slowest = 0.0

    def begin(self) -> None:
        self.began = time.monotonic()

    def stop(self, *_: Any) -> None:
        self.inputs = 0

    @property
    def spent(self) -> float:
        return time.monotonic() - self.began

    @property
    def over(self) -> bool:
        return self.counts.total() >= self.inputs or self.spent >= self.seconds

    def try_one(self, kind: str, body: bytes) -> None:
        path = self.home / f"input{ENDINGS.get(kind, '')}"
        path.write_bytes(packed(kind, body))
        began = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        outcome = "read"
        try:
            target(kind)(str(path))
        except WgeoError as error:
            outcome = "refused"
            if not str(error).isprintable() or len(str(error)) > 3000:
                self.keep(kind, body, f"an error that cannot be printed: {str(error)[:200]!a}")
        except BaseException as error:
            self.keep(kind, body, f"{type(error).__name__}: {str(error)[:200]!a}")
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        self.slowest = max(self.slowest, time.process_time() - began)
        self.counts[f"{kind} {outcome}"] += 1

    def keep(self, kind: str, body: bytes, why: str) -> None:
        name = f"crash-{kind.replace(' ', '-')}-{hashlib.sha256(body).hexdigest()[:12]}"
        Path(name).write_bytes(body)
        self.crashes.append(f"{name}: {why}")
        print(f"{name}: {why}", file=sys.stderr, flush=True)

    def said(self) -> str:
        each = ", ".join(f"{what} {n}" for what, n in sorted(self.counts.items()))
        return (
            f"{self.counts.total()} inputs in {self.spent:.0f} s ({each}); "
            f"slowest {self.slowest:.1f} s; {len(self.crashes)} crashes"
        )


class TooLong(BaseException):
    """An error that is not due to a damaged file."""


def too_long(*_: Any) -> None:
    raise TooLong("it took too long")


def at_random(tally: Tally, seed: int) -> None:
    """Mutation without coverage."""
    draw, pools = random.Random(seed), seeds()
    tally.begin()
    for kind in itertools.cycle(KINDS):
        if tally.over:
            return
        tally.try_one(kind, mutated(draw, pools[kind]))
        if tally.counts.total() % 5000 == 0:
            print(tally.said(), flush=True)


def steered(tally: Tally, seed: int, more: list[str]) -> None:
    """Atheris: the first byte says of which kind the rest is. It does not return."""
    import atheris

    corpus = tally.home / "corpus"
    corpus.mkdir()
    for i, (kind, bodies) in enumerate(seeds().items()):
        for k, body in enumerate(bodies):
            (corpus / f"{i}-{k}").write_bytes(bytes([KINDS.index(kind)]) + body)
    options = ["-max_len=100000", "-timeout=60", "-handle_int=0", *more, str(corpus)]
    for thing in gc.get_objects():  # all of torch would take minutes, and steer to nothing
        if isinstance(thing, FunctionType) and str(thing.__module__).startswith(READERS):
            atheris.instrument_func(thing)

    def one(data: bytes) -> None:
        if data:
            tally.try_one(KINDS[data[0] % len(KINDS)], data[1:])
        if tally.over:
            shutil.rmtree(tally.home)
            print(tally.said(), flush=True)
            os._exit(bool(tally.crashes))  # libFuzzer takes any other end for a crash, or for none

    atheris.Setup([sys.argv[0], f"-seed={seed + 1}", *options], one)
    tally.begin()
    atheris.Fuzz()


def main() -> None:
    split = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--inputs", type=float, default=float("inf"))
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="without atheris, even if it is there")
    asked = parser.parse_args(sys.argv[1:split])
    torch.set_num_threads(1)
    signal.signal(signal.SIGPROF, too_long)
    with tempfile.TemporaryDirectory() as home:
        tally = Tally(Path(home), asked.inputs, asked.seconds)
        signal.signal(signal.SIGINT, tally.stop)
        if asked.files:
            tally.begin()
            for file in asked.files:
                kind = max(
                    (k for k in KINDS if f"crash-{k.replace(' ', '-')}-" in file.name), key=len
                )
                tally.try_one(kind, file.read_bytes())
        else:
            try:
                import atheris  # noqa: F401
            except ImportError:
                asked.plain = True
            if asked.plain:
                at_random(tally, asked.seed)
            else:
                steered(tally, asked.seed, sys.argv[split + 1 :])
    print(tally.said())
    sys.exit(1 if tally.crashes else 0)


if __name__ == "__main__":
    main()
