"""The engine ``openai`` against a real server: llama.cpp's own, with a tiny model; through the engine process and beside it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("xllamacpp", reason="llama.cpp's server comes with pip install 'symposia[test]'")
pytest.importorskip("gguf", reason="the tiny model is written with gguf, of pip install 'symposia[worker]'")

from llamacpp import CONTEXT, llamacpp_server, tiny_gguf
from symposia_shared.errors import BadInput
from symposia_shared.prompts import ChoiceForm, Form, JsonForm, RegexForm, Sampling, user
from symposia_shared.turns import Abstention, Completion, Turn, Want
from symposia_worker.engines.client import EngineProcess, engine_environ
from symposia_worker.engines.openai.endpoint import ENDPOINT, KEY, Endpoint

SECRET = "sk-very-secret-0123456789"
SCHEMA = {"type": "object", "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 2]}}, "required": ["ok", "n"], "additionalProperties": False}


class Pool:
    """An engine process on an endpoint."""

    def __init__(self, url: str, **fields: Any) -> None:
        self.endpoint = Endpoint(url=url, **fields)
        self.deaths: list[list[str]] = []
        self.engine = EngineProcess(self.endpoint.device, 1 << 30, on_death=self.deaths.append, environ=self.endpoint.environ(SECRET))
        self.engine.start()
        self.replies: dict[str, list[Completion | Abstention]] = {}
        self.shown: dict[str, list[str]] = {}
        self.firsts: dict[str, float] = {}

    def ask(self, name: str, prompt: str = "The quick brown fox", *, model: str = "lab/tiny", want: Want = "completion", raw: bool = False,
            **sampling: Any) -> None:
        turn = Turn(member="m", model=model, messages=user(prompt), sampling=Sampling(**sampling), want=want, raw=raw)
        self.replies[name], self.shown[name] = [], []
        self.engine.generate(name, turn, lambda at: self.firsts.__setitem__(name, at), self.replies[name].append, on_delta=self.shown[name].append)

    def reply(self, name: str) -> Completion | Abstention:
        until(lambda: bool(self.replies[name]))
        return self.replies[name][0]

    def done(self, name: str) -> Completion:
        reply = self.reply(name)
        assert isinstance(reply, Completion), reply
        return reply


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit, "it did not happen"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def url(gguf: Path) -> Iterator[str]:
    with llamacpp_server(gguf, "lab/tiny") as url:
        yield url


@pytest.fixture(scope="module")
def pool(url: str) -> Iterator[Pool]:
    pool = Pool(url, max_concurrency=4)
    loaded = pool.engine.load("lab/tiny", engine="openai")
    assert (loaded.family, loaded.context, loaded.instruct) == ("llamacpp", CONTEXT, True)
    assert loaded.parameters > 100_000
    assert set(loaded.capabilities) == {"generate", "instruct", "json_schema", "choice"}
    yield pool
    pool.engine.stop()


def test_a_real_server_answers_with_tokens_counted_shown_and_weighed(pool: Pool) -> None:
    pool.ask("a", max_tokens=12, logprobs=2)
    done = pool.done("a")
    assert done.text
    assert "".join(pool.shown["a"]) == done.text
    assert (done.usage.completion_tokens, done.finish_reason) == (12, "length")
    assert done.usage.prompt_tokens > 4
    assert done.logprobs is not None
    assert (len(done.logprobs), {len(t.top) for t in done.logprobs}) == (12, {2})
    assert all(t.top[0][1] == pytest.approx(t.logprob) for t in done.logprobs)  # greedy takes the likeliest
    assert done.logprob_mean == pytest.approx(sum(t.logprob for t in done.logprobs) / 12)
    assert done.timing.first_token_at == pool.firsts["a"]
    pool.ask("streamed", max_tokens=12)
    assert pool.done("streamed").text == done.text
    assert pool.done("streamed").logprobs is None


def test_greedy_answers_are_the_same_whatever_shares_the_server(pool: Pool) -> None:
    pool.ask("alone", max_tokens=20)
    alone = pool.done("alone")
    for n in range(12):
        pool.ask(f"g{n}", max_tokens=20)
        pool.ask(f"s{n}", f"prompt {n}", max_tokens=20, temperature=1.0, seed=n)
    assert {pool.done(f"g{n}").text for n in range(12)} == {alone.text}
    assert len({pool.done(f"s{n}").text for n in range(12)}) > 6
    assert pool.engine.pulse is not None
    assert not pool.engine.in_flight


def test_a_seed_draws_the_same_again(pool: Pool) -> None:
    for name, seed in (("x1", 7), ("x2", 7), ("y", 2**40 + 8)):
        pool.ask(name, max_tokens=20, temperature=1.5, seed=seed, raw=True)
    assert pool.done("x1").text == pool.done("x2").text != pool.done("y").text


def test_sampling_reaches_the_server(pool: Pool) -> None:
    pool.ask("greedy", max_tokens=16)
    pool.ask("one", max_tokens=16, temperature=2.0, top_k=1, seed=3)
    pool.ask("penalised", max_tokens=40, repetition_penalty=10.0)
    pool.ask("plain", max_tokens=40)
    assert pool.done("one").text == pool.done("greedy").text
    assert pool.done("penalised").text != pool.done("plain").text
    whole = pool.done("greedy").text
    stop = whole[5:8]
    pool.ask("stopped", max_tokens=16, stop=(stop,))
    stopped = pool.done("stopped")
    assert (stopped.text, stopped.finish_reason) == (whole[: whole.index(stop)], "stop")


@pytest.mark.parametrize(("name", "form", "raw"), [
    ("json", JsonForm(definition=SCHEMA), False), ("choice", ChoiceForm(options=("yes", "no", 'a "quoted" ü\n')), False),
    ("raw choice", ChoiceForm(options=("yes", "no")), True),
])
def test_the_server_enforces_a_form(pool: Pool, name: str, form: Form, raw: bool) -> None:
    pool.ask(name, max_tokens=200, form=form, raw=raw)
    text = pool.done(name).text
    if isinstance(form, ChoiceForm):
        assert text in form.options
    else:
        assert set(json.loads(text)) == {"ok", "n"}


def test_a_form_that_was_cut_off_is_no_answer(pool: Pool) -> None:
    pool.ask("cut", max_tokens=3, form=JsonForm(definition=SCHEMA))
    reply = pool.reply("cut")
    assert isinstance(reply, Abstention)
    assert reply.cause == "refused"
    assert "max_tokens" in reply.message


def test_a_schema_that_is_none_is_the_requests_fault(pool: Pool) -> None:
    pool.ask("schema", form=JsonForm(definition={"type": "objct"}))
    reply = pool.reply("schema")
    assert isinstance(reply, Abstention)
    assert reply.cause == "bad_prompt"


def test_what_the_server_cannot_do_abstains_before_it_is_asked(pool: Pool) -> None:
    pool.ask("regex", form=RegexForm(pattern="a+"))
    pool.ask("score", want="score")
    pool.ask("embedding", want="embedding")
    pool.ask("long", "word " * 3000)
    causes = {}
    for name in ("regex", "score", "embedding", "long"):
        reply = pool.reply(name)
        assert isinstance(reply, Abstention)
        causes[name] = reply.cause
    assert causes == {"regex": "bad_prompt", "score": "bad_prompt", "embedding": "bad_prompt", "long": "prompt_too_long"}


def test_a_cancelled_turn_frees_its_place(pool: Pool) -> None:
    for n in range(4):
        pool.ask(f"c{n}", max_tokens=400, temperature=1.0, seed=n)
    for n in range(4):
        pool.engine.cancel(f"c{n}")
    pool.ask("after", max_tokens=4)
    assert pool.done("after").usage.completion_tokens == 4
    assert {r.kind for n in range(4) for r in [pool.reply(f"c{n}")]} <= {"abstention", "completion"}


def test_an_embedding_server_embeds(gguf: Path) -> None:
    with llamacpp_server(gguf, "lab/tiny", embed=True) as url:
        pool = Pool(url)
        try:
            assert "embed" in pool.engine.load("lab/tiny", engine="openai").capabilities
            pool.ask("e", want="embedding")
            (vector,) = pool.done("e").vectors or ((),)
            assert sum(x * x for x in vector) == pytest.approx(1.0)
        finally:
            pool.engine.stop()


def test_a_server_that_dies_and_comes_back_costs_no_turn(gguf: Path) -> None:
    from urllib.parse import urlsplit

    with llamacpp_server(gguf, "lab/tiny") as url:
        pool = Pool(url)
        try:
            pool.engine.load("lab/tiny", engine="openai")
            pool.ask("before", max_tokens=8)
            before = pool.done("before")
            server_port = urlsplit(url).port
        except BaseException:
            pool.engine.stop()
            raise
    try:
        pool.ask("during", max_tokens=8)
        until(lambda: pool.engine.pulse is not None and pool.engine.pulse.repeats > 0)
        with llamacpp_server(gguf, "lab/tiny", port=server_port):
            assert pool.done("during").text == before.text
        assert pool.deaths == []
    finally:
        pool.engine.stop()


def test_no_such_model_is_a_refused_load(pool: Pool) -> None:
    with pytest.raises(BadInput, match="it lists lab/tiny"):
        pool.engine.load("lab/other", engine="openai")


def test_a_process_of_another_device_has_no_engine_for_endpoints() -> None:
    engine = EngineProcess("cpu", 1 << 30)
    engine.start()
    try:
        with pytest.raises(BadInput, match="no endpoint"):
            engine.load("lab/tiny", engine="openai")
    finally:
        engine.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_key_is_in_one_engine_process_and_on_no_command_line(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path(f"/proc/{pool.engine.pid}")
    assert f"{KEY}={SECRET}".encode() in own.joinpath("environ").read_bytes().split(b"\0")
    assert SECRET.encode() not in own.joinpath("cmdline").read_bytes()
    monkeypatch.setenv(KEY, SECRET)
    monkeypatch.setenv("MY_PROVIDER_API_KEY", SECRET)
    monkeypatch.setenv(ENDPOINT, "{}")
    assert not {KEY, ENDPOINT, "MY_PROVIDER_API_KEY"} & set(engine_environ(1))
    assert SECRET not in "".join(engine_environ(1).values())


def test_a_process_on_an_endpoint_loads_no_torch(pool: Pool) -> None:
    if sys.platform == "linux":
        assert "libtorch" not in Path(f"/proc/{pool.engine.pid}/maps").read_text()
