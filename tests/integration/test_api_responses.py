"""``/v1/responses``, driven by OpenAI's own client as it is published: its whole life, sync and async."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from stack import Stack, wait_for

from symposia_shared.ledger.tenants import Keys

TEAM = "ensemble:test/say:42,test/say:It is 42,test/say:41;early_stop=false;answer_kind=number"
#: the last stage's words are the verdict, and come at 300 ms each
CHAIN = "pipeline:test/say:draft,test/slow:600"


def told(events: Any) -> list[dict[str, Any]]:
    """The events of a stream as plain mappings."""
    return [e.to_dict() for e in events]


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")


def ended(client: OpenAI, response_id: str) -> Any:
    return wait_for(lambda: (r := client.responses.retrieve(response_id)).status not in ("queued", "in_progress") and r)


def test_a_response_is_answered_kept_and_read_again(client: OpenAI) -> None:
    made = client.responses.create(model="test/echo", input="one two three", instructions="Be short.", metadata={"order": "7"}, max_output_tokens=50)
    assert (made.object, made.status, made.background) == ("response", "completed", False)
    assert made.output_text.endswith("one two three")
    assert made.usage is not None
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
    again = client.responses.retrieve(made.id)
    assert again.to_dict() == made.to_dict()
    assert (again.metadata, again.instructions, again.max_output_tokens) == ({"order": "7"}, "Be short.", 50)


def test_a_conversation_goes_on_with_the_response_before(client: OpenAI) -> None:
    first = client.responses.create(model="test/say:blue", input="Which colour?", instructions="Answer in a word.")
    second = client.responses.create(model="test/echo", input="And why?", previous_response_id=first.id)
    items = client.responses.input_items.list(second.id, order="asc").data
    said = [(i.role, i.content[0].text) for i in items]  # type: ignore[union-attr]
    assert said == [("user", "Which colour?"), ("assistant", "blue"), ("user", "And why?")]
    assert second.previous_response_id == first.id
    newest = client.responses.input_items.list(second.id, limit=1)
    assert newest.has_more is True
    assert newest.data[0].content[0].text == "And why?"  # type: ignore[union-attr]
    assert [i.id for i in newest] == [i.id for i in reversed(items)]  # the client pages by itself
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model="test/echo", input="?", previous_response_id="resp_" + "0" * 32)


def test_an_answer_cut_short_is_incomplete(client: OpenAI) -> None:
    made = client.responses.create(model="test/echo", input="one two three", max_output_tokens=2)
    assert made.status == "incomplete"
    assert made.incomplete_details is not None
    assert made.incomplete_details.reason == "max_output_tokens"
    assert made.output_text == "one two"


def test_a_stream_has_openai_s_events_numbered_without_a_gap(client: OpenAI) -> None:
    events = told(client.responses.create(model="test/slow:900", input="?", stream=True))
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    assert [e["type"] for e in events if not e["type"].endswith("text.delta")] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added", "response.output_text.done",
        "response.content_part.done", "response.output_item.done", "response.completed"]
    assert text_of(events) == "slow 900"
    assert sum(e["type"] == "response.output_text.delta" for e in events) == 2
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "slow 900"


def test_the_stream_of_the_client_s_own_helper_ends_with_the_response(client: OpenAI) -> None:
    with client.responses.stream(model="test/slow:300", input="?") as events:
        for _ in events:
            pass
        assert events.get_final_response().output_text == "slow 300"
    with client.responses.stream(model=TEAM, input="6*7?") as events:
        assert "response.symposia.round" in [e.type for e in events]
        assert events.get_final_response().output_text == "42"


def test_a_background_response_is_polled_and_its_stream_resumed_anywhere(client: OpenAI, stack: Stack) -> None:
    made = client.responses.create(model="test/slow:1500", input="?", background=True)
    assert made.status in ("queued", "in_progress")  # as soon as a pool has claimed it
    live = told(client.responses.retrieve(made.id, stream=True))
    assert text_of(live) == "slow 1500"
    assert ended(client, made.id).output_text == "slow 1500"
    whole = told(client.responses.retrieve(made.id, stream=True))
    assert [e["type"] for e in whole] == [e["type"] for e in live]
    assert whole[1]["type"] == "response.queued"
    for after in (0, 3, len(whole) - 1):
        rest = told(client.responses.retrieve(made.id, stream=True, starting_after=after))
        assert [(e["type"], e["sequence_number"]) for e in rest] == [(e["type"], e["sequence_number"]) for e in whole[after + 1:]]


def test_a_stream_that_is_cut_goes_on_after_the_api_was_killed(client: OpenAI, stack: Stack) -> None:
    # Given a background response whose first word was read
    stream = client.responses.create(model=f"test/slow:{5000}", input="?", background=True, stream=True)
    seen: list[dict[str, Any]] = []
    for event in stream:
        seen.append(event.to_dict())
        if event.type == "response.output_text.delta":
            break
    stream.close()
    response_id, after = seen[0]["response"]["id"], seen[-1]["sequence_number"]
    # When the API is killed and comes back
    stack.kill("api")
    # Then the rest comes, and nothing twice
    rest = wait_for(lambda: told(client.responses.retrieve(response_id, stream=True, starting_after=after)))
    assert [e["sequence_number"] for e in seen + rest] == list(range(len(seen) + len(rest)))
    assert text_of(seen + rest) == "slow 5000"
    assert rest[-1]["type"] == "response.completed"


def test_a_background_response_is_cancelled_another_is_not(client: OpenAI) -> None:
    made = client.responses.create(model="test/slow:120000", input="?", background=True)
    assert client.responses.cancel(made.id).status == "cancelled"
    assert ended(client, made.id).status == "cancelled"
    last = told(client.responses.retrieve(made.id, stream=True))[-1]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "cancelled")
    done = client.responses.create(model="test/echo", input="x")
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(done.id)


def test_a_collaboration_streams_its_rounds_then_its_verdict_as_it_is_written(client: OpenAI) -> None:
    events = told(client.responses.create(model=CHAIN, input="Write.", stream=True))
    kinds = [e["type"] for e in events]
    # the round of the draft is told before the verdict is begun, that of the last stage after it
    rounds = [at for at, kind in enumerate(kinds) if kind == "response.symposia.round"]
    words = [at for at, kind in enumerate(kinds) if kind == "response.output_text.delta"]
    assert len(rounds) == len(words) == 2
    assert rounds[0] < words[0] < words[1] < rounds[1] < kinds.index("response.completed")
    assert text_of(events) == "slow 600"
    assert events[rounds[0]]["symposia"]["replies"][0]["text"] == "draft"
    # and told again from the record it is the same
    again = told(client.responses.retrieve(events[0]["response"]["id"], stream=True))
    assert [(e["type"], e.get("delta")) for e in again] == [(e["type"], e.get("delta")) for e in events]


def test_a_vote_s_verdict_comes_after_its_rounds_with_votes_and_bill(client: OpenAI) -> None:
    events = told(client.responses.create(model=TEAM, input="6*7?", stream=True))
    assert [e["type"] for e in events].index("response.symposia.round") < [e["type"] for e in events].index("response.output_text.delta")
    assert text_of(events) == "42"
    extra = events[-1]["response"]["symposia"]
    assert (extra["agreed"], len(extra["votes"]), extra["rounds"]) == (True, 3, 1)
    no = client.responses.create(model=f"{TEAM};consensus=all_agree", input="6*7?")
    assert no.output[0].content[0].type == "refusal"  # type: ignore[union-attr]


def test_the_first_word_of_a_synthesis_is_sent_before_the_last_is_written(client: OpenAI) -> None:
    """In chats too: the pieces come while the last stage speaks, so more than one of them, and the second before the round is closed."""
    pieces: list[dict[str, Any]] = []
    said, rounds_before_end = [], 0
    for chunk in client.chat.completions.create(model=CHAIN, messages=[{"role": "user", "content": "Write."}], stream=True):
        pieces.append(chunk.to_dict())
        if chunk.choices[0].delta.content:
            said.append(chunk.choices[0].delta.content)
            rounds_before_end = sum(1 for p in pieces if "round" in (p.get("symposia") or {}))
    assert said == ["slow", " 600"]
    assert rounds_before_end == 1
    assert pieces[-1]["choices"][0]["finish_reason"] == "stop"


def test_log_probabilities_are_included_where_they_are_asked_for(client: OpenAI) -> None:
    made = client.responses.create(model="test/echo", input="one two", include=["message.output_text.logprobs"], top_logprobs=1)
    part: Any = made.output[0].content[0]  # type: ignore[union-attr]
    assert [t.token for t in part.logprobs] == ["one", " two"]


@pytest.mark.parametrize(("body", "param"), [
    ({"tools": [{"type": "web_search"}]}, "tools"), ({"tool_choice": "required"}, "tool_choice"), ({"no_such": 1}, "no_such"), ({"input": None}, "input"),
    ({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}, "input"), ({"truncation": "auto"}, "truncation"),
    ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "https://x/y.png"}]}]}, "input"),
    ({"reasoning": {"effort": "low"}}, "reasoning"), ({"conversation": "conv_1"}, "conversation"), ({"prompt": {"id": "x"}}, "prompt"),
    ({"include": ["reasoning.encrypted_content"]}, "include"), ({"background": True, "store": False}, "store"), ({"metadata": {"a": 1}}, "metadata"),
    ({"max_output_tokens": 0}, "max_output_tokens"), ({"temperature": -1}, "temperature"), ({"model": None}, "model"), ({"model": "debate:test/echo"}, "model"),
    ({"text": {"format": {"type": "grammar"}}}, "text.format"), ({"text": {"verbosity": "low"}}, "text"), ({"max_tool_calls": 3}, "max_tool_calls"),
    ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}}}}, "text"),  # test/echo cannot
    ({"input": " "}, "input"), ({"top_logprobs": 2}, "top_logprobs"), ({"stream": "x"}, "stream"),
])
def test_what_is_not_supported_is_refused_by_name(raw: httpx.Client, body: dict[str, Any], param: str) -> None:
    answer = raw.post("/responses", json={"model": "test/echo", "input": "?", **body})
    assert answer.status_code == 400, answer.text
    assert (answer.json()["error"]["type"], answer.json()["error"]["param"]) == ("invalid_request_error", param), answer.text


def test_another_tenant_sees_no_response(client: OpenAI, stack: Stack, url: str) -> None:
    made = client.responses.create(model="test/echo", input="secret")
    other, _ = Keys(stack.client.ledger).create("other")
    with OpenAI(base_url=url, api_key=other, max_retries=0) as stranger:
        for act in (stranger.responses.retrieve, stranger.responses.cancel, stranger.responses.delete, stranger.responses.input_items.list):
            with pytest.raises(openai.NotFoundError):
                act(made.id)
        with pytest.raises(openai.NotFoundError):
            stranger.responses.create(model="test/echo", input="?", previous_response_id=made.id)


def test_a_response_asked_for_again_under_its_key_is_the_same_response(client: OpenAI) -> None:
    asked: dict[str, Any] = {"model": "test/garbage", "input": "once", "temperature": 1.0, "extra_headers": {"Idempotency-Key": "responses-once"}}
    first, second = client.responses.create(**asked), client.responses.create(**asked)
    assert first.to_dict() == second.to_dict()
    streamed = told(client.responses.create(model="test/slow:300", input="?", stream=True, extra_headers={"Idempotency-Key": "responses-streamed"}))
    again = told(client.responses.create(model="test/slow:300", input="?", stream=True, extra_headers={"Idempotency-Key": "responses-streamed"}))
    assert again == streamed
    left = [client.responses.create(model="test/slow:300", input="?", background=True, extra_headers={"Idempotency-Key": "responses-left"}).id for _ in "ab"]
    assert left[0] == left[1]


def test_the_async_client_does_the_same(url: str, key: str) -> None:
    async def life() -> tuple[str, str, str, str]:
        async with AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:
            whole = await client.responses.create(model="test/echo", input="hello there")
            streamed = ""
            async for event in await client.responses.create(model="test/slow:300", input="?", stream=True):
                streamed += event.delta if event.type == "response.output_text.delta" else ""
            left = await client.responses.create(model="test/slow:120000", input="?", background=True)
            cancelled = await client.responses.cancel(left.id)
            async with client.responses.stream(model="test/slow:300", input="?") as events:
                final = await events.get_final_response()
            return whole.output_text, streamed, str(cancelled.status), final.output_text

    assert asyncio.run(life()) == ("hello there", "slow 300", "cancelled", "slow 300")
