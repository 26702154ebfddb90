"""Exact transport compared with its peers, on a trained network's features: seconds, memory, error.

    python benchmarks/transport.py --checkpoint resnet20.th --arch cifar_resnet20 --data cifar10.zip
    python benchmarks/transport.py                      # a small ResNet, trained on digits first
    python benchmarks/transport.py --chain 1000 --pair 0 --large 0        # minutes, not hours

Four tasks; three on gap-pooled features in float32, as a network computes them:

chain   every block, and every segment end to end, at N = 2000 and 4000, summed over the pairs;
pair    the pairs with the fewest passes (easy) and the most CPU seconds of wgeo, at N = 10,000;
large   the easy pair at N = 50,000;
hard    clouds that are thin, tied, duplicated or copied (`clouds.py`), at N = 2000 and 5000.

Every solver runs in a separate process, on the same arrays, and builds the cost matrix it needs.
The hard clouds of one size share a process; their tables compare CPU seconds.
Memory is the peak of resident memory above what the process held with libraries and features
loaded. Errors of W2^2 are relative to wgeo's certified value, whose own gap is in the first row.
GeomLoss (debiased, scaling 0.8) is run at blur 0.5, then with the blur halved until the error is
below 0.1 %; only the last run counts in the second row, although its blur is not known in advance.
If there are fewer images than N, additional samples interpolate two of one class, at every layer.
Writes `benchmarks/transport.json`, task by task; ``--chain --hard --large 0`` repeats only `pair`
and keeps the other results.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing as mp
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import clouds
import numpy as np
import ot
import torch
from rich.console import Console
from rich.table import Table
from scipy.optimize import linear_sum_assignment

import wgeo
from wgeo.runtime.progress import show_progress, track
from wgeo.transport import Exact, Sinkhorn, wasserstein

GOOD = 1e-3  # relative error of W2^2 at which GeomLoss stops
BLURS = [0.5 / 2**k for k in range(8)]
Pairs = dict[str, tuple[np.ndarray, np.ndarray]]


# --- solvers: W2^2 of a pair ------------------------------------------------------------------


def solve_wgeo(
    x: np.ndarray, y: np.ndarray, a: clouds.Weights = None, b: clouds.Weights = None
) -> tuple[float, dict]:
    """`wgeo.Exact`, from the network's own pairing."""
    outcome = wasserstein(x, y, solver=Exact(device="cpu"), a=a, b=b)
    return outcome.cost, {"gap": outcome.gap, "status": str(outcome.status), **outcome.stats}


def solve_wgeo_cuda(x: np.ndarray, y: np.ndarray) -> tuple[float, dict]:
    """`wgeo.Exact` with its dense passes on a GPU."""
    outcome = wasserstein(x, y, solver=Exact(device="cuda"))
    return outcome.cost, {"gap": outcome.gap, "status": str(outcome.status), **outcome.stats}


def solve_sinkhorn(x: np.ndarray, y: np.ndarray) -> tuple[float, dict]:
    """`wgeo.Sinkhorn`: its error is that of the upper end, its gap the width of its interval."""
    outcome = wasserstein(x, y, solver=Sinkhorn(on_failure="return", debias=False))
    return outcome.cost, {"gap": outcome.gap}


def solve_pot(
    x: np.ndarray, y: np.ndarray, a: clouds.Weights = None, b: clouds.Weights = None
) -> tuple[float, dict]:
    """POT's network simplex on the dense cost."""
    cost = ot.dist(x.astype(np.float64), y.astype(np.float64))
    a, b = ([] if w is None else w / w.sum() for w in (a, b))
    return float(ot.emd2(a, b, cost, numItermax=10**9)), {}


def solve_scipy(x: np.ndarray, y: np.ndarray) -> tuple[float, dict]:
    """scipy's shortest augmenting paths on the dense cost."""
    cost = ot.dist(x.astype(np.float64), y.astype(np.float64))
    return float(cost[linear_sum_assignment(cost)].mean()), {}


def solve_lapx(x: np.ndarray, y: np.ndarray) -> tuple[float, dict]:
    """lapx's Jonker-Volgenant on the dense cost."""
    import lap

    cost = ot.dist(x.astype(np.float64), y.astype(np.float64))
    _, columns, _ = lap.lapjv(cost)
    return float(cost[np.arange(len(x)), columns].mean()), {}


