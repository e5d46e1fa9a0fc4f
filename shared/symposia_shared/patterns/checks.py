"""Checks that no model makes: Python run in the sandbox, as a recorded turn, and calculations done again."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence
from fractions import Fraction

from symposia_shared.prompts import Message
from symposia_shared.turns import Reply, Turn
from symposia_shared.values import Value

#: the model of a turn in which tests are run; its reply is a Ruling in JSON, or an abstention where code cannot be confined
PYTHON = "check/python"
#: an attack may bring so many tests, of so many characters each
MOST_TESTS, LONGEST_TEST = 5, 500

_ASSERT = re.compile(r"^[ \t>]{0,12}(assert\b[^\n]{1,500})$", re.MULTILINE)
_BROKEN = (SyntaxError, ValueError, MemoryError, RecursionError)


class Ruling(Value):
    """What came of running tests: ``ran`` is False where the program or the tests could not be run at all."""

    ran: bool
    passed: bool
    detail: str = ""


def python_check(code: str, tests: Sequence[str]) -> Turn:
    """A turn in which ``tests`` (statements that raise when they fail) are run after ``code``."""
    task = json.dumps({"code": code, "tests": list(tests)}, ensure_ascii=False)
    return Turn(member=PYTHON, model=PYTHON, messages=(Message(role="system", content="{}"), Message(role="user", content=task)))


def ruling_of(reply: Reply) -> Ruling | None:
    """The ruling in a check's reply; None where it abstained."""
    if reply.kind != "completion":
        return None
    try:
        return Ruling.model_validate_json(reply.text)
    except ValueError:
        return None


def tests_in(text: str, code: str) -> list[str]:
    """The one-line ``assert`` statements of ``text`` that use something ``code`` defines: ``assert False`` tests nothing."""
    defined = _defined(code)
    found = []
    for line in _ASSERT.findall(text):
        statement = line.strip().rstrip("`").rstrip()
        tree = _parsed(statement)
        if tree is not None and defined & {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} and len(statement) <= LONGEST_TEST:
            found.append(statement)
    return found[:MOST_TESTS]


def wrong_sums(text: str) -> list[str]:
    """The calculations in ``text`` that do not hold, in one form: ``3 * 4 = 11`` is ``3*4=11``. Rounded results hold."""
    return [equation for equation, holds in _equations(text) if not holds]


def _defined(code: str) -> set[str]:
    tree = _parsed(code)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in tree.body if isinstance(node, kinds)} if tree else set()


def _parsed(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except _BROKEN:
        return None


#: texts are read so far; a longer left side is no calculation
MOST_CHARACTERS, LONGEST_SUM = 20_000, 120

_LEFT = re.compile(r"[-+*/().\d \t]{3,120}\Z")
_RIGHT = re.compile(r"[ \t]{0,3}(-?\d{1,30}(?:\.\d{1,30})?)(?![\d%/*]|[ \t]*[*/])")
_ENDS = re.compile(r"[=\n]")
_BLANKS = re.compile(r"[ \t]")


def _equations(text: str) -> list[tuple[str, bool]]:
    plain = re.sub(r"(?<=[\d)])[ \t]{0,3}[x×][ \t]{0,3}(?=[\d(])", "*", text[:MOST_CHARACTERS]).replace("÷", "/").replace("−", "-")
    plain = re.sub(r"(?<=\d),(?=\d{3}\b)", "", plain).replace("$", "")
    found = []
    for sign in re.finditer("=", plain):
        before = plain[max(0, sign.start() - LONGEST_SUM):sign.start()]
        left = _LEFT.search(_ENDS.split(before)[-1])
        right = _RIGHT.match(plain, sign.end())
        sides = (left[0].strip(" \t./*)+"), right[1]) if left and right else None
        value = _value(sides[0]) if sides else None
        if sides and value is not None:
            found.append((f"{_BLANKS.sub('', sides[0])}={sides[1]}", _holds(value, sides[1])))
    return found


def _holds(value: Fraction, claim: str) -> bool:
    """Whether ``claim`` is the value, or the value rounded to the decimals it shows."""
    told = Fraction(claim)
    decimals = len(claim.partition(".")[2])
    return value == told or (decimals > 0 and abs(value - told) < Fraction(1, 10**decimals))


def _value(expression: str) -> Fraction | None:
    """The value of a calculation with at least one operation; None for anything else."""
    tree = _parsed(expression)
    if tree is None or len(tree.body) != 1 or not isinstance(tree.body[0], ast.Expr):
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
