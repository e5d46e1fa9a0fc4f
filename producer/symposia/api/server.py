"""The HTTP server: uvicorn, which by itself wakes up ten times a second to ask whether it shall end."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from types import FrameType

import uvicorn
from fastapi import FastAPI
from uvicorn.main import STARTUP_FAILURE

#: seconds between the ticks in which uvicorn writes its date anew
TICK_S = 1.0


class Server(uvicorn.Server):  # type: ignore[misc]  # it is untyped to mypy here
    """Ticks once a second, and ends at once when it is told to."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._told = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def main_loop(self) -> None:
        """Until ``should_exit``."""
        self._loop = asyncio.get_running_loop()
        while not await self.on_tick(0):
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), TICK_S)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal's handler: the tick that is waited for comes now."""
        super().handle_exit(sig, frame)
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._told.set)


def run(app: FastAPI, *, host: str, port: int, h11_max_incomplete_event_size: int) -> None:
    """Serve until SIGINT or SIGTERM."""
    server = Server(uvicorn.Config(app, host=host, port=port, log_level="warning", access_log=False, server_header=False, timeout_keep_alive=30,
                                   timeout_graceful_shutdown=3, http="h11", h11_max_incomplete_event_size=h11_max_incomplete_event_size))
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(STARTUP_FAILURE)
