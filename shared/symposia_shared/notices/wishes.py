"""What a producer wishes to be told of, and its seal: JSON under the deployment's key, so that only who has it can have us call anybody."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Annotated, TypeVar

from pydantic import Field, JsonValue

from symposia_shared.errors import Damaged
from symposia_shared.values import Value, canonical_json

AValue = TypeVar("AValue", bound=Value)


class LinkedTask(Value):
    """A task of the caller's own Celery app, as it is to be sent: by name, in JSON, to the queue it was routed to when it was linked."""

    task: str
    #: behind the result's key, unless it is immutable
    args: tuple[JsonValue, ...] = ()
    kwargs: dict[str, JsonValue] = Field(default_factory=dict)
    options: dict[str, JsonValue] = Field(default_factory=dict)
    immutable: bool = False
    queue: str
    exchange: str = ""
    exchange_type: str = "direct"
    routing_key: str = ""
    #: the broker's URL; None: the deployment's own
    broker: str | None = None
    transport_options: dict[str, JsonValue] = Field(default_factory=dict)


class Wish(Value):
    """Who is to be told of one job's end."""

    webhooks: Annotated[tuple[str, ...], Field(max_length=8)] = ()
    link: LinkedTask | None = None
    link_error: LinkedTask | None = None

    @property
    def empty(self) -> bool:
        """Whether nobody is."""
        return not self.webhooks and self.link is None and self.link_error is None


class Endpoint(Value):
    """A webhook of a tenant's: told of each of its jobs, or of the ends named in ``events``."""

    id: str
    url: str
    events: tuple[str, ...] = ()
    #: seconds since the epoch
    created_at: float
    #: why nothing is sent to it any more
    disabled: str | None = None


def seal(key: bytes, about: str, value: Value) -> str:
    """A value as JSON with its HMAC-SHA256, which holds for what it is about only."""
    return canonical_json({"v": json.loads(value.to_json()), "sig": _mac(key, about, json.loads(value.to_json()))}).decode()


def unseal(key: bytes, about: str, text: str, kind: type[AValue]) -> AValue:
    """The value that was sealed. Raises Damaged where it was not sealed with this key, for this."""
    try:
        raw = json.loads(text)
        given, said = raw["sig"], raw["v"]
        if not hmac.compare_digest(str(given), _mac(key, about, said)):
            raise ValueError("its signature does not fit")
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"what Redis holds of {about} was not written with this deployment's key ({error}); it is not acted upon.") from None
    return kind.parse(said)


def _mac(key: bytes, about: str, said: object) -> str:
    return base64.urlsafe_b64encode(hmac.new(key, b"notice\n" + canonical_json([about, said]), hashlib.sha256).digest()).decode()


# -- Standard Webhooks ------------------------------------------------------------------------------------------------

PREFIX = "whsec_"


def secret_of(key: bytes, tenant: str, generation: int = 0) -> str:
    """The tenant's secret: 256 bits derived from the deployment's key, so that it lies nowhere and outlives every store."""
    derived = hmac.new(key, canonical_json(["webhook secret", tenant, generation]), hashlib.sha256).digest()
    return PREFIX + base64.b64encode(derived).decode()


def signed_headers(secrets: list[str], notice_id: str, at_s: int, body: bytes) -> dict[str, str]:
    """``webhook-id``, ``webhook-timestamp`` and ``webhook-signature`` (Standard Webhooks, symmetric), a signature for each secret."""
    said = f"{notice_id}.{at_s}.".encode() + body
    signatures = [f"v1,{base64.b64encode(hmac.new(base64.b64decode(s.removeprefix(PREFIX)), said, hashlib.sha256).digest()).decode()}" for s in secrets]
    return {"webhook-id": notice_id, "webhook-timestamp": str(at_s), "webhook-signature": " ".join(signatures)}
