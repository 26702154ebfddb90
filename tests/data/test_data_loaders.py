"""Data sets and loaders of torch stand for images: the same numbers as the pair they hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

import wgeo
from wgeo.data.loaders import as_images
from wgeo.errors import ArgumentError, DataError, WgeoWarning
from wgeo.models import build


@pytest.fixture
def pair():
    rng = torch.Generator().manual_seed(0)
    return torch.randn((21, 1, 8, 8), generator=rng), torch.arange(21) % 3  # normalized: below 0


class Items(Dataset):
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, row):
        return self.items[row]


class Stream(IterableDataset):
    def __init__(self, pairs):
        self.pairs = pairs

    def __iter__(self):
        return iter(self.pairs)


def same(images, x, y):
    assert torch.equal(images.x, x)
    assert images.y.tolist() == y.tolist()


def test_loader_data_set_stream_and_pairs_agree(pair):
    x, y = pair
    data = TensorDataset(x, y)
    for given in (
        pair,
        list(pair),
        (x.numpy(), y.numpy()),
        data,
        DataLoader(data, batch_size=4),
        DataLoader(data, batch_size=None),
        DataLoader(data, batch_size=7, drop_last=True),
        Items(list(zip(x, y.tolist(), strict=True))),
        Items([{"pixel_values": a, "label": b, "i": ""} for a, b in zip(*pair, strict=True)]),
        Stream(list(zip(x, y, strict=True))),
        DataLoader(Stream(list(zip(x, y, strict=True))), batch_size=4),
    ):
        images = as_images(given)
        same(images, x, y)
        assert images.normalize.name == "none"  # taken as it is, whatever the network asks
    assert as_images(images) is images


def test_images_of_a_loader_are_used_unchanged(pair):
    torch.manual_seed(0)
    net = build("cifar_resnet8", in_channels=1, num_classes=3).eval()
    expected = wgeo.trace(net, pair)
    data = TensorDataset(*pair)
    for given in (data, DataLoader(data, batch_size=4)):
        found = wgeo.trace(net, given)
        assert np.array_equal(found.last, expected.last)
        assert found.accuracy == expected.accuracy
    with pytest.warns(WgeoWarning, match="shuffles; its data set was read in its own order"):
        shuffled = wgeo.trace(net, DataLoader(data, batch_size=4, shuffle=True))
    assert np.array_equal(shuffled.last, expected.last)
    assert shuffled.settings["data_notes"]
    streamed = wgeo.collapse(lambda: wgeo.stream(net, DataLoader(data, batch_size=4)))
    whole = wgeo.collapse(expected)
    assert streamed.layers[-1].nc1 == pytest.approx(whole.layers[-1].nc1, rel=1e-6)


def test_pixels_are_normalized_as_the_network_asks(pair):
    """uint8 cannot be normalized yet; PIL images are uint8."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
    data = Items([(Image.fromarray(p), k % 2) for k, p in enumerate(pixels)])
    data.classes = ["cat", "dog"]
    images = as_images(Subset(data, range(6)))
    assert np.array_equal(images.x.numpy(), pixels.transpose(0, 3, 1, 2))
    assert images.normalize is None
    assert (images.class_names, images.name) == (("cat", "dog"), "Items")
    grey = as_images(Items([(Image.fromarray(p[..., 0]), k % 2) for k, p in enumerate(pixels)]))
    assert np.array_equal(grey.x[:, 0].numpy(), pixels[..., 0])


