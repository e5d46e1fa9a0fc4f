"""The engine ``openai`` against a scripted server: what it sends, what it makes of the answers, and what no server can do to it."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from endpoint import DONE, HANG, RESET, Says, StandIn, chat, delta, error, event, plain, stand_in, streamed, usage
from symposia_shared.errors import BadInput, PromptTooLong, SymposiaError, Unavailable
from symposia_shared.prompts import ChoiceForm, JsonForm, Message, RegexForm, Sampling, user
from symposia_shared.said import Hearing, Piece
from symposia_shared.turns import Completion
from symposia_worker.engines.openai import gate
from symposia_worker.engines.openai.endpoint import KEY, Endpoint, Patience, asked_models, from_environ, key_in, pool_name
from symposia_worker.engines.openai.engine import OpenAIEngine
from symposia_worker.engines.openai.faults import pause_s
from symposia_worker.engines.openai.listing import models_of
from symposia_worker.engines.openai.servers import structured
from symposia_worker.engines.protocol import Delta, Done, Event, Failed, First, Generate, Load, Loaded

SECRET = "sk-very-secret-0123456789"
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"], "additionalProperties": False}


class Asked:
    """An engine on a server, and all that it told."""

    def __init__(self, stand: StandIn, *, key: str | None = SECRET, patience: dict[str, Any] | None = None, **fields: Any) -> None:
        waits = {"connect_s": 2.0, "first_token_s": 5.0, "token_s": 5.0, "tries": 3, "away_s": 20.0, **(patience or {})}
        self.engine = OpenAIEngine(Endpoint(url=stand.url, patience=Patience(**waits), **fields), key)
        self.woken = threading.Event()
        self.engine.wake = self.woken.set
        self.events: list[Event] = []
        self.loaded: Loaded | None = None

    def load(self, checkpoint: str = "lab/one") -> Asked:
        self.loaded = self.engine.load(Load(checkpoint=checkpoint, engine="openai"))
        return self

    def ask(self, name: str = "a", prompt: str = "hello?", *, model: str = "lab/one", stream: bool = False, want: Any = "completion",
            raw: bool = False, suffix: str | None = None, messages: tuple[Message, ...] = (), **sampling: Any) -> Asked:
        self.engine.admit(Generate(id=name, checkpoint=model, messages=messages or user(prompt), sampling=Sampling(**sampling), want=want, raw=raw,
                                   suffix=suffix, stream=stream))
        return self

    def until(self, condition: Callable[[], bool], within_s: float = 30.0) -> None:
        """Step whenever it wakes, as the loop of an engine process does."""
        limit = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < limit, f"it did not happen: {self.events}"
            self.woken.wait(min(self.engine.rest_s, 0.05))
            self.woken.clear()
            self.events += self.engine.step()

    def end(self, name: str = "a") -> Done | Failed:
        self.until(lambda: any(isinstance(e, Done | Failed) and e.id == name for e in self.events))
        ends = [e for e in self.events if isinstance(e, Done | Failed) and e.id == name]
        assert len(ends) == 1
        return ends[0]

    def done(self, name: str = "a") -> Completion:
        end = self.end(name)
        assert isinstance(end, Done), end
        return end.completion

    def failed(self, name: str = "a") -> Failed:
        end = self.end(name)
        assert isinstance(end, Failed), end
        return end


@pytest.fixture
def server() -> Iterator[StandIn]:
    with stand_in() as made:
        yield made


@pytest.fixture
def on(server: StandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Asked]]:
    """Engines on the server, with short waits between tries."""
    monkeypatch.setattr(gate, "FIRST_S", 0.01)
    made: list[Asked] = []

    def engine(**fields: Any) -> Asked:
        made.append(Asked(server, **fields))
        return made[-1]

    yield engine
    for one in made:
        one.engine.close()


# -- an answer


def test_an_answer_comes_with_its_first_token_its_deltas_and_the_servers_usage(server: StandIn, on: Callable[..., Asked]) -> None:
    asked = on().load().ask(stream=True)
    done = asked.done()
    assert (done.text, done.finish_reason, done.usage.prompt_tokens, done.usage.completion_tokens) == ("hello there", "stop", 7, 2)
    assert [type(e).__name__ for e in asked.events] == ["First", "Delta", "Delta", "Done"]
    assert "".join(e.text for e in asked.events if isinstance(e, Delta)) == done.text
    first = next(e for e in asked.events if isinstance(e, First))
    assert done.timing.first_token_at == first.at
    assert done.timing.last_token_at is not None
    assert done.timing.last_token_at >= first.at
    assert not asked.engine.busy
    body = server.asked[-1].body
    assert (server.asked[-1].path, body["model"], body["messages"]) == ("/v1/chat/completions", "lab/one", [{"role": "user", "content": "hello?"}])
    assert (body["stream"], body["stream_options"], body["temperature"], body["max_tokens"]) == (True, {"include_usage": True}, 0.0, 99)


def test_reasoning_is_a_field_of_its_own_wherever_the_server_puts_it(server: StandIn, on: Callable[..., Asked]) -> None:
    asked = on().load()
    server.then += [streamed(delta(reasoning_content="6 times 7 is"), delta(reasoning_content=" 42"), delta("42"), delta(finish="stop"), DONE),
                    streamed(delta(reasoning="hm"), delta("42"), delta(finish="stop"), DONE),
                    chat("<think>hm", "</think>\n\n", "42")]
    found = [asked.ask(n).done(n) for n in "abc"]
    assert [(c.reasoning, c.text) for c in found] == [("6 times 7 is 42", "42"), ("hm", "42"), ("hm", "42")]


def test_a_streamed_reasoning_is_marked_so_that_it_can_be_told_from_the_answer(server: StandIn, on: Callable[..., Asked]) -> None:
    asked = on().load()
    server.always = streamed(delta(reasoning_content="6 times 7"), delta(reasoning_content=" is"), delta("\n\n4"), delta("2"), delta(finish="stop"), DONE)
    done = asked.ask(stream=True).done()
    hearing, heard, at = Hearing(), "", 0
    for text in [e.text for e in asked.events if isinstance(e, Delta)]:
        heard += hearing.hear(Piece(fence="1", at=at, text=text))
        at += len(text)
    assert (done.reasoning, done.text, heard, hearing.end(done.text)) == ("6 times 7 is", "42", "42", "")


def test_a_server_that_does_not_stream_is_understood(server: StandIn, on: Callable[..., Asked]) -> None:
    server.always = plain({"choices": [{"message": {"content": "whole"}, "finish_reason": "length"}], "usage": {"prompt_tokens": 3, "completion_tokens": 1}})
    done = on().load().ask(stream=True).done()
    assert (done.text, done.finish_reason, done.usage.completion_tokens) == ("whole", "length", 1)


@pytest.mark.parametrize("wrong", [usage(-1, 2), usage("many", 2), usage(1, 10**12), usage(1.5, True), event({"usage": [], "choices": []}), b""])
def test_usage_that_cannot_be_is_told_as_unknown(server: StandIn, on: Callable[..., Asked], wrong: bytes) -> None:
    server.always = streamed(delta("x"), delta(finish="stop"), *([wrong] if wrong else []), DONE)
    done = on().load().ask().done()
    assert (done.text, done.usage.prompt_tokens, done.usage.completion_tokens) == ("x", 0, 0)


def test_log_probabilities_come_with_their_tokens_and_as_many_beside_them_as_were_asked_for(server: StandIn, on: Callable[..., Asked]) -> None:
    one = {"token": "x", "logprob": -0.5, "top_logprobs": [{"token": "y", "logprob": -1.0}, {"token": "x", "logprob": -0.5}]}
    two = {"token": "y", "logprob": -1.5, "top_logprobs": []}
    server.always = streamed(event({"choices": [{"delta": {"content": "xy"}, "logprobs": {"content": [one, two]}}]}), delta(finish="stop"), DONE)
    asked = on().load()
    done = asked.ask(logprobs=1).done()
    assert done.logprobs is not None
    assert [(t.token, t.logprob, t.top) for t in done.logprobs] == [("x", -0.5, (("x", -0.5),)), ("y", -1.5, ())]
    assert done.logprob_mean == pytest.approx(-1.0)
    assert done.usage.completion_tokens == 2
    plain_done = asked.ask("b").done("b")
    assert (plain_done.logprobs, plain_done.logprob_mean) == (None, pytest.approx(-1.0))
    server.always = streamed(event({"choices": [{"delta": {"content": "xy"}, "logprobs": {"content": [one, two]}}]}), delta(finish="stop"), usage(1, 4), DONE)
    assert asked.ask("c").done("c").logprob_mean is None  # of two tokens in four no mean is known


def test_log_probabilities_that_do_not_come_are_missed(server: StandIn, on: Callable[..., Asked]) -> None:
    failed = on().load().ask(logprobs=0).failed()
    assert failed.cause == "refused"
    assert "log-probabilities" in failed.message


def test_a_raw_prompt_goes_to_completions_as_it_stands(server: StandIn, on: Callable[..., Asked]) -> None:
    piece = {"choices": [{"text": "Paris", "finish_reason": "stop", "logprobs": {"tokens": ["Paris"], "token_logprobs": [-0.1],
                                                                                   "top_logprobs": [{"Lyon": -3.0, "Paris": -0.1}]}}]}
    server.always = streamed(event(piece), DONE)
    asked = on().load()
    done = asked.ask(raw=True, messages=(Message(role="user", content="The capital "), Message(role="user", content="is")), logprobs=2).done()
    assert done.text == "Paris"
    assert done.logprobs is not None
    assert done.logprobs[0].top == (("Paris", -0.1), ("Lyon", -3.0))
    assert (server.asked[-1].path, server.asked[-1].body["prompt"], server.asked[-1].body["logprobs"]) == ("/v1/completions", "The capital is", 2)


def test_texts_are_embedded_to_vectors_of_length_one_in_their_order(server: StandIn, on: Callable[..., Asked]) -> None:
    server.embeds = plain({"data": [{"index": 1, "embedding": [0.0, 2.0]}, {"index": 0, "embedding": [3.0, 4.0]}], "usage": {"prompt_tokens": 5}})
    asked = on(server="openai").load()
    done = asked.ask(messages=(*user("x"), *user("y")), want="embedding").done()
    assert done.vectors == (pytest.approx((0.6, 0.8)), (0.0, 1.0))
    assert done.usage.prompt_tokens == 5
    assert server.seen[-1].body["input"] == ["x", "y"]
    server.embeds = plain({"data": [{"index": 0, "embedding": [3.0, 4.0]}]})
    assert "1 vectors for 2" in asked.ask("b", messages=(*user("x"), *user("y")), want="embedding").failed("b").message


def test_a_text_is_scored_by_the_tokens_that_are_its_own(server: StandIn, on: Callable[..., Asked]) -> None:
    given = {"tokens": ["The", " capital", " is", " Paris", "."], "token_logprobs": [None, -2.0, -1.0, -0.25, -9.0],
             "top_logprobs": [None, {}, {}, {" Paris": -0.25}, {}], "text_offset": [0, 3, 11, 14, 20]}
    server.always = plain({"choices": [{"text": "", "logprobs": given}], "usage": {"prompt_tokens": 4}})
    asked = on(server="vllm").load()
    done = asked.ask(raw=True, want="score", messages=(*user("The capital is"), *user(" Paris")), logprobs=1).done()
    assert done.logprobs is not None
    assert ([t.token for t in done.logprobs], done.logprob_mean, done.text) == ([" Paris"], -0.25, " Paris")
    with pytest.raises(BadInput, match="raw=True"):
        asked.ask("b", want="score", messages=(*user("x"), *user("y")))


# -- what is sent, and what is refused by name


def test_sampling_is_sent_under_each_servers_own_names(server: StandIn, on: Callable[..., Asked]) -> None:
    drawn = {"temperature": 0.5, "top_p": 0.9, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.1, "seed": 2**40 + 5, "stop": ("END",)}
    on(server="vllm").load().ask(**drawn).done()
    body = server.asked[-1].body
    assert (body["top_k"], body["min_p"], body["repetition_penalty"], body["seed"], body["stop"]) == (20, 0.1, 1.1, 2**40 + 5, ["END"])
    on(server="llamacpp").load().ask(**drawn).done()
    body = server.asked[-1].body
    assert (body["top_k"], body["min_p"], body["repeat_penalty"], body["repeat_last_n"]) == (20, 0.1, 1.1, 100)
    assert 0 <= body["seed"] < 2**32 - 1
    on(server="vllm").load().ask(temperature=1.0, seed=1).done()  # a server's own defaults must not be in force
    body = server.asked[-1].body
    assert (body["top_p"], body["top_k"], body["min_p"], body["repetition_penalty"]) == (1.0, -1, 0.0, 1.0)


@pytest.mark.parametrize(("field", "value"), [("top_k", 5), ("min_p", 0.1), ("repetition_penalty", 1.1)])
@pytest.mark.parametrize("kind", ["openai", "ollama"])
def test_sampling_a_server_would_drop_is_refused_by_name(on: Callable[..., Asked], server: StandIn, kind: str, field: str, value: float) -> None:
    asked = on(server=kind).load()
    with pytest.raises(BadInput, match=field):
        asked.ask(temperature=1.0, seed=1, **{field: value})
    assert not server.asked
    assert not asked.engine.busy


def test_what_greedy_decoding_does_not_heed_is_not_refused(on: Callable[..., Asked]) -> None:
    assert on(server="openai").load().ask(top_k=5, min_p=0.1).done().text == "hello there"


@pytest.mark.parametrize(("kind", "request_of"), [
    ("vllm", {"suffix": "x"}), ("llamacpp", {"suffix": "x"}), ("ollama", {"raw": True}), ("openai", {"want": "score"}), ("llamacpp", {"want": "score"}),
    ("openai", {"form": RegexForm(pattern="a+")}), ("llamacpp", {"form": RegexForm(pattern="a+")}),
    ("openai", {"raw": True, "form": JsonForm(definition=SCHEMA)}), ("openai", {"form": ChoiceForm(options=("a",)), "logprobs": 1}),
])
def test_what_a_server_cannot_do_is_refused_before_it_is_asked(server: StandIn, on: Callable[..., Asked], kind: str, request_of: dict[str, Any]) -> None:
    asked = on(server=kind).load()
    before = len(server.asked)
    with pytest.raises(BadInput, match="cannot honour"):
        asked.ask(**request_of)
    assert len(server.asked) == before


def test_a_bad_regex_is_refused_before_it_is_asked(on: Callable[..., Asked]) -> None:
    with pytest.raises(BadInput, match="regex"):
        on(server="vllm").load().ask(form=RegexForm(pattern="(a"))


# -- typed output


def test_forms_are_asked_for_as_each_server_enforces_them(server: StandIn, on: Callable[..., Asked]) -> None:
    server.own["/version"] = {"version": "0.13.0"}
    choice, pattern = ChoiceForm(options=('a"b', "c\nd")), RegexForm(pattern="[ab]+")
    server.always = chat("c\nd")
    assert on(server="vllm").load().ask(form=choice).done().text == "c\nd"
    assert server.asked[-1].body["structured_outputs"] == {"choice": ['a"b', "c\nd"]}
    assert on(server="llamacpp").load().ask(form=choice).done().text == "c\nd"
    assert server.asked[-1].body["grammar"] == 'root ::= "a\\"b" | "c\\nd"'
    server.always = chat('{"answer":', ' "c\\nd"}')
    asked = on(server="openai").load().ask(form=choice, stream=True)
    assert asked.done().text == "c\nd"
    assert [e.text for e in asked.events if isinstance(e, Delta)] == ["c\nd"]
    assert server.asked[-1].body["response_format"]["json_schema"]["schema"]["properties"]["answer"]["enum"] == ['a"b', "c\nd"]
    server.own["/version"] = {"version": "0.10.2"}
    server.always = chat("abba")
    assert on(server="vllm").load().ask(form=pattern).done().text == "abba"
    assert server.asked[-1].body["guided_regex"] == "[ab]+"


@pytest.mark.parametrize(("form", "said"), [
    (JsonForm(definition=SCHEMA), '{"n": 12}'), (JsonForm(definition=SCHEMA), '{"n": 1, "m": 2}'), (JsonForm(definition=SCHEMA), '{"n": "1"}'),
    (JsonForm(definition=SCHEMA), '{"n": 1'), (JsonForm(definition=SCHEMA), "Sure! {}"), (JsonForm(), "[1]"),
    (ChoiceForm(options=("yes", "no")), "yes."), (RegexForm(pattern="[0-9]+"), "12a"), (RegexForm(pattern="[0-9]+"), ""),
])
def test_an_answer_without_its_form_is_none(server: StandIn, on: Callable[..., Asked], form: Any, said: str) -> None:
    server.always = chat(said, finish="length")
    failed = on(server="vllm").load().ask(form=form).failed()
    assert failed.cause == "refused"
    assert form.kind in failed.message
    assert "max_tokens" in failed.message


@pytest.mark.parametrize(("form", "said"), [
    (JsonForm(definition=SCHEMA), '{\n  "n": 9\n}'), (JsonForm(), '{"a": []}'), (ChoiceForm(options=("yes", "no")), "no"),
    (RegexForm(pattern="(?i)grüße|[0-9]+"), "GRÜSSE".replace("SS", "ß")),
    (JsonForm(definition={"$defs": {"a": {"enum": [1, None]}}, "type": "array", "items": {"$ref": "#/$defs/a"}, "minItems": 2}), "[1, null]"),
])
def test_an_answer_with_its_form_is_one(server: StandIn, on: Callable[..., Asked], form: Any, said: str) -> None:
    server.always = chat(said)
    assert on(server="vllm").load().ask(form=form).done().text == said


# -- faults


@pytest.mark.parametrize("fault", [
    streamed(delta("hel"), RESET), streamed(delta("hel")), streamed(b"data: {\"choices\": [{\"del"), streamed(b"\xff\xfe<html>\n\n"), error(500, "oops"),
    error(502, "bad gateway"), error(503, "loading"), Says(200, {"Content-Type": "application/json"}, (b'{"choices": [',)), Says(steps=(RESET,)),
    streamed(event({"error": {"message": "engine died", "code": 500}})), streamed(b"data: [1]\n\n"), streamed(b"data: {}\n\n"),
    plain({"choices": []}), Says(200, {"Content-Type": "text/event-stream", "Content-Encoding": "gzip"}, (b"not gzip",)),
    streamed(delta("x", finish="error")), streamed(DONE.replace(b"DONE", b"DON")),
], ids=str)
def test_a_lost_try_is_made_again_and_counted(server: StandIn, on: Callable[..., Asked], fault: Says) -> None:
    asked = on().load()
    server.then.append(fault)
    assert asked.ask().done().text == "hello there"
    assert len(server.asked) == 2
    assert asked.engine.repeats == 1


@pytest.mark.parametrize("fault", [streamed(delta("hel")), error(503, "loading"), streamed(b"garbage\n\n")], ids=str)
def test_a_turn_that_is_lost_again_and_again_is_given_up(server: StandIn, on: Callable[..., Asked], fault: Says) -> None:
    server.always = fault
    failed = on().load().ask().failed()
    assert failed.cause == "device_lost"
    assert "tried 3 times" in failed.message


def test_a_stream_that_broke_is_never_an_answer_nor_shown_twice(server: StandIn, on: Callable[..., Asked]) -> None:
    asked = on().load()
    server.then.append(streamed(delta("hel"), 0.2, RESET))
    done = asked.ask(stream=True).done()
    assert "".join(e.text for e in asked.events if isinstance(e, Delta)) == done.text == "hello there"
    assert sum(isinstance(e, First) for e in asked.events) == 1
    server.then.append(streamed(delta("something else"), 0.2, RESET))
    failed = asked.ask("b", stream=True).failed("b")
    assert failed.cause == "device_lost"
    assert "shown" in failed.message


@pytest.mark.parametrize("hanging", [
    Says(steps=(HANG,)), streamed(HANG), streamed(delta(role="assistant"), HANG), streamed(b": ping\n\n", endless=True), streamed(delta("hel"), HANG),
    streamed(delta("hel"), b": ping\n\n", endless=True), plain({}, 500), Says(500, {}, (b"x", HANG)),
], ids=str)
def test_a_server_that_hangs_costs_time_but_no_turn(server: StandIn, on: Callable[..., Asked], hanging: Says) -> None:
    asked = on(patience={"first_token_s": 0.4, "token_s": 0.4}).load()
    server.then.append(hanging)
    assert asked.ask().done().text == "hello there"


def test_an_answer_whose_stream_is_left_open_is_an_answer(server: StandIn, on: Callable[..., Asked], monkeypatch: pytest.MonkeyPatch) -> None:
    from symposia_worker.engines.openai import call

    monkeypatch.setattr(call, "TAIL_S", 0.2)
    server.then += [streamed(delta("all"), delta(finish="stop"), HANG)]
    asked = on(server="openai").load().ask()
    assert asked.done().text == "all"
    assert asked.engine.repeats == 0


def test_a_server_that_hangs_for_good_is_a_timeout(server: StandIn, on: Callable[..., Asked]) -> None:
    server.always = streamed(HANG)
    asked = on(server="openai", patience={"first_token_s": 0.2, "tries": 2}).load().ask()
    assert asked.failed().cause == "timeout"
    asked.until(lambda: server.hung_up == 2)


@pytest.mark.parametrize("endless", [streamed(delta("word "), endless=True), streamed(delta("w" * 5000), endless=True)], ids=["pieces", "characters"])
def test_a_server_that_streams_for_ever_is_stopped(server: StandIn, on: Callable[..., Asked], endless: Says) -> None:
    server.always = endless
    asked = on(server="openai").load().ask(max_tokens=5)
    failed = asked.failed()
    assert failed.cause == "bug"
    assert "does not end" in failed.message
    asked.until(lambda: server.in_flight == 0)


def test_a_line_without_an_end_does_not_fill_the_memory(server: StandIn, on: Callable[..., Asked], monkeypatch: pytest.MonkeyPatch) -> None:
    from symposia_worker.engines.openai import reading

    monkeypatch.setattr(reading, "MOST_LINE_BYTES", 100_000)
    server.always = streamed(b"data: ", b"x" * 50_000, endless=True)
    assert "without an end of line" in on(server="openai", patience={"tries": 1}).load().ask().failed().message


@pytest.mark.parametrize(("status", "message", "cause"), [
    (400, "This model's maximum context length is 4096 tokens. However, you requested 5000", "prompt_too_long"),
    (400, "request (10016 tokens) exceeds the available context size (512 tokens), try increasing it", "prompt_too_long"), (413, "too big", "prompt_too_long"),
    (400, "messages must alternate", "bad_prompt"), (422, "unprocessable", "bad_prompt"), (404, "no such model", "bad_prompt"),
    (501, "not supported", "bad_prompt"), (302, "moved", "device_lost"),
])
def test_what_the_server_refuses_is_not_sent_again(server: StandIn, on: Callable[..., Asked], status: int, message: str, cause: str) -> None:
    server.always = error(status, message)
    failed = on(server="openai").load().ask().failed()
    assert failed.cause == cause
    assert message in failed.message
    assert len(server.asked) == 1


def test_a_429_holds_the_whole_device_for_as_long_as_the_server_says(server: StandIn, on: Callable[..., Asked]) -> None:
    asked = on(server="openai", max_concurrency=2).load()
    server.then.append(error(429, "slow down", Retry_After="1"))
    began = time.monotonic()
    asked.ask("a")
    asked.until(lambda: len(server.asked) == 1)
    for n in range(5):
        asked.ask(str(n))
    assert len(server.asked) == 1
    for name in ("a", *"01234"):
        assert asked.done(name).text == "hello there"
    assert time.monotonic() - began >= 1.0
    assert len(server.asked) == 7
    assert asked.engine.repeats == 1


def test_a_pause_longer_than_a_turn_may_wait_gives_it_back(server: StandIn, on: Callable[..., Asked]) -> None:
    server.always = error(429, "come back tomorrow", Retry_After="86400")
    asked = on(server="openai").load()
    assert asked.ask().failed().cause == "throttled"
    assert asked.ask("b").failed("b").cause == "throttled"
    assert len(server.asked) == 1


def test_a_spent_quota_is_not_waited_for(server: StandIn, on: Callable[..., Asked]) -> None:
    server.always = plain({"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}, 429)
    failed = on(server="openai").load().ask().failed()
    assert (failed.cause, len(server.asked)) == ("throttled", 1)


@pytest.mark.parametrize(("headers", "seconds"), [
    ({"retry-after": "2"}, 2.0), ({"retry-after-ms": "250", "retry-after": "9"}, 0.25), ({"x-ratelimit-reset-requests": "1m30s"}, 90.0),
    ({"x-ratelimit-reset-requests": "20ms", "x-ratelimit-reset-tokens": "6m0s"}, 360.0), ({}, None), ({"x-ratelimit-reset-tokens": "soon"}, None),
    ({"x-ratelimit-reset-requests": "20ms", "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-tokens": "6m0s",
      "x-ratelimit-remaining-tokens": "90"}, 0.02), ({"x-ratelimit-reset": "1800000010"}, 10.0), ({"x-ratelimit-reset": "1800000010000"}, 10.0),
    ({"retry-after": "Fri, 15 Jan 2027 08:00:30 GMT"}, 30.0), ({"retry-after": "nonsense"}, 0.0), ({"x-ratelimit-reset": "1h0m1.5s"}, 3601.5),
])
def test_a_pause_is_read_from_the_servers_headers(headers: dict[str, str], seconds: float | None) -> None:
    found = pause_s(headers, now=1_800_000_000.0)
    assert found == (None if seconds is None else pytest.approx(seconds))


def test_a_server_that_is_away_is_waited_for(server: StandIn, on: Callable[..., Asked]) -> None:
    asked = on(server="openai", patience={"tries": 50, "away_s": 1.0, "connect_s": 0.2}).load()
    object.__setattr__(asked.engine.endpoint, "url", "http://127.0.0.1:9/v1")
    asked.engine._client.base_url = "http://127.0.0.1:9/v1"
    failed = asked.ask().failed()
    assert failed.cause == "device_lost"
    assert "ConnectError" in failed.message
    assert asked.engine.repeats > 2


# -- concurrency, cancel, unload


def test_no_more_requests_are_in_flight_than_the_device_may_have(server: StandIn, on: Callable[..., Asked]) -> None:
    server.always = chat("a", "b", each_s=0.05)
    asked = on(server="openai", max_concurrency=4).load()
    for n in range(20):
        asked.ask(str(n))
    asked.until(lambda: asked.engine.running == 4)
    assert asked.engine.running + asked.engine.waiting == 20
    for n in range(20):
        asked.done(str(n))
    assert server.most_in_flight == 4


def test_a_cancelled_request_is_closed_at_the_server_and_says_nothing_more(server: StandIn, on: Callable[..., Asked]) -> None:
    server.always = streamed(delta("word "), 0.05, delta("word "), HANG)
    asked = on(server="openai").load().ask()
    asked.until(lambda: any(isinstance(e, First) for e in asked.events))
    assert asked.engine.cancel("a")
    asked.until(lambda: server.hung_up == 1)
    told = len(asked.events)
    assert not asked.engine.cancel("a")
    assert not asked.engine.busy
    server.always = chat("next")
    assert asked.ask("b").done("b").text == "next"
    assert all(e.id == "b" for e in asked.events[told:] if isinstance(e, First | Done | Failed))


def test_an_unloaded_models_turns_are_given_back(server: StandIn, on: Callable[..., Asked]) -> None:
    server.always = streamed(HANG)
    asked = on(server="openai").load().ask()
    asked.until(lambda: server.in_flight == 1)
    events = asked.engine.unload("lab/one")
    assert [(e.id, e.cause) for e in events if isinstance(e, Failed)] == [("a", "throttled")]
    asked.until(lambda: server.in_flight == 0)
    with pytest.raises(Unavailable):
        asked.ask("b")


def test_a_step_only_tells_what_has_happened(server: StandIn, on: Callable[..., Asked]) -> None:
    server.always = streamed(HANG)
    asked = on(server="openai").load().ask()
    asked.until(lambda: server.in_flight == 1)
    assert asked.engine.busy
    assert asked.engine.rest_s > 0
    assert asked.engine.step() == []


# -- what an endpoint says of itself


@pytest.mark.parametrize(("models", "own", "family", "context"), [
    ([{"id": "lab/one", "owned_by": "vllm", "max_model_len": 4096}], {"/version": {"version": "0.11.0"}}, "vllm", 4096),
    ([{"id": "lab/one", "owned_by": "llamacpp", "meta": {"n_ctx_train": 8192, "n_params": 5}}],
     {"/props": {"default_generation_settings": {"n_ctx": 2048}}}, "llamacpp", 2048),
    ([{"id": "lab/one", "owned_by": "library"}], {}, "ollama", 777),
    ([{"id": "lab/one:latest", "owned_by": "me"}], {"/api/version": {"version": "0.12"}}, "ollama", 777),
    ([{"id": "lab/one", "owned_by": "system"}], {"/version": {"version": "1"}}, "openai", 777),
    ([{"id": "lab/one", "owned_by": "acme", "context_length": 5}], {}, "openai", 5),
])
def test_the_kind_of_a_server_and_the_context_are_found_out(server: StandIn, on: Callable[..., Asked], models: list[dict[str, Any]],
                                                            own: dict[str, object], family: str, context: int) -> None:
    server.models, server.own = models, own
    loaded = on(context=777).load().loaded
    assert loaded is not None
    assert (loaded.family, loaded.context, loaded.bytes) == (family, context, 0)


def test_a_model_that_only_embeds_is_known_as_such(server: StandIn, on: Callable[..., Asked]) -> None:
    server.embeds = plain({"data": [{"index": 0, "embedding": [1.0]}]})
    asked = on().load()
    assert asked.loaded is not None
    assert (asked.loaded.capabilities, asked.loaded.instruct) == (("embed",), False)
    with pytest.raises(BadInput, match="only embeds"):
        asked.ask()
    server.embeds = error(404, "does not embed")
    other = on().load()
    assert other.loaded is not None
    assert set(other.loaded.capabilities) == {"generate", "instruct", "json_schema", "choice", "regex", "score"}
    with pytest.raises(BadInput, match="embedding"):
        other.ask(want="embedding")


def test_all_that_is_listed_is_served_if_a_job_can_name_it(server: StandIn) -> None:
    server.models = [{"id": n} for n in ("lab/one", "qwen2:0.5b", "two", "/models/x.gguf")]
    endpoint = Endpoint(url=server.url)
    assert models_of(endpoint, None, ()) == {"lab/one": "lab/one", "two": "two"}
    assert models_of(endpoint, None, ("small=qwen2:0.5b", "two")) == {"small": "qwen2:0.5b", "two": "two"}
    server.models = [{"id": "qwen2:0.5b"}]
    with pytest.raises(BadInput, match=r"--model qwen2-0\.5b=qwen2:0\.5b"):
        models_of(endpoint, None, ())
    with pytest.raises(BadInput, match=r"--model qwen2-0\.5b=qwen2:0\.5b"):
        asked_models(["qwen2:0.5b"])
    server.models = [{"id": f"m{n}"} for n in range(100)]
    with pytest.raises(BadInput, match="too many"):
        models_of(endpoint, None, ())


def test_a_renamed_model_is_asked_for_by_the_servers_name(server: StandIn, on: Callable[..., Asked]) -> None:
    server.models = [{"id": "qwen2:0.5b", "owned_by": "library"}]
    asked = on(renamed={"small": "qwen2:0.5b"}).load("small")
    asked.ask(model="small").done()
    assert server.asked[-1].body["model"] == "qwen2:0.5b"
    with pytest.raises(BadInput, match="it lists qwen2"):
        asked.load("large")


def test_a_server_without_a_list_is_served_by_name(server: StandIn, on: Callable[..., Asked]) -> None:
    server.models = error(404, "no list")
    assert on().load().ask().done().text == "hello there"


@pytest.mark.parametrize("wrong", ["openai:ftp://x/v1", "openai:http://", "openai:http://me:pw@host/v1", "openai:https://host/v1?key=secret"])
def test_a_url_that_is_no_endpoint_or_holds_a_secret_is_refused_without_repeating_it(wrong: str) -> None:
    with pytest.raises(BadInput) as caught:
        Endpoint.of_device(wrong)
    assert "pw" not in str(caught.value).replace("***", "")


def test_a_pool_on_an_endpoint_is_named_after_it() -> None:
    assert [pool_name(d) for d in ("openai:http://host:8000/v1", "openai:https://api.example.com/team/v1/", "cuda:0")] == [
        "pool-openai-host-8000", "pool-openai-api.example.com-team", "pool-cuda-0"]


def test_a_version_tells_how_forms_are_asked_for() -> None:
    assert [structured(v) for v in ("0.10.2", "0.11.0", "0.12.1.dev3+g1", "1.0", "", "dev")] == [False, True, True, True, True, True]


# -- the key


def test_the_key_is_in_the_header_and_nowhere_else(server: StandIn, on: Callable[..., Asked], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="symposia")
    asked = on().load()
    asked.ask().done()
    server.then.append(error(503, f"Incorrect API key provided: {SECRET}"))
    asked.ask("b").done("b")
    server.always = error(400, f"Incorrect API key provided: {SECRET}")
    failed = asked.ask("c").failed("c")
    assert all(s.headers["authorization"] == f"Bearer {SECRET}" for s in server.seen)
    assert not any(SECRET in s.path or SECRET.encode() in s.raw for s in server.seen)
    assert SECRET not in failed.message
    assert "***" in failed.message
    assert SECRET not in caplog.text
    assert SECRET not in repr(asked.engine.endpoint) + asked.engine.endpoint.to_json() + json.dumps([e.to_json() for e in asked.events])


def test_without_a_key_no_header_is_sent(server: StandIn, on: Callable[..., Asked]) -> None:
    on(key=None).load().ask().done()
    assert not any("authorization" in s.headers for s in server.seen)


def test_a_refused_key_refuses_the_device_and_says_what_to_set(server: StandIn, on: Callable[..., Asked]) -> None:
    server.models = error(401, f"Incorrect API key provided: {SECRET}")
    with pytest.raises(BadInput, match=KEY) as caught:
        on().load()
    assert SECRET not in str(caught.value)


def test_a_key_that_is_revoked_gives_turns_back_and_stops_asking(server: StandIn, on: Callable[..., Asked]) -> None:
    asked = on(server="openai").load()
    server.always = error(401, "revoked")
    failed = asked.ask().failed()
    assert (failed.cause, len(server.asked)) == ("device_lost", 1)
    with pytest.raises(Unavailable, match="revoked"):
        asked.ask("b")
    assert len(server.asked) == 1


def test_the_key_comes_from_the_environment_and_must_be_there_where_it_is_named() -> None:
    assert key_in({KEY: "k"}, None) == "k"
    assert key_in({}, None) is None
    assert key_in({"MINE": "m", KEY: "k"}, "MINE") == "m"
    with pytest.raises(BadInput, match="MINE"):
        key_in({}, "MINE")
    with pytest.raises(BadInput, match="white space") as caught:
        key_in({KEY: "two words"}, None)
    assert "two words" not in str(caught.value)


def test_an_engine_process_finds_its_endpoint_in_its_environment() -> None:
    endpoint = Endpoint(url="http://h/v1", max_concurrency=3, renamed={"a": "b:c"})
    assert from_environ(endpoint.environ("k")) == (endpoint, "k")
    with pytest.raises(BadInput, match="no endpoint"):
        from_environ({})


def test_a_request_that_is_not_admitted_is_the_requests_own_fault(on: Callable[..., Asked]) -> None:
    asked = on().load()
    for wrong in ({"prompt": "  "}, {"model": "lab/none"}):
        with pytest.raises(SymposiaError) as caught:
            asked.ask(**wrong)
        assert not isinstance(caught.value, PromptTooLong)
    asked.ask()
    with pytest.raises(BadInput, match="in flight"):
        asked.ask()


def test_half_an_emoji_does_not_spoil_an_answer(server: StandIn, on: Callable[..., Asked]) -> None:
    server.always = lambda seen: streamed(b'data: {"choices": [{"delta": {"content": "a\\ud83d"}, "finish_reason": "stop"}]}\n\n', DONE)
    done = on(server="openai").load().ask(stream=True).done()
    assert done.text == "a\ufffd"
    assert done.to_json()


