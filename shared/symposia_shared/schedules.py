"""What recurs: a job and the times it is due at, kept in Redis and submitted by whichever coordinator comes first.

An occurrence's job id is the schedule's id and the time it was due, and the script that records it moves the schedule on:
two coordinators, a restart, a repeated call submit it once. Of occurrences missed while no coordinator was up the last one
is run, once. Times are UTC.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from symposia_shared.archive import Archive
from symposia_shared.errors import BadInput
from symposia_shared.ledger import Ledger, NewJob, away
from symposia_shared.settings import LimitSettings
from symposia_shared.values import Value

#: days within which a cron expression must have an occurrence: the rarest, the 29th of February on a given weekday, recurs within 40 years
FURTHEST_DAYS = 40 * 366


class Recipe(Value):
    """What the ledger records of each occurrence's job. ``spec`` is its JSON, or ``@key`` in S3."""

    kind: str
    spec: str
    deadline_ms: int
    prompt_bytes: int
    models: tuple[str, ...]
    priority: str = ""
    tags: tuple[str, ...] = ()


class Schedule(Value):
    """A job that recurs: by ``cron`` (five fields, as Celery beat reads them) or ``every_s`` seconds from ``begins_s``."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,39}$")]
    cron: str | None = None
    every_s: int | None = Field(None, ge=1, le=366 * 86_400)
    #: epoch's seconds
    begins_s: int
    recipe: Recipe

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if (self.cron is None) == (self.every_s is None):
            raise ValueError("give either 'cron' or 'every_s', and one of them.")
        return self

    def following(self, at_s: float) -> int:
        """The first occurrence after ``at_s``. Raises BadInput where a cron expression is wrong or has none."""
        if self.every_s is not None:
            return self.begins_s + max(0, int((at_s - self.begins_s) // self.every_s) + 1) * self.every_s
        return next_by_cron(self.cron or "", at_s)

    def latest(self, due_s: int, now_s: float) -> int:
        """The last occurrence up to now, from ``due_s`` on: what is run of several that were missed."""
        if self.every_s is not None:
            return max(due_s, self.following(now_s) - self.every_s)
        found = due_s
        while (then := self.following(found)) <= now_s:
            found = then
        return found

    def occurrence_id(self, at_s: int) -> str:
        """The job id of the occurrence due at ``at_s``."""
        return f"{self.id}-{datetime.fromtimestamp(at_s, UTC):%Y%m%dT%H%M%SZ}"


def next_by_cron(cron: str, at_s: float) -> int:
    """The first minute after ``at_s`` a cron expression names, in epoch's seconds. Raises BadInput.

    Celery's ``crontab`` reads the expression, so that it means what it means in a beat schedule (a day must match both day
    fields); the walk over its sets is ours, since Celery's own estimate needs an app and its time zone.
    """
    fields = _fields(cron)
    at = datetime.fromtimestamp(at_s, UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
    for ahead in range(FURTHEST_DAYS):
        day = at.date() + timedelta(days=ahead)
        if day.day not in fields["day_of_month"] or day.month not in fields["month_of_year"] or day.isoweekday() % 7 not in fields["day_of_week"]:
            continue
        for hour in sorted(fields["hour"]):
            for minute in sorted(fields["minute"]):
                then = datetime(day.year, day.month, day.day, hour, minute, tzinfo=UTC)
                if then >= at:
                    return int(then.timestamp())
    raise BadInput(f"the cron expression {cron!r} names no day that exists.", field="cron", value=cron, remedy="Correct its day or month.")


def _fields(cron: str) -> Mapping[str, set[int]]:
    from celery.schedules import crontab

    try:
        read: Any = crontab.from_string(cron)
    except Exception as error:  # ParseException, ValueError, TypeError, by what is wrong
        raise BadInput(f"{cron!r} is not a cron expression: {error}.", field="cron", value=cron,
                       remedy="Give five fields: minute, hour, day of the month, month, day of the week.") from None
    return {name: getattr(read, name) for name in ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")}


_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


def seconds_of(text: str) -> int:
    """``90``, ``90s``, ``10m``, ``2h`` or ``1d`` in seconds. Raises BadInput."""
    found = re.fullmatch(r"(\d{1,9})([smhd]?)", text.strip())
    if found is None:
        raise BadInput(f"{text!r} is no length of time.", field="seconds", value=text, remedy="Write 90, 90s, 10m, 2h or 1d.")
    return int(found[1]) * _UNITS[found[2]]


class Schedules:
    """The schedules of a ledger. Every method raises BrokerUnavailable."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def add(self, schedule: Schedule, *, now_s: float) -> int:
        """Keep a schedule; returns when it is first due. One of its id is replaced, its next time anew. Raises BadInput."""
        first = schedule.following(now_s)
        redis, key = self.ledger.redis, self.ledger.key
        with away(), redis.pipeline(transaction=True) as pipe:
            pipe.hset(key("schedules"), schedule.id, schedule.to_json())
            pipe.zadd(key("occurrences"), {schedule.id: first * 1000})
            pipe.execute()
        return first

    def remove(self, schedule_id: str) -> bool:
        """Forget a schedule; jobs it has submitted go on. False where there is none."""
        redis, key = self.ledger.redis, self.ledger.key
        with away(), redis.pipeline(transaction=True) as pipe:
            pipe.zrem(key("occurrences"), schedule_id)
            pipe.hdel(key("schedules"), schedule_id)
            return bool(pipe.execute()[0])

    def all(self, *, due_by_s: float | None = None) -> list[tuple[Schedule, int]]:
        """Schedules with their next times in epoch's seconds, soonest first; of those due by then where that is given."""
        redis, key = self.ledger.redis, self.ledger.key
        with away():
            most = "+inf" if due_by_s is None else due_by_s * 1000
            rows = redis.zrangebyscore(key("occurrences"), "-inf", most, withscores=True)
            texts = redis.hmget(key("schedules"), [i for i, _ in rows]) if rows else []
        return [(Schedule.from_json(text), int(at // 1000)) for (_, at), text in zip(rows, texts, strict=True) if text]

    def later(self, most: int = 1000) -> list[tuple[str, float]]:
        """The jobs that wait for their time, soonest first: (id, due at in epoch's seconds)."""
        with away():
            return [(i, at / 1000) for i, at in self.ledger.redis.zrange(self.ledger.key("later"), 0, most - 1, withscores=True)]

    def occur(self, archive: Archive, limits: LimitSettings) -> list[tuple[str, str]]:
        """Submit what is due; returns (job id, the ledger's answer) of each. What was refused is tried again at the next call.

        Raises StoreUnavailable, too.
        """
        now = self.ledger.now_s()
        answers: list[tuple[str, str]] = []
        for schedule, due in self.all(due_by_s=now):
            job_id = schedule.occurrence_id(schedule.latest(due, now))
            following = schedule.following(now)
            answer = self.ledger.submit([_record(schedule, job_id, archive, due, following)], limits=limits)[0]
            if answer == "exists":  # another coordinator was first; or an occurrence of a schedule of this id, removed and made again
                with away():
                    self.ledger.redis.zadd(self.ledger.key("occurrences"), {schedule.id: following * 1000}, xx=True, gt=True)
            answers.append((job_id, answer))
        return answers


def _record(schedule: Schedule, job_id: str, archive: Archive, due_s: int, following_s: int) -> NewJob:
    recipe = schedule.recipe
    return NewJob(job_id=job_id, kind=recipe.kind, spec=archive.spec(job_id, archive.read(recipe.spec)), deadline_ms=recipe.deadline_ms,
                  prompt_bytes=recipe.prompt_bytes, models=recipe.models, priority=recipe.priority, tags=recipe.tags, due_ms=due_s * 1000,
                  schedule=schedule.id, following_ms=following_s * 1000)
