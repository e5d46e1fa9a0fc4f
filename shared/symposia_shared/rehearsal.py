"""A play run over scripted replies: no Redis, no model, every prompt seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from symposia_shared.errors import NoQuorum, PlayDiverged
from symposia_shared.jobs import Job
from symposia_shared.play import Round, advance, played
from symposia_shared.results import Bill, Fault, Result, RoundRecord, TurnRecord, bill_of
from symposia_shared.turns import LIKENESS, Abstention, Reply, Turn
from symposia_shared.values import Value
from symposia_shared.verdicts import Verdict

#: what a member says when its turn comes: (round, place in the round, turn) → reply
Script = Callable[[int, int, Turn], Reply]


class ScriptLine(Value):
    """One scripted reply. Lines are taken by round and turn where both are given, else in the order the turns come."""

    round: int | None = None
    turn: int | None = None
    text: str | None = None
    #: an abstention instead of a text
    abstain: str | None = None


@dataclass(frozen=True, slots=True)
class Rehearsed:
    """How a play went: its rounds as a transcript, and its end."""

    rounds: tuple[RoundRecord, ...]
    verdict: Verdict | None
    error: Fault | None

    def result(self, job_id: str, job: Job) -> Result:
        """The result such a run would commit."""
        return Result(job_id=job_id, state="done" if self.verdict else "failed", verdict=self.verdict, error=self.error, rounds=self.rounds,
                      bill=bill_of(self.rounds) if self.rounds else Bill(), job=job.model_dump(mode="json", exclude_defaults=True),
                      version=int(getattr(type(job), "version", 1)))


def rehearse(job: Job, script: Script) -> Rehearsed:
    """Run ``job``'s play to its end, asking ``script`` for each reply; early stops are taken as a real run would, in the turns' order."""
    rounds: list[RoundRecord] = []
    while True:
        try:
            step = advance(job, played(rounds))
        except (NoQuorum, PlayDiverged) as error:
            return Rehearsed(tuple(rounds), None, Fault(type=error.name, message=str(error)))
        if isinstance(step, Verdict):
            return Rehearsed(tuple(rounds), step, None)
        rounds.append(_run(step, len(rounds), script))


def _run(step: Round, number: int, script: Script) -> RoundRecord:
    replies: list[Reply | None] = [None] * len(step.turns)
    asked = list(step.turns)
    stopped = False
    for i in _in_order(step):
        asked[i] = step.asked(i, replies)
        replies[i] = script(number, i, asked[i])
        inn = sum(1 for r in replies if r is not None)
        if step.settled and inn >= step.settled_from and inn < len(replies) and step.settled(replies):
            stopped = True
            break
    counted = tuple(i for i, r in enumerate(replies) if r is not None)
    final = [r or Abstention(cause="settled", message="the verdict could no longer change") for r in replies]
    return RoundRecord(round=number, digest=step.digest, closed_by="settled" if stopped else "all", counted=counted,
                       turns=tuple(TurnRecord(turn=t, reply=r) for t, r in zip(asked, final, strict=True)))


def _in_order(step: Round) -> list[int]:
    """The places, each after those it follows."""
    order: list[int] = []
    while len(order) < len(step.turns):
        order += [i for i, t in enumerate(step.turns) if i not in order and set(t.after) <= set(order)]
    return order


def from_lines(lines: Sequence[ScriptLine]) -> Script:
    """A script that reads ``lines``; a turn with no line left abstains, saying so. ``check/likeness`` is said only by a line that places it:
    no member speaks there, and where it abstains texts are compared by their words."""
    fixed = {(line.round, line.turn): line for line in lines if line.round is not None and line.turn is not None}
    queue = [line for line in lines if line.round is None or line.turn is None]

    def reply(number: int, place: int, turn: Turn) -> Reply:
        line = fixed.get((number, place)) or (queue.pop(0) if queue and turn.model != LIKENESS else None)
        if line is None and turn.model == LIKENESS:
            return Abstention(cause="refused", message="a rehearsal asks no model, so texts are compared by their words")
        if line is None:
            return Abstention(cause="refused", message=f"the script has no line for round {number}, turn {place} ({turn.member})")
        return scripted(line)

    return reply


def scripted(line: ScriptLine) -> Reply:
    """The reply a line stands for; its tokens are counted as words."""
    from symposia_shared.turns import Completion, Usage

    if line.abstain is not None or line.text is None:
        return Abstention(cause="refused", message=line.abstain or "the script says nothing")
    return Completion(text=line.text, usage=Usage(completion_tokens=len(line.text.split())))
