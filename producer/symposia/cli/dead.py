"""``symposia dead``: jobs that ended for a cause another try may mend, and malformed messages."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from symposia.again import try_again
from symposia.cli import show
from symposia.cli.options import AsJson, Folder
from symposia.client import Client
from symposia_shared.errors import BadInput, SymposiaError, UnknownJob
from symposia_shared.ledger.dead import Dead, DeadLetters
from symposia_shared.turns import Abstention

Ids = Annotated[list[str] | None, typer.Argument(help="Dead letters' ids.")]
Reason = Annotated[str | None, typer.Option(help="All of one reason, as `dead list` names it.")]
Everything = Annotated[bool, typer.Option("--all", help="All of them.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    dead = typer.Typer(no_args_is_help=True, help="Jobs that ended for a cause another try may mend, and malformed messages.")
    dead.command("list")(list_dead)
    dead.command("show")(show_dead)
    dead.command("retry")(retry)
    dead.command("drop")(drop)
    app.add_typer(dead, name="dead", rich_help_panel="Jobs")


def list_dead(reason: Reason = None, json: AsJson = False, dir: Folder = None) -> None:
    """The reasons with their counts; with --reason its letters."""
    with Client(dir) as client:
        letters = DeadLetters(client.ledger)
        if reason is not None:
            _letters(letters.all(reason=reason), json=json)
            return
        groups = letters.groups()
    if json:
        show.facts([{"reason": g.reason, "count": g.count, "oldest": g.oldest, "newest": g.newest, "ids": g.ids} for g in groups])
    else:
        show.table(["reason", "count", "oldest", "newest", "the newest"],
                   [[g.reason, str(g.count), _time(g.oldest), _time(g.newest), " ".join(g.ids)] for g in groups])


def show_dead(letter_id: str, json: AsJson = False, dir: Folder = None) -> None:
    """One letter: why it is dead, and which turns failed."""
    with Client(dir) as client:
        dead = _found(DeadLetters(client.ledger), letter_id)
        result = client.archive.result(letter_id) if dead.is_job else None
    failed = [(r.round, t.turn.member, t.reply) for r in (result.rounds if result else ()) for t in r.turns if isinstance(t.reply, Abstention)]
    if json:
        show.facts({"id": dead.id, "at": dead.at, **dead.letter.model_dump(mode="json"),
                    "failed": [{"round": n, "member": m, "cause": a.cause, "message": a.message} for n, m, a in failed]})
        return
    print(f"{dead.id}  {dead.letter.kind}  {dead.letter.state}  {dead.letter.reason}  {_time(dead.at)}")
    print(f"  {show.plain(dead.letter.message)}")
    for number, member, reply in failed:
        print(f"  round {number}  {member}: {reply.cause}  {show.plain(reply.message)}")


def retry(
    ids: Ids = None, reason: Reason = None, everything: Everything = False,
    deadline: Annotated[float | None, typer.Option(help="Seconds each may take; left out, as long as before.")] = None,
    json: AsJson = False, dir: Folder = None,
) -> None:
    """Try jobs again under new ids; recorded replies are taken over, only what failed is asked again."""
    with Client(dir) as client:
        tried: dict[str, str] = {}
        refused: dict[str, str] = {}
        for dead in _chosen(DeadLetters(client.ledger), ids, reason, everything=everything):
            if not dead.is_job:
                refused[dead.id] = "a malformed message is not tried again: the ledger holds the work; drop it"
                continue
            try:
                tried[dead.id] = try_again(client, dead.id, deadline_s=deadline).job_id
            except SymposiaError as error:
                refused[dead.id] = str(error)
    if json:
        show.facts({"tried": tried, "refused": refused})
    else:
        for old, new in tried.items():
            print(f"{old} → {new}")
        for old, why in refused.items():
            show.err.print(f"{old}: {why}", markup=False)
    if refused and not tried:
        raise typer.Exit(BadInput.exit_code)


def drop(ids: Ids = None, reason: Reason = None, everything: Everything = False, json: AsJson = False, dir: Folder = None) -> None:
    """Forget letters. The jobs' results stay in S3."""
    with Client(dir) as client:
        letters = DeadLetters(client.ledger)
        dropped = letters.drop([d.id for d in _chosen(letters, ids, reason, everything=everything)])
    show.facts({"dropped": dropped}) if json else print(f"dropped {dropped}")


def _chosen(letters: DeadLetters, ids: list[str] | None, reason: str | None, *, everything: bool) -> list[Dead]:
    if sum((bool(ids), reason is not None, everything)) != 1:
        raise BadInput("name dead letters, or give --reason or --all, and one of these.", field="ids", remedy="See them with `symposia dead list`.")
    if ids:
        return [_found(letters, i) for i in ids]
    return letters.all(reason=reason)


def _found(letters: DeadLetters, letter_id: str) -> Dead:
    dead = letters.get(letter_id)
    if dead is None:
        raise UnknownJob(f"no dead letter {letter_id!r}.", field="id", value=letter_id, remedy="List them: symposia dead list")
    return dead


def _letters(found: list[Dead], *, json: bool) -> None:
    if json:
        show.facts([{"id": d.id, "at": d.at, **d.letter.model_dump(mode="json")} for d in found])
    else:
        show.table(["id", "kind", "since", "message"], [[d.id, d.letter.kind, _time(d.at), show.plain(d.letter.message)] for d in found])


def _time(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
