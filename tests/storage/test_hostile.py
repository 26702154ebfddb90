"""Hostile files: none runs code or takes much memory or time; each error is one line."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import fuzz_readers
import hostile
import patience
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from records import sample_record, sample_series

from wgeo import load_images
from wgeo.cli import main
from wgeo.errors import DataError, RecordError, WgeoError, WgeoWarning
from wgeo.plots.files import catalog
from wgeo.report import pages
from wgeo.storage.record import Record
from wgeo.storage.records import ANALYSIS, SERIES, read_record

SCRIPT = Path(hostile.__file__)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The corpus, read by a process of its own under a limit of memory: a row a file."""
    folder = tmp_path_factory.mktemp("hostile") / "corpus"
    hostile.write(folder)
    done = patience.run(
        [sys.executable, SCRIPT, "read", folder],
        env={**hostile.os.environ, "PYTHONPATH": str(SCRIPT.parents[1])},
        stdout=subprocess.PIPE,
        check=True,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(json.loads((folder / "manifest.json").read_text()))
    assert f"a corpus of {len(rows):,} files" in (SCRIPT.parents[1] / "docs/trust.md").read_text()
    return folder, rows


def wrong(rows, fault):
    return [(row["kind"], row["name"], fault(row)) for row in rows if fault(row)]


def test_no_code_in_a_file_is_run(corpus):
    folder, rows = corpus
    assert not (folder / "canary").exists()
    assert wrong(rows, lambda row: row["noticed"]) == []


def test_files_raise_only_wgeo_errors_and_bad_ones_are_refused(corpus):
    _, rows = corpus
    assert wrong(rows, lambda row: row["error"] if row["error"] and not row["ours"] else None) == []
    assert wrong(rows, lambda row: row["refused"] and row["error"] is None) == []
    # What may be read is read at least sometimes: the corpus is not refused for what it stands in.
    read = [row for row in rows if row["error"] is None]
    assert len(read) > 20
    assert {row["kind"] for row in read} == {"checkpoint", "images", "store"}


def test_errors_of_hostile_files_are_one_readable_line(corpus):
    _, rows = corpus
    assert wrong(rows, lambda row: len(row["message"]) > 1500 and row["message"][:200]) == []
    assert wrong(rows, lambda row: not row["message"].isprintable()) == []
    bare = [row for row in rows if row["error"] and Path(row["path"]).name not in row["message"]]
    assert wrong(bare, lambda row: "special" not in row["path"] and row["message"][:200]) == []


def test_hostile_files_need_little_memory_and_time(corpus):
    _, rows = corpus
    assert wrong(rows, lambda row: row["bytes"] > hostile.MEMORY and row["bytes"] >> 20) == []
    assert wrong(rows, lambda row: row["seconds"] > hostile.SECONDS and row["seconds"]) == []


# --- the fuzzer ---------------------------------------------------------------------------------


@pytest.fixture
def tally(tmp_path, monkeypatch):
    """What counts a short run; whatever it keeps is kept in the test's folder."""
    monkeypatch.chdir(tmp_path)
    before = fuzz_readers.signal.signal(fuzz_readers.signal.SIGPROF, fuzz_readers.too_long)
    yield fuzz_readers.Tally(tmp_path, inputs=270, seconds=60)
    fuzz_readers.signal.signal(fuzz_readers.signal.SIGPROF, before)


def test_a_few_files_changed_at_random_are_read_or_refused(tally):
    fuzz_readers.at_random(tally, seed=0)
    assert tally.crashes == []
    tried = dict.fromkeys(fuzz_readers.KINDS, 0)
    for outcome, count in tally.counts.items():
        tried[outcome.rpartition(" ")[0]] += count
    assert set(tried.values()) == {30}
    assert tally.counts["npz read"] + tally.counts["series read"] > 0


def endless(path):
    while True:
        path += ""


@pytest.mark.parametrize(
    ("door", "said"),
    [
        (lambda path: [].pop(), "IndexError"),
        (lambda path: sys.exit(0), "SystemExit"),
        (endless, "TooLong"),
    ],
)
def test_fuzzer_saves_inputs_without_a_clean_error(
    tally, tmp_path, monkeypatch, capsys, door, said
):
    monkeypatch.setattr(fuzz_readers, "target", lambda kind: door)
    monkeypatch.setattr(fuzz_readers, "SECONDS", 0.1)
    tally.try_one("record", b"body")
    (crash,) = tally.crashes
    assert said in crash
    assert (tmp_path / crash.partition(":")[0]).read_bytes() == b"body"
    assert crash in capsys.readouterr().err


# --- images that cannot be decoded ----------------------------------------------------------------


def broken_zip(path, extra):
    path.write_bytes(hostile.zipped(hostile.pictures(extra)))
    return path


def test_broken_images_are_named_and_skipped_only_if_asked(tmp_path):
    sound = {"a/2.png": hostile.png(), "b/2.png": hostile.png()}
    path = broken_zip(tmp_path / "a.zip", {"a/1.png": b"no image", "b/1.png": b"", **sound})
    with pytest.raises(DataError, match=r"'a/1\.png'.*skip_broken=True"):
        load_images(path)
    with pytest.warns(WgeoWarning, match=r"2 of 6 images of a .*: a/1\.png, b/1\.png"):
        images = load_images(path, skip_broken=True)
    assert images.skipped == ("a/1.png", "b/1.png")
    assert len(images) == 4
    assert images.y.tolist() == [0, 0, 1, 1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clean = load_images(broken_zip(tmp_path / "b.zip", sound), skip_broken=True)
    assert clean.skipped == ()
    assert clean.fingerprint == images.fingerprint


def test_class_with_only_broken_images_is_reported(tmp_path):
    path = tmp_path / "a.zip"
    path.write_bytes(hostile.zipped({"a/0.png": hostile.png(), "b/0.png": b"no"}))
    with pytest.warns(WgeoWarning), pytest.raises(DataError, match="one class only"):
        load_images(path, skip_broken=True)


def test_archives_write_nothing_to_the_disk(tmp_path):
    deep = tmp_path / "deep" / "deeper"
    deep.mkdir(parents=True)
    names = ("../x/0.png", "../../x/0.png", "/tmp/../x/0.png", "a/../../../b/x.png")
    path = broken_zip(deep / "a.zip", {name: hostile.png() for name in names})
    before = sorted(tmp_path.rglob("*"))
    load_images(path, None)
    assert sorted(tmp_path.rglob("*")) == before


def test_highly_compressible_image_is_not_a_bomb(tmp_path):
    """A plain BMP of 12 MB packs a thousandfold, and is read."""
    size = 2000
    head = b"BM" + (54 + 3 * size * size).to_bytes(4, "little") + bytes(4) + b"\x36\0\0\0\x28\0\0\0"
    head += 2 * size.to_bytes(4, "little") + b"\1\0\x18\0" + bytes(24)
    bmp = head + bytes(3 * size * size)
    parts = {"a/0.bmp": bmp, "b/0.bmp": bmp}
    (tmp_path / "a.zip").write_bytes(hostile.zipped(parts, zipfile.ZIP_DEFLATED))
    assert load_images(tmp_path / "a.zip", size=8).shape == (3, 8, 8)


def test_images_beyond_memory_are_refused_before_allocation(tmp_path, monkeypatch):
    """In memory, nor on more than half of the disk that is left."""
    monkeypatch.setattr("wgeo.data.pixels.total_memory", lambda: 10)
    pixels = load_images(broken_zip(tmp_path / "a.zip", {})).x.numel()
    free = shutil.disk_usage(tmp_path)._replace(free=2 * pixels - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(DataError, match=r"too much for the memory.*limit="):
        load_images(broken_zip(tmp_path / "a.zip", {}))


# --- records --------------------------------------------------------------------------------------

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([10**30, 1e308, -1.5, 0.5, "", "x", "\x00", [], {}, [[]], [None], {"x": None}]),
)


def places(value, path=()):
    """Every place in a record."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in inside:
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))
        else:
            yield (*path, key)


SAMPLES = {ANALYSIS: sample_record((2, 2), names="b{stage}.{block}"), SERIES: sample_series(2)}
PLACES = {kind: [path for path in places(record) if path] for kind, record in SAMPLES.items()}


@given(st.data())
def test_every_accepted_record_can_be_drawn(tmp_path_factory, data):
    """A record with any value anywhere is refused, or its pages and tables are made."""
    kind = data.draw(st.sampled_from([ANALYSIS, SERIES]))
    record = json.loads(json.dumps(SAMPLES[kind]))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(PLACES[kind]))
        inside = record
        try:
            for step in path[:-1]:
                inside = inside[step]
            if data.draw(st.booleans()):
                inside[path[-1]] = data.draw(ODD)
            else:
                del inside[path[-1]]
        except (KeyError, IndexError, TypeError):  # gone with an earlier change
            continue
    file = tmp_path_factory.mktemp("record") / kind
    file.write_text(json.dumps(record))
    try:
        found = read_record(file, kind)
    except RecordError as error:
        found, said = None, str(error)
    if found is None:
        assert said.isprintable()
        assert str(file) in said
        return
    pages.pages(found)
    for plot in catalog(found):
        plot.rows()


def test_oversized_record_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr("wgeo.storage.records._MAX_BYTES", 10)
    (tmp_path / ANALYSIS).write_text(json.dumps(sample_record()))
    with pytest.raises(RecordError, match="far more than wgeo writes"):
        read_record(tmp_path)


def test_error_names_the_damaged_place(tmp_path):
    record = sample_record()
    record["layers"][3]["collapse"]["nc1"] = "nine"
    del record["blocks"][1]["target"]
    (tmp_path / ANALYSIS).write_text(json.dumps(record))
    said = r"lacks blocks\[1\]\.target and is damaged in layers\[3\]\.collapse\.nc1"
    with pytest.raises(RecordError, match=said + r" \(expected a number, got 'nine'\);"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("part", "key", "value", "said"),
    [
        ("segments", "length", "x", r"segments[0].length (expected a number, got 'x')"),
        ("segments", "length", True, r"segments[0].length (expected a number, got True)"),
        ("segments", "length", 1e301, r"segments[0].length (expected a number"),
        ("segments", "stage", 2**63, r"segments[0].stage (expected an integer"),
        ("segments", "corr_score", [1.0], r"segments[0].corr_score (expected a list of 3"),
        ("segments", "length_over_runs", {"x": 1}, r"segments[0].length_over_runs.x (expected a"),
        ("segments", "layers", {}, r"segments[0].layers (expected a list, got an object)"),
        ("segments", "layers", ["a", 3], r"segments[0].layers[1] (expected text, got 3)"),
        ("segments", "centred", {"new": "x"}, r"segments[0].centred.new (expected a number"),
        ("blocks", "brenier", {"new": []}, r"blocks[0].brenier.new (expected a number"),
        ("layers", "collapse", None, r"layers[0].collapse (expected an object, got None)"),
    ],
)
def test_values_that_do_not_match_their_type_are_named(part, key, value, said):
    record = sample_record()
    record[part][0][key] = value
    with pytest.raises(RecordError, match=re.escape(said)):
        Record.of(record)


def test_a_partial_record_is_read_with_empty_values_and_unknown_keys():
    layer = {"name": "a", "collapse": {"new": 1.0}, "new": {"x": [1]}}
    record = Record.of({"layers": [layer], "new": [[]]})
    assert record.json == {"layers": [layer], "new": [[]]}
    assert record.layers[0].collapse.measure("new") == 1.0
    assert (record.blocks, record.trust.samples, record.provenance.class_names) == ((), None, ())
    assert not record.trust
    assert Record.of(record) is record


def test_command_line_reports_a_hostile_file_in_one_line(tmp_path):
    canary = tmp_path / "canary"
    program = hostile.gadgets(str(canary))["os.system"]
    (tmp_path / "net.pt").write_bytes(hostile.archive(program))
    words = ["analyze", str(tmp_path / "net.pt"), "--data", "digits", "--out", str(tmp_path / "o")]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2
    assert result.output.startswith("wgeo: ")
    assert len(result.output.strip().splitlines()) == 1
    assert not canary.exists()


def test_gadgets_run_if_unpickled_by_python(tmp_path):
    """The corpus is really hostile: unpickled by Python, such a program does run."""
    import pickle

    canary = tmp_path / "canary"
    pickle.loads(hostile.pickled(hostile.gadgets(str(canary))["eval"]))
    assert canary.exists()
    assert issubclass(RecordError, WgeoError)
