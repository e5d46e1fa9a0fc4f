"""A pool's checkpoints in the model cache: kept while they are resident, removable afterwards. Real cache and program; S3 is a dictionary."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from checkpoints import facts
from shelf import Shelf
from symposia_shared.errors import BadInput, StoreUnavailable
from symposia_worker.engines.protocol import Loaded
from symposia_worker.folders import FoldersInUse
from symposia_worker.models.cache import _note
from symposia_worker.models.manifest import Manifest, StoredFile
from symposia_worker.models.store import manifest_key
from symposia_worker.program import PoolPlan, PoolProgram
from symposia_worker.swapping import Under


class Engine:
    """Who is resident; ``broken`` are refused."""

    def __init__(self) -> None:
        self.resident: set[str] = set()
        self.broken: set[str] = set()

    def load(self, model: str, folder: str, **_: Any) -> Loaded:
        assert Path(folder).is_dir()
        if model in self.broken:
            raise BadInput(f"{model} is broken.")
        self.resident.add(model)
        return Loaded(checkpoint=model, bytes=1, held_bytes=1, context=8, instruct=False, capabilities=("generate",), family="llama", parameters=1)

    def unload(self, model: str) -> None:
        self.resident.discard(model)


class AwayShelf(Shelf):
    """S3 that may be away."""

    away = False

    def get(self, key: str) -> bytes | None:
        if self.away:
            raise StoreUnavailable("S3 is away.")
        return super().get(key)


class Program(PoolProgram):
    """What of a pool's program loads and unloads."""

    def __init__(self, root: Path) -> None:
        self.plan = PoolPlan("p", engine="torch")
        self.shelf, self.device = AwayShelf(), Engine()
        self.archive, self.engine = SimpleNamespace(store=self.shelf), self.device  # type: ignore[assignment]
        self.assigned, self.swapping = {}, None
        self.folders = FoldersInUse(root)

    def stored(self, name: str, body: bytes = b"weights", **more: Any) -> Manifest:
        """Stored, and fetched to the cache earlier."""
        file = StoredFile(path="adapter_model.safetensors" if more else "model.safetensors", size=len(body), sha256=hashlib.sha256(body).hexdigest())
        manifest = Manifest.of(name, [file], facts=facts(**more))
        self.shelf.bodies[manifest_key(name)] = manifest.sealed()
        folder = self.folders.cache.folder_of(manifest)
        folder.mkdir(parents=True)
        (folder / file.path).write_bytes(body)
        _note(folder, manifest)
        return manifest

    def removable(self, manifest: Manifest) -> bool:
        return self.folders.cache.room._idle("~".join((manifest.id, manifest.revision)).replace("/", "~"))


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path / "cache")


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_cycles_of_loads_and_evictions_leave_nothing_open_and_the_files_removable(program: Program) -> None:
    one = program.stored("lab/one")
    before = descriptors()
    for _ in range(5):
        program._bring("lab/one")
        assert descriptors() == before + 1
        assert not program.removable(one)
        program._unload("lab/one")
    program._bring("lab/one")
    program._give_up("lab/one")
    assert descriptors() == before
    assert program.removable(one)


def test_a_base_is_kept_while_an_adapter_of_it_is_resident(program: Program) -> None:
    base = program.stored("lab/base")
    adapter = program.stored("lab/adapter", adapter_of={"id": "lab/base", "revision": base.revision})
    program._bring("lab/base")
    program._bring("lab/adapter")
    program._unload("lab/base")
    assert not program.removable(base)
    program._unload("lab/adapter")
    assert program.removable(base)
    assert program.removable(adapter)


def test_a_brought_adapter_tells_its_base_and_what_that_takes(program: Program) -> None:
    base = program.stored("lab/base")
    adapter = program.stored("lab/adapter", adapter_of={"id": "lab/base", "revision": base.revision})
    assert program._bring("lab/base").under is None
    assert program._bring("lab/adapter").under == Under("lab/base", 4 * adapter.facts.parameters)


def test_what_was_refused_keeps_nothing(program: Program) -> None:
    one, before = program.stored("lab/one"), descriptors()
    program.device.broken.add("lab/one")
    with pytest.raises(BadInput):
        program._bring("lab/one")
    assert descriptors() == before
    assert program.removable(one)


def test_an_unload_asks_nothing_of_s3(program: Program) -> None:
    one = program.stored("lab/one")
    program._bring("lab/one")
    program.shelf.away = True
    program._unload("lab/one")
    assert program.removable(one)


def test_what_was_pushed_anew_is_seen_at_the_next_load(program: Program) -> None:
    first = program.stored("lab/one")
    assert program._bring("lab/one").place["revision"] == first.revision
    program._unload("lab/one")
    second = program.stored("lab/one", b"others")
    assert first.revision != second.revision
    assert program._bring("lab/one").place["revision"] == second.revision


def test_a_load_reads_each_manifest_once_so_that_what_is_told_of_it_is_what_was_loaded(program: Program) -> None:
    base = program.stored("lab/base")
    program.stored("lab/adapter", adapter_of={"id": "lab/base", "revision": base.revision})
    program.shelf.read.clear()
    program._bring("lab/adapter")
    assert sorted(program.shelf.read) == [manifest_key("lab/adapter"), manifest_key("lab/base")]
