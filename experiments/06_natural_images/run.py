"""On natural images: does weight decay, or the shortcut, make a network follow a geodesic?

python experiments/06_natural_images/run.py --data cifar10=images.zip
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import Lab
from terminal import optimality, path, report

__all__ = ["optimality", "path"]  # called by name in child processes


def main() -> None:
    lab = Lab(__file__)
    networks = lab.grid("data", "arch", "weight_decay", "decayed", "seed", full=lab.arguments.full)
    larger = lab.settings["larger"]
    networks += [
        {**cell, "data": larger["data"]}
        for cell in networks
        if [cell["arch"], cell["weight_decay"]] in larger["networks"]
    ]
    report(lab, networks)


if __name__ == "__main__":
    main()
