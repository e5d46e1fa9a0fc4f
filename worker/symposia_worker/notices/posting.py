"""One POST to a webhook: to the address that was looked at, following nothing, within a time."""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from symposia_shared.errors import BadInput
from symposia_shared.notices.targets import Network, Target, may_call, read_target

#: bytes of an answer that are read; nothing of them is kept
MOST_ANSWER_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Posted:
    """What a try came to. ``status`` None: there was no answer."""

    status: int | None
    said: str
    #: seconds after which the endpoint wants to be asked again
    retry_after_s: float | None = None
    #: the target may not be called at all
    forbidden: bool = False

    @property
    def taken(self) -> bool:
        """Whether it was delivered: any 2xx."""
        return self.status is not None and 200 <= self.status < 300


def post(url: str, body: bytes, headers: Mapping[str, str], *, allowed: Sequence[Network] = (), timeout_s: float = 15.0) -> Posted:
    """Post a notice. Never raises for what the target or the network does."""
    try:
        target = read_target(url, allowed=allowed)
        addresses = resolved(target)
    except BadInput as error:
        return Posted(None, str(error), forbidden=True)
    except OSError as error:
        return Posted(None, f"{url} was not found: {error}")
    refused = [a for a in addresses if not may_call(ip_address(a), allowed, secure=target.secure)]
    if refused or not addresses:
        return Posted(None, f"{target.host} leads to {', '.join(refused) or 'nothing'}, which is not public")
    try:
        return _sent(target, addresses[0], body, headers, timeout_s)
    except (OSError, http.client.HTTPException) as error:
        return Posted(None, f"no answer: {type(error).__name__}: {error}"[:300])


def resolved(target: Target) -> list[str]:
    """The addresses of a target's name, each once, in the resolver's order. Raises OSError."""
    found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(where[4][0]).partition("%")[0] for where in found))


def _sent(target: Target, address: str, body: bytes, headers: Mapping[str, str], timeout_s: float) -> Posted:
    connection = _Pinned(target, address, timeout_s)
    # a timeout of the socket's is for each read: an endpoint that answers a byte at a time would have us wait for ever
    clock = threading.Timer(timeout_s, connection.cut)
    clock.start()
    _LIVE.add(connection)
    try:
        connection.request("POST", target.path, body=body, headers={
            "Host": target.named, "Content-Type": "application/json", "User-Agent": "symposia-webhooks/1", "Connection": "close", **headers})
        answer = connection.getresponse()
        status, wait = answer.status, answer.getheader("Retry-After", "")
        answer.read(MOST_ANSWER_BYTES)
    finally:
        clock.cancel()
        _LIVE.discard(connection)
        connection.close()
    said = f"HTTP {status}" + (" (redirects are not followed)" if 300 <= status < 400 else "")
    return Posted(status, said, float(wait) if wait.isdecimal() and len(wait) < 6 else None)


def cut_all() -> None:
    """End what is being posted: this process stops, and the notices come to another."""
    for connection in list(_LIVE):
        connection.cut()


class _Pinned(http.client.HTTPConnection):
    """A connection to one address, under the target's name: its certificate is checked against the name."""

    def __init__(self, target: Target, address: str, timeout_s: float) -> None:
        super().__init__(target.host, target.port, timeout=timeout_s)
        self._target, self._address = target, address
        self._cut = False

    def connect(self) -> None:
        """Connect to the address that was looked at; the name is not resolved again."""
        sock = socket.create_connection((self._address, self._target.port), timeout=self.timeout)
        self.sock = ssl.create_default_context().wrap_socket(sock, server_hostname=self._target.host) if self._target.secure else sock
        if self._cut:
            self.close()
            raise TimeoutError("the time is over")  # http.client would go on to write to no socket

    def cut(self) -> None:
        """The time is over."""
        self._cut = True
        try:
            if self.sock is not None:
                self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


_LIVE: set[_Pinned] = set()
