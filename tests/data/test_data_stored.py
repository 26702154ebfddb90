"""Data of torchvision and Hugging Face, given as a path; no pickle is ever run."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import pickle
import struct
import sys
from contextlib import nullcontext, suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from wgeo import load_images
from wgeo.data import stored
from wgeo.data.stored import Call, Name, pixels_of, plain_values
from wgeo.errors import DataError, WgeoWarning


def write_cifar(home, x, y, protocol=2, key="labels"):
    home.mkdir(parents=True)
    n = len(y) // 3
    names = ["data_batch_1", "data_batch_2", "test_batch"]
    if key != "labels":
        names = ["train", "test"]
    for k, name in enumerate(names):
        part = slice(k * n, (k + 1) * n)
        rows = x[part].reshape(n, -1)
        body = {b"data": rows, key.encode(): y[part].tolist(), b"filenames": [b"a.png"] * n}
        (home / name).write_bytes(pickle.dumps(body, protocol))
    meta = {"label_names" if key == "labels" else "fine_label_names": list("abcdefghij")}
    name = "batches.meta" if key == "labels" else "meta"
    (home / name).write_bytes(pickle.dumps(meta, protocol))


@pytest.fixture
def pixels(rng):
    return rng.integers(0, 256, (18, 3, 4, 4), dtype=np.uint8), np.arange(18) % 5


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_cifar_batches_of_every_protocol(protocol, tmp_path, pixels):
    x, y = pixels
    write_cifar(tmp_path / "root" / "cifar-10-batches-py", x, y, protocol)
    for source in (tmp_path / "root", tmp_path / "root" / "cifar-10-batches-py"):
        train, test = (load_images(source, split) for split in ("train", "test"))
        assert np.array_equal(train.x.numpy(), x[:12])
        assert np.array_equal(test.x.numpy(), x[12:])
        assert train.y.tolist() + test.y.tolist() == y.tolist()
        assert train.class_names == test.class_names == tuple("abcdefghij")
        assert (train.name, train.preset, test.split) == ("cifar10", "cifar10", "test")
    with pytest.raises(DataError, match="no split 'val'; it has 'train', 'test'"):
        load_images(tmp_path / "root", "val")


def test_cifar_100(tmp_path, pixels):
    x, y = pixels
    write_cifar(tmp_path / "cifar-100-python", x, y, key="fine_labels")
    images = load_images(tmp_path, "test")
    assert np.array_equal(images.x.numpy(), x[6:12])
    assert (images.y.tolist(), images.preset) == (y[6:12].tolist(), "cifar100")


@pytest.mark.parametrize("label", [-1, -(2**70), 2**70])
def test_labels_of_batches_are_class_indices(label, tmp_path, pixels):
    x, y = pixels
    write_cifar(tmp_path / "root", x, y)
    body = {"data": x[:6].reshape(6, -1), "labels": [0, 1, 2, 3, 4, label]}
    (tmp_path / "root" / "test_batch").write_bytes(pickle.dumps(body))
    with pytest.raises(DataError, match="labels are not a list of class indices"):
        load_images(tmp_path / "root")


def test_splits_of_different_sizes_are_read_one_at_a_time(tmp_path, pixels):
    x, y = pixels
    write_cifar(tmp_path / "batches", x, y)
    body = {"data": x[:16, :, :2, :2].reshape(16, -1), "labels": y[:16].tolist()}
    (tmp_path / "batches" / "test_batch").write_bytes(pickle.dumps(body))
    idx = tmp_path / "raw"
    idx.mkdir()
    for name, side in (("train", 4), ("t10k", 2)):
        gray = x[:, 0, :side, :side]
        head = struct.pack(">4I", 0x803, 18, side, side)
        (idx / f"{name}-images-idx3-ubyte").write_bytes(head + gray.tobytes())
        head = struct.pack(">2I", 0x801, 18)
        (idx / f"{name}-labels-idx1-ubyte").write_bytes(head + y.astype(np.uint8).tobytes())
    for source in (tmp_path / "batches", idx):
        assert load_images(source, "train").shape[1:] == (4, 4)
        with pytest.raises(DataError, match=r"different shapes or types; .*choose a split"):
            load_images(source, "all")


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(st.text() | st.binary(), inner, max_size=5)
        | st.tuples(inner, inner)
    ),
)


@given(plain, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_plain_values_match_pickle(value, protocol):
    body = pickle.dumps(value, protocol)
    assert plain_values(body) == value


@given(st.binary(max_size=60))
def test_any_bytes_give_a_value_or_a_wgeo_error(body):
    with suppress(DataError):
        plain_values(body)


class Evil:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


def nested(levels):
    """A tuple of twice the tuple before, as a key: its hash would never end."""
    return b"}(" + b"N\x85q\0" + b"h\0h\0\x86q\0" * levels + b"Nu."


@pytest.mark.parametrize(
    "body",
    [
        pickle.dumps({b"data": Evil(print, "run"), b"labels": [0]}),
        pickle.dumps(Evil(sys.exit, 3)),
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"\x80\x02" + nested(60),
        b"(" * 20_000 + b".",
        b"\x8a\xff" + bytes(10),
        b"\x96" + struct.pack("<Q", 2**40) + b"x.",
        b"r\xff\xff\xff\x7f.",
        b"\x82\x01.",
        b"Pabc\n.",
        b"",
        b"N",
        b".",
        pickle.dumps({b"data": np.zeros((4, 12)), b"labels": [0, 1, 0, 1]}),
        pickle.dumps({b"data": np.zeros((4, 13), np.uint8), b"labels": [0, 1, 0, 1]}),
        pickle.dumps({b"data": np.zeros((4, 12), np.uint8), b"labels": [0, 1, 0]}),
        pickle.dumps({b"data": np.zeros((4, 12), np.uint8), b"labels": [0, 1, 0, -1]}),
        pickle.dumps({b"data": np.zeros((4, 12), np.uint8), b"labels": [0, 1, 0, 2**40]}),
        pickle.dumps({b"data": np.array([[{}]]), b"labels": [0]}),
        pickle.dumps([1, 2]),
    ],
)
def test_hostile_batches_are_refused_and_run_nothing(body, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stored, "_MAX_OPS", 10_000)  # instructions: 2,000,000 take seconds
    home = tmp_path / "cifar-10-batches-py"
    home.mkdir()
    (home / "data_batch_1").write_bytes(body)
    with pytest.raises(DataError):
        load_images(home)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("shape", [(2**20, 2**20), (4, 13), (0, 48), (-4, -12), (4.0, 12), (48,)])
def test_array_shape_must_match_its_data(shape):
    kind = Call(Name("numpy.dtype"), ("u1", False, True))
    call = Call(Name("numpy.core.multiarray._reconstruct"), (), (1, shape, kind, False, bytes(48)))
    with pytest.raises(DataError, match="shape"):
        pixels_of(call)


def write_idx(file, array, packed=False):
    body = struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    if packed:
        file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(body))
    else:
        file.write_bytes(body)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("home", "preset"), [("MNIST", "mnist"), ("FashionMNIST", "fashion_mnist")]
)
def test_idx_files_given_as_a_path(home, preset, packed, tmp_path, rng):
    x, y = rng.integers(0, 256, (12, 5, 5), dtype=np.uint8), (np.arange(12) % 3).astype(np.uint8)
    for split, rows in (("train", slice(0, 8)), ("t10k", slice(8, 12))):
        write_idx(tmp_path / home / "raw" / f"{split}-images-idx3-ubyte", x[rows], packed)
        write_idx(tmp_path / home / "raw" / f"{split}-labels-idx1-ubyte", y[rows], packed)
    for source in (tmp_path, tmp_path / home, tmp_path / home / "raw"):
        test = load_images(source, "test")
        assert np.array_equal(test.x[:, 0].numpy(), x[8:])
        assert (test.y.tolist(), test.preset, test.name) == (y[8:].tolist(), preset, home)
        assert test.num_classes == 10
    for body in (b"", b"\0\0\x08\x03", struct.pack(">4I", 0x803, 2**31, 2**31, 4)):
        file = tmp_path / home / "raw" / "t10k-images-idx3-ubyte"
        file.write_bytes(body)
        with pytest.raises(DataError, match="not a complete IDX file"):
            load_images(tmp_path, "test")


def write_stl10(home, x, y):
    """Labels from 1; a picture's columns come first."""
    home.mkdir(parents=True)
    for split, rows in (("train", slice(0, 4)), ("test", slice(4, 8))):
        (home / f"{split}_X.bin").write_bytes(x[rows].transpose(0, 1, 3, 2).tobytes())
        (home / f"{split}_y.bin").write_bytes((y[rows] + 1).astype(np.uint8).tobytes())
    (home / "class_names.txt").write_text("\n".join("abcdefghij"))


