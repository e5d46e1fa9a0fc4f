"""The model store: checkpoints in S3, each with a manifest that is written last."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import TypeAdapter, ValidationError

from symposia_shared.catalogue import CheckpointId, Facts
from symposia_shared.errors import BadInput, Conflict, Damaged, Unavailable, UnknownModel
from symposia_shared.store import Head, Store
from symposia_worker.models.download import download
from symposia_worker.models.index import Index, Rows, stored_row
from symposia_worker.models.manifest import Manifest, StoredFile, manifest_key, within
from symposia_worker.models.weights import adapter_files, checkpoint_files, form_files

_ID: TypeAdapter[str] = TypeAdapter(CheckpointId)
_MANIFEST = re.compile(r"models/(?P<id>.+)/manifest\.json")
_REVISION = re.compile(r"[0-9a-f]{64}")


class Progress(Protocol):
    """Told how far a transfer is: what is under way, bytes done, bytes in all."""

    def __call__(self, what: str, done: int, total: int) -> None: ...


def silent(what: str, done: int, total: int) -> None:
    """The progress nobody watches."""


def checkpoint_id(name: str) -> str:
    """``name`` if weights may be stored under it. Raises BadInput."""
    try:
        return _ID.validate_python(name)
    except ValidationError as error:
        raise BadInput(error.errors()[0]["msg"].removeprefix("Value error, "), field="model", value=name) from None


@dataclass(frozen=True, slots=True)
class Listing:
    """What is in a model store."""

    #: by id
    checkpoints: tuple[Manifest, ...]
    #: why the others cannot be read
    damaged: tuple[Damaged, ...]


class ModelStore:
    """The checkpoints of a bucket, under ``models/ID/REVISION/PATH``. Safe to share between threads."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.index = Index(store)

    def push(self, folder: Path, model: str, *, facts: Facts, progress: Progress = silent) -> Manifest:
        """Store the checkpoint in ``folder`` as ``model``: its files, then its manifest. Pushing the same again changes nothing.

        A push that is cut off leaves the former checkpoint of that name as it was; the next one goes on after the files
        that arrived. Raises BadInput where a file changes meanwhile.
        """
        checkpoint_id(model)
        listed = form_files if facts.form_of else adapter_files if facts.adapter_of else checkpoint_files
        paths = listed(folder)
        before = {p: _stamp(folder / p) for p in paths}
        total = sum(size for size, _ in before.values())
        done, files = 0, []
        for path in paths:
            progress(f"reading {path}", done, total)
            files.append(StoredFile.of(folder, path))
            done += before[path][0]
        manifest = Manifest.of(model, files, facts=facts)
        if self.sound(model) == manifest:
            return manifest
        with self.index.changing(model):
            self._send(folder, manifest, progress=progress)
            self._finish(folder, manifest, before)
        return manifest

    def _finish(self, folder: Path, manifest: Manifest, before: Mapping[str, tuple[int, int]]) -> None:
        if changed := [p for p in before if _stamp(folder / p) != before[p]]:
            raise BadInput(f"{folder / changed[0]} was changed while it was being pushed.", field="folder", value=str(folder),
                           remedy="Push again when nobody writes there.")
        self.store.put(manifest_key(manifest.id), manifest.sealed())
        self.index.note(manifest)
        # what lay there already may have been old enough to be collected before the manifest named it
        self._send(folder, manifest, progress=silent)

    def _send(self, folder: Path, manifest: Manifest, *, progress: Progress) -> None:
        done = 0
        for file in manifest.files:
            if not _arrived(self.store.head(manifest.key(file)), file):
                at = done

                def sent(more: int, path: str = file.path) -> None:
                    nonlocal at
                    at += more
                    progress(f"sending {path}", at, manifest.size)

                self.store.put_file(manifest.key(file), within(folder, file.path), metadata={"sha256": file.sha256}, sent=sent)
            done += file.size
            progress(f"sending {file.path}", done, manifest.size)

    def sound(self, model: str) -> Manifest | None:
        """The manifest of ``model``, or None where there is none that can be read: then storing it again is the remedy."""
        try:
            return self.manifest(model)
        except Damaged:
            return None

    def manifest(self, model: str) -> Manifest | None:
        """The manifest of ``model``, or None where it is not stored. Raises Damaged where it cannot be read."""
        key = manifest_key(checkpoint_id(model))
        body = self.store.get(key)
        return None if body is None else Manifest.unsealed(body, self.store.uri(key), model=model)

    def require(self, model: str) -> Manifest:
        """The manifest of ``model``. Raises UnknownModel where it is not stored."""
        found = self.manifest(model)
        if found is None:
            raise UnknownModel(f"no checkpoint {model!r} is in the model store at {self.store.uri('models/')}.", field="model", value=model,
                               remedy=f"Add it with `symposia models pull {model}`, or see `symposia models list`.")
        return found

    def list(self) -> Listing:
        """All stored checkpoints, each manifest read; one that is damaged does not hide the others."""
        ids = sorted(m["id"] for key in self.store.keys("models/") if (m := _MANIFEST.fullmatch(key)) and _is_id(m["id"]))
        return self._listing(ids)

    def listed(self) -> tuple[Rows, tuple[Damaged, ...]]:
        """What the index knows of each checkpoint, by id, and why some cannot be read. Thousands take a few requests.

        Where a change was cut off the manifest is read; a store without an index gets one.
        """
        known = self.index.listed()
        if not known.complete:
            found = self.redraw()
            return {**known.rows, **{m.id: {**known.rows.get(m.id, {}), "stored": stored_row(m)} for m in found.checkpoints}}, found.damaged
        read = self._listing(sorted(m for m in known.unsure if _is_id(m)))
        rows = {model: row if model not in known.unsure else {k: v for k, v in row.items() if k == "entry"} for model, row in known.rows.items()}
        for manifest in read.checkpoints:
            rows[manifest.id] = {**rows.get(manifest.id, {}), "stored": stored_row(manifest)}
        return {model: row for model, row in sorted(rows.items()) if row}, read.damaged

    def adapters_of(self, model: str) -> tuple[str, ...]:
        """The stored adapters that go on from ``model``, by name."""
        return tuple(name for name, row in self.listed()[0].items() if (row.get("stored", {}).get("adapter_of") or {}).get("id") == model)

    def redraw(self) -> Listing:
        """``list``, and the index drawn from it; whoever may only read gets the listing all the same."""
        found: list[Listing] = []

        def manifests() -> Sequence[Manifest]:  # read once the index was, so that what is pushed meanwhile is not written over
            found.append(self.list())
            return found[0].checkpoints

        with suppress(Unavailable, Conflict):
            self.index.rebuild(manifests)
        return found[0] if found else self.list()

    def _listing(self, ids: Sequence[str]) -> Listing:
        with ThreadPoolExecutor(16) as threads:
            read = [*threads.map(self.look, ids)]
        return Listing(tuple(m for m in read if isinstance(m, Manifest)), tuple(m for m in read if isinstance(m, Damaged)))

    def look(self, model: str) -> Manifest | Damaged | None:
        """The manifest of ``model``, what is wrong with it, or None where it is not stored."""
        try:
            return self.manifest(model)
        except Damaged as damaged:
            return damaged

    def remove(self, model: str) -> int:
        """Remove ``model``, its manifest first and with all its revisions; how many objects that were. Raises UnknownModel.

        What is only registered is forgotten.
        """
        checkpoint_id(model)
        prefix = f"models/{model}/"
        keys = [k for k in self.store.keys(prefix) if _REVISION.fullmatch(k.removeprefix(prefix).split("/")[0])]
        present = self.store.head(manifest_key(model)) is not None
        known = False
        if not present and not keys and not (known := self.index.forget(model, entry=True)):
            self.require(model)
        with self.index.changing(model):
            self.store.delete(manifest_key(model))
            self.index.forget(model)
        _in_parallel(self.store.delete, keys)
        return len(keys) + (present or known)

    def verify(self, model: str, *, progress: Progress = silent) -> Manifest:
        """Read every byte of ``model`` and compare with its manifest. Raises Damaged naming the first file that differs."""
        manifest = self.require(model)
        done = 0
        for file in manifest.files:
            progress(f"verifying {file.path}", done, manifest.size)
            download(self.store, manifest.key(file), file, to=None)
            done += file.size
        return manifest


def checkpoint_of(key: str) -> str | None:
    """The id of the checkpoint an object belongs to; None where it is none of a checkpoint's."""
    segments = key.split("/")
    at = next((n for n, s in enumerate(segments) if _REVISION.fullmatch(s)), len(segments) - 1)
    model = "/".join(segments[1:at])
    return model if segments[0] == "models" and _is_id(model) else None


def _is_id(name: str) -> bool:
    try:
        return checkpoint_id(name) == name
    except BadInput:
        return False


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _arrived(head: Head | None, file: StoredFile) -> bool:
    return head is not None and head.size == file.size and head.metadata.get("sha256") == file.sha256


def _in_parallel(call: Callable[[str], None], keys: Iterable[str]) -> None:
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(call, keys))
