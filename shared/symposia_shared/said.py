"""An answer while it is made: pieces on a Redis channel, which keeps nothing.

A piece says which lease made it and where in the answer it begins. Whoever hears the pieces can tell a gap, and an answer begun
again after its pool died; what it is true to is the recorded result alone.
"""

from __future__ import annotations

import json

from symposia_shared.errors import BadInput
from symposia_shared.values import Value

#: what marks a thinking model's reasoning, which is no part of its answer
_OPENS, _CLOSES = "<think>", "</think>"


class Piece(Value):
    """More of an answer. ``at``: characters before it."""

    fence: str
    at: int
    text: str


def channel(prefix: str, job_id: str) -> str:
    """The channel on which a job's answer is told."""
    return f"{prefix}said:{job_id}"


def read_piece(raw: str) -> Piece | None:
    """The piece in a message, None for what is none."""
    try:
        return Piece.parse(json.loads(raw))
    except (ValueError, TypeError, BadInput):
        return None


class Hearing:
    """What is heard of one answer, and how much of it was passed on: only ever what extends the text passed on before."""

    def __init__(self) -> None:
        self.sent = ""
        #: lease → its answer so far; None after a gap
        self._heard: dict[str, str | None] = {}

    def hear(self, piece: Piece) -> str:
        """Take a piece; returns the text that can be passed on now."""
        before = self._heard.get(piece.fence, "")
        if before is None or piece.at != len(before):
            self._heard[piece.fence] = None
            return ""
        text = self._heard[piece.fence] = before + piece.text
        return self._pass(visible(text))

    def end(self, text: str) -> str | None:
        """The rest of the recorded answer; None where what was passed on is not its beginning."""
        if not text.startswith(self.sent):
            return None
        return self._pass(text)

    def _pass(self, text: str) -> str:
        if not text.startswith(self.sent):
            return ""
        fresh, self.sent = text[len(self.sent):], text
        return fresh


def visible(text: str) -> str:
    """What may be shown of an answer that is being made: nothing of a reasoning that stands before it."""
    begun = text.lstrip()
    if _OPENS.startswith(begun[: len(_OPENS)]):
        return text.partition(_CLOSES)[2].lstrip()
    return text
