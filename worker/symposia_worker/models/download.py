"""One object fetched by parallel ranges, its sha256 checked against the manifest as it streams by.

boto3's own multipart download accepts a bit flipped on the way (facts: services §5), so ranges are pinned to one object by
its ETag and the whole is compared with the manifest's digest.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from symposia_shared.errors import Damaged, Unavailable
from symposia_shared.store import Replaced, Store
from symposia_worker.models.manifest import StoredFile

RANGE_BYTES = 16 * 1024 * 1024
#: ranges on their way at once: at most so many times RANGE_BYTES are held in memory
PARALLEL = 6
#: a range is asked for so often before the store counts as away
_RANGE_TRIES = 3
#: A whole file is fetched so often: a bit flipped on the way is another one, or none, the next time.
_FILE_TRIES = 2


def download(store: Store, key: str, file: StoredFile, *, to: Path | None, received: Callable[[int], None] = lambda _: None) -> None:
    """Fetch ``key``, which must be ``file``, into ``to`` and on to the disk; None: only check it.

    ``received`` is told how many bytes of this file have come. Raises Damaged naming file, wanted and got where the store
    holds something else; then ``to`` is not to be used. Raises StoreUnavailable, or the OSError of a full disk.
    """
    got = ""
    for _ in range(_FILE_TRIES):
        try:
            got = _fetch(store, key, file, to=to, received=received)
        except Replaced:
            got = "an object that was replaced while it was read"
            continue
        if got == file.sha256:
            return
    raise _damaged(store, key, file, f"sha256 {file.sha256} is wanted, {got} was found")


def _fetch(store: Store, key: str, file: StoredFile, *, to: Path | None, received: Callable[[int], None]) -> str:
    """The sha256 of what came."""
    head = store.head(key)
    if head is None:
        raise _damaged(store, key, file, "the manifest names it, but it is missing")
    if head.size != file.size:
        raise _damaged(store, key, file, f"{file.size} bytes are wanted, {head.size} were found")
    digest, done = hashlib.sha256(), 0
    target = None if to is None else os.open(to, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        for chunk in _chunks(store, key, size=file.size, etag=head.etag):
            digest.update(chunk)
            if target is not None:
                _write_all(target, chunk)
            done += len(chunk)
            received(done)
        if target is not None:
            os.fsync(target)
    finally:
        if target is not None:
            os.close(target)
    return digest.hexdigest()


def _chunks(store: Store, key: str, *, size: int, etag: str) -> Iterator[bytes]:
    """The object's bytes in order, while the next ranges are already on their way."""
    if size <= RANGE_BYTES:
        if size:
            yield _range(store, key, 0, length=size, etag=etag)
        return
    coming: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(PARALLEL, thread_name_prefix="range") as threads:
        try:
            for start in range(0, size, RANGE_BYTES):
                if len(coming) == PARALLEL:
                    yield coming.popleft().result()
                length = min(RANGE_BYTES, size - start)
                coming.append(threads.submit(_range, store, key, start, length=length, etag=etag))
            while coming:
                yield coming.popleft().result()
        finally:
            for future in coming:
                future.cancel()


def _range(store: Store, key: str, start: int, *, length: int, etag: str) -> bytes:
    """Exactly ``length`` bytes from ``start``; a connection that was cut is tried again."""
    for attempt in range(_RANGE_TRIES):
        last = attempt == _RANGE_TRIES - 1
        try:
            body = store.get_range(key, start, length=length, etag=etag)
        except Unavailable:
            if last:
                raise
        else:
            if len(body) == length:
                return body
        if not last:
            time.sleep(0.2 * 2**attempt)
    raise Replaced(key)


def _damaged(store: Store, key: str, file: StoredFile, why: str) -> Damaged:
    return Damaged(f"{file.path} is damaged in the model store ({store.uri(key)}): {why}. "
                   "Remove the checkpoint with `symposia models rm` and add it again.")


def _write_all(target: int, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(target, rest):]
