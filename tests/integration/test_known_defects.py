"""Known defects of the ground we stand on, provoked on a running stack, and what ours does instead. docs/RELIABILITY.md lists them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from stack import Stack, running_stack, wait_for

from ledgers import new_job, placed
from symposia import Busy, Client, Ensemble, Handle, Inference, Member
from symposia_shared.broker import COORDINATOR, TEST_QUEUE, celery_app
from symposia_shared.ledger import Ledger, Seat
from valkey_server import running_valkey


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack, Flower included, on which each defect is provoked; each test leaves it working."""
    with running_stack(tmp_path_factory.mktemp("defects"), "--test-models", "--no-api") as running:
        yield running


@pytest.fixture
def stack(own: Stack) -> Stack:
    own.zero = own.settled_stats()
    return own


def slow(ms: int, count: int = 3) -> Ensemble:
    return Ensemble(prompt="?", answer_kind="text", early_stop=False, members=[Member(model=f"test/slow:{ms}")] * count)


def running(handle: Handle) -> Handle:
    wait_for(lambda: handle.status().state == "running")
    return handle


def pids(stack: Stack) -> list[int]:
    return [stack.pid(role) for role in ("pool", "engine", "coordinator")]


def held(stack: Stack) -> int:
    return sum(int(w.get("held", 0)) for w in stack.client.ledger.workers().values())


def test_celery_1881_and_4963_a_round_is_never_closed_with_a_part_of_its_replies(stack: Stack) -> None:
    """A chord's body ran although header tasks had failed or were counted twice, or never ran: the ledger counts, whatever the chord does."""
    members = [Member(model="test/failing:bug"), Member(model="test/slow:1500"), Member(model="test/say:7"), Member(model="test/slow:1501")]
    handle = running(stack.client.submit(Ensemble(prompt="?", answer_kind="number", early_stop=False, members=members)))
    # a doubled header return, and a chord counter that claims all have returned
    redis, key = stack.client.ledger.redis, stack.client.ledger.key
    for _ in range(3):
        stack.client.bell.turn(Seat(handle.job_id, 0, 2), TEST_QUEUE, kind="ensemble")
    for name in redis.scan_iter(key("celery-task-meta-*.t")):
        redis.incrby(name, 5)
    found = handle.wait(60)
    assert (found.state, found.rounds[0].closed_by, found.rounds[0].counted) == ("done", "all", (0, 1, 2, 3))
    assert [t.reply.spoke for t in found.rounds[0].turns] == [False, True, True, True]


def test_celery_5935_and_kombu_337_a_message_past_its_visibility_timeout_runs_nothing_twice(stack: Stack) -> None:
    """kombu hands a message out again after an hour: here the hour is over at once, and kombu's own restore is called."""
    handles = [running(stack.client.submit(Inference(model="test/slow:5000", prompt=str(n)))) for n in range(4)]
    redis, key = stack.client.ledger.redis, stack.client.ledger.key
    wait_for(lambda: redis.zcard(key("unacked_index")) >= 4)
    for tag in redis.zrange(key("unacked_index"), 0, -1):
        redis.zadd(key("unacked_index"), {tag: time.time() - 4000})
    app = celery_app(stack.client.settings, role="worker")
    with app.connection_for_read() as connection:
        def restored() -> bool:  # kombu does nothing while a worker does the same
            connection.default_channel.qos.restore_visible(0, 1000, interval=1)
            return bool(redis.zcard(key("unacked_index")) < 4)

        wait_for(restored)
    assert {h.result(60).answer for h in handles} == {"slow 5000"}
    counted = stack.since()
    assert (counted["calls_started"], counted["calls_recorded"], counted["calls_repeated"]) == (4, 4, 0)


