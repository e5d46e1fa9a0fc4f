"""One object fetched by parallel ranges, each verified by its sha256 as it comes, and written where it belongs.

boto3's own multipart download accepts a bit flipped on the way (facts: services §5), so ranges are pinned to one object by
its ETag and compared with the manifest's digests. What is on the disk already and has the right digest is not fetched
again: the file itself tells how far a download came that was cut off, and no journal can disagree with it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from symposia_shared.errors import Damaged, Unavailable
from symposia_shared.store import Replaced, Store
from symposia_worker.models.manifest import Span, StoredFile

#: ranges on their way at once: at most so many are held in memory
PARALLEL = 6
#: a range is asked for so often before the store counts as away, or the range as damaged: a bit flipped on the way is another one, or none, the next time
_RANGE_TRIES = 3
#: A file is begun so often, where it was replaced meanwhile or has no digests by range.
_FILE_TRIES = 2

Received = Callable[[int], None]


def download(store: Store, key: str, file: StoredFile, *, to: Path | None, received: Received = lambda _: None) -> int:
    """Fetch what ``to`` lacks of ``key``, which must be ``file``, and bring it on to the disk; None: only check it. The bytes that were fetched.

    ``received`` is told how many bytes of this file are here, in no order; what it raises ends the download, and what has
    come stays in ``to``. Raises Damaged naming file, wanted and got where the store holds something else; then ``to`` is not
    to be used. Raises StoreUnavailable, or the OSError of a full disk.
    """
    why, fetched = "", 0
    for _ in range(_FILE_TRIES):
        transfer = _Transfer(store, key, file, received)
        try:
            why = transfer.run(to)
        except Replaced:
            why = f"sha256 {file.sha256} is wanted, an object that was replaced while it was read was found"
        finally:
            fetched += transfer.fetched
        if not why:
            return fetched
    raise damaged(store, key, file, why)


def damaged(store: Store, key: str, file: StoredFile, why: str) -> Damaged:
    """The error that tells of a damaged file in the model store."""
    return Damaged(f"{file.path} is damaged in the model store ({store.uri(key)}): {why}. "
                   "Remove the checkpoint with `symposia models rm` and add it again.")


@dataclass(slots=True)
class _Transfer:
    """One try at one file."""

    store: Store
    key: str
    file: StoredFile
    received: Received
    etag: str = ""
    done: int = 0
    fetched: int = 0

    def run(self, to: Path | None) -> str:
        """Why the object is not the file; "" where it is."""
        self.etag = self._head()
        target = None if to is None else _opened(to, self.file.size)
        whole = hashlib.sha256() if to is None or not self.file.by_range else None
        try:
            missing = self.file.spans if target is None or whole else self._lacking(target)
            for body in self._bodies(missing, target):
                if whole is not None:
                    whole.update(body)
            if target is not None:
                os.fsync(target)
        finally:
            if target is not None:
                os.close(target)
        got = whole.hexdigest() if whole else self.file.sha256
        return "" if got == self.file.sha256 else f"sha256 {self.file.sha256} is wanted, {got} was found"

    def _head(self) -> str:
        head = self.store.head(self.key)
        if head is None:
            raise damaged(self.store, self.key, self.file, "the manifest names it, but it is missing")
        if head.size != self.file.size:
            raise damaged(self.store, self.key, self.file, f"{self.file.size} bytes are wanted, {head.size} were found")
        return head.etag

    def _lacking(self, target: int) -> list[Span]:
        """The ranges that are not on the disk yet, or are wrong there."""
        lacking = []
        for span in self.file.spans:
            if _is_written(target, span) and hashlib.sha256(_read(target, span)).hexdigest() == span.sha256:
                self.done += span.length
                self.received(self.done)
            else:
                lacking.append(span)
        return lacking

    def _bodies(self, spans: Sequence[Span], target: int | None) -> Iterator[bytes]:
        """The spans' bytes in order, verified and written, while the next are already on their way."""
        if len(spans) == 1:  # most files are small, and a thread costs more than they do
            yield self._took(spans[0], self._fetch(spans[0], target))
            return
        coming: deque[tuple[Span, Future[bytes]]] = deque()
        with ThreadPoolExecutor(PARALLEL, thread_name_prefix="range") as threads:
            try:
                for span in spans:
                    if len(coming) == PARALLEL:
                        yield self._next(coming)
                    coming.append((span, threads.submit(self._fetch, span, target)))
                while coming:
                    yield self._next(coming)
            finally:
                for _, future in coming:
                    future.cancel()

    def _next(self, coming: deque[tuple[Span, Future[bytes]]]) -> bytes:
        span, future = coming.popleft()
        return self._took(span, future.result())

    def _took(self, span: Span, body: bytes) -> bytes:
        self.done += span.length
        self.fetched += span.length
        self.received(self.done)
        return body

    def _fetch(self, span: Span, target: int | None) -> bytes:
        """The span's bytes, verified where there is a digest, and written. A cut connection and a flipped bit are tried again."""
        got = ""
        for attempt in range(_RANGE_TRIES):
            if attempt:
                time.sleep(0.2 * 2 ** (attempt - 1))
            try:
                body = self.store.get_range(self.key, span.start, length=span.length, etag=self.etag)
            except Unavailable:
                if attempt == _RANGE_TRIES - 1:
                    raise
                continue
            got = "" if len(body) != span.length else hashlib.sha256(body).hexdigest() if span.sha256 else "unknown"
            if got and (span.sha256 is None or got == span.sha256):
                if target is not None:
                    _write_all(target, body, span.start)
                return body
        if not got:
            raise Replaced(self.key)
        where = "" if span.length == self.file.size else f" in its bytes {span.start:,} to {span.start + span.length - 1:,}"
        raise damaged(self.store, self.key, self.file, f"sha256 {span.sha256} is wanted, {got} was found{where}")


def _opened(to: Path, size: int) -> int:
    """``to`` with ``size`` bytes, those that were not written yet being holes."""
    if to.is_symlink():
        to.unlink()
    target = os.open(to, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        os.ftruncate(target, size)
    except BaseException:
        os.close(target)
        raise
    return target


def _is_written(target: int, span: Span) -> bool:
    """Whether some of a span was written: a hole need not be read. Where the file system knows no holes, all was."""
    with suppress(OSError):
        try:
            return os.lseek(target, span.start, os.SEEK_DATA) < span.start + span.length
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from there to the end
                return False
            raise
    return True


def _read(target: int, span: Span) -> bytes:
    parts, at = [], span.start
    while at < span.start + span.length and (part := os.pread(target, span.start + span.length - at, at)):
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def _write_all(target: int, body: bytes, at: int) -> None:
    rest = memoryview(body)
    while rest:
        written = os.pwrite(target, rest, at)
        rest, at = rest[written:], at + written
