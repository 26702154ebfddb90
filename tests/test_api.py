"""What users rely on stays: public names and their parameters, and one version everywhere."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import public
import pytest
from records import sample_record

import wgeo
from wgeo import _deprecated

ROOT = Path(__file__).resolve().parents[1]


def split(line):
    """``place.name(a, b=, *, c=)`` -> name, parameters by position, parameters by name."""
    name, _, inside = line.partition("(")
    told = [part.strip() for part in inside.rstrip(")").split(",") if part.strip()]
    at = told.index("*") if "*" in told else len(told)
    return name, told[:at], set(told[at + 1 :])


def broken(promised, found):
    """Return why a call that was valid before may fail now; empty if it cannot."""
    name, first, named = promised
    _, now, now_named = found
    wrong = []
    if now[: len(first)] != first and not all(
        have in (want, want + "=") for want, have in zip(first, now, strict=False)
    ):
        wrong.append(f"{name}: its parameters were {first} and are {now}")
    elif len(now) < len(first):
        wrong.append(f"{name}: lacks {first[len(now) :]}")
    new = [parameter for parameter in now[len(first) :] if not parameter.endswith(("=", "*"))]
    wrong += [f"{name}: {parameter} is needed now" for parameter in new if parameter[0] != "*"]
    everything = {parameter.rstrip("=") for parameter in {*now, *now_named}}
    gone = [parameter for parameter in named if parameter.rstrip("=") not in everything]
    wrong += [f"{name}: {parameter} is gone" for parameter in gone]
    needed = {p for p in now_named - named if not p.endswith("=") and p[0] != "*"}
    wrong += [f"{name}: {parameter} is needed now" for parameter in sorted(needed - {*first})]
    return wrong


def test_no_public_name_or_parameter_is_removed():
    promised = [split(line) for line in public.LIST.read_text("utf-8").splitlines()]
    found = {split(line)[0]: split(line) for line in public.lines()}
    missing = [name for name, _, _ in promised if name not in found]
    assert not missing, "removed without a deprecation; see CONTRIBUTING.md"
    wrong = [fault for line in promised for fault in broken(line, found[line[0]])]
    assert not wrong
    assert {split(line)[0] for line in public.LIST.read_text("utf-8").splitlines()} >= {
        f"wgeo.{name}" for name in wgeo.__all__ if name != "__version__"
    }, "a new public name: python tests/public.py --write"


def test_signature_check_detects_breaking_changes():
    old = split("wgeo.f(a, b=, *, c=)")
    assert broken(old, split("wgeo.f(a, b=, d=, *, c=, e=)")) == []
    assert broken(old, split("wgeo.f(a=, b=, *, c=)")) == []
    for worse in (
        "(a, *, c=)",
        "(b=, a, *, c=)",
        "(a, b=)",
        "(a, b=, d, *, c=)",
        "(a, b=, *, c=, e)",
    ):
        assert broken(old, split(f"wgeo.f{worse}")), worse


def test_one_version_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    citation = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.M)
    assert project["version"] == wgeo.__version__ == citation[1]
    assert re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", wgeo.__version__)
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert f"## {wgeo.__version__}" in changes


MOVED = [f"{package}.{name}" for package, names in _deprecated._MOVED.items() for name in names]


@pytest.mark.parametrize("name", MOVED)
def test_names_of_the_last_version_work_with_a_warning(name):
    package, _, last = name.rpartition(".")
    with pytest.warns(DeprecationWarning, match=re.escape(f"{name} is now wgeo.")):
        assert getattr(importlib.import_module(package), last) is not None


def test_warnings_of_old_names_point_to_the_line_that_uses_them():
    """In a process of its own: the type checks of the tests stand between the callers."""
    script = (
        "import warnings, wgeo.ufm, wgeo.plots\n"
        "with warnings.catch_warnings(record=True) as found:\n"
        "    warnings.simplefilter('always', DeprecationWarning)\n"
        "    wgeo.checkpoint, wgeo.ufm.Problem, wgeo.plots.METRICS\n"
        "print([each.filename for each in found if 'wgeo.' in str(each.message)])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == str(["<string>"] * 3), done.stderr


def test_deprecated_held_is_nbytes():
    traj = wgeo.Trajectory.from_arrays([[[0.0], [1.0]]], [0, 1])
    with pytest.warns(DeprecationWarning, match="held is now nbytes"):
        assert traj.held == traj.nbytes == 16


def test_unknown_name_is_an_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        wgeo.nonsense  # noqa: B018


def test_a_renamed_parameter_works_with_a_warning():
    record = sample_record()
    with pytest.warns(DeprecationWarning, match="figure= is now measure="):
        ax = wgeo.plots.sample_sizes(record, figure="distance")
    assert ax.get_ylabel() == wgeo.plots.sample_sizes(record, measure="distance").get_ylabel()
    with pytest.raises(wgeo.errors.ArgumentError, match="`measure=` alone"):
        wgeo.plots.sample_sizes(record, figure="distance", measure="ratio")
