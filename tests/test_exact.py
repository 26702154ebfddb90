"""Exact: the right answer, and a proof that holds."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from wgeo.transport.exact import Exact


@pytest.mark.parametrize("n", [1, 2, 50])
def test_agrees_with_scipys_assignment(n: int, rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(n, 3)), rng.normal(size=(n, 3))
    cost = cdist(x, y, "sqeuclidean")
    best = cost[linear_sum_assignment(cost)].mean()
    found = Exact().solve(x, y)
    assert found.cost == pytest.approx(best, rel=1e-12)
    assert found.status == "certified"
    assert found.lower**2 <= best * (1 + 1e-12)
    assert found.upper**2 >= best * (1 - 1e-12)
