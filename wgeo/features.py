"""Network and images in, features at every layer out: one forward pass for all blocks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn

from .arrays import as_array, as_labels, as_numpy, check_finite, pick_device
from .blocks import BlockSpec, evaluating, find_blocks, first_tensor, hooked, run
from .checkpoint import Network
from .data import Images, Normalization, normalization
from .errors import ArgumentError, FeatureError
from .models import classifier_of
from .progress import track
from .trajectory import Classifier, Layer, Trajectory

Pool = Callable[[torch.Tensor], torch.Tensor]


def pooling(pool: str) -> Pool:
    """Return the function that turns a batch of feature maps into a matrix (n, d).

    ``gap``
        Mean over space, what a convolutional network's classifier reads; mean over tokens.
    ``flat``
        Every entry.
    ``grid:K``
        K x K adaptive average over space, then flat; every pixel of maps smaller than that.
    ``cls``
        The first token.

    Raises
    ------
    ArgumentError
        An unknown name.
    """
    kind, _, size = pool.partition(":")
    if pool in ("gap", "flat", "cls") or (kind == "grid" and size.isdecimal() and int(size) > 0):
        side = int(size) if size else 0
        return lambda maps: _pooled(maps, kind, side)
    raise ArgumentError(f"Unknown pool {pool!r}; choose gap, flat, cls or grid:K (such as grid:2).")


def _pooled(maps: torch.Tensor, kind: str, side: int) -> torch.Tensor:
    if maps.ndim == 2 or kind == "flat":
        return maps.flatten(1)
    if maps.ndim == 3:  # (n, tokens, d)
        if kind == "grid":
            raise FeatureError("pool='grid:K' needs feature maps (n, c, h, w); these are tokens.")
        return maps[:, 0] if kind == "cls" else maps.mean(1)
    if maps.ndim != 4:
        raise FeatureError(f"Cannot pool features of shape {tuple(maps.shape)}; use pool='flat'.")
    if kind == "cls":
        raise FeatureError("pool='cls' needs tokens (n, t, d); these are feature maps. Use 'gap'.")
    if kind == "gap":
        return maps.mean((2, 3))
    h, w = maps.shape[2:]  # a finer grid would only repeat pixels
    return nn.functional.adaptive_avg_pool2d(maps, (min(side, h), min(side, w))).flatten(1)


def normalization_for(net: Network | nn.Module, images: Images) -> Normalization:
    """Return how pixels are normalised: as asked, else as the network, else as the data has it."""
    of_network = net.normalize if isinstance(net, Network) else None
    return images.normalize or normalization(of_network or images.preset)


def blocks(net: Network | nn.Module, images: Any, layers: Sequence[str] | None = None) -> list[str]:
    """Return the names of the blocks that `trace` would follow, in execution order.

    Parameters
    ----------
    net : Network or nn.Module
    images : Images, or (x, labels)
        A few are enough.
    layers : sequence of str, optional
        Modules to take instead of finding them; checked against the network.
    """
    images, module = _as_images(images), _module(net)
    return [spec.name for spec in find_blocks(module, _sample(net, module, images), layers)]


def inputs(
    net: Network | nn.Module, images: Any, rows: Int[np.ndarray, " r"]
) -> Float[torch.Tensor, "r ..."]:
    """Return some images as the network takes them: normalised, in its precision, on its device."""
    images, module = _as_images(images), _module(net)
    home, precision = _home(module)
    return normalization_for(net, images)(images.x[torch.from_numpy(rows)]).to(home, precision)


def trace(
    net: Network | nn.Module,
    images: Any,
    pool: str = "gap",
    tap: str = "post",
    *,
    layers: Sequence[str] | None = None,
    batch_size: int = 256,
    device: str | torch.device = "auto",
) -> Trajectory:
    """Follow labelled images through every block of a network.

    The layers are ``input`` (the normalised pixels, flat), ``stem`` (what enters the first block)
    and one for each block. Where a block changes the feature space, its own shortcut s gives the
    identification: the layer's ``entry`` is s(x) of the old layer's features.

    Parameters
    ----------
    net : Network or nn.Module
        Left as it was: weights, hooks, device, train or eval mode of every part.
    images : Images, or (x, labels)
        x (n, c, h, w) in [0, 1] if it is yet to be normalised by an `Images`; a plain pair is
        taken as it is.
    pool : str
        See `pooling`; the record says which.
    tap : {"post", "pre"}
        Take a block's features after its final activation, or the sum before it.
    layers : sequence of str, optional
        Names of modules to follow, for networks without residual blocks.
    batch_size : int
    device : str
        ``auto``, ``cpu``, ``cuda``, ``cuda:1``.

    Raises
    ------
    FeatureError
        No blocks, NaN in a layer (named), images the network cannot take.
    ArgumentError
        An unknown pool, tap or device.
    """
    images, module, where = _as_images(images), _module(net), pick_device(device)
    _check(images, pool, tap, batch_size)
    with _on(module, where):
        specs = find_blocks(module, _sample(net, module, images), layers)
        recorder = _Recorder(module, specs, pooling(pool), tap, len(images))
        batches = images.batches(batch_size, normalization_for(net, images))
        for x, _ in track(batches, "tracing features", -(-len(images) // batch_size)):
            recorder.follow(x, where)
    return _assemble(recorder, images, pool, tap)


def stream(
    net: Network | nn.Module,
    images: Any,
    pool: str = "gap",
    tap: str = "post",
    *,
    layers: Sequence[str] | None = None,
    batch_size: int = 256,
    device: str | torch.device = "auto",
) -> Iterator[tuple[dict[str, np.ndarray], np.ndarray, np.ndarray | None]]:
    """Follow labelled images as `trace` does, and hand out each batch as it comes.

    For `wgeo.collapse`, which needs no more at a time: ``wgeo.collapse(lambda: wgeo.stream(net,
    images))`` measures any number of images in the memory of a batch and of the class means.

    Parameters
    ----------
    net, images, pool, tap, layers, batch_size, device
        As in `trace`.

    Yields
    ------
    features : dict of str to ndarray, (b, d)
        By the layers' names, in execution order.
    labels : ndarray of int, (b,)
    predictions : ndarray of int, (b,), or None
        The network's decisions, where it returns logits.

    Raises
    ------
    FeatureError, ArgumentError
        As `trace`, when the first batch is asked for.
    """
    images, module, where = _as_images(images), _module(net), pick_device(device)
    _check(images, pool, tap, batch_size)
    with _on(module, where):
        specs = find_blocks(module, _sample(net, module, images), layers)
        names = ("input", "stem", *(spec.name for spec in specs))
        for x, y in images.batches(batch_size, normalization_for(net, images)):
            recorder = _Recorder(module, specs, pooling(pool), tap, len(x))
            recorder.follow(x, where)
            features = {name: recorder.arrays[name] for name in names}
            yield features, y, _decisions(recorder, y)


def _check(images: Images, pool: str, tap: str, batch_size: int) -> None:
    """Refuse what cannot be traced, before anything is computed."""
    pooling(pool)
    if tap not in ("post", "pre"):
        raise ArgumentError(f"Unknown tap {tap!r}; choose post (after the activation) or pre.")
    if batch_size < 1:
        raise ArgumentError(f"batch_size must be at least 1, not {batch_size}.")
    if len(images) < 2:
        raise FeatureError("At least two images are needed to say anything of a distribution.")


@dataclass
class _Recorder:
    """Holds the hooks' results: one array a layer, rows in the images' order."""

    module: nn.Module
    specs: tuple[BlockSpec, ...]
    pool: Pool
    tap: str
    n: int
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    start: int = 0

    def attach(self, keep: Callable[[Any], None]) -> None:
        """Hook the stem, every block's output (or sum), shortcuts and the classifier's input."""
        parts = dict(self.module.named_modules())

        def before(part: nn.Module, key: str) -> None:
            keep(part.register_forward_pre_hook(lambda _, args: self.put(key, first_tensor(args))))

        def after(part: nn.Module, key: str) -> None:
            keep(part.register_forward_hook(lambda _, args, out: self.put(key, out)))

        before(parts[self.specs[0].name], "stem")
        for spec in self.specs:
            if self.tap == "pre" and spec.activation is not None:
                before(parts[spec.activation], spec.name)  # reused activations: the last call wins
            else:
                after(parts[spec.name], spec.name)
            if spec.shortcut is not None:
                after(parts[spec.shortcut], f"{spec.name}.shortcut")
        for last, spec in pairwise(self.specs):
            if spec.residual and spec.shortcut is None:
                keep(parts[spec.name].register_forward_pre_hook(partial(self.enter, last, spec)))
        head = classifier_of(self.module)
        if head is not None:
            before(head, "head")

    def follow(self, x: torch.Tensor, where: torch.device) -> None:
        """Pass the next batch through the network."""
        _, precision = _home(self.module)
        with evaluating(self.module), torch.no_grad(), hooked() as keep:
            self.attach(keep)
            self.write("input", x.flatten(1))
            # A copy: the network may work in place, and these may be the caller's images.
            out = run(self.module, x.to(where, precision, copy=True))
        if isinstance(out, torch.Tensor) and out.ndim == 2:
            self.write("logits", out)
        self.start += len(x)

    def enter(self, last: BlockSpec, spec: BlockSpec, _: nn.Module, args: tuple[Any, ...]) -> None:
        """Where something between two blocks changed the space, begin with what enters the next.

        That is the image of the block's identity shortcut, in the space of its output.
        """
        maps = first_tensor(args)
        if maps is not None and tuple(maps.shape[1:]) != self.shapes.get(last.name):
            self.put(f"{spec.name}.shortcut", maps)

    def put(self, key: str, maps: Any) -> None:
        if not isinstance(maps, torch.Tensor):  # not what the probe saw
            raise FeatureError(f"{key!r} takes or returns {type(maps).__name__}, not a tensor.")
        self.shapes[key] = tuple(maps.shape[1:])
        # The copy into our own array is what keeps a later in-place activation out of it.
        self.write(key, maps.flatten(1) if key == "head" else self.pool(maps))

    def write(self, key: str, rows: torch.Tensor) -> None:
        if key not in self.arrays:
            self._reserve(rows.shape[1])
            kind = np.float64 if rows.dtype == torch.float64 else np.float32
            self.arrays[key] = np.empty((self.n, rows.shape[1]), kind)
        self.arrays[key][self.start : self.start + len(rows)] = as_numpy(rows)

    def _reserve(self, width: int) -> None:
        """Refuse features that cannot fit in this machine's memory, before they fill it."""
        held = sum(array.nbytes for array in self.arrays.values())
        asked = 4 * self.n * width
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if held + asked > 0.8 * there:
            raise FeatureError(
                f"The features need more than this machine's memory ({there / 2**30:.0f} GiB). "
                "Take fewer samples, or pool='gap' instead of 'flat'."
            )


