"""Batches and files, driven by OpenAI's own client as it is published, by the command line, and by raw HTTP where those would not send what is wrong."""

from __future__ import annotations

import asyncio
import csv
import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from stack import Stack, running_stack, wait_for

from symposia import Inference
from symposia.batches import TenantBatches
from symposia_shared.ledger.tenants import Keys

TEAM = "ensemble:test/say:42,test/say:It is 42,test/say:41;early_stop=false;answer_kind=number"


def line(custom_id: str, *, model: str = "test/echo", say: str = "one two", url: str = "/v1/chat/completions", **more: Any) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url,
                       "body": {"model": model, "messages": [{"role": "user", "content": say}], **more}})


def input_of(*lines: str) -> tuple[str, bytes]:
    return "requests.jsonl", ("\n".join(lines) + "\n").encode()


def ended(client: OpenAI, batch_id: str, timeout_s: float = 90.0) -> Any:
    """The batch once it has ended."""
    def over() -> Any:
        found = client.batches.retrieve(batch_id)
        return found if found.status in ("completed", "failed", "expired", "cancelled") else None

    return wait_for(over, timeout_s)


def rows(client: OpenAI, file_id: str | None) -> list[dict[str, Any]]:
    assert file_id is not None
    return [json.loads(row) for row in client.files.content(file_id).text.splitlines()]


def test_a_batch_lives_its_whole_life_and_bad_lines_disturb_no_other(client: OpenAI) -> None:
    lines = [line("a", say="one two three"), "no json", line("b", model=TEAM, say="6 * 7?"), line("a", say="the id came before"),
             line("c", model="nobody"), line("d", n=2), line("e", stream=True), line("f", url="/v1/embeddings"), "", line("g", model="test/failing:bad_prompt")]
    file = client.files.create(file=input_of(*lines), purpose="batch")
    assert (file.purpose, file.filename, file.bytes, file.object) == ("batch", "requests.jsonl", len(input_of(*lines)[1]), "file")
    made = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"name": "first"})
    assert made.object == "batch"
    assert made.status in ("validating", "in_progress")
    batch = ended(client, made.id)
    assert batch.status == "completed"
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (9, 3, 6)
    assert batch.metadata == {"name": "first"}
    assert batch.in_progress_at <= batch.finalizing_at <= batch.completed_at <= batch.expires_at
    answers = rows(client, batch.output_file_id)
    assert [a["custom_id"] for a in answers] == ["a", "b", "d"]
    body = answers[0]["response"]["body"]
    assert (answers[0]["response"]["status_code"], answers[0]["error"]) == (200, None)
    assert (body["choices"][0]["message"]["content"], body["usage"]["total_tokens"]) == ("one two three", 6)
    assert answers[1]["response"]["body"]["symposia"]["verdict"]["answer"] == "42"
    assert len(answers[2]["response"]["body"]["choices"]) == 2
    errors = {e["error"]["line"]: e for e in rows(client, batch.error_file_id)}
    assert {n: e["error"]["code"] for n, e in errors.items()} == {
        2: "invalid_json_line", 4: "duplicate_custom_id", 5: "model_not_found", 7: "invalid_request_error", 8: "invalid_url", 10: "bad_prompt"}
    assert errors[5]["custom_id"] == "c"
    assert errors[5]["response"]["status_code"] == 404
    assert batch.usage.total_tokens > 0


def test_files_are_listed_read_and_deleted(client: OpenAI) -> None:
    name, text = input_of(line("a"), line("b"))
    first, second = (client.files.create(file=(name, text), purpose="batch") for _ in range(2))
    assert client.files.content(first.id).read() == text
    assert client.files.retrieve(first.id).bytes == len(text)
    listed = [f.id for f in client.files.list(purpose="batch", limit=1)]
    assert listed.index(second.id) < listed.index(first.id), "the newest comes first, over pages of one"
    assert client.files.delete(first.id).deleted
    for ask in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            ask(first.id)


