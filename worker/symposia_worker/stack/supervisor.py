"""The supervisor: starts the parts of a stack in order, starts again whatever dies, and ends all of it in order."""

from __future__ import annotations

import os
import signal
import socket
import time
from types import FrameType
from typing import Protocol

from symposia_shared.broker import CHECKS
from symposia_shared.errors import StackUnavailable
from symposia_shared.ledger import Ledger, away
from symposia_worker.stack import state
from symposia_worker.stack.alarm import Alarm
from symposia_worker.stack.blueprint import Blueprint, Plan, draw
from symposia_worker.stack.commands import SYMPOSIA, WorkerCommands
from symposia_worker.stack.disk import DiskSync
from symposia_worker.stack.folder import Folder
from symposia_worker.stack.heartbeats import HUNG_S, Heartbeats
from symposia_worker.stack.part import Child, Part, began
from symposia_worker.stack.stopping import end_leftovers, stop_children

#: seconds between looks while a part is not ready, and while all are: then a part's end is told by its signal
TICK_S, CALM_S = 0.1, 1.0
#: seconds the services are given to answer; a broker with a large file to load takes some
SERVICES_S = 60.0
#: a part that dies this often before it was ever ready cannot start
FATAL_DEATHS = 3


class Stopped(Exception):
    """A stop was asked for."""


class Listener(Protocol):
    """Who is told what happens."""

    def say(self, line: str) -> None:
        """One line of the story."""

    def show(self, stack: state.StackState) -> None:
        """The stack after a change."""


