"""Answers that are finished and wait for an earlier line's: on the disk beside the output, so that neither a kill nor memory loses them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from symposia_shared.errors import BadInput, Unavailable

#: the side file of ``OUT`` is ``OUT.waiting``
SUFFIX = ".waiting"
#: bytes of answers that have found their place, from which on, where they are more than those that wait, the file is written anew
_WASTE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _At:
    """Where an answer lies."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Earlier:
    """What is known of an answer that an earlier run had finished."""

    failed: bool
    custom_id: str | None


class Waiting:
    """A side file of whole answers in the order they came; in memory is only where each lies. Its output's lock is its lock, too.

    The file is there while something waits. Methods raise Unavailable where the disk is full.
    """

    def __init__(self, output: Path, *, overwrite: bool = False) -> None:
        self.path = output.with_name(output.name + SUFFIX)
        self._file: BinaryIO | None = None
        self._held: dict[int, _At] = {}
        self._earlier: dict[str, _At] = {}
        self._end = self._waiting_bytes = 0
        if overwrite:
            self.path.unlink(missing_ok=True)
        elif self.path.exists():
            self._take_up()

    def _take_up(self) -> None:
        """Find the answers that an earlier run has left; what a kill has torn is cut off. Raises BadInput where the file is none of ours."""
        with self.path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n") or (request_id := _request_id(line)) is None:
                    break
                self._earlier[request_id] = _At(self._end, len(line))
                self._end += len(line)
            else:
                line = b""
        if not self._earlier and line.endswith(b"\n"):
            raise BadInput(f"{self.path} holds no answers; it is left alone.", field="output", value=str(self.path),
                           remedy="Move it away, or name another file for the answers.")
        self._waiting_bytes = sum(at.length for at in self._earlier.values())
        self._opened().truncate(self._end)

    def forget(self, request_id: str) -> None:
        """An answer that stands in the output."""
        at = self._earlier.pop(request_id, None)
        self._waiting_bytes -= at.length if at else 0

    def adopt(self, request_id: str, place: int) -> Earlier | None:
        """Let the answer that an earlier run had finished to a line wait for the line's place; None where there is none."""
        at = self._earlier.pop(request_id, None)
        if at is None:
            return None
        answer = json.loads(self._read(at))
        self._held[place] = at
        return Earlier(answer["response"]["status_code"] != 200, answer["custom_id"])

    def put(self, place: int, line: bytes) -> None:
        """Let an answer wait for its place; after it a killed process loses nothing of it."""
        self._held[place] = self._append(self._opened(), line)
        self._waiting_bytes += len(line)

    def take(self, place: int) -> bytes | None:
        """The answer for ``place``, which waits no more; None where it is not there."""
        at = self._held.pop(place, None)
        if at is None:
            return None
        line = self._read(at)
        self._waiting_bytes -= at.length
        if self._end - self._waiting_bytes > max(_WASTE_BYTES, self._waiting_bytes):
            self._shrink()
        return line

    def __contains__(self, place: int) -> bool:
        return place in self._held

    def end(self) -> None:
        """Every line is answered: the file goes."""
        self._held, self._earlier = {}, {}
        self.close()

    def close(self) -> None:
        """Let go of the file; it stays where something waits in it."""
        if self._file is not None:
            self._file.close()
            self._file = None
        if not self._held and not self._earlier:
            self.path.unlink(missing_ok=True)

    # -- the file

    def _opened(self) -> BinaryIO:
        if self._file is None:
            try:
                self._file = _opened(self.path)
            except OSError as error:
                raise BadInput(f"{self.path} cannot be written: {error.strerror}.", field="output", value=str(self.path),
                               remedy="Name another file for the answers.") from None
        return self._file

    def _append(self, file: BinaryIO, line: bytes) -> _At:
        at = _At(self._end, len(line))
        try:
            file.seek(self._end)
            file.write(line)
            file.flush()
        except OSError as error:
            raise Unavailable(f"{self.path} cannot be written further: {error.strerror}. Make room, and run the same command again.") from None
        self._end += len(line)
        return at

    def _read(self, at: _At) -> bytes:
        line = os.pread(self._opened().fileno(), at.length, at.offset)
        if len(line) != at.length:
            raise Unavailable(f"{self.path} was changed while it was in use. Run the same command again.")
        return line

    def _shrink(self) -> None:
        """Write anew what still waits; a kill leaves the old file or the new one."""
        beside = self.path.with_name(self.path.name + ".new")
        beside.unlink(missing_ok=True)
        fresh, old = _opened(beside), self._file
        self._end, end = 0, self._end
        try:
            held = {place: self._append(fresh, self._read(at)) for place, at in self._held.items()}
            earlier = {request_id: self._append(fresh, self._read(at)) for request_id, at in self._earlier.items()}
            beside.replace(self.path)
        except BaseException:
            self._end = end
            fresh.close()
            beside.unlink(missing_ok=True)
            raise
        self._file, self._held, self._earlier = fresh, held, earlier
        if old is not None:
            old.close()


def _opened(path: Path) -> BinaryIO:
    return open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b")


def _request_id(line: bytes) -> str | None:
    try:
        return str(json.loads(line)["response"]["request_id"])
    except (ValueError, KeyError, TypeError):
        return None