def test_celery_8091_and_10205_a_worker_that_reconnected_hears_its_messages_again(stack: Stack) -> None:
    """After a reconnect workers answered pings and took nothing. Here each queue's messages are gone soon after each restart."""
    before = pids(stack)
    redis, key = stack.client.ledger.redis, stack.client.ledger.key
    for n in range(3):
        running(stack.client.submit(Inference(model="test/slow:1500", prompt=str(n))))
        stack.kill("broker", (signal.SIGKILL, signal.SIGTERM)[n % 2])
        assert wait_for(lambda: stack.client.ask("heard", model="test/echo", timeout=30)) == "heard"
        # rings of jobs that are over: only a worker that hears takes them from the list
        wait_for(lambda: all(stack.client.bell.turn(Seat("over", 0, 0), TEST_QUEUE, kind="inference") for _ in range(3)))
        wait_for(lambda: stack.client.bell.advance("over", kind="ensemble"))
        wait_for(lambda: redis.llen(key(TEST_QUEUE)) == redis.llen(key(COORDINATOR)) == 0)
    assert pids(stack) == before
    assert stack.since()["calls_repeated"] == 0


def test_celery_9674_nothing_unlocks_a_chord_for_ever(stack: Stack) -> None:
    """``chord_unlock`` was retried without end for a chord that could not end. Here none is sent: once a job is over nothing is sent for it."""
    handle = running(stack.client.submit(slow(60000)))
    redis, key = stack.client.ledger.redis, stack.client.ledger.key
    for name in redis.scan_iter(key("celery-task-meta-*")):
        redis.delete(name)
    stack.client.cancel(handle.job_id)
    assert handle.wait(30).state == "cancelled"
    stack.settled_stats()
    wait_for(lambda: held(stack) == 0)

    def pushed() -> int:
        return int(redis.info("commandstats").get("cmdstat_lpush", {"calls": 0})["calls"])

    def quiet() -> bool:
        first = pushed()
        time.sleep(3)
        return pushed() == first

    wait_for(quiet)
    logs = "".join(path.read_text(errors="replace") for path in (stack.folder / "logs").glob("*.log"))
    assert "chord_unlock[" not in logs  # as Celery logs a task it has received
    assert redis.llen(key("celery")) == 0


def test_celery_4547_a_group_is_cancelled_as_a_whole(stack: Stack) -> None:
    """Revoking a group left its members running. Here what runs stops, and what is queued never begins."""
    handle = stack.client.submit(slow(60000, 20))
    others = [stack.client.submit(slow(60000, 20)) for _ in range(3)]  # more turns than the pool has slots
    wait_for(lambda: held(stack) >= 16)
    assert len(stack.client.cancel_many([h.job_id for h in (handle, *others)])) == 4
    assert {h.wait(30).state for h in (handle, *others)} == {"cancelled"}
    wait_for(lambda: held(stack) == 0, 15)
    started = stack.stats()["calls_started"]
    assert stack.client.ask("free", model="test/echo", timeout=20) == "free"
    assert stack.stats()["calls_started"] == started + 1


def test_celery_5732_a_limit_holds_for_all_producers_together(stack: Stack) -> None:
    """A rate limit counted each worker for itself. Here what may be in flight is counted in one place, by the script that admits."""
    limits = stack.client.settings.limits.model_copy(update={"jobs": 12})
    clients = [Client(settings=stack.client.settings.model_copy(update={"limits": limits})) for _ in range(4)]

    def submit(n: int) -> Handle | None:
        try:
            return clients[n % 4].submit(Inference(model="test/slow:60000", prompt=str(n)))
        except Busy as error:
            return None if error.retry_after_s >= 1 else pytest.fail("told to come again at once")

    with ThreadPoolExecutor(8) as threads:
        taken = [h for h in threads.map(submit, range(40)) if h is not None]
    assert len(taken) == 12
    stack.client.cancel_many([h.job_id for h in taken])
    for client in clients:
        client.close()
    wait_for(lambda: held(stack) == 0)


