"""Objects that are written as their bytes come and read as they are wanted: neither is ever whole in memory."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

from symposia_shared.store import Head, Store

#: bytes of a part: S3 wants at least 5 MiB of all but the last, and takes 10,000 of them
PART_BYTES = 8 * 1024 * 1024
#: bytes read at once
READ_BYTES = 1024 * 1024


class Upload:
    """An object written in parts, whole or not at all: within ``with``, ``write`` and then ``finish``; what is left unfinished is dropped.

    Methods raise StoreUnavailable. One part is on its way while the next is gathered.
    """

    def __init__(self, store: Store, key: str, *, content_type: str = "application/jsonl") -> None:
        self.store, self.key, self._type = store, key, content_type
        #: bytes so far
        self.size = 0
        self._gathered = bytearray()
        self._id: str | None = None
        self._parts: list[dict[str, Any]] = []
        self._sending: Future[dict[str, Any]] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="part")

    def write(self, piece: bytes) -> None:
        """The next bytes."""
        self._gathered += piece
        self.size += len(piece)
        while len(self._gathered) >= PART_BYTES:
            part = bytes(self._gathered[:PART_BYTES])
            del self._gathered[:PART_BYTES]
            self._send(part)

    def finish(self) -> None:
        """Have the object exist. An older one of its key is replaced."""
        if self._id is None:
            self.store.put(self.key, bytes(self._gathered), self._type)
            return
        if self._gathered:
            self._send(bytes(self._gathered))
        self._settle()
        with self.store.reaching("write", self.key):
            self.store.client.complete_multipart_upload(Bucket=self.store.bucket, Key=self.key, UploadId=self._id, MultipartUpload={"Parts": self._parts})
        self._id = None

    def _send(self, part: bytes) -> None:
        if self._id is None:
            with self.store.reaching("write", self.key):
                self._id = self.store.client.create_multipart_upload(Bucket=self.store.bucket, Key=self.key, ContentType=self._type)["UploadId"]
        self._settle()
        self._sending = self._thread.submit(self._put, part, len(self._parts) + 1)

    def _put(self, part: bytes, number: int) -> dict[str, Any]:
        with self.store.reaching("write", self.key):
            answer = self.store.client.upload_part(Bucket=self.store.bucket, Key=self.key, UploadId=self._id, PartNumber=number, Body=part)
        return {"PartNumber": number, "ETag": answer["ETag"]}

    def _settle(self) -> None:
        if self._sending is not None:
            sending, self._sending = self._sending, None
            self._parts.append(sending.result())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._thread.shutdown(wait=True)
        if self._id is not None:
            try:
                self.store.client.abort_multipart_upload(Bucket=self.store.bucket, Key=self.key, UploadId=self._id)
            except Exception:  # noqa: S110 - the store may be what failed; an upload that was begun is no object, and buckets expire such
                pass


def pieces(store: Store, key: str, head: Head) -> Iterator[bytes]:
    """The bytes of an object. Raises StoreUnavailable, and ``store.Replaced`` where it is no longer the one of ``head``."""
    at = 0
    while at < head.size:
        piece = store.get_range(key, at, length=min(READ_BYTES, head.size - at), etag=head.etag)
        yield piece
        at += len(piece)


def lines_of(found: Iterator[bytes]) -> Iterator[bytes]:
    """Pieces of any size as lines, their ends kept."""
    rest = b""
    for piece in found:
        head, mark, tail = piece.rpartition(b"\n")
        if not mark:
            rest += piece
            continue
        yield from (line + b"\n" for line in (rest + head).split(b"\n"))
        rest = tail
    if rest:
        yield rest
