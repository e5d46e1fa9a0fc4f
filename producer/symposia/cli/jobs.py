"""``ask``, ``run``, ``status``, ``result``, ``jobs`` and ``stats``."""

from __future__ import annotations

import json as jsons
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from symposia.asking import question
from symposia.cli import show
from symposia.cli.options import AsJson, Folder, IdempotencyKey, MaxTokens, Model, NoWait, Reuse, Seed, Temperature, Timeout
from symposia.client import Client
from symposia_shared.errors import BadInput, JobCancelled, JobFailed
from symposia_shared.jobs import Job
from symposia_shared.patterns import parse_job
from symposia_shared.prompts import Sampling
from symposia_shared.results import Result
from symposia_shared.schedules import seconds_of

EXIT = {"done": 0, "failed": JobFailed.exit_code, "cancelled": JobCancelled.exit_code}


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command, panel in ((ask, "Jobs"), (run, "Jobs"), (status, "Jobs"), (result, "Jobs"), (stats, "Stack")):
        app.command(rich_help_panel=panel)(command)
    app.command("jobs", rich_help_panel="Jobs")(list_jobs)


def sampling_of(base: Sampling, temperature: float | None, max_tokens: int | None, seed: int | None) -> Sampling:
    """``base`` with what was given on the command line."""
    given = {"temperature": temperature, "max_tokens": max_tokens, "seed": seed}
    return Sampling.parse({**base.model_dump(), **{k: v for k, v in given.items() if v is not None}})


def finish(client: Client, job: Job, *, json: bool, no_wait: bool, timeout: float | None, at: datetime | None = None, delay_s: float = 0.0,
           once: str | None = None) -> None:
    """Submit a job and show what became of it; exits with its code. ``once``: its idempotency key."""
    handle = client.submit(job, at=at, delay_s=delay_s, idempotency_key=once)
    if no_wait:
        show.facts({"job_id": handle.job_id}) if json else print(handle.job_id)
        return
    tell(show.followed(handle, timeout), json=json)


def tell(found: Result, *, json: bool) -> None:
    """Show a result and exit with its code."""
    if json:
        show.facts(found.model_dump(mode="json"))
    else:
        show.result(found)
    raise typer.Exit(EXIT[found.state])


def prompt_text(given: str) -> str:
    """The prompt, or standard input for ``-``."""
    return sys.stdin.read() if given == "-" else given


