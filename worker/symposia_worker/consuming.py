"""Which queues the worker of this process reads, changed from within: a broadcast can be lost, and anybody may send one."""

from __future__ import annotations

from typing import Any

from celery import signals


class Consuming:
    """The consumer of this process, once it consumes. Before that a change is no error: the worker begins with all of its queues."""

    def __init__(self) -> None:
        self._consumer: Any = None
        signals.worker_ready.connect(self._ready, weak=False)

    def _ready(self, sender: Any = None, **_: object) -> None:
        self._consumer = sender

    def open(self, queue: str) -> None:
        """Read a queue from now on; one that is read already is no error."""
        if self._consumer is not None:
            self._consumer.call_soon(self._consumer.add_task_queue, queue)

    def close(self, queue: str) -> None:
        """Read a queue no more. A message that comes of it all the same goes back to it."""
        if self._consumer is not None:
            self._consumer.call_soon(self._consumer.cancel_task_queue, queue)
