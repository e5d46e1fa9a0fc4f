"""Messages signed under the deployment's key: who has it may ring, who has not is put into quarantine.

HMAC-SHA256 (RFC 2104), cut to 128 bits, over the task's name, its ids, its times and the whole body: arguments, keyword
arguments and what is embedded (chain, chord, callbacks), in canonical JSON. Celery's own ``auth`` serializer signs the body
without the headers, so that a captured message runs under another task's name. A message that is sent again is not refused
here: the ledger makes a repeated ring harmless.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from symposia_shared.values import canonical_json

#: the message header that carries the signature
HEADER = "sig"
#: what of the headers decides what is run, and when
SIGNED = ("task", "id", "root_id", "parent_id", "group", "group_index", "eta", "expires", "retries", "stamped_headers", "stamps")
_BYTES = 16


def signature(key: bytes, headers: Mapping[str, Any], body: object) -> str:
    """The signature of a message of Celery's protocol 2: 22 characters."""
    # kombu's own JSON first: what it writes is what the other side reads, tuples and signatures of tasks included
    from kombu.utils.json import dumps

    said = json.loads(dumps([[headers.get(name) for name in SIGNED], body]))
    mac = hmac.new(key, canonical_json(said), hashlib.sha256).digest()[:_BYTES]
    return base64.urlsafe_b64encode(mac).rstrip(b"=").decode()


def authentic(key: bytes, headers: Mapping[str, Any], body: object) -> bool:
    """Whether the message carries its signature; compared in constant time. Never raises for what a stranger may have sent."""
    given = headers.get(HEADER)
    if not isinstance(given, str) or not given.isascii():
        return False
    try:
        return hmac.compare_digest(given, signature(key, headers, body))
    except (TypeError, ValueError, RecursionError):
        return False
