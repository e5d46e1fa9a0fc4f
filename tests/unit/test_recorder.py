"""What of a reply stands in Redis, and what is written to S3 first."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from symposia_shared.errors import StoreUnavailable
from symposia_shared.ledger import Claim, Recorded, Seat
from symposia_shared.turns import Completion
from symposia_worker.recorder import Recorder
from symposia_worker.spool import Spool
from symposia_worker.tickets import Ticket, Tickets


@dataclass
class Seams:
    """Ledger, archive and course in one: what was recorded, and what was written to S3."""

    recorded: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    away: bool = False
    ended: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def record(self, rows: list[tuple[Claim, str, bool, bool]]) -> list[Recorded]:
        self.recorded += [text for _, text, *_ in rows]
        return [Recorded(status="ok", closed="settled", ring="") for _ in rows]

    def reply(self, claim: Claim, text: str) -> str:
        self.written.append(text)
        return "@somewhere"

    def let_go(self, text: str) -> None:
        pass

    def advance(self, job_id: str, **_: object) -> None:
        self.ended.release()
        if self.away:
            raise StoreUnavailable("S3 is away.")


CLAIM = Claim(seat=Seat(job_id="j", round=0, turn=0), fence="1-a", attempt=1, deaths=0, kind="inference", spec="", payload="", queue="q")


@pytest.fixture
def seams() -> Seams:
    return Seams()


def recorded(seams: Seams, *replies: tuple[Claim, str]) -> None:
    """Have texts recorded one after another, each once the one before has been committed, or tried to be."""
    seam: Any = seams
    stopped = threading.Event()
    recorder = Recorder(ledger=seam, archive=seam, course=seam, bell=seam, tickets=Tickets(8), stopping=threading.Event(), stopped=stopped,
                        on_end=lambda _: None, on_recorded=lambda: None)
    recorder.start()
    for claim, text in replies:
        recorder.put(Ticket(claim=claim, claimed_at=0.0), Completion(text=text))
        assert seams.ended.acquire(timeout=30)
        until = time.monotonic() + 30
        while seams.away and recorder._commits and time.monotonic() < until:  # it notes the failure right behind the call
            time.sleep(0.01)
    stopped.set()
    recorder.finish()


def test_the_short_reply_of_a_single_prompt_is_recorded_as_it_stands(seams: Seams) -> None:
    recorded(seams, (CLAIM, "a word " * 300))
    assert not seams.written
    assert "a word a word" in seams.recorded[0]


@pytest.mark.parametrize(("claim", "text"), [
    (CLAIM, "a word " * 3000), (replace(CLAIM, reuse="tenant"), "a word " * 300),
])
def test_what_stays_longer_or_is_long_is_written_to_s3_first(seams: Seams, claim: Claim, text: str) -> None:
    recorded(seams, (claim, text))
    assert (len(seams.written), seams.recorded) == (1, ["@somewhere"])


def test_while_commits_fail_replies_go_to_s3_so_that_redis_does_not_fill(seams: Seams) -> None:
    seams.away = True
    recorded(seams, (CLAIM, "a word " * 300), (CLAIM, "a word " * 300))
    assert (len(seams.written), seams.recorded[1]) == (1, "@somewhere")


def test_the_ticket_of_a_spooled_reply_that_is_lost_ends_like_any_other(seams: Seams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a reply in the spool while S3 is away
    seam: Any = seams

    def away(*_: object) -> str:
        raise StoreUnavailable("S3 is away.")

    monkeypatch.setattr(seams, "reply", away)
    stopped, ended, tickets, spool = threading.Event(), list[Ticket](), Tickets(8), Spool(tmp_path / "s", 100_000)
    recorder = Recorder(ledger=seam, archive=seam, course=seam, bell=seam, tickets=tickets, stopping=threading.Event(), stopped=stopped,
                        on_end=ended.append, on_recorded=lambda: None, spool=spool)
    ticket = Ticket(claim=CLAIM, claimed_at=0.0)
    tickets.take([ticket], 0)
    recorder.keeping.begin(ticket, Completion(text="a word"), None)
    until = time.monotonic() + 30
    while not ticket.shelved and time.monotonic() < until:
        time.sleep(0.01)
    # When its file vanishes
    for path in (tmp_path / "s").iterdir():
        path.unlink()
    recorder.keeping._send_one(ticket)
    # Then who follows the pool's tickets is told, and the turn may come again
    assert (ended, ticket.over.is_set(), len(tickets), tickets.busy) == ([ticket], True, 0, 0)
    assert tickets.ended(CLAIM.seat) is None
    stopped.set()
    recorder.finish()
