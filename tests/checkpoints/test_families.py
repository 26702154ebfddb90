"""Every timm family and every torchvision classifier: none is read wrong (hours; on request)."""

from __future__ import annotations

import os

import families
import pytest

RESULTS = os.environ.get("WGEO_FAMILIES")


@pytest.mark.slow
@pytest.mark.skipif(not RESULTS, reason="set WGEO_FAMILIES to a file that keeps the results")
def test_no_architecture_family_is_misread():
    pytest.importorskip("timm")
    rows = families.run(RESULTS)
    wrong = {row["name"]: row for row in rows if row["status"] in ("wrong", "failed")}
    assert not wrong
