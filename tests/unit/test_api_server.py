"""The HTTP server ends when it is told to, however rarely it ticks."""

from __future__ import annotations

import os
import signal
import socket
import threading
import urllib.request

import pytest
from fastapi import FastAPI

from symposia.api import server
from symposia_worker.stack.ports import LOOPBACK


def test_a_signal_ends_the_server_without_waiting_for_its_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "TICK_S", 3600.0)
    with socket.create_server((LOOPBACK, 0)) as free:
        port = free.getsockname()[1]
    app = FastAPI()
    seen: list[str] = []

    @app.get("/end")
    def end() -> str:
        os.kill(os.getpid(), signal.SIGINT)
        return "told"

    def ask() -> None:
        while not seen:
            try:
                with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/end", timeout=10.0) as answer:
                    seen.append(str(answer.headers["date"]))
            except OSError:
                continue

    asking = threading.Thread(target=ask)
    asking.start()
    server.run(app, host=LOOPBACK, port=port, h11_max_incomplete_event_size=1 << 16)
    asking.join()
    assert "GMT" in seen[0]


def test_a_port_that_is_taken_ends_the_command_with_an_error() -> None:
    with socket.create_server((LOOPBACK, 0)) as taken, pytest.raises(SystemExit):
        server.run(FastAPI(), host=LOOPBACK, port=taken.getsockname()[1], h11_max_incomplete_event_size=1 << 16)
