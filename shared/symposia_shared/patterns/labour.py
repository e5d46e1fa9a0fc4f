"""A plan carried out: asked for, repaired once, run as a graph, its gaps filled once, and put together.

What hierarchical and specialist_team share. A plan is only ever what the code accepts as one, so a planner that emits garbage
costs one repair and no more; the graph is one round, in which each turn starts when those it follows have ended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from symposia_shared.jobs import Collaboration, Member
from symposia_shared.patterns.artefacts import cut, page, section, spoken
from symposia_shared.patterns.members import Steps, name_of, sober_turn_of, turn_of
from symposia_shared.patterns.plans import Flaw, Plan, read_plan
from symposia_shared.play import Round
from symposia_shared.prompts import Message, user
from symposia_shared.turns import Reply, Turn

_MISSING = "(nobody answered; do without it)"


@dataclass(frozen=True, slots=True)
class Labour:
    """Who plans and composes, who works, and how much of a part others are shown."""

    job: Collaboration
    head: Member
    workers: tuple[Member, ...]
    #: characters
    most_shown: int
    #: what each worker is good at, where that is told
    specialities: tuple[str, ...] = ()

    def plan(self, prompt: str, *, most: int, assigned: bool, otherwise: Plan) -> Steps[Plan]:
        """The head's plan; where it is none, its repair of it; where that is none either, ``otherwise``."""
        (reply,) = yield Round(turns=(sober_turn_of(self.job, self.head, prompt),), quorum=0)
        text = spoken(reply)
        found = read_plan(text, workers=len(self.workers), most=most, assigned=assigned)
        if isinstance(found, Plan):
            return found
        if text is None:
            return otherwise
        (reply,) = yield Round(turns=(sober_turn_of(self.job, self.head, _repair(prompt, text, found)),), quorum=0)
        found = read_plan(spoken(reply), workers=len(self.workers), most=most, assigned=assigned)
        return found.model_copy(update={"source": "repaired"}) if isinstance(found, Plan) else otherwise

    def work(self, plan: Plan, *, quorum: int) -> Steps[dict[int, str]]:
        """One round: each part by its worker, after those it follows. Place → result, where there is one."""
        replies = yield self._round(plan, range(len(plan.parts)), {}, draw=1, shift=0, quorum=quorum)
        return {place: text for place, reply in enumerate(replies) if (text := spoken(reply))}

    def fill(self, plan: Plan, done: Mapping[int, str], gaps: Sequence[int]) -> Steps[dict[int, str]]:
        """One round: the parts in ``gaps`` once more, each by the next worker; what is not answered stays as it is."""
        if not gaps:
            return dict(done)
        replies = yield self._round(plan, gaps, done, draw=1 + len(plan.parts), shift=1, quorum=0)
        return {**done, **{place: text for place, reply in zip(gaps, replies, strict=True) if (text := spoken(reply))}}

    def compose(self, prompt: str, plan: Plan, done: Mapping[int, str]) -> Steps[tuple[str, str | None]]:
        """The whole, and who wrote it: the head, or nobody where it did not answer and the parts are joined."""
        (reply,) = yield Round(turns=(turn_of(self.job, self.head, prompt, draw=0),), quorum=0, verdict_by=0)
        whole = spoken(reply)
        if whole is not None:
            return whole, name_of(self.head)
        return page(*(section(part.task, done.get(place)) for place, part in enumerate(plan.parts))), None

    def results(self, plan: Plan, done: Mapping[int, str]) -> str:
        """The parts with their results, numbered from 1 and cut."""
        return page(*(
            f"Part {place + 1}: {part.task}\n{cut(done[place], self.most_shown) if place in done else '(missing)'}"
            for place, part in enumerate(plan.parts)
        ))

    def _round(self, plan: Plan, places: Sequence[int], done: Mapping[int, str], *, draw: int, shift: int, quorum: int) -> Round:
        """The parts at ``places``; of those that a part follows, results in ``done`` are told and the others waited for."""
        seat = {place: i for i, place in enumerate(places)}

        def seat_of(place: int) -> int:
            return (plan.parts[place].worker + shift) % len(self.workers)

        def asked(place: int, told: Mapping[int, str]) -> str:
            part = plan.parts[place]
            needs = page(*(f'Result of "{plan.parts[p].task}":\n{cut(told.get(p, _MISSING), self.most_shown)}' for p in part.after))
            return page(
                section("The whole task, on which several people work", self.job.prompt), needs,
                section("Your speciality", self.specialities[seat_of(place)] if self.specialities else None),
                f"Your part: {part.task}\nDo your part and nothing else.",
            )

        def turn(place: int) -> Turn:
            first = turn_of(self.job, self.workers[seat_of(place)], asked(place, done), draw=draw + seat[place])
            return first.model_copy(update={"after": tuple(seat[p] for p in plan.parts[place].after if p in seat)})

        def ask(at: int, replies: Sequence[Reply | None]) -> tuple[Message, ...]:
            place = places[at]
            heard = {p: text for p, i in seat.items() if (text := spoken(replies[i]))}
            return user(asked(place, {**done, **heard}), system=self.workers[seat_of(place)].role)

        return Round(turns=tuple(turn(p) for p in places), ask=ask, quorum=min(quorum, len(places)))


def _repair(prompt: str, text: str, flaw: Flaw) -> str:
    return page(prompt, section("Your plan was", cut(text, 1500)), f"It cannot be used: {flaw.why}.\nReply with the corrected JSON only.")
