"""What straightness says of a trajectory: a row per block, a set of figures per segment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from ..errors import DependencyError
from .paths import LOW_RESOLUTION

if TYPE_CHECKING:
    import pandas as pd

Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class BlockTransport:
    """One block as a pushforward: W2 between its input and output, beside its own pairing.

    Attributes
    ----------
    source, target : str
        Layers; the map goes from `source` to `target`.
    stage : int
        The feature space in which the two are compared.
    via : str
        ``identity``, or ``shortcut`` where the block changes the space and its shortcut's image of
        the source is compared with the target.
    distance, lower, upper : float
        W2 and an interval that contains it, in units of the features.
    paired : float
        sqrt(mean_i ||x_i - y_i||^2), the distance under the network's own pairing; >= W2.
    ot_score : float in [0, 1], or None where no sample moves
        OTS = W2^2 / paired^2; 1 where the network's pairing is optimal (Gai and Zhang 2021).
    resolution : float or None
        Whether these samples can say so: see `wgeo.geodesic.resolution`.
        None where all samples coincide.
    status, solver, seconds
        As the solver reports them.
    intervals : dict of (low, high)
        95 % bootstrap intervals of `distance`, `paired` and `ot_score`; see `straightness`.
    """

    source: str
    target: str
    stage: int
    via: str
    distance: float
    lower: float
    upper: float
    paired: float
    ot_score: float | None
    resolution: float | None
    status: str
    solver: str
    seconds: float
    intervals: Mapping[str, Interval] = field(default_factory=dict)

    @property
    def resolved(self) -> bool:
        """Whether `ot_score` can mean anything: `resolution` is at least 1/2."""
        return self.resolution is not None and self.resolution >= LOW_RESOLUTION

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, ready for JSON; None where undefined."""
        return plain(self)


@dataclass(frozen=True, eq=False)
class SegmentStraightness:
    """How straight a run of layers in one space is; None where a figure is undefined.

    With W_l = W2(mu_l, mu_{l+1}), D = W2(mu_0, mu_L) and x_l a sample's features at layer l:

    Attributes
    ----------
    layers : tuple of str
    stage : int
    distance : float
        D, in units of the features.
    length : float
        sum_l W_l >= D.
    length_ratio : float in [1, inf), or None where D is 0
        length / D; 1 exactly where the measures lie, in order, on one geodesic.
    action_ratio : float in [1, inf), or None
        L sum_l W_l^2 / D^2 >= length_ratio^2; 1 exactly for a geodesic run at constant speed
        (Benamou and Brenier 2000).
    speed_deviation : float in [0, inf), or None where nothing moves
        Coefficient of variation of W_0, ..., W_{L-1}; action_ratio = length_ratio^2 (1 + it^2).
    line_shape_score, line_shape_ratio, turning_angle, orthogonal_share : float or None
        Means over the samples where they are defined; see `wgeo.geodesic.paths.PathFigures`.
    paired : float
        sqrt(mean ||x_0 - x_L||^2) >= D.
    ot_score : float in [0, 1], or None
        D^2 / paired^2.
    resolution : float or None
        Of the pair of end layers: see `wgeo.geodesic.paths.resolution`.
    interpolation_gap : tuple of (float or None), one a layer
        W2(mu_l, nu_t) / D, where nu_t = law of (1 - t) x_0 + t T(x_0) is the displacement
        interpolation of the end layers (McCann 1997), T their optimal coupling, and t the
        arc length up to layer l over `length`. 0 at both ends. None without a coupling,
        and (with a warning) of stored layers where the disk has no room for nu_t.
    interpolation_time : tuple of (float or None), one a layer
        That t: where on the geodesic each layer is compared.
    quantiles : dict
        {figure: {"all" or class: [5, 25, 50, 75, 95 %]}} of the per-sample line shapes.
    undefined_samples : dict of int
        How many samples each trajectory figure is undefined for (closed or too short a path).
    intervals : dict of (low, high)
        95 % bootstrap intervals; see `straightness`.
    """

    layers: tuple[str, ...]
    stage: int
    distance: float
    length: float
    length_ratio: float | None
    action_ratio: float | None
    speed_deviation: float | None
    line_shape_score: float | None
    line_shape_ratio: float | None
    turning_angle: float | None
    orthogonal_share: float | None
    paired: float
    ot_score: float | None
    resolution: float | None
    interpolation_gap: tuple[float | None, ...]
    interpolation_time: tuple[float | None, ...]
    quantiles: Mapping[str, Mapping[str, list[float]]]
    undefined_samples: Mapping[str, int]
    intervals: Mapping[str, Interval] = field(default_factory=dict)

    @property
    def resolved(self) -> bool:
        """Whether `ot_score` can mean anything: `resolution` is at least 1/2."""
        return self.resolution is not None and self.resolution >= LOW_RESOLUTION

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, ready for JSON; None where undefined."""
        return plain(self)


@dataclass(frozen=True, eq=False)
class Straightness:
    """Every block's transport and every segment's straightness, in execution order."""

    blocks: tuple[BlockTransport, ...]
    segments: tuple[SegmentStraightness, ...]

    def to_dict(self) -> dict[str, list[dict[str, Any]]]:
        """Return the record's ``blocks`` and ``segments``."""
        return {
            "blocks": [block.to_dict() for block in self.blocks],
            "segments": [segment.to_dict() for segment in self.segments],
        }

    def to_pandas(self) -> pd.DataFrame:
        """Return a table with a row a block (intervals left out)."""
        rows = [block.to_dict() for block in self.blocks]
        return table([{k: v for k, v in row.items() if k != "intervals"} for row in rows])


def table(rows: Any) -> pd.DataFrame:
    """Return rows (or columns) as a pandas table.

    Raises
    ------
    DependencyError
        pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise DependencyError(
            "A table needs pandas: pip install pandas, or use to_dict()."
        ) from error
    return pd.DataFrame(rows)


def plain(result: Any) -> dict[str, Any]:
    """Return a result's attributes with tuples as lists, as JSON has them."""

    def convert(value: Any) -> Any:
        if isinstance(value, tuple):
            return [convert(item) for item in value]
        if isinstance(value, Mapping):
            return {key: convert(item) for key, item in value.items()}
        return value

    return {f.name: convert(getattr(result, f.name)) for f in fields(result)}
