"""Notices in a real Redis: made once, given to one sender, tried until their time is over."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import SecretStr

from ledgers import claim_one, new_job, placed
from receiver import receiving
from symposia_shared.archive import Archive
from symposia_shared.ledger import Ledger
from symposia_shared.ledger.outbox import Notice, Outbox
from symposia_shared.notices.wishes import Wish
from symposia_shared.results import Result
from symposia_shared.settings import Settings, WebhookSettings
from symposia_worker.notices import teller as telling
from symposia_worker.notices.teller import Teller, notice_id

KEY = b"k" * 16


@pytest.fixture
def outbox(ledger: Ledger) -> Outbox:
    return Outbox(ledger, KEY)


class Papers:
    """An archive that has the results it is given."""

    def __init__(self) -> None:
        self.results: dict[str, Result] = {}
        self.store = self

    def result(self, job_id: str) -> Result | None:
        return self.results.get(job_id)

    def result_key(self, job_id: str) -> str:
        return f"jobs/{job_id}/result.json"

    def head(self, _: str) -> None:
        return None


def ended(ledger: Ledger, job_id: str, *tags: str, state: str = "done") -> Result:
    placed(ledger)
    assert ledger.submit([new_job(job_id, tags=tags)])[0].startswith("ok")
    assert ledger.forget(job_id, state=state, kind="inference")
    return Result(job_id=job_id, state=state, job={"kind": "inference", "tags": list(tags)}, ended_at=1.0)  # type: ignore[arg-type]


def tellers(ledger: Ledger, papers: Papers, **webhooks: Any) -> Teller:
    settings = Settings(message_key=SecretStr(KEY.decode()), webhooks=WebhookSettings(allow="127.0.0.0/8", **webhooks), dir=Path("/nowhere"))
    return Teller(ledger, cast(Archive, papers), settings)


def notice(name: str = "evt_1", target: str = "https://example.com") -> Notice:
    return Notice(id=name, kind="webhook", tenant="default", type="job.done", target=target, body="{}", job_id="j")


def test_only_ends_somebody_wished_to_be_told_of_leave_word(ledger: Ledger, outbox: Outbox) -> None:
    outbox.wish("wished", Wish(webhooks=("https://example.com",)))
    outbox.register("mine", "https://example.com/all")
    for job_id, tags in (("plain", ()), ("wished", ()), ("mine", ("tenant:mine",)), ("theirs", ("tenant:other",)), ("line", ("tenant:mine", "batch:b"))):
        ended(ledger, job_id, *tags)
    assert sorted(outbox.ended_jobs()) == ["mine", "wished"]
    assert outbox.ended_jobs() == []  # given to one


def test_notices_are_made_once_however_often_their_job_is_told_of(ledger: Ledger, outbox: Outbox) -> None:
    outbox.wish("j", Wish(webhooks=("https://a.example", "https://b.example")))
    papers = Papers()
    papers.results["j"] = ended(ledger, "j")
    teller = tellers(ledger, papers)
    teller.make("j")
    outbox.wish("j", Wish(webhooks=("https://a.example",)))  # a second coordinator read it before the first was done
    teller.make("j")
    found = outbox.all(job_id="j")
    assert sorted(s.notice.target for s in found) == ["https://a.example", "https://b.example"]
    assert ledger.stats()["notices_made"] == 2
    assert json.loads(found[0].notice.body)["data"]["result_key"] == "jobs/j/result.json"


def test_a_notice_is_given_to_one_sender_and_comes_again_where_that_was_killed(ledger: Ledger, outbox: Outbox) -> None:
    outbox.put([notice()], job_id="j")
    assert [s.notice.id for s in outbox.due(5)] == ["evt_1"]
    assert outbox.due(5) == []
    ledger.redis.zadd(ledger.key("notices"), {"evt_1": 0})  # its lease is over
    assert [s.notice.id for s in outbox.due(5)] == ["evt_1"]


def test_a_notice_nobody_takes_is_given_up_after_its_hours_and_can_be_replayed(ledger: Ledger, outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    with receiving() as receiver:
        receiver.statuses += [500] * 3
        teller = tellers(ledger, Papers(), hours=1.0)
        outbox.put([notice(target=receiver.url)], job_id="j")
        teller.deliver(outbox.due(1)[0])
        standing = outbox.get("evt_1")
        assert standing is not None
        assert (standing.state, standing.tries, standing.last) == ("waiting", 1, "HTTP 500")
        assert standing.due_at is not None
        assert 3.0 < standing.due_at - ledger.now_s() < 7.0
        # a try late in its time leaves one last at the end of it; that one is the last
        ledger.redis.hset(ledger.key("notice:evt_1"), mapping={"since": int(ledger.now_s() * 1000) - 3_599_000})
        teller.deliver(standing)
        late = outbox.get("evt_1")
        assert late is not None
        assert late.due_at is not None
        assert late.due_at - ledger.now_s() < 1.5
        ledger.redis.hset(ledger.key("notice:evt_1"), mapping={"since": int(ledger.now_s() * 1000) - 3_601_000})
        teller.deliver(late)
        given_up = outbox.get("evt_1")
        assert given_up is not None
        assert (given_up.state, given_up.tries) == ("failed", 3)
        assert ledger.redis.ttl(ledger.key("notice:evt_1")) > 6 * 86_400
        assert outbox.due(5) == []
        # and again from its beginning, where it is asked for
        assert outbox.replay("evt_1")
        teller.deliver(outbox.due(1)[0])
        done = outbox.get("evt_1")
        assert done is not None
        assert (done.state, done.tries) == ("delivered", 1)
        assert ledger.stats()["notices_failed"] == ledger.stats()["notices_delivered"] == 1


def test_a_host_that_is_slow_holds_up_no_other(ledger: Ledger, outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    free, begun = threading.Event(), []

    def deliver(self: Teller, standing: Any) -> None:
        begun.append(standing.notice.target)
        if "slow" in standing.notice.target:
            free.wait(20)

    monkeypatch.setattr(telling.Teller, "deliver", deliver)
    teller = tellers(ledger, Papers())
    outbox.put([notice(f"slow_{n}", "https://slow.example") for n in range(12)] + [notice("quick", "https://quick.example")], job_id="j")
    for _ in range(20):
        teller.look()
    deadline = threading.Event()
    deadline.wait(0.5)
    free.set()
    teller.stop()
    assert begun.count("https://slow.example") == telling.PER_HOST
    assert "https://quick.example" in begun


def test_a_wish_that_is_forged_in_redis_calls_nobody(ledger: Ledger, outbox: Outbox) -> None:
    stranger = Outbox(ledger, b"x" * 16)
    stranger.wish("j", Wish(webhooks=("https://evil.example",)))
    papers = Papers()
    papers.results["j"] = ended(ledger, "j")
    tellers(ledger, papers).make("j")
    assert outbox.all() == []
    assert outbox.ended_jobs() == []


def test_ids_are_the_receivers_and_the_jobs_alone() -> None:
    assert notice_id("j", "a") == notice_id("j", "a") != notice_id("j", "b") != notice_id("k", "b")


def test_a_claimed_job_that_ends_leaves_word_too(ledger: Ledger, outbox: Outbox) -> None:
    outbox.wish("j", Wish(webhooks=("https://example.com",)))
    placed(ledger)
    ledger.submit([new_job("j")])
    claim_one(ledger)
    ledger.forget("j", state="cancelled", kind="inference")
    assert outbox.ended_jobs() == ["j"]


def test_a_teller_that_is_told_of_what_is_due_sends_it_without_looking_around(ledger: Ledger, outbox: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "LOOK_S", 3600.0)
    with receiving() as receiver:
        teller = tellers(ledger, Papers())
        teller.start()
        try:
            # Given more than may be sent at once to one host, of which the look finds no more than it may begin
            outbox.put([notice(f"evt_{n}", target=receiver.url) for n in range(3 * telling.PER_HOST)], job_id="j")
            teller.heed({"batches"})
            assert receiver.came == []
            while len(receiver.came) < 3 * telling.PER_HOST:
                # what is put off for a second comes with a later sweep's word
                teller.heed(ledger.glance().due)
                time.sleep(0.05)
        finally:
            teller.stop()
        assert sorted(headers["webhook-id"] for headers, _ in receiver.came) == sorted(f"evt_{n}" for n in range(3 * telling.PER_HOST))
