"""Plays run over scripted replies, for the tests of patterns."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from symposia_shared.jobs import Job
from symposia_shared.patterns import parse_job, patterns
from symposia_shared.rehearsal import Rehearsed, rehearse
from symposia_shared.scripted import scripted_reply
from symposia_shared.turns import LIKENESS, Abstention, Completion, Reply, Turn

#: the fewest and the most members of each pattern, as DESIGN's table has them
COUNTS: Mapping[str, tuple[int, int]] = {
    "pipeline": (2, 5), "debate": (2, 4), "hierarchical": (3, 10), "ensemble": (3, 20), "specialist_team": (3, 8),
    "iterative_refinement": (2, 5), "adversarial": (2, 2), "consensus_building": (3, 10),
}
QUESTION = "How much is 6 times 7?"


def job_of(kind: str, members: int | None = None, **fields: Any) -> Any:
    """A job of pattern ``kind`` over models m0, m1 ... (the fewest it takes), seeded."""
    count = COUNTS[kind][0] if members is None else members
    raw = {"kind": kind, "prompt": QUESTION, "members": [{"model": f"m{i}"} for i in range(count)], **fields}
    return parse_job(raw).seeded(7)


class Scripted:
    """A script that says what ``say`` returns (None: an abstention) and remembers what was asked. ``check/likeness`` abstains, unless
    ``alike`` answers it."""

    alike: Callable[[list[str]], str | None] | None = None

    def __init__(self, say: Callable[[int, int, Turn], str | None]) -> None:
        self.say = say
        self.asked: list[tuple[int, int, Turn]] = []

    def __call__(self, number: int, place: int, turn: Turn) -> Reply:
        self.asked.append((number, place, turn))
        if turn.model == LIKENESS:
            told = self.alike(json.loads(turn.messages[-1].content)["texts"]) if self.alike else None
            return Abstention(cause="refused", message="scripted") if told is None else Completion(text=told)
        text = self.say(number, place, turn)
        return Abstention(cause="timeout", message="scripted") if text is None else Completion(text=text, reasoning="SECRET THOUGHT")

    def prompt(self, number: int, place: int = 0) -> str:
        """What was asked at a place: the last user message."""
        return next(t.messages[-1].content for n, p, t in self.asked if (n, p) == (number, place))

    def members(self) -> list[list[str]]:
        """Who was asked, round by round."""
        rounds: dict[int, list[str]] = {}
        for number, _, turn in self.asked:
            rounds.setdefault(number, []).append(turn.member)
        return [rounds[n] for n in sorted(rounds)]


def by_member(**texts: str | list[str | None] | None) -> Scripted:
    """Each member says its text, or its texts one after another (the last one repeats)."""
    left: dict[str, list[str | None]] = {name: list(t) if isinstance(t, list) else [t] for name, t in texts.items()}

    def say(number: int, place: int, turn: Turn) -> str | None:
        queue = left[turn.member.replace("/", "_")]
        return queue.pop(0) if len(queue) > 1 else queue[0]

    return Scripted(say)


def play(job: Job, script: Scripted) -> Rehearsed:
    """The job played to its end."""
    return rehearse(job, script)


def scripted_models(number: int, place: int, turn: Turn) -> Reply:
    """Members answer as the ``test/*`` checkpoints do; a check abstains, as where no sandbox is."""
    if turn.is_check:
        return Abstention(cause="refused", message="code cannot be confined here")
    return scripted_reply(turn.model, turn.messages, turn.sampling)


ALL = tuple(sorted(set(patterns()) & set(COUNTS)))
