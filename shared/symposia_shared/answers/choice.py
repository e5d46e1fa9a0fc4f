"""Multiple choice: one capital letter."""

from __future__ import annotations

import re

from symposia_shared.answers.reading import declined, parts, said, stated

#: what may stand around a letter: emphasis, brackets, LaTeX
_OPEN = r"[*_$\\{(\[\"'` ]{0,12}(?:(?:text(?:bf|rm|it)?|math(?:bf|rm)|boxed)\{){0,2}[( ]{0,2}"
_ANSWER_IS = re.compile(
    r"\b(?:answer|choice|option|closest|correct[ ](?:one|option|choice))"
    r"(?:[ ](?!is\b|are\b|be\b)[\w'-]{1,20}){0,4}?(?:[ ](?:is|are|be|to)[ \t]{0,2}:?|[ \t]{0,4}[:=])[ \t]{0,4}"
    rf"(?:(?:option|choice|letter|indeed|therefore|thus|still|also|most likely|probably)[ ]){{0,2}}{_OPEN}"
    r"(?-i:([B-HJ-Z](?!\w|[’'][a-z])|[AI](?!\w|[’'][a-z]|[ ](?!because|since|as |and |or |which|with|for|but|,)[a-z])))",
    re.IGNORECASE,
)
_IS_ANSWER = re.compile(
    r"\(([A-Z])\)[ ](?:is|seems|appears|would be)[ ](?:to be[ ])?(?:the[ ])?(?:most[ ])?(?:correct|right|best|closest|answer)\b"
)
_HENCE = re.compile(r"\b(?:hence|thus|therefore|so)[, ]{1,3}(?:option |choice )?\(?(?-i:([A-Z]))\)?[.!]?[ \t]{0,4}(?:\n|\Z)", re.IGNORECASE)
_LOWER = re.compile(r"\banswer[ ]is[ ]{0,2}[(\[]([a-z])[)\]]", re.IGNORECASE)
_ALONE = re.compile(rf"{_OPEN}([A-Za-z])[\])}}\"'`*_$\\.:,\s]{{0,12}}(?:[)}}.:,][^\n]*)?")
_NAMED = re.compile(r"\(([A-Z])\)|\b[Oo]ption[ ]([A-Z])\b|\b([A-Z])\)")
_ENDS_WHOLE = re.compile(r"[.!?)*\]}\"'`]\s*\Z")


def extract_choice(text: str) -> str | None:
    """The letter a text chooses: the last that it calls the answer, else the only one its last sentence names."""
    for part in parts(said(text)):
        letter = _told(part) or _named_last(part)
        if letter:
            return letter.upper()
    return None


def _told(part: str) -> str | None:
    for answer in stated(part):
        if declined(answer):
            return None
        m = _ALONE.fullmatch(answer.raw[:400]) if answer.mark != "phrase" else None
        if m:
            return m[1]
    found = _ANSWER_IS.findall(part) or _IS_ANSWER.findall(part) or _HENCE.findall(part) or _LOWER.findall(part)
    if found:
        return str(found[-1])
    for answer in stated(part):
        m = _ALONE.fullmatch(answer.raw[:400]) if answer.mark == "phrase" else None
        if m:
            return m[1]
    m = _ALONE.fullmatch(part.strip()) if len(part) < 400 else None
    return m[1] if m else None


def _named_last(part: str) -> str | None:
    """The one letter that the last sentence names, if it is whole and names no other."""
    end = part.rstrip()
    if len(end) > 60 and not _ENDS_WHOLE.search(end[-10:]):
        return None
    sentence = re.split(r"\n|\.[ ](?=[A-Z(])", end[-600:])[-1]
    letters = {next(g for g in m.groups() if g) for m in _NAMED.finditer(sentence)}
    return letters.pop() if len(letters) == 1 else None