def test_stl10_given_as_a_path_matches_torchvision(tmp_path, rng, monkeypatch):
    x, y = rng.integers(0, 256, (8, 3, 96, 96), dtype=np.uint8), np.array([0, 9, 2, 2, 3, 4, 9, 0])
    home = tmp_path / "stl10_binary"
    write_stl10(home, x, y)
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda self: True)
    theirs = datasets.STL10(tmp_path, "test")
    for source in (tmp_path, home):
        test = load_images(source, "test")
        assert np.array_equal(test.x.numpy(), x[4:])
        assert np.array_equal(test.x.numpy(), theirs.data)
        assert test.y.tolist() == theirs.labels.tolist() == y[4:].tolist()
        assert (test.class_names, test.preset) == (tuple("abcdefghij"), "stl10")
    for broken, name in (
        (b"x" * 100, "test_X.bin"),
        (b"", "test_X.bin"),
        (b"\0" * 4, "test_y.bin"),
    ):
        (home / name).write_bytes(broken)
        with pytest.raises(DataError):
            load_images(home, "test")


def test_svhn_given_as_a_path(tmp_path, rng, monkeypatch):
    x, y = rng.integers(0, 256, (6, 3, 32, 32), dtype=np.uint8), [10, 1, 2, 10, 1, 2]
    file = tmp_path / "train_32x32.mat"
    savemat(file, {"X": x.transpose(2, 3, 1, 0), "y": np.array(y)[:, None]})
    with pytest.raises(DataError, match="does not contain the published files of svhn"):
        load_images(tmp_path)
    with pytest.raises(DataError, match="no split 'test'; it has 'train'"):
        load_images(tmp_path, "test")
    sums = {"train": ["", file.name, hashlib.md5(file.read_bytes()).hexdigest()]}
    monkeypatch.setattr(datasets.SVHN, "split_list", sums)
    for split in ("train", None):
        images = load_images(tmp_path, split)
        assert np.array_equal(images.x.numpy(), x)
        assert (images.y.tolist(), images.preset) == ([0, 1, 2, 0, 1, 2], "svhn")


