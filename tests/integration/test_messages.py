"""Doorbells lost, doubled, delayed, reordered and malformed while jobs run: each done to the messages in Redis, and harmless.

Given, in each: many jobs of one prompt and several rounds, and a hand that does one thing to every list of messages, over and
over, until all have ended. Then each ended once, no call was made twice, and the workers are those that began.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from stack import Stack, running_stack, wait_for

from symposia import Debate, Ensemble, Inference, Member
from symposia_shared.ledger.dead import DeadLetters

LISTS = ("turns.test", "coordinator")
PROMPTS, ROUNDS = 30, 4


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose messages are meddled with; each test leaves it working."""
    with running_stack(tmp_path_factory.mktemp("messages"), "--test-models", "--no-flower", "--no-api") as running:
        yield running


@contextlib.contextmanager
def meddling(stack: Stack, act: Callable[[str], int]) -> Iterator[list[int]]:
    """``act`` on each list, again and again; yields how many messages it has touched, in one number."""
    touched, over = [0], threading.Event()

    def hand() -> None:
        while not over.is_set():
            for name in LISTS:
                touched[0] += act(stack.client.ledger.key(name))
            time.sleep(0.002)

    thread = threading.Thread(target=hand)
    thread.start()
    try:
        yield touched
    finally:
        over.set()
        thread.join()


def run_jobs(stack: Stack) -> dict[str, int]:
    """Run all the jobs to their ends; what was counted meanwhile."""
    zero = stack.settled_stats()
    members = [Member(model="test/slow:150"), Member(model="test/slow:151"), Member(model="test/say:slow")]
    handles = [stack.client.submit(Inference(model="test/slow:100", prompt=str(i))) for i in range(PROMPTS)]
    handles += [stack.client.submit(Ensemble(prompt=str(i), answer_kind="text", early_stop=False, members=members)) for i in range(ROUNDS)]
    handles += [stack.client.submit(Debate(prompt=str(i), answer_kind="text", members=members[:2], rounds=2)) for i in range(ROUNDS)]
    assert {h.wait(120).state for h in handles} == {"done"}
    return stack.since_of(zero)


def harmless(stack: Stack, act: Callable[[str], int]) -> int:
    """Run the jobs while ``act`` is done to the messages; returns how many were touched."""
    pids = [stack.pid(role) for role in ("pool", "engine", "coordinator")]
    with meddling(stack, act) as touched:
        counted = run_jobs(stack)
    assert counted["jobs_done"] == counted["jobs_submitted"] == PROMPTS + 2 * ROUNDS
    assert counted["calls_started"] == counted["calls_recorded"]
    assert (counted["calls_repeated"], counted["commit_conflicts"], counted["in_flight_at_kills"]) == (0, 0, 0)
    assert [stack.pid(role) for role in ("pool", "engine", "coordinator")] == pids
    return touched[0]


def test_lost_messages_are_harmless(tried: Stack) -> None:
    redis = tried.client.ledger.redis
    assert harmless(tried, lambda key: int(redis.lpop(key) is not None)) > 0


def test_doubled_messages_are_harmless(tried: Stack) -> None:
    redis = tried.client.ledger.redis

    def double(key: str) -> int:
        found = redis.lrange(key, 0, 4)
        if found and redis.llen(key) < 500:
            redis.lpush(key, *found)
        return len(found)

    assert harmless(tried, double) > 0
    wait_for(lambda: all(redis.llen(tried.client.ledger.key(name)) == 0 for name in LISTS))


def test_delayed_messages_are_harmless(tried: Stack) -> None:
    redis, held = tried.client.ledger.redis, []

    def delay(key: str) -> int:
        held.extend((time.monotonic() + 1.5, key, text) for text in (redis.lpop(key, 10) or ()))
        due = [h for h in held if h[0] < time.monotonic()]
        for at, where, text in due:
            held.remove((at, where, text))
            redis.rpush(where, text)  # to the end that is read next, or it would be taken again
            time.sleep(0.002)
        return len(due)

    assert harmless(tried, delay) > 0


def test_reordered_messages_are_harmless(tried: Stack) -> None:
    redis, shuffle = tried.client.ledger.redis, random.Random(7)

    def reorder(key: str) -> int:
        found = redis.lpop(key, 20) or []
        shuffle.shuffle(found)
        for text in found:
            (redis.lpush if shuffle.random() < 0.5 else redis.rpush)(key, text)
        return len(found)

    assert harmless(tried, reorder) > 0


def test_malformed_messages_are_harmless_and_put_aside(tried: Stack) -> None:
    redis, cut = tried.client.ledger.redis, random.Random(7)
    garbage = ["not json", "[1, 2]", "null", "{}", '{"a": 1}', '{"body": "e30=", "headers": {}, "properties": {"delivery_info": {}, "delivery_tag": "x"}}',
               '{"body": 7, "headers": [], "properties": null}', "\x00\x01", '"' * 50]

    def spoil(key: str) -> int:
        text = redis.lpop(key)
        if text is None:
            redis.lpush(key, cut.choice(garbage))
            time.sleep(0.02)
            return 1
        at = cut.randrange(len(text))
        redis.lpush(key, cut.choice([text[:at], text[:at] + "}" + text[at + 1:], text.replace('"id"', '"di"'), text.replace("W1", "!!")]))
        return 1

    assert harmless(tried, spoil) > 0
    assert len(DeadLetters(tried.client.ledger).all(reason="malformed")) > 0
    assert tried.client.ask("still there?", model="test/echo", timeout=60) == "still there?"
