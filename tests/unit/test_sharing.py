"""Replicas share a checkpoint's work by least outstanding tokens: the claim script decides, on a real Valkey."""

from __future__ import annotations

import time
from typing import Any

import pytest

from ledgers import QUEUE, new_job
from shelf import Shelf
from symposia_shared.archive import Archive
from symposia_shared.ledger import Claimed, Ledger, Seat
from symposia_shared.ledger.control import Control
from symposia_shared.ledger.desired import Assigned, Desired
from symposia_shared.ledger.traffic import Traffic
from symposia_shared.prompts import Sampling, user
from symposia_shared.turns import Abstention, Completion, Turn, Usage
from symposia_worker.burden import Burden
from symposia_worker.nudges import Nudges
from symposia_worker.placement import Placement
from symposia_worker.pool import Pool
from symposia_worker.tickets import Ticket
from valkey_server import emptied


@pytest.fixture
def ledger(server: Ledger) -> Ledger:
    """Two pools, ``a`` and ``b``, serve the queue."""
    emptied(server)
    for pool in ("a", "b"):
        server.place(pool, {"m": {"queue": QUEUE}})
    return server


def jobs(ledger: Ledger, count: int) -> None:
    assert ledger.submit([new_job(f"j{k}") for k in range(count)]) == [f"ok {QUEUE}"] * count


def claimed(ledger: Ledger, pool: str, burden: str, *, most: int = 8, named: Seat | None = None) -> tuple[str, int]:
    found = ledger.claim(most=most, pools=1, queues=[QUEUE], pool=pool, burden=burden, named=named)
    return found.named, len(found.claims)


def test_the_pool_with_more_to_do_leaves_a_turn_to_the_other_and_its_doorbell_is_told(ledger: Ledger) -> None:
    assert claimed(ledger, "b", "100 50 8") == ("none", 0)
    jobs(ledger, 1)
    assert claimed(ledger, "a", "400 50 8", named=Seat("j0", 0, 0)) == ("yielded", 0)
    assert claimed(ledger, "b", "100 50 8") == ("none", 1)


def test_a_pool_takes_turns_until_it_has_a_turn_more_to_do_than_the_other(ledger: Ledger) -> None:
    claimed(ledger, "b", "200 50 8")
    jobs(ledger, 8)
    # 0, 50, ..., 250 tokens before each: six turns, then it is more than a turn ahead
    assert claimed(ledger, "a", "0 50 8") == ("none", 6)
    assert claimed(ledger, "b", "200 50 8") == ("none", 2)


def test_a_pool_that_is_full_paused_or_silent_is_not_waited_for(ledger: Ledger) -> None:
    claimed(ledger, "b", "0 50 0")
    jobs(ledger, 3)
    assert claimed(ledger, "a", "900 50 8", most=1) == ("none", 1)
    claimed(ledger, "b", "0 50 8", most=0)
    Control(ledger).hold_pool("b")
    assert claimed(ledger, "a", "900 50 8", most=1) == ("none", 1)
    Control(ledger).resume_pool("b")
    assert claimed(ledger, "a", "900 50 8", most=1) == ("none", 0)
    time.sleep(2.1)
    assert claimed(ledger, "a", "900 50 8", most=1) == ("none", 1)


def test_a_pool_that_serves_a_queue_alone_never_leaves_its_work(ledger: Ledger) -> None:
    ledger.place("b", {"other": {"queue": "elsewhere"}})
    ledger.claim(most=8, pools=1, queues=["elsewhere"], pool="b", burden="0 50 8")
    jobs(ledger, 8)
    assert claimed(ledger, "a", "9000 50 8") == ("none", 8)


