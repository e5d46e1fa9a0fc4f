"""Votes gathered by answer, and the one order in which sides are compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from symposia_shared.verdicts import Ballot, Vote


@dataclass(frozen=True, slots=True)
class Voice:
    """A ballot, and the vote it became."""

    ballot: Ballot
    vote: Vote
    #: what breaks ties: the measured weight of its model where there is one, else 0
    measured: float = 0.0


@dataclass(frozen=True, slots=True)
class Side:
    """All voices behind one answer."""

    answer: str
    voices: tuple[Voice, ...]

    @property
    def count(self) -> int:
        """How many votes."""
        return len(self.voices)

    @property
    def weight(self) -> float:
        """Sum of the votes' weights; ``fsum``, so that the order of votes cannot change it."""
        return math.fsum(v.vote.weight for v in self.voices)

    @property
    def measured(self) -> float:
        """Sum of the measured weights of the models behind it."""
        return math.fsum(v.measured for v in self.voices)

    @property
    def mean_score(self) -> float:
        """Mean of the scores given; minus infinity where there are none."""
        scores = [v.ballot.score for v in self.voices if v.ballot.score is not None]
        return math.fsum(scores) / len(scores) if scores else -math.inf

    @property
    def best_score(self) -> float:
        """The highest score given; minus infinity where there are none."""
        return max((v.ballot.score for v in self.voices if v.ballot.score is not None), default=-math.inf)

    @property
    def size(self) -> float:
        """Billions of parameters of its largest model; 0 where not known."""
        return max((v.ballot.params_b or 0.0 for v in self.voices), default=0.0)

    @property
    def speaker(self) -> Voice:
        """The voice that stands for the side: by measured weight, score, size, then name; never by length."""
        def rank(v: Voice) -> tuple[float, float, float, str, str]:
            score = v.ballot.score if v.ballot.score is not None else -math.inf
            return (-v.measured, -score, -(v.ballot.params_b or 0.0), v.ballot.member, v.ballot.text or "")
        return min(self.voices, key=rank)


Measure = Callable[[Side], float]

#: how a tie is broken, first to last, under the names that stand in ``Verdict.tie``; none looks at the order of ballots
TIE_BREAKS: tuple[tuple[str, Measure], ...] = (
    ("measured weight", lambda side: side.measured),
    ("mean score", lambda side: side.mean_score),
    ("largest model", lambda side: side.size),
)
LAST_RESORT = "first in alphabetical order"


def sides_of(voices: Sequence[Voice]) -> list[Side]:
    """The sides, one per answer, those without an answer left out; in alphabetical order."""
    by_answer: dict[str, list[Voice]] = {}
    for voice in voices:
        if voice.vote.extracted is not None:
            by_answer.setdefault(voice.vote.extracted, []).append(voice)
    return [Side(answer, tuple(by_answer[answer])) for answer in sorted(by_answer)]


def leader(sides: Sequence[Side], *measures: tuple[str, Measure]) -> tuple[Side, str | None]:
    """The side that leads by the first of ``measures``, and the name of the rule that broke a tie, None if none did.

    Ties go to the further measures, then to TIE_BREAKS, then to the alphabetically first answer. ``sides`` is not empty.
    """
    tied, broken_by = list(sides), None
    for i, (name, measure) in enumerate((*measures, *TIE_BREAKS)):
        most = max(measure(side) for side in tied)
        left = [side for side in tied if math.isclose(measure(side), most, rel_tol=1e-12) or measure(side) == most]
        if i and len(left) < len(tied):
            broken_by = name
        tied = left
        if len(tied) == 1:
            return tied[0], broken_by
    return min(tied, key=lambda side: side.answer), LAST_RESORT
