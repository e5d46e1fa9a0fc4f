"""What a request passes before its jobs are recorded, in the script that records them: an idempotency key, and its tenant's limits.

    once:T:DIGEST   string  of an idempotency key: the body's digest, the jobs it became, what was told; for its life
    limits          hash    tenant → ``Limits``; ``*`` for those that have none of their own
    rate:T          hash    requests (r) and tokens (k) left of a minute's worth, and when that was seen
    metered:T       set     the jobs in flight that count against a tenant's limits
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import Field

from symposia_shared.errors import BadInput, KeyReused, Limited
from symposia_shared.values import Value, canonical_json

#: characters of an idempotency key at most
LONGEST_KEY = 255
#: whose limits hold for tenants that have none of their own
EVERYONE = "*"


class Limits(Value):
    """What a tenant may ask for through the API; None: as much as there is room for."""

    requests_per_minute: int | None = Field(None, ge=1, le=1_000_000)
    #: prompt and new tokens together
    tokens_per_minute: int | None = Field(None, ge=1, le=1_000_000_000)
    #: jobs in flight at once
    concurrent: int | None = Field(None, ge=1, le=1_000_000)


class Once(Value):
    """An idempotency key and what it stands for."""

    #: tenant and digest of the key: two tenants' keys never meet, and the key itself is not kept
    name: str
    #: digest of the body
    digest: str
    job_ids: tuple[str, ...] = ()
    #: what the first answer said of itself
    told: dict[str, Any] = Field(default_factory=dict)

    def check(self, found: Once) -> Once:
        """``found`` if it was made of the same body. Raises KeyReused."""
        if found.digest != self.digest:
            raise KeyReused("the idempotency key was used before with another body: "
                            f"its digest was {found.digest}, and is {self.digest} now.", field="Idempotency-Key", remedy="Use a new key for a new request.")
        return found


def once_of(tenant: str, key: str, body: Mapping[str, Any], *, told: Mapping[str, Any] | None = None) -> Once:
    """The claim of a key by a body. Raises BadInput for what is no key."""
    if not 0 < len(key) <= LONGEST_KEY or not key.isascii() or not key.isprintable():
        raise BadInput(f"an idempotency key has 1 to {LONGEST_KEY} printable ASCII characters; this one has {len(key)}.", field="Idempotency-Key",
                       remedy="Use a UUID.")
    digest = hashlib.sha256(canonical_json(dict(body))).hexdigest()
    return Once(name=f"{tenant}:{hashlib.sha256(key.encode()).hexdigest()}", digest=digest, told=dict(told or {}))


@dataclass(frozen=True, slots=True)
class Gate:
    """What the jobs of one request pass together: all are recorded, or none."""

    #: whose limits they count against; empty: nobody's
    tenant: str = ""
    #: tokens put aside for each job until it has ended, when what it used takes their place
    tokens: tuple[int, ...] = ()
    once: Once | None = None
    #: milliseconds for which the key is known; a job in flight is known longer
    life_ms: int = 0

    def to_json(self, job_ids: Sequence[str]) -> str:
        """The form the script reads."""
        told: dict[str, Any] = {"tokens": list(self.tokens or (0,) * len(job_ids))}
        if self.tenant:
            told["tenant"] = self.tenant
        if self.once is not None:
            told |= {"once": self.once.name, "life": self.life_ms, "entry": self.once.model_copy(update={"job_ids": tuple(job_ids)}).to_json()}
        return json.dumps(told)


@dataclass(frozen=True, slots=True)
class Rates:
    """What is left of a tenant's minute after a request; None where there is no limit."""

    requests: int | None = None
    requests_left: int | None = None
    tokens: int | None = None
    tokens_left: int | None = None

    @staticmethod
    def of(line: str) -> Rates:
        """The rates in the script's line."""
        return Rates(*(None if word == "-" else int(float(word)) for word in line.split(" ")[1:]))

    def headers(self) -> dict[str, str]:
        """As OpenAI's headers; ``reset``: when the whole minute's worth is there again."""
        found: dict[str, str] = {}
        for what, limit, left in (("requests", self.requests, self.requests_left), ("tokens", self.tokens, self.tokens_left)):
            if limit is not None and left is not None:
                found |= {f"x-ratelimit-limit-{what}": str(limit), f"x-ratelimit-remaining-{what}": str(max(0, left)),
                          f"x-ratelimit-reset-{what}": f"{max(0.0, (limit - left) * 60 / limit):.3f}s"}
        return found


@dataclass(frozen=True, slots=True)
class Passed:
    """What came of a request at the gate: a line per job, or the entry of a key that was used before."""

    answers: list[str] = field(default_factory=list)
    rates: Rates = field(default_factory=Rates)
    before: Once | None = None


def passed(lines: Sequence[str]) -> Passed:
    """What the script's lines say. Raises Limited, or BadInput where no waiting would help."""
    word, _, rest = lines[0].partition(" ")
    if word == "once":
        return Passed(before=Once.from_json(rest))
    if word == "toomany":
        asked, most = rest.split(" ")
        raise BadInput(f"the request asks for {asked} answers at once; this tenant may have {most} in flight.", field="n", value=int(asked),
                       remedy="Ask for fewer.")
    if word == "limited":
        after_ms, what, most = rest.split(" ")
        told = f"{int(most):,} jobs in flight are" if what == "jobs" else f"{int(most):,} {what} a minute are"
        raise Limited(f"{told} the limit of this tenant, and it is reached. Try again in {int(after_ms) / 1000:.3f} s.", what=what, limit=int(most),
                      retry_after_s=int(after_ms) / 1000)
    if lines[-1].startswith("rates "):
        return Passed(list(lines[:-1]), Rates.of(lines[-1]))
    return Passed(list(lines))
