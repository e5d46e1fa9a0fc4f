"""What an answer can be, and which kind the answers to one question are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from symposia_shared.answers.choice import extract_choice
from symposia_shared.answers.code import extract_code
from symposia_shared.answers.label import MOST_WORDS
from symposia_shared.answers.literal import is_literal
from symposia_shared.answers.number import numbers_in, plain_number
from symposia_shared.answers.reading import Stated, parts, said, stated
from symposia_shared.answers.structured import canonical_json_answer, last_value

#: how an answer is read and compared; ``auto`` is resolved from the answers themselves
AnswerKind = Literal["auto", "number", "choice", "latex", "python_literal", "json", "label", "code", "text"]

#: kinds by how much they tell apart, first to last: of equally frequent guesses the first is taken
_ORDER: tuple[AnswerKind, ...] = ("choice", "latex", "python_literal", "number", "json", "code", "label", "text")
#: at most so many texts are looked at, and so much of each
MOST_TEXTS, MOST_OF_EACH = 32, 20_000

_LITERAL_ASKED = re.compile(
    r"\bassert\b[^\n]{0,500}==[ ]{0,4}\?\?|\bassert f\(|output of|what (?:is|does)[^\n]{0,60}\b(?:return|print|evaluate)", re.IGNORECASE,
)
_OPTIONS_ASKED = re.compile(r"(?:\A|\n)[ \t]*\(?A[.):][^\n]*\n[ \t]*\(?B[.):]|\bOptions:")
_LETTER = re.compile(r"[*_$\\{(\[\"'` ]{0,6}(?:text\{)?\(?[A-Z]\)?[\])}\"'`*_$.:\s]{0,6}")
_LETTER_TOLD = re.compile(r"\b(?:answer|choice|option)(?:[ ]is|:)[ *_]{0,3}\([A-Z]\)")
_FORMULA = re.compile(r"\\[a-zA-Z]{2}|\^|\bsqrt\b|√|π")
_WORDS = re.compile(r"[^\W\d_][^\W\d_ '’-]*(?:[ '’-]{1,2}[^\W\d_]{1,40}){0,30}[.!]?")
_SUM = re.compile(r"[\w+*/=()|!., -]{2,80}")
_LONG_WORD = re.compile(r"[^\W\d_]{5}")
_BLANK = re.compile(r"\s")
_UNITS = re.compile(r"[a-zA-Z%°/.\s]{0,40}")


def kind_of(texts: Sequence[str], *, question: str | None = None, labels: Sequence[str] = ()) -> AnswerKind:
    """The kind of the answers to one question, never ``auto``; the order of ``texts`` does not matter.

    With ``labels`` it is ``label``. Else each text is guessed from its marked answer and the most frequent guess
    wins, where ``latex`` and ``python_literal`` take the
    numbers in; the question may settle it ("Options:", "assert
    f(1) == ??"). ``text`` where nothing else is sure.
    """
    if labels:
        return "label"
    guesses = Counter(_guess(t[-MOST_OF_EACH:]) for t in sorted(texts)[:MOST_TEXTS] if t.strip())
    if question is not None:
        if _OPTIONS_ASKED.search(question) and guesses["choice"]:
            return "choice"
        if _LITERAL_ASKED.search(question) and "def " in question and not guesses["code"]:
            return "python_literal"
    if not guesses:
        return "text"
    if guesses["latex"]:
        guesses["latex"] += guesses.pop("number", 0)
    elif guesses["python_literal"] * 4 > guesses["number"]:
        guesses["python_literal"] += guesses.pop("number", 0)
        if guesses["python_literal"]:
            guesses["python_literal"] += guesses.pop("json", 0)
    return max(_ORDER, key=lambda kind: (guesses[kind], -_ORDER.index(kind)))


def _guess(text: str) -> AnswerKind:
    heard = said(text)
    if "```json" not in heard and extract_code(heard) is not None and "answer" not in heard[:200].lower():
        return "code"
    for part in parts(heard)[:4]:
        if _LETTER_TOLD.search(part):
            return "choice"
        for answer in stated(part):
            return _of_stated(answer)
        bare = part.strip()
        if _LETTER.fullmatch(bare):
            return "choice"
        if bare.startswith("{") and canonical_json_answer(bare):
            return "json"
        if is_literal(bare):
            return "number" if plain_number(bare) is not None else "python_literal"
        if canonical_json_answer(bare) or ("```json" in part and last_value(part) is not None):
            return "json"
        if extract_choice(part):
            return "choice"
        last = re.split(r"\n|\.[ ](?=[A-Z])", bare)[-1]
        if numbers_in(last) and ("=" in part or len(bare) < 200):
            return "number"
    return "text"


def _of_stated(answer: Stated) -> AnswerKind:
    raw = answer.raw.strip().strip("*").strip()
    if answer.mark == "phrase":
        raw = re.split(r"\.(?:\s|\Z)", raw, maxsplit=1)[0]
    if isinstance(answer.value, dict | list):
        return "python_literal"
    if plain_number(raw) is not None:
        return "number"
    if _LETTER.fullmatch(raw):
        return "latex" if answer.mark == "boxed" and raw.isalpha() else "choice"
    if is_literal(raw):
        return "python_literal"
    if _FORMULA.search(raw) or answer.mark == "boxed":
        return "latex"
    if numbers_in(raw) and _mostly_number(raw):
        return "number"
    if _WORDS.fullmatch(raw) and len(raw.split()) <= MOST_WORDS:
        return "label"
    if _SUM.fullmatch(raw) and any(c.isdigit() for c in raw) and not _LONG_WORD.search(raw):
        return "latex"
    return "python_literal" if answer.mark in ("field", "tag") and len(raw) < 200 and not _BLANK.search(raw) else "text"


def _mostly_number(raw: str) -> bool:
    """A number with a currency or a unit."""
    rest = re.sub(r"[-$€£\d,.\s]", "", raw, count=0)
    return _UNITS.fullmatch(rest) is not None and len(raw) < 120
