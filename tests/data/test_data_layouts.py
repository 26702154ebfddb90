"""Images in the layouts that people have: one numbering, tables, other containers."""

from __future__ import annotations

import random
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_data import picture, save_npz, write_folder, zipped
from torchvision.datasets import ImageFolder

from wgeo import load_images
from wgeo.data import Images
from wgeo.errors import DataError, WgeoWarning

SPLITS = {"train/a": 3, "train/b": 3, "train/c": 3, "test/a": 2, "test/c": 2}


# --- one numbering for all splits ------------------------------------------------------------


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("empty", [False, True])
def test_a_class_has_one_number_in_all_splits(archive, empty, tmp_path, rng):
    root = tmp_path / "set"
    write_folder(root, rng, SPLITS)
    if empty:
        (root / "test" / "b").mkdir()
    source = zipped(root, tmp_path / "set.zip") if archive else root
    test = load_images(source, "test")
    assert test.class_names == load_images(source, "train").class_names == ("a", "b", "c")
    assert test.y.tolist() == [0, 0, 2, 2]
    assert load_images(source, "all").y.tolist() == [0] * 5 + [1] * 3 + [2] * 5
    assert test.facts(4)["classes"] == {
        "named": 3, "present": 2, "missing": ["b"], "head": 4, "beyond": 0,
    }  # fmt: skip


@pytest.mark.parametrize("archive", [False, True])
def test_empty_class_folder_is_a_class_as_in_torchvision(archive, tmp_path, rng):
    root = tmp_path / "set"
    write_folder(root, rng, {"a": 2, "c": 2})
    (root / "b").mkdir()
    (root / "b" / ".keep").write_text("")
    (root / "notes").mkdir()
    (root / "notes" / "readme.md").write_text("no class: it has files and none is an image")
    peer = ImageFolder(root, allow_empty=True)
    source = root
    if archive:
        (root / "b" / ".keep").unlink()
        source = zipped(root, tmp_path / "set.zip")
        with zipfile.ZipFile(source, "a") as out:
            out.mkdir("b")
            out.mkdir("a")  # folders with files have entries, too
    images = load_images(source)
    assert images.class_names == ("a", "b", "c")
    assert images.y.tolist() == [peer.class_to_idx[name] for name in "aacc"]


@given(
    st.sets(st.sampled_from("abcdef"), min_size=2),
    st.sets(st.sampled_from("abcdef"), min_size=2),
    st.sets(st.sampled_from("abcdef"), max_size=2),
)
def test_numbers_do_not_depend_on_the_split(train, test, empty):
    from wgeo.data.layout import arrange, classify_files

    names = [f"train/{c}/0.png" for c in train] + [f"test/{c}/0.png" for c in test]
    names += [f"test/{c}/" for c in empty - test]
    random.Random(0).shuffle(names)
    listing = classify_files(names)
    for split, classes in (("train", train), ("test", test | empty)):
        found = arrange(listing, split, Path("x"), lambda name: b"")
        shared = (train & (test | empty)) != set()
        union = sorted(train | test | empty) if shared else sorted(classes)
        assert list(found.class_names) == union
        assert [found.class_names[k] for k in found.labels] == [
            n.split("/")[1] for n in found.names
        ]
        lacks = shared and set(union) - train
        assert any("lacks" in note for note in found.notes) == bool(lacks)


def test_splits_without_a_common_class_are_numbered_separately(tmp_path, rng):
    write_folder(tmp_path / "few", rng, {"train/a": 2, "train/c": 2, "val/b": 2, "val/d": 2})
    assert load_images(tmp_path / "few", "train").class_names == ("a", "c")
    with pytest.warns(WgeoWarning, match="lacks 2 of the 4 classes"):
        assert load_images(tmp_path / "few", "all").class_names == ("a", "b", "c", "d")


def test_class_missing_from_the_training_split_is_reported(tmp_path, rng):
    write_folder(tmp_path / "a", rng, {"train/b": 2, "train/c": 2, "test/a": 2, "test/b": 2})
    with pytest.warns(WgeoWarning, match=r"'train' lacks 1 of the 3 classes \(a\)"):
        images = load_images(tmp_path / "a", "test")
    assert images.y.tolist() == [0, 0, 1, 1]
    assert images.facts()["notes"] == list(images.notes) != []