def _assemble(recorder: _Recorder, images: Images, pool: str, tap: str) -> Trajectory:
    arrays, specs = recorder.arrays, recorder.specs
    layers = [Layer("input", arrays["input"], stage=None), Layer("stem", arrays["stem"], stage=0)]
    stage, shape = 0, recorder.shapes["stem"]
    for spec in specs:
        entry = arrays.get(f"{spec.name}.shortcut")
        if entry is not None or recorder.shapes[spec.name] != shape:
            stage, shape = stage + 1, recorder.shapes[spec.name]
        layers.append(Layer(spec.name, arrays[spec.name], stage, entry))
    for layer in layers:
        check_finite(torch.from_numpy(layer.features), f"layer {layer.name!r}")
    labels = as_labels(images.y, len(images))
    return Trajectory(
        layers=tuple(layers),
        labels=labels,
        predictions=_decisions(recorder, labels),
        classifier=_classifier(recorder, layers[-1]),
        class_names=tuple(images.class_names),
        settings={"pool": pool, "tap": tap, "data": images.name, "split": images.split},
    )


def _decisions(recorder: _Recorder, labels: np.ndarray) -> np.ndarray | None:
    """The classes the network decides for; refuses labels that it has no class for."""
    logits = recorder.arrays.get("logits")
    if logits is None:
        return None
    if labels.max() >= logits.shape[1]:
        raise FeatureError(
            f"The data has label {labels.max()}, the network decides among {logits.shape[1]} "
            "classes. Is this the data set it was trained on?"
        )
    return logits.argmax(1).astype(np.int64)


