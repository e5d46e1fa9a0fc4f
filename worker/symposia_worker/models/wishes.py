"""What a machine will need: checkpoints to be brought into its model cache before anyone asks, a file for each, so that it outlives every process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import Field

from symposia_shared.catalogue import CheckpointId
from symposia_shared.errors import BadInput
from symposia_shared.values import Value
from symposia_worker.models.locks import locked

#: ``queued``: not here yet, or not whole; ``here``: fetched, and nobody has used it yet; ``refused``: see ``said``
State = Literal["queued", "here", "refused"]


class Wish(Value):
    """A checkpoint that shall be in the cache. It ends when a live load takes the checkpoint."""

    id: CheckpointId
    #: the higher comes first, and is not evicted for a lower or an equal one
    priority: int = Field(0, ge=-100, le=100)
    #: seconds since the epoch; of equal priorities the older comes first
    asked_at: float
    state: State = "queued"
    #: why it was refused
    said: str = ""
    #: of the checkpoint, once it is here
    bytes: int = Field(0, ge=0)


class Wishes:
    """The wishes for the cache in ``folder``. Safe to share between threads and between processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / ".prefetch"

    @property
    def worker_lock(self) -> Path:
        """Held by the one process that fetches for this cache."""
        return self.folder / ".worker.lock"

    @property
    def watch_lock(self) -> Path:
        """Held, shared, by each process that starts such a process when there is something to fetch."""
        return self.folder / ".watch.lock"

    def add(self, models: Sequence[str], *, priority: int = 0) -> list[Wish]:
        """Wish for ``models``; one that is wished for already gets the new priority, one that was refused another try. Raises BadInput."""
        made = [Wish.parse({"id": model, "priority": priority, "asked_at": time.time() + i / 1e6}) for i, model in enumerate(models)]
        with locked(self.folder / ".lock"):
            return [self._put(self._renewed(wish)) for wish in made]

    def all(self) -> list[Wish]:
        """Every wish, in the order in which they are fetched."""
        found = []
        for path in self.folder.glob("*.json"):
            with suppress(OSError, BadInput):  # gone meanwhile, or not ours
                found.append(Wish.from_json(path.read_bytes()))
        return sorted(found, key=lambda w: (-w.priority, w.asked_at))

    def next(self) -> Wish | None:
        """What is to be fetched first."""
        return next((w for w in self.all() if w.state == "queued"), None)

    def of(self, model: str) -> Wish | None:
        """The wish for ``model``."""
        with suppress(OSError, BadInput):
            return Wish.from_json(self._path(model).read_bytes())
        return None

    def rank_of(self, model: str) -> int | None:
        """The priority with which ``model`` is wished for, None where it is not."""
        found = self.of(model)
        return None if found is None or found.state == "refused" else found.priority

    def drop(self, model: str) -> bool:
        """End the wish for ``model``; whether there was one."""
        if not self._path(model).exists():
            return False
        with locked(self.folder / ".lock"):  # else a change that has read it already would write it again
            try:
                self._path(model).unlink()
            except FileNotFoundError:
                return False
            return True

    def fulfilled(self, model: str) -> None:
        """A live load has ``model``: it is kept because it is used, and no longer because it was wished for."""
        with suppress(OSError):
            self.drop(model)

    def arrived(self, model: str, size: int) -> None:
        """``model`` is here and waits to be used."""
        self._change(model, lambda w: w.model_copy(update={"state": "here", "bytes": size, "said": ""}))

    def refuse(self, model: str, said: str) -> None:
        """``model`` is not fetched, and why."""
        self._change(model, lambda w: w.model_copy(update={"state": "refused", "said": said}))

    def gone(self, model: str, asked: str) -> None:
        """``model`` was here, and had to make room."""
        self.refuse(model, f"it made room for {asked}. Ask for it again, or raise the budget (SYMPOSIA_CACHE_BYTES).")

    def _renewed(self, wish: Wish) -> Wish:
        before = self.of(wish.id)
        if before is None or before.state == "refused":
            return wish
        return before.model_copy(update={"priority": wish.priority})

    def _change(self, model: str, change: Callable[[Wish], Wish]) -> None:
        """Change a wish, unless it ended meanwhile."""
        with locked(self.folder / ".lock"):
            found = self.of(model)
            if found is not None:
                self._put(change(found))

    def _put(self, wish: Wish) -> Wish:
        path = self._path(wish.id)
        beside = path.with_suffix(".new")
        with beside.open("wb") as file:
            file.write(wish.canonical())
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        return wish

    def _path(self, model: str) -> Path:
        """'~' is in no id."""
        return self.folder / f"{model.replace('/', '~')}.json"
