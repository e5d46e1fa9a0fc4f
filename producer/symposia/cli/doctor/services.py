"""What `symposia doctor` asks of the broker and of the store."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from symposia.cli.doctor.check import MIB, Check, numbers
from symposia_shared.errors import StoreUnavailable
from symposia_shared.settings import Settings

LOWEST_REDIS = (6, 2)
#: how many keys are looked at for those of other applications
KEYS_SCANNED = 50_000


def broker_checks(settings: Settings) -> Iterator[Check]:
    """Reachable, new enough, persistent, without eviction, with room, and nobody else under our prefix. Raises BrokerUnavailable."""
    from symposia_shared.ledger import Ledger, away

    ledger = Ledger(settings.broker, settings.prefix, timeout_s=3.0)
    with away():
        facts: dict[str, Any] = ledger.redis.info()
    version = str(facts.get("valkey_version") or facts["redis_version"])
    old = numbers(str(facts["redis_version"])) < LOWEST_REDIS
    yield Check(name="broker", status="fail" if old else "ok", found=f"{facts.get('server_name', 'redis')} {version} answers",
                remedy="Use Valkey, or Redis 6.2 or newer." if old else "")
    yield from _persistence(ledger)
    yield _memory(facts)
    yield _prefix(ledger, settings)
    yield from _pools(ledger)


def _pools(ledger: Any) -> Iterator[Check]:
    """Pools that take no turns although they run, and replies that wait on disk."""
    for name, beat in sorted(ledger.workers().items()):
        why, spooled = beat.get("idle_because", ""), beat.get("spooled", {}).get("replies", 0)
        if "quarantine" in why:
            yield Check(name=f"pool {name}", status="fail", found=why, remedy=f"See its log and its device; then `symposia release {name}`.")
        elif why:
            yield Check(name=f"pool {name}", status="fail", found=why, remedy="Free space, or bring S3 back: the pool goes on by itself then.")
        elif spooled:
            yield Check(name=f"pool {name}", status="warn", found=f"{spooled} replies wait on its disk for S3", remedy="See whether S3 is slow or full.")


def _persistence(ledger: Any) -> Iterator[Check]:
    appends, fsync, policy = (_configured(ledger, name) for name in ("appendonly", "appendfsync", "maxmemory-policy"))
    if appends is None:
        yield Check(name="broker persistence", status="warn", found="the server does not let its configuration be read",
                    remedy="See to it that appendonly is yes, appendfsync always and maxmemory-policy noeviction.")
        return
    if appends != "yes":
        yield Check(name="broker persistence", status="fail", found="appendonly is off: a restart of Redis loses every job in flight",
                    remedy="Set appendonly yes and appendfsync always.")
    elif fsync != "always":
        lost = "up to the last second" if fsync == "everysec" else "up to half a minute, as the system pleases"
        found = f"appendfsync is {fsync}: a power cut loses acknowledged jobs of {lost}"
        yield Check(name="broker persistence", status="warn", found=found,
                    remedy="Set appendfsync always, where a submit is to mean that the job is on disk.")
    else:
        yield Check(name="broker persistence", status="ok", found="each acknowledged write is on disk (appendonly yes, appendfsync always)")
    evicts = policy != "noeviction"
    yield Check(name="broker eviction", status="fail" if evicts else "ok", found=f"maxmemory-policy is {policy}",
                remedy="Set maxmemory-policy noeviction: any other drops jobs silently when memory is short." if evicts else "")


def _configured(ledger: Any, name: str) -> str | None:
    """A setting of the server, None where it does not tell (hosted ones often do not)."""
    from redis.exceptions import RedisError

    try:
        value = ledger.redis.config_get(name).get(name)
    except RedisError:
        return None
    return None if value is None else str(value)


def _memory(facts: dict[str, Any]) -> Check:
    used, most = int(facts["used_memory"]), int(facts.get("maxmemory", 0))
    found = f"{used / MIB:.0f} MiB used of {f'{most / MIB:.0f} MiB' if most else 'whatever the machine has'}"
    if not most:
        return Check(name="broker memory", status="warn", found=found,
                     remedy="Set maxmemory: without it the system, not Redis, decides what happens when memory is short.")
    if used > 0.8 * most:
        return Check(name="broker memory", status="fail", found=found, remedy="Raise maxmemory or let jobs end: new ones will be refused.")
    return Check(name="broker memory", status="ok", found=found)


def _prefix(ledger: Any, settings: Settings) -> Check:
    """Whether another deployment has our prefix; that other applications have keys beside ours is fine."""
    from symposia_shared.ledger import away

    with away():
        here = ledger.redis.get(ledger.key("stack"))
        foreign, looked = 0, 0
        for key in ledger.redis.scan_iter(count=1000):
            looked += 1
            foreign += not key.startswith(settings.prefix)
            if looked >= KEYS_SCANNED:
                break
    some = "at least " if looked >= KEYS_SCANNED else ""
    found = f"{settings.prefix!r}, " + (f"beside {some}{foreign} keys of other applications" if foreign else "alone in its database")
    try:
        ours = (settings.dir / "stack-id").read_text().strip()
    except OSError:
        ours = None
    if here is not None and ours is not None and here != ours:
        return Check(name="key prefix", status="warn", found=f"{found}; another stack (id {here}) uses it, too: the two share their jobs",
                     remedy="Set SYMPOSIA_PREFIX for one of them, unless they are meant to be one deployment.")
    return Check(name="key prefix", status="ok", found=found)


def store_checks(settings: Settings) -> Iterator[Check]:
    """Put, get, list and delete under a probe's key, and that a conditional write is one. Raises StoreUnavailable."""
    from symposia_shared.store import Store

    store = Store(settings.s3)
    where = settings.s3.endpoint_url or f"AWS S3 ({settings.s3.region})"
    key = f"doctor/{uuid.uuid4().hex}"
    store.put(key, b"first", "text/plain")
    try:
        if store.get(key) != b"first":
            raise StoreUnavailable(f"S3 at {where} does not return what was written to {store.uri(key)}. See its log.")
        if key not in store.keys("doctor/"):
            raise StoreUnavailable(f"S3 at {where} does not list what was written to {store.uri(key)}. Check the right to list the bucket.")
        again = store.put_once(key, b"second", "text/plain")
    finally:
        store.delete(key)
    yield Check(name="store", status="ok", found=f"{where}: writes, reads, lists and deletes in {settings.s3.bucket!r}")
    if again.ours or again.body != b"first":
        yield Check(name="store conditional writes", status="fail",
                    found="a second If-None-Match write was accepted: a result could be overwritten",
                    remedy="Use an S3 server that honours If-None-Match, such as AWS S3 or SeaweedFS 4.48 or newer.")
    else:
        yield Check(name="store conditional writes", status="ok", found="honoured: an object is written once")
