"""Follow one small network of every timm family, and every torchvision classifier; make a table.

    python tests/families.py RESULTS.jsonl [NAME ...]     go on with what is not in the file yet
    python tests/families.py RESULTS.jsonl --table        print the table in Markdown

Of a timm family (a module of ``timm.models``), the network is tried whose name promises the
smallest (`names`). Features are compared at every layer with plain hooks. Which axis holds the
channels is found here in another way than in wgeo: it is the one whose length does not change with
the image's size.
"""

from __future__ import annotations

import json
import signal
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torchvision

import wgeo

SECONDS = 300  # of processor time that a network may take
IMAGES, CLASSES = 8, 4
SIZES = (64, 96, 112, 128, 224, 240, 256, 512)
SHALLOW = {"deepseek_vit_412m": {"depth": 3}}  # of 32 blocks: the smallest, too large to follow
SMALL = ("test_", "atto", "femto", "pico", "nano", "xxs", "xxxs", "_050", "tiny", "_xs", "small")


class TooLongError(Exception):
    """A network took longer than `SECONDS`."""


def names():
    """Return every torchvision classifier, and for each timm family the likely smallest."""
    found = [f"torchvision:{n}" for n in torchvision.models.list_models(torchvision.models)]
    import timm

    families: dict[str, list[str]] = {}
    for name in timm.list_models():
        families.setdefault(timm.models._registry._model_to_module[name], []).append(name)

    def smallness(name):
        hits = [k for k, word in enumerate(SMALL) if word in name]
        digits = [int(d) for d in "".join(c if c.isdigit() else " " for c in name).split()]
        return (min(hits, default=len(SMALL)), digits[:1], len(name))

    families["efficientnet"] = ["efficientnet_b0"]  # no block of the smallest is residual
    return [f"timm:{min(all_, key=smallness)}" for all_ in families.values()] + found


def build(name, size):
    """Return a network with fresh weights that takes images of this size."""
    home, _, rest = name.partition(":")
    torch.manual_seed(0)
    if home == "torchvision":
        return wgeo.models.build(name, num_classes=CLASSES, image_size=size).eval()
    import timm

    given = SHALLOW.get(rest, {})
    try:
        return timm.create_model(rest, num_classes=CLASSES, img_size=size, **given).eval()
    except Exception:  # whatever timm raises if a network has no such setting
        return timm.create_model(rest, num_classes=CLASSES, **given).eval()


def runs(name, size):
    """Return a network that takes images of this size."""
    net = build(name, size)
    with torch.no_grad():
        net(torch.randn(2, 3, size, size))
    return net


def usable(name):
    """Return the smallest image size that works, the network, and a second size that does too."""
    first = None
    for size in SIZES:
        try:
            net = runs(name, size)
        except TooLongError:
            raise
        except Exception as error:
            last = error
            continue
        if first is None:
            first = size, net
        else:
            return (*first, size, net)
    if first is None:
        raise last
    return (*first, None, None)


def liven(net):
    """Draw parameters initialized to 0 or 1, so that no branch is silent and scales differ."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim <= 1 and parameter.numel() > 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=g)


def outputs(net, x, wanted):
    """Return the outputs of all calls of the selected modules, and of all modules and sums."""
    made, seen, handles = {}, [], []
    calls = Counter()
    parts = dict(net.named_modules())

    def after(name):
        def hook(_, args, out):
            out = next(t for t in out if torch.is_tensor(t)) if isinstance(out, tuple) else out
            made[name, calls[name]] = out.clone()
            calls[name] += 1

        return hook

    for name in wanted:
        handles.append(parts[name].register_forward_hook(after(name)))

    def note(*given):
        seen.extend(t.clone() for t in given if torch.is_tensor(t))

    class Adds(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if "add" in getattr(func, "__name__", ""):
                note(out)
            return out

    for part in parts.values():
        handles.append(part.register_forward_pre_hook(lambda _, args: note(*args)))
        handles.append(part.register_forward_hook(lambda _, args, out: note(out)))
    with torch.no_grad(), Adds():
        net(x)
    for handle in handles:
        handle.remove()
    return made, seen


def split(layer, parts):
    """Return the module and call of a layer's name; no module for a sum in a forward."""
    if layer in parts:
        return layer, 0
    if layer.endswith("]"):
        module, _, k = layer[:-1].rpartition("[")
        return module, int(k)
    return None, 0