def solve_geomloss(x: np.ndarray, y: np.ndarray, blur: float) -> float:
    """GeomLoss' debiased Sinkhorn divergence; its cost is ||x - y||^2 / 2."""
    from geomloss import SamplesLoss

    loss = SamplesLoss("sinkhorn", p=2, blur=blur, scaling=0.8, backend="tensorized")
    with torch.no_grad():
        return 2 * float(loss(torch.from_numpy(x), torch.from_numpy(y)))


def solve_ott(x: np.ndarray, y: np.ndarray) -> tuple[float, dict]:
    """ott-jax's Sinkhorn divergence at its default epsilon."""
    import jax.numpy as jnp
    from ott.tools.sinkhorn_divergence import sinkdiv

    return float(sinkdiv(jnp.asarray(x), jnp.asarray(y))[0]), {}


SOLVERS: dict[str, Callable[[np.ndarray, np.ndarray], tuple[float, dict]]] = {
    "wgeo": solve_wgeo,
    "wgeo, CUDA": solve_wgeo_cuda,
    "wgeo Sinkhorn": solve_sinkhorn,
    "POT emd2": solve_pot,
    "scipy": solve_scipy,
    "lapx": solve_lapx,
    "ott": solve_ott,
}
NEEDS = {"lapx": "lap", "ott": "ott"}
HARD = "hard clouds"
FIRST, LAST = "GeomLoss, blur 0.5", "GeomLoss, 0.1 %"


def peers(cuda: bool) -> list[str]:
    names = [n for n in SOLVERS if n not in NEEDS or find_spec(NEEDS[n])]
    names = names if cuda else [n for n in names if n != "wgeo, CUDA"]
    return [*names, "GeomLoss"]


# --- one measurement, in a separate process -----------------------------------------------------


def resident(key: str) -> int:
    """Bytes of resident memory now (VmRSS) or at its peak (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"no {key} in /proc/self/status")


def timed(work: Callable[[], tuple[float, dict]]) -> dict:
    """Run once: value, seconds, CPU seconds, peak bytes."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before, start, cpu = resident("VmRSS"), time.perf_counter(), time.process_time()
    value, more = work()
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resident("VmHWM") - before
    return {"value": value, "seconds": seconds, "cpu": cpu, "peak": peak, **more}


def until_good(x: np.ndarray, y: np.ndarray, truth: float) -> dict:
    """GeomLoss at decreasing blurs: the first run, and the first that is accurate enough."""
    runs = []
    for blur in BLURS:
        runs.append({"blur": blur, **timed(lambda b=blur: (solve_geomloss(x, y, b), {}))})
        if abs(runs[-1]["value"] / truth - 1) < GOOD:
            break
    return {"first": runs[0], "last": runs[-1]}


def measure(solver: str, file: str, name: str, truth: float, threads: int, result) -> None:
    """Measure one solver on one pair of a file and send the result."""
    torch.set_num_threads(threads)
    with np.load(file) as arrays:
        x, y = arrays[f"{name} x"], arrays[f"{name} y"]
    if solver == "GeomLoss":
        solve_geomloss(x[:200], y[:200], 0.5)  # libraries load and warm up
        result.send(until_good(x, y, truth))
    else:
        SOLVERS[solver](x[:200], y[:200])
        result.send(timed(lambda: SOLVERS[solver](x, y)))


def run(solver: str, file: Path, name: str, truth: float, threads: int, limit: float) -> dict:
    """Measure in a new process; return the reason if there is no result."""
    receive, send = mp.get_context("spawn").Pipe(duplex=False)
    args = (solver, str(file), name, truth, threads, send)
    process = mp.get_context("spawn").Process(target=measure, args=args)
    process.start()
    send.close()
    outcome = {"skipped": f"> {limit:.0f} s"}
    try:
        if receive.poll(limit):
            outcome = receive.recv()
    except EOFError:
        outcome = {"skipped": "failed"}
    process.kill()
    process.join()
    return outcome


# --- features -----------------------------------------------------------------------------------


