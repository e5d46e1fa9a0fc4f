"""An engine process with an engine ``stalling`` beside the real ones: run as ``engines.process`` is. Its only step of a request does what
the prompt says: ``compute SECONDS``, ``wait SECONDS``, or ``say``."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from symposia_shared.turns import Completion
from symposia_worker.engines import process
from symposia_worker.engines.protocol import Done, Event, Generate, Load, Loaded


class Stalling:
    running = waiting = forward_passes = 0
    rest_s = 0.0
    resident: Mapping[str, int] = {}

    def __init__(self, device: str, memory_bytes: int) -> None:
        self._asked: list[Generate] = []

    def load(self, order: Load) -> Loaded:
        return Loaded(checkpoint=order.checkpoint, context=100)

    def unload(self, checkpoint: str) -> Sequence[Event]:
        return ()

    def admit(self, request: Generate) -> None:
        self._asked.append(request)

    def cancel(self, request_id: str) -> bool:
        return False

    def abandon(self) -> Sequence[str]:
        return ()

    @property
    def busy(self) -> bool:
        return bool(self._asked)

    def step(self) -> Sequence[Event]:
        request = self._asked.pop(0)
        verb, _, seconds = request.messages[0].content.partition(" ")
        until = time.monotonic() + float(seconds or 0)
        while verb == "compute" and time.monotonic() < until:
            sum(range(100_000))
        if verb == "wait":
            time.sleep(max(0.0, until - time.monotonic()))
        return [Done(id=request.id, completion=Completion(text=verb))]


if __name__ == "__main__":
    process.ENGINES["stalling"] = (__name__, "Stalling")
    process.main()
