"""Every error a person or a program sees, in one tree.

    SymposiaError
    ├── BadInput             exit 2   the job, a file or an option is wrong; nothing was queued
    │   ├── UnknownModel              no such checkpoint in the model store
    │   ├── NotPlaced                 the checkpoint is stored, but no pool is meant to serve it
    │   ├── PromptTooLong             the prompt cannot fit the checkpoint's context
    │   ├── UnknownJob                no job of this id was ever recorded here
    │   └── KeyReused                 an idempotency key came with another body than before
    ├── Unavailable          exit 3   something outside is away; the same call may work later
    │   ├── BrokerUnavailable         Redis cannot be reached or refuses to write
    │   ├── StoreUnavailable          S3 cannot be reached or refuses
    │   ├── Busy                      all is full or being drained: nothing was recorded; ``retry_after_s`` says when to come again
    │   │   └── Limited               the tenant has had its share for now
    │   ├── StackUnavailable          no stack runs in this folder, or one already does
    │   └── NotYet                    the job has not ended within the time given (also a TimeoutError)
    ├── JobFailed            exit 4   the job ended without an answer
    │   ├── NoQuorum                  too few members spoke
    │   └── PlayDiverged              the code no longer agrees with the recorded rounds
    ├── JobCancelled         exit 5   the job was cancelled
    ├── Conflict             exit 4   an object that is written once exists with other content
    └── Damaged              exit 4   stored bytes differ from their manifest

A message says what happened, with which values, and what to do next.
"""

from __future__ import annotations

from typing import ClassVar


class SymposiaError(Exception):
    """The root of the tree. ``exit_code`` is what the command line returns for it."""

    exit_code: ClassVar[int] = 4

    @property
    def name(self) -> str:
        """The error's name as it stands in results and in JSON."""
        return type(self).__name__


class BadInput(SymposiaError, ValueError):
    """Something given is wrong: ``field`` names it, ``value`` is what was given, ``remedy`` says what to do."""

    exit_code = 2

    def __init__(self, message: str, *, field: str = "", value: object = None, remedy: str = "") -> None:
        self.field, self.value, self.remedy = field, value, remedy
        super().__init__(f"{message} {remedy}".strip())


class UnknownModel(BadInput):
    """No checkpoint of this name is in the model store."""


class NotPlaced(BadInput):
    """The checkpoint is known, but no pool is meant to serve it."""


class PromptTooLong(BadInput):
    """The prompt cannot fit the checkpoint's context window."""


class UnknownJob(BadInput):
    """No job of this id is in the ledger or in the store."""


class KeyReused(BadInput):
    """An idempotency key came with another body than it stands for."""


class Unavailable(SymposiaError):
    """Something outside is away; the same call may work later."""

    exit_code = 3


class BrokerUnavailable(Unavailable):
    """Redis cannot be reached, or refuses to write."""


class StoreUnavailable(Unavailable):
    """S3 cannot be reached, or refuses."""


class Busy(Unavailable):
    """A limit is reached and nothing was recorded; ``retry_after_s`` is when room is to be expected, in seconds, by the measured rate."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class Limited(Busy):
    """A tenant's own limit is reached; ``what`` is requests, tokens or jobs."""

    def __init__(self, message: str, *, what: str, limit: int, retry_after_s: float) -> None:
        self.what, self.limit = what, limit
        super().__init__(message, retry_after_s=retry_after_s)


class StackUnavailable(Unavailable):
    """No stack runs in this folder, or one already does."""


class NotYet(Unavailable, TimeoutError):
    """The job has not ended within the time given; it goes on, and can be asked for again."""


class JobFailed(SymposiaError):
    """The job ended without an answer."""

    exit_code = 4


class NoQuorum(JobFailed):
    """Too few members spoke for the round to count."""


class PlayDiverged(JobFailed):
    """Replaying the play over its recorded replies yields another round than the one recorded."""


class JobCancelled(SymposiaError):
    """The job was cancelled before it ended."""

    exit_code = 5


class Conflict(SymposiaError):
    """An object that is written once exists with other content."""


class Damaged(SymposiaError):
    """Stored bytes differ from what their manifest says."""


def job_error(name: str, message: str) -> SymposiaError:
    """The typed error for what a result recorded under ``name``; an unknown name is a plain JobFailed."""
    known: dict[str, type[SymposiaError]] = {c.__name__: c for c in (NoQuorum, PlayDiverged, JobCancelled, JobFailed)}
    return known.get(name, JobFailed)(message)
