"""An answer while it is made: pieces on a Redis channel, which keeps nothing.

A piece says which lease made it and where in the answer it begins. Whoever hears the pieces can tell a gap, and an answer begun
again after its pool died; what it is true to is the recorded result alone. Once a second a piece begins at 0 and has the whole answer
so far: who comes late, or missed one, hears the rest from there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from symposia_shared.errors import BadInput
from symposia_shared.values import Value

#: what marks a thinking model's reasoning, which is no part of its answer
_OPENS, _CLOSES = "<think>", "</think>"


class Piece(Value):
    """More of an answer. ``at``: characters before it. ``round`` and ``turn``: whose answer it is, within its job."""

    fence: str
    at: int
    text: str
    round: int = 0
    turn: int = 0


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
    """What is heard of one answer, and how much of it was passed on: only ever what extends the text passed on before.

    ``shown``: what of the answer so far may be passed on.
    """

    def __init__(self, shown: Callable[[str], str] | None = None) -> None:
        self.sent = ""
        self._shown = shown or visible
        #: lease → its answer so far; None after a gap
        self._heard: dict[str, str | None] = {}

    def hear(self, piece: Piece) -> str:
        """Take a piece; returns the text that can be passed on now."""
        before = self._heard.get(piece.fence, "")
        if piece.at == 0:  # the whole so far; an older one that comes late takes nothing back
            before = before if before is not None and len(before) > len(piece.text) else ""
        if before is None or piece.at not in (0, len(before)):
            self._heard[piece.fence] = None
            return ""
        text = self._heard[piece.fence] = before if piece.at == 0 and before else before + piece.text
        return self._pass(self._shown(text))

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


#: characters of one word of a streamed verdict at most: what is written without spaces comes in pieces of so many
LONGEST_WORD = 16
_WORD = re.compile(rf"\s*\S{{1,{LONGEST_WORD}}}")


def words(text: str) -> list[str]:
    """``text`` cut into pieces of a word each with the space before it, in such a way that the pieces of a beginning of it are the first
    pieces of the whole, but for the last one. So a piece has the same number whenever and by whomever the text is sent."""
    found = _WORD.findall(text)
    rest = text[sum(map(len, found)):]
    return [*found, rest] if rest else found


def whole_words(text: str) -> str:
    """What of an unfinished text is made of pieces that what follows cannot change."""
    return "".join(words(text)[:-1])
