"""A pool's way to a Redis and an S3 elsewhere: addresses by flags, secrets by the environment or a credentials file.

A flag is shown by ``ps`` to everybody on the machine, so one with a password in it is refused.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import SecretStr

from symposia_shared.errors import BadInput
from symposia_shared.ledger import Ledger
from symposia_shared.settings import S3Settings, Settings
from symposia_shared.standing import AWAY_AFTER_S

#: the variable with the broker's password, for a URL that comes by a flag
PASSWORD = "SYMPOSIA_BROKER_PASSWORD"  # noqa: S105 - its name


def joined(settings: Settings, *, broker: str, store: str, environ: Mapping[str, str]) -> Settings:
    """``settings`` with the addresses given; "" leaves one as it is. Raises BadInput for what is no address or holds a secret."""
    changed: dict[str, object] = {}
    if broker:
        changed["broker_url"] = SecretStr(_broker(broker, settings, environ))
    if store:
        changed["s3"] = _store(store, settings.s3)
    return settings.model_copy(update=changed)


def pool_name_here(name: str, host: str) -> str:
    """A pool's default name on a machine that joins others: two machines have a ``pool-cpu-0`` each."""
    return f"{name}.{re.sub(r'[^A-Za-z0-9-]+', '-', host.partition('.')[0])[:40] or 'host'}"


def await_name(ledger: Ledger, name: str, host: str, *, within_s: float = 1.5 * AWAY_AFTER_S) -> None:
    """Return once no pool on another machine beats under ``name``; the last beat of one that was killed is waited out. Raises BadInput."""
    first = _elsewhere(ledger, name, host)
    until = time.monotonic() + within_s
    while first is not None and (beat := _elsewhere(ledger, name, host)) is not None:
        if beat["beat_at"] != first["beat_at"] or time.monotonic() > until:
            raise BadInput(f"a pool {name!r} runs on {beat['host']} already; two of one name would take each other's place.", field="--name", value=name,
                           remedy="Give this one another --name.")
        time.sleep(0.5)


def _elsewhere(ledger: Ledger, name: str, host: str) -> dict[str, Any] | None:
    """The fresh heartbeat of a pool of this name on another machine."""
    beat = ledger.workers().get(name, {})
    fresh = ledger.now_s() - float(beat.get("beat_at", 0.0)) < AWAY_AFTER_S
    return beat if fresh and beat.get("host", host) != host else None


def _broker(url: str, settings: Settings, environ: Mapping[str, str]) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise BadInput(f"{_safe(url)!r} is no address of a Redis.", field="--broker", remedy="Write redis://HOST:6379/0, or rediss:// for TLS.")
    if parts.password:
        raise BadInput("--broker has a password in it, which every user of this machine can read in the list of processes.", field="--broker",
                       remedy=f"Leave it out and set {PASSWORD}, or put credentials.json into the folder of --dir.")
    known = urlsplit(settings.broker_url.get_secret_value()) if settings.broker_url else None
    password = environ.get(PASSWORD) or (known.password if known else None)
    user = parts.username or (known.username if known and not environ.get(PASSWORD) else None) or ""
    secret = f"{user}:{quote(password, safe='') if PASSWORD in environ else password}@" if password else f"{user}@" if user else ""
    return urlunsplit(parts._replace(netloc=secret + parts.netloc.rpartition("@")[2]))


def _store(url: str, known: S3Settings) -> S3Settings:
    parts = urlsplit(url)
    if parts.username or parts.password:
        raise BadInput("--store has keys in it, which every user of this machine can read in the list of processes.", field="--store",
                       remedy="Set SYMPOSIA_S3__ACCESS_KEY and SYMPOSIA_S3__SECRET_KEY, or use boto3's own chain.")
    if parts.scheme == "s3" and parts.netloc:
        return known.model_copy(update={"endpoint_url": None, "bucket": parts.netloc})
    if parts.scheme in ("http", "https") and parts.hostname:
        bucket = parts.path.strip("/") or known.bucket
        return known.model_copy(update={"endpoint_url": urlunsplit((parts.scheme, parts.netloc, "", "", "")), "bucket": bucket})
    raise BadInput(f"{_safe(url)!r} is no address of an S3.", field="--store", remedy="Write http://HOST:8333/BUCKET, or s3://BUCKET for AWS.")


def _safe(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url)
