"""The engine protocol, and the wire between a pool and its engine process: one JSON object a line, both ways.

    pool → engine process   load, unload, generate, cancel, stop
    engine process → pool   ready, loaded, refused_load, unloaded, first, delta, done, failed, cancelled, pulse

Every ``generate`` ends in exactly one of ``done``, ``failed`` and ``cancelled``, unless its process ends first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal, Protocol, runtime_checkable

from pydantic import Field, TypeAdapter

from symposia_shared.errors import BadInput, PromptTooLong, Unavailable
from symposia_shared.prompts import Message, Sampling
from symposia_shared.turns import Cause, Completion, Want
from symposia_shared.values import Kinded, Value

Dtype = Literal["float32", "bfloat16", "float16"]

#: ``exact``: greedy tokens are those of torch in float32. ``fast``: 8-bit weights, within a stated loss of perplexity.
Mode = Literal["exact", "fast"]

#: the engine a pool is told to serve by. ``auto``: on a CPU openvino where the form is stored and openvino_genai is installed, else torch
EngineChoice = Literal["auto", "torch", "openvino"]

#: checkpoints of this prefix are scripted: they need no folder and no load
TEST_PREFIX = "test/"

#: a pulse comes at least this often while the process is alive and between two steps
PULSE_EVERY_S = 0.5


class Base(Value):
    """The checkpoint an adapter goes on from, and where its verified files lie."""

    checkpoint: str
    folder: str


class Load(Kinded):
    """Make a checkpoint resident."""

    kind: Literal["load"] = "load"
    checkpoint: str
    #: where its verified files lie; None: it has none (``test/*``)
    folder: str | None = None
    dtype: Dtype = "float32"
    #: the engine that is to run it
    engine: str = "torch"
    mode: Mode = "exact"
    #: of an adapter: its base, which is loaded with it where it is not resident, and stays while any adapter of it does
    base: Base | None = None


class Unload(Kinded):
    """Give a checkpoint's memory back. Turns it still had fail as ``throttled``. A base's weights stay while an adapter of it is resident."""

    kind: Literal["unload"] = "unload"
    checkpoint: str


class Generate(Kinded):
    """Ask a resident checkpoint once."""

    kind: Literal["generate"] = "generate"
    id: str
    checkpoint: str
    messages: tuple[Message, ...] = Field(min_length=1)
    sampling: Sampling = Sampling()
    #: as in ``Turn``; an engine refuses what it cannot do before any decode
    want: Want = "completion"
    raw: bool = False
    suffix: str | None = None
    #: whether ``delta`` events are wanted
    stream: bool = False


class Cancel(Kinded):
    """Stop a request at the next token."""

    kind: Literal["cancel"] = "cancel"
    id: str


class Stop(Kinded):
    """End the process; what is in flight is dropped."""

    kind: Literal["stop"] = "stop"


class Ready(Kinded):
    """The process runs and reads commands."""

    kind: Literal["ready"] = "ready"
    pid: int


class Loaded(Kinded):
    """A checkpoint is resident and has passed its self-test."""

    kind: Literal["loaded"] = "loaded"
    checkpoint: str
    #: bytes of its weights in the device's memory
    bytes: int = 0
    #: bytes of weights and of what its caches hold, or may without asking again
    held_bytes: int = 0
    seconds: float = 0.0
    #: tokens of prompt and completion together
    context: int
    #: whether it has a chat template
    instruct: bool = False
    #: what this engine can do with it: ``generate``, ``infill``, ``embed``, ``seq2seq``, ``score``, and the forms it can enforce:
    #: ``json_schema``, ``choice``, ``regex``
    capabilities: tuple[str, ...] = ("generate",)
    #: its ``model_type``
    family: str = ""
    parameters: int = 0
    cache_bytes_per_token: int = 0


class RefusedLoad(Kinded):
    """A checkpoint was not loaded; ``cause`` is the error's name in the tree of errors."""

    kind: Literal["refused_load"] = "refused_load"
    checkpoint: str
    cause: str
    message: str


class Unloaded(Kinded):
    """A checkpoint is no longer resident (also where it never was)."""

    kind: Literal["unloaded"] = "unloaded"
    checkpoint: str


class First(Kinded):
    """The first token of a request exists. ``at`` is in seconds since the epoch."""

    kind: Literal["first"] = "first"
    id: str
    at: float


class Delta(Kinded):
    """More of a streamed answer; joined, the deltas are its text, before it the reasoning within its marks."""

    kind: Literal["delta"] = "delta"
    id: str
    text: str


class Done(Kinded):
    """A request is answered."""

    kind: Literal["done"] = "done"
    id: str
    completion: Completion


class Failed(Kinded):
    """A request will not be answered."""

    kind: Literal["failed"] = "failed"
    id: str
    cause: Cause
    message: str