def trajectory(args: argparse.Namespace, folder: Path) -> wgeo.Trajectory:
    """The network's features on as many images as the tasks need and the data set has."""
    if args.checkpoint is None:
        images = wgeo.load_images("digits", split=None)
        trained = wgeo.train("isoresnet", images, folder / "run", epochs=12, terminal_epochs=2)
        return wgeo.trace(trained.module, images)
    most = max(*args.chain, args.pair, args.large)
    images = wgeo.load_images(args.data, split=args.split, limit=most)
    return wgeo.trace(wgeo.load_checkpoint(args.checkpoint, arch=args.arch), images)


def pairs_of(traj: wgeo.Trajectory, n: int) -> Pairs:
    """Blocks and segments on n samples; additional samples interpolate two of one class."""
    rng = np.random.default_rng(0)
    have, labels = len(traj), traj.labels
    first = rng.permutation(have)[:n] if n <= have else rng.integers(have, size=n)
    second, share = first, np.zeros((n, 1), np.float32)
    if n > have:
        by_class = {k: np.flatnonzero(labels == k) for k in np.unique(labels)}
        second = np.array([rng.choice(by_class[k]) for k in labels[first]])
        share = rng.uniform(0, 0.5, (n, 1)).astype(np.float32)

    def some(z: np.ndarray) -> np.ndarray:
        return (1 - share) * z[first] + share * z[second]

    pairs = {f"{b.source} -> {b.target}": (b.x, b.y) for b in traj.blocks}
    for s in traj.segments:
        if len(s.names) > 2:
            pairs[f"{s.names[0]} => {s.names[-1]}"] = (s.arrays[0], s.arrays[-1])
    return {name: (some(x), some(y)) for name, (x, y) in pairs.items()}


def saved(pairs: Pairs, file: Path) -> Path:
    np.savez(
        file, **{f"{n} {k}": z for n, xy in pairs.items() for k, z in zip("xy", xy, strict=True)}
    )
    return file


# --- questions ----------------------------------------------------------------------------------


def question(
    title: str, pairs: Pairs, file: Path, solvers: list[str], args: argparse.Namespace
) -> dict:
    """Measure all solvers on all pairs; wgeo first, for the reference values."""
    saved(pairs, file)
    n = len(next(iter(pairs.values()))[0])
    rows: list[dict] = []
    truth: dict[str, float] = {}
    cases = [(solver, name) for solver in solvers for name in pairs]
    for solver, name in track(cases, f"{title}, N = {n}"):
        outcome = run(solver, file, name, truth.get(name, 1.0), args.threads, args.limit)
        if solver == "wgeo" and "value" in outcome:
            truth[name] = outcome["value"]
        both = {FIRST: "first", LAST: "last"} if solver == "GeomLoss" else {solver: None}
        for label, key in both.items():
            one = outcome if key is None else outcome.get(key, outcome)
            rows.append({"solver": label, "pair": name, **one})
    for row in rows:
        if "value" in row and row["pair"] in truth:
            row["error"] = abs(row["value"] / truth[row["pair"]] - 1)
    file.unlink()
    return {"title": title, "samples": n, "load": os.getloadavg()[0], "rows": rows}


def hard_clouds(n: int, rows: list[dict], args: argparse.Namespace) -> Iterator[dict]:
    """Measure every solver on the hard clouds; after each solver, yield the results so far.

    Earlier `rows` of other solvers or kinds remain.
    """
    solvers = [s for s in args.hard_solvers if s in peers(cuda=False)]
    for solver in track(solvers, f"hard clouds, N = {n}"):
        new = run_hard(solver, n, args.kinds, args)
        rows = [row for row in rows if row["solver"] != solver or row["pair"] not in new]
        rows += [{"solver": solver, "pair": kind, **outcome} for kind, outcome in new.items()]
        truth = {row["pair"]: row.get("value") for row in rows if row["solver"] == "wgeo"}
        for row in rows:
            if "value" in row and (size := abs(truth.get(row["pair"]) or 0.0)) > 1e-12:
                row["error"] = abs(row["value"] - truth[row["pair"]]) / size
        load = os.getloadavg()[0]
        yield {"title": HARD, "samples": n, "threads": args.threads, "load": load, "rows": rows}


