"""Collapse metrics as published scripts define them, compared with wgeo's on one network.

    python benchmarks/definitions.py --checkpoint resnet20.th --arch cifar_resnet20 --data CIFAR.zip

Every definition is implemented from the script's source, with sums in batches, in float32 (the
precision of the scripts) and in float64. The digits are -log10 of the relative difference from
wgeo's value after the stated conversion, at the layer before the classifier, in three cases:
classes of equal sizes; of unequal sizes (the largest has ten times as many samples as the
smallest); and of equal sizes with all samples moved to a hundredth of their distance from the
class mean, as at the end of a long training. docs/peers.md says how the definitions differ.

Results go into `benchmarks/definitions.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import scipy
import torch
from rich.console import Console
from rich.table import Table
from scipy.sparse.linalg import svds

import wgeo
from wgeo.neural_collapse import LayerCollapse, collapse_of
from wgeo.neural_collapse.metrics import Frame

BATCH = 128
TAIL = 10  # samples in the largest class, as a multiple of those in the smallest
NEAR = 0.01  # remaining fraction of a sample's distance from its class mean
MOST = 16.0  # largest number of digits, about that of float64
CASES = ("equal", "unequal", "collapsed")


@dataclass(frozen=True, eq=False)
class Layer:
    """Features, labels and the classifier after them; sums are in the precision of the features."""

    H: torch.Tensor  # (N, d)
    y: torch.Tensor  # (N,)
    W: torch.Tensor  # (K, d)
    b: torch.Tensor  # (K,)

    @property
    def classes(self) -> int:
        return len(self.W)

    @cached_property
    def counts(self) -> torch.Tensor:
        return torch.bincount(self.y, minlength=self.classes).to(self.H)

    @cached_property
    def means(self) -> torch.Tensor:
        sums = torch.zeros_like(self.W)
        for h, y in zip(self.H.split(BATCH), self.y.split(BATCH), strict=True):
            sums.index_add_(0, y, h)
        return sums / self.counts[:, None]

    @cached_property
    def mean_of_means(self) -> torch.Tensor:
        return self.means.mean(0)

    @cached_property
    def mean_of_samples(self) -> torch.Tensor:
        return sum(h.sum(0) for h in self.H.split(BATCH)) / len(self.H)

    @cached_property
    def sigma_w(self) -> torch.Tensor:
        total = torch.zeros(self.H.shape[1], self.H.shape[1]).to(self.H)
        for h, y in zip(self.H.split(BATCH), self.y.split(BATCH), strict=True):
            residual = h - self.means[y]
            total += residual.T @ residual
        return total / len(self.H)

    def variances(self) -> torch.Tensor:
        """var_k, from the residuals."""
        squares = (self.H - self.means[self.y]).square().sum(1)
        return torch.zeros_like(self.counts).index_add_(0, self.y, squares) / self.counts

    def sigma_b(self, g: torch.Tensor) -> torch.Tensor:
        M = self.means - g
        return M.T @ M / self.classes

    def nearest(self) -> torch.Tensor:
        return torch.stack([(self.means - h).norm(dim=1).argmin() for h in self.H])

    def predictions(self, *, bias: bool = True) -> torch.Tensor:
        return (self.H @ self.W.T + (self.b if bias else 0)).argmax(1)


# --- what the scripts compute ---------------------------------------------------------------------


def nc1_largest(layer: Layer) -> float:
    """tr(Sigma_W Sigma_B^+), by the K - 1 largest singular triples of Sigma_B."""
    sigma_b = layer.sigma_b(layer.mean_of_means).numpy()
    vectors, values, _ = svds(sigma_b, k=layer.classes - 1, v0=np.ones(len(sigma_b), sigma_b.dtype))
    return float(np.trace(layer.sigma_w.numpy() @ (vectors / values @ vectors.T)))


def nc1_scipy(layer: Layer) -> float:
    """tr(Sigma_W pinv(Sigma_B)) / K, about the mean of all samples."""
    inverse = scipy.linalg.pinv(layer.sigma_b(layer.mean_of_samples).numpy())
    return float(np.trace(layer.sigma_w.numpy() @ inverse) / layer.classes)


def nc1_torch(layer: Layer) -> float:
    """tr(pinv(Sigma_B) Sigma_W) / K, about the mean of the class means."""
    inverse = torch.linalg.pinv(layer.sigma_b(layer.mean_of_means))
    return float(torch.trace(inverse @ layer.sigma_w) / layer.classes)


def nc1_of_classes(layer: Layer) -> float:
    """tr(S Sigma_B^+), S the mean over classes of (N_k/N) Sigma_k; about the mean of samples."""
    vectors, values, _ = scipy.linalg.svd(layer.sigma_b(layer.mean_of_samples).numpy())
    vectors, values = vectors[:, : layer.classes - 1], values[: layer.classes - 1]
    return float(np.trace(layer.sigma_w.numpy() / layer.classes @ (vectors / values @ vectors.T)))


def quotient(layer: Layer) -> float:
    """tr Sigma_W / tr Sigma_B."""
    return float(layer.sigma_w.trace() / layer.sigma_b(layer.mean_of_means).trace())


def spread(vectors: torch.Tensor) -> float:
    """Standard deviation of the norms (with divisor K - 1), divided by their mean."""
    norms = vectors.norm(dim=1)
    return float(norms.std() / norms.mean())


def coherence(vectors: torch.Tensor) -> float:
    """Mean of |cos + 1/(K - 1)| over pairs."""
    K, units = len(vectors), vectors / vectors.norm(dim=1, keepdim=True)
    gram = units @ units.T + 1 / (K - 1)
    return float((gram - gram.diag().diag()).abs().sum() / (K * (K - 1)))


def to_etf(gram: torch.Tensor) -> float:
    """|| G/||G|| - (I - J/K)/sqrt(K - 1) ||."""
    ideal = (torch.eye(len(gram)).to(gram) - 1 / len(gram)) / math.sqrt(len(gram) - 1)
    return float((gram / gram.norm() - ideal).norm())


def self_duality(layer: Layer) -> float:
    """The square of || W/||W|| - M/||M|| ||, about the mean of the class means."""
    M = layer.means - layer.mean_of_means
    return float((layer.W / layer.W.norm() - M / M.norm()).square().sum())


def cdnv_of_squares(layer: Layer) -> float:
    """Mean over pairs of classes, with var_k = mean ||h||^2 - ||m_k||^2."""
    squares = torch.zeros_like(layer.counts)
    for h, y in zip(layer.H.split(BATCH), layer.y.split(BATCH), strict=True):
        squares.index_add_(0, y, h.square().sum(1))
    return _cdnv(layer, (squares / layer.counts - layer.means.square().sum(1)).abs())


def cdnv(layer: Layer) -> float:
    """Mean over pairs of classes, from the residuals."""
    return _cdnv(layer, layer.variances())


def _cdnv(layer: Layer, variances: torch.Tensor) -> float:
    first, second = torch.triu_indices(layer.classes, layer.classes, 1)
    squares = (layer.means[first] - layer.means[second]).square().sum(1)
    return float(((variances[first] + variances[second]) / 2 / squares).mean())


def mismatch(layer: Layer, *, bias: bool) -> float:
    """Fraction of samples that the classifier and the nearest class mean classify differently."""
    return float((layer.nearest() != layer.predictions(bias=bias)).double().mean())


def centered(W: torch.Tensor) -> torch.Tensor:
    return W - W.mean(0)


# --- the corresponding values of wgeo -------------------------------------------------------------


@dataclass(frozen=True)
class Definition:
    """A script's metric, and wgeo's value converted to the script's convention."""

    source: str
    metric: str
    script: Callable[[Layer], float]
    conversion: str
    wgeo: Callable[[LayerCollapse, Layer], float | None]
    weights: str = "uniform"
    bias: bool = True  # whether the classifier's predictions use its bias
    centered: bool = False  # whether the classifier's rows are centered


