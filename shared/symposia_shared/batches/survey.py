"""One reading of a batch's input as its bytes go by: how many lines there are, where, and which of them are none.

Held are the spans and eight bytes for each ``custom_id``, never the lines.
"""

from __future__ import annotations

import hashlib

from symposia_shared.batches.values import Span, Survey
from symposia_shared.openai.lines import MOST_LINE_BYTES, BadLine, read_line

#: a span has so many lines at most, and ends with the line that makes it so many bytes
SPAN_LINES, SPAN_BYTES = 100, 1024 * 1024
#: models told apart
MOST_MODELS = 1000


class Surveyor:
    """Feed it the bytes in pieces of any size, then ``finish``."""

    def __init__(self) -> None:
        self._rest = bytearray()
        #: bytes of the line at hand that are counted and not kept, since it is too long
        self._over = 0
        self._offset = self._number = self._lines = self._bad = 0
        self._start, self._first, self._in_span = 0, 1, 0
        self._seen: set[bytes] = set()
        self._twice: list[int] = []
        self._models: dict[str, int] = {}
        self._spans: list[Span] = []

    def feed(self, piece: bytes) -> None:
        """The next bytes."""
        lines = piece.split(b"\n")
        if len(lines) == 1:
            self._keep(piece)
            return
        self._keep(lines[0])
        self._line(bytes(self._rest), self._gone + 1)
        self._rest.clear()
        self._over = 0
        for line in lines[1:-1]:
            self._line(line, len(line) + 1)
        self._keep(lines[-1])

    @property
    def _gone(self) -> int:
        return len(self._rest) + self._over

    def _keep(self, part: bytes) -> None:
        room = max(0, MOST_LINE_BYTES + 2 - len(self._rest))
        self._rest += part[:room]
        self._over += max(0, len(part) - room)

    def _line(self, line: bytes, length: int) -> None:
        self._number += 1
        self._offset += length
        if not line.strip():
            return
        self._lines += 1
        self._in_span += 1
        self._read(line)
        if self._in_span >= SPAN_LINES or self._offset - self._start >= SPAN_BYTES:
            self._close()

    def _read(self, line: bytes) -> None:
        try:
            found = read_line(line, self._number)
        except BadLine:
            self._bad += 1
            return
        mark = hashlib.blake2b(found.custom_id.encode(), digest_size=8).digest()
        if mark in self._seen:
            self._twice.append(self._number)
            self._bad += 1
        self._seen.add(mark)
        model = found.body.get("model")
        if isinstance(model, str) and (model in self._models or len(self._models) < MOST_MODELS):
            self._models[model] = self._models.get(model, 0) + 1

    def _close(self) -> None:
        if self._in_span:
            self._spans.append(Span(offset=self._start, length=self._offset - self._start, first=self._first, lines=self._in_span))
        self._start, self._first, self._in_span = self._offset, self._number + 1, 0

    def finish(self) -> Survey:
        """What was found."""
        if self._gone:
            self._line(bytes(self._rest), self._gone)
        self._close()
        return Survey(lines=self._lines, spans=tuple(self._spans), bad=self._bad, twice=tuple(self._twice), models=self._models)