def run_hard(solver: str, n: int, kinds: list[str], args: argparse.Namespace) -> dict[str, dict]:
    """Measure all kinds in one process; start another one after a kind that failed or took long."""
    outcomes: dict[str, dict] = {}
    while waiting := [kind for kind in kinds if kind not in outcomes]:
        receive, send = mp.get_context("spawn").Pipe(duplex=False)
        process = mp.get_context("spawn").Process(
            target=measure_hard, args=(solver, n, waiting, args.threads, send)
        )
        process.start()
        send.close()
        receive.poll(120)  # libraries load
        for kind in waiting:
            if not receive.poll(args.hard_limit):
                outcomes[kind] = {"skipped": f"> {args.hard_limit:.0f} s"}
                break
            try:
                outcomes[kind] = receive.recv()
            except EOFError:
                outcomes[kind] = {"skipped": "failed"}
                break
        process.kill()
        process.join()
    return outcomes


def measure_hard(solver: str, n: int, kinds: list[str], threads: int, result) -> None:
    """Measure one solver on kinds of hard clouds and send each result."""
    torch.set_num_threads(threads)
    x, y, _, _ = clouds.make("Gaussian, d = 16", 300)
    SOLVERS[solver](x, y)
    for kind in kinds:
        x, y, a, b = clouds.make(kind, n)
        if solver in ("wgeo", "POT emd2"):
            result.send(timed(lambda: SOLVERS[solver](x, y, a, b)))  # noqa: B023
        elif a is not None or len(x) != len(y):
            result.send({"skipped": "no weights, one size"})
        else:
            result.send(timed(lambda: SOLVERS[solver](x, y)))  # noqa: B023


def hard_table(outcome: dict) -> Table:
    """CPU seconds of each solver, a row for each kind of clouds."""
    solvers = list(dict.fromkeys(row["solver"] for row in outcome["rows"]))
    out = Table(title=f"{HARD}, N = {outcome['samples']}: CPU seconds")
    for column in ("clouds", *solvers):
        out.add_column(column, no_wrap=True, justify="left" if column == "clouds" else "right")
    cells = {(row["pair"], row["solver"]): row for row in outcome["rows"]}
    for kind in dict.fromkeys(row["pair"] for row in outcome["rows"]):
        found = [cells.get((kind, solver), {}) for solver in solvers]
        texts = [f"{row['cpu']:.3f}" if "cpu" in row else row.get("skipped", "") for row in found]
        out.add_row(kind, *texts)
    return out


def table(outcome: dict) -> Table:
    """One row per solver, summed over the pairs, and its ratio to wgeo."""
    n, by_solver = outcome["samples"], {}
    for row in outcome["rows"]:
        by_solver.setdefault(row["solver"], []).append(row)
    pairs = len(by_solver["wgeo"])
    dense = 8 * n * n
    out = Table(
        title=f"{outcome['title']}: {pairs} pairs, N = {n} (dense cost {dense / 2**20:.0f} MiB)"
    )
    out.add_column("solver", no_wrap=True)
    for column in (
        "seconds",
        "CPU s",
        "x seconds",
        "x CPU s",
        "peak MiB",
        "worst error",
        "worst gap",
    ):
        out.add_column(column, justify="right", no_wrap=True)

    def total(rows: list[dict], key: str) -> float:
        return sum(row.get(key, 0.0) for row in rows)

    base = by_solver["wgeo"]
    for solver, rows in by_solver.items():
        done = [row for row in rows if "seconds" in row]
        missing = len(rows) - len(done)
        if not done:
            out.add_row(solver, rows[0]["skipped"])
            continue
        same = [row for row in base if row["pair"] in {r["pair"] for r in done}]
        ratios = [f"{total(done, k) / total(same, k):.1f}" for k in ("seconds", "cpu")]
        gaps = [row["gap"] for row in done if "gap" in row]
        out.add_row(
            solver + (f" ({missing} not)" if missing else ""),
            f"{total(done, 'seconds'):.2f}",
            f"{total(done, 'cpu'):.2f}",
            *(ratios if rows is not base else ("", "")),
            f"{max(row['peak'] for row in done) / 2**20:.0f}",
            f"{max(row.get('error', 0.0) for row in done):.0e}",
            f"{max(gaps):.0e}" if gaps else "",
        )
    return out


