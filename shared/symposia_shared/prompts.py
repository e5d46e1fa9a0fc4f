"""What a model is asked: messages, and how its answer is sampled."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from symposia_shared.values import Kinded, Value

Role = Literal["system", "user", "assistant"]


class Message(Value):
    """One message of a chat."""

    role: Role
    content: str


class JsonForm(Kinded):
    """The answer is JSON that a schema describes; an empty schema admits any JSON object."""

    kind: Literal["json_schema"] = "json_schema"
    #: a JSON Schema (draft 2020-12); what a grammar cannot enforce is refused before the request is admitted
    definition: dict[str, Any] = Field(default_factory=dict)


class ChoiceForm(Kinded):
    """The answer is one of the options: each is scored, and the likeliest is said (``Completion.options`` has their probabilities)."""

    kind: Literal["choice"] = "choice"
    options: tuple[Annotated[str, Field(min_length=1, max_length=1000)], ...] = Field(min_length=1, max_length=256)


class RegexForm(Kinded):
    """The whole answer matches a regular expression, in the syntax of Rust's ``regex``: no look-around, no back-references."""

    kind: Literal["regex"] = "regex"
    pattern: str = Field(min_length=1, max_length=4096)


#: what an answer must look like; enforced while it is decoded
Form = Annotated[JsonForm | ChoiceForm | RegexForm, Field(discriminator="kind")]


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
    #: report the log-probability of each token, with so many of the likeliest beside it; None: only their mean
    logprobs: int | None = Field(None, ge=0, le=20)
    #: what the answer must look like
    form: Form | None = None

    def reseeded(self, offset: int) -> Sampling:
        """The same sampling with a seed of its own, ``offset`` places on."""
        return self if self.seed is None else self.model_copy(update={"seed": (self.seed + offset) % 2**63})


def user(text: str, system: str | None = None) -> tuple[Message, ...]:
    """The messages of one question."""
    head = (Message(role="system", content=system),) if system else ()
    return (*head, Message(role="user", content=text))
