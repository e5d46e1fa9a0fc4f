"""Python literals: compared as values, strings written bare (a JSON answer does not keep a Python string's quotes)."""

from __future__ import annotations

import ast
import json
import re

from symposia_shared.answers.reading import LONGEST_ANSWER, Stated, has_field, parts, said, stated
from symposia_shared.answers.syntax import BROKEN, parse

#: brackets nested deeper, or longer chains of signs, are no literal: the parser would recurse
DEEPEST = 60
_DEEP_SIGNS = re.compile(r"(?:[-+~][ ]?){20}")
_ASSERT = re.compile(r"\bassert[^\n]{0,2000}?==[ ]?([^\n]+)")
_OUTPUT = re.compile(
    r"\b(?:output|answer|result|return(?:s|ed)?|value)(?:[ ][\w'()`]{1,30}){0,8}?[ ](?:is|be|as|equals|returns?|to)\b"
    r"[ :]{0,3}\n{0,2}`{1,3}([^`\n]{1,400})`", re.IGNORECASE,
)
_CALL_EQUALS = re.compile(r"(?:assert[ ]+)?\w+\([^\n]{0,2000}\)[ ]?==")
_FENCE = re.compile(r"```[a-z]{0,10}\n([^`]{1,4000})```")


def extract_literal(text: str) -> str | None:
    """The Python literal a text answers with: ``repr()`` of its value, a string bare."""
    heard = said(text)
    whole = heard.strip()
    unmarked_line = "\n" not in whole and not _marked(whole) and not has_field(whole)
    if len(whole) <= LONGEST_ANSWER and (unmarked_line or (is_literal(whole) and not whole.startswith("{"))):
        return canonical_literal(whole)
    for part in parts(heard):
        for answer in stated(part, empty_may_be_meant=True):
            found = _told(answer)
            if found is not None:
                return found
    if is_literal(whole) and not has_field(whole):
        return canonical_literal(whole)
    for part in parts(heard):
        for pattern in (_ASSERT, _OUTPUT, _FENCE):
            said_so = pattern.findall(part)
            if said_so:
                return canonical_literal(said_so[-1])
    return None


def canonical_literal(raw: str) -> str | None:
    """The canonical form of a bare literal; text that is none stands as it is. None where it is empty or too long."""
    s = raw.strip()
    if s.startswith("`") and s.endswith("`"):
        s = s.strip("`").strip()
    if not s or len(s) > LONGEST_ANSWER:
        return None
    value = _evaluated(s)
    return bare(s) if value is _NOTHING else written(value, quoted=False)


def bare(s: str) -> str:
    """A string as it stands between the quotes of a one-line literal: line ends and tabs written as escapes."""
    return s.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")


def written(value: object, *, quoted: bool = True) -> str:
    """``repr`` in one order only: sets are sorted, since the order of theirs changes from process to process."""
    match value:
        case str() if not quoted:
            return bare(value)
        case set() | frozenset():
            return "{" + ", ".join(sorted(map(written, value))) + "}" if value else "set()"
        case tuple():
            return f"({written(value[0])},)" if len(value) == 1 else "(" + ", ".join(map(written, value)) + ")"
        case list():
            return "[" + ", ".join(map(written, value)) + "]"
        case dict():
            return "{" + ", ".join(f"{written(k)}: {written(v)}" for k, v in value.items()) + "}"
        case _:
            return repr(value)


_NOTHING = object()


def _evaluated(s: str) -> object:
    """The value of a literal, Python's or else JSON's; _NOTHING where it is neither."""
    if _too_deep(s):
        return _NOTHING
    tree = parse(s.lstrip(" \t"), "eval")
    try:
        if tree is not None:
            return ast.literal_eval(tree)
    except BROKEN:
        pass
    try:
        return json.loads(s) if s[0] in "[{tfn" else _NOTHING
    except (ValueError, RecursionError):
        return _NOTHING


def is_literal(s: str) -> bool:
    """Whether ``s`` is a literal and nothing else."""
    return bool(s) and _evaluated(s) is not _NOTHING


def _too_deep(s: str) -> bool:
    depth = deepest = 0
    for c in s:
        depth += (c in "([{") - (c in ")]}")
        deepest = max(deepest, depth)
    return deepest > DEEPEST or _DEEP_SIGNS.search(s) is not None


def _marked(text: str) -> bool:
    return any(True for _ in stated(text, empty_may_be_meant=True)) or _ASSERT.search(text) is not None or _OUTPUT.search(text) is not None


def _told(answer: Stated) -> str | None:
    if answer.value is not None:
        return written(answer.value)
    if answer.mark == "field":
        inside = _unescaped(answer.raw)
        return canonical_literal(inside) if is_literal(inside.strip()) else bare(inside)
    raw = answer.raw.strip()
    if answer.mark == "phrase":
        span = re.search(r"`([^`]{1,400})`", raw)
        raw = span[1] if span else re.split(r"\.(?:\s|$)", raw, maxsplit=1)[0]
        if not span and not is_literal(raw):
            return None
    if _CALL_EQUALS.match(raw):
        raw = raw.rpartition("==")[2]
    return canonical_literal(raw)


def _unescaped(raw: str) -> str:
    try:
        value = json.loads(f'"{raw}"', strict=False)
    except ValueError:
        return raw
    return value if isinstance(value, str) else raw
