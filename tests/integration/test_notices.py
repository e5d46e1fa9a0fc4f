"""Being told of a job's end: webhooks, events, linked tasks; and what is kept is erased. On a stack that may call loopback."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from celery import Celery, chain
from openai import OpenAI
from stack import Stack, clean_environ, running_stack, wait_for
from standardwebhooks import Webhook

from receiver import Receiver, receiving
from symposia import BadInput, Client, Ensemble, Inference, Member, NotYet, UnknownJob
from symposia.cli.info import running
from symposia_shared.erasing import Places, keeps_copies
from symposia_shared.ledger.tenants import Keys
from symposia_shared.retention import sweep
from symposia_shared.settings import RetentionSettings


@pytest.fixture(scope="module")
def told_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(tmp_path_factory.mktemp("told"), "--test-models", "--no-flower", SYMPOSIA_WEBHOOKS__ALLOW="127.0.0.0/8") as stack:
        webhooks = stack.client.settings.webhooks.model_copy(update={"allow": "127.0.0.0/8"})
        stack.client = Client(settings=stack.client.settings.model_copy(update={"webhooks": webhooks}))
        yield stack


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as made:
        yield made


@pytest.fixture(scope="module")
def raw(told_stack: Stack) -> Iterator[httpx.Client]:
    key = json.loads((told_stack.folder / "credentials.json").read_text())["api_key"]
    with httpx.Client(base_url=str(running(told_stack.folder)["api"]), headers={"Authorization": f"Bearer {key}"}, timeout=120) as made:
        yield made


def echo(text: str = "hello") -> Inference:
    return Inference(model="test/echo", prompt=text)


def secret(stack: Stack, tenant: str = "default") -> str:
    return stack.client.outbox.secrets(tenant)[0]


def test_a_job_s_webhook_is_told_once_signed_by_the_standard(told_stack: Stack, receiver: Receiver) -> None:
    handle = told_stack.client.submit(echo(), webhook=receiver.url)
    handle.result(30)
    wait_for(lambda: receiver.came)
    headers, body = receiver.came[0]
    event: dict[str, Any] = Webhook(secret(told_stack)).verify(body, headers)
    assert (event["type"], event["data"]["job_id"], event["data"]["status"]) == ("job.done", handle.job_id, "done")
    assert told_stack.client.result_of(event["data"]["result_key"]).answer == "hello"
    assert "hello" not in body.decode()  # the answer is read with a key, and does not travel
    standing = wait_for(lambda: told_stack.client.outbox.all(job_id=handle.job_id, state="delivered"))[0]
    assert (standing.notice.id, standing.tries) == (headers["webhook-id"], 1)
    time.sleep(0.6)
    assert len(receiver.came) == 1
    assert told_stack.client.ledger.redis.exists(told_stack.client.ledger.key(f"tell:{handle.job_id}")) == 0


def test_what_was_not_taken_is_sent_again_though_every_process_is_killed(told_stack: Stack, receiver: Receiver) -> None:
    receiver.statuses += [500]
    handle = told_stack.client.submit(echo(), webhook=receiver.url)
    handle.result(30)
    # once its try is written down: what is killed before that is sent again only after the sender's lease of 90 s (test_outbox.py)
    wait_for(lambda: [s.tries for s in told_stack.client.outbox.all(job_id=handle.job_id)] == [1])
    for role in ("coordinator", "pool", "api", "broker"):
        told_stack.kill(role)
    wait_for(lambda: len(receiver.came) > 1, 60)
    wait_for(lambda: httpx.get(str(running(told_stack.folder)["api"]).removesuffix("/v1") + "/healthz").status_code == 200)
    first, second = receiver.came[:2]
    assert first[0]["webhook-id"] == second[0]["webhook-id"]
    assert first[1] == second[1]
    for headers, body in receiver.came:
        Webhook(secret(told_stack)).verify(body, headers)
    assert wait_for(lambda: told_stack.client.outbox.all(job_id=handle.job_id, state="delivered"))


def test_a_tenant_s_endpoint_is_told_of_its_jobs_alone_and_openai_s_client_unwraps_it(told_stack: Stack, raw: httpx.Client, receiver: Receiver) -> None:
    made = raw.post("/webhooks", json={"url": receiver.url, "events": ["response.completed", "job.failed"]})
    assert made.status_code == 201
    key = raw.headers["Authorization"].removeprefix("Bearer ")
    with OpenAI(base_url=str(raw.base_url), api_key=key, max_retries=0, webhook_secret=made.json()["secret"]) as client:
        client.chat.completions.create(model="test/echo", messages=[{"role": "user", "content": "not told"}])
        other, _ = Keys(told_stack.client.ledger).create("other")
        OpenAI(base_url=str(raw.base_url), api_key=other).responses.create(model="test/echo", input="not theirs")
        response = client.responses.create(model="test/echo", input="x")
        wait_for(lambda: receiver.came)
        headers, body = receiver.came[0]
        event: Any = client.webhooks.unwrap(body, headers)
        assert (event.type, event.data.id) == ("response.completed", response.id)
    # When the endpoint says that it is gone, it is told nothing more
    receiver.statuses += [410]
    told_stack.client.submit(Inference(model="test/failing:bad_prompt", prompt="x")).wait(30)
    wait_for(lambda: raw.get("/webhooks").json()["data"][0]["disabled"])
    assert [e[1] for e in receiver.came if json.loads(e[1])["type"] == "response.completed"] == [body]
    assert len(receiver.came) == 2
    assert raw.delete(f"/webhooks/{made.json()['id']}").json()["deleted"] is True


def test_a_webhook_in_metadata_is_told_and_shown_and_replayed(told_stack: Stack, raw: httpx.Client, receiver: Receiver) -> None:
    body = {"model": "test/echo", "messages": [{"role": "user", "content": "x"}], "metadata": {"webhook": receiver.url}}
    job_id = raw.post("/chat/completions", json=body).json()["symposia"]["job_id"]
    wait_for(lambda: receiver.came)
    (notice,) = wait_for(lambda: raw.get("/notices", params={"job_id": job_id, "state": "delivered"}).json()["data"])
    assert raw.get(f"/notices/{notice['id']}").json()["body"] == receiver.came[0][1].decode()
    assert raw.post(f"/notices/{notice['id']}/replay").json()["state"] in ("waiting", "delivered")
    wait_for(lambda: len(receiver.came) == 2)
    assert told_stack.json("webhooks", "show", notice["id"])["job_id"] == job_id
    assert told_stack.json("webhooks", "replay", notice["id"])["replayed"] == [notice["id"]]
    wait_for(lambda: len(receiver.came) == 3)
    assert {h["webhook-id"] for h, _ in receiver.came} == {notice["id"]}
    assert notice["id"] in [n["id"] for n in told_stack.json("webhooks", "list")]
    other, _ = Keys(told_stack.client.ledger).create("other")
    assert raw.get(f"/notices/{notice['id']}", headers={"Authorization": f"Bearer {other}"}).status_code == 404


@pytest.mark.parametrize("url", ["http://169.254.169.254/latest", "https://10.0.0.1/x", "https://[::1]/x", "file:///etc/passwd", "https://u:p@example.com"])
def test_a_webhook_that_leads_inside_is_refused_by_every_door(told_stack: Stack, raw: httpx.Client, url: str) -> None:
    with pytest.raises(BadInput, match="webhook"):
        told_stack.client.submit(echo(), webhook=url)
    for path, body in (("/webhooks", {"url": url}), ("/responses", {"model": "test/echo", "input": "x", "metadata": {"webhook": url}}),
                       ("/chat/completions", {"model": "test/echo", "messages": [{"role": "user", "content": "x"}], "metadata": {"webhook": url}})):
        answer = raw.post(path, json=body)
        assert answer.status_code == 400, (path, answer.text)
        assert answer.json()["error"]["param"] in ("url", "metadata.webhook")


def test_a_name_that_leads_inside_is_found_out_when_it_is_called(told_stack: Stack) -> None:
    """localhost is a name: it passes until it is resolved. This deployment allows loopback, a delivery without that does not."""
    from symposia_worker.notices.posting import post

    assert "not public" in post("https://localhost/x", b"{}", {}).said


def test_a_secret_is_rotated_and_the_old_one_holds_for_a_day(told_stack: Stack, receiver: Receiver) -> None:
    old = secret(told_stack)
    new = told_stack.json("webhooks", "secret", "--rotate")["secret"]
    assert new.startswith("whsec_")
    assert new != old
    told_stack.client.submit(echo(), webhook=receiver.url).result(30)
    wait_for(lambda: receiver.came)
    headers, body = receiver.came[0]
    assert Webhook(new).verify(body, headers) == Webhook(old).verify(body, headers)
    dumped = told_stack.client.ledger.redis.hgetall(told_stack.client.ledger.key("secrets"))
    assert new.removeprefix("whsec_") not in str(dumped)


# -- linked tasks ------------------------------------------------------------------------------------------------------

SHOP = """
import sys
from celery import Celery
app = Celery("shop", broker=sys.argv[1], broker_transport_options={"global_keyprefix": "shop:"}, task_serializer="json", accept_content=["json"],
             worker_enable_remote_control=False, worker_redirect_stdouts=False)
