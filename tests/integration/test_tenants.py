"""Tenants of the HTTP API on a real stack: idempotency keys, limits, usage, kept replies, and that none reaches what is another's."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import openai
import pytest
from openai import OpenAI
from stack import Stack, wait_for
from typer.testing import CliRunner

from symposia import Inference
from symposia.api.app import make
from symposia.cli import build
from symposia_shared.ledger.tenants import Keys
from symposia_shared.prompts import Sampling
from symposia_shared.reuse import Replies
from symposia_shared.settings import LimitSettings

TEAM = "ensemble:test/say:42,test/say:It is 42,test/say:41;early_stop=false;answer_kind=number"


class Tenant:
    """A tenant with a key of its own, and its clients."""

    def __init__(self, stack: Stack, url: str) -> None:
        self.name = f"t{uuid4().hex[:8]}"
        self.key, _ = Keys(stack.client.ledger).create(self.name)
        self.client = OpenAI(base_url=url, api_key=self.key, max_retries=0, timeout=60)
        self.raw = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {self.key}"}, timeout=60)

    def post(self, body: dict[str, Any], *, path: str = "/chat/completions", once: str | None = None) -> httpx.Response:
        return self.raw.post(path, json=body, headers={} if once is None else {"Idempotency-Key": once})


@pytest.fixture
def tenant(stack: Stack, url: str) -> Iterator[Tenant]:
    made = Tenant(stack, url)
    yield made
    made.client.close()
    made.raw.close()


@pytest.fixture
def stranger(stack: Stack, url: str) -> Iterator[Tenant]:
    made = Tenant(stack, url)
    yield made
    made.client.close()
    made.raw.close()


def chat(text: str, model: str = "test/echo", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


def cli(stack: Stack, *args: str, expect: int = 0) -> Any:
    """A command's facts."""
    ran = CliRunner().invoke(build(), [*args, "--json", "--dir", str(stack.folder)])
    assert ran.exit_code == expect, ran.output
    return json.loads(ran.stdout)


# -- idempotency keys --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", [chat("one two", n=2, temperature=1), chat("?", TEAM), {"model": "test/echo", "input": ["a", "b"]},
                                  {"model": "test/echo", "prompt": "one two"}])
def test_the_same_key_and_body_is_the_same_answer_to_the_letter(tenant: Tenant, body: dict[str, Any]) -> None:
    path = "/embeddings" if "input" in body else "/completions" if "prompt" in body else "/chat/completions"
    first, again = (tenant.post(body, path=path, once="k") for _ in range(2))
    assert first.status_code == 200, first.text
    assert again.text == first.text
    assert (first.headers.get("idempotency-replayed"), again.headers.get("idempotency-replayed")) == (None, "true")


def test_the_official_client_can_send_a_key_and_another_body_is_refused_with_both_digests(tenant: Tenant, stranger: Tenant) -> None:
    def ask(who: Tenant, text: str) -> Any:
        return who.client.chat.completions.create(model="test/echo", messages=[{"role": "user", "content": text}], extra_headers={"Idempotency-Key": "k"})

    first = ask(tenant, "one")
    assert ask(tenant, "one").id == first.id
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        ask(tenant, "two")
    assert len(set(re.findall(r"[0-9a-f]{64}", caught.value.message))) == 2
    assert (caught.value.code, caught.value.param) == ("idempotency_key_reused", "Idempotency-Key")
    assert ask(stranger, "two").choices[0].message.content == "two"  # another tenant's key of the same name


def test_two_that_come_at_once_are_one_job_while_it_runs(tenant: Tenant) -> None:
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: tenant.post(chat("?", "test/slow:1500"), once="k").json(), range(4)))
    assert len({a["symposia"]["job_id"] for a in answers}) == 1
    assert {a["choices"][0]["message"]["content"] for a in answers} == {"slow 1500"}


