"""Answers: what a text says in the end, read by kind and put in a canonical form that can be compared. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from symposia_shared.answers.choice import extract_choice
from symposia_shared.answers.code import code_digest, extract_code
from symposia_shared.answers.kinds import AnswerKind, kind_of
from symposia_shared.answers.label import extract_label
from symposia_shared.answers.latex import canonical_latex, compared_latex, extract_latex
from symposia_shared.answers.literal import canonical_literal, extract_literal
from symposia_shared.answers.number import extract_number
from symposia_shared.answers.reading import said
from symposia_shared.answers.structured import extract_json
from symposia_shared.errors import BadInput

__all__ = ["AnswerKind", "canonical", "code_digest", "compared", "extract", "kind_of"]


def extract(text: str, kind: AnswerKind, *, labels: Sequence[str] = ()) -> str | None:
    """The answer in ``text`` in the canonical form of ``kind``; None where there is none, which is better than a wrong one.

    Of a text longer than 200,000 characters only the first and the last 100,000 are read; the time taken is linear
    in what is read. ``auto`` is resolved from this one text; where there are several, ask ``kind_of`` first, so that
    all are read alike. Texts and programs are returned as they were written. Raises BadInput for an unknown kind.
    """
    if kind == "label":
        found = extract_label(text, labels)
    elif kind == "auto":
        return extract(text, kind_of([text], labels=labels), labels=labels)
    else:
        found = _reader(kind)(text)
    return None if found is None else found.encode("utf-8", "replace").decode()


def canonical(answer: str, kind: AnswerKind, *, labels: Sequence[str] = ()) -> str | None:
    """The canonical form of a bare answer, such as a gold one, that nothing surrounds."""
    if kind == "latex":
        return canonical_latex(answer)
    return canonical_literal(answer) if kind == "python_literal" and answer else extract(answer, kind, labels=labels)


def compared(answer: str, kind: AnswerKind) -> str:
    """What an answer in canonical form is compared by: answers with the same one agree."""
    return compared_latex(answer) if kind == "latex" else answer


def _text(text: str) -> str | None:
    return said(text).strip() or None


_READERS: Mapping[AnswerKind, Callable[[str], str | None]] = {
    "number": extract_number, "choice": extract_choice, "latex": extract_latex, "python_literal": extract_literal,
    "json": extract_json, "code": extract_code, "text": _text,
}


def _reader(kind: AnswerKind) -> Callable[[str], str | None]:
    try:
        return _READERS[kind]
    except KeyError:
        raise BadInput(f"there is no kind of answer {kind!r}.", field="kind", value=kind,
                       remedy=f"Choose one of auto, label, {', '.join(_READERS)}.") from None
