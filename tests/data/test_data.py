"""Images: every source, the subset, normalisation, and bad input answered in words."""

from __future__ import annotations

import gzip
import io
import pickle
import random
import shutil
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat
from sklearn.datasets import load_digits
from torchvision import transforms

from wgeo import load_images
from wgeo.arrays.rows import anonymous_array
from wgeo.data import Images
from wgeo.data.images import PRESETS, Normalization, normalization
from wgeo.data.pixels import from_array, scaled
from wgeo.data.source import balanced
from wgeo.errors import ArgumentError, DataError, WgeoError
from wgeo.runtime.memory import memory_limit

LAYOUT = {
    "train/cat": 5,
    "train/dog": 4,
    "train/emu": 3,
    "test/cat": 2,
    "test/dog": 2,
    "test/emu": 2,
}


def picture(rng, size=(6, 5), mode="RGB"):
    """A random picture; `size` is (width, height)."""
    w, h = size
    shape = (h, w) if mode == "L" else (h, w, len(mode))
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8), mode)


def write_folder(root: Path, rng, layout=LAYOUT, **kind) -> dict[str, np.ndarray]:
    """Write PNGs in shuffled order of creation; return their pixels by name."""
    names = [f"{where}/{i:03d}.png" for where, count in layout.items() for i in range(count)]
    random.Random(0).shuffle(names)
    written = {}
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image = picture(rng, **kind)
        image.save(root / name)
        written[name] = np.asarray(image)
    return written


def zipped(root: Path, archive: Path, wrap: str = "", reverse: bool = False) -> Path:
    files = sorted((path for path in root.rglob("*") if path.is_file()), reverse=reverse)
    with zipfile.ZipFile(archive, "w") as out:
        for path in files:
            out.write(path, wrap + str(path.relative_to(root)))
    return archive


# --- normalisation ---------------------------------------------------------------------------


def test_presets_match_means_and_deviations_of_the_pixels():
    pixels = load_images("digits", "train").x
    assert PRESETS["digits"].mean[0] == pytest.approx(float(pixels.mean()), abs=5e-5)
    assert PRESETS["digits"].std[0] == pytest.approx(float(pixels.std()), abs=5e-5)


def test_mnist_preset_matches_the_real_pixels(shared):
    images = load_images(shared / "data" / "mnist.npz", "train")
    share = np.bincount(images.x.numpy().ravel(), minlength=256) / images.x.numel()
    level = np.arange(256) / 255
    mean = share @ level
    assert PRESETS["mnist"].mean[0] == pytest.approx(mean, abs=5e-5)
    assert PRESETS["mnist"].std[0] == pytest.approx(np.sqrt(share @ (level - mean) ** 2), abs=5e-5)


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"digits", "mnist", "fashion_mnist"}))
def test_normalised_batches_match_torchvision(name, rng):
    pixels = rng.integers(0, 256, (5, 3, 4, 4), dtype=np.uint8)
    images = Images(torch.from_numpy(pixels), np.arange(5), tuple("abcde"), "arrays")
    preset = PRESETS[name]
    peer = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(preset.mean, preset.std)]
    )
    ours = torch.cat([x for x, _ in images.batches(2, preset)])
    theirs = torch.stack([peer(np.ascontiguousarray(p.transpose(1, 2, 0))) for p in pixels])
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("labels", [[0, 2, 1], torch.tensor([0, 2, 1]), np.array([0.0, 2, 1])])
def test_labels_become_an_array_of_integers(labels):
    images = Images(torch.rand(3, 1, 2, 2), labels, ("a", "b", "c"), "arrays")
    assert images.y.dtype == np.int64
    assert images.y.tolist() == [0, 2, 1]
    assert images.facts()["classes"]["present"] == 3


@pytest.mark.parametrize("labels", [["a", "b", "c"], [0, 1], [0, 1.5, 2], [0, -1, 2], [0, 1, 3]])
def test_labels_that_are_no_classes_are_rejected_at_once(labels):
    with pytest.raises(WgeoError, match="label"):
        Images(torch.rand(3, 1, 2, 2), labels, ("a", "b", "c"), "arrays")


def test_batches_keep_order_and_labels(rng):
    x = torch.rand(7, 1, 2, 2)
    images = Images(x, np.arange(7) % 3, ("a", "b", "c"), "arrays")
    for size in (1, 3, 7, 100):
        parts = list(images.batches(size, normalization("none")))
        assert torch.equal(torch.cat([part for part, _ in parts]), x)
        assert np.array_equal(np.concatenate([y for _, y in parts]), images.y)
        assert max(len(y) for _, y in parts) <= size


def test_normalisation_of_vectors_and_of_one_value_for_all_channels():
    x = torch.tensor([[0.0, 1.0], [0.5, 0.25]])
    assert torch.equal(normalization("half")(x), 2 * x - 1)
    assert torch.equal(normalization(None)(x), x)
    three = normalization("0.5;0.25")(torch.full((1, 3, 1, 1), 0.75))
    assert torch.equal(three, torch.ones(1, 3, 1, 1))


