"""The spool: replies that S3 does not take now, on the pool's own disk, so that neither memory nor a restart loses what was computed.

One file a reply, named by the turn's fence: written beside, fsynced, renamed. The ledger still decides: a replayed reply is recorded
under the fence it was made with, or found stale and dropped.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from symposia_shared.errors import BadInput
from symposia_shared.ledger import Claim, Seat
from symposia_shared.values import Value

log = logging.getLogger(__name__)

#: the share of its bytes that must be free again before a spool that was full takes more
ROOM_AGAIN = 0.9
#: seconds until a disk that refused is asked again
ASK_AGAIN_S = 5.0


class Spooled(Value):
    """A reply on disk, with the claim it answers."""

    seat: str = Field(pattern=r"^[^|]+\|\d+\|\d+$")
    fence: str = Field(min_length=1)
    attempt: int = Field(ge=0)
    deaths: int = Field(ge=0)
    kind: str
    spec: str
    payload: str
    queue: str
    alone: bool = False
    stream: bool = False
    claimed_at: float
    #: the reply's JSON
    reply: str

    @classmethod
    def of(cls, claim: Claim, claimed_at: float, reply: str) -> Spooled:
        """The file's content for a claim's reply."""
        return cls(seat=claim.seat.key, fence=claim.fence, attempt=claim.attempt, deaths=claim.deaths, kind=claim.kind, spec=claim.spec,
                   payload=claim.payload, queue=claim.queue, alone=claim.alone, stream=claim.stream, claimed_at=claimed_at, reply=reply)

    @property
    def claim(self) -> Claim:
        """The claim as the ledger gave it."""
        return Claim(seat=Seat.of(self.seat), fence=self.fence, attempt=self.attempt, deaths=self.deaths, kind=self.kind, spec=self.spec,
                     payload=self.payload, queue=self.queue, alone=self.alone, stream=self.stream)

    @property
    def id(self) -> str:
        """What the pool calls the turn (``Ticket.id``)."""
        return f"{self.seat}|{self.fence}"


@dataclass(frozen=True, slots=True)
class Left:
    """A claim whose reply an earlier process left in the spool; the reply stays on disk."""

    claim: Claim
    claimed_at: float

    @property
    def id(self) -> str:
        """What the pool calls the turn (``Ticket.id``)."""
        return f"{self.claim.seat.key}|{self.claim.fence}"


class Spool:
    """The spool of one pool in ``folder``, of at most ``max_bytes``; 0 bytes or no folder: it takes nothing. Safe between threads."""

    def __init__(self, folder: Path | None, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder or Path(), max_bytes if folder is not None else 0
        self.bytes = 0
        #: why it takes no more; '' while it does, or was not asked to
        self.full = ""
        self._sizes: OrderedDict[str, int] = OrderedDict()
        #: replies it did not take, which wait in memory
        self._refused: set[str] = set()
        self._refused_at = 0.0
        self._mutex = threading.Lock()
        #: what was found by ``restore``
        self._left: list[Left] | None = None

    def __len__(self) -> int:
        return len(self._sizes)

    def put(self, spooled: Spooled) -> bool:
        """Take a reply; True once it is on disk. False where it is full, or the disk refuses: ``full`` then says so."""
        body = spooled.to_json().encode()
        with self._mutex:
            if spooled.id in self._sizes:
                return True
            if not self.max_bytes:
                return False
            if self.bytes + len(body) > self.max_bytes:
                return self._refuse(spooled.id, f"the spool {self.folder} holds {self.bytes:,} of its {self.max_bytes:,} bytes (SYMPOSIA_SPOOL__MAX_BYTES)")
            try:
                self._write(self._path(spooled.id), body)
            except OSError as error:
                return self._refuse(spooled.id, f"the spool {self.folder} cannot be written ({error.strerror})")
            self._sizes[spooled.id] = len(body)
            self.bytes += len(body)
            self._refused.discard(spooled.id)
            self._look_for_room()
            return True

    def get(self, ticket_id: str) -> Spooled | None:
        """A reply that is in it; None where there is none, or its file is gone or damaged, which is logged."""
        if ticket_id not in self._sizes:
            return None
        try:
            return Spooled.from_json(self._path(ticket_id).read_bytes())
        except (OSError, BadInput) as error:
            log.error("the spooled reply of %s cannot be read (%s); its turn is asked again once its lease has ended", ticket_id, error)
            self.drop(ticket_id)
            return None

    def drop(self, ticket_id: str) -> None:
        """Forget a reply: it was recorded, or nobody wants it any more. One that is not in it is no error."""
        with self._mutex:
            self._refused.discard(ticket_id)
            size = self._sizes.pop(ticket_id, None)
            if size is not None:
                self.bytes -= size
                with contextlib.suppress(OSError):
                    self._path(ticket_id).unlink()
            self._look_for_room()

    def worth_asking(self) -> bool:
        """Whether what it has refused may be offered again: it is not full, or that was found out a while ago."""
        return not self.full or time.monotonic() - self._refused_at > ASK_AGAIN_S

    def _look_for_room(self) -> None:
        if self.full and not self._refused and self.bytes <= ROOM_AGAIN * self.max_bytes:
            log.info("the spool has room again")
            self.full = ""

    def restore(self) -> list[Left]:
        """What an earlier process left in the folder, oldest first, read once; what cannot be read is put aside as ``*.damaged``."""
        if self._left is None:
            self._left = self._found()
        return self._left

    def _found(self) -> list[Left]:
        if self.folder == Path() or not self.folder.is_dir():
            return []
        found = []
        for path in sorted(self.folder.glob("*.json"), key=lambda p: p.stat().st_mtime_ns):
            try:
                spooled = Spooled.from_json(path.read_bytes())
            except (OSError, BadInput) as error:
                log.error("%s is no spooled reply (%s); it is put aside", path, error)
                with contextlib.suppress(OSError):
                    path.replace(path.with_suffix(".damaged"))
                continue
            with self._mutex:
                if spooled.id not in self._sizes:
                    self._sizes[spooled.id] = path.stat().st_size
                    self.bytes += path.stat().st_size
            found.append(Left(spooled.claim, spooled.claimed_at))
        for torn in self.folder.glob("*.part"):
            with contextlib.suppress(OSError):
                torn.unlink()
        return found

    def _refuse(self, ticket_id: str, why: str) -> bool:
        self._refused.add(ticket_id)
        self._refused_at = time.monotonic()
        if not self.full:
            log.error("%s: the pool takes no more turns until S3 has taken some of its replies", why)
        self.full = why
        return False

    def _path(self, ticket_id: str) -> Path:
        return self.folder / f"{hashlib.sha256(ticket_id.encode()).hexdigest()[:40]}.json"

    def _write(self, path: Path, body: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = path.with_suffix(".part")
        try:
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError:
            with contextlib.suppress(OSError):
                part.unlink()
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
