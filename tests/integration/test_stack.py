"""The embedded stack, for real: Valkey, SeaweedFS and Flower under a supervisor, with stand-in workers, taken to pieces."""

from __future__ import annotations

import base64
import json
import os
import signal
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from symposia.cli.doctor import checks
from symposia.cli.info import running
from symposia_shared.broker import celery_app
from symposia_shared.errors import StackUnavailable
from symposia_shared.ledger import Ledger
from symposia_shared.settings import Settings, load
from symposia_shared.store import Store
from symposia_worker.stack.folder import Folder
from symposia_worker.stack.stopping import down

STANDIN = str(Path(__file__).with_name("stack_standin.py"))
#: seconds anything here may take; a test that waits as long has failed
PATIENCE_S = 40.0

pytestmark = pytest.mark.slow


class Stack:
    """A supervisor in a process of its own, as a person would start it."""

    def __init__(self, path: Path, *flags: str, **environ: str) -> None:
        self.path = path
        self.log = path.with_name(path.name + ".log")
        clean = {name: value for name, value in os.environ.items() if not name.startswith("SYMPOSIA_")}
        with self.log.open("ab") as log:
            command = [sys.executable, STANDIN, "up", str(path), *flags]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**clean, **environ})

    @property
    def settings(self) -> Settings:
        return load(self.path)

    def state(self) -> dict[str, Any]:
        return json.loads((self.path / "stack.json").read_text())

    def pid(self, role: str) -> int | None:
        return next((row["pid"] for row in self.state()["processes"] if row["role"] == role), None)

    def until_ready(self) -> Stack:
        eventually(lambda: self.process.poll() is not None or self._ready(), lambda: self.said())
        assert self.process.poll() is None, self.said()
        return self

    def _ready(self) -> bool:
        try:
            return self.state()["pid"] == self.process.pid and self.state()["state"] == "ready"
        except FileNotFoundError:
            return False

    def all_ready(self) -> bool:
        return all(row["state"] == "ready" for row in self.state()["processes"])

    def names(self) -> set[str]:
        return {row["name"] for row in self.state()["processes"] if row["role"] in ("pool", "coordinator")}

    def pids(self) -> list[int]:
        return [row["pid"] for row in self.state()["processes"] if row["pid"]]

    def said(self) -> str:
        return self.log.read_text()


def eventually(holds: Callable[[], object], otherwise: Callable[[], object] = lambda: "") -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.05)


