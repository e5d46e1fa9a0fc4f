"""A response as OpenAI's object, and as the events of its stream.

Events are numbered from 0 without a gap. Their order and number are a function of what is told, which is a function of the job's record:
so whoever asks for those after a number, of any process, is sent the ones that follow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from symposia_shared.openai.collaborations import NO_VERDICT, extension, round_extension
from symposia_shared.openai.replies import chat_logprobs
from symposia_shared.openai.responses import ResponseRecord
from symposia_shared.results import Result, RoundRecord
from symposia_shared.turns import Completion

#: how a job stands → a response's status
STATUS: Mapping[str, str] = {"queued": "queued", "running": "in_progress", "cancelling": "cancelled", "cancelled": "cancelled", "failed": "failed",
                             "done": "completed"}
#: an HTTP status → a response's error code
_CODES: Mapping[int, str] = {400: "invalid_prompt", 429: "rate_limit_exceeded"}


def response_body(record: ResponseRecord, state: str, result: Result | None = None, fault: tuple[int, Mapping[str, Any]] | None = None) -> dict[str, Any]:
    """The response as it stands; ``fault``: status and body of what its job failed of."""
    status = "incomplete" if result is not None and cut_short(result) else STATUS[state]
    ended = result is not None
    return {
        "id": record.id, "object": "response", "created_at": record.created_at, "status": status, "background": record.background,
        "completed_at": result.ended_at if result is not None and status in ("completed", "incomplete") else None,
        "error": None if fault is None or status == "cancelled" else _error(fault), "incomplete_details":
            {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": record.instructions, "max_output_tokens": record.max_output_tokens, "max_tool_calls": None, "metadata": record.metadata,
        "model": record.model, "output": [item_body(record, result)] if result is not None and status in ("completed", "incomplete") else [],
        "parallel_tool_calls": True, "previous_response_id": record.previous_response_id, "reasoning": {"effort": None, "summary": None},
        "service_tier": "default", "store": record.store, "temperature": record.temperature, "text": {"format": record.format}, "tool_choice": "auto",
        "tools": [], "top_logprobs": record.logprobs or 0, "top_p": record.top_p, "truncation": "disabled", "usage": usage_body(result) if ended else None,
        "user": record.user, "symposia": _more(record, result),
    }


def cut_short(result: Result) -> bool:
    """Whether the answer of a single model ended for want of tokens."""
    return result.completion is not None and result.completion.finish_reason == "length"


def item_body(record: ResponseRecord, result: Result) -> dict[str, Any]:
    """The message that answers."""
    return {"id": message_id(record), "type": "message", "status": "incomplete" if cut_short(result) else "completed", "role": "assistant",
            "content": [part_body(record, result)]}


def part_body(record: ResponseRecord, result: Result) -> dict[str, Any]:
    """The text of it, or where the members came to none, the refusal that says so."""
    if text_of(result) is None:
        return {"type": "refusal", "refusal": NO_VERDICT}
    return {"type": "output_text", "text": text_of(result), "annotations": [], "logprobs": logprobs_of(record, result)}


def text_of(result: Result) -> str | None:
    """The answer's text."""
    return result.completion.text if isinstance(result.completion, Completion) and result.answer is not None else result.answer


def logprobs_of(record: ResponseRecord, result: Result) -> list[dict[str, Any]]:
    """Its tokens' log-probabilities, where they were asked for."""
    if record.logprobs is None or result.completion is None or result.completion.logprobs is None:
        return []
    found: list[dict[str, Any]] = chat_logprobs(result.completion)["content"]
    return found


def usage_body(result: Result | None) -> dict[str, Any] | None:
    """The tokens of all turns."""
    if result is None:
        return None
    bill = result.bill
    return {"input_tokens": bill.prompt_tokens, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": bill.completion_tokens, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": bill.tokens}


def message_id(record: ResponseRecord) -> str:
    """The id of the message that answers."""
    return f"msg_{record.job_id}"


def _error(fault: tuple[int, Mapping[str, Any]]) -> dict[str, Any]:
    status, body = fault
    return {"code": _CODES.get(status, "server_error"), "message": body["error"]["message"]}