def test_explicit_normalisation_round_trips_through_its_name():
    spec = normalization("0.5,0.4,0.3;0.25,0.2,0.1")
    assert spec.mean == (0.5, 0.4, 0.3)
    assert spec.std == (0.25, 0.2, 0.1)
    assert normalization(spec.name) == spec
    assert normalization(spec) is spec
    made = Normalization((0.5,), (0.125,))
    assert normalization(made.name) == made


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("cifar", "did you mean 'cifar10'"),
        ("0.5,0.5;0.5", "2 and 1"),
        ("0.5;0", "positive"),
        ("0.5;-1", "positive"),
        ("nan;1", "finite"),
        ("1;2;3", "mean,...;std,..."),
        ("", "mean,...;std,..."),
        (";", "mean,...;std,..."),
    ],
)
def test_invalid_normalisation_is_refused(spec, says):
    with pytest.raises(ArgumentError, match=says):
        normalization(spec)


def test_normalisation_for_other_channels_is_refused():
    with pytest.raises(DataError, match=r"'cifar10' is for 3 channels; the images have 1"):
        normalization("cifar10")(torch.zeros(2, 1, 4, 4))


# --- the subset ------------------------------------------------------------------------------

labelled = st.lists(st.integers(0, 4), min_size=2, max_size=60).map(np.array)


@given(labelled, st.integers(1, 70), st.integers(0, 3))
def test_a_subset_is_as_balanced_as_the_classes_allow(labels, limit, seed):
    rows = balanced(labels, limit, seed)
    assert len(rows) == min(limit, len(labels))
    assert np.all(np.diff(rows) > 0)
    there = np.bincount(labels, minlength=5)
    taken = np.bincount(labels[rows], minlength=5)
    # no class could give one more while another has two more than it
    short = taken < there
    if short.any():
        assert taken.max() - taken[short].min() <= 1


@given(labelled, st.integers(1, 30), st.integers(1, 30), st.integers(0, 3))
def test_a_smaller_subset_is_part_of_a_larger(labels, a, b, seed):
    small, large = balanced(labels, min(a, b), seed), balanced(labels, max(a, b), seed)
    assert set(small) <= set(large)
    assert np.array_equal(balanced(labels, min(a, b), seed), small)


def test_subsets_of_other_seeds_differ():
    labels = np.repeat(np.arange(3), 100)
    assert not np.array_equal(balanced(labels, 30, 0), balanced(labels, 30, 1))


# --- digits ----------------------------------------------------------------------------------


def test_digits_are_scikit_learns_in_two_disjoint_stratified_parts():
    train, test = load_images("digits"), load_images("digits", "test")
    assert (len(train), len(test)) == (1437, 360)
    assert train.shape == test.shape == (1, 8, 8)
    assert np.array_equal(np.bincount(test.y), np.full(10, 36))
    assert train.class_names == tuple("0123456789")
    assert (train.name, train.split, train.preset, train.normalize) == (
        "digits",
        "train",
        "digits",
        None,
    )
    together = sorted(map(bytes, torch.cat([train.x, test.x]).numpy()))
    source = load_digits()
    assert together == sorted(map(bytes, (source.images / 16).astype(np.float32)[:, None]))
    whole = load_images("digits", None)
    assert len(whole) == 1797
    assert whole.split == "all"


def test_digits_of_a_seed_are_the_same_twice():
    first, second = (load_images("digits", limit=100, seed=3) for _ in range(2))
    assert first.fingerprint == second.fingerprint
    assert np.array_equal(np.bincount(first.y), np.full(10, 10))
    assert first.fingerprint != load_images("digits", limit=100, seed=4).fingerprint
    assert load_images("digits", limit=10**6).fingerprint == load_images("digits").fingerprint


def test_fingerprint_depends_on_labels_and_pixels():
    x, y = torch.rand(4, 1, 2, 2), np.array([0, 1, 0, 1])
    base = Images(x, y, ("a", "b"), "n").fingerprint
    assert Images(x, 1 - y, ("a", "b"), "n").fingerprint != base
    assert Images(x.reshape(4, 1, 4, 1), y, ("a", "b"), "n").fingerprint != base
    assert Images(x + 1e-3, y, ("a", "b"), "n").fingerprint != base
    assert Images(x.clone(), y.copy(), ("c", "d"), "m").fingerprint == base


def test_images_remember_how_they_were_loaded():
    images = load_images("digits", limit=20, normalize="half", size=16)
    assert images.normalize == PRESETS["half"]
    assert images.shape == (1, 16, 16)
    assert images.num_classes == 10


# --- torchvision's ---------------------------------------------------------------------------


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(
        f">{array.ndim}I", *array.shape
    )
    path.write_bytes(header + array.astype(np.uint8).tobytes())


