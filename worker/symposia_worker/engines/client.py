"""The pool's side of its engine process: spawn it, ask it, watch it, kill it. Never torch."""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager

from symposia_shared.errors import BadInput, SymposiaError, Unavailable
from symposia_shared.turns import Turn
from symposia_worker.engines.life import Asked, Life, OnDeath, OnDelta, OnDone, OnFirst
from symposia_worker.engines.protocol import Base, Cancel, Dtype, Generate, Load, Loaded, Mode, Pulse, Stop, Unload

log = logging.getLogger("symposia.engine")


class EngineProcess:
    """One engine process of a pool: every request ends in one ``on_done``, or its id in one ``on_death``.

    ``environ`` is what its process finds in its environment beside ours: an endpoint's key goes there and nowhere else.
    ``on_death`` is called once for a process that dies or hangs, from the process's reading thread, and may ``restart``. One that computes
    nothing hangs after ``hang_after_s`` seconds of silence with turns in flight, one that computes later (``engines.hanging``).
    Safe to use from many threads.
    """

    def __init__(
        self, device: str = "cpu", memory_bytes: int = 8 << 30, *, threads: int = 1, on_death: OnDeath | None = None,
        hang_after_s: float = 60.0, start_within_s: float = 120.0, python: str = sys.executable, environ: Mapping[str, str] | None = None,
    ) -> None:
        self.device, self.memory_bytes, self.threads = device, memory_bytes, threads
        self.hang_after_s, self.start_within_s, self.python = hang_after_s, start_within_s, python
        self._on_death = on_death
        self._environ = dict(environ or {})
        self._life: Life | None = None
        self._loads: dict[str, Load] = {}
        self.writing = threading.Lock()
        self._held = threading.local()
        #: processes that died or were killed for hanging, since this object was made
        self.deaths = 0

    def start(self) -> int:
        """Spawn the process, wait until it is ready, and return its pid. Raises Unavailable."""
        if self.alive:
            raise Unavailable(f"the engine process of {self.device} already runs (pid {self.pid}).")
        life = self._life = Life(self)
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

    def load(self, checkpoint: str, folder: str | None = None, *, dtype: Dtype = "float32", engine: str = "torch", mode: Mode = "exact",
             base: Base | None = None, within_s: float = 1800.0) -> Loaded:
        """Make a checkpoint resident and wait for it.

        Raises BadInput (not a generator, no safetensors, too large), Damaged (its files or its self-test are wrong) or
        Unavailable (the process is away, or took longer than ``within_s`` and was killed).
        """
        order = Load(checkpoint=checkpoint, folder=folder, dtype=dtype, engine=engine, mode=mode, base=base)
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
            life.in_flight[turn_id] = Asked(on_first, on_delta, on_done)
        request = Generate(id=turn_id, checkpoint=turn.model, messages=turn.messages, sampling=turn.sampling, want=turn.want, raw=turn.raw,
                           suffix=turn.suffix, stream=on_delta is not None)
        held: list[tuple[Life, Generate]] | None = getattr(self._held, "requests", None)
        if held is None:
            life.send(request)
        else:
            held.append((life, request))

    @contextmanager
    def together(self) -> Iterator[None]:
        """What this thread asks for within goes to the process in one piece, so that one forward pass reads it all and not the first alone."""
        held: list[tuple[Life, Generate]] = []
        self._held.requests = held
        try:
            yield
        finally:
            self._held.requests = None
            for life in dict.fromkeys(life for life, _ in held):
                mine = [request for asked, request in held if asked is life]
                life.send(*mine)
                # what was cancelled before it was sent has been told to a process that did not know of it
                life.send(*(Cancel(id=r.id) for r in mine if (asked := life.in_flight.get(r.id)) is not None and asked.cancelled))

    def cancel(self, turn_id: str) -> None:
        """Stop a turn at its next token: its ``on_done`` gets an abstention, unless it was done already."""
        if self.alive:
            life = self._living()
            with life.lock:
                asked = life.in_flight.get(turn_id)
                if asked is not None:
                    asked.cancelled = True
            life.send(Cancel(id=turn_id))

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
    def on_processor(self) -> bool:
        """Whether its process computes on the processor. One that waits for a GPU spins, and its processor time tells nothing."""
        return self.device.startswith("cpu")

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
                                env=engine_environ(self.threads) | self._environ)

    def ended(self, life: Life, ids: list[str], why: str) -> None:
        """A process has ended: tell the pool, unless it asked for it or ``start`` has told."""
        if life.stopping or not life.began:
            return
        self.deaths += 1
        log.warning("%s; %d turns are handed back", why, len(ids))
        if self._on_death is not None:
            self._on_death(ids)

    def _living(self) -> Life:
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
    foreign = ("SYMPOSIA_BROKER", "SYMPOSIA_S3", "SYMPOSIA_MESSAGE", "SYMPOSIA_API", "SYMPOSIA_OPENAI", "SYMPOSIA_ENDPOINT", "AWS_", "CELERY_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign) and not k.endswith("_API_KEY")}
    return kept | {
        "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", "MKL_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONUNBUFFERED": "1",
    }