def _classifier(recorder: _Recorder, last: Layer) -> Classifier | None:
    """The last linear layer, if it is true that it reads the last layer's features."""
    head = classifier_of(recorder.module)
    read = recorder.arrays.get("head")
    if head is None or read is None or read.shape != last.features.shape:
        return None
    if not np.allclose(read, last.features, rtol=1e-4, atol=1e-4 * float(np.abs(read).max())):
        return None
    weight = as_numpy(head.weight)
    bias = np.zeros(len(weight), weight.dtype) if head.bias is None else as_numpy(head.bias)
    return Classifier(weight.copy(), bias.copy())


def _as_images(images: Any) -> Images:
    if isinstance(images, Images):
        return images
    if isinstance(images, tuple) and len(images) == 2:
        x, y = images
        x = (
            x
            if isinstance(x, torch.Tensor)
            else torch.from_numpy(np.ascontiguousarray(as_array(x, "images")))
        )
        labels = as_labels(y, len(x))
        names = tuple(str(k) for k in range(int(labels.max()) + 1))
        check_finite(x, "images")
        none = normalization("none")
        return Images(x, labels, names, "arrays", None, none, None)
    raise ArgumentError("images must come from wgeo.load_images, or be a pair (x, labels).")


def _sample(net: Network | nn.Module, module: nn.Module, images: Images) -> torch.Tensor:
    """Normalised images on the network's device, to probe it with.

    Two of the data's, and the two with noise: images that are all alike would tell nothing.
    """
    x, _ = next(iter(images.batches(2, normalization_for(net, images))))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return torch.cat([x, x + noise.to(x)]).to(*_home(module))


def _module(net: Any) -> nn.Module:
    module = net.module if isinstance(net, Network) else net
    if not isinstance(module, nn.Module):
        raise ArgumentError(f"net must be an nn.Module or a Network, not {type(module).__name__}.")
    return module


def _home(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Where a network's weights lie, and their precision."""
    first = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    return first.device, first.dtype


@contextmanager
def _on(module: nn.Module, device: torch.device) -> Iterator[None]:
    """Move a network to a device, and back."""
    home, _ = _home(module)
    if home == device or not any(True for _ in module.parameters()):
        yield
        return
    module.to(device)
    try:
        yield
    finally:
        module.to(home)