def ask(
    prompt: Annotated[str, typer.Argument(help="What is asked; - reads standard input.")],
    model: Model,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    choice: Annotated[list[str] | None, typer.Option(help="The answer is one of these; give it again for each. Their probabilities are shown.")] = None,
    json_schema: Annotated[Path | None, typer.Option(help="The answer is JSON that the schema in this file describes.")] = None,
    regex: Annotated[str | None, typer.Option(help="The whole answer matches this expression.")] = None,
    logprobs: Annotated[int | None, typer.Option(min=0, max=20, help="Show each token's log-probability, and so many of the likeliest.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="The prompt as it stands, without the checkpoint's chat template.")] = False,
    suffix: Annotated[str | None, typer.Option(help="Fill the hole between the prompt and this text.")] = None,
    temperature: Temperature = None, max_tokens: MaxTokens = None, seed: Seed = None, reuse: Reuse = False,
    idempotency_key: IdempotencyKey = None, timeout: Timeout = None, no_wait: NoWait = False, json: AsJson = False, dir: Folder = None,
) -> None:
    """Ask one model once."""
    base = Sampling.parse({"form": form_of(choice, json_schema, regex), "logprobs": logprobs})
    job = question(prompt_text(prompt), model=model, system=system, raw=raw, suffix=suffix,
                   sampling=sampling_of(base, temperature, max_tokens, seed)).model_copy(update={"reuse": reuse})
    with Client(dir) as client:
        finish(client, job, json=json, no_wait=no_wait, timeout=timeout, once=idempotency_key)


def form_of(choice: list[str] | None, json_schema: Path | None, regex: str | None) -> dict[str, Any] | None:
    """The form asked for by at most one of three options. Raises BadInput for more, or a schema that cannot be read."""
    given: list[dict[str, Any]] = [{"kind": "choice", "options": choice}] if choice else []
    given += [{"kind": "json_schema", "definition": _schema(json_schema)}] if json_schema else []
    given += [{"kind": "regex", "pattern": regex}] if regex else []
    if len(given) > 1:
        raise BadInput(f"the answer cannot have {len(given)} forms at once.", field="form", remedy="Give one of --choice, --json-schema and --regex.")
    return given[0] if given else None


def _schema(path: Path) -> dict[str, Any]:
    try:
        raw: Any = jsons.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} cannot be read as JSON: {error}.", field="json_schema", value=str(path), remedy="Give a file with a JSON schema.") from None
    if not isinstance(raw, dict):
        raise BadInput(f"{path} holds a {type(raw).__name__}, not a JSON schema.", field="json_schema", value=str(path), remedy="Write one object.")
    return raw


def read_job(path: Path) -> Job:
    """The job in a JSON or YAML file. Raises BadInput."""
    import yaml

    try:
        raw: Any = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise BadInput(f"there is no file {path}.", field="file", value=str(path), remedy="Check the path.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInput(f"{path} cannot be read as JSON or YAML: {error}.", field="file", value=str(path), remedy="Correct it.") from None
    if not isinstance(raw, dict):
        raise BadInput(f"{path} holds a {type(raw).__name__}, not one job.", field="file", value=str(path), remedy="Write one mapping: kind: ensemble, ...")
    return parse_job(raw)


def run(
    file: Annotated[Path, typer.Argument(help="A job as JSON or YAML.")],
    at: Annotated[str | None, typer.Option(help="Begin at this time: 2026-12-01T04:00Z, or with another offset.")] = None,
    later: Annotated[str | None, typer.Option("--in", help="Begin after so long: 90, 10m, 2h, 1d.")] = None,
    idempotency_key: IdempotencyKey = None, timeout: Timeout = None, no_wait: NoWait = False, json: AsJson = False, dir: Folder = None,
) -> None:
    """Submit a job from a file, now or for later."""
    job = read_job(file)
    when, delay_s = time_of(at) if at is not None else None, seconds_of(later) if later is not None else 0
    with Client(dir) as client:
        finish(client, job, json=json, no_wait=no_wait, timeout=timeout, at=when, delay_s=delay_s, once=idempotency_key)


def time_of(text: str) -> datetime:
    """An ISO time with its offset. Raises BadInput."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise BadInput(f"{text!r} is no time with an offset.", field="at", value=text, remedy="Write it as 2026-12-01T04:00Z or 2026-12-01T04:00+01:00.")
    return found


def status(job_id: str, json: AsJson = False, dir: Folder = None) -> None:
    """How a job stands, and what it waits for."""
    with Client(dir) as client:
        now = client.handle(job_id).status()
    if json:
        show.facts(now.model_dump(mode="json"))
        return
    print(f"{now.job_id}  {now.state}" + (f"  round {now.round}" if now.round is not None else ""))
    for line in now.waiting_for:
        print(f"  waits for {line}")


def result(job_id: str, timeout: Timeout = None, json: AsJson = False, dir: Folder = None) -> None:
    """A job's transcript, verdict and bill; waits for its end."""
    with Client(dir) as client:
        tell(show.followed(client.handle(job_id), timeout), json=json)


def list_jobs(
    most: Annotated[int, typer.Option("--most", "-n", min=1, max=10_000, help="At most so many, newest first.")] = 20,
    json: AsJson = False, dir: Folder = None,
) -> None:
    """Jobs in flight, then those that ended last."""
    with Client(dir) as client:
        open_jobs: list[dict[str, Any]] = [{"job_id": job_id, "state": "in flight", "kind": None, "at": at} for job_id, at in client.ledger.jobs(most)]
        ended: list[dict[str, Any]] = [{"job_id": job_id, "state": state, "kind": kind, "at": at} for job_id, at, state, kind in client.ledger.ended(most)]
    rows: list[dict[str, Any]] = [*open_jobs, *ended][:most]
    if json:
        show.facts(rows)
        return
    show.table(["job", "state", "kind", "since"],
               [[r["job_id"], r["state"], r["kind"] or "", time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(r["at"]))] for r in rows])


def stats(json: AsJson = False, dir: Folder = None) -> None:
    """What was counted: calls started, recorded, repeated; forward passes; loads; conflicts."""
    with Client(dir) as client:
        counted = client.stats()
    if json:
        show.facts(counted)
    else:
        show.table(["counter", ""], [[name, f"{value:,}"] for name, value in counted.items()])
