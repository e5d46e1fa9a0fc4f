"""The spool on disk: what it takes is there after a crash, what it cannot take it says, what is damaged it puts aside."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from symposia_shared.ledger import Claim, Seat
from symposia_shared.turns import Completion
from symposia_worker import spool as spools
from symposia_worker.spool import Spool, Spooled


def _reply(n: int, size: int = 100) -> Spooled:
    claim = Claim(seat=Seat(f"job-{n}", 0, 0), fence=f"1.abc.{n}", attempt=1, deaths=0, kind="inference", spec="@jobs/x", payload="", queue="q")
    return Spooled.of(claim, 5.0, Completion(text="x" * size).to_json())


def test_what_was_taken_is_found_by_the_next_process_with_its_claim(tmp_path: Path) -> None:
    first = Spool(tmp_path / "s", 10_000)
    assert all(first.put(_reply(n)) for n in range(3))
    again = Spool(tmp_path / "s", 10_000)
    assert [s.claim for s in again.restore()] == [_reply(n).claim for n in range(3)]
    assert (len(again), again.bytes) == (3, first.bytes)
    again.drop(_reply(0).id)
    assert again.get(_reply(0).id) is None
    assert again.get(_reply(1).id) == _reply(1)
    assert len(list((tmp_path / "s").iterdir())) == 2


def test_what_was_left_is_read_from_the_disk_once(tmp_path: Path) -> None:
    Spool(tmp_path / "s", 10_000).put(_reply(1))
    spool = Spool(tmp_path / "s", 10_000)
    spool.restore()
    spool.put(_reply(2))  # of this process: nobody's to take up
    assert [s.id for s in spool.restore()] == [_reply(1).id]


def test_it_holds_no_more_than_its_bytes_and_says_so_until_what_it_refused_is_settled(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s", 900)
    taken = [n for n in range(10) if spool.put(_reply(n))]
    assert 0 < len(taken) < 10
    assert sum(p.stat().st_size for p in (tmp_path / "s").iterdir()) == spool.bytes <= 900
    assert "900 bytes" in spool.full
    for n in range(10):
        spool.drop(_reply(n).id)
    assert (spool.full, spool.bytes) == ("", 0)


def test_a_reply_put_twice_is_kept_once(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "s", 10_000)
    assert spool.put(_reply(1))
    assert spool.put(_reply(1))
    assert len(list((tmp_path / "s").iterdir())) == len(spool) == 1


def test_without_bytes_it_takes_nothing_and_is_not_full() -> None:
    spool = Spool(None, 0)
    assert not spool.put(_reply(1))
    assert (spool.full, spool.restore()) == ("", [])


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"seat": "a|0|0"}', b"\xff\xfe", _reply(1).to_json().encode()[:60]])
def test_a_damaged_file_is_put_aside_and_the_others_are_found(tmp_path: Path, body: bytes) -> None:
    spool = Spool(tmp_path, 10_000)
    spool.put(_reply(1))
    (tmp_path / "torn.json").write_bytes(body)
    (tmp_path / "half.part").write_bytes(b"abc")
    assert [s.id for s in Spool(tmp_path, 10_000).restore()] == [_reply(1).id]
    assert (tmp_path / "torn.damaged").read_bytes() == body
    assert not (tmp_path / "half.part").exists()


def test_a_file_that_vanishes_is_no_reply_and_no_crash(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 10_000)
    spool.put(_reply(1))
    for path in tmp_path.iterdir():
        path.unlink()
    assert spool.get(_reply(1).id) is None
    assert len(spool) == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here: that takes root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_on_a_full_disk_it_refuses_leaves_nothing_torn_and_goes_on_with_room(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a disk with room for one reply
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 40_000)
    spool = Spool(small_disk / "s", 10_000_000)
    assert spool.put(_reply(1, 2_000))
    # When one comes that does not fit
    assert not spool.put(_reply(2, 60_000))
    # Then it is full, and says why; what is there is whole
    assert "No space left" in spool.full
    assert not spool.worth_asking()
    assert [s.id for s in Spool(small_disk / "s", 10_000_000).restore()] == [_reply(1).id]
    assert list(small_disk.rglob("*.part")) == []
    # And with room again it takes it
    filler.unlink()
    monkeypatch.setattr(spools, "ASK_AGAIN_S", 0.0)
    assert spool.worth_asking()
    assert spool.put(_reply(2, 20_000))
    assert spool.full == ""
