"""One member asked once, and what came back."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from symposia_shared.prompts import Message, Sampling
from symposia_shared.values import Kinded, Value

FinishReason = Literal["stop", "length"]

#: Why a member did not speak. The first group comes from engines, the second from the round's end.
Cause = Literal[
    "out_of_memory", "device_lost", "throttled", "timeout", "bad_prompt", "prompt_too_long", "refused", "bug", "poison",
    "deadline", "settled", "quorum", "cancelled",
]

#: What is wanted of a checkpoint: text that goes on; a vector of each message; or how likely it finds the last message.
Want = Literal["completion", "embedding", "score"]

#: the model of a turn in which free texts are compared; its reply is JSON, or an abstention where no such model is installed
LIKENESS = "check/likeness"


class Turn(Value):
    """A member, the checkpoint it speaks with, and what it is asked."""

    #: the member's name within its job
    member: str
    model: str
    #: chat messages, oldest first; a base model is given their contents as plain text
    messages: tuple[Message, ...] = Field(min_length=1)
    sampling: Sampling = Sampling()
    #: ``embedding``: each message is a text of its own. ``score``: the last message is the text whose log-probability is asked
    want: Want = "completion"
    #: the messages' contents are the prompt as they stand; no chat template is put around them
    raw: bool = False
    #: infill: what follows the hole behind the last message
    suffix: str | None = None
    #: places of the turns of its round that must have ended before it is asked; its messages are then ``Round.ask``'s
    after: tuple[int, ...] = ()

    @property
    def is_check(self) -> bool:
        """Whether no model is asked but a check is run (``check/python``): its reply is recorded like any other."""
        return self.model.startswith("check/")


class Usage(Value):
    """Tokens as the checkpoint's own tokenizer counts them."""

    prompt_tokens: int = Field(0, ge=0)
    completion_tokens: int = Field(0, ge=0)


class TokenLogprob(Value):
    """A token of a completion, and how likely it was by the model's own distribution (natural logarithm)."""

    token: str
    logprob: float
    #: the likeliest tokens at this place, likeliest first
    top: tuple[tuple[str, float], ...] = ()


class Timing(Value):
    """When things happened to a turn, in seconds since the epoch by the pool's clock."""

    claimed_at: float = 0.0
    first_token_at: float | None = None
    last_token_at: float | None = None


class Kept(Value):
    """Where a reply is kept to be given again."""

    #: its key in S3
    key: str
    #: the job it was made in; empty where that is this one
    made_in: str = ""


class Completion(Kinded):
    """What a member said."""

    kind: Literal["completion"] = "completion"
    text: str
    finish_reason: FinishReason = "stop"
    usage: Usage = Usage()
    #: a thinking model's reasoning: hidden from peers and extraction, counted in ``usage``
    reasoning: str | None = None
    #: mean natural log-probability of the completion's tokens, where the engine reports it
    logprob_mean: float | None = None
    #: by token, where ``Sampling.logprobs`` asked for it; of a scored text, its own tokens
    logprobs: tuple[TokenLogprob, ...] | None = None
    #: the probability of each option of a ``ChoiceForm``; they add up to one. None from an endpoint, which chooses without telling them
    options: dict[str, float] | None = None
    #: of an embedding: one vector of length one per message
    vectors: tuple[tuple[float, ...], ...] | None = None
    timing: Timing = Timing()
    #: the pool that ran it
    pool: str = ""
    #: the engine that made it and in what precision: ``torch float32``, ``openvino exact``, ``openvino fast``, ``openai``, ``scripted``
    engine: str = ""
    #: set where it was kept to be given again, or is a kept one
    kept: Kept | None = None

    @property
    def spoke(self) -> bool:
        """True: a completion is an answer."""
        return True

    @property
    def reused(self) -> bool:
        """Whether it was made in another job: then it cost this one nothing."""
        return self.kept is not None and self.kept.made_in != ""


class Abstention(Kinded):
    """Why a member said nothing that counts."""

    kind: Literal["abstention"] = "abstention"
    cause: Cause
    message: str = ""
    timing: Timing = Timing()
    pool: str = ""

    @property
    def spoke(self) -> bool:
        """False: an abstention is never taken for an answer."""
        return False


Reply = Annotated[Completion | Abstention, Field(discriminator="kind")]
