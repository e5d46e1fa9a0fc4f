"""The HTTP API, driven by OpenAI's own client as it is published, and by raw HTTP where that would not send what is wrong."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from stack import Stack, clean_environ, wait_for
from typer.testing import CliRunner

from symposia.api.app import make
from symposia.cli import build
from symposia_shared.ledger.tenants import Keys

TEAM = "ensemble:test/say:42,test/say:It is 42,test/say:41;early_stop=false;answer_kind=number"
DEBATE = "debate:test/say:1,test/say:2;rounds=2;early_stop=false;answer_kind=number"


def ask(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def extra(answer: Any) -> dict[str, Any]:
    """Our field of an answer."""
    found: dict[str, Any] = answer.model_extra["symposia"]
    return found


def test_a_chat_is_answered_with_usage(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="test/echo", messages=ask("one two three"))
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.content == "one two three"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (3, 3, 6)


def test_stop_and_max_tokens_end_an_answer(client: OpenAI) -> None:
    stopped = client.chat.completions.create(model="test/echo", messages=ask("one two three four"), stop=["three"])
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == ("one two ", "stop")
    for most in ({"max_tokens": 2}, {"max_completion_tokens": 2}):
        cut = client.chat.completions.create(model="test/echo", messages=ask("one two three four"), **most)  # type: ignore[call-overload]
        assert (cut.choices[0].message.content, cut.choices[0].finish_reason) == ("one two", "length")


def test_n_answers_are_drawn_with_seeds_of_their_own_and_come_again(client: OpenAI) -> None:
    def drawn() -> list[str | None]:
        answer = client.chat.completions.create(model="test/garbage", messages=ask("?"), n=3, seed=7, temperature=1.0)
        assert [c.index for c in answer.choices] == [0, 1, 2]
        return [c.message.content for c in answer.choices]

    first = drawn()
    assert len(set(first)) == 3
    assert drawn() == first


def test_log_probabilities_come_by_token(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="test/echo", messages=ask("one two"), logprobs=True, top_logprobs=1)
    assert answer.choices[0].logprobs is not None
    assert [t.token for t in answer.choices[0].logprobs.content or ()] == ["one", " two"]


def test_a_text_is_gone_on_with(client: OpenAI) -> None:
    answer = client.completions.create(model="test/echo", prompt=["one two", "three"], max_tokens=5)
    assert [c.text for c in answer.choices] == ["one two", "three"]


def test_a_stream_comes_in_pieces_that_are_the_recorded_text(client: OpenAI, stack: Stack) -> None:
    pieces, ids = [], set()
    for chunk in client.chat.completions.create(model="test/slow:1500", messages=ask("?"), stream=True, stream_options={"include_usage": True}):
        ids.add(chunk.id)
        pieces.append(chunk)
    texts = [c.choices[0].delta.content for c in pieces if c.choices and c.choices[0].delta.content]
    assert "".join(texts) == "slow 1500"
    assert len(texts) > 1, "it came in one piece"
    assert [c.choices[0].finish_reason for c in pieces if c.choices][-1] == "stop"
    assert pieces[0].choices[0].delta.role == "assistant"
    assert pieces[-1].usage is not None
    assert pieces[-1].usage.completion_tokens == 2
    assert len(ids) == 1


def test_two_choices_and_a_text_can_be_streamed(client: OpenAI) -> None:
    said = ["", ""]
    for chunk in client.completions.create(model="test/echo", prompt="one two three", n=2, max_tokens=3, stream=True):
        said[chunk.choices[0].index] += chunk.choices[0].text
    assert said == ["one two three"] * 2


def test_the_async_client_does_the_same(url: str, key: str) -> None:
    async def both() -> tuple[str | None, str, list[str]]:
        async with AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:
            whole = await client.chat.completions.create(model="test/echo", messages=ask("hello there"))
            streamed = ""
            async for chunk in await client.chat.completions.create(model="test/slow:300", messages=ask("?"), stream=True):
                streamed += chunk.choices[0].delta.content or ""
            many = await asyncio.gather(*(client.chat.completions.create(model="test/echo", messages=ask(f"n{i}")) for i in range(20)))
            return whole.choices[0].message.content, streamed, [m.choices[0].message.content or "" for m in many]

    assert asyncio.run(both()) == ("hello there", "slow 300", [f"n{i}" for i in range(20)])


def test_embeddings_are_the_same_as_floats_and_as_base64(client: OpenAI, raw: httpx.Client) -> None:
    vectors = client.embeddings.create(model="test/echo", input=["one", "two"], encoding_format="float")
    packed = raw.post("/embeddings", json={"model": "test/echo", "input": ["one", "two"], "encoding_format": "base64"}).json()
    usual = client.embeddings.create(model="test/echo", input=["one", "two"])  # the client asks for base64 by itself
    for plain, coded, told in zip(vectors.data, packed["data"], usual.data, strict=True):
        found = struct.unpack(f"<{len(plain.embedding)}f", base64.b64decode(coded["embedding"]))
        assert list(found) == pytest.approx(plain.embedding, rel=1e-6)
        assert told.embedding == pytest.approx(plain.embedding, rel=1e-6)


def test_models_are_listed_and_found_collaborations_by_their_encoded_name(client: OpenAI, raw: httpx.Client) -> None:
    assert "test/echo" in {m.id for m in client.models.list()}
    assert client.models.retrieve("test/echo").id == "test/echo"
    assert raw.get("/models/" + quote(TEAM, safe="")).json()["symposia"]["team"]["pattern"] == "ensemble"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody/nothing")


def test_a_collaboration_is_a_model(client: OpenAI, stack: Stack, raw: httpx.Client) -> None:
    answer = client.chat.completions.create(model=TEAM, messages=ask("How much is 6 times 7?"))
    assert answer.choices[0].message.content == "42"
    told = extra(answer)
    assert (told["agreed"], told["agreement"], told["rounds"], told["bill"]["calls"]) == (True, pytest.approx(2 / 3), 1, 3)
    assert [v["answer"] for v in told["votes"]] == ["42", "42", "41"]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == told["bill"]["completion_tokens"]
    assert told["result_uri"] == f"s3://symposia/jobs/{told['job_id']}/result.json"
    job = raw.get(f"/jobs/{told['job_id']}").json()
    assert (job["status"], len(job["result"]["rounds"][0]["turns"])) == ("done", 3)
    stored = stack.client.handle(told["job_id"]).result(10)
    assert stored.job["prompt"] == "How much is 6 times 7?"


def test_a_collaborations_stream_tells_its_rounds_and_then_the_verdict(client: OpenAI, raw: httpx.Client) -> None:
    chunks = list(client.chat.completions.create(model=DEBATE, messages=ask("?"), stream=True, stream_options={"include_usage": True}))
    told = [c.model_extra["symposia"] for c in chunks if "symposia" in (c.model_extra or {})]
    assert [t["round"] for t in told if "closed_by" in t] == [0, 1]
    last = told[-1]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == last["verdict"]["answer"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens > 0
    with raw.stream("POST", "/chat/completions", json={"model": DEBATE, "messages": ask("?"), "stream": True}) as answer:
        lines = list(answer.iter_lines())
    assert [line for line in lines if line.startswith("event:")] == ["event: symposia.job", *["event: symposia.round"] * 2]
    assert [line for line in lines if line][-1] == "data: [DONE]"


def test_a_chat_becomes_one_question_for_a_collaboration(client: OpenAI, stack: Stack) -> None:
    messages: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "One?"}]
    answer = client.chat.completions.create(model=TEAM, messages=messages)
    assert stack.client.handle(extra(answer)["job_id"]).result(10).job["prompt"] == "Be brief.\n\nOne?"


def test_members_without_a_common_answer_refuse_in_a_chats_own_field(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="ensemble:test/say:1,test/say:2,test/say:3;consensus=all_agree;answer_kind=number", messages=ask("?"))
    assert answer.choices[0].message.content is None
    assert answer.choices[0].message.refusal
    assert extra(answer)["agreed"] is False


def test_a_saved_team_is_a_model_of_its_tenant_alone(client: OpenAI, raw: httpx.Client, stack: Stack, url: str) -> None:
    saved = raw.put("/teams/trio", json={"model": TEAM})
    assert saved.status_code in (200, 201)
    assert raw.get("/teams/trio").json()["pattern"] == "ensemble"
    assert client.chat.completions.create(model="trio", messages=ask("?")).choices[0].message.content == "42"
    assert "trio" in {m.id for m in client.models.list()}
    other, _ = Keys(stack.client.ledger).create("other")
    stranger = OpenAI(base_url=url, api_key=other, max_retries=0)
    with pytest.raises(openai.NotFoundError):
        stranger.chat.completions.create(model="trio", messages=ask("?"))
    assert raw.delete("/teams/trio").json()["deleted"] is True
    assert raw.get("/teams/trio").status_code == 404


def test_a_team_may_be_saved_by_its_parts_with_roles(client: OpenAI, raw: httpx.Client) -> None:
    members = [{"model": "test/say:7", "name": "a", "role": "You count."}, {"model": "test/say:7"}, {"model": "test/say:8"}]
    assert raw.put("/teams/counters", json={"pattern": "ensemble", "members": members, "options": {"answer_kind": "number"}}).status_code in (200, 201)
    assert client.chat.completions.create(model="counters", messages=ask("?")).choices[0].message.content == "7"


@pytest.mark.parametrize(("name", "body", "words"), [
    ("x", {"model": "debate:test/echo"}, "at least 2"),
    ("x", {"model": "test/echo"}, "not the name of a collaboration"),
    ("x", {"pattern": "debate", "members": []}, "members"),
    ("x", {"pattern": "nothing", "members": [{"model": "a"}]}, "no pattern"),
    ("auto", {"model": TEAM}, "cannot be a team's name"),
    ("a b", {"model": TEAM}, "cannot be a team's name"),
])
def test_a_team_that_could_not_be_asked_is_not_saved(raw: httpx.Client, name: str, body: dict[str, Any], words: str) -> None:
    answer = raw.put(f"/teams/{quote(name)}", json=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


@pytest.mark.parametrize(("body", "param"), [
    ({"tools": [{"type": "function"}]}, "tools"), ({"frequency_penalty": 1}, "frequency_penalty"), ({"no_such": 1}, "no_such"),
    ({"temperature": -1}, "temperature"), ({"messages": []}, "messages"), ({"model": "auto"}, "model"), ({"model": None}, "model"),
    ({"model": 7}, "model"), ({"model": "test/echo "}, "model"), ({"model": "debate:test/echo"}, "model"), ({"model": "debate:a,b;rounds=99"}, "model"),
    ({"model": TEAM, "n": 2}, "n"), ({"model": TEAM, "logprobs": True}, "logprobs"), ({"response_format": {"type": "json_object"}}, "response_format"),
    ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ({"messages": [{"role": "user", "content": "x"}] * 1001}, "messages"), ({"stream_options": {"include_usage": True}}, "stream_options"),
])
def test_what_is_not_supported_is_refused_by_name(raw: httpx.Client, body: dict[str, Any], param: str) -> None:
    answer = raw.post("/chat/completions", json={"model": "test/echo", "messages": ask("?"), **body})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


def test_members_times_rounds_are_limited(raw: httpx.Client) -> None:
    members = ",".join(["test/echo"] * 10)
    ok = raw.post("/chat/completions", json={"model": f"consensus_building:{members};rounds=8", "messages": ask("?"), "stream": "x"})
    assert ok.json()["error"]["param"] == "stream"  # 80 are within the limit; what is wrong is something else


@pytest.mark.parametrize(("model", "kind", "status"), [
    ("test/failing:bad_prompt", openai.BadRequestError, 400), ("nobody/nothing", openai.NotFoundError, 404),
    ("test/failing:bug", openai.InternalServerError, 500),
])
@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_has_its_status_streamed_or_not(client: OpenAI, model: str, kind: type[openai.APIStatusError], status: int, stream: bool) -> None:
    with pytest.raises(openai.APIError) as caught:
        list(client.chat.completions.create(model=model, messages=ask("?"), stream=stream))  # type: ignore[call-overload]
    if status != 500:  # what is tried again first may fail after the stream has begun
        assert isinstance(caught.value, kind)
        assert caught.value.status_code == status
    assert "Traceback" not in str(caught.value.body)


def keys(stack: Stack, *args: str) -> str:
    """What ``symposia keys`` prints."""
    ran = CliRunner().invoke(build(), ["keys", *args, "--dir", str(stack.folder)])
    assert ran.exit_code == 0, ran.output
    return ran.stdout


def test_a_key_is_always_asked_for_and_a_revoked_one_is_refused_at_once(url: str, stack: Stack) -> None:
    keyless = httpx.Client()  # one for all: each makes a TLS context, which takes longer than any request here
    assert keyless.get(url.removesuffix("/v1") + "/healthz").json() == {"status": "ok"}
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic x"}, {"Authorization": "Bearer " + "x" * 5000}):
        for method, path in (("POST", "/chat/completions"), ("POST", "/embeddings"), ("GET", "/models"), ("GET", "/jobs/x"), ("DELETE", "/jobs/x"),
                             ("PUT", "/teams/x"), ("GET", "/teams")):
            answer = keyless.request(method, url + path, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key"), (method, path, headers)
    made = json.loads(keys(stack, "create", "mine", "--tenant", "t", "--json"))
    assert keyless.get(url + "/models", headers={"Authorization": f"Bearer {made['key']}"}).status_code == 200
    listed = keys(stack, "list")
    assert made["id"] in listed
    assert made["key"] not in listed
    keys(stack, "revoke", made["id"])
    assert keyless.get(url + "/models", headers={"Authorization": f"Bearer {made['key']}"}).status_code == 401
    stored = stack.client.ledger.redis.hgetall(stack.client.ledger.key("keys"))
    assert made["key"] not in json.dumps(stored)


def test_a_tenant_sees_no_job_of_another_and_each_is_a_party_of_its_own(client: OpenAI, raw: httpx.Client, stack: Stack, url: str) -> None:
    mine = extra(client.chat.completions.create(model="test/echo", messages=ask("secret")))["job_id"]
    other, _ = Keys(stack.client.ledger).create("other")
    stranger = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {other}"})
    assert raw.get(f"/jobs/{mine}").json()["result"]["job"]["tags"] == ["tenant:default"]
    for answer in (stranger.get(f"/jobs/{mine}"), stranger.delete(f"/jobs/{mine}"), stranger.get("/jobs/" + "0" * 32), stranger.get("/jobs/..%2Fx")):
        assert answer.status_code == 404
    assert "secret" not in stranger.get(f"/jobs/{mine}").text


def test_a_job_is_cancelled_by_request_and_when_its_client_goes(raw: httpx.Client, stack: Stack) -> None:
    # Given a job that runs for minutes, streamed
    with raw.stream("POST", "/chat/completions", json={"model": "ensemble:test/slow:120000,test/slow:120000,test/slow:120000",
                                                       "messages": ask("?"), "stream": True}) as answer:
        lines = answer.iter_lines()
        job_id = next(json.loads(line[6:])["symposia"]["job_id"] for line in lines if '"symposia"' in line)
        assert raw.get(f"/jobs/{job_id}").json()["status"] in ("queued", "running")
        # When it is cancelled
        assert raw.post(f"/jobs/{job_id}/cancel").status_code == 200
        rest = list(lines)
    # Then its stream says so, and the job has ended
    assert any('"cancelled"' in line for line in rest)
    assert raw.get(f"/jobs/{job_id}").json()["status"] == "cancelled"
    # And when nobody reads a stream any more its job ends too
    with raw.stream("POST", "/chat/completions", json={"model": "test/slow:120000", "messages": ask("gone"), "stream": True}) as answer:
        lines = answer.iter_lines()
        next(lines)
    wait_for(lambda: stack.stats()["jobs_in_flight"] == 0, 30)
    # So does that of an answer nobody waits for any more
    with pytest.raises(httpx.ReadTimeout):
        raw.post("/chat/completions", json={"model": "test/slow:120000", "messages": ask("gone")}, timeout=1.5)
    wait_for(lambda: stack.stats()["jobs_in_flight"] == 0, 30)


def in_process(stack: Stack, body: dict[str, Any], **limits: Any) -> httpx.Response:
    """A request to an application of other limits on the same deployment."""
    settings = stack.client.settings.model_copy(update={"api": stack.client.settings.api.model_copy(update=limits)})

    async def asked() -> httpx.Response:
        assert settings.api.key is not None
        headers = {"Authorization": f"Bearer {settings.api.key.get_secret_value()}"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(make(settings)), base_url="http://api", headers=headers) as client:
            return await client.post("/v1/chat/completions", json={"messages": ask("one two three"), **body}, timeout=60)

    return asyncio.run(asked())


def test_settings_limit_tokens_and_members_and_say_who_is_auto(stack: Stack) -> None:
    assert in_process(stack, {"model": "auto"}, auto_model="test/say:hello").json()["choices"][0]["message"]["content"] == "hello"
    assert in_process(stack, {"model": "auto"}, auto_model=TEAM).json()["choices"][0]["message"]["content"] == "42"
    cut = in_process(stack, {"model": "test/echo"}, max_tokens=2).json()
    assert (cut["choices"][0]["message"]["content"], cut["choices"][0]["finish_reason"]) == ("one two", "length")
    for body, limits, param, words in (
        ({"model": "test/echo", "max_tokens": 3}, {"max_tokens": 2}, "max_tokens", "at most 2"),
        ({"model": TEAM, "max_completion_tokens": 3}, {"max_tokens": 2}, "max_completion_tokens", "at most 2"),
        ({"model": DEBATE}, {"max_member_rounds": 3}, "model", "at most 3"),
    ):
        answer = in_process(stack, body, **limits)  # type: ignore[arg-type]
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == param
        assert words in answer.json()["error"]["message"]
    late = in_process(stack, {"model": "test/slow:60000"}, timeout_s=1.0)
    assert (late.status_code, late.json()["error"]["type"]) == (504, "server_error")


def test_bodies_are_limited_in_size_and_form(raw: httpx.Client, url: str) -> None:
    path = "/chat/completions"
    large = json.dumps({"model": "test/echo", "messages": ask("x" * (9 * 1024 * 1024))})
    assert raw.post(path, content=large, headers={"Content-Type": "application/json"}).status_code == 413

    def slices() -> Iterator[bytes]:
        for at in range(0, len(large), 65536):
            yield large[at:at + 65536].encode()

    answer = raw.post(path, content=slices(), headers={"Content-Type": "application/json"})  # of no told length
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"
    for content, kind, status in ((b"{", "application/json", 400), (b"[]", "application/json", 400), (b"\xff\xfe", "application/json", 400),
                                  (b'{"model": NaN}', "application/json", 400), (b"[" * 100_000, "application/json", 400),
                                  (b'{"model": "\\ud800"}', "application/json", 400), (b"a=b", "application/x-www-form-urlencoded", 415)):
        answer = raw.post(path, content=content, headers={"Content-Type": kind})
        assert answer.status_code == status, content[:20]
        assert answer.headers["x-request-id"].startswith("req_")
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert raw.get("/nothing").json()["error"]["code"] == "not_found"
    assert raw.get(path).json()["error"]["code"] == "method_not_allowed"


def test_a_stream_whose_pool_is_killed_goes_on_and_says_nothing_twice(client: OpenAI, stack: Stack) -> None:
    said, killed = "", False
    for chunk in client.chat.completions.create(model="test/slow:4000", messages=ask("?"), stream=True):
        said += chunk.choices[0].delta.content or ""
        if said and not killed:
            stack.kill("engine")
            killed = True
    assert said == "slow 4000"
    assert killed


def test_nothing_of_streams_stays_in_redis(stack: Stack) -> None:
    wait_for(lambda: stack.stats()["jobs_in_flight"] == 0)
    redis = stack.client.ledger.redis
    assert [k for k in redis.scan_iter(stack.client.ledger.key("*")) if "said" in k] == []
    wait_for(lambda: [c for c in redis.pubsub_channels(stack.client.ledger.key("said:*")) if not c.endswith("said:")] == [])


def test_the_api_starts_again_when_it_is_killed(stack: Stack, client: OpenAI) -> None:
    stack.kill("api")
    time.sleep(0.5)
    answer = wait_for(lambda: client.chat.completions.create(model="test/echo", messages=ask("back")))
    assert answer.choices[0].message.content == "back"


def _with_models(found: Any, models: list[str]) -> int:
    """Have every ``model`` of a body be one of these; how many there were."""
    if not isinstance(found, dict | list):
        return 0
    count = 0
    for name, value in found.items() if isinstance(found, dict) else enumerate(found):
        if name == "model" and isinstance(value, dict) and "example" in value:
            found[name] = {"enum": models}
            count += 1
        else:
            count += _with_models(value, models)
    return count


def test_no_request_drawn_from_its_own_document_breaks_it(url: str, key: str, tmp_path: Path) -> None:
    """schemathesis in a short form: no 5xx. Of models it is told some that are there, for a random word would be refused and no more."""
    root = url.removesuffix("/v1")
    document = httpx.get(f"{root}/openapi.json").json()
    assert _with_models(document, ["test/echo", "test/garbage", TEAM, DEBATE, "nobody/nothing"]) == 5
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    command = [sys.executable, "-m", "schemathesis.cli", "run", str(tmp_path / "openapi.json"), "--url", root, "-H", f"Authorization: Bearer {key}",
               "--checks", "not_a_server_error", "--phases", "examples,fuzzing", "--max-examples", "15", "--seed", "1", "--generation-database", "none",
               "--request-timeout", "30"]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=clean_environ(), cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-2000:]