def bessel(K: int) -> float:
    """The ratio of the standard deviation with divisor K - 1 to that with divisor K."""
    return math.sqrt(K / (K - 1))


PAPYAN, ZHU, ZHOU = "Papyan et al.", "Zhu et al.", "Zhou et al."
WU, GALANTI, RANGAMANI = "`neural-collapse`", "Galanti et al.", "Rangamani et al."

DEFINITIONS = (
    Definition(PAPYAN, "NC1", nc1_largest, "K `nc1`", lambda c, s: s.classes * c.nc1),
    Definition(
        PAPYAN,
        "NC2, equal norms",
        lambda s: spread(s.means - s.mean_of_means),
        "√(K/(K-1)) `nc2_equinorm`",
        lambda c, s: bessel(s.classes) * c.nc2_equinorm,
    ),
    Definition(
        PAPYAN,
        "NC2, equal angles",
        lambda s: coherence(s.means - s.mean_of_means),
        "`nc2_equiangle`",
        lambda c, s: c.nc2_equiangle,
    ),
    Definition(
        PAPYAN,
        "NC2, norms of W",
        lambda s: spread(s.W),
        "√(K/(K-1)) `classifier.equinorm`",
        lambda c, s: bessel(s.classes) * Frame.of(s.W.double().numpy()).equinorm,
    ),
    Definition(PAPYAN, "NC3", self_duality, "`nc3_papyan`²", lambda c, s: c.nc3_papyan**2),
    Definition(
        PAPYAN,
        "NC4",
        lambda s: mismatch(s, bias=True),
        "`ncc_mismatch`",
        lambda c, s: c.ncc_mismatch,
    ),
    Definition(ZHU, "NC1", nc1_scipy, "`nc1`", lambda c, s: c.nc1, weights="sample_mean"),
    Definition(
        ZHU,
        "NC2",
        lambda s: to_etf(s.W @ s.W.T),
        "`classifier.etf`",
        lambda c, s: Frame.of(s.W.double().numpy()).etf,
    ),
    Definition(
        ZHU,
        "NC3",
        lambda s: to_etf(s.W @ (s.means - s.mean_of_samples).T),
        "`nc3`",
        lambda c, s: c.nc3,
        weights="sample_mean",
    ),
    Definition(
        ZHOU,
        "NC2",
        lambda s: to_etf(centered(s.W) @ centered(s.W).T),
        "`classifier.etf` of centered W",
        lambda c, s: Frame.of(centered(s.W.double()).numpy()).etf,
    ),
    Definition(
        ZHOU,
        "NC3",
        lambda s: to_etf(centered(s.W) @ (s.means - s.mean_of_samples).T),
        "`nc3` of centered W",
        lambda c, s: c.nc3,
        weights="sample_mean",
        centered=True,
    ),
    Definition(WU, "NC1, pinv", nc1_torch, "`nc1`", lambda c, s: c.nc1),
    Definition(WU, "NC1, quotient", quotient, "`nc1_quotient`", lambda c, s: c.nc1_quotient),
    Definition(
        WU,
        "NC2",
        lambda s: to_etf((s.means - s.mean_of_means) @ (s.means - s.mean_of_means).T),
        "`nc2_etf`",
        lambda c, s: c.nc2_etf,
    ),
    Definition(
        WU,
        "NC3",
        lambda s: to_etf(s.W @ (s.means - s.mean_of_means).T),
        "`nc3`",
        lambda c, s: c.nc3,
    ),
    Definition(
        WU,
        "NC4",
        lambda s: 1 - mismatch(s, bias=False),
        "1 - `ncc_mismatch` of predictions without bias",
        lambda c, s: 1 - c.ncc_mismatch,
        bias=False,
    ),
    Definition(GALANTI, "CDNV", cdnv_of_squares, "`cdnv`", lambda c, s: c.cdnv),
    Definition(
        RANGAMANI, "NC1", nc1_of_classes, "`nc1`", lambda c, s: c.nc1, weights="sample_mean"
    ),
    Definition(RANGAMANI, "CDNV", cdnv, "`cdnv`", lambda c, s: c.cdnv),
    Definition(
        RANGAMANI,
        "accuracy of nearest means",
        lambda s: float((s.nearest() == s.y).double().mean()),
        "`ncc_accuracy`",
        lambda c, s: c.ncc_accuracy,
    ),
)


