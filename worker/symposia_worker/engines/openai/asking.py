"""A request as the server is sent it; what it cannot honour is refused here, by name, before anything is sent."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from symposia_shared.errors import BadInput
from symposia_shared.prompts import ChoiceForm, Form, JsonForm, Message, RegexForm, Sampling
from symposia_worker.engines.openai.servers import Server, structured
from symposia_worker.engines.protocol import Generate

Path = Literal["/chat/completions", "/completions", "/embeddings"]

#: the one field of the object that stands round an option where a server enforces schemas only
OPTION = "answer"


@dataclass(frozen=True, slots=True)
class Ask:
    """One call: where it goes and what it says."""

    path: Path
    body: dict[str, Any] = field(repr=False)
    #: the answer is the value of ``OPTION`` in a JSON object
    wrapped: bool = False
    #: the text whose tokens are scored ends the prompt; it begins at this character
    scored_from: int | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A model of a server: its name there, and what is known of it."""

    remote: str
    server: Server
    context: int
    version: str = ""
    parameters: int = 0
    #: None: not known before it is asked
    embeds: bool | None = None
    generates: bool = True


def ask_of(request: Generate, model: Model) -> Ask:
    """The call for a request. Raises BadInput naming the field that this server cannot honour."""
    if request.want == "embedding":
        return _embedding(request, model)
    if not model.generates:
        raise _cannot(request, model, "want", request.want, "It only embeds; ask it with `symposia embed`.")
    if not any(m.content.strip() for m in request.messages) and not (request.suffix or "").strip():
        raise BadInput("the prompt is empty.", field="messages", remedy="Say what is asked in at least one message.")
    if request.want == "score":
        return _score(request, model)
    plain = request.raw or request.suffix is not None
    body = {"model": model.remote, "stream": True, "stream_options": {"include_usage": True}, **_sampling(request, model)}
    body |= _plain_prompt(request, model) if plain else {"messages": [m.model_dump() for m in request.messages]}
    body |= _logprobs(request.sampling, model, chat=not plain)
    wrapped = False
    if request.sampling.form is not None:
        more, wrapped = _form(request, request.sampling.form, model, chat=not plain)
        body |= more
    return Ask("/completions" if plain else "/chat/completions", body, wrapped)


def _sampling(request: Generate, model: Model) -> dict[str, Any]:
    s, server = request.sampling, model.server
    body: dict[str, Any] = {"max_tokens": min(s.max_tokens, max(1, model.context - 1)), "temperature": s.temperature}
    if s.stop:
        body["stop"] = list(s.stop)
    if s.repetition_penalty != 1.0 and server.penalty is None:
        raise _cannot(request, model, "repetition_penalty", s.repetition_penalty, "Leave it at 1.")
    if server.penalty is not None:
        body[server.penalty] = s.repetition_penalty
        if server.penalty_window is not None:
            body[server.penalty_window] = model.context
    if s.temperature > 0:
        body |= _draws(request, model)
    return body


def _draws(request: Generate, model: Model) -> dict[str, Any]:
    """What has an effect only where tokens are drawn."""
    s, server = request.sampling, model.server
    body: dict[str, Any] = {"top_p": s.top_p}
    if s.seed is not None:
        body["seed"] = s.seed % server.seeds_below
    if server.top_k is not None:
        body[server.top_k[0]] = s.top_k or server.top_k[1]
    elif s.top_k:
        raise _cannot(request, model, "top_k", s.top_k, "Leave it at 0, or draw by top_p.")
    if server.min_p is not None:
        body[server.min_p[0]] = s.min_p
    elif s.min_p:
        raise _cannot(request, model, "min_p", s.min_p, "Leave it at 0, or draw by top_p.")
    return body


def _logprobs(s: Sampling, model: Model, *, chat: bool) -> dict[str, Any]:
    if s.logprobs is None and not model.server.means:
        return {}
    # llama.cpp reports none at all where 0 are asked for beside the token
    top = max(s.logprobs or 0, 1 if model.server.kind == "llamacpp" else 0)
    return {"logprobs": True, "top_logprobs": top} if chat else {"logprobs": top}


