"""``symposia tenants`` and ``symposia usage``: what tenants may ask for, and what they used."""

from __future__ import annotations

from typing import Annotated

import typer

from symposia.cli import show
from symposia.cli.options import AsJson, Folder
from symposia.client import Client
from symposia_shared.errors import BadInput
from symposia_shared.ledger.allowances import Allowances
from symposia_shared.ledger.gate import Limits
from symposia_shared.ledger.tenants import OWNER, Keys, checked_tenant
from symposia_shared.ledger.usage import tenants as seen
from symposia_shared.ledger.usage import usage

Day = Annotated[str | None, typer.Option(help="A day (UTC) as 2026-11-25; default: the last 30 days.")]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    tenants = typer.Typer(no_args_is_help=True, help="Limits of the HTTP API by tenant.")
    tenants.command("list")(list_tenants)
    tenants.command("limit")(limit)
    tenants.command("unlimit")(unlimit)
    app.add_typer(tenants, name="tenants", rich_help_panel="Stack")
    app.command("usage", rich_help_panel="Stack")(show_usage)


def list_tenants(json: AsJson = False, dir: Folder = None) -> None:
    """Who has keys, limits or use; `*` stands for all without limits of their own."""
    with Client(dir) as client:
        book = Allowances(client.ledger)
        limits = book.all()
        names = sorted({*limits, *seen(client.ledger), *(k.tenant for k in Keys(client.ledger).all()), OWNER})
        rows = [{"tenant": name, **limits.get(name, Limits()).model_dump(), "own_limits": name in limits, "in_flight": book.in_flight(name)} for name in names]
    if json:
        show.facts({"tenants": rows})
        return
    show.table(["tenant", "requests/min", "tokens/min", "at once", "in flight"],
               [[str(r["tenant"]), *(_limit(r[f], bool(r["own_limits"])) for f in Limits.model_fields), str(r["in_flight"])] for r in rows])


def limit(
    tenant: Annotated[str, typer.Argument(help="Whose; `*` for all that have none of their own.")],
    requests: Annotated[int | None, typer.Option(help="Requests a minute.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Tokens a minute, of prompts and answers together.")] = None,
    concurrent: Annotated[int | None, typer.Option(help="Jobs in flight at once.")] = None,
    json: AsJson = False, dir: Folder = None,
) -> None:
    """Set a tenant's limits, all of them: what is left out is unlimited. They hold for every process from the next request on."""
    limits = Limits.parse({"requests_per_minute": requests, "tokens_per_minute": tokens, "concurrent": concurrent})
    with Client(dir) as client:
        Allowances(client.ledger).set(tenant, limits)
    facts = {"tenant": tenant, **limits.model_dump()}
    show.facts(facts) if json else print("  ".join(f"{name} {'unlimited' if value is None else value}" for name, value in facts.items()))


def unlimit(tenant: Annotated[str, typer.Argument(help="Whose; `*` for everyone's.")], json: AsJson = False, dir: Folder = None) -> None:
    """Forget a tenant's own limits: everyone's hold for it."""
    with Client(dir) as client:
        if not Allowances(client.ledger).clear(tenant):
            raise BadInput(f"{tenant!r} has no limits of its own.", field="tenant", value=tenant, remedy="See `symposia tenants list`.")
    show.facts({"unlimited": tenant}) if json else print(f"{tenant} has no limits of its own")


def show_usage(
    tenant: Annotated[str | None, typer.Argument(help="Whose; left out: of all.")] = None,
    start: Day = None, end: Day = None, by_model: Annotated[bool, typer.Option("--by-model", help="A line for each checkpoint.")] = False,
    json: AsJson = False, dir: Folder = None,
) -> None:
    """Jobs, calls and tokens by tenant and day, counted once with each job's result."""
    with Client(dir) as client:
        names = [checked_tenant(tenant)] if tenant is not None else seen(client.ledger)
        found = {name: usage(client.ledger, name, start=start, end=end) for name in names}
    if json:
        show.facts({"usage": {name: [row.model_dump(mode="json") for row in rows] for name, rows in found.items()}})
        return
    show.table(["tenant", "day", "model", "jobs", "calls", "prompt tokens", "new tokens", "reused"],
               [[name, r.day, r.model or "(all)", *(f"{n:,}" for n in (r.jobs, r.calls, r.prompt_tokens, r.completion_tokens, r.reused))]
                for name, rows in found.items() for r in rows if by_model or not r.model])


def _limit(value: object, own: bool) -> str:
    return f"{value:,}" if isinstance(value, int) else "" if not own else "-"
