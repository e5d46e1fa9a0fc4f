"""Labels: one of a given set, or a short phrase where none is given."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from symposia_shared.answers.reading import parts, said, stated
from symposia_shared.answers.structured import last_value

#: a label that was not given is at most this many words
MOST_WORDS = 6
_EDGES = " \t\n\r.,;:!?\"'`*_()[]{}<>#-"


def extract_label(text: str, labels: Sequence[str] = ()) -> str | None:
    """The label a text settles on, spelt as in ``labels``; without ``labels`` its short answer, case folded.

    In order: the whole text, the marked answers (last first), the last line, the whole text if it names one label
    only. A text that names several where it decides has no answer.
    """
    for part in parts(said(text)):
        for candidate in _candidates(part):
            found = _given(candidate, labels) if labels else _short(candidate)
            if found:
                return found
    return None


def _candidates(part: str) -> Iterable[str]:
    yield part if len(part) < 200 else ""
    for answer in stated(part):
        yield answer.raw if answer.mark != "phrase" else re.split(r"\.(?:\s|$)", answer.raw, maxsplit=1)[0]
    value = last_value(part)
    if isinstance(value, dict):
        yield from (value[k] for k in ("label", "category", "class", "sentiment", "intent") if isinstance(value.get(k), str))
    yield part.rstrip().rpartition("\n")[2]
    yield part


def _given(candidate: str, labels: Sequence[str]) -> str | None:
    """The one label named in ``candidate``; None where it names none, several, or says that it is not that one."""
    by_fold = {label.strip().casefold(): label for label in labels if label.strip()}
    exact = by_fold.get(candidate.strip(_EDGES).casefold())
    if exact:
        return exact
    names = "|".join(re.escape(name) for name in sorted(by_fold, key=len, reverse=True))
    if not names:
        return None
    found = {by_fold[m[2]] for m in re.finditer(rf"(not |n't )?(?<!\w)({names})(?!\w)", candidate.casefold()) if not m[1]}
    return found.pop() if len(found) == 1 else None


def _short(candidate: str) -> str | None:
    s = " ".join(candidate.strip(_EDGES).casefold().split())
    return s if s and len(s.split()) <= MOST_WORDS and "\n" not in candidate.strip() else None
