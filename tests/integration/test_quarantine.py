"""A device whose engine dies again and again is left alone; one whose turns are poison is not."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from stack import Stack, running_stack, wait_for

from symposia import BadInput, Inference
from symposia.cli.doctor.services import broker_checks
from symposia_shared.ledger.quarantined import Quarantines

FLAGS = ("--test-models", "--no-flower", "--no-api")


class BadDevice:
    """Kills every engine process of a pool as soon as it appears, as a broken device would."""

    def __init__(self, pool_pid: int) -> None:
        self._pool, self._stop, self.killed = psutil.Process(pool_pid), threading.Event(), 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def mend(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(0.01):
            with contextlib.suppress(psutil.Error):
                for child in self._pool.children():
                    if any("engines.process" in word for word in child.cmdline()):
                        child.kill()
                        self.killed += 1


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack of two pools, whose quarantines last ten minutes."""
    with running_stack(tmp_path_factory.mktemp("two"), *FLAGS, "--devices=cpu:0,cpu:1", SYMPOSIA_DEVICES__QUARANTINE_S="600") as stack:
        yield stack


def _why(stack: Stack, pool: str) -> str:
    return str(stack.client.ledger.workers()[pool].get("idle_because", ""))


def _pools(stack: Stack) -> dict[str, int]:
    return {name: int(w["pid"]) for name, w in stack.client.ledger.workers().items() if w.get("role") == "pool"}


def test_a_device_whose_engine_dies_again_and_again_is_quarantined_and_others_take_its_turns(two: Stack) -> None:
    # Given two devices, one of which breaks
    before = two.settled_stats()
    (bad, pid), (good, _) = sorted(_pools(two).items())
    device = BadDevice(pid)
    try:
        # When turns are asked meanwhile
        handles = [two.client.submit(Inference(model="test/slow:300", prompt=str(n))) for n in range(12)]
        wait_for(lambda: "quarantine" in _why(two, bad))
        handles += [two.client.submit(Inference(model="test/slow:100", prompt=str(n))) for n in range(12)]
        # Then each ends well, on the other device, and the quarantine is told
        for handle in handles:
            found = handle.result(60)
            reply = found.rounds[0].turns[0].reply
            assert reply.pool == good
        assert _why(two, good) == ""
        assert any(p["name"] == bad and "quarantine" in p["idle_because"] for p in two.json("info")["pools"])
        assert any(c.name == f"pool {bad}" and c.status == "fail" for c in broker_checks(two.client.settings))
        assert Quarantines(two.client.ledger).all()[bad].device == "cpu:0"
        killed = device.killed
        time.sleep(3)
        assert device.killed == killed, "a quarantined device is not started again and again"
        # And the pool's next process knows
        two.kill("pool")
        wait_for(lambda: _pools(two)[bad] != pid)
        wait_for(lambda: "quarantine" in _why(two, bad))
    finally:
        device.mend()
    # When the device is mended and released
    two.json("release", bad)
    wait_for(lambda: _why(two, bad) == "")
    # Then it takes turns again
    wait_for(lambda: any(two.client.submit(Inference(model="test/echo", prompt="?")).result(30).rounds[0].turns[0].reply.pool == bad for _ in range(8)))
    counted = two.since_of(before)
    assert (counted["jobs_failed"], counted["dead_letters"]) == (0, 0)


def test_what_is_not_in_quarantine_cannot_be_released(two: Stack) -> None:
    assert "not in quarantine" in two.run("release", "pool-cpu-1", expect=BadInput.exit_code).stderr


def test_poison_turns_are_dead_letters_and_quarantine_nobody(two: Stack) -> None:
    # Given turns each of which kills every engine it meets, more than one device's patience
    before = two.settled_stats()
    wait_for(lambda: all(_why(two, pool) == "" for pool in _pools(two)))
    poison = [two.client.submit(Inference(model="test/failing:crash", prompt=str(n))) for n in range(4)]
    # When they are asked beside others
    others = [two.client.submit(Inference(model="test/say:alive", prompt=str(n))) for n in range(8)]
    # Then they are given up after a few deaths, and both devices go on
    for handle in poison:
        assert handle.wait(120).state == "failed"
        assert two.json("dead", "show", handle.job_id)["reason"] == "poison"
    for handle in others:
        found = handle.wait(60)
        assert found.answer == "alive" or two.json("dead", "show", handle.job_id)["reason"] == "poison"  # its neighbour's victim, four times over
    wait_for(lambda: all(_why(two, pool) == "" for pool in _pools(two)))
    assert Quarantines(two.client.ledger).all() == {}
    assert two.since_of(before)["dead_letters"] >= 4
    assert two.client.ask("still there?", model="test/echo", timeout=30) == "still there?"


def test_a_quarantine_ends_by_itself_once_the_device_answers(tmp_path: Path) -> None:
    with running_stack(tmp_path, *FLAGS, SYMPOSIA_DEVICES__QUARANTINE_S="4") as stack:
        ((name, pid),) = _pools(stack).items()
        device = BadDevice(pid)
        wait_for(lambda: "quarantine" in _why(stack, name))
        handle = stack.client.submit(Inference(model="test/echo", prompt="later"))
        device.mend()
        assert handle.result(60).answer == "later"
        assert Quarantines(stack.client.ledger).all() == {}
