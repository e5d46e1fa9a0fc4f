"""The model store and the model cache against a real S3: what is loaded is what was pushed, whatever happens in between."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from checkpoints import contents, facts, make_checkpoint
from s3 import ranges_asked
from symposia_shared import sending
from symposia_shared.errors import BadInput, Damaged, StoreUnavailable, Unavailable, UnknownModel
from symposia_shared.settings import S3Settings
from symposia_shared.store import Store
from symposia_worker.models import download
from symposia_worker.models import manifest as manifests
from symposia_worker.models.cache import ModelCache
from symposia_worker.models.locks import locked
from symposia_worker.models.manifest import Manifest, manifest_key
from symposia_worker.models.store import ModelStore

forked = multiprocessing.get_context("spawn")
#: the least that S3 takes for a part
PART = 5 * 2**20


@pytest.fixture
def cache(tmp_path: Path) -> ModelCache:
    return ModelCache(tmp_path / "cache")


def pushed(models: ModelStore, folder: Path, name: str = "lab/tiny", **made: Any) -> Manifest:
    return models.push(make_checkpoint(folder, **made), name, facts=facts())


def nothing_left(cache: ModelCache) -> bool:
    """Whether no folder of a checkpoint, whole or half, is in the cache."""
    return not list(cache.folder.rglob("*.safetensors")) and not list((cache.folder / ".partial").glob("*"))


# -- there and back


def test_what_is_fetched_is_what_was_pushed(models: ModelStore, cache: ModelCache, tmp_path: Path) -> None:
    manifest = pushed(models, tmp_path / "made")
    assert models.manifest("lab/tiny") == manifest
    assert contents(cache.fetch(models, "lab/tiny")) == contents(tmp_path / "made")
    assert models.verify("lab/tiny") == manifest
    assert cache.verify(models, "lab/tiny") == cache.fetch(models, "lab/tiny")


def test_a_large_file_goes_in_parts_and_comes_in_ranges(models: ModelStore, cache: ModelCache, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    pushed(models, tmp_path / "made", elements=40_000_000)
    folder = cache.fetch(models, "lab/tiny", progress=lambda what, done, total: seen.append((done, total)))
    assert contents(folder) == contents(tmp_path / "made")
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]


def test_a_checkpoint_that_is_here_is_not_fetched_again(models: ModelStore, cache: ModelCache, tmp_path: Path) -> None:
    manifest = pushed(models, tmp_path / "made")
    folder = cache.fetch(models, "lab/tiny")
    for file in manifest.files:
        models.store.delete(manifest.key(file))
    assert cache.fetch(models, "lab/tiny") == folder
    assert ModelCache(cache.folder).fetch(models, "lab/tiny") == folder


def test_pushing_the_same_again_sends_nothing(models: ModelStore, tmp_path: Path) -> None:
    pushed(models, tmp_path / "made")
    key = manifest_key("lab/tiny")
    written = models.store.client.head_object(Bucket=models.store.bucket, Key=key)["LastModified"]
    sent: list[str] = []
    time.sleep(1.1)
    models.push(tmp_path / "made", "lab/tiny", facts=facts(), progress=lambda what, *_: sent.append(what))
    assert models.store.client.head_object(Bucket=models.store.bucket, Key=key)["LastModified"] == written
    assert not [what for what in sent if what.startswith("sending")]


def test_a_new_revision_takes_the_place_of_the_old_one(models: ModelStore, cache: ModelCache, tmp_path: Path) -> None:
    first = pushed(models, tmp_path / "one", seed=1)
    old = cache.fetch(models, "lab/tiny")
    second = pushed(models, tmp_path / "two", seed=2)
    new = cache.fetch(models, "lab/tiny")
    assert first.revision != second.revision
    assert contents(new) == contents(tmp_path / "two")
    # what a pool has loaded is not overwritten
    assert contents(old) == contents(tmp_path / "one")


def test_the_list_has_each_checkpoint_once_and_removal_takes_one(models: ModelStore, cache: ModelCache, tmp_path: Path) -> None:
    for name in ("lab", "lab/tiny", "lab/other"):
        pushed(models, tmp_path / "made", name)
    assert [m.id for m in models.list().checkpoints] == ["lab", "lab/other", "lab/tiny"]
    models.remove("lab")
    assert [m.id for m in models.list().checkpoints] == ["lab/other", "lab/tiny"]
    assert not [k for k in models.store.keys("models/lab/") if not k.startswith(("models/lab/tiny/", "models/lab/other/"))]
    assert contents(cache.fetch(models, "lab/tiny")) == contents(tmp_path / "made")
    with pytest.raises(UnknownModel, match="models pull lab"):
        models.remove("lab")


def test_a_damaged_manifest_does_not_hide_the_other_checkpoints(models: ModelStore, tmp_path: Path) -> None:
    pushed(models, tmp_path / "made", "lab/one")
    pushed(models, tmp_path / "made", "lab/two")
    models.store.put(manifest_key("lab/one"), b"{}")
    found = models.list()
    assert [m.id for m in found.checkpoints] == ["lab/two"]
    assert ["lab/one" in str(damaged) for damaged in found.damaged] == [True]
    # and pushing again mends it
    pushed(models, tmp_path / "made", "lab/one")
    assert models.list().damaged == ()


# -- damage in the store


def damages(models: ModelStore, manifest: Manifest, dice: random.Random) -> None:
    """One random damage to what is stored."""
    store = models.store
    file = dice.choice(manifest.files)
    key = manifest.key(file)
    body = bytearray(store.get(key) or b"")
    kind = dice.choice(["flip", "cut", "grow", "swap", "empty", "remove", "manifest flip", "manifest gone"])
    if kind == "flip":
        body[dice.randrange(len(body))] ^= 1 << dice.randrange(8)
        store.put(key, bytes(body))
    elif kind == "cut":
        store.put(key, bytes(body[:dice.randrange(len(body))]))
    elif kind == "grow":
        store.put(key, bytes(body) + b"\0")
    elif kind == "empty":
        store.put(key, bytes(len(body)))
    elif kind == "remove":
        store.delete(key)
    elif kind == "swap":
        one, two = (manifest.key(f) for f in manifest.files if f.path.endswith(".safetensors"))
        first, second = store.get(one), store.get(two)
        assert first
        assert second
        store.put(one, second)
        store.put(two, first)
    elif kind == "manifest flip":
        body = bytearray(store.get(manifest_key(manifest.id)) or b"")
        body[dice.randrange(len(body))] ^= 1 << dice.randrange(8)
        store.put(manifest_key(manifest.id), bytes(body))
    else:
        store.delete(manifest_key(manifest.id))


@pytest.mark.parametrize("seed", range(int(os.environ.get("SYMPOSIA_DAMAGE_TRIALS", "40"))))
def test_a_damaged_checkpoint_is_never_given_out(models: ModelStore, cache: ModelCache, tmp_path: Path, seed: int) -> None:
    # Given a checkpoint with one damage
    manifest = pushed(models, tmp_path / "made", seed=seed)
    damages(models, manifest, random.Random(seed))
    # When it is fetched or verified, then it is refused, and nothing of it stays
    with pytest.raises((Damaged, UnknownModel)):
        cache.fetch(models, "lab/tiny")
    assert nothing_left(cache)
    with pytest.raises((Damaged, UnknownModel)):
        models.verify("lab/tiny")


def test_the_damaged_file_is_named_with_both_digests(models: ModelStore, cache: ModelCache, tmp_path: Path) -> None:
    manifest = pushed(models, tmp_path / "made")
    file = manifest.files[1]
    body = bytearray(models.store.get(manifest.key(file)) or b"")
    body[-1] ^= 1
    models.store.put(manifest.key(file), bytes(body))
    with pytest.raises(Damaged, match=rf"{file.path}.*{file.sha256} is wanted, [0-9a-f]{{64}} was found.*models rm"):
        cache.fetch(models, "lab/tiny")


def test_a_bit_flipped_on_the_way_is_fetched_again(models: ModelStore, cache: ModelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a wire that flips one bit, once
    pushed(models, tmp_path / "made")
    right, flips = Store.get_range, iter([True])

    def flipping(self: Store, key: str, start: int, *, length: int, etag: str) -> bytes:
        body = right(self, key, start, length=length, etag=etag)
        return bytes([body[0] ^ 1]) + body[1:] if next(flips, False) else body

    monkeypatch.setattr(Store, "get_range", flipping)
    # When the checkpoint is fetched, then it is right
    assert contents(cache.fetch(models, "lab/tiny")) == contents(tmp_path / "made")
    assert next(flips, None) is None


def test_a_connection_that_is_cut_is_taken_up_again(models: ModelStore, cache: ModelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "RANGE_BYTES", 65_536)
    pushed(models, tmp_path / "made", elements=300_000)
    right, dice = Store.get_range, random.Random(3)
    cut: list[int] = []

    def cutting(self: Store, key: str, start: int, *, length: int, etag: str) -> bytes:
        body = right(self, key, start, length=length, etag=etag)
        if start not in cut and dice.random() < 0.5:
            cut.append(start)
            return body[:length // 2]
        return body

    monkeypatch.setattr(Store, "get_range", cutting)
    assert contents(cache.fetch(models, "lab/tiny")) == contents(tmp_path / "made")
    assert cut


def test_an_object_replaced_between_two_ranges_is_not_mixed(models: ModelStore, cache: ModelCache, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a file that is overwritten while its ranges come
    monkeypatch.setattr(manifests, "RANGE_BYTES", 65_536)
    manifest = pushed(models, tmp_path / "made", elements=300_000)
    monkeypatch.setattr(download, "PARALLEL", 1)
    right = Store.get_range
    file = next(f for f in manifest.files if f.path.endswith(".safetensors"))

    def replacing(self: Store, key: str, start: int, *, length: int, etag: str) -> bytes:
        if start == 131_072 and key == manifest.key(file):
            self.put(key, bytes(file.size))
        return right(self, key, start, length=length, etag=etag)

    monkeypatch.setattr(Store, "get_range", replacing)
    with pytest.raises(Damaged, match=file.path):
        cache.fetch(models, "lab/tiny")
    assert nothing_left(cache)


def test_a_push_that_is_cut_off_leaves_the_former_checkpoint(models: ModelStore, cache: ModelCache, tmp_path: Path,
                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a checkpoint, and a push of another under its name that dies before its last file
    pushed(models, tmp_path / "one", seed=1)
    right = Store.put_file
    sent: list[str] = []

    def dying(self: Store, key: str, path: Path, **more: Any) -> None:
        if len(sent) == 3:
            raise KeyboardInterrupt
        sent.append(key)
        right(self, key, path, **more)

    with monkeypatch.context() as patched:
        patched.setattr(Store, "put_file", dying)
        with pytest.raises(KeyboardInterrupt):
            pushed(models, tmp_path / "two", seed=2)
    # Then the former one is there, whole
    assert contents(cache.fetch(models, "lab/tiny")) == contents(tmp_path / "one")
    # and the next push goes on after what arrived
    sent.clear()
    again: list[str] = []
    monkeypatch.setattr(Store, "put_file", lambda self, key, path, **more: (again.append(key), right(self, key, path, **more))[1])
    pushed(models, tmp_path / "two", seed=2)
    assert len(again) == 1
    assert contents(cache.fetch(models, "lab/tiny")) == contents(tmp_path / "two")


def _sending(settings: S3Settings, path: Path, key: str, told: Connection) -> None:
    """Sends a file one part after the other, slowly."""
    sending.PART_BYTES, sending._AT_ONCE = PART, 1
    Store(settings).put_file(key, path, metadata={"sha256": "x"}, sent=lambda n: (told.send(n), time.sleep(0.3))[0])


def test_an_upload_that_was_killed_is_gone_on_with_part_by_part(s3: S3Settings, models: ModelStore, tmp_path: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    path, key = tmp_path / "weights.bin", "models/lab/large/weights.bin"
    path.write_bytes(os.urandom(4 * PART + 500_000))
    # Given an upload whose process is killed after two of its five parts
    here, there = forked.Pipe()
    child = forked.Process(target=_sending, args=(s3, path, key, there))
    child.start()
    assert [here.recv() for _ in range(2)] == [PART] * 2
    child.kill()
    child.join()
    assert models.store.head(key) is None
    # When it is sent again
    monkeypatch.setattr(sending, "PART_BYTES", PART)
    parts: list[int] = []
    right = models.store.client.upload_part
    monkeypatch.setattr(models.store.client, "upload_part", lambda **given: (parts.append(given["PartNumber"]), right(**given))[1])
    done: list[int] = []
    models.store.put_file(key, path, metadata={"sha256": "x"}, sent=done.append)
    # Then what had arrived is not, and the object is the file
    assert 2 <= len(parts) <= 3
    assert sum(done) == path.stat().st_size
    assert models.store.get(key) == path.read_bytes()
    assert models.store.uploads(key) == []
    # Given another upload that was cut off, and a file that has changed since: each part that differs is sent
    path.write_bytes(os.urandom(PART) + path.read_bytes()[PART:])
    with monkeypatch.context() as patched:
        patched.setattr(models.store.client, "complete_multipart_upload", lambda **_: 1 / 0)
        with pytest.raises(StoreUnavailable):
            models.store.put_file(key, path)
    path.write_bytes(os.urandom(PART) + path.read_bytes()[PART:])
    parts.clear()
    models.store.put_file(key, path)
    assert parts == [1]
    assert models.store.get(key) == path.read_bytes()


def test_a_first_push_that_is_cut_off_is_no_checkpoint(models: ModelStore, cache: ModelCache, tmp_path: Path) -> None:
    pushed(models, tmp_path / "made")
    models.store.delete(manifest_key("lab/tiny"))
    assert models.manifest("lab/tiny") is None
    assert models.list().checkpoints == ()
    with pytest.raises(UnknownModel, match="models pull lab/tiny"):
        cache.fetch(models, "lab/tiny")
    assert models.remove("lab/tiny") == 4
    assert models.store.keys("models/") == []


def test_a_file_that_changes_while_it_is_pushed_is_refused(models: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_checkpoint(tmp_path / "made")
    right = Store.put_file

    def meddling(self: Store, key: str, path: Path, **more: Any) -> None:
        right(self, key, path, **more)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(Store, "put_file", meddling)
    with pytest.raises(BadInput, match="was changed while"):
        models.push(folder, "lab/tiny", facts=facts())
    assert models.manifest("lab/tiny") is None


# -- damage on the disk


def flip(folder: Path) -> None:
    path = folder / "model-00001-of-00002.safetensors"
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)


def swap(folder: Path) -> None:
    one, two, aside = folder / "model-00001-of-00002.safetensors", folder / "model-00002-of-00002.safetensors", folder / "aside"
    one.rename(aside)
    two.rename(one)
    aside.rename(two)


def link(folder: Path) -> None:
    target = folder.parent / "elsewhere"
    (folder / "config.json").rename(target)
    (folder / "config.json").symlink_to(target)


def add(folder: Path) -> None:
    (folder / "adapter.safetensors").write_bytes(b"x")


def cut(folder: Path) -> None:
    os.truncate(folder / "tokenizer.json", 3)


def lose(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def lose_mark(folder: Path) -> None:
    (folder / ".complete").unlink()


def garble_mark(folder: Path) -> None:
    (folder / ".complete").write_text("[1]")


@pytest.mark.parametrize("harm", [flip, swap, link, add, cut, lose, lose_mark, garble_mark])
def test_what_was_damaged_on_the_disk_is_fetched_again(models: ModelStore, cache: ModelCache, tmp_path: Path,
                                                       harm: Callable[[Path], None]) -> None:
    pushed(models, tmp_path / "made")
    harm(cache.fetch(models, "lab/tiny"))
    assert contents(cache.fetch(models, "lab/tiny")) == contents(tmp_path / "made")


def test_a_damaged_folder_is_not_given_out_when_the_store_is_damaged_too(models: ModelStore, cache: ModelCache, tmp_path: Path) -> None:
    manifest = pushed(models, tmp_path / "made")
    flip(cache.fetch(models, "lab/tiny"))
    models.store.delete(manifest.key(manifest.files[0]))
    with pytest.raises(Damaged):
        cache.fetch(models, "lab/tiny")
    assert nothing_left(cache)


def test_a_copied_cache_is_read_once_and_taken(models: ModelStore, cache: ModelCache, tmp_path: Path) -> None:
    # Given files with other times and inodes but the right bytes
    manifest = pushed(models, tmp_path / "made")
    folder = cache.fetch(models, "lab/tiny")
    for path in folder.glob("*.*"):
        os.utime(path, (1, 1))
    # When the store has nothing but the manifest left
    for file in manifest.files:
        models.store.delete(manifest.key(file))
    # Then they are taken for what they are
    assert contents(cache.fetch(models, "lab/tiny")) == contents(tmp_path / "made")


def test_a_full_disk_leaves_nothing_half_written_and_says_what_to_do(models: ModelStore, cache: ModelCache, tmp_path: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    pushed(models, tmp_path / "made", elements=100_000)
    right, written = os.pwrite, 0

    def filling(target: int, body: bytes, at: int) -> int:
        nonlocal written
        written += len(body)
        if written > 150_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return right(target, body, at)

    with monkeypatch.context() as patched:
        patched.setattr(download.os, "pwrite", filling)
        with pytest.raises(Unavailable, match=r"full.*needs 200,.*SYMPOSIA_CACHE"):
            cache.fetch(models, "lab/tiny")
    assert nothing_left(cache)
    assert contents(cache.fetch(models, "lab/tiny")) == contents(tmp_path / "made")


def test_a_cache_that_cannot_be_written_says_so(models: ModelStore, tmp_path: Path) -> None:
    pushed(models, tmp_path / "made")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Unavailable, match="cannot be used"):
        ModelCache(tmp_path / "file").fetch(models, "lab/tiny")


# -- budget and processes


def test_the_one_used_longest_ago_makes_room(models: ModelStore, cache: ModelCache, tmp_path: Path) -> None:
    sizes = [pushed(models, tmp_path / name, name, seed=i).size for i, name in enumerate("abc")]
    small = ModelCache(cache.folder, budget_bytes=sizes[0] + sizes[1] + sizes[2] // 2)
    for name in "aba":
        small.fetch(models, name)
        small.release(name)
        time.sleep(0.01)
    small.fetch(models, "c")
    assert {c.id for c in small.contents()} == {"a", "c"}


def test_what_is_in_use_is_never_removed_for_room(models: ModelStore, cache: ModelCache, tmp_path: Path) -> None:
    size = pushed(models, tmp_path / "a", "a").size
    pushed(models, tmp_path / "b", "b", seed=1)
    user, other = ModelCache(cache.folder, budget_bytes=size + size // 2), ModelCache(cache.folder, budget_bytes=size + size // 2)
    folder = user.fetch(models, "a")
    with pytest.raises(Unavailable, match="Raise its budget"):
        other.fetch(models, "b")
    assert contents(folder) == contents(tmp_path / "a")
    user.release("a")
    other.fetch(models, "b")
    assert not folder.exists()


def test_a_checkpoint_larger_than_the_budget_removes_nothing(models: ModelStore, cache: ModelCache, tmp_path: Path) -> None:
    size = pushed(models, tmp_path / "a", "a").size
    pushed(models, tmp_path / "b", "b", elements=100_000)
    small = ModelCache(cache.folder, budget_bytes=size)
    small.fetch(models, "a")
    small.release("a")
    with pytest.raises(Unavailable, match="Raise its budget"):
        small.fetch(models, "b")
    assert [c.id for c in small.contents()] == ["a"]


def fetched_inode(s3: S3Settings, folder: Path, answers: Any) -> None:
    place = ModelCache(folder).fetch(ModelStore(Store(s3)), "lab/tiny")
    answers.put((place / "model-00001-of-00002.safetensors").stat().st_ino)
    answers.close()
    answers.join_thread()


def test_processes_that_want_the_same_checkpoint_download_it_once(models: ModelStore, s3: S3Settings, cache: ModelCache, tmp_path: Path) -> None:
    pushed(models, tmp_path / "made", elements=3_000_000)
    answers = forked.Queue()
    children = [forked.Process(target=fetched_inode, args=(s3, cache.folder, answers)) for _ in range(3)]
    for child in children:
        child.start()
    inodes = {answers.get(timeout=60) for _ in children}
    for child in children:
        child.join()
    assert len(inodes) == 1
    assert contents(cache.fetch(models, "lab/tiny")) == contents(tmp_path / "made")


def fetch_slowly(s3: S3Settings, folder: Path, half: Any) -> None:
    def slow(what: str, done: int, total: int) -> None:
        if done > total // 2:
            half.set()
            time.sleep(60)

    ModelCache(folder).fetch(ModelStore(Store(s3)), "lab/tiny", progress=slow)


def killed_at_half(s3: S3Settings, cache: ModelCache) -> None:
    """A process of its own fetches lab/tiny and is killed in the middle."""
    half = forked.Event()
    child = forked.Process(target=fetch_slowly, args=(s3, cache.folder, half))
    child.start()
    assert half.wait(60)
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()


def test_a_download_that_was_killed_goes_on_where_it_was(models: ModelStore, s3: S3Settings, cache: ModelCache, tmp_path: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a download of two files of seven ranges each that was killed in the middle
    monkeypatch.setattr(manifests, "RANGE_BYTES", 65_536)
    manifest = pushed(models, tmp_path / "made", elements=400_000)
    killed_at_half(s3, cache)
    assert list((cache.folder / ".partial").glob("*"))
    # When it is fetched again
    asked = ranges_asked(monkeypatch)
    folder = cache.fetch(models, "lab/tiny")
    # Then what had come is not asked for again, and all of it is right
    assert contents(folder) == contents(tmp_path / "made")
    assert len(asked) <= sum(len(f.spans) for f in manifest.files) // 2 + 1
    assert not list((cache.folder / ".partial").glob("*"))


def test_what_a_killed_download_left_is_believed_only_where_its_digest_is_right(models: ModelStore, s3: S3Settings, cache: ModelCache, tmp_path: Path,
                                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a download that was killed, and one byte of what it left changed
    monkeypatch.setattr(manifests, "RANGE_BYTES", 65_536)
    manifest = pushed(models, tmp_path / "made", elements=400_000)
    killed_at_half(s3, cache)
    left = next((cache.folder / ".partial").rglob("model-00001*"))
    body = bytearray(left.read_bytes())
    body[70_000] ^= 1
    left.write_bytes(body)
    # When it is fetched again, then the range with that byte is asked for, and those before and behind it are not
    asked = ranges_asked(monkeypatch)
    assert contents(cache.fetch(models, "lab/tiny")) == contents(tmp_path / "made")
    key = manifest.key(next(f for f in manifest.files if f.path.startswith("model-00001")))
    assert [start for k, start in asked if k == key] == [65_536]


def test_a_range_that_is_damaged_in_the_store_is_named(models: ModelStore, cache: ModelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "RANGE_BYTES", 65_536)
    manifest = pushed(models, tmp_path / "made", elements=400_000)
    key = manifest.key(manifest.files[1])
    body = bytearray(models.store.get(key) or b"")
    body[140_000] ^= 1
    models.store.put(key, bytes(body))
    with pytest.raises(Damaged, match=r"model-00001.*was found in its bytes 131,072 to 196,607"):
        cache.fetch(models, "lab/tiny")
    assert nothing_left(cache)


def test_a_manifest_from_before_ranges_is_verified_as_a_whole(models: ModelStore, cache: ModelCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "RANGE_BYTES", 65_536)
    manifest = pushed(models, tmp_path / "made", elements=400_000)
    plain = manifest.model_copy(update={"files": tuple(f.model_copy(update={"ranges": None}) for f in manifest.files)})
    models.store.put(manifest_key("lab/tiny"), plain.sealed())
    assert contents(cache.fetch(models, "lab/tiny")) == contents(tmp_path / "made")
    file = manifest.files[1]
    body = bytearray(models.store.get(manifest.key(file)) or b"")
    body[-1] ^= 1
    models.store.put(manifest.key(file), bytes(body))
    with pytest.raises(Damaged, match=f"{file.sha256} is wanted"):
        ModelCache(tmp_path / "other").fetch(models, "lab/tiny")


def test_a_killed_download_makes_room_before_a_whole_checkpoint_does(models: ModelStore, s3: S3Settings, cache: ModelCache, tmp_path: Path) -> None:
    size = pushed(models, tmp_path / "made").size
    pushed(models, tmp_path / "whole", "lab/whole", seed=3)
    pushed(models, tmp_path / "other", "lab/other", seed=5)
    cache.fetch(models, "lab/whole")
    cache.release("lab/whole")
    killed_at_half(s3, cache)
    small = ModelCache(cache.folder, budget_bytes=2 * size + size // 2)
    small.fetch(models, "lab/other")
    assert {c.id for c in small.contents()} == {"lab/whole", "lab/other"}
    assert not list((cache.folder / ".partial").glob("*"))


def test_what_a_killed_download_was_promised_on_the_disk_is_free_once_it_is_gone(models: ModelStore, cache: ModelCache, tmp_path: Path,
                                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a disk on which another download was promised all that is free, and died
    size = pushed(models, tmp_path / "a", "a").size
    dead = pushed(models, tmp_path / "b", "b", seed=1)
    cache.room.reserve(cache.asked(dead, priority=0, budget=None, keep_free=0))
    monkeypatch.setattr("symposia_worker.models.room.Room._free", lambda _: size + 1)
    # When one is fetched that has room only without it, then it goes
    assert contents(cache.fetch(models, "a")) == contents(tmp_path / "a")
    assert cache.room.promised() == []


def test_a_download_under_way_counts_with_its_full_size(models: ModelStore, cache: ModelCache, tmp_path: Path) -> None:
    # Given a budget for one checkpoint, and another download under way that has reserved its room
    size = pushed(models, tmp_path / "a", "a").size
    manifest = pushed(models, tmp_path / "b", "b", seed=1)
    small = ModelCache(cache.folder, budget_bytes=size + size // 2)
    other = ModelCache(cache.folder, budget_bytes=size + size // 2)
    asked = small.asked(manifest, priority=0, budget=None, keep_free=0)
    with locked(small.room.lock(asked.name, "lock")):
        small.room.reserve(asked)
        # When a second one wants room, then it is told what is promised
        with pytest.raises(Unavailable, match=rf"has {size:,} in use or promised"):
            other.fetch(models, "a")


def test_a_store_that_is_away_is_told_apart_from_a_damaged_one(cache: ModelCache) -> None:
    gone = ModelStore(Store(S3Settings(endpoint_url="http://127.0.0.1:9", access_key="a", secret_key="b")))  # type: ignore[arg-type]
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:9"):
        cache.fetch(gone, "lab/tiny")


def test_the_mark_names_the_revision(models: ModelStore, cache: ModelCache, tmp_path: Path) -> None:
    manifest = pushed(models, tmp_path / "made")
    noted = json.loads((cache.fetch(models, "lab/tiny") / ".complete").read_text())
    assert noted["revision"] == manifest.revision
    assert set(noted["files"]) == {f.path for f in manifest.files}
