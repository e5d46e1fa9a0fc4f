"""LangChain, unmodified, against the HTTP API: chat models and embeddings of scripted checkpoints, structured output of one of the torch engine."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel
from stack import Stack, running_stack

from checkpoints import facts
from symposia.cli.info import running
from symposia_worker.models.store import ModelStore
from tiny import tiny_checkpoint

TEAM = "ensemble:test/say:42,test/say:It is 42,test/say:41;early_stop=false;answer_kind=number"


def access(stack: Stack) -> dict[str, Any]:
    """What a LangChain class needs to find the API."""
    return {"base_url": str(running(stack.folder)["api"]), "api_key": json.loads((stack.folder / "credentials.json").read_text())["api_key"]}


def chat(stack: Stack, model: str = "test/echo", **more: Any) -> ChatOpenAI:
    return ChatOpenAI(model=model, max_retries=0, timeout=60, **access(stack), **more)


def test_a_chat_model_is_invoked_with_usage_and_metadata(stack: Stack) -> None:
    answer = chat(stack, temperature=0, max_tokens=50, seed=1, stop=["four"]).invoke([SystemMessage("Be brief."), HumanMessage("one two three four")])
    assert answer.text == "one two three "
    assert answer.usage_metadata is not None
    assert (answer.usage_metadata["output_tokens"], answer.usage_metadata["total_tokens"]) == (4, 10)  # the one it was stopped at was made
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.response_metadata["model_name"] == "test/echo"


def test_it_streams_and_batches_and_is_awaited(stack: Stack) -> None:
    slow = chat(stack, "test/slow:600", stream_usage=True)
    chunks = list(slow.stream("?"))
    assert "".join(c.text for c in chunks) == "slow 600"
    assert [c.usage_metadata["output_tokens"] for c in chunks if c.usage_metadata] == [2]
    assert [a.text for a in chat(stack).batch([f"n{i}" for i in range(10)])] == [f"n{i}" for i in range(10)]

    async def awaited() -> tuple[str, str]:
        model = chat(stack)
        return (await model.ainvoke("hello")).text, "".join([c.text async for c in model.astream("there")])

    assert asyncio.run(awaited()) == ("hello", "there")


def test_a_collaboration_stands_in_a_chain(stack: Stack) -> None:
    chain = ChatPromptTemplate.from_messages([("system", "Answer with a number."), ("user", "How much is {a} times {b}?")]) | chat(stack, TEAM)
    assert chain.invoke({"a": 6, "b": 7}).text == "42"
    assert "".join(c.text for c in chain.stream({"a": 6, "b": 7})) == "42"


def test_choices_and_log_probabilities_come_through(stack: Stack) -> None:
    answer = chat(stack, logprobs=True, top_logprobs=1).invoke("one two")
    assert [t["token"] for t in answer.response_metadata["logprobs"]["content"]] == ["one", " two"]
    generated = chat(stack, "test/garbage", n=2, seed=7, temperature=1).generate([[HumanMessage("?")]])
    assert len({g.text for g in generated.generations[0]}) == 2


def test_our_own_fields_go_in_the_extra_body(stack: Stack) -> None:
    model = chat(stack, temperature=0, extra_body={"reuse": True}, default_headers={"Idempotency-Key": os.urandom(8).hex()})
    first, again = model.invoke("kept"), model.invoke("kept")
    assert first.text == again.text == "kept"
    assert first.id.partition("--")[0] == again.id.partition("--")[0]
    assert first.response_metadata["id"] == again.response_metadata["id"]


def test_embeddings_of_texts(stack: Stack) -> None:
    # LangChain would cut long texts into OpenAI's tokens, which no other checkpoint has: it is told not to
    model = OpenAIEmbeddings(model="test/echo", check_embedding_ctx_length=False, **access(stack))
    vectors = model.embed_documents(["a red fox", "a red wolf"])
    assert [len(v) for v in vectors] == [32, 32]
    assert model.embed_query("a red fox") == pytest.approx(vectors[0], rel=1e-6)
    assert asyncio.run(model.aembed_query("a red fox")) == pytest.approx(vectors[0], rel=1e-6)


def test_tools_are_refused_by_name(stack: Stack) -> None:
    def weather(city: str) -> str:
        """The weather of a city."""
        return city

    with pytest.raises(openai.BadRequestError, match="'tools' is not supported"):
        chat(stack).bind_tools([weather]).invoke("?")


class Verdict(BaseModel):
    """Whether a statement is true."""

    true: bool
    colour: Literal["red", "green"]


@pytest.fixture(scope="module")
def model_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that serves a checkpoint of the torch engine, which enforces forms as it does for any other: small, and of random weights."""
    with running_stack(tmp_path_factory.mktemp("langchain"), "--no-flower") as stack:
        folder = tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "llama", "llama", chat=True, max_position_embeddings=1024)
        ModelStore(stack.client.archive.store).push(folder, "lab/tiny", facts=facts(context=1024, capabilities=("generate", "instruct")))
        stack.run("models", "serve", "lab/tiny")
        yield stack


def test_structured_output_is_what_the_schema_says_and_seeded_answers_are_kept(model_stack: Stack) -> None:
    model = chat(model_stack, "lab/tiny", temperature=0, max_tokens=300)
    assert isinstance(model.with_structured_output(Verdict).invoke("Is grass green?"), Verdict)
    raw: Any = model.with_structured_output(Verdict, include_raw=True).invoke("Is snow red?")
    assert isinstance(raw["parsed"], Verdict)
    mode: Any = model.with_structured_output(Verdict, method="json_mode", include_raw=True).invoke("Write JSON.")
    assert mode["raw"].text.lstrip().startswith("{")
    with openai.OpenAI(**access(model_stack)) as client:
        parsed = client.chat.completions.parse(model="lab/tiny", messages=[{"role": "user", "content": "Is blood red?"}], response_format=Verdict,
                                               temperature=0, max_tokens=300)
        assert isinstance(parsed.choices[0].message.parsed, Verdict)
        first, again = (client.chat.completions.create(model="lab/tiny", messages=[{"role": "user", "content": "Say a word."}], temperature=1, seed=3,
                                                       max_tokens=5, extra_body={"reuse": True}) for _ in range(2))
        assert first.choices == again.choices
        assert again.model_extra is not None
        assert again.model_extra["symposia"]["reused"] == 1
