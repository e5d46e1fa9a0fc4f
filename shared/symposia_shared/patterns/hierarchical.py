"""Hierarchical: a leader plans, workers carry the plan out as a graph, the leader writes the whole."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from symposia_shared.consensus import ConsensusName
from symposia_shared.jobs import Member, Members
from symposia_shared.patterns.artefacts import page, section, spoken
from symposia_shared.patterns.labour import Labour
from symposia_shared.patterns.members import Steps, sober_turn_of
from symposia_shared.patterns.plans import Plan, example, in_turn
from symposia_shared.patterns.refusals import Selective, none_votes
from symposia_shared.play import Play, Round
from symposia_shared.verdicts import Verdict

#: what the workers do, in turn, where there is no plan
ASPECTS = (
    "List the facts and the requirements that the task gives.",
    "Work out a solution of the task, step by step.",
    "List the mistakes that are easily made in this task, and how to avoid each.",
    "Work out a solution of the task in another way, step by step.",
)

_MISSING = re.compile(r"\bmissing[ \t*]{0,4}:([^\n]{0,200})", re.IGNORECASE)
_NUMBER = re.compile(r"\d{1,3}")


class Hierarchical(Selective):
    """A leader plans subtasks as a graph, two to nine workers carry them out, and the leader checks and writes the whole.

    The first member leads. A plan is JSON and is validated: subtasks that name one another in a circle, or one that is not
    there, are refused; an invalid plan is repaired once, and after that the task is split by rule (``notes``: ``plan`` is
    planned, repaired or split). The subtasks are one round, in which each starts when those it follows have ended. What
    has no result, or what the leader then names as missing, is given once to the next worker. Where the leader does not
    answer in the end, the parts are joined. Plan-and-solve: Wang et al. 2023, arXiv:2305.04091; subtasks as a graph for
    parallel work: Kim et al. 2023, arXiv:2312.04511.
    """

    refused: ClassVar[Mapping[ConsensusName, str]] = none_votes("nobody votes in a hierarchy, its answer is the leader's synthesis")

    kind: Literal["hierarchical"] = "hierarchical"
    members: Members = Field(min_length=3, max_length=10)
    max_subtasks: int = Field(8, ge=1, le=32, description="Subtasks in a plan, at most.")
    check_coverage: bool = Field(True, description="Let the leader name what is missing before it writes the whole.")
    part_chars: int = Field(1500, ge=100, le=100_000, description="Characters shown of a part; a longer one loses its middle.")

    def roles_needing_instruct(self) -> tuple[Member, ...]:
        """The leader."""
        return self.members[:1]

    def play(self) -> Play:
        """Plan, work, coverage, gaps, synthesis."""
        labour = Labour(self, self.members[0], self.members[1:], self.part_chars)
        aspects = [ASPECTS[i % len(ASPECTS)] for i in range(len(labour.workers))]
        plan = yield from labour.plan(
            self._plan_prompt(), most=self.max_subtasks, assigned=False, otherwise=in_turn(aspects, one_after_another=False),
        )
        done = yield from labour.work(plan, quorum=self.quorum or 1)
        gaps = yield from self._gaps(labour, plan, done)
        done = yield from labour.fill(plan, done, gaps)
        whole, by = yield from labour.compose(self._whole_prompt(labour.results(plan, done)), plan, done)
        return Verdict(answer=whole, spoken_by=by, notes={
            "plan": plan.source, "subtasks": len(plan.parts), "done_again": [g + 1 for g in gaps], "without": [
                place + 1 for place in range(len(plan.parts)) if place not in done],
        })

    def _gaps(self, labour: Labour, plan: Plan, done: Mapping[int, str]) -> Steps[list[int]]:
        """The parts without a result, and those the leader finds missing; numbers that are no part are passed over."""
        gaps = {place for place in range(len(plan.parts)) if place not in done}
        if self.check_coverage:
            prompt = page(
                section("Task", self.prompt), section("Parts", labour.results(plan, done)),
                "Which parts have no usable result? Reply with one line like one of these:\nMissing: none\nMissing: <part numbers>",
            )
            (reply,) = yield Round(turns=(sober_turn_of(self, labour.head, prompt),), quorum=0)
            told = _MISSING.findall(spoken(reply) or "")
            gaps |= {int(n) - 1 for n in _NUMBER.findall(told[-1] if told else "") if 1 <= int(n) <= len(plan.parts)}
        return sorted(gaps)

    def _plan_prompt(self) -> str:
        return page(
            section("Task", self.prompt),
            f"Split this task into 2 to {max(2, self.max_subtasks)} subtasks for other people. Do not solve it. "
            'A subtask that needs the result of others names them in "after".',
            f"Reply with JSON only. An example, for another task:\n{example(assigned=False)}",
        )

    def _whole_prompt(self, results: str) -> str:
        return page(
            section("Task", self.prompt), section("Parts that others have done", results),
            "Write the complete answer to the task from these parts. Do yourself what is missing, and correct what is wrong.",
        )
