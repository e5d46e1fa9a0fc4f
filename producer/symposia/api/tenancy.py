"""What a request is to its tenant: its idempotency key, the tokens put aside for it, what its answer tells of the tenant's limits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastapi import Request

from symposia.once import Submitted
from symposia_shared.catalogue import countable_bytes
from symposia_shared.errors import Busy, Limited, SymposiaError
from symposia_shared.jobs import Collaboration, Job, SingleTurn
from symposia_shared.ledger.gate import Once, once_of
from symposia_shared.ledger.tenants import ApiKey
from symposia_shared.openai.chunks import Chunks
from symposia_shared.openai.requests import UNLIMITED

#: bytes of a prompt that are taken for a token, and new tokens put aside for an answer that names no limit
BYTES_PER_TOKEN, USUAL_TOKENS = 4, 256


def once_in(request: Request, key: ApiKey, endpoint: str, body: Mapping[str, Any], *, id: str, created: float) -> Once | None:
    """The idempotency key of a request, which stands for the endpoint and the body; None where it has none. Raises BadInput."""
    given = request.headers.get("idempotency-key")
    if given is None:
        return None
    return once_of(key.tenant, given, {"endpoint": endpoint, "body": body}, told={"id": id, "created": created})


def told_again(chunks: Chunks, before: Once | None) -> Chunks:
    """The name and time of the first answer, where this is its repetition."""
    return chunks if before is None else replace(chunks, id=str(before.told["id"]), created=int(before.told["created"]))


def tell(request: Request, submitted: Submitted) -> None:
    """Leave for the answer's headers what is left of the tenant's minute, and whether it is a repetition."""
    again = {} if submitted.before is None else {"idempotency-replayed": "true"}
    request.scope["told"] = {**submitted.rates.headers(), **again}


def headers_of(error: SymposiaError) -> dict[str, str] | None:
    """When to come again, and of a tenant's own limit which one is reached."""
    if not isinstance(error, Busy):
        return None
    found = {"Retry-After": str(math.ceil(error.retry_after_s))}
    if isinstance(error, Limited) and error.what != "jobs":
        found |= {"retry-after-ms": str(math.ceil(error.retry_after_s * 1000)), f"x-ratelimit-limit-{error.what}": str(error.limit),
                  f"x-ratelimit-remaining-{error.what}": "0", f"x-ratelimit-reset-{error.what}": f"{error.retry_after_s:.3f}s"}
    return found


def tokens_of(job: Job) -> int:
    """Tokens put aside for a job while it runs: of its prompt by its bytes, of its answers by their limit, for every member in every round."""
    most = job.sampling.max_tokens if job.sampling.max_tokens != UNLIMITED else USUAL_TOKENS
    if isinstance(job, SingleTurn):
        turn = job.turn
        return _tokens(sum(countable_bytes(m.content) for m in turn.messages)) + (most if turn.want == "completion" else 0)
    if not isinstance(job, Collaboration):
        return most
    return len(job.members) * int(getattr(job, "rounds", 1)) * (_tokens(countable_bytes(job.prompt)) + most)


def _tokens(size: int) -> int:
    return -(-size // BYTES_PER_TOKEN)
