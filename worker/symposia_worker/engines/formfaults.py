"""Why a form is refused, in the words of the one who asked: llguidance tells it by its own grammar's places and parts."""

from __future__ import annotations

import re

#: what it says → what we say; the first that is found
_WORDS = (
    ("look-around, including", "look-ahead and look-behind cannot be enforced"),
    ("lookarounds not supported", "word boundaries and other places between characters (\\b, \\B, ^ or $ within it) cannot be enforced"),
    ("backreferences are not supported", "back-references cannot be enforced"),
    ("unrecognized flag", "this kind of group is not known; (?:...) and (?i), (?s), (?x) are"),
    ("too many expressions", "it unfolds into more parts than one form may have"),
    ("too many states", "it unfolds into more states than one form may have"),
    ("fuel exhausted", "it costs more to enforce than one form may"),
)
_ERROR = re.compile(r"error: (?P<what>.+?)(?:\s+\d+ \| |\s*$)", re.DOTALL)
#: the pattern as it was read, and under it where the fault is
_MARK = re.compile(r"^(?P<before> *)\^+ *$", re.MULTILINE)
#: by so much the pattern is set in above the mark
_INDENT = 4


def told(raw: str) -> str:
    """llguidance's ``raw`` message as ours, one line; "" of none."""
    if not raw:
        return ""
    found = _ERROR.search(raw) if "regex parse error" in raw or "lexer error" in raw else None
    what = " ".join((found["what"] if found else raw).replace("<non-verbose/>", "").split()).rstrip(".")
    ours = next((said for theirs, said in _WORDS if theirs in raw), what)
    mark = _MARK.search(raw) if "regex parse error" in raw else None
    place = f" (at character {len(mark['before']) - _INDENT + 1})" if mark and len(mark["before"]) >= _INDENT else ""
    line = f"{ours}{place}"
    return line if len(line) <= 300 else line[:297] + "..."
