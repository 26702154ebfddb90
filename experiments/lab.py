"""Common code of the experiments: measure cells once, in parallel; write tables to the README.

An experiment is a folder with ``run.py``, ``config.toml`` and ``README.md``. ``config.toml``
contains the settings; those under ``[full]`` replace them if ``--full`` is given. A *cell* is one
setting of the grid, a dict of plain values. Its results are saved, so that a stopped run continues
with the other cells. A cell is measured again if a setting, the code that measures or the images
change. Trained networks are saved by recipe and images, and shared between experiments.
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
# Increase this by hand if a change of `wgeo.train` or of an architecture changes the network that a
# recipe produces: earlier networks are then trained again.
TRAINING = 1


class Lab:
    """An experiment's settings, its grid, and the location of its results.

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
            "--full", action="store_true", help="use the [full] settings (takes hours, or a GPU)"
        )
        parser.add_argument(
            "--out",
            type=Path,
            default=Path("runs/experiments"),
            help="folder of results and trained networks",
        )
        parser.add_argument(
            "--jobs", type=int, default=os.cpu_count(), help="number of parallel cells"
        )
        parser.add_argument(
            "--data",
            action="append",
            default=[],
            metavar="NAME=SOURCE",
            help="location of a data set, such as mnist=npz:mnist.npz (default: download it)",
        )
        parser.add_argument(
            "--no-training",
            action="store_true",
            help="leave out networks that are not trained yet",
        )
        parser.add_argument(
            "--so-far",
            action="store_true",
            help="measure nothing; write tables of existing results",
        )
        self.arguments = parser.parse_args()
        config = tomllib.loads((self.home / "config.toml").read_text())
        full = config.pop("full", {})
        self.settings: dict[str, Any] = {**config, **(full if self.arguments.full else {})}
        self.sources = dict(text.split("=", 1) for text in self.arguments.data)

    def grid(self, *names: str, **fixed: Any) -> list[Cell]:
        """Return a cell for every combination of the values of the named settings (lists)."""
        values = [self.settings[name] for name in names]
        return [
            {**dict(zip(names, chosen, strict=True)), **fixed}
            for chosen in itertools.product(*values)
        ]

    def measure(self, work: Callable[[Cell, Bench], dict[str, Any]], cells: Sequence[Cell]) -> list:
        """Return ``work(cell, bench)`` for every cell, or its saved result if that is still valid.

        `work` is a function of run.py, called in processes with one thread each. A failed cell is
        reported at the end and does not affect the others. ``--no-training`` leaves out cells whose
        network is not trained yet, ``--so-far`` all cells that are not measured.
        """
        bench = Bench(self.arguments.out, self.sources, not self.arguments.no_training)
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
        if self.arguments.so_far:
            print(f"{len(todo)} of {len(cells)} cells are not measured.")
            todo = []
        began = time.perf_counter()
        context = mp.get_context("spawn")
        jobs = max(1, min(self.arguments.jobs, len(todo)))
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
                results[k] = json.loads(text)  # the same types as a result read from its file
                kept = self._file(work, cell)
                kept.parent.mkdir(parents=True, exist_ok=True)
                aside = kept.with_suffix(".part")
                aside.write_text(text + "\n")
                aside.replace(kept)
        if todo:
            kept_now = len(todo) - len(failed) - len(absent)
            print(f"{kept_now} cells in {time.perf_counter() - began:.0f} s")
        if absent:
            print(f"{len(absent)} of {len(cells)} cells left out: networks not trained yet.")
        for text in failed:
            print(f"FAILED {text}", file=sys.stderr)
        if failed:
            raise SystemExit(f"{len(failed)} of {len(cells)} cells failed; the others are kept.")
        return [results[k] for k in range(len(cells)) if k in results]

    def _file(self, work: Callable[..., Any], cell: Cell) -> Path:
        return self.arguments.out / self.home.name / f"{work.__name__}-{key_of(cell)}.json"

    def write(self, name: str, text: str) -> None:
        """Write a table between ``<!-- measured: NAME -->`` and ``<!-- end -->`` in README.md."""
        readme = self.home / "README.md"
        page = readme.read_text(encoding="utf-8")
        begin, end = f"<!-- measured: {name} -->\n", "\n<!-- end -->"
        pattern = re.escape(begin) + ".*?" + re.escape(end)
        fresh, count = re.subn(pattern, lambda _: f"{begin}\n{text}\n{end}", page, flags=re.DOTALL)
        if count != 1:
            raise SystemExit(f"{readme} must have the markers of table {name!r} exactly once.")
        readme.write_text(fresh, encoding="utf-8")
        print(text)

    def figure(self, name: str) -> Path:
        """Return the path of a figure shown in the README."""
        (self.home / "figures").mkdir(exist_ok=True)
        return self.home / "figures" / name


