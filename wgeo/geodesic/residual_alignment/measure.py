"""`alignment`: residual Jacobians of a network's blocks at some images, and their comparison."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from ...arrays.checks import as_count
from ...arrays.rows import spaced_rows
from ...checkpoints import Network
from ...data.loaders import as_images
from ...errors import ArgumentError
from ...features.layout import find_layouts
from ...features.network import inputs, module_of, sample
from ...features.residual_blocks import find_blocks
from ...runtime.progress import track
from ..jacobian import differentiable_everywhere
from .branches import runs_of, visits
from .result import Alignment, BlockJacobian, PairAlignment, SegmentAlignment
from .runs import Run, Settings

_VECTORS = 10
_TOLERANCE = 1e-2  # relative to s_K; overlaps then have errors of about 0.01


def alignment(
    net: Network | nn.Module,
    images: Any,
    *,
    layers: Sequence[str] | None = None,
    vectors: int | None = None,
    points: int = 16,
    steps: int | None = None,
    tolerance: float = _TOLERANCE,
    probes: int = 8,
    jacobian: str = "residual",
    seed: int = 0,
) -> Alignment:
    """Measure whether the blocks of a network do the same thing to first order.

    The residual Jacobian of a block a(x + F(x)), with branch F and last activation a (which may be
    the identity), leaves out the shortcut:

        J = a'(x + F(x)) F'(x).

    U, S and V are its K largest singular triplets. Blocks i and j are compared by two measures:

        overlap_uv(i, j) = ||U_i^T V_j||_F^2 / K
        coupling(i, j) = || abs(U_j^T J_i V_j) - S_i ||_F / ||S_i||_F

    A third measure is the slope of dt / s_k over t, where s_k is a block's k-th singular value, dt
    the fraction of the path's length that the block covers, and t that of all blocks before it. The
    slope is 1 along a geodesic that expands, and -1 along one that contracts.

    The coupling is that of Aubry, Meng, Sugolov and Papyan (2025, arXiv:2407.07810). The overlap
    and the slope are wgeo's summaries of the matrices that Li and Papyan (2023, arXiv:2401.09018)
    plot for their claims RA2 and RA4. All arithmetic is in float64.

    Parameters
    ----------
    net : Network or nn.Module
    images : Images, (x, labels), Dataset or DataLoader
    layers : sequence of str, optional
        Modules to use as blocks instead of detected ones.
    vectors : int, optional
        K; by default 10, or the number of classes of `images` if that is less.
    points : int
        Number of images at which J is computed, evenly spaced in `images`; all if there are fewer.
    steps : int, optional
        Maximum number of Lanczos steps per point and block, more than K; by default 4 K + 20. Each
        takes two products with J or J^T.
    tolerance : float
        The steps of a point stop when its `BlockJacobian.residual` is at most this.
    probes : int
        Number of random sign vectors that estimate a block's share, participation and asymmetry.
        Each takes three products. The values are exact from as many probes as dimensions.
    jacobian : str
        ``residual``: J as above, of all features. ``branch``: F'(x) alone. ``pooled``: J between
        features that are constant over space (channels x channels), as for global average pooling.
        ``token`` or ``token:INDEX``: J of one token (d x d), by default the last, as for the
        transformers of Aubry et al.
    seed : int
        Random seed; every block and every point has a different random start.

    Returns
    -------
    Alignment
        ``left_out`` names the blocks that were not compared: those that change the feature space,
        run several times, or do not map a tensor of samples to one tensor, and residual sums in the
        network's own forward method.

    Raises
    ------
    ArgumentError
        `points`, `probes`, `vectors` or `steps` is not a whole number of at least 1, or `seed` of
        at least 0; `steps` is at most K, `tolerance` is negative, `jacobian` is unknown or does not
        fit the features, or a block has no Jacobian at a point because its samples influence each
        other or it cannot run in float64.
    FeatureError
        No block was found, or a module of `layers` does not exist or did not run.

    Examples
    --------
    Three blocks x + W x with the same symmetric W of rank 2, so that all are aligned:

    >>> import torch
    >>> import wgeo
    >>> class Block(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.linear = torch.nn.Linear(6, 6, bias=False)
    ...         self.linear.weight.data = torch.diag(torch.tensor([0.5, 0.25, 0, 0, 0, 0]))
    ...
    ...     def forward(self, x):
    ...         return x + self.linear(x)
    >>> net = torch.nn.Sequential(Block(), Block(), Block(), torch.nn.Linear(6, 2))
    >>> x, labels = torch.randn(20, 6), torch.arange(20) % 2
    >>> result = wgeo.alignment(net, (x, labels), points=4)
    >>> [round(result.segments[0].overlap_uv, 3), round(result.blocks[0].sign, 3)]
    [1.0, 1.0]
    """
    start_time = time.perf_counter()
    counts = {"points": points, "probes": probes, "vectors": vectors, "steps": steps}
    for name, value in counts.items():
        if value is not None:
            as_count(value, name, 1)
    seed = as_count(seed, "seed")
    kind, index = _parse(jacobian)
    module, images = module_of(net), as_images(images)
    count = vectors or min(_VECTORS, len(np.unique(images.y)))
    steps = 4 * count + 20 if steps is None else steps
    if steps <= count or not tolerance >= 0:
        raise ArgumentError("steps must be more than vectors, and tolerance at least 0.")
    small_batch = sample(net, module, images)
    specs = find_blocks(module, small_batch, layers)
    x = inputs(net, images, spaced_rows(len(images), points))
    layouts = (
        {} if kind in ("residual", "branch") else find_layouts(module, specs, "post", small_batch)
    )
    block_calls, left_out = visits(module, x, specs)
    for visit in block_calls:
        if not visit.keeps_space:
            left_out[visit.spec.name] = "it changes the feature space"
    settings = Settings(kind, index, layouts, count, steps, tolerance, probes, seed)
    runs = runs_of(block_calls)
    blocks: list[BlockJacobian] = []
    pairs: list[PairAlignment] = []
    segments: list[SegmentAlignment] = []
    first_index = 0
    with differentiable_everywhere():
        for run in track(runs, "comparing residual Jacobians"):
            comparison = Run(run, first_index, settings)
            blocks += comparison.blocks()
            pairs += comparison.pairs()
            segments += [comparison.segment()] if len(run) > 1 else []
            first_index += len(run)
    return Alignment(
        tuple(blocks),
        tuple(pairs),
        tuple(segments),
        jacobian=jacobian,
        vectors=count,
        points=len(x),
        left_out=left_out,
        reset_statistics=_has_initial_statistics(module),
        seconds=time.perf_counter() - start_time,
    )


def _parse(jacobian: Any) -> tuple[str, int]:
    """Parse ``token:0`` to ``("token", 0)``."""
    kind, separator, index = str(jacobian).partition(":")
    whole = index.removeprefix("-").isdecimal() if separator else True
    if kind not in ("residual", "branch", "pooled", "token") or not whole:
        raise ArgumentError(
            f"Unknown jacobian {jacobian!r}; choose residual, branch, pooled, token or token:INDEX."
        )
    if separator and kind != "token":
        raise ArgumentError(f"jacobian={jacobian!r}: only a token has an index.")
    return kind, int(index) if separator else -1


def _has_initial_statistics(module: nn.Module) -> bool:
    """Return whether there is batch normalization, all with its initial statistics."""
    norms = [
        (part.running_mean, part.running_var)
        for part in module.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm)
    ]
    statistics = [(mean, var) for mean, var in norms if mean is not None and var is not None]
    return bool(statistics) and all(
        not bool(mean.any()) and bool((var == 1).all()) for mean, var in statistics
    )
