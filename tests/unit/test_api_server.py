"""The HTTP server ends when it is told to, however rarely it ticks."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest
from fastapi import FastAPI

from symposia.api import server
from symposia_worker.stack.ports import LOOPBACK


def test_a_signal_ends_the_server_without_waiting_for_its_tick() -> None:
    # In a process of its own: what signals itself is no place for other tests
    program = """if True:
        import os, signal, socket, threading, time, urllib.request
        from fastapi import FastAPI
        from symposia.api import server

        server.TICK_S = 3600.0
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        app = FastAPI()

        @app.get("/end")
        def end() -> str:
            os.kill(os.getpid(), signal.SIGINT)
            return "told"

        def ask() -> None:
            while True:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/end", timeout=10.0) as answer:
                        return print(answer.headers["date"])
                except OSError:
                    time.sleep(0.05)

        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        server.run(app, host="127.0.0.1", port=port, h11_max_incomplete_event_size=1 << 16)
        asking.join(30.0)
    """
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert "GMT" in ran.stdout


def test_a_port_that_is_taken_ends_the_command_with_an_error() -> None:
    with socket.create_server((LOOPBACK, 0)) as taken, pytest.raises(SystemExit):
        server.run(FastAPI(), host=LOOPBACK, port=taken.getsockname()[1], h11_max_incomplete_event_size=1 << 16)
