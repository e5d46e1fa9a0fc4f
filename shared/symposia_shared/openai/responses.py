"""A body of ``/v1/responses`` as a chat, and what is kept of it. What we do not do is refused by name, never ignored.

``instructions`` hold for one response; the conversation that ``previous_response_id`` goes on with is that one's input and answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from symposia_shared.errors import BadInput
from symposia_shared.openai.requests import _flag, _integer, _short
from symposia_shared.prompts import Message
from symposia_shared.values import Value

#: read as a chat's body reads them
_AS_CHAT = ("model", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "stop", "structured_outputs", "user", "safety_identifier",
            "prompt_cache_key", "service_tier", "parallel_tool_calls")
_OWN = {*_AS_CHAT, "input", "instructions", "max_output_tokens", "metadata", "store", "stream", "background", "previous_response_id", "text", "include",
        "top_logprobs", "stream_options"}
#: fields we do not do, and the values of them that ask for nothing
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "tools": ([],), "tool_choice": ("auto", "none"), "truncation": ("disabled",), "reasoning": ({},), "context_management": ([],), "conversation": (),
    "prompt": (), "max_tool_calls": (), "moderation": (), "prompt_cache_retention": (), "prompt_cache_options": (), "background_options": (), "image": (),
    "access_programs": (),
}
#: what a chat's body calls a field → what this one calls it
NAMES: Mapping[str, str] = {"messages": "input", "max_completion_tokens": "max_output_tokens", "max_tokens": "max_output_tokens",
                            "response_format": "text.format", "logprobs": "include", "prompt": "input"}
#: pairs of metadata, characters of a name and of a value, at most
MOST_PAIRS, LONGEST_NAME, LONGEST_VALUE = 16, 64, 512
LOGPROBS = "message.output_text.logprobs"
_ROLES = ("user", "assistant", "system", "developer")


class ResponseRecord(Value):
    """What is kept of a response besides its job. Its id is ``resp_`` and the job's."""

    job_id: str
    tenant: str
    model: str
    #: seconds since the epoch
    created_at: float
    #: the conversation up to the answer, that of earlier responses included, without ``instructions``
    messages: tuple[Message, ...]
    instructions: str | None = None
    previous_response_id: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    #: OpenAI's ``text.format``
    format: dict[str, Any] = Field(default_factory=lambda: {"type": "text"})
    #: the likeliest tokens asked for at each place; None: no log-probabilities
    logprobs: int | None = None
    metadata: dict[str, str] = Field(default_factory=dict)
    background: bool = False
    store: bool = True
    user: str | None = None

    @property
    def id(self) -> str:
        """OpenAI's id of it."""
        return f"resp_{self.job_id}"


def job_of(response_id: str) -> str | None:
    """The job's id in a response's; None where it is none."""
    head, _, job_id = response_id.partition("resp_")
    return job_id if not head and job_id else None


def read_response(body: Mapping[str, Any], *, job_id: str, tenant: str, created_at: float, earlier: Sequence[Message] = ()) -> ResponseRecord:
    """What a body asks for, after the conversation ``earlier``. Raises BadInput, whose ``field`` is the parameter at fault."""
    given = {name: value for name, value in body.items() if value is not None}
    _refuse_unknown(given)
    for name in ("instructions", "previous_response_id", "user"):
        if not isinstance(given.get(name, ""), str):
            raise BadInput(f"{name!r} is {_short(given[name])}.", field=name, value=given[name], remedy="Give a text.")
    background, store = _flag(given, "background"), _flag({"store": True, **given}, "store")
    if background and not store:
        raise BadInput("'background' needs 'store': a response nobody waits for must be kept to be read.", field="store", value=False,
                       remedy="Leave 'store' out, or 'background'.")
    model = given.get("model")
    return ResponseRecord(
        job_id=job_id, tenant=tenant, model=model if isinstance(model, str) else "", created_at=created_at,
        messages=(*earlier, *_messages(given.get("input"))), instructions=given.get("instructions"),
        previous_response_id=given.get("previous_response_id"), max_output_tokens=_most(given), format=_format(given), logprobs=_logprobs(given),
        temperature=_number(given, "temperature"), top_p=_number(given, "top_p"), metadata=read_metadata(given.get("metadata", {})),
        background=background, store=store, user=given.get("user"),
    )


