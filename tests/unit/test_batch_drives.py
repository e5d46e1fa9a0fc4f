"""A batch driven step by step on a real Valkey over a dictionary, with no pool: what is lost, late or gone while it is driven."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shelf import Shelf
from symposia.api.faults import HttpFault
from symposia.api.multipart import Form
from symposia.api.routes.files import _kept
from symposia.batches import TenantBatches
from symposia.tables.asking import Prompting, put_table
from symposia.tables.template import Template
from symposia_shared.archive import Archive
from symposia_shared.batches import records
from symposia_shared.batches.files import Files
from symposia_shared.batches.lines import Written
from symposia_shared.batches.records import Batches
from symposia_shared.batches.values import BatchFile, Counts, Order
from symposia_shared.errors import BadInput, BrokerUnavailable, UnknownJob
from symposia_shared.ledger import Ledger, NewJob
from symposia_shared.ledger.control import Control
from symposia_shared.settings import ApiSettings, BatchSettings, LimitSettings
from symposia_worker.batches import drive
from symposia_worker.batches.drive import Drive, Seams

BATCH = "batch_0000000a"


class Silent:
    """A doorbell that nobody hears."""

    def advance(self, job_id: str, **more: Any) -> None:
        pass

    def turn(self, *seat: Any, **more: Any) -> None:
        pass


@pytest.fixture
def seams(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Seams:
    ledger.place("pool", {"test/*": {"queue": "q", "context": 1_000, "longest_token_bytes": 8}})
    monkeypatch.setattr(drive, "LEAST", 1_000)
    shelf: Any = Shelf()
    return Seams(ledger=ledger, archive=Archive(shelf), bell=Silent(), batches=Batches(ledger, shelf), files=Files(ledger, shelf),  # type: ignore[arg-type]
                 limits=LimitSettings(), api=ApiSettings(), settings=BatchSettings())


def of_tenant(seams: Seams) -> TenantBatches:
    """The producer's side of it."""
    settings = SimpleNamespace(api=seams.api, batches=seams.settings)
    return TenantBatches(SimpleNamespace(ledger=seams.ledger, archive=seams.archive, settings=settings), "t")  # type: ignore[arg-type]


def line(n: int) -> bytes:
    body = {"model": "test/echo", "messages": [{"role": "user", "content": f"line {n}"}]}
    return json.dumps({"custom_id": f"{n}", "method": "POST", "url": "/v1/chat/completions", "body": body}).encode() + b"\n"


def begun(seams: Seams, lines: int) -> BatchFile:
    """The input of a batch that is recorded."""
    with seams.files.writing("t", "in.jsonl") as writing:
        writing.write(b"".join(line(n) for n in range(lines)))
        file = writing.finish()
    seams.batches.add(Order(id=BATCH, tenant="t", endpoint="/v1/chat/completions", input_file_id=file.id, completion_window="30d", window_s=2_000_000_000,
                            created_at=1), total=lines)
    return file


def driving(seams: Seams, owner: str = "one") -> Drive:
    found = Drive(BATCH, seams, owner, threading.Event())
    found._stop.wait = lambda timeout=None: False  # type: ignore[method-assign]
    return found


@pytest.mark.parametrize("lines", [10, 150])
def test_no_line_is_lost_where_redis_goes_away_as_lines_are_submitted(seams: Seams, monkeypatch: pytest.MonkeyPatch, lines: int) -> None:
    begun(seams, lines)
    driven, submit, away = driving(seams), seams.ledger.submit, [True]

    def once(records: Sequence[NewJob], **more: Any) -> list[str]:
        answers = submit(records, **more)
        if away:
            away.clear()
            raise BrokerUnavailable("its answer was lost")
        return answers

    monkeypatch.setattr(seams.ledger, "submit", once)
    for _ in range(5):
        assert not driven._stepped()
    assert sum(len(span.asked) for span in driven._open.values()) == lines
    assert len(seams.ledger.known([f"{BATCH}-{n + 1}" for n in range(lines)])) == lines


