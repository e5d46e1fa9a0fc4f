"""Dead letters on a real stack: what becomes one, and what a retry pays for."""

from __future__ import annotations

import pytest
from stack import Stack, wait_for

from symposia import BadInput, Debate, Ensemble, Inference, JobFailed, Member, NoQuorum
from symposia.again import next_id, try_again
from symposia_shared.ledger.dead import DeadLetters


@pytest.fixture(autouse=True)
def _no_letters(stack: Stack) -> None:
    letters = DeadLetters(stack.client.ledger)
    letters.drop([d.id for d in letters.all()])


def failed(stack: Stack, job: object) -> str:
    handle = stack.client.submit(job)  # type: ignore[arg-type]
    assert handle.wait(60).state == "failed"
    return handle.job_id


def test_a_job_that_failed_for_a_cause_that_may_pass_is_a_dead_letter_and_a_refused_one_is_not(stack: Stack) -> None:
    bug = failed(stack, Inference(model="test/failing:bug", prompt="?"))
    late = failed(stack, Inference(model="test/slow:60000", prompt="?", deadline_s=0.5))
    failed(stack, Inference(model="test/failing:refused", prompt="?"))
    groups = {g["reason"]: g for g in stack.json("dead", "list")}
    assert {r: g["count"] for r, g in groups.items()} == {"bug": 1, "deadline": 1}
    assert groups["deadline"]["ids"] == [late]
    shown = stack.json("dead", "show", bug)
    assert shown["failed"][0]["cause"] == "bug"
    assert stack.json("dead", "list", "--reason", "bug")[0]["id"] == bug


def test_a_retry_asks_only_the_members_that_failed(stack: Stack) -> None:
    # Given an ensemble of which two spoke and two were too slow, so that it lacked its quorum
    slow = Member(model="test/slow:4500")
    members = [Member(model="test/say:5"), Member(model="test/say:7"), slow, slow]
    dead = failed(stack, Ensemble(prompt="?", answer_kind="number", members=members, quorum=4, early_stop=False, deadline_s=3))
    before = stack.settled_stats()
    # When it is tried again, with more time
    handle = try_again(stack.client, dead, deadline_s=60)
    found = handle.result(60)
    # Then it ends well, under the next id, and two calls were paid for
    counted = stack.since_of(before)
    assert handle.job_id == next_id(dead)
    assert counted["calls_started"] == 2
    assert [t.reply.kind for t in found.rounds[0].turns] == ["completion"] * 4
    old = stack.client.archive.result(dead)
    assert old is not None
    assert found.rounds[0].turns[0].reply == old.rounds[0].turns[0].reply
    # And it is no dead letter any more, nor can it be tried a second time
    assert DeadLetters(stack.client.ledger).get(dead) is None
    with pytest.raises(BadInput, match="submitted before"):
        try_again(stack.client, dead)


def test_a_retry_keeps_the_rounds_before_the_one_that_failed(stack: Stack) -> None:
    # Given a debate that failed in its second round, whose members need three seconds for each
    members = [Member(model="test/slow:3000"), Member(model="test/slow:3001")]
    debate = Debate(prompt="?", answer_kind="number", members=members, rounds=2, quorum=2, deadline_s=5)
    dead = failed(stack, debate)
    old = stack.client.archive.result(dead)
    assert old is not None
    assert [r.closed_by for r in old.rounds] == ["all", "deadline"]
    before = stack.settled_stats()
    found = stack.client.handle(stack.json("dead", "retry", dead, "--deadline", "60")["tried"][dead]).result(60)
    assert stack.since_of(before)["calls_started"] == 2
    assert found.rounds[0] == old.rounds[0]
    assert found.state == "done"


def test_a_retry_of_one_prompt_is_a_new_job_that_may_fail_anew(stack: Stack) -> None:
    dead = failed(stack, Inference(model="test/failing:bug", prompt="?"))
    tried = stack.json("dead", "retry", "--reason", "bug")["tried"]
    with pytest.raises(JobFailed):
        stack.client.handle(tried[dead]).result(60)
    assert [d.id for d in DeadLetters(stack.client.ledger).all()] == [next_id(dead)]
    assert next_id(next_id(dead)) == f"{dead}-try3"
    stack.run("dead", "drop", "--all")
    assert stack.json("dead", "list") == []


def test_malformed_messages_are_kept_to_be_seen_and_dropped(stack: Stack) -> None:
    redis, key = stack.client.ledger.redis, stack.client.ledger.key
    garbage = ["not json", "[1, 2]", '{"a": 1}', '{"body": "e30=", "headers": {}, "properties": {"delivery_info": {}, "delivery_tag": "x"}}']
    for text in garbage:
        redis.lpush(key("turns.test"), text)
    letters = DeadLetters(stack.client.ledger)
    found = wait_for(lambda: len(letters.all(reason="malformed")) == len(garbage) and letters.all(reason="malformed"))
    assert any("not json" in d.letter.message for d in found)
    stack.run("dead", "retry", found[0].id, expect=2)
    assert stack.json("dead", "drop", "--reason", "malformed") == {"dropped": len(garbage)}
    assert stack.client.ask("still there?", model="test/echo", timeout=30) == "still there?"


def test_a_job_with_too_few_voices_is_no_dead_letter_where_they_refused(stack: Stack) -> None:
    members = [Member(model="test/failing:refused"), Member(model="test/say:5"), Member(model="test/say:5")]
    with pytest.raises(NoQuorum):
        stack.client.submit(Ensemble(prompt="?", members=members, quorum=3)).result(30)
    assert DeadLetters(stack.client.ledger).all() == []
