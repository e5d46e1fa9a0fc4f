"""A judge: asked twice, the second time with the order swapped, so that a taste for the first place cancels out.

Shi et al. 2024, arXiv:2406.07791: the bias for a position is not chance, and differs between judges and tasks. The remedy
is that of Zheng et al. 2023, arXiv:2306.05685.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_uppercase

from symposia_shared.answers import extract
from symposia_shared.jobs import Collaboration, Member
from symposia_shared.patterns.artefacts import page, section, spoken
from symposia_shared.patterns.members import Steps, sober_turn_of
from symposia_shared.patterns.peers import lettered, shuffled
from symposia_shared.play import Round
from symposia_shared.turns import Reply

#: a letter without "Best:" is taken from a reply of at most so many characters
LONGEST_BARE = 40

_BEST = re.compile(r"\bbest[ \t]{0,3}(?:answer[ \t]{0,3})?(?:is|:)[ \t*]{0,6}(?:answer[ \t]{0,3})?[(\[\"']?([A-Z])\b", re.IGNORECASE)
_RULED = re.compile(r"\bverdict[ \t]{0,3}:[ \t*]{0,6}(yes|no)\b|\A\W{0,6}(yes|no)\b", re.IGNORECASE)


def choose(job: Collaboration, judge: Member, answers: Sequence[str], *, most_chars: int) -> Steps[list[int | None]]:
    """One round of two turns: the place among ``answers`` the judge picked each time, None where it picked none."""
    order = shuffled(range(len(answers)), job.sampling.seed, job.prompt, "judge")
    orders = (order, order[::-1])
    turns = tuple(sober_turn_of(job, judge, _choice(job.prompt, [answers[i] for i in o], most_chars)) for o in orders)
    replies = yield Round(turns=turns, quorum=0)
    return [_picked(reply, o) for reply, o in zip(replies, orders, strict=True)]


def upheld(job: Collaboration, judge: Member, answer: str, objection: str) -> Steps[bool]:
    """One round of two turns: whether the judge finds, both times, that ``objection`` proves ``answer`` wrong."""
    parts = (section("Answer", answer), section("Objection", objection))
    turns = tuple(sober_turn_of(job, judge, _objection(job.prompt, *o)) for o in (parts, parts[::-1]))
    replies = yield Round(turns=turns, quorum=0)
    return all(_says_yes(reply) for reply in replies)


def _choice(question: str, answers: Sequence[str], most_chars: int) -> str:
    return page(
        section("Question", question), lettered(answers, most_chars=most_chars),
        "Check each answer. Which one is the best? End with one line like this:\nBest: <letter>",
    )


def _objection(question: str, first: str, second: str) -> str:
    return page(
        section("Question", question), first, second,
        "Does the objection prove that the answer is wrong? Check it yourself. End with one line like this:\nVerdict: <yes or no>",
    )


def _picked(reply: Reply, order: Sequence[int]) -> int | None:
    text = spoken(reply)
    if text is None:
        return None
    named = _BEST.findall(text)
    letter = named[-1].upper() if named else extract(text, "choice") if len(text) <= LONGEST_BARE else None
    place = ascii_uppercase.find(letter) if letter else -1
    return order[place] if 0 <= place < len(order) else None


def _says_yes(reply: Reply) -> bool:
    found = _RULED.findall(spoken(reply) or "")
    return bool(found) and "".join(found[-1]).lower() == "yes"
