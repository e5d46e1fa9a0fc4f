"""Where a job's papers lie in S3.

    jobs/ID/job-DIGEST.json     the job, where it is too long for the ledger
    jobs/ID/turns/R.json        the turns of round R, where one is too long; R-I.json: a turn that followed others
    jobs/ID/replies/R-I-F.json  a long reply; F is the fence under which it was made, so that no late writer can replace it
    jobs/ID/rounds/R.json       a closed round, written once, before the next one starts
    jobs/ID/kept.json           of a job that tries another again: the replies it takes over into the round it begins with
    jobs/ID/result.json         the result, written once, and once more where its transcript has outlived its life
    jobs/ID/cut/MS              empty: the transcript is gone; MS says when the job ended, in epoch's ms, for the listing tells it no more
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from symposia_shared.errors import BadInput, StoreUnavailable
from symposia_shared.ledger import INLINE_BYTES, Claim, Seat
from symposia_shared.results import Result, RoundRecord
from symposia_shared.store import Store
from symposia_shared.turns import Reply, Turn
from symposia_shared.values import canonical_json

_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_CUT = re.compile(r"jobs/[^/]+/cut/(\d{1,15})")
#: keys that are named by what they hold, so that what was read once may be kept
_NAMED_BY_DIGEST = re.compile(r"jobs/[^/]+/job-[0-9a-f]{16}\.json")
#: characters of jobs kept in memory, and bytes of a job that is kept
_KEPT_CHARS, _KEPT_MOST = 16 << 20, 256 << 10


def checked_id(job_id: str) -> str:
    """``job_id`` if it can stand in a key and a path. Raises BadInput."""
    if not _JOB_ID.fullmatch(job_id):
        raise BadInput(f"{job_id!r} is not a job id.", field="job_id", value=job_id, remedy="Use 1 to 64 letters, digits, '-' and '_'.")
    return job_id


@dataclass(frozen=True, slots=True)
class Committed:
    """The result that stands, and whether another one than ours did already."""

    result: Result
    conflict: bool


class Archive:
    """The papers of jobs in a store. Every method raises StoreUnavailable when S3 is away."""

    def __init__(self, store: Store) -> None:
        self.store = store
        # jobs in flight: a pool reads a prompt to run it and again to commit it, a coordinator reads a job at each of its rounds
        self._jobs: OrderedDict[str, str] = OrderedDict()
        self._held = 0
        self._mutex = threading.Lock()

    def read(self, text: str) -> str:
        """``text`` itself, or what it refers to: ``@key`` or ``@key#place`` within a list."""
        if not text.startswith("@"):
            return text
        key, _, place = text[1:].partition("#")
        with self._mutex:
            if key in self._jobs:
                self._jobs.move_to_end(key)
                return self._jobs[key]
        body = self.store.get(key)
        if body is None:
            raise StoreUnavailable(f"{self.store.uri(key)} is missing, although the ledger names it. Was the bucket emptied while jobs were in flight?")
        if place:
            return json.dumps(json.loads(body)[int(place)])
        found = body.decode()
        if len(body) <= _KEPT_MOST and _NAMED_BY_DIGEST.fullmatch(key):
            self._keep(key, found)
        return found

    def let_go(self, text: str) -> None:
        """Keep no longer in memory what a job that has ended referred to."""
        with self._mutex:
            self._held -= len(self._jobs.pop(text[1:], ""))

    def _keep(self, key: str, found: str) -> None:
        with self._mutex:
            self._held += len(found) - len(self._jobs.pop(key, ""))
            self._jobs[key] = found
            while self._held > _KEPT_CHARS:
                self._held -= len(self._jobs.popitem(last=False)[1])

    def spec(self, job_id: str, text: str) -> str:
        """The form a job's JSON has in the ledger: itself if short, else a reference to where it now lies."""
        # by its own digest: who submits another job under an id in flight is refused by the ledger, and has not written over that job by then
        return self._short(text, f"jobs/{job_id}/job-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json")

    def payloads(self, job_id: str, number: int, turns: tuple[Turn, ...]) -> list[str]:
        """The form the turns of a round have in the ledger."""
        texts = [t.to_json() for t in turns]
        if all(len(t.encode()) <= INLINE_BYTES for t in texts):
            return texts
        key = f"jobs/{job_id}/turns/{number}.json"
        self.store.put(key, canonical_json([json.loads(t) for t in texts]))
        return [f"@{key}#{i}" for i in range(len(texts))]

    def payload(self, seat: Seat, turn: Turn) -> str:
        """The form one turn has in the ledger."""
        return self._short(turn.to_json(), f"jobs/{seat.job_id}/turns/{seat.round}-{seat.turn}.json")

    def reply(self, claim: Claim, text: str) -> str:
        """The form a reply has in the ledger."""
        seat = claim.seat
        return self._short(text, f"jobs/{seat.job_id}/replies/{seat.round}-{seat.turn}-{claim.fence}.json")

    def _short(self, text: str, key: str) -> str:
        body = text.encode()
        if len(body) <= INLINE_BYTES and not text.startswith("@"):
            return text
        self.store.put(key, body)
        return f"@{key}"

    def round(self, job_id: str, number: int) -> RoundRecord | None:
        """A closed round, or None."""
        body = self.store.get(f"jobs/{job_id}/rounds/{number}.json")
        return None if body is None else RoundRecord.from_json(body)

    def keep_round(self, job_id: str, record: RoundRecord) -> RoundRecord:
        """Write a closed round once; the first writer's stands and is returned."""
        written = self.store.put_once(f"jobs/{job_id}/rounds/{record.round}.json", record.to_json().encode())
        return record if written.ours else RoundRecord.from_json(written.body)

    def keep_replies(self, job_id: str, replies: Mapping[int, Reply]) -> None:
        """Write the replies a job takes over from the one it tries again (place → reply)."""
        self.store.put(f"jobs/{job_id}/kept.json", canonical_json({str(i): json.loads(r.to_json()) for i, r in replies.items()}))

    def kept_replies(self, job_id: str) -> dict[int, str]:
        """Those replies in the form they have in the ledger (place → JSON or @key)."""
        body = self.store.get(f"jobs/{job_id}/kept.json")
        kept: dict[str, object] = {} if body is None else json.loads(body)
        return {int(i): self._short(json.dumps(reply), f"jobs/{job_id}/replies/kept-{i}.json") for i, reply in kept.items()}

    def kept_places(self, job_id: str) -> set[int]:
        """The places of those replies."""
        body = self.store.get(f"jobs/{job_id}/kept.json")
        return set() if body is None else {int(i) for i in json.loads(body)}

    def result_key(self, job_id: str) -> str:
        """The key of a job's result."""
        return f"jobs/{job_id}/result.json"

    def result(self, job_id: str) -> Result | None:
        """A job's result, or None while there is none."""
        body = self.store.get(self.result_key(job_id))
        return None if body is None else Result.from_json(body)

    def mark_cut(self, result: Result) -> None:
        """Leave word that a result has no transcript any more."""
        self.store.put(f"jobs/{result.job_id}/cut/{int(result.ended_at * 1000)}", b"")

    def cut_at(self, key: str) -> float | None:
        """When the job ended whose transcript this key says is gone, in epoch's seconds; None for any other key."""
        found = _CUT.fullmatch(key)
        return None if found is None else int(found[1]) / 1000

    def commit(self, result: Result) -> Committed:
        """Write a result once. A different one that stands already is kept, and told."""
        key = self.result_key(result.job_id)
        result = result.model_copy(update={"result_uri": self.store.uri(key)})
        written = self.store.put_once(key, result.model_dump_json().encode())
        return Committed(result if written.ours else Result.from_json(written.body), conflict=not written.ours)
