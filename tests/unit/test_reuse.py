"""What decides a kept reply: the key has all of it and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from shelf import Shelf
from symposia_shared.ledger import Claim, Seat
from symposia_shared.prompts import ChoiceForm, JsonForm, Message, Sampling, user
from symposia_shared.reuse import Replies, digest_of
from symposia_shared.turns import Abstention, Completion, Kept, Reply, Timing, Turn
from symposia_worker.reusing import Reusing
from symposia_worker.tickets import Ticket

PLACE = {"revision": "r1", "engine": "openvino", "mode": "exact", "queue": "q"}


def turn(*, member: str = "a", model: str = "m", text: str = "?", more: dict[str, Any] | None = None, **sampling: Any) -> Turn:
    return Turn(member=member, model=model, messages=user(text), sampling=Sampling(**sampling), **(more or {}))


def key(asked: Turn, *, device: str = "cpu:0", **place: Any) -> str | None:
    return digest_of(asked, {**PLACE, **place}, device=device)


def test_what_does_not_decide_a_reply_does_not_change_its_key() -> None:
    same = key(turn())
    assert key(turn(member="b")) == same  # who asks
    assert key(turn(more={"after": (0,)})) == same  # what it waited for
    assert key(turn(seed=3, top_p=0.5, top_k=4, min_p=0.1)) == same  # what is drawn, where nothing is
    assert key(turn(), device="cpu:1", queue="other", context=7) == same  # which share of the machine


@pytest.mark.parametrize("place", [
    {"revision": "r2"}, {"engine": "torch"}, {"mode": "fast"}, {"precision": "bfloat16"}, {"base_revision": "b"}, {"device": "cuda:0"},
])
def test_another_revision_engine_mode_or_kind_of_device_is_another_key(place: dict[str, Any]) -> None:
    assert key(turn(), **place) != key(turn())


@pytest.mark.parametrize("other", [
    turn(text="!"), turn(model="n"), turn(max_tokens=9), turn(stop=("x",)), turn(repetition_penalty=1.1), turn(logprobs=0), turn(form=JsonForm()),
    turn(form=ChoiceForm(options=("a", "b"))), turn(more={"raw": True}), turn(more={"suffix": "s"}), turn(more={"want": "score"}), turn(temperature=1, seed=1),
    Turn(member="a", model="m", messages=(Message(role="system", content="?"),)),
])
def test_another_question_is_another_key(other: Turn) -> None:
    assert key(other) not in (None, key(turn()))


def test_draws_are_told_apart_by_all_that_decides_them() -> None:
    drawn = [turn(temperature=1, seed=1), turn(temperature=1, seed=2), turn(temperature=2, seed=1), turn(temperature=1, seed=1, top_p=0.5),
             turn(temperature=1, seed=1, top_k=5), turn(temperature=1, seed=1, min_p=0.5)]
    assert len({key(d) for d in drawn}) == len(drawn)


def test_what_may_come_out_otherwise_is_never_kept() -> None:
    assert key(turn(temperature=0.7)) is None  # a draw without a seed
    assert key(turn(model="check/python")) is None  # no model
    assert digest_of(turn(), {"queue": "q", "engine": "openai"}, device="openai:http://h") is None  # nobody knows what answers
    assert digest_of(turn(), {}, device="cpu") is None


class Pool:
    """What ``Reusing`` asks of a pool: what was run and recorded."""

    def __init__(self, shelf: Shelf) -> None:
        self.ran: list[Ticket] = []
        self.recorded: list[tuple[str, Reply]] = []
        self.reusing = Reusing(Replies(shelf, life_s=60), device="cpu", run=self.ran.append, record=self._record)  # type: ignore[arg-type]

    def _record(self, ticket: Ticket, reply: Reply) -> None:
        self.recorded.append((ticket.claim.seat.job_id, reply))

    def begin(self, job_id: str, asked: Turn) -> Ticket:
        claim = Claim(seat=Seat(job_id, 0, 0), fence="1", attempt=1, deaths=0, kind="inference", spec="", payload="", queue="q", reuse="t")
        ticket = Ticket(claim=claim, claimed_at=1.0, turn=asked)
        found = self.reusing.key(ticket, {"m": PLACE})
        assert found is not None
        self.reusing.begin(ticket, found)
        return ticket


def test_of_equal_turns_one_is_run_and_the_others_are_given_its_reply() -> None:
    pool = Pool(Shelf())
    first, _, other = pool.begin("1", turn()), pool.begin("2", turn()), pool.begin("3", turn(text="!"))
    assert pool.ran == [first, other]
    pool.reusing.done(first, Completion(text="x"), {"m": PLACE})
    assert [(job, isinstance(r, Completion) and r.reused) for job, r in pool.recorded] == [("1", False), ("2", True)]
    pool.begin("4", turn())  # and whoever comes afterwards is given the kept one
    assert [job for job, _ in pool.recorded] == ["1", "2", "4"]
    assert len(pool.ran) == 2


def test_one_that_fails_or_ends_lets_the_next_run_and_skips_who_has_ended() -> None:
    pool = Pool(Shelf())
    first, second, third, fourth = (pool.begin(str(n), turn()) for n in range(4))
    pool.reusing.done(first, Abstention(cause="bug"), {"m": PLACE})
    assert pool.ran == [first, second]
    third.over.set()  # it was cancelled while it waited
    pool.reusing.left(second)
    assert pool.ran == [first, second, fourth]
    pool.reusing.done(second, Completion(text="late"), {"m": PLACE})  # of one that had ended: it is kept, and given to nobody
    pool.reusing.done(fourth, Completion(text="x"), {"m": PLACE})
    assert [job for job, _ in pool.recorded] == ["0", "1", "3"]


def test_a_reply_is_given_to_nobody_where_the_checkpoint_was_loaded_otherwise_meanwhile() -> None:
    shelf = Shelf()
    pool = Pool(shelf)
    first, second = pool.begin("1", turn()), pool.begin("2", turn())
    pool.reusing.done(first, Completion(text="x"), {"m": {**PLACE, "precision": "int8"}})
    assert pool.ran == [first, second]
    assert [job for job, _ in pool.recorded] == ["1"]
    assert shelf.bodies == {}


def test_a_reply_is_kept_once_without_its_times_and_given_again_with_its_origin() -> None:
    shelf = Shelf()
    replies = Replies(shelf, life_s=60)  # type: ignore[arg-type]
    made = Completion(text="x", timing=Timing(claimed_at=5.0), pool="p")
    assert replies.keep("reuse/t/k.json", made, job_id="one").kept == Kept(key="reuse/t/k.json")
    replies.keep("reuse/t/k.json", Completion(text="y"), job_id="two")
    given = replies.get("reuse/t/k.json")
    assert given is not None
    assert (given.text, given.timing, given.kept) == ("x", Timing(), Kept(key="reuse/t/k.json", made_in="one"))
    assert given.reused
    assert replies.erase("other") == []
    assert replies.erase("t") == ["reuse/t/k.json"]
    assert shelf.bodies == {}


def test_a_tenants_name_that_begins_like_another_is_not_erased_with_it() -> None:
    shelf = Shelf()
    replies = Replies(shelf, life_s=60)  # type: ignore[arg-type]
    for tenant in ("lab", "lab2"):
        replies.keep(replies.key(tenant, "k"), Completion(text="x"), job_id="j")
    assert replies.erase("lab") == ["reuse/lab/k.json"]
    assert list(shelf.bodies) == ["reuse/lab2/k.json"]


def test_what_has_outlived_its_life_is_pruned_by_the_listing_alone() -> None:
    shelf = Shelf()
    replies = Replies(shelf, life_s=60)  # type: ignore[arg-type]
    for name, age in (("old", 61), ("young", 30)):
        replies.keep(replies.key("t", name), Completion(text="x"), job_id="j")
        shelf.times[f"reuse/t/{name}.json"] -= age
    assert replies.prune() == ["reuse/t/old.json"]
    assert (list(shelf.bodies), shelf.read) == (["reuse/t/young.json"], [])
    shelf.put("reuse/t/other.json", b"not an entry")
    assert replies.prune() == []
    assert replies.prune(unreadable=True) == ["reuse/t/other.json"]
    assert Replies(shelf, life_s=-1).get("reuse/t/young.json") is None  # type: ignore[arg-type]
