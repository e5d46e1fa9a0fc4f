"""The inputs of the runs."""

from __future__ import annotations

import json
from collections.abc import Iterator

from benchmarks.chaos.jobs import FEWEST
from symposia_shared.jobs import Member
from symposia_shared.patterns import OURS, kind_of
from symposia_shared.teams import Team


def line(custom_id: str, model: str, say: str, **more: object) -> bytes:
    """One request."""
    body = {"model": model, "messages": [{"role": "user", "content": say}], **more}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}).encode() + b"\n"


def broken(number: int) -> bytes:
    """One of the ways in which a line can be no request."""
    ways = (b'{"custom_id": "cut-%d", "meth' % number, b"[1, 2, 3]", b'{"method": "POST", "url": "/v1/chat/completions", "body": {}}',
            b'{"custom_id": "x%d", "method": "GET", "url": "/v1/chat/completions", "body": {}}' % number,
            b'{"custom_id": "u%d", "method": "POST", "url": "/v1/nothing", "body": {}}' % number)
    return ways[number // 100 % len(ways)] + b"\n"


def echoes(count: int, *, size: int = 0, broken_every: int = 100) -> Iterator[bytes]:
    """Lines for ``test/echo``, of at least ``size`` bytes; one in ``broken_every`` is broken."""
    pad = "word " * (max(0, size - 140) // 5)
    for number in range(1, count + 1):
        yield broken(number) if broken_every and number % broken_every == 0 else line(f"request-{number}", "test/echo", f"line {number} {pad}".rstrip())


def collaborations(count: int) -> Iterator[bytes]:
    """Lines for each of the patterns in turn, of as few members as each takes."""
    for number in range(1, count + 1):
        kind = kind_of(OURS[number % len(OURS)])
        team = Team(pattern=kind, members=tuple(Member(model="test/echo") for _ in range(FEWEST[kind])))
        yield line(f"request-{number}", team.name, f"How much is {number} times 7?", max_tokens=64, temperature=0.7, seed=number)
