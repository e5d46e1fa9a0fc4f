"""Whom a producer wishes to be told of a job's end: webhooks, and tasks of its own Celery app."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from symposia_shared.archive import checked_id
from symposia_shared.errors import BadInput, Busy
from symposia_shared.jobs import Job
from symposia_shared.ledger.outbox import Outbox
from symposia_shared.notices.targets import Network, read_target
from symposia_shared.notices.wishes import LinkedTask, Wish
from symposia_shared.submission import taken

if TYPE_CHECKING:
    from celery.canvas import Signature

    from symposia.client import Client
    from symposia.handle import Handle

#: what of a signature's options is sent with it; its queue and the like are settled by its app's routes when it is linked
OPTIONS = frozenset({"countdown", "expires", "priority", "time_limit", "soft_time_limit", "headers", "shadow"})
_ROUTE = frozenset({"queue", "exchange", "routing_key", "exchange_type", "serializer", "ignore_result"})
#: of a broker's transport options those that say where its queues lie
_TRANSPORT = frozenset({"global_keyprefix", "sep", "priority_steps", "queue_order_strategy", "master_name"})


def wish_of(*, webhook: str | Sequence[str] | None = None, link: Signature[Any] | None = None, link_error: Signature[Any] | None = None,
            broker: str, allowed: Sequence[Network] = ()) -> Wish:
    """Who is to be told. ``broker``: the deployment's own. Raises BadInput for what could not be told."""
    urls = () if webhook is None else (webhook,) if isinstance(webhook, str) else tuple(webhook)
    for url in urls:
        read_target(url, allowed=allowed)
    return Wish.parse({"webhooks": urls, "link": linked(link, "link", broker), "link_error": linked(link_error, "link_error", broker)})


@contextmanager
def wished(outbox: Outbox, job_id: str, wish: Wish) -> Iterator[None]:
    """Write a wish before its job is recorded; take it back where the job is refused. Raises BadInput where a job of this id has a wish."""
    if wish.empty:
        yield
        return
    if not outbox.wish(job_id, wish):
        raise taken(job_id)
    try:
        yield
        outbox.keep(job_id)
    except (BadInput, Busy):  # of any other error it is not known whether the job was recorded; without one the wish expires
        outbox.withdraw(job_id)
        raise


def submit_wishing(client: Client, job: Job, wish: Wish, *, job_id: str | None, idempotency_key: str | None, **when: Any) -> Handle:
    """Record a job and whom to tell of its end. Where the key was used before, that job's own wish stands."""
    chosen = checked_id(job_id or uuid.uuid4().hex)
    with wished(client.outbox, chosen, wish):
        handle = client.submit_as(job, job_id=chosen, drawn=job_id is None, idempotency_key=idempotency_key, **when)
    if handle.job_id != chosen:
        client.outbox.withdraw(chosen)
    return handle


def linked(signature: Signature[Any] | None, field: str, own_broker: str) -> LinkedTask | None:
    """A signature as what is kept of it: JSON, its queue and broker as its own app has them. Raises BadInput."""
    if signature is None:
        return None
    raw: Mapping[str, Any] = dict(signature)
    if raw.get("subtask_type") or raw.get("chord_size") is not None:
        raise _cannot(field, f"is a {raw.get('subtask_type') or 'part of a chord'}", "Link one task that starts it.")
    options = {name: value for name, value in raw.get("options", {}).items() if value not in (None, [], {})}
    unknown = sorted(set(options) - OPTIONS - _ROUTE)
    if unknown:
        raise _cannot(field, f"has the option {unknown[0]!r}, which is not kept", f"Remove it; kept are {', '.join(sorted(OPTIONS | _ROUTE))}.")
    if options.get("serializer", "json") != "json":
        raise _cannot(field, f"is to be written as {options['serializer']!r}", "It is sent as JSON.")
    app: Any = signature.app
    route = {name: options[name] for name in ("queue", "exchange", "routing_key") if name in options}
    queue = app.amqp.router.route(route, raw["task"], raw.get("args", ()), raw.get("kwargs", {}))["queue"]
    with app.connection_for_write() as connection:
        broker = str(connection.as_uri(include_password=True))
        scheme = broker.partition("://")[0]
    if scheme in ("memory", "filesystem"):
        raise _cannot(field, f"is of an app whose broker is {scheme}://, which no other process reaches", "Name a broker for the app.")
    transport = {n: v for n, v in (app.conf.broker_transport_options or {}).items() if n in _TRANSPORT}
    exchange = queue.exchange
    try:
        return LinkedTask.parse({
            "task": raw["task"], "args": json.loads(json.dumps(list(raw.get("args", ())))), "kwargs": json.loads(json.dumps(raw.get("kwargs", {}))),
            "options": json.loads(json.dumps({n: v for n, v in options.items() if n in OPTIONS})), "immutable": bool(raw.get("immutable")),
            "queue": queue.name, "exchange": exchange.name if exchange else "", "exchange_type": exchange.type if exchange else "direct",
            "routing_key": queue.routing_key or queue.name, "broker": None if broker == own_broker else broker, "transport_options": transport,
        })
    except (TypeError, ValueError) as error:
        raise _cannot(field, f"has arguments that are not JSON ({error})", "Give it texts, numbers, lists and mappings.") from None


def _cannot(field: str, why: str, remedy: str) -> BadInput:
    return BadInput(f"{field!r} {why}.", field=field, remedy=remedy)
