"""Peers' answers side by side: anonymous, in a seeded order, and compared by what they say."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from string import ascii_uppercase
from typing import TypeVar

from symposia_shared.answers import AnswerKind
from symposia_shared.consensus import Likeness, decide
from symposia_shared.patterns.artefacts import cut, page, section
from symposia_shared.values import canonical_json
from symposia_shared.verdicts import Ballot

T = TypeVar("T")


def shuffled(items: Sequence[T], *key: str | int | None) -> list[T]:
    """``items`` in the order of sha256 over ``key`` and each item's place: another order for another key, the same for the same.

    The keys of a job are its seed, its prompt, and where the shuffle is made (round and seat).
    """
    def rank(place: int) -> bytes:
        return hashlib.sha256(canonical_json([*key, place])).digest()

    return [items[i] for i in sorted(range(len(items)), key=rank)]


def lettered(texts: Sequence[str], *, most_chars: int) -> str:
    """The texts as "Answer A", "Answer B" ..., each cut to ``most_chars``. At most 26."""
    return page(*(section(f"Answer {letter}", cut(text, most_chars)) for letter, text in zip(ascii_uppercase, texts, strict=False)))


def positions(
    texts: Sequence[str | None], kind: AnswerKind, labels: Sequence[str] = (), likeness: Likeness | None = None,
) -> list[str | None]:
    """The answer in each text: equal where two say the same, None where there is none."""
    ballots = [Ballot(member=str(i), text=t) for i, t in enumerate(texts)]
    return [v.answer for v in decide("majority_vote", ballots, kind=kind, labels=labels, likeness=likeness).votes]


def flips(
    before: Sequence[str | None], after: Sequence[str | None], kind: AnswerKind, labels: Sequence[str] = (), likeness: Likeness | None = None,
) -> int:
    """How many members who had an answer before have another one after."""
    found = positions([*before, *after], kind, labels, likeness)
    pairs = zip(found[:len(before)], found[len(before):], strict=True)
    return sum(1 for was, now in pairs if was is not None and now is not None and was != now)


def last_line(kind: AnswerKind) -> str:
    """How an answer that is counted shall end; the placeholder, copied, is read as no answer."""
    asked = {"number": "<number>", "choice": "<letter>", "label": "<label>"}.get(kind)
    return f"End with one line like this:\nAnswer: {asked}" if asked else ""
