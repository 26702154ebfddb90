"""Numbers that can be trusted: intervals against exact arithmetic, the same numbers every time."""

from __future__ import annotations

from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from cases import ADVERSARIAL, cloud
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from references import exact_costs, exact_w2, rational

import wgeo
from wgeo.analysis.result import versions
from wgeo.errors import WgeoError
from wgeo.transport import Exact, Gaussian, Sinkhorn, Sliced, chain

SOLVERS = [Exact(), Sinkhorn(on_failure="return"), Sliced(projections=8), Gaussian()]
NAMES = [solver.name for solver in SOLVERS]


def assert_contains(result, truth, x, y):
    """The interval holds W2, and the potentials prove its lower end, in exact arithmetic."""
    assert Fraction(result.lower) ** 2 <= truth <= Fraction(result.upper) ** 2
    assert result.lower <= result.distance <= result.upper
    if result.status == "certified":
        assert result.gap <= 1e-6
    if result.potentials is not None:
        f, g = ([Fraction(float(v)) for v in part] for part in result.potentials)
        costs = exact_costs(x, y)
        assert all(f[i] + g[j] <= costs[i][j] for i in range(len(f)) for j in range(len(g)))


@pytest.mark.parametrize("solver", SOLVERS, ids=NAMES)
@pytest.mark.parametrize("case", ADVERSARIAL)
def test_interval_contains_the_exact_value(solver, case):
    for seed in range(3):
        x, y = (cloud(2 * seed + k, **ADVERSARIAL[case]) for k in (0, 1))
        assert_contains(wgeo.wasserstein(x, y, solver=solver), exact_w2(x, y), x, y)


@pytest.mark.parametrize("case", ADVERSARIAL)
def test_exact_is_certified_at_any_offset(case):
    x, y = (cloud(k, n=40, **ADVERSARIAL[case]) for k in (0, 1))
    found = wgeo.wasserstein(x, y)
    assert found.status == "certified"


@pytest.mark.parametrize("solver", SOLVERS, ids=NAMES)
def test_interval_contains_w2_of_nearly_coincident_clouds(solver):
    """A point moved by its last bit: W2 is known, and smaller than any rounding of a product."""
    for dtype in (np.float32, np.float64):
        x = cloud(3, n=6, offset=100.0, dtype=dtype)
        y = x.copy()
        y[0] = np.nextafter(y[0], np.inf, dtype=dtype)
        truth = sum((a - b) ** 2 for a, b in zip(rational(x)[0], rational(y)[0], strict=True)) / 6
        result = wgeo.wasserstein(x, y, solver=solver)
        assert Fraction(result.lower) ** 2 <= truth <= Fraction(result.upper) ** 2
        same = wgeo.wasserstein(x, x, solver=solver)
        assert same.lower == 0


def test_tight_lower_bound_does_not_exceed_the_exact_value():
    """For a cloud and its double, the Bures distance is W2 itself, up to rounding."""
    for seed in range(5):
        x = cloud(seed, d=2)
        assert_contains(wgeo.wasserstein(x, 2 * x, solver=Gaussian()), exact_w2(x, 2 * x), x, 2 * x)


SMALL = st.sampled_from([0.0, 1.0, -1.0, 0.5, 1e-8, 1e8, -1e8, 1 + 2**-20, 3e-39, 1e19])


@given(st.data())
def test_interval_contains_w2_of_any_small_clouds(data):
    """Duplicates, extreme scales, every type, rows that are not contiguous: all four solvers."""
    n, d = data.draw(st.integers(2, 5)), data.draw(st.integers(1, 3))
    dtype = data.draw(st.sampled_from([np.float32, np.float64, np.int32]))
    entries = st.integers(-3, 3) if dtype is np.int32 else SMALL
    x, y = (data.draw(hnp.arrays(np.float64, (n, d), elements=entries)) for _ in range(2))
    x, y = (z.astype(dtype) for z in (x, y))
    truth = exact_w2(x, y)
    turned = data.draw(st.booleans())
    if turned:  # the same numbers with another stride
        x, y = (np.asfortranarray(z) for z in (x, np.repeat(y, 2, axis=0)[::2]))
    given_ = torch.from_numpy(x) if data.draw(st.booleans()) else x
    solver = data.draw(st.sampled_from(SOLVERS))
    assert_contains(wgeo.wasserstein(given_, y, solver=solver), truth, x, y)


@given(
    hnp.arrays(
        st.sampled_from([np.float16, np.float32, np.float64]),
        hnp.array_shapes(min_dims=1, max_dims=3, max_side=6),
        elements=st.sampled_from([0.0, 1.0, -2.0, np.nan, np.inf, 6e4, 6e-8]),
    ),
    st.sampled_from(SOLVERS),
)
def test_any_array_gives_a_result_or_a_clear_error(x, solver):
    try:
        result = wgeo.wasserstein(x, x[::-1], solver=solver)
    except WgeoError:
        assert x.ndim > 2 or not np.isfinite(x).all() or len(x) < 2
        return
    assert result.lower == 0
    assert np.isfinite(result.upper)


