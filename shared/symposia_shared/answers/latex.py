"""Mathematical answers in LaTeX, in the normal form of Hendrycks et al. 2021 (arXiv:2103.03874), numbers by value.

``\\dfrac{1}{2}`` is ``0.5``, ``\\frac{\\sqrt{3}}{2}`` is ``(sqrt(3))/2``; units, ``\\text{}``, degrees, percent and spacing are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from symposia_shared.answers.number import canonical_number, numbers_in, plain_number
from symposia_shared.answers.reading import LONGEST_ANSWER, Stated, parts, said, stated

#: braces nested deeper are no answer
DEEPEST = 40

_DROPPED = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|limits|[bB]igg?[lr]?|boxed|fbox|quad|qquad|!|,|;|:| |%|\$)(?![a-zA-Z])"
    r"|\^(?:\{\\circ\}|\\circ(?![a-zA-Z])|\{\\deg(?:ree)?s?\}|°)|\\circ(?![a-zA-Z])|\\degrees?(?![a-zA-Z])|[°%$~‍]|\\\(|\\\)|\\\[|\\\]"
)
_SAME: tuple[tuple[re.Pattern[str], str], ...] = tuple((re.compile(a), b) for a, b in (
    (r"\{,\}", ","), (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"), (r"\\(?:cdot|times|ast)(?![a-zA-Z])|[·×⋅∙]", "*"), (r"[−–]", "-"), (r"π", r"\\pi"),
    (r"∞", r"\\infty"), (r"√", r"\\sqrt"), (r"\\(?:le|leq|leqslant)(?![a-zA-Z])|≤", r"\\le"), (r"\\(?:ge|geq|geqslant)(?![a-zA-Z])|≥", r"\\ge"),
    (r"\\(?:neq|ne)(?![a-zA-Z])|≠", r"\\ne"), (r"\\lbrace|\\\{", "{"), (r"\\rbrace|\\\}", "}"), (r"²", "^2"), (r"³", "^3"), (r"\*\*", "^"),
    (r"\\div(?![a-zA-Z])|÷", "/"), (r"\\operatorname(?![a-zA-Z])|\\math(?:rm|bf|it|sf)(?![a-zA-Z])|\\text(?:bf|it|rm)(?![a-zA-Z])|\\mbox", r"\\text"),
))
_UNIT = re.compile(
    r"(?<=[\d)}])[ ]*\\?(?:square |cubic |sq\.? )?(?:units?|degrees?|dollars?|cents?|percent|(?:centi|kilo|milli)?met(?:er|re)s?|cm|mm|km|inch(?:es)?|feet|foot|ft"
    r"|yards?|miles?|hours?|minutes?|seconds?|days?|weeks?|months?|years?|grams?|kg|pounds?|lit(?:er|re)s?|mph|radians?)(?:\^\{?[23]\}?|[²³])?\.?$",
    re.IGNORECASE,
)
_NAMED = re.compile(r"^(?:[a-zA-Z](?:_\{?\w\}?)?|[a-zA-Z]\(\w\))(?:=|\\in(?![a-zA-Z]))")
_MIXED = re.compile(r"(-?)(\d{1,15})\\frac\{(\d{1,15})\}\{(\d{1,15})\}")


def extract_latex(text: str) -> str | None:
    """The mathematical answer of a text, in canonical form."""
    heard = parts(said(text))
    for part in heard:
        for answer in stated(part):
            found = canonical_latex(_told(answer))
            if found:
                return found
    for part in heard:
        for raw in _unmarked(part):
            found = canonical_latex(raw)
            if found:
                return found
    return None


def canonical_latex(raw: str) -> str | None:
    """The normal form of a bare answer; None where it is empty, too long or nested too deep."""
    if len(raw) > LONGEST_ANSWER:
        return None
    s = raw.strip().strip("`").strip()
    s = re.sub(r"\\\\(?=[a-zA-Z(){}\[\]])", r"\\", s).replace('\\"', '"').strip('"').strip()
    s = re.sub(r"\\u([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)), s)
    for pattern, plain in _SAME:
        s = pattern.sub(plain, s)
    s = _UNIT.sub("", _DROPPED.sub("", s).strip().rstrip(".").strip())
    s = _MIXED.sub(lambda m: f"{m[1]}({m[2]}+{m[3]}/{m[4]})" if m.span() != (0, len(s)) else _mixed(m), s)
    try:
        s = _flat(_without_text(s), 0)
    except RecursionError:
        return None
    s = re.sub(r"(?<!\d)\*|\*(?!\d)", "", re.sub(r"\s+", "", s))
    s = _NAMED.sub("", s).strip().rstrip(".,;")
    if not s:
        return None
    return _value(s) or _value(_last_of_chain(s)) or (s.lower() if s.isalpha() else s)


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


def _without_text(s: str) -> str:
    """``\\text{...}`` dropped, unless the answer is nothing else."""
    if "\\text" not in s:
        return s
    dropped = _replace_command(s, r"\text", lambda inside: "")
    kept = _replace_command(s, r"\text", lambda inside: inside)
    return dropped if re.search(r"\w", dropped) else re.sub(r"[()]", "", kept)


def _replace_command(s: str, command: str, become: Callable[[str], str]) -> str:
    out, at = [], 0
    while True:
        start = s.find(command, at)
        if start < 0:
            return "".join((*out, s[at:]))
        inside, end = _argument(s, start + len(command))
        out += [s[at:start], become(inside)]
        at = end


def _argument(s: str, at: int) -> tuple[str, int]:
    """The argument at ``at``, braced or one token long, and where it ends."""
    while at < len(s) and s[at] == " ":
        at += 1
    if at >= len(s):
        return "", at
    if s[at] == "{":
        depth = 0
        for i in range(at, len(s)):
            depth += {"{": 1, "}": -1}.get(s[i], 0)
            if depth == 0:
                return s[at + 1:i], i + 1
        return s[at + 1:], len(s)
    if s[at] == "\\":
        m = re.compile(r"\\[a-zA-Z]+|\\.?").match(s, at)
        assert m is not None  # noqa: S101 - the pattern matches any backslash
        return m[0], m.end()
    return s[at], at + 1


def _flat(s: str, depth: int) -> str:
    """Fractions, roots and groups written on one line."""
    if depth > DEEPEST:
        raise RecursionError
    out, at = [], 0
    while at < len(s):
        if s.startswith("\\frac", at):
            over, at = _argument(s, at + 5)
            under, at = _argument(s, at)
            out.append(_over(_flat(over, depth + 1), _flat(under, depth + 1)))
        elif s.startswith("\\sqrt", at) and not s.startswith("[", at + 5):
            inside, at = (s[at + 6:_closing(s, at + 5)], _closing(s, at + 5) + 1) if s.startswith("(", at + 5) else _argument(s, at + 5)
            out.append(f"sqrt({_flat(inside, depth + 1)})")
        elif s.startswith("\\sqrt[", at):
            close = s.find("]", at)
            close = close if close > 0 else len(s)
            inside, end = _argument(s, close + 1)
            out.append(f"\\sqrt[{s[at + 6:close]}]{{{_flat(inside, depth + 1)}}}")
            at = end
        elif s[at] in "^_" and s.startswith("{", at + 1):
            inside, end = _argument(s, at + 1)
            flat = _flat(inside, depth + 1)
            out.append(s[at] + (flat if len(flat) == 1 else f"({flat})"))
            at = end
        elif s[at] == "{":
            inside, at = _argument(s, at)
            out.append(_flat(inside, depth + 1))
        else:
            if s[at] != "}":
                out.append(s[at])
            at += 1
    return "".join(out)


def _closing(s: str, at: int) -> int:
    depth = 0
    for i in range(at, len(s)):
        depth += {"(": 1, ")": -1}.get(s[i], 0)
        if depth == 0:
            return i
    return len(s)


def _over(over: str, under: str) -> str:
    def held(s: str) -> str:
        s = s.strip()
        return s if re.fullmatch(r"[\w.]+", s) else f"({s})"
    return f"{held(over)}/{held(under)}"
