"""Run the README's Python example and hold what it prints against what the README says."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def main() -> int:
    pattern = r"```python\n(.*?)```\s*(?:[^`]*?)```text\n(.*?)```"
    examples = re.findall(pattern, README.read_text(), re.S)
    if not examples:
        print("README.md has no Python example followed by its output.")
        return 1
    for code, expected in examples:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(README), "exec"), {"__name__": "__main__"})
        if printed.getvalue().strip() != expected.strip():
            print(f"README says:\n{expected}\nit printed:\n{printed.getvalue()}")
            return 1
    print(f"README: {len(examples)} example(s) print what it says.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
