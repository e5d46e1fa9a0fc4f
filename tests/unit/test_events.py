"""What a look at a job's progress costs: no reply is read again, and no play replayed, for what its reader has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from shelf import Shelf
from symposia.api.routes import events
from symposia.api.routes.events import Cursor, Watched, _look, _told
from symposia_shared.archive import Archive
from symposia_shared.jobs import Member
from symposia_shared.patterns.debate import Debate
from symposia_shared.rehearsal import rehearse
from symposia_shared.turns import Completion

JOB = Debate(members=(Member(model="test/echo", name="a"), Member(model="test/echo", name="b")), prompt="?", rounds=2, answer_kind="number")


class Running:
    """A job in flight, as the ledger and the store have it."""

    def __init__(self) -> None:
        self.shelf, self.current, self.replies = Shelf(), 0, ["", ""]
        self.archive = Archive(self.shelf)  # type: ignore[arg-type]
        self.rounds = rehearse(JOB, lambda _, place, __: Completion(text=f"Answer: {place}")).result("j", JOB).rounds
        self.desk: Any = SimpleNamespace(client=SimpleNamespace(archive=self.archive, ledger=self))
        self.watched, self.cursor = Watched(JOB), Cursor()

    def job(self, _: str) -> Any:
        return SimpleNamespace(current=self.current, round=SimpleNamespace(turns=[SimpleNamespace(reply=r) for r in self.replies]))

    def record(self, place: int) -> None:
        key = f"jobs/j/replies/{self.current}-{place}.json"
        self.shelf.put(key, self.rounds[self.current].turns[place].reply.to_json().encode())
        self.replies[place] = f"@{key}"

    def close(self) -> None:
        self.archive.keep_round("j", self.rounds[self.current])
        self.current, self.replies = self.current + 1, ["", ""]

    def look(self) -> list[str]:
        result, found = _look(self.desk, "j", self.watched, self.cursor)
        return [event.split("\n")[0] for event in _told("j", self.cursor, self.watched.rounds, found, result)]


def test_a_look_reads_each_reply_once_and_replays_the_play_once_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    running, replays = Running(), list[int]()
    advance = events.advance

    def counted(job: Any, closed: Any) -> Any:
        replays.append(len(closed))
        return advance(job, closed)

    monkeypatch.setattr(events, "advance", counted)
    assert running.look() == []
    running.record(1)
    assert running.look() == ["id: 0:1"]
    assert running.look() == []
    running.record(0)
    assert running.look() == ["id: 0:0.1"]
    assert running.look() == []
    assert (running.shelf.read, replays) == (["jobs/j/replies/0-1.json", "jobs/j/replies/0-0.json"], [0])
    running.close()
    assert running.look() == ["id: 1:"]
    running.record(0)  # the place was told of the round before
    assert running.look() == ["id: 1:0"]
    assert replays == [0, 1]


def test_who_comes_back_in_an_earlier_round_is_told_the_open_ones_replies_too() -> None:
    running = Running()
    running.close()
    running.record(0)
    running.cursor = Cursor.read("0:0")
    assert running.look() == ["id: 0:0.1", "id: 1:", "id: 1:0"]
