"""The four algorithms: each takes the voices and returns the verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from symposia_shared.consensus.sides import Side, Voice, leader, sides_of
from symposia_shared.verdicts import Verdict

ConsensusName = Literal["majority_vote", "weighted_vote", "best_response", "all_agree"]


def majority_vote(voices: Sequence[Voice]) -> Verdict:
    """The answer most votes are for. ``agreed``: more than half of the n votes are for it.

    Ties, in this order: the summed measured weights of the tied sides (where weights were given), their mean score,
    their largest model, the alphabetically first answer.
    """
    return _plurality("majority_vote", voices, ("votes", lambda side: float(side.count)))


def weighted_vote(voices: Sequence[Voice]) -> Verdict:
    """The answer with the largest sum of weights. ``agreed``: it has more than half of all weight that was cast.

    Ties: the number of votes, then as majority_vote.
    """
    verdict = _plurality("weighted_vote", voices, ("weight", lambda side: side.weight), ("votes", lambda side: float(side.count)))
    sides = sides_of(voices)
    total, won = math.fsum(side.weight for side in sides), [side.weight for side in sides if side.answer == verdict.answer]
    return verdict.model_copy(update={"agreed": bool(won) and 2.0 * won[0] > total})


def best_response(voices: Sequence[Voice]) -> Verdict:
    """The answer of the one ballot with the highest score; ballots without a score come after all that have one.

    Where no ballot has a score it falls back on majority_vote and says so in ``rule``. Ties: the number of votes, then
    as majority_vote. ``agreed``: more than half of the n votes are for it.
    """
    if not any(v.ballot.score is not None and v.vote.extracted is not None for v in voices):
        return majority_vote(voices).model_copy(update={"rule": "best_response (majority_vote: no scores were given)"})
    return _plurality("best_response", voices, ("score", lambda side: side.best_score), ("votes", lambda side: float(side.count)))


def all_agree(voices: Sequence[Voice]) -> Verdict:
    """The answer all n votes are for, n at least 2; else no answer at all.

    Members without an answer do not count. One vote alone (n = 1) agrees with nobody: no answer, ``agreed`` False.
    ``agreement`` is the largest side's share, also where there is no consensus.
    """
    sides = sides_of(voices)
    if len(sides) == 1 and sides[0].count >= 2:
        return _verdict("all_agree", voices, sides, sides[0], None)
    return _no_consensus("all_agree", voices, sides)


RULES: Mapping[ConsensusName, Callable[[Sequence[Voice]], Verdict]] = {
    "majority_vote": majority_vote, "weighted_vote": weighted_vote, "best_response": best_response, "all_agree": all_agree,
}


def _plurality(rule: str, voices: Sequence[Voice], *measures: tuple[str, Callable[[Side], float]]) -> Verdict:
    sides = sides_of(voices)
    if not sides:
        return _no_consensus(rule, voices, sides)
    winner, tie = leader(sides, *measures)
    return _verdict(rule, voices, sides, winner, tie)


def _verdict(rule: str, voices: Sequence[Voice], sides: Sequence[Side], winner: Side, tie: str | None) -> Verdict:
    n = sum(side.count for side in sides)
    return Verdict(
        answer=winner.answer, spoken_by=winner.speaker.ballot.member, agreed=2 * winner.count > n, agreement=winner.count / n, n=n,
        rule=rule, tie=tie, votes=tuple(v.vote for v in voices), dissent=_by_count([s for s in sides if s is not winner]),
    )


def _no_consensus(rule: str, voices: Sequence[Voice], sides: Sequence[Side]) -> Verdict:
    n = sum(side.count for side in sides)
    return Verdict(
        answer=None, agreed=False, agreement=max(side.count for side in sides) / n if n else None, n=n, rule=rule,
        votes=tuple(v.vote for v in voices), dissent=_by_count(sides),
    )


def _by_count(sides: Sequence[Side]) -> tuple[str, ...]:
    return tuple(side.answer for side in sorted(sides, key=lambda s: (-s.count, s.answer)))
