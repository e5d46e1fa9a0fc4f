"""OpenAI's bodies and batch lines as our jobs, our completions as its answers."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from symposia_shared.errors import BadInput, NotPlaced, PromptTooLong, Unavailable
from symposia_shared.jobs import Embedding, Inference
from symposia_shared.openai.lines import BadLine, bad_line, error_line, read_line, request_id
from symposia_shared.openai.replies import answer_body, error_body, fault_of
from symposia_shared.openai.requests import UNLIMITED, Request, read_request
from symposia_shared.prompts import ChoiceForm, JsonForm, RegexForm
from symposia_shared.turns import Abstention, Completion, TokenLogprob, Usage

CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
HELLO = [{"role": "user", "content": "hello"}]


def chat(**more: Any) -> Request:
    return read_request(CHAT, {"model": "a/b", "messages": HELLO, **more})


def first(request: Request) -> Inference:
    (job, *_) = request.jobs
    assert isinstance(job, Inference)
    return job


def refused(endpoint: str, body: dict[str, Any]) -> BadInput:
    with pytest.raises(BadInput) as caught:
        read_request(endpoint, body)
    return caught.value


def test_a_chat_becomes_an_inference_with_openais_defaults() -> None:
    job = first(chat())
    assert [m.content for m in job.messages] == ["hello"]
    assert (job.sampling.temperature, job.sampling.max_tokens, job.sampling.logprobs, job.raw) == (1.0, UNLIMITED, None, False)


def test_every_supported_parameter_arrives() -> None:
    job = first(chat(temperature=0.5, top_p=0.9, seed=7, stop="\n", max_completion_tokens=9, logprobs=True, top_logprobs=3, top_k=-1, min_p=0.1,
                     repetition_penalty=1.1, user="u", metadata={"a": "b"}, frequency_penalty=0, presence_penalty=None, tools=[], store=False))
    s = job.sampling
    assert (s.temperature, s.top_p, s.seed, s.stop, s.max_tokens, s.logprobs) == (0.5, 0.9, 7, ("\n",), 9, 3)
    assert (s.top_k, s.min_p, s.repetition_penalty) == (0, 0.1, 1.1)


def test_parts_of_text_are_joined_and_a_developer_is_the_system() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    job = first(chat(messages=[{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]))
    assert [(m.role, m.content) for m in job.messages] == [("system", "be brief"), ("user", "ab")]


def test_n_answers_are_as_many_jobs_with_seeds_of_their_own() -> None:
    request = chat(n=3, seed=5)
    assert [job.sampling.seed for job in request.jobs] == [5, 6, 7]
    assert request.choices_per_prompt == 3


def test_a_completion_is_raw_takes_16_tokens_and_may_have_many_prompts_and_a_suffix() -> None:
    request = read_request(TEXT, {"model": "m", "prompt": ["a", "b"], "n": 2, "suffix": "end", "logprobs": 2})
    assert [job.turn.messages[0].content for job in request.jobs] == ["a", "a", "b", "b"]
    job = first(request)
    assert (job.raw, job.suffix, job.sampling.max_tokens, job.sampling.logprobs) == (True, "end", 16, 2)


def test_embeddings_take_a_text_or_a_list() -> None:
    one = read_request(EMBED, {"model": "m", "input": "x"})
    two = read_request(EMBED, {"model": "m", "input": ["x", "y"], "encoding_format": "base64"})
    assert isinstance(one.jobs[0], Embedding)
    assert isinstance(two.jobs[0], Embedding)
    assert (one.jobs[0].texts, two.jobs[0].texts, two.base64) == (("x",), ("x", "y"), True)


def test_forms_come_from_response_format_and_structured_outputs() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    described = {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": schema}}
    assert first(chat(response_format={"type": "text"})).sampling.form is None
    assert first(chat(response_format={"type": "json_object"})).sampling.form == JsonForm()
    assert first(chat(response_format=described)).sampling.form == JsonForm(definition=schema)
    assert first(chat(structured_outputs={"choice": ["a", "b"]})).sampling.form == ChoiceForm(options=("a", "b"))
    assert first(chat(structured_outputs={"regex": "a+"})).sampling.form == RegexForm(pattern="a+")
    assert first(chat(structured_outputs={"json": schema})).sampling.form == JsonForm(definition=schema)


def test_the_model_given_beside_replaces_the_bodys() -> None:
    assert read_request(CHAT, {"model": "auto", "messages": HELLO}, model="mine").model == "mine"
    assert read_request(CHAT, {"messages": HELLO}, model="mine").jobs[0].model == "mine"


@pytest.mark.parametrize(("endpoint", "more", "field"), [
    (CHAT, {"frequency_penalty": 0.5}, "frequency_penalty"), (CHAT, {"presence_penalty": 1}, "presence_penalty"),
    (CHAT, {"logit_bias": {"1": 5}}, "logit_bias"), (CHAT, {"tools": [{"type": "function"}]}, "tools"), (CHAT, {"store": True}, "store"),
    (CHAT, {"reasoning_effort": "high"}, "reasoning_effort"), (CHAT, {"modalities": ["audio"]}, "modalities"), (CHAT, {"temprature": 1}, "temprature"),
    (CHAT, {"temperature": "1"}, "temperature"), (CHAT, {"temperature": True}, "temperature"), (CHAT, {"temperature": 99}, "temperature"),
    (CHAT, {"max_tokens": 0}, "max_tokens"), (CHAT, {"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"), (CHAT, {"n": 0}, "n"),
    (CHAT, {"n": 129}, "n"), (CHAT, {"n": True}, "n"), (CHAT, {"seed": -1}, "seed"), (CHAT, {"seed": 1.5}, "seed"), (CHAT, {"stop": [1]}, "stop.0"),
    (CHAT, {"stop": ""}, "stop"),
    (CHAT, {"logprobs": 3}, "logprobs"), (CHAT, {"top_logprobs": 3}, "top_logprobs"), (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    (CHAT, {"response_format": {"type": "xml"}}, "response_format"), (CHAT, {"response_format": "json"}, "response_format"),
    (CHAT, {"structured_outputs": {"grammar": "x"}}, "structured_outputs"), (CHAT, {"structured_outputs": {"choice": []}}, "structured_outputs.choice.options"),
    (CHAT, {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "response_format"),
    (CHAT, {"messages": []}, "messages"), (CHAT, {"messages": "hello"}, "messages"),
    (CHAT, {"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": "x", "tool_calls": [1]}]}, "messages[0].tool_calls"),
    (CHAT, {"messages": [{"role": "user", "content": " "}]}, "messages"), (CHAT, {"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
    (CHAT, {"model": "not a name"}, "model"), (CHAT, {"model": None}, "model"), (CHAT, {"model": 3}, "model"),
    (TEXT, {"prompt": [1, 2]}, "prompt"), (TEXT, {"prompt": [[1]]}, "prompt"), (TEXT, {"prompt": ""}, "prompt"), (TEXT, {"echo": True}, "echo"),
    (TEXT, {"best_of": 2}, "best_of"), (TEXT, {"messages": HELLO}, "messages"), (TEXT, {"prompt": ["x"] * 65, "n": 2}, "n"), (TEXT, {"suffix": 1}, "suffix"),
    (EMBED, {"input": [1]}, "input"), (EMBED, {"input": []}, "input"), (EMBED, {"input": [""]}, "input"), (EMBED, {"dimensions": 64}, "dimensions"),
    (EMBED, {"encoding_format": "int8"}, "encoding_format"), (EMBED, {"input": ["x"] * 2049}, "input"), ("/v1/images", {}, "url"),
])
def test_what_is_not_done_is_refused_by_name(endpoint: str, more: dict[str, Any], field: str) -> None:
    usual = {CHAT: {"messages": HELLO}, TEXT: {"prompt": "x"}, EMBED: {"input": "x"}}.get(endpoint, {})
    error = refused(endpoint, {"model": "m", **usual, **more})
    assert error.field == field
    assert fault_of(error)[0] == 400
    assert fault_of(error)[1]["error"]["param"] == field


LEAF = st.none() | st.booleans() | st.integers(-3, 200) | st.floats() | st.text(max_size=5)
VALUE = LEAF | st.lists(LEAF, max_size=2) | st.dictionaries(st.sampled_from(["role", "content", "type", "json", "x"]), LEAF, max_size=3)
FIELD = st.sampled_from(["model", "messages", "prompt", "input", "temperature", "n", "stop", "seed", "top_p", "max_tokens", "response_format", "logprobs",
                         "tools", "structured_outputs", "suffix", "encoding_format"])


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(FIELD, VALUE | st.lists(VALUE, max_size=2), max_size=6))
def test_any_body_is_read_or_refused_and_never_raises_otherwise(body: dict[str, Any]) -> None:
    for endpoint in (CHAT, TEXT, EMBED):
        try:
            request = read_request(endpoint, body)
        except BadInput:
            continue
        assert request.jobs


def completion(text: str, **more: Any) -> Completion:
    return Completion(text=text, usage=Usage(prompt_tokens=4, completion_tokens=2), **more)


def test_a_chats_answer_has_openais_form_and_counts_a_shared_prompt_once() -> None:
    body = answer_body(chat(n=2), [completion("a"), completion("b", finish_reason="length", reasoning="hm")], id="x", created=5)
    assert (body["id"], body["object"], body["created"], body["model"]) == ("chatcmpl-x", "chat.completion", 5, "a/b")
    assert [c["index"] for c in body["choices"]] == [0, 1]
    assert body["choices"][0] == {"index": 0, "message": {"role": "assistant", "content": "a", "refusal": None}, "logprobs": None, "finish_reason": "stop"}
    assert (body["choices"][1]["finish_reason"], body["choices"][1]["message"]["reasoning_content"]) == ("length", "hm")
    assert body["usage"] == {"prompt_tokens": 4, "completion_tokens": 4, "total_tokens": 8}


def test_prompts_of_one_request_are_each_counted() -> None:
    request = read_request(TEXT, {"model": "m", "prompt": ["a", "b"], "n": 2})
    assert answer_body(request, [completion("x")] * 4, id="x", created=0)["usage"] == {"prompt_tokens": 8, "completion_tokens": 8, "total_tokens": 16}


def test_logprobs_have_the_form_of_each_endpoint() -> None:
    tokens = (TokenLogprob(token="hé", logprob=-0.5, top=(("hé", -0.5), ("ho", -1.5))), TokenLogprob(token="!", logprob=-0.1))
    told = answer_body(chat(logprobs=True, top_logprobs=2), [completion("hé!", logprobs=tokens)], id="x", created=0)["choices"][0]["logprobs"]["content"]
    assert told[0]["bytes"] == [104, 195, 169]
    assert told[0]["top_logprobs"][1] == {"token": "ho", "logprob": -1.5, "bytes": [104, 111]}
    request = read_request(TEXT, {"model": "m", "prompt": "x", "logprobs": 2})
    text = answer_body(request, [completion("hé!", logprobs=tokens)], id="x", created=0)["choices"][0]
    assert text["logprobs"] == {"tokens": ["hé", "!"], "token_logprobs": [-0.5, -0.1], "top_logprobs": [{"hé": -0.5, "ho": -1.5}, {}],
                                "text_offset": [0, 2]}
    assert answer_body(chat(), [completion("x", logprobs=tokens)], id="x", created=0)["choices"][0]["logprobs"] is None


def test_the_probabilities_of_a_choice_ride_beside_it() -> None:
    body = answer_body(chat(structured_outputs={"choice": ["a", "b"]}), [completion("a", options={"a": 0.75, "b": 0.25})], id="x", created=0)
    assert body["choices"][0]["symposia"] == {"options": {"a": 0.75, "b": 0.25}}


def test_vectors_come_as_floats_or_as_base64_of_float32() -> None:
    reply = completion("", vectors=((0.6, -0.8), (1.0, 0.0)))
    plain = answer_body(read_request(EMBED, {"model": "m", "input": ["a", "b"]}), [reply], id="x", created=0)
    assert [d["embedding"] for d in plain["data"]] == [[0.6, -0.8], [1.0, 0.0]]
    assert plain["usage"] == {"prompt_tokens": 4, "total_tokens": 4}
    packed = answer_body(read_request(EMBED, {"model": "m", "input": ["a", "b"], "encoding_format": "base64"}), [reply], id="x", created=0)
    assert struct.unpack("<2f", base64.b64decode(packed["data"][1]["embedding"])) == (1.0, 0.0)


@pytest.mark.parametrize(("fault", "status", "code"), [
    (Abstention(cause="prompt_too_long", message="m"), 400, "context_length_exceeded"), (Abstention(cause="bad_prompt"), 400, "bad_prompt"),
    (Abstention(cause="throttled"), 429, "throttled"), (Abstention(cause="out_of_memory"), 503, "out_of_memory"), (Abstention(cause="poison"), 500, "poison"),
    (Abstention(cause="timeout"), 504, "timeout"), (PromptTooLong("x"), 400, "context_length_exceeded"), (NotPlaced("x"), 404, "model_not_found"),
    (BadInput("x", field="f"), 400, None), (Unavailable("x"), 503, "unavailable"),
])
def test_faults_have_openais_status_and_body(fault: Any, status: int, code: str | None) -> None:
    got, body = fault_of(fault)
    assert (got, body["error"]["code"]) == (status, code)
    assert set(body["error"]) == {"message", "type", "param", "code"}


def line(**changed: Any) -> bytes:
    return json.dumps({"custom_id": "one", "method": "POST", "url": CHAT, "body": {"model": "m", "messages": HELLO}} | changed).encode()


def test_a_line_is_a_request() -> None:
    read = read_line(line(), 3)
    assert (read.number, read.custom_id, read.request(model="other").model) == (3, "one", "other")


@pytest.mark.parametrize(("raw", "code"), [
    (b"not json", "invalid_json_line"), (b"[1]", "invalid_json_line"), (b'{"a": NaN}', "invalid_json_line"), (b"\xff\xfe", "invalid_json_line"),
    (b"[" * 100_000, "invalid_json_line"), (line(custom_id=None), "missing_custom_id"), (line(custom_id=""), "missing_custom_id"),
    (line(custom_id="\ud800"), "missing_custom_id"), (line(custom_id="x" * 513), "missing_custom_id"), (line(method="GET"), "invalid_method"),
    (line(url=None), "invalid_url"), (line(body=[]), "invalid_body"), (line(extra=1), "unknown_field"), (b" " * 9_000_000, "line_too_long"),
])
def test_a_bad_line_says_what_is_wrong(raw: bytes, code: str) -> None:
    with pytest.raises(BadLine) as caught:
        read_line(raw, 7)
    told = bad_line(caught.value, request_id="r", number=7)
    assert (caught.value.code, told["error"]["code"], told["error"]["line"], told["response"]["status_code"]) == (code, code, 7, 400)
    assert told["error"]["message"].startswith("line 7: ")
    json.dumps(told, ensure_ascii=False).encode()


def test_a_stream_is_refused_in_a_batch_only() -> None:
    assert chat(stream=True).stream
    assert chat(stream=True, stream_options={"include_usage": True}).stream_usage
    assert refused(CHAT, {"model": "m", "messages": HELLO, "stream_options": {"include_usage": True}}).field == "stream_options"
    with pytest.raises(BadInput, match="'stream' cannot be honoured in a batch"):
        read_line(line(body={"model": "m", "messages": HELLO, "stream": True}), 1).request()


def test_a_failed_line_names_its_number_beside_the_body() -> None:
    told = error_line(request_id="r", number=2, custom_id="c", status=429, body=error_body("busy", type="rate_limit_error"))
    assert (told["response"]["status_code"], told["error"]["code"], told["error"]["message"]) == (429, "rate_limit_error", "line 2: busy")


def test_an_id_follows_line_place_and_options() -> None:
    usual = request_id(line(), 1, options="a")
    assert request_id(line() + b"\r\n", 1, options="a") == usual
    assert len({usual, request_id(line(), 2, options="a"), request_id(line(), 1, options="b"), request_id(line(custom_id="x"), 1, options="a")}) == 4
