"""The whole analysis: the record is complete, true to its parts, and survives a round trip."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torchvision

import wgeo
from wgeo.analysis import Analysis, analyze_trajectory
from wgeo.errors import CheckpointError, FeatureError, RecordError, WgeoError
from wgeo.trajectory.views import class_view

# Of tests that are not about what stands beside the figures.
PLAIN = {"reference": "none", "brenier": 0, "alignment": 0, "mufm": False}
KEYS = {
    "": "schema created command versions seed device provenance accuracy layers blocks segments "
    "progress geodesic_model",
    "provenance": "checkpoint sha256 arch num_classes data split samples pool",
    "layer": "name stage width collapse",
    "collapse": "nc1 nc1_quotient nc2_equinorm nc2_equiangle nc2_etf ncc_accuracy cdnv "
    "effective_rank within between",
    "block": "source target distance lower upper paired ot_score resolution status solver seconds",
    "segment": "layers distance length length_ratio action_ratio line_shape_score line_shape_ratio "
    "ot_score turning_angle interpolation_gap intervals",
    "progress": "kendall_tau violations monotone",
}


def has(found, kind):
    missing = set(KEYS[kind].split()) - set(found)
    assert not missing, f"{kind or 'record'} lacks {missing}"


@pytest.fixture(scope="module")
def analysis():
    rng = np.random.default_rng(0)
    x = rng.random((30, 3, 16, 16), dtype=np.float32)
    net = torchvision.models.resnet18(num_classes=3)
    return wgeo.analyze(net, (x, np.arange(30) % 3), bootstrap=20, **PLAIN)


def test_record_has_every_documented_key(analysis):
    record = analysis.record
    has(record, "")
    has(record["provenance"], "provenance")
    for layer in record["layers"]:
        has(layer, "layer")
        has(layer["collapse"], "collapse")
    for block in record["blocks"]:
        has(block, "block")
        assert block["lower"] <= block["distance"] * (1 + 1e-12)
        assert block["distance"] <= block["upper"] * (1 + 1e-12)
        assert block["distance"] <= block["paired"] * (1 + 1e-12)
    for segment in record["segments"]:
        has(segment, "segment")
    for metric in record["progress"].values():
        has(metric, "progress")
    assert [layer["name"] for layer in record["layers"]][:3] == ["input", "stem", "layer1.0"]
    assert len(record["layers"]) == 10
    assert len(record["blocks"]) == 8
    assert len(record["segments"]) == 4
    assert record["layers"][-1]["collapse"]["nc3"] is not None
    assert analysis.verdict


def test_record_round_trips_through_its_file(analysis, tmp_path):
    analysis.save(tmp_path / "run")
    assert Analysis.load(tmp_path / "run").record == analysis.record
    assert list((tmp_path / "run" / "figures").glob("*.png"))
    assert not list((tmp_path / "run").rglob("*.part"))
    json.loads((tmp_path / "run" / "analysis.json").read_text(), parse_constant=pytest.fail)


def test_file_that_is_not_a_record_is_refused(tmp_path):
    with pytest.raises(RecordError, match="wgeo analyze"):
        Analysis.load(tmp_path)
    for text, message in (
        ("{", "not a readable"),
        ('{"schema": 99}', "schema 99"),
        ("[]", "schema 'list'"),
        ('{"schema": 1}', "lacks provenance"),
    ):
        (tmp_path / "analysis.json").write_text(text)
        with pytest.raises(RecordError, match=message):
            Analysis.load(tmp_path)


_SERIES = ("separation", "compression", "discrimination")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("segments", "x"), ("blocks", [1]), ("progress", []), ("verdict", None), ("versions", 3)),
        ("alignment", {"points": 4, "segments": [{"blocks": []}]}),
        (
            "separation_law",
            {"segments": [{"layers": ["a", "b"], **{key: [1.0] for key in _SERIES}}]},
        ),
    ],
)
def test_a_damaged_record_is_refused(analysis, tmp_path, key, value):
    (tmp_path / "analysis.json").write_text(json.dumps({**analysis.record, key: value}))
    with pytest.raises(RecordError, match=f"damaged in {key}"):
        Analysis.load(tmp_path)


def test_saving_to_an_unwritable_folder_is_a_clear_error(analysis, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RecordError, match="Choose another folder"):
        analysis.save(tmp_path / "file" / "run")


def test_one_class_is_refused(rng):
    traj = wgeo.Trajectory.from_arrays([rng.normal(size=(5, 3))] * 2, [1] * 5)
    with pytest.raises(FeatureError, match="one class"):
        analyze_trajectory(traj)


def test_undefined_values_are_null_not_nan(rng):
    """Nothing moves: end-to-end distance zero, ratios undefined."""
    x = rng.normal(size=(12, 3))
    traj = wgeo.Trajectory.from_arrays([x, x, x], np.arange(12) % 3)
    record = analyze_trajectory(traj, bootstrap=5).record
    assert record["segments"][0]["length_ratio"] is None
    assert record["blocks"][0]["distance"] == 0
    assert record["geodesic_model"]["layers"][1]["relative_error"] is None
    json.dumps(record, allow_nan=False)


def test_a_straight_line_is_the_geodesic_model(rng):
    first, last = rng.normal(size=(12, 3)), rng.normal(size=(12, 3))
    path = [(1 - t) * first + t * last for t in (0, 1 / 3, 2 / 3, 1)]
    record = analyze_trajectory(
        wgeo.Trajectory.from_arrays(path, np.arange(12) % 3), bootstrap=0
    ).record
    for model, layer in zip(record["geodesic_model"]["layers"], record["layers"], strict=True):
        assert model["collapse"]["nc1"] == pytest.approx(layer["collapse"]["nc1"], rel=1e-9)
        assert model["relative_error"] is None or model["relative_error"] < 1e-12


def test_class_view_is_the_plane_in_which_class_means_move(rng):
    plane = np.linalg.qr(rng.normal(size=(8, 2)))[0].T
    corners = rng.normal(size=(3, 2)) @ plane
    labels = np.arange(9) % 3
    traj = wgeo.Trajectory.from_arrays([corners[labels] * t for t in (1, 2, 4)], labels)
    view = class_view(traj.segments[0], labels)
    assert sum(view["explained"]) == pytest.approx(1)
    means = np.array(view["class_means"])
    step = np.linalg.norm(means[2] - means[1], axis=-1)
    assert np.allclose(step, 2 * np.linalg.norm(corners, axis=1))


def test_analysis_of_resnet20_has_known_values(shared):
    net = wgeo.load_checkpoint(
        shared / "checkpoints" / "resnet20-12fca82f.th", arch="cifar_resnet20"
    )
    images = wgeo.load_images(shared / "data" / "cifar10_jpeg.zip", split="test", limit=300)
    record = wgeo.analyze(net, images, bootstrap=0, **PLAIN).record
    assert 0.74 <= record["accuracy"] <= 0.88  # 0.81 of all, and three standard errors
    assert len(record["layers"]) == 11
    assert len(record["blocks"]) == 9
    assert len(record["segments"]) == 3
    for block in record["blocks"]:
        assert block["status"] == "certified"
        assert block["lower"] <= block["distance"] <= block["upper"]
        if block["via"] == "identity":
            assert block["ot_score"] > 0.98


def test_errors_share_one_base_class():
    assert all(
        issubclass(getattr(wgeo.errors, name), WgeoError)
        for name in dir(wgeo.errors)
        if name.endswith("Error")
    )


def test_reference_may_be_a_path(tmp_path):
    (tmp_path / "net.pt").write_bytes(b"no weights")
    images = (torch.randn(20, 1, 2, 2), np.arange(20) % 2)
    net = wgeo.models.build("mlp", num_classes=2, in_channels=1, image_size=2, width=4, depth=2)
    with pytest.raises(CheckpointError, match=r"net\.pt"):
        wgeo.analyze(net, images, reference=tmp_path / "net.pt")
    traj = wgeo.trace(net, images, store=tmp_path / "features")
    settings = {"bootstrap": 0, "mufm": False, "reference": tmp_path / "features"}
    reference = analyze_trajectory(traj, **settings).record["reference"]
    assert reference["kind"] == "network"
    assert reference["tests"]
