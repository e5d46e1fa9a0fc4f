"""The engine process: reads commands, steps every busy engine, sends events, until its pool is gone.

Run by ``EngineProcess``: ``python -m symposia_worker.engines.process --fd N --device cpu --memory BYTES``. The thread counts
of OpenMP come from the environment it is started with; torch is imported when the first real checkpoint is loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from pydantic import ValidationError

from symposia_shared.errors import BadInput, SymposiaError, Unavailable
from symposia_worker.engines.protocol import (
    PULSE_EVERY_S,
    TEST_PREFIX,
    Budgeted,
    Cancel,
    Cancelled,
    Command,
    Done,
    Engine,
    Event,
    Failed,
    Generate,
    Load,
    Pulse,
    Ready,
    RefusedLoad,
    Stop,
    Unload,
    Unloaded,
    Waking,
    cause_of,
    encode,
    read_command,
)
from symposia_worker.engines.scripted import ScriptedEngine
from symposia_worker.imports import leave_out

log = logging.getLogger("symposia.engine")

#: engines by the name a ``load`` gives: module and class, called with the device and its memory in bytes
ENGINES = {
    "torch": ("symposia_worker.engines.torch", "TorchEngine"), "openvino": ("symposia_worker.engines.openvino", "OpenVINOEngine"),
    "openai": ("symposia_worker.engines.openai.engine", "started"),
}

_PR_SET_PDEATHSIG = 1
#: the process's exit status when its device is lost, so that nothing but a new process helps
DEVICE_LOST = 70
#: steps of which a pulse tells the longest
RECENT_STEPS = 64


@dataclass(frozen=True, slots=True)
class Device:
    """The device an engine process serves, and the bytes of memory it may fill."""

    name: str
    memory_bytes: int


class Loop:
    """The batching loop: drain commands, step what is busy, send what happened."""

    def __init__(self, device: Device, commands: queue.SimpleQueue[Command | None], send: Callable[[bytes], None]) -> None:
        self.device, self._commands, self._send = device, commands, send
        self._engines: dict[str, Engine] = {"scripted": ScriptedEngine()}
        self._home: dict[str, str] = {}  # the engine's name by checkpoint
        self._called: dict[str, str] = {}  # the engine and its precision by checkpoint
        self._made_by: dict[str, str] = {}  # the same by request in flight
        self._pulse_due = 0.0
        self._steps_s: deque[float] = deque(maxlen=RECENT_STEPS)
        self._settled = False

    def run(self) -> None:
        """Until ``stop``."""
        self._tell([Ready(pid=os.getpid())])
        while True:
            for command in self._drain():
                if isinstance(command, Stop):
                    return
                self._obey(command)
            for engine in self._engines.values():
                if engine.busy and engine.rest_s <= 0:
                    began = time.monotonic()
                    self._guarded(engine, lambda e: e.step())
                    self._steps_s.append(time.monotonic() - began)
            self._pulse()

    def _drain(self) -> Iterator[Command]:
        """The commands that are in; waits for one only while no engine has anything to do."""
        rest = min((e.rest_s for e in self._engines.values() if e.busy), default=PULSE_EVERY_S)
        with contextlib.suppress(queue.Empty):
            if rest > 0 and (command := self._commands.get(timeout=min(rest, PULSE_EVERY_S))) is not None:
                yield command
            while True:
                if (command := self._commands.get_nowait()) is not None:
                    yield command

    def _obey(self, command: Command) -> None:
        match command:
            case Load():
                self._load(command)
            case Unload():
                engine = self._engines.get(self._home.pop(command.checkpoint, ""))
                self._called.pop(command.checkpoint, None)
                if engine is not None:
                    self._guarded(engine, lambda e: e.unload(command.checkpoint))
                    self._share_memory()
                if not self._settled and not any(e.resident for e in self._engines.values()):
                    self._settle()
                self._tell([Unloaded(checkpoint=command.checkpoint)])
            case Generate():
                self._admit(command)
            case Cancel():
                for engine in self._engines.values():
                    self._guarded(engine, lambda e: [Cancelled(id=command.id)] if e.cancel(command.id) else [])
            case _:
                raise TypeError(f"no such command: {command!r}")

    def _load(self, order: Load) -> None:
        name = "scripted" if order.checkpoint.startswith(TEST_PREFIX) else order.engine
        try:
            engine = self._engine(name)
            self._share_memory()
            loaded = engine.load(order)
        except SymposiaError as error:
            self._tell([RefusedLoad(checkpoint=order.checkpoint, cause=error.name, message=str(error))])
        except Exception as error:  # the seam: whatever a model file does to a loader is this load's failure and no more
            log.exception("load of %s failed", order.checkpoint)
            cause = "Unavailable" if cause_of(error) == "out_of_memory" else "BadInput"
            message = f"{order.checkpoint} cannot be loaded: {_short(error)}"
            self._tell([RefusedLoad(checkpoint=order.checkpoint, cause=cause, message=message)])
        else:
            self._home[order.checkpoint], self._called[order.checkpoint] = name, called(name, order)
            self._share_memory()
            held = engine.held.get(order.checkpoint, 0) if isinstance(engine, Budgeted) else 0
            self._tell([loaded.model_copy(update={"held_bytes": max(held, loaded.bytes)})])

    def _share_memory(self) -> None:
        """Give each engine what the others leave: they are several in one process, on one device."""
        sharing = [engine for engine in self._engines.values() if isinstance(engine, Budgeted)]
        held = {id(engine): engine.held_bytes for engine in sharing}
        for engine in sharing:
            engine.memory_bytes = self.device.memory_bytes - sum(size for other, size in held.items() if other != id(engine))

    def _engine(self, name: str) -> Engine:
        if name not in self._engines:
            if name not in ENGINES:
                raise BadInput(f"there is no engine {name!r}.", field="engine", value=name, remedy=f"Use one of {', '.join(ENGINES)}.")
            module, cls = ENGINES[name]
            try:
                made = getattr(importlib.import_module(module), cls)
            except ImportError as error:
                extra = "openvino" if name == "openvino" else "worker"
                raise Unavailable(f"the engine {name!r} cannot start: {error}. Install it with `pip install 'symposia[{extra}]'`.") from None
            engine = self._engines[name] = made(self.device.name, self.device.memory_bytes)
            self._settle()
            self._settled = False
            if isinstance(engine, Waking):
                engine.wake = lambda: self._commands.put(None)
        return self._engines[name]

    def _settle(self) -> None:
        """What lives while no checkpoint does is the libraries' own and never garbage: to walk it was 0.4 of an unload's 0.7 s.

        Done as an engine is imported, and once more when nothing is resident again: the first load imports, too.
        """
        gc.collect()
        gc.freeze()
        self._settled = True

    def _admit(self, request: Generate) -> None:
        scripted = request.checkpoint.startswith(TEST_PREFIX)
        engine = self._engines.get("scripted" if scripted else self._home.get(request.checkpoint, ""))
        try:
            if engine is None:
                raise Unavailable(f"{request.checkpoint} is not resident on {self.device.name}; load it, then ask again.")
            engine.admit(request)
            self._made_by[request.id] = self._called.get(request.checkpoint, "scripted")
        except Exception as error:  # the seam: a request, however shaped, fails alone
            if not isinstance(error, SymposiaError):
                log.exception("request %s was not admitted", request.id)
            self._tell([Failed(id=request.id, cause=cause_of(error), message=_short(error))])

    def _guarded(self, engine: Engine, act: Callable[[Engine], Iterable[Event]]) -> None:
        try:
            self._tell(act(engine))
        except OSError:  # the pool's end is closed
            raise
        except Exception as error:  # the seam: one engine's bug must not end the turns of the others
            log.exception("the engine %s failed", type(engine).__name__)
            cause = cause_of(error)
            if cause == "device_lost":
                self.lost(error)
            self._tell([Failed(id=i, cause=cause, message=_short(error)) for i in engine.abandon()])

    def lost(self, error: BaseException) -> None:
        """End the process: after a device error CUDA answers nothing in it, and its pool hands the turns back."""
        log.error("%s is lost: %s", self.device.name, _short(error))
        os._exit(DEVICE_LOST)

    def _pulse(self) -> None:
        now = time.monotonic()
        if now < self._pulse_due:
            return
        self._pulse_due = now + PULSE_EVERY_S * 0.9
        engines = self._engines.values()
        resident = {name: size for engine in engines for name, size in engine.resident.items()}
        held = {name: size for engine in engines if isinstance(engine, Budgeted) for name, size in engine.held.items()}
        self._tell([Pulse(at=time.time(), held=held, forward_passes=sum(e.forward_passes for e in engines), running=sum(e.running for e in engines),
                          waiting=sum(e.waiting for e in engines), resident=resident, repeats=sum(e.repeats for e in engines if isinstance(e, Waking)),
                          longest_step_s=max(self._steps_s, default=0.0))])

    def _tell(self, events: Iterable[Event]) -> None:
        lines = b"".join(encode(self._signed(event)) for event in events)
        if lines:
            self._send(lines)

    def _signed(self, event: Event) -> Event:
        """A completion says what made it."""
        if not isinstance(event, Done | Failed | Cancelled):
            return event
        made_by = self._made_by.pop(event.id, "")
        return event.model_copy(update={"completion": event.completion.model_copy(update={"engine": made_by})}) if isinstance(event, Done) else event


def called(engine: str, order: Load) -> str:
    """What a completion names as its maker: the engine, and the precision where it has a choice of them."""
    precision = {"torch": order.dtype, "openvino": order.mode}.get(engine)
    return engine if precision is None else f"{engine} {precision}"


def die_with_parent() -> None:
    """On Linux: SIGKILL this process when the thread that spawned it is gone, whatever its own threads are doing."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _read(pool: socket.socket, commands: queue.SimpleQueue[Command | None]) -> None:
    """Feed ``commands``; ends the process at once when the pool has closed its end."""
    with contextlib.suppress(OSError), pool.makefile("rb") as lines:
        for line in lines:
            try:
                commands.put(read_command(line))
            except ValidationError as error:
                log.error("a line that is no command was ignored: %s", _short(error))
    os._exit(0)


def _short(error: BaseException) -> str:
    text = " ".join((str(error) if isinstance(error, SymposiaError) else f"{type(error).__name__}: {error}").split())
    return text if len(text) <= 500 else text[:497] + "..."


def main() -> None:
    """Serve the pool at the other end of ``--fd``."""
    die_with_parent()
    leave_out()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a terminal's Ctrl-C reaches the whole group; the pool decides
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the inherited end of the pool's socket pair")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory", type=int, required=True, help="bytes of the device's memory this process may fill")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s engine %(levelname)s %(message)s")
    pool = socket.socket(fileno=given.fd)
    commands: queue.SimpleQueue[Command | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(pool, commands), name="commands", daemon=True).start()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        Loop(Device(given.device, given.memory), commands, pool.sendall).run()
    os._exit(0)  # torch's threads and exit hooks have nothing left to do


if __name__ == "__main__":
    main()
