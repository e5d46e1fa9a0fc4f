"""Where in a text its answer stands: what was said aloud, up to the point where the model runs on, and how it was marked."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

#: of a longer text the first and the last half of this many characters are read
MOST_CHARACTERS = 200_000
#: a longer stated answer is no answer
LONGEST_ANSWER = 4_000

#: how an answer was marked, most deliberate first
Mark = Literal["field", "tag", "hashes", "boxed", "phrase"]


class Stated(NamedTuple):
    """A marked answer: its raw text, or the JSON value where a field held something other than a string."""

    mark: Mark
    raw: str
    value: object = None
    #: quotation marks stood around it in prose (``**answer**: "5"``), where no JSON says that they are not part of it
    quoted: bool = False


_SPECIAL = re.compile(r"</?s>|<\|[a-zA-Z_]{1,24}\|>|<(?:eos|pad|bos|end_of_turn)>|\x00")
_FIELD = re.compile(r"""[\"'`*]{1,3}(?:final[ _]?)?answer[\"'`*]{0,3}[ \t\n]{0,20}:[ \t\n]{0,20}""", re.IGNORECASE)
_TAG = re.compile(r"(?:\[|<)(?:answer|ans)(?:\]|>)", re.IGNORECASE)
_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]{0,20}([^\n]{1,400})")
_BOXED = re.compile(r"\\f?boxed(?:\{|[ ]{1,4}(?=[\w\\-]))")
_PHRASE = re.compile(
    r"(?:(?:^|(?<=\n))[ \t*#>]{0,12}(?:final[ \t]|correct[ \t])?(?:answer|ans|a)[ \t*]{0,4}:"
    r"|\b(?:answer|solution)(?:[ ](?!is\b|are\b)[\w'-]{1,20}){0,6}[ ](?:is|are|would be|should be|will be|must be|equals)\b"
    r"|(?:^|(?<=\n))[ \t*#>]{0,12}(?:final[ \t]|correct[ \t])?answer[ \t*]{0,4}\n"
    r"|\b(?:final|correct)[ ]answer\b)[ \t\n]{0,4}(?:therefore|thus|simply|then)?[ \t\n:=*]{0,8}",
    re.IGNORECASE,
)
#: a heading under which a model that was not stopped invents the next question
_RUNS_ON = re.compile(
    r"\n[ \t]*(?:#{1,6}[ \t]{0,4})?\**(?:next |new |another )?(?:question|instructions?|exercise|q)(?:[ \t]{0,4}\d{1,3})?"
    r"(?:[ \t]{0,4}\([^()\n]{0,40}\))?[ \t]{0,4}\**(?::|\n)|\n[ \t]{0,8}(?:user|human)[ \t]{0,4}:|<\|user\|>",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(r"[_\s.?<>\[\]{}\"'`*-]*|<?(?:your|final|the)[ _](?:final )?answer>?", re.IGNORECASE)
_UNFILLED = re.compile(r"[\"'`]?(?:_{2,}|\.{3}|<[^<>]{1,40}>)[\"'`]?")


def said(text: str) -> str:
    """What the model said aloud: thinking and special tokens left out, cut to the characters that are read."""
    if len(text) > MOST_CHARACTERS:
        half = MOST_CHARACTERS // 2
        text = text[:half] + "\n" + text[-half:]
    _, closed, after = text.rpartition("</think>")
    if closed:
        text = after
    elif text.lstrip()[:7] == "<think>":
        return ""
    return _SPECIAL.sub("", text)


def parts(text: str) -> list[str]:
    """The text, cut where the model runs on into further questions; the first part holds the answer to ours."""
    edges = [0, *(m.start() for m in _RUNS_ON.finditer(text)), len(text)]
    cut = [text[a:b] for a, b in itertools.pairwise(edges)]
    return [part for part in cut if part.strip()]


def has_field(text: str) -> bool:
    """Whether there is an answer field, filled or not."""
    return _FIELD.search(text) is not None


def is_placeholder(raw: str, *, empty_may_be_meant: bool = False) -> bool:
    """Whether this is an unfilled template ("___"), or says nothing: which a literal such as "" or [] may mean."""
    return len(raw) < 200 and (_UNFILLED if empty_may_be_meant else _PLACEHOLDER).fullmatch(raw) is not None


def declined(answer: Stated) -> bool:
    """Whether a field was filled with no answer: ``"answer": null``."""
    return answer.mark == "field" and answer.raw.strip().casefold() in ("null", "none", "n/a", "unknown")


def stated(text: str, *, empty_may_be_meant: bool = False) -> Iterator[Stated]:
    """The marked answers in ``text``, most deliberate mark first and of each mark the last first; placeholders left out."""
    for find in (_fields, _tagged, _hashed, _boxes, _phrased):
        for found in find(text):
            if len(found.raw) <= LONGEST_ANSWER and not (
                found.value is None and is_placeholder(found.raw, empty_may_be_meant=empty_may_be_meant and found.mark != "phrase")
            ):
                yield found


def _last_first(pattern: re.Pattern[str], text: str, most: int = 50) -> list[re.Match[str]]:
    return list(pattern.finditer(text))[-most:][::-1]


def _fields(text: str) -> Iterator[Stated]:
    for m in _last_first(_FIELD, text):
        is_key = "\"" in m[0] or "'" in m[0]
        for found in _field_value(text, m.end()):
            yield found if is_key else found._replace(quoted=text[m.end():m.end() + 1] == '"')


def _field_value(text: str, at: int) -> Iterator[Stated]:
    opening = text[at:at + 1]
    line = text[at:at + LONGEST_ANSWER].split("\n", 1)[0]
    if opening and opening in "\"'`":
        yield Stated("field", _quoted(text, at))
        return
    if opening and opening in "[{":
        try:
            value, end = json.JSONDecoder().raw_decode(text[at:at + LONGEST_ANSWER])
        except (ValueError, RecursionError):
            pass
        else:
            yield Stated("field", text[at:at + end], value)
            return
    yield Stated("field", line.strip().rstrip(",").rstrip("}").strip())


_QUOTED = re.compile(r"\"[^\"]{1,400}\"[.,;]?(?:\s|\Z)")
_CLOSES = re.compile(r"[ \t\n]{0,200}(?:[}\n`]|,[ \t\n]{0,200}\"|\Z)")


def _quoted(text: str, at: int) -> str:
    """The inside of the string that starts at ``at``, its own unescaped quotes included: it ends where an object goes on."""
    quote, end, stop = text[at], at + 1, min(len(text), at + LONGEST_ANSWER + 2)
    while True:
        end = text.find(quote, end, stop)
        if end < 0:
            return text[at + 1:stop].split("\n", 1)[0].strip()
        escaped = text[at + 1:end].endswith("\\") and not text[at + 1:end].endswith("\\\\")
        if not escaped and _CLOSES.match(text, end + 1):
            return text[at + 1:end]
        end += 1


def _tagged(text: str) -> Iterator[Stated]:
    for m in _last_first(_TAG, text):
        inside = re.split(r"\[/|</", text[m.end():m.end() + LONGEST_ANSWER], maxsplit=1)[0]
        yield Stated("tag", inside.strip())


def _hashed(text: str) -> Iterator[Stated]:
    for m in _last_first(_HASHES, text):
        yield Stated("hashes", m[1].strip())


def _boxes(text: str) -> Iterator[Stated]:
    for m in _last_first(_BOXED, text):
        if m[0].endswith("{"):
            inside = _braced(text, m.end())
            if inside is not None:
                yield Stated("boxed", inside)
        else:
            yield Stated("boxed", re.split(r"[$\s]", text[m.end():m.end() + 200], maxsplit=1)[0])


def _braced(text: str, at: int) -> str | None:
    """What stands between the brace before ``at`` and its match; None where that is not within LONGEST_ANSWER."""
    depth = 1
    for i in range(at, min(len(text), at + LONGEST_ANSWER)):
        if text[i] == "{" and text[i - 1] != "\\":
            depth += 1
        elif text[i] == "}" and text[i - 1] != "\\":
            depth -= 1
            if depth == 0:
                return text[at:i]
    return None


def _phrased(text: str) -> Iterator[Stated]:
    for m in _last_first(_PHRASE, text):
        yield _as_written(text[m.end():m.end() + 400].split("\n", 1)[0].strip())


def _as_written(raw: str) -> Stated:
    return Stated("phrase", raw, quoted=_QUOTED.match(raw) is not None)