def _more(record: ResponseRecord, result: Result | None) -> dict[str, Any]:
    if result is None:
        return {"job_id": record.job_id}
    if result.completion is None:
        return extension(result)
    reasoning = result.completion.reasoning
    return {"job_id": record.job_id, **({} if reasoning is None else {"reasoning": reasoning})}


class Events:
    """The events of one stream. ``after``: the number of the last one its reader has."""

    def __init__(self, record: ResponseRecord, *, after: int = -1) -> None:
        self.record, self.after = record, after
        self.number = 0
        #: what was told of the text; None before it has begun, and after its end
        self._text: str | None = None
        self._done = False

    def opening(self) -> Iterator[str]:
        """What stands before all else."""
        first = "queued" if self.record.background else "running"
        yield self._event("response.created", response=response_body(self.record, first))
        if self.record.background:
            yield self._event("response.queued", response=response_body(self.record, first))
        yield self._event("response.in_progress", response=response_body(self.record, "running"))

    def word(self, text: str) -> Iterator[str]:
        """More of the answer."""
        yield from self._begin({"type": "output_text", "text": "", "annotations": [], "logprobs": []})
        self._text = (self._text or "") + text
        yield self._event("response.output_text.delta", **self._place(), delta=text, logprobs=[])

    def round(self, record: RoundRecord) -> Iterator[str]:
        """A round was closed; the one in which the verdict was spoken is told after it."""
        yield from self._end_text([])
        yield self._event("response.symposia.round", symposia=round_extension(self.record.job_id, record))

    def ended(self, result: Result, fault: tuple[int, Mapping[str, Any]] | None) -> Iterator[str]:
        """The rest of the answer, and how the response ended."""
        if fault is None:
            yield from self._answer(result)
        body = response_body(self.record, result.state, result, fault)
        kind = {"completed": "response.completed", "incomplete": "response.incomplete"}.get(body["status"], "response.failed")
        yield self._event(kind, response=body)

    def error(self, body: Mapping[str, Any]) -> str:
        """The stream cannot go on."""
        said = body["error"]
        return self._event("error", code=said["code"], message=said["message"], param=said["param"])

    def _answer(self, result: Result) -> Iterator[str]:
        text = text_of(result)
        if text is None:
            yield from self._begin({"type": "refusal", "refusal": ""})
            yield self._event("response.refusal.delta", **self._place(), delta=NO_VERDICT)
            yield self._event("response.refusal.done", **self._place(), refusal=NO_VERDICT)
            yield from self._close({"type": "refusal", "refusal": NO_VERDICT}, "completed")
            return
        if self._text is None and not self._done:
            yield from self._begin({"type": "output_text", "text": "", "annotations": [], "logprobs": []})
            self._text = ""
        yield from self._end_text(logprobs_of(self.record, result), status="incomplete" if cut_short(result) else "completed")

    def _begin(self, part: Mapping[str, Any]) -> Iterator[str]:
        if self._text is not None:
            return
        item = {"id": message_id(self.record), "type": "message", "status": "in_progress", "role": "assistant", "content": []}
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._event("response.content_part.added", **self._place(), part=part)

    def _end_text(self, logprobs: list[dict[str, Any]], *, status: str = "completed") -> Iterator[str]:
        if self._text is None:
            return
        text, self._text, self._done = self._text, None, True
        yield self._event("response.output_text.done", **self._place(), text=text, logprobs=logprobs)
        yield from self._close({"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}, status)

    def _close(self, part: Mapping[str, Any], status: str) -> Iterator[str]:
        yield self._event("response.content_part.done", **self._place(), part=part)
        item = {"id": message_id(self.record), "type": "message", "status": status, "role": "assistant", "content": [part]}
        yield self._event("response.output_item.done", output_index=0, item=item)

    def _place(self) -> dict[str, Any]:
        return {"item_id": message_id(self.record), "output_index": 0, "content_index": 0}

    def _event(self, kind: str, **fields: Any) -> str:
        number, self.number = self.number, self.number + 1
        if number <= self.after:
            return ""
        return f"event: {kind}\ndata: {json.dumps({'type': kind, 'sequence_number': number, **fields}, ensure_ascii=False)}\n\n"
