"""Who may use the HTTP API, and the teams they have saved.

    keys        hash  sha256 of an API key → its facts; the key itself is nowhere
    teams:T     hash  name → team, of tenant T
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

from symposia_shared.errors import BadInput
from symposia_shared.ledger import Ledger, away
from symposia_shared.teams import Team
from symposia_shared.values import Value

#: the tenant of the stack's own first key, which also sees the jobs that were not submitted through the API
OWNER = "default"
#: keys of a deployment, and saved teams of a tenant, at most
MOST_KEYS, MOST_TEAMS = 10_000, 1_000
#: bytes of a saved team at most
MOST_TEAM_BYTES = 16_384

_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}")


class ApiKey(Value):
    """What is known of a key. ``id``: the first 12 digits of its digest, by which it is listed and revoked."""

    id: str
    tenant: str
    name: str = ""
    #: seconds since the epoch
    created_at: float = 0.0


def digest_of(key: str) -> str:
    """The form in which a key is kept. It has 192 random bits, so a plain digest can be neither guessed nor looked up."""
    return hashlib.sha256(key.encode("utf-8", "replace")).hexdigest()


def checked_tenant(tenant: str) -> str:
    """``tenant`` if it can stand in a key and a tag. Raises BadInput."""
    if not _TENANT.fullmatch(tenant):
        raise BadInput(f"{tenant!r} is no tenant's name.", field="tenant", value=tenant, remedy="Use 1 to 40 letters, digits, '.', '-' and '_'.")
    return tenant


class Keys:
    """The keys of a deployment. ``first``: one that is always good, for tenant ``default``. Every method raises BrokerUnavailable."""

    def __init__(self, ledger: Ledger, *, first: str | None = None) -> None:
        self.ledger = ledger
        self._first = digest_of(first) if first else None

    def create(self, tenant: str = OWNER, *, name: str = "") -> tuple[str, ApiKey]:
        """A new key, which is told here and never again."""
        key = "sym-" + secrets.token_hex(24)
        digest = digest_of(key)
        facts = ApiKey(id=digest[:12], tenant=checked_tenant(tenant), name=name[:64], created_at=round(self.ledger.now_s(), 3))
        with away():
            if self.ledger.redis.hlen(self.ledger.key("keys")) >= MOST_KEYS:
                raise BadInput(f"there are {MOST_KEYS:,} keys, which is the most.", field="keys", remedy="Revoke some: symposia keys revoke ID")
            self.ledger.redis.hset(self.ledger.key("keys"), digest, facts.to_json())
        return key, facts

    def known(self, key: str) -> ApiKey | None:
        """The facts of a key, None where it is none of ours or was revoked."""
        digest = digest_of(key)
        if self._first is not None and hmac.compare_digest(digest, self._first):
            return ApiKey(id=digest[:12], tenant=OWNER, name="the stack's own")
        with away():
            stored = self.ledger.redis.hget(self.ledger.key("keys"), digest)
        return None if stored is None else ApiKey.from_json(stored)

    def all(self) -> list[ApiKey]:
        """All keys, oldest first."""
        with away():
            stored = self.ledger.redis.hvals(self.ledger.key("keys"))
        return sorted((ApiKey.from_json(s) for s in stored), key=lambda k: k.created_at)

    def revoke(self, key_id: str) -> bool:
        """Take a key back, from the next request on. False where there is none of this id."""
        with away():
            digests = [d for d in self.ledger.redis.hkeys(self.ledger.key("keys")) if d[:12] == key_id]
            return bool(digests) and bool(self.ledger.redis.hdel(self.ledger.key("keys"), *digests))


class Teams:
    """The saved teams of one tenant. Every method raises BrokerUnavailable."""

    def __init__(self, ledger: Ledger, tenant: str) -> None:
        self.ledger = ledger
        self._key = ledger.key(f"teams:{tenant}")

    def get(self, name: str) -> Team | None:
        """The team of this name, None where there is none."""
        with away():
            stored = self.ledger.redis.hget(self._key, name)
        return None if stored is None else Team.from_json(stored)

    def put(self, name: str, team: Team) -> bool:
        """Save a team; True where there was none of this name. Raises BadInput where it is too long, or there are too many."""
        text = team.to_json()
        if len(text.encode()) > MOST_TEAM_BYTES:
            raise BadInput(f"the team has {len(text.encode()):,} bytes; at most {MOST_TEAM_BYTES:,} are kept.", field="team", remedy="Shorten its roles.")
        with away():
            if self.ledger.redis.hlen(self._key) >= MOST_TEAMS and not self.ledger.redis.hexists(self._key, name):
                raise BadInput(f"there are {MOST_TEAMS:,} teams, which is the most.", field="name", remedy="Delete one.")
            return bool(self.ledger.redis.hset(self._key, name, text))

    def delete(self, name: str) -> bool:
        """Forget a team; False where there is none of this name."""
        with away():
            return bool(self.ledger.redis.hdel(self._key, name))

    def names(self) -> list[str]:
        """The names of all."""
        with away():
            return sorted(self.ledger.redis.hkeys(self._key))
