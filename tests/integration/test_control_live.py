"""Pause, resume, drain and cancel by the command line, on a real stack."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from stack import Stack, wait_for

from symposia import Busy, Ensemble, Inference, Member


@pytest.fixture(autouse=True)
def _released(stack: Stack) -> Iterator[None]:
    yield
    stack.run("resume", "--all")


def test_a_paused_checkpoint_waits_and_says_so_until_it_is_resumed(stack: Stack) -> None:
    stack.run("pause", "test/echo")
    handle = stack.client.submit(Inference(model="test/echo", prompt="later"))
    line = wait_for(lambda: [w for w in handle.status().waiting_for if "paused" in w])[0]
    assert "symposia resume test" in line
    assert stack.json("held")["held"] == {"queue:turns.test": "paused"}
    stack.run("resume", "test")
    assert handle.result(30).answer == "later"


def test_a_draining_checkpoint_refuses_and_the_command_waits_for_its_end(stack: Stack) -> None:
    handle = stack.client.submit(Inference(model="test/slow:1500", prompt="?"))
    assert stack.json("drain", "test/slow:1", "--wait", "--timeout", "60")["held"] == "draining"
    assert handle.status().ended or handle.wait(10)
    with pytest.raises(Busy, match="resume") as refused:
        stack.client.ask("?", model="test/echo")
    assert refused.value.retry_after_s > 0
    assert "Busy" in stack.run("ask", "?", "--model", "test/echo", expect=3).stderr
    stack.run("resume", "test/echo")
    assert stack.client.ask("again", model="test/echo", timeout=30) == "again"


def test_a_paused_pool_claims_nothing(stack: Stack) -> None:
    (pool,) = stack.json("held")["pools"]
    stack.run("pause", "--pool", pool)
    handle = stack.client.submit(Inference(model="test/echo", prompt="x"))
    assert any("paused" in w for w in handle.status().waiting_for)
    stack.run("resume", "--pool", pool)
    assert handle.result(30).answer == "x"


def test_jobs_are_cancelled_by_tag_and_all_at_once(stack: Stack) -> None:
    slow = [Member(model="test/slow:60000")] * 3
    tagged = [stack.client.submit(Ensemble(prompt="?", members=slow, tags=("nightly", "x"))) for _ in range(2)]
    other = stack.client.submit(Inference(model="test/slow:60000", prompt="?"))
    wait_for(lambda: all(h.status().state == "running" for h in (*tagged, other)))
    assert sorted(stack.json("cancel", "--tag", "nightly")["cancelled"]) == sorted(h.job_id for h in tagged)
    assert [h.wait(30).state for h in tagged] == ["cancelled"] * 2
    assert other.status().state == "running"
    assert stack.run("cancel", "--all", expect=1, stdin="n\n").returncode == 1
    assert stack.json("cancel", "--all", "--yes")["cancelled"] == [other.job_id]
    assert other.wait(30).state == "cancelled"


def test_a_name_nobody_serves_is_not_paused(stack: Stack) -> None:
    assert "no pool is meant to serve" in stack.run("pause", "no/such", expect=2).stderr
    stack.run("pause", expect=2)
    stack.run("cancel", "x", "--all", expect=2)
