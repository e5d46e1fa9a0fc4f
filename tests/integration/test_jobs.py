from __future__ import annotations

import asyncio
import json
import threading
import time
import uuid
from pathlib import Path

import pytest
from stack import Stack, wait_for

from symposia import (
    AsyncClient,
    BadInput,
    Client,
    Ensemble,
    Inference,
    JobCancelled,
    JobFailed,
    Member,
    NoQuorum,
    NotPlaced,
    NotYet,
    Sampling,
    UnknownJob,
    UnknownModel,
)
from symposia_shared.settings import load


def say(*texts: str, **fields: object) -> Ensemble:
    return Ensemble.parse({"prompt": "How much is 6 times 7?", "members": [{"model": f"test/say:{t}"} for t in texts], **fields})


def test_ask_returns_what_the_model_said(stack: Stack) -> None:
    assert stack.client.ask("hello there", model="test/echo", timeout=30) == "hello there"


def test_an_ensemble_votes_and_the_result_lies_in_s3_once(stack: Stack) -> None:
    found = stack.client.submit(say("It is 42.", "The answer is 41.", "42", early_stop=False)).result(30)
    assert found.verdict is not None
    assert (found.verdict.answer, found.verdict.agreed, found.verdict.n) == ("42", True, 3)
    assert found.rounds[0].closed_by == "all"
    assert found.rounds[0].counted == (0, 1, 2)
    assert found.bill.calls == 3
    stored = stack.client.archive.store.get(f"jobs/{found.job_id}/result.json")
    assert stored is not None
    assert json.loads(stored)["verdict"]["answer"] == "42"
    assert found.result_uri == f"s3://symposia/jobs/{found.job_id}/result.json"
    assert stack.client.ledger.job(found.job_id) is None


def test_an_ensemble_stops_once_the_vote_can_no_longer_change(stack: Stack) -> None:
    job = Ensemble(prompt="How much is 6 times 7?", answer_kind="number",
                   members=[Member(model="test/say:42"), Member(model="test/say:It is 42"), Member(model="test/slow:60000")])
    begun = time.monotonic()
    found = stack.client.submit(job).result(30)
    assert time.monotonic() - begun < 30
    assert found.rounds[0].closed_by == "settled"
    assert found.rounds[0].counted == (0, 1)
    last = found.rounds[0].turns[2].reply
    assert last.kind == "abstention"
    assert last.cause == "settled"
    assert found.bill.uncounted_tokens_at_most > 0


def test_a_quorum_closes_the_round_and_names_the_straggler(stack: Stack) -> None:
    job = Ensemble(prompt="?", quorum=2, early_stop=False, members=[Member(model="test/say:1"), Member(model="test/slow:60000"), Member(model="test/say:2")])
    found = stack.client.submit(job).result(30)
    assert found.rounds[0].closed_by == "quorum"
    assert found.rounds[0].counted == (0, 2)
    assert getattr(found.rounds[0].turns[1].reply, "cause", "") == "quorum"


def test_the_deadline_closes_a_round_with_what_there_is(stack: Stack) -> None:
    members = [Member(model=f"test/{m}") for m in ("say:7", "slow:60000", "say:7")]
    job = Ensemble(prompt="?", deadline_s=2, early_stop=False, members=members)
    found = stack.client.submit(job).result(30)
    assert found.rounds[0].closed_by == "deadline"
    assert found.answer == "7"


def test_failures_are_values_and_too_few_voices_end_the_job(stack: Stack) -> None:
    failing = [Member(model="test/failing:out_of_memory"), Member(model="test/failing:timeout"), Member(model="test/say:5")]
    found = stack.client.submit(Ensemble(prompt="?", members=failing)).result(30)
    assert [getattr(t.reply, "cause", "spoke") for t in found.rounds[0].turns] == ["out_of_memory", "timeout", "spoke"]
    with pytest.raises(NoQuorum, match="needed 2 of its 3"):
        stack.client.submit(Ensemble(prompt="?", members=failing, quorum=2)).result(30)
    with pytest.raises(JobFailed, match="refused"):  # a cause that is never tried again, so that no deadline can come first
        stack.client.submit(Inference(model="test/failing:refused", prompt="?")).result(30)