class Cancelled(Kinded):
    """A request was stopped as asked."""

    kind: Literal["cancelled"] = "cancelled"
    id: str


class Pulse(Kinded):
    """The process lives: what it has done and holds."""

    kind: Literal["pulse"] = "pulse"
    #: seconds since the epoch
    at: float = 0.0
    #: since the process began, all checkpoints together
    forward_passes: int = 0
    #: sequences that share forward passes, and such as wait for room
    running: int = 0
    waiting: int = 0
    #: bytes of weights by checkpoint
    resident: dict[str, int] = Field(default_factory=dict)
    #: bytes of weights and caches by checkpoint, of the engines that fill memory
    held: dict[str, int] = Field(default_factory=dict)
    #: requests to an endpoint that had to be sent again
    repeats: int = 0
    #: seconds that the longest of the last steps took
    longest_step_s: float = 0.0


Command = Annotated[Load | Unload | Generate | Cancel | Stop, Field(discriminator="kind")]
Event = Annotated[
    Ready | Loaded | RefusedLoad | Unloaded | First | Delta | Done | Failed | Cancelled | Pulse, Field(discriminator="kind"),
]

_COMMAND: TypeAdapter[Command] = TypeAdapter(Command)
_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


class Engine(Protocol):
    """Several resident checkpoints, all their sequences advanced together, one ``step`` at a time.

    Never called from two threads. Between two calls of ``step`` anything may be admitted, cancelled, loaded or unloaded.
    """

    def load(self, order: Load) -> Loaded:
        """Make a checkpoint resident. Raises BadInput, Damaged or Unavailable and then holds nothing of it."""
        ...

    def unload(self, checkpoint: str) -> Sequence[Event]:
        """Drop a checkpoint and return its memory; the events end the turns it still had."""
        ...

    def admit(self, request: Generate) -> None:
        """Queue a request. Raises BadInput (PromptTooLong) or Unavailable before any decode."""
        ...

    def cancel(self, request_id: str) -> bool:
        """Drop a request; False where it is not in flight. No further event is sent for it."""
        ...

    def step(self) -> Sequence[Event]:
        """Advance every busy checkpoint by one forward pass. What fails one checkpoint's turns is their ``failed``."""
        ...

    def abandon(self) -> Sequence[str]:
        """Drop all that is in flight after ``step`` has raised, and return the ids."""
        ...

    @property
    def busy(self) -> bool:
        """Whether anything is in flight."""
        ...

    @property
    def rest_s(self) -> float:
        """Seconds for which ``step`` has nothing to do; 0 where it has."""
        ...

    @property
    def running(self) -> int:
        """Sequences that share forward passes."""
        ...

    @property
    def waiting(self) -> int:
        """Admitted sequences that wait for room."""
        ...

    @property
    def forward_passes(self) -> int:
        """Forward passes so far."""
        ...

    @property
    def resident(self) -> Mapping[str, int]:
        """Bytes of weights by checkpoint."""
        ...


@runtime_checkable
class Waking(Protocol):
    """An engine that waits for something outside: it calls ``wake``, from any thread, when ``step`` has something to tell."""

    wake: Callable[[], None]

    @property
    def repeats(self) -> int:
        """Requests that had to be sent again so far."""
        ...


@runtime_checkable
class Budgeted(Protocol):
    """An engine that fills memory: beside others it may have what they leave of the device's."""

    #: bytes it may fill
    memory_bytes: int

    @property
    def held_bytes(self) -> int:
        """What it fills, or may fill without asking again."""
        ...

    @property
    def held(self) -> Mapping[str, int]:
        """``held_bytes`` by checkpoint."""
        ...


def encode(message: Command | Event) -> bytes:
    """One line of the wire."""
    return message.to_json().encode() + b"\n"


def read_command(line: bytes) -> Command:
    """The command in a line. Raises pydantic.ValidationError."""
    return _COMMAND.validate_json(line)


def read_event(line: bytes) -> Event:
    """The event in a line. Raises pydantic.ValidationError."""
    return _EVENT.validate_json(line)


def cause_of(error: BaseException) -> Cause:
    """The cause a turn fails for when ``error`` was raised over it. Knows torch's errors by name, so as not to import it."""
    if isinstance(error, PromptTooLong):
        return "prompt_too_long"
    if isinstance(error, BadInput):
        return "bad_prompt"
    text = str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in text:
        return "out_of_memory"
    if type(error).__name__ == "AcceleratorError" or "CUDA error" in text or "device-side assert" in text:
        return "device_lost"
    if isinstance(error, Unavailable):
        return "throttled"
    if isinstance(error, TimeoutError):
        return "timeout"
    return "bug"