class Bench:
    """Resources of a cell's process: images, and networks trained once.

    Parameters
    ----------
    out : Path
        Folder for the networks.
    sources : mapping
        Locations of data sets, by name.
    may_train : bool
        If False, a network that is not trained yet raises an `UntrainedError`.
    """

    def __init__(self, out: Path, sources: Mapping[str, str], may_train: bool = True) -> None:
        self.out, self.sources, self.may_train = out, dict(sources), may_train
        self.read: dict[str, str] = {}  # calls of `images`, and the fingerprints of their results

    def images(
        self, name: str, limit: int | None = None, split: str | None = "train", **more: Any
    ) -> wgeo.Images:
        """Load a data set from the location given by ``--data``.

        The name and the normalization do not depend on the location.
        """
        source = self.sources.get(name, name)
        images = wgeo.load_images(source, split=split, limit=limit, **more)
        if source != name:
            preset = name if name in PRESETS else images.preset
            images = replace(images, name=name, preset=preset)
        call = {"name": name, "limit": limit, "split": split, **more}
        self.read[json.dumps(call, sort_keys=True)] = images.fingerprint
        return images

    def agrees(self, read: Mapping[str, str]) -> bool:
        """Whether a cell would now read the same images as before."""
        for call, fingerprint in read.items():
            if call not in self.read:
                self.images(**json.loads(call))
            if self.read[call] != fingerprint:
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
        """Train a network (`wgeo.train`), or return an earlier one of the same recipe.

        `limit` and `size` are those of `wgeo.load_images`. The key contains the fingerprint of the
        images, not the name or the location of their data set.
        """
        images = self.images(data, limit, **({} if size is None else {"size": size}))
        key = key_of({"arch": arch, "images": images.fingerprint, "training": TRAINING, **recipe})
        folder = self.out / "trained" / f"{arch}-{data}-{key}"
        return self.train(arch, images, folder, **recipe)

    def train(
        self, arch: str | torch.nn.Module, images: wgeo.Images, folder: Path, **recipe: Any
    ) -> wgeo.TrainingRun:
        """Train into a folder, or return the network trained there.

        If another process trains the same network, wait for it.
        """
        if not (self.may_train or _finished(folder)):
            raise UntrainedError(str(folder))
        with _only_one(folder.with_suffix(".lock")):
            return wgeo.train(arch, images, folder, **recipe)


class UntrainedError(Exception):
    """A network is not trained, or its training is not finished."""


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
    result = getattr(module, name)(cell, bench)
    seconds = round(time.perf_counter() - began, 2)
    return {"cell": cell, "seconds": seconds, "images": bench.read, **result}


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """Hold the lock of a network's training; wait while another process holds it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# --- tables -----------------------------------------------------------------------------------


def mean_interval(values: Sequence[float | None]) -> tuple[float, float, float]:
    """Return the mean over seeds and its 95 % t interval, NaN if there is only one value."""
    defined = np.array([v for v in values if v is not None], float)
    n = len(defined)
    if n == 0:
        return (np.nan,) * 3
    mean = float(defined.mean())
    if n == 1:
        return mean, np.nan, np.nan
    differences = defined - defined[0]  # so that equal values have a spread of exactly 0
    half = float(stats.t.ppf(0.975, n - 1) * differences.std(ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half


def spread(values: Sequence[float | None], form: str = ".3g") -> str:
    """Return ``mean ± half-width`` of the 95 % t interval over seeds, as text."""
    mean, low, high = mean_interval(values)
    if np.isnan(mean):
        return "undefined"
    if np.isnan(low):
        return f"{mean:{form}} (one seed)"
    return f"{mean:{form}} ± {(high - low) / 2:.2g}"


def rank_correlation_within(
    x: Sequence[float],
    y: Sequence[float],
    groups: Sequence[Any],
    *,
    draws: int = 9999,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the correlation of ranks of x and y within their groups, and its two-sided p-value.

    Ranks are taken within each group and centered there, so that differences between groups do not
    count. For the same reason, values of y are permuted within groups only. If values were permuted
    over all groups, differences between groups alone would make the test significant (p < 0.05 in
    four of five cases, for three groups of nine values whose levels in x and y are independent).
    """
    a, b = np.array(x, float), np.array(y, float)
    members: dict[Any, list[int]] = {}
    for k, group in enumerate(groups):
        members.setdefault(group, []).append(k)
    rows = list(members.values())
    for values in (a, b):
        for row in rows:
            ranks = stats.rankdata(values[row])
            values[row] = ranks - ranks.mean()
    size = np.sqrt(np.vdot(a, a) * np.vdot(b, b))
    if size == 0:
        return np.nan, np.nan
    rng = np.random.default_rng(seed)
    sums = np.zeros(draws)
    for row in rows:
        sums += rng.permuted(np.tile(b[row], (draws, 1)), axis=1) @ a[row]
    observed = np.vdot(a, b)
    extreme = np.count_nonzero(np.abs(sums) >= abs(observed) - 1e-9)
    return float(observed / size), (1 + extreme) / (1 + draws)


def by(results: Sequence[dict[str, Any]], *names: str) -> dict[tuple, list[dict[str, Any]]]:
    """Group results by settings of their cells, in the order of first occurrence."""
    groups: dict[tuple, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(tuple(result["cell"][name] for name in names), []).append(result)
    return groups


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
