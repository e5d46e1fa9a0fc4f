"""One thread that hears of jobs' ends, for all handles of a client."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

from redis.exceptions import RedisError

from symposia_shared.ledger import Ledger

#: seconds between looks at the ledger itself: what is published while nobody listens is lost
LOOK_S = 1.0


class Watcher:
    """Turns job ids into futures that are done once the ledger has forgotten the job."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._waiting: dict[str, list[Future[None]]] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def watch(self, job_id: str) -> Future[None]:
        """A future that is done when the job has left the ledger; cancel it to stop watching."""
        future: Future[None] = Future()
        with self._lock:
            self._waiting.setdefault(job_id, []).append(future)
            if self._thread is None:
                self._thread = threading.Thread(target=self._listen, name="symposia-watcher", daemon=True)
                self._thread.start()
        return future

    def close(self) -> None:
        """Stop listening; what still waits stays undone."""
        self._closed.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout=2.0)

    def _listen(self) -> None:
        while not self._closed.is_set():
            try:
                self._hear()
            except (RedisError, OSError, ValueError):  # ValueError: redis-py, of a connection that was closed while it was read
                self._closed.wait(0.3)

    def _hear(self) -> None:
        ears = self.ledger.redis.pubsub(ignore_subscribe_messages=True)
        try:
            ears.subscribe(self.ledger.key("ended"))
            looked = 0.0
            while not self._closed.is_set():
                message = ears.get_message(timeout=0.25)
                if message is not None:
                    self._tell(message["data"])
                if time.monotonic() - looked > LOOK_S:
                    self._look()
                    looked = time.monotonic()
        finally:
            ears.close()

    def _look(self) -> None:
        with self._lock:
            self._waiting = {job: alive for job, fs in self._waiting.items() if (alive := [f for f in fs if not f.cancelled()])}
            ids = list(self._waiting)
        if not ids:
            return
        with self.ledger.redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.exists(self.ledger.key(f"job:{job_id}"))
            for job_id, there in zip(ids, pipe.execute(), strict=True):
                if not there:
                    self._tell(job_id)

    def _tell(self, job_id: str) -> None:
        with self._lock:
            futures = self._waiting.pop(job_id, [])
        for future in futures:
            if future.set_running_or_notify_cancel():
                future.set_result(None)
