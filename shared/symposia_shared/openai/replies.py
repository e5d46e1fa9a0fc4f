"""Completions as bodies of OpenAI's API, and faults as its error bodies with their status codes."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from symposia_shared.errors import (
    BadInput,
    Busy,
    JobCancelled,
    KeyReused,
    Limited,
    NotPlaced,
    NotYet,
    PromptTooLong,
    SymposiaError,
    Unavailable,
    UnknownJob,
    UnknownModel,
)
from symposia_shared.openai.requests import Request
from symposia_shared.turns import Abstention, Cause, Completion, TokenLogprob

#: why a member did not speak → status and OpenAI's type of error
_STATUS: Mapping[Cause, tuple[int, str]] = {
    "bad_prompt": (400, "invalid_request_error"), "prompt_too_long": (400, "invalid_request_error"), "refused": (400, "invalid_request_error"),
    "throttled": (429, "rate_limit_error"), "timeout": (504, "server_error"), "deadline": (504, "server_error"),
    "out_of_memory": (503, "server_error"), "device_lost": (503, "server_error"), "cancelled": (499, "cancelled"),
}


def answer_body(request: Request, completions: Sequence[Completion], *, id: str, created: int, seconds: float | None = None) -> dict[str, Any]:
    """The body that answers ``request``; ``completions`` are those of its jobs, in order. ``created`` is in seconds since the epoch."""
    if request.endpoint == "/v1/embeddings":
        return _embeddings(request, completions[0])
    chat = request.endpoint == "/v1/chat/completions"
    make = _chat_choice if chat else _text_choice
    return {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{id}", "object": "chat.completion" if chat else "text_completion", "created": created,
        "model": request.model, "choices": [make(request, index, c) for index, c in enumerate(completions)],
        "usage": usage_of(request, completions),
    }


def usage_of(request: Request, completions: Sequence[Completion]) -> dict[str, int]:
    """Tokens of a request; a prompt with several answers is counted once, a reply kept from an earlier job not at all."""
    prompt = sum(c.usage.prompt_tokens for c in completions[:: request.choices_per_prompt] if not c.reused)
    said = sum(c.usage.completion_tokens for c in completions if not c.reused)
    if request.endpoint == "/v1/embeddings":
        return {"prompt_tokens": prompt, "total_tokens": prompt}
    return {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}


def reused_in(completions: Sequence[Completion]) -> dict[str, int]:
    """How many of the answers were kept from earlier jobs, where any was."""
    count = sum(c.reused for c in completions)
    return {"reused": count} if count else {}


def error_body(message: str, *, type: str = "invalid_request_error", param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's form of an error."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


def fault_of(error: SymposiaError | Abstention) -> tuple[int, dict[str, Any]]:
    """Status and body for what went wrong."""
    if isinstance(error, Abstention):
        status, kind = _STATUS.get(error.cause, (500, "server_error"))
        code = "context_length_exceeded" if error.cause == "prompt_too_long" else error.cause
        return status, error_body(error.message or error.cause, type=kind, code=code)
    if isinstance(error, PromptTooLong):
        return 400, error_body(str(error), param=error.field or None, code="context_length_exceeded")
    if isinstance(error, UnknownModel | NotPlaced):
        return 404, error_body(str(error), param="model", code="model_not_found")
    if isinstance(error, UnknownJob):
        return 404, error_body(str(error), param=error.field or None, code="not_found")
    if isinstance(error, KeyReused):
        return 422, error_body(str(error), param=error.field or None, code="idempotency_key_reused")
    if isinstance(error, BadInput):
        return 400, error_body(str(error), param=error.field or None, code=None)
    if isinstance(error, Limited):
        return 429, error_body(str(error), type=error.what, code="rate_limit_exceeded")
    if isinstance(error, Busy):
        return 429, error_body(str(error), type="rate_limit_error", code="busy")
    if isinstance(error, NotYet):
        return 504, error_body(str(error), type="server_error", code="timeout")
    if isinstance(error, JobCancelled):
        return 499, error_body(str(error), type="cancelled", code="cancelled")
    if isinstance(error, Unavailable):
        return 503, error_body(str(error), type="server_error", code="unavailable")
    return 500, error_body(str(error), type="server_error", code=error.name)


def _chat_choice(request: Request, index: int, reply: Completion) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None}
    if reply.reasoning is not None:
        message["reasoning_content"] = reply.reasoning
    logprobs = None
    if request.logprobs is not None and reply.logprobs is not None:
        logprobs = chat_logprobs(reply)
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reply.finish_reason, **_more(reply)}


def _text_choice(request: Request, index: int, reply: Completion) -> dict[str, Any]:
    logprobs = None
    if request.logprobs is not None and reply.logprobs is not None:
        logprobs = text_logprobs(reply)
    return {"index": index, "text": reply.text, "logprobs": logprobs, "finish_reason": reply.finish_reason, **_more(reply)}


def chat_logprobs(reply: Completion) -> dict[str, Any]:
    """A chat's log-probabilities, by token."""
    return {"content": [_chat_logprob(t) for t in reply.logprobs or ()], "refusal": None}


def text_logprobs(reply: Completion) -> dict[str, Any]:
    """A text's log-probabilities, by token."""
    tokens, offsets = reply.logprobs or (), [0]
    for t in tokens:
        offsets.append(offsets[-1] + len(t.token))
    return {"tokens": [t.token for t in tokens], "token_logprobs": [t.logprob for t in tokens], "top_logprobs": [dict(t.top) for t in tokens],
            "text_offset": offsets[:-1]}


def _more(reply: Completion) -> dict[str, Any]:
    """What OpenAI has no field for."""
    return {} if reply.options is None else {"symposia": {"options": reply.options}}


def _chat_logprob(t: TokenLogprob) -> dict[str, Any]:
    return {**_token(t.token, t.logprob), "top_logprobs": [_token(token, logprob) for token, logprob in t.top]}


def _token(token: str, logprob: float) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(token.encode("utf-8", "replace"))}


def _embeddings(request: Request, reply: Completion) -> dict[str, Any]:
    vectors = reply.vectors or ()
    data = [{"object": "embedding", "index": index, "embedding": _packed(v) if request.base64 else list(v)} for index, v in enumerate(vectors)]
    return {"object": "list", "data": data, "model": request.model, "usage": usage_of(request, [reply])}


def _packed(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
