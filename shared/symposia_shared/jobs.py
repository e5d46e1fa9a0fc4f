"""What a producer submits."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator

from symposia_shared.errors import BadInput
from symposia_shared.prompts import Message, Sampling
from symposia_shared.turns import Turn
from symposia_shared.values import Kinded, Value, bad_input

if TYPE_CHECKING:
    from symposia_shared.play import Play

#: the capabilities either of which writes text
TEXT = "generate|seq2seq"
#: texts of one embedding job
MOST_TEXTS = 2048

_MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)?")
_TEST_MODEL = re.compile(r"test/(echo|garbage|say:.{1,2000}|slow:\d{1,7}|failing:[a-z_]{1,32})", re.DOTALL)


def _model_id(name: str) -> str:
    if _TEST_MODEL.fullmatch(name) or (len(name) <= 200 and not name.startswith("test/") and _MODEL.fullmatch(name)):
        return name
    if name.startswith("test/"):
        raise ValueError(f"{name!r} is not a test checkpoint: they are test/echo, test/say:TEXT, test/slow:MS, test/garbage and "
                         "test/failing:CAUSE.")
    raise ValueError(f"{name!r} is not a checkpoint's name: write NAME or OWNER/NAME in letters, digits, '.', '_' and '-'.")


#: a checkpoint's id, ``OWNER/NAME`` or ``NAME``, or a scripted ``test/...`` one
ModelId = Annotated[str, AfterValidator(_model_id)]


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("the prompt is empty; say what is asked.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the prompt holds a lone surrogate at character {error.start}, which is no text; remove it.") from None
    return text


#: text that says something
PromptText = Annotated[str, AfterValidator(_not_blank)]


class Job(Kinded, ABC):
    """What every job has. ``kind`` tells them apart in JSON: ``inference`` or a pattern's name."""

    #: seconds from submission after which the job is closed with what there is
    deadline_s: float = Field(3600.0, gt=0.0, le=30 * 86400.0)
    #: free words to find or cancel jobs by
    tags: tuple[Annotated[str, Field(max_length=64)], ...] = Field((), max_length=16)
    #: which of the jobs that wait is begun first; age outweighs it in time (docs/OPERATIONS.md)
    priority: Literal["interactive", "normal", "batch"] = Field("normal", description="The class it waits in: interactive before normal before batch.")
    sampling: Sampling = Sampling()
    #: turns that draw nothing, or from a seed that was given, may be answered with a reply kept from another job of the tenant
    reuse: bool = Field(False, description="Answer turns with replies kept from equal turns of earlier jobs, and keep new ones.")

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise bad_input(type(self), error) from None

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> Self:
        return cls(**raw)

    @property
    def name(self) -> str:
        """The kind, as it stands in Flower and in listings."""
        return str(getattr(self, "kind"))  # noqa: B009 - each concrete job declares it as a literal

    @property
    @abstractmethod
    def models(self) -> tuple[str, ...]:
        """The checkpoints this job needs, each once, in order of first use."""

    @property
    def repeatable(self) -> bool:
        """Whether asking again gives the same: nothing is drawn, or from a seed that was given."""
        return self.sampling.temperature == 0.0 or self.sampling.seed is not None

    def seeded(self, seed: int) -> Self:
        """The same job with its draws fixed by ``seed``, unless it has a seed or draws nothing."""
        if self.sampling.seed is not None or self.sampling.temperature == 0.0:
            return self
        return self.model_copy(update={"sampling": self.sampling.model_copy(update={"seed": seed})})


class SingleTurn(Job):
    """A job of one turn: it needs no coordinator. Submit opens its round, and the pool that answers it commits its result."""

    model: ModelId

    @property
    def models(self) -> tuple[str, ...]:
        return (self.model,)

    @property
    @abstractmethod
    def turn(self) -> Turn:
        """The one turn of this job."""


class Inference(SingleTurn):
    """One prompt to one model: ``prompt`` for one user message, or ``messages`` for a chat."""

    kind: Literal["inference"] = "inference"
    prompt: PromptText | None = None
    messages: tuple[Message, ...] = ()
    #: the prompt is put to the model as it stands, without its chat template
    raw: bool = False
    #: infill: what follows the hole behind the prompt; for checkpoints that can
    suffix: str | None = None
    #: ``score``: the last message is not answered, its log-probability is reported
    want: Literal["completion", "score"] = "completion"

    @model_validator(mode="after")
    def _one_question(self) -> Self:
        if (self.prompt is None) == (not self.messages):
            raise ValueError("give either 'prompt' or 'messages', and one of them.")
        if self.messages and not any(m.content.strip() for m in self.messages):
            raise ValueError("the prompt is empty; say what is asked in 'messages'.")
        return self

    @property
    def turn(self) -> Turn:
        """The one turn of this job."""
        messages = self.messages or (Message(role="user", content=self.prompt or ""),)
        return Turn(member=self.model, model=self.model, messages=messages, sampling=self.sampling, want=self.want, raw=self.raw,
                    suffix=self.suffix)


