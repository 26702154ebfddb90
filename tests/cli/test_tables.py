"""Every result's `to_pandas`: one table, and one error if pandas is missing."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys

import numpy as np
import pytest
from records import sample_record
from torch import nn

import wgeo
from wgeo.analysis import Series
from wgeo.errors import DependencyError
from wgeo.results import Result


def features(rng):
    """Three layers of two classes."""
    labels = np.arange(40) % 2
    first = rng.normal(size=(40, 3)) + 4 * labels[:, None]
    layers = [first + step * rng.normal(size=(40, 3)) for step in (0, 0.1, 0.2)]
    return wgeo.Trajectory.from_arrays(layers, labels)


RESULTS = {
    "Collapse": lambda rng: wgeo.collapse(features(rng)),
    "Comparison": lambda rng: wgeo.compare(features(rng)),
    "Straightness": lambda rng: wgeo.straightness(features(rng), bootstrap=0),
    "BiasCurve": lambda rng: wgeo.geodesic.bias_curve(*rng.normal(size=(2, 20, 2)), [5, 10]),
    "BrenierResult": lambda rng: wgeo.brenier(nn.Linear(3, 3), rng.normal(size=(4, 3))),
    "Series": lambda rng: Series.of({name: sample_record((2, 2)) for name in "ab"}),
}


def classes_with_tables():
    """Names of all classes of the package that define `to_pandas`, besides the base of results."""
    names = set()
    for module in pkgutil.walk_packages(wgeo.__path__, "wgeo."):
        if module.name.endswith(("__main__", ".mathtext")):
            continue
        for name, value in vars(importlib.import_module(module.name)).items():
            if value is not Result and inspect.isclass(value) and "to_pandas" in vars(value):
                names.add(name)
    return names


def test_every_class_with_a_table_is_tested():
    assert classes_with_tables() <= RESULTS.keys()


@pytest.mark.parametrize("name", RESULTS)
def test_a_table_needs_pandas(name, rng, monkeypatch):
    result = RESULTS[name](rng)
    assert len(result.to_pandas()) > 1
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(DependencyError, match=r"pip install pandas.*to_dict\(\)"):
        result.to_pandas()
