"""The model cache: verified checkpoints on a worker's disk, within a budget, shared by the processes of one machine."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from symposia_shared.errors import Damaged, Unavailable
from symposia_worker.models.download import download
from symposia_worker.models.locks import hold_shared, locked, try_locked
from symposia_worker.models.manifest import Manifest, StoredFile, sha256_of, within
from symposia_worker.models.store import ModelStore, Progress, silent

_MARK = ".complete"


def cache_folder(stack: Path) -> Path:
    """The cache of the stack in the folder ``stack``; SYMPOSIA_CACHE names another, which several stacks may share."""
    return Path(os.environ.get("SYMPOSIA_CACHE") or stack / "cache").expanduser().absolute()


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

    def __init__(self, folder: Path, *, budget_bytes: int | None = None) -> None:
        self.folder = folder
        self.budget_bytes = budget_bytes
        self._in_use: dict[Path, int] = {}
        self._mutex = threading.Lock()

    def fetch(self, models: ModelStore, model: str, *, progress: Progress = silent) -> Path:
        """The folder of ``model``, complete and verified; downloaded from ``models`` where it is not here yet.

        A folder that is here is taken as it is while its files look as they did when they were verified; else they are
        read and compared again. Raises UnknownModel, Damaged, StoreUnavailable, or Unavailable where the disk or the budget
        has no room: then nothing is left half-written.
        """
        manifest = models.require(model)
        folder = within(self.folder, f"{manifest.id}/{manifest.revision}")
        try:
            with locked(self._lock(folder, "lock")):
                if not self._is_whole(folder, manifest):
                    shutil.rmtree(folder, ignore_errors=True)
                    self._make_room(manifest)
                    self._download(models, manifest, folder, progress=progress)
                with suppress(OSError):
                    os.utime(folder / _MARK)
                self._use(folder)
        except OSError as error:
            raise self._refused(manifest, error) from error
        return folder

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
        found = []
        for mark in [*self.folder.glob(f"*/*/{_MARK}"), *self.folder.glob(f"*/*/*/{_MARK}")]:
            if mark.relative_to(self.folder).parts[0].startswith("."):
                continue
            with suppress(OSError, ValueError, KeyError, TypeError):
                noted, used_at = json.loads(mark.read_bytes()), mark.stat().st_mtime
                size = sum(int(f["size"]) for f in noted["files"].values())
                found.append(Cached(id=noted["id"], revision=noted["revision"], folder=mark.parent, size=size, used_at=used_at))
        return sorted(found, key=lambda c: c.used_at)

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
            noted: dict[str, Any] = json.loads((folder / _MARK).read_bytes())
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

    def _download(self, models: ModelStore, manifest: Manifest, folder: Path, *, progress: Progress) -> None:
        """Download to a folder beside, make sure it is on the disk, and give it its name: so a folder of that name is whole."""
        partial = self.folder / ".partial" / self._name(folder)
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
            done = 0
            for file in manifest.files:
                target = within(partial, file.path)
                target.parent.mkdir(parents=True, exist_ok=True)

                def received(so_far: int, before: int = done, path: str = file.path) -> None:
                    progress(f"fetching {path}", before + so_far, manifest.size)

                download(models.store, manifest.key(file), file, to=target, received=received)
                done += file.size
            _note(partial, manifest)
            _sync_folders(partial)
            folder.parent.mkdir(parents=True, exist_ok=True)
            partial.rename(folder)
            _sync_folder(folder.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _refused(self, manifest: Manifest, error: OSError) -> Unavailable:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return Unavailable(f"the disk of the model cache {self.folder} is full: {manifest.id} needs {manifest.size:,} bytes, "
                               f"{_free(self.folder):,} are free. Free some, or put the cache on another disk (SYMPOSIA_CACHE).")
        return Unavailable(f"the model cache {self.folder} cannot be used: {error}. Make it writable, or choose another (SYMPOSIA_CACHE).")

    # -- room

    def _make_room(self, manifest: Manifest) -> None:
        """Remove what nobody uses, the one used longest ago first, until ``manifest`` fits. Raises Unavailable or OSError."""
        if self.budget_bytes is not None and manifest.size > self.budget_bytes:
            raise self._over_budget(manifest, 0)
        self._sweep()
        contents = self.contents()
        used = sum(c.size for c in contents)
        for cached in contents:
            if self._fits(manifest, used):
                break
            if self._evict(cached):
                used -= cached.size
        if self.budget_bytes is not None and used + manifest.size > self.budget_bytes:
            raise self._over_budget(manifest, used)
        if not self._fits(manifest, used):
            raise OSError(errno.ENOSPC, "no space left")

    def _over_budget(self, manifest: Manifest, used: int) -> Unavailable:
        return Unavailable(f"{manifest.id} needs {manifest.size:,} bytes in the model cache {self.folder}, which may hold "
                           f"{self.budget_bytes or 0:,} and has {used:,} in use. Raise its budget, or unload a checkpoint.")

    def _fits(self, manifest: Manifest, used: int) -> bool:
        within_budget = self.budget_bytes is None or used + manifest.size <= self.budget_bytes
        return within_budget and _free(self.folder) > manifest.size

    def _evict(self, cached: Cached) -> bool:
        """Remove ``cached`` unless some process downloads or uses it; whether it is gone."""
        with try_locked(self._lock(cached.folder, "lock")) as quiet, try_locked(self._lock(cached.folder, "use")) as unused:
            if quiet and unused:
                shutil.rmtree(cached.folder, ignore_errors=True)
            return quiet and unused

    def _sweep(self) -> None:
        """Remove what downloads that were killed have left."""
        for partial in (self.folder / ".partial").glob("*"):
            with try_locked(self.folder / ".locks" / f"{partial.name}.lock") as quiet:
                if quiet:
                    shutil.rmtree(partial, ignore_errors=True)

    # -- locks

    def _name(self, folder: Path) -> str:
        """One name for one checkpoint folder; '~' is in no id."""
        return "~".join(folder.relative_to(self.folder).parts)

    def _lock(self, folder: Path, kind: str) -> Path:
        return self.folder / ".locks" / f"{self._name(folder)}.{kind}"

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
    beside = folder / f"{_MARK}.new"
    with beside.open("w") as mark:
        json.dump(noted, mark)
        mark.flush()
        os.fsync(mark.fileno())
    beside.replace(folder / _MARK)


def _free(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _sync_folders(root: Path) -> None:
    for folder in [root, *(p for p in root.rglob("*") if p.is_dir())]:
        _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
