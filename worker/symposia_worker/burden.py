"""What a pool has taken on, in tokens: by it replicas share a checkpoint's work, and a plan knows what is asked of each.

Least outstanding work (join the shortest queue: Winston 1977, J. Appl. Prob. 14(1)) in tokens rather than requests, since a turn's
cost is the tokens it reads and writes.
"""

from __future__ import annotations

import threading
from collections import Counter

from symposia_shared.broker import placed_as
from symposia_shared.turns import Abstention, Completion, Turn

#: bytes of a prompt that make a token, until a checkpoint's own count is known; tokens of a turn, until one was seen
BYTES_A_TOKEN, FIRST_MEAN = 4.0, 256.0
#: how much a new figure counts beside the mean so far
NEW = 0.1


class Burden:
    """The tokens of the turns a pool holds, and what its checkpoints were asked. Safe between threads."""

    def __init__(self) -> None:
        self._held: dict[str, int] = {}
        self._tokens = 0
        self._mean = FIRST_MEAN
        #: by checkpoint, all scripted ones as one: bytes of its prompts a token, tokens of its completions
        self._bytes: dict[str, float] = {}
        self._written: dict[str, float] = {}
        self._asked: Counter[str] = Counter()
        self._mutex = threading.Lock()

    @property
    def tokens(self) -> int:
        """Of all turns held, to be read and written."""
        return self._tokens

    def said(self, free: int) -> str:
        """As a claim says it: tokens, the mean of a turn, free slots."""
        return f"{self._tokens} {max(1, round(self._mean))} {max(0, free)}"

    def take(self, ticket: str, turn: Turn) -> None:
        """A turn is held."""
        with self._mutex:
            size = self._size(turn)
            self._tokens += size - self._held.get(ticket, 0)
            self._held[ticket] = size
            self._mean = _nearer(self._mean, size)

    def drop(self, ticket: str) -> None:
        """A turn is held no more."""
        with self._mutex:
            self._tokens -= self._held.pop(ticket, 0)

    def learn(self, turn: Turn, reply: Completion | Abstention) -> None:
        """What a turn turned out to be."""
        if turn.is_check or isinstance(reply, Abstention):
            return
        usage, text, model = reply.usage, _bytes(turn), placed_as(turn.model)
        with self._mutex:
            self._asked[model] += usage.prompt_tokens + usage.completion_tokens
            self._written[model] = _nearer(self._written.get(model, float(usage.completion_tokens)), usage.completion_tokens)
            if usage.prompt_tokens:
                self._bytes[model] = _nearer(self._bytes.get(model, text / usage.prompt_tokens), text / usage.prompt_tokens)

    def asked(self) -> dict[str, int]:
        """Tokens read and written by checkpoint since this was last called."""
        with self._mutex:
            told, self._asked = dict(self._asked), Counter()
            return told

    def _size(self, turn: Turn) -> int:
        """Tokens to be read and written: by the limit, or where it is less by what the checkpoint usually writes."""
        if turn.is_check:
            return 1
        read = _bytes(turn) / self._bytes.get(placed_as(turn.model), BYTES_A_TOKEN)
        limit = float(turn.sampling.max_tokens)
        written = min(limit, self._written.get(placed_as(turn.model), limit)) if turn.want == "completion" else 0.0
        return max(1, round(read + written))


def _bytes(turn: Turn) -> int:
    return sum(len(m.content.encode()) for m in turn.messages)


def _nearer(mean: float, new: float) -> float:
    return mean + NEW * (new - mean)
