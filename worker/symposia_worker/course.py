"""A job's course: from a closed round to the next one, or to the committed result."""

from __future__ import annotations

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Protocol

from symposia_shared.archive import Archive
from symposia_shared.broker import Doorbell, placed_as, queue_for
from symposia_shared.errors import NoQuorum, PlayDiverged
from symposia_shared.jobs import Job
from symposia_shared.ledger import Ledger, LedgerJob, LedgerRound, LedgerTurn, Seat
from symposia_shared.ledger.dead import Letter
from symposia_shared.ledger.usage import used_by
from symposia_shared.patterns import parse_job
from symposia_shared.play import Round, advance, played
from symposia_shared.results import ClosedBy, Fault, Result, RoundRecord, State, TurnRecord, bill_of
from symposia_shared.retries import letter_reason
from symposia_shared.turns import Abstention, Cause, Completion, Reply, Timing
from symposia_shared.values import Value
from symposia_shared.verdicts import Verdict

log = logging.getLogger(__name__)

_UNCOUNTED: dict[ClosedBy, tuple[Cause, str]] = {
    "settled": ("settled", "stopped: the verdict could no longer change"),
    "quorum": ("quorum", "stopped: the quorum had answered"),
    "deadline": ("deadline", "no answer within the job's deadline"),
    "cancelled": ("cancelled", "the job was cancelled"),
    "all": ("bug", "the round was closed as complete without this reply"),
}


#: closed rounds kept at hand, those of the jobs advanced last
MOST_ROUNDS = 256


class Canvas(Protocol):
    """What sends a round's turns to the pools."""

    def round(self, job_id: str, kind: str, number: int, queues: Mapping[int, str]) -> None: ...


class _AReply(Value):
    reply: Reply


def parse_reply(text: str) -> Reply:
    """The reply a JSON text holds."""
    return _AReply.model_validate({"reply": json.loads(text)}).reply