def test_cancel_ends_a_job_that_runs(stack: Stack) -> None:
    handle = stack.client.submit(Inference(model="test/slow:120000", prompt="?"))
    wait_for(lambda: handle.status().state == "running")
    assert handle.cancel()
    with pytest.raises(JobCancelled):
        handle.result(30)
    assert handle.status().state == "cancelled"
    assert not handle.cancel()


def test_a_wait_that_ends_early_leaves_the_job_alone(stack: Stack) -> None:
    handle = stack.client.submit(Inference(model="test/slow:1500", prompt="?"))
    with pytest.raises(NotYet):
        handle.result(timeout=0.2)
    assert handle.result(30).answer == "slow 1500"


def test_rounds_come_as_they_are_closed_and_a_handle_can_be_made_again(stack: Stack) -> None:
    handle = stack.client.submit(say("1", "1", "1"))
    assert [r.round for r in handle.rounds()] == [0]
    assert Client(settings=load(stack.folder)).handle(handle.job_id).result(10).answer == "1"


def test_long_prompts_and_replies_take_the_way_through_s3(stack: Stack) -> None:
    text = "long prompt " + "x" * 50_000
    handle = stack.client.submit(Inference(model="test/echo", prompt=text, sampling=Sampling(max_tokens=100_000)))
    assert handle.result(60).answer == text
    ensemble = Ensemble(prompt=text, members=[Member(model="test/echo")] * 3, answer_kind="text", sampling=Sampling(max_tokens=100_000))
    assert stack.client.submit(ensemble).result(60).answer == text


def test_bad_input_is_refused_before_anything_is_recorded(stack: Stack) -> None:
    before = stack.stats()["jobs_submitted"]
    with pytest.raises(UnknownModel, match="models pull nobody/nothing"):
        stack.client.ask("?", model="nobody/nothing")
    with pytest.raises(UnknownJob):
        stack.client.handle(uuid.uuid4().hex).status()
    with pytest.raises(UnknownJob):
        stack.client.cancel("nosuchjob")
    with pytest.raises(BadInput, match="job id"):
        stack.client.submit(Inference(model="test/echo", prompt="x"), job_id="../x")
    assert stack.stats()["jobs_submitted"] == before


def test_an_id_is_used_once(stack: Stack) -> None:
    job_id = uuid.uuid4().hex
    stack.client.submit(Inference(model="test/echo", prompt="x"), job_id=job_id).result(30)
    with pytest.raises(BadInput, match="submitted before"):
        stack.client.submit(Inference(model="test/echo", prompt="x"), job_id=job_id)


def test_a_checkpoint_in_the_store_that_no_pool_wants_is_not_placed(stack: Stack) -> None:
    stack.client.archive.store.put("models/stored-only/manifest.json", b"{}")
    try:
        with pytest.raises(NotPlaced, match="symposia up --model stored-only"):
            stack.client.ask("?", model="stored-only")
    finally:
        stack.client.archive.store.delete("models/stored-only/manifest.json")


def test_a_prompt_whose_bytes_prove_it_too_long_is_refused_at_submit(stack: Stack) -> None:
    ledger = stack.client.ledger
    ledger.place("elsewhere", {"tiny": {"queue": "turns.tiny", "context": 16, "longest_token_bytes": 4}})
    try:
        with pytest.raises(BadInput, match="16 tokens of at most 4 bytes"):
            stack.client.ask("x" * 65, model="tiny")
        handle = stack.client.submit(Inference(model="tiny", prompt="x" * 64))
        assert "a pool that serves tiny; none is up" in handle.status().waiting_for[0]
        handle.cancel()
        with pytest.raises(JobCancelled):
            handle.result(30)
    finally:
        ledger.run("place", "elsewhere", "", "")


def test_two_asks_share_forward_passes_and_the_second_speaks_before_the_first_has_ended(stack: Stack) -> None:
    first = stack.client.submit(Inference(model="test/slow:4000", prompt="?"))
    wait_for(lambda: first.status().state == "running")
    second = stack.client.submit(Inference(model="test/slow:500", prompt="?"))
    one, two = (h.result(30).rounds[0].turns[0].reply.timing for h in (first, second))
    assert two.first_token_at is not None
    assert one.last_token_at is not None
    assert two.first_token_at < one.last_token_at