def test_celery_10490_and_8147_a_deadline_and_a_cancel_stop_what_a_thread_runs(stack: Stack) -> None:
    """Celery's threads ignore time limits and terminate. Here the engine process stops at its next step, and the slot is free."""
    late = stack.client.submit(Inference(model="test/slow:600000", prompt="?", deadline_s=2))
    killed = running(stack.client.submit(Inference(model="test/slow:600000", prompt="?")))
    stack.client.cancel(killed.job_id)
    assert killed.wait(30).state == "cancelled"
    found = late.wait(30)
    assert (found.state, found.rounds[0].closed_by) == ("failed", "deadline")
    wait_for(lambda: held(stack) == 0, 15)


def test_kombu_166_one_flooded_queue_of_many_keeps_no_other_waiting(tmp_path: Path) -> None:
    """Of many queues the first were read and the last starved. Here each queue that has turns is served once before any is served twice."""
    with running_valkey(tmp_path) as url:
        ledger, queues = Ledger(url, "t:"), [f"q{n}" for n in range(64)]
        placed(ledger, **{f"m{n}": queue for n, queue in enumerate(queues)})
        assert set(ledger.submit([new_job(f"flood-{n}", model="m0") for n in range(1500)])) == {"ok q0"}
        for n in range(1, 64):
            ledger.submit([new_job(f"quiet-{n}", model=f"m{n}")])
        first = [claim.queue for _ in range(16) for claim in ledger.claim(most=8, pools=1, queues=queues).claims]
        assert set(first) == set(queues), "within 128 claims every queue had its turn"
        assert first.index("q63") < 64 + 8


def test_kombu_305_a_message_that_is_popped_and_never_recorded_costs_nothing(stack: Stack) -> None:
    """BRPOP and the note in ``unacked`` are two steps: a worker killed between them loses the message. Here it is popped, and that is all."""
    pool, redis, key = stack.pid("pool"), stack.client.ledger.redis, stack.client.ledger.key
    os.kill(pool, signal.SIGSTOP)
    try:
        time.sleep(2.0)  # kombu's BRPOP lasts a second, and a stopped worker begins no other
        handle = stack.client.submit(Inference(model="test/say:found", prompt="?"))
        popped = wait_for(lambda: redis.rpop(key(TEST_QUEUE)))
    finally:
        os.kill(pool, signal.SIGCONT)
    assert popped
    assert handle.result(30).answer == "found"
    assert stack.since()["calls_started"] == 1


def test_no_worker_exits_when_the_broker_restarts_while_it_holds_a_message_and_has_free_slots(stack: Stack) -> None:
    """kombu 5.7 ended the worker then (facts: 16 of 16 times), a full reload of its models. Here the processes are the same, three times over."""
    before = pids(stack)
    for n in range(3):
        handle = running(stack.client.submit(Inference(model="test/slow:3000", prompt=str(n))))
        wait_for(lambda: stack.client.ledger.redis.hlen(stack.client.ledger.key("unacked")) > 0)
        stack.kill("broker")
        assert handle.result(60).answer == "slow 3000"
    assert pids(stack) == before
    assert stack.since()["calls_started"] == 3


def test_flower_1406_a_restart_of_flower_puts_nothing_back_on_a_queue(stack: Stack) -> None:
    handles = [running(stack.client.submit(Inference(model="test/slow:6000", prompt=str(n)))) for n in range(3)]
    redis, key = stack.client.ledger.redis, stack.client.ledger.key
    wait_for(lambda: redis.hlen(key("unacked")) >= 3)
    unacked = set(redis.hkeys(key("unacked")))
    for sig in (signal.SIGTERM, signal.SIGKILL):
        old = stack.kill("flower", sig)
        wait_for(lambda dead=old: stack.pid("flower") != dead)
    assert unacked <= set(redis.hkeys(key("unacked"))) or all(h.status().ended for h in handles)
    assert redis.llen(key(TEST_QUEUE)) == 0
    assert {h.result(60).answer for h in handles} == {"slow 6000"}
    counted = stack.since()
    assert (counted["calls_started"], counted["calls_repeated"]) == (3, 0)
