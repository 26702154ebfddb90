"""Shared by all tests: shape-checked annotations, a seeded generator, the location of real data."""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

os.environ.setdefault("MPLBACKEND", "Agg")

import jaxtyping

# Shapes are checked in the first calls of a function in each test: checking all calls would take
# two thirds of the tests' time. Modules without shapes are mypy's alone, since compiling checks for
# all of them takes every process of the tests ten seconds more.
CHECKED_CALLS = 3
ROOT = Path(__file__).resolve().parents[1]
SHAPED = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted((ROOT / "wgeo").rglob("*.py"))
    if "jaxtyping" in path.read_text("utf-8")
]
_jaxtyped = jaxtyping.jaxtyped
_test = [0]  # number of the current test
_calls: dict[CodeType, list[int]] = {}  # test of the last call, and number of calls in it


def _checks_first_calls(*, typechecker: Any) -> Any:
    def decorate(function: Any) -> Any:
        checked = None
        if not isinstance(function, FunctionType):
            return _jaxtyped(function, typechecker=typechecker)
        calls = _calls.setdefault(function.__code__, [0, 0])

        @functools.wraps(function)
        def limited(*args: Any, **kwargs: Any) -> Any:
            nonlocal checked
            if calls[0] != _test[0]:
                calls[:] = _test[0], 0
            if calls[1] >= CHECKED_CALLS:
                return function(*args, **kwargs)
            calls[1] += 1
            if checked is None:
                checked = _jaxtyped(function, typechecker=typechecker)
            return checked(*args, **kwargs)

        return limited

    return decorate


jaxtyping.jaxtyped = _checks_first_calls
jaxtyping.install_import_hook(SHAPED, "beartype.beartype")

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "wgeo",
    deadline=None,
    derandomize=True,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("wgeo")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # by a shell that runs tests in background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also for the processes of tests

SHARED = Path(os.environ.get("WGEO_SHARED", ROOT.parent / "shared"))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
    _test[0] += 1


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """No figures are drawn, which takes seconds, for tests that are not about them."""
    monkeypatch.setattr("wgeo.plots.figures", lambda *_, **__: [])


@pytest.fixture
def shared() -> Path:
    """The folder of real images and trained networks; skips the test if there is none."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data at {SHARED} (set WGEO_SHARED to where it lies)")
    return SHARED