def test_numbered_class_folders_are_in_torchvisions_order_which_is_reported(tmp_path, rng):
    write_folder(tmp_path / "twelve", rng, {str(k): 2 for k in range(12)})
    with pytest.warns(WgeoWarning, match=r"class 2 is '10', not '2'.*CSV"):
        images = load_images(tmp_path / "twelve")
    peer = ImageFolder(tmp_path / "twelve")
    assert list(images.class_names) == peer.classes
    assert images.y.tolist() == peer.targets
    write_folder(tmp_path / "ten", rng, {str(k): 2 for k in range(10)})
    assert load_images(tmp_path / "ten").notes == ()  # both orders are one


# --- copies ----------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 4), min_size=2, max_size=30), st.sampled_from(["uint8", "float32"]))
def test_copies_are_found_exactly(kinds, dtype):
    x = torch.zeros((len(kinds), 1, 2, 3), dtype=getattr(torch, dtype))
    x[:, 0, 1, 2] = torch.tensor(kinds).to(x.dtype) / (1 if dtype == "uint8" else 8)
    y = np.arange(len(kinds)) % 2
    images = Images(x.transpose(2, 3), y, ("a", "b"), "test")  # not contiguous
    assert images.copies_of.tolist() == [kinds.index(kind) for kind in kinds]
    assert images.distinct.tolist() == sorted({kinds.index(kind) for kind in kinds})
    facts = images.facts()
    assert facts["distinct"] == len(set(kinds)) == len(kinds) - facts["duplicates"]
    differ = [y[i] != y[kinds.index(kind)] for i, kind in enumerate(kinds)]
    assert facts["relabelled"] == sum(differ)


# --- tables ----------------------------------------------------------------------------------


def flat(root: Path, rng, count: int = 6, name: str = "{}.png") -> list[np.ndarray]:
    """Write images into one folder; return their pixels (c, h, w)."""
    root.mkdir(parents=True)
    pixels = []
    for i in range(count):
        image = picture(rng)
        image.save(root / name.format(i))
        pixels.append(np.asarray(image).transpose(2, 0, 1))
    return pixels


@pytest.mark.parametrize(
    "lines",
    [
        ["file,label", *(f"images/{i}.png,{'cat' if i % 2 else 'dog'}" for i in range(6))],
        ["id;breed", *(f"{i};{'cat' if i % 2 else 'dog'}" for i in range(6))],
        ["label\tname\tage", *(f"{'cat' if i % 2 else 'dog'}\t{i}.png\t3" for i in range(6))],
        [f"./images/{i}.png,{'cat' if i % 2 else 'dog'}" for i in range(6)],
        ["path,class", *(f'"/home/me/x/{i}.png","{"cat" if i % 2 else "dog"}"' for i in range(6))],
        ["img,y", *(f"..\\..\\{i}.png,{'cat' if i % 2 else 'dog'}" for i in range(6))],
    ],
)
@pytest.mark.parametrize("home", ["", "images/"])
def test_a_csv_names_the_classes(lines, home, tmp_path, rng):
    root = tmp_path / "set"
    pixels = flat(root / "images", rng)
    (root / f"{home}my.csv").write_text("\n".join(lines))
    for source in (root, root / f"{home}my.csv", zipped(root, tmp_path / "set.zip")):
        images = load_images(source)
        assert images.class_names == ("cat", "dog")
        assert images.y.tolist() == [1, 0, 1, 0, 1, 0]
        assert np.array_equal(images.x.numpy(), np.stack(pixels))


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("metadata.jsonl", '{{"label": {1}, "file_name": "{0}.png"}}'),
        ("list.txt", "set/{0}.png {1}"),
    ],
)
def test_lists_that_are_no_csv(table, line, tmp_path, rng):
    flat(tmp_path / "set", rng, 6, "{}.png")
    labels = [2, 0, 1, 1, 0, 2]
    (tmp_path / "set" / table).write_text("\n".join(line.format(*row) for row in enumerate(labels)))
    images = load_images(tmp_path / "set")
    assert images.y.tolist() == labels


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("noise.npy", "np.savez"),
        ("shard-0.tar", "Unpack the archive"),
        ("split.json", "into a CSV"),
        ("scan.dcm", "Convert images to PNG"),
        ("data.beton", "Read it in Python"),
    ],
)
def test_other_files_are_named_with_what_to_do(name, says, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / name).write_bytes(b"x" * 600)
    for path in (tmp_path / "set", tmp_path / "set" / name):
        with pytest.raises(DataError, match=says):
            load_images(path)