class Course:
    """Advances jobs. Every method may be called again, by anyone, at any time: the ledger and S3 decide once."""

    def __init__(self, ledger: Ledger, archive: Archive, canvas: Canvas, bell: Doorbell) -> None:
        self.ledger, self.archive, self.canvas, self.bell = ledger, archive, canvas, bell
        # rounds seen in S3, where they are written once and never change: a job's third round need not read the first two again
        self._seen: OrderedDict[tuple[str, int], RoundRecord] = OrderedDict()
        self._seen_lock = threading.Lock()

    def advance(self, job_id: str) -> str:
        """Open the next round of a job whose round is closed, or commit its result. Returns what was done, in a word or two.

        Raises BrokerUnavailable or StoreUnavailable; the job then waits in the ledger for the sweeper.
        """
        entry = self.ledger.job(job_id)
        if entry is None:
            return "ended before"
        if entry.state == "later":
            return "not due"
        job = self._job(entry)
        current = entry.round
        if current is not None and current.closed is None:
            return "round open"
        try:
            rounds = self._rounds(entry, job)
        except PlayDiverged as error:
            return self._commit(entry, job, [], None, Fault(type=error.name, message=str(error)), "failed")
        if entry.state == "cancelled":
            return self._commit(entry, job, rounds, None, None, "cancelled")
        step = self._step(job, rounds)
        if isinstance(step, Round) and rounds:
            kept = self._remember(job_id, self.archive.keep_round(job_id, rounds[-1]))
            if kept != rounds[-1]:
                # after a rollback of Redis S3 may be newer than the ledger: what it holds is what happened
                rounds = [*rounds[:-1], kept]
                step = self._step(job, rounds)
        if isinstance(step, Round):
            return self._open(entry, len(rounds), step)
        if isinstance(step, Fault):
            return self._commit(entry, job, rounds, None, step, "failed")
        return self._commit(entry, job, rounds, step, None, "done")

    def settle(self, job_id: str, number: int) -> str:
        """Queue the turns whose predecessors have ended; close the round if its missing replies can no longer change anything."""
        entry = self.ledger.job(job_id)
        if entry is None or entry.round is None or entry.round.number != number or entry.round.closed is not None:
            return "round closed before"
        job = self._job(entry)
        step = self._step(job, self._earlier(entry))
        if not isinstance(step, Round):
            return "nothing to settle"
        replies = [self._reply(t) for t in entry.round.turns]
        released = self._release(entry, entry.round, step, replies)
        if step.settled is None:
            return f"released {released}"
        inn = sum(1 for r in replies if r is not None)
        if inn < step.settled_from or not step.settled(replies):
            return "not settled"
        if self.ledger.close(job_id, number, "settled") != "won":
            return "round closed before"
        return self.advance(job_id)

    def _release(self, entry: LedgerJob, current: LedgerRound, step: Round, replies: Sequence[Reply | None]) -> list[int]:
        waiting = [i for i, seat in enumerate(current.turns) if seat.state == "w"]
        if not waiting:
            return []
        due = [i for i in waiting if all(replies[b] is not None for b in step.turns[i].after)]
        payloads = {i: self.archive.payload(Seat(entry.job_id, current.number, i), step.asked(i, replies)) for i in due}
        released = self.ledger.release(entry.job_id, current.number, payloads)
        bells = self.ledger.bells([current.turns[i].queue for i in released])
        for i in released:
            self.bell.turn(Seat(entry.job_id, current.number, i), bells[current.turns[i].queue], kind=entry.kind)
        return released

    def _job(self, entry: LedgerJob) -> Job:
        return parse_job(json.loads(self.archive.read(entry.spec)))

    def _step(self, job: Job, rounds: Sequence[RoundRecord]) -> Round | Verdict | Fault:
        try:
            return advance(job, played(rounds))
        except (NoQuorum, PlayDiverged) as error:
            return Fault(type=error.name, message=str(error))
        except Exception as error:  # a pattern's own bug ends its job, not the coordinator
            log.exception("the play of a %s raised", job.name)
            return Fault(type="JobFailed", message=f"the play of this {job.name} raised {type(error).__name__}: {error}. This is a bug of the pattern.")

    def _rounds(self, entry: LedgerJob, job: Job) -> list[RoundRecord]:
        """The closed rounds: earlier ones from S3, the current one from the ledger. Raises PlayDiverged."""
        earlier = self._earlier(entry)
        if entry.round is None or entry.round.closed is None:
            return earlier
        if not entry.round.turns:  # a job that tries another again begins behind the rounds it keeps of it
            return [*earlier, *self._kept_rounds(entry, from_round=entry.current)]
        return [*earlier, self._record(entry.round, self._replayed(entry, job, earlier))]

    def _earlier(self, entry: LedgerJob) -> list[RoundRecord]:
        """The rounds before the current one, each of which was in S3 before its successor was opened. Raises PlayDiverged."""
        return self._kept_rounds(entry, from_round=0, below=max(0, entry.current))

    def _kept_rounds(self, entry: LedgerJob, *, from_round: int, below: int | None = None) -> list[RoundRecord]:
        numbers = range(from_round, from_round + 1 if below is None else below)
        found = [self._closed(entry.job_id, n) for n in numbers]
        missing = [n for n, r in zip(numbers, found, strict=True) if r is None]
        if missing:
            raise PlayDiverged(f"rounds {missing} of job {entry.job_id} are missing in S3.")
        return [r for r in found if r is not None]

    def _closed(self, job_id: str, number: int) -> RoundRecord | None:
        with self._seen_lock:
            seen = self._seen.get((job_id, number))
        if seen is not None:
            return seen
        found = self.archive.round(job_id, number)
        return None if found is None else self._remember(job_id, found)

    def _remember(self, job_id: str, record: RoundRecord) -> RoundRecord:
        with self._seen_lock:
            self._seen[job_id, record.round] = record
            while len(self._seen) > MOST_ROUNDS:
                self._seen.popitem(last=False)
        return record

    def _record(self, current: LedgerRound, step: Round) -> RoundRecord:
        closed: ClosedBy = current.closed or "all"
        replies = [self._reply(seat) if i in current.counted else None for i, seat in enumerate(current.turns)]
        records = [TurnRecord(turn=step.asked(i, replies), reply=replies[i] or _uncounted(closed, seat)) for i, seat in enumerate(current.turns)]
        return RoundRecord(round=current.number, digest=step.digest, closed_by=closed, counted=current.counted, turns=tuple(records))

    def _replayed(self, entry: LedgerJob, job: Job, earlier: Sequence[RoundRecord]) -> Round:
        """What was asked in the current round: the play yields it again, which also proves that the code still agrees."""
        step = self._step(job, earlier)
        opened = entry.round.digest if entry.round is not None else ""
        if not isinstance(step, Round) or (opened and step.digest != opened):
            raise PlayDiverged(f"round {entry.current} of job {entry.job_id} no longer replays as it was opened; the pattern's code has changed "
                               "since. Run the version that began the job, or submit it again.")
        return step

    def _reply(self, seat: LedgerTurn) -> Reply | None:
        return parse_reply(self.archive.read(seat.reply)) if seat.reply else None

    def _open(self, entry: LedgerJob, number: int, step: Round) -> str:
        places = self.ledger.placed()
        queues = []
        for turn in step.turns:
            place = places.get(placed_as(turn.model))
            queues.append(str(place["queue"]) if place else queue_for(turn.model))
        payloads = self.archive.payloads(entry.job_id, number, step.turns)
        follows = [bool(t.after) for t in step.turns]
        won = self.ledger.open(
            entry.job_id, number, deadline_ms=entry.deadline_ms, quorum=step.close_at or 0, settle_from=step.settled_from if step.settled else 0,
            chord=True, digest=step.digest, turns=list(zip(queues, payloads, follows, strict=True)),
            kept=self.archive.kept_replies(entry.job_id) if entry.keeps == number else None,
        )
        if won != "won":
            return f"round {number}: {won}"
        bells = self.ledger.bells(queues)
        self.canvas.round(entry.job_id, entry.kind, number, {i: bells[q] for i, q in enumerate(queues) if not follows[i]})
        return f"opened round {number} of {len(step.turns)}"

    def _commit(self, entry: LedgerJob, job: Job, rounds: Sequence[RoundRecord], verdict: Verdict | None, fault: Fault | None, state: State) -> str:
        ended_ms = entry.round.closed_ms if entry.round is not None and entry.round.closed_ms else entry.submitted_ms
        result = Result(
            job_id=entry.job_id, state=state, verdict=verdict, error=fault, rounds=tuple(rounds), bill=bill_of(rounds),
            job=job.model_dump(mode="json", exclude_defaults=True), version=int(getattr(type(job), "version", 1)),
            submitted_at=entry.submitted_ms / 1000, ended_at=ended_ms / 1000,
        )
        committed = self.archive.commit(result)
        if committed.conflict:
            log.error("%s another result stands for this job already; it is kept", entry.job_id)
        ended = committed.result
        self.ledger.forget(entry.job_id, state=ended.state, kind=entry.kind, conflicts=int(committed.conflict), letter=_letter(ended, job),
                           used=used_by(ended, taken_over=self._taken_over(entry, ended.rounds)))
        self.archive.let_go(entry.spec)
        log.info("commit ← %s %s %s", entry.job_id, entry.kind, committed.result.state)
        return committed.result.state


    def _taken_over(self, entry: LedgerJob, rounds: Sequence[RoundRecord]) -> set[tuple[int, int]]:
        """The turns whose replies are those of the job that this one tries again."""
        if entry.keeps is None:
            return set()
        earlier = {(r.round, i) for r in rounds[: entry.keeps] for i in range(len(r.turns))}
        return earlier | {(entry.keeps, i) for i in self.archive.kept_places(entry.job_id)}