def test_no_line_is_lost_where_the_next_span_cannot_be_opened(seams: Seams, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(seams, 250)
    monkeypatch.setattr(drive, "MOST_AT_ONCE", 150)
    driven, begin, away = driving(seams), seams.batches.begin, [True]

    def once(batch_id: str, span: int) -> None:
        if span == 1 and away:
            away.clear()
            raise BrokerUnavailable("away")
        begin(batch_id, span)

    monkeypatch.setattr(seams.batches, "begin", once)
    for _ in range(6):
        assert not driven._stepped()
    assert {n: len(span.asked) for n, span in driven._open.items()} == {0: 100, 1: 100, 2: 50}


def test_what_is_in_flight_stays_known_where_redis_is_away_between_steps(seams: Seams, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(seams, 10)
    driven = driving(seams)
    for _ in range(2):
        driven._stepped()
    before = driven._open[0]

    def gone(*_: Any) -> str:
        raise BrokerUnavailable("away")

    monkeypatch.setattr(seams.batches, "hold", gone)
    assert not driven._stepped()
    assert driven._open[0] is before


# -- its end


def finalizing(seams: Seams, spans: int) -> list[bytes]:
    """A batch whose parts are all there; returns them."""
    begun(seams, 100 * spans)
    seams.batches.move(BATCH, ("validating",), "in_progress")
    texts = [f"part {n}\n".encode() for n in range(spans)]
    for n, text in enumerate(texts):
        driving(seams).parts.keep(n, [Written(1, text, "completed")])
        seams.batches.mark(BATCH, n, Counts(completed=1), live=Counts())
    seams.batches.move(BATCH, ("in_progress",), "finalizing")
    return texts


def output(seams: Seams) -> bytes | None:
    found = seams.batches.get(BATCH).output_file_id
    return None if found is None else seams.archive.store.get(f"files/{found}/content")


class Reading:
    """Runs something once, before the part of that number is read for the first time."""

    def __init__(self, seams: Seams, monkeypatch: pytest.MonkeyPatch, part: int, then: Callable[[], object]) -> None:
        self.part, self.then, self.read = f"/{part:06d}-out", then, seams.archive.store.get
        self.waits = True
        monkeypatch.setattr(seams.archive.store, "get", self)

    def __call__(self, key: str) -> bytes | None:
        if self.waits and self.part in key:
            self.waits = False
            self.then()
        return self.read(key)


def test_parts_are_put_together_under_one_hold_however_long_that_takes(seams: Seams, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = finalizing(seams, 6)
    monkeypatch.setattr(records, "HOLD_MS", 150)
    read, seen = seams.archive.store.get, []

    def slowly(key: str) -> bytes | None:
        if "/parts/" in key:
            time.sleep(0.06)
            seen.append(seams.batches.hold(BATCH, "two"))
        return read(key)

    monkeypatch.setattr(seams.archive.store, "get", slowly)
    assert driving(seams)._stepped()
    assert seen == [""] * 6
    assert (seams.batches.get(BATCH).status, output(seams)) == ("completed", b"".join(texts))


def test_a_driver_that_has_lost_its_batch_leaves_file_and_parts_alone(seams: Seams, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = finalizing(seams, 3)
    slow, quick = driving(seams, "slow"), driving(seams, "quick")

    def overtaken() -> None:
        seams.ledger.redis.hdel(seams.batches.key(BATCH), "own")  # as the clock does it
        assert quick._stepped()

    Reading(seams, monkeypatch, 1, overtaken)
    assert slow._stepped() or slow._stepped()
    assert (seams.batches.get(BATCH).status, output(seams)) == ("completed", b"".join(texts))


def test_a_file_is_not_made_of_what_is_left_of_the_parts(seams: Seams, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = finalizing(seams, 3)
    last, kept = driving(seams).parts._key(2, "out"), texts[2]
    driven = driving(seams)
    Reading(seams, monkeypatch, 1, lambda: seams.archive.store.delete(last))
    assert not driven._stepped()
    assert (seams.batches.get(BATCH).status, output(seams)) == ("finalizing", None)
    seams.archive.store.put(last, kept)
    assert driven._stepped()
    assert output(seams) == b"".join(texts)


def test_parts_stay_where_the_batch_was_not_moved_on(seams: Seams, monkeypatch: pytest.MonkeyPatch) -> None:
    finalizing(seams, 2)
    monkeypatch.setattr(seams.batches, "move", lambda *_, **__: False)
    driving(seams)._stepped()
    assert len(seams.archive.store.keys(f"batches/{BATCH}/parts/")) == 2


# -- its input gone


def test_a_batch_taken_up_again_whose_input_is_gone_fails_and_stops_what_runs(seams: Seams) -> None:
    file = begun(seams, 10)
    for _ in range(2):
        driving(seams)._stepped()
    seams.files.delete("t", file.id)
    driven = driving(seams)
    assert [driven._stepped(), driven._stepped()] == [False, True]
    found = seams.batches.get(BATCH)
    assert (found.status, found.faults[0]["code"], seams.batches.active()) == ("failed", "input_file_gone", [])
    running = Control(seams.ledger).tagged(f"batch:{BATCH}")
    assert len(running) == 10
    assert Control(seams.ledger).cancel(running) == [], "they were cancelled before"


def test_parts_are_put_together_and_read_though_the_input_is_gone(seams: Seams) -> None:
    texts = finalizing(seams, 3)
    tenant = of_tenant(seams)
    seams.files.delete("t", seams.batches.get(BATCH).order.input_file_id)
    assert list(tenant.lines(tenant.get(BATCH), "out")) == texts
    assert driving(seams)._stepped()
    assert output(seams) == b"".join(texts)


def test_a_batch_whose_input_is_gone_is_not_resumed(seams: Seams) -> None:
    file = begun(seams, 10)
    seams.batches.move(BATCH, ("validating",), "expired", end="expired")
    seams.files.delete("t", file.id)
    with pytest.raises(BadInput, match=f"{file.id}.* was deleted") as refused:
        of_tenant(seams).resume(BATCH)
    assert not isinstance(refused.value, UnknownJob)
    assert of_tenant(seams).get(BATCH).status == "expired"


# -- beside others


def test_a_batch_is_made_though_another_tenants_is_gone_that_was_listed(seams: Seams) -> None:
    file = begun(seams, 10)
    seams.ledger.redis.delete(seams.batches.key(BATCH))
    assert seams.batches.active() == [BATCH]
    assert of_tenant(seams).create(file.id).status == "validating"


def test_the_active_batches_of_all_tenants_are_read_at_once(seams: Seams) -> None:
    begun(seams, 10)
    assert [b.id for b in seams.batches.active_of()] == [b.id for b in seams.batches.active_of("t")] == [BATCH]
    assert seams.batches.active_of("another") == []


# -- an upload


def uploaded(seams: Seams, *files: bytes, most: int = 1_000, size: int = 50) -> BatchFile:
    """What the route keeps of a form of these files, read in pieces of ``size``."""
    heads = [b'--b\r\nContent-Disposition: form-data; name="file"; filename="f.jsonl"\r\n\r\n' + text + b"\r\n" for text in files]
    body = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n' + b"".join(heads) + b"--b--\r\n"

    async def source() -> AsyncIterator[bytes]:
        for at in range(0, len(body), size):
            yield body[at:at + size]

    return asyncio.run(_kept(Form("multipart/form-data; boundary=b", source()), of_tenant(seams), most))


@pytest.mark.parametrize("texts", [(b"{}\n", b"{}\n"), (b"", b""), (b"x" * 400, b""), (b"a", b"b", b"c")])
def test_a_second_file_is_refused_and_nothing_is_kept(seams: Seams, texts: tuple[bytes, ...]) -> None:
    with pytest.raises(BadInput, match="more than one 'file'") as refused:
        uploaded(seams, *texts)
    assert refused.value.field == "file"
    assert not seams.archive.store.keys("")
    assert not seams.files.all("t")


def test_a_file_may_have_as_many_bytes_as_are_taken_and_no_more(seams: Seams) -> None:
    assert uploaded(seams, b"x" * 1_000).bytes == 1_000
    kept = seams.archive.store.keys("")
    with pytest.raises(HttpFault, match="more than 1,000 bytes") as refused:
        uploaded(seams, b"x" * 1_001)
    assert refused.value.status == 413
    assert seams.archive.store.keys("") == kept


def test_an_input_that_is_too_large_is_refused_whoever_brings_it(seams: Seams, tmp_path: Path) -> None:
    seams.settings = seams.settings.model_copy(update={"max_bytes": 1_024})
    tenant, table = of_tenant(seams), tmp_path / "t.jsonl"
    assert tenant.put_file([b"x" * 1_000, b"y" * 24], "in.jsonl").bytes == 1_024
    kept = seams.archive.store.keys("")
    with pytest.raises(BadInput, match="more than 1,024 bytes"):
        tenant.put_file([b"x" * 1_000, b"y" * 25], "in.jsonl")
    table.write_text("".join(json.dumps({"q": "x" * 100}) + "\n" for _ in range(10)))
    with pytest.raises(BadInput, match="more than 1,024 bytes"):
        put_table(tenant, [table], Prompting(Template.of("{q}"), "m"))
    assert seams.archive.store.keys("") == kept