def test_images_and_their_table_in_one_folder(tmp_path, rng):
    flat(tmp_path / "set", rng)
    (tmp_path / "set" / "labels.txt").write_text("".join(f"{i}.png {i % 3}\n" for i in range(6)))
    images = load_images(tmp_path / "set")
    assert images.class_names == ("0", "1", "2")
    assert images.y.tolist() == [0, 1, 2, 0, 1, 2]


def test_a_table_with_splits_and_rows_of_absent_images(tmp_path, rng):
    flat(tmp_path / "set" / "images", rng, 8)
    rows = [f"{i}.png,{'abc'[i % 3]},{'train' if i < 4 else 'test'}" for i in range(10)]
    (tmp_path / "set" / "all.csv").write_text("\n".join(["filename,label,split", *rows]))
    with pytest.warns(WgeoWarning, match="ignored 2 rows of all.csv whose image is missing"):
        test = load_images(tmp_path / "set", "test")
    assert (test.split, test.y.tolist()) == ("test", [1, 2, 0, 1])
    with pytest.raises(DataError, match="no split 'val'; it has 'test', 'train'"):
        load_images(tmp_path / "set" / "all.csv", "val")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("LOC_val_solution.csv", "ImageId,PredictionString\n{}"),
        ("val.txt", "{}"),
        ("imagenet_2012_validation_synset_labels.txt", "{}"),
    ],
)
def test_imagenets_validation_set_as_shipped(file, text, tmp_path, rng):
    root = tmp_path / "imagenet"
    names = "ILSVRC2012_val_{:08}.JPEG"
    flat(root / "val", rng, 6, names)
    write_folder(root / "train", rng, {"n01": 2, "n02": 2, "n03": 2, "n04": 2})
    wnids = ["n03", "n01", "n02", "n03", "n01", "n02"]
    rows = {
        "LOC_val_solution.csv": [
            f"{names.format(i)[:-5]},{w} 1 2 3 4 {w} 5 6 7 8" for i, w in enumerate(wnids)
        ],
        "val.txt": [f"{names.format(i)} {int(w[1:]) - 1}" for i, w in enumerate(wnids)],
    }.get(file, wnids)
    (root / file).write_text(text.format("\n".join(rows)))
    images = load_images(root, "val")
    assert images.class_names == ("n01", "n02", "n03", "n04")
    assert images.y.tolist() == [2, 0, 1, 2, 0, 1]
    assert images.split == "val"
    assert load_images(root, "train").class_names == ("n01", "n02", "n03", "n04")
    with pytest.raises(DataError, match="no split 'test'"):
        load_images(root, "test")


def test_the_development_kits_numbers_are_refused(tmp_path, rng):
    flat(tmp_path / "imagenet" / "val", rng, 6, "ILSVRC2012_val_{:08}.JPEG")
    truth = tmp_path / "imagenet" / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("490\n361\n171\n822\n297\n482\n")
    with pytest.raises(DataError, match=r"networks do not use.*LOC_val_solution"):
        load_images(tmp_path / "imagenet", "val")


