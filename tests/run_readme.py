"""Run the README's Python examples and compare their output with the README."""

from __future__ import annotations

import contextlib
import io
import re
import sys
import tempfile
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![\w])")
TOLERANCE = 0.1  # relative; a network trained on another machine is not the same to the last digit


def differs(said: str, printed: str) -> bool:
    """Whether the words differ, or a number by more than the tolerance."""
    if NUMBER.sub("#", said).split() != NUMBER.sub("#", printed).split():
        return True
    pairs = zip(NUMBER.findall(said), NUMBER.findall(printed), strict=True)
    return any(abs(float(a) - float(b)) > TOLERANCE * max(float(a), 0.1) for a, b in pairs)


def main() -> int:
    examples = re.findall(r"```python\n(.*?)```[^`]*```text\n(.*?)```", README.read_text(), re.S)
    if not examples:
        print("README.md has no Python example followed by its output.")
        return 1
    for code, said in examples:
        printed = io.StringIO()
        with (
            tempfile.TemporaryDirectory() as folder,
            contextlib.chdir(folder),
            contextlib.redirect_stdout(printed),
        ):
            exec(compile(code, str(README), "exec"), {"__name__": "__main__"})
        if differs(said, printed.getvalue()):
            print(f"README says:\n{said}\nit printed:\n{printed.getvalue()}")
            return 1
    print(f"README: {len(examples)} example(s) print what it says.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
