"""Mathematical answers in LaTeX, in the normal form of Hendrycks et al. 2021 (arXiv:2103.03874), numbers by value.

``\\dfrac{1}{2}`` is ``0.5``, ``\\frac{\\sqrt{3}}{2}`` is ``(sqrt(3))/2``; units, ``\\text{}``, degrees, percent and spacing are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from symposia_shared.answers.flat_latex import on_one_line, without_text
from symposia_shared.answers.number import canonical_number, numbers_in, plain_number
from symposia_shared.answers.reading import LONGEST_ANSWER, Stated, declined, parts, said, stated

_DROPPED = re.compile(
    r"(?<!\\)\\(?:left|right|displaystyle|textstyle|limits|[bB]igg?[lr]?|boxed|fbox|quad|qquad|!|,|;|:| |%|\$)(?![a-zA-Z])"
    r"|\^(?:\{\\circ\}|\\circ(?![a-zA-Z])|\{\\deg(?:ree)?s?\}|°)|\\circ(?![a-zA-Z])|\\degrees?(?![a-zA-Z])|[°%$~‍]|\\\(|\\\)|\\\[|\\\]"
)
_END = r"(?![a-zA-Z])"
_SAME: tuple[tuple[re.Pattern[str], str], ...] = tuple((re.compile(a), b) for a, b in (
    (r"\{,\}", ","), (r"\\[dtc]frac" + _END, r"\\frac"), (r"\\(?:cdot|times|ast)" + _END + "|[·×⋅∙]", "*"), (r"\\div" + _END + "|÷", "/"),
    (r"[−–]", "-"), ("π", r"\\pi"), ("∞", r"\\infty"), ("√", r"\\sqrt"), ("²", "^2"), ("³", "^3"), (r"\*\*", "^"),
    (r"\\(?:leq|leqslant|le)" + _END + "|≤", r"\\le"), (r"\\(?:geq|geqslant|ge)" + _END + "|≥", r"\\ge"),
    (r"\\(?:neq|ne)" + _END + "|≠", r"\\ne"),
    (r"\\lbrace|\\\{", "{"), (r"\\rbrace|\\\}", "}"),
    (r"\\operatorname" + _END + r"|\\math(?:rm|bf|it|sf)" + _END + r"|\\text(?:bf|it|rm)" + _END + r"|\\mbox", r"\\text"),
))
_UNIT = re.compile(
    r"(?<=[\d)}])[ ]{0,4}\\?(?:square |cubic |sq\.? )?(?:units?|degrees?|dollars?|cents?|percent|(?:centi|kilo|milli)?met(?:er|re)s?|[ckm]m"
    r"|inch(?:es)?|feet|foot|ft|yards?|miles?|hours?|minutes?|seconds?|days?|weeks?|months?|years?|grams?|kg|pounds?|lit(?:er|re)s?|mph"
    r"|radians?)(?:\^\{?[23]\}?|[²³])?\.?$",
    re.IGNORECASE,
)
_NAMED = re.compile(r"^(?:[a-zA-Z](?:_\{?\w\}?)?|[a-zA-Z]\(\w\))(?:=|\\in(?![a-zA-Z]))")
_MIXED = re.compile(r"(-?)(\d{1,15})\\frac\{(\d{1,15})\}\{(\d{1,15})\}")


def extract_latex(text: str) -> str | None:
    """The mathematical answer of a text, in canonical form."""
    heard = parts(said(text))
    for part in heard:
        for answer in stated(part):
            if declined(answer):
                return None
            found = _quoted(answer) if answer.quoted else canonical_latex(_told(answer))
            if found:
                return found
    for part in heard:
        for raw in _unmarked(part):
            found = canonical_latex(raw)
            if found:
                return found
    return None


def canonical_latex(raw: str, *, quoted: bool = False) -> str | None:
    """The normal form of a bare answer; None where it is empty, too long or nested too deep. ``quoted`` keeps quotation marks around it."""
    if len(raw) > LONGEST_ANSWER:
        return None
    s = raw.strip().strip("`").strip()
    s = re.sub(r"\\\\(?=[a-zA-Z(){}\[\]])", r"\\", s).replace('\\"', '"')
    s = s if quoted else s.strip('"').strip()
    s = re.sub(r"\\u([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)), s)
    for pattern, plain in _SAME:
        s = pattern.sub(plain, s)
    s = _UNIT.sub("", _DROPPED.sub("", s).strip().rstrip(".").strip())
    s = _MIXED.sub(lambda m: f"{m[1]}({m[2]}+{m[3]}/{m[4]})" if m.span() != (0, len(s)) else _mixed(m), s)
    try:
        s = on_one_line(without_text(s))
    except RecursionError:
        return None
    s = re.sub(r"(?<!\d)\*|\*(?!\d)", "", re.sub(r"\s+", "", s))
    s = _NAMED.sub("", s).strip().rstrip(".,;")
    if not s:
        return None
    return _value(s) or _value(_last_of_chain(s)) or (s.lower() if s.isalpha() else s)


def compared_latex(answer: str) -> str:
    """What a canonical answer is compared by: without the quotation marks it was written in, so that ``"9"`` is ``9``."""
    quoted = len(answer) > 2 and answer.startswith('"') and answer.endswith('"')
    return (canonical_latex(answer) or answer) if quoted else answer


def _quoted(answer: Stated) -> str | None:
    """An answer written in quotation marks, which stay part of it."""
    inside = answer.raw.removeprefix('"').split('"', 1)[0] if answer.mark == "phrase" else answer.raw
    return canonical_latex(f'"{inside}"', quoted=True) if inside.strip() else None


def _told(answer: Stated) -> str:
    """The answer without the sentence it stands in."""
    raw = answer.raw
    if answer.mark == "phrase":
        inside = re.search(r"\$([^$]{1,400})\$|\\\(([^\n]{1,400}?)\\\)|\*\*([^*\n]{1,200})\*\*", raw)
        if inside:
            return next(g for g in inside.groups() if g)
        raw = re.split(r"\.(?:\s|$)|,\s|\s(?:which|because|since|and|for|so)\s", raw, maxsplit=1)[0]
    return raw


def _unmarked(part: str) -> Iterator[str]:
    """What may be the answer where nothing marks it: the last formula, the last number."""
    formulas = re.findall(r"\$\$?([^$\n]{1,200})\$|\\\(([^\n]{1,200}?)\\\)", part[-3000:])
    numbers = numbers_in(part[-3000:])
    if numbers:
        yield canonical_number(numbers[-1])
    elif formulas:
        yield next(g for g in formulas[-1] if g)


def _value(s: str) -> str | None:
    number = plain_number(s)
    return None if number is None else canonical_number(number)


def _last_of_chain(s: str) -> str:
    """``4`` of ``2-2+4=4``; the whole where the sides hold letters."""
    sides = s.split("=")
    return sides[-1] if len(sides) > 1 and not any(c.isalpha() for c in s) else s


def _mixed(m: re.Match[str]) -> str:
    sign, whole, over, under = m.groups()
    return f"{sign}{int(whole) * int(under) + int(over)}/{under}"
