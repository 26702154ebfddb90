"""``wgeo list``: names of architectures, data sets and solvers."""

from __future__ import annotations

import click

from ..analysis.plan import SOLVERS
from .root import Choice, command, say


@command("list", "List architectures, data sets or solvers.", "wgeo list archs")
@click.argument("what", type=Choice(["archs", "datasets", "solvers"]))
def list_(what: str) -> None:
    """List the architectures, data sets or solvers that wgeo knows."""
    if what == "archs":
        from ..models.names import SUMMARIES

        rows = [
            *SUMMARIES.items(),
            ("torchvision:NAME", "any torchvision classifier, such as torchvision:vit_b_16"),
            ("timm:NAME", "any timm model, if timm is installed"),
            ("package.module:factory", "your own function that returns the network"),
        ]
    elif what == "datasets":
        from ..data.names import NAMES

        download = "downloaded by torchvision into ./data or $WGEO_DATA"
        bundled = "8 x 8 handwritten digits, with scikit-learn; no download"
        rows = [(name, bundled if name == "digits" else download) for name in NAMES]
        rows += [
            ("npz:PATH", "NumPy archive with x, y or x_train, y_train, x_test, y_test"),
            (
                "folder:PATH",
                "folder of images, class/image or split/class/image, or a zip archive of one",
            ),
            ("csv:PATH", "names and labels of images in the same folder; tsv:PATH with tabs"),
            ("parquet:PATH", "columns image and label; needs wgeo[hf]"),
        ]
    else:
        rows = list(SOLVERS.items())
    width = max(len(name) for name, _ in rows)
    for name, summary in rows:
        say(f"{name:<{width}}  {summary}")
