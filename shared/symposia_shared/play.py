"""A play: the course of a job's rounds as a pure generator, replayed from its recorded replies.

A play yields rounds, is sent each round's replies in the order of its turns, and returns the verdict. Same job,
same replies, same next round; so crash-resume, replay without a device and rehearsal are all ``advance``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from symposia_shared.errors import NoQuorum, PlayDiverged
from symposia_shared.jobs import Collaboration, Inference, Job
from symposia_shared.turns import Completion, Reply, Turn
from symposia_shared.values import canonical_json
from symposia_shared.verdicts import Verdict

#: asked with the replies so far (None: not in yet); True: what is missing can no longer change anything
Settled = Callable[[Sequence[Reply | None]], bool]


@dataclass(frozen=True, slots=True)
class Round:
    """Turns that run together. ``settled`` is asked once ``settled_from`` replies are in, and must be pure."""

    turns: tuple[Turn, ...]
    settled: Settled | None = None
    settled_from: int = 1
    #: the fewest members that must have spoken when the round is closed
    quorum: int = 1
    #: how many must have spoken for the round to be closed without waiting for the others; None: wait for all
    close_at: int | None = None

    @property
    def digest(self) -> str:
        """16 hex digits that differ when a turn differs."""
        return hashlib.sha256(canonical_json([t.model_dump(mode="json") for t in self.turns])).hexdigest()[:16]


Play = Generator[Round | Sequence[Turn], Sequence[Reply], Verdict]


@dataclass(frozen=True, slots=True)
class Played:
    """A closed round as it was recorded: its digest and one reply per turn."""

    digest: str
    replies: tuple[Reply, ...]


def play_of(job: Job) -> Play:
    """The play of any job; a single prompt is a play of one round of one turn."""
    if isinstance(job, Collaboration):
        return job.play()
    if isinstance(job, Inference):
        return _single(job)
    raise TypeError(f"{type(job).__name__} has no play")


def _single(job: Inference) -> Play:
    (reply,) = yield [job.turn]
    if not isinstance(reply, Completion):
        raise NoQuorum(f"{job.model} did not answer ({reply.cause}): {reply.message or 'no further word'}")
    return Verdict(answer=reply.text, spoken_by=job.model)


def advance(job: Job, played: Sequence[Played]) -> Round | Verdict:
    """What follows the closed rounds: the next round, or the verdict.

    Raises PlayDiverged when a replayed round is not the recorded one, and NoQuorum when too few spoke.
    """
    play = play_of(job)
    try:
        current = _as_round(next(play))
        for number, closed in enumerate(played):
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


def _as_round(yielded: Round | Sequence[Turn]) -> Round:
    return yielded if isinstance(yielded, Round) else Round(turns=tuple(yielded))


def _causes(replies: Sequence[Reply]) -> str:
    counts: dict[str, int] = {}
    for r in replies:
        if r.kind == "abstention":
            word = f"{r.cause} ({r.message})" if r.message else r.cause
            counts[word] = counts.get(word, 0) + 1
    return ", ".join(f"{n} × {cause}" for cause, n in counts.items()) or "no reason was recorded"
