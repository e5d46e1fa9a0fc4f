"""Numbers: read from prose, compared by value."""

from __future__ import annotations

import re
from fractions import Fraction

from symposia_shared.answers.reading import Stated, declined, parts, said, stated

#: a longer run of digits is no answer
MOST_DIGITS = 400
#: values are compared to so many decimal places
PLACES = 6

_NUMBER = re.compile(
    r"(?<![\w.])(?=[-−–$€£¥₹.\d])(?P<minus>[-−–])?(?:[$€£¥₹][ ]?)?(?P<minus2>[-−])?"
    r"(?P<whole>\d{1,3}(?:,\d{2,3}){0,40},\d{3}(?![\d,])|\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?P<point>\.\d+)?"
    r"(?:[eE](?P<power>[+-]?\d{1,2}))?(?:[ ](?P<over>\d{1,6})(?=[ ]?/[ ]?\d))?"
    r"(?:[ ]?/[ ]?(?P<under>\d+(?:\.\d+)?)(?![\d/]))?(?:[ ](?P<times>thousand|million|billion|trillion)\b)?"
)


_TIMES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}


def canonical_number(value: Fraction) -> str:
    """Digits without commas or trailing zeros, to six places: 57, -0.75, 8.333333."""
    if value.denominator == 1:
        return str(value.numerator)
    scaled = round(value * 10**PLACES)
    sign, digits = ("-" if scaled < 0 else ""), str(abs(scaled)).rjust(PLACES + 1, "0")
    return f"{sign}{digits[:-PLACES]}.{digits[-PLACES:]}".rstrip("0").rstrip(".") if scaled else "0"


def number_at(match: re.Match[str]) -> Fraction | None:
    """The value of a match of the number pattern; None for an empty one, a division by zero or too many digits."""
    whole, point = match["whole"], match["point"]
    if not (whole or point) or len(match[0]) > MOST_DIGITS:
        return None
    value = Fraction(f"{(whole or '0').replace(',', '')}{point or ''}")
    if match["power"]:
        value *= Fraction(10) ** int(match["power"])
    if match["under"]:
        under = Fraction(match["under"])
        if under == 0:
            return None
        value = value + Fraction(match["over"]) / under if match["over"] else value / under
    value *= _TIMES.get(match["times"], 1)
    return -value if match["minus"] or match["minus2"] else value


def numbers_in(text: str) -> list[Fraction]:
    """All numbers in ``text``, in order."""
    found = (number_at(m) for m in _NUMBER.finditer(_plain(text)))
    return [value for value in found if value is not None]


def plain_number(text: str) -> Fraction | None:
    """The value of a text that is one number and nothing else ("$1,234.50", "3/4"); None for any other text."""
    m = _NUMBER.fullmatch(_plain(text).strip().rstrip("%").strip())
    return number_at(m) if m else None


def extract_number(text: str) -> str | None:
    """The number a text ends up with, in canonical form: the marked one, else the last that is written."""
    heard = parts(said(text))
    for part in heard:
        for answer in stated(part):
            if declined(answer):
                return None
            found = _told(answer)
            if found is not None:
                return canonical_number(found)
    for part in heard:
        numbers = numbers_in(_CUT_OFF.sub("", part))
        if numbers:
            return canonical_number(numbers[-1])
    return None


#: a number that the end of the text cuts in its thousands
_CUT_OFF = re.compile(r"\d{1,3}(?:,\d{3}){0,5},\d{0,2}\Z")
_ASIDE = re.compile(r"\([^()]{0,300}\)")


def _told(answer: Stated) -> Fraction | None:
    """The number a marked answer tells: in a sentence the first, in a field or a box the last, after an equals sign if there is one."""
    raw = answer.raw if answer.value is None or not isinstance(answer.value, int | float) else str(answer.value)
    if answer.mark == "phrase":
        raw = raw.split(". ", 1)[0]
    numbers = numbers_in(raw.rpartition("=")[2]) or numbers_in(_ASIDE.sub(" ", raw)) or numbers_in(raw)
    if not numbers:
        return None
    return numbers[0] if answer.mark in ("phrase", "hashes") or "=" in raw else numbers[-1]


def _plain(text: str) -> str:
    text = text.replace("{,}", ",").replace(",\\!", ",").replace("\\$", "$").replace("\\%", "%").replace("\\,", "")
    return re.sub(r"\\[dt]?frac\{(\d{1,40})\}\{(\d{1,40})\}", r"\1/\2", text)
