"""``symposia batch``: files of requests, and tables with a prompt, answered in their own time."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import typer

from symposia.batches import TenantBatches
from symposia.cli import show
from symposia.cli.options import AsJson, Folder, MaxTokens, Seed, Temperature
from symposia.client import Client
from symposia.tables.asking import Prompting, put_table
from symposia.tables.reading import local_copies
from symposia.tables.template import Template
from symposia.tables.writing import write_table
from symposia_shared.batches.values import ENDPOINTS, Batch, BatchFile
from symposia_shared.errors import BadInput, JobCancelled, NotYet, SymposiaError, Unavailable
from symposia_shared.ledger.tenants import OWNER

#: seconds between two looks at a batch, and between two plain lines on it
LOOK_S, LINE_EVERY_S = 0.5, 5.0
#: seconds for which a look may fail while services are restarted
PATIENCE_S = 120.0
_BLOCK = 1024 * 1024

Id = Annotated[str, typer.Argument(help="A batch's id.")]
Tenant = Annotated[str, typer.Option(help="Whose batches.")]
Out = Annotated[Path | None, typer.Option("--output", "-o", help="Where the answers go: .jsonl; of a table also .csv and .parquet, with its columns.")]
Watching = Annotated[bool, typer.Option("--watch", "-w", help="Follow the batch to its end.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    batch = typer.Typer(no_args_is_help=True, help="Files of requests, and tables with a prompt, answered in their own time.")
    batch.command()(submit)
    batch.command()(watch)
    batch.command()(cancel)
    batch.command()(results)
    batch.command()(resume)
    batch.command("list")(list_batches)
    app.add_typer(batch, name="batch", rich_help_panel="Jobs")


def submit(
    input: Annotated[list[str], typer.Argument(help="OpenAI batch lines; with --template tables. Paths, patterns, s3://BUCKET/PATTERN.")],
    template: Annotated[str | None, typer.Option(help="The prompt for each row of a table, columns in braces; @FILE reads it from a file.")] = None,
    system: Annotated[str | None, typer.Option(help="A system message for each row, likewise.")] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="Who answers a table's rows: a checkpoint, a team, PATTERN:MEMBER,...")] = None,
    endpoint: Annotated[str, typer.Option(help="The url of the lines; 'any': those that are served, mixed.")] = ENDPOINTS[0],
    window: Annotated[str, typer.Option(help="Within what time: 10m, 2h, 7d.")] = "24h",
    auto: Annotated[str | None, typer.Option(help="Who answers lines whose model is 'auto'.")] = None,
    metadata: Annotated[list[str] | None, typer.Option(help="KEY=VALUE, kept with the batch.")] = None,
    output: Out = None, follow: Watching = False,
    temperature: Temperature = None, max_tokens: MaxTokens = None, seed: Seed = None,
    tenant: Tenant = OWNER, json: AsJson = False, dir: Folder = None,
) -> None:
    """Submit a batch. With --output or --watch it is followed to its end; it goes on without this command."""
    with Client(dir) as client:
        batches = TenantBatches(client, tenant)
        sampling = tuple((k, v) for k, v in (("max_tokens", max_tokens), ("temperature", temperature), ("seed", seed)) if v is not None)
        file = _put(batches, input, template, system, model, sampling)
        pairs = dict(_pair(p) for p in metadata or ())
        made = batches.create(file.id, endpoint=ENDPOINTS[0] if endpoint == "any" else endpoint, completion_window=window, auto_model=auto,
                              metadata=pairs or None, mixed=endpoint == "any")
        if output is None and not follow:
            show.facts(made.view()) if json else print(made.id)
            return
        if not json:
            print(made.id, file=sys.stderr)
        _through(batches, made.id, output, json=json)


def _put(batches: TenantBatches, sources: list[str], template: str | None, system: str | None, model: str | None,
         sampling: tuple[tuple[str, Any], ...]) -> BatchFile:
    with local_copies(sources, batches.client.settings.s3) as paths:
        if template is None:
            for name, given in (("--model", model), ("--system", system), ("--max-tokens and others", sampling or None)):
                if given is not None:
                    raise BadInput(f"{name} is for tables; batch lines name theirs themselves.", field="template",
                                   remedy="Add --template, or see --auto for lines whose model is 'auto'.")
            return batches.put_file(chain.from_iterable(_bytes(p) for p in paths), paths[0].name)
        if model is None:
            raise BadInput("a table needs --model.", field="model", remedy="Name a checkpoint, a team or PATTERN:MEMBER,MEMBER.")
        asked = Prompting(Template.of(_text(template)), model, None if system is None else Template.of(_text(system)), sampling)
        return put_table(batches, paths, asked)


def _bytes(path: Path) -> Iterator[bytes]:
    last = b"\n"
    try:
        with path.open("rb") as file:
            while piece := file.read(_BLOCK):
                last = piece
                yield piece
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}.", field="input", value=str(path), remedy="Check the path.") from None
    if not last.endswith(b"\n"):
        yield b"\n"


def _text(given: str) -> str:
    if not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{given[1:]} cannot be read: {error}.", field="template", value=given, remedy="Check the path.") from None


def _pair(text: str) -> tuple[str, str]:
    key, sign, value = text.partition("=")
    if not sign or not key:
        raise BadInput(f"{text!r} is no pair.", field="metadata", value=text, remedy="Write KEY=VALUE.")
    return key, value


def watch(batch_id: Id, tenant: Tenant = OWNER, json: AsJson = False, dir: Folder = None,
          timeout: Annotated[float | None, typer.Option(help="Seconds to watch; the batch goes on after them.")] = None) -> None:
    """Follow a batch: how far it is, how fast, how long yet, and what it has cost."""
    with Client(dir) as client:
        _through(TenantBatches(client, tenant), batch_id, None, json=json, timeout=timeout)


def cancel(batch_id: Id, tenant: Tenant = OWNER, json: AsJson = False, dir: Folder = None) -> None:
    """End a batch at the next token of each line that runs. What has ended is kept."""
    with Client(dir) as client:
        found = TenantBatches(client, tenant).cancel(batch_id)
    show.facts(found.view()) if json else print(_line(found))


def results(
    batch_id: Id, output: Out = None,
    errors: Annotated[bool, typer.Option("--errors", help="Only the lines that failed.")] = False,
    tenant: Tenant = OWNER, json: AsJson = False, dir: Folder = None,
) -> None:
    """Write a batch's answers, then its errors; of one that runs what is there so far."""
    with Client(dir) as client:
        batches = TenantBatches(client, tenant)
        batch = batches.get(batch_id)
        lines = _written(batches, batch, output, errors=errors)
    if json:
        show.facts({**batch.view(), "output": str(output) if output else None, "lines": lines})
    elif output:
        print(f"{lines:,} lines: {output}")


