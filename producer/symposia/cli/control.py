"""``symposia cancel``, ``pause``, ``resume``, ``drain``, ``held`` and ``release``."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from symposia.cli import show
from symposia.cli.options import AsJson, Folder, Timeout
from symposia.client import Client
from symposia_shared.broker import placed_as, queue_for
from symposia_shared.errors import BadInput, NotPlaced, NotYet
from symposia_shared.ledger.control import Control, Held
from symposia_shared.ledger.quarantined import Quarantines

Model = Annotated[str | None, typer.Argument(help="A checkpoint, whose queue is meant; every checkpoint on that queue is.")]
PoolName = Annotated[str | None, typer.Option("--pool", help="A pool by its name, as `symposia held` lists them.")]
#: seconds between looks while a drain is waited for
LOOK_S = 0.2


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command(rich_help_panel="Jobs")(cancel)
    for command in (pause, resume, drain, held, release):
        app.command(rich_help_panel="Stack")(command)


def cancel(
    job_id: Annotated[str | None, typer.Argument(help="The job.")] = None,
    tag: Annotated[str | None, typer.Option(help="Every job in flight with this tag.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every job in flight.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before --all.")] = False,
    json: AsJson = False, dir: Folder = None,
) -> None:
    """End a job, or many; what runs is stopped at its next token."""
    if sum((job_id is not None, tag is not None, everything)) != 1:
        raise BadInput("name a job, or give --tag or --all, and one of these.", field="job_id", remedy="See `symposia jobs`.")
    with Client(dir) as client:
        if job_id is not None:
            asked = client.cancel(job_id)
            show.facts({"job_id": job_id, "cancelled": asked}) if json else print(f"{job_id} " + ("is being cancelled" if asked else "had ended already"))
            return
        control = Control(client.ledger)
        ids = control.tagged(tag) if tag is not None else control.in_flight()
        if everything and not yes and not typer.confirm(f"Cancel all {len(ids)} jobs in flight?", err=True):
            raise typer.Exit(1)
        cancelled = client.cancel_many(ids)
    show.facts({"cancelled": cancelled}) if json else print(f"{len(cancelled)} jobs are being cancelled")


def pause(model: Model = None, pool: PoolName = None, json: AsJson = False, dir: Folder = None) -> None:
    """Begin nothing more of a checkpoint's queue, or in a pool; what runs ends. Submits are taken, deadlines go on."""
    with Client(dir) as client:
        _hold(client, model, pool, "paused", json=json)


def drain(
    model: Model = None, pool: PoolName = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return when nothing is left there.")] = False,
    timeout: Timeout = None, json: AsJson = False, dir: Folder = None,
) -> None:
    """Take no new jobs for a checkpoint's queue and let what is there end; or let a pool end what it holds."""
    with Client(dir) as client:
        queue = _hold(client, model, pool, "draining", json=json)
        until = None if timeout is None else time.monotonic() + timeout
        while wait and (left := _left(client, queue, pool)):
            if until is not None and time.monotonic() > until:
                raise NotYet(f"{left} turns are left on {pool or queue} after {timeout:g} s; it goes on being drained.")
            time.sleep(LOOK_S)


def resume(
    model: Model = None, pool: PoolName = None,
    everything: Annotated[bool, typer.Option("--all", help="All that is held.")] = False,
    json: AsJson = False, dir: Folder = None,
) -> None:
    """Take a pause or a drain back."""
    with Client(dir) as client:
        control = Control(client.ledger)
        names = list(control.held()) if everything else [f"pool:{pool}" if pool else f"queue:{_queue(client, _one(model, pool))}"]
        resumed = [name for name in names if (control.resume_pool if name.startswith("pool:") else control.resume_queue)(name.partition(":")[2])]
    show.facts({"resumed": resumed}) if json else print(f"resumed {', '.join(resumed)}" if resumed else "nothing was held there")


def held(json: AsJson = False, dir: Folder = None) -> None:
    """What is paused or being drained; and which pools there are."""
    with Client(dir) as client:
        found = Control(client.ledger).held()
        pools = {name: int(w.get("held", 0)) for name, w in client.ledger.workers().items() if w.get("role") == "pool"}
    if json:
        show.facts({"held": found, "pools": pools})
        return
    show.table(["what", "how"], [*([name, how] for name, how in sorted(found.items())), *([f"pool:{name}", f"up, holds {n} turns"] for name, n in
                                                                                          pools.items() if f"pool:{name}" not in found)])


def release(
    pool: Annotated[str, typer.Argument(help="A pool by its name, as `symposia info` lists them.")], json: AsJson = False, dir: Folder = None,
) -> None:
    """End the quarantine of a pool's device: it is asked at once, and takes turns again if it answers."""
    with Client(dir) as client:
        found = Quarantines(client.ledger)
        known = found.all()
        if pool not in known:
            raise BadInput(f"{pool!r} is not in quarantine.", field="pool", value=pool, remedy=f"These are: {', '.join(sorted(known)) or 'none'}.")
        found.release(pool)
    show.facts({"pool": pool, "reason": known[pool].reason}) if json else print(f"{pool} is asked again now; it was in quarantine because {known[pool].reason}")


def _hold(client: Client, model: str | None, pool: str | None, how: Held, *, json: bool) -> str:
    control, named = Control(client.ledger), _one(model, pool)
    if pool is not None:
        control.hold_pool(pool)
        show.facts({"pool": pool, "held": "paused"}) if json else print(f"the pool {pool} claims nothing more")
        return ""
    queue = _queue(client, named)
    control.hold_queue(queue, how)
    show.facts({"queue": queue, "held": how}) if json else print(f"the queue {queue} is {how}")
    return queue


def _one(model: str | None, pool: str | None) -> str:
    if (model is None) == (pool is None):
        raise BadInput("name a checkpoint, or give --pool, and one of these.", field="model", remedy="See `symposia held` and `symposia models list`.")
    return model or pool or ""


def _queue(client: Client, model: str) -> str:
    """The queue of a checkpoint, or the one a status names (``turns.`` left out). Raises NotPlaced where nobody is meant to serve it."""
    placed = client.ledger.placed()
    place = placed.get(placed_as(model))
    queue = str(place["queue"]) if place else queue_for(model)
    if not any(p["queue"] == queue for p in placed.values()) and f"queue:{queue}" not in Control(client.ledger).held():
        raise NotPlaced(f"no pool is meant to serve {model!r}.", field="model", value=model, remedy=f"These are served: {', '.join(sorted(placed)) or 'none'}.")
    return queue


def _left(client: Client, queue: str, pool: str | None) -> int:
    """Turns that are left where a drain is waited for; a pool that is away holds none."""
    return Control(client.ledger).left(queue) if pool is None else int(client.ledger.workers().get(pool, {}).get("held", 0))
