"""Device code on an emulated accelerator; see `emulated.py`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parents[1] / "emulated.py"


@pytest.mark.skipif(
    torch.__version__ < "2.14", reason="torch 2.14 was the first to emulate devices"
)
def test_device_code_gives_the_numbers_of_the_cpu_within_its_budgets():
    """In a separate process: the device stays registered, and changes how torch saves tensors."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(TESTS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-2_000:]