def fixed_axes(a, b):
    """Axes (after the samples) that are as long at both image sizes."""
    return [k for k in range(1, a.ndim) if a.shape[k] == b.shape[k]]


def judge(name):
    """Follow one network; return a row of the table."""
    try:
        size, net, other_size, other = usable(name)
    except TooLongError:
        raise
    except Exception as error:
        return {"name": name, "status": "skipped", "why": f"does not run here: {error}"[:300]}
    liven(net)
    x = torch.randn(IMAGES, 3, size, size, generator=torch.Generator().manual_seed(1))
    y = np.arange(IMAGES) % CLASSES
    row = {"name": name, "size": size}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traj = wgeo.trace(net, (x, y), device="cpu")
    except wgeo.WgeoError as error:
        return {**row, "status": "layers", "why": str(error)[:400]}
    layers = list(traj.staged[1:])
    parts = dict(net.named_modules())
    modules = {split(layer.name, parts)[0] for layer in layers} - {None}
    made, seen = outputs(net, x, modules)
    elsewhere = {}
    if other is not None:
        elsewhere, _ = outputs(other, torch.randn(2, 3, other_size, other_size), modules)
    wrong, untold = [], 0
    if traj.classifier is not None:
        with torch.no_grad():
            logits = net(x).numpy()
        W, b = traj.classifier.weight, traj.classifier.bias
        if not np.allclose(traj.layers[-1].features @ W.T + b, logits, rtol=1e-3, atol=1e-3):
            wrong.append("classifier")
    for layer in layers:
        module, call = split(layer.name, parts)
        f = layer.features
        if module is None:  # a sum, or what an activation module makes of it
            means = [_mean(t, k) for t in seen for k in range(1, t.ndim)]
            if not any(_close(m, f) for m in [*means, *map(_unfolded, seen)]):
                wrong.append(layer.name)
            continue
        out = made[module, call]
        twin = elsewhere.get((module, call))
        axes = range(1, out.ndim) if twin is None else fixed_axes(out, twin)
        matching = [k for k in axes if _close(_mean(out, k), f)]
        if not matching and not _close(_unfolded(out), f):
            wrong.append(layer.name)
        untold += len(list(axes)) > 1
    axes = Counter(
        "first" if a["channels"] == 1 else "last" if a["channels"] == len(a["shape"]) else "other"
        for a in traj.settings["axes"][1:]
    )
    kinds = Counter(
        "sums"
        if split(layer.name, parts)[0] is None
        else "calls"
        if "[" in layer.name
        else "blocks"
        for layer in layers
    )
    return {
        **row,
        "status": "wrong" if wrong else "followed",
        "layers": len(layers),
        "kinds": dict(kinds),
        "channels": dict(axes),
        "other_sums": dict(traj.settings.get("other_sums", {})),
        "wrong": wrong,
        "undecided_here": untold,
    }


def _mean(out, axis):
    rest = tuple(k for k in range(1, out.ndim) if k != axis)
    return (out.mean(rest) if rest else out).numpy()


def _unfolded(out):
    """Mean over parts of samples that are folded into the batch, channels last."""
    if out.ndim < 2 or len(out) == IMAGES or len(out) % IMAGES:
        return np.empty(0)
    return out.reshape(IMAGES, -1, out.shape[-1]).mean(1).numpy()


def _close(a, b):
    return a.shape == b.shape and np.abs(a - b).max() <= 1e-3 * (np.abs(a).max() + 1e-9)


def _alarm(*_):
    raise TooLongError


def run(results, chosen=()):
    """Judge all that is not in the file yet, a line each."""
    path = Path(results)
    done = (
        {json.loads(line)["name"] for line in path.read_text().splitlines()}
        if path.exists()
        else set()
    )
    signal.signal(signal.SIGPROF, _alarm)
    for name in chosen or names():
        if name in done:
            continue
        began = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            row = judge(name)
        except TooLongError:
            row = {"name": name, "status": "skipped", "why": f"took over {SECONDS} s here"}
        except Exception as error:
            row = {
                "name": name,
                "status": "failed",
                "why": f"{type(error).__name__}: {error}"[:300],
            }
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        row["seconds"] = round(time.process_time() - began, 1)
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)
    return [json.loads(line) for line in path.read_text().splitlines()]


