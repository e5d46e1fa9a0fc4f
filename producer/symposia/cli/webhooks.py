"""``symposia webhooks``: who is told of jobs' ends, what was sent, and sending it again."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from symposia.cli import show
from symposia.cli.options import AsJson, Folder
from symposia.client import Client
from symposia_shared.errors import BadInput
from symposia_shared.ledger.outbox import Outbox, Standing
from symposia_shared.ledger.tenants import OWNER, checked_tenant

Tenant = Annotated[str, typer.Option(help="Whose it is.")]
State = Annotated[str | None, typer.Option(help="waiting, delivered or failed.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    webhooks = typer.Typer(no_args_is_help=True, help="Who is told of jobs' ends, what was sent, and sending it again.")
    for name, command in (("add", add), ("endpoints", endpoints), ("rm", remove), ("secret", secret), ("list", list_notices), ("show", show_notice),
                          ("replay", replay)):
        webhooks.command(name)(command)
    app.add_typer(webhooks, name="webhooks", rich_help_panel="Jobs")


def add(
    url: Annotated[str, typer.Argument(help="It is sent a POST for each job that ends.")],
    event: Annotated[list[str] | None, typer.Option(help="Only of these ends, such as job.failed; give it again for each.")] = None,
    tenant: Tenant = OWNER, json: AsJson = False, dir: Folder = None,
) -> None:
    """Have a URL told of each of a tenant's jobs; prints the secret it is signed with."""
    with Client(dir) as client:
        made = client.outbox.register(checked_tenant(tenant), url, events=event or (), allowed=client.settings.webhooks.networks)
        key = client.outbox.secrets(tenant)[0]
    show.facts({**made.model_dump(mode="json"), "secret": key}) if json else print(f"{made.id}\n{key}")


def endpoints(tenant: Tenant = OWNER, json: AsJson = False, dir: Folder = None) -> None:
    """A tenant's endpoints."""
    with Client(dir) as client:
        found = client.outbox.endpoints(checked_tenant(tenant))
    if json:
        show.facts([e.model_dump(mode="json") for e in found])
    else:
        show.table(["id", "url", "events", ""], [[e.id, e.url, " ".join(e.events) or "all", e.disabled or ""] for e in found])


def remove(endpoint_id: str, tenant: Tenant = OWNER, json: AsJson = False, dir: Folder = None) -> None:
    """Tell an endpoint nothing more."""
    with Client(dir) as client:
        if not client.outbox.unregister(checked_tenant(tenant), endpoint_id):
            raise BadInput(f"there is no webhook {endpoint_id!r}.", field="endpoint_id", value=endpoint_id, remedy="List them: symposia webhooks endpoints")
    show.facts({"removed": endpoint_id}) if json else print(f"{endpoint_id} is told nothing more")


def secret(
    rotate: Annotated[bool, typer.Option("--rotate", help="Make a new one; for a day notices are signed with the old one, too.")] = False,
    tenant: Tenant = OWNER, json: AsJson = False, dir: Folder = None,
) -> None:
    """The secret by which a tenant verifies what it is sent (Standard Webhooks)."""
    with Client(dir) as client:
        key = client.outbox.rotate(checked_tenant(tenant)) if rotate else client.outbox.secrets(checked_tenant(tenant))[0]
    show.facts({"tenant": tenant, "secret": key}) if json else print(key)


def list_notices(
    state: State = None, job: Annotated[str | None, typer.Option(help="Of this job.")] = None,
    most: Annotated[int, typer.Option("--most", "-n", min=1, max=10_000)] = 20, json: AsJson = False, dir: Folder = None,
) -> None:
    """What was sent and what waits, newest first."""
    with Client(dir) as client:
        found = _all(client.outbox, state, job, most)
    if json:
        show.facts([_facts(s) for s in found])
        return
    show.table(["id", "type", "state", "tries", "to", "last", "next"],
               [[s.notice.id, s.notice.type, s.state, str(s.tries), s.notice.target[:60], show.plain(s.last)[:60], _time(s.due_at)] for s in found])


def show_notice(notice_id: str, json: AsJson = False, dir: Folder = None) -> None:
    """One notice: what it says, to whom, and what became of each try's last."""
    with Client(dir) as client:
        found = _found(client.outbox, notice_id)
    if json:
        show.facts(_facts(found))
        return
    print(f"{found.notice.id}  {found.notice.type}  {found.state}  tries {found.tries}  {_time(found.created_at)}")
    print(f"  to {found.notice.target}")
    print(f"  last: {show.plain(found.last) or 'not tried yet'}" + (f"; next {_time(found.due_at)}" if found.due_at else ""))
    if found.notice.kind == "webhook":
        print(f"  {show.plain(found.notice.body)}")


def replay(
    ids: Annotated[list[str] | None, typer.Argument(help="Notices' ids.")] = None,
    failed: Annotated[bool, typer.Option("--failed", help="All that were given up.")] = False, json: AsJson = False, dir: Folder = None,
) -> None:
    """Send notices again, under their own ids, with all their tries anew."""
    if bool(ids) == failed:
        raise BadInput("name notices, or give --failed, and one of these.", field="ids", remedy="See them with `symposia webhooks list`.")
    with Client(dir) as client:
        chosen = [s.notice.id for s in _all(client.outbox, "failed", None, 10_000)] if failed else [_found(client.outbox, i).notice.id for i in ids or ()]
        for notice_id in chosen:
            client.outbox.replay(notice_id)
    show.facts({"replayed": chosen}) if json else print(f"{len(chosen)} sent again")


def _all(outbox: Outbox, state: str | None, job: str | None, most: int) -> list[Standing]:
    if state is not None and state not in ("waiting", "delivered", "failed"):
        raise BadInput(f"{state!r} is no state of a notice.", field="state", value=state, remedy="Use waiting, delivered or failed.")
    return outbox.all(state=state, job_id=job, most=most)  # type: ignore[arg-type]  # one of them, as was just looked at


def _found(outbox: Outbox, notice_id: str) -> Standing:
    found = outbox.get(notice_id)
    if found is None:
        raise BadInput(f"there is no notice {notice_id!r}.", field="id", value=notice_id, remedy="List them: symposia webhooks list")
    return found


def _facts(standing: Standing) -> dict[str, object]:
    said = standing.notice.model_dump(mode="json", exclude={"body"} if standing.notice.kind == "link" else None)
    return {**said, **standing.model_dump(mode="json", exclude={"notice"})}


def _time(at: float | None) -> str:
    return "" if at is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
