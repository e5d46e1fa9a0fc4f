"""A form with a file (RFC 7578) read as it comes: the file's bytes are handed on, never held."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from symposia.api.faults import refused

#: bytes of a part's headers, of a field's value, and fields of a form
MOST_HEADERS, MOST_FIELD, MOST_FIELDS = 8_192, 65_536, 32

_BOUNDARY = re.compile(r'multipart/form-data\s*;.*?boundary=(?:"([^"]{1,200})"|([^\s;,"]{1,200}))', re.IGNORECASE)
_NAME = re.compile(r';\s*name=(?:"((?:[^"\\]|\\.)*)"|([^\s;]+))', re.IGNORECASE)
_FILENAME = re.compile(r';\s*filename=(?:"((?:[^"\\]|\\.)*)"|([^\s;]+))', re.IGNORECASE)


@dataclass(slots=True)
class Piece:
    """Some bytes of a part; ``filename`` is None where the part is no file."""

    name: str
    filename: str | None
    data: bytes
    #: whether the part ends with it
    last: bool


@dataclass(slots=True)
class _Part:
    name: str
    filename: str | None


@dataclass(slots=True)
class Form:
    """The parts of a body, in order. Raises HttpFault 400 for what is no such form."""

    content_type: str
    body: AsyncIterator[bytes]
    _held: bytearray = field(default_factory=bytearray)

    async def pieces(self) -> AsyncIterator[Piece]:
        """The parts in pieces."""
        found = _BOUNDARY.match(self.content_type)
        if found is None:
            raise refused(415, "the body must be multipart/form-data.", code="unsupported_media_type")
        mark = b"\r\n--" + (found[1] or found[2]).encode("latin-1", "replace")
        self._held += b"\r\n"  # the first boundary stands at the body's beginning
        await self._until(mark)
        while not await self._closed():
            part = self._headers(await self._taken(b"\r\n\r\n"))
            while True:
                at = self._held.find(mark)
                if at >= 0:
                    yield self._piece(part, at, last=True)
                    del self._held[:len(mark)]
                    break
                # what may be the beginning of the boundary is kept
                ready = len(self._held) - len(mark)
                if ready > 0:
                    yield self._piece(part, ready, last=False)
                await self._more()

    def _piece(self, part: _Part, size: int, *, last: bool) -> Piece:
        data = bytes(self._held[:size])
        del self._held[:size]
        return Piece(part.name, part.filename, data, last)

    async def _closed(self) -> bool:
        while len(self._held) < 2:
            await self._more()
        ending = bytes(self._held[:2])
        if ending not in (b"--", b"\r\n"):
            raise _broken("a boundary is followed by neither a part nor the end")
        del self._held[:2]
        return ending == b"--"

    async def _until(self, mark: bytes) -> None:
        while (at := self._held.find(mark)) < 0:
            if len(self._held) > MOST_HEADERS:
                raise _broken("it does not begin with its boundary")
            await self._more()
        del self._held[:at + len(mark)]

    async def _taken(self, mark: bytes) -> bytes:
        while (at := self._held.find(mark)) < 0:
            if len(self._held) > MOST_HEADERS:
                raise _broken(f"the headers of a part have more than {MOST_HEADERS:,} bytes")
            await self._more()
        taken = bytes(self._held[:at])
        del self._held[:at + len(mark)]
        return taken

    async def _more(self) -> None:
        async for piece in self.body:
            if piece:
                self._held += piece
                return
        raise _broken("it ends before its last boundary")

    def _headers(self, raw: bytes) -> _Part:
        for line in raw.decode("utf-8", "replace").split("\r\n"):
            head, _, value = line.partition(":")
            if head.strip().lower() == "content-disposition":
                name, filename = _NAME.search(value), _FILENAME.search(value)
                if name is not None:
                    return _Part(_unquoted(name), None if filename is None else _unquoted(filename))
        raise _broken("a part has no name")


def _unquoted(found: re.Match[str]) -> str:
    return re.sub(r"\\(.)", r"\1", found[1]) if found[1] is not None else found[2]


def _broken(why: str) -> Exception:
    return refused(400, f"the body is no multipart form: {why}.", code="invalid_multipart")
