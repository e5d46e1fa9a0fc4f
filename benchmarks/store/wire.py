"""A TCP relay on the loopback that counts what S3 sends, headers and answers nobody lived to read included."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class Wire:
    """Relays 127.0.0.1:``port`` to ``target``."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self._mutex = threading.Lock()
        #: bytes that came from the server
        self.received = 0
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.getsockname()[1])

    def close(self) -> None:
        """Accept nothing more."""
        self._server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._server.accept()
                far = socket.create_connection(self._target)
                threading.Thread(target=self._pump, args=(near, far, False), daemon=True).start()
                threading.Thread(target=self._pump, args=(far, near, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while block := source.recv(262_144):
                sink.sendall(block)
                if counted:
                    with self._mutex:
                        self.received += len(block)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