def versions() -> dict[str, str]:
    outcome = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("torch", "numpy", "scipy", "pot", "geomloss", "lapx", "ott-jax"):
        try:
            outcome[name] = version(name)
        except PackageNotFoundError:
            outcome[name] = "not installed"
    outcome["cuda"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="a trained network; default: train one")
    parser.add_argument("--arch", help="architecture, if the checkpoint does not name it")
    parser.add_argument("--data", default="cifar10", help="images, as `wgeo analyze` takes them")
    parser.add_argument("--split", default="train")
    parser.add_argument("--chain", type=int, nargs="*", default=[2000, 4000])
    parser.add_argument("--pair", type=int, default=10_000, help="samples; 0 leaves it out")
    parser.add_argument("--large", type=int, default=50_000, help="samples; 0 leaves it out")
    parser.add_argument("--hard", type=int, nargs="*", default=[2000, 5000])
    parser.add_argument("--kinds", nargs="*", default=list(clouds.KINDS), help="the hard clouds")
    solvers = ["wgeo", "POT emd2", "lapx", "scipy"]
    parser.add_argument("--hard-solvers", nargs="*", default=solvers)
    parser.add_argument("--hard-limit", type=float, default=60, help="seconds for one kind")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--limit", type=float, default=900, help="seconds a measurement may take")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    for key in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[key] = str(args.threads)  # for the processes started below
    cuda = torch.cuda.is_available()
    console, outcome = Console(width=110), kept(args.out)
    with tempfile.TemporaryDirectory() as folder, show_progress():
        file = Path(folder) / "pairs.npz"

        def keep(answer: dict) -> None:
            outcome[:] = [old for old in outcome if key_of(old) != key_of(answer)] + [answer]
            write(outcome, args)

        for n in args.hard:
            rows = [row for old in outcome if key_of(old) == (HARD, n) for row in old["rows"]]
            for answer in hard_clouds(n, rows, args):
                keep(answer)
            console.print(hard_table(answer))
        if not (args.chain or args.pair or args.large):
            return
        traj = trajectory(args, Path(folder))

        def ask(title: str, pairs: Pairs, names: list[str]) -> None:
            answer = question(title, pairs, file, names, args)
            console.print(table(answer))
            keep(answer)

        for n in args.chain:
            ask("chain", pairs_of(traj, n), peers(cuda))
        easy, hard = extremes(next(old for old in reversed(outcome) if old["title"] == "chain"))
        if args.pair:
            pairs = pairs_of(traj, args.pair)
            names = [name for name in peers(cuda) if name != "POT emd2"]
            for title, name in (("easy pair", easy), ("hard pair", hard)):
                ask(title, {name: pairs[name]}, names)
        if args.large:
            names = ["wgeo", "wgeo, CUDA"] if cuda else ["wgeo"]
            ask("large", {easy: pairs_of(traj, args.large)[easy]}, names)


def kept(file: Path) -> list[dict]:
    """Results of an earlier run; those that are not repeated stay."""
    return json.loads(file.read_text())["questions"] if file.exists() else []


def key_of(answer: dict) -> tuple[str, int]:
    """The key that identifies a result."""
    return answer["title"], answer["samples"]


def write(outcome: list[dict], args: argparse.Namespace) -> None:
    """Write the results so far; a run of hard clouds alone keeps the recorded number of threads."""
    threads = args.threads
    if args.out.exists() and not (args.chain or args.pair or args.large):
        threads = json.loads(args.out.read_text())["threads"]
    record = {"versions": versions(), "threads": threads, "questions": outcome}
    args.out.write_text(json.dumps(record, indent=1) + "\n")


def extremes(chain: dict) -> tuple[str, str]:
    """The pair that took wgeo the fewest passes, and the one that took most CPU seconds."""
    rows = [row for row in chain["rows"] if row["solver"] == "wgeo"]
    return (
        min(rows, key=lambda row: row["passes"])["pair"],
        max(rows, key=lambda row: row["cpu"])["pair"],
    )


if __name__ == "__main__":
    main()
