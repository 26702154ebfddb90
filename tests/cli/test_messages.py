"""The library's messages name Python parameters; the command line says the same with its flags."""

from __future__ import annotations

import ast
import re
import warnings
from pathlib import Path

import click
import pytest
import torch
from command_line import run
from markdown_it import MarkdownIt
from records import sample_record

import wgeo
from wgeo.cli import main
from wgeo.cli.root import with_flags
from wgeo.errors import WgeoWarning
from wgeo.report import markdown

SOURCE = Path(wgeo.__file__).parent
ANALYZE = main.commands["analyze"]


def commands(group=main):
    for each in group.commands.values():
        yield from commands(each) if isinstance(each, click.Group) else [each]


def options():
    return [p for each in commands() for p in each.params if isinstance(p, click.Option)]


def sentences():
    """Return every string below the command line except docstrings; f-strings with placeholders."""
    for path in sorted(SOURCE.rglob("*.py")):
        if path.is_relative_to(SOURCE / "cli"):
            continue
        tree = ast.parse(path.read_text("utf-8"))
        seen = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                first = node.body[0] if node.body else None
                seen.add(id(getattr(first, "value", None)) if isinstance(first, ast.Expr) else None)
            if isinstance(node, ast.JoinedStr):
                parts = [part for part in node.values if isinstance(part, ast.Constant)]
                seen.update(map(id, parts))
                holes = (part.value if part in parts else "{}" for part in node.values)
                yield path, node.lineno, "".join(holes)
            elif isinstance(getattr(node, "value", None), str) and id(node) not in seen:
                yield path, node.lineno, node.value


def test_no_message_of_the_library_names_a_flag():
    flags = {flag for option in options() for flag in (*option.opts, *option.secondary_opts)}
    pattern = re.compile(rf"(?<![\w-])({'|'.join(map(re.escape, sorted(flags)))})(?![\w-])")
    assert pattern.search("say it with --arch.")
    assert not [(str(path), line, said) for path, line, said in sentences() if pattern.search(said)]


def test_parameters_are_in_backquotes():
    """Else the command line could not tell them from a user's own words."""
    names = {option.name for option in options()}
    pattern = re.compile(rf"(?<![\w`.\"'-])({'|'.join(sorted(names))})=(?!=)")
    assert pattern.search("take one (split=).")
    assert not pattern.search("take one (`split=`).")
    assert not [(str(path), line, said) for path, line, said in sentences() if pattern.search(said)]


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("say `arch=`.", "say --arch."),
        ("use `arch='timm:resnet18'`", "use --arch timm:resnet18"),
        ("use `pool='grid:2'` or `pool=\"cls\"`", "use --pool grid:2 or --pool cls"),
        ("`layers=['a b', 'c']`, `layers=['name', ...]`", "--layers 'a b,c', --layers name,..."),
        ("`trust=True` takes it", "--trust-checkpoint takes it"),
        ("`mufm=True`, `mufm=False`", "--mufm, --no-mufm"),
        ("fewer (`limit=`), smaller (`size=`)", "fewer (--samples), smaller (--image-size)"),
        ("such as `brenier=16`, `store=DIR`", "such as --brenier 16, --store DIR"),
        ("`skip_broken=False`", "`skip_broken=False`"),  # no flag says so
        ("`engine='wgeo'` and `wgeo list archs`", "`engine='wgeo'` and `wgeo list archs`"),
        ("a split=b/x.png and 'pool=gap' stay", "a split=b/x.png and 'pool=gap' stay"),
    ],
)
def test_parameter_is_shown_as_the_commands_option(said, shown):
    assert with_flags(said, ANALYZE) == shown


def test_messages_are_unchanged_outside_a_command():
    assert with_flags("say `arch=`.") == "say `arch=`."


def test_an_error_of_a_command_names_its_flags(tmp_path):
    torch.save({"weight": torch.ones(3, 4, 5)}, tmp_path / "odd.pt")
    data = ("--data", "digits", "--samples", "30")
    said = run("trace", tmp_path / "odd.pt", *data, "--store", tmp_path / "s", code=2)
    assert "--arch" in said
    assert "arch=" not in said


def test_refused_resumption_names_the_flag_that_restarts(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"no checkpoint")
    settings = ("--arch", "isoresnet", "--data", "digits", "--samples", 50)
    said = run("train", *settings, "--out", tmp_path, code=2)
    assert "--no-resume" in said
    assert "resume=" not in said


@pytest.mark.usefixtures("undrawn")
def test_warnings_and_verdicts_of_a_command_name_its_flags(tmp_path, monkeypatch):
    record = sample_record()
    record["verdict"] = [
        {"claim": "next", "words": "Take the Jacobians (`brenier=16`).", "evidence": {}}
    ]

    def measure(*_, **__):
        warnings.warn("Name them with `layers=`.", WgeoWarning, stacklevel=2)
        return wgeo.Analysis(record)

    monkeypatch.setattr("wgeo.cli.analysis.Job.measure", measure)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        said = run("analyze", __file__, "--data", "digits", "--out", tmp_path / "o", "--no-report")
    assert "wgeo: Name them with --layers." in said
    assert "Take the Jacobians (--brenier 16)." in said
    assert wgeo.Analysis.load(tmp_path / "o").record["verdict"] == record["verdict"]


def test_failure_among_several_checkpoints_names_the_flags_of_analyze(tmp_path):
    for name in "ab":
        torch.save({"weight": torch.ones(3, 4, 5)}, tmp_path / f"{name}.pt")
    (tmp_path / "sweep.toml").write_text(
        f'out = "{tmp_path}/out"\ndata = "digits"\nsamples = 20\ncheckpoints = "{tmp_path}/*.pt"\n'
    )
    said = run("sweep", tmp_path / "sweep.toml", "--no-report", code=2)
    assert said.count("--arch") == 2
    assert "arch=" not in said


def test_a_page_shows_parameters_as_code():
    said = markdown.sentence("Ask with `pool='grid:2'`; *not* [this](x) | `a")
    (inline,) = (token for token in MarkdownIt().parse(said) if token.type == "inline")
    parts = [(part.type, part.content) for part in inline.children]
    assert parts[1] == ("code_inline", "pool='grid:2'")
    assert {kind for kind, _ in parts} == {"text", "code_inline"} | (
        {"text_special"} & {kind for kind, _ in parts}
    )
    shown = "".join(content for _, content in parts)
    assert shown == "Ask with pool='grid:2'; *not* [this](x) | `a"
