"""The audit at the end of a run: each sentence here is a promise of docs/RELIABILITY.md, and returns what breaks it."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from benchmarks.chaos.journal import Journal
from benchmarks.chaos.load import Ended
from benchmarks.chaos.stack import Stack, wait_until
from symposia.cli.replay import replayed
from symposia_shared.errors import NoQuorum, SymposiaError
from symposia_shared.results import Result

#: of the results of a soak, so many are read again at its end
MOST_READ = 1_000
#: what the ledger may keep of jobs that are over: keys by what they hold
OF_JOBS = ("jobs", "leases", "deadlines", "delayed", "follow", "advance", "later")


def audit(stack: Stack, ended: Sequence[Ended], *, may_fail: bool = True, judged: bool = False, before: int = 0) -> list[str]:
    """Every violation, in one sentence each; [] where every promise was kept. ``judged``: each job was, by ``of_one``, when it ended.

    ``before``: jobs that were asked before those of the run.
    """
    settled = wait_until(lambda: stack.client.stats()["jobs_in_flight"] == 0, 60)
    broken = [] if settled else [f"{stack.client.stats()['jobs_in_flight']} jobs are in flight a minute after the last one ended"]
    broken += [f"{e.asked.job_id} ({e.asked.job.name}): {word}" for e in ended if not judged for word in of_one(e)]
    with ThreadPoolExecutor(8) as threads:
        read = ended if len(ended) <= MOST_READ or not judged else random.Random(len(ended)).sample(list(ended), MOST_READ)
        broken += [word for word in threads.map(lambda e: changed(stack, e), read) if word]
    broken += [*_of_ledger(stack), *_of_counters(stack.client.stats(), ended, before)]
    if not may_fail:
        broken += [f"{e.asked.job_id} {e.state}" for e in ended if e.state != "done"]
    return broken


def of_one(seen: Ended) -> Iterator[str]:
    """What is wrong with what was seen of one job."""
    if seen.wrong:
        yield f"{'acknowledged, then ' if seen.taken else 'not acknowledged: '}{seen.wrong}"
        return
    found = seen.result
    if found is None or seen.state not in seen.asked.ends:
        error = found.error if found else None
        yield f"ended {seen.state or 'never'}, which it could not ({error})"
        return
    if found.state == "done" and seen.asked.answer is not None and found.answer != seen.asked.answer:
        yield f"answered {found.answer!r:.80}, not {seen.asked.answer!r:.80}"
    vectors = found.completion.vectors if found.completion else None
    if found.state == "done" and seen.asked.vectors is not None and vectors != seen.asked.vectors:
        yield "its vectors are not those of its texts"
    yield from _of_transcript(found)


def _of_transcript(found: Result) -> Iterator[str]:
    """Whether a transcript gives its verdict again; one that was cut short by a deadline or a cancel has none."""
    if found.state == "cancelled" or (found.error and found.error.type != "NoQuorum"):
        return
    try:
        same = replayed(Result.from_json(found.model_dump_json())) == found.verdict
    except NoQuorum:
        same = found.state == "failed"
    except SymposiaError as error:
        yield f"its transcript does not replay: {type(error).__name__}: {error}"
        return
    if not same:
        yield "its transcript replays to another verdict"


def changed(stack: Stack, seen: Ended) -> str:
    """What is wrong with a committed result, read again; '' where its bytes are those that were read when the job had ended."""
    if not seen.digest:
        return ""
    body = stack.client.archive.store.get(f"jobs/{seen.asked.job_id}/result.json")
    if body is None or hashlib.sha256(body).hexdigest() != seen.digest:
        return f"{seen.asked.job_id}: its committed result has {'changed' if body else 'vanished'}"
    return "" if json.loads(body)["job_id"] == seen.asked.job_id else f"{seen.asked.job_id}: its result is another job's"


def _of_ledger(stack: Stack) -> Iterator[str]:
    redis, key = stack.client.ledger.redis, stack.client.ledger.key
    for name in OF_JOBS:
        if count := redis.zcard(key(name)):
            yield f"{count} entries are left in {name}: {redis.zrange(key(name), 0, 2)}"
    for pattern in ("job:*", "ready:*", "tag:*"):
        left = list(redis.scan_iter(key(pattern), count=1000))
        if left:
            yield f"{len(left)} keys {pattern} are left: {left[:3]}"


def _of_counters(stats: dict[str, int], ended: Sequence[Ended], before: int) -> Iterator[str]:
    over = stats["jobs_done"] + stats["jobs_failed"] + stats["jobs_cancelled"]
    if not over == stats["jobs_submitted"] == len(ended) + before:
        yield f"{len(ended)} jobs were asked, {stats['jobs_submitted']} recorded, {over} ended"
    if stats["calls_repeated"] > stats["in_flight_at_kills"]:
        yield f"{stats['calls_repeated']} calls were repeated, though only {stats['in_flight_at_kills']} were in flight at kills"
    if stats["commit_conflicts"]:
        yield f"{stats['commit_conflicts']} results met another that stood already"


def of_journal(journal: Journal, ended: Sequence[Ended]) -> list[str]:
    """What the broker's journal says against the run."""
    broken = [f"journal: {word}" for word in journal.again]
    broken += [f"journal: {job} ended {times} times" for job, times in journal.ends.items() if times > 1]
    if journal.whole:
        broken += [f"journal: {e.asked.job_id} never ended" for e in ended if e.asked.job_id not in journal.ends]
    return broken