def test_a_key_outlives_its_client_the_api_process_and_the_broker(tenant: Tenant, stack: Stack) -> None:
    # Given a client that goes before its answer comes, and an API and a broker that are killed
    with pytest.raises(httpx.ReadTimeout):
        tenant.raw.post("/chat/completions", json=chat("?", "test/slow:5000"), headers={"Idempotency-Key": "k"}, timeout=1.5)
    api, broker = stack.kill("api"), stack.kill("broker")
    wait_for(lambda: stack.pid("api") != api and stack.pid("broker") != broker)
    # When it comes again, then it is given the answer of the one job there ever was
    again = wait_for(lambda: (found := tenant.post(chat("?", "test/slow:5000"), once="k")).status_code != 503 and found)
    assert again.status_code == 200, again.text
    assert again.json()["choices"][0]["message"]["content"] == "slow 5000"
    assert again.headers["idempotency-replayed"] == "true"


@pytest.mark.parametrize("model", ["test/slow:300", TEAM])
def test_a_streamed_answer_comes_again_whole(tenant: Tenant, model: str) -> None:
    def said() -> tuple[str, set[str]]:
        text, ids = "", set()
        for chunk in tenant.client.chat.completions.create(model=model, messages=[{"role": "user", "content": "?"}], stream=True,
                                                           extra_headers={"Idempotency-Key": "k"}):
            text += chunk.choices[0].delta.content or ""
            ids.add(chunk.id)
        return text, ids

    first = said()
    assert first[0]
    assert said() == first


def test_a_key_outlives_no_deletion_of_its_job(tenant: Tenant) -> None:
    job_id = tenant.post(chat("gone"), once="k").json()["symposia"]["job_id"]
    assert tenant.raw.delete(f"/jobs/{job_id}").status_code == 200
    assert tenant.post(chat("gone"), once="k").status_code == 404


def test_what_is_refused_binds_no_key(tenant: Tenant) -> None:
    assert tenant.post(chat("?", "nobody/nothing"), once="k").status_code == 404
    assert tenant.post(chat("now")).status_code == 200
    assert tenant.post(chat("now"), once="k").status_code == 200
    bad = tenant.post(chat("?"), once="x" * 300)
    assert (bad.status_code, bad.json()["error"]["param"]) == (400, "Idempotency-Key")


def test_the_command_line_and_the_client_take_a_key(stack: Stack) -> None:
    key = uuid4().hex
    first, again = (cli(stack, "ask", "hello", "--model", "test/echo", "--idempotency-key", key) for _ in range(2))
    assert first["job_id"] == again["job_id"]
    handle = stack.client.submit(Inference(model="test/echo", prompt="hello", sampling=Sampling()), idempotency_key=key)
    assert handle.job_id == first["job_id"]  # one key, one job, whoever asks for the owner


# -- limits ------------------------------------------------------------------------------------------------------------------


def test_requests_a_minute_are_told_and_refused_with_openais_headers(tenant: Tenant, stack: Stack) -> None:
    cli(stack, "tenants", "limit", tenant.name, "--requests", "2", "--tokens", "100000")
    first = tenant.post(chat("one two"))
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert first.headers["x-ratelimit-limit-tokens"] == "100000"
    assert first.headers["x-ratelimit-reset-requests"].endswith("s")
    tenant.post(chat("one two"))
    refused = tenant.post(chat("one two"))
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert refused.json()["error"]["type"] == "requests"
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    with pytest.raises(openai.RateLimitError):
        tenant.client.chat.completions.create(model="test/echo", messages=[{"role": "user", "content": "?"}])
    assert "x-ratelimit-limit-requests" not in tenant.raw.get("/models").headers
    cli(stack, "tenants", "unlimit", tenant.name)
    assert tenant.post(chat("one two")).status_code == 200
    assert "x-ratelimit-limit-requests" not in tenant.post(chat("one two")).headers


