"""The embedded stack's own decisions: ports, secrets, devices, addresses, last words, and who is ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from symposia_shared.errors import BadInput, BrokerUnavailable, StackUnavailable
from symposia_shared.ledger import Ledger
from symposia_shared.settings import Settings, load
from symposia_worker.program import wanted
from symposia_worker.stack import credentials, ports, services, state, tether
from symposia_worker.stack.blueprint import Plan, draw, without_secrets
from symposia_worker.stack.commands import SYMPOSIA, PoolOrder
from symposia_worker.stack.devices import CPU_MEMORY_SHARE, DeviceShare, shares
from symposia_worker.stack.folder import Folder, write_private
from symposia_worker.stack.heartbeats import HUNG_S, Heartbeats, by_pid
from symposia_worker.stack.part import BACK_OFF_S, KILLED_S, STEADY_S, Child, Part, began, last_words, rotate
from symposia_worker.stack.stopping import end_leftovers, ours
from valkey_server import running_valkey


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    for name in [name for name in os.environ if name.startswith("SYMPOSIA_")]:
        monkeypatch.delenv(name)
    made = Folder(tmp_path / "stack")
    made.prepare()
    return made


def test_ports_are_kept_from_one_start_to_the_next(folder: Folder) -> None:
    # Given a first choice; when a second is made; then it is the same
    first = ports.choose(folder, {})
    assert ports.choose(folder, {}) == first
    assert len(set(first.model_dump().values())) == len(ports.Ports.model_fields)


def test_a_port_that_somebody_took_is_chosen_anew_and_the_others_are_kept(folder: Folder) -> None:
    # Given a choice, and another program on the broker's port
    first = ports.choose(folder, {})
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((ports.LOOPBACK, first.broker))
        other.listen()
        # When the stack starts again
        second = ports.choose(folder, {})
    # Then only that port has changed, and it is remembered
    assert second.broker != first.broker
    assert second.model_dump(exclude={"broker"}) == first.model_dump(exclude={"broker"})
    assert ports.choose(folder, {}) == second


def test_a_store_port_needs_the_grpc_port_beside_it(folder: Folder) -> None:
    first = ports.choose(folder, {})
    second = ports.choose(folder, {}, free=lambda port: port != first.volume + ports.GRPC_OFFSET)
    assert second.volume != first.volume


def test_a_fixed_port_that_is_taken_is_refused_with_its_variable(folder: Folder) -> None:
    with pytest.raises(StackUnavailable, match="SYMPOSIA_S3_PORT"):
        ports.choose(folder, {"SYMPOSIA_S3_PORT": "12345"}, free=lambda port: port != 12345)


@pytest.mark.parametrize("text", ["0", "-1", "99999", "http", "1e3", "12 "])
def test_what_is_no_port_is_refused(folder: Folder, text: str) -> None:
    with pytest.raises(BadInput, match="SYMPOSIA_BROKER_PORT"):
        ports.choose(folder, {"SYMPOSIA_BROKER_PORT": text})


@pytest.mark.parametrize("text", ["", "garbage", "{}", "[]", '{"broker": "x"}', '{"broker": 0}'])
def test_a_damaged_ports_file_is_only_a_reason_to_choose_again(folder: Folder, text: str) -> None:
    folder.ports.write_text(text)
    assert ports.choose(folder, {}) == ports.Ports.from_json(folder.ports.read_bytes())


def test_ports_of_an_older_version_are_kept_beside_those_it_did_not_know(folder: Folder) -> None:
    first = ports.choose(folder, {}).model_dump()
    del first["api"]
    folder.ports.write_text(json.dumps(first))
    assert ports.choose(folder, {}).model_dump(exclude={"api"}) == first


def test_secrets_are_made_once_and_are_for_the_owner_alone(folder: Folder) -> None:
    # Given a first start; when a second follows with another port
    first = credentials.write(folder, Settings(dir=folder.path), ports.choose(folder, {}))
    moved = ports.choose(folder, {}).model_copy(update={"broker": 19_999})
    second = credentials.write(folder, Settings(dir=folder.path), moved)
    # Then the secrets stand, the address follows, and nobody else may read the file
    assert credentials.password(second) == credentials.password(first)
    assert (second.s3, second.api_key, second.flower) == (first.s3, first.api_key, first.flower)
    assert ":19999/" in second.broker_url
    assert stat.S_IMODE(folder.credentials.stat().st_mode) == 0o600
    assert load(folder.path).broker == second.broker_url


def test_two_stacks_share_no_secret(folder: Folder, tmp_path: Path) -> None:
    other = Folder(tmp_path / "other")
    other.prepare()
    one, two = (credentials.write(f, Settings(dir=f.path), ports.choose(f, {})) for f in (folder, other))
    assert not {one.api_key, one.s3.secret_key, credentials.password(one), one.flower.password} & {
        two.api_key, two.s3.secret_key, credentials.password(two), two.flower.password}


@pytest.mark.parametrize("text", ["garbage", "{}", "[1]", '{"broker_url": 3}', "\x00\xff"])
def test_damaged_credentials_are_refused_with_the_remedy(folder: Folder, text: str) -> None:
    folder.credentials.write_text(text)
    with pytest.raises(StackUnavailable, match="Remove it"):
        draw(folder, Plan(devices=()))


@pytest.mark.parametrize(("memory", "kept"), [(1 << 30, 300 << 20), (16 << 30, 512 << 20), (128 << 30, 700 << 20)])
def test_the_store_s_collector_has_a_share_of_the_memory_within_bounds(memory: int, kept: int, folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "usable_memory", lambda: memory)
    store = next(s for s in draw(folder, Plan(devices=())).services if s.role == "store")
    assert store.environ["GOMEMLIMIT"] == str(kept)


def test_what_the_environment_names_is_not_embedded(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a stack that had services of its own
    own = draw(folder, Plan(devices=())).credentials
    # When Redis and S3 are named by the environment
    monkeypatch.setenv("SYMPOSIA_BROKER_URL", "redis://:pw@redis.example:6379/3")
    monkeypatch.setenv("SYMPOSIA_S3__ENDPOINT_URL", "https://s3.example")
    blueprint = draw(folder, Plan(devices=shares("cpu"), test_models=True))
    # Then neither is started, and names carry the stack's id, for others may be on that Redis
    assert blueprint.services == ()
    assert blueprint.addresses == {"broker": "redis://redis.example:6379/3", "store": "https://s3.example", "api": None,
                                   "flower": f"http://127.0.0.1:{blueprint.ports.flower}"}
    assert blueprint.orders(["m"])[0].name == f"pool-cpu-0.{folder.stack_id()[:6]}"
    # and when they are named no more, the embedded broker does not get the other's password
    monkeypatch.delenv("SYMPOSIA_BROKER_URL")
    assert credentials.password(draw(folder, Plan(devices=())).credentials) not in ("pw", credentials.password(own))


def test_a_pool_with_nothing_to_serve_waits_for_a_checkpoint(folder: Folder) -> None:
    blueprint = draw(folder, Plan(devices=shares("cpu")))
    assert [order.models for order in blueprint.orders([])] == [[]]
    assert [order.models for order in blueprint.orders(["m"])] == [["m"]]


@given(st.integers(1, 64), st.integers(1, 16))
def test_shares_of_the_processor_add_up_to_no_more_than_it_has(cores: int, pools: int) -> None:
    made = shares(",".join(f"cpu:{i}" for i in range(pools)), cores=cores, memory_bytes=10**9)
    assert sum(share.threads or 0 for share in made) <= max(cores, pools)
    assert sum(share.memory_bytes or 0 for share in made) <= CPU_MEMORY_SHARE * 10**9
    assert len({share.pool for share in made}) == pools


@pytest.mark.parametrize("text", ["gpu", "cpu:0,cpu", "", ",", "cuda:x", "cpu:0,cpu:0", "cpu;rm", "cuda:0 cuda:1"])
def test_devices_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(BadInput):
        shares(text)


def test_a_pool_is_told_its_share_and_its_models() -> None:
    share = DeviceShare("cpu:0", threads=2, memory_bytes=7)
    order = PoolOrder("pool-cpu-0", share, origin="id", models=("a", "b"), test_models=True, concurrency=9, engine="openvino", mode="fast")
    words = " ".join(SYMPOSIA.pool(order))
    assert "--engine openvino --mode fast" in words
    assert "--device cpu:0 --origin id --memory 7 --threads 2 --concurrency 9 --model a --model b --test-models" in words


@given(st.text(st.characters(whitelist_categories=["L", "N"]), min_size=1).filter(str.isalnum))
def test_an_address_never_shows_its_password(password: str) -> None:
    assert without_secrets(f"redis://user:{password}@host.example:1/0") == "redis://host.example:1/0"


def test_the_last_words_of_a_traceback_are_its_last_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    start = log.stat().st_size
    with log.open("a") as file:
        file.write("Traceback (most recent call last):\n  File x\nValueError: no such device\n")
    assert last_words(log, start) == "ValueError: no such device"
    assert last_words(log, log.stat().st_size) == ""
    assert last_words(tmp_path / "none") == ""


def test_a_large_log_is_put_aside_and_a_small_one_kept(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("x" * 100)
    rotate(log, most=100)
    assert log.exists()
    rotate(log, most=99)
    assert not log.exists()
    assert (tmp_path / "a.log.1").read_text() == "x" * 100


def _part(tmp_path: Path, *command: str) -> Part:
    return Part(role="pool", name="p", command=command, folder=tmp_path, log=tmp_path / "p.log", ready=lambda _: True,
                environ=dict(os.environ))


def _ended(child: Child, now: float) -> int:
    while (status := child.reap(now)) is None:
        time.sleep(0.01)
    return status


def test_a_part_that_keeps_dying_is_started_ever_later_and_says_why(tmp_path: Path) -> None:
    # Given a part that ends at once; when it is started again and again
    child, waits, now = Child(_part(tmp_path, sys.executable, "-c", "raise SystemExit('no such device')")), [], 1000.0
    for _ in range(8):
        child.start(now, again=child.deaths > 0)
        assert _ended(child, now) == 1
        waits.append(child.start_at - now)
    # Then the waits grow to the last one, and the reason is told
    assert waits == [*BACK_OFF_S, BACK_OFF_S[-1], BACK_OFF_S[-1]]
    assert child.restarts == 7
    assert child.reason == "exit 1: no such device"
    # and a death after a steady life is a first one again
    child.start(now)
    _ended(child, now + STEADY_S + 1)
    assert child.start_at == now + STEADY_S + 1


def test_a_part_that_was_ready_and_is_killed_again_and_again_is_not_kept_waiting_long(tmp_path: Path) -> None:
    # Given a part that works, and one that is killed before it does
    working, failing = Child(_part(tmp_path, "sleep", "60")), Child(replace(_part(tmp_path, "sleep", "60"), ready=lambda _: False))
    # When each is killed at the end of each of its short lives
    for child in (working, failing):
        for _ in range(8):
            child.start(1000.0, again=child.deaths > 0)
            child.look()
            child.signal(signal.SIGKILL)
            assert _ended(child, 1000.0) == -signal.SIGKILL
    # Then only the one that never worked waits for longer than a second
    assert working.start_at == 1000.0 + KILLED_S
    assert failing.start_at == 1000.0 + BACK_OFF_S[-1]


def test_a_pool_that_starts_while_the_broker_is_away_waits_for_it(tmp_path: Path) -> None:
    ledger = Ledger(f"redis+socket://{tmp_path / 'b' / 's'}", "s:")
    with pytest.raises(BrokerUnavailable):
        wanted(ledger, "p", patience_s=0.0)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(wanted, ledger, "p", patience_s=60.0)
        assert not waiting.done()
        with running_valkey(tmp_path / "b"):
            assert waiting.result(60) == set()


def test_a_process_whose_parent_is_gone_before_it_was_tied_does_not_start(tmp_path: Path) -> None:
    # Given a tether told of a parent that is not its own: no process has this number
    made = tmp_path / "made"
    command = [sys.executable, "-I", "-S", tether.__file__, "--parent", str(2**22 + 1), "touch", str(made)]
    # When it runs; then its command never does
    assert subprocess.run(command, check=False).returncode == 1
    assert not made.exists()


def test_a_data_folder_has_one_server_for_as_long_as_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a process that holds the lock of its data
    lock = tmp_path / "lock"
    command = [sys.executable, "-I", "-S", tether.__file__, "--parent", str(os.getpid()), "--lock", str(lock), "cat"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdin
        assert first.stdout
        first.stdin.write(b"it runs\n")
        first.stdin.flush()
        assert first.stdout.readline() == b"it runs\n"
        # When a second wants it; then it is refused
        monkeypatch.setattr(tether, "LOCK_WAIT_S", 0.0)
        assert not tether._hold(str(lock))
        first.stdin.close()
    # and once the first has ended, it is free
    assert tether._hold(str(lock))


def test_only_what_is_really_ours_is_ended(tmp_path: Path) -> None:
    # Given two processes: one as the state has it, and one that has only inherited a pid
    with subprocess.Popen(["sleep", "60"]) as mine, subprocess.Popen(["sleep", "60"]) as another:
        rows = [state.Process(role="pool", name="a", pid=mine.pid, began=began(mine.pid)),
                state.Process(role="pool", name="b", pid=another.pid, began=(began(another.pid) or 0) - 100),
                state.Process(role="pool", name="c", pid=None)]
        # When left-overs are ended; then only the first is
        assert end_leftovers(rows) == 1
        assert mine.wait() == -signal.SIGTERM
        assert another.poll() is None
        another.kill()


def test_a_left_over_that_ignores_sigterm_is_killed() -> None:
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"\n"
        row = state.Process(role="engine", name="e", pid=process.pid, began=began(process.pid))
        end_leftovers([row], grace_s={"engine": 0.2})
        assert process.wait() == -signal.SIGKILL
        assert not ours(row)


def test_heartbeats_of_other_machines_and_of_the_dead_are_not_believed() -> None:
    dead = {"pid": 7, "host": "here", "ready_at": 1.0, "beat_at": 1.0}
    new = {"pid": 9, "host": "here", "ready_at": 2.0}
    beats = {"dead": dead, "far": {"pid": 8, "host": "there"}, "new": new, "odd": [1], "none": {"pid": "x"}}
    assert set(by_pid(beats, "here", old={"dead": dead})) == {9}


def test_one_supervisor_holds_a_folder(folder: Folder) -> None:
    with folder.hold():
        assert folder.held()
        assert folder.holder() == os.getpid()
        with pytest.raises(StackUnavailable, match=str(os.getpid())), Folder(folder.path).hold():
            pass
    assert not folder.held()


def test_a_private_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_private(path, "one")
    with pytest.raises(UnicodeEncodeError):
        write_private(path, "\udc80")
    assert path.read_text() == "one"
    assert os.listdir(tmp_path) == ["file"]


def test_the_composed_stack_publishes_on_loopback_only_and_watches_every_service() -> None:
    composed = yaml.safe_load((Path(__file__).parents[2] / "compose.yaml").read_text())
    for name, service in composed["services"].items():
        if "profiles" in service:  # what is run once, by hand
            continue
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name


def test_a_worker_that_beats_no_more_is_hung_and_one_that_never_began_is_not() -> None:
    # Given a worker that beats, one that does not any more, and looks half a second apart
    heartbeats = Heartbeats(_NoLedger(), "here", every_s=0.5)  # type: ignore[arg-type]
    for look in range(int(HUNG_S / 0.5) + 1):
        assert not heartbeats.hung(2)
        heartbeats.see({1: {"beat_at": float(look)}, 2: {"beat_at": 7.0}})
    # Then only the latter hangs; and one that beats again does not
    assert (heartbeats.hung(1), heartbeats.hung(2), heartbeats.hung(3), heartbeats.hung(None)) == (False, True, False, False)
    heartbeats.see({2: {"beat_at": 8.0}})
    assert not heartbeats.hung(2)


class _NoLedger:
    def workers(self) -> dict[str, object]:
        return {}


def test_a_signal_ends_the_supervisor_s_sleep_and_one_that_came_before_does_too() -> None:
    # In a process of its own: what signals itself is no place for other tests
    program = """if True:
        import os, signal, threading
        from symposia_worker.stack.alarm import Alarm

        signal.signal(signal.SIGUSR1, lambda *_: None)
        with Alarm() as alarm:
            alarm.wait(0.0)
            os.kill(os.getpid(), signal.SIGUSR1)
            alarm.wait(3600.0)
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1)).start()
            alarm.wait(3600.0)
        print("awake", signal.set_wakeup_fd(-1))
    """
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True).stdout == "awake -1\n"


def test_a_calm_stack_reads_its_workers_heartbeats_more_rarely_and_counts_the_same_seconds() -> None:
    heartbeats = Heartbeats(_NoLedger(), "here", every_s=0.5)  # type: ignore[arg-type]
    heartbeats.calm = True
    for _ in range(int(HUNG_S / 2.0)):
        heartbeats.see({2: {"beat_at": 7.0}})
        assert not heartbeats.hung(2)
    heartbeats.see({2: {"beat_at": 7.0}})
    assert heartbeats.hung(2)