def resume(
    batch_id: Id,
    window: Annotated[str | None, typer.Option(help="Within what time, from now on; default: as at first.")] = None,
    output: Out = None, follow: Watching = False, tenant: Tenant = OWNER, json: AsJson = False, dir: Folder = None,
) -> None:
    """Go on with what a cancelled or expired batch has left. After a crash nothing needs to be resumed: a batch goes on by itself."""
    with Client(dir) as client:
        batches = TenantBatches(client, tenant)
        found = batches.resume(batch_id, completion_window=window)
        if output is not None or follow:
            _through(batches, batch_id, output, json=json)
            return
    show.facts(found.view()) if json else print(_line(found))


def list_batches(most: Annotated[int, typer.Option("--most", "-n", min=1, max=10_000, help="At most so many, newest first.")] = 20,
                 tenant: Tenant = OWNER, json: AsJson = False, dir: Folder = None) -> None:
    """Batches, newest first."""
    with Client(dir) as client:
        found, _ = TenantBatches(client, tenant).all(most=most)
    if json:
        show.facts([b.view() for b in found])
        return
    show.table(["batch", "status", "lines", "answered", "failed", "since"],
               [[b.id, b.status, f"{b.total:,}", f"{b.counts.completed:,}", f"{b.counts.failed:,}",
                 time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(b.order.created_at))] for b in found])


