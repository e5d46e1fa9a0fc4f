"""``symposia reuse``: the replies that are kept to be given again."""

from __future__ import annotations

from typing import Annotated

import typer

from symposia.cli import show
from symposia.cli.options import AsJson, Folder
from symposia.client import Client
from symposia_shared.ledger.tenants import checked_tenant
from symposia_shared.reuse import Replies


def register(app: typer.Typer) -> None:
    """Add these commands."""
    reuse = typer.Typer(no_args_is_help=True, help="Replies kept to be given again (jobs with --reuse).")
    reuse.command("prune")(prune)
    reuse.command("erase")(erase)
    app.add_typer(reuse, name="reuse", rich_help_panel="Stack")


def prune(json: AsJson = False, dir: Folder = None) -> None:
    """Delete replies that have outlived SYMPOSIA_LIMITS__REUSE_S, and what cannot be read. They are given to nobody in any case."""
    with Client(dir) as client:
        gone = _replies(client).prune(unreadable=True)
    show.facts({"deleted": len(gone)}) if json else print(f"{len(gone):,} deleted")


def erase(tenant: Annotated[str, typer.Argument(help="Whose.")], json: AsJson = False, dir: Folder = None) -> None:
    """Delete all kept replies of a tenant."""
    with Client(dir) as client:
        gone = _replies(client).erase(checked_tenant(tenant))
    show.facts({"deleted": len(gone), "keys": gone}) if json else print(f"{len(gone):,} deleted")


def _replies(client: Client) -> Replies:
    return Replies(client.archive.store, life_s=client.settings.limits.reuse_s)
