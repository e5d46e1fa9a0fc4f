"""The dead letters: jobs that ended for a cause another try may mend, and messages that were none.

A job's letter is written with its end, in the same script, and points at the result in S3, where its transcript is. The
newest 10,000 letters and 1,000 messages are kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from symposia_shared.ledger import Ledger, away
from symposia_shared.values import Value

#: the reason all malformed messages are grouped under
MALFORMED = "malformed"


class Letter(Value):
    """What is said of one dead job."""

    reason: str
    kind: str
    state: str
    models: tuple[str, ...] = ()
    message: str = ""


@dataclass(frozen=True, slots=True)
class Dead:
    """A dead letter. ``id`` is the job's, or ``m-...`` of a message, whose ``letter`` is then of the kind ``message``; ``at`` in epoch's seconds."""

    id: str
    at: float
    letter: Letter

    @property
    def is_job(self) -> bool:
        """Whether it can be tried again; a malformed message cannot, and need not: the ledger holds the work."""
        return self.letter.kind != "message"


@dataclass(frozen=True, slots=True)
class Group:
    """The letters of one reason."""

    reason: str
    count: int
    oldest: float
    newest: float
    #: the newest few
    ids: tuple[str, ...]


class DeadLetters:
    """The set in a ledger. Every method raises BrokerUnavailable."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def all(self, *, reason: str | None = None) -> list[Dead]:
        """Newest first; of one reason where it is given."""
        redis, key = self.ledger.redis, self.ledger.key
        with away():
            rows = redis.zrange(key("dead"), 0, -1, desc=True, withscores=True)
            letters = redis.hmget(key("letters"), [i for i, _ in rows]) if rows else []
            messages = redis.lrange(key("quarantine"), 0, -1)
        found = [Dead(i, at / 1000, Letter.from_json(text)) for (i, at), text in zip(rows, letters, strict=True) if text]
        found += [_message(text) for text in messages]
        return sorted((d for d in found if reason in (None, d.letter.reason)), key=lambda d: -d.at)

    def groups(self) -> list[Group]:
        """The reasons, commonest first."""
        by: dict[str, list[Dead]] = {}
        for dead in self.all():
            by.setdefault(dead.letter.reason, []).append(dead)
        groups = [Group(r, len(ds), ds[-1].at, ds[0].at, tuple(d.id for d in ds[:3])) for r, ds in by.items()]
        return sorted(groups, key=lambda g: (-g.count, g.reason))

    def get(self, letter_id: str) -> Dead | None:
        """One of them."""
        return next((d for d in self.all() if d.id == letter_id), None)

    def drop(self, ids: Sequence[str]) -> int:
        """Forget letters; the jobs' results stay in S3. Returns how many there were."""
        redis, key = self.ledger.redis, self.ledger.key
        with away():
            texts = {_message(text).id: text for text in redis.lrange(key("quarantine"), 0, -1)}
            dropped = 0
            for letter_id in ids:
                if letter_id in texts:
                    dropped += int(redis.lrem(key("quarantine"), 1, texts[letter_id]))
                elif redis.zrem(key("dead"), letter_id):
                    redis.hdel(key("letters"), letter_id)
                    dropped += 1
        return dropped


def _message(text: str) -> Dead:
    """A quarantined message: what the guard wrote of it."""
    said: dict[str, Any] = json.loads(text)
    letter = Letter(reason=MALFORMED, kind="message", state="put aside", message=f"{said.get('error', '')}: {said.get('body', '')}")
    return Dead("m-" + hashlib.sha256(text.encode()).hexdigest()[:12], float(said.get("at", 0.0)), letter)
