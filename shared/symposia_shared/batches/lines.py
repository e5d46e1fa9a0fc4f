"""A line of a batch as jobs, and what these came to as a line of its output or its error file.

Everything here depends on the line, the batch and the committed results alone, so that it may be done again by whoever drives the batch next.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from symposia_shared.batches.values import ENDPOINTS, Order, custom_id_fault
from symposia_shared.errors import BadInput, SymposiaError
from symposia_shared.jobs import Job
from symposia_shared.openai.collaborations import Asked
from symposia_shared.openai.lines import BadLine, Line, answer_line, bad_line, error_line, read_line
from symposia_shared.openai.naming import RequestLimits, check_messages, read_asked
from symposia_shared.openai.outcomes import body_of, fault_of_result
from symposia_shared.openai.replies import error_body, fault_of
from symposia_shared.openai.requests import Request
from symposia_shared.results import Result
from symposia_shared.teams import Team

#: what is said of a line that its batch's end came before
_UNFINISHED = {"cancelled": ("batch_cancelled", "the batch was cancelled before this line had ended."),
               "expired": ("batch_expired", "the batch's completion window was over before this line had ended.")}

#: who a model's name stands for: a team, or None for a checkpoint. Raises BadInput
TeamNamed = Callable[[str], Team | None]


Outcome = Literal["completed", "failed", "unfinished"]


@dataclass(frozen=True, slots=True)
class Question:
    """A line that can be asked: its jobs have the ids of its batch, its number and their places."""

    number: int
    custom_id: str
    model: str
    asked: Request | Asked
    jobs: tuple[Job, ...]

    def job_ids(self, batch_id: str, attempt: int) -> list[str]:
        """The ids of its jobs. A batch that was begun again asks what was cut off under ids of their own."""
        stem = f"{batch_id}-{self.number}" + (f"-r{attempt}" if attempt > 1 else "")
        return [stem] if len(self.jobs) == 1 else [f"{stem}-{place}" for place in range(len(self.jobs))]


@dataclass(frozen=True, slots=True)
class Written:
    """A line of the output, or of the error file."""

    number: int
    text: bytes
    outcome: Outcome

    @property
    def failed(self) -> bool:
        """Whether it stands in the error file."""
        return self.outcome != "completed"


def question_of(raw: bytes, number: int, order: Order, *, twice: bool, team_named: TeamNamed, limits: RequestLimits) -> Question:
    """What a line asks. Raises BadLine where it is no request, and BadInput where it is one that cannot be met."""
    line = read_line(raw, number)
    if twice:
        raise BadLine(custom_id_fault(number)["message"], code="duplicate_custom_id", field="custom_id", custom_id=line.custom_id)
    if line.endpoint != order.endpoint and not (order.mixed and line.endpoint in ENDPOINTS):
        raise BadLine(f"'url' is {line.endpoint[:80]!r}, and the batch's endpoint is {order.endpoint!r}.", code="invalid_url", field="url",
                      custom_id=line.custom_id)
    try:
        model, asked = _asked(line, order, team_named, limits)
    except BadInput as error:
        raise Unmet(line.custom_id, error) from None
    more = {"tags": (f"tenant:{order.tenant}", f"batch:{order.id}"), "priority": "batch"}
    jobs: Sequence[Job] = (asked.job,) if isinstance(asked, Asked) else asked.jobs
    return Question(number, line.custom_id, model, asked, tuple(j.model_copy(update=more) for j in jobs))


class Unmet(Exception):
    """A line that is a request and cannot be met, with the reason."""

    def __init__(self, custom_id: str, error: SymposiaError) -> None:
        self.custom_id, self.error = custom_id, error
        super().__init__(str(error))


def _asked(line: Line, order: Order, team_named: TeamNamed, limits: RequestLimits) -> tuple[str, Request | Asked]:
    body = {"reuse": True, **line.body} if limits.reuse else line.body
    check_messages(limits, body)
    if body.get("stream"):
        raise BadInput("'stream' cannot be honoured in a batch.", field="stream", value=True, remedy="Remove it.")
    model = body.get("model")
    if model == "auto":
        if order.auto_model is None:
            raise BadInput("'auto' is not served here: no checkpoint is chosen by itself yet.", field="model", value=model,
                           remedy="Name a checkpoint, or say with the batch who answers (`symposia batch submit --auto MODEL`).")
        model = order.auto_model
    if not isinstance(model, str):
        raise BadInput("'model' is missing." if model is None else f"'model' is {model!r:.80}.", field="model", value=model, remedy="Name a checkpoint.")
    return model, read_asked(line.endpoint, body, team_named(model), model=model, limits=limits)


def seed_of(job_id: str) -> int:
    """The seed of a draw that names none: of the id, so that the same line is drawn the same way again."""
    return int.from_bytes(hashlib.sha256(job_id.encode()).digest()[:6], "big")


def answered(question: Question, results: Sequence[Result], *, end: str = "") -> Written:
    """The line that tells what a question's jobs came to; ``end``: how the batch ends, where that has cancelled them."""
    request_id = results[0].job_id
    if end and any(r.state == "cancelled" for r in results):
        return unfinished(question.number, question.custom_id, request_id=request_id, end=end)
    for result in results:
        found = fault_of_result(result)
        if found is not None:
            return _failed(question.number, question.custom_id, request_id, *found)
    body = body_of(question.asked, results, id=request_id, created=int(results[0].ended_at))
    return _written(question.number, answer_line(request_id=request_id, custom_id=question.custom_id, status=200, body=body), "completed")


def refused(number: int, custom_id: str, error: SymposiaError, *, request_id: str) -> Written:
    """The line of a request that was not taken."""
    return _failed(number, custom_id, request_id, *fault_of(error))


def no_request(number: int, error: BadLine, *, request_id: str) -> Written:
    """The line of what is no request."""
    return _written(number, bad_line(error, request_id=request_id, number=number), "failed")


def unfinished(number: int, custom_id: str | None, *, request_id: str, end: str) -> Written:
    """The line of a request that the batch's end came before."""
    code, message = _UNFINISHED[end]
    line = {"id": f"batch_req_{request_id}", "custom_id": custom_id, "response": None,
            "error": {"code": code, "message": f"line {number}: {message}", "line": number}}
    return _written(number, line, "unfinished")


def missing(number: int, custom_id: str, *, request_id: str) -> Written:
    """The line of a job that has ended and whose result is not there any more."""
    body = error_body("the result of this line was deleted before the batch had read it.", type="server_error", code="result_missing")
    return _failed(number, custom_id, request_id, 500, body)


def _failed(number: int, custom_id: str | None, request_id: str, status: int, body: Mapping[str, Any]) -> Written:
    return _written(number, error_line(request_id=request_id, number=number, custom_id=custom_id, status=status, body=body), "failed")


def _written(number: int, line: Mapping[str, Any], outcome: Outcome) -> Written:
    return Written(number, json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n", outcome)
