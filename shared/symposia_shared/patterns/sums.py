"""Calculations that a text writes out, done again."""

from __future__ import annotations

import ast
import re
from fractions import Fraction

#: texts are read so far; a longer left side is no calculation
MOST_CHARACTERS, LONGEST_SUM = 20_000, 120

_LEFT = re.compile(r"[-+*/().\d \t]{3,120}\Z")
_RIGHT = re.compile(
    r"[ \t]{0,3}(-?\d{1,30}+(?:\.\d{1,30}+)?+)"
    r"(?![\d%]|[ \t]{0,3}[-+*/][ \t]{0,3}[\d(]|[ \t]?(?:hundred|thousand|million|billion|percent))"
)
#: a word that makes what follows it a part of a longer calculation
_GOES_ON = r"(?:times|plus|minus|of|by|over|from|percent|half|twice|double|triple|to|per)"
#: what may stand before a calculation: nothing, punctuation, or another word
_BEFORE = re.compile(rf"(?:\A|[:;,.!?>=*`\"'|\[]|\b(?!{_GOES_ON}\b)[^\W\d_]{{2,}}[ \t])\s*\Z", re.IGNORECASE)
_BLANKS = re.compile(r"[ \t]")


def wrong_sums(text: str) -> list[str]:
    """The calculations in ``text`` that do not hold, in one form: ``3 * 4 = 11`` is ``3*4=11``. Rounded results hold."""
    return [equation for equation, holds in _equations(text) if not holds]


def _equations(text: str) -> list[tuple[str, bool]]:
    """Each calculation that is written out with its result, and whether it holds; what may be part of a longer one is left out."""
    plain = re.sub(r"(?<=[\d)])[ \t]{0,3}[x×][ \t]{0,3}(?=[\d(])", "*", text[:MOST_CHARACTERS]).replace("÷", "/").replace("−", "-")
    plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", plain).replace("$", "")
    found = []
    for sign in re.finditer("=", plain):
        begin = 1 + max(plain.rfind(mark, 0, sign.start()) for mark in "\n=")
        start = max(begin, sign.start() - LONGEST_SUM)
        left, right = _LEFT.search(plain, start, sign.start()), _RIGHT.match(plain, sign.end())
        if left is None or right is None or left.start() == start > begin:
            continue
        first = left.end() - len(left[0].lstrip())
        sum_ = _without_bullet(left[0], at_line_start=left.start() == begin)
        value = _value(sum_) if _BEFORE.search(plain[start:first]) else None
        if value is not None:
            found.append((f"{_BLANKS.sub('', sum_)}={right[1]}", _holds(value, right[1])))
    return found


def _without_bullet(left: str, *, at_line_start: bool) -> str:
    """``left`` without the dash or the star of a list: "- 3 + 5" is 3 + 5; a minus sign stands close to its number."""
    plain = left.strip(" \t")
    return plain[1:].lstrip() if at_line_start and plain[:2] in ("- ", "* ") else plain


def _holds(value: Fraction, claim: str) -> bool:
    """Whether ``claim`` is the value, or the value rounded to the decimals it shows."""
    told = Fraction(claim)
    decimals = len(claim.partition(".")[2])
    return value == told or (decimals > 0 and abs(value - told) < Fraction(1, 10**decimals))


def _value(expression: str) -> Fraction | None:
    """The value of a calculation with at least one operation; None for anything else."""
    try:
        tree = ast.parse(expression)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None
    if len(tree.body) != 1 or not isinstance(tree.body[0], ast.Expr):
        return None
    root = tree.body[0].value
    if not isinstance(root, ast.BinOp):
        return None
    try:
        return _worked_out(root, expression)
    except (ZeroDivisionError, RecursionError, ValueError):
        return None


def _worked_out(node: ast.expr, source: str) -> Fraction:
    match node:
        case ast.Constant(value=int() | float()):
            return Fraction(ast.get_source_segment(source, node) or "")
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_worked_out(inner, source)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _worked_out(left, source) + _worked_out(right, source)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _worked_out(left, source) - _worked_out(right, source)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _worked_out(left, source) * _worked_out(right, source)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _worked_out(left, source) / _worked_out(right, source)
        case _:
            raise ValueError("not plain arithmetic")
