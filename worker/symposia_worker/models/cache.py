"""The model cache: verified checkpoints on a worker's disk, within a budget, shared by the processes of one machine."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from symposia_shared.errors import Damaged, Unavailable
from symposia_worker.models.download import download
from symposia_worker.models.manifest import Manifest, sha256_of, within
from symposia_worker.models.store import ModelStore, Progress, silent

_MARK = ".complete"


@dataclass(frozen=True, slots=True)
class Cached:
    """One checkpoint in the cache."""

    id: str
    revision: str
    folder: Path
    #: bytes
    size: int
    #: seconds since the epoch
    used_at: float


class ModelCache:
    """Verified checkpoints under ``folder/ID/REVISION``. Safe to share between threads and between processes.

    What this object has fetched stays on disk until ``release`` or the end of its process, whatever the budget.
    Without ``budget_bytes`` the disk is the limit.
    """

    def __init__(self, folder: Path, models: ModelStore, *, budget_bytes: int | None = None) -> None:
        self.folder = folder
        self.models = models
        self.budget_bytes = budget_bytes
        self._in_use: dict[str, int] = {}
        self._mutex = threading.RLock()

    def fetch(self, model: str, *, progress: Progress = silent) -> Path:
        """The folder of ``model``, complete and verified; downloaded where it is not here yet.

        A folder that is here is taken as it is while its files' sizes and times are those noted when they were verified;
        else they are read and compared again. Raises UnknownModel, Damaged, StoreUnavailable, or Unavailable where the disk
        or the budget has no room: then nothing is left half-written.
        """
        manifest = self.models.require(model)
        folder = self._place(manifest)
        with self._mutex, self._locked(manifest.revision):
            if not self._is_whole(folder, manifest):
                shutil.rmtree(folder, ignore_errors=True)
                self._make_room(manifest)
                self._download(manifest, folder, progress=progress)
            os.utime(folder / _MARK)
            self._use(manifest.revision)
        return folder

    def release(self, model: str) -> None:
        """No longer keep ``model`` on disk for this process; its folder may go when room is needed."""
        with self._mutex:
            for cached in self.contents():
                if cached.id == model and (held := self._in_use.pop(cached.revision, None)) is not None:
                    os.close(held)

    def contents(self) -> list[Cached]:
        """The complete checkpoints here, the one used longest ago first."""
        found = []
        for mark in self.folder.glob(f"*/**/{_MARK}"):
            try:
                noted, used_at = json.loads(mark.read_bytes()), mark.stat().st_mtime
                size = sum(int(f["size"]) for f in noted["files"].values())
                found.append(Cached(id=noted["id"], revision=noted["revision"], folder=mark.parent, size=size, used_at=used_at))
            except (OSError, ValueError, KeyError, TypeError):
                continue
        return sorted(found, key=lambda c: c.used_at)

    def verify(self, model: str) -> Path:
        """The folder of ``model`` after reading every byte of it again. Raises Damaged naming the first file that differs."""
        manifest = self.models.require(model)
        folder = self._place(manifest)
        for file in manifest.files:
            path = within(folder, file.path)
            got = sha256_of(path) if path.is_file() else "no file"
            if got != file.sha256:
                raise Damaged(f"{path} is damaged: sha256 {file.sha256} is wanted, {got} was found. "
                              f"Remove {folder}; it is fetched again when it is needed.")
        return folder

    def _place(self, manifest: Manifest) -> Path:
        return within(self.folder, f"{manifest.id}/{manifest.revision}")

    # -- whole or not

    def _is_whole(self, folder: Path, manifest: Manifest) -> bool:
        """Whether ``folder`` is exactly what ``manifest`` says; what changed since it was verified is read again."""
        try:
            noted: dict[str, Any] = json.loads((folder / _MARK).read_bytes())
            present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir() or p.is_symlink()} - {_MARK}
            if noted["revision"] != manifest.revision or present != {f.path for f in manifest.files}:
                return False
            for file in manifest.files:
                path = folder / file.path
                if path.is_symlink() or path.stat().st_size != file.size:
                    return False
                if noted["files"][file.path] != _stamp(path) and sha256_of(path) != file.sha256:
                    return False
        except (OSError, ValueError, KeyError, TypeError):
            return False
        self._note(folder, manifest)
        return True

    def _note(self, folder: Path, manifest: Manifest) -> None:
        """Mark ``folder`` complete: what it holds, and how its files looked when they were verified."""
        noted = {"id": manifest.id, "revision": manifest.revision, "files": {f.path: _stamp(folder / f.path) for f in manifest.files}}
        beside = folder / f"{_MARK}.new"
        with beside.open("w") as mark:
            json.dump(noted, mark)
            mark.flush()
            os.fsync(mark.fileno())
        beside.replace(folder / _MARK)

    # -- fetching

    def _download(self, manifest: Manifest, folder: Path, *, progress: Progress) -> None:
        """Download to a folder beside, make sure it is on the disk, and give it its name: so a folder of that name is whole."""
        partial = self.folder / ".partial" / manifest.revision
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            done = 0
            for file in manifest.files:
                target = within(partial, file.path)
                target.parent.mkdir(parents=True, exist_ok=True)
                at, name = done, file.path
                download(self.models.store, manifest.key(file), file, to=target,
                         received=lambda n, at=at, name=name: progress(f"fetching {name}", at + n, manifest.size))  # type: ignore[misc]
                done += file.size
            self._note(partial, manifest)
            _sync_folders(partial)
            folder.parent.mkdir(parents=True, exist_ok=True)
            partial.rename(folder)
            _sync_folders(folder.parent)
        except OSError as error:
            raise self._no_room(manifest, error) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _no_room(self, manifest: Manifest, error: OSError) -> Unavailable:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return Unavailable(f"the disk of the model cache {self.folder} is full: {manifest.id} needs {manifest.size:,} bytes, "
                               f"{_free(self.folder):,} are free. Free some, or put the cache on another disk (SYMPOSIA_CACHE).")
        return Unavailable(f"the model cache {self.folder} cannot be written: {error}. Make it writable, or choose another (SYMPOSIA_CACHE).")

    def _make_room(self, manifest: Manifest) -> None:
        """Remove checkpoints nobody uses, the one used longest ago first, until ``manifest`` fits. Raises Unavailable."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._no_room(manifest, error) from error
        contents = self.contents()
        used = sum(c.size for c in contents)
        for cached in contents:
            if self._fits(manifest, used):
                return
            if self._evict(cached):
                used -= cached.size
        if self._fits(manifest, used):
            return
        if self.budget_bytes is not None and used + manifest.size > self.budget_bytes:
            raise Unavailable(f"{manifest.id} needs {manifest.size:,} bytes in the model cache {self.folder}, which may hold "
                              f"{self.budget_bytes:,} and has {used:,} in use. Raise its budget, or unload a checkpoint.")
        raise self._no_room(manifest, OSError(errno.ENOSPC, "no space left"))

    def _fits(self, manifest: Manifest, used: int) -> bool:
        within_budget = self.budget_bytes is None or used + manifest.size <= self.budget_bytes
        return within_budget and _free(self.folder) > manifest.size

    def _evict(self, cached: Cached) -> bool:
        """Remove ``cached`` unless some process downloads or uses it; whether it is gone."""
        with self._try_locked(cached.revision, "lock") as downloads, self._try_locked(cached.revision, "use") as uses:
            if not (downloads and uses):
                return False
            shutil.rmtree(cached.folder, ignore_errors=True)
            return True

    # -- locks between processes

    def _open_lock(self, revision: str, kind: str) -> int:
        folder = self.folder / ".locks"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return os.open(folder / f"{revision}.{kind}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise Unavailable(f"the model cache {self.folder} cannot be written: {error}. Make it writable, or choose another "
                              "(SYMPOSIA_CACHE).") from error

    @contextmanager
    def _locked(self, revision: str) -> Iterator[None]:
        """Alone with this revision: others wait for the download instead of repeating it. Ends with the process, however it ends."""
        lock = self._open_lock(revision, "lock")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    @contextmanager
    def _try_locked(self, revision: str, kind: str) -> Iterator[bool]:
        lock = self._open_lock(revision, kind)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
        finally:
            os.close(lock)

    def _use(self, revision: str) -> None:
        if revision not in self._in_use:
            lock = self._open_lock(revision, "use")
            fcntl.flock(lock, fcntl.LOCK_SH)
            self._in_use[revision] = lock


def _stamp(path: Path) -> dict[str, int]:
    """How a file looks from outside: any write to it, or another file in its place, changes this."""
    stat = path.stat()
    return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns, "inode": stat.st_ino}


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _sync_folders(root: Path) -> None:
    for folder in [root, *(p for p in root.rglob("*") if p.is_dir())] if root.is_dir() else []:
        opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
