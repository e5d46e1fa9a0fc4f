"""Replies kept to be given again to equal turns of the same tenant.

    reuse/TENANT/KEY.json   when it was made, in which job, the completion; written once, dead after its life

KEY is the digest of all that decides a reply: the checkpoint's revision (of an adapter also its base's), the engine, its mode,
the precision and the kind of the device, the messages, what
is wanted of them and the sampling with its seed. Only what comes out the same when it is asked again is kept: turns that draw nothing,
or from a seed that was given. Tenants share nothing: that a question is answered at once would tell one what another has asked.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from typing import Any

from symposia_shared.errors import BadInput
from symposia_shared.results import Result
from symposia_shared.store import Store
from symposia_shared.turns import Completion, Kept, Timing, Turn
from symposia_shared.values import Value, canonical_json

FOLDER = "reuse/"
#: raised when what decides a reply is read otherwise than before, so that older replies are not given again
_VERSION = 1
#: what does nothing where nothing is drawn
_DRAWN = ("seed", "top_p", "top_k", "min_p")


class Entry(Value):
    """A kept reply."""

    #: seconds since the epoch
    made_at: float
    made_in: str
    reply: Completion


def digest_of(turn: Turn, place: Mapping[str, Any], *, device: str) -> str | None:
    """The key of a turn's reply on a device, by what its pool says of the checkpoint; None where it cannot be kept.

    It cannot where it draws without a seed, where no model is asked, and where nobody says which revision answers (an endpoint).
    """
    sampling = turn.sampling
    greedy = sampling.temperature == 0.0
    if turn.is_check or not place.get("revision") or (not greedy and sampling.seed is None):
        return None
    said = sampling.model_dump(mode="json", exclude=set(_DRAWN) if greedy else set())
    asked = {"version": _VERSION, "model": turn.model, "revision": place["revision"], "engine": place.get("engine"), "mode": place.get("mode"),
             "precision": place.get("precision"), "base": place.get("base_revision"), "device": device.partition(":")[0],
             "want": turn.want, "raw": turn.raw, "suffix": turn.suffix, "sampling": said,
             "messages": [m.model_dump(mode="json") for m in turn.messages]}
    return hashlib.sha256(canonical_json(asked)).hexdigest()


class Replies:
    """The kept replies in a store. Every method raises StoreUnavailable when S3 is away."""

    def __init__(self, store: Store, *, life_s: float) -> None:
        self.store, self.life_s = store, life_s

    def key(self, tenant: str, digest: str) -> str:
        """Where a tenant's reply lies."""
        return f"{FOLDER}{tenant}/{digest}.json"

    def get(self, key: str) -> Completion | None:
        """The reply under a key, marked as given again; None where there is none that lives."""
        body = self.store.get(key)
        if body is None:
            return None
        entry = self._read(body)
        if entry is None or self._outlived(entry.made_at):
            self.store.delete(key)  # so that the next one can be written: an object is written once
            return None
        return entry.reply.model_copy(update={"kept": Kept(key=key, made_in=entry.made_in)})

    def keep(self, key: str, reply: Completion, *, job_id: str) -> Completion:
        """Keep a reply unless one is kept already; the reply, marked with where it is kept."""
        entry = Entry(made_at=time.time(), made_in=job_id, reply=reply.model_copy(update={"timing": Timing(), "kept": None}))
        self.store.put_once(key, entry.to_json().encode())
        return reply.model_copy(update={"kept": Kept(key=key)})

    def erase(self, tenant: str) -> list[str]:
        """Delete all that is kept of a tenant; the keys."""
        return self._delete(self.store.keys(f"{FOLDER}{tenant}/"))

    def erase_of(self, result: Result) -> list[str]:
        """Delete what is kept of a job's turns, and what they were answered with; the keys."""
        marks = [t.reply.kept for r in result.rounds for t in r.turns if isinstance(t.reply, Completion)]
        return self._delete(dict.fromkeys(mark.key for mark in marks if mark is not None))

    def prune(self, *, unreadable: bool = False) -> list[str]:
        """Delete what has outlived its life; with ``unreadable`` also what is no entry, for which all others are read; the keys."""
        # an entry is written once, when it is made: none has to be read for its age
        return self._delete([key for key, at in self.store.listed(FOLDER) if self._outlived(at) or (unreadable and self._is_no_entry(key))])

    def _is_no_entry(self, key: str) -> bool:
        body = self.store.get(key)
        return body is not None and self._read(body) is None

    def _outlived(self, made_at: float) -> bool:
        return time.time() - made_at > self.life_s

    def _delete(self, keys: Iterable[str]) -> list[str]:
        gone = list(keys)
        self.store.delete_many(gone)
        return gone

    @staticmethod
    def _read(body: bytes) -> Entry | None:
        """An entry; None where the bytes are none, as after a version that wrote another form."""
        try:
            return Entry.from_json(body)
        except BadInput:
            return None