def test_tiny_imagenet_as_shipped(tmp_path, rng):
    root = tmp_path / "tiny-imagenet-200"
    write_folder(root, rng, {f"train/n0{k}/images": 2 for k in range(3)})
    flat(root / "val" / "images", rng, 6, "val_{}.JPEG")
    flat(root / "test" / "images", rng, 3, "test_{}.JPEG")
    (root / "val" / "val_annotations.txt").write_text(
        "".join(f"val_{i}.JPEG\tn0{2 - i // 3}\t0\t0\t62\t62\n" for i in range(6))
    )
    (root / "train" / "n00" / "n00_boxes.txt").write_text("n00_0.JPEG\t0\t0\t1\t1\n")
    val = load_images(root, "val")
    assert val.class_names == load_images(root, "train").class_names == ("n00", "n01", "n02")
    assert val.y.tolist() == [2, 2, 2, 1, 1, 1]
    assert load_images(root, "all").class_names == ("n00", "n01", "n02")
    with pytest.raises(DataError, match=r"no split 'test' .* it has 'train'"):
        load_images(root, "test")


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({}, r"one class only.*a CSV \(file, label\)"),
        ({"a.csv": "file,label\nnobody.png,1"}, r"No row of a\.csv names one of its images"),
        ({"a.jsonl": '{"file_name": "0.png", "label"'}, r"a\.jsonl' cannot be read"),
        ({"a.csv": "file,label\n0.png,1\n0.png,2"}, "gives '.*0.png' two labels"),
        ({"a.csv": "0.png,1\n1.png,2", "b.csv": "0.png,2\n1.png,1"}, "several tables"),
        ({"a.csv": "file,label\n" + "x" * 200_000 + ",1"}, "cannot be read"),
        ({"a.csv": "0.png,3000000\n1.png,0"}, "out of range"),
        ({"a.csv": ""}, "one class only"),
        (
            {"a.csv": "file,cat,dog\n0.png,1,0\n1.png,0,1"},
            r"no column of labels among cat, dog.*argmax",
        ),
        ({"a.csv": "file,label\n0.png,0.5\n1.png,1"}, "whole numbers"),
        ({"a.csv": "file,label\n0.png,-1\n1.png,1"}, "Label -1 .* out of range"),
    ],
)
def test_unusable_tables_are_refused(tables, says, tmp_path, rng):
    flat(tmp_path / "set" / "images", rng)
    for name, text in tables.items():
        (tmp_path / "set" / name).write_text(text)
    with pytest.raises(DataError, match=says):
        load_images(tmp_path / "set")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_labels_of_a_table_that_pandas_wrote_as_floats(encoding, tmp_path, rng):
    flat(tmp_path / "set" / "images", rng, 12)
    rows = "".join(f"{i}.png,{float(i - 1)}\n" for i in range(1, 12))
    (tmp_path / "set" / "a.csv").write_bytes(f"file,label\n0.png,\n{rows}".encode(encoding))
    with pytest.warns(WgeoWarning, match="ignored 1 row of a.csv without a label"):
        images = load_images(tmp_path / "set")
    assert images.class_names == tuple(map(str, range(11)))  # 10 after 9, not after 1
    assert sorted(images.y.tolist()) == list(range(11))


@pytest.mark.parametrize(
    ("table", "first", "line"),
    [("labels.csv", "title", "{},{}"), ("list.txt", "images", "{} {}")],
)
def test_a_first_line_without_a_label_is_skipped(table, first, line, tmp_path, rng):
    flat(tmp_path / "set", rng, 4)
    rows = [line.format(f"{k}.png", k % 2) for k in range(4)]
    (tmp_path / "set" / table).write_text("\n".join([first, *rows]))
    assert load_images(tmp_path / "set").y.tolist() == [0, 1, 0, 1]


def test_unreadable_tables_are_named(tmp_path, rng):
    root = tmp_path / "set"
    flat(root, rng, 2)
    (root / "labels.csv").write_text("file,label\n0.png,0\n1.png,1\n")
    damaged = zipped(root, tmp_path / "set.zip")
    with zipfile.ZipFile(damaged) as archive:
        info = archive.getinfo("labels.csv")
    body = bytearray(damaged.read_bytes())
    body[info.header_offset + 30 + len("labels.csv") + 1] ^= 255
    damaged.write_bytes(body)
    (root / "labels.csv").unlink()
    (root / "labels.csv").symlink_to(tmp_path / "absent.csv")
    for source in (root, damaged):
        with pytest.raises(DataError, match=r"table 'labels.csv' cannot be read"):
            load_images(source)