def converted(definition: Definition, layer: Layer, weights: str) -> float:
    """wgeo's value in the script's convention; `layer` is in float64."""
    W = centered(layer.W) if definition.centered else layer.W
    predictions = layer.predictions(bias=definition.bias).numpy()
    found = collapse_of(
        layer.H.numpy(), layer.y.numpy(), W.numpy(), predictions, weights=weights, spectrum_size=0
    )
    value = definition.wgeo(found, layer)
    assert value is not None
    return value


def digits(value: float, expected: float) -> float:
    """Digits to which two values agree."""
    difference = abs(value - expected) / abs(expected) if expected else abs(value)
    return MOST if difference == 0 else min(MOST, -math.log10(difference))


def compare(H: np.ndarray, y: np.ndarray, W: np.ndarray, b: np.ndarray) -> list[dict]:
    """Compare every definition, in both precisions, with wgeo's value."""
    exact, single = (
        Layer(
            H=torch.as_tensor(H, dtype=dtype),
            y=torch.as_tensor(y),
            W=torch.as_tensor(W, dtype=dtype),
            b=torch.as_tensor(b, dtype=dtype),
        )
        for dtype in (torch.float64, torch.float32)
    )
    rows = []
    for definition in DEFINITIONS:
        ours = converted(definition, exact, definition.weights)
        uniform = converted(definition, exact, "uniform")
        rows.append(
            {
                "source": definition.source,
                "metric": definition.metric,
                "conversion": definition.conversion,
                "weights": definition.weights,
                "wgeo": ours,
                "float32": digits(definition.script(single), ours),
                "float64": digits(definition.script(exact), ours),
                "uniform": uniform / ours - 1 if ours else 0.0,
            }
        )
    return rows


