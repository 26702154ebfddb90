"""A single analysis: a checkpoint or stored features, and a plan."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..analysis.plan import NETWORK_SETTINGS, AnalysisPlan, is_stored
from ..errors import ArgumentError

if TYPE_CHECKING:
    from ..analysis import Analysis


@dataclass(frozen=True, eq=False)
class Job:
    """The path of a checkpoint or of stored features (`target`), and a plan."""

    target: str
    plan: AnalysisPlan

    @classmethod
    def of(cls, target: str, given: Mapping[str, Any]) -> Job:
        """Build a job from the settings that were given explicitly.

        Raise an ArgumentError if a setting is invalid, if no images are given for a network, or if
        settings for networks are given for stored features.
        """
        stored = is_stored(target)
        if stored and (names := [f"`{name}=`" for name in NETWORK_SETTINGS if name in given]):
            raise ArgumentError(
                f"{target} holds stored features: {', '.join(names)} can only be given for a "
                "network."
            )
        if not stored and given.get("source") is None:
            raise ArgumentError("No images are given: add `source=`; see `wgeo list datasets`.")
        return cls(target, AnalysisPlan.of(**given))

    @cached_property
    def key(self) -> str:
        """The key of the plan for this target (`AnalysisPlan.key`)."""
        return self.plan.key(self.target)

    def measure(self, command: str, store: str | None = None) -> Analysis:
        """Run the analysis; the features of a network are stored in the folder `store`, if given.

        The result's provenance contains the key, by which a finished job is recognized.
        """
        from ..analysis.pipeline import analyze_features, analyze_network
        from ..runtime.memory import memory_limit
        from ..trajectory import Trajectory

        plan = self.plan
        about: dict[str, Any] = {"provenance": {"job": self.key}, "command": command}
        with memory_limit(plan.memory):
            if is_stored(self.target):
                return analyze_features(plan, Trajectory.load(self.target), **about)
            net = plan.loading.network(self.target)
            return analyze_network(plan, net, plan.images(), store=store, **about)


def require_inputs(checkpoints: Iterable[str], source: str | None) -> None:
    """Check that all paths exist, before libraries are loaded, which takes seconds."""
    from ..checkpoints.locating import checked_path, display_path
    from ..data.names import locate

    for path in checkpoints:
        if not os.path.exists(path):
            checked_path(path, display_path(path))  # raises the error
    if source is not None:
        locate(source)