def test_a_weighted_certificate_holds_in_exact_arithmetic():
    rng = np.random.default_rng(0)
    for solver in (Exact(), Sinkhorn(on_failure="return")):
        x, y = cloud(1, n=4, offset=1e5, dtype=np.float32), cloud(2, n=3, offset=1e5)
        a, b = rng.dirichlet(np.ones(4)), rng.dirichlet(np.ones(3))
        result = wgeo.wasserstein(x, y, solver=solver, a=a, b=b)
        f, g = ([Fraction(float(v)) for v in part] for part in result.potentials)
        costs = exact_costs(x, y)
        assert all(f[i] + g[j] <= costs[i][j] for i in range(4) for j in range(3))
        weights = [[Fraction(float(v)) for v in w] for w in (a, b)]
        weights = [[v / sum(w) for v in w] for w in weights]
        pairs = [zip(w, p, strict=True) for w, p in zip(weights, (f, g), strict=True)]
        dual = sum(u * v for part in pairs for u, v in part)
        assert dual <= Fraction(result.upper) ** 2
        assert float(dual) >= (1 - 1e-3) * result.lower**2


# --- collapse ------------------------------------------------------------------------------------


def exact_nc1(x, labels):
    """tr(Sigma_W pinv(Sigma_B)) / K of two classes, where Sigma_B = m m^T has one direction."""
    groups = [[row for row, k in zip(rational(x), labels, strict=True) if k == c] for c in (0, 1)]
    means = [[sum(column) / len(group) for column in zip(*group, strict=True)] for group in groups]
    m = [(u - v) / 2 for u, v in zip(*means, strict=True)]
    square = sum(v * v for v in m)
    within = Fraction(0)
    for group, mean in zip(groups, means, strict=True):
        for row in group:
            along = sum((u - v) * w for u, v, w in zip(row, mean, m, strict=True))
            within += along**2 / len(x)
    return within / square**2 / 2


@pytest.mark.parametrize(
    ("offset", "spread", "dtype"),
    [(0, 1, np.float64), (1e6, 1e-2, np.float64), (1e3, 0.1, np.float32), (1e5, 1, np.float32)],
)
def test_nc1_is_accurate_far_from_the_origin(offset, spread, dtype):
    labels = np.repeat([0, 1], 6)
    x = cloud(5, n=12, d=4, offset=offset, spread=spread, dtype=dtype)
    x[6:] += dtype(2 * spread)
    traj = wgeo.Trajectory.from_arrays([x, x], labels=labels)
    found = wgeo.collapse(traj).layers[-1].nc1
    assert found == pytest.approx(float(exact_nc1(x, labels)), rel=1e-8)


# --- the models ----------------------------------------------------------------------------------


def test_the_models_lower_bound_is_below_the_exact_objective():
    """The objective of the solution in 40 digits; the certified bound may not lie above it."""
    labels = np.repeat(np.arange(3), 4)
    with mpmath.workdps(40):
        for loss, fit in (("ce", wgeo.ufm.fit_ce), ("mse", wgeo.ufm.fit_mse)):
            found = fit(labels, dim=4, weight_decay=5e-3, feature_decay=5e-3)
            w, h = (mpmath.matrix(np.asarray(part).tolist()) for part in (found.W, found.H))
            total = exact_fit(loss, w * h, labels)
            total += mpmath.mpf(5e-3) / 2 * (sum(v**2 for v in w) + sum(v**2 for v in h))
            assert found.objective == pytest.approx(float(total), rel=1e-12)
            bound = mpmath.mpf(float(found.certificate.lower_bound))
            assert (1 - mpmath.mpf("1e-9")) * total <= bound <= total


def exact_fit(loss, logits, labels):
    """The models' loss of logits (K, N), in whatever precision mpmath works."""
    total = mpmath.mpf(0)
    for i, k in enumerate(labels):
        z = [logits[c, i] for c in range(logits.rows)]
        if loss == "ce":
            total += mpmath.log(sum(mpmath.exp(v - z[k]) for v in z))
        else:
            total += sum((v - int(c == k)) ** 2 for c, v in enumerate(z)) / 2
    return total / len(labels)


# --- the same numbers ----------------------------------------------------------------------------


def without_time(value):
    """A result's plain values without times."""
    if isinstance(value, dict):
        return {k: without_time(v) for k, v in value.items() if k not in ("seconds", "created")}
    return [without_time(v) for v in value] if isinstance(value, list | tuple) else value


def once():
    """Everything on digits, from the same seed."""
    images = wgeo.load_images("digits", limit=60, seed=1)
    torch.manual_seed(3)
    net = wgeo.models.build("isoresnet", num_classes=10, in_channels=1, width=5, depth=3)
    traj = wgeo.trace(net.eval(), images, batch_size=16)
    features = b"".join(np.ascontiguousarray(layer.features).tobytes() for layer in traj.layers)
    links = chain(traj, Sinkhorn(on_failure="return"))
    straight = wgeo.straightness(traj, bootstrap=20, seed=2)
    collapsed = wgeo.collapse(traj, bootstrap=5, seed=2)
    model = wgeo.ufm.fit_ce(traj.labels[:30], dim=12, weight_decay=1e-2, feature_decay=1e-2)
    sliced = wgeo.wasserstein(traj.first, traj.last, solver=Sliced(seed=4))
    return (
        features,
        [without_time(block.to_dict()) for block in links.blocks],
        without_time(straight.to_dict()),
        without_time(collapsed.to_dict()),
        without_time(sliced.to_dict()),
        np.asarray(model.W).tobytes(),
        model.objective,
    )


def test_the_same_seed_gives_the_same_bits():
    first, second = once(), once()
    for mine, yours in zip(first, second, strict=True):
        assert mine == yours  # floats too: no tolerance


def test_record_lists_versions_that_affect_results():
    found = versions()
    assert {"python", "torch", "numpy", "scipy", "pot", "threads", "cpu"} <= set(found)
    assert found["threads"] == str(torch.get_num_threads())
    assert all(isinstance(value, str) for value in found.values())
