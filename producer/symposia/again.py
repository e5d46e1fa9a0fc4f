"""A dead job tried again: under a new id, without paying twice for what is recorded.

The new job keeps the closed rounds before the last one in which a turn abstained for a cause that may have passed, and takes
over the completions of that round: only the turns that failed are asked again, and what follows from them. Where the play
itself failed (PlayDiverged, a pattern's bug) it begins anew. Its bill counts what its transcript shows, replies that were
taken over included.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from symposia.handle import Handle
from symposia_shared.errors import UnknownJob
from symposia_shared.ledger.dead import DeadLetters
from symposia_shared.patterns import parse_job
from symposia_shared.results import Result
from symposia_shared.retries import causes_of, cut_at
from symposia_shared.turns import Completion

if TYPE_CHECKING:
    from symposia.client import Client


def try_again(client: Client, job_id: str, *, deadline_s: float | None = None) -> Handle:
    """Submit an ended job again, with more time where ``deadline_s`` says so.

    Raises UnknownJob, BadInput where that was done before (the id tells), and what ``Client.submit`` raises.
    """
    result = client.archive.result(job_id)
    if result is None:
        raise UnknownJob(f"no job {job_id!r} has ended here.", field="job_id", value=job_id, remedy="List the dead letters: symposia dead list")
    job = parse_job(result.job if deadline_s is None else {**result.job, "deadline_s": deadline_s})
    handle = client.submit_records([client.record_of(next_id(job_id), job, keeps=_keep(client, result))])[0]
    DeadLetters(client.ledger).drop([job_id])
    return handle


def next_id(job_id: str) -> str:
    """The id of a job's next try. Always the same one, so that two people cannot start it twice."""
    found = re.fullmatch(r"(.+)-try(\d+)", job_id)
    stem, nth = (found[1], int(found[2])) if found else (job_id, 1)
    return f"{stem[:56]}-try{nth + 1}"


def _keep(client: Client, result: Result) -> int | None:
    """Write what the new job takes over; the number of the round it begins with, None where it takes over nothing."""
    rounds = result.rounds
    if not causes_of(rounds) or (result.error is not None and result.error.type != "NoQuorum"):
        return None
    begins = cut_at(rounds)
    replies = {i: t.reply for i, t in enumerate(rounds[begins].turns) if isinstance(t.reply, Completion) and i in rounds[begins].counted}
    if begins == 0 and not replies:
        return None
    new_id = next_id(result.job_id)
    for record in rounds[:begins]:
        client.archive.keep_round(new_id, record)
    client.archive.keep_replies(new_id, replies)
    return begins
