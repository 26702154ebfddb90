"""Shared by the tests of checkpoints."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def save(tmp_path):
    """Save an object and say where."""

    def saved(value, name="net.pt", **how):
        torch.save(value, tmp_path / name, **how)
        return tmp_path / name

    return saved