def _plain_prompt(request: Generate, model: Model) -> dict[str, Any]:
    if request.suffix is not None and not model.server.infill:
        raise _cannot(request, model, "suffix", request.suffix, "Leave it out, or ask a checkpoint with the capability 'infill'.")
    if request.suffix is None and not model.server.raw:
        raise _cannot(request, model, "raw", True, "It puts the model's template around every prompt; leave 'raw' out.")
    prompt = "".join(m.content for m in request.messages)
    return {"prompt": prompt, **({} if request.suffix is None else {"suffix": request.suffix})}


def _embedding(request: Generate, model: Model) -> Ask:
    if model.embeds is False:
        raise _cannot(request, model, "want", "embedding", "Choose a checkpoint with the capability 'embed'.")
    return Ask("/embeddings", {"model": model.remote, "input": [m.content for m in request.messages], "encoding_format": "float"})


def _score(request: Generate, model: Model) -> Ask:
    if not model.server.scores:
        raise _cannot(request, model, "want", "score", "Score with a checkpoint on torch or on vLLM.")
    if len(request.messages) > 1 and not request.raw:
        raise _cannot(request, model, "messages", _roles(request.messages), "Its chat template is not known here: score with raw=True, "
                                                                            "the context and the text as they stand.")
    texts = [m.content for m in request.messages]
    body = {"model": model.remote, "prompt": "".join(texts), "echo": True, "max_tokens": 1, "temperature": 0.0,
            "logprobs": request.sampling.logprobs or 0, "stream": False}
    return Ask("/completions", body, scored_from=sum(map(len, texts[:-1])))


def _form(request: Generate, form: Form, model: Model, *, chat: bool) -> tuple[dict[str, Any], bool]:
    """The fields that have the server enforce a form, and whether its answer is wrapped."""
    match form:
        case JsonForm():
            return _schema(request, form.definition or {"type": "object"}, model, chat=chat), False
        case ChoiceForm():
            return _choice(request, form, model, chat=chat)
        case RegexForm():
            if model.server.regex != "vllm":
                raise _cannot(request, model, "form.regex", form.pattern, "Ask for a choice or a json_schema, or a checkpoint on torch or vLLM.")
            return _vllm(model, "regex", form.pattern), False


def _schema(request: Generate, schema: dict[str, Any], model: Model, *, chat: bool) -> dict[str, Any]:
    if chat:
        return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}}
    match model.server.schema_field:
        case None:
            raise _cannot(request, model, "form.json_schema", "a raw prompt", "Ask for it in a chat: leave 'raw' and 'suffix' out.")
        case "vllm":
            return _vllm(model, "json", schema)
        case name:
            return {name: schema}


def _choice(request: Generate, form: ChoiceForm, model: Model, *, chat: bool) -> tuple[dict[str, Any], bool]:
    match model.server.choice:
        case "vllm":
            return _vllm(model, "choice", list(form.options)), False
        case "grammar":
            return {"grammar": "root ::= " + " | ".join(map(_quoted, form.options))}, False
        case "wrapped":
            if request.sampling.logprobs is not None:
                raise _cannot(request, model, "logprobs", request.sampling.logprobs, "Leave them out beside a choice: its tokens are those of JSON.")
            schema = {"type": "object", "properties": {OPTION: {"type": "string", "enum": list(form.options)}}, "required": [OPTION],
                      "additionalProperties": False}
            return _schema(request, schema, model, chat=chat), True


def _vllm(model: Model, name: str, value: object) -> dict[str, Any]:
    return {"structured_outputs": {name: value}} if structured(model.version) else {f"guided_{name}": value}


def _quoted(option: str) -> str:
    """A literal of llama.cpp's grammars (GBNF), which has JSON's escapes but for the surrogates of ``\\u``."""
    plain = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return '"' + "".join(plain.get(c) or (c if c.isprintable() else f"\\U{ord(c):08X}") for c in option) + '"'


def _roles(messages: Sequence[Message]) -> str:
    return json.dumps([m.role for m in messages])


def _cannot(request: Generate, model: Model, name: str, value: object, remedy: str) -> BadInput:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return BadInput(f"{request.checkpoint} is behind a server ({model.server.kind}) that cannot honour {name} (given {shown}).", field=name,
                    value=value, remedy=remedy)
