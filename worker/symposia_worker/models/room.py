"""Room in the model cache: what it holds and has promised, and what goes first when more is needed.

All of it is read off the disk under one lock, so that processes that want room at once count each other: a download has a
reservation of its full size before its first byte.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pydantic import ByteSize, TypeAdapter, ValidationError

from symposia_shared.errors import BadInput, Unavailable
from symposia_worker.models.locks import locked, try_locked

MARK, PARTIAL, LOCKS, RESERVED = ".complete", ".partial", ".locks", ".reserved"

_BYTES: TypeAdapter[int] = TypeAdapter(ByteSize)


def bytes_named(variable: str) -> int | None:
    """The bytes the environment variable says, such as ``50GB`` or ``1.5TiB``; None where it is not set. Raises BadInput."""
    said = os.environ.get(variable, "").strip()
    if not said:
        return None
    try:
        return int(_BYTES.validate_python(said))
    except ValidationError:
        raise BadInput(f"{variable} is {said!r}, which is no number of bytes.", field=variable, value=said,
                       remedy="Write it like 500000000, 50GB or 1.5TiB.") from None


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


@dataclass(frozen=True, slots=True)
class Promised:
    """A download that is under way or was cut off. ``size``: bytes it may grow to."""

    id: str
    folder: Path
    size: int
    begun_at: float

    @property
    def written(self) -> int:
        """Bytes it takes on the disk now."""
        sizes = 0
        for path in self.folder.rglob("*"):
            with suppress(OSError):
                sizes += path.lstat().st_blocks * 512
        return min(sizes, self.size)


@dataclass(frozen=True, slots=True)
class Asked:
    """What room is asked for. ``priority`` None: a live load, which comes before all that is not in use."""

    id: str
    name: str
    size: int
    budget: int | None
    priority: int | None = None
    #: bytes of the disk to be left free
    keep_free: int = 0


@dataclass(frozen=True, slots=True)
class _Stay:
    """Something that takes room and might go."""

    id: str
    name: str
    folder: Path
    size: int
    #: what it is wanted for, None: nothing in particular; a partial download before a whole one, then the one used longest ago
    rank: tuple[int | None, bool, float]


class Room:
    """The room of the cache in ``folder``. ``rank_of``: the priority an id is wanted with though nobody uses it, None where it is not.

    ``on_gone`` is told of one that had to go though it was wanted, and for which id.
    """

    def __init__(self, folder: Path, rank_of: Callable[[str], int | None] = lambda _: None,
                 on_gone: Callable[[str, str], None] = lambda _, __: None) -> None:
        self.folder = folder
        self._rank_of, self._on_gone = rank_of, on_gone

    def lock(self, name: str, kind: str) -> Path:
        """The lock file of one checkpoint folder: ``lock`` to change it, ``use`` to keep it, ``want`` to wait for it."""
        return self.folder / LOCKS / f"{name}.{kind}"

    def contents(self) -> list[Cached]:
        """The complete checkpoints here, the one used longest ago first."""
        return sorted(self._whole(), key=lambda c: c.used_at)

    def promised(self) -> list[Promised]:
        """The downloads under way or cut off."""
        found = []
        for folder in (self.folder / PARTIAL).glob("*"):
            with suppress(OSError, ValueError, KeyError, TypeError):
                noted, at = json.loads((folder / RESERVED).read_bytes()), (folder / RESERVED).stat().st_mtime
                found.append(Promised(id=str(noted["id"]), folder=folder, size=int(noted["size"]), begun_at=at))
        return found

    def reserve(self, asked: Asked) -> Path:
        """A folder for the download ``asked`` for, its room promised; what is there of it is kept. The caller holds its lock.

        What nobody uses goes for it: what is wanted for nothing first, then, for a live load, whatever is wanted least; a
        download with a priority lets everything stay that is wanted as much. Raises Unavailable with the numbers.
        """
        with locked(self.folder / LOCKS / "room.lock"):
            self._drop_unreserved()
            partial = self.folder / PARTIAL / asked.name
            self._make(asked, partial)
            partial.mkdir(parents=True, exist_ok=True)
            (partial / RESERVED).write_text(json.dumps({"id": asked.id, "size": asked.size}))
            return partial

    def evict(self, cached: Cached) -> bool:
        """Remove ``cached`` unless some process downloads or uses it; whether it is gone."""
        return self.remove(cached.folder)

    def remove(self, folder: Path) -> bool:
        """Remove a checkpoint's folder, or a partial one, unless some process downloads or uses it; whether it is gone."""
        partial = folder.parent == self.folder / PARTIAL
        return self._remove(folder.name if partial else "~".join(folder.relative_to(self.folder).parts), folder)

    # -- counting

    def _whole(self) -> Iterator[Cached]:
        for mark in [*self.folder.glob(f"*/*/{MARK}"), *self.folder.glob(f"*/*/*/{MARK}")]:
            if mark.relative_to(self.folder).parts[0].startswith("."):
                continue
            with suppress(OSError, ValueError, KeyError, TypeError):
                noted, used_at = json.loads(mark.read_bytes()), mark.stat().st_mtime
                size = sum(int(f["size"]) for f in noted["files"].values())
                yield Cached(id=noted["id"], revision=noted["revision"], folder=mark.parent, size=size, used_at=used_at)

    def _make(self, asked: Asked, own: Path) -> None:
        whole, promised = self.contents(), [p for p in self.promised() if p.folder != own]
        held = sum(c.size for c in whole) + sum(p.size for p in promised)
        # what downloads under way have yet to write is free on the disk, and not ours
        pledged = sum(p.size - p.written for p in promised)
        need = asked.size - next((p.written for p in self.promised() if p.folder == own), 0)
        most_on_disk = self._free() - pledged - asked.keep_free
        stays = self._may_go(asked, whole, promised)
        could = sum(s.size for s in stays)
        over = 0 if asked.budget is None else held + asked.size - asked.budget
        if over > could:
            raise self._refused(asked, f"the cache may hold {asked.budget or 0:,} bytes and has {held:,} in use or promised", could)
        if 0 < need >= most_on_disk + could:
            raise self._refused(asked, f"the disk has {self._free():,} bytes free, of which {pledged + asked.keep_free:,} are promised or kept free", could)
        for stay in stays:
            if over <= 0 and not 0 < need >= most_on_disk:
                return
            if self._remove(stay.name, stay.folder):
                if stay.rank[0] is not None:
                    self._on_gone(stay.id, asked.id)
                over -= stay.size
                most_on_disk = self._free() - pledged - asked.keep_free
        if over > 0 or 0 < need >= most_on_disk:
            raise self._refused(asked, "what could go was taken into use meanwhile", 0)

    def _may_go(self, asked: Asked, whole: list[Cached], promised: list[Promised]) -> list[_Stay]:
        """What may go, in that order."""
        every = [_Stay(c.id, "~".join(c.folder.relative_to(self.folder).parts), c.folder, c.size, (self._rank_of(c.id), True, c.used_at)) for c in whole]
        every += [_Stay(p.id, p.folder.name, p.folder, p.size, (self._rank_of(p.id), False, p.begun_at)) for p in promised]
        mine = [s for s in every if s.rank[0] is None or asked.priority is None or s.rank[0] < asked.priority]
        idle = [s for s in mine if s.name != asked.name and self._idle(s.name)]
        return sorted(idle, key=lambda s: (s.rank[0] is not None, s.rank[0] or 0, s.rank[1], s.rank[2]))

    def _idle(self, name: str) -> bool:
        with try_locked(self.lock(name, "lock")) as quiet, try_locked(self.lock(name, "use")) as unused:
            return quiet and unused

    def _remove(self, name: str, folder: Path) -> bool:
        with try_locked(self.lock(name, "lock")) as quiet, try_locked(self.lock(name, "use")) as unused:
            if quiet and unused:
                shutil.rmtree(folder, ignore_errors=True)
            return quiet and unused

    def _drop_unreserved(self) -> None:
        """Remove partial folders that do not say what they are."""
        for folder in (self.folder / PARTIAL).glob("*"):
            if not (folder / RESERVED).is_file():
                self._remove(folder.name, folder)

    def _free(self) -> int:
        return shutil.disk_usage(self.folder).free

    def _refused(self, asked: Asked, why: str, could: int) -> Unavailable:
        others = "" if asked.priority is None else f" without what is wanted with the priority {asked.priority} or a higher one"
        return Unavailable(f"{asked.id} needs {asked.size:,} bytes in the model cache {self.folder}: {why}; {could:,} could be freed{others}. "
                           "Raise its budget (SYMPOSIA_CACHE_BYTES), unload a checkpoint, or put the cache on another disk (SYMPOSIA_CACHE).")
