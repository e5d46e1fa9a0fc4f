"""What a job came to, as OpenAI's API says it: the body of an answer, or status and error body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from symposia_shared.errors import SymposiaError
from symposia_shared.openai.collaborations import Asked, collaboration_body
from symposia_shared.openai.replies import answer_body, fault_of, reused_in
from symposia_shared.openai.requests import Request
from symposia_shared.results import Result
from symposia_shared.turns import Abstention


def fault_of_result(result: Result) -> tuple[int, dict[str, Any]] | None:
    """Why a job has no answer, None where it has one. Of a single prompt its model's own reason decides the status."""
    if result.state == "done":
        return None
    replies = [t.reply for r in result.rounds for t in r.turns]
    if result.state == "failed" and len(replies) == 1 and isinstance(replies[0], Abstention):
        return fault_of(replies[0])
    try:
        result.raise_for_state()
    except SymposiaError as error:
        return fault_of(error)
    return None


def body_of(asked: Request | Asked, results: Sequence[Result], *, id: str, created: int) -> dict[str, Any]:
    """The body that answers with the results of the request's jobs, all of them done, in order."""
    if isinstance(asked, Asked):
        return collaboration_body(asked.request, results[0], id=id, created=created)
    completions = [r.completion for r in results if r.completion is not None]
    body = answer_body(asked, completions, id=id, created=created)
    ids = [r.job_id for r in results]
    return {**body, "symposia": {"job_id": ids[0], "job_ids": ids, **reused_in(completions)}}