def test_a_split_of_another_name_is_named(tmp_path, rng):
    write_folder(
        tmp_path / "a", rng, {f"{s}/{c}": 2 for s in ("Training", "Testing") for c in "xy"}
    )
    with pytest.raises(
        DataError, match=r"it has 'Testing', 'Training': choose one.*\(`split=`\).$"
    ):
        load_images(tmp_path / "a")
    assert load_images(tmp_path / "a", "Testing").split == "Testing"
    write_folder(tmp_path / "b", rng, {f"{s}/{c}": 2 for s in ("cat", "dog") for c in "xy"})
    with pytest.raises(DataError, match="If these are classes, move their images"):
        load_images(tmp_path / "b")


def test_a_table_opens_nothing_outside_its_folder(tmp_path, rng):
    flat(tmp_path / "outside", rng, 2, "secret{}.png")
    flat(tmp_path / "set", rng, 2)
    table = tmp_path / "set" / "a.csv"
    table.write_text("../outside/secret0.png,1\n../outside/secret1.png,2\n")
    with pytest.raises(DataError, match="names no image below its folder"):
        load_images(table)


def test_two_splits_without_classes_are_no_classes(tmp_path, rng):
    flat(tmp_path / "kaggle" / "train", rng, 4, "a{}.png")
    flat(tmp_path / "kaggle" / "test", rng, 4, "b{}.png")
    with pytest.raises(DataError, match="one class only, or without folders"):
        load_images(tmp_path / "kaggle")
    (tmp_path / "kaggle" / "train.csv").write_text("id,kind\na0,x\na1,y\na2,x\na3,y")
    images = load_images(tmp_path / "kaggle")
    assert (images.split, images.y.tolist()) == ("train", [0, 1, 0, 1])


def test_ambiguous_name_is_refused(tmp_path, rng):
    flat(tmp_path / "set" / "images" / "one", rng, 2)
    flat(tmp_path / "set" / "images" / "two", rng, 2)
    table = tmp_path / "set" / "a.csv"
    table.write_text("0.png,1\n1.png,2\n")
    with pytest.raises(DataError, match="names no image"):
        load_images(table)
    table.write_text("".join(f"images/{k}/{i}.png,{i}\n" for k in ("one", "two") for i in range(2)))
    assert load_images(table).y.tolist() == [0, 1, 0, 1]


# --- arrays ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keys",
    [("X", "Y"), ("X", "y"), ("data", "labels"), ("images", "labels"), ("image", "label"),
     ("data", "target"), ("inputs", "targets"), ("Data", "Labels"), ("arr_0", "arr_1")],
)  # fmt: skip
def test_arrays_by_their_usual_names(keys, tmp_path, rng):
    x, y = rng.integers(0, 256, (6, 4, 4), dtype=np.uint8), np.arange(6) % 3
    images = load_images(save_npz(tmp_path / "a.npz", **dict(zip(keys, (x, y), strict=True))))
    assert np.array_equal(images.x[:, 0].numpy(), x)
    assert images.y.tolist() == y.tolist()
    parts = {
        f"{k}_{part}": a for part in ("train", "test") for k, a in ((keys[0], x), (keys[1], y))
    }
    if keys[0] != "arr_0":
        split = load_images(save_npz(tmp_path / "b.npz", **parts), "test")
        assert (split.split, split.y.tolist()) == ("test", y.tolist())
    else:
        with pytest.raises(DataError, match="it needs x and y"):
            load_images(save_npz(tmp_path / "c.npz", arr_0=x, arr_1=y, arr_2=x, arr_3=y))