@pytest.mark.parametrize(("name", "home"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_idx_files_are_read_from_the_root(name, home, tmp_path, monkeypatch, rng):
    raw = tmp_path / home / "raw"
    pixels = {
        part: rng.integers(0, 256, (20, 28, 28), dtype=np.uint8) for part in ("train", "t10k")
    }
    for part, x in pixels.items():
        write_idx(raw / f"{part}-images-idx3-ubyte", x)
        write_idx(raw / f"{part}-labels-idx1-ubyte", np.arange(20) % 10)
    monkeypatch.setenv("WGEO_DATA", str(tmp_path))
    images = load_images(name, "test")
    assert torch.equal(images.x, torch.from_numpy(pixels["t10k"][:, None]))
    assert np.array_equal(images.y, np.arange(20) % 10)
    assert images.preset == name
    assert len(images.class_names) == 10
    assert len(load_images(name, "all", root=tmp_path)) == 40


def write_cifar(root: Path, x: np.ndarray, y: list[int]) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        part = {"data": x[4 * i : 4 * i + 4].reshape(4, -1), "labels": y[4 * i : 4 * i + 4]}
        (folder / name).write_bytes(pickle.dumps(part))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))


def write_svhn(root: Path, x: np.ndarray, y: list[int]) -> None:
    labels = np.array([10 if label == 0 else label for label in y])[:, None]  # its way to say 0
    for name, part in (("train", slice(0, 20)), ("test", slice(20, 24))):
        savemat(root / f"{name}_32x32.mat", {"X": x[part].transpose(2, 3, 1, 0), "y": labels[part]})


@pytest.mark.parametrize(("name", "write"), [("cifar10", write_cifar), ("svhn", write_svhn)])
def test_color_data_sets_match_torchvision(name, write, tmp_path, monkeypatch, rng):
    x = rng.integers(0, 256, (24, 3, 32, 32), dtype=np.uint8)
    y = [k % 10 for k in range(24)]
    write(tmp_path, x, y)
    for module in ("cifar", "svhn"):  # these few pictures have other checksums than the real set
        monkeypatch.setattr(f"torchvision.datasets.{module}.check_integrity", lambda *a: True)
        monkeypatch.setattr(
            f"torchvision.datasets.{module}.check_md5", lambda *a: True, raising=False
        )
    monkeypatch.setattr("torchvision.datasets.utils.calculate_md5", lambda *a, **k: "")
    monkeypatch.setattr("torchvision.datasets.SVHN._check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.utils.check_md5", lambda *a, **k: True)
    train, test = (load_images(name, part, root=tmp_path) for part in ("train", "test"))
    assert torch.equal(torch.cat([train.x, test.x]), torch.from_numpy(x))
    assert [*train.y, *test.y] == y


