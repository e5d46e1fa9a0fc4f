"""S3 slow, failing, cut off and full, by a proxy before the real server: nothing that was computed is lost, nothing is torn."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from stack import Stack, running_stack, wait_for

from s3_faults import Fault, FaultyS3, faulty
from symposia import Ensemble, Inference, Member
from symposia_shared.archive import Archive
from symposia_shared.errors import StoreUnavailable
from symposia_shared.results import Result
from symposia_shared.settings import S3Settings
from symposia_shared.store import Store

#: its echo is longer than what the ledger keeps inline
LONG = "long " * 300


@pytest.fixture
def proxy(s3: S3Settings) -> Iterator[FaultyS3]:
    with faulty(s3) as running:
        yield running


# -- the seam ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["slow", "slowdown", "full", "reset", "lost", "torn"])
def test_a_write_that_fails_once_is_made_whole_and_once(proxy: FaultyS3, fault: Fault) -> None:
    store, key, body = Store(proxy.settings), f"once/{fault}", os.urandom(40_000)
    proxy.fail(fault, method="PUT", times=1)
    # 507 is not among what boto3 tries again: the caller does
    written = store.put_once(key, body) if fault != "full" else _insist(store, key, body)
    # after a lost answer boto3 tries again and is told 412: the object is read back, and it is ours
    assert written.ours
    assert store.get(key) == body
    assert any(f == fault for _, _, f in proxy.seen)


def _insist(store: Store, key: str, body: bytes) -> object:
    with pytest.raises(StoreUnavailable, match="full: free space"):
        store.put_once(key, body)
    return store.put_once(key, body)


def test_of_two_writers_the_second_reads_the_firsts_object_back_and_is_told(proxy: FaultyS3) -> None:
    store = Store(proxy.settings)
    assert store.put_once("two/a", b"first").ours
    second = store.put_once("two/a", b"second")
    assert (second.ours, second.body) == (False, b"first")


def test_a_refusal_whose_object_cannot_be_read_back_is_no_answer_but_an_absence(proxy: FaultyS3) -> None:
    store = Store(proxy.settings)
    store.put_once("back/a", b"first" * 100)
    proxy.fail("truncated", method="GET")
    with pytest.raises(StoreUnavailable):
        store.put_once("back/a", b"second")
    proxy.heal()
    assert store.put_once("back/a", b"second").body == b"first" * 100


def test_a_truncated_answer_is_never_taken_for_an_object(proxy: FaultyS3) -> None:
    archive = Archive(Store(proxy.settings))
    result = Result(job_id="cut", state="cancelled", job={"kind": "inference", "prompt": LONG}, submitted_at=1.0, ended_at=2.0)
    archive.commit(result)
    proxy.fail("truncated", method="GET")
    with pytest.raises(StoreUnavailable):
        archive.result("cut")
    proxy.heal()
    found = archive.result("cut")
    assert found is not None
    assert found.job["prompt"] == LONG


def test_a_torn_upload_leaves_no_object(proxy: FaultyS3) -> None:
    store = Store(proxy.settings)
    proxy.fail("torn", method="PUT")
    with pytest.raises(StoreUnavailable):
        store.put("torn/a", os.urandom(50_000))
    proxy.heal()
    assert store.get("torn/a") is None


# -- a stack behind the proxy ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def behind(s3: S3Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, FaultyS3]]:
    """A stack whose S3 is behind a proxy, with eight slots and a spool of 120 kB."""
    with faulty(s3) as proxy:
        p = proxy.settings
        environ = {"SYMPOSIA_S3__ENDPOINT_URL": str(p.endpoint_url), "SYMPOSIA_S3__ACCESS_KEY": str(p.access_key), "SYMPOSIA_S3__BUCKET": p.bucket,
                   "SYMPOSIA_S3__SECRET_KEY": p.secret_key.get_secret_value() if p.secret_key else "", "SYMPOSIA_SPOOL__MAX_BYTES": "120000"}
        flags = ("--test-models", "--no-flower", "--no-api", "--concurrency", "8")
        with running_stack(tmp_path_factory.mktemp("behind"), *flags, **environ) as stack:
            stack.client.close()
            settings = stack.client.settings.model_copy(update={"s3": p})
            stack.client = type(stack.client)(settings=settings)
            yield stack, proxy


@pytest.fixture
def tried(behind: tuple[Stack, FaultyS3]) -> Iterator[tuple[Stack, FaultyS3]]:
    stack, proxy = behind
    proxy.heal()
    stack.zero = stack.settled_stats()
    yield stack, proxy
    proxy.heal()


def _spooled(stack: Stack) -> int:
    return sum(int(w["spooled"]["replies"]) for w in stack.client.ledger.workers().values() if w.get("role") == "pool")


def _talk(words: str, count: int) -> list[Inference]:
    """Prompts whose replies are too long for the ledger, which takes 4 KiB of a job that ends with its turn."""
    return [Inference(model="test/echo", prompt=f"{words} {n} " + "seventeen-letters " * 280) for n in range(count)]


@pytest.mark.parametrize("fault", ["slowdown", "reset", "full", "hang"])
def test_while_s3_fails_replies_are_spooled_and_slots_go_on(tried: tuple[Stack, FaultyS3], fault: Fault) -> None:
    # Given an S3 that takes no reply
    stack, proxy = tried
    jobs = _talk(fault, 12)
    proxy.fail(fault, method="PUT", holding="/replies/")
    # When more turns are asked than the pool has slots
    handles = [stack.client.submit(job) for job in jobs]
    # Then all are computed, their replies wait on disk, and the pool still takes turns
    wait_for(lambda: _spooled(stack) == 12)
    assert stack.client.ask("short", model="test/echo", timeout=60) == "short"
    assert stack.stats()["calls_recorded"] - stack.zero["calls_recorded"] == 1
    # And when S3 is back, each ends with what was computed then
    proxy.heal()
    for n, handle in enumerate(handles):
        assert str(handle.result(60).answer).startswith(f"{fault} {n} ")
    counted = stack.since()
    assert (counted["calls_started"], counted["calls_repeated"]) == (13, 0)
    assert _spooled_files(stack) == []


def _spooled_files(stack: Stack) -> list[Path]:
    return list((stack.folder / "spool").rglob("*.json"))


def test_a_spooled_reply_outlives_its_pool_and_is_recorded_by_the_next_one(tried: tuple[Stack, FaultyS3]) -> None:
    stack, proxy = tried
    proxy.fail("slowdown", method="PUT", holding="/replies/")
    handles = [stack.client.submit(job) for job in _talk("kept", 3)]
    wait_for(lambda: len(_spooled_files(stack)) == 3)
    assert all(path.stat().st_mode & 0o077 == 0 for path in _spooled_files(stack))
    old = stack.kill("pool")
    wait_for(lambda: stack.pid("pool") != old and _spooled(stack) == 3 and _beats(stack) == stack.pid("pool"))
    proxy.heal()
    for n, handle in enumerate(handles):
        assert str(handle.result(60).answer).startswith(f"kept {n} ")
    counted = stack.since()
    assert counted["calls_recorded"] == 3
    assert counted["calls_repeated"] <= counted["in_flight_at_kills"]


def _beats(stack: Stack) -> int:
    return next(int(w["pid"]) for w in stack.client.ledger.workers().values() if w.get("role") == "pool")


def test_a_pool_told_to_stop_leaves_what_it_computed_in_the_spool(tried: tuple[Stack, FaultyS3]) -> None:
    stack, proxy = tried
    proxy.fail("hang", method="PUT", holding="/replies/")
    handles = [stack.client.submit(job) for job in _talk("stopped", 3)]
    wait_for(lambda: stack.stats()["calls_started"] - stack.zero["calls_started"] == 3)
    old = stack.kill("pool", signal.SIGTERM)
    wait_for(lambda: len(_spooled_files(stack)) == 3)
    proxy.heal()
    for handle in handles:
        assert handle.wait(90).state == "done"
    assert stack.pid("pool") != old
    assert stack.since()["calls_recorded"] == 3


def test_a_full_spool_stops_the_pool_which_says_so_and_goes_on_once_there_is_room(tried: tuple[Stack, FaultyS3]) -> None:
    # Given an S3 that is full, and more replies than the spool may hold
    stack, proxy = tried
    proxy.fail("full", method="PUT", holding="/replies/")
    handles = [stack.client.submit(job) for job in _talk("much", 40)]

    def reason() -> str:
        return next(str(w["idle_because"]) for w in stack.client.ledger.workers().values() if w.get("role") == "pool")

    # Then the pool takes no more than fit, and says why
    wait_for(lambda: "120,000 bytes" in reason())
    started = stack.stats()["calls_started"]
    assert started - stack.zero["calls_started"] < 40
    assert sum(p.stat().st_size for p in _spooled_files(stack)) <= 120_000
    assert any("120,000 bytes" in p["idle_because"] for p in stack.json("info")["pools"])
    time.sleep(2)
    assert stack.stats()["calls_started"] == started
    # And once S3 has room, all that was asked ends, each call made once
    proxy.heal()
    for n, handle in enumerate(handles):
        assert str(handle.result(120).answer).startswith(f"much {n} ")
    counted = stack.since()
    assert (counted["calls_started"], counted["calls_repeated"], reason()) == (40, 0, "")


def test_rounds_and_results_wait_for_an_s3_that_is_slow_and_fails_now_and_then(tried: tuple[Stack, FaultyS3]) -> None:
    stack, proxy = tried
    count = [0]

    def every_third(method: str, path: str) -> Fault | None:
        ours = method == "PUT" and "/job-" not in path  # a submit that fails is the producer's to repeat
        count[0] += ours
        return None if not ours else ("lost", "slow", "slowdown")[count[0] % 3]  # type: ignore[return-value]

    proxy.slow_s, proxy.rule = 0.5, every_third
    team = Ensemble(prompt=LONG, answer_kind="text", early_stop=False, members=[Member(model="test/echo")] * 3)
    handles = [stack.client.submit(team) for _ in range(4)]
    for handle in handles:
        assert handle.wait(120).state == "done"
    counted = stack.since()
    assert (counted["jobs_done"], counted["commit_conflicts"], counted["calls_repeated"]) == (4, 0, 0)


# -- disks that are full -----------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,mode=700", "tmpfs", str(folder)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("a small file system cannot be mounted here: that takes root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def _fill(folder: Path) -> Path:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 65536):
                pass
        except OSError:
            pass
    return filler


def test_a_broker_whose_disk_is_full_refuses_and_loses_nothing_it_had_acknowledged(tmp_path: Path, small_disk: Path) -> None:
    # Given a stack whose broker writes to a small disk, with jobs that wait
    folder = tmp_path / "stack"
    folder.mkdir(mode=0o700)
    (folder / "broker").symlink_to(small_disk)
    with running_stack(folder, "--test-models", "--no-flower", "--no-api") as stack:
        before = [stack.client.submit(Inference(model="test/slow:3000", prompt=f"before {n}")) for n in range(5)]
        # When its disk is full
        filler = _fill(small_disk)
        refused = _refusals(stack)
        # Then a submit is refused in words, and none is taken that is not on disk
        assert any("Redis" in words or "broker" in words.lower() for words in refused)
        filler.unlink()
        # And with room again, what was acknowledged ends, and so does what comes
        for handle in before:
            assert handle.result(90).answer == "slow 3000"
        assert stack.client.ask("after", model="test/echo", timeout=90) == "after"


def _refusals(stack: Stack) -> list[str]:
    from symposia_shared.errors import Unavailable

    words: list[str] = []
    until = time.monotonic() + 30
    while len(words) < 3 and time.monotonic() < until:
        try:
            stack.client.submit(Inference(model="test/echo", prompt="x" * 400))
        except Unavailable as error:
            words.append(str(error))
    return words
