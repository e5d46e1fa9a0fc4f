"""The chaos suite in its short form: few kills, few jobs, all audits; and the audits themselves shown what they must find."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.chaos import jobs, legs
from benchmarks.chaos.audit import audit, changed, of_journal
from benchmarks.chaos.gauges import trend, warmed
from benchmarks.chaos.journal import commands, read
from benchmarks.chaos.load import Load
from benchmarks.chaos.power import compiler, cut_to_notes, running_broker
from benchmarks.chaos.report import spread
from benchmarks.chaos.stack import Stack as ChaosStack
from stack import Stack

needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C compiler (gcc) to make the shim with")


def test_under_kills_every_job_ends_once_and_no_recorded_call_runs_again(tmp_path: Path) -> None:
    leg = legs.kills(tmp_path, seed=3, jobs=40, most=5, gap_s=1.0, in_flight=24)
    assert leg.broken == []
    assert len(leg.kills) == 5
    assert len(leg.ended) >= 40


@needs_compiler
def test_a_power_cut_of_the_broker_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    leg = legs.power_cuts(tmp_path, seed=4, jobs=24, most=2, gap_s=1.5, in_flight=12)
    assert leg.broken == []
    assert len(leg.kills) == 2


@needs_compiler
def test_what_was_not_synced_is_lost_in_a_power_cut_and_what_was_is_not(tmp_path: Path) -> None:
    # Given a broker that never syncs by itself, and one that always does
    for appendfsync, survives in (("no", False), ("always", True)):
        with running_broker(tmp_path / appendfsync, appendfsync=appendfsync) as broker:
            import redis

            with redis.Redis(port=broker.port, password=broker.password) as client:
                client.set("acknowledged", "yes")
            # When its plug is pulled
            lost = broker.cut()
            broker.start()
            # Then only the latter still knows what it acknowledged
            with redis.Redis(port=broker.port, password=broker.password) as client:
                assert (client.get("acknowledged") is not None) is survives
            assert (lost == 0) is survives


def test_a_file_without_a_note_is_cut_to_nothing_and_stale_notes_are_dropped(tmp_path: Path) -> None:
    data, notes = tmp_path / "data", tmp_path / "notes"
    data.mkdir(), notes.mkdir()
    (data / "kept").write_bytes(b"12345678")
    (data / "lost").write_bytes(b"abc")
    (notes / str((data / "kept").stat().st_ino)).write_text(f"{5:020d}")
    (notes / "0").write_text(f"{9:020d}")
    assert cut_to_notes(data, notes) == 3 + 3
    assert (data / "kept").read_bytes() == b"12345"
    assert (data / "lost").read_bytes() == b""
    assert not (notes / "0").exists()


def test_the_audit_finds_a_changed_result_a_wrong_answer_and_a_job_left_over(stack: Stack) -> None:
    # Given two jobs that went well
    over = ChaosStack(stack.folder, stack.client)
    before = stack.settled_stats()["jobs_submitted"]
    load = Load(over, lambda n: jobs.asked(5, n, healthy=True), lambda n: n < 2, in_flight=2, patience_s=60)
    first, second = load.run()
    assert [word for word in audit(over, load.ended) if "jobs were asked" not in word] == []
    assert stack.settled_stats()["jobs_submitted"] == before + 2
    # When one's result is another's, a second one answered what it should not, and a key is left
    stack.client.archive.store.put(f"jobs/{first.asked.job_id}/result.json", b"{}")
    second.asked = replace(second.asked, ends=frozenset({"cancelled"}))
    left = stack.client.ledger.key("job:left-over")
    stack.client.ledger.redis.hset(left, "st", "open")
    try:
        broken = "\n".join(audit(over, load.ended))
    finally:
        stack.client.ledger.redis.delete(left)
        stack.client.archive.store.delete(f"jobs/{first.asked.job_id}/result.json")
    # Then each is told, and so is one that vanished
    assert f"{first.asked.job_id}: its committed result has changed" in broken
    assert f"{second.asked.job_id} ({second.asked.job.name}): ended done, which it could not" in broken
    assert "1 keys job:* are left" in broken
    assert changed(over, first).endswith("has vanished")


def test_the_journal_tells_a_call_made_again_after_its_reply_and_a_job_that_ended_twice(tmp_path: Path) -> None:
    told = [["HSET", "s:job:a", "t:0:0", "l:1.x.0", "cl:0:0", "5"], ["HSET", "s:job:a", "t:0:0", "d:1.x.0"], ["ZADD", "s:ended", "6", "a"],
            ["HSET", "s:job:a", "t:0:0", "l:2.y.0"], ["ZADD", "s:ended", "7", "a"], ["HSET", "s:other", "t:0:0", "l:1.x.0"]]
    raw = b"".join(b"*%d\r\n" % len(c) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w.encode()) for w in c) for c in told)
    folder = tmp_path / "appendonlydir"
    folder.mkdir()
    (folder / "appendonly.aof.1.incr.aof").write_bytes(raw[:len(raw) // 2])
    (folder / "appendonly.aof.2.incr.aof").write_bytes(raw[len(raw) // 2:])
    assert list(commands(raw + b"*2\r\n$3\r\nDE")) == told
    (folder / "appendonly.aof.1.incr.aof").write_bytes(raw)
    (folder / "appendonly.aof.2.incr.aof").unlink()
    found = read(tmp_path, "s:")
    assert (found.whole, found.claims, found.recorded, found.ends["a"]) == (True, 2, 1, 2)
    assert of_journal(found, []) == ["journal: a turn 0:0 became 'l:2.y.0' after its reply was recorded", "journal: a ended 2 times"]


def test_a_run_is_drawn_by_its_seed() -> None:
    assert [jobs.asked(1, n) for n in range(50)] == [jobs.asked(1, n) for n in range(50)]
    kinds = {jobs.asked(1, n).job.name for n in range(200)}
    assert kinds == {"inference", "embedding", *jobs.FEWEST}


def test_a_soak_tells_growth_from_noise_from_a_first_filling_and_from_a_life_too_short() -> None:
    # Given an hour of samples: noise, a leak of a megabyte a minute, one that fills during its first minutes
    times = [10.0 * n for n in range(360)]
    noise = [(t, 100.0 + 8.0 * math.sin(t)) for t in times]
    leak = [(t, 100.0 + t / 60 + 3.0 * math.sin(t)) for t in times]
    filling = [(t, min(200.0, 100.0 + t / 3)) for t in times]
    verdicts = {name: trend("pool", "memory MB", warmed(points)).flat for name, points in (("noise", noise), ("leak", leak), ("filling", filling))}
    assert verdicts == {"noise": True, "leak": False, "filling": True}
    # a single peak or dip decides nothing, a leak of handles does, and what lived for a minute tells nothing
    assert trend("pool", "handles", [(t, 40.0 + 400.0 * (t == 1800.0)) for t in times]).flat
    assert not trend("pool", "handles", [(t, 40.0 + t / 60) for t in times]).flat
    assert warmed(noise[:6]) == []
    # disk grows with the results, which is told and not judged
    assert trend("disk: store", "MB", leak).flat is None


def test_recovery_times_are_spread_by_nearest_rank() -> None:
    assert spread([3.0, None, 1.0, 2.0]) == {"n": 3, "none": 1, "p50": 2.0, "p95": 3.0, "max": 3.0}
