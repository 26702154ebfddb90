"""What every unconstrained-feature solver returns about how good its answer is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Certificate:
    """What is proved about a critical point.

    Attributes
    ----------
    verdict : {"global", "strict saddle", "undecided"}
    gradient_norm : float
        Norm of the gradient of the objective in all its variables.
    spectral_norm, threshold : float or None
        Global where ``spectral_norm <= threshold`` (theory: ||G||_2 <= sqrt(lambda_W lambda_H)).
    curvature : float or None
        The negative eigenvalue of the Hessian along an exhibited direction, where there is one.
    lower_bound, gap : float or None
        A proved lower bound of the objective and (objective - lower_bound).
    evidence : str
        One sentence saying which theorem or computation supports the verdict.
    """

    verdict: Literal["global", "strict saddle", "undecided"]
    gradient_norm: float
    spectral_norm: float | None = None
    threshold: float | None = None
    curvature: float | None = None
    lower_bound: float | None = None
    gap: float | None = None
    evidence: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings, ready for JSON."""
        return asdict(self)
