"""Features on disk: the same numbers, whole or not there, and gone on with after any kill."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import errno
import gc
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import patience
import pytest
import torch
from click.testing import CliRunner

import wgeo
from wgeo import Trajectory
from wgeo.analysis import analyze_trajectory
from wgeo.arrays.rows import is_memmapped
from wgeo.cli import main
from wgeo.errors import ArgumentError, FeatureError, RecordError, WgeoWarning
from wgeo.features import Projection
from wgeo.geodesic.paths import path_measures, resolution
from wgeo.storage.record import Provenance
from wgeo.storage.schema import read as read_as
from wgeo.storage.store import Column, Writer, is_store, reading
from wgeo.storage.store.writing import encoded
from wgeo.trajectory.trajectory import Classifier, outline
from wgeo.transport import Status, TransportResult


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(3)
    options = {"width": 4, "depth": 3, "stride": 2}
    return wgeo.models.build("isoresnet", num_classes=3, in_channels=1, image_size=8, **options)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    return rng.random((90, 1, 8, 8), dtype=np.float32), np.arange(90) % 3


@pytest.fixture
def small_shards(monkeypatch):
    """A shard a batch, so that a few images make several."""
    monkeypatch.setattr(reading, "SHARD", 1)


def interrupted(*_, **__):
    raise KeyboardInterrupt


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def alike(a, b):
    assert [layer.name for layer in a.layers] == [layer.name for layer in b.layers]
    for p, q in zip(a.layers, b.layers, strict=True):
        assert np.array_equal(p.features, q.features)
        assert p.stage == q.stage
        assert (p.entry is None) == (q.entry is None)
        assert p.entry is None or np.array_equal(p.entry, q.entry)
    assert np.array_equal(a.labels, b.labels)
    assert np.array_equal(a.predictions, b.predictions)
    assert np.array_equal(a.classifier.weight, b.classifier.weight)
    assert a.class_names == b.class_names
    assert a.settings == b.settings


def untimed(record):
    """A record without dates and times."""
    if isinstance(record, dict):
        clocks = ("created", "seconds", "effort")
        return {key: untimed(value) for key, value in record.items() if key not in clocks}
    return [untimed(value) for value in record] if isinstance(record, list) else record


# --- what is stored ------------------------------------------------------------------------------


def test_stored_features_equal_traced_features(net, images, tmp_path, small_shards):
    stored = wgeo.trace(net, images, batch_size=16, store=tmp_path / "s")
    alike(stored, wgeo.trace(net, images, batch_size=16))
    assert all(isinstance(layer.features, np.memmap) for layer in stored.layers)
    alike(Trajectory.load(tmp_path / "s", verify=True), stored)


def test_shortcuts_and_stages_are_stored(tmp_path):
    torch.manual_seed(0)
    net = wgeo.models.build("cifar_resnet8", num_classes=3, image_size=8)
    x = torch.rand(6, 3, 8, 8)
    stored = wgeo.trace(net, (x, np.arange(6) % 3), store=tmp_path / "s")
    alike(stored, wgeo.trace(net, (x, np.arange(6) % 3)))
    assert [block.via for block in stored.blocks].count("shortcut") == 2


def test_analysis_of_a_store_equals_that_in_memory(net, images, tmp_path):
    stored, held = wgeo.trace(net, images, store=tmp_path / "s"), wgeo.trace(net, images)
    a, b = (analyze_trajectory(t, bootstrap=5, mufm=False).record for t in (stored, held))
    assert untimed(a) == untimed(b)
    assert a["provenance"]["data"] == "arrays"


@pytest.mark.parametrize(
    ("dtype", "error"), [("float16", 2.0**-11), ("bfloat16", 2.0**-8), ("float32", 0.0)]
)
def test_dtype_rounding_is_within_its_precision(net, images, tmp_path, dtype, error):
    held = wgeo.trace(net, images)
    stored = wgeo.trace(net, images, store=tmp_path / "s", dtype=dtype)
    for p, q in zip(held.layers, stored.layers, strict=True):
        off = np.abs(q.features.astype(float) - p.features)
        assert (off <= error * np.abs(p.features) + 2.0**-24 * (error > 0)).all()
    rows = (tmp_path / "s" / "001-features-stem.npy").stat().st_size - 128
    assert rows == (4 if dtype == "float32" else 2) * held.first.size
    found = wgeo.collapse(stored).layers[-1].nc1
    assert found == pytest.approx(wgeo.collapse(held).layers[-1].nc1, rel=200 * error + 1e-9)
    paired = wgeo.straightness(stored, bootstrap=0).segments[0].paired
    expected = wgeo.straightness(held, bootstrap=0).segments[0].paired
    assert paired == pytest.approx(expected, rel=10 * error + 1e-6)


def test_a_number_too_large_for_float16_is_named(tmp_path):
    traj = Trajectory.from_arrays([np.ones((9, 2)), np.full((9, 2), 7e4)], np.arange(9) % 2)
    traj.layers[0].features[3] = 1e-3
    with pytest.raises(FeatureError, match=r"layer1 holds .* 7e\+04 \(sample 0 is.*bfloat16"):
        traj.save(tmp_path / "s", dtype="float16")
    assert traj.save(tmp_path / "b", dtype="bfloat16").last[0, 0] == pytest.approx(7e4, rel=1e-2)


@pytest.mark.parametrize(
    ("dtype", "value", "other"),
    [("float32", 1e39, "float64"), ("bfloat16", 3.4e38, "float32"), ("bfloat16", -1e39, "float64")],
)
def test_a_number_too_large_for_any_format_is_an_error_and_not_infinity(dtype, value, other):
    rows = np.array([[0.0, 1.0], [value, np.nan]])
    with pytest.raises(FeatureError, match=rf"x holds .* (3.4e\+38|1e\+39) \(sample 8 is.*{other}"):
        encoded(rows, dtype, "x", 7)
    rows[1, 0] = np.inf
    for name in ("float16", "bfloat16", "float32", "float64"):
        assert len(encoded(rows, name, "x", 0)) == 4 * Column(name).row_bytes


def test_users_features_are_saved_once(rng, tmp_path, small_shards):
    traj = Trajectory.from_arrays([rng.normal(size=(600, 3)) for _ in "ab"], np.arange(600) % 2)
    saved = traj.save(tmp_path / "s")
    before = os.stat(tmp_path / "s" / "manifest.json").st_mtime_ns
    assert np.array_equal(saved.last, traj.last)
    assert saved.predictions is None
    assert saved.classifier is None
    traj.save(tmp_path / "s")
    saved.save(tmp_path / "s")
    assert os.stat(tmp_path / "s" / "manifest.json").st_mtime_ns == before
    read = replace(traj, classifier=Classifier(np.ones((2, 3)), np.zeros(2)))
    with pytest.raises(RecordError, match=r"another job: classifier differs"):
        read.save(tmp_path / "s")
    traj.layers[0].features[0] += 1
    with pytest.raises(RecordError, match=r"another job: saved differs"):
        traj.save(tmp_path / "s")


def test_projection_keeps_distances_within_its_bounds(rng, tmp_path):
    x = rng.normal(size=(80, 300)).astype(np.float32)
    y = x + 0.3 * rng.normal(size=x.shape).astype(np.float32)
    narrow = Projection(64)
    said = narrow.distortion(160)
    points, near = np.concatenate([x, y]), np.concatenate([narrow(x), narrow(y)])
    i, j = np.triu_indices(160, 1)
    factors = np.linalg.norm(near[i] - near[j], axis=1) / np.linalg.norm(
        points[i] - points[j], axis=1
    )
    least, most = said["all"]
    assert least <= factors.min() < 0.85 < 1.15 < factors.max() <= most
    assert factors.std() == pytest.approx(said["typical"], rel=0.3)
    before, after = wgeo.wasserstein(x, y).distance, wgeo.wasserstein(narrow(x), narrow(y)).distance
    assert least <= after / before <= most
    assert Projection(300)(x) is x
    with pytest.raises(ArgumentError, match="project must be a positive number"):
        Projection(0)


def test_projected_trace_is_marked(net, images, tmp_path):
    traj = wgeo.trace(net, images, store=tmp_path / "s", project=3)
    assert {layer.width for layer in traj.layers} == {3}
    assert traj.settings["projected"]["width"] == 3
    assert traj.classifier is None  # it reads what is no longer there
    held = wgeo.trace(net, images, project=3)
    assert np.array_equal(held.last, traj.last)
    wide = wgeo.trace(net, images, project=4)
    assert wide.layers[0].width == 4
    assert wide.classifier is not None


# --- whose store it is ---------------------------------------------------------------------------


def test_finished_job_is_not_repeated(net, images, tmp_path, monkeypatch):
    wgeo.trace(net, images, store=tmp_path / "s")
    monkeypatch.setattr("wgeo.features.tracing.Recorder", lambda *_: pytest.fail("it traced"))
    wgeo.trace(net, images, store=tmp_path / "s", batch_size=7)  # of no consequence but rounding


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pool": "flat"}, "pool differs"),
        ({"dtype": "float16"}, "dtype differs"),
        ({"project": 2, "tap": "pre"}, "tap, project differ"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_job_is_refused(net, images, tmp_path, change, said, finished):
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        if not finished:
            patch.setattr(Writer, "finish", interrupted)
        wgeo.trace(net, images, store=tmp_path / "s")
    assert is_store(tmp_path / "s") is finished
    if not finished:
        with pytest.raises(RecordError, match="not finished: run the command"):
            Trajectory.load(tmp_path / "s")
    with pytest.raises(RecordError, match=said):
        wgeo.trace(net, images, store=tmp_path / "s", **change)


def test_other_weights_or_images_are_another_job(net, images, tmp_path):
    wgeo.trace(net, images, store=tmp_path / "s")
    x, y = images
    with pytest.raises(RecordError, match="images differs"):
        wgeo.trace(net, (x, (y + 1) % 3), store=tmp_path / "s")
    other = wgeo.models.build(
        "isoresnet", num_classes=3, in_channels=1, image_size=8, width=4, depth=3, stride=2
    )
    with pytest.raises(RecordError, match="weights differs"):
        wgeo.trace(other, images, store=tmp_path / "s")


class Named(torch.nn.Module):
    """A network whose extra state is a dict."""

    def __init__(self, net, name):
        super().__init__()
        self.net, self.name = net, name

    def forward(self, x):
        return self.net(x)

    def get_extra_state(self):
        return {"name": self.name, "of": [object, torch.ones(2)], "more": {"one": torch.ones(1)}}


def test_extra_state_is_part_of_the_job(net, images, tmp_path, monkeypatch):
    wgeo.trace(Named(net, "a"), images, store=tmp_path / "s")
    with pytest.raises(RecordError, match="weights differs"):
        wgeo.trace(Named(net, "b"), images, store=tmp_path / "s")
    monkeypatch.setattr("wgeo.features.tracing.survey", interrupted)
    wgeo.trace(Named(net, "a"), images, store=tmp_path / "s")  # finished, so that nothing runs


def test_folder_of_other_files_is_left_unchanged(net, images, tmp_path):
    (tmp_path / "thesis.tex").write_text("all of it")
    with pytest.raises(RecordError, match=r"other files \(thesis.tex\)"):
        wgeo.trace(net, images, store=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ArgumentError, match="dtype is the precision of `store=`"):
        wgeo.trace(net, images, dtype="float16")
    with pytest.raises(ArgumentError, match="bfloat16"):
        wgeo.trace(net, images, store=tmp_path / "s", dtype="int8")


def test_store_that_cannot_fit_leaves_no_lock(tmp_path):
    with pytest.raises(RecordError, match="its disk has"):
        Writer(tmp_path / "s", {}, 2**40, {"x": Column("float32", 2**20)})
    assert not list((tmp_path / "s").iterdir())


def test_second_process_on_a_store_is_refused(net, images, tmp_path):
    job = {"a": 1}
    with (
        Writer(tmp_path / "s", job, 5, {"x": Column("float32", 2)}),
        pytest.raises(RecordError, match="Another process"),
    ):
        Writer(tmp_path / "s", job, 5, {"x": Column("float32", 2)})
    Writer(tmp_path / "s", job, 5, {"x": Column("float32", 2)}).close()


# --- what is no whole store ----------------------------------------------------------------------


@pytest.fixture
def stored(net, images, tmp_path):
    wgeo.trace(net, images, store=tmp_path / "s")
    return tmp_path / "s"


def rewritten(path, change):
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda s: (s / "manifest.json").unlink(), "No stored features"),
        (lambda s: (s / "manifest.json").write_text("{"), "cannot be read"),
        (lambda s: (s / "manifest.json").write_text("[]"), "damaged"),
        (lambda s: rewritten(s / "manifest.json", lambda m: m.update(version=9)), "version 9"),
        (lambda s: rewritten(s / "manifest.json", lambda m: m.pop("rows")), "checksum"),
        (lambda s: (s / "001-features-stem.npy").unlink(), "missing or damaged"),
        (lambda s: os.truncate(s / "001-features-stem.npy", 500), "missing or damaged"),
        (lambda s: np.save(s / "001-features-stem.npy", np.zeros((90, 9))), "manifest says"),
        (lambda s: np.save(s / "001-features-stem.npy", [{}]), "missing or damaged"),
    ],
)
def test_a_damaged_store_is_refused(stored, spoil, said):
    spoil(stored)
    with pytest.raises(RecordError, match=said):
        Trajectory.load(stored)


def test_manifest_cannot_name_files_outside_its_folder(stored, tmp_path):
    from wgeo.storage.store import digest

    def lead(manifest):
        manifest["arrays"]["features:stem"]["file"] = "../elsewhere.npy"
        del manifest["checksum"]
        manifest["checksum"] = digest(dict(manifest))

    np.save(tmp_path / "elsewhere.npy", np.zeros((90, 4), np.float32))
    rewritten(stored / "manifest.json", lead)
    with pytest.raises(RecordError, match="outside the store"):
        Trajectory.load(stored)


def test_flipped_bit_is_detected_if_verified(stored):
    path = stored / "001-features-stem.npy"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    Trajectory.load(stored, verify=False)
    with pytest.raises(RecordError, match=r"stem.npy is damaged in rows 0 to 90"):
        Trajectory.load(stored)
    words = ["analyze", str(stored), "--out", str(stored.with_name("out")), "--no-report"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert "damaged in rows 0 to 90" in result.output


@pytest.mark.parametrize("name", ["001-features-stem.npy", "manifest.json"])
def test_flipped_header_bits_are_refused_or_harmless(stored, name):
    path = stored / name
    sound, whole = path.read_bytes(), Trajectory.load(stored)
    outcomes = set()
    # All bits of an array's header; of the manifest every third, which is some of every byte.
    for bit in range(8 * 128) if path.suffix == ".npy" else range(0, 8 * 400, 3):
        data = bytearray(sound)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            alike(Trajectory.load(stored), whole)
            outcomes.add("read")
        except RecordError:
            outcomes.add("refused")
    assert "refused" in outcomes


ODD = (None, 0, -1, 10**30, "", "x", "../s/000", "/etc/passwd", [], {}, [1], {"a": 1}, True, 1.5)


def inside(value, path=()):
    """Every place in a manifest."""
    yield path
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from inside(item, (*path, key))


def test_forged_manifest_is_refused_or_gives_a_valid_trajectory(stored):
    """Fields of every wrong kind under a right checksum, in every place."""
    path = stored / "manifest.json"
    sound = json.loads(path.read_text())
    del sound["checksum"]
    places = [place for place in inside(sound) if place and not (place[0] == "job" and place[1:])]
    read = 0
    for place, odd in itertools.product(places, ODD):
        forged = json.loads(json.dumps(sound))
        within = forged
        for step in place[:-1]:
            within = within[step]
        within[place[-1]] = odd
        path.write_text(json.dumps({**forged, "checksum": wgeo.storage.store.digest(forged)}))
        try:
            traj = Trajectory.load(stored)
        except RecordError:
            continue
        read += 1
        assert {len(layer.features) for layer in traj.layers} == {len(traj.labels)}
        assert all(isinstance(layer.name, str) for layer in traj.layers)
        # They go into the record of an analysis, which must be read again.
        assert not read_as(Provenance, traj.settings)[1]
    assert read


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_pipes_and_devices_are_not_read_as_arrays(stored):
    path = stored / "001-features-stem.npy"
    for made in (lambda: os.mkfifo(path), lambda: path.symlink_to("/dev/zero"), path.mkdir):
        path.unlink()
        made()
        with pytest.raises(RecordError, match="not a regular file"):
            Trajectory.load(stored)
    path.rmdir()
    with pytest.raises(RecordError, match="missing or damaged"):
        Trajectory.load(stored)


def test_ranges_that_omit_rows_are_refused(stored):
    def part(manifest):
        manifest["rows"] = [[0, 20], [40, 90]]
        for entry in manifest["arrays"].values():
            if isinstance(entry["crc32"], list):
                entry["crc32"] = [0, 0]

        del manifest["checksum"]
        manifest["checksum"] = wgeo.storage.store.digest(manifest)

    rewritten(stored / "manifest.json", part)
    with pytest.raises(RecordError, match="it lacks rows"):
        Trajectory.load(stored)


def test_writing_to_a_layer_does_not_change_the_store(stored):
    traj = Trajectory.load(stored)
    before = float(traj.last[0, 0])
    traj.last[0, 0] = 77
    assert float(Trajectory.load(stored).last[0, 0]) == before


def test_lost_parts_are_not_read_as_zeros(tmp_path):
    with Writer(tmp_path / "s", {}, 4, {"x": Column("float32", 2)}) as writer:
        writer.write(0, {"x": np.ones((2, 2), np.float32)})
    next((tmp_path / "s").glob("*.npy.part")).unlink()
    with pytest.raises(RecordError, match="missing or of another size"):
        Writer(tmp_path / "s", {}, 4, {"x": Column("float32", 2)})


def test_incomplete_log_line_does_not_count(tmp_path):
    columns = {"x": Column("float32", 2)}
    with Writer(tmp_path / "s", {}, 6, columns) as writer:
        writer.write(0, {"x": np.full((2, 2), 1, np.float32)})
        writer.write(2, {"x": np.full((2, 2), 2, np.float32)})
    log = tmp_path / "s" / "rows-0.log"
    log.write_bytes(log.read_bytes()[:-9])
    with Writer(tmp_path / "s", {}, 6, columns) as writer:
        assert writer.missing() == [slice(2, 6)]
        writer.write(4, {"x": np.full((2, 2), 3, np.float32)})
        assert writer.missing() == [slice(2, 4)]
        with pytest.raises(RecordError, match="lacks rows 2 to 4"):
            writer.finish({}, {})
        writer.write(2, {"x": np.full((2, 2), 2, np.float32)})
        writer.finish({}, {})
    x = wgeo.storage.store.read_store(tmp_path / "s", verify=True).arrays["x"]
    assert x[:, 0].tolist() == [1, 1, 2, 2, 3, 3]


def linked(path):
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


def piped(path):
    path.unlink()
    os.mkfifo(path)


def twice(path):
    os.link(path, path.parent.parent / "elsewhere")


def written(text):
    return lambda path: path.write_text(text)


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        *(
            (name, spoil, "a link, a pipe or a device")
            for name in ("000-x.npy.part", "rows-0.log")
            for spoil in (linked, piped, twice)
        ),
        *(("rows-7.log", spoil, "a link, a pipe or a device") for spoil in (linked, piped, twice)),
        ("unfinished.json", linked, "in the way"),
        (
            "000-x.npy.part",
            lambda path: path.write_bytes(b"mine" + path.read_bytes()[4:]),
            "does not match the rows",
        ),
        ("000-x.npy.part", written("short"), "another size"),
        *(("rows-7.log", written(text), "in the way") for text in ("my notes", "[1] x", "{")),
        *(
            ("rows-7.log", written(text), "names rows that")
            for text in (
                *("[]", "{}", "7", "null", '[0, 2, {"x": "1"}]', '[0, 2, {"y": 1}]', "[0, 2, {}]"),
                *(
                    '[-2, 2, {"x": 1}]',
                    '[2, 2, {"x": 1}]',
                    '[0, 5, {"x": 1}]',
                    '[0.0, 2, {"x": 1}]',
                ),
                *('[0, 2, {"x": -1}]', f'[0, 2, {{"x": {2**32}}}]', '[0, true, {"x": 1}]'),
            )
        ),
    ],
)
def test_an_unfinished_store_is_not_trusted(tmp_path, name, spoil, said):
    columns = {"x": Column("float32", 2)}
    with Writer(tmp_path / "s", {}, 4, columns) as writer:
        writer.write(0, {"x": np.ones((2, 2), np.float32)})
    path = tmp_path / "s" / name
    if not path.exists():
        path.touch()
    spoil(path)
    kept = {each: each.lstat().st_mtime_ns for each in tmp_path.rglob("*")}
    with pytest.raises(RecordError, match=said):
        Writer(tmp_path / "s", {}, 4, columns)
    assert {each: each.lstat().st_mtime_ns for each in tmp_path.rglob("*")} == kept


@pytest.mark.parametrize("name", ["000-x.npy", "001-y.npy", "manifest.json"])
@pytest.mark.parametrize("kind", ["file", "link", "pipe"])
def test_files_that_block_a_store_are_kept(tmp_path, name, kind):
    with Writer(tmp_path / "s", {}, 2, {"x": Column("float32", 2)}) as writer:
        writer.write(0, {"x": np.ones((2, 2), np.float32)})
        path = tmp_path / "s" / name
        (tmp_path / "mine").write_bytes(b"mine")
        {"file": lambda: path.write_bytes(b"mine"), "pipe": lambda: os.mkfifo(path)}.get(
            kind, lambda: path.symlink_to(tmp_path / "mine")
        )()
        before = path.lstat()
        with pytest.raises(RecordError, match=rf"{name} (is in the way|cannot be opened)"):
            writer.finish({}, {"y": np.zeros(2)})
    assert os.path.samestat(path.lstat(), before)
    assert (tmp_path / "mine").read_bytes() == b"mine"


def test_another_file_in_place_of_an_array_is_kept(tmp_path):
    with Writer(tmp_path / "s", {}, 2, {"x": Column("float32", 2)}) as writer:
        writer.write(0, {"x": np.ones((2, 2), np.float32)})
        part = tmp_path / "s" / "000-x.npy.part"
        part.unlink()
        part.write_bytes(b"mine")
        with pytest.raises(RecordError, match="in the way"):
            writer.finish({}, {})
    assert part.read_bytes() == b"mine"


# --- what is held while a store is read -----------------------------------------------------------


def own_memory():
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", text)[1])


def held_by(work):
    """Bytes of its own that this process takes at the peak of some work."""
    # What others freed is given back, or this work would fill it and seem to take nothing.
    gc.collect()
    with contextlib.suppress(AttributeError):  # a C library without it
        ctypes.CDLL(None).malloc_trim(0)
    before, most, done = own_memory(), [0], threading.Event()

    def watch():
        while not done.wait(0.002):
            most[0] = max(most[0], own_memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return max(most[0], own_memory()) - before


class Paired:
    """Pairs each sample with its own image, and uses almost no memory."""

    name = "paired"

    def solve(self, x, y, a=None, b=None, coupling=None):
        parts = [slice(k, k + 512) for k in range(0, len(x), 512)]
        cost = sum(float((x[k].double() - y[k].double()).square().sum()) for k in parts) / len(x)
        return TransportResult(
            cost=cost,
            lower=0.0,
            upper=cost**0.5,
            status=Status.BOUNDED,
            solver=self.name,
            seconds=0.0,
            coupling=np.arange(len(x)),
        )


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")
def test_a_store_is_read_a_few_rows_at_a_time(tmp_path, monkeypatch):
    n, d, count = 60_000, 256, 3  # 184 MB; nothing may hold a layer in float64, 123 MB

    def stored(rows):
        columns = {f"features:{k}": Column("float32", d) for k in range(count)}
        with Writer(tmp_path / str(rows), {}, rows, columns) as writer:
            rng = np.random.default_rng(0)
            for start in range(0, rows, 2000):
                x = rng.standard_normal((2000, d), dtype=np.float32)
                writer.write(start, {key: x * np.float32(k + 1) for k, key in enumerate(columns)})
            about = outline([(str(k), 0) for k in range(count)], [], {})
            writer.finish(about, {"labels": np.arange(rows) % 3})
        return Trajectory.load(tmp_path / str(rows))

    def measured(traj):
        (segment,) = traj.segments
        wgeo.collapse(traj, spectrum_size=0)
        path_measures(segment.arrays)
        resolution(*segment.arrays[:2], neighbours=1.0)
        assert traj.layers[0].width == d

        # Null maps hold 2,000 samples and an exact solve, however many there are.
        wgeo.straightness(traj, solver=Paired(), bootstrap=0, nulls=0)
        found = wgeo.compare(traj)
        assert all(isinstance(x, np.memmap) for x in (found.solution.X, found.solution.H))
        for embed in ("pad", "pca:8"):
            embedded = traj.embedded(embed)
            assert all(isinstance(layer.features, np.memmap) for layer in embedded.layers)

    monkeypatch.setattr("wgeo.geodesic.paths._MAX_QUERIES", 32)
    monkeypatch.setattr("wgeo.arrays.rows._CHUNK_BYTES", 2**21)
    measured(stored(4000))  # libraries warm up
    traj = stored(n)
    held = held_by(lambda: measured(traj))
    assert held < n * d * 8  # blocks take 40 to 85 MB of any n, as the allocator has it
    assert held_by(lambda: [np.array(layer.features) for layer in traj.layers]) > 0.5 * n * d * 16


def test_arrays_derived_from_a_store_equal_those_in_memory(tmp_path, rng, monkeypatch):
    monkeypatch.setattr("wgeo.arrays.rows._CHUNK_BYTES", 999)  # many parts
    arrays = [rng.standard_normal((60, 4)).astype(np.float32) for _ in range(3)]
    held = Trajectory.from_arrays([arrays[0], *(arrays[0] + 0.3 * a for a in arrays)], [0, 1] * 30)
    for dtype in (None, "bfloat16"):
        stored = held.save(tmp_path / str(dtype), dtype=dtype)
        plain = Trajectory.from_arrays([np.array(a.features) for a in stored.layers], held.labels)
        for embed in ("pad", "pca:3"):
            for a, b in zip(
                stored.embedded(embed).layers, plain.embedded(embed).layers, strict=True
            ):
                assert isinstance(a.features, np.memmap)
                assert a.features.dtype == b.features.dtype == np.float32
                np.testing.assert_array_equal(a.features, b.features)
        a, b = (wgeo.straightness(t, bootstrap=0).segments[0] for t in (stored, plain))
        assert a.interpolation_gap == b.interpolation_gap
        assert min(a.interpolation_gap[1:-1]) > 0
        a, b = (wgeo.compare(t) for t in (stored, plain))
        assert a.rows() == b.rows()
        assert (a.held_out, a.solution.objective) == (b.held_out, b.solution.objective)
        np.testing.assert_array_equal(a.solution.layer(1), b.solution.layer(1))
        np.testing.assert_array_equal(
            a.solution.apply(stored.first, held.labels), b.solution.apply(plain.first, held.labels)
        )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["None", "bfloat16"]


def test_copy_of_a_memory_map_counts_as_memory(tmp_path):
    traj = Trajectory.from_arrays([np.eye(4), 2 * np.eye(4)], [0, 1] * 2).save(tmp_path / "s")
    assert traj.nbytes == 0
    copied = copy.deepcopy(traj)
    assert copied.nbytes == 2 * 4 * 4 * 8
    assert not is_memmapped(copied.embedded("pad").layers[0].features)
    assert is_memmapped(traj.embedded("pad").layers[0].features)


def test_full_disk_during_tracing_is_reported(tmp_path, rng, monkeypatch):
    held = Trajectory.from_arrays([np.eye(4), 2 * np.eye(4)], [0, 1] * 2)
    traj = held.save(tmp_path / "s")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("wgeo.storage.files.tempfile.TemporaryFile", full)
    told = r"need a temporary file.*No space left"
    with pytest.raises(RecordError, match=told):
        traj.embedded("pad")
    with pytest.raises(RecordError, match=told):
        wgeo.compare(traj)


def test_full_disk_skips_only_what_needs_it(net, images, tmp_path, monkeypatch):
    traj = wgeo.trace(net, images, store=tmp_path / "s")
    whole = wgeo.straightness(traj, bootstrap=0)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("wgeo.storage.files.tempfile.TemporaryFile", full)
    with pytest.warns(WgeoWarning, match="No interpolation gaps: .* has no space"):
        done = analyze_trajectory(traj, bootstrap=0)
    assert "has no space" in done.record["mufm"]["skipped"]
    for row, segment in zip(done.record["segments"], whole.segments, strict=True):
        assert row["distance"] == segment.distance
        assert row["interpolation_gap"] == [None] * len(segment.layers)
    monkeypatch.undo()
    assert done.report(tmp_path / "out").exists()


# --- a disk that fills up ------------------------------------------------------------------------


def test_full_disk_is_one_error_and_other_work_continues(net, images, tmp_path, small_shards):
    """The disk is full at the third shard of six; once there is space, no shard is repeated."""
    whole = wgeo.trace(net, images, store=tmp_path / "whole", batch_size=16)
    taken = []

    def full(handle, data, offset, write=os.pwrite):
        if len(taken) > 3 * 8 + 4:  # headers and two shards of eight arrays, a part of the third
            raise OSError(errno.ENOSPC, "No space left on device")
        taken.append(offset)
        return write(handle, data, offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(RecordError, match=r"No space left on device. \d+ of 90 rows") as caught:
            wgeo.trace(net, images, store=tmp_path / "s", batch_size=16)
    assert "run the same command again" in str(caught.value)
    followed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            Writer,
            "write",
            lambda self, start, rows, write=Writer.write: (
                followed.append(start),
                write(self, start, rows),
            ),
        )
        alike(wgeo.trace(net, images, store=tmp_path / "s", batch_size=16), whole)
    assert 0 not in followed
    assert followed
    assert contents(tmp_path / "s") == contents(tmp_path / "whole")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MiB, if this machine allows making one."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_insufficient_space_is_reported_at_once_or_when_it_occurs(
    net, small_disk, tmp_path, small_shards
):
    rng = np.random.default_rng(0)
    images = rng.random((9000, 1, 8, 8), dtype=np.float32), np.arange(9000) % 3
    with pytest.raises(RecordError, match=r"needs 3 MiB more, but its disk has 2 MiB free"):
        wgeo.trace(net, images, store=small_disk / "s")
    few = images[0][:3000], images[1][:3000]
    junk, write = small_disk / "junk", Writer.write

    def filling(self, start, rows):
        if start >= 2000 and not junk.exists():
            with contextlib.suppress(OSError):
                junk.write_bytes(bytes(2**21))
        write(self, start, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Writer, "write", filling)
        with pytest.raises(RecordError, match=r"No space left .* 20\d\d of 3000 rows"):
            wgeo.trace(net, few, store=small_disk / "t")
    junk.unlink()
    alike(wgeo.trace(net, few, store=small_disk / "t"), wgeo.trace(net, few))
    Trajectory.load(small_disk / "t", verify=True)


# --- kills ---------------------------------------------------------------------------------------


def in_a_child(work):
    """Fork, work there, and return the child's number; nothing is imported again."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def test_killed_store_continues_to_the_same_bytes(net, images, tmp_path, small_shards):
    torch.set_num_threads(1)
    rng = random.Random(0)

    def work(place):
        return lambda: wgeo.trace(net, images, store=place, batch_size=10)

    _, taken = patience.waited(in_a_child(work(tmp_path / "whole")))
    expected = contents(tmp_path / "whole")
    assert "manifest.json" in expected
    unfinished = kills = 0
    place = tmp_path / "0"
    while kills < 10:
        child = in_a_child(work(place))
        patience.until(child, rng.uniform(0, taken))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
        if is_store(place):
            assert contents(place).items() >= expected.items()
            place = tmp_path / str(kills)
            continue
        unfinished += place.exists()
        with pytest.raises(RecordError):
            Trajectory.load(place)
        assert not place.exists() or not list(place.glob("manifest*.json"))
    assert unfinished
    before = {p: p.stat().st_size for p in place.glob("rows-*.log")} if place.exists() else {}
    assert os.waitpid(in_a_child(work(place)), 0)[1] == 0
    assert contents(place) == expected
    assert not any(path.exists() for path in before)