def chat_of(record: ResponseRecord, body: Mapping[str, Any]) -> dict[str, Any]:
    """The chat's body that asks for the same answer."""
    system = [] if record.instructions is None else [{"role": "system", "content": record.instructions}]
    chat: dict[str, Any] = {name: body[name] for name in _AS_CHAT if body.get(name) is not None}
    chat["messages"] = [*system, *(m.model_dump() for m in record.messages)]
    if record.max_output_tokens is not None:
        chat["max_completion_tokens"] = record.max_output_tokens
    if record.logprobs is not None:
        chat |= {"logprobs": True, "top_logprobs": record.logprobs}
    if record.format["type"] == "json_schema":
        described = {name: value for name, value in record.format.items() if name != "type"}
        chat["response_format"] = {"type": "json_schema", "json_schema": described}
    elif record.format["type"] != "text":
        chat["response_format"] = record.format
    return chat


def in_own_words(error: BadInput) -> BadInput:
    """A fault of the chat, told by this body's names."""
    head = error.field.partition("[")[0].partition(".")[0]
    field = NAMES.get(head)
    if field is None:
        return error
    renamed = field if head in ("messages", "response_format") else error.field.replace(head, field, 1)
    return BadInput(str(error).replace(error.field, renamed).replace(head, field), field=renamed, value=error.value)


def read_metadata(raw: Any) -> dict[str, str]:
    """OpenAI's metadata: up to 16 pairs of short texts. Raises BadInput."""
    fits = isinstance(raw, dict) and len(raw) <= MOST_PAIRS and all(
        isinstance(n, str) and isinstance(v, str) and len(n) <= LONGEST_NAME and len(v) <= LONGEST_VALUE for n, v in raw.items())
    if not fits:
        raise BadInput(f"'metadata' is {_short(raw)}.", field="metadata", value=raw,
                       remedy=f"Give up to {MOST_PAIRS} pairs of texts, names of {LONGEST_NAME} characters and values of {LONGEST_VALUE} at most.")
    return dict(raw)


def item_of(message: Message, *, id: str) -> dict[str, Any]:
    """A message of the conversation as an item."""
    part = {"type": "output_text", "text": message.content, "annotations": []} if message.role == "assistant" else {
        "type": "input_text", "text": message.content}
    return {"id": id, "type": "message", "status": "completed", "role": message.role, "content": [part]}


def input_items(record: ResponseRecord) -> list[dict[str, Any]]:
    """The conversation as items, oldest first."""
    return [item_of(m, id=f"msg_{record.job_id}_{at}") for at, m in enumerate(record.messages)]


