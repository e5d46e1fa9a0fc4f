"""Random damages to a checkpoint in the store, on the wire and on the disk: what is given out afterwards is right, or nothing is."""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from symposia_shared.errors import Damaged, SymposiaError, UnknownModel
from symposia_shared.store import Store
from symposia_worker.models.cache import ModelCache
from symposia_worker.models.manifest import Manifest, manifest_key
from symposia_worker.models.room import PARTIAL
from symposia_worker.models.store import ModelStore


@dataclass(slots=True)
class Told:
    """What became of the trials of one kind."""

    trials: int = 0
    #: a typed error that names what is wrong, and nothing left on the disk
    refused: int = 0
    #: fetched again, or found in the undamaged store, and right to the last bit
    mended: int = 0
    #: given out though it is not what was pushed: this must be 0
    loaded: int = 0
    #: an error that is not ours, or something left on the disk
    other: int = 0


class Trials:
    """A checkpoint, another of the same file sizes, and a cache."""

    def __init__(self, models: ModelStore, manifest: Manifest, other: Manifest, right: dict[str, bytes], folder: Path, *, seed: int) -> None:
        self.models, self.manifest, self.other, self.right = models, manifest, other, right
        self.folder, self.dice = folder, random.Random(seed)
        self.kinds: dict[str, Callable[[], None]] = {
            "store: a bit flipped": self._flip, "store: cut short": self._cut, "store: grown": self._grow, "store: zeros": self._zeros,
            "store: two files swapped": self._swap, "store: another checkpoint's file": self._foreign, "store: a file missing": self._missing,
            "store: half uploaded": self._half, "manifest: a bit flipped": self._manifest_flip, "manifest: cut short": self._manifest_cut,
            "manifest: another checkpoint's": self._manifest_foreign, "wire: a bit flipped": self._nothing, "wire: cut": self._nothing,
            "disk: a bit flipped": self._nothing, "disk: cut short": self._nothing, "disk: two files swapped": self._nothing,
            "disk: a half download changed": self._nothing,
        }
        self._changed: dict[str, bytes | None] = {}

    def run(self, trials: int) -> dict[str, Told]:
        """So many trials, the kinds in turn."""
        told = {kind: Told() for kind in self.kinds}
        for n in range(trials):
            kind = list(self.kinds)[n % len(self.kinds)]
            self._one(kind, told[kind])
        return told

    def _one(self, kind: str, told: Told) -> None:
        told.trials += 1
        shutil.rmtree(self.folder, ignore_errors=True)
        cache = ModelCache(self.folder)
        if kind.startswith("disk:"):
            self._on_disk(kind, cache)
        self.kinds[kind]()
        try:
            with self._on_the_wire(kind):
                folder = cache.fetch(self.models, self.manifest.id)
            if {f.path: (folder / f.path).read_bytes() for f in self.manifest.files} == self.right:
                told.mended += 1
            else:
                told.loaded += 1
        except (Damaged, UnknownModel):
            left = list(self.folder.rglob("*.safetensors"))
            told.refused, told.other = told.refused + (not left), told.other + bool(left)
        except SymposiaError:
            told.other += 1
        finally:
            cache.release(self.manifest.id)
            self._restore()

    # -- in the store

    def _set(self, key: str, body: bytes | None) -> None:
        if key not in self._changed:
            self._changed[key] = self.models.store.get(key)
        if body is None:
            self.models.store.delete(key)
        else:
            self.models.store.put(key, body)

    def _restore(self) -> None:
        for key, body in self._changed.items():
            if body is not None:
                self.models.store.put(key, body)
        self._changed.clear()

    def _any(self) -> tuple[str, bytes]:
        file = self.dice.choice(self.manifest.files)
        return self.manifest.key(file), self.right[file.path]

    def _flipped(self, body: bytes) -> bytes:
        at = self.dice.randrange(len(body))
        return body[:at] + bytes([body[at] ^ (1 << self.dice.randrange(8))]) + body[at + 1:]

    def _flip(self) -> None:
        key, body = self._any()
        self._set(key, self._flipped(body))

    def _cut(self) -> None:
        key, body = self._any()
        self._set(key, body[:self.dice.randrange(len(body))])

    def _grow(self) -> None:
        key, body = self._any()
        self._set(key, body + self.dice.randbytes(self.dice.randint(1, 100)))

    def _zeros(self) -> None:
        key, body = self._any()
        self._set(key, bytes(len(body)))

    def _swap(self) -> None:
        one, two = [f for f in self.manifest.files if f.path.endswith(".safetensors")]
        self._set(self.manifest.key(one), self.right[two.path])
        self._set(self.manifest.key(two), self.right[one.path])

    def _foreign(self) -> None:
        file = self.dice.choice([f for f in self.manifest.files if f.path.endswith(".safetensors")])
        theirs = next(f for f in self.other.files if f.path == file.path)
        self._set(self.manifest.key(file), self.models.store.get(self.other.key(theirs)))

    def _missing(self) -> None:
        self._set(self._any()[0], None)

    def _half(self) -> None:
        keys = [self.manifest.key(f) for f in self.manifest.files]
        for key in self.dice.sample(keys, self.dice.randrange(1, len(keys))):
            self._set(key, None)
        self._set(manifest_key(self.manifest.id), None)

    def _manifest_flip(self) -> None:
        key = manifest_key(self.manifest.id)
        self._set(key, self._flipped(self.models.store.get(key) or b""))

    def _manifest_cut(self) -> None:
        key = manifest_key(self.manifest.id)
        body = self.models.store.get(key) or b""
        self._set(key, body[:self.dice.randrange(len(body))])

    def _manifest_foreign(self) -> None:
        self._set(manifest_key(self.manifest.id), self.models.store.get(manifest_key(self.other.id)))

    def _nothing(self) -> None:
        """The store is sound."""

    # -- on the wire

    @contextmanager
    def _on_the_wire(self, kind: str) -> Iterator[None]:
        if not kind.startswith("wire:"):
            yield
            return
        right, chance = Store.get_range, self.dice.uniform(0.1, 0.9)

        def hurt(store: Store, key: str, start: int, *, length: int, etag: str) -> bytes:
            body = right(store, key, start, length=length, etag=etag)
            if self.dice.random() > chance:
                return body
            return self._flipped(body) if kind.endswith("flipped") else body[:self.dice.randrange(len(body))]

        Store.get_range = hurt  # type: ignore[method-assign]
        try:
            yield
        finally:
            Store.get_range = right  # type: ignore[method-assign]

    # -- on the disk

    def _on_disk(self, kind: str, cache: ModelCache) -> None:
        folder = cache.fetch(self.models, self.manifest.id)
        path = folder / self.dice.choice([f.path for f in self.manifest.files])
        if kind.endswith("flipped"):
            path.write_bytes(self._flipped(path.read_bytes()))
        elif kind.endswith("short"):
            os.truncate(path, self.dice.randrange(path.stat().st_size))
        elif kind.endswith("swapped"):
            one, two = [folder / f.path for f in self.manifest.files if f.path.endswith(".safetensors")]
            one.rename(folder / "aside")
            two.rename(one)
            (folder / "aside").rename(two)
        else:
            self._as_half_download(cache, folder, path)

    def _as_half_download(self, cache: ModelCache, folder: Path, path: Path) -> None:
        """What a killed download leaves, with one bit of it changed."""
        path.write_bytes(self._flipped(path.read_bytes()))
        asked = cache.asked(self.manifest, priority=0, budget=None, keep_free=0)
        cache.release(self.manifest.id)
        partial = cache.room.reserve(asked)
        for file in folder.iterdir():
            if not file.name.startswith("."):
                file.rename(cache.folder / PARTIAL / partial.name / file.name)
        shutil.rmtree(folder)


def summed(told: dict[str, Told]) -> Counter[str]:
    """All kinds together."""
    return Counter({name: sum(getattr(t, name) for t in told.values()) for name in ("trials", "refused", "mended", "loaded", "other")})