def _uncounted(closed: ClosedBy, seat: LedgerTurn) -> Abstention:
    cause, message = _UNCOUNTED[closed]
    started = seat.claimed_ms / 1000 if seat.attempts > 0 else 0.0
    return Abstention(cause=cause, message=message, timing=Timing(claimed_at=started))


def _letter(result: Result, job: Job) -> str:
    """What the dead letters say of an ended job, as JSON; empty where it is not one of them."""
    reason = letter_reason(result.state, result.rounds, result.error)
    if reason is None:
        return ""
    message = result.error.message if result.error is not None else "a member's turn was given up as poison"
    return Letter(reason=reason, kind=job.name, state=result.state, models=job.models, message=message[:300]).to_json()


def told(reply: Reply) -> str:
    """A reply in a few words, without its text: for logs and for Flower."""
    if isinstance(reply, Completion):
        seconds = max(1e-3, (reply.timing.last_token_at or 0.0) - reply.timing.claimed_at)
        if reply.vectors is not None:
            count = len(reply.vectors)
            return f"{count} {'text' if count == 1 else 'texts'} {seconds:.1f} s {count / seconds:.0f} texts/s"
        tokens = reply.usage.completion_tokens
        return f"{tokens} tok {seconds:.1f} s {tokens / seconds:.0f} tok/s"
    return f"abstained: {reply.cause}"