# --- the network ----------------------------------------------------------------------------------


def first_of_each_class(y: np.ndarray, tail: float = 1.0) -> np.ndarray:
    """Rows of the first samples of each class; the last class has 1/tail as many as the first."""
    classes, counts = np.unique(y, return_counts=True)
    sizes = counts.min() * tail ** -np.linspace(0, 1, len(classes))
    rows = [np.flatnonzero(y == k)[: round(n)] for k, n in zip(classes, sizes, strict=True)]
    return np.sort(np.concatenate(rows))


def trajectory(args: argparse.Namespace) -> wgeo.Trajectory:
    """The features of a checkpoint, or of a small network that is trained now."""
    if args.checkpoint is None:
        images = wgeo.load_images("digits", split=None)
        with tempfile.TemporaryDirectory() as folder:
            run = wgeo.train("isoresnet", images, folder, epochs=12, terminal_epochs=2)
        return wgeo.trace(run.module, images)
    images = wgeo.load_images(args.data, split="train", limit=args.samples)
    return wgeo.trace(wgeo.load_checkpoint(args.checkpoint, arch=args.arch), images)


def collapsed(H: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Move samples towards their class means, without changing the means."""
    means = {k: H[y == k].mean(0, dtype=np.float64) for k in np.unique(y)}
    own = np.array([means[k] for k in y])
    return (own + NEAR * (H - own)).astype(H.dtype)


def table(outcome: dict) -> Table:
    """Digits of agreement in both precisions, and the effect of uniform weights on wgeo's value."""
    out = Table(title="wgeo's value, and the digits to which the script agrees")
    for column in ("source", "metric", "weights"):
        out.add_column(column, no_wrap=True)
    for case in CASES:
        out.add_column(case, justify="right", no_wrap=True)
    out.add_column("uniform", justify="right")
    for rows in zip(*(outcome[case] for case in CASES), strict=True):
        row, unequal = rows[0], rows[1]
        cells = [f"{r['wgeo']:.4g}: {r['float32']:.1f}, {r['float64']:.1f}" for r in rows]
        change = "" if row["weights"] == "uniform" else f"{unequal['uniform']:+.1%}"
        out.add_row(row["source"], row["metric"], row["weights"], *cells, change)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="a trained network; default: train one")
    parser.add_argument("--arch", help="architecture, if the checkpoint does not name it")
    parser.add_argument("--data", default="cifar10", help="images, as `wgeo analyze` takes them")
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    args = parser.parse_args()
    traj = trajectory(args)
    assert traj.classifier is not None
    last, W, b = traj.layers[-1], traj.classifier.weight, traj.classifier.bias
    outcome: dict = {"width": last.width, "network": args.arch or "isoresnet"}
    for case in CASES:
        rows = first_of_each_class(traj.labels, TAIL if case == "unequal" else 1.0)
        H, y = np.asarray(last.features)[rows], traj.labels[rows]
        outcome[f"{case}_sizes"] = np.bincount(y).tolist()
        outcome[case] = compare(collapsed(H, y) if case == "collapsed" else H, y, W, b)
    outcome["versions"] = {
        "python": platform.python_version(),
        **{each.__name__: each.__version__ for each in (torch, scipy, np)},
    }
    Console(width=130).print(table(outcome))
    args.out.write_text(json.dumps(outcome, indent=1) + "\n")


if __name__ == "__main__":
    main()
