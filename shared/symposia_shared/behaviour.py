"""Programs compared by what they do: run in the sandbox on the same calls."""

from __future__ import annotations

import ast
import hashlib
import json
import textwrap
from collections.abc import Sequence

from symposia_shared import sandbox
from symposia_shared.answers.syntax import parse


def code_runs_here() -> bool:
    """Whether untrusted code can be confined, and so is run, on this machine."""
    return sandbox.lacking() is None


def behaviours(
    programs: Sequence[str | None], calls: Sequence[str], *, prompt: str = "", limits: sandbox.Limits | None = None,
) -> list[str | None]:
    """For each program 16 hex digits that are equal where all ``calls`` gave equal values or raised alike.

    ``prompt`` is what a completion model was given to go on from: it stands before a program that does not define by
    itself what the calls use. None, which is no vote, for a program that is None, that ends before the calls, or of
    which no call gave a value.
    """
    keys: dict[str, str | None] = {}
    for program in programs:
        if program is not None and program not in keys:
            keys[program] = _behaviour(whole(program, calls, prompt), calls, limits)
    return [None if program is None else keys[program] for program in programs]


def whole(program: str, calls: Sequence[str], prompt: str = "") -> str:
    """The program, behind ``prompt`` where it is only the rest of what that begins."""
    if not prompt or _defines(program) & _called(calls):
        return program
    return prompt + program if program[:1].isspace() or not program.strip() else prompt + textwrap.indent(program, "    ")


def _behaviour(program: str, calls: Sequence[str], limits: sandbox.Limits | None) -> str | None:
    ran = sandbox.run(program, calls, limits=limits)
    if not any(o.kind == "value" for o in ran.outcomes):
        return None
    told = [(o.kind, o.text) for o in ran.outcomes[1:]]
    told += [("raised", "OutOfTime")] * (len(calls) - len(told))
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def _defines(program: str) -> set[str]:
    tree = parse(program)
    return {node.name for node in getattr(tree, "body", ()) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}


def _called(calls: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for call in calls:
        tree = parse(call, "eval")
        found |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} if tree else set()
    return found