def test_the_official_client_waits_as_it_is_told_and_gets_through(tenant: Tenant, stack: Stack) -> None:
    cli(stack, "tenants", "limit", tenant.name, "--requests", "60")
    assert tenant.post(chat("?")).status_code == 200
    stack.client.ledger.redis.hset(stack.client.ledger.key(f"rate:{tenant.name}"), "r", 0)
    patient = tenant.client.with_options(max_retries=3)
    assert patient.chat.completions.create(model="test/echo", messages=[{"role": "user", "content": "at last"}]).choices[0].message.content == "at last"


def test_jobs_in_flight_are_limited_and_each_is_free_again_once_it_has_ended(tenant: Tenant, stack: Stack) -> None:
    cli(stack, "tenants", "limit", tenant.name, "--concurrent", "2")
    with ThreadPoolExecutor(2) as threads:
        running_ = [threads.submit(tenant.post, chat("?", "test/slow:2500")) for _ in range(2)]
        wait_for(lambda: tenant.raw.get("/usage").json()["in_flight"] == 2)
        refused = tenant.post(chat("?"))
        assert refused.status_code == 429
        assert "2 jobs in flight" in refused.json()["error"]["message"]
        assert refused.headers["retry-after"] == "1"
        assert {r.result().status_code for r in running_} == {200}
    assert tenant.post(chat("?")).status_code == 200
    many = tenant.post(chat("?", n=3))
    assert (many.status_code, many.json()["error"]["param"]) == (400, "n")
    listed = {row["tenant"]: row for row in cli(stack, "tenants", "list")["tenants"]}
    assert listed[tenant.name]["concurrent"] == 2


# -- usage -------------------------------------------------------------------------------------------------------------------


def test_usage_is_the_sum_of_the_bills_by_day_and_checkpoint_and_survives_the_api(tenant: Tenant, stranger: Tenant, stack: Stack) -> None:
    said = tenant.post(chat("one two three")).json()["usage"]
    team = tenant.post(chat("?", TEAM)).json()["usage"]
    old = stack.kill("api")
    wait_for(lambda: stack.pid("api") != old)
    told = wait_for(lambda: (found := tenant.raw.get("/usage").json())["data"] and found)
    (whole,) = [row for row in told["data"] if not row["model"]]
    assert (whole["jobs"], whole["calls"]) == (2, 4)
    assert whole["prompt_tokens"] == said["prompt_tokens"] + team["prompt_tokens"]
    assert whole["completion_tokens"] == said["completion_tokens"] + team["completion_tokens"]
    by_model = {row["model"]: row for row in told["data"] if row["model"]}
    assert set(by_model) == {"test/echo", "test/say:42", "test/say:It is 42", "test/say:41"}
    assert by_model["test/echo"]["prompt_tokens"] == 3
    assert stranger.raw.get("/usage").json()["data"] == []
    assert cli(stack, "usage", tenant.name)["usage"][tenant.name] == [{k: v for k, v in row.items() if k != "object"} for row in told["data"]]
    assert tenant.raw.get("/usage?start=2020-01-01&end=2020-01-31").json()["data"] == []
    for query in ("start=x", "start=2020-01-01&end=2025-01-01", "tenant=default"):
        assert tenant.raw.get(f"/usage?{query}").status_code == 400


# -- kept replies ------------------------------------------------------------------------------------------------------------


