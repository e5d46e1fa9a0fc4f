"""The model cache: verified checkpoints on a worker's disk, within a budget, shared by the processes of one machine."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from symposia_shared.errors import Damaged, Unavailable
from symposia_worker.models.download import download
from symposia_worker.models.locks import hold_shared, try_locked, waiting_lock
from symposia_worker.models.manifest import Manifest, StoredFile, sha256_of, within
from symposia_worker.models.room import LOCKS, MARK, RESERVED, Asked, Cached, Room, bytes_named
from symposia_worker.models.store import ModelStore, Progress, silent
from symposia_worker.models.wishes import Wishes

__all__ = ["Cached", "ModelCache", "cache_folder", "shared_cache"]


def cache_folder(stack: Path) -> Path:
    """The cache of the stack in the folder ``stack``; SYMPOSIA_CACHE names another, which several stacks may share."""
    return Path(os.environ.get("SYMPOSIA_CACHE") or stack / "cache").expanduser().absolute()


def shared_cache(cache: Path) -> ModelCache:
    """The model cache in the cache folder ``cache``, with the budget SYMPOSIA_CACHE_BYTES names. Raises BadInput."""
    return ModelCache(cache / "models", budget_bytes=bytes_named("SYMPOSIA_CACHE_BYTES"))


class ModelCache:
    """Verified checkpoints under ``folder/ID/REVISION``. Safe to share between threads and between processes.

    What this object has fetched stays on disk until ``release`` or the end of its process, whatever the budget.
    Without ``budget_bytes`` the disk is the limit.
    """

    def __init__(self, folder: Path, *, budget_bytes: int | None = None) -> None:
        self.folder = folder
        self.budget_bytes = budget_bytes
        self.wishes = Wishes(folder)
        self.room = Room(folder, self.wishes.rank_of, self.wishes.gone)
        self._in_use: dict[Path, int] = {}
        self._mutex = threading.Lock()

    def fetch(self, models: ModelStore, model: str | Manifest, *, progress: Progress = silent) -> Path:
        """The folder of ``model`` as it is stored, or of that very manifest, complete and verified; what is not here yet is downloaded from ``models``.

        A folder that is here is taken as it is while its files look as they did when they were verified; else they are
        read and compared again. A download that was cut off goes on. Raises UnknownModel, Damaged, StoreUnavailable, or
        Unavailable where the disk or the budget has no room: then nothing is left of it.
        """
        manifest = model if isinstance(model, Manifest) else models.require(model)
        folder = self.folder_of(manifest)
        with self._told(manifest), waiting_lock(self._lock(folder, "lock"), self._lock(folder, "want")):
            if not self._is_whole(folder, manifest):
                with self._live():
                    self._bring(models, manifest, folder, Asked(manifest.id, self._name(folder), manifest.size, self.budget_bytes), progress)
            with suppress(OSError):
                os.utime(folder / MARK)
            self._use(folder)
        self.wishes.fulfilled(manifest.id)
        return folder

    def prefetch(self, models: ModelStore, model: str, asked: Asked, *, progress: Progress) -> Path:
        """As ``fetch``, but nobody uses the folder yet, and what ``progress`` raises ends it: what has come is kept for the next one.

        Nobody's live load waits for it: who wants the same checkpoint is told by ``is_wanted``, and takes over where it was.
        """
        manifest = models.require(model)
        folder = self.folder_of(manifest)
        with self._told(manifest), waiting_lock(self._lock(folder, "lock")):
            if not self._is_whole(folder, manifest):
                self._bring(models, manifest, folder, asked, progress)
        return folder

    def is_wanted(self, manifest: Manifest) -> bool:
        """Whether some process waits for the folder of ``manifest`` to be unlocked."""
        with try_locked(self._lock(self.folder_of(manifest), "want")) as nobody:
            return not nobody

    @property
    def live(self) -> bool:
        """Whether some process downloads what it waits for."""
        with try_locked(self.folder / LOCKS / "live") as nobody:
            return not nobody

    def folder_of(self, manifest: Manifest) -> Path:
        """Where a checkpoint lies here, or would."""
        return within(self.folder, f"{manifest.id}/{manifest.revision}")

    def asked(self, manifest: Manifest, *, priority: int, budget: int | None, keep_free: int) -> Asked:
        """What a prefetch asks for."""
        return Asked(manifest.id, self._name(self.folder_of(manifest)), manifest.size, budget, priority, keep_free)

    def local(self, model: str) -> Path | None:
        """The folder of ``model`` here that was used last, as it was verified when it was fetched; None where there is none. No store is asked."""
        found = [c.folder for c in self.contents() if c.id == model]
        if not found:
            return None
        self._use(found[-1])
        return found[-1]

    def release(self, model: str) -> None:
        """No longer keep ``model`` on disk for this process; its folder may go when room is needed."""
        owner = within(self.folder, model)
        with self._mutex:
            for folder in [f for f in self._in_use if f.parent == owner]:
                os.close(self._in_use.pop(folder))

    def contents(self) -> list[Cached]:
        """The complete checkpoints here, the one used longest ago first."""
        return self.room.contents()

    def verify(self, models: ModelStore, model: str) -> Path:
        """The folder of ``model`` after reading every byte of it again. Raises Damaged naming the first file that differs."""
        manifest = models.require(model)
        folder = within(self.folder, f"{manifest.id}/{manifest.revision}")
        for file in manifest.files:
            path = within(folder, file.path)
            got = sha256_of(path) if path.is_file() else "no file"
            if got != file.sha256:
                raise Damaged(f"{path} is damaged: sha256 {file.sha256} is wanted, {got} was found. "
                              f"Remove {folder}; it is fetched again when it is needed.")
        return folder

    # -- whole or not

    def _is_whole(self, folder: Path, manifest: Manifest) -> bool:
        """Whether ``folder`` is exactly what ``manifest`` says; what changed since it was verified is read again."""
        try:
            noted: dict[str, Any] = json.loads((folder / MARK).read_bytes())
            if noted["revision"] != manifest.revision or _files_in(folder) != {f.path for f in manifest.files}:
                return False
            looks = {f.path: _look(folder / f.path) for f in manifest.files}
            if not all(_is_intact(folder, f, seen=looks[f.path], noted=noted["files"].get(f.path)) for f in manifest.files):
                return False
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False
        if noted["files"] != looks:
            _note(folder, manifest)
        return True

    # -- fetching

    def _bring(self, models: ModelStore, manifest: Manifest, folder: Path, asked: Asked, progress: Progress) -> None:
        """Download to a folder beside, make sure it is on the disk, and give it its name: so a folder of that name is whole.

        What was cut off goes on where it was. What is wrong, or found no room on the disk, is not kept.
        """
        shutil.rmtree(folder, ignore_errors=True)
        partial = self.room.reserve(asked)
        try:
            if not _files_in(partial) <= {f.path for f in manifest.files}:
                raise Damaged(f"{partial} holds what is not of {manifest.id}. It is removed; try again.")
            self._download(models, manifest, partial, progress)
            _note(partial, manifest)
            (partial / RESERVED).unlink()
            _sync_folders(partial)
            folder.parent.mkdir(parents=True, exist_ok=True)
            partial.rename(folder)
            _sync_folder(folder.parent)
        except (Damaged, OSError):
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def _download(self, models: ModelStore, manifest: Manifest, partial: Path, progress: Progress) -> None:
        done = 0
        for file in manifest.files:
            target = within(partial, file.path)
            target.parent.mkdir(parents=True, exist_ok=True)

            def received(so_far: int, before: int = done, path: str = file.path) -> None:
                progress(f"fetching {path}", before + so_far, manifest.size)

            download(models.store, manifest.key(file), file, to=target, received=received)
            done += file.size

    @contextmanager
    def _live(self) -> Iterator[None]:
        """Prefetches wait meanwhile."""
        hold = hold_shared(self.folder / LOCKS / "live")
        try:
            yield
        finally:
            os.close(hold)

    @contextmanager
    def _told(self, manifest: Manifest) -> Iterator[None]:
        """The disk's errors told as ours."""
        try:
            yield
        except OSError as error:
            raise self._refused(manifest, error) from error

    def _refused(self, manifest: Manifest, error: OSError) -> Unavailable:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return Unavailable(f"the disk of the model cache {self.folder} is full: {manifest.id} needs {manifest.size:,} bytes, "
                               f"{shutil.disk_usage(self.folder).free:,} are free. Free some, or put the cache on another disk (SYMPOSIA_CACHE).")
        return Unavailable(f"the model cache {self.folder} cannot be used: {error}. Make it writable, or choose another (SYMPOSIA_CACHE).")

    # -- locks

    def _name(self, folder: Path) -> str:
        """One name for one checkpoint folder; '~' is in no id."""
        return "~".join(folder.relative_to(self.folder).parts)

    def _lock(self, folder: Path, kind: str) -> Path:
        return self.room.lock(self._name(folder), kind)

    def _use(self, folder: Path) -> None:
        with self._mutex:
            if folder not in self._in_use:
                self._in_use[folder] = hold_shared(self._lock(folder, "use"))


