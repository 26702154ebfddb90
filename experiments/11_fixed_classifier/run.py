"""Does a fixed simplex-ETF classifier save memory without loss of accuracy? Claim U3.

python experiments/11_fixed_classifier/run.py
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lab import Bench, Cell, Lab, by, spread, table

import wgeo
from wgeo import models

Result = dict[str, Any]
SUBSET = ("limit", "size")


def build(name: str, classifier: str, num_classes: int, image_size: int) -> torch.nn.Module:
    """Build the network that ``wgeo train --classifier`` trains."""
    net = models.build(name, num_classes=num_classes, in_channels=3, image_size=image_size)
    if classifier == "learned":
        return net
    return models.with_etf_classifier(net, "K" if classifier == "etf" else "keep")


def size_of(tensors: Iterable[torch.Tensor]) -> int:
    """Return the number of bytes of some tensors."""
    return sum(t.numel() * t.element_size() for t in tensors)


def memory(cell: Cell, bench: Bench) -> Result:
    """Count the bytes that remain allocated after training steps, and the peak on a GPU."""
    found: Result = {}
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    net = build(cell["network"], cell["classifier"], cell["num_classes"], cell["image_size"])
    net.to(device).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    x = torch.zeros(128 if gpu else 2, 3, cell["image_size"], cell["image_size"], device=device)
    y = torch.zeros(len(x), dtype=torch.long, device=device)
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    if gpu:
        found["peak"] = torch.cuda.max_memory_allocated()
    parameters = list(net.parameters())
    states = [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
    found["count"] = sum(p.numel() for p in parameters)
    found["parameters"] = size_of(parameters)
    found["gradients"] = size_of(p.grad for p in parameters if p.grad is not None)
    found["momentum"] = size_of(states)
    found["buffers"] = size_of(net.buffers())
    return found


def accuracy(cell: Cell, bench: Bench) -> Result:
    """Train with one kind of classifier; measure training and test accuracy, and collapse."""
    subset = {key: cell[key] or None for key in SUBSET}
    run = bench.trained(
        cell["arch"],
        cell["data"],
        **subset,
        classifier=cell["classifier"],
        options=cell["options"],
        epochs=cell["epochs"],
        lr=cell["lr"],
        seed=cell["seed"],
        checkpoints=[],
        evaluate_every=cell["evaluate_every"],
        precision=cell["precision"],
    )
    unseen = bench.images(cell["data"], cell["test"] or None, "test", size=subset["size"])
    images = bench.images(cell["data"], **subset)
    last = wgeo.collapse(wgeo.trace(run.module, images)).layers[-1]
    tested = wgeo.trace(run.module, unseen)
    return {
        "train": run.accuracy,
        "terminal_epoch": run.terminal_epoch,
        "test": float((tested.predictions == tested.labels).mean()),
        "unseen": len(unseen),
        **{key: getattr(last, key) for key in ("nc1", "nc2_etf", "nc3")},
    }


def memory_table(results: list[Result], lab: Lab) -> None:
    rows = []
    for (network,), group in by(results, "network").items():
        base = group[0]
        for found in group:
            total = sum(found[key] for key in ("parameters", "gradients", "momentum"))
            whole = sum(base[key] for key in ("parameters", "gradients", "momentum"))
            rows.append(
                [
                    network.removeprefix("torchvision:"),
                    found["cell"]["classifier"],
                    f"{found['count']:,}",
                    *(
                        f"{found[key] / 2**20:.2f}"
                        for key in ("parameters", "gradients", "momentum", "buffers")
                    ),
                    f"{total / 2**20:.2f}",
                    f"{1 - total / whole:.1%}",
                    f"{found['peak'] / 2**20:.0f}" if "peak" in found else "no GPU",
                ]
            )
    head = ["network", "classifier", "trainable parameters", "parameters (MiB)", "gradients"]
    head += ["momentum", "buffers", "first three", "saved", "peak on a GPU"]
    lab.write("memory", table(head, rows))


def accuracy_table(results: list[Result], lab: Lab) -> None:
    rows = []
    for (arch, data, _, classifier), group in by(
        results, "arch", "data", "limit", "classifier"
    ).items():
        rows.append(
            [
                arch.removeprefix("torchvision:"),
                data,
                classifier,
                len(group),
                f"{min(r['train'] for r in group):.4f}",
                ", ".join(str(r["terminal_epoch"] or "never") for r in group),
                spread([r["test"] for r in group], ".4f"),
                _difference(results, group),
                *(spread([r[key] for r in group]) for key in ("nc1", "nc2_etf", "nc3")),
            ]
        )
    head = ["network", "data", "classifier", "seeds", "training accuracy", "1 from epoch"]
    head += ["test accuracy", "test accuracy − learned", "NC1", "NC2, to ETF", "NC3"]
    lab.write("accuracy", table(head, rows))


def _difference(results: list[Result], group: list[Result]) -> str:
    """Test accuracy minus that of the learned classifier: mean, interval, and each seed."""
    cell = group[0]["cell"]
    if cell["classifier"] == "learned":
        return ""
    learned = {
        r["cell"]["seed"]: r["test"]
        for r in results
        if r["cell"] == {**cell, "seed": r["cell"]["seed"], "classifier": "learned"}
    }
    gaps = [r["test"] - learned[r["cell"]["seed"]] for r in group]
    return f"{spread(gaps, '+z.4f')} ({', '.join(f'{gap:+z.4f}' for gap in gaps)})"


def main() -> None:
    lab = Lab(__file__)
    s = lab.settings
    cells = [
        {"network": network, "classifier": classifier, "num_classes": s["num_classes"],
         "image_size": s["image_size"]}
        for network in s["networks"]
        for classifier in s["classifier"]
    ]  # fmt: skip
    memory_table(lab.measure(memory, cells), lab)
    cells = []
    for training in s["training"]:
        seeds, classifiers = training.pop("seeds"), training.pop("classifiers")
        cells += [
            {**training, "classifier": classifier, "seed": seed}
            for seed in seeds
            for classifier in classifiers
        ]
    accuracy_table(lab.measure(accuracy, cells), lab)


if __name__ == "__main__":
    main()
