"""``symposia keys``: who may use the HTTP API."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from symposia.cli import show
from symposia.cli.options import AsJson, Folder
from symposia.client import Client
from symposia_shared.errors import BadInput
from symposia_shared.ledger.tenants import OWNER, Keys


def register(app: typer.Typer) -> None:
    """Add these commands."""
    keys = typer.Typer(no_args_is_help=True, help="Keys of the HTTP API.")
    keys.command("create")(create)
    keys.command("list")(list_keys)
    keys.command("revoke")(revoke)
    app.add_typer(keys, name="keys", rich_help_panel="Stack")


def create(
    name: Annotated[str, typer.Argument(help="A word to tell it by.")] = "",
    tenant: Annotated[str, typer.Option(help="Whose it is: tenants do not see one another's jobs and teams, and share the queues fairly.")] = OWNER,
    json: AsJson = False, dir: Folder = None,
) -> None:
    """Make a key and print it. Only its digest is kept: it cannot be shown again."""
    with Client(dir) as client:
        key, facts = Keys(client.ledger).create(tenant, name=name)
    show.facts({"key": key, **facts.model_dump()}) if json else print(f"{key}\n(id {facts.id}, tenant {facts.tenant}; it is not shown again)")


def list_keys(json: AsJson = False, dir: Folder = None) -> None:
    """The keys by id; never the keys themselves."""
    with Client(dir) as client:
        keys = Keys(client.ledger).all()
    if json:
        show.facts({"keys": [k.model_dump() for k in keys]})
        return
    show.table(["id", "tenant", "name", "made"],
               [[k.id, k.tenant, k.name, time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(k.created_at))] for k in keys])


def revoke(key_id: Annotated[str, typer.Argument(help="The id, as `symposia keys list` shows it.")], json: AsJson = False, dir: Folder = None) -> None:
    """Take a key back; it is refused from the next request on."""
    with Client(dir) as client:
        if not Keys(client.ledger).revoke(key_id):
            raise BadInput(f"there is no key of the id {key_id!r}.", field="key_id", value=key_id, remedy="List them: symposia keys list")
    show.facts({"revoked": key_id}) if json else print(f"{key_id} is revoked")
