"""From ballots to a verdict."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from symposia_shared.answers import AnswerKind, code_digest, compared, extract, kind_of
from symposia_shared.consensus.clusters import TOKEN_JACCARD, Likeness, clusters_of
from symposia_shared.consensus.rules import RULES, ConsensusName
from symposia_shared.consensus.sides import Voice
from symposia_shared.consensus.weights import Weights, size_weight
from symposia_shared.errors import BadInput
from symposia_shared.verdicts import Ballot, Verdict, Vote


def decide(
    name: ConsensusName,
    ballots: Sequence[Ballot],
    *,
    kind: AnswerKind = "auto",
    weights: Weights | None = None,
    labels: Sequence[str] = (),
    question: str | None = None,
    likeness: Likeness | None = None,
    behaviours: Sequence[str | None] | None = None,
) -> Verdict:
    """The verdict of the consensus algorithm ``name`` over ``ballots``, counted by answer and not by text.

    ``votes`` are in the order of ``ballots``; nothing else depends on that order. A ballot without an answer (its
    member abstained, or no answer was found in its text) votes for nothing and is not in ``n``. ``agreement`` is the
    winner's share of the n votes, None where n is 0; ``agreed`` says whether a strict majority stands behind the
    answer (of weight in weighted_vote; all of at least two in all_agree). Each algorithm states its rule for ties.

    ``weights`` are measured accuracies: weighted_vote counts by them, the others use them for ties only. Without them
    weighted_vote counts by size. ``likeness`` is how texts are compared for kind ``text`` (default: token Jaccard).
    ``behaviours`` are one per ballot for kind ``code``: equal where the programs behaved alike, None where one was
    not run and must not vote; without it programs are compared by their syntax trees. Of text and code the answer is
    what one member of the winning side wrote.

    Raises BadInput for an unknown algorithm.
    """
    if name not in RULES:
        raise BadInput(f"there is no consensus algorithm {name!r}.", field="consensus", value=name,
                       remedy=f"Choose one of {', '.join(RULES)}.")
    kind = kind_of([b.text for b in ballots if b.text is not None], question=question, labels=labels) if kind == "auto" else kind
    answers, how = _answers(ballots, kind, labels, likeness, behaviours)
    verdict = _shown(answers, count(name, ballots, [None if a is None else compared(a, kind) for a in answers], weights=weights))
    return verdict.model_copy(update={"rule": f"{verdict.rule} ({how})"}) if how else verdict


def count(name: ConsensusName, ballots: Sequence[Ballot], answers: Sequence[str | None], *, weights: Weights | None = None) -> Verdict:
    """As ``decide``, over answers that were read already: one per ballot in canonical form, None where there is none."""
    return RULES[name]([_voice(b, a, name, weights) for b, a in zip(ballots, answers, strict=True)])


def majority_settled(cast: Sequence[Vote], outstanding: int) -> bool:
    """Whether no way of casting ``outstanding`` more votes can change which answer wins a majority vote.

    True when the leading answer has more votes than any other could still reach: strictly more, because a tie might be
    broken either way. Votes without an answer do not count. Not for kinds ``text`` and ``code``, where a later vote
    may still change what is alike. ``agreement`` and ``agreed`` may change even when the winner cannot.
    """
    if outstanding <= 0:
        return True
    counts = sorted(Counter(v.answer for v in cast if v.answer is not None).values(), reverse=True)
    first, second = (*counts, 0, 0)[:2]
    return first > second + outstanding


def _answers(
    ballots: Sequence[Ballot], kind: AnswerKind, labels: Sequence[str], likeness: Likeness | None, behaviours: Sequence[str | None] | None,
) -> tuple[list[str | None], str]:
    """One canonical answer per ballot, and how they were compared where that is not plain."""
    found = [None if b.text is None else extract(b.text, kind, labels=labels) for b in ballots]
    if kind == "text":
        likeness = likeness or TOKEN_JACCARD
        stands_for = clusters_of([t for t in found if t is not None], likeness)
        return [None if t is None else stands_for[t] for t in found], f"text by {likeness.name} >= {likeness.threshold:g}"
    if kind == "code":
        return _programs(ballots, found, behaviours), "code by behaviour" if behaviours is not None else "code by syntax tree"
    return found, ""


def _shown(answers: Sequence[str | None], verdict: Verdict) -> Verdict:
    """The verdict with each vote's answer as it was written, where it was counted for another form of it."""
    votes = tuple(v if v.extracted == a else v.model_copy(update={"extracted": a, "counted_for": v.extracted})
                  for v, a in zip(verdict.votes, answers, strict=True))
    return verdict.model_copy(update={"votes": votes})


def _programs(ballots: Sequence[Ballot], found: Sequence[str | None], behaviours: Sequence[str | None] | None) -> list[str | None]:
    """For each ballot the program that stands for its side: of the best score, then the largest model, then the first in order."""
    keys = [None if f is None else code_digest(f) for f in found] if behaviours is None else list(behaviours)
    stands_for: dict[str, tuple[float, float, str]] = {}
    for ballot, program, key in zip(ballots, found, keys, strict=True):
        if program is not None and key is not None:
            rank = (-ballot.score if ballot.score is not None else math.inf, -(ballot.params_b or 0.0), program)
            stands_for[key] = min(rank, stands_for.get(key, rank))
    return [None if f is None or key is None else stands_for[key][2] for f, key in zip(found, keys, strict=True)]


def _voice(ballot: Ballot, answer: str | None, name: ConsensusName, weights: Weights | None) -> Voice:
    measured = weights.weight(ballot.model) if weights is not None else 0.0
    weight = 1.0
    if name == "weighted_vote":
        weight = measured if weights is not None else size_weight(ballot.params_b)
    return Voice(ballot, Vote(member=ballot.member, model=ballot.model, extracted=answer, weight=weight), measured)