def test_classes_of_arrays_are_numbered_over_all_splits(tmp_path, rng):
    x = rng.integers(0, 256, (6, 4, 4), dtype=np.uint8)
    train, test = np.array([0, 1, 2, 3, 0, 1]), np.array([0, 2, 0, 2, 0, 2])
    both = {"x_train": x, "x_test": x}
    for y in ({"y_train": train, "y_test": test}, {"y_train": train + 1, "y_test": test + 1}):
        path = save_npz(tmp_path / "a.npz", **both, **y)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", WgeoWarning)
            images = load_images(path, "test")
        assert images.y.tolist() == test.tolist()
        assert images.num_classes == 4
    words = np.array(["ant", "bee", "cat", "dog"])
    path = save_npz(tmp_path / "a.npz", **both, y_train=words[train], y_test=words[test])
    assert load_images(path, "test").class_names == tuple(words)
    assert load_images(path, "test").y.tolist() == test.tolist()


def test_labels_starting_at_one_are_reported(tmp_path, rng):
    x, y = rng.integers(0, 256, (6, 4, 4), dtype=np.uint8), 1 + np.arange(6) % 3
    with pytest.warns(WgeoWarning, match="run from 1 to 3 and are shifted to 0 to 2"):
        images = load_images(save_npz(tmp_path / "a.npz", x=x, y=y))
    assert (images.class_names, images.y.tolist()) == (("1", "2", "3"), [0, 1, 2, 0, 1, 2])
    names = np.array(["none", "a", "b", "c"])
    images = load_images(save_npz(tmp_path / "b.npz", x=x, y=y, class_names=names))
    assert (images.class_names, images.y.tolist()) == (tuple(names), y.tolist())
    with pytest.warns(WgeoWarning, match="from 1 to 3"):
        images = load_images(save_npz(tmp_path / "c.npz", x=x, y=y, class_names=names[1:]))
    assert (images.class_names, images.y.tolist()) == (("a", "b", "c"), [0, 1, 2, 0, 1, 2])
    for kept in (2 * y, 1 + y, np.where(y == 2, 4, y)):  # not exactly 1, ..., K
        assert load_images(save_npz(tmp_path / "d.npz", x=x, y=kept)).y.tolist() == kept.tolist()


def test_one_hot_and_text_labels_are_read(tmp_path, rng):
    x, y = rng.integers(0, 256, (6, 4, 4), dtype=np.uint8), np.arange(6) % 3
    for dtype in (bool, np.uint8, np.float32):
        hot = np.eye(3, dtype=dtype)[y]
        assert load_images(save_npz(tmp_path / "a.npz", x=x, y=hot)).y.tolist() == y.tolist()
    words = np.array(["2", "10", "9"])[y]
    for text in (words, words.astype("S")):  # bytes, as h5py and NumPy's "S" have them
        images = load_images(save_npz(tmp_path / "a.npz", x=x, y=text))
        assert images.y.tolist() == [2, 10, 9, 2, 10, 9]
    images = load_images(
        save_npz(tmp_path / "a.npz", x=x, y=np.array([b"b", b"\xc3\xa9", b"a"])[y])
    )
    assert (images.class_names, images.y.tolist()) == (("a", "b", "\u00e9"), [1, 2, 0, 1, 2, 0])
    soft = np.full((6, 3), 1 / 3)
    with pytest.raises(DataError, match=r"have shape \(6, 3\). For one column per class.*argmax"):
        load_images(save_npz(tmp_path / "a.npz", x=x, y=soft))


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (np.zeros((6, 784), np.uint8), r"flat: reshape them to \(n, 28, 28\)"),
        (np.zeros((6, 3072), np.uint8), r"\(n, 3, 32, 32\) or \(n, 32, 32, 3\)"),
        (np.full((6, 4, 4), -1.0), "already normalized.*the pair"),
        (np.full((6, 4, 4), 255.0), "divide by the largest"),
        (np.eye(4, dtype=np.uint8)[None].repeat(6, 0), "from 0 to 1, which is black"),
    ],
)
def test_error_for_unusable_arrays_says_what_to_do(x, says, tmp_path):
    with pytest.raises(DataError, match=says):
        load_images(save_npz(tmp_path / "a.npz", x=x, y=np.arange(6) % 2))
