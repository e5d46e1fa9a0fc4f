"""What a model is asked: messages, and how its answer is sampled."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from symposia_shared.values import Value

Role = Literal["system", "user", "assistant"]


class Message(Value):
    """One message of a chat."""

    role: Role
    content: str


class Sampling(Value):
    """How tokens are chosen. ``temperature`` 0 is greedy; then seed, top_p, top_k and min_p have no effect."""

    #: at most so many new tokens
    max_tokens: int = Field(256, ge=1, le=1_000_000)
    temperature: float = Field(0.0, ge=0.0, le=10.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    #: 0: all
    top_k: int = Field(0, ge=0)
    min_p: float = Field(0.0, ge=0.0, le=1.0)
    repetition_penalty: float = Field(1.0, gt=0.0, le=10.0)
    #: None only where nothing is drawn; a job that draws is given a seed when it is submitted
    seed: int | None = Field(None, ge=0, lt=2**63)
    #: strings that end the answer; not part of it
    stop: tuple[str, ...] = Field((), max_length=16)

    def reseeded(self, offset: int) -> Sampling:
        """The same sampling with a seed of its own, ``offset`` places on."""
        return self if self.seed is None else self.model_copy(update={"seed": (self.seed + offset) % 2**63})


def user(text: str, system: str | None = None) -> tuple[Message, ...]:
    """The messages of one question."""
    head = (Message(role="system", content=system),) if system else ()
    return (*head, Message(role="user", content=text))
