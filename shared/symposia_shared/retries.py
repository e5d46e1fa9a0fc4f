"""What is tried again, and what is put aside: by the cause for which a turn abstained.

    cause             tried again
    out_of_memory     twice, and not beside another such turn: the engine has split its batch before it says this
    device_lost       three times (a device whose process dies hands its turns back instead, and that is counted there)
    throttled         six times over about a minute: a remote endpoint asks for patience
    timeout           twice
    bug               once: an engine's own fault, which may have been its neighbour's
    anything else     never: a bad prompt stays one

The round's deadline bounds all of it: a retry that would begin after it is not waited for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from symposia_shared.results import Fault, RoundRecord, State
from symposia_shared.turns import Abstention, Cause, Reply
from symposia_shared.values import Value


class Retry(Value):
    """How a turn is tried again: at most ``most`` times for this cause, after ``first_s`` seconds, then twice that, up to ``longest_s``."""

    first_s: float = Field(gt=0.0)
    longest_s: float = Field(gt=0.0)
    most: int = Field(ge=1)
    #: it runs beside no other turn that is suspected
    alone: bool = False


RETRIES: Mapping[Cause, Retry] = {
    "out_of_memory": Retry(first_s=0.5, longest_s=5.0, most=2, alone=True),
    "device_lost": Retry(first_s=0.5, longest_s=10.0, most=3),
    "throttled": Retry(first_s=1.0, longest_s=30.0, most=6),
    "timeout": Retry(first_s=0.5, longest_s=5.0, most=2),
    "bug": Retry(first_s=0.2, longest_s=2.0, most=1),
}

#: causes a later try could mend, gravest first: by the first that is found a dead letter is grouped
MENDABLE: tuple[Cause, ...] = ("poison", "device_lost", "out_of_memory", "timeout", "throttled", "bug", "deadline")


def retry_for(reply: Reply) -> Retry | None:
    """How a turn with this reply is tried again; None where it is not."""
    return RETRIES.get(reply.cause) if isinstance(reply, Abstention) else None


def delay_s(retry: Retry, tried: int, jitter: float) -> float:
    """Seconds to wait before try ``tried`` + 1 (0: the first retry); ``jitter`` within 0..1 takes up to half of it away."""
    return min(retry.longest_s, retry.first_s * 2.0 ** min(tried, 30)) * (1.0 - jitter / 2.0)


def causes_of(rounds: Sequence[RoundRecord]) -> set[Cause]:
    """The causes for which turns of these rounds abstained."""
    return {t.reply.cause for r in rounds for t in r.turns if isinstance(t.reply, Abstention)}


def letter_reason(state: State, rounds: Sequence[RoundRecord], fault: Fault | None) -> str | None:
    """Why an ended job belongs to the dead letters; None where it does not.

    A failed one does for a cause a retry could mend, or where its play failed; one that ended well does where a turn was poison.
    """
    if state != "failed":
        return "poison" if state == "done" and "poison" in causes_of(rounds) else None
    found = causes_of(rounds[-1:])
    if fault is not None and fault.type != "NoQuorum":
        return fault.type
    return next((cause for cause in MENDABLE if cause in found), None)


def cut_at(rounds: Sequence[RoundRecord]) -> int:
    """The number of the round with which a retried job begins: the last in which a turn abstained for a mendable cause; 0 where none did."""
    return max((r.round for r in rounds if causes_of([r]) & set(MENDABLE)), default=0)