def test_several_data_sets_in_one_folder_are_listed(tmp_path, pixels, rng):
    write_cifar(tmp_path / "cifar-10-batches-py", *pixels)
    write_idx(tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte", pixels[0][:, 0])
    write_idx(tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte", pixels[1].astype(np.uint8))
    with pytest.raises(DataError, match=r"several data sets.*cifar-10-batches-py.*raw"):
        load_images(tmp_path)


# --- Parquet and Hugging Face ----------------------------------------------------------------


def png(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def parquet(rng):
    pytest.importorskip("pyarrow", reason="pyarrow (wgeo[hf]) reads Parquet")
    import pyarrow

    x = rng.integers(0, 256, (8, 5, 4, 3), dtype=np.uint8)

    def table(rows, labels, names=None):
        cells = [{"bytes": png(x[k]), "path": "/etc/passwd"} for k in rows]
        made = pyarrow.table({"image": cells, "label": labels})
        if names:
            features = {"features": {"label": {"names": names, "_type": "ClassLabel"}}}
            made = made.replace_schema_metadata({"huggingface": json.dumps({"info": features})})
        return made

    return x, table


def test_parquet_files_of_the_hub_are_read(tmp_path, parquet):
    import pyarrow.parquet as pq

    x, table = parquet
    home = tmp_path / "set" / "data"
    home.mkdir(parents=True)
    names = ["cat", "dog", "emu"]
    pq.write_table(table([0, 1, 2], [0, 1, 2], names), home / "train-00000-of-00002.parquet")
    pq.write_table(table([3, 4], [1, 2], names), home / "train-00001-of-00002.parquet")
    pq.write_table(table([5, 6, 7], [2, 0, 2], names), home / "test-00000-of-00001.parquet")
    train, test = (load_images(tmp_path / "set", split) for split in ("train", "test"))
    assert np.array_equal(train.x.numpy(), x[:5].transpose(0, 3, 1, 2))
    assert np.array_equal(test.x.numpy(), x[5:].transpose(0, 3, 1, 2))
    assert (train.y.tolist(), test.y.tolist()) == ([0, 1, 2, 1, 2], [2, 0, 2])
    assert train.class_names == test.class_names == tuple(names)
    with pytest.raises(DataError, match="no split 'val'"):
        load_images(tmp_path / "set", "val")
    pq.write_table(table([0], [0], names), home / "extra.parquet")  # of no split
    assert (
        len(load_images(tmp_path / "set", "all")) == len(load_images(tmp_path / "set", None)) == 9
    )
    assert len(load_images(tmp_path / "set", "train")) == 5


@pytest.mark.parametrize("missing", ["column", "minus one", "nulls"])
def test_a_split_without_labels_is_left_out(missing, tmp_path, parquet):
    import pyarrow
    import pyarrow.parquet as pq

    x, table = parquet
    pq.write_table(table([0, 1, 2], [0, 1, 1]), tmp_path / "train.parquet")
    test = table([3, 4], [-1, -1])
    if missing == "column":
        test = test.drop_columns(["label"])
    elif missing == "nulls":
        test = test.set_column(1, "label", pyarrow.nulls(2, pyarrow.int64()))
    pq.write_table(test, tmp_path / "test.parquet")
    says = "splits without labels were left out: 'test'"
    for split in ("train", "all"):
        with nullcontext() if split == "train" else pytest.warns(WgeoWarning, match=says):
            images = load_images(tmp_path, split)
        assert images.y.tolist() == [0, 1, 1]
        assert np.array_equal(images.x.numpy(), x[:3].transpose(0, 3, 1, 2))
        assert images.notes == (() if split == "train" else (says,))
    with pytest.raises(DataError, match=r"needs 'label'|must be integers or text|Label -1"):
        load_images(tmp_path, "test")


def test_parquet_file_with_text_labels_is_read(tmp_path, parquet):
    import pyarrow.parquet as pq

    x, table = parquet
    pq.write_table(table([0, 1, 2, 3], ["dog", "cat", "dog", "emu"]), tmp_path / "a.parquet")
    images = load_images(tmp_path / "a.parquet")
    assert images.class_names == ("cat", "dog", "emu")
    assert (images.y.tolist(), images.split) == ([1, 0, 1, 2], None)
    assert np.array_equal(images.x.numpy(), x[:4].transpose(0, 3, 1, 2))


def test_a_data_set_saved_to_disk(tmp_path, parquet):
    import pyarrow

    x, table = parquet
    for split, rows in (("train", [0, 1, 2]), ("test", [3, 4])):
        home = tmp_path / "set" / split
        home.mkdir(parents=True)
        (home / "state.json").write_text("{}")
        made = table(rows, [k % 2 for k in rows])
        file = home / "data-00000-of-00001.arrow"
        with pyarrow.OSFile(str(file), "wb") as out, pyarrow.ipc.new_stream(out, made.schema) as to:
            to.write_table(made)
    (tmp_path / "set" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    test = load_images(tmp_path / "set", "test")
    assert np.array_equal(test.x.numpy(), x[3:5].transpose(0, 3, 1, 2))
    assert test.y.tolist() == [1, 0]
    assert load_images(tmp_path / "set" / "train").y.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    "cell", [{"bytes": None, "path": "/etc/passwd"}, {"bytes": b"x", "path": ""}]
)
def test_only_bytes_of_images_are_read(cell, tmp_path, parquet):
    import pyarrow
    import pyarrow.parquet as pq

    pq.write_table(pyarrow.table({"image": [cell] * 2, "label": [0, 1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="cannot be decoded"):
        load_images(tmp_path / "a.parquet")


def test_broken_images_of_a_table_can_be_skipped(tmp_path, parquet):
    import pyarrow
    import pyarrow.parquet as pq

    x, table = parquet
    good = table([0, 1, 2, 3], [0, 1, 0, 1])
    cells = good.column("image").to_pylist()
    cells[2] = {**cells[2], "bytes": b"broken"}
    broken = good.set_column(0, "image", pyarrow.array(cells))
    pq.write_table(broken, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="skip_broken=True"):
        load_images(tmp_path / "a.parquet")
    with pytest.warns(WgeoWarning, match="1 of 4 images of a cannot be decoded and are skipped: 2"):
        images = load_images(tmp_path / "a.parquet", skip_broken=True)
    assert (images.y.tolist(), images.skipped) == ([0, 1, 1], ("2",))
    assert np.array_equal(images.x.numpy(), x[[0, 1, 3]].transpose(0, 3, 1, 2))


def test_damaged_and_unsuitable_tables_are_refused(tmp_path, parquet):
    import pyarrow
    import pyarrow.parquet as pq

    pq.write_table(pyarrow.table({"a": [1], "b": [2]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="has the columns 'a', 'b'"):
        load_images(tmp_path / "a.parquet")
    _, table = parquet
    pq.write_table(table([0, 1], [0, 1]), tmp_path / "b.parquet")
    body = (tmp_path / "b.parquet").read_bytes()
    for broken in (body[:100], body[:-9], b"PAR1xxxxPAR1", b""):
        (tmp_path / "b.parquet").write_bytes(broken)
        with pytest.raises(DataError, match="not a readable Parquet"):
            load_images(tmp_path / "b.parquet")


def test_a_parquet_file_that_unpacks_to_far_more_is_refused(tmp_path, parquet):
    import pyarrow
    import pyarrow.parquet as pq

    bomb = {"image": [bytes(2**20)] * 64, "label": [0, 1] * 32}
    pq.write_table(pyarrow.table(bomb), tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 10_000
    with pytest.raises(DataError, match="like a zip bomb"):
        load_images(tmp_path / "a.parquet")


def test_labels_are_one_number_or_text_per_row(tmp_path, parquet):
    import pyarrow
    import pyarrow.parquet as pq

    _, table = parquet
    few = table([0, 1, 2, 3], ["b", "a", "b", "a"])
    words = few["label"].dictionary_encode()
    pq.write_table(few.set_column(1, "label", words), tmp_path / "a.parquet")
    assert load_images(tmp_path / "a.parquet").y.tolist() == [1, 0, 1, 0]
    for odd in ([[0], [1, 2], [0], [1]], [0, None, 1, 1], [b"a", b"b", b"a", b"b"], [0.5, 1, 2, 3]):
        changed = few.set_column(1, "label", pyarrow.array(odd))
        pq.write_table(changed, tmp_path / "b.parquet")
        with pytest.raises(DataError, match="must be integers or text"):
            load_images(tmp_path / "b.parquet")
    twice = pyarrow.Table.from_arrays([few["image"], *few.columns], ["image", "image", "label"])
    pq.write_table(twice, tmp_path / "c.parquet")
    with pytest.raises(DataError, match="several columns 'image'"):
        load_images(tmp_path / "c.parquet")


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"pip install 'wgeo\[hf\]'"):
        load_images(tmp_path / "a.parquet")
