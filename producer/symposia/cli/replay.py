"""``symposia replay``: a finished job's verdict derived again from its transcript, without Redis, S3 or a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from symposia.cli import show
from symposia.cli.options import AsJson, Folder
from symposia.client import Client
from symposia_shared.errors import BadInput, PlayDiverged
from symposia_shared.patterns import parse_job
from symposia_shared.play import Round, advance, played
from symposia_shared.results import Result
from symposia_shared.verdicts import Verdict


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("replay", rich_help_panel="Answers")(command)


def command(
    job: Annotated[str, typer.Argument(metavar="JOB|FILE", help="A job's id, or a file with its result as JSON.")],
    consensus: Annotated[str | None, typer.Option(help="What would another algorithm have said?")] = None,
    json: AsJson = False, dir: Folder = None,
) -> None:
    """Derive a finished job's verdict again from its recorded replies."""
    found = read(job, dir)
    verdict = replayed(found, consensus=consensus)
    facts = {"job_id": found.job_id, "same": verdict == found.verdict, "verdict": verdict.model_dump(mode="json"),
             "recorded": found.verdict.model_dump(mode="json") if found.verdict else None}
    if json:
        show.facts(facts)
        return
    show.result(found.model_copy(update={"verdict": verdict, "rounds": ()}))
    asked = f" by {consensus}" if consensus else ""
    print(f"the verdict{asked} is {'the recorded one' if facts['same'] else f'another than the recorded {found.answer!r}'}")


def read(job: str, dir: Path | None) -> Result:
    """The result of a job, from a file if there is one of that name. Raises BadInput, UnknownJob or StoreUnavailable."""
    path = Path(job)
    if path.is_file():
        try:
            return Result.from_json(path.read_bytes())
        except OSError as error:
            raise BadInput(f"{path} cannot be read: {error}.", field="job", value=job, remedy="Check the path.") from None
    with Client(dir) as client:
        return client.handle(job).wait(timeout=0)


def replayed(found: Result, *, consensus: str | None = None) -> Verdict:
    """The verdict of a result's play over its recorded replies, with another consensus algorithm if asked.

    Raises what ended the job without one (NoQuorum), PlayDiverged where the rounds are not those this code plays, and BadInput
    where the job has no consensus, its transcript is not whole, or the other algorithm would have asked further turns.
    """
    raw = dict(found.job)
    if consensus is not None:
        if "consensus" not in parse_job(raw).__class__.model_fields:
            raise BadInput(f"a {raw.get('kind', 'inference')} has no consensus to replace.", field="consensus", value=consensus, remedy="Leave it out.")
        raw["consensus"] = consensus
    job = parse_job(raw)
    step = advance(job, played(found.rounds))
    if isinstance(step, Round):
        version = int(getattr(type(job), "version", 1))
        if version != found.version:
            raise PlayDiverged(f"{found.job_id} was played by version {found.version} of this {job.name}, which asked for fewer turns than version "
                               f"{version} does. Replay it with the release that ran it.")
        if consensus is not None:
            raise BadInput(f"{consensus} would ask {', '.join(dict.fromkeys(t.member for t in step.turns))}, whose replies {found.job_id} has not recorded.",
                           field="consensus", value=consensus, remedy="Ask for an algorithm that needs no further turns, or submit the job again.")
        raise BadInput(f"the transcript of {found.job_id} ends after round {len(found.rounds) - 1}, and the play goes on; the job was {found.state}.",
                       field="rounds", value=len(found.rounds), remedy="Replay a job that is done.")
    return step

