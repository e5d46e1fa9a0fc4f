"""A score: one integer from 1 to 10, asked for and read."""

from __future__ import annotations

import re

from symposia_shared.patterns.artefacts import cut, page, section

LOWEST, HIGHEST = 1, 10

#: a score that follows an arrow is an example's, copied
_SCORE = re.compile(r"(?<!-> )\bscore\b[ \t*]{0,4}(?:is|:|=)[ \t*]{0,6}(\d{1,3})(?!\d|[.,]\d)(?:[ ]?/[ ]?10\b)?", re.IGNORECASE)
_BARE = re.compile(r"[\s*]{0,6}(\d{1,2})(?:[ ]?/[ ]?10)?[\s*.]{0,6}")

_EXAMPLES = "Examples:\n2 + 2 = 5 -> Score: 1\n2 + 2 = 4 -> Score: 10"


def score_prompt(question: str, answer: str, *, most_chars: int) -> str:
    """How good is this answer?"""
    return page(
        section("Question", question), section("Answer", cut(answer, most_chars)),
        f"How good is this answer, from {LOWEST} (wrong or useless) to {HIGHEST} (right and complete)?\n{_EXAMPLES}",
        "Reply with one line like this:\nScore: <number>",
    )


def score_of(text: str | None) -> int | None:
    """The score a text gives, 1 to 10; None where there is no such integer."""
    if not text:
        return None
    whole = _BARE.fullmatch(text[:40]) if len(text) <= 40 else None
    found = _SCORE.findall(text) or ([whole[1]] if whole else [])
    score = int(found[-1]) if found else 0
    return score if LOWEST <= score <= HIGHEST else None
