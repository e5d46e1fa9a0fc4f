"""The pieces of a streamed answer, as OpenAI's chunks in server-sent events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from symposia_shared.openai.replies import chat_logprobs, text_logprobs
from symposia_shared.openai.requests import Request
from symposia_shared.turns import Completion

DONE = "data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class Chunks:
    """The chunks of one answer. ``created``: seconds since the epoch."""

    request: Request
    id: str
    created: int

    @property
    def chat(self) -> bool:
        """Whether they answer a chat."""
        return self.request.endpoint == "/v1/chat/completions"

    def role(self, index: int) -> str:
        """The first chunk of a choice of a chat; of a text there is none."""
        return self._choice(index, {"role": "assistant", "content": ""}) if self.chat else ""

    def text(self, index: int, text: str, **more: Any) -> str:
        """More of an answer."""
        return self._choice(index, {"content": text}, text=text, **more)

    def end(self, index: int, reply: Completion) -> str:
        """The end of a choice, with what is known only now."""
        logprobs = None
        if self.request.logprobs is not None and reply.logprobs is not None:
            logprobs = chat_logprobs(reply) if self.chat else text_logprobs(reply)
        delta = {} if reply.reasoning is None else {"reasoning_content": reply.reasoning}
        more = {} if reply.options is None else {"symposia": {"options": reply.options}}
        return self._choice(index, delta, finish=reply.finish_reason, logprobs=logprobs, more=more)

    def finish(self, index: int, *, refusal: str | None = None, **more: Any) -> str:
        """The end of a collaboration's answer."""
        return self._choice(index, {} if refusal is None else {"refusal": refusal}, finish="stop", **more)

    def silent(self, event: str, **more: Any) -> str:
        """A chunk that adds nothing to the answer, under an event's name that clients of OpenAI pass over."""
        return self._choice(0, {}, event=event, **more)

    def usage(self, usage: Mapping[str, int]) -> str:
        """The last chunk, where it was asked for."""
        return self._event({**self._head(), "choices": [], "usage": dict(usage)})

    def _choice(self, index: int, delta: Mapping[str, Any], *, text: str = "", finish: str | None = None, logprobs: Any = None, event: str = "",
                more: Mapping[str, Any] | None = None, **beside: Any) -> str:
        said = {"delta": dict(delta)} if self.chat else {"text": text}
        choice = {"index": index, **said, "logprobs": logprobs, "finish_reason": finish, **(more or {})}
        return self._event({**self._head(), "choices": [choice], **({"usage": None} if self.request.stream_usage else {}), **beside}, event)

    def _head(self) -> dict[str, Any]:
        return {"id": f"{'chatcmpl' if self.chat else 'cmpl'}-{self.id}", "object": "chat.completion.chunk" if self.chat else "text_completion",
                "created": self.created, "model": self.request.model}

    @staticmethod
    def _event(body: Mapping[str, Any], event: str = "") -> str:
        return (f"event: {event}\n" if event else "") + f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def error_event(body: Mapping[str, Any]) -> str:
    """An error in the midst of a stream: clients raise it."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
