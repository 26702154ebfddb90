"""Sinkhorn iterations of other packages, which return potentials at one epsilon.

Epsilon refers to the cost ||x - y||^2. GeomLoss uses half this cost: for the same plan, its epsilon
and its potentials are half of ours, and ``blur = sqrt(eps / 2)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float

from ..errors import DependencyError
from .point_clouds import PointClouds

Engine = Callable[[PointClouds, float, float], torch.Tensor]


def geomloss(clouds: PointClouds, eps: float, scaling: float) -> Float[torch.Tensor, " m"]:
    """Return the potential g from GeomLoss (Feydy et al. 2019), which stores n x m matrices."""
    from geomloss import SamplesLoss

    loss = SamplesLoss(
        "sinkhorn",
        p=2,
        blur=math.sqrt(eps / 2),
        scaling=scaling,
        debias=False,
        potentials=True,
        backend="tensorized",
    )
    x, y = clouds.centered(torch.float64)
    _, half_g = loss(clouds.a, x, clouds.b, y)
    return 2 * half_g.view(-1)


def flash(clouds: PointClouds, eps: float, scaling: float) -> Float[torch.Tensor, " m"]:
    """Return the potential g from flash-sinkhorn's CUDA kernels, in float32 without TF32."""
    if clouds.x.device.type != "cuda":
        raise DependencyError(
            '`engine="flash"` needs a CUDA device and the clouds on it, '
            'but the clouds are on the CPU. Use `engine="wgeo"`.'
        )
    try:
        from flash_sinkhorn import SamplesLoss
    except ImportError as error:
        raise DependencyError(
            '`engine="flash"` needs flash-sinkhorn: pip install flash-sinkhorn, or `engine="wgeo"`.'
        ) from error
    loss = SamplesLoss(
        "sinkhorn",
        blur=math.sqrt(eps),
        scaling=scaling,
        debias=False,
        potentials=True,
        half_cost=False,
        allow_tf32=False,
    )
    x, y = clouds.centered(torch.float32)
    _, g = loss(clouds.a.float(), x, clouds.b.float(), y)
    return g.double().view(-1)


ENGINES: dict[str, Engine] = {"geomloss": geomloss, "flash": flash}
