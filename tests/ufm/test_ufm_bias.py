"""The argument `bias` of every fit: three kinds of value, and the form of version 0.1."""

from __future__ import annotations

import math

import numpy as np
import pytest

from wgeo.errors import ArgumentError
from wgeo.ufm import fit_ce, fit_deep, fit_mse, fit_mufm
from wgeo.ufm.arguments import bias_decay_of

DECAYS = {"weight_decay": 1e-2, "feature_decay": 5e-3}
LABELS = [0, 0, 1, 1, 2, 2]


def _mufm(**bias):
    x = np.eye(3)[LABELS] + 0.3 * np.arange(18.0).reshape(6, 3) / 18
    return fit_mufm(x, LABELS, layers=2, weight_decay=1e-2, transport=0.2, restarts=0, **bias)


def _deep(**bias):
    decays = {"weight_decays": [1e-2, 1e-2], "feature_decay": 5e-3}
    return fit_deep(LABELS, dim=3, method="closed", **decays, **bias)


FITS = {
    "ce": lambda **bias: fit_ce(LABELS, dim=3, **DECAYS, **bias),
    "mse": lambda **bias: fit_mse(LABELS, dim=3, **DECAYS, **bias),
    "deep": _deep,
    "mufm": _mufm,
}


@pytest.mark.parametrize(
    ("bias", "decay"),
    [("free", 0.0), (0, 0.0), ("none", math.inf), (math.inf, math.inf), (np.float64(0.3), 0.3)],
)
def test_a_bias_is_free_none_or_a_decay(bias, decay):
    assert bias_decay_of(bias) == decay


@pytest.mark.parametrize(
    "bias",
    ["Free", "0.1", -1e-9, math.nan, True, False, None, [0.1], pytest.param(10**400, id="huge")],
)
def test_other_values_are_refused(bias):
    with pytest.raises(ArgumentError, match="bias must be 'free', 'none' or a decay >= 0"):
        bias_decay_of(bias)


@pytest.mark.parametrize("name", FITS)
def test_text_and_numbers_give_the_same_problem(name):
    fit = FITS[name]
    free, none, default = fit(bias="free"), fit(bias="none"), fit()
    assert free.objective < none.objective or name == "ce"  # a balanced ETF needs no bias
    assert fit(bias=0.0).objective == free.objective
    assert fit(bias=math.inf).objective == none.objective
    assert default.objective == (free if name == "ce" else none).objective
    assert not none.b.any()


@pytest.mark.parametrize("name", FITS)
def test_the_form_of_version_0_1_still_works(name):
    fit = FITS[name]
    for old, new in ((0.0, "free"), (math.inf, "none"), (None, None)):
        with pytest.warns(DeprecationWarning, match="is now `bias="):
            former = fit(bias_decay=old)
        assert former.objective == (fit() if new is None else fit(bias=new)).objective
    for old, new in ((True, "free"), (False, "none")):
        with pytest.warns(DeprecationWarning, match=f"`bias={old}` is now `bias='{new}'`"):
            former = fit(bias=old)
        assert former.objective == fit(bias=new).objective
    with pytest.raises(ArgumentError, match="Give `bias=` alone"):
        fit(bias="free", bias_decay=0.0)
