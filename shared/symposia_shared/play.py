"""A play: the course of a job's rounds as a pure generator, replayed from its recorded replies.

A play yields rounds, is sent each round's replies in the order of its turns, and returns the verdict. Same job,
same replies, same next round; so crash-resume, replay without a device and rehearsal are all ``advance``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from symposia_shared.errors import BadInput, NoQuorum, PlayDiverged
from symposia_shared.jobs import Collaboration, Embedding, Job, SingleTurn
from symposia_shared.prompts import Message
from symposia_shared.results import RoundRecord
from symposia_shared.turns import Completion, Reply, Turn
from symposia_shared.values import canonical_json
from symposia_shared.verdicts import Verdict

#: asked with the replies so far (None: not in yet); True: what is missing can no longer change anything
Settled = Callable[[Sequence[Reply | None]], bool]


#: what the turn at a place is asked, once the turns it follows have ended; None stands for a reply that it does not follow
Ask = Callable[[int, Sequence[Reply | None]], tuple[Message, ...]]


@dataclass(frozen=True, slots=True)
class Round:
    """Turns that run together, or as a graph: a turn with ``after`` starts as soon as those turns have ended.

    ``settled`` is asked once ``settled_from`` replies are in; it and ``ask`` must be pure. Raises BadInput for a graph that
    names a turn that is not there, or that has a cycle.
    """

    turns: tuple[Turn, ...]
    settled: Settled | None = None
    settled_from: int = 1
    #: the fewest members that must have spoken when the round is closed
    quorum: int = 1
    #: how many must have spoken for the round to be closed without waiting for the others; None: wait for all
    close_at: int | None = None
    #: makes the messages of the turns that have ``after``
    ask: Ask | None = None
    #: the place of the turn whose text is the verdict's if it speaks, so that it may be read while it is written; a promise of the play
    verdict_by: int | None = None

    def __post_init__(self) -> None:
        check_graph([t.after for t in self.turns])
        if self.ask is None and any(t.after for t in self.turns):
            raise BadInput("a turn of this round follows others, but the round has no 'ask'.", field="ask", remedy="Give Round(ask=...).")

    def asked(self, place: int, replies: Sequence[Reply | None]) -> Turn:
        """The turn as it is asked, given the replies of those it follows."""
        turn = self.turns[place]
        if not turn.after or self.ask is None:
            return turn
        seen = [r if i in turn.after else None for i, r in enumerate(replies)]
        return turn.model_copy(update={"messages": self.ask(place, seen)})

    @property
    def digest(self) -> str:
        """16 hex digits that differ when a turn differs. Fields at their default are left out, so that a new field leaves old rounds as they were."""
        return hashlib.sha256(canonical_json([t.model_dump(mode="json", exclude_defaults=True) for t in self.turns])).hexdigest()[:16]


Play = Generator[Round | Sequence[Turn], Sequence[Reply], Verdict]


@dataclass(frozen=True, slots=True)
class Played:
    """A closed round as it was recorded: its digest and one reply per turn."""

    digest: str
    replies: tuple[Reply, ...]


def played(rounds: Sequence[RoundRecord]) -> list[Played]:
    """Recorded rounds as a replay needs them."""
    return [Played(digest=r.digest, replies=tuple(t.reply for t in r.turns)) for r in rounds]


def play_of(job: Job) -> Play:
    """The play of any job; a job of one turn is a play of one round of it."""
    if isinstance(job, Collaboration):
        return job.play()
    if isinstance(job, SingleTurn):
        return _single(job)
    raise TypeError(f"{type(job).__name__} has no play")


def _single(job: SingleTurn) -> Play:
    (reply,) = yield [job.turn]
    if not isinstance(reply, Completion):
        raise NoQuorum(f"{job.model} did not answer ({reply.cause}): {reply.message or 'no further word'}")
    return Verdict(answer=None if isinstance(job, Embedding) else reply.text, spoken_by=job.model)


def advance(job: Job, closed_rounds: Sequence[Played]) -> Round | Verdict:
    """What follows the closed rounds: the next round, or the verdict.

    Raises PlayDiverged when a replayed round is not the recorded one, and NoQuorum when too few spoke.
    """
    play = play_of(job)
    try:
        current = _as_round(next(play))
        for number, closed in enumerate(closed_rounds):
            if closed.digest != current.digest:
                raise PlayDiverged(f"round {number} of this {job.name} was recorded as {closed.digest}, but replays as {current.digest}; "
                                   "the pattern's code has changed since. Run the version that began the job, or submit it again.")
            spoke = sum(1 for r in closed.replies if r.spoke)
            if spoke < current.quorum:
                raise NoQuorum(f"round {number} needed {current.quorum} of its {len(current.turns)} members to answer, and {spoke} did: "
                               f"{_causes(closed.replies)}.")
            current = _as_round(play.send(closed.replies))
    except StopIteration as end:
        verdict: Verdict = end.value
        return verdict
    finally:
        play.close()
    return current


def check_graph(after: Sequence[Sequence[int]]) -> None:
    """Raise BadInput unless every place named is there and no turn waits for itself, however indirectly (Kahn 1962)."""
    waits = {place: set(befores) for place, befores in enumerate(after)}
    for place, befores in waits.items():
        missing = sorted(b for b in befores if b not in waits)
        if missing:
            raise BadInput(f"turn {place} follows turn {missing[0]}, and there are {len(after)} turns.", field="after", value=missing,
                           remedy="Name places from 0 to one less than the number of turns.")
    while free := [p for p, befores in waits.items() if not befores]:
        for place in free:
            del waits[place]
        for befores in waits.values():
            befores.difference_update(free)
    if waits:
        raise BadInput(f"the turns {sorted(waits)} wait for one another in a circle.", field="after", value=sorted(waits),
                       remedy="Let each turn follow earlier ones only.")


def _as_round(yielded: Round | Sequence[Turn]) -> Round:
    return yielded if isinstance(yielded, Round) else Round(turns=tuple(yielded))


def _causes(replies: Sequence[Reply]) -> str:
    counts: dict[str, int] = {}
    for r in replies:
        if r.kind == "abstention":
            word = f"{r.cause} ({r.message})" if r.message else r.cause
            counts[word] = counts.get(word, 0) + 1
    return ", ".join(f"{n} × {cause}" for cause, n in counts.items()) or "no reason was recorded"
