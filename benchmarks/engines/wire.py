"""What the benchmark and a contender's process say to one another: one JSON object a line.

    benchmark → contender   run (requests with arrival offsets)
    contender → benchmark   ready, then for each run: began, one answer per request, over

Times are seconds since the epoch by the machine's clock. The contender ends when its standard input does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt. ``text`` tokenizes to ``ids``; exactly ``max_new`` tokens are wanted, ``at_s`` after the run began."""

    id: str
    ids: tuple[int, ...]
    text: str
    max_new: int
    at_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back, and when the asker had it. A contender that gives no ids gives the text."""

    id: str
    #: when the first token existed; None: the contender does not tell
    first_at: float | None
    last_at: float
    tokens: int
    ids: tuple[int, ...] | None = None
    text: str | None = None
    #: why there is no answer
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """The contender has loaded and can be asked."""

    #: seconds from the program's begin to here
    load_s: float
    #: versions and settings worth printing beside its figures
    facts: dict[str, str]
    #: processes that work for it and are not its children
    pids: tuple[int, ...] = ()


def run_line(requests: Iterable[Request]) -> str:
    """The line that starts a run."""
    return json.dumps({"say": "run", "requests": [asdict(r) for r in requests]})


def line(say: str, value: object = None, **fields: object) -> str:
    """A contender's line; ``value`` is one of the dataclasses above."""
    return json.dumps({"say": say, **(asdict(value) if value is not None else {}), **fields})  # type: ignore[call-overload]


def request_of(raw: dict[str, Any]) -> Request:
    """The request in a JSON object."""
    return Request(**{**raw, "ids": tuple(raw["ids"])})


def answer_of(raw: dict[str, Any]) -> Answer:
    """The answer in a JSON object."""
    ids = raw.get("ids")
    return Answer(**{**raw, "ids": None if ids is None else tuple(ids)})
