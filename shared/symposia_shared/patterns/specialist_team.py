"""Specialist team: the task split by speciality, later specialists seeing earlier work, and an integrator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from symposia_shared.consensus import ConsensusName
from symposia_shared.jobs import Member, Members
from symposia_shared.patterns.artefacts import page, section
from symposia_shared.patterns.labour import Labour
from symposia_shared.patterns.members import Steps
from symposia_shared.patterns.plans import Plan, example, in_turn
from symposia_shared.patterns.refusals import Selective, none_votes
from symposia_shared.play import Play
from symposia_shared.verdicts import Verdict

#: the specialities of members who were given neither one nor a role
SPECIALITIES = (
    "requirements: what exactly is asked, and what is given",
    "solution: the method and its steps",
    "checking: mistakes, exceptions and limits",
    "wording: saying it clearly",
    "examples: showing it on a small case",
    "summary: the result in two sentences",
    "alternatives: another way to the same end",
)


class SpecialistTeam(Selective):
    """Two to seven specialists each do the part of the task that is theirs, and an integrator composes the answer.

    The last member integrates. It first splits the task: which specialities are needed, for what, and whose work each needs
    to see (a graph, validated and repaired once as in hierarchical); else, and with ``planned`` off, each specialist does its
    part in the order of the members and sees all earlier work. A speciality is the one given, else the member's role, else
    one of a list. Where the integrator does not answer in the end, the parts are joined. Solo performance prompting: Wang
    et al. 2023, arXiv:2307.05300; roles in turn on one artefact: Hong et al. 2023, arXiv:2308.00352.
    """

    refused: ClassVar[Mapping[ConsensusName, str]] = none_votes("nobody votes in a team, its answer is the integrator's")

    kind: Literal["specialist_team"] = "specialist_team"
    members: Members = Field(min_length=3, max_length=8)
    specialities: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = Field(
        (), description="What each specialist is good at, one per member but the last. Left out: the members' roles.",
    )
    planned: bool = Field(True, description="Let the integrator split the task; off: each specialist in turn.")
    part_chars: int = Field(1500, ge=100, le=100_000, description="Characters shown of a part; a longer one loses its middle.")

    @model_validator(mode="after")
    def _a_speciality_for_each(self) -> Self:
        specialists = len(self.members) - 1
        if self.specialities and len(self.specialities) != specialists:
            raise ValueError(f"there are {len(self.specialities)} specialities and {specialists} specialists (the last member integrates); "
                             "give one per specialist, or none.")
        return self

    def roles_needing_instruct(self) -> tuple[Member, ...]:
        """The integrator."""
        return self.members[-1:]

    def play(self) -> Play:
        """Split, work, integration."""
        labour = Labour(self, self.members[-1], self.members[:-1], self.part_chars, specialities=tuple(self._known()))
        plan = yield from self._split(labour)
        done = yield from labour.work(plan, quorum=self.quorum or 1)
        prompt = page(
            section("Task", self.prompt), section("Parts by specialists", labour.results(plan, done)),
            "Write the complete answer to the task from these parts. Leave out what does not belong to it.",
        )
        whole, by = yield from labour.compose(prompt, plan, done)
        return Verdict(answer=whole, spoken_by=by, notes={
            "plan": plan.source, "subtasks": len(plan.parts), "without": [p + 1 for p in range(len(plan.parts)) if p not in done],
        })

    def _split(self, labour: Labour) -> Steps[Plan]:
        known = labour.specialities
        in_order = in_turn([f"what belongs to {s}" for s in known], one_after_another=True)
        if not self.planned:
            return in_order
        listed = "\n".join(f"{n}. {s}" for n, s in enumerate(known, 1))
        prompt = page(
            section("Task", self.prompt), section("Specialists", listed),
            'Split this task into subtasks for these specialists. Do not solve it. "who" is the number of the specialist. '
            'A subtask that needs the result of others names them in "after".',
            f"Reply with JSON only. An example, for another task:\n{example(assigned=True)}",
        )
        plan = yield from labour.plan(prompt, most=2 * len(known), assigned=True, otherwise=in_order)
        return plan

    def _known(self) -> list[str]:
        """What each specialist is good at."""
        own = self.specialities or [" ".join((m.role or "").split())[:200] for m in self.members[:-1]]
        return [o or SPECIALITIES[i] for i, o in enumerate(own)]
