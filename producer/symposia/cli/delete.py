"""``symposia delete``: every copy of a job erased."""

from __future__ import annotations

from typing import Annotated

import typer

from symposia.cli import show
from symposia.cli.options import AsJson, Folder
from symposia.client import Client


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command("delete", rich_help_panel="Jobs")(delete)


def delete(
    job_ids: Annotated[list[str], typer.Argument(help="Jobs' ids.")],
    json: AsJson = False, dir: Folder = None,
) -> None:
    """Erase every copy of jobs: papers, entries, notices, cached replies. One in flight is cancelled first. Says what was erased."""
    with Client(dir) as client:
        erased = [client.delete(job_id) for job_id in job_ids]
    if json:
        show.facts([e.model_dump(mode="json") for e in erased])
        return
    for one in erased:
        print(f"{one.job_id}: " + ", ".join(f"{n} {name}" for name, n in one.copies.items()))
