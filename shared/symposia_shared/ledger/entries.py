"""What the ledger takes and gives: jobs, claims, rounds and turns as it has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from symposia_shared.results import ClosedBy


@dataclass(frozen=True, slots=True)
class NewJob:
    """What ``submit`` records of a job. ``spec`` is its JSON, or ``@key`` where that lies in S3."""

    job_id: str
    kind: str
    spec: str
    deadline_ms: int
    #: bytes of the longest prompt that no tokenizer drops (``catalogue.countable_bytes``), by which a prompt that cannot fit is refused
    prompt_bytes: int
    models: tuple[str, ...]
    #: capabilities that each of them must have; ``a|b``: either will do
    needs: tuple[str, ...] = ()
    #: ``interactive`` and ``batch`` jobs are claimed before and after others of their age; empty: neither
    priority: str = ""
    #: the first one names the party among which a queue's turns are shared; left out, each job is one
    tags: tuple[str, ...] = ()
    #: epoch's ms before which it is not opened
    due_ms: int = 0
    #: its pool publishes the answer while it is made (``said``)
    stream: bool = False
    #: whose replies its turns may be given again, and whose their own become (``reuse``); empty: nobody's
    reuse: str = ""
    #: rounds it keeps of the job it tries again; None: it tries none again
    keeps: int | None = None
    #: the schedule it is an occurrence of, that of ``due_ms``; and when its next one is
    schedule: str = ""
    following_ms: int = 0


#: what of a ledger is due by the clock and done by whoever looks for it
TIMED = ("occurrences", "tellings", "notices")


@dataclass(frozen=True, slots=True)
class Glance:
    """One look at the ledger's server."""

    #: another one after each start of the server
    run_id: str
    uptime_s: float
    #: Redis' own clock, epoch's seconds
    now_s: float
    #: those of ``TIMED`` with something whose time has come, and ``batches`` where there are any
    due: frozenset[str]


@dataclass(frozen=True, slots=True)
class Seat:
    """The place of a turn: job, round, turn."""

    job_id: str
    round: int
    turn: int

    @property
    def key(self) -> str:
        """The form it has in Redis."""
        return f"{self.job_id}|{self.round}|{self.turn}"

    @staticmethod
    def of(key: str) -> Seat:
        """The seat a Redis member names."""
        job_id, r, i = key.split("|")
        return Seat(job_id, int(r), int(i))


@dataclass(frozen=True, slots=True)
class Claim:
    """A leased turn. ``payload`` is the turn's JSON, ``@key``, or empty where the job itself is the turn."""

    seat: Seat
    fence: str
    attempt: int
    #: engine processes that died while it ran
    deaths: int
    kind: str
    spec: str
    payload: str
    queue: str
    #: it failed for want of memory: it runs beside no other suspect
    alone: bool = False
    #: its answer is to be published while it is made
    stream: bool = False
    #: whose replies it may be given again; empty: nobody's
    reuse: str = ""


@dataclass(frozen=True, slots=True)
class Claimed:
    """What a claim brought: ``named`` tells what became of the turn the doorbell named."""

    named: Literal["none", "ok", "gone", "closed", "recorded", "leased", "queued", "later", "paused"]
    left: int
    claims: tuple[Claim, ...]


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of a reply, and whom to ring."""

    status: Literal["ok", "again", "stale", "late", "gone"]
    closed: str
    ring: Literal["", "advance", "settle"]


@dataclass(frozen=True, slots=True)
class LedgerTurn:
    """A turn as the ledger has it. ``state`` begins with w (follows others), q (queued), l (leased), d (recorded), b (backs off) or x (never will be)."""

    state: str
    queue: str
    payload: str
    reply: str
    attempts: int
    claimed_ms: int


@dataclass(frozen=True, slots=True)
class LedgerRound:
    """The current round as the ledger has it."""

    number: int
    digest: str
    closed: ClosedBy | None
    closed_ms: int
    counted: tuple[int, ...]
    deadline_ms: int
    turns: tuple[LedgerTurn, ...]


@dataclass(frozen=True, slots=True)
class LedgerJob:
    """A job in flight. ``current`` is -1 before its first round is opened."""

    job_id: str
    state: Literal["open", "later", "cancelled"]
    kind: str
    spec: str
    current: int
    submitted_ms: int
    deadline_ms: int
    round: LedgerRound | None
    #: when it is to be opened, of a later job
    due_ms: int = 0
    #: the number of the round in which it takes over replies of the job it tries again
    keeps: int | None = None


def round_of(h: Mapping[str, str], r: int) -> LedgerRound:
    """Round ``r`` in a job's hash."""
    turns = []
    for i in range(int(h[f"n:{r}"])):
        at = f"{r}:{i}"
        turns.append(LedgerTurn(state=h.get(f"t:{at}", "x"), queue=h.get(f"qn:{at}", ""), payload=h.get(f"p:{at}", ""), reply=h.get(f"v:{at}", ""),
                                attempts=int(h.get(f"a:{at}", 0)), claimed_ms=int(h.get(f"cl:{at}", 0))))
    closed: Any = h.get(f"c:{r}")
    return LedgerRound(
        number=r, digest=h.get(f"g:{r}", ""), closed=closed, closed_ms=int(h.get(f"ca:{r}", 0)),
        counted=tuple(int(x) for x in h.get(f"k:{r}", "").split(",") if x), deadline_ms=int(h[f"d:{r}"]), turns=tuple(turns),
    )
