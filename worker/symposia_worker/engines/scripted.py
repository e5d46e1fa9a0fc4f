"""The scripted engine: the ``test/*`` checkpoints, paced and batched like any other."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from symposia_shared.scripted import CAPABILITIES, CONTEXT, Script, script_of
from symposia_shared.turns import Timing
from symposia_worker.engines.protocol import Delta, Done, Event, Failed, First, Generate, Load, Loaded

#: words said in one step where no delay is asked: a no-op job must be cheap
WORDS_PER_STEP = 4096


@dataclass(slots=True)
class _Speech:
    """A script being said."""

    request: Generate
    script: Script
    began: float
    said: int = 0
    first_at: float | None = None

    def due(self, now: float) -> int:
        """How many of its tokens should have been said by ``now``."""
        total = len(self.script.tokens)
        if not self.script.delay_s:
            return min(total, self.said + WORDS_PER_STEP)
        return min(total, int((now - self.began) / self.script.delay_s * total + 1e-9))

    def rest_s(self, now: float) -> float:
        """Seconds until its next token is due."""
        if not self.script.delay_s:
            return 0.0
        if not self.script.tokens:
            return max(0.0, self.began + self.script.delay_s - now)
        return max(0.0, self.began + self.script.delay_s * (self.said + 1) / len(self.script.tokens) - now)


class ScriptedEngine:
    """Runs scripts. ``clock`` is monotonic, in seconds; ``wall`` is the epoch's."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time) -> None:
        self._clock, self._wall = clock, wall
        self._speeches: dict[str, _Speech] = {}
        self._resident: dict[str, int] = {}
        self.forward_passes = 0

    def load(self, order: Load) -> Loaded:
        """Accept any ``test/*`` name: there is nothing to load."""
        self._resident[order.checkpoint] = 0
        return Loaded(checkpoint=order.checkpoint, context=CONTEXT, instruct=True, capabilities=CAPABILITIES, family="scripted")

    def unload(self, checkpoint: str) -> Sequence[Event]:
        """Forget the name; what it still has to say fails as ``throttled``."""
        self._resident.pop(checkpoint, None)
        ended = [s.request.id for s in self._speeches.values() if s.request.checkpoint == checkpoint]
        return [Failed(id=i, cause="throttled", message=f"{checkpoint} was unloaded; ask again.") for i in ended if self.cancel(i)]

    def admit(self, request: Generate) -> None:
        """Begin a script; what is wrong with the request is part of the script."""
        script = script_of(request.checkpoint, request.messages, request.sampling, want=request.want, suffix=request.suffix)
        self._speeches[request.id] = _Speech(request, script, self._clock())

    def cancel(self, request_id: str) -> bool:
        """Fall silent."""
        return self._speeches.pop(request_id, None) is not None

    def abandon(self) -> Sequence[str]:
        """Drop every script."""
        ids = list(self._speeches)
        self._speeches.clear()
        return ids

    def step(self) -> Sequence[Event]:
        """Say of every script what is due."""
        events: list[Event] = []
        now, passes = self._clock(), 0
        for speech in list(self._speeches.values()):
            more = self._advance(speech, now)
            passes |= bool(more)
            events += more
        self.forward_passes += passes
        return events

    def _advance(self, speech: _Speech, now: float) -> list[Event]:
        request, script = speech.request, speech.script
        if script.fatal:
            _end_process(script.fatal)
        if script.cause is not None:
            del self._speeches[request.id]
            return [Failed(id=request.id, cause=script.cause, message=script.message)]
        due, events = speech.due(now), list[Event]()
        if due > speech.said and speech.first_at is None:
            speech.first_at = self._wall()
            events.append(First(id=request.id, at=speech.first_at))
        if request.stream and (text := _between(script, speech.said, due)):
            events.append(Delta(id=request.id, text=text))
        speech.said = due
        if due == len(script.tokens) and (due or now >= speech.began + script.delay_s):
            del self._speeches[request.id]
            events.append(self._done(speech))
        return events

    def _done(self, speech: _Speech) -> Done:
        timing = Timing(first_token_at=speech.first_at, last_token_at=self._wall())
        reply = speech.script.reply
        assert reply.kind == "completion"  # noqa: S101 - a script with a cause never comes here
        return Done(id=speech.request.id, completion=reply.model_copy(update={"timing": timing}))

    @property
    def busy(self) -> bool:
        """Whether any script is unfinished."""
        return bool(self._speeches)

    @property
    def rest_s(self) -> float:
        """Seconds until any script has a token due."""
        now = self._clock()
        return min((s.rest_s(now) for s in self._speeches.values()), default=0.0)

    @property
    def running(self) -> int:
        """Scripts being said."""
        return len(self._speeches)

    @property
    def waiting(self) -> int:
        """Always 0: scripts need no room."""
        return 0

    @property
    def resident(self) -> Mapping[str, int]:
        """The names that were loaded, at 0 bytes each."""
        return self._resident


def _between(script: Script, said: int, due: int) -> str:
    """The text of tokens ``said`` to ``due``, without what follows a stop string."""
    begin = sum(map(len, script.tokens[:said]))
    return script.text[begin : begin + sum(map(len, script.tokens[said:due]))]


def _end_process(how: str) -> None:
    if how == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    while True:
        time.sleep(3600)