def test_samplers(pair):
    x, y = pair
    data = TensorDataset(x, y)
    with pytest.warns(WgeoWarning, match="its subset was read"):
        some = as_images(DataLoader(data, batch_size=4, sampler=SubsetRandomSampler([9, 3, 7])))
    same(some, x[[3, 7, 9]], y[[3, 7, 9]])
    for loader in (
        DataLoader(data, batch_size=5, drop_last=True),
        DataLoader(data, batch_sampler=BatchSampler(SequentialSampler(data), 5, True)),
        DataLoader(data, sampler=SequentialSampler(range(20))),
        DataLoader(Stream(list(zip(x, y, strict=True))), batch_size=5, drop_last=True),
    ):
        same(as_images(loader), x[:20], y[:20])
    batches = BatchSampler(SubsetRandomSampler([9, 3, 7]), 2, False)
    with pytest.warns(WgeoWarning, match="its subset was read"):
        same(as_images(DataLoader(data, batch_sampler=batches)), x[[3, 7, 9]], y[[3, 7, 9]])
    for sampler in (
        RandomSampler(data, replacement=True),
        RandomSampler(data, num_samples=5),
        WeightedRandomSampler([1.0] * 21, 21),
    ):
        with pytest.raises(ArgumentError, match="can draw different samples"):
            as_images(DataLoader(data, batch_size=4, sampler=sampler))
        with pytest.raises(ArgumentError, match="can draw different samples"):
            as_images(DataLoader(data, batch_sampler=BatchSampler(sampler, 4, False)))


def test_labels_and_pixels_of_pairs_are_in_range(pair):
    x, y = pair
    with pytest.raises(DataError, match=r"Label 1e\+07 of sample 20 in arrays is out of range"):
        as_images((x, [*y[:-1].tolist(), 10**7]))
    masks = (x > 0).to(torch.uint8)
    with pytest.raises(DataError, match=r"integers from 0 to 1.*Multiply"):
        as_images((masks, y))
    same(as_images((masks * 255, y)), masks * 255, y)


def test_random_state_is_restored_and_random_transforms_are_reported(pair):
    class Noisy(Items):
        def __getitem__(self, row):
            image, label = self.items[row]
            return image + torch.randn(()), label

    torch.manual_seed(3)
    with pytest.warns(WgeoWarning, match="a different image each time"):
        as_images(Noisy(list(zip(*pair, strict=True))))
    noiseless = torch.random.get_rng_state()
    as_images(TensorDataset(*pair))
    assert torch.equal(noiseless, torch.random.get_rng_state())


def test_workers_and_memory_do_not_affect_the_images(pair, monkeypatch):
    x, y = pair
    same(as_images(DataLoader(TensorDataset(x, y), batch_size=4, num_workers=1)), x, y)
    monkeypatch.setattr("wgeo.data.pixels.total_memory", lambda: 10)
    monkeypatch.setattr("wgeo.data.pixels.available_bytes", lambda: 10)
    filed = as_images(TensorDataset(x, y))
    same(filed, x, y)


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        (3, ArgumentError, "not int"),
        ("digits", ArgumentError, "not str"),
        (nn.Linear(2, 2), ArgumentError, "not Linear"),
        (Items([]), DataError, "empty"),
        (Items([torch.zeros(1, 2, 2)] * 4), DataError, "must return pairs"),
        (Items([(torch.zeros(1, 2, 2), torch.zeros(3))] * 4), DataError, "must return pairs"),
        (Items([(torch.zeros(1, 2, 2), "cat")] * 4), DataError, "pairs"),
        (Items([(torch.zeros(1, k, 2), 0) for k in (2, 3)]), DataError, "shape"),
        (Items([(torch.full((1, 2, 2), float("nan")), 0)] * 4), wgeo.WgeoError, "NaN"),
        (Items([(object(), 0)] * 4), DataError, "cannot be read"),
        (Stream([]), DataError, "empty"),
    ],
)
def test_objects_that_are_not_image_data_sets_are_refused(given, error, says):
    with pytest.raises(error, match=says):
        as_images(given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint16, torch.uint64])
def test_pixels_up_to_255_of_another_type_than_uint8_are_told(dtype):
    pair = ((255 * torch.rand(6, 3, 8, 8)).to(dtype), np.arange(6) % 2)
    kind = "floats" if dtype.is_floating_point else "integers"
    with pytest.warns(WgeoWarning, match=f"{kind} from .* count as already normalized; pass uint8"):
        images = as_images(pair)
    assert images.notes
    with pytest.raises(ArgumentError, match="argmax"):
        as_images((pair[0], np.eye(2)[pair[1]]))
