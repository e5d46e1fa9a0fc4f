"""What tenants used, counted once with each job's result: by day and checkpoint.

    usage:T:DAY   hash  MODEL|WHAT → count; of an empty model: whole jobs, and the sum of all their turns
    tenants       set   who has used anything
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Collection
from datetime import UTC, date, datetime, timedelta

from symposia_shared.errors import BadInput
from symposia_shared.ledger import Ledger, away
from symposia_shared.ledger.tenants import OWNER
from symposia_shared.results import Result, bill_of
from symposia_shared.turns import Completion
from symposia_shared.values import Value

#: the tag by which a job is a tenant's; one without is the owner's
TENANT_TAG = "tenant:"
#: seconds for which a day's counts are kept
KEPT_S = 400 * 86_400
#: days one question may span
MOST_DAYS = 400
WHAT = ("jobs", "calls", "prompt_tokens", "completion_tokens", "reused")


class Used(Value):
    """A tenant's use of a checkpoint on one day (UTC); an empty ``model``: of all, its jobs each counted once."""

    day: str
    model: str = ""
    #: jobs that asked it, whatever their end was
    jobs: int = 0
    #: turns that were run
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    #: turns that were answered with a kept reply, and cost nothing
    reused: int = 0


def tenant_of(tags: Collection[str]) -> str:
    """Whose a job of these tags is."""
    return next((tag.removeprefix(TENANT_TAG) for tag in tags if tag.startswith(TENANT_TAG)), OWNER)


def used_by(result: Result, *, taken_over: Collection[tuple[int, int]] = ()) -> str:
    """What the ledger is to count of a result (JSON); ``taken_over``: turns (round, place) whose replies are another job's, and counted there."""
    rounds = [r.model_copy(update={"turns": tuple(t for i, t in enumerate(r.turns) if (r.round, i) not in taken_over)}) for r in result.rounds]
    by_model: dict[str, list[int]] = defaultdict(lambda: [1, 0, 0, 0, 0])
    for item in (t for r in rounds for t in r.turns):
        row, reply = by_model[item.turn.model], item.reply
        if isinstance(reply, Completion) and not reply.reused:
            row[1], row[2], row[3] = row[1] + 1, row[2] + reply.usage.prompt_tokens, row[3] + reply.usage.completion_tokens
        elif isinstance(reply, Completion):
            row[4] += 1
    bill = bill_of(rounds)
    whole = [1, sum(r[1] for r in by_model.values()), bill.prompt_tokens, bill.completion_tokens, bill.reused_calls]
    return json.dumps({"tenant": tenant_of(result.job.get("tags", ())), "day": time.strftime("%Y-%m-%d", time.gmtime(result.ended_at)), "keep_s": KEPT_S,
                       "tokens": bill.tokens, "rows": [["", *whole], *([model[:200], *row] for model, row in by_model.items())]})


def usage(ledger: Ledger, tenant: str, *, start: str | None = None, end: str | None = None) -> list[Used]:
    """What a tenant used from ``start`` to ``end`` (days, both within; default: the last 30), oldest first. Raises BadInput or BrokerUnavailable."""
    last = _day(end, "end") if end is not None else datetime.fromtimestamp(ledger.now_s(), UTC).date()
    first = _day(start, "start") if start is not None else last - timedelta(days=29)
    if not 0 <= (last - first).days < MOST_DAYS:
        raise BadInput(f"from {first} to {last} are {(last - first).days + 1} days.", field="start", value=str(first), remedy=f"Ask for 1 to {MOST_DAYS} days.")
    days = [str(first + timedelta(days=n)) for n in range((last - first).days + 1)]
    with away(), ledger.redis.pipeline(transaction=False) as pipe:
        for day in days:
            pipe.hgetall(ledger.key(f"usage:{tenant}:{day}"))
        found = pipe.execute()
    return [used for day, counts in zip(days, found, strict=True) for used in _rows(day, counts)]


def tenants(ledger: Ledger) -> list[str]:
    """Who has used anything."""
    with away():
        return sorted(ledger.redis.smembers(ledger.key("tenants")))


def _rows(day: str, counts: dict[str, str]) -> list[Used]:
    by_model: dict[str, dict[str, int]] = defaultdict(dict)
    for name, count in counts.items():
        model, _, what = name.rpartition("|")
        if what in WHAT:
            by_model[model][what] = int(count)
    return [Used.parse({"day": day, "model": model, **by_model[model]}) for model in sorted(by_model)]


def _day(text: str, field: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise BadInput(f"{field} is {text[:40]!r}.", field=field, value=text, remedy="Write a day as 2026-11-25.") from None
