"""A check that no model makes: Python run in the sandbox, as a recorded turn."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Sequence

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


def asserts_in(text: str, code: str) -> list[str]:
    """The one-line ``assert`` statements of ``text`` that use something ``code`` defines: ``assert False`` tests nothing."""
    defined = _defined(code)
    found = []
    for line in _ASSERT.findall(text):
        statement = line.strip().rstrip("`").rstrip()
        tree = _parsed(statement)
        if tree is not None and defined & {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)} and len(statement) <= LONGEST_TEST:
            found.append(statement)
    return found[:MOST_TESTS]


def _defined(code: str) -> set[str]:
    tree = _parsed(code)
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in tree.body if isinstance(node, kinds)} if tree else set()


def _parsed(source: str) -> ast.Module | None:
    try:
        return ast.parse(source)
    except _BROKEN:
        return None
