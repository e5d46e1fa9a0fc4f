"""Jobs of one turn besides a plain prompt: vectors, scores, choices, and what is refused at submit."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path

import pytest
from stack import Stack

from symposia import AsyncClient, BadInput, ChoiceForm, Embedding, Ensemble, Inference, JsonForm, Member, Message, Sampling
from symposia_shared.settings import load


def test_texts_become_vectors_of_length_one_that_repeat(stack: Stack) -> None:
    vectors = stack.client.embed(["a red fox", "a red wolf", "prime numbers"], model="test/echo", timeout=30)
    assert [len(v) for v in vectors] == [32] * 3
    assert all(math.isclose(math.hypot(*v), 1.0, abs_tol=1e-6) for v in vectors)
    assert vectors == stack.client.embed(["a red fox", "a red wolf", "prime numbers"], model="test/echo", timeout=30)
    alike, unlike = (math.sumprod(vectors[0], v) if hasattr(math, "sumprod") else sum(a * b for a, b in zip(vectors[0], v, strict=True))
                     for v in vectors[1:])
    assert alike > unlike
    assert stack.client.embed([], model="test/echo") == []


def test_more_texts_than_one_job_holds_come_back_in_their_order(stack: Stack) -> None:
    texts = [f"text number {i}" for i in range(2100)]
    vectors = stack.client.embed(texts, model="test/echo", timeout=60)
    assert len(vectors) == 2100
    assert vectors[2099] == stack.client.embed([texts[2099]], model="test/echo", timeout=30)[0]


def test_an_embedding_is_committed_once_by_its_pool_and_billed(stack: Stack) -> None:
    before = stack.settled_stats()
    handle = stack.client.submit(Embedding(model="test/echo", texts=("one two", "three")))
    found = handle.result(30)
    assert found.answer is None
    assert found.completion is not None
    assert found.completion.vectors is not None
    assert (len(found.completion.vectors), found.bill.calls, found.bill.prompt_tokens, found.bill.completion_tokens) == (2, 1, 3, 0)
    stored = stack.client.archive.store.get(f"jobs/{found.job_id}/result.json")
    assert stored is not None
    assert json.loads(stored)["job"]["kind"] == "embedding"
    after = stack.since_of(before)
    assert (after["jobs_done"], after["calls_started"], after["calls_recorded"]) == (1, 1, 1)


def test_a_score_is_the_sum_of_its_tokens_and_prefers_words_of_the_prompt(stack: Stack) -> None:
    near = stack.client.score("the fox", model="test/echo", given="tell me of the fox", timeout=30)
    far = stack.client.score("the bear", model="test/echo", given="tell me of the fox", timeout=30)
    assert near.total == pytest.approx(sum(t.logprob for t in near.tokens))
    assert near.mean == pytest.approx(near.total / 2)
    assert near.total > far.total
    assert stack.client.score("alone", model="test/echo", timeout=30).tokens[0].token == "alone"


def test_a_choice_reports_each_options_probability(stack: Stack) -> None:
    job = Inference(model="test/say:I would say no", prompt="?", sampling=Sampling(form=ChoiceForm(options=("yes", "no"))))
    reply = stack.client.submit(job).result(30).completion
    assert reply is not None
    assert reply.text == "no"
    assert reply.options is not None
    assert sum(reply.options.values()) == pytest.approx(1.0)
    assert reply.options["no"] > reply.options["yes"]


def test_what_a_placed_checkpoint_cannot_do_is_refused_and_nothing_is_recorded(stack: Stack) -> None:
    ledger = stack.client.ledger
    ledger.place("elsewhere", {"writer": {"queue": "turns.writer", "capabilities": ["generate", "choice"]},
                               "encoder": {"queue": "turns.encoder", "capabilities": ["embed"]},
                               "t5": {"queue": "turns.t5", "capabilities": ["seq2seq"]}})
    before = stack.stats()["jobs_submitted"]
    three = [Member(model="writer"), Member(model="encoder"), Member(model="writer")]
    try:
        with pytest.raises(BadInput, match=r"writer cannot embed texts.*encoder, test/\*"):
            stack.client.embed(["x"], model="writer")
        with pytest.raises(BadInput, match="encoder cannot write text"):
            stack.client.ask("x", model="encoder")
        with pytest.raises(BadInput, match="writer cannot score a text"):
            stack.client.score("x", model="writer")
        with pytest.raises(BadInput, match="writer cannot fill a hole"):
            stack.client.submit(Inference(model="writer", prompt="x", suffix="y"))
        with pytest.raises(BadInput, match="keep to a JSON schema") as caught:
            stack.client.submit(Inference(model="test/echo", prompt="x", sampling=Sampling(form=JsonForm())))
        assert caught.value.field == "sampling.form"
        with pytest.raises(BadInput, match="encoder cannot write text"):
            stack.client.submit(Ensemble(prompt="x", members=three))
        assert stack.stats()["jobs_submitted"] == before
        stack.client.submit(Inference(model="t5", prompt="a seq2seq checkpoint writes, too")).cancel()
    finally:
        ledger.run("place", "elsewhere", "", "")


def test_the_async_client_embeds_and_scores(stack: Stack) -> None:
    async def main() -> tuple[list[list[float]], float]:
        async with AsyncClient(settings=load(stack.folder)) as client:
            return await client.embed(["x"], model="test/echo", timeout=30), (await client.score("a b", model="test/echo", timeout=30)).total

    vectors, total = asyncio.run(main())
    assert len(vectors[0]) == 32
    assert total < 0


def test_embed_score_and_ask_from_the_shell(stack: Stack, tmp_path: Path) -> None:
    found = stack.json("embed", "one", "two", "--model", "test/echo")
    assert (found["count"], found["dimensions"], len(found["vectors"])) == (2, 32, 2)
    (tmp_path / "texts.txt").write_text("one\n\ntwo\n")
    out = tmp_path / "out.jsonl"
    stack.run("embed", "--file", str(tmp_path / "texts.txt"), "--model", "test/echo", "-o", str(out))
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(x["index"], x["text"]) for x in lines] == [(0, "one"), (1, "two")]
    assert [x["embedding"] for x in lines] == found["vectors"]
    assert "Name one with --model" in stack.run("embed", "x", expect=2).stderr
    assert "no text to embed" in stack.run("embed", "--model", "test/echo", expect=2).stderr
    scored = stack.json("score", "a fox", "--given", "a fox", "--model", "test/echo")
    assert scored["total"] == pytest.approx(-0.5)
    assert len(scored["tokens"]) == 2
    assert "mean\t-0.2500" in stack.run("score", "a fox", "--given", "a fox", "--model", "test/echo").stdout


def test_the_shell_shows_options_and_logprobs_and_refuses_two_forms(stack: Stack, tmp_path: Path) -> None:
    shown = stack.run("ask", "is it? yes", "--model", "test/echo", "--choice", "yes", "--choice", "no").stdout
    assert "%  yes" in shown
    assert "%  no" in shown
    told = stack.json("ask", "two words", "--model", "test/echo", "--logprobs", "1")["rounds"][0]["turns"][0]["reply"]
    assert [t["token"] for t in told["logprobs"]] == ["two", " words"]
    assert told["logprob_mean"] == 0.0
    assert "0.000  ' words'   [' words' 0.000]" in stack.run("ask", "two words", "--model", "test/echo", "--logprobs", "1").stdout
    (tmp_path / "schema.json").write_text('{"type": "object"}')
    both = ("--choice", "a", "--json-schema", str(tmp_path / "schema.json"))
    assert "one of --choice" in stack.run("ask", "x", "--model", "test/echo", *both, expect=2).stderr
    assert "JSON schema" in stack.run("ask", "x", "--model", "test/echo", "--json-schema", str(tmp_path / "schema.json"), expect=2).stderr
    assert "fill a hole" in stack.run("ask", "x", "--model", "test/echo", "--suffix", "y", expect=2).stderr
    assert stack.json("ask", "as it stands", "--model", "test/echo", "--raw")["job"]["raw"] is True


def test_many_vectors_take_the_way_through_s3(stack: Stack) -> None:
    found = stack.client.submit(Embedding(model="test/echo", texts=tuple(f"text {i} " + "x" * 200 for i in range(300)))).result(60)
    assert found.completion is not None
    assert found.completion.vectors is not None
    assert len(found.completion.vectors) == 300


def test_a_conversation_is_scored_by_its_last_message(stack: Stack) -> None:
    messages = (Message(role="user", content="a b"), Message(role="assistant", content="b c"))
    reply = stack.client.submit(Inference(model="test/echo", messages=messages, want="score")).result(30).completion
    assert reply is not None
    assert reply.text == "b c"
    assert [t.logprob for t in reply.logprobs or ()] == [-0.25, -1.25]


def test_a_long_answer_to_a_single_prompt_is_written_to_s3_with_its_result_alone(stack: Stack) -> None:
    handle = stack.client.submit(Inference(model="test/echo", prompt="a word " * 300))
    found = handle.result(30)
    assert found.completion is not None
    assert len(found.completion.to_json()) > 512
    keys = list(stack.client.archive.store.keys(f"jobs/{handle.job_id}/"))
    assert f"jobs/{handle.job_id}/result.json" in keys
    assert not [key for key in keys if "/replies/" in key]
