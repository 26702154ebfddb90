r"""The Gibbs kernel in two calls of torch's fused attention (`flex_attention`), for CUDA.

Attention with queries ``2 x_i / eps``, keys y_j and the bias ``log b_j + (g_j - ||y_j||^2) / eps``
has scores whose log-sum-exp is ``(||x_i||^2 - f_i) / eps``, where f is the softmin of g. A fused
kernel keeps the scores on the GPU's chip, while `Kernel` writes and reads each block of them about
six times. The fused products are in float32, without TF32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import no_type_check

import torch
from jaxtyping import Float

from ..errors import DependencyError
from ..runtime import processes
from .kernel import Kernel
from .point_clouds import PointClouds, WeightedPoints
from .tiles import STORED_ENTRIES

_MIN_WIDTH, _MAX_WIDTH = 16, 256  # numbers of features that a fused kernel can process
_COMPARED = 1024  # points of x for which the two kernels are compared
_AGREEMENT = 1e-5  # largest allowed difference of f / eps, and of the log ratio of a column


@dataclass(frozen=True, eq=False)
class FusedKernel(Kernel):
    """A `Kernel` in float32 whose `softmin` stores no scores."""

    dtype: torch.dtype = torch.float32

    @cached_property
    def _points(self) -> tuple[Float[torch.Tensor, "n d"], Float[torch.Tensor, "m d"]]:
        return self.clouds.centered(torch.float64)

    def softmin(
        self, g: Float[torch.Tensor, " m"], eps: float
    ) -> tuple[Float[torch.Tensor, " n"], Float[torch.Tensor, " m"]]:
        """Return the same as `Kernel.softmin`; a second attention, from y to x, sums columns."""
        clouds, (x, y) = self.clouds, self._points
        bias_y = (g - clouds.target.norms) / eps
        f = clouds.source.norms - eps * _attend(x, y, bias_y + clouds.b.log(), eps)
        bias_x = (f - clouds.source.norms) / eps
        log_ratio = bias_y + _attend(y, x, bias_x + clouds.a.log(), eps)
        return f, torch.where(clouds.b > 0, log_ratio, 0.0)


def _attend(
    x: Float[torch.Tensor, "n d"],
    y: Float[torch.Tensor, "m d"],
    bias: Float[torch.Tensor, " m"],
    eps: float,
) -> Float[torch.Tensor, " n"]:
    """Return ``log sum_j exp(2 x_i.y_j / eps + bias_j)``; each process computes its own rows."""
    rows = processes.shard(len(x))
    out = x.new_zeros(len(x))
    queries, keys = _padded(x[rows] * (2 / eps)), _padded(y)
    out[rows] = _log_sum_exp()(queries, keys, bias.float()).double()
    return processes.all_reduce_sum(out)


def _padded(points: Float[torch.Tensor, "n d"]) -> Float[torch.Tensor, "1 1 n padded"]:
    """Append zeros up to a power of two, so that few kernels are compiled; round to float32."""
    width = max(_MIN_WIDTH, 1 << (points.shape[1] - 1).bit_length())
    return torch.nn.functional.pad(points.float(), (0, width - points.shape[1]))[None, None]


@cache
def _log_sum_exp() -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return `log_sum_exp` as compiled by torch; uncompiled, it would store all scores.

    If it cannot be compiled, its first call raises an error.
    """
    return torch.compile(log_sum_exp, fullgraph=True)


@no_type_check  # torch cannot compile the tests' checks of shapes
def log_sum_exp(
    queries: Float[torch.Tensor, "1 1 n d"],
    keys: Float[torch.Tensor, "1 1 m d"],
    bias: Float[torch.Tensor, " m"],
) -> Float[torch.Tensor, " n"]:
    """Return ``log sum_j exp(<queries_i, keys_j> + bias_j)``."""
    from torch.nn.attention import flex_attention as flex

    # Only the log-sum-exp is needed: the values are zeros, with as few columns as possible.
    values = keys.new_zeros((*keys.shape[:-1], _MIN_WIDTH))
    options = {"score_mod": lambda score, b, h, i, j: score + bias[j], "scale": 1.0}
    if not hasattr(flex, "AuxRequest"):  # torch 2.8 and earlier
        return flex.flex_attention(queries, keys, values, **options, return_lse=True)[1][0, 0]
    options["return_aux"] = flex.AuxRequest(lse=True)
    return flex.flex_attention(queries, keys, values, **options)[1].lse[0, 0]


def uses_fused(engine: str, clouds: PointClouds) -> bool:
    """Return whether iterations on these clouds use `FusedKernel`.

    It needs a CUDA device, points with at most `_MAX_WIDTH` features, and agreement with `Kernel`
    on a sample. Without a device or agreement, the engine ``fused`` raises `DependencyError`. With
    ``auto``, the fused kernel is used only if there are too many pairs to store their products.
    """
    n, m, kind = len(clouds.x), len(clouds.y), clouds.x.device.type
    if engine == "fused" and kind != "cuda":
        raise DependencyError(
            f'`engine="fused"` needs a CUDA device; here the work is on {kind!r}. '
            'Use `engine="wgeo"` or `engine="auto"`.'
        )
    too_few = engine == "auto" and n * m <= STORED_ENTRIES["cuda"]
    wide = clouds.x.shape[1] > _MAX_WIDTH
    if engine not in ("fused", "auto") or kind != "cuda" or wide or too_few:
        return False
    with processes.local_only():
        reason = disagreement(clouds)
    reasons = [each for each in processes.all_gather(reason) if each]
    if reasons and engine == "fused":
        raise DependencyError(
            f'`engine="fused"` cannot be used here: {reasons[0]}. Use `engine="wgeo"`.'
        )
    return not reasons


def disagreement(clouds: PointClouds) -> str:
    """Return why the two kernels do not agree to 1e-5 on a sample of rows; empty if they do."""
    rows = clouds.a.nonzero()[:_COMPARED, 0]  # the logarithm of a weight of 0 is not finite
    a = clouds.a[rows]
    sample = PointClouds(WeightedPoints(clouds.x[rows], a / a.sum()), clouds.target)
    eps = max(sample.total_variance, 1e-300)
    g = torch.zeros_like(clouds.b)
    f, log_ratio = Kernel(sample, torch.float32).softmin(g, eps)
    try:
        fused_f, fused_log_ratio = FusedKernel(sample).softmin(g, eps)
    except Exception as error:  # from torch's compiler, Triton, or the C compiler that they need
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    differences = torch.cat(((fused_f - f) / eps, fused_log_ratio - log_ratio))
    largest = float(differences.abs().max())
    agrees = largest <= _AGREEMENT  # not if it is NaN
    return "" if agrees else f"its results differ by {largest:.1e}; at most 1e-5 is allowed"
