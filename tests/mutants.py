"""Are the tests of the metrics able to fail? They run against one fault in a module at a time.

    python tests/mutants.py                      every fault in every module (hours)
    python tests/mutants.py --share 0.1 --seed 3 a tenth of them, drawn
    python tests/mutants.py --module neural_collapse/metrics.py --fault 5 --fault 17

A fault that no test notices survives, and is told with its line: it wants a test, or a word in
docs/trust.md on why it changes nothing. Libraries are loaded once, every fault is a fork, and the
quickest tests come first.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.machinery
import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch

HERE = Path(__file__).parent
PACKAGE = HERE.parent / "wgeo"
# Slow tests, and tests in a separate process, which does not have the fault.
SLOW = "calibrated or at_this_sample_size or resnet or shared or interrupted or demo or memory"
TESTS = {
    "neural_collapse/metrics.py": [
        "neural_collapse/test_collapse.py",
        "neural_collapse/test_separation.py",
    ],
    "neural_collapse/moments.py": ["neural_collapse/test_collapse.py"],
    "geodesic/measure.py": ["geodesic/test_geodesic.py", "geodesic/test_optimality.py"],
    "transport/closed_form.py": ["transport/test_closed_form.py", "transport/test_honesty.py"],
}
LIMIT = 120  # CPU seconds: a fault that keeps the tests from ending counts as noticed
UNTRIED = 2  # the exit code of a fork that imported another wgeo
UNSHRUNK = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
ERRORS = (ast.Raise, ast.JoinedStr)  # what a message says is not what a number is

ARITHMETIC: dict[type, type] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.FloorDiv: ast.Mult,
}
COMPARISONS: dict[type, type] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}


class Fault(ast.NodeTransformer):
    """Puts the n-th possible fault into a tree; `told` says which, `count` how many there are."""

    def __init__(self, wanted: int) -> None:
        self.wanted, self.count, self.told = wanted, 0, ""

    def _hit(self, node: Any, what: str) -> bool:
        here = self.count == self.wanted
        self.count += 1
        if here:
            self.told = f"line {node.lineno}: {what}"
        return here

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ERRORS):
            return node
        if isinstance(node, ast.FunctionDef | ast.ClassDef):  # not what stands around it
            node.body = [self.visit(part) for part in node.body]
            return node
        if isinstance(node, ast.AnnAssign):
            node.value = node.value and self.visit(node.value)
            return node
        return super().visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> Any:
        other = ARITHMETIC.get(type(node.op))
        before = ast.unparse(node)
        if other and self._hit(node, before):
            node.op = other()
            self.told += f"  ->  {ast.unparse(node)}"
            return node
        return self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> Any:
        other = COMPARISONS.get(type(node.ops[0]))
        before = ast.unparse(node)
        if other and self._hit(node, before):
            node.ops[0] = other()
            self.told += f"  ->  {ast.unparse(node)}"
            return node
        return self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> Any:
        before = ast.unparse(node)
        if self._hit(node, before):
            node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
            self.told += f"  ->  {ast.unparse(node)}"
            return node
        return self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        if self._hit(node, f"{ast.unparse(node)}  ->  {ast.unparse(node.operand)}"):
            return node.operand
        return self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        before = ast.unparse(node)
        if self._hit(node, before):
            node.body, node.orelse = node.orelse, node.body
            self.told += f"  ->  {ast.unparse(node)}"
            return node
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> Any:
        value = node.value
        if isinstance(value, bool):
            new: Any = not value
        elif isinstance(value, int):
            new = value + 1
        elif isinstance(value, float):
            new = value * 2 if value else 1.0
        else:
            return node
        if self._hit(node, f"{value!r}  ->  {new!r}"):
            return ast.copy_location(ast.Constant(new), node)
        return node


def faulty(module: str, which: int) -> tuple[ast.Module, Fault]:
    fault = Fault(which)
    tree = fault.visit(ast.parse((PACKAGE / module).read_text()))
    return ast.fix_missing_locations(tree), fault


def served(module: str, tree: ast.Module) -> list[str]:
    """Give the faulty source wherever the sound file is read, past any import hook and cache.

    The list names the files it was given for: while it is empty, nothing was put to the test.
    """
    home, source = str(PACKAGE / module), ast.unparse(tree).encode()
    given: list[str] = []
    loader = importlib.machinery.SourceFileLoader
    get_data, path_stats = loader.get_data, loader.path_stats

    def data(self: Any, path: str) -> bytes:
        if str(path) != home:
            return get_data(self, path)
        given.append(home)
        return source

    def stats(self: Any, path: str) -> Any:
        if str(path) == home:
            raise OSError("so that no compiled file is taken for it")
        return path_stats(self, path)

    loader.get_data, loader.path_stats = data, stats  # type: ignore[method-assign]
    return given


class Rehearsal:
    """What is learnt from the sound module: how long each test takes, and what they import.

    The tests of a faulty module run in that order, quickest first, and shrink no example.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=lambda item: self.seconds.get(item.nodeid, 0.0))
        settings = hypothesis.settings
        settings.register_profile("mutants", settings.get_profile("wgeo"), phases=UNSHRUNK)
        settings.load_profile("mutants")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration

    def learn(self, module: str) -> None:
        """Run the tests in a process of their own, and load here the libraries they load."""
        with tempfile.TemporaryFile("w+") as notes:
            child = os.fork()
            if child == 0:
                passed = tested(module, self)
                json.dump([passed, self.seconds, list(sys.modules)], notes)
                notes.flush()
                os._exit(0)
            os.waitpid(child, 0)
            notes.seek(0)
            passed, self.seconds, libraries = json.load(notes)
        if not passed:
            sys.exit(f"the tests of {module} fail as it is")
        ours = {path.stem for path in HERE.rglob("*.py")} | {PACKAGE.name}
        with warnings.catch_warnings(action="ignore"):
            for name in libraries:
                if name.partition(".")[0] not in ours:
                    with suppress(Exception):  # not everything there was imported by its name
                        importlib.import_module(name)


