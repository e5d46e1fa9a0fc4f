"""Real processes, killed at bad moments: nothing is lost, no recorded call runs again."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from stack import Stack, running_stack, wait_for

from symposia import BrokerUnavailable, Ensemble, Inference, Member, Result, StoreUnavailable


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack that the tests of this file break, one after the other; each leaves it working."""
    with running_stack(tmp_path_factory.mktemp("broken"), "--test-models", "--no-flower", "--no-api") as running:
        yield running


@pytest.fixture
def own_stack(broken: Stack) -> Stack:
    """The stack, with counters that begin at what they are now."""
    broken.zero = broken.settled_stats()
    return broken


def slow_ensemble(ms: int = 2500) -> Ensemble:
    return Ensemble(prompt="?", answer_kind="text", early_stop=False, members=[Member(model=f"test/slow:{ms}")] * 3)


def whole(stack: Stack, found: Result) -> None:
    """The job ended once, with one result that stands."""
    assert found.state == "done"
    stored = stack.client.archive.store.get(f"jobs/{found.job_id}/result.json")
    assert stored is not None
    assert json.loads(stored)["job_id"] == found.job_id
    stats = stack.since()
    assert stats["jobs_done"] + stats["jobs_failed"] + stats["jobs_cancelled"] == stats["jobs_submitted"]
    assert stats["calls_repeated"] <= stats["in_flight_at_kills"]
    assert stats["commit_conflicts"] == 0


def test_a_killed_pool_loses_nothing_and_repeats_only_what_was_in_flight(own_stack: Stack) -> None:
    done = own_stack.client.submit(Inference(model="test/echo", prompt="before")).result(30)
    handle = own_stack.client.submit(slow_ensemble(4000))
    wait_for(lambda: handle.status().state == "running")
    old = own_stack.kill("pool")
    found = handle.wait(60)
    whole(own_stack, found)
    stats = own_stack.since()
    assert stats["in_flight_at_kills"] == 3
    assert stats["calls_repeated"] == 3
    assert stats["calls_recorded"] == 4
    assert own_stack.pid("pool") != old
    assert own_stack.client.handle(done.job_id).result(5).answer == "before"


def test_a_pool_that_is_told_to_stop_hands_back_what_it_cannot_end(own_stack: Stack) -> None:
    handle = own_stack.client.submit(slow_ensemble(12000))
    wait_for(lambda: handle.status().state == "running")
    old = own_stack.kill("pool", signal.SIGTERM)
    found = handle.wait(90)
    whole(own_stack, found)
    stats = own_stack.since()
    assert (stats["calls_handed_back"], stats["in_flight_at_kills"], stats["calls_repeated"]) == (3, 0, 0)
    assert own_stack.pid("pool") != old


def test_a_killed_engine_process_is_replaced_and_its_turns_run_again(own_stack: Stack) -> None:
    handle = own_stack.client.submit(slow_ensemble(4000))
    wait_for(lambda: handle.status().state == "running")
    pool, engine = own_stack.pid("pool"), own_stack.kill("engine")
    found = handle.wait(60)
    whole(own_stack, found)
    assert own_stack.pid("pool") == pool
    assert wait_for(lambda: own_stack.pid("engine") != engine)
    assert own_stack.since()["calls_repeated"] == 3


def test_an_engine_that_dies_again_while_it_is_being_replaced_is_replaced_again(own_stack: Stack) -> None:
    handle = own_stack.client.submit(slow_ensemble(2000))
    wait_for(lambda: handle.status().state == "running")
    for _ in range(3):
        killed = own_stack.kill("engine")
        wait_for(lambda dead=killed: own_stack.pid("engine") != dead)
    whole(own_stack, handle.wait(90))
    assert own_stack.client.ask("still there?", model="test/echo", timeout=30) == "still there?"


def test_a_turn_that_always_kills_its_engine_is_given_up(own_stack: Stack) -> None:
    members = [Member(model="test/failing:crash"), *[Member(model="test/say:alive")] * 2]
    found = own_stack.client.submit(Ensemble(prompt="?", answer_kind="text", members=members)).wait(120)
    assert found.answer == "alive"
    last = own_stack.client.submit(Inference(model="test/echo", prompt="after")).result(60)
    assert last.answer == "after"


def test_a_prompt_that_always_kills_its_engine_ends_as_poison_among_the_dead_letters(own_stack: Stack) -> None:
    found = own_stack.client.submit(Inference(model="test/failing:crash", prompt="?")).wait(120)
    assert found.state == "failed"
    assert own_stack.json("dead", "show", found.job_id)["reason"] == "poison"
    assert own_stack.since()["in_flight_at_kills"] == 4
    assert own_stack.client.ask("still there?", model="test/echo", timeout=60) == "still there?"


