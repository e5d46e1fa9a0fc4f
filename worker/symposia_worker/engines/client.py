"""The pool's side of its engine process: spawn it, ask it, watch it, kill it. Never torch."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import IO

from symposia_shared import errors
from symposia_shared.errors import BadInput, SymposiaError, Unavailable
from symposia_shared.turns import Abstention, Completion, Timing, Turn
from symposia_worker.engines.protocol import (
    Cancel,
    Cancelled,
    Command,
    Delta,
    Done,
    Dtype,
    Event,
    Failed,
    First,
    Generate,
    Load,
    Loaded,
    Pulse,
    Ready,
    RefusedLoad,
    Stop,
    Unload,
    Unloaded,
    encode,
    read_event,
)

log = logging.getLogger("symposia.engine")

OnFirst = Callable[[float], None]
OnDelta = Callable[[str], None]
OnDone = Callable[[Completion | Abstention], None]
OnDeath = Callable[[list[str]], None]


@dataclass(slots=True)
class _Asked:
    """A request in flight."""

    on_first: OnFirst | None
    on_delta: OnDelta | None
    on_done: OnDone
    first_at: float | None = None


class _Life:
    """One process, from spawn to its last byte. Its reading thread spawns it too: Linux kills a child set to die
    with its parent when the *thread* that spawned it ends, so that thread must outlive it."""

    def __init__(self, owner: EngineProcess) -> None:
        self.owner = owner
        self.ready: Future[int] = Future()
        self.in_flight: dict[str, _Asked] = {}
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

    def send(self, command: Command) -> None:
        """Send a command; of a process that has just died the reading thread tells."""
        with contextlib.suppress(OSError), self.owner.writing:
            self.socket.sendall(encode(command))

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
        """Kill the process when it has work and says nothing for ``hang_after_s``. A load has a time limit of its own."""
        limit = self.owner.hang_after_s
        while not self.gone.wait(min(1.0, limit / 4)):
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


class EngineProcess:
    """One engine process of a pool: every request ends in one ``on_done``, or its id in one ``on_death``.

    ``on_death`` is called once for a process that dies or hangs, from the process's reading thread, and may ``restart``.
    Safe to use from many threads.
    """

    def __init__(
        self, device: str = "cpu", memory_bytes: int = 8 << 30, *, threads: int = 1, on_death: OnDeath | None = None,
        hang_after_s: float = 60.0, start_within_s: float = 120.0, python: str = sys.executable,
    ) -> None:
        self.device, self.memory_bytes, self.threads = device, memory_bytes, threads
        self.hang_after_s, self.start_within_s, self.python = hang_after_s, start_within_s, python
        self._on_death = on_death
        self._life: _Life | None = None
        self._loads: dict[str, Load] = {}
        self.writing = threading.Lock()
        #: processes that died or were killed for hanging, since this object was made
        self.deaths = 0

    def start(self) -> int:
        """Spawn the process, wait until it is ready, and return its pid. Raises Unavailable."""
        if self.alive:
            raise Unavailable(f"the engine process of {self.device} already runs (pid {self.pid}).")
        life = self._life = _Life(self)
        try:
            return life.ready.result(self.start_within_s)
        except FutureTimeout:
            life.stopping = True
            life.kill()
            raise Unavailable(f"the engine process of {self.device} was not ready after {self.start_within_s:.0f} s.") from None

    def restart(self) -> None:
        """A new process that holds what the last one held. Raises what ``start`` and ``load`` raise."""
        if self.alive:
            self.stop()
        self.start()
        for order in list(self._loads.values()):
            self._order(order, within_s=1800.0)

    def load(self, checkpoint: str, folder: str | None = None, *, dtype: Dtype = "float32", engine: str = "torch",
             within_s: float = 1800.0) -> Loaded:
        """Make a checkpoint resident and wait for it.

        Raises BadInput (not a generator, no safetensors, too large), Damaged (its files or its self-test are wrong) or
        Unavailable (the process is away, or took longer than ``within_s`` and was killed).
        """
        order = Load(checkpoint=checkpoint, folder=folder, dtype=dtype, engine=engine)
        loaded = self._order(order, within_s=within_s)
        self._loads[checkpoint] = order
        if loaded is None:
            raise Unavailable(f"{checkpoint} was unloaded while it was being loaded; load it again.")
        return loaded

    def unload(self, checkpoint: str, *, within_s: float = 300.0) -> None:
        """Give a checkpoint's memory back and wait for it; one that is not resident is no error. Raises Unavailable."""
        self._loads.pop(checkpoint, None)
        self._order(Unload(checkpoint=checkpoint), within_s=within_s)

    def generate(self, turn_id: str, turn: Turn, on_first: OnFirst | None, on_done: OnDone, *, on_delta: OnDelta | None = None) -> None:
        """Ask; returns at once. ``on_first`` (with the epoch's seconds), ``on_delta`` and ``on_done`` are called by the reading thread.

        Raises Unavailable where no process runs, and BadInput where the id is in flight already.
        """
        life = self._living()
        with life.lock:
            if life.gone.is_set():
                raise self._away()
            if turn_id in life.in_flight:
                raise BadInput(f"turn {turn_id!r} is in flight already.", field="turn_id", value=turn_id, remedy="Ask each turn once.")
            if not life.in_flight:
                life.heard_at = time.monotonic()
            life.in_flight[turn_id] = _Asked(on_first, on_delta, on_done)
        life.send(Generate(id=turn_id, checkpoint=turn.model, messages=turn.messages, sampling=turn.sampling, stream=on_delta is not None))

    def cancel(self, turn_id: str) -> None:
        """Stop a turn at its next token: its ``on_done`` gets an abstention, unless it was done already."""
        if self.alive:
            self._living().send(Cancel(id=turn_id))

    def stop(self, *, within_s: float = 10.0) -> list[str]:
        """End the process, by force if need be, and return the ids it still had; neither callback is called for them."""
        life = self._life
        if life is None or life.gone.is_set():
            return []
        with life.lock:
            life.stopping = True
            ids, life.in_flight = list(life.in_flight), {}
        life.send(Stop())
        if not life.gone.wait(within_s):
            life.kill()
            life.gone.wait(within_s)
        return ids

    def kill(self) -> None:
        """SIGKILL the process; ``on_death`` follows."""
        if self._life is not None:
            self._life.kill()

    @property
    def alive(self) -> bool:
        """Whether a process runs."""
        return self._life is not None and not self._life.gone.is_set()

    @property
    def pid(self) -> int | None:
        """The process's id, or None."""
        return self._life.process.pid if self.alive and self._life and self._life.process else None

    @property
    def pulse(self) -> Pulse | None:
        """The last pulse seen; ``pulse.at`` is when it was sent."""
        return self._life.pulse if self._life else None

    @property
    def in_flight(self) -> Sequence[str]:
        """Ids of the turns that have not ended."""
        return tuple(self._life.in_flight) if self._life else ()

    @property
    def loads(self) -> Sequence[Load]:
        """What a restarted process would load."""
        return tuple(self._loads.values())

    def spawn(self, far_end: socket.socket) -> subprocess.Popen[bytes]:
        """Start the process with its end of the socket pair."""
        command = [self.python, "-P", "-m", "symposia_worker.engines.process", "--fd", str(far_end.fileno()),
                   "--device", self.device, "--memory", str(self.memory_bytes)]
        return subprocess.Popen(command, pass_fds=(far_end.fileno(),), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                env=engine_environ(self.threads))

    def ended(self, life: _Life, ids: list[str], why: str) -> None:
        """A process has ended: tell the pool, unless it asked for it or ``start`` has told."""
        if life.stopping or not life.began:
            return
        self.deaths += 1
        log.warning("%s; %d turns are handed back", why, len(ids))
        if self._on_death is not None:
            self._on_death(ids)

    def _living(self) -> _Life:
        if self._life is None or self._life.gone.is_set():
            raise self._away()
        return self._life

    def _away(self) -> SymposiaError:
        return Unavailable(f"the engine process of {self.device} does not run; start or restart it.")

    def _order(self, order: Load | Unload, *, within_s: float) -> Loaded | None:
        life = self._living()
        pending: Future[Loaded | None] = Future()
        with life.lock:
            if life.gone.is_set():
                raise self._away()
            if order.checkpoint in life.orders:
                raise Unavailable(f"{order.checkpoint} is being loaded or unloaded already; wait for that.")
            life.orders[order.checkpoint] = pending
        life.send(order)
        try:
            return pending.result(within_s)
        except FutureTimeout:
            life.kill()
            raise Unavailable(f"The {order.kind} of {order.checkpoint} took longer than {within_s:.0f} s; the engine process was killed. "
                              "Allow it more time, or look into the process's log.") from None
        finally:
            with life.lock:
                life.heard_at = time.monotonic()  # it had no time to say more while it loaded


def engine_environ(threads: int) -> dict[str, str]:
    """An engine process's environment: ours without keys and addresses it has no use for, with its share of the cores.

    Spinning OpenMP threads cost a factor of ten on a busy machine (pytorch #57715), and both must be set before torch is imported.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SYMPOSIA_BROKER", "SYMPOSIA_S3", "AWS_", "CELERY_"))}
    return kept | {
        "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "MKL_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _error_named(name: str, message: str) -> SymposiaError:
    found = getattr(errors, name, None)
    return found(message) if isinstance(found, type) and issubclass(found, SymposiaError) else Unavailable(message)


def _status(status: object) -> str:
    if isinstance(status, int):
        return f"killed by signal {-status}" if status < 0 else f"exit {status}"
    return str(status)

