"""Where a webhook may go: nowhere that only this machine or its network can reach, unless that network is named in the settings.

A name is resolved when a notice is sent, every address of it is looked at, and the connection is made to the address that was looked at:
a name that says something else a moment later (DNS rebinding) leads nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

from symposia_shared.errors import BadInput

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

#: characters of a URL at most
LONGEST_URL = 2_048
#: what ``ipaddress`` calls global and no stranger shall reach through us: Azure's platform, and addresses that stand for others
_NEVER = tuple(ip_network(n) for n in ("168.63.129.16/32", "192.88.99.0/24", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/23", "2002::/16", "fec0::/10",
                                       "100::/64", "5f00::/16"))


@dataclass(frozen=True, slots=True)
class Target:
    """A webhook's URL, taken apart."""

    url: str
    secure: bool
    host: str
    port: int
    #: path and query
    path: str

    @property
    def named(self) -> str:
        """What the header ``Host`` says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


def read_target(url: object, *, field: str = "webhook", allowed: Sequence[Network] = ()) -> Target:
    """The target a URL names. Raises BadInput for what is no such URL, and for an address that may never be called; a name is looked up later."""
    def wrong(why: str, remedy: str = "Give an https URL.") -> BadInput:
        return BadInput(f"{field!r} {why}.", field=field, value=str(url)[:200], remedy=remedy)

    if not isinstance(url, str) or not url.isascii() or not url.isprintable() or " " in url or "\\" in url or len(url) > LONGEST_URL:
        raise wrong(f"is no URL of up to {LONGEST_URL:,} printable ASCII characters")
    try:
        parts = urlsplit(url)
        port, host = parts.port, (parts.hostname or "").rstrip(".")
    except ValueError as error:
        raise wrong(f"is no URL: {error}") from None
    if parts.scheme not in ("https", "http") or not host or "%" in host:
        raise wrong(f"is {url[:80]!r}")
    if parts.username is not None or parts.password is not None:
        raise wrong("holds a user or a password", "Leave it out: notices are signed.")
    target = Target(url, parts.scheme == "https", host, port or (443 if parts.scheme == "https" else 80),
                    (parts.path or "/") + (f"?{parts.query}" if parts.query else ""))
    try:
        literal = ip_address(host)
    except ValueError:
        literal = None
    if literal is not None and not may_call(literal, allowed):
        raise wrong(f"leads to {host}, which is not public", "Give a public address, or have the operator name its network in SYMPOSIA_WEBHOOKS__ALLOW.")
    if not target.secure and not allowed:
        raise wrong("is plain http, which is for networks named in SYMPOSIA_WEBHOOKS__ALLOW only")
    return target


def may_call(address: Address, allowed: Sequence[Network] = (), *, secure: bool = True) -> bool:
    """Whether a notice may go to this address: it is public and the connection is encrypted, or its network is named."""
    plain = _unwrapped(address)
    if any(plain.version == n.version and plain in n for n in allowed):
        return True
    return secure and plain.is_global and not plain.is_multicast and not plain.is_reserved and not any(
        plain.version == n.version and plain in n for n in _NEVER)


def _unwrapped(address: Address) -> Address:
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped if mapped is not None else address


def read_networks(text: str) -> tuple[Network, ...]:
    """``10.0.0.0/8,fd00::/8`` as networks. Raises ValueError."""
    return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())
