"""One engine process, from spawn to its last byte, as the pool sees it."""

from __future__ import annotations

import contextlib
import logging
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from symposia_shared import errors
from symposia_shared.errors import SymposiaError, Unavailable
from symposia_shared.turns import Abstention, Completion, Timing
from symposia_worker.engines.hanging import Effort, cpu_seconds, silence_allowed_s
from symposia_worker.engines.protocol import (
    Cancelled,
    Command,
    Delta,
    Done,
    Event,
    Failed,
    First,
    Loaded,
    Pulse,
    Ready,
    RefusedLoad,
    Unloaded,
    encode,
    read_event,
)

if TYPE_CHECKING:
    from symposia_worker.engines.client import EngineProcess

log = logging.getLogger("symposia.engine")

OnFirst = Callable[[float], None]
OnDelta = Callable[[str], None]
OnDone = Callable[[Completion | Abstention], None]
OnDeath = Callable[[list[str]], None]


@dataclass(slots=True)
class Asked:
    """A request in flight."""

    on_first: OnFirst | None
    on_delta: OnDelta | None
    on_done: OnDone
    first_at: float | None = None
    cancelled: bool = False


class Life:
    """One process, from spawn to its last byte. Its reading thread spawns it too: Linux kills a child set to die
    with its parent when the *thread* that spawned it ends, so that thread must outlive it."""

    def __init__(self, owner: EngineProcess) -> None:
        self.owner = owner
        self.ready: Future[int] = Future()
        self.in_flight: dict[str, Asked] = {}
        self.orders: dict[str, Future[Loaded | None]] = {}  # pending loads and unloads by checkpoint
        self.gone = threading.Event()
        self.lock = threading.Lock()
        self.began = self.stopping = False
        self.pulse: Pulse | None = None
        self.heard_at = time.monotonic()
        self.process: subprocess.Popen[bytes] | None = None
        self.socket, self.far_end = socket.socketpair()
        threading.Thread(target=self._live, name=f"engine {owner.device}", daemon=True).start()
        threading.Thread(target=self._watch, name=f"engine watch {owner.device}", daemon=True).start()

    def send(self, *commands: Command) -> None:
        """Send commands in one piece; of a process that has just died the reading thread tells."""
        with contextlib.suppress(OSError), self.owner.writing:
            self.socket.sendall(b"".join(encode(command) for command in commands))

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()

    def _live(self) -> None:
        status: object = "never started"
        try:
            self.process = self.owner.spawn(self.far_end)
            self.far_end.close()
            with self.socket.makefile("rb") as lines:
                self._read(lines)
            self.process.kill()  # it has closed its end, or we no longer understand it
            status = self.process.wait()
        except Exception as error:  # the pool must hear of it, whatever it was
            log.exception("the engine process of %s could not be run", self.owner.device)
            status = error
            self.kill()
        finally:
            self._end(status)

    def _read(self, lines: IO[bytes]) -> None:
        with contextlib.suppress(OSError):
            for line in lines:
                event = read_event(line)
                self.heard_at = time.monotonic()
                try:
                    self._hear(event)
                except Exception:  # a caller's callback; the other turns go on
                    log.exception("a callback for %s failed", type(event).__name__)

    def _hear(self, event: Event) -> None:
        match event:
            case Pulse():
                self.pulse = event
            case Ready():
                self.began = True
                self.ready.set_result(event.pid)
            case Loaded() | RefusedLoad() | Unloaded():
                self._settle(event)
            case First():
                self._first(event)
            case Delta():
                asked = self.in_flight.get(event.id)
                if asked and asked.on_delta:
                    asked.on_delta(event.text)
            case Done() | Failed() | Cancelled():
                self._done(event)

    def _first(self, event: First) -> None:
        asked = self.in_flight.get(event.id)
        if asked:
            asked.first_at = event.at
            if asked.on_first:
                asked.on_first(event.at)

    def _done(self, event: Done | Failed | Cancelled) -> None:
        with self.lock:
            asked = self.in_flight.pop(event.id, None)
        if asked is None:
            return
        if isinstance(event, Done):
            asked.on_done(event.completion)
            return
        timing = Timing(first_token_at=asked.first_at)
        if isinstance(event, Failed):
            asked.on_done(Abstention(cause=event.cause, message=event.message, timing=timing))
        else:
            asked.on_done(Abstention(cause="cancelled", message="It was cancelled.", timing=timing))

    def _settle(self, event: Loaded | RefusedLoad | Unloaded) -> None:
        with self.lock:
            order = self.orders.pop(event.checkpoint, None)
        if order is None:
            return
        if isinstance(event, RefusedLoad):
            order.set_exception(_error_named(event.cause, event.message))
        else:
            order.set_result(event if isinstance(event, Loaded) else None)

    def _watch(self) -> None:
        """Kill the process when it has work and has been silent for too long (``hanging``). A load has a time limit of its own."""
        usual, effort = self.owner.hang_after_s, Effort()
        while not self.gone.wait(min(1.0, usual / 4)):
            effort.look(time.monotonic(), cpu_seconds(self.process.pid) if self.process else None)
            limit = silence_allowed_s(usual, longest_step_s=self.pulse.longest_step_s if self.pulse else 0.0,
                                      computes=self.owner.on_processor and effort.computes(within_s=usual))
            with self.lock:
                silent = time.monotonic() - self.heard_at
                hangs = bool(self.in_flight) and not self.orders and silent > limit
            if hangs:
                log.error("the engine process %s of %s has said nothing for %.0f s with %d turns in flight: it is killed",
                          self.process.pid if self.process else "?", self.owner.device, silent, len(self.in_flight))
                self.kill()
                return

    def _end(self, status: object) -> None:
        with self.lock:
            self.gone.set()
            ids, self.in_flight = list(self.in_flight), {}
            orders, self.orders = self.orders, {}
        self.socket.close()
        self.far_end.close()
        why = f"the engine process of {self.owner.device} has ended ({_status(status)})"
        if not self.ready.done():
            self.ready.set_exception(Unavailable(f"{why} before it was ready. Its own log says why; `symposia doctor` checks the device."))
        for checkpoint, order in orders.items():
            order.set_exception(Unavailable(f"{why} while {checkpoint} was loaded. Give the device more memory, or look into its log."))
        self.owner.ended(self, ids, why)


def _error_named(name: str, message: str) -> SymposiaError:
    found = getattr(errors, name, None)
    return found(message) if isinstance(found, type) and issubclass(found, SymposiaError) else Unavailable(message)


def _status(status: object) -> str:
    if isinstance(status, int):
        return f"killed by signal {-status}" if status < 0 else f"exit {status}"
    return str(status)

