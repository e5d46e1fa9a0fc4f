"""An S3 that is a dictionary, for tests that are not about S3."""

from __future__ import annotations

from collections.abc import Sequence

from symposia_shared.store import Head, Replaced, Written


class Shelf:
    """What of a ``Store`` these tests use, with its semantics."""

    client = None

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}

    def uri(self, key: str) -> str:
        return f"s3://shelf/{key}"

    def get(self, key: str) -> bytes | None:
        return self.bodies.get(key)

    def put(self, key: str, body: bytes, content_type: str = "") -> None:
        self.bodies[key] = body

    def put_once(self, key: str, body: bytes, content_type: str = "") -> Written:
        kept = self.bodies.setdefault(key, body)
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