def tested(module: str, rehearsal: Rehearsal) -> bool:
    """Whether the module's tests pass; nothing is printed."""
    files = [str(HERE / name) for name in TESTS[module]]
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", f"not ({SLOW})"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of what is loaded already
    with open(os.devnull, "w") as null, redirect_stdout(null), redirect_stderr(null):
        return int(pytest.main([*options, *files], plugins=[rehearsal])) == 0


def run(module: str, tree: ast.Module, rehearsal: Rehearsal) -> str:
    """``noticed``, ``survived`` or ``endless``."""
    child = os.fork()
    if child == 0:
        os.setpgrp()
        signal.setitimer(signal.ITIMER_PROF, LIMIT)
        given = served(module, tree)
        passed = tested(module, rehearsal)
        os._exit((0 if passed else 1) if given else UNTRIED)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == UNTRIED:
        sys.exit(f"{PACKAGE / module} is not what the tests import")
    return {0: "survived", 1: "noticed"}.get(code, "endless")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--module", choices=list(TESTS), action="append")
    parser.add_argument("--fault", type=int, action="append", help="these alone, by their number")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    sys.path.insert(0, str(PACKAGE.parent))  # this wgeo, whichever is installed
    for module in asked.module or TESTS:
        total = faulty(module, -1)[1].count
        draw = random.Random(asked.seed)
        chosen = asked.fault or sorted(
            draw.sample(range(total), max(1, round(asked.share * total)))
        )
        began = time.monotonic()
        rehearsal = Rehearsal()
        rehearsal.learn(module)
        if run(module, faulty(module, -1)[0], rehearsal) != "survived":
            sys.exit(f"the tests of {module} fail where nothing is changed but the layout")
        counts: Counter[str] = Counter()
        for which in chosen:
            tree, fault = faulty(module, which)
            outcome = run(module, tree, rehearsal)
            counts[outcome] += 1
            if outcome == "survived":
                print(f"{module} #{which} {fault.told}", flush=True)
        told = ", ".join(f"{n} {what}" for what, n in sorted(counts.items()))
        spent = time.monotonic() - began
        print(f"{module}: {len(chosen)} of {total} faults, {told} ({spent:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
