"""What a pool asks of its engine process, whoever stands in for it in tests."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from symposia_shared.turns import Abstention, Completion, Turn
from symposia_worker.engines.protocol import Pulse


class AskedEngine(Protocol):
    """``engines.client.EngineProcess``, by what a pool uses of it."""

    @property
    def pid(self) -> int | None: ...

    @property
    def pulse(self) -> Pulse | None: ...

    def generate(self, turn_id: str, turn: Turn, on_first: Callable[[float], None], on_done: Callable[[Completion | Abstention], None], *,
                 on_delta: Callable[[str], None] | None = None) -> None: ...

    def together(self) -> AbstractContextManager[None]: ...

    def cancel(self, turn_id: str) -> None: ...

    def kill(self) -> None: ...

    def restart(self) -> None: ...

    def stop(self) -> object: ...
