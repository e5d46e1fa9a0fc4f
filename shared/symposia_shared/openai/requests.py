"""A request body of OpenAI's API as jobs of one turn. What we do not do is refused by name, never ignored.

Defaults are OpenAI's: temperature 1; at most 16 new tokens for ``/v1/completions``, to the end of the context for a chat. Beside its fields
those that vLLM added are read: ``top_k``, ``min_p``, ``repetition_penalty`` and ``structured_outputs`` ({json}, {choice} or {regex}).
``reuse`` is ours: a reply kept from an equal turn will do. ``n`` and a list of prompts become a job each, their seeds one apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

from symposia_shared.errors import BadInput
from symposia_shared.jobs import Embedding, Inference, SingleTurn
from symposia_shared.prompts import Message, Sampling

Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings"]

#: new tokens where nothing limits them: engines stop at the context's end
UNLIMITED = 1_000_000
#: answers one request may ask for
MOST_CHOICES = 128

#: fields that change nothing of an answer
_LABELS = {"user", "metadata", "safety_identifier", "prompt_cache_key"}
#: fields we do not do, and the values of them that ask for nothing
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,), "presence_penalty": (0,), "logit_bias": ({},), "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],),
    "function_call": ("none", "auto"), "parallel_tool_calls": (True, False), "modalities": (["text"],), "audio": (), "prediction": (),
    "reasoning_effort": (), "service_tier": ("auto", "default"), "store": (False,), "verbosity": (), "web_search_options": (), "best_of": (1,),
    "echo": (False,), "prompt_cache_retention": (), "dimensions": (),
}
_SAMPLING = {"model", "temperature", "top_p", "seed", "stop", "n", "top_k", "min_p", "repetition_penalty", "structured_outputs", "stream", "stream_options",
             "reuse"}
_OWN: Mapping[str, set[str]] = {
    "/v1/chat/completions": {*_SAMPLING, "messages", "max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "response_format"},
    "/v1/completions": {*_SAMPLING, "prompt", "suffix", "max_tokens", "logprobs"},
    "/v1/embeddings": {"model", "input", "encoding_format", "reuse"},
}


@dataclass(frozen=True, slots=True)
class Request:
    """What a body asks for: the jobs, whose completions are the choices of the answer in their order."""

    endpoint: Endpoint
    model: str
    jobs: tuple[SingleTurn, ...]
    #: whether the answer is to be sent as it comes (its server decides)
    stream: bool = False
    #: whether a streamed answer ends with its usage
    stream_usage: bool = False
    #: jobs that share one prompt, whose tokens are then counted once
    choices_per_prompt: int = 1
    #: of vectors: as base64 of little-endian float32
    base64: bool = False
    #: the likeliest tokens asked for at each place; None: no log-probabilities
    logprobs: int | None = None


def read_request(endpoint: str, body: Mapping[str, Any], *, model: str | None = None) -> Request:
    """The request in a body; ``model`` replaces the body's. Raises BadInput, whose ``field`` is the parameter at fault."""
    if endpoint not in _READERS:
        raise BadInput(f"the url {endpoint!r} is not served.", field="url", value=endpoint, remedy=f"Use one of {', '.join(_READERS)}.")
    given = {name: value for name, value in body.items() if value is not None}
    _refuse_unknown(endpoint, given)
    asked = given.get("model")
    if model is None and not isinstance(asked, str):
        raise BadInput("'model' is missing." if asked is None else f"'model' is {asked!r}.", field="model", value=asked, remedy="Name a checkpoint.")
    request = _READERS[endpoint](given, model or str(asked))
    if not _flag(given, "reuse"):
        return request
    return replace(request, jobs=tuple(job.model_copy(update={"reuse": True}) for job in request.jobs))


def _refuse_unknown(endpoint: str, given: Mapping[str, Any]) -> None:
    for name, value in given.items():
        if name in _OWN[endpoint] or name in _LABELS:
            continue
        if name not in _NEUTRAL:
            raise BadInput(f"there is no parameter {name!r} at {endpoint}.", field=name, value=value, remedy="Remove it.")
        if not any(value == neutral and isinstance(value, bool) == isinstance(neutral, bool) for neutral in _NEUTRAL[name]):
            raise BadInput(f"the parameter {name!r} is not supported (given {_short(value)}).", field=name, value=value, remedy="Remove it.")