def none_left(pids: list[int]) -> bool:
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SYMPOSIA_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One stack with two pools and Flower, shared by the tests that leave it running."""
    made = Stack(tmp_path_factory.mktemp("stack") / "dir", "--devices", "cpu:0,cpu:1", "--flower")
    try:
        yield made.until_ready()
    finally:
        down(Folder(made.path))
        made.process.wait(PATIENCE_S)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Stack]]:
    """Starts a stack in a folder of its own; whatever is left is stopped."""
    made: list[Stack] = []

    def begin(*flags: str, **environ: str) -> Stack:
        made.append(Stack(tmp_path / "dir", *flags, **environ))
        return made[-1]

    yield begin
    down(Folder(tmp_path / "dir"))
    for one in made:
        one.process.wait(PATIENCE_S)


def test_info_names_every_process_and_no_secret(stack: Stack) -> None:
    facts = running(stack.path)
    assert sorted(p["role"] for p in facts["processes"]) == sorted(
        ["broker", "store", "coordinator", "pool", "engine", "pool", "engine", "flower"])
    assert all(psutil.pid_exists(p["pid"]) for p in facts["processes"])
    assert {p["device"] for p in facts["processes"] if p["role"] == "pool"} == {"cpu:0", "cpu:1"}
    stored = json.loads(Path(facts["credentials_file"]).read_text())
    written = json.dumps(facts) + (stack.path / "stack.json").read_text() + stack.said()
    password = stored["broker_url"].split(":")[2].split("@")[0]
    for secret in (password, stored["s3"]["secret_key"], stored["flower"]["password"], stored["api_key"]):
        assert secret not in written


def test_secrets_are_readable_by_the_owner_alone_and_stand_in_no_argument_list(stack: Stack) -> None:
    assert stat.S_IMODE(stack.path.stat().st_mode) == 0o700
    for file in ("credentials.json", "broker/valkey.conf", "store/s3.json"):
        assert stat.S_IMODE((stack.path / file).stat().st_mode) == 0o600
    stored = json.loads((stack.path / "credentials.json").read_text())
    lines = [" ".join(psutil.Process(pid).cmdline()) for pid in stack.pids()]
    for secret in (stored["s3"]["secret_key"], stored["flower"]["password"], stored["broker_url"].split(":")[2].split("@")[0]):
        assert not any(secret in line for line in lines)


def test_everything_listens_on_loopback_only(stack: Stack) -> None:
    for pid in stack.pids():
        listening = [c.laddr.ip for c in psutil.Process(pid).net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        assert set(listening) <= {"127.0.0.1"}


def test_the_doctor_finds_nothing_wrong_with_an_embedded_stack(stack: Stack) -> None:
    found = {check.name: check for check in checks(stack.path)}
    broker = ("broker", "broker persistence", "broker eviction", "broker memory", "key prefix")
    for name in (*broker, "store", "store conditional writes", "ports"):
        assert found[name].status == "ok", found[name]


def test_the_doctor_tells_what_a_weaker_broker_does_not_keep(stack: Stack) -> None:
    # Given a broker whose configuration was loosened
    ledger = Ledger(stack.settings.broker, stack.settings.prefix)
    try:
        ledger.redis.config_set("appendfsync", "everysec")
        ledger.redis.config_set("maxmemory-policy", "allkeys-lru")
        ledger.redis.set("foreign:key", "1")
        # When the doctor looks; then each is named with its remedy
        found = {check.name: check for check in checks(stack.path)}
        assert (found["broker persistence"].status, found["broker eviction"].status) == ("warn", "fail")
        assert "last second" in found["broker persistence"].found
        assert "noeviction" in found["broker eviction"].remedy
        assert "1 keys of other applications" in found["key prefix"].found
    finally:
        ledger.redis.delete("foreign:key")
        ledger.redis.config_set("appendfsync", "always")
        ledger.redis.config_set("maxmemory-policy", "noeviction")


def test_flower_asks_for_a_password_and_counts_our_queue_under_our_prefix(stack: Stack) -> None:
    # Given three messages in our queue
    app = celery_app(stack.settings, role="producer")
    for _ in range(3):
        app.send_task("symposia.advance", args=("x",), queue="coordinator", ignore_result=True)
    address = running(stack.path)["flower"]
    # When Flower is asked without a password; then it refuses
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{address}/api/queues/length", timeout=10)  # noqa: S310
    assert refused.value.code == 401
    # and with it, it sees them
    login = json.loads((stack.path / "credentials.json").read_text())["flower"]
    token = base64.b64encode(f"{login['user']}:{login['password']}".encode()).decode()
    request = urllib.request.Request(f"{address}/api/queues/length", headers={"Authorization": f"Basic {token}"})  # noqa: S310
    queues = json.load(urllib.request.urlopen(request, timeout=10))["active_queues"]  # noqa: S310
    assert {"name": "coordinator", "messages": 3} in queues
    Ledger(stack.settings.broker, stack.settings.prefix).redis.delete(stack.settings.prefix + "coordinator")


def test_a_second_supervisor_on_the_folder_is_refused_and_told_who_holds_it(stack: Stack) -> None:
    second = Stack(stack.path)
    assert second.process.wait(PATIENCE_S) == StackUnavailable.exit_code
    assert f"pid {stack.process.pid}" in second.said()
    assert stack.state()["state"] == "ready"


@pytest.mark.parametrize("role", ["broker", "store", "coordinator", "pool", "flower"])
def test_what_is_killed_is_started_again_and_has_its_data(stack: Stack, role: str) -> None:
    # Given something in the broker and in the store
    settings = stack.settings
    Ledger(settings.broker, settings.prefix).redis.set(settings.prefix + "kept", role)
    Store(settings.s3).put("kept/object", role.encode())
    # When a part is killed
    pid = stack.pid(role)
    assert pid
    os.kill(pid, signal.SIGKILL)
    # Then another takes its place, and nothing is lost
    eventually(lambda: stack.pid(role) not in (pid, None) and stack.all_ready(), stack.said)
    assert Ledger(settings.broker, settings.prefix).redis.get(settings.prefix + "kept") == role
    assert Store(settings.s3).get("kept/object") == role.encode()
    assert f"(pid {pid}) has ended, killed by SIGKILL; it starts again now" in stack.said()


def test_a_store_that_was_started_again_sleeps_while_it_has_nothing_to_do(stack: Stack) -> None:
    # Given a store that finds what an earlier process has left (by the test before; else this one's)
    pid = stack.pid("store")
    assert pid
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: stack.pid("store") not in (pid, None) and stack.all_ready(), stack.said)
    # When nobody asks it for anything (it wakes up 30 to 150 times a second; with the state of an earlier master 2,100 times, 5 % of a core)
    woken = switches(stack.pid("store"))
    time.sleep(2.0)
    # Then it does not spin
    assert switches(stack.pid("store")) - woken < 2_000


def switches(pid: int | None) -> int:
    """How often the threads of a process have gone to sleep."""
    told = [(Path(f"/proc/{pid}/task") / thread / "status").read_text() for thread in os.listdir(f"/proc/{pid}/task")]
    return sum(int(line.split()[1]) for text in told for line in text.splitlines() if line.startswith("voluntary"))


def test_another_stack_on_our_broker_starts_none_of_its_own_and_is_told_of_us(stack: Stack, start: Callable[..., Stack]) -> None:
    # Given a stack whose Redis is that of another
    settings = stack.settings
    other = start(SYMPOSIA_BROKER_URL=settings.broker).until_ready()
    # Then it runs no broker, names its workers so that the two do not clash, and says whose jobs it shares
    assert "broker" not in [row["role"] for row in other.state()["processes"]]
    assert other.state()["broker"] == stack.state()["broker"]
    assert not other.names() & stack.names()
    assert "SYMPOSIA_PREFIX" in other.said()
    assert {check.name: check.status for check in checks(other.path)}["key prefix"] == "warn"


def test_however_a_stack_ends_nothing_is_left_and_the_next_finds_its_data(start: Callable[..., Stack]) -> None:
    # Given a stack with something in the broker and in the store
    first = start().until_ready()
    settings, pids = first.settings, first.pids()
    Ledger(settings.broker, settings.prefix).redis.set(settings.prefix + "kept", "1")
    Store(settings.s3).put("kept/object", b"x" * 100_000)
    # When it is interrupted; then it ends in good order
    first.process.send_signal(signal.SIGINT)
    assert first.process.wait(PATIENCE_S) == 0, first.said()
    assert none_left(pids)
    assert not (first.path / "stack.json").exists()
    with pytest.raises(StackUnavailable, match="No stack runs"):
        running(first.path)
    # and when the supervisor of the next is killed, and the one after it starts at that moment
    second = start().until_ready()
    assert second.settings == settings
    pids = second.pids()
    second.process.kill()
    second.process.wait()
    with pytest.raises(StackUnavailable, match="No stack runs"):
        running(second.path)
    third = start().until_ready()
    # Then nothing of the second is left, and everything written to the first is there
    assert none_left(pids)
    assert Ledger(settings.broker, settings.prefix).redis.get(settings.prefix + "kept") == "1"
    assert Store(settings.s3).get("kept/object") == b"x" * 100_000
    # and `down` stops it, once, and without complaint a second time
    pids = third.pids()
    assert down(Folder(third.path)) == (True, 0)
    assert none_left(pids)
    assert down(Folder(third.path)) == (False, 0)


def test_a_part_that_cannot_start_is_named_with_its_reason_and_nothing_is_left(start: Callable[..., Stack]) -> None:
    broken = start("--dying")
    assert broken.process.wait(PATIENCE_S) == StackUnavailable.exit_code
    last = broken.said().splitlines()[-1]
    assert "pool-cpu-0 cannot start" in last
    assert "no such device: cpu:0" in last
    assert not Folder(broken.path).held()
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(broken.path) in " ".join(p.info["cmdline"] or [])]


def _up(path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "symposia_worker.commands.up", "--dir", str(path), *flags], capture_output=True, text=True,
                          timeout=PATIENCE_S, check=False)


def test_a_model_that_is_not_in_the_store_is_refused_before_any_worker_starts(tmp_path: Path) -> None:
    refused = _up(tmp_path, "--detach", "--no-flower", "--model", "no-such-model")
    assert refused.returncode == 2
    assert "symposia models pull no-such-model" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "logs" / "coordinator.log").exists()
    assert not Folder(tmp_path).held()


def test_a_folder_that_cannot_be_one_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused = _up(tmp_path / "file" / "below", "--detach")
    assert refused.returncode == StackUnavailable.exit_code
    assert "cannot be written" in refused.stderr
    assert "Traceback" not in refused.stderr
