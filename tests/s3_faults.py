"""A proxy before a real S3 that does to chosen requests what networks and full disks do."""

from __future__ import annotations

import http.client
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

from symposia_shared.settings import S3Settings

#: slow: waits before it passes on. slowdown: 503. full: 507. reset: the connection is reset before, lost: after the server has answered.
#: truncated: half of the answer's body. torn: half of the request's body reaches the server. hang: no answer until the faults end
Fault = Literal["slow", "slowdown", "full", "reset", "lost", "truncated", "torn", "hang"]
#: (method, path) → what is to be done to it
Rule = Callable[[str, str], Fault | None]

ERRORS = {"slowdown": (503, "SlowDown", "Please reduce your request rate."), "full": (507, "InsufficientStorage", "No space left on device (ENOSPC)")}


@dataclass
class FaultyS3:
    """The proxy. ``settings`` lead through it; ``rule`` may be set at any time."""

    settings: S3Settings
    upstream: tuple[str, int]
    rule: Rule = lambda _method, _path: None
    slow_s: float = 1.0
    #: (method, path, fault) of each request
    seen: list[tuple[str, str, Fault | None]] = field(default_factory=list)
    calm: threading.Event = field(default_factory=threading.Event)

    def fail(self, fault: Fault, *, method: str = "", holding: str = "", times: int = 1_000_000) -> None:
        """From now on, ``fault`` for the next ``times`` requests of a method whose path has ``holding`` in it."""
        self.calm.clear()
        left = [times]

        def rule(verb: str, path: str) -> Fault | None:
            if (method and verb != method) or holding not in path or left[0] <= 0:
                return None
            left[0] -= 1
            return fault

        self.rule = rule

    def heal(self) -> None:
        """All is well again."""
        self.rule = lambda _method, _path: None
        self.calm.set()


@contextmanager
def faulty(s3: S3Settings) -> Iterator[FaultyS3]:
    """A proxy before ``s3``."""
    parts = urlsplit(str(s3.endpoint_url))
    server = _Server(("127.0.0.1", 0), _Handler)
    proxy = FaultyS3(s3.model_copy(update={"endpoint_url": f"http://127.0.0.1:{server.server_port}"}), (str(parts.hostname), int(parts.port or 80)))
    server.proxy = proxy
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.heal()
        server.shutdown()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    proxy: FaultyS3

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that we have cut is no error here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (OSError, http.client.HTTPException):
            self.close_connection = True

    def _any(self) -> None:
        assert isinstance(self.server, _Server)
        proxy = self.server.proxy
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = proxy.rule(self.command, self.path)
        proxy.seen.append((self.command, self.path, fault))
        if fault == "hang":
            proxy.calm.wait(60)
            self._cut()
        elif fault == "reset":
            self._cut()
        elif fault in ERRORS:
            self._refuse(*ERRORS[fault])
        elif fault == "torn":
            self._tear(proxy, body)
        else:
            if fault == "slow":
                time.sleep(proxy.slow_s)
            self._pass(proxy, body, fault)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _any

    def _pass(self, proxy: FaultyS3, body: bytes, fault: Fault | None) -> None:
        upstream = http.client.HTTPConnection(*proxy.upstream, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in ("expect", "connection")}
        upstream.request(self.command, self.path, body=body or None, headers=headers)
        answer = upstream.getresponse()
        found = answer.read()
        upstream.close()
        if fault == "lost":
            self._cut()
            return
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(found))
        self.send_header("Content-Length", length or "0")
        self.end_headers()
        if fault == "truncated":
            self.wfile.write(found[: len(found) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.wfile.write(found)

    def _tear(self, proxy: FaultyS3, body: bytes) -> None:
        with socket.create_connection(proxy.upstream) as upstream:
            head = f"{self.command} {self.path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in self.headers.items() if k.lower() != "expect") + "\r\n"
            upstream.sendall(head.encode() + body[: len(body) // 2])
            time.sleep(0.05)
        self._cut()

    def _refuse(self, status: int, code: str, message: str) -> None:
        said = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'.encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def _cut(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""
