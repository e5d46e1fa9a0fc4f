"""The stack's loopback ports: chosen once, kept in its folder, and changed only where somebody else has taken one."""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Callable, Iterator, Mapping

from pydantic import Field

from symposia_shared.errors import BadInput, StackUnavailable
from symposia_shared.values import Value
from symposia_worker.stack.folder import Folder, write_private

LOOPBACK = "127.0.0.1"
#: SeaweedFS' own distance from each HTTP port to its gRPC port; one of its clients assumes it whatever it is told
GRPC_OFFSET = 10_000
#: below the ranges from which systems take ports for outgoing connections, the gRPC ports included
LOWEST, HIGHEST = 12_000, 20_000
#: settings by which a user fixes a port
FIXED = {"broker": "SYMPOSIA_BROKER_PORT", "s3": "SYMPOSIA_S3_PORT", "flower": "SYMPOSIA_FLOWER_PORT", "api": "SYMPOSIA_API_PORT"}
#: those of SeaweedFS, each with a gRPC port beside it
PAIRED = ("s3", "master", "volume", "filer", "admin")

#: ports that a file of an older version may lack
_LATER = {"api": HIGHEST}


class Ports(Value):
    """TCP ports on 127.0.0.1, 1 to 65535."""

    broker: int = Field(ge=1, le=65_535)
    flower: int = Field(ge=1, le=65_535)
    api: int = Field(ge=1, le=65_535)
    s3: int = Field(ge=1, le=55_535)
    master: int = Field(ge=1, le=55_535)
    volume: int = Field(ge=1, le=55_535)
    filer: int = Field(ge=1, le=55_535)
    admin: int = Field(ge=1, le=55_535)


def choose(folder: Folder, environ: Mapping[str, str] = os.environ, *, needed: frozenset[str] = frozenset(Ports.model_fields),
           free: Callable[[int], bool] | None = None) -> Ports:
    """The ports of this run: fixed ones, else those kept, else new ones; written back where they changed.

    Only ports in ``needed`` are asked to be free (an external service needs none here).
    Raises BadInput for a fixed port that is no port, StackUnavailable for one that is taken.
    """
    is_free = free or port_free
    kept = _kept(folder)
    fixed = _fixed(environ)
    candidates = _candidates({*kept.values(), *fixed.values()})
    chosen: dict[str, int] = {}
    for name in Ports.model_fields:
        port = fixed.get(name) or kept.get(name) or next(candidates)
        while name in needed and not _usable(name, port, is_free):
            if name in fixed:
                raise StackUnavailable(f"Port {port} ({FIXED[name]}) is taken by another program. Stop it, or choose another port.")
            port = next(candidates)
        chosen[name] = port
    ports = Ports.parse(chosen)
    if chosen != kept:
        write_private(folder.ports, ports.model_dump_json(indent=2) + "\n")
    return ports


def port_free(port: int) -> bool:
    """Whether 127.0.0.1:port can be bound now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def _usable(name: str, port: int, is_free: Callable[[int], bool]) -> bool:
    return is_free(port) and (name not in PAIRED or is_free(port + GRPC_OFFSET))


def _kept(folder: Folder) -> dict[str, int]:
    """The ports of earlier runs; a file that is not readable as such is only a reason to choose again. One of an older version lacks some."""
    try:
        stored = json.loads(folder.ports.read_bytes())
        return Ports.parse({**_LATER, **stored}).model_dump(include=set(stored))
    except (OSError, ValueError, TypeError):
        return {}


def _fixed(environ: Mapping[str, str]) -> dict[str, int]:
    fixed = {}
    for name, variable in FIXED.items():
        text = environ.get(variable)
        if not text:
            continue
        most = 65_535 - (GRPC_OFFSET if name in PAIRED else 0)
        if not text.isdigit() or not 1 <= int(text) <= most:
            raise BadInput(f"{variable} is {text!r}, which is no port.", field=variable, value=text,
                           remedy=f"Give a number from 1 to {most}.")
        fixed[name] = int(text)
    return fixed


def _candidates(taken: set[int]) -> Iterator[int]:
    """New ports in random order, none twice."""
    ports = [p for p in range(LOWEST, HIGHEST) if p not in taken]
    random.shuffle(ports)
    yield from ports
    raise StackUnavailable(f"No port from {LOWEST} to {HIGHEST} is free on {LOOPBACK}. Fix ports with {', '.join(FIXED.values())}.")