def _chat(given: Mapping[str, Any], model: str) -> Request:
    messages = tuple(_message(m, at) for at, m in enumerate(_list(given, "messages")))
    if "max_tokens" in given and "max_completion_tokens" in given and given["max_tokens"] != given["max_completion_tokens"]:
        raise BadInput("'max_tokens' and 'max_completion_tokens' differ.", field="max_tokens", remedy="Give one of them.")
    most = given.get("max_completion_tokens", given.get("max_tokens", UNLIMITED))
    logprobs = _integer(given, "top_logprobs", 0) if _flag(given, "logprobs") else None
    if logprobs is None and given.get("top_logprobs"):
        raise BadInput("'top_logprobs' is given without 'logprobs'.", field="top_logprobs", remedy="Set 'logprobs' to true.")
    sampling = _sampling(given, max_tokens=most, logprobs=logprobs, form=_one_form(_response_form(given), _structured_form(given)))
    n = _integer(given, "n", 1, least=1, most=MOST_CHOICES)
    jobs = tuple(_inference("messages", {"model": model, "messages": messages, "sampling": sampling.reseeded(i)}) for i in range(n))
    return Request("/v1/chat/completions", model, jobs, **_stream(given), choices_per_prompt=n, logprobs=logprobs)


def _completions(given: Mapping[str, Any], model: str) -> Request:
    prompts = _texts(given, "prompt")
    logprobs = _integer(given, "logprobs", 0) if "logprobs" in given else None
    sampling = _sampling(given, max_tokens=given.get("max_tokens", 16), logprobs=logprobs, form=_structured_form(given))
    n = _integer(given, "n", 1, least=1, most=MOST_CHOICES)
    if n * len(prompts) > MOST_CHOICES:
        raise BadInput(f"{len(prompts)} prompts with n = {n} ask for {n * len(prompts)} answers.", field="n", value=n,
                       remedy=f"Ask for at most {MOST_CHOICES} in one request.")
    jobs = tuple(_inference("prompt", {"model": model, "prompt": p, "raw": True, "suffix": given.get("suffix"), "sampling": sampling.reseeded(k * n + i)})
                 for k, p in enumerate(prompts) for i in range(n))
    return Request("/v1/completions", model, jobs, **_stream(given), choices_per_prompt=n, logprobs=logprobs)


def _embeddings(given: Mapping[str, Any], model: str) -> Request:
    form = given.get("encoding_format", "float")
    if form not in ("float", "base64"):
        raise BadInput(f"'encoding_format' is {form!r}.", field="encoding_format", value=form, remedy="Use float or base64.")
    with _named("input"):
        job = Embedding.parse({"model": model, "texts": _texts(given, "input")})
    return Request("/v1/embeddings", model, (job,), base64=form == "base64")


def _inference(asked_in: str, raw: Mapping[str, Any]) -> Inference:
    with _named(asked_in):
        return Inference.parse(raw)


@contextmanager
def _named(asked_in: str) -> Iterator[None]:
    """Faults of a job told by the body's own names; what is wrong with its prompt lies in ``asked_in``."""
    try:
        yield
    except BadInput as error:
        head, _, rest = str(error).partition(": ")
        field = error.field if error.field in ("model", "suffix") else asked_in
        raise BadInput(f"{field!r}: {rest}" if rest and " " not in head else str(error), field=field, value=error.value) from None


_READERS: Mapping[str, Callable[[Mapping[str, Any], str], Request]] = {
    "/v1/chat/completions": _chat, "/v1/completions": _completions, "/v1/embeddings": _embeddings,
}


def _message(raw: Any, at: int) -> Message:
    field = f"messages[{at}]"
    if not isinstance(raw, dict):
        raise BadInput(f"{field} is a {type(raw).__name__}, not an object.", field=field, value=raw, remedy="Write {role, content}.")
    extra = sorted(name for name, value in raw.items() if name not in ("role", "content") and value not in (None, [], {}))
    if extra:
        raise BadInput(f"{field}.{extra[0]} is not supported.", field=f"{field}.{extra[0]}", value=raw[extra[0]], remedy="Remove it.")
    role = "system" if raw.get("role") == "developer" else raw.get("role")
    if role not in ("system", "user", "assistant"):
        raise BadInput(f"{field}.role is {role!r}.", field=f"{field}.role", value=role, remedy="Use system, developer, user or assistant.")
    return Message(role=role, content=_content(raw.get("content"), f"{field}.content"))


def _content(raw: Any, field: str) -> str:
    if isinstance(raw, str):
        return _encodable(raw, field)
    if not isinstance(raw, list):
        raise BadInput(f"{field} is {_short(raw)}.", field=field, value=raw, remedy="Give a text, or a list of text parts.")
    for part in raw:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise BadInput(f"{field} has a part of type {kind!r}, and only text is supported.", field=field, value=kind, remedy="Remove it.")
    return _encodable("".join(part["text"] for part in raw), field)


