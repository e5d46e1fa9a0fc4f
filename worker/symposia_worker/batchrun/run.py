"""The run itself: keep the engine's batch full, hear its answers in any order, write them in the input's."""

from __future__ import annotations

import logging
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from symposia_shared.errors import BadInput, SymposiaError, Unavailable
from symposia_shared.jobs import needs_of
from symposia_shared.openai.lines import BadLine, answer_line, bad_line, error_line, read_line
from symposia_shared.openai.replies import answer_body, fault_of
from symposia_shared.openai.requests import Request
from symposia_shared.prompts import Sampling
from symposia_shared.turns import Abstention, Completion, Turn
from symposia_worker.batchrun.files import Kept, Output, RawLine, encoded

log = logging.getLogger(__name__)

#: lines read beyond the oldest that is not answered: what restoring the order may cost in memory
READ_AHEAD = 4096
#: a request whose engine died this often runs beside no other such request; after so many deaths it is given up
SUSPECT_DEATHS, MOST_DEATHS = 2, 4
#: tries to start a dead engine process again, and seconds before the second one (doubling)
RESTARTS, RESTART_S = 5, 1.0


class Asked(Protocol):
    """What a run needs of its engine process (``engines.client.EngineProcess``)."""

    def generate(self, turn_id: str, turn: Turn, on_first: Callable[[float], None] | None,
                 on_done: Callable[[Completion | Abstention], None]) -> None: ...

    def restart(self) -> None: ...

    @property
    def alive(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Orders:
    """What holds for every line of a run."""

    #: the checkpoint that answers, whatever a body's ``model`` says
    model: str
    #: what it can do: words of ``Loaded.capabilities``
    capabilities: tuple[str, ...]
    #: no answer gets more new tokens than this
    max_tokens: int | None = None
    #: of lines that name none
    temperature: float | None = None
    #: requests the engine process has at once
    window: int = 128


@dataclass(slots=True)
class Tally:
    """What a run has done so far; ``kept`` lines were answered by an earlier one."""

    lines: int = 0
    kept: int = 0
    kept_failed: int = 0
    written: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    engine_restarts: int = 0
    asked_again: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.began

    @property
    def tokens_per_s(self) -> float:
        """Completion tokens a second, of answers that are complete."""
        return self.completion_tokens / max(self.seconds, 1e-9)


@dataclass(slots=True)
class _Open:
    """A line that is being answered."""

    line: RawLine
    place: int
    custom_id: str
    request: Request
    completions: list[Completion | None]


@dataclass(slots=True)
class _Ask:
    """One turn of a line."""

    id: str
    open: _Open
    choice: int
    turn: Turn
    deaths: int = 0


class BatchRun:
    """Answers ``lines`` into ``output``. Give ``died`` to the engine process as its ``on_death``."""

    def __init__(self, orders: Orders, lines: Iterator[RawLine], output: Output, kept: Kept, *, total: int, wall: Callable[[], float] = time.time,
                 told: Callable[[Tally], None] = lambda _: None) -> None:
        self.orders, self._lines, self._output, self._told, self._wall = orders, lines, output, told, wall
        self.tally = Tally(lines=total, kept=kept.lines, kept_failed=kept.failed)
        self._custom_ids = kept.custom_ids
        self._events: queue.SimpleQueue[tuple[str, Completion | Abstention] | list[str]] = queue.SimpleQueue()
        self._asks: deque[_Ask] = deque()
        self._running: dict[str, _Ask] = {}
        self._suspects: deque[_Ask] = deque()
        self._read = self._written = 0
        self._waiting = output.waiting
        self._adopted: set[int] = set()
        self._exhausted = False

    def died(self, ids: Sequence[str]) -> None:
        """The engine process is gone with these requests."""
        self._events.put(list(ids))

    def run(self, engine: Asked) -> Tally:
        """Until every line is answered. Raises Unavailable where the engine does not start again or the disk is full; run again then."""
        while True:
            self._fill(engine)
            if not self._running:
                if self._exhausted and not self._asks and not self._suspects:
                    self._waiting.end()
                    return self.tally
                if self._asks or self._suspects:
                    self._hear(engine, within_s=0.5)
                continue
            self._hear(engine, within_s=0.5)

    # -- asking

    def _fill(self, engine: Asked) -> None:
        while len(self._running) < self.orders.window:
            if self._suspects and not any(a.deaths >= SUSPECT_DEATHS for a in self._running.values()):
                ask = self._suspects.popleft()
            elif self._asks or self._read_one():
                if not self._asks:
                    continue  # a bad line
                ask = self._asks.popleft()
            else:
                return
            if not self._ask(engine, ask):
                return

    def _ask(self, engine: Asked, ask: _Ask) -> bool:
        """False where no engine process runs: its death is on its way to us."""
        self._running[ask.id] = ask
        try:
            engine.generate(ask.id, ask.turn, None, partial(self._done, ask.id))
        except Unavailable:
            del self._running[ask.id]
            self._put_back(ask)
            return False
        return True

    def _done(self, ask_id: str, reply: Completion | Abstention) -> None:
        self._events.put((ask_id, reply))

    def _put_back(self, ask: _Ask) -> None:
        (self._suspects if ask.deaths >= SUSPECT_DEATHS else self._asks).appendleft(ask)

    def _read_one(self) -> bool:
        """Read a line, as far as those that wait for their place allow."""
        if self._exhausted or self._read - self._written >= READ_AHEAD:
            return False
        line = next(self._lines, None)
        if line is None:
            self._exhausted = True
            return False
        place = self._read
        self._read += 1
        if self._adopt(line, place):
            return True
        try:
            self._begin(line, place)
        except BadLine as error:
            self._finish(place, encoded(bad_line(error, request_id=line.id, number=line.number)), failed=True)
        return True

    def _adopt(self, line: RawLine, place: int) -> bool:
        """Whether an earlier run had finished the line's answer, but not written it in its place."""
        earlier = self._waiting.adopt(line.id, place)
        if earlier is None:
            return False
        self._adopted.add(place)
        self.tally.kept += 1
        self.tally.kept_failed += earlier.failed
        if earlier.custom_id is not None:
            self._custom_ids.add(earlier.custom_id)
        self._write_due()
        return True

    def _begin(self, line: RawLine, place: int) -> None:
        asked = read_line(line.raw, line.number)
        if asked.custom_id in self._custom_ids:
            raise BadLine(f"the custom_id {asked.custom_id!r} stands in an earlier line, too.", code="duplicate_custom_id", field="custom_id",
                          custom_id=asked.custom_id)
        self._custom_ids.add(asked.custom_id)
        try:
            request = asked.request(model=self.orders.model)
            turns = [self._turn(job.turn, asked.body, line.id, choice) for choice, job in enumerate(request.jobs)]
        except SymposiaError as error:
            self._fail(line, place, asked.custom_id, error)
            return
        opened = _Open(line, place, asked.custom_id, request, [None] * len(turns))
        self._asks.extend(_Ask(f"{line.number}.{choice}", opened, choice, turn) for choice, turn in enumerate(turns))

    def _turn(self, turn: Turn, body: object, line_id: str, choice: int) -> Turn:
        """The turn under the run's orders. A draw without a seed gets the line's own, so that a run that is gone on with draws alike."""
        for need in needs_of(turn):
            if not set(need.split("|")) & set(self.orders.capabilities):
                raise BadInput(f"{self.orders.model} cannot do what is asked: it needs {need.replace('|', ' or ')}, and it can "
                               f"{', '.join(self.orders.capabilities)}.", field="model", value=self.orders.model)
        sampling = turn.sampling
        changed: dict[str, object] = {}
        if self.orders.max_tokens is not None:
            changed["max_tokens"] = min(sampling.max_tokens, self.orders.max_tokens)
        if self.orders.temperature is not None and isinstance(body, dict) and body.get("temperature") is None:
            changed["temperature"] = self.orders.temperature
        if sampling.seed is None:
            changed["seed"] = (int(line_id[:12], 16) + choice) % 2**63
        return turn.model_copy(update={"sampling": Sampling.model_validate({**sampling.model_dump(), **changed})})

    # -- hearing

    def _hear(self, engine: Asked, *, within_s: float) -> None:
        try:
            event = self._events.get(timeout=within_s)
        except queue.Empty:
            self._told(self.tally)
            return
        if isinstance(event, list):
            self._revive(engine, event)
        elif (ask := self._running.pop(event[0], None)) is not None:
            self._answered(ask, event[1])
        self._told(self.tally)

    def _answered(self, ask: _Ask, reply: Completion | Abstention) -> None:
        opened = ask.open
        if opened.place in self._waiting or opened.place < self._written:
            return  # another choice of the line has failed
        if isinstance(reply, Abstention):
            self._fail(opened.line, opened.place, opened.custom_id, reply)
            return
        self.tally.completion_tokens += reply.usage.completion_tokens
        opened.completions[ask.choice] = reply
        said = [c for c in opened.completions if c is not None]
        if len(said) < len(opened.completions):
            return
        self.tally.prompt_tokens += sum(c.usage.prompt_tokens for c in said[:: opened.request.choices_per_prompt])
        body = answer_body(opened.request, said, id=opened.line.id, created=int(self._wall()))
        self._finish(opened.place, encoded(answer_line(request_id=opened.line.id, custom_id=opened.custom_id, status=200, body=body)))

    def _fail(self, line: RawLine, place: int, custom_id: str, fault: SymposiaError | Abstention) -> None:
        status, body = fault_of(fault)
        self._finish(place, encoded(error_line(request_id=line.id, number=line.number, custom_id=custom_id, status=status, body=body)), failed=True)

    def _finish(self, place: int, line: bytes, *, failed: bool = False) -> None:
        """Let an answer wait until all before it are written."""
        self.tally.failed += failed
        if place == self._written:
            self._write(line)
            self._write_due()
        else:
            self._waiting.put(place, line)

    def _write_due(self) -> None:
        while (due := self._waiting.take(self._written)) is not None:
            self._write(due)

    def _write(self, line: bytes) -> None:
        self._output.write_encoded(line)
        if self._written in self._adopted:
            self._adopted.remove(self._written)
        else:
            self.tally.written += 1
        self._written += 1

    # -- the engine's death

    def _revive(self, engine: Asked, ids: Sequence[str]) -> None:
        lost = [self._running.pop(i) for i in ids if i in self._running]
        if not lost and engine.alive:
            return  # it died while it was being started, and has been started since
        log.warning("the engine process died with %d requests in flight; it is started again and they are asked again", len(lost))
        for attempt in range(RESTARTS):
            try:
                engine.restart()
                break
            except SymposiaError as error:
                if attempt == RESTARTS - 1:
                    raise Unavailable(f"the engine process does not start again: {error} What is answered is in {self._output.path}; "
                                      "run the same command to go on.") from None
                time.sleep(RESTART_S * 2**attempt)
        self.tally.engine_restarts += 1
        for ask in reversed(lost):
            self._again(ask)

    def _again(self, ask: _Ask) -> None:
        ask.deaths += 1
        if ask.deaths >= MOST_DEATHS:
            message = f"{ask.deaths} engine processes died of it; it is not tried again"
            self._answered(ask, Abstention(cause="poison", message=message))
            return
        self.tally.asked_again += 1
        self._put_back(ask)
