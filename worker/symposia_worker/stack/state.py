"""``stack.json``: what a stack runs now, written at each change and read by ``info``, ``down`` and the next ``up``."""

from __future__ import annotations

from typing import Any, Literal

from symposia_shared.errors import BadInput
from symposia_shared.values import Value
from symposia_worker.stack.folder import Folder, write_private

Role = Literal["broker", "store", "coordinator", "pool", "engine", "flower", "api"]
StackPhase = Literal["starting", "ready", "stopping"]
Condition = Literal["starting", "ready", "waiting", "ended"]


class Process(Value):
    """One process of the stack. ``pid`` is None while it waits to be started again."""

    role: Role
    name: str
    pid: int | None
    device: str | None = None
    state: Condition = "starting"
    #: how often it has been started again
    restarts: int = 0
    #: when the process began, seconds since 1970 as the kernel has it: with the pid it names one process for ever
    began: float | None = None
    #: why it ended last, in its own last words
    reason: str = ""


class StackState(Value):
    """A stack as its supervisor sees it. URLs carry no secrets."""

    state: StackPhase
    pid: int
    #: seconds since 1970
    started_at: float
    #: when the supervisor's process began, as in ``Process.began``
    began: float
    broker: str | None = None
    store: str | None = None
    api: str | None = None
    flower: str | None = None
    processes: tuple[Process, ...] = ()

    def facts(self, folder: Folder) -> dict[str, Any]:
        """What ``symposia info --json`` prints."""
        return {
            "state": self.state, "broker": self.broker, "store": self.store, "api": self.api, "flower": self.flower,
            "credentials_file": str(folder.credentials),
            "processes": [{"role": p.role, "pid": p.pid, "device": p.device} for p in self.processes],
        }


def read(folder: Folder) -> StackState | None:
    """The last state written, None where there is none that can be read. A supervisor killed at once leaves an old one."""
    try:
        return StackState.from_json(folder.state.read_bytes())
    except (OSError, BadInput, UnicodeDecodeError):
        return None


def write(folder: Folder, state: StackState) -> None:
    """Replace the stored state."""
    write_private(folder.state, state.model_dump_json(indent=2) + "\n")
