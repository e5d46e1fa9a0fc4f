"""Turns that ask no model: a program is run against its tests in the sandbox, and what came of it is a reply like any other."""

from __future__ import annotations

import json

from symposia_shared import sandbox
from symposia_shared.turns import Abstention, Completion, Turn

#: characters of what went wrong that a reply keeps
DETAIL_CHARS = 500


def checked(turn: Turn) -> Completion | Abstention:
    """The reply to a ``check/*`` turn.

    ``check/python`` is asked ``{"code": str, "tests": [str]}`` (its last message) and says
    ``{"ran": bool, "passed": bool, "detail": str}``: each test is an expression or a statement that must not raise and must not be False.
    It abstains where this machine cannot confine a program.
    """
    if turn.model != "check/python":
        return Abstention(cause="bad_prompt", message=f"there is no check {turn.model!r}; there is check/python")
    try:
        asked = json.loads(turn.messages[-1].content)
        code, tests = str(asked["code"]), [str(t) for t in asked["tests"]]
    except (ValueError, KeyError, TypeError) as error:
        return Abstention(cause="bad_prompt", message=f'a check is asked {{"code": ..., "tests": [...]}}: {type(error).__name__}: {error}')
    lacking = sandbox.lacking()
    if lacking is not None:
        return Abstention(cause="refused", message=f"code is not run here: {lacking}")
    return Completion(text=json.dumps(_run(code, tests)))


def _run(code: str, tests: list[str]) -> dict[str, object]:
    calls = [_as_expression(t, n) for n, t in enumerate(tests)]
    defined = "\n".join([code, *(_as_function(t, n) for n, t in enumerate(tests) if _is_statement(t))])
    ran = sandbox.run(defined, calls)
    outcomes = list(ran.outcomes)
    if not outcomes:
        return {"ran": False, "passed": False, "detail": f"ended by {ran.how} before its tests"}
    if outcomes[0].kind == "raised":
        return {"ran": True, "passed": False, "detail": f"the program itself raised {outcomes[0].text}"[:DETAIL_CHARS]}
    for test, outcome in zip(tests, outcomes[1:], strict=False):
        if outcome.kind == "raised" or outcome.text == "False":
            return {"ran": True, "passed": False, "detail": f"{test[:200]} -> {outcome.text}"[:DETAIL_CHARS]}
    if len(outcomes) - 1 < len(tests):
        return {"ran": True, "passed": False, "detail": f"ended by {ran.how} in {tests[len(outcomes) - 1][:200]}"[:DETAIL_CHARS]}
    return {"ran": True, "passed": True, "detail": f"{len(tests)} tests passed"}


def _is_statement(test: str) -> bool:
    try:
        compile(test, "<test>", "eval")
    except (SyntaxError, ValueError):
        return True
    return False


def _as_function(test: str, number: int) -> str:
    lines = test.splitlines() or ["pass"]
    return f"def _check_{number}():\n" + "\n".join(f"    {line}" for line in lines) + "\n    return True"


def _as_expression(test: str, number: int) -> str:
    return f"_check_{number}()" if _is_statement(test) else test