class Supervisor:
    """One stack in one folder. ``run`` blocks; it must be called in the main thread (signals, and see tether)."""

    def __init__(self, folder: Folder, plan: Plan, listener: Listener, *, commands: WorkerCommands = SYMPOSIA) -> None:
        self.folder, self.plan, self.listener, self.commands = folder, plan, listener, commands
        self.children: list[Child] = []
        self.phase: state.StackPhase = "starting"
        self.addresses: dict[str, str | None] = {}
        self._stops = 0
        self._heartbeats: Heartbeats | None = None
        self._disk: DiskSync | None = None
        self._started_at = time.time()
        self._written = True
        self._shown: state.StackState | None = None

    def run(self) -> None:
        """Run the stack until SIGINT or SIGTERM; a second one hurries. Returns when all of it is gone.

        Raises StackUnavailable where another supervisor holds the folder or a part cannot start, and what ``plan.models`` raises;
        nothing is left running then either.
        """
        self.folder.prepare()
        with self.folder.hold():
            handlers = {signal.SIGINT: self._asked, signal.SIGTERM: self._asked, signal.SIGCHLD: lambda *_: None}
            with Alarm() as self._alarm:
                before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
                try:
                    self._run()
                finally:
                    self._stop()
                    for number, former in before.items():
                        signal.signal(number, former)

    def _run(self) -> None:
        try:
            self._end_leftovers()
            self._start(draw(self.folder, self.plan))
            self._watch()
        except Stopped:
            pass
        except OSError as error:
            raise self.folder.unwritable(error) from error

    def _asked(self, _number: int, _frame: FrameType | None) -> None:
        self._stops += 1

    def _end_leftovers(self) -> None:
        known = state.read(self.folder)
        if known and (ended := end_leftovers(known.processes)):
            self.listener.say(f"ended {ended} processes that an earlier stack (pid {known.pid}) had left")

    def _start(self, blueprint: Blueprint) -> None:
        self.addresses = blueprint.addresses
        self._add(*blueprint.services)
        self._until_ready(SERVICES_S)
        if "store" in blueprint.credentials.embedded:
            self._disk = DiskSync(self.folder.store, self.listener.say)
            self._disk.start()
        settings = blueprint.settings
        ledger = Ledger(settings.broker, settings.prefix, timeout_s=2.0)
        orders = blueprint.orders(self.plan.models(settings))
        self._announce(ledger, blueprint.origin)
        ledger.unplace(origin=blueprint.origin, keep=[order.name for order in orders])
        self._heartbeats = Heartbeats(ledger, socket.gethostname())
        self._heartbeats.start()
        self._add(*blueprint.workers(orders, self.commands, ready=self._heartbeats.ready))
        self._until_ready(self.plan.start_timeout_s)
        self.phase = "ready"
        if not set(ledger.placed()) - {CHECKS}:
            self.listener.say("no checkpoint is served yet: `symposia models pull smollm2-135m`, then `symposia models serve smollm2-135m`")

    def _announce(self, ledger: Ledger, origin: str) -> None:
        """Leave our id under the prefix, so that two deployments on one database can tell."""
        with away():
            ledger.redis.set(ledger.key("stack"), origin, nx=True)
            found = ledger.redis.get(ledger.key("stack"))
        if found != origin:
            self.listener.say(f"another stack (id {found}) uses the prefix {ledger.prefix!r} in this database: the two share their jobs; "
                              "set SYMPOSIA_PREFIX if that is not meant")

    def _add(self, *parts: Part) -> None:
        self.children += [Child(part) for part in parts]
        self._tick()

    def _until_ready(self, within_s: float) -> None:
        deadline = time.monotonic() + within_s
        while waiting := [child for child in self.children if child.condition != "ready"]:
            for child in waiting:
                if child.deaths >= FATAL_DEATHS or time.monotonic() > deadline:
                    raise _cannot_start(child, within_s)
            self._alarm.wait(TICK_S)
            self._tick()

    def _watch(self) -> None:
        while True:
            self._tick()
            calm = all(child.condition == "ready" for child in self.children)
            if self._heartbeats:
                self._heartbeats.calm = calm
            self._alarm.wait(CALM_S if calm else TICK_S)

    def _tick(self) -> None:
        """One look at everything. Raises Stopped when a stop was asked for."""
        if self._stops:
            raise Stopped
        now = time.monotonic()
        for child in self.children:
            was = child.pid
            if child.reap(now) is not None:
                when = f"in {child.start_at - now:.1f} s" if child.start_at > now else "now"
                self.listener.say(f"{child.part.name} (pid {was}) has ended, {child.reason}; it starts again {when}")
            if child.condition == "ready" and self._heartbeats and self._heartbeats.hung(child.pid):
                self.listener.say(f"{child.part.name} (pid {child.pid}) has not beaten for {HUNG_S:.0f} s; it is killed")
                child.signal(signal.SIGKILL)
            if child.condition == "waiting" and now >= child.start_at:
                self._start_child(child, now)
            if child.look():
                self.listener.say(f"{child.part.name} is ready (pid {child.pid})")
        self._show()

    def _start_child(self, child: Child, now: float) -> None:
        try:
            child.start(now, again=child.deaths > 0)
        except OSError as error:
            if self.phase == "starting":
                raise
            child.postpone(now, f"it cannot be started: {error}")

    def _show(self) -> None:
        """Write and show the state where it has changed. Once the stack runs, a disk that takes nothing does not end it."""
        current = state.StackState(state=self.phase, pid=os.getpid(), started_at=self._started_at, began=began(os.getpid()) or 0.0,
                                   processes=self._processes(), **self.addresses)
        if current == self._shown:
            return
        self._shown = current
        self.listener.show(current)
        try:
            state.write(self.folder, current)
        except OSError as error:
            if self.phase == "starting":
                raise
            if self._written:
                self.listener.say(f"{self.folder.state} cannot be written ({error.strerror}): `symposia info` is out of date until it can")
            self._written, self._shown = False, None
        else:
            self._written = True

    def _processes(self) -> tuple[state.Process, ...]:
        rows = []
        for child in self.children:
            rows.append(child.row)
            engine = self._heartbeats.engine(child.pid) if self._heartbeats and child.part.role == "pool" else None
            if engine is not None and (begun := began(engine)) is not None:
                rows.append(state.Process(role="engine", name=f"{child.part.name}.engine", pid=engine, device=child.part.device,
                                          state=child.condition, began=begun))
        return tuple(rows)

    def _stop(self) -> None:
        """End everything in order. A state file that cannot be written any more is no reason to leave a process behind."""
        self.phase = "stopping"
        engines = [row for row in self._processes() if row.role == "engine"]
        asked = max(self._stops, 1)
        if self.children:
            self._show()
        stop_children(self.children, hurried=lambda: self._stops > asked, turned=self._show)
        end_leftovers(engines, grace_s={})
        if self._heartbeats:
            self._heartbeats.stop()
        if self._disk:
            self._disk.stop()
        try:
            self.folder.state.unlink(missing_ok=True)
        except OSError as error:
            self.listener.say(f"{self.folder.state} cannot be removed ({error.strerror}); the next start knows that it is old")


def _cannot_start(child: Child, within_s: float) -> StackUnavailable:
    part = child.part
    what = f"it ended {child.deaths} times, {child.reason}" if child.deaths else f"it was not ready within {within_s:.0f} s ({child.words()})"
    return StackUnavailable(f"{part.name} cannot start: {what}. Its log is {part.log}; `symposia doctor` may tell more.")
