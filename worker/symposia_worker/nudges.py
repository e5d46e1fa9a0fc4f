"""A pool hears that another one has left it a turn. What is not heard is found at the next heartbeat."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from symposia_shared.errors import Unavailable
from symposia_shared.ledger import Ledger, away

log = logging.getLogger(__name__)


class Nudges(threading.Thread):
    """Listens on ``nudge:POOL`` and has the pool look at its queues; several at once are one."""

    def __init__(self, ledger: Ledger, pool: str, feed: Callable[[], None]) -> None:
        super().__init__(name="nudges", daemon=True)
        self._ledger, self._channel, self._feed = ledger, ledger.key(f"nudge:{pool}"), feed
        self._over = threading.Event()

    def stop(self) -> None:
        """Listen no more; returns at once."""
        self._over.set()

    def run(self) -> None:
        while not self._over.is_set():
            try:
                with away():
                    self._listen()
            except Unavailable as error:
                log.info("nudges are not heard: %s", error)
                self._over.wait(1.0)
            except Exception:
                log.exception("nudges")
                self._over.wait(1.0)

    def _listen(self) -> None:
        heard: Any = self._ledger.redis.pubsub(ignore_subscribe_messages=True)
        with heard:
            heard.subscribe(self._channel)
            while not self._over.is_set():
                if heard.get_message(timeout=1.0) is None:
                    continue
                while heard.get_message(timeout=0.0) is not None:
                    pass
                self._feed()
