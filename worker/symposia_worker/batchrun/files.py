"""The two files of a batch run: requests in, answers out in the same order, and how a run goes on where another one ended."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from symposia_shared.errors import BadInput, Unavailable
from symposia_shared.openai.lines import MOST_LINE_BYTES, request_id
from symposia_worker.batchrun.waiting import Waiting

#: bytes of finished answers after which they are on the disk for certain
_SYNC_BYTES = 4 * 1024 * 1024
_BLOCK = 1024 * 1024


@dataclass(frozen=True, slots=True)
class RawLine:
    """A line of the input that is not blank."""

    #: from 1, blank lines counted
    number: int
    raw: bytes
    #: the answer's ``request_id``: of the line, its place and the run's options
    id: str


def count_lines(path: Path) -> int:
    """How many lines there are, blank ones left out. Raises BadInput where the file cannot be read."""
    with _opened(path) as lines:
        return sum(1 for _ in _whole_lines(lines))


def read_lines(path: Path, *, options: str) -> Iterator[RawLine]:
    """The lines of the input, one after another; of one that is too long only so much as shows it. Raises BadInput."""
    with _opened(path) as lines:
        for number, raw in _whole_lines(lines):
            yield RawLine(number, raw, request_id(raw, number, options=options))


def _whole_lines(lines: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    number = 0
    while raw := lines.readline(MOST_LINE_BYTES + 2):
        number += 1
        rest = raw
        while not rest.endswith(b"\n") and (rest := lines.readline(_BLOCK)):
            pass
        if raw.strip():
            yield number, raw


def _opened(path: Path) -> IO[bytes]:
    try:
        return path.open("rb")
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}.", field="input", value=str(path),
                       remedy="Name a file of OpenAI batch lines {custom_id, method, url, body}.") from None


@dataclass(slots=True)
class Kept:
    """What an earlier run of the same input with the same options has written."""

    lines: int = 0
    failed: int = 0
    custom_ids: set[str] = field(default_factory=set)


class Output:
    """The answers' file. Its lines are in the input's order, whole, and each names by its ``request_id`` what it answers; so a run that
    was ended at any byte is gone on with after its last whole line. One run at a time holds it. ``waiting`` has what comes too early."""

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.path = path
        try:
            self._file = open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b")  # noqa: SIM115 - closed by ``close``
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Unavailable(f"another run writes {path}. Wait for it, or name another file.") from None
        except OSError as error:
            raise BadInput(f"{path} cannot be written: {error.strerror}.", field="output", value=str(path), remedy="Name another file.") from None
        self._unsynced = 0
        self.waiting = Waiting(path, overwrite=overwrite)
        if overwrite:
            self._file.truncate(0)

    def resume(self, lines: Iterator[RawLine]) -> Kept:
        """Take from ``lines`` those that are answered already; what an interrupted write has left of a line is cut off.

        Raises BadInput where the file holds anything else than answers to these lines under these options.
        """
        kept, end = Kept(), 0
        self._file.seek(0)
        for written in self._file:
            if not written.endswith(b"\n"):
                break
            self._keep(kept, written, next(lines, None))
            end += len(written)
        self._file.seek(end)
        self._file.truncate()
        return kept

    def _keep(self, kept: Kept, written: bytes, line: RawLine | None) -> None:
        try:
            answer = json.loads(written)
            found, status, custom_id = answer["response"]["request_id"], answer["response"]["status_code"], answer["custom_id"]
        except (ValueError, KeyError, TypeError):
            found, status, custom_id = None, 0, None
        if line is None or found != line.id:
            where = "has more lines than the input" if line is None else f"does not answer line {line.number} of the input under these options"
            raise BadInput(f"{self.path} {where} (at its line {kept.lines + 1}): the input or the options have changed since it was written.",
                           field="output", value=str(self.path), remedy="Name another file, or begin again with --overwrite.")
        self.waiting.forget(line.id)
        kept.lines += 1
        kept.failed += status != 200
        if custom_id is not None:
            kept.custom_ids.add(custom_id)

    def write(self, answer: Mapping[str, Any]) -> None:
        """Add a line; after it a killed process loses nothing of it. Raises Unavailable where the disk is full."""
        self.write_encoded(encoded(answer))

    def write_encoded(self, line: bytes) -> None:
        """``write`` of a line in its byte form."""
        try:
            self._file.write(line)
            self._file.flush()
            self._unsynced += len(line)
            if self._unsynced > _SYNC_BYTES:
                self._sync()
        except OSError as error:
            raise Unavailable(f"{self.path} cannot be written further: {error.strerror}. Make room, and run the same command again.") from None

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._unsynced = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._sync()
            self.waiting.close()
        finally:
            self._file.close()


def encoded(answer: Mapping[str, Any]) -> bytes:
    """A line of the output."""
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"