def _texts(given: Mapping[str, Any], name: str) -> tuple[str, ...]:
    raw = given.get(name)
    texts = [raw] if isinstance(raw, str) else raw
    if not isinstance(texts, list) or not texts:
        raise BadInput(f"{name!r} is missing." if raw is None else f"{name!r} is {_short(raw)}.", field=name, value=raw,
                       remedy="Give a text or a list of texts.")
    if not all(isinstance(t, str) for t in texts):
        raise BadInput(f"{name!r} holds token ids, which are not supported.", field=name, remedy="Give text: a checkpoint's tokenizer is its own.")
    return tuple(_encodable(t, name) for t in texts)


def _sampling(given: Mapping[str, Any], *, max_tokens: Any, logprobs: int | None, form: dict[str, Any] | None) -> Sampling:
    stop = given.get("stop", ())
    fields = {name: given[name] for name in ("top_p", "top_k", "min_p", "repetition_penalty", "seed") if name in given}
    if fields.get("top_k") == -1:  # vLLM's word for all
        fields["top_k"] = 0
    raw = {"temperature": given.get("temperature", 1.0), "max_tokens": max_tokens, "stop": [stop] if isinstance(stop, str) else stop,
           "logprobs": logprobs, "form": form, **fields}
    for name, value in raw.items():
        if isinstance(value, str | bool) and name != "form":  # pydantic would read "1" and True as 1
            raise BadInput(f"{name!r} is {_short(value)}.", field=name, value=value, remedy="Give a number.")
    if isinstance(raw["stop"], list) and "" in raw["stop"]:
        raise BadInput("'stop' holds an empty text, which would end every answer.", field="stop", value=stop, remedy="Remove it.")
    try:
        return Sampling.parse(raw)
    except BadInput as error:
        field = "response_format" if error.field.startswith("form") and "response_format" in given else error.field.replace("form", "structured_outputs", 1)
        raise BadInput(str(error).replace("Sampling.", "", 1).replace(error.field, field), field=field, value=error.value) from None


def _stream(given: Mapping[str, Any]) -> dict[str, bool]:
    stream, options = _flag(given, "stream"), given.get("stream_options", {})
    if not isinstance(options, dict) or set(options) - {"include_usage"} or (options and not stream):
        raise BadInput(f"'stream_options' is {_short(options)}.", field="stream_options", value=options,
                       remedy="Give {include_usage: true}, and with 'stream' only.")
    return {"stream": stream, "stream_usage": _flag(options, "include_usage")}


def _response_form(given: Mapping[str, Any]) -> dict[str, Any] | None:
    form = given.get("response_format")
    if form is None:
        return None
    kind = form.get("type") if isinstance(form, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return {"kind": "json_schema"}
    described = form.get("json_schema") if kind == "json_schema" else None
    if not isinstance(described, dict) or not isinstance(described.get("schema"), dict):
        raise BadInput(f"'response_format' is {_short(form)}.", field="response_format", value=form,
                       remedy="Use {type: text}, {type: json_object} or {type: json_schema, json_schema: {name, schema}}.")
    return {"kind": "json_schema", "definition": described["schema"]}


def _structured_form(given: Mapping[str, Any]) -> dict[str, Any] | None:
    asked = given.get("structured_outputs")
    if asked is None:
        return None
    known = {"json": lambda v: {"kind": "json_schema", "definition": v}, "choice": lambda v: {"kind": "choice", "options": v},
             "regex": lambda v: {"kind": "regex", "pattern": v}}
    named = [name for name, value in asked.items() if value is not None] if isinstance(asked, dict) else []
    if len(named) != 1 or named[0] not in known:
        raise BadInput(f"'structured_outputs' is {_short(asked)}.", field="structured_outputs", value=asked, remedy="Give one of json, choice and regex.")
    return known[named[0]](asked[named[0]])


def _one_form(*forms: dict[str, Any] | None) -> dict[str, Any] | None:
    given = [f for f in forms if f is not None]
    if len(given) > 1:
        raise BadInput("'response_format' and 'structured_outputs' are both given.", field="response_format", remedy="Give one of them.")
    return given[0] if given else None


def _list(given: Mapping[str, Any], name: str) -> Sequence[Any]:
    raw = given.get(name)
    if not isinstance(raw, list) or not raw:
        raise BadInput(f"{name!r} is missing." if raw is None else f"{name!r} is {_short(raw)}.", field=name, value=raw, remedy="Give a list.")
    return raw


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise BadInput(f"{name!r} is {_short(value)}.", field=name, value=value, remedy="Give true or false.")
    return value


def _integer(given: Mapping[str, Any], name: str, usual: int, *, least: int = 0, most: int = 20) -> int:
    value = given.get(name, usual)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise BadInput(f"{name!r} is {_short(value)}.", field=name, value=value, remedy=f"Give a whole number from {least} to {most}.")
    return value


def _encodable(text: str, field: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadInput(f"{field!r} holds a lone surrogate at character {error.start}, which is no text.", field=field, remedy="Remove it.") from None
    return text


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
