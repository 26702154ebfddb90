"""What every experiment needs: cells measured once, in parallel, and tables in the README beside.

An experiment is a folder with ``run.py``, ``config.toml`` and ``README.md``. ``config.toml`` holds
the settings, ``[full]`` those that ``--full`` puts over them. A *cell* is one setting of the grid,
a dict of plain values; what was measured of it is kept, so that a run that was stopped goes on
where it was, and what is changed (a setting, the code that measures, the images) is measured anew.
Trained networks are kept by their recipe and their images, and shared between experiments.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib.util
import itertools
import json
import multiprocessing as mp
import os
import re
import sys
import time
import tomllib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kept import code_of, key_of
from scipy import stats

import wgeo
from wgeo.data.images import PRESETS
from wgeo.runtime.progress import show_progress, track

Cell = dict[str, Any]
# Raised by hand when `wgeo.train` or an architecture changes what a recipe makes: networks trained
# before are then trained anew. A network stays when only what is measured of it changes.
TRAINING = 1


class Lab:
    """An experiment's settings, its grid, and where its results lie.

    Parameters
    ----------
    file : str
        ``__file__`` of the experiment's run.py.
    """

    def __init__(self, file: str) -> None:
        self.home = Path(file).resolve().parent
        module = sys.modules["__main__"]
        parser = argparse.ArgumentParser(
            description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        parser.add_argument(
            "--full", action="store_true", help="the [full] settings; hours, or a GPU"
        )
        parser.add_argument("--out", type=Path, default=Path("runs/experiments"))
        parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="cells at a time")
        parser.add_argument(
            "--data",
            action="append",
            default=[],
            metavar="NAME=SOURCE",
            help="where a data set lies, as mnist=npz:mnist.npz; else torchvision downloads it",
        )
        parser.add_argument(
            "--no-training",
            action="store_true",
            help="measure the networks that are trained, and leave out those that are not",
        )
        parser.add_argument(
            "--so-far", action="store_true", help="measure nothing: tables of what was measured"
        )
        self.asked = parser.parse_args()
        config = tomllib.loads((self.home / "config.toml").read_text())
        full = config.pop("full", {})
        self.settings: dict[str, Any] = {**config, **(full if self.asked.full else {})}
        self.sources = dict(text.split("=", 1) for text in self.asked.data)

    def grid(self, *names: str, **fixed: Any) -> list[Cell]:
        """Return a cell for every combination of the settings named, which are lists."""
        values = [self.settings[name] for name in names]
        return [
            {**dict(zip(names, chosen, strict=True)), **fixed}
            for chosen in itertools.product(*values)
        ]

    def measure(self, work: Callable[[Cell, Bench], dict[str, Any]], cells: Sequence[Cell]) -> list:
        """Return ``work(cell, bench)`` of every cell, from the file where it was measured before.

        `work` is a function of run.py, called in processes of one thread each. A cell that fails
        is reported at the end and leaves the others alone; with ``--no-training``, one whose
        network is not trained yet is left out, and with ``--so-far`` each that is not measured.
        """
        bench = Bench(self.asked.out, self.sources, not self.asked.no_training)
        code = code_of(work)
        results: dict[int, dict[str, Any]] = {}
        failed: list[str] = []
        absent: list[UntrainedError] = []
        todo = []
        for k, cell in enumerate(cells):
            kept = self._file(work, cell)
            before = json.loads(kept.read_text()) if kept.exists() else {}
            if before.get("code") == code and bench.agrees(before["images"]):
                results[k] = before
            else:
                todo.append((k, cell))
        if self.asked.so_far:
            print(f"{len(todo)} of {len(cells)} cells are not measured.")
            todo = []
        began = time.perf_counter()
        context = mp.get_context("spawn")
        jobs = max(1, min(self.asked.jobs, len(todo)))
        with ProcessPoolExecutor(jobs, context, initializer=_alone) as pool, show_progress():
            running = {
                pool.submit(_one, self.home / "run.py", work.__name__, cell, bench): (k, cell)
                for k, cell in todo
            }
            for done in track(as_completed(running), self.home.name, len(running)):
                k, cell = running[done]
                error = done.exception()
                if isinstance(error, UntrainedError):
                    absent.append(error)
                    continue
                if error is not None:
                    failed.append(f"{cell}\n{''.join(traceback.format_exception(error))}")
                    continue
                text = json.dumps({**done.result(), "code": code}, indent=1)
                results[k] = json.loads(text)  # as it is read the next time
                kept = self._file(work, cell)
                kept.parent.mkdir(parents=True, exist_ok=True)
                aside = kept.with_suffix(".part")
                aside.write_text(text + "\n")
                aside.replace(kept)
        if todo:
            kept_now = len(todo) - len(failed) - len(absent)
            print(f"{kept_now} cells in {time.perf_counter() - began:.0f} s")
        if absent:
            print(f"{len(absent)} of {len(cells)} cells left out: their networks are not trained.")
        for text in failed:
            print(f"FAILED {text}", file=sys.stderr)
        if failed:
            raise SystemExit(f"{len(failed)} of {len(cells)} cells failed; the others are kept.")
        return [results[k] for k in range(len(cells)) if k in results]

    def _file(self, work: Callable[..., Any], cell: Cell) -> Path:
        return self.asked.out / self.home.name / f"{work.__name__}-{key_of(cell)}.json"

    def write(self, name: str, text: str) -> None:
        """Put a table between ``<!-- measured: NAME -->`` and ``<!-- end -->`` of README.md."""
        readme = self.home / "README.md"
        page = readme.read_text(encoding="utf-8")
        begin, end = f"<!-- measured: {name} -->\n", "\n<!-- end -->"
        pattern = re.escape(begin) + ".*?" + re.escape(end)
        fresh, count = re.subn(pattern, lambda _: f"{begin}\n{text}\n{end}", page, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"{readme} has no place for the table {name!r} (or several).")
        readme.write_text(fresh, encoding="utf-8")
        print(text)

    def figure(self, name: str) -> Path:
        """Return where a figure of the README goes."""
        (self.home / "figures").mkdir(exist_ok=True)
        return self.home / "figures" / name


class Bench:
    """What a cell's process may use: images, and networks trained once.

    Parameters
    ----------
    out : Path
        Holds the networks.
    sources : mapping
        Where data sets lie, by name.
    may_train : bool
        Whether a network that is not trained yet is trained, or an `UntrainedError`.
    """

    def __init__(self, out: Path, sources: Mapping[str, str], may_train: bool = True) -> None:
        self.out, self.sources, self.may_train = out, dict(sources), may_train
        self.read: dict[str, str] = {}  # what was asked of `images`, and what came

    def images(
        self, name: str, limit: int | None = None, split: str | None = "train", **more: Any
    ) -> wgeo.Images:
        """Load a data set from where ``--data`` says it lies.

        It has the name and the normalisation that it has when torchvision downloads it.
        """
        source = self.sources.get(name, name)
        images = wgeo.load_images(source, split=split, limit=limit, **more)
        if source != name:
            preset = name if name in PRESETS else images.preset
            images = replace(images, name=name, preset=preset)
        asked = {"name": name, "limit": limit, "split": split, **more}
        self.read[json.dumps(asked, sort_keys=True)] = images.fingerprint
        return images

    def agrees(self, read: Mapping[str, str]) -> bool:
        """Whether the images that a cell read are those that it would read now."""
        for asked, fingerprint in read.items():
            if asked not in self.read:
                self.images(**json.loads(asked))
            if self.read[asked] != fingerprint:
                return False
        return True

    def trained(
        self,
        arch: str,
        data: str,
        *,
        limit: int | None = None,
        size: int | None = None,
        **recipe: Any,
    ) -> wgeo.TrainingRun:
        """Train a network (`wgeo.train`), or return the one trained by this recipe before.

        `limit` and `size` are those of `wgeo.load_images`. The images themselves are part of the
        key, whatever their data set is called and wherever it lies.
        """
        images = self.images(data, limit, **({} if size is None else {"size": size}))
        made = {"arch": arch, "images": images.fingerprint, "training": TRAINING, **recipe}
        folder = self.out / "trained" / f"{arch}-{data}-{key_of(made)}"
        return self.train(arch, images, folder, **recipe)

    def train(
        self, arch: str | torch.nn.Module, images: wgeo.Images, folder: Path, **recipe: Any
    ) -> wgeo.TrainingRun:
        """Train into a folder, or return what was trained there, once other processes are done."""
        if not (self.may_train or _finished(folder)):
            raise UntrainedError(str(folder))
        with _only_one(folder.with_suffix(".lock")):
            return wgeo.train(arch, images, folder, **recipe)


class UntrainedError(Exception):
    """A network is not trained, or not to the end."""


def _finished(folder: Path) -> bool:
    history = folder / "history.json"
    return history.exists() and json.loads(history.read_text())["finished"]


def _alone() -> None:
    torch.set_num_threads(1)


def _one(file: Path, name: str, cell: Cell, bench: Bench) -> dict[str, Any]:
    """Call run.py's function in this process."""
    sys.path[:0] = [str(file.parent), str(file.parent.parent)]
    bench.read.clear()
    spec = importlib.util.spec_from_file_location(f"{file.parent.name}.run", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    began = time.perf_counter()
    found = getattr(module, name)(cell, bench)
    seconds = round(time.perf_counter() - began, 2)
    return {"cell": cell, "seconds": seconds, "images": bench.read, **found}


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """Wait for other processes that train the same network."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


# --- tables -----------------------------------------------------------------------------------


def mean_interval(values: Sequence[float | None]) -> tuple[float, float, float]:
    """Mean over seeds and its 95 % t interval; NaN ends where there is one value."""
    known = np.array([v for v in values if v is not None], float)
    if len(known) == 0:
        return (np.nan,) * 3
    mean = float(known.mean())
    if len(known) == 1:
        return mean, np.nan, np.nan
    half = float(stats.t.ppf(0.975, len(known) - 1) * known.std(ddof=1) / np.sqrt(len(known)))
    return mean, mean - half, mean + half


def spread(values: Sequence[float | None], form: str = ".3g") -> str:
    """``mean ± half-width`` of the 95 % t interval over seeds."""
    mean, low, high = mean_interval(values)
    if np.isnan(mean):
        return "undefined"
    if np.isnan(low):
        return f"{mean:{form}} (one seed)"
    return f"{mean:{form}} ± {(high - low) / 2:.2g}"


def by(results: Sequence[dict[str, Any]], *names: str) -> dict[tuple, list[dict[str, Any]]]:
    """Group results by settings of their cells, in order."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(tuple(result["cell"][name] for name in names), []).append(result)
    return groups


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
