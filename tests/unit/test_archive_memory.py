"""What an archive keeps in memory: the jobs in flight, read once and let go with them."""

from __future__ import annotations

import time
from typing import Any, cast

import pytest

from symposia import Client, Inference
from symposia_shared import archive as archives
from symposia_shared.archive import Archive
from symposia_shared.errors import StoreUnavailable
from symposia_shared.settings import Settings


class CountingStore:
    """Objects in memory; counts what is read and written."""

    def __init__(self, *, away: bool = False) -> None:
        self.objects: dict[str, bytes] = {}
        self.reads, self.writes, self.away = 0, 0, away

    def put(self, key: str, body: bytes) -> None:
        self.writes += 1
        if self.away:
            time.sleep(0.02)  # as the least that a refused connection takes
            raise StoreUnavailable("S3 is away.")
        self.objects[key] = body

    def get(self, key: str) -> bytes | None:
        self.reads += 1
        return self.objects.get(key)

    def uri(self, key: str) -> str:
        return f"s3://bucket/{key}"


def test_a_long_job_is_read_from_s3_once_until_it_is_let_go() -> None:
    store = CountingStore()
    archive = Archive(cast(Any, store))
    spec = archive.spec("j", "x" * 2000)
    assert [archive.read(spec) for _ in range(3)] == ["x" * 2000] * 3
    assert store.reads == 1
    archive.let_go(spec)
    archive.let_go("a short job stands in the ledger itself")
    assert (archive.read(spec), store.reads) == ("x" * 2000, 2)


def test_what_may_change_under_its_name_is_read_each_time() -> None:
    store = CountingStore()
    store.objects["jobs/j/turns/0.json"] = b'["a", "b"]'
    store.objects["jobs/j/replies/0-0-1.json"] = b'"c"'
    archive = Archive(cast(Any, store))
    for _ in range(2):
        assert [archive.read("@jobs/j/turns/0.json#1"), archive.read("@jobs/j/replies/0-0-1.json")] == ['"b"', '"c"']
    assert store.reads == 4


def test_memory_is_bounded_and_the_longest_unread_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_KEPT_CHARS", 5000)
    store = CountingStore()
    archive = Archive(cast(Any, store))
    specs = [archive.spec("j", f"{n}" * 2000) for n in range(3)]
    for spec in specs:
        archive.read(spec)
    archive.read(specs[2])
    assert store.reads == 3
    archive.read(specs[0])
    assert store.reads == 4
    for n in range(40):
        archive.read(archive.spec("j", f"{n:02}" * 1000))
    assert archive._held == sum(map(len, archive._jobs.values())) <= 5000


def test_a_store_that_is_away_ends_a_bulk_submit_at_its_first_writes() -> None:
    store = CountingStore(away=True)
    client = Client(settings=Settings())
    client.__dict__ |= {"archive": Archive(cast(Any, store)), "bell": None, "ledger": _Placed()}
    with pytest.raises(StoreUnavailable):
        client.submit_many([Inference(model="m", prompt="x" * 2000)] * 200)
    assert store.writes < 20


class _Placed:
    def placed(self) -> dict[str, dict[str, Any]]:
        return {}
