"""The patterns by name, and jobs read from plain JSON or YAML values.

A pattern is one file and one line here. Outsiders add theirs through the entry point group ``symposia.patterns``.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

from symposia_shared.errors import BadInput
from symposia_shared.jobs import SINGLE_TURN, Collaboration, Job, parse_single
from symposia_shared.patterns.adversarial import Adversarial
from symposia_shared.patterns.consensus_building import ConsensusBuilding
from symposia_shared.patterns.debate import Debate
from symposia_shared.patterns.ensemble import Ensemble
from symposia_shared.patterns.hierarchical import Hierarchical
from symposia_shared.patterns.iterative_refinement import IterativeRefinement
from symposia_shared.patterns.pipeline import Pipeline
from symposia_shared.patterns.specialist_team import SpecialistTeam

OURS: tuple[type[Collaboration], ...] = (
    Pipeline, Debate, Hierarchical, Ensemble, SpecialistTeam, IterativeRefinement, Adversarial, ConsensusBuilding,
)


def patterns() -> dict[str, type[Collaboration]]:
    """Pattern name → class, ours first; an outsider's pattern cannot replace one of ours."""
    known = {kind_of(cls): cls for cls in OURS}
    for point in metadata.entry_points(group="symposia.patterns"):
        if point.name not in known and point.name not in SINGLE_TURN:
            known[point.name] = point.load()
    return known


def kind_of(cls: type[Job]) -> str:
    """The name a job class goes by in JSON."""
    return str(cls.model_fields["kind"].default)


def parse_job(raw: Mapping[str, Any]) -> Job:
    """The job a mapping describes. Without ``kind`` it is an inference. Raises BadInput."""
    kind = raw.get("kind", "inference")
    if isinstance(kind, str) and kind in SINGLE_TURN:
        return parse_single(raw)
    for ours in OURS:  # first, and without a look at the entry points, which takes milliseconds
        if kind_of(ours) == kind:
            return ours.parse(raw)
    known = patterns()
    if not isinstance(kind, str) or kind not in known:
        raise BadInput(f"kind is {kind!r}, which is no job.", field="kind", value=kind, remedy=f"Use {', '.join((*SINGLE_TURN, *sorted(known)))}.")
    return known[kind].parse(raw)