def family(name):
    """Return the library's module that defines a network."""
    home, _, rest = name.partition(":")
    if home == "torchvision":
        made = torchvision.models.get_model_builder(rest)
        return f"torchvision {made.__module__.rpartition('.')[2]}"
    import timm

    return f"timm {timm.models._registry._model_to_module[rest]}"


def table(rows):
    """Return the results in Markdown: a summary, then the families followed and not followed."""
    families = {}
    for row in sorted(rows, key=lambda row: row["name"]):
        families.setdefault((row["status"], family(row["name"])), []).append(row)
    by_status = {}
    for (status, title), members in sorted(families.items(), key=lambda item: item[0]):
        by_status.setdefault(status, []).append((title, members))
    parts = [_summary(rows)]
    for status, heading, columns, cells in _SECTIONS:
        if status in by_status:
            lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
            lines += [
                f"| {title} | {_tried(members)} | {' | '.join(cells(members))} |"
                for title, members in by_status[status]
            ]
            parts.append(f"### {heading}\n\n" + "\n".join(lines))
    return "\n\n".join(parts)


def _summary(rows):
    import timm

    count = Counter(row["status"] for row in rows)
    layers = sum(row.get("layers", 0) for row in rows)
    one_size = [row for row in rows if row.get("undecided_here")]
    wrong = sum(len(row.get("wrong", ())) for row in rows)
    homes = Counter(row["name"].partition(":")[0] for row in rows)
    return (
        f"{homes['timm']} networks of timm {timm.__version__} and {homes['torchvision']} "
        f"classifiers of torchvision {torchvision.__version__.partition('+')[0]}: "
        f"{count['followed']} are followed, {count['layers']} need `layers=` or `pool=`, "
        f"{count['skipped']} could not be tried. Of {layers:,} layers compared with plain hooks, "
        f"{wrong} were wrong. {len(one_size)} networks accept only one image size "
        f"({', '.join(row['name'].partition(':')[2] for row in one_size)}), so for "
        f"{sum(row['undecided_here'] for row in one_size)} layers the test only shows that the "
        "features are a mean over all axes except one, not that this one is the channel axis."
    )


def _tried(members):
    names = [row["name"].partition(":")[2] for row in members]
    return ", ".join(names) if len(names) < 4 else f"{len(names)}, {names[0]} to {names[-1]}"


def _range(members, key):
    numbers = [row.get(key, 0) for row in members]
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


def _followed(members):
    kinds = ", ".join(sorted({kind for row in members for kind in row["kinds"]}))
    axes = ", ".join(sorted({axis for row in members for axis in row["channels"]}))
    others = members[0]["other_sums"]
    names = [f"`{name or 'the network'}`" for name in others]
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{_range(members, 'layers')} {kinds}", axes, ", ".join(names[:2]) + more


def _refused(members):
    return (_reason(members[0]["why"]),)


_SECTIONS = (  # status, heading, columns, what stands in them beside the family and the networks
    ("wrong", "Read wrong", ("Family", "Network", "Layers"),
     lambda members: (", ".join(members[0]["wrong"][:3]),)),
    ("followed", "Followed", ("Family", "Network", "Layers", "Channels", "Sums elsewhere (warned)"),
     _followed),
    ("layers", "With `layers=` or `pool=`", ("Family", "Network", "Why"), _refused),
    ("failed", "Failed", ("Family", "Network", "Why"), _refused),
    ("skipped", "Not tried", ("Family", "Network", "Why"), _refused),
)  # fmt: skip


def _reason(why):
    """The first sentence of an error, without characters that a table cannot contain."""
    first = why.replace("|", "/").replace("\n", " ").split(" (its children")[0].split(". ")[0]
    added = " Tensors of equal shapes are added in" in why
    return first[:160] + ("; it adds tensors in other ways" if added else "")


if __name__ == "__main__":
    if sys.argv[2:] == ["--table"]:
        print(table([json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]))
    else:
        run(sys.argv[1], sys.argv[2:])
