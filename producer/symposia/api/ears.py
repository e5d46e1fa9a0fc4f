"""What pools say of answers that are being made, heard by one connection for all streams of a process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from symposia_shared.ledger import redis_url
from symposia_shared.said import Piece, channel, read_piece

#: seconds a stream waits to be told that it is listened for; after them it goes on, and lives by the result
CONFIRM_S = 2.0

#: job → piece
Heard = tuple[str, Piece]


class Ears:
    """Listens while it is started. Pieces that come while Redis is away are lost, which a ``Hearing`` can tell."""

    def __init__(self, url: str, prefix: str) -> None:
        self.prefix = prefix
        self._redis: Any = Redis.from_url(redis_url(url), decode_responses=True, socket_connect_timeout=3.0, health_check_interval=15)
        self._pubsub: Any = self._redis.pubsub()
        self._queues: dict[str, asyncio.Queue[Any]] = {}
        self._confirmed: dict[str, asyncio.Event] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to listen, in the running loop."""
        self._task = asyncio.create_task(self._loop(), name="ears")

    async def stop(self) -> None:
        """Listen no more."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        await self._pubsub.aclose()
        await self._redis.aclose()

    @asynccontextmanager
    async def listen(self, job_ids: Sequence[str], queue: asyncio.Queue[Any]) -> AsyncIterator[None]:
        """Put what is said of these jobs into ``queue``, as (job, piece). Begin before the jobs are submitted."""
        names = {channel(self.prefix, job_id): job_id for job_id in job_ids}
        for name in names:
            self._queues[name], self._confirmed[name] = queue, asyncio.Event()
        try:
            with suppress(RedisError, OSError, TimeoutError):
                await asyncio.wait_for(self._pubsub.subscribe(*names), CONFIRM_S)
                await asyncio.wait_for(asyncio.gather(*(self._confirmed[n].wait() for n in names)), CONFIRM_S)
            yield
        finally:
            for name in names:
                self._queues.pop(name, None)
                self._confirmed.pop(name, None)
            # in a task of its own: where the client has gone nothing can be awaited here any more
            leaving = asyncio.create_task(self._leave(list(names)))
            self._leaving.add(leaving)
            leaving.add_done_callback(self._leaving.discard)

    async def _leave(self, names: Sequence[str]) -> None:
        with suppress(RedisError, OSError, TimeoutError):
            await asyncio.wait_for(self._pubsub.unsubscribe(*names), CONFIRM_S)

    async def _loop(self) -> None:
        while True:
            try:
                await self._pubsub.subscribe(channel(self.prefix, ""))  # one channel on which nothing is said keeps the connection
                while True:
                    self._take(await self._pubsub.get_message(timeout=5.0))
            except (RedisError, OSError):
                await asyncio.sleep(0.3)

    def _take(self, message: dict[str, Any] | None) -> None:
        if message is None:
            return
        name = message["channel"]
        if message["type"] == "subscribe" and name in self._confirmed:
            self._confirmed[name].set()
        elif message["type"] == "message" and name in self._queues and (piece := read_piece(message["data"])) is not None:
            self._queues[name].put_nowait((name.rpartition(":")[2], piece))