app.conf.task_routes = {"shop.*": {"queue": "orders"}}
@app.task(name="shop.paid")
def paid(key, order): print("PAID", key, order, flush=True)
@app.task(name="shop.lost")
def lost(key): print("LOST", key, flush=True)
app.Worker(pool="solo", concurrency=1, queues="orders", loglevel="WARNING", without_gossip=True, without_mingle=True, without_heartbeat=True,
           quiet=True).start()
"""


def shop(broker: str) -> Celery:
    app = Celery("shop", broker=broker, broker_transport_options={"global_keyprefix": "shop:"}, set_as_current=False)
    app.conf.task_routes = {"shop.*": {"queue": "orders"}}
    return app


def test_a_task_of_the_callers_own_app_is_sent_once_and_runs_there(told_stack: Stack, tmp_path: Path) -> None:
    broker = told_stack.client.settings.broker
    app, client = shop(broker), told_stack.client
    paid, lost = app.signature("shop.paid", args=(7,)), app.signature("shop.lost")
    good = client.submit(echo(), link=paid, link_error=lost)
    bad = client.submit(Inference(model="test/failing:bad_prompt", prompt="x"), link=paid, link_error=lost)
    good.wait(30), bad.wait(30)
    queue = "shop:orders"
    redis = client.ledger.redis
    wait_for(lambda: redis.llen(queue) == 2)
    # it is written as JSON and nothing else, and what was wished lies in Redis no more
    assert {json.loads(m)["content-type"] for m in redis.lrange(queue, 0, -1)} == {"application/json"}
    assert not redis.exists(client.ledger.key(f"tell:{good.job_id}"))
    # however often a sender is killed after sending and before that is written down
    for standing in client.outbox.all():
        if standing.notice.kind == "link":
            wait_for(lambda s=standing: client.outbox.get(s.notice.id).state == "delivered")
            client.outbox.replay(standing.notice.id)
            wait_for(lambda s=standing: client.outbox.get(s.notice.id).tries == 1 and client.outbox.get(s.notice.id).state == "delivered")
    assert redis.llen(queue) == 2
    log = tmp_path / "shop.log"
    with log.open("w") as out:
        worker = subprocess.Popen([sys.executable, "-c", SHOP, broker], stdout=out, stderr=subprocess.STDOUT, env=clean_environ())
        try:
            wait_for(lambda: log.read_text().count("jobs/") == 2, 40)
        finally:
            worker.terminate()
            worker.wait(20)
    said = log.read_text()
    assert f"PAID jobs/{good.job_id}/result.json 7" in said
    assert f"LOST jobs/{bad.job_id}/result.json" in said
    assert client.result_of(f"jobs/{good.job_id}/result.json").answer == "hello"


def test_a_signature_that_could_not_be_kept_is_refused_and_its_job_is_not_recorded(told_stack: Stack) -> None:
    app, before = shop(told_stack.client.settings.broker), told_stack.stats()["jobs_submitted"]
    sig = app.signature("shop.paid")
    for signature, words in ((chain(sig, sig), "is a chain"), (app.signature("shop.paid", args=(object(),)), "not JSON"),
                             (sig.clone().set(link=sig), "option 'link'"), (Celery("m", broker="memory://", set_as_current=False).signature("x"), "memory"),
                             (sig.clone().set(serializer="pickle"), "pickle")):
        with pytest.raises(BadInput, match=words):
            told_stack.client.submit(echo(), link=signature)
    with pytest.raises(BadInput):
        told_stack.client.submit(Inference(model="nobody/nothing", prompt="x"), link=sig, job_id="refused-with-a-link")
    assert told_stack.client.ledger.redis.exists(told_stack.client.ledger.key("tell:refused-with-a-link")) == 0
    assert told_stack.stats()["jobs_submitted"] == before


DJANGO = """
import sys
import django
from django.conf import settings
settings.configure(DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": sys.argv[2]}}, USE_TZ=True)
django.setup()
from django.db import transaction
from symposia import Client, Inference
from symposia_shared.errors import UnknownJob
job = Inference(model="test/echo", prompt="committed")
with Client(sys.argv[1]) as client:
    with transaction.atomic():
        handle = client.submit_on_commit(job)
        try:
            handle.status()
            sys.exit("it was submitted before the commit")
        except UnknownJob:
            pass
    print(handle.result(30).answer)
    try:
        with transaction.atomic():
            lost = client.submit_on_commit(job)
            raise RuntimeError("rolled back")
    except RuntimeError:
        pass
    try:
        lost.status()
    except UnknownJob:
        print("never submitted")
    print(client.submit_on_commit(job).result(30).answer)
"""


def test_a_job_waits_for_django_s_transaction(told_stack: Stack, tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", DJANGO, str(told_stack.folder), str(tmp_path / "db")], capture_output=True, text=True, timeout=120,
                         env=clean_environ(), check=False)
    assert ran.stdout.split("\n")[:3] == ["committed", "never submitted", "committed"], ran.stdout + ran.stderr


# -- events ------------------------------------------------------------------------------------------------------------


def events_of(lines: Iterator[str], most: int = 1_000) -> list[tuple[str, str, dict[str, Any]]]:
    """(id, kind, data) of up to so many events."""
    found: list[tuple[str, str, dict[str, Any]]] = []
    here: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(": ")
        if line and not line.startswith(":"):
            here[name] = value
        elif "data" in here:
            found.append((here["id"], here["event"], json.loads(here["data"])))
            here = {}
            if len(found) == most:
                break
    return found


def test_a_job_s_events_go_on_after_a_disconnect_and_the_api_s_death(told_stack: Stack, raw: httpx.Client) -> None:
    members = tuple(Member(model=m) for m in ("test/say:42", "test/slow:6000", "test/say:41"))
    handle = told_stack.client.submit(Ensemble(members=members, prompt="6*7?", early_stop=False))
    with raw.stream("GET", f"/jobs/{handle.job_id}/events") as answer:
        seen = events_of(answer.iter_lines(), 2)
    assert [kind for _, kind, _ in seen] == ["reply", "reply"]
    told_stack.kill("api")

    def rest() -> list[tuple[str, str, dict[str, Any]]]:
        with raw.stream("GET", f"/jobs/{handle.job_id}/events", headers={"Last-Event-ID": seen[-1][0]}) as answer:
            assert answer.status_code == 200
            return events_of(answer.iter_lines())

    later = wait_for(rest)
    assert [kind for _, kind, _ in later] == ["reply", "round", "verdict", "ended"]
    assert sorted(d["turn"] for _, kind, d in seen + later if kind == "reply") == [0, 1, 2]
    assert later[-1][2]["status"] == "done"
    with raw.stream("GET", f"/jobs/{handle.job_id}/events") as answer:  # all of it again, of a job that has ended
        again = events_of(answer.iter_lines())
    assert sorted(k for _, k, _ in again) == sorted(k for _, k, _ in seen + later)
    with raw.stream("GET", f"/jobs/{handle.job_id}/events", headers={"Last-Event-ID": "e"}) as answer:
        assert events_of(answer.iter_lines()) == []
    assert raw.get(f"/jobs/{handle.job_id}/events", headers={"Last-Event-ID": "nonsense"}).status_code == 400
    assert raw.get("/jobs/nothing/events").status_code == 404


# -- erasing -----------------------------------------------------------------------------------------------------------


def everywhere(stack: Stack, job_id: str) -> list[str]:
    """Where anything of a job lies, in S3 and in all of Redis."""
    redis = stack.client.ledger.redis
    found = [k for k in stack.client.archive.store.keys("") if job_id in k]
    for key in redis.scan_iter("*"):
        kind = redis.type(key)
        texts = {"string": lambda k: [redis.get(k)], "hash": lambda k: [*redis.hgetall(k).items()], "set": redis.smembers,
                 "zset": lambda k: redis.zrange(k, 0, -1), "list": lambda k: redis.lrange(k, 0, -1)}[kind](key)
        found += [key] if job_id in key or any(job_id in str(t) for t in texts) else []
    return found


def test_deleting_a_job_erases_every_copy_and_says_what(told_stack: Stack, raw: httpx.Client, receiver: Receiver) -> None:
    """Long prompts and replies, two rounds, a dead letter's neighbour, and a notice that waits: all of it is gone."""
    receiver.statuses += [500] * 50
    long = "word " * 400
    team = "debate:test/echo,test/echo;rounds=2;early_stop=false;answer_kind=number"
    made = raw.post("/responses", json={"model": team, "input": long, "metadata": {"webhook": receiver.url}})
    job_id = made.json()["symposia"]["job_id"]
    wait_for(lambda: receiver.came)
    assert len([k for k in everywhere(told_stack, job_id) if k.startswith("jobs/")]) > 4
    asked: list[str] = []

    def eraser(places: Places, wanted: str) -> int:
        asked.append(wanted)
        return 0

    keeps_copies("of a test", eraser)
    erased = told_stack.client.delete(job_id)
    assert erased.copies["s3"] > 4
    assert erased.copies["notices"] >= 1
    assert erased.copies["ledger"] >= 2
    assert asked == [job_id]
    # what is left is a note to look once more, without anything of the job but its id
    wait_for(lambda: everywhere(told_stack, job_id) in ([], [told_stack.client.ledger.key("erased")]), 20)
    assert raw.get(f"/jobs/{job_id}").status_code == 404
    assert raw.get(f"/responses/resp_{job_id}").status_code == 404
    with pytest.raises(UnknownJob):
        told_stack.client.delete(job_id)


def test_delete_over_http_and_by_command_cancels_what_runs(told_stack: Stack, raw: httpx.Client) -> None:
    handle = told_stack.client.submit(Inference(model="test/slow:120000", prompt="?"))
    wait_for(lambda: handle.status().state == "running")
    gone = raw.delete(f"/jobs/{handle.job_id}")
    assert gone.json()["deleted"] is True
    assert gone.json()["erased"]["s3"] >= 1
    with pytest.raises(UnknownJob):
        handle.status()
    other = told_stack.client.submit(echo())
    other.result(30)
    assert told_stack.json("delete", other.job_id)[0]["copies"]["s3"] >= 1
    assert "UnknownJob" in told_stack.run("delete", other.job_id, expect=2).stderr


def test_what_is_not_to_be_stored_is_gone_once_it_was_answered(told_stack: Stack, raw: httpx.Client) -> None:
    made = raw.post("/responses", json={"model": "test/echo", "input": "secret", "store": False}).json()
    assert made["output"][0]["content"][0]["text"] == "secret"
    assert raw.get(f"/responses/{made['id']}").status_code == 404
    wait_for(lambda: told_stack.client.archive.store.keys(f"jobs/{made['symposia']['job_id']}/") == [])


def test_what_has_outlived_its_life_is_swept_and_nothing_else(told_stack: Stack) -> None:
    places = Places(told_stack.client.ledger, told_stack.client.archive)
    ensemble = Ensemble(members=(Member(model="test/say:1"),) * 3, prompt="?", early_stop=False)
    old = told_stack.client.submit(ensemble)
    old.result(30)
    running_one = told_stack.client.submit(Inference(model="test/slow:60000", prompt="x" * 600))
    wait_for(lambda: running_one.status().state == "running")
    time.sleep(1.5)
    # Given lives of a second: first the transcript goes
    second = 1 / 86_400
    lives = RetentionSettings(jobs_days=30, transcripts_days=second)
    assert sweep(places, lives)["transcripts"] >= 1
    result = told_stack.client.archive.result(old.job_id)
    assert result is not None
    assert (result.answer, result.rounds, len(result.verdict.votes if result.verdict else ())) == ("1", (), 3)
    assert told_stack.client.archive.store.keys(f"jobs/{old.job_id}/") == [
        f"jobs/{old.job_id}/cut/{int(result.ended_at * 1000)}", f"jobs/{old.job_id}/result.json"]
    # then the job, however young its neighbours; what runs stays
    time.sleep(1.5)
    young = told_stack.client.submit(echo())
    young.result(30)
    assert sweep(places, RetentionSettings(jobs_days=1.2 * second))["jobs"] >= 1
    assert told_stack.client.archive.result(old.job_id) is None
    assert young.result(5).answer == "hello"
    assert running_one.status().state == "running"
    with pytest.raises(NotYet):
        from symposia_shared.erasing import erase
        erase(places, running_one.job_id)
    running_one.cancel()
    running_one.wait(30)