def test_a_pool_whose_replies_wait_on_disk_says_that_its_slots_are_free(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool(name="a", device="cpu", slots=2, ledger=ledger, archive=Archive(Shelf()), course=None, bell=None, engine=None,  # type: ignore[arg-type]
                placement=Placement({"m": {"queue": QUEUE}}))
    jobs(ledger, 2)
    for claim in ledger.claim(most=2, pools=1, queues=[QUEUE]).claims:
        ticket = Ticket(claim=claim, claimed_at=time.time())
        pool.tickets.take([ticket], 0)
        pool.tickets.shelve(ticket)
    said: list[str] = []
    claim_of = ledger.claim

    def heard(**given: Any) -> Claimed:
        said.append(given["burden"].split()[2])
        return claim_of(**given)

    monkeypatch.setattr(ledger, "claim", heard)
    pool.feed()
    assert said == ["2"]


def test_the_pool_a_turn_is_left_to_hears_of_it_at_once(ledger: Ledger) -> None:
    fed: list[int] = []
    nudges = Nudges(ledger, "b", lambda: fed.append(1))
    nudges.start()
    while not ledger.redis.pubsub_numsub(ledger.key("nudge:b"))[0][1]:
        time.sleep(0.01)
    claimed(ledger, "b", "0 50 8")
    jobs(ledger, 1)
    assert claimed(ledger, "a", "500 50 8") == ("none", 0)
    until = time.monotonic() + 20
    while not fed:
        assert time.monotonic() < until
        time.sleep(0.01)
    nudges.stop()


def test_turns_left_one_after_another_are_left_to_several(ledger: Ledger) -> None:
    ledger.place("c", {"m": {"queue": QUEUE}})
    for pool in ("b", "c"):
        claimed(ledger, pool, "0 50 8")
    heard = ledger.redis.pubsub(ignore_subscribe_messages=True)
    heard.psubscribe(ledger.key("nudge:*"))
    heard.get_message(timeout=1.0)
    jobs(ledger, 1)
    for _ in range(4):
        claimed(ledger, "a", "900 50 8")
    told = [m["channel"] for _ in range(12) if (m := heard.get_message(timeout=0.2)) is not None]
    assert sorted(told) == [ledger.key("nudge:b")] * 2 + [ledger.key("nudge:c")] * 2


def turn(text: str = "x" * 400, max_tokens: int = 100) -> Turn:
    return Turn(member="m", model="m", messages=user(text), sampling=Sampling(max_tokens=max_tokens))


def test_a_burden_is_what_is_to_be_read_and_written_and_learns_what_is_usual() -> None:
    burden = Burden()
    burden.take("1", turn())
    assert burden.tokens == 200  # 400 bytes at four a token, and the limit
    burden.take("2", turn(max_tokens=256))
    assert burden.tokens == 200 + 356
    # Once the checkpoint has been seen to write 10 tokens and to read 200 of such a prompt, a limit above that is not expected to be used
    burden.learn(turn(), Completion(text="", usage=Usage(prompt_tokens=200, completion_tokens=10)))
    burden.take("3", turn())
    assert burden.tokens == 556 + 210
    for ticket in ("1", "2", "3", "3"):
        burden.drop(ticket)
    assert burden.tokens == 0
    burden.learn(turn(), Abstention(cause="bug"))
    for k in range(3):  # scripted names have no end
        burden.learn(turn().model_copy(update={"model": f"test/say:{k}"}), Completion(text="", usage=Usage(completion_tokens=1)))
    assert burden.asked() == {"m": 210, "test/*": 3}
    assert burden.asked() == {}


def test_traffic_is_told_in_tokens_a_second_and_forgotten_in_a_day(ledger: Ledger) -> None:
    Traffic(ledger).add({"m": 500})
    Traffic(ledger).add({"m": 100, "n": 60})
    rates = Traffic(ledger).rates(over_s=600)
    assert rates["m"] == pytest.approx(10 * rates["n"])
    (key,) = ledger.redis.keys(ledger.key("traffic:*"))
    assert 0 < ledger.redis.ttl(key) <= 86_400


def test_the_desired_placement_has_a_version_and_names_pools_or_does_not(ledger: Ledger) -> None:
    desired = Desired(ledger)
    assert desired.of("a") == (0, None)
    assert desired.write({"a": [Assigned(checkpoint="m", precision="int8", bytes=7)], "b": []}) == 1
    assert desired.of("a") == (1, (Assigned(checkpoint="m", precision="int8", bytes=7),))
    assert desired.of("b") == (1, ())
    assert desired.of("c") == (1, None)
    assert desired.write({}) == desired.version == 2
    assert desired.all() == (2, {})
