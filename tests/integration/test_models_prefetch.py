"""Prefetching against a real S3: behind every live load, by priority, within a budget, and over any kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from checkpoints import contents, facts, make_checkpoint
from s3 import ranges_asked
from symposia_shared.errors import BadInput, SymposiaError
from symposia_shared.settings import S3Settings, Settings
from symposia_shared.store import Store
from symposia_worker.commands.models import command
from symposia_worker.models import manifest as manifests
from symposia_worker.models.cache import ModelCache
from symposia_worker.models.locks import locked, try_locked
from symposia_worker.models.manifest import Manifest
from symposia_worker.models.prefetching import Prefetcher, Watch
from symposia_worker.models.store import ModelStore
from symposia_worker.models.wishes import Wish, Wishes

RANGE = 65_536


@pytest.fixture
def models(s3: S3Settings, monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    monkeypatch.setattr(manifests, "RANGE_BYTES", RANGE)
    store = Store(s3)
    for key in [*store.keys("models/"), *store.keys("catalogue/")]:
        store.delete(key)
    return ModelStore(store)


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "cache" / "models")


def pushed(models: ModelStore, folder: Path, name: str, *, seed: int = 0, elements: int = 300_000) -> Manifest:
    return models.push(make_checkpoint(folder / name.replace("/", "-"), seed=seed, elements=elements), name, facts=facts())


def ids(cache: ModelCache) -> set[str]:
    return {c.id for c in cache.contents()}


def states(cache: ModelCache) -> dict[str, str]:
    return {w.id: w.state for w in cache.wishes.all()}


class Slow:
    """The progress of a prefetch that stops at its first range until it is let go on."""

    def __init__(self) -> None:
        self.at_work, self.go_on = threading.Event(), threading.Event()

    def __call__(self, what: str, done: int, total: int) -> None:
        if done > RANGE:
            self.at_work.set()
            assert self.go_on.wait(60)


def until(held: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not held():
        assert time.monotonic() < end
        time.sleep(0.05)


# -- order


def test_wishes_are_fetched_by_priority_and_then_in_the_order_they_came(models: ModelStore, cache: ModelCache, tmp_path: Path,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, name in enumerate(("a", "b", "c")):
        pushed(models, tmp_path, name, seed=seed, elements=1000)
    cache.wishes.add(["a", "b"])
    cache.wishes.add(["c"], priority=5)
    asked = ranges_asked(monkeypatch)
    assert Prefetcher(cache, models).run()
    assert list(dict.fromkeys(key.split("/")[1] for key, _ in asked)) == ["c", "a", "b"]
    assert states(cache) == {"a": "here", "b": "here", "c": "here"}


def test_what_was_prefetched_is_loaded_without_a_byte_from_the_store(models: ModelStore, cache: ModelCache, tmp_path: Path) -> None:
    manifest = pushed(models, tmp_path, "a")
    cache.wishes.add(["a"])
    Prefetcher(cache, models).run()
    for file in manifest.files:
        models.store.delete(manifest.key(file))
    assert contents(cache.fetch(models, "a")) == contents(tmp_path / "a")
    # and the wish has come true
    assert cache.wishes.all() == []


def test_a_wish_of_a_higher_priority_goes_first_and_the_other_goes_on_where_it_was(models: ModelStore, cache: ModelCache, tmp_path: Path,
                                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a prefetch in the middle of its checkpoint
    manifest = pushed(models, tmp_path, "a")
    pushed(models, tmp_path, "b", seed=7, elements=1000)
    asked, slow = ranges_asked(monkeypatch), Slow()
    cache.wishes.add(["a"])
    thread = threading.Thread(target=Prefetcher(cache, models, progress=slow).run)
    thread.start()
    assert slow.at_work.wait(60)
    # When another is wished for more, then it is fetched in between, and no range of the first twice
    cache.wishes.add(["b"], priority=9)
    slow.go_on.set()
    thread.join()
    order = list(dict.fromkeys(key.split("/")[1] for key, _ in asked))
    assert order == ["a", "b"]
    assert asked.index(next(a for a in asked if a[0].startswith("models/b"))) < len(asked) - 1
    ours = [a for a in asked if a[0].startswith("models/a") and a[0] in {manifest.key(f) for f in manifest.files if f.size > RANGE}]
    assert len(ours) == len(set(ours))
    assert states(cache) == {"a": "here", "b": "here"}


# -- beside live loads


def test_a_wish_that_ends_while_it_is_changed_does_not_come_back(tmp_path: Path) -> None:
    wishes = Wishes(tmp_path)
    wishes.add(["a"])
    ending = threading.Thread(target=wishes.drop, args=("a",))

    def changed(wish: Wish) -> Wish:
        ending.start()
        ending.join(0.3)
        return wish.model_copy(update={"state": "here"})

    wishes._change("a", changed)
    ending.join()
    assert wishes.all() == []


def test_a_live_load_of_the_same_checkpoint_takes_over_where_the_prefetch_was(models: ModelStore, cache: ModelCache, tmp_path: Path,
                                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a prefetch in the middle of a checkpoint
    manifest = pushed(models, tmp_path, "a")
    asked, slow = ranges_asked(monkeypatch), Slow()
    cache.wishes.add(["a"])
    prefetch = threading.Thread(target=Prefetcher(cache, models, progress=slow).run)
    prefetch.start()
    assert slow.at_work.wait(60)
    # When a pool loads it
    live = ModelCache(cache.folder)
    got: list[Path] = []
    load = threading.Thread(target=lambda: got.append(live.fetch(models, "a")))
    load.start()
    until(lambda: cache.is_wanted(manifest))
    slow.go_on.set()
    load.join()
    prefetch.join()
    # Then it is right, no range of its large files came twice, and nothing is wished for any more
    assert contents(got[0]) == contents(tmp_path / "a")
    large = {manifest.key(f) for f in manifest.files if f.size > RANGE}
    ours = [a for a in asked if a[0] in large]
    assert len(ours) == len(set(ours))
    assert cache.wishes.all() == []


def test_a_prefetch_waits_while_a_live_load_downloads(models: ModelStore, cache: ModelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pushed(models, tmp_path, "a")
    asked = ranges_asked(monkeypatch)
    cache.wishes.add(["a"])
    with cache._live():
        prefetch = threading.Thread(target=Prefetcher(cache, models).run)
        prefetch.start()
        until(lambda: len(asked) >= 1)
        time.sleep(0.5)
        waiting = len(asked)
        time.sleep(1.0)
        assert len(asked) == waiting
        assert states(cache) == {"a": "queued"}
    prefetch.join()
    assert states(cache) == {"a": "here"}


# -- budget


def test_a_prefetch_never_evicts_what_is_in_use(models: ModelStore, cache: ModelCache, tmp_path: Path) -> None:
    size = pushed(models, tmp_path, "a", elements=1000).size
    pushed(models, tmp_path, "b", seed=1, elements=1000)
    small = ModelCache(cache.folder, budget_bytes=size + size // 2)
    small.fetch(models, "a")
    small.wishes.add(["b"], priority=100)
    Prefetcher(small, models).run()
    assert ids(small) == {"a"}
    (wish,) = small.wishes.all()
    assert wish.state == "refused"
    assert all(f"{n:,}" in wish.said for n in (size, size + size // 2))
    assert "SYMPOSIA_CACHE_BYTES" in wish.said
    # what was used and no longer is may go
    small.release("a")
    small.wishes.add(["b"])
    Prefetcher(small, models).run()
    assert ids(small) == {"b"}


def test_a_prefetch_evicts_what_is_wished_for_less_and_never_what_is_wished_for_as_much(models: ModelStore, cache: ModelCache, tmp_path: Path) -> None:
    size = pushed(models, tmp_path, "low", elements=1000).size
    pushed(models, tmp_path, "equal", seed=1, elements=1000)
    pushed(models, tmp_path, "high", seed=2, elements=1000)
    small = ModelCache(cache.folder, budget_bytes=size + size // 2)
    small.wishes.add(["low"], priority=1)
    Prefetcher(small, models).run()
    small.wishes.add(["equal"], priority=1)
    Prefetcher(small, models).run()
    assert ids(small) == {"low"}
    assert states(small) == {"low": "here", "equal": "refused"}
    small.wishes.add(["high"], priority=2)
    Prefetcher(small, models).run()
    assert ids(small) == {"high"}
    assert "made room for high" in str(small.wishes.of("low"))


def test_a_live_load_takes_the_room_of_what_nobody_wants_before_that_of_a_wish(models: ModelStore, cache: ModelCache, tmp_path: Path) -> None:
    size = pushed(models, tmp_path, "wished", elements=1000).size
    pushed(models, tmp_path, "used", seed=1, elements=1000)
    pushed(models, tmp_path, "live", seed=2, elements=1000)
    small = ModelCache(cache.folder, budget_bytes=2 * size + size // 2)
    small.wishes.add(["wished"])
    Prefetcher(small, models).run()
    time.sleep(0.02)
    small.fetch(models, "used")
    small.release("used")
    small.fetch(models, "live")
    assert ids(small) == {"wished", "live"}


def test_what_may_lie_there_unused_is_bounded_and_the_numbers_are_told(models: ModelStore, cache: ModelCache, tmp_path: Path) -> None:
    size = pushed(models, tmp_path, "a", elements=1000).size
    pushed(models, tmp_path, "b", seed=1, elements=1000)
    cache.wishes.add(["a", "b"])
    Prefetcher(cache, models, prefetch_bytes=size + 10).run()
    assert states(cache) == {"a": "here", "b": "refused"}
    said = str(cache.wishes.of("b"))
    assert f"{size:,} bytes; {size + 10:,} may be prefetched, {size:,} are" in said
    # one that is wanted more takes its place
    cache.wishes.add(["b"], priority=1)
    Prefetcher(cache, models, prefetch_bytes=size + 10).run()
    assert states(cache) == {"a": "refused", "b": "here"}
    assert ids(cache) == {"b"}


def test_the_disk_keeps_what_it_is_to_keep_free(models: ModelStore, cache: ModelCache, tmp_path: Path) -> None:
    pushed(models, tmp_path, "a", elements=1000)
    cache.wishes.add(["a"])
    Prefetcher(cache, models, keep_free=10**18).run()
    assert states(cache) == {"a": "refused"}
    assert f"{10**18:,} are promised or kept free" in str(cache.wishes.of("a"))


# -- faults


def test_a_damaged_checkpoint_is_refused_and_nothing_of_it_stays(models: ModelStore, cache: ModelCache, tmp_path: Path) -> None:
    manifest = pushed(models, tmp_path, "a", elements=1000)
    models.store.put(manifest.key(manifest.files[1]), b"damaged")
    cache.wishes.add(["a", "nothing/there"])
    Prefetcher(cache, models).run()
    assert states(cache) == {"a": "refused", "nothing/there": "refused"}
    assert manifest.files[1].path in str(cache.wishes.of("a"))
    assert not list(cache.folder.rglob("*.safetensors"))


def test_a_wish_that_ends_meanwhile_ends_the_download(models: ModelStore, cache: ModelCache, tmp_path: Path) -> None:
    pushed(models, tmp_path, "a")
    slow = Slow()
    cache.wishes.add(["a"])
    prefetch = threading.Thread(target=Prefetcher(cache, models, progress=slow).run)
    prefetch.start()
    assert slow.at_work.wait(60)
    cache.wishes.drop("a")
    slow.go_on.set()
    prefetch.join()
    assert ids(cache) == set()


def test_a_prefetch_that_was_killed_is_taken_up_by_the_next_process(models: ModelStore, s3: S3Settings, cache: ModelCache, tmp_path: Path,
                                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    # Given the process that fetches for a pool, killed as soon as something is on the disk
    pushed(models, tmp_path, "a", elements=12_000_000)
    cache.wishes.add(["a"])
    environ = {**os.environ, **settings_of(s3, tmp_path).environ()}
    child = subprocess.Popen([sys.executable, "-m", "symposia_worker.models.prefetching", str(cache.folder.parent)], env=environ)
    until(lambda: any(p.written > 1_000_000 for p in cache.room.promised()))
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert states(cache) == {"a": "queued"}
    # When a pool's watch starts another
    watch = Watch(cache.folder.parent, settings_of(s3, tmp_path))
    watch.start()
    try:
        until(lambda: states(cache) == {"a": "here"})
    finally:
        watch.stop()
    # Then it is whole
    assert contents(cache.fetch(models, "a")) == contents(tmp_path / "a")


def settings_of(s3: S3Settings, folder: Path) -> Settings:
    return Settings(s3=s3, dir=folder / "stack")


def test_one_process_at_a_time_fetches_for_a_cache(models: ModelStore, cache: ModelCache) -> None:
    with locked(cache.wishes.worker_lock):
        assert not Prefetcher(cache, models).run()


# -- the command


@pytest.fixture
def cli(s3: S3Settings, models: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setenv("SYMPOSIA_DIR", str(tmp_path / "stack"))
    monkeypatch.setenv("SYMPOSIA_CACHE", str(tmp_path / "cache"))
    for name, value in settings_of(s3, tmp_path).environ().items():
        if name.startswith("SYMPOSIA_S3"):
            monkeypatch.setenv(name, value)

    def ran(*words: str) -> Any:
        done = CliRunner().invoke(command, [*words])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return json.loads(done.stdout) if "--json" in words else done.stdout

    return ran


def test_the_command_fetches_by_itself_where_no_pool_is_up_and_queues_where_one_is(cli: Callable[..., Any], models: ModelStore, cache: ModelCache,
                                                                                   tmp_path: Path) -> None:
    pushed(models, tmp_path, "a", elements=1000)
    pushed(models, tmp_path, "b", seed=1, elements=1000)
    (told,) = cli("prefetch", "a", "--priority", "3", "--json")
    assert (told["id"], told["state"], told["priority"]) == ("a", "here", 3)
    with try_locked(cache.wishes.watch_lock):  # a pool is up
        told = cli("prefetch", "b", "--json")
    assert [(w["id"], w["state"]) for w in told] == [("a", "here"), ("b", "queued")]
    assert "queued   b" in cli("prefetch")
    assert [w["id"] for w in cli("prefetch", "b", "--cancel", "--json")] == ["a"]
    with pytest.raises(SymposiaError, match="no checkpoint 'c'"):
        cli("prefetch", "c")


@pytest.mark.parametrize("variable", ["SYMPOSIA_CACHE_BYTES", "SYMPOSIA_PREFETCH_BYTES"])
def test_a_budget_that_is_no_number_is_told(cli: Callable[..., Any], models: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                            variable: str) -> None:
    pushed(models, tmp_path, "a", elements=1000)
    monkeypatch.setenv(variable, "plenty")
    with pytest.raises(BadInput, match=f"{variable} is 'plenty'"):
        cli("prefetch", "a")


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/../b", "/abs", "a\x00b"])
def test_a_wish_cannot_leave_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput):
        Wishes(tmp_path / "cache").add([name])
    assert not list(tmp_path.rglob("*.json"))
