"""What the experiments keep: used again only if code and images are those of today."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import wgeo
from wgeo.data.images import normalization

HERE = Path(__file__).resolve().parents[1] / "experiments"


@pytest.fixture
def beside(monkeypatch):
    """Import a module of the experiments as run.py does."""
    monkeypatch.syspath_prepend(str(HERE))

    def module(name: str):
        return importlib.import_module(name)

    yield module
    for name in ("kept", "lab", "recipes", "terminal"):
        sys.modules.pop(name, None)


RUN = '''
import helper
from tables import table

SIZES = (1, 2)
TITLE = "a title"


def measure(cell, bench):
    """Measure."""
    return once(cell)


def once(cell):
    return helper.double(SIZES[0])


def draw():
    return table(TITLE)
'''


@pytest.fixture
def code(tmp_path, beside):
    """Hash the code of an experiment, whose files may be edited before."""
    folder = tmp_path / "01_first"
    folder.mkdir()
    (folder / "run.py").write_text(RUN)
    (tmp_path / "helper.py").write_text("import far\n\ndef double(x):\n    return far.add(x, x)\n")
    (tmp_path / "far.py").write_text("def add(x, y):\n    return x + y\n")
    (tmp_path / "tables.py").write_text("def table(x):\n    return x\n")
    kept = beside("kept")

    def hashed(file: str = "01_first/run.py", old: str = "", new: str = "") -> str:
        path = tmp_path / file
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        spec = importlib.util.spec_from_file_location("an_experiment", folder / "run.py")
        run = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(tmp_path))
        try:
            spec.loader.exec_module(run)
        finally:
            sys.path.remove(str(tmp_path))
        found = kept.code_of(run.measure)
        path.write_text(text)
        return found

    yield hashed
    for name in ("helper", "far", "tables"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("01_first/run.py", "return once(cell)", "return dict(once(cell))"),
        ("01_first/run.py", "SIZES[0]", "SIZES[1]"),
        ("01_first/run.py", "(1, 2)", "(2, 1)"),
        ("helper.py", "far.add(x, x)", "far.add(x, 2 * x)"),
        ("far.py", "x + y", "x - y"),
    ],
)
def test_measuring_code_is_part_of_the_key(code, file, old, new):
    assert code() == code()
    assert code(file, old, new) != code()


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("01_first/run.py", '"""Measure."""', '"""Measure it."""  # as said'),
        ("01_first/run.py", "return table(TITLE)", "return table(TITLE * 2)"),
        ("01_first/run.py", "a title", "another"),
        ("tables.py", "return x", "return 2 * x"),
        ("helper.py", "\n\ndef", "\n\n\n# twice\ndef"),
    ],
)
def test_text_and_tables_are_not_part_of_the_key(code, file, old, new):
    assert code(file, old, new) == code()


def test_the_package_is_part_of_the_key(beside, tmp_path, monkeypatch):
    kept = beside("kept")
    for name in ("__init__.py", "transport.py", "training/job.py", "runtime/progress.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    monkeypatch.setattr(kept.wgeo, "__file__", str(tmp_path / "__init__.py"))

    def hashed() -> str:
        kept._package.cache_clear()
        return kept._package()

    before = hashed()
    (tmp_path / "training" / "job.py").write_text("x = 2\n")  # networks have a key of their own
    (tmp_path / "runtime" / "progress.py").write_text("x = 2\n")
    (tmp_path / "transport.py").write_text('x = 1\n"""The docstring of x."""\n')
    assert hashed() == before
    (tmp_path / "transport.py").write_text("x = 2\n")
    assert hashed() != before
    kept._package.cache_clear()


def digits_file(path: Path, shift: int = 0) -> str:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 200, (40, 8, 8), dtype=np.uint8) + np.uint8(shift)
    np.savez(path, x_train=x, y_train=np.arange(40) % 4)
    return f"npz:{path}"


def test_results_depend_on_the_images_not_their_location(beside, tmp_path):
    lab = beside("lab")
    first = lab.Bench(tmp_path, {"toy": digits_file(tmp_path / "a.npz")})
    first.images("toy", 20)
    read = json.loads(json.dumps(first.read))
    moved = lab.Bench(tmp_path, {"toy": digits_file(tmp_path / "b.npz")})
    changed = lab.Bench(tmp_path, {"toy": digits_file(tmp_path / "c.npz", shift=1)})
    assert moved.agrees(read)
    assert not changed.agrees(read)


def test_images_of_a_file_have_the_normalisation_of_the_named_data_set(beside, tmp_path):
    bench = beside("lab").Bench(tmp_path, {"mnist": digits_file(tmp_path / "a.npz")})
    images = bench.images("mnist", 20)
    assert (images.name, images.preset) == ("mnist", "mnist")


def test_networks_are_reused_by_recipe_and_images(beside, tmp_path):
    lab = beside("lab")
    recipe = {"epochs": 1, "lr": 0.05, "options": {"width": 4, "depth": 2}, "seed": 0}

    def folder(source: str, **more) -> Path:
        bench = lab.Bench(tmp_path / "out", {"toy": source})
        return bench.trained("isoresnet", "toy", limit=20, **{**recipe, **more}).folder

    a = folder(digits_file(tmp_path / "a.npz"))
    assert a.parent == tmp_path / "out" / "trained"
    assert folder(digits_file(tmp_path / "b.npz")) == a
    assert folder(digits_file(tmp_path / "c.npz", shift=1)) != a
    assert folder(digits_file(tmp_path / "a.npz"), seed=1) != a


# --- what the tables say ----------------------------------------------------------------------


def test_rank_correlation_within_groups_has_a_known_value(beside):
    """Groups of opposite level and slope: within them the ranks agree, or differ in one pair."""
    within = beside("lab").rank_correlation_within
    groups = ["a"] * 4 + ["b"] * 4
    x = [1, 2, 3, 4, 101, 102, 103, 104]
    rho, p = within(x, [14, 15, 16, 17, 0, 1, 2, 3], groups)
    assert rho == pytest.approx(1)
    assert p == pytest.approx(2 / 24**2, abs=2e-3)  # both groups in order, or both reversed
    assert within(x, [17, 16, 15, 14, 0, 1, 2, 3], groups)[0] == pytest.approx(0)
    assert np.isnan(within([1, 2], [1, 2], ["a", "b"])).all()


def test_levels_of_data_sets_are_not_taken_for_a_correlation(beside):
    """Independent levels of 3 data sets, 9 networks of each: pooled, p < 0.05 in 82 % of cases."""
    within = beside("lab").rank_correlation_within
    rng, cells, pooled, found = np.random.default_rng(0), np.arange(27) // 3, [], []
    for run in range(200):
        x, y = rng.standard_normal((2, 3))[:, cells // 3] + 0.1 * rng.standard_normal((2, 27))
        pooled.append(stats.spearmanr(x, y).pvalue < 0.05)
        found.append(within(x, y, cells, draws=199, seed=run)[1] <= 0.05)
    assert np.mean(pooled) > 0.7
    assert sum(found) <= 19  # at a rate of 5 % more than 19 of 200 occur in 0.3 % of cases
    y = x + 0.03 * rng.standard_normal(27)
    assert within(x, y, cells)[1] < 0.001


def matrix(low: list[float], null: list[float], samples: int = 1000) -> dict:
    """A result whose maps to the last layer have these scores."""
    depth = len(low)

    def column(values: list[float]) -> list[list[float]]:
        return [[0.0] * depth + [value] for value in [*values, 1.0]]

    pairs = {name: column(low) for name in ("corr_low", "corr_high", "corr_score")}
    return {"pairs": {**pairs, "null": column(null)}, "samples": samples}


@pytest.mark.parametrize(
    ("own", "null", "states", "since"),
    [
        ([0.5, 1.0, 1.0], [0.2, 0.3, 0.9], "not optimal optimal", "1"),
        ([0.5, 1.0, 1.0], [0.2, 0.97, 0.9], "not undecided optimal", "(1)"),
        ([0.5, 1.0, 0.9], [0.2, 0.3, 0.2], "not optimal not", "none"),
        ([0.99, 0.98, 0.97], [0.5, 0.5, 0.93], "optimal optimal undecided", "0"),
    ],
)
def test_first_layer_from_which_maps_are_optimal(beside, own, null, states, since):
    terminal = beside("terminal")
    result = matrix(own, null)
    assert terminal.to_the_end(result) == states.split()
    assert terminal.optimal_from(result) == since


def run_of(seed: int, lengths: dict[int, float], **more) -> dict:
    cell = {"data": "digits", "arch": "isoresnet", "weight_decay": 5e-3, "decayed": "all"}
    rows = [{"epoch": e, "length_ratio": v, "sqrt_moving_blocks": 2.0} for e, v in lengths.items()]
    return {"cell": {**cell, "seed": seed}, "rows": rows, **more}


def test_phase_has_settled_if_it_changes_less_than_seeds_differ(beside):
    terminal = beside("terminal")
    pair = [run_of(0, {60: 2.0, 120: 1.25, 160: 1.0}), run_of(1, {60: 2.0, 120: 1.75, 160: 1.5})]
    assert terminal.settled(pair) == "0.25 / 0.5"
    assert terminal.settled([run_of(0, {160: 1.0})]) == "not measured / one seed"
    assert terminal._between(pair[1]["rows"][-1]) == 0.5


def test_departures_are_listed(beside):
    terminal = beside("terminal")
    stayed = run_of(0, {160: 1.0}, first=8, last_below=4, terminal_epoch=8)
    left = run_of(1, {160: 1.0}, first=8, last_below=60, terminal_epoch=64)
    assert terminal.departures([stayed]).startswith("None of 1 runs")
    page = terminal.departures([stayed, left])
    assert page.startswith("1 of 2 runs")
    assert "| digits | residual | 0.005 | 1 | 8 | 60 | 64 |" in page


# --- experiment 05: what the authors of the claims measure -------------------------------------


@pytest.fixture
def collapse_in_layers(beside, monkeypatch):
    """Import a module of experiment 05."""
    monkeypatch.syspath_prepend(str(HERE / "05_collapse_in_layers"))
    yield beside
    for name in ("authors", "claims", "tables"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("arch", "options", "layers"),
    [
        ("mlp", {"width": 12, "depth": 2}, {"blocks.0.fc": 12, "blocks.1.fc": 12, "head": 12}),
        (
            "isoresnet",
            {"width": 3, "depth": 1, "stride": 2},
            {"blocks.0.conv1": 48, "blocks.0.conv2": 48, "head": 3},
        ),
        (
            "vit",
            {"width": 16, "depth": 1, "patch": 4, "hidden": 8},
            {
                "encoder.layers.encoder_layer_0.mlp.0": 5 * 16,
                "encoder.layers.encoder_layer_0.mlp.3": 5 * 8,
                "heads.head": 16,
            },
        ),
    ],
)
def test_inputs_of_layers_are_recorded_as_executed(collapse_in_layers, arch, options, layers):
    """Flattened, without the layer that reads the image; the last is what the classifier reads."""
    images = wgeo.load_images("digits", limit=40)
    net = wgeo.models.build(arch, num_classes=10, in_channels=1, image_size=8, **options)
    traj = collapse_in_layers("authors").inputs_of_layers(net, images, batch=16)
    assert {layer.name: layer.width for layer in traj.layers} == layers
    head = dict(net.named_modules())[list(layers)[-1]]
    logits = (
        torch.from_numpy(traj.layers[-1].features) @ head.weight.detach().T + head.bias.detach()
    )
    pixels = torch.cat([x for x, _ in images.batches(7, normalization(images.preset))])
    assert logits.numpy() == pytest.approx(net(pixels).detach().numpy(), abs=1e-4)
    assert np.array_equal(traj.predictions, logits.argmax(1).numpy())


def test_measures_are_those_of_the_authors_code(collapse_in_layers):
    """NC1, the spread of norms and the angle measure, with d x d matrices and loops over pairs."""
    rng = np.random.default_rng(0)
    K, d = 4, 7
    labels = np.arange(48) % K
    x = rng.standard_normal((K, d))[labels] + rng.standard_normal((48, d))
    means = np.stack([x[labels == k].mean(0) for k in range(K)])
    centered = means - means.mean(0)
    within = (x - means[labels]).T @ (x - means[labels]) / len(x)
    vectors, values, _ = np.linalg.svd(centered.T @ centered / K)
    kept = vectors[:, : K - 1]
    norms = np.linalg.norm(centered, axis=1)
    cosines = [
        centered[a] @ centered[b] / norms[a] / norms[b]
        for a in range(K)
        for b in range(K)
        if a != b
    ]
    found = wgeo.neural_collapse.collapse_of(x, labels)
    layers = {name: [getattr(found, name), None] for name in ("nc1", "nc2_equinorm", "cdnv")}
    theirs = collapse_in_layers("authors").in_their_units(layers, K)
    nc1 = np.trace(within @ (kept / values[: K - 1]) @ kept.T)
    assert theirs["nc1"] == [pytest.approx(nc1, rel=1e-9), None]
    assert theirs["nc2_equinorm"][0] == pytest.approx(norms.std(ddof=1) / norms.mean(), rel=1e-9)
    assert theirs["cdnv"] == layers["cdnv"]
    assert found.nc2_equiangle == pytest.approx(np.mean(np.abs(np.array(cosines) + 1 / (K - 1))))


def test_share_of_the_fall_in_the_first_half(collapse_in_layers):
    """Half of the depth is between two layers; in logarithms the fall is the same everywhere."""
    claims = collapse_in_layers("claims")
    view = {"layers": {"nc1": [16.0, 8.0, 4.0, 2.0]}}
    assert claims.first_half(view, "nc1", logarithms=False) == pytest.approx(10 / 14)
    assert claims.first_half(view, "nc1", logarithms=True) == pytest.approx(0.5)
    assert claims.first_half({"layers": {"nc1": [1.0, 2.0, 3.0]}}, "nc1", logarithms=True) is None


def test_agreement_counts_settings_with_several_seeds(collapse_in_layers):
    tables = collapse_in_layers("tables")
    cell = {"seen": "mlp", "activation": "relu", "loss": "ce"}
    views = [
        {"cell": {**cell, "data": data}, "view": verdict}
        for data, verdicts in {
            "digits": [True, True, True],
            "mnist": [True, False, True],
            "cifar10": [False, None, False],
            "one seed": [True],
        }.items()
        for verdict in verdicts
    ]
    page = tables.agreement(views, {"it holds": lambda view: view})
    assert page.splitlines()[-1] == "| it holds | 2 of 3 | 1 | 1 |"


def test_a_trend_counts_if_its_interval_over_seeds_does(collapse_in_layers):
    """Of four settings: equal seeds, seeds that agree, seeds that scatter, and a single seed."""
    tables = collapse_in_layers("tables")
    cell = {"seen": "mlp", "activation": "relu", "loss": "ce"}
    views = [
        {"cell": {**cell, "data": str(seeds)}, "view": {"progress": {"nc1": {"kendall_tau": tau}}}}
        for seeds in ([-0.8] * 3, [-0.9, -0.8, -0.7], [-0.9, -0.1, -0.2], [-0.9])
        for tau in seeds
    ]
    assert tables.falls_over_seeds("nc1", views) == (2, 4)
    assert collapse_in_layers("lab").spread([0.8, 0.8, 0.8], ".2f") == "0.80 ± 0"