def test_batches_are_listed_newest_first_over_pages(client: OpenAI) -> None:
    file = client.files.create(file=input_of(line("a")), purpose="batch")
    made = [client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h").id for _ in range(3)]
    page = client.batches.list(limit=2)
    assert len(page.data) == 2
    assert page.has_more
    listed = [b.id for b in client.batches.list(limit=2)]
    assert set(made) <= set(listed)
    for batch_id in made:
        ended(client, batch_id)


def test_a_batch_of_texts_and_of_vectors(client: OpenAI) -> None:
    texts = json.dumps({"custom_id": "t", "method": "POST", "url": "/v1/completions", "body": {"model": "test/echo", "prompt": ["one two", "three"]}})
    vectors = json.dumps({"custom_id": "v", "method": "POST", "url": "/v1/embeddings", "body": {"model": "test/echo", "input": ["a", "b"]}})
    file = client.files.create(file=input_of(texts), purpose="batch")
    batch = ended(client, client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="1h").id)
    assert [c["text"] for c in rows(client, batch.output_file_id)[0]["response"]["body"]["choices"]] == ["one two", "three"]
    file = client.files.create(file=input_of(vectors), purpose="batch")
    batch = ended(client, client.batches.create(input_file_id=file.id, endpoint="/v1/embeddings", completion_window="1h").id)
    assert len(rows(client, batch.output_file_id)[0]["response"]["body"]["data"]) == 2


