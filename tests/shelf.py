"""An S3 that is a dictionary, for tests that are not about S3."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from symposia_shared.store import Head, Replaced, Written


class Shelf:
    """What of a ``Store`` these tests use, with its semantics."""

    client = None

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        #: when each was written, in epoch's seconds
        self.times: dict[str, float] = {}
        #: keys that were read, and prefixes that were listed
        self.read: list[str] = []
        self.lists: list[str] = []

    def uri(self, key: str) -> str:
        return f"s3://shelf/{key}"

    def get(self, key: str) -> bytes | None:
        self.read.append(key)
        return self.bodies.get(key)

    def put(self, key: str, body: bytes, content_type: str = "") -> None:
        self.bodies[key] = body
        self.times[key] = time.time()

    def put_once(self, key: str, body: bytes, content_type: str = "") -> Written:
        if key not in self.bodies:
            self.put(key, body)
        kept = self.bodies[key]
        return Written(ours=kept == body, body=kept)

    def head(self, key: str) -> Head | None:
        return Head(etag=key, size=len(self.bodies[key])) if key in self.bodies else None

    def get_range(self, key: str, start: int, *, length: int, etag: str) -> bytes:
        if key not in self.bodies:
            raise Replaced(key)
        return self.bodies[key][start:start + length]

    def delete(self, key: str) -> None:
        self.bodies.pop(key, None)

    def delete_many(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.delete(key)

    def keys(self, prefix: str) -> list[str]:
        return [key for key in sorted(self.bodies) if key.startswith(prefix)]

    def listed(self, prefix: str) -> Iterator[tuple[str, float]]:
        self.lists.append(prefix)
        yield from ((key, self.times[key]) for key in self.keys(prefix))