def job_of(tenant: Tenant, answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = tenant.raw.get(f"/jobs/{answer.json()['symposia']['job_id']}").json()["result"]
    return found


def test_an_equal_turn_is_answered_with_the_kept_reply_which_costs_nothing_and_says_so(tenant: Tenant, stack: Stack) -> None:
    zero = stack.settled_stats()
    body = chat("one two three", temperature=0, reuse=True)
    first, again = tenant.post(body), tenant.post(body)
    assert again.json()["choices"] == first.json()["choices"]
    assert again.json()["symposia"]["reused"] == 1
    assert again.json()["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    made, given = job_of(tenant, first), job_of(tenant, again)
    kept = made["rounds"][0]["turns"][0]["reply"]["kept"]
    assert given["rounds"][0]["turns"][0]["reply"]["kept"] == {"key": kept["key"], "made_in": made["job_id"]}
    assert (given["bill"]["calls"], given["bill"]["reused_calls"], made["bill"]["calls"]) == (0, 1, 1)
    assert stack.since_of(zero)["calls_reused"] == 1
    (whole,) = [row for row in tenant.raw.get("/usage").json()["data"] if not row["model"]]
    assert (whole["jobs"], whole["calls"], whole["reused"], whole["prompt_tokens"]) == (2, 1, 1, 3)


@pytest.mark.parametrize(("sampling", "reused"), [({"temperature": 1, "seed": 7}, True), ({"temperature": 1}, False), ({"temperature": 0}, True)])
def test_only_what_would_come_out_the_same_is_kept(tenant: Tenant, sampling: dict[str, Any], reused: bool) -> None:
    body = chat("?", "test/garbage", reuse=True, max_tokens=8, **sampling)
    first, again = tenant.post(body), tenant.post(body)
    assert ("reused" in again.json()["symposia"]) is reused
    assert (job_of(tenant, first)["rounds"][0]["turns"][0]["reply"]["kept"] is not None) is reused


@pytest.mark.parametrize("change", [{"seed": 8}, {"top_p": 0.5}, {"max_tokens": 9}, {"stop": ["q"]}, {"messages": [{"role": "user", "content": "!"}]},
                                    {"model": "test/echo"}, {"reuse": False}, {"logprobs": True}])
def test_what_differs_is_run(tenant: Tenant, change: dict[str, Any]) -> None:
    body = chat("?", "test/garbage", reuse=True, max_tokens=8, temperature=1, seed=7)
    tenant.post(body)
    answer = tenant.post({**body, **change})
    assert answer.status_code == 200, answer.text
    assert "reused" not in answer.json()["symposia"]


def test_a_tenant_is_given_no_reply_of_another(tenant: Tenant, stranger: Tenant) -> None:
    body = chat("the same", temperature=0, reuse=True)
    tenant.post(body)
    assert "reused" not in stranger.post(body).json()["symposia"]


def test_equal_turns_at_once_are_run_once_and_all_answered(tenant: Tenant, stack: Stack) -> None:
    zero = stack.settled_stats()
    with ThreadPoolExecutor(6) as threads:
        answers = [f.result().json() for f in [threads.submit(tenant.post, chat("?", "test/slow:1500", temperature=0, reuse=True)) for _ in range(6)]]
    assert {a["choices"][0]["message"]["content"] for a in answers} == {"slow 1500"}
    assert stack.since_of(zero)["calls_reused"] == 5


def test_one_of_equal_turns_that_is_cancelled_leaves_the_others_their_answer(tenant: Tenant, stack: Stack) -> None:
    job = Inference(model="test/slow:3000", prompt="?", reuse=True, tags=(f"tenant:{tenant.name}",))
    first = stack.client.submit(job)
    wait_for(lambda: first.status().state == "running")
    others = [stack.client.submit(job) for _ in range(3)]
    wait_for(lambda: {h.status().state for h in others} == {"running"})
    assert first.cancel()
    assert {h.result(30).answer for h in others} == {"slow 3000"}
    assert first.wait(10).state == "cancelled"


def test_equal_turns_survive_the_death_of_their_engine(tenant: Tenant, stack: Stack) -> None:
    job = Inference(model="test/slow:2000", prompt="again", reuse=True, tags=(f"tenant:{tenant.name}",))
    handles = [stack.client.submit(job) for _ in range(4)]
    wait_for(lambda: handles[0].status().state == "running")
    stack.kill("engine")
    assert {h.result(60).answer for h in handles} == {"slow 2000"}


def test_a_collaborations_turns_are_reused_and_a_stream_tells_them_whole(tenant: Tenant) -> None:
    first, again = (tenant.post(chat("?", TEAM, reuse=True, temperature=0)).json() for _ in range(2))
    assert again["choices"] == first["choices"]
    assert (first["symposia"]["bill"]["reused_calls"], again["symposia"]["bill"]["reused_calls"], again["symposia"]["bill"]["calls"]) == (0, 3, 0)
    body: Any = {"model": "test/slow:400", "messages": [{"role": "user", "content": "s"}], "temperature": 0, "extra_body": {"reuse": True}, "stream": True}
    texts = ["".join(c.choices[0].delta.content or "" for c in tenant.client.chat.completions.create(**body)) for _ in range(2)]
    assert texts == ["slow 400"] * 2


def test_embeddings_are_kept_too(tenant: Tenant) -> None:
    body = {"model": "test/echo", "input": ["one", "two"], "reuse": True}
    first, again = (tenant.post(body, path="/embeddings").json() for _ in range(2))
    assert again["data"] == first["data"]
    assert again["symposia"]["reused"] == 1


def test_kept_replies_have_a_life_and_are_erased_by_tenant_and_by_job(tenant: Tenant, stranger: Tenant, stack: Stack) -> None:
    body = chat("to be erased", temperature=0, reuse=True)
    first = tenant.post(body).json()["symposia"]["job_id"]
    stranger.post(body)
    replies = Replies(stack.client.archive.store, life_s=3600)
    (key,) = stack.client.archive.store.keys(f"reuse/{tenant.name}/")
    assert replies.get(key) is not None
    assert replies.erase_of(stack.client.handle(first).result(10)) == [key]
    assert replies.get(key) is None
    assert "reused" not in tenant.post(body).json()["symposia"]
    assert "reused" in tenant.post(body).json()["symposia"]
    # One that has outlived its life is given to nobody, and the next one takes its place
    short = Replies(stack.client.archive.store, life_s=0)
    assert short.get(key) is None
    assert "reused" not in tenant.post(body).json()["symposia"]
    assert cli(stack, "reuse", "erase", tenant.name)["keys"] == [key]
    assert stack.client.archive.store.keys(f"reuse/{tenant.name}/") == []
    assert stack.client.archive.store.keys(f"reuse/{stranger.name}/") != []

    def pruned() -> int:
        stack.client.archive.store.put(f"reuse/{tenant.name}/x.json", b"not an entry")
        deleted: int = cli(stack, "reuse", "prune")["deleted"]
        return deleted

    assert 1 in (pruned(), pruned())  # the coordinator's own sweep, once an hour, may come between put and prune


# -- what is another's ---------------------------------------------------------------------------------------------------------


def routes(url: str) -> list[tuple[str, str]]:
    document = httpx.get(url.removesuffix("/v1") + "/openapi.json").json()
    return [(method.upper(), path) for path, methods in document["paths"].items() for method in methods if path.startswith("/v1/")]


def test_every_route_asks_for_a_key(url: str) -> None:
    root = url.removesuffix("/v1")
    with httpx.Client() as keyless:
        for method, path in routes(url):
            answer = keyless.request(method, root + re.sub(r"\{[^}]+\}", "x", path), json={} if method in ("POST", "PUT") else None)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key"), (method, path)


def test_no_route_lets_a_tenant_at_what_is_anothers(tenant: Tenant, stranger: Tenant, stack: Stack, url: str) -> None:
    # Given a job and a response that run, some that have ended, and a team, all of one tenant
    ended = tenant.post(chat("secret")).json()["symposia"]["job_id"]
    answered = tenant.post({"model": "test/echo", "input": "secret"}, path="/responses").json()["id"]
    runs = tenant.post({"model": "test/slow:120000", "input": "secret", "background": True}, path="/responses").json()["id"]
    (running_job,) = [job_id for job_id, _ in stack.client.ledger.jobs() if job_id in runs]
    assert tenant.raw.put("/teams/secret-team", json={"model": TEAM}).status_code == 201
    line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": chat("secret", "test/slow:120000")}
    file = tenant.client.files.create(file=("lines.jsonl", json.dumps(line).encode()), purpose="batch")
    batch = tenant.client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    names, root = (ended, answered, runs, running_job, "secret-team", file.id, batch.id), url.removesuffix("/v1")
    # When another asks for them by their own names at every route that takes a name
    for method, path in routes(url):
        if method == "PUT" or "{" not in path:
            continue  # a PUT makes what is its own
        for name in names:
            found = stranger.raw.request(method, root + re.sub(r"\{[^}]+\}", quote(name), path), json={} if method == "POST" else None)
            assert found.status_code in (400, 404), (method, path, name, found.text)
            assert "secret" not in found.text.replace("secret-team", ""), (method, path)
    # Nor does any list tell of them, nor can a response go on from them
    for method, path in routes(url):
        if method == "GET" and "{" not in path:
            told = stranger.raw.request(method, root + path)
            assert not any(name in told.text for name in names), path
    follows = stranger.post({"model": "test/echo", "input": "?", "previous_response_id": answered}, path="/responses")
    assert follows.status_code == 404
    with pytest.raises((openai.NotFoundError, openai.BadRequestError)):
        stranger.client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    # Then they are as they were
    assert tenant.raw.get(f"/jobs/{running_job}").json()["status"] in ("queued", "running")
    assert tenant.raw.get(f"/responses/{answered}").json()["status"] == "completed"
    assert tenant.raw.get(f"/jobs/{ended}").json()["status"] == "done"
    assert tenant.raw.get("/teams/secret-team").status_code == 200
    assert tenant.client.files.retrieve(file.id).id == file.id
    assert tenant.client.batches.retrieve(batch.id).status in ("validating", "in_progress")
    assert tenant.client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    assert tenant.raw.post(f"/responses/{runs}/cancel").status_code == 200


def test_a_put_of_the_same_name_is_ones_own(tenant: Tenant, stranger: Tenant) -> None:
    tenant.raw.put("/teams/mine", json={"model": TEAM})
    assert stranger.raw.put("/teams/mine", json={"model": TEAM.replace("41", "40")}).status_code == 201
    assert "41" in tenant.raw.get("/teams/mine").json()["model"]


# -- the edges ---------------------------------------------------------------------------------------------------------------


def test_the_page_loads_and_runs_nothing(url: str) -> None:
    answer = httpx.get(url.removesuffix("/v1") + "/docs")
    assert answer.status_code == 200
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert "<script" not in answer.text
    assert not re.findall(r"(?:src|href)=[\"']?(?:https?:)?//", answer.text)
    for path in ("/v1/chat/completions", "/v1/usage", "/v1/jobs/{job_id}"):
        assert path in answer.text


def test_long_heads_are_refused_by_the_name_of_their_limit(tenant: Tenant, url: str) -> None:
    answer = tenant.raw.get("/models", headers={"X-Long": "x" * 40_000})
    assert answer.status_code == 431
    assert "SYMPOSIA_API__MAX_HEADER_BYTES" in answer.json()["error"]["message"]
    assert answer.headers["x-request-id"].startswith("req_")
    assert tenant.raw.get("/models").headers["x-content-type-options"] == "nosniff"


def test_many_threads_of_one_key_at_two_apis_are_one_job(tenant: Tenant, stack: Stack, url: str) -> None:
    """The second API is an application in this process: what is atomic is so in the ledger."""
    import asyncio

    settings = stack.client.settings.model_copy(update={"limits": LimitSettings()})
    found: list[str] = []

    async def asked() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(make(settings)), base_url="http://api/v1", timeout=60,
                                     headers={"Authorization": f"Bearer {tenant.key}", "Idempotency-Key": "both"}) as client:
            answers = await asyncio.gather(*(client.post("/chat/completions", json=chat("?", "test/slow:700")) for _ in range(4)))
            found.extend(a.json()["symposia"]["job_id"] for a in answers)

    other = threading.Thread(target=lambda: asyncio.run(asked()))
    other.start()
    with ThreadPoolExecutor(4) as threads:
        mine = [r["symposia"]["job_id"] for r in threads.map(lambda _: tenant.post(chat("?", "test/slow:700"), once="both").json(), range(4))]
    other.join()
    assert len({*mine, *found}) == 1
    assert len(found) == 4