def test_auto_lines_go_to_the_model_the_batch_names(client: OpenAI) -> None:
    file = client.files.create(file=input_of(line("a", model="auto", say="hello")), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h",
                                 extra_body={"symposia": {"auto_model": "test/echo"}})
    assert rows(client, ended(client, made.id).output_file_id)[0]["response"]["body"]["choices"][0]["message"]["content"] == "hello"
    refused = ended(client, client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h").id)
    assert refused.output_file_id is None
    assert "auto" in rows(client, refused.error_file_id)[0]["error"]["message"]


def test_a_batch_asked_for_again_behind_its_key_is_the_same_batch(client: OpenAI, raw: httpx.Client) -> None:
    file = client.files.create(file=input_of(line("a")), purpose="batch")
    body = {"input_file_id": file.id, "endpoint": "/v1/chat/completions", "completion_window": "1h"}
    headers = {"Idempotency-Key": f"nightly {file.id}"}
    with ThreadPoolExecutor(8) as pool:  # at once, as a client that lost its answer and its replica do
        made = list(pool.map(lambda _: raw.post("/batches", json=body, headers=headers), range(8)))
    assert [r.status_code for r in made] == [200] * 8
    (batch_id,) = {r.json()["id"] for r in made}
    assert len(rows(client, ended(client, batch_id).output_file_id)) == 1
    # When it is asked for once more after its end, then it is told as it ended, and is not run again
    again = raw.post("/batches", json=body, headers=headers)
    assert (again.json()["id"], again.json()["status"], again.headers["idempotency-replayed"]) == (batch_id, "completed", "true")
    other = raw.post("/batches", json={**body, "completion_window": "2h"}, headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert raw.post("/batches", json=body).json()["id"] != batch_id


def test_cancel_stops_what_runs_within_a_second_and_keeps_what_has_ended(client: OpenAI, stack: Stack) -> None:
    lines = [line(f"quick-{n}") for n in range(3)] + [line(f"slow-{n}", model="test/slow:600000") for n in range(150)]
    file = client.files.create(file=input_of(*lines), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    with pytest.raises(openai.BadRequestError, match="has not ended"):
        client.files.delete(file.id)
    wait_for(lambda: client.batches.retrieve(made.id).request_counts.completed == 3)
    assert client.batches.cancel(made.id).status == "cancelling"
    pool = next(w for w in stack.client.ledger.workers().values() if w["role"] == "pool")
    assert pool
    wait_for(lambda: stack.client.ledger.redis.zcard(stack.client.ledger.key("leases")) == 0, 10)
    batch = ended(client, made.id)
    assert batch.status == "cancelled"
    assert [a["custom_id"] for a in rows(client, batch.output_file_id)] == ["quick-0", "quick-1", "quick-2"]
    left = rows(client, batch.error_file_id)
    assert len(left) == 150
    assert {e["error"]["code"] for e in left} == {"batch_cancelled"}
    with pytest.raises(openai.BadRequestError):
        client.batches.cancel(made.id)


def test_an_expired_batch_keeps_what_has_ended_and_can_be_gone_on_with(client: OpenAI, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [line("quick"), line("slow", model="test/slow:8000"), line("bad", model="nobody")]
    file = client.files.create(file=input_of(*lines), purpose="batch")
    monkeypatch.setattr("symposia_shared.batches.windows.SHORTEST_S", 1)
    zero = stack.stats()
    made = stack.client.batches.create(file.id, completion_window="4s")
    batch = ended(client, made.id)
    assert batch.status == "expired"
    assert [a["custom_id"] for a in rows(client, batch.output_file_id)] == ["quick"]
    assert {e["custom_id"]: e["error"]["code"] for e in rows(client, batch.error_file_id)} == {"slow": "batch_expired", "bad": "model_not_found"}
    resumed = stack.json("batch", "resume", made.id, "--window", "10m", "--watch")
    assert (resumed["status"], resumed["request_counts"]) == ("completed", {"total": 3, "completed": 2, "failed": 1})
    assert [a["custom_id"] for a in rows(client, resumed["output_file_id"])] == ["quick", "slow"]
    assert stack.since_of(zero)["calls_recorded"] == 2, "what had ended was not asked again"


def test_a_window_that_cannot_be_kept_is_refused_with_the_earliest_time(client: OpenAI, stack: Stack) -> None:
    stack.client.batches.records.measured({"test/say:slowly": 0.01}, now_s=time.time())
    file = client.files.create(file=input_of(*(line(f"{n}", model="test/say:slowly") for n in range(9))), purpose="batch")
    with pytest.raises(openai.BadRequestError, match=r"takes 900 s, and ends at \d{4}-.* Ask for at least 16m") as refused:
        client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="10m")  # type: ignore[arg-type]
    assert refused.value.param == "completion_window"
    assert ended(client, client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h").id).status == "completed"


def test_a_file_without_lines_makes_a_batch_fail_with_the_reason(client: OpenAI) -> None:
    file = client.files.create(file=("empty.jsonl", b"\n\n"), purpose="batch")
    batch = ended(client, client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h").id)
    assert batch.status == "failed"
    assert batch.errors.data[0].code == "empty_file"


def test_what_is_not_supported_is_refused_by_name(raw: httpx.Client) -> None:
    file = raw.post("files", data={"purpose": "batch"}, files={"file": input_of(line("a"))}).json()
    good = {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    for change, param in (({"endpoint": "/v1/moderations"}, "endpoint"), ({"completion_window": "5"}, "completion_window"), ({"priority": 1}, "priority"),
                          ({"completion_window": "1s"}, "completion_window"), ({"metadata": {"a": 1}}, "metadata"), ({"metadata": "a"}, "metadata"),
                          ({"output_expires_after": {"anchor": "created_at", "seconds": 5}}, "output_expires_after"), ({"endpoint": None}, "endpoint"),
                          ({"symposia": {"auto": "x"}}, "symposia")):
        answer = raw.post("batches", json={**good, **change})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), change
    assert raw.post("batches", json={**good, "input_file_id": "file-none"}).status_code == 404
    assert raw.get("batches/batch_00000000").status_code == 404
    assert raw.get("batches/none").status_code == 404
    assert raw.get("batches", params={"limit": "0"}).json()["error"]["param"] == "limit"
    assert raw.get("files", params={"order": "up"}).json()["error"]["param"] == "order"
    for data, files, param in (({"purpose": "vision"}, {"file": input_of("x")}, "purpose"), ({}, {"file": input_of("x")}, "purpose"),
                               ({"purpose": "batch"}, {"other": input_of("x")}, "other"), ({"purpose": "batch", "x": "y"}, {"file": input_of("x")}, "x")):
        answer = raw.post("files", data=data, files=files)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), param
    assert raw.post("files", json={}).status_code == 415
    torn = raw.post("files", content=b"--x\r\nnothing", headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert torn.json()["error"]["code"] == "invalid_multipart"


def test_the_purpose_may_follow_the_file(raw: httpx.Client) -> None:
    text = input_of(line("a"))[1]
    body = (b'--x\r\nContent-Disposition: form-data; name="file"; filename="f.jsonl"\r\n\r\n' + text
            + b'\r\n--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x--\r\n')
    answer = raw.post("files", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert answer.status_code == 200
    assert raw.get(f"files/{answer.json()['id']}/content").content == text


def test_tenants_see_no_batch_and_no_file_of_one_another(client: OpenAI, url: str, stack: Stack) -> None:
    file = client.files.create(file=input_of(line("a")), purpose="batch")
    batch = ended(client, client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h").id)
    other, _ = Keys(stack.client.ledger).create("elsewhere")
    with OpenAI(base_url=url, api_key=other, max_retries=0) as stranger:
        assert not stranger.files.list().data
        assert not stranger.batches.list().data
        for ask, what in ((stranger.files.retrieve, file.id), (stranger.files.content, batch.output_file_id), (stranger.batches.retrieve, batch.id),
                          (stranger.batches.cancel, batch.id)):
            with pytest.raises(openai.NotFoundError):
                ask(what)


def test_the_asynchronous_client_lives_a_batch_through(url: str, key: str) -> None:
    async def live() -> list[str]:
        async with AsyncOpenAI(base_url=url, api_key=key, max_retries=0) as client:
            file = await client.files.create(file=input_of(line("a"), line("b", say="three")), purpose="batch")
            batch = await client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
            while (batch := await client.batches.retrieve(batch.id)).status != "completed":
                await asyncio.sleep(0.2)
            assert batch.id in [b.id async for b in client.batches.list(limit=1)]
            assert batch.output_file_id
            text = (await client.files.content(batch.output_file_id)).text
            assert (await client.files.delete(batch.output_file_id)).deleted
            return [json.loads(row)["response"]["body"]["choices"][0]["message"]["content"] for row in text.splitlines()]

    assert asyncio.run(live()) == ["one two", "three"]


def test_an_interactive_request_does_not_wait_behind_a_batch(client: OpenAI, stack: Stack) -> None:
    lines = [line(f"{n}", model="test/slow:20000") for n in range(300)]
    file = client.files.create(file=input_of(*lines), purpose="batch")
    made = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    wait_for(lambda: client.batches.retrieve(made.id).status == "in_progress")
    wait_for(lambda: all(w["held"] >= w["slots"] - w["slots"] // 16 for w in stack.client.ledger.workers().values() if w["role"] == "pool"))
    began = time.monotonic()
    client.chat.completions.create(model="test/echo", messages=[{"role": "user", "content": "now"}])
    took = time.monotonic() - began
    client.batches.cancel(made.id)
    ended(client, made.id)
    assert took < 15, "it waited for a line of the batch to end"


# -- the command line


def test_a_csv_table_is_answered_row_by_row(stack: Stack, tmp_path: Path) -> None:
    source, target = tmp_path / "reviews.csv", tmp_path / "out.csv"
    source.write_text('id,review\n1,"good, really"\n2,bad\n3,\n')
    ran = stack.run("batch", "submit", str(source), "--template", "{review}", "--model", "test/echo", "-o", str(target))
    assert "2 of 3 lines answered, 1 failed" in ran.stdout
    table = list(csv.DictReader(target.open()))
    assert [(r["id"], r["review"], r["answer"]) for r in table] == [("1", "good, really", "good, really"), ("2", "bad", "bad"), ("3", "", "")]
    assert table[2]["error"].startswith("invalid_request_error: line 3")


def test_a_parquet_table_keeps_its_types(stack: Stack, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    source, target = tmp_path / "t.parquet", tmp_path / "out.parquet"
    before = pyarrow.table({"n": pyarrow.array([1, 2], type=pyarrow.int16()), "at": pyarrow.array([0, 1], type=pyarrow.timestamp("us")), "answer": ["x", "y"]})
    parquet.write_table(before, source)
    stack.run("batch", "submit", str(source), "--template", "{n} {answer}", "--model", TEAM, "-o", str(target))
    after = parquet.read_table(target)
    assert after.select(["n", "at", "answer"]).equals(before)
    assert after.column("answer_").to_pylist() == ["42", "42"]


def test_jsonl_tables_in_s3_are_named_by_a_pattern(stack: Stack, tmp_path: Path) -> None:
    store = stack.client.archive.store
    for n in (1, 2):
        store.put(f"inbox/{n}.jsonl", json.dumps({"q": f"row {n}"}).encode())
    target = tmp_path / "out.jsonl"
    stack.run("batch", "submit", f"s3://{store.bucket}/inbox/*.jsonl", "--template", "{q}", "-m", "test/echo", "-o", str(target))
    assert [(r["q"], r["answer"]) for r in map(json.loads, target.read_text().splitlines())] == [("row 1", "row 1"), ("row 2", "row 2")]


def test_the_command_line_follows_lists_and_reads_a_batch(stack: Stack, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(input_of(line("a"), "broken", line("b", model="auto"))[1])
    made = stack.run("batch", "submit", str(source), "--auto", "test/echo", "--metadata", "k=v").stdout.strip()
    found = stack.json("batch", "watch", made)
    assert (found["status"], found["request_counts"], found["metadata"]) == ("completed", {"total": 3, "completed": 2, "failed": 1}, {"k": "v"})
    assert made in [b["id"] for b in stack.json("batch", "list")]
    assert stack.json("batch", "results", made, "-o", str(target))["lines"] == 3
    assert [json.loads(row)["custom_id"] for row in target.read_text().splitlines()] == ["a", "b", None]
    assert "invalid_json_line" in stack.run("batch", "results", made, "--errors").stdout
    assert stack.run("batch", "cancel", made, expect=2).stderr.startswith("BadInput")
    assert stack.run("batch", "watch", "batch_00000000", expect=2).stderr.startswith("UnknownJob")
    assert "is completed" in stack.run("batch", "resume", made, expect=2).stderr


def test_exit_codes_tell_a_batch_that_failed_from_one_that_was_cancelled(stack: Stack, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"broken\n")
    stack.run("batch", "submit", str(source), "--watch", expect=4)
    source.write_bytes(input_of(line("a", model="test/slow:600000"))[1])
    made = stack.run("batch", "submit", str(source)).stdout.strip()
    stack.run("batch", "cancel", made)
    stack.run("batch", "watch", made, expect=5)


def test_a_template_that_names_no_column_is_refused_before_anything_is_kept(stack: Stack, tmp_path: Path) -> None:
    source = tmp_path / "t.csv"
    source.write_text("a,b\n1,2\n")
    assert "Use a, b" in stack.run("batch", "submit", str(source), "--template", "{c}", "-m", "test/echo", expect=2).stderr
    assert "needs --model" in stack.run("batch", "submit", str(source), "--template", "{a}", expect=2).stderr


# -- faults


def test_a_killed_coordinator_and_pool_cost_no_recorded_call_and_no_line(tmp_path: Path) -> None:
    with running_stack(tmp_path, "--test-models", "--no-flower", "--no-api") as stack:
        batches: TenantBatches = stack.client.batches
        lines = [line(f"{n}", model="test/slow:300" if n % 3 else TEAM, say=f"line {n}") for n in range(120)]
        file = batches.put_file([input_of(*lines)[1]], "x.jsonl")
        made = batches.create(file.id)
        for role, done in (("coordinator", 10), ("pool", 40), ("coordinator", 70)):
            wait_for(lambda most=done: batches.get(made.id).counts.completed >= most, 90)
            stack.kill(role, signal.SIGKILL)
        wait_for(lambda: batches.get(made.id).ended, 120)
        batch = batches.get(made.id)
        assert (batch.status, batch.counts.completed, batch.counts.failed) == ("completed", 120, 0)
        assert [json.loads(row)["custom_id"] for row in batches.lines(batch, "out")] == [f"{n}" for n in range(120)]
        counted = stack.settled_stats()
        assert counted["jobs_submitted"] == 120
        assert counted["calls_repeated"] <= counted["in_flight_at_kills"]
        assert counted["commit_conflicts"] == 0
        # a job beside it was never in danger
        assert stack.client.submit(Inference(model="test/echo", prompt="after")).result(30).answer == "after"
