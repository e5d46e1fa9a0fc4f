"""``symposia schedule``: jobs that recur, and those that wait for their time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from symposia.cli import show
from symposia.cli.jobs import read_job
from symposia.cli.options import AsJson, Folder
from symposia.client import Client
from symposia_shared.errors import UnknownJob
from symposia_shared.schedules import Schedules, seconds_of


def register(app: typer.Typer) -> None:
    """Add these commands."""
    schedule = typer.Typer(no_args_is_help=True, help="Jobs that recur, and those that wait for their time.")
    schedule.command("add")(add)
    schedule.command("list")(list_schedules)
    schedule.command("rm")(remove)
    app.add_typer(schedule, name="schedule", rich_help_panel="Jobs")


def add(
    schedule_id: Annotated[str, typer.Argument(help="A name; the jobs are called NAME-TIME.")],
    file: Annotated[Path, typer.Argument(help="A job as JSON or YAML.")],
    cron: Annotated[str | None, typer.Option(help="Minute, hour, day of the month, month, day of the week, in UTC: '0 4 * * 1'.")] = None,
    every: Annotated[str | None, typer.Option(help="A length of time: 90, 10m, 2h, 1d.")] = None,
    json: AsJson = False, dir: Folder = None,
) -> None:
    """Have a job recur. A schedule of that name is replaced. Of times missed while all was down, the last is run once."""
    job = read_job(file)
    with Client(dir) as client:
        first = client.schedule(schedule_id, job, cron=cron, every_s=seconds_of(every) if every is not None else None)
    show.facts({"id": schedule_id, "next": first}) if json else print(f"{schedule_id} is first due at {_time(first)}")


def list_schedules(json: AsJson = False, dir: Folder = None) -> None:
    """What recurs and when it is next due; then the jobs that wait for their time."""
    with Client(dir) as client:
        schedules = Schedules(client.ledger)
        recurring, later = schedules.all(), schedules.later()
    if json:
        show.facts({"schedules": [{"id": s.id, "cron": s.cron, "every_s": s.every_s, "kind": s.recipe.kind, "next": at} for s, at in recurring],
                    "later": [{"job_id": job_id, "at": at} for job_id, at in later]})
        return
    rows = [[s.id, s.recipe.kind, s.cron or f"every {s.every_s} s", _time(at)] for s, at in recurring]
    show.table(["name", "kind", "when", "next"], [*rows, *([job_id, "", "once", _time(at)] for job_id, at in later)])


def remove(schedule_id: str, json: AsJson = False, dir: Folder = None) -> None:
    """Have a job recur no more; what it has submitted goes on. A job that waits for its time is cancelled with `symposia cancel`."""
    with Client(dir) as client:
        if not Schedules(client.ledger).remove(schedule_id):
            raise UnknownJob(f"no schedule {schedule_id!r}.", field="schedule_id", value=schedule_id, remedy="List them: symposia schedule list")
    show.facts({"removed": schedule_id}) if json else print(f"{schedule_id} recurs no more")


def _time(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