def _written(batches: TenantBatches, batch: Batch, output: Path | None, *, errors: bool) -> int:
    if output is not None and not errors and batches.file(batch.order.input_file_id).columns is not None and output.suffix:
        return write_table(batches, batch, output)
    count = 0
    partial = None if output is None else output.with_name(output.name + ".part")
    target = sys.stdout.buffer if partial is None else partial.open("wb")
    try:
        for which in ("err",) if errors else ("out", "err"):
            for line in batches.lines(batch, which):  # type: ignore[arg-type]
                target.write(line)
                count += 1
    finally:
        target.flush()
        if partial is not None:
            target.close()
    if partial is not None and output is not None:
        partial.replace(output)
    return count


def _through(batches: TenantBatches, batch_id: str, output: Path | None, *, json: bool, timeout: float | None = None) -> None:
    """Follow a batch to its end, write its answers, exit with its code."""
    with _shown(quiet=json) as tell:
        batch = _followed(batches, batch_id, tell, timeout)
    lines = None if output is None else _written(batches, batch, output, errors=False)
    if json:
        show.facts({**batch.view(), **({} if output is None else {"output": str(output), "lines": lines})})
    else:
        print(_line(batch) + ("" if output is None else f"  {output}"))
    raise typer.Exit(_code(batch))


def _followed(batches: TenantBatches, batch_id: str, tell: Callable[[Batch], None], timeout: float | None) -> Batch:
    began = seen = time.monotonic()
    while True:
        try:
            batch = batches.get(batch_id)
            seen = time.monotonic()
            tell(batch)
            if batch.ended:
                return batch
        except Unavailable:
            if time.monotonic() - seen > PATIENCE_S:
                raise
        if timeout is not None and time.monotonic() - began > timeout:
            raise NotYet(f"{batch_id} has not ended within {timeout:g} s; it goes on. `symposia batch watch {batch_id}`")
        time.sleep(LOOK_S)


def _code(batch: Batch) -> int:
    """0 also where lines failed; 4 where the batch did, expired, or no line of it could be answered; 5 cancelled."""
    if batch.status == "cancelled":
        return JobCancelled.exit_code
    return 0 if batch.status == "completed" and (batch.counts.completed or not batch.total) else SymposiaError.exit_code


def _line(batch: Batch) -> str:
    """How a batch stands, on one line."""
    counts = batch.counts
    speed = f", {batch.rate:,.1f} lines/s" if batch.rate else ""
    eta = f", {batch.eta_s:,.0f} s left" if batch.eta_s is not None else ""
    why = "".join(f"; {f['message']}" for f in batch.faults)
    return (f"{batch.id}  {batch.status}  {counts.completed:,} of {batch.total:,} lines answered, {counts.failed:,} failed"
            + (f", {counts.unfinished:,} unfinished" if counts.unfinished else "") + f"{speed}{eta}; {_cost(batch)}{why}")


def _cost(batch: Batch) -> str:
    counts = batch.counts
    return f"{counts.calls:,} calls, {counts.prompt_tokens:,} + {counts.completion_tokens:,} tokens, {counts.turn_seconds:,.0f} s of turns"


@contextmanager
def _shown(*, quiet: bool) -> Iterator[Callable[[Batch], None]]:
    """What is told of each look: a bar in a terminal, a plain line now and then elsewhere; both on standard error."""
    if quiet:
        yield lambda _: None
    elif show.err.is_terminal:
        with _bar() as tell:
            yield tell
    else:
        yield _Lines()


@contextmanager
def _bar() -> Iterator[Callable[[Batch], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(), TextColumn("{task.fields[more]}"), TimeElapsedColumn())
    with Progress(*columns, console=show.err) as bars:
        task = bars.add_task("validating", total=None, more="")

        def tell(batch: Batch) -> None:
            speed = f"{batch.rate:,.1f} lines/s" if batch.rate else ""
            eta = f", {batch.eta_s:,.0f} s left" if batch.eta_s is not None else ""
            bars.update(task, description=batch.status, total=batch.total, completed=batch.total - batch.left,
                        more=f"{speed}{eta}  {batch.counts.failed:,} failed  {_cost(batch)}")

        yield tell


class _Lines:
    def __init__(self) -> None:
        self._told_at = time.monotonic()

    def __call__(self, batch: Batch) -> None:
        if time.monotonic() - self._told_at >= LINE_EVERY_S:
            self._told_at = time.monotonic()
            print(_line(batch), file=sys.stderr, flush=True)
