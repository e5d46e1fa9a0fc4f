"""Turns that ask no member: a program run against its tests in the sandbox, texts compared; what comes of it is a reply like any other."""

from __future__ import annotations

import json

from symposia_shared import sandbox
from symposia_shared.errors import Unavailable
from symposia_shared.patterns.checks import PYTHON
from symposia_shared.turns import LIKENESS, Abstention, Completion, Turn
from symposia_worker.likeness import LikenessProcess, NotInstalled

#: the process that compares this pool's texts; it costs nothing until it is asked
COMPARER = LikenessProcess()
#: texts one check may compare
MOST_TEXTS = 256
#: characters of what went wrong that a reply keeps
DETAIL_CHARS = 500


def checked(turn: Turn) -> Completion | Abstention:
    """The reply to a ``check/*`` turn.

    ``check/python`` is asked ``{"code": str, "tests": [str]}`` (its last message) and says
    ``{"ran": bool, "passed": bool, "detail": str}``: each test is an expression or a statement that must not raise and must not be False.
    It abstains where this machine cannot confine a program.

    ``check/likeness`` is asked ``{"texts": [str]}`` and says ``{"scorer": str, "threshold": float, "alike": [[float]]}``: how alike each
    two are, by the model and the measure it names. It abstains where no such model is installed.
    """
    if turn.model == PYTHON:
        return _program(turn)
    if turn.model == LIKENESS:
        return _texts(turn)
    return Abstention(cause="bad_prompt", message=f"there is no check {turn.model!r}; there are {PYTHON} and {LIKENESS}")


def _texts(turn: Turn) -> Completion | Abstention:
    try:
        texts = json.loads(turn.messages[-1].content)["texts"]
    except (ValueError, KeyError, TypeError) as error:
        return Abstention(cause="bad_prompt", message=f'{LIKENESS} is asked {{"texts": [...]}}: {type(error).__name__}: {error}')
    if not isinstance(texts, list) or not all(isinstance(t, str) for t in texts) or not 0 < len(texts) <= MOST_TEXTS:
        return Abstention(cause="bad_prompt", message=f"{LIKENESS} compares 1 to {MOST_TEXTS} texts")
    try:
        return Completion(text=json.dumps(COMPARER.alike(texts)))
    except NotInstalled as error:
        return Abstention(cause="refused", message=str(error))
    except Unavailable as error:
        return Abstention(cause="device_lost", message=str(error))


def _program(turn: Turn) -> Completion | Abstention:
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