def test_failed_download_names_the_folder_for_the_files(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    for name, file in (("cifar10", "cifar-10-batches-py"), ("mnist", "MNIST/raw")):
        with pytest.raises(DataError, match=r"WGEO_DATA.*npz:PATH") as caught:
            load_images(name, root=tmp_path)
        assert str(tmp_path / file) in str(caught.value)
        assert "no route to host" in str(caught.value)


@pytest.mark.parametrize("split", ["train", "extra"])
def test_failed_download_of_svhn_names_the_file_of_the_split(tmp_path, monkeypatch, split):
    def refuse(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    with pytest.raises(DataError, match="WGEO_DATA") as caught:
        load_images("svhn", split, root=tmp_path)
    assert f"{tmp_path / split}_32x32.mat, or" in str(caught.value)


def test_unresponsive_download_times_out_and_the_timeout_is_restored(tmp_path, monkeypatch):
    import socket

    seen = []

    def note(*args, **kwargs):
        seen.append(socket.getdefaulttimeout())
        raise TimeoutError("timed out")

    monkeypatch.setattr("urllib.request.urlopen", note)
    with pytest.raises(DataError, match="timed out"):
        load_images("stl10", root=tmp_path)
    assert seen
    assert all(timeout is not None and timeout <= 30 for timeout in seen)
    assert socket.getdefaulttimeout() is None


def test_damaged_files_in_the_root_are_refused(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            (raw / f"{part}-{kind}-ubyte").write_bytes(gzip.compress(b"nonsense"))
    with pytest.raises(DataError, match="mnist is not in"):
        load_images("mnist", root=tmp_path)


# --- npz -------------------------------------------------------------------------------------


def save_npz(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((12, 5, 7), None),
        ((12, 5, 7, 3), (0, 3, 1, 2)),
        ((12, 3, 5, 7), (0, 1, 2, 3)),
        ((12, 5, 7, 1), (0, 3, 1, 2)),
    ],
)
def test_npz_shapes_all_become_channels_first(shape, axes, tmp_path, rng):
    x = rng.integers(0, 256, shape, dtype=np.uint8)
    path = save_npz(tmp_path / "a.npz", x=x, y=np.arange(12) % 3)
    expected = x[:, None] if axes is None else x.transpose(axes)
    for source in (path, str(path), f"npz:{path}"):
        images = load_images(source)
        assert np.array_equal(images.x.numpy(), expected)
    assert images.x.dtype == torch.uint8
    assert images.split is None
    assert images.name == "a"
    assert images.class_names == ("0", "1", "2")
    assert images.preset is None


@pytest.mark.parametrize("keys", [("x_{}", "y_{}"), ("{}_images", "{}_labels")])
def test_npz_splits(keys, tmp_path, rng):
    parts = {
        name: rng.integers(0, 256, (n, 4, 4), dtype=np.uint8)
        for name, n in (("train", 6), ("test", 4))
    }
    arrays = {keys[0].format(name): x for name, x in parts.items()}
    arrays |= {keys[1].format(name): np.arange(len(x))[:, None] % 2 for name, x in parts.items()}
    path = save_npz(tmp_path / "a.npz", **arrays, class_names=np.array(["no", "yes"]))
    test = load_images(path, "test")
    assert np.array_equal(test.x[:, 0].numpy(), parts["test"])
    assert test.split == "test"
    assert test.class_names == ("no", "yes")
    assert len(load_images(path, "all")) == len(load_images(path, None)) == 10
    with pytest.raises(DataError, match=r"no split 'val'; it has 'train', 'test'"):
        load_images(path, "val")


def test_npz_floats_and_wide_integers(tmp_path, rng):
    x = rng.random((6, 4, 4))
    y = np.arange(6.0) % 2
    images = load_images(save_npz(tmp_path / "a.npz", x=x, y=y))
    assert images.x.dtype == torch.float32
    assert np.array_equal(images.x[:, 0].numpy(), x.astype(np.float32))
    whole = rng.integers(0, 256, (6, 4, 4))
    images = load_images(save_npz(tmp_path / "b.npz", x=whole, y=y))
    assert images.x.dtype == torch.uint8
    assert np.array_equal(images.x[:, 0].numpy(), whole)
    split = {"x_a": whole[:3].astype(np.uint8), "y_a": y[:3], "x_b": whole[3:], "y_b": y[3:]}
    images = load_images(save_npz(tmp_path / "d.npz", **split), "all")
    assert np.array_equal(images.x[:, 0].numpy(), whole)
    with pytest.raises(DataError, match=r"integers from 0 to 1.*Multiply"):
        load_images(save_npz(tmp_path / "c.npz", x=whole % 2, y=y))
    mask = rng.random((6, 4, 4)) < 0.5
    images = load_images(save_npz(tmp_path / "c.npz", x=mask, y=y))
    assert np.array_equal(images.x[:, 0].numpy() == 255, mask)


def test_labels_of_two_digits_keep_their_numbers(tmp_path, rng):
    """A network of ten classes is to be judged by the labels it was trained with."""
    x = rng.integers(0, 256, (8, 4, 4), dtype=np.uint8)
    images = load_images(save_npz(tmp_path / "a.npz", x=x, y=np.array([7, 9] * 4)), limit=4)
    assert sorted(images.y) == [7, 7, 9, 9]
    assert images.num_classes == 10


def bad_npz():
    x, y = np.zeros((6, 4, 4), np.uint8), np.arange(6) % 2
    nan = np.zeros((6, 4, 4))
    nan[3, 1, 2] = np.nan
    return {
        "keys": ({"a": x, "b": y}, "keys 'a', 'b'"),
        "nan": ({"x": nan, "y": y}, "first is image 3"),
        "infinite": ({"x": np.where(np.isnan(nan), np.inf, 0.0), "y": y}, "NaN or infinity"),
        "large floats": ({"x": x + 200.0, "y": y}, r"0, 1\]: divide"),
        "negative": ({"x": x.astype(int) - 1, "y": y}, "from -1 to -1"),
        "large integers": ({"x": x.astype(int) + 256, "y": y}, r"0, 255\]"),
        "text": ({"x": x.astype(str), "y": y}, "not numbers"),
        "flat": ({"x": x.reshape(6, 16), "y": y}, r"shape \(6, 16\)"),
        "four channels": ({"x": np.zeros((6, 4, 4, 4)), "y": y}, "1 or 3 channels"),
        "ambiguous": ({"x": np.zeros((6, 3, 4, 3)), "y": y}, "1 or 3 channels"),
        "no pixels": ({"x": np.zeros((6, 0, 4)), "y": y}, "empty"),
        "no images": ({"x": x[:0], "y": y[:0]}, "list"),
        "scalar": ({"x": np.array(3), "y": y}, "0 images"),
        "objects": ({"x": np.array([{}] * 6), "y": y}, "pickle"),
        "object labels": ({"x": x, "y": np.array([None] * 6)}, "pickle"),
        "lengths": ({"x": x, "y": y[:5]}, "6 images and 5 labels"),
        "fractions": ({"x": x, "y": y + 0.5}, "whole numbers"),
        "negative labels": ({"x": x, "y": y - 1}, "Label -1 of sample 0"),
        "far labels": ({"x": x, "y": y * 10**12}, "out of range"),
        "beyond the names": ({"x": x, "y": y * 2, "classes": np.array(["a", "b"])}, "from 0 to 1"),
        "one class": ({"x": x, "y": y * 0}, "one class"),
        "splits differ": (
            {"x_a": x, "y_a": y, "x_b": x[:, :2], "y_b": y},
            "different shapes",
        ),
        "kinds differ": (
            {"x_a": x, "y_a": y, "x_b": x.astype("datetime64[s]"), "y_b": y},
            "different shapes or types",
        ),
        "booleans and integers": (
            {"x_a": x + 7, "y_a": y, "x_b": x > 0, "y_b": y},
            "different shapes or types",
        ),
        "integers and floats": (
            {"x_a": x, "y_a": y, "x_b": x / 255, "y_b": y},
            "different shapes or types",
        ),
        "scalars": ({"x_a": x[0, 0, 0], "y_a": y, "x_b": x[0, 0, 0], "y_b": y}, "0 images"),
        "lengths of splits": (
            {"x_a": x, "y_a": y[:4], "x_b": x[:4], "y_b": y},
            "6 images and 4 labels",
        ),
    }


@pytest.mark.parametrize("case", sorted(bad_npz()))
def test_invalid_npz_is_refused(case, tmp_path):
    arrays, says = bad_npz()[case]
    with pytest.raises(DataError, match=says):
        load_images(save_npz(tmp_path / "bad.npz", **arrays), None)


def test_only_the_selected_images_of_an_npz_are_checked(tmp_path):
    x, y = np.zeros((400, 2, 2)), np.arange(400) % 2
    x[17] = np.nan
    path = save_npz(tmp_path / "a.npz", x=x, y=y)
    assert len(load_images(path, limit=4, seed=0)) == 4
    with pytest.raises(DataError, match="first is image 17"):
        load_images(path)


@pytest.mark.parametrize("suffix", [".npz", ".zip"])
def test_broken_archives_are_refused(suffix, tmp_path, rng):
    good = tmp_path / "good.npz"
    np.savez_compressed(
        good, x=rng.integers(0, 256, (50, 8, 8), dtype=np.uint8), y=np.arange(50) % 2
    )
    whole = good.read_bytes()
    bad = tmp_path / f"bad{suffix}"
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 0xFF
    for content in (
        b"",
        whole[:100],
        whole[: len(whole) // 2],
        rng.bytes(3000),
        bytes(flipped),
        pickle.dumps([1]),
    ):
        bad.write_bytes(content)
        with pytest.raises(DataError):
            load_images(bad)


def test_single_array_named_npz_is_refused(tmp_path):
    with (tmp_path / "a.npz").open("wb") as out:
        np.save(out, np.zeros(3))
    with pytest.raises(DataError, match="one array"):
        load_images(tmp_path / "a.npz")


def test_header_with_a_false_size_is_refused(tmp_path):
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "|u1", "fortran_order": False, "shape": (10**9, 10**6)}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as out:
        out.writestr("x.npy", head.getvalue())
        out.writestr("y.npy", head.getvalue())
    with pytest.raises(DataError, match="cannot be read"):
        load_images(tmp_path / "a.npz")


# --- folders and zips ------------------------------------------------------------------------


def expected(written, split, channels=3):
    names = sorted(name for name in written if name.startswith(split))
    pixels = np.stack([written[name].reshape(*written[name].shape[:2], channels) for name in names])
    labels = [["cat", "dog", "emu"].index(name.split("/")[1]) for name in names]
    return pixels.transpose(0, 3, 1, 2), labels


def test_folder_and_its_zip_give_the_same_images(tmp_path, rng):
    root = tmp_path / "animals"
    written = write_folder(root, rng)
    (root / "train" / "cat" / "notes.txt").write_text("no image")
    (root / "train" / ".hidden").mkdir()
    (root / "train" / ".hidden" / "x.png").write_bytes(b"")
    plain = zipped(root, tmp_path / "plain.zip")
    wrapped = zipped(root, tmp_path / "wrapped.zip", wrap="some/animals/", reverse=True)
    with zipfile.ZipFile(wrapped, "a") as out:
        out.writestr("__MACOSX/some/animals/train/cat/._000.png", b"")
    for split in ("train", "test"):
        pixels, labels = expected(written, split)
        for source in (root, f"folder:{root}", plain, f"folder:{plain}", f"zip:{plain}", wrapped):
            images = load_images(source, split)
            assert images.x.dtype == torch.uint8
            assert np.array_equal(images.x.numpy(), pixels)
            assert images.y.tolist() == labels
            assert images.class_names == ("cat", "dog", "emu")
            assert images.split == split
    assert len(load_images(root, None)) == len(load_images(plain, "all")) == 18


def test_subset_of_a_folder_does_not_depend_on_its_location(tmp_path, rng):
    root = tmp_path / "animals"
    write_folder(root, rng)
    archive = zipped(root, tmp_path / "a.zip", wrap="w/", reverse=True)
    a, b = (load_images(source, "train", limit=7, seed=5) for source in (root, archive))
    assert a.fingerprint == b.fingerprint
    assert sorted(np.bincount(a.y)) == [2, 2, 3]


def test_classes_without_a_split_level(tmp_path, rng):
    root = tmp_path / "animals"
    write_folder(root, rng, {"b/deeper": 1, "b": 2, "a": 3})
    images = load_images(root, "train")
    assert images.split is None
    assert images.class_names == ("a", "b")
    assert images.y.tolist() == [0, 0, 0, 1, 1, 1]
    wrapped = load_images(zipped(root, tmp_path / "a.zip", wrap="wrap/"), "train")
    assert wrapped.class_names == ("a", "b")
    assert wrapped.split is None


def test_a_class_may_be_called_train(tmp_path, rng):
    write_folder(tmp_path / "vehicles", rng, {"car": 2, "plane": 2, "train": 2})
    images = load_images(tmp_path / "vehicles", "train")
    assert images.class_names == ("car", "plane", "train")


def test_a_split_without_classes_does_not_hide_the_others(tmp_path, rng):
    root = tmp_path / "contest"
    write_folder(root, rng, {"train/cat": 2, "train/dog": 2, "test": 3})
    assert load_images(root, "train").class_names == ("cat", "dog")
    with pytest.raises(DataError, match=r"no split 'test' .* it has 'train'"):
        load_images(root, "test")


def test_class_folder_may_have_subfolders(tmp_path, rng):
    write_folder(tmp_path / "a", rng, {"cat": 2, "dog/pug": 1, "dog/poodle": 1})
    images = load_images(tmp_path / "a")
    assert images.class_names == ("cat", "dog")
    assert images.y.tolist() == [0, 0, 1, 1]


def test_images_in_nested_folders_belong_to_their_class(tmp_path, rng):
    write_folder(tmp_path / "a", rng, {"train/n1/images": 2, "train/n2/images": 2})
    images = load_images(tmp_path / "a", "train")
    assert images.class_names == ("n1", "n2")
    with pytest.raises(DataError, match=r"no split 'train' .* 'n1', 'n2'"):
        load_images(tmp_path / "a" / "train")


def test_a_missing_split_lists_what_is_there(tmp_path, rng):
    write_folder(tmp_path / "a", rng)
    with pytest.raises(DataError, match=r"no split 'val' .* 'test', 'train'"):
        load_images(tmp_path / "a", "val")
    write_folder(tmp_path / "b", rng, {"train/cat": 2, "train/dog": 2})
    with pytest.raises(DataError, match="no split 'test'"):
        load_images(tmp_path / "b", "test")


def test_grey_images_have_one_channel_unless_one_has_color(tmp_path, rng):
    root = tmp_path / "a"
    written = write_folder(root, rng, mode="L")
    pixels, _ = expected(written, "train", channels=1)
    assert np.array_equal(load_images(root).x.numpy(), pixels)
    color = picture(rng)
    color.save(root / "train" / "cat" / "999.png")
    mixed = load_images(root).x.numpy()
    assert np.array_equal(mixed[:5], np.repeat(pixels[:5], 3, axis=1))
    assert np.array_equal(mixed[5], np.asarray(color).transpose(2, 0, 1))


@pytest.mark.parametrize("mode", ["1", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_every_image_mode_matches_pillow(mode, tmp_path, rng):
    suffix = "tif" if mode in ("CMYK", "YCbCr") else "png"
    for name in "ab":
        (tmp_path / "set" / name).mkdir(parents=True)
        image = picture(rng, mode="RGBA").convert(
            "RGB" if mode in ("P", "CMYK", "YCbCr") else "RGBA"
        )
        image.convert(mode).save(tmp_path / "set" / name / f"0.{suffix}")
    images = load_images(tmp_path / "set")
    wanted = "L" if mode in ("1", "LA") else "RGB"
    for pixels, name in zip(images.x.numpy(), "ab", strict=True):
        with Image.open(tmp_path / "set" / name / f"0.{suffix}") as image:
            peer = np.asarray(image.convert(wanted))
        assert np.array_equal(pixels.transpose(1, 2, 0).squeeze(), peer)


def test_images_of_mixed_sizes_get_the_imagenet_evaluation_crop(tmp_path, rng):
    root = tmp_path / "a"
    sizes = [(300, 260), (260, 301), (400, 230), (64, 97), (257, 256)]
    for i, size in enumerate(sizes):
        (root / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        picture(rng, size).save(root / "ab"[i % 2] / f"{i}.png")
    for size, short in ((None, 256), (56, 64)):
        images = load_images(root, size=size)
        peer = transforms.Compose([transforms.Resize(short), transforms.CenterCrop(size or 224)])
        for i, (pixels, label) in enumerate(zip(images.x.numpy(), images.y, strict=True)):
            path = sorted((root / "ab"[label]).iterdir())[i if label == 0 else i - 3]
            with Image.open(path) as image:
                assert np.array_equal(pixels.transpose(1, 2, 0), np.asarray(peer(image)))


def test_images_of_one_size_are_kept_or_scaled_without_cropping(tmp_path, rng):
    root = tmp_path / "a"
    write_folder(root, rng, {"a": 2, "b": 2}, size=(12, 12))
    assert load_images(root).shape == (3, 12, 12)
    images = load_images(root, size=6)
    peer = transforms.Resize(6)
    with Image.open(root / "a" / "000.png") as image:
        assert np.array_equal(images.x[0].numpy().transpose(1, 2, 0), np.asarray(peer(image)))


@pytest.mark.parametrize("shape", [(8, 8), (9, 14), (21, 10), (11, 8), (8, 15)])
def test_scaled_arrays_match_torchvision(shape, rng):
    x = torch.from_numpy(rng.integers(0, 256, (3, 3, *shape), dtype=np.uint8))
    short = transforms.functional.resize(x, 8, antialias=True)
    peer = transforms.functional.center_crop(short, [8, 8]).int()
    assert (scaled(x, 8).int() - peer).abs().max() <= 1
    assert scaled(x, 8).shape == (3, 3, 8, 8)
    grey = scaled(torch.full((2, 1, *shape), 0.25), 5)
    assert torch.allclose(grey, torch.tensor(0.25))


def test_very_long_images_are_cropped_before_they_are_scaled(tmp_path, rng):
    """Scaled first, each would have three billion numbers."""
    row = rng.integers(0, 256, (1, 60_000, 3), dtype=np.uint8)
    for name, pixels in (("a", row), ("b", row.transpose(1, 0, 2))):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels).save(tmp_path / name / "0.png")
    images = load_images(tmp_path)
    assert images.shape == (3, 224, 224)
    middle = row[0, 29_999:30_001].astype(int)
    low, high = middle.min(0)[:, None, None], middle.max(0)[:, None, None]
    array = scaled(torch.from_numpy(row).permute(2, 0, 1)[None], 224)
    for x in (images.x.numpy(), array.numpy()):
        assert ((low <= x) & (x <= high)).all()


def test_broken_images_are_named(tmp_path, rng):
    root = tmp_path / "a"
    write_folder(root, rng, {"a": 3, "b": 3}, size=(40, 40))
    sound = (root / "a" / "001.png").read_bytes()
    broken = root / "a" / "001.png"
    for content in (
        b"",
        b"GIF89a",
        sound[:60],
        sound[: len(sound) // 2],
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
    ):
        broken.write_bytes(content)
        for source in (root, zipped(root, tmp_path / "a.zip")):
            with pytest.raises(DataError, match=r"'a/001.png' .* cannot be decoded"):
                load_images(source)


def test_sixteen_bit_images_are_refused_not_clipped(tmp_path, rng):
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.fromarray(rng.integers(0, 2**16, (4, 4), dtype=np.uint16)).save(
            tmp_path / name / "0.png"
        )
    with pytest.raises(DataError, match="16-bit"):
        load_images(tmp_path)


def test_a_decompression_bomb_is_refused(tmp_path, rng, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    write_folder(tmp_path / "a", rng, {"a": 1, "b": 1}, size=(40, 40))  # warned of
    write_folder(tmp_path / "b", rng, {"a": 1, "b": 1}, size=(80, 80))  # an error of Pillow's
    for name in "ab":
        with pytest.raises(DataError, match="decompression bomb"):
            load_images(tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the filter was put back
        assert load_images("digits", limit=20).shape == (1, 8, 8)


def test_zip_member_with_a_false_size_is_not_read(tmp_path, rng, monkeypatch):
    root = tmp_path / "a"
    write_folder(root, rng, {"a": 1, "b": 1})
    archive = zipped(root, tmp_path / "a.zip")
    monkeypatch.setattr("wgeo.data.folder._MAX_FILE", 10)
    with pytest.raises(DataError, match="it claims"):
        load_images(archive)


def test_paths_out_of_a_zip_are_refused(tmp_path, rng):
    root = tmp_path / "a"
    write_folder(root, rng, {"a": 2, "b": 2})
    (tmp_path / "deep").mkdir()
    archive = zipped(root, tmp_path / "deep" / "a.zip")
    before = set(tmp_path.rglob("*"))
    with zipfile.ZipFile(archive, "a") as out:
        out.writestr("../../evil/x.png", b"evil")
        out.writestr("/abs/olute/x.png", (root / "a" / "000.png").read_bytes())
    images = load_images(archive, None)
    assert images.class_names == ("a", "abs", "b")
    assert set(tmp_path.rglob("*")) == before


def test_encrypted_or_truncated_zip_is_refused(tmp_path, rng):
    root = tmp_path / "a"
    write_folder(root, rng, {"a": 2, "b": 2})
    content = zipped(root, tmp_path / "a.zip").read_bytes()
    (tmp_path / "cut.zip").write_bytes(content[:-30])
    with pytest.raises(DataError, match="not a readable zip"):
        load_images(tmp_path / "cut.zip")
    locked = bytearray(content)
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = content.find(signature)
        while at >= 0:
            locked[at + offset] |= 1  # the flag says encrypted
            at = content.find(signature, at + 4)
    (tmp_path / "locked.zip").write_bytes(locked)
    with pytest.raises(DataError, match="encrypted"):
        load_images(tmp_path / "locked.zip")


def test_links_are_followed_and_loops_are_not(tmp_path, rng):
    root, real = tmp_path / "a", tmp_path / "real"
    write_folder(real, rng, {"dog": 2})
    write_folder(root, rng, {"cat": 2})
    (root / "dog").symlink_to(real / "dog")
    (root / "loop").symlink_to(root)
    images = load_images(root)
    assert images.class_names == ("cat", "dog")
    assert len(images) == 4


def test_real_jpegs_in_a_zip(shared):
    images = load_images(shared / "data" / "cifar10_jpeg.zip", "test", limit=200)
    assert images.shape == (3, 32, 32)
    assert np.array_equal(np.bincount(images.y), np.full(10, 20))
    assert images.class_names[0] == "airplane"
    assert images.class_names[-1] == "truck"
    mean = images.x.double().mean((0, 2, 3)) / 255
    assert torch.allclose(mean, torch.tensor(PRESETS["cifar10"].mean).double(), atol=0.04)


# --- what cannot be opened -------------------------------------------------------------------


def test_invalid_paths_and_names_are_explained(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "hollow" / "cat").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("words")
    for source, says in (
        ("digit", "did you mean 'digits'"),
        ("CIFAR10", "did you mean 'cifar10'"),
        ("imagenet", "digits, mnist"),
        (tmp_path / "nowhere", "No data set or file"),
        (f"npz:{tmp_path}/no.npz", "No data set or file"),
        ("npz:", "neither|No images|No data"),
        ("a\0b", "No data set|Cannot access"),
        ("x" * 5000, "No data set|Cannot access"),
        (tmp_path / "empty", "No images in the folders"),
        (tmp_path / "hollow", "No images in the folders"),
        (tmp_path / "notes.txt", "not an .npz, a .zip"),
        (f"folder:{tmp_path}/notes.txt", "not a readable zip"),
    ):
        with pytest.raises(DataError, match=says):
            load_images(source)


def test_one_class_and_too_few_samples(tmp_path, rng):
    write_folder(tmp_path / "one", rng, {"cat": 4})
    with pytest.raises(DataError, match="one class only"):
        load_images(tmp_path / "one")
    with pytest.raises(ArgumentError, match="seed must be a whole number of at least 0"):
        load_images("digits", seed=-1)
    for limit in (1, 0, -5):
        with pytest.raises(ArgumentError, match=r"At least two samples|limit must be a whole"):
            load_images("digits", limit=limit)
    with pytest.raises(ArgumentError, match="at least 20"):
        load_images("digits", limit=19)
    assert np.array_equal(np.bincount(load_images("digits", limit=20).y), np.full(10, 2))
    with pytest.raises(ArgumentError, match="size"):
        load_images("digits", size=0)
    with pytest.raises(DataError, match="no split 'validation'; choose from train, test and all"):
        load_images("digits", "validation")
    with pytest.raises(ArgumentError, match="Unknown normalization"):
        load_images("digits", normalize="mnits")


def test_from_array_leaves_the_callers_pixels_alone(rng):
    x = rng.integers(0, 256, (3, 4, 4), dtype=np.uint8)
    before = x.copy()
    tensor = from_array(x, "test")
    normalization("mnist")(tensor)
    assert np.array_equal(x, before)


def test_images_that_fit_need_no_temporary_folder(tmp_path, rng, monkeypatch):
    write_folder(tmp_path / "a", rng, {"cat": 3, "dog": 3})
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    assert len(load_images(tmp_path / "a")) == 6
    monkeypatch.setattr("wgeo.data.pixels.total_memory", lambda: 10)
    with pytest.raises(DataError, match="TMPDIR"):
        load_images(tmp_path / "a")


def test_images_beyond_memory_are_stored_in_a_file(tmp_path, rng, monkeypatch):
    write_folder(tmp_path / "a", rng, {"cat": 3, "dog": 3})
    held = load_images(tmp_path / "a")
    with memory_limit("1GiB"):
        assert load_images(tmp_path / "a").fingerprint == held.fingerprint
    mapped: list[np.memmap] = []
    usual = anonymous_array
    monkeypatch.setattr(
        "wgeo.data.pixels.anonymous_array", lambda *a: mapped.append(usual(*a)) or mapped[0]
    )
    monkeypatch.setattr("wgeo.data.pixels.total_memory", lambda: 2 * held.x.numel())
    assert load_images(tmp_path / "a").fingerprint == held.fingerprint
    assert mapped == []
    monkeypatch.setattr("wgeo.data.pixels.total_memory", lambda: 2 * held.x.numel() - 1)
    filed = load_images(tmp_path / "a")
    assert np.shares_memory(filed.x.numpy(), mapped[0])
    assert filed.fingerprint == held.fingerprint
    batches = zip(*(i.batches(4, normalization("half")) for i in (filed, held)), strict=True)
    assert all(torch.equal(a, b) for (a, _), (b, _) in batches)
    free = shutil.disk_usage(tmp_path)._replace(free=2 * held.x.numel() - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(DataError, match=r"take 0\.0 GiB.*too much for.*TMPDIR"):
        load_images(tmp_path / "a")