def test_a_thousand_at_once_all_end_once(stack: Stack) -> None:
    before = stack.settled_stats()
    handles = stack.client.submit_many([Inference(model="test/echo", prompt=f"job {i}") for i in range(1000)])
    answers = [h.result(120).answer for h in handles]
    assert answers == [f"job {i}" for i in range(1000)]
    after = stack.settled_stats()
    assert after["jobs_done"] - before["jobs_done"] == 1000
    assert after["calls_recorded"] - before["calls_recorded"] == 1000
    assert after["calls_repeated"] == before["calls_repeated"]


def test_the_async_client_never_blocks_the_event_loop(stack: Stack) -> None:
    async def main() -> tuple[list[str | None], float]:
        longest, last = 0.0, time.monotonic()

        async def beat() -> None:
            nonlocal longest, last
            while True:
                await asyncio.sleep(0.01)
                now = time.monotonic()
                longest, last = max(longest, now - last), now

        heart = asyncio.create_task(beat())
        async with AsyncClient(settings=load(stack.folder)) as client:
            handles = [await client.submit(Inference(model="test/slow:4000", prompt="?")) for _ in range(20)]
            found = [r.answer for r in await asyncio.gather(*handles)]
            assert await client.ask("x", model="test/echo") == "x"
            assert [r.round async for r in handles[0].rounds()] == [0]
        heart.cancel()
        return found, longest

    answers, longest = asyncio.run(main())
    assert answers == ["slow 4000"] * 20
    assert longest < 4.0  # each of the jobs takes at least that long: a blocking wait would show


def test_a_producer_may_submit_from_many_threads(stack: Stack) -> None:
    answers: list[str] = []
    threads = [threading.Thread(target=lambda i=i: answers.append(stack.client.ask(f"t{i}", model="test/echo", timeout=60))) for i in range(16)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(answers) == sorted(f"t{i}" for i in range(16))


def test_the_command_line_has_its_exit_codes_and_its_json(stack: Stack, tmp_path: Path) -> None:
    found = stack.json("ensemble", "How much is 6 times 7?", "--member", "test/say:42", "--member", "test/say:It is 42.", "--member", "test/garbage",
                       "--answer-kind", "number", "--seed", "7")
    assert found["verdict"]["answer"] == "42"
    assert set(found) >= {"job_id", "state", "verdict", "rounds", "bill", "result_uri"}
    assert set(found["verdict"]) >= {"answer", "agreed", "agreement", "n"}
    assert set(found["rounds"][0]) >= {"closed_by", "counted", "turns"}
    assert stack.json("result", found["job_id"])["result_uri"] == found["result_uri"]
    assert set(stack.json("status", found["job_id"])) >= {"job_id", "state", "round", "waiting_for"}
    assert any(j["job_id"] == found["job_id"] for j in stack.json("jobs"))
    assert stack.json("stats")["jobs_submitted"] > 0
    stack.run("ask", "", "--model", "test/echo", expect=2)
    stack.run("ask", "x", "--model", "no/such", expect=2)
    stack.run("status", "nosuchjob", expect=2)
    stack.run("ask", "x", "--model", "test/failing:bug", expect=4)
    slow = stack.json("ask", "x", "--model", "test/slow:60000", "--no-wait")["job_id"]
    stack.run("cancel", slow)
    stack.run("result", slow, expect=5)
    stack.run("result", slow, "--timeout", "5", expect=5)
    (tmp_path / "job.yaml").write_text("kind: ensemble\nprompt: x\nmembers: [{model: test/say:1}, {model: test/say:1}, {model: test/say:2}]\n")
    assert stack.json("run", str(tmp_path / "job.yaml"))["verdict"]["answer"] == "1"


def test_without_a_stack_every_command_says_so(tmp_path: Path) -> None:
    empty = Stack.__new__(Stack)
    empty.folder = tmp_path
    for command in (("ask", "x", "--model", "test/echo"), ("status", "x"), ("stats",), ("info",)):
        said = empty.run(*command, expect=3).stderr
        assert "symposia up" in said
        assert "Traceback" not in said