def _is_intact(folder: Path, file: StoredFile, *, seen: dict[str, int], noted: object) -> bool:
    return stat.S_ISREG(seen["mode"]) and seen["size"] == file.size and (seen == noted or sha256_of(folder / file.path) == file.sha256)


def _files_in(folder: Path) -> set[str]:
    """Paths of all that is under ``folder`` and no folder, links included, hidden files left out."""
    every = (p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir())
    return {p.relative_to(folder).as_posix() for p in every if not p.name.startswith(".")}


def _look(path: Path) -> dict[str, int]:
    """How a file looks from outside: any write to it, or another file in its place, changes this. A link is no file."""
    seen = path.lstat()
    return {"size": seen.st_size, "mode": seen.st_mode, "mtime_ns": seen.st_mtime_ns, "ctime_ns": seen.st_ctime_ns, "inode": seen.st_ino}


def _note(folder: Path, manifest: Manifest) -> None:
    """Mark ``folder`` complete: what it holds, and how its files looked when they were verified."""
    noted = {"id": manifest.id, "revision": manifest.revision, "files": {f.path: _look(folder / f.path) for f in manifest.files}}
    beside = folder / f"{MARK}.new"
    with beside.open("w") as mark:
        json.dump(noted, mark)
        mark.flush()
        os.fsync(mark.fileno())
    beside.replace(folder / MARK)


def _sync_folders(root: Path) -> None:
    for folder in [root, *(p for p in root.rglob("*") if p.is_dir())]:
        _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
