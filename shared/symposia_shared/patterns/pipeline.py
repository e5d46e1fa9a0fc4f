"""Pipeline: each member takes the work a step further."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from symposia_shared.consensus import ConsensusName
from symposia_shared.jobs import Member, Members
from symposia_shared.patterns.artefacts import cut, page, section, spoken
from symposia_shared.patterns.members import name_of, turn_of
from symposia_shared.patterns.refusals import Selective, none_votes
from symposia_shared.play import Play, Round
from symposia_shared.verdicts import Verdict

#: what a stage of this name is told
TOLD: Mapping[str, str] = {
    "outline": "Write a short outline of the answer, as a numbered list.",
    "draft": "Write a complete first version.",
    "check": "Find the mistakes in the work and correct them.",
    "optimise": "Make the work shorter, clearer and better. Keep what is right.",
    "document": "Complete the work with the explanations its reader needs. Keep what is right.",
}

#: the stages, by how many members there are
STAGES: Mapping[int, tuple[str, ...]] = {
    2: ("draft", "optimise"),
    3: ("draft", "optimise", "document"),
    4: ("draft", "check", "optimise", "document"),
    5: ("outline", "draft", "check", "optimise", "document"),
}


class Pipeline(Selective):
    """Two to five members in a row, each with a role of its own; each sees the task and the work so far, and writes it anew.

    Prompt chaining (Wu et al. 2022, arXiv:2110.01691). The verdict is the last artefact; all are kept in the transcript.
    A stage that does not answer is passed over. ``quorum`` is the fewest stages that must have answered in the end.
    """

    refused: ClassVar[Mapping[ConsensusName, str]] = none_votes("nobody votes in a pipeline, its answer is the last stage's work")

    kind: Literal["pipeline"] = "pipeline"
    members: Members = Field(min_length=2, max_length=5)
    stages: tuple[Annotated[str, Field(min_length=1, max_length=1000)], ...] = Field(
        (), description=f"What each member does, one per member: {', '.join(TOLD)}, or words of your own. Left out: by their number.",
    )
    artefact_chars: int = Field(12_000, ge=100, le=1_000_000, description="Characters shown of the work so far; longer work loses its middle.")

    @model_validator(mode="after")
    def _a_stage_for_each(self) -> Self:
        if self.stages and len(self.stages) != len(self.members):
            raise ValueError(f"there are {len(self.stages)} stages and {len(self.members)} members; give one stage per member, or none.")
        return self

    def roles_needing_instruct(self) -> tuple[Member, ...]:
        """Every stage but the first reworks what it is shown."""
        return self.members[1:]

    def play(self) -> Play:
        """One round per stage."""
        stages = self.stages or STAGES[len(self.members)]
        work, by, answered = None, None, list[str]()
        for seat, (member, stage) in enumerate(zip(self.members, stages, strict=True)):
            later = len(self.members) - seat - 1
            must = len(answered) + later < (self.quorum or 1)
            turn = turn_of(self, member, self._asked(stage, work), draw=seat)
            (reply,) = yield Round(turns=(turn,), quorum=int(must), verdict_by=None if later else 0)
            text = spoken(reply)
            if text is not None:
                work, by = text, name_of(member)
                answered.append(by)
        return Verdict(answer=work, spoken_by=by, notes={"answered": list(answered)})

    def _asked(self, stage: str, work: str | None) -> str:
        return page(
            section("Task", self.prompt), section("Work so far", cut(work, self.artefact_chars) if work else None),
            f"Your part: {TOLD.get(stage, stage)}",
            "Write the whole work anew, and nothing else." if work else "",
        )
