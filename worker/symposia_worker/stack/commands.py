"""How coordinator and pools are started: the one place that knows their command lines."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from symposia_worker.engines.protocol import EngineChoice, Mode
from symposia_worker.stack.devices import DeviceShare


@dataclass(frozen=True, slots=True)
class PoolOrder:
    """A pool to be started. ``origin`` is the stack's id: the placements of its pools are known by it."""

    name: str
    share: DeviceShare
    origin: str
    models: Sequence[str] = ()
    test_models: bool = False
    #: turns held at once; None: the pool's own default
    concurrency: int | None = None
    engine: EngineChoice = "auto"
    mode: Mode = "exact"


class WorkerCommands(Protocol):
    """The argument vectors of the workers. A test gives others."""

    def coordinator(self, name: str) -> tuple[str, ...]:
        """The coordinator's."""

    def pool(self, order: PoolOrder) -> tuple[str, ...]:
        """That of a pool on a device."""


class _Symposia:
    def coordinator(self, name: str) -> tuple[str, ...]:
        return (sys.executable, "-m", "symposia_worker.commands.coordinator", "--name", name)

    def pool(self, order: PoolOrder) -> tuple[str, ...]:
        share = order.share
        command = [sys.executable, "-m", "symposia_worker.commands.pool", "--name", order.name, "--engine", order.engine, "--mode", order.mode,
                   "--device", share.device, "--origin", order.origin]
        for flag, value in (("--memory", share.memory_bytes), ("--threads", share.threads), ("--concurrency", order.concurrency)):
            if value is not None:
                command += [flag, str(value)]
        for model in order.models:
            command += ["--model", model]
        return (*command, *(["--test-models"] if order.test_models else []))


SYMPOSIA: WorkerCommands = _Symposia()
