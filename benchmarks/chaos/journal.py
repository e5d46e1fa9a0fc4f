"""The broker's own journal (its append-only file), read from beginning to end: an audit that does not trust the ledger's counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Journal:
    """What the journal says happened. ``whole``: no part of it was rewritten away, so that it reaches back to the first job."""

    whole: bool = True
    commands: int = 0
    claims: int = 0
    recorded: int = 0
    #: turns claimed again, or recorded again, after their reply was recorded
    again: list[str] = field(default_factory=list)
    #: jobs that ended, with how often
    ends: Counter[str] = field(default_factory=Counter)


def read(folder: Path, prefix: str) -> Journal:
    """The journal in a broker's data folder."""
    found = Journal()
    done: set[tuple[str, str]] = set()
    parts = sorted(folder.rglob("appendonly.aof.*.incr.aof"), key=lambda p: int(p.name.split(".")[2]))
    found.whole = bool(parts) and parts[0].name.split(".")[2] == "1"
    for part in parts:
        for command in commands(part.read_bytes()):
            found.commands += 1
            _take(command, prefix, found, done)
    return found


def commands(raw: bytes) -> Iterator[list[str]]:
    """The commands in the protocol's form; what is cut off at the end, or is a note (``#TS:``), is passed over."""
    at = 0
    while at < len(raw):
        end = raw.find(b"\r\n", at)
        if end < 0:
            return
        head, at = raw[at:end], end + 2
        if head[:1] != b"*":
            continue
        words: list[str] = []
        for _ in range(int(head[1:])):
            end = raw.find(b"\r\n", at)
            if end < 0:
                return
            size, at = int(raw[at + 1:end]), end + 2
            words.append(raw[at:at + size].decode(errors="replace"))
            at += size + 2
        if at <= len(raw):
            yield words


def _take(words: list[str], prefix: str, found: Journal, done: set[tuple[str, str]]) -> None:
    name = words[0].upper()
    if name in ("HSET", "HMSET") and words[1].startswith(f"{prefix}job:"):
        job = words[1].removeprefix(f"{prefix}job:")
        for field_name, value in zip(words[2::2], words[3::2], strict=False):
            if field_name.startswith("t:"):
                _turn(job, field_name[2:], value, found, done)
    elif name == "ZADD" and words[1] == f"{prefix}ended":
        found.ends[words[3]] += 1


def _turn(job: str, at: str, value: str, found: Journal, done: set[tuple[str, str]]) -> None:
    if value.startswith("l:"):
        found.claims += 1
    if value.startswith(("l:", "d:", "q")) and (job, at) in done:
        found.again.append(f"{job} turn {at} became {value!r} after its reply was recorded")
    if value.startswith("d:"):
        found.recorded += 1
        done.add((job, at))