def _refuse_unknown(given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in _OWN:
            continue
        if name not in _NEUTRAL:
            raise BadInput(f"there is no parameter {name!r} at /v1/responses.", field=name, value=value, remedy="Remove it.")
        empty = isinstance(value, dict) and name == "reasoning" and all(v is None for v in value.values())
        if not empty and not any(value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in _NEUTRAL[name]):
            raise BadInput(f"the parameter {name!r} is not supported (given {_short(value)}).", field=name, value=value, remedy="Remove it.")
    options = given.get("stream_options", {})
    if not isinstance(options, dict) or set(options) - {"include_obfuscation"} or options.get("include_obfuscation") or (options and not given.get("stream")):
        raise BadInput(f"'stream_options' is {_short(options)}; nothing is obfuscated here.", field="stream_options", value=options,
                       remedy="Remove it, or give {include_obfuscation: false} with 'stream'.")


def _messages(raw: Any) -> list[Message]:
    if isinstance(raw, str):
        return [Message(role="user", content=_text(raw, "input"))]
    if not isinstance(raw, list) or not raw:
        raise BadInput("'input' is missing." if raw is None else f"'input' is {_short(raw)}.", field="input", value=raw,
                       remedy="Give a text or a list of messages.")
    return [_message(item, f"input[{at}]") for at, item in enumerate(raw)]


def _message(raw: Any, field: str) -> Message:
    kind = raw.get("type", "message") if isinstance(raw, dict) else type(raw).__name__
    if kind != "message":
        raise BadInput(f"{field} is of type {_short(kind)}, which is not supported.", field="input", value=kind, remedy="Give messages.")
    extra = sorted(n for n, v in raw.items() if n not in ("type", "role", "content", "id", "status", "phase") and v not in (None, [], {}))
    if extra:
        raise BadInput(f"{field}.{extra[0]} is not supported.", field="input", value=raw[extra[0]], remedy="Remove it.")
    role = raw.get("role")
    if role not in _ROLES:
        raise BadInput(f"{field}.role is {_short(role)}.", field="input", value=role, remedy=f"Use one of {', '.join(_ROLES)}.")
    return Message(role="system" if role == "developer" else role, content=_content(raw.get("content"), f"{field}.content"))


def _content(raw: Any, field: str) -> str:
    if isinstance(raw, str):
        return _text(raw, field)
    if not isinstance(raw, list):
        raise BadInput(f"{field} is {_short(raw)}.", field="input", value=raw, remedy="Give a text, or a list of text parts.")
    texts = []
    for part in raw:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        said = part.get({"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}.get(str(kind), "")) \
            if isinstance(part, dict) else None
        if not isinstance(said, str):
            raise BadInput(f"{field} has a part of type {_short(kind)}, and only text is supported.", field="input", value=kind, remedy="Remove it.")
        texts.append(said)
    return _text("".join(texts), field)


def _text(text: str, field: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"{field} holds a lone surrogate at character {error.start}, which is no text.", field="input", remedy="Remove it.") from None
    return text


def _most(given: Mapping[str, Any]) -> int | None:
    return _integer(given, "max_output_tokens", 1, least=1, most=1_000_000) if "max_output_tokens" in given else None


def _number(given: Mapping[str, Any], name: str) -> float | None:
    value = given.get(name)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise BadInput(f"{name!r} is {_short(value)}.", field=name, value=value, remedy="Give a number.")
    return value


def _format(given: Mapping[str, Any]) -> dict[str, Any]:
    text = given.get("text", {})
    extra = sorted(n for n, v in text.items() if n not in ("format", "verbosity") or (n == "verbosity" and v not in (None, "medium"))) \
        if isinstance(text, dict) else ["text"]
    if extra:
        raise BadInput(f"'text' is {_short(text)}: its {extra[0]!r} is not supported.", field="text", value=text, remedy="Give {format}.")
    form = text.get("format")
    kind = {} if form is None else form.get("type") if isinstance(form, dict) else None
    if form is None or kind == "text":
        return {"type": "text"}
    if kind == "json_object":
        return {"type": "json_object"}
    if kind != "json_schema" or not isinstance(form.get("schema"), dict):
        raise BadInput(f"'text.format' is {_short(form)}.", field="text.format", value=form,
                       remedy="Use {type: text}, {type: json_object} or {type: json_schema, name, schema}.")
    return dict(form)


def _logprobs(given: Mapping[str, Any]) -> int | None:
    include = given.get("include", [])
    if not isinstance(include, list):
        raise BadInput(f"'include' is {_short(include)}.", field="include", value=include, remedy="Give a list.")
    for word in include:
        if word != LOGPROBS:
            raise BadInput(f"'include' asks for {_short(word)}, which is not supported.", field="include", value=word, remedy=f"Use {LOGPROBS}.")
    top = _integer(given, "top_logprobs", 0)
    if top and not include:
        raise BadInput("'top_logprobs' is given, and 'include' does not ask for log-probabilities.", field="top_logprobs", value=top,
                       remedy=f"Give include: [{LOGPROBS}].")
    return top if include else None