def test_a_file_truncated_while_it_is_open_is_an_error_and_not_the_end_of_the_process(tmp_path):
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((500, 8)) for _ in range(3)]
    Trajectory.from_arrays(arrays, np.arange(500) % 5).save(tmp_path / "store")
    script = """
import sys, wgeo
from pathlib import Path
from wgeo.errors import FeatureError
traj = wgeo.Trajectory.load(sys.argv[1])
for file in Path(sys.argv[1]).glob("*.npy"):
    with open(file, "r+b") as shortened:
        shortened.truncate(file.stat().st_size // 2)
measures = [wgeo.collapse, wgeo.straightness, lambda t: wgeo.wasserstein(t.first, t.last)]
measures += [lambda t: wgeo.wasserstein(t.first[400:], t.last[400:]), wgeo.compare]
measures += [lambda t: t.save("copy"), lambda t: t.embedded("pca:3")]
for measure in measures:
    try:
        measure(traj)
    except FeatureError as error:
        assert "truncated" in str(error), error
    else:
        sys.exit("no error")
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "store")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_file_that_was_replaced_can_be_read_while_it_is_open(tmp_path, rng):
    arrays = [rng.standard_normal((300, 4)) for _ in range(2)]
    before = Trajectory.from_arrays(arrays, np.arange(300) % 3).save(tmp_path / "store")
    expected = wgeo.wasserstein(*arrays).distance
    shutil.rmtree(tmp_path / "store")
    Trajectory.from_arrays([a[:30] for a in arrays], np.arange(30) % 3).save(tmp_path / "store")
    assert wgeo.wasserstein(before.first, before.last).distance == expected
