"""Run every command line and Python example that the pages show, in the order of reading.

python tests/run_commands.py                    all of them
python tests/run_commands.py quickstart.md      those of a page

Files that a reader has and this folder has not are stood in for: checkpoints with fresh weights,
a few images of noise. They run on fewer images and beside fewer networks (`LIGHTER`): what is tried
is whether they run. `make demo` runs the defaults. What cannot run here is listed, with the reason.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image

import wgeo

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{n}.md" for n in ("index", "quickstart", "scale"))]
FENCE = re.compile(r"```(console|sh|python)\n(.*?)```", re.DOTALL)
ELSEWHERE = {
    "make": "a step of .ci/run",
    "wgeo demo": "make demo is a step of .ci/run",
    "sbatch": "takes a cluster",
    "python": "a benchmark, which takes a GPU; the tests run its code",
    "wgeo sweep": "takes the checkpoints its file names; test_sweeps.py reads the files shown",
}
GIVEN = {"README.md"}  # run_readme.py runs its example, and holds what it prints
BEFORE = {  # what a page takes as known
    "scale.md": "import wgeo\nnet = wgeo.load_checkpoint('resnet20.th', arch='cifar_resnet20')\n"
    "images = wgeo.load_images('cifar10.zip', split='test')",
}
FEW = "--reference-networks 2 --bootstrap 20"
ASKED = f"--brenier 0 --alignment 0 --no-mufm {FEW}"
LIGHTER = (  # pattern, and what takes its place
    (r"wgeo train (?=.*digits)", "wgeo train --samples 120 "),
    (r"--epochs 30 --checkpoints 0,1,8,30", "--epochs 2 --checkpoints 0,2"),  # two make a series
    (r"epoch-0030", "epoch-0002"),
    (r"wgeo analyze (?=.*digits)", f"wgeo analyze --samples 120 {ASKED} "),
    (r"wgeo analyze (?=.*\.th)", f"wgeo analyze {ASKED} "),
    (r"(?<=nproc-per-node=2 --no-python wgeo analyze )", "--no-report "),
    (r"wgeo analyze (?=.*(digits|features))", "wgeo analyze --no-report "),  # others have one
    (r'load_images\("digits"\)', 'load_images("digits", limit=120)'),
    (
        r"wgeo\.analyze\(net, images\)",
        "wgeo.analyze(net, images, brenier=0, alignment=0, reference_networks=2, bootstrap=20)",
    ),
)


def stand_ins(folder: Path) -> None:
    """Checkpoints and images of the names that the pages use."""
    torch.manual_seed(0)
    small = wgeo.models.build("cifar_resnet20", num_classes=10)
    torch.save(small.state_dict(), folder / "resnet20.th")
    for depth in (18, 50):
        large = getattr(torchvision.models, f"resnet{depth}")(num_classes=10)
        torch.save(large.state_dict(), folder / f"resnet{depth}.pth")
    images(folder / "cifar10", ("train", "test"), size=32, each=4)
    shutil.make_archive(str(folder / "cifar10"), "zip", folder / "cifar10")
    images(folder / "imagenet", ("val",), size=64, each=2)
    images(folder, ("val",), size=64, each=2)


def images(folder: Path, splits: tuple[str, ...], size: int, each: int) -> None:
    """Noise in folders ``split/class/image.png``."""
    rng = np.random.default_rng(0)
    for split in splits:
        for label in range(10):
            home = folder / split / f"class{label}"
            home.mkdir(parents=True)
            for k in range(each):
                Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8)).save(
                    home / f"{k}.png"
                )


def shown() -> Iterator[tuple[str, str, str]]:
    """Page, kind (``sh`` or ``python``) and text of all examples; a page's Python is one."""
    for page in [page for page in PAGES if page.exists()]:
        fences = FENCE.findall(page.read_text("utf-8"))
        for line in "\n".join(text for kind, text in fences if kind != "python").splitlines():
            command = line.removeprefix("$ ").partition("  #")[0].strip()
            if command:
                yield page.name, "sh", command
        code = [text for kind, text in fences if kind == "python"]
        if code and page.name not in GIVEN:
            yield page.name, "python", "\n".join([BEFORE.get(page.name, ""), *code])


def elsewhere(command: str) -> str | None:
    """Why this is not run here: `ELSEWHERE` names it, whatever its options."""
    return next(
        (why for start, why in ELSEWHERE.items() if f"{command} ".startswith(f"{start} ")), None
    )


def lighter(text: str, page: str) -> str:
    """The command or example with less to do; one of the README's measures all the same."""
    for pattern, other in (
        [(r"wgeo analyze ", f"wgeo analyze {FEW} ")] if page in GIVEN else LIGHTER
    ):
        text = re.sub(pattern, other, text)
    return text


def run(kind: str, text: str, folder: Path) -> str:
    """Run it in the folder; return an error message, or an empty text."""
    here = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment = {**os.environ, **here, "BROWSER": "true"}
    if kind == "sh" and text.startswith("pip install"):
        text = f"{text} --quiet --no-deps --target site".replace(
            " . ", f" {shlex.quote(str(ROOT))} "
        )
    command = [sys.executable, "-c", text] if kind == "python" else ["bash", "-ec", text]
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200
    )
    return "" if done.returncode == 0 else (done.stdout + done.stderr)[-3000:]


def main(wanted: list[str]) -> int:
    """Run all of them, or those of some pages; fail at the end, with everything that failed."""
    seen: set[str] = set()
    failed = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        stand_ins(folder)
        for page, kind, text in shown():
            if text in seen or (wanted and page not in wanted):
                continue
            seen.add(text)
            brief = text if kind == "sh" else f"{kind} example, {len(text.splitlines())} lines"
            if kind == "sh" and (why := elsewhere(text)):
                print(f"{page}: {brief}: not run, {why}", flush=True)
                continue
            began = time.monotonic()
            said = run(kind, lighter(text, page), folder)
            state = "FAILED" if said else "ran"
            print(f"{page}: {brief}: {state} ({time.monotonic() - began:.0f} s)", flush=True)
            if said:
                print(said, flush=True)
                failed += 1
    print(f"{len(seen)} shown, {failed} failed.")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
