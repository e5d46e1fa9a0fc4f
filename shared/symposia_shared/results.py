"""What is committed when a job has ended: the job, its transcript, its verdict and its bill."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from symposia_shared.errors import BadInput, JobCancelled, job_error
from symposia_shared.turns import Completion, Reply, TokenLogprob, Turn
from symposia_shared.values import Value
from symposia_shared.verdicts import Verdict

State = Literal["done", "failed", "cancelled"]

#: how a round came to its end
ClosedBy = Literal["all", "quorum", "settled", "deadline", "cancelled"]


class TurnRecord(Value):
    """One turn and its reply, as the transcript keeps them."""

    turn: Turn
    reply: Reply


class RoundRecord(Value):
    """A closed round: who was asked what, who answered, who was counted."""

    round: int = Field(ge=0)
    digest: str
    closed_by: ClosedBy
    #: places of the turns whose replies were in when the round was closed
    counted: tuple[int, ...]
    turns: tuple[TurnRecord, ...]


class Bill(Value):
    """What a job used."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    #: seconds between claim and last token, summed over the turns that answered
    turn_seconds: float = 0.0
    #: tokens that turns stopped before their end may have used besides, at most
    uncounted_tokens_at_most: int = 0
    #: turns answered with a reply kept from another job: they are in none of the above
    reused_calls: int = 0

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens together."""
        return self.prompt_tokens + self.completion_tokens


class Fault(Value):
    """Why a job has no answer: an error's name in the tree of errors, and its message."""

    type: str
    message: str


class Result(Value):
    """One job, ended. Committed once to S3 under the job's id."""

    job_id: str
    state: State
    verdict: Verdict | None = None
    error: Fault | None = None
    rounds: tuple[RoundRecord, ...] = ()
    bill: Bill = Bill()
    #: the job as submitted; ``symposia_shared.patterns.parse_job`` reads it
    job: dict[str, Any]
    #: version of the play that was run
    version: int = 1
    submitted_at: float = 0.0
    ended_at: float = 0.0
    #: ``s3://bucket/key`` of this object
    result_uri: str = ""

    @property
    def answer(self) -> str | None:
        """The verdict's answer, or None."""
        return self.verdict.answer if self.verdict else None

    @property
    def completion(self) -> Completion | None:
        """What the model of a job of one turn replied: text, reasoning, log-probabilities, options, vectors. None for any other job."""
        if len(self.rounds) != 1 or len(self.rounds[0].turns) != 1:
            return None
        reply = self.rounds[0].turns[0].reply
        return reply if isinstance(reply, Completion) else None

    def raise_for_state(self) -> Result:
        """This result if the job is done; else the typed error it ended with."""
        if self.state == "cancelled":
            raise JobCancelled(f"job {self.job_id} was cancelled; its transcript so far is at {self.result_uri}.")
        if self.state == "failed":
            fault = self.error or Fault(type="JobFailed", message="no reason was recorded")
            raise job_error(fault.type, f"{fault.message} (job {self.job_id}; transcript: {self.result_uri})")
        return self


class Score(Value):
    """How likely a checkpoint finds a text: natural log-probabilities by its own tokens."""

    text: str
    total: float
    mean: float
    tokens: tuple[TokenLogprob, ...]

    @classmethod
    def of(cls, reply: Completion) -> Score:
        """The score a reply to ``want="score"`` holds. Raises BadInput where it holds none."""
        if not reply.logprobs:
            raise BadInput("this reply has no log-probabilities, so it is no score.", field="logprobs", remedy="Ask with want='score'.")
        total = math.fsum(t.logprob for t in reply.logprobs)
        return cls(text=reply.text, total=total, mean=total / len(reply.logprobs), tokens=reply.logprobs)


def bill_of(rounds: Sequence[RoundRecord]) -> Bill:
    """The sum of what the turns of ``rounds`` used."""
    calls = prompt = completion = at_most = reused = 0
    seconds = 0.0
    for record in rounds:
        for item in record.turns:
            reply = item.reply
            if reply.kind == "completion" and reply.reused:
                reused += 1
            elif reply.kind == "completion":
                calls += 1
                prompt += reply.usage.prompt_tokens
                completion += reply.usage.completion_tokens
                seconds += max(0.0, (reply.timing.last_token_at or 0.0) - reply.timing.claimed_at)
            elif reply.kind == "abstention" and reply.cause in ("settled", "quorum", "deadline", "cancelled") and reply.timing.claimed_at:
                calls += 1
                at_most += item.turn.sampling.max_tokens if item.turn.want == "completion" else 0
    return Bill(calls=calls, prompt_tokens=prompt, completion_tokens=completion, turn_seconds=round(seconds, 6),
                uncounted_tokens_at_most=at_most, reused_calls=reused)