def test_a_killed_coordinator_is_caught_up_with(own_stack: Stack) -> None:
    handle = own_stack.client.submit(slow_ensemble(1500))
    wait_for(lambda: handle.status().state == "running")
    own_stack.kill("coordinator")
    late = own_stack.client.submit(slow_ensemble(100))
    whole(own_stack, handle.wait(60))
    whole(own_stack, late.wait(60))
    assert own_stack.since()["calls_repeated"] == 0


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGTERM])
def test_a_restarted_broker_loses_nothing_and_no_worker_exits(own_stack: Stack, sig: signal.Signals) -> None:
    pids = [own_stack.pid(role) for role in ("pool", "coordinator", "engine")]
    handles = [own_stack.client.submit(slow_ensemble()) for _ in range(3)]
    wait_for(lambda: all(h.status().state == "running" for h in handles))
    own_stack.kill("broker", sig)
    for handle in handles:
        whole(own_stack, handle.wait(60))
    assert own_stack.since()["calls_repeated"] == 0
    assert [own_stack.pid(role) for role in ("pool", "coordinator", "engine")] == pids
    assert own_stack.client.ask("still there?", model="test/echo", timeout=30) == "still there?"


def test_while_s3_is_down_replies_wait_and_nothing_is_computed_twice(own_stack: Stack) -> None:
    handles = [own_stack.client.submit(Inference(model="test/slow:1500", prompt="?")), own_stack.client.submit(slow_ensemble(1500))]
    wait_for(lambda: all(h.status().state == "running" for h in handles))
    store = own_stack.pid("store")
    os.kill(store, signal.SIGSTOP)  # hangs; a kill would be restarted at once
    time.sleep(4)
    os.kill(store, signal.SIGCONT)
    own_stack.kill("store")
    for handle in handles:
        whole(own_stack, handle.wait(90))
    assert own_stack.since()["calls_repeated"] == 0


def test_a_broker_that_is_away_is_told_in_one_sentence(own_stack: Stack) -> None:
    supervisor = own_stack.pid("broker")
    os.kill(supervisor, signal.SIGSTOP)
    try:
        os.environ["SYMPOSIA_BROKER_URL"] = "redis://127.0.0.1:1/0"
        from symposia import Client

        with pytest.raises(BrokerUnavailable, match="symposia up"):
            Client(own_stack.folder).ask("x", model="test/echo")
    finally:
        os.environ.pop("SYMPOSIA_BROKER_URL")
        os.kill(supervisor, signal.SIGCONT)


def test_an_s3_that_is_away_refuses_a_long_prompt_and_records_nothing(own_stack: Stack) -> None:
    before = own_stack.since()["jobs_submitted"]
    settings = own_stack.client.settings.model_copy(update={"s3": own_stack.client.settings.s3.model_copy(update={"endpoint_url": "http://127.0.0.1:1"})})
    from symposia import Client

    with Client(settings=settings) as client, pytest.raises(StoreUnavailable, match="S3 at"):
        client.ask("x" * 5000, model="test/echo")
    assert own_stack.since()["jobs_submitted"] == before


def test_after_a_second_up_the_old_jobs_are_found(tmp_path: Path) -> None:
    with running_stack(tmp_path, "--test-models", "--no-flower", "--no-api") as first:
        done = first.client.submit(Inference(model="test/echo", prompt="kept")).result(30)
        waiting = first.client.submit(Inference(model="test/slow:8000", prompt="?"))
        wait_for(lambda: waiting.status().state == "running")
    with running_stack(tmp_path, "--test-models", "--no-flower", "--no-api") as second:
        assert second.client.handle(done.job_id).result(10).answer == "kept"
        whole(second, second.client.handle(waiting.job_id).wait(60))


def test_with_the_sweeper_paused_chords_finish_healthy_rounds(tmp_path: Path) -> None:
    with running_stack(tmp_path, "--test-models", "--no-flower", "--no-api", SYMPOSIA_WATCH="off") as stack:
        found = [stack.client.submit(slow_ensemble(200)).result(30) for _ in range(3)]
        assert [f.rounds[0].closed_by for f in found] == ["all"] * 3