class Embedding(SingleTurn):
    """Texts to vectors, by a checkpoint that can ``embed``."""

    kind: Literal["embedding"] = "embedding"
    texts: tuple[PromptText, ...] = Field(min_length=1, max_length=MOST_TEXTS)

    @property
    def turn(self) -> Turn:
        """The one turn of this job."""
        messages = tuple(Message(role="user", content=t) for t in self.texts)
        return Turn(member=self.model, model=self.model, messages=messages, sampling=self.sampling, want="embedding")


#: the jobs of one turn by kind
SINGLE_TURN: Mapping[str, type[SingleTurn]] = {"inference": Inference, "embedding": Embedding}
SINGLE_KINDS = frozenset(SINGLE_TURN)


def parse_single(raw: Mapping[str, Any]) -> SingleTurn:
    """The job of one turn that a mapping describes; without ``kind`` it is an inference. Raises BadInput."""
    kind = raw.get("kind", "inference")
    if kind not in SINGLE_KINDS:
        raise BadInput(f"kind is {kind!r}, which is no job of one turn.", field="kind", value=kind, remedy=f"Use one of {', '.join(SINGLE_TURN)}.")
    return SINGLE_TURN[kind].parse(raw)


def needs_of(turn: Turn) -> tuple[str, ...]:
    """What a checkpoint must be able to do for a turn: words of ``capabilities``; ``a|b`` where either will do."""
    if turn.want != "completion":
        return ("embed",) if turn.want == "embedding" else ("score",)
    form = turn.sampling.form
    return ("infill" if turn.suffix is not None else TEXT, *(() if form is None else (form.kind,)))


class Member(Value):
    """A checkpoint in a collaboration, with what sets it apart there."""

    model: ModelId
    #: unique within the job; left out, it is the model's name, numbered where it repeats
    name: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    #: what this member is told about its part, as a system message
    role: Annotated[str, Field(max_length=4000)] | None = None
    #: billions of parameters, by which a weighted vote counts where no accuracies are given; filled in at submit where known
    params_b: float | None = Field(None, gt=0.0, le=1e5)


def _members(given: tuple[Member, ...]) -> tuple[Member, ...]:
    """The same members, each with a name of its own."""
    named: list[Member] = []
    taken = {m.name for m in given if m.name}
    if len(taken) != sum(1 for m in given if m.name):
        raise ValueError("two members have the same name; names are unique within a job.")
    total: dict[str, int] = {}
    for m in given:
        total[m.model] = total.get(m.model, 0) + (m.name is None)
    seen: dict[str, int] = {}
    for m in given:
        if m.name is None:
            seen[m.model] = seen.get(m.model, 0) + 1
            name = m.model if total[m.model] == 1 else f"{m.model}#{seen[m.model]}"
            while name in taken:
                name += "'"
            taken.add(name)
            m = m.model_copy(update={"name": name[:64] if len(name) <= 64 else f"{name[:56]}~{len(named)}"})
        named.append(m)
    return tuple(named)


#: members of a collaboration, named when the job is made
Members = Annotated[tuple[Member, ...], AfterValidator(_members)]


class Collaboration(Job):
    """A pattern over members. A subclass gives ``kind``, ``version`` and ``play``."""

    #: raised when a change to the play makes recorded rounds of older jobs mean something else
    version: ClassVar[int] = 1

    prompt: PromptText
    members: Members
    #: the fewest members that must speak in a round; None: one
    quorum: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _quorum_within_members(self) -> Self:
        if self.quorum is not None and self.quorum > len(self.members):
            raise ValueError(f"quorum is {self.quorum}, but there are {len(self.members)} members; lower it or add members.")
        return self

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(m.model for m in self.members))

    @abstractmethod
    def play(self) -> Play:
        """The course of rounds: yields each, receives its replies, returns the verdict. Pure."""


def require(condition: bool, message: str, *, field: str, value: object = None, remedy: str = "") -> None:
    """Raise BadInput unless ``condition`` holds."""
    if not condition:
        raise BadInput(message, field=field, value=value, remedy=remedy)
