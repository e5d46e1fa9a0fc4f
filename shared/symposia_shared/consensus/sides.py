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
    def mean_score(self) -> float | None:
        """Mean of the scores given; None where there are none."""
        scores = [v.ballot.score for v in self.voices if v.ballot.score is not None]
        return math.fsum(scores) / len(scores) if scores else None

    @property
    def best_score(self) -> float:
        """The highest score given; minus infinity where there are none."""
        return max((v.ballot.score for v in self.voices if v.ballot.score is not None), default=-math.inf)

    @property
    def size(self) -> float | None:
        """Billions of parameters of its largest model; None where that of any is not known."""
        sizes = [v.ballot.params_b for v in self.voices if v.ballot.params_b is not None]
        return max(sizes) if len(sizes) == self.count else None

    @property
    def speaker(self) -> Voice:
        """The voice that stands for the side: by measured weight, score, size, then name; never by length."""
        def rank(v: Voice) -> tuple[float, float, float, str, str]:
            score = v.ballot.score if v.ballot.score is not None else -math.inf
            return (-v.measured, -score, -(v.ballot.params_b or 0.0), v.ballot.member, v.ballot.text or "")
        return min(self.voices, key=rank)


#: what sides are compared by, higher first; a side that has no value (None) keeps the measure from deciding at all
Measure = Callable[[Side], float | None]

#: how a tie is broken, first to last, under the names that stand in ``Verdict.tie``; none looks at the order of ballots
TIE_BREAKS: tuple[tuple[str, Measure], ...] = (
    ("measured weight", lambda side: side.measured),
    ("mean score", lambda side: side.mean_score),
    # only where every tied side's sizes are known: an unknown size is not a small one
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
        left = _highest(tied, measure)
        if i and len(left) < len(tied):
            broken_by = name
        tied = left
        if len(tied) == 1:
            return tied[0], broken_by
    return min(tied, key=lambda side: side.answer), LAST_RESORT


def _highest(sides: Sequence[Side], measure: Measure) -> list[Side]:
    """The sides with the highest value, or all where one has none; values equal to twelve digits are equal."""
    values = [measure(side) for side in sides]
    known = [value for value in values if value is not None]
    if len(known) < len(sides):
        return list(sides)
    most = max(known)
    return [side for side, value in zip(sides, known, strict=True) if math.isclose(value, most, rel_tol=1e-12)]