def test_with_the_chords_keys_deleted_the_ledger_finishes_them(own_stack: Stack) -> None:
    handle = own_stack.client.submit(slow_ensemble(2500))
    wait_for(lambda: handle.status().state == "running")
    redis = own_stack.client.ledger.redis
    deleted = sum(redis.delete(key) for key in redis.scan_iter(own_stack.client.ledger.key("celery-task-meta-*")))
    deleted += sum(redis.delete(key) for key in redis.scan_iter(own_stack.client.ledger.key("chord-*")))
    deleted += sum(redis.delete(key) for key in redis.scan_iter(own_stack.client.ledger.key("unacked*")))
    assert deleted > 0
    whole(own_stack, handle.wait(60))
    assert own_stack.since()["calls_repeated"] == 0


def test_a_doorbell_that_is_lost_doubled_or_garbage_does_no_harm(own_stack: Stack) -> None:
    redis, key = own_stack.client.ledger.redis, own_stack.client.ledger.key
    pool = own_stack.pid("pool")
    for garbage in ("not json", "[1, 2]", '{"a": 1}', '{"body": "e30=", "headers": {}, "properties": {"delivery_info": {}, "delivery_tag": "x"}}', ""):
        redis.lpush(key("turns.test"), garbage)
        redis.lpush(key("coordinator"), garbage)
    handle = own_stack.client.submit(Inference(model="test/slow:500", prompt="?"))
    assert handle.result(60).answer == "slow 500"
    for _ in range(5):
        own_stack.client.bell.turn(__import__("symposia_shared.ledger", fromlist=["Seat"]).Seat(handle.job_id, 0, 0), "turns.test", kind="inference")
        own_stack.client.bell.advance(handle.job_id, kind="inference")
    assert own_stack.client.ask("still there?", model="test/echo", timeout=60) == "still there?"
    assert own_stack.pid("pool") == pool
    assert own_stack.since()["calls_started"] == 2


def test_jobs_due_later_and_what_recurs_survive_kills_and_run_once(own_stack: Stack, tmp_path: Path) -> None:
    # Given one that recurs every two seconds and a job due in six
    (tmp_path / "job.yaml").write_text("kind: inference\nmodel: test/echo\nprompt: later\n")
    own_stack.run("schedule", "add", "often", str(tmp_path / "job.yaml"), "--every", "2s")
    later = own_stack.client.submit(Inference(model="test/echo", prompt="later"), delay_s=6)
    assert "its time" in str(later.status())
    # When the broker and the coordinator are killed before it is due
    own_stack.kill("broker")
    own_stack.kill("coordinator")
    # Then the later one runs, and each occurrence is one job
    assert later.result(60).answer == "later"
    assert own_stack.json("run", str(tmp_path / "job.yaml"), "--in", "1s")["verdict"]["answer"] == "later"

    def occurred() -> list[str]:
        return [job_id for job_id, *_ in own_stack.client.ledger.ended(1000) if job_id.startswith("often-")]

    wait_for(lambda: len(occurred()) >= 3)
    own_stack.run("schedule", "rm", "often")
    assert len(set(occurred())) == len(occurred())
    stats = own_stack.since()
    assert stats["jobs_done"] == stats["jobs_submitted"] == 2 + len(occurred())
    assert own_stack.json("schedule", "list") == {"schedules": [], "later": []}


def test_a_coordinator_that_was_away_catches_up_with_passed_deadlines_and_times(own_stack: Stack) -> None:
    # Given a coordinator that hangs, while a deadline passes, a later job falls due and a round is closed
    coordinator = own_stack.pid("coordinator")
    late = own_stack.client.submit(Ensemble(prompt="?", answer_kind="text", early_stop=False, deadline_s=3,
                                            members=[*[Member(model="test/say:yes")] * 2, Member(model="test/slow:60000")]))
    wait_for(lambda: late.status().state == "running")
    os.kill(coordinator, signal.SIGSTOP)
    due = own_stack.client.submit(Inference(model="test/echo", prompt="due"), delay_s=1)
    closed = own_stack.client.submit(slow_ensemble(100))
    time.sleep(5)
    assert not due.status().ended
    # When it comes back
    os.kill(coordinator, signal.SIGCONT)
    # Then all of it is caught up with
    assert late.wait(30).rounds[0].closed_by == "deadline"
    assert due.result(30).answer == "due"
    whole(own_stack, closed.wait(30))


@pytest.mark.slow
@pytest.mark.parametrize("role", ["pool", "coordinator"])
def test_a_worker_that_hangs_is_replaced_and_its_turns_run_elsewhere(own_stack: Stack, role: str) -> None:
    handle = own_stack.client.submit(slow_ensemble(4000))
    wait_for(lambda: handle.status().state == "running")
    hung = own_stack.kill(role, signal.SIGSTOP)
    whole(own_stack, handle.wait(90))
    assert wait_for(lambda: own_stack.pid(role) != hung)
    assert own_stack.client.ask("still there?", model="test/echo", timeout=30) == "still there?"
