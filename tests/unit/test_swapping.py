"""A live pool that serves more checkpoints than its device holds: real pool, recorder and Valkey; the device only says who is resident."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from ledgers import new_job
from shelf import Shelf
from symposia_shared.archive import Archive
from symposia_shared.errors import BadInput
from symposia_shared.ledger import Ledger
from symposia_shared.ledger.backlog import pin
from symposia_shared.residency import SwapAware
from symposia_shared.settings import load
from symposia_shared.turns import Abstention, Completion, Turn, Usage
from symposia_worker.course import Course
from symposia_worker.placement import Placement
from symposia_worker.pool import BELL_CLAIMS, Pool
from symposia_worker.swapping import Brought, Swapping, Under


class Silent:
    """Doorbells that nobody hears: the pool finds its work by itself."""

    def turn(self, *_: Any, **__: Any) -> bool:
        return True

    advance = settle = turn


class Device:
    """A device for so many checkpoints, each of one byte. ``faults``: what should never have been asked of it."""

    pid, pulse = 1, None

    def __init__(self, room: int) -> None:
        self.room = room
        self.resident: set[str] = set()
        self.loads: list[str] = []
        self.unloads: list[str] = []
        self.faults: list[str] = []
        self.broken: set[str] = set()
        #: adapter → its base
        self.bases: dict[str, str] = {}
        #: what is known of a checkpoint once it is loaded
        self.facts: dict[str, object] = {}
        self.running: dict[str, int] = {}
        self.held: dict[str, threading.Event] = {}
        self.asked: list[str] = []

    def bring(self, model: str) -> Brought:
        if model in self.broken:
            raise BadInput(f"{model} is broken.", field="folder", remedy="Pull it again.")
        if len(self.resident) >= self.room:
            self.faults.append(f"{model} was loaded beside {sorted(self.resident)}")
        self.resident.add(model)
        self.loads.append(model)
        base = self.bases.get(model)
        return Brought({"queue": f"turns.{model}", **self.facts}, bytes=1, seconds=0.001, under=Under(base, 1) if base else None)

    def drop(self, model: str) -> None:
        if self.running.get(model):
            self.faults.append(f"{model} was unloaded with {self.running[model]} turns in flight")
        self.faults += [f"{model} was unloaded under {adapter}" for adapter, base in self.bases.items() if base == model and adapter in self.resident]
        self.resident.discard(model)
        self.unloads.append(model)

    def generate(self, turn_id: str, turn: Turn, on_first: Callable[[float], None], on_done: Callable[[Completion | Abstention], None], *,
                 on_delta: Callable[[str], None] | None = None) -> None:
        if turn.model not in self.resident:
            self.faults.append(f"{turn.model} was asked while it was away")
        self.asked.append(turn.model)
        self.running[turn.model] = self.running.get(turn.model, 0) + 1
        wait = self.held.get(turn.model)

        def answer() -> None:
            if wait is not None:
                wait.wait(20)
            time.sleep(0.002)
            self.running[turn.model] -= 1
            on_done(Completion(text="yes", finish_reason="stop", usage=Usage(prompt_tokens=1, completion_tokens=1)))

        threading.Thread(target=answer, daemon=True).start()

    def together(self) -> AbstractContextManager[None]:
        return nullcontext()

    def cancel(self, turn_id: str) -> None:
        pass

    def restart(self) -> None:
        pass

    def stop(self) -> None:
        pass


class Running:
    """A pool of ``names`` on a device for ``room`` of them."""

    def __init__(self, ledger: Ledger, names: list[str], *, room: int, policy: SwapAware, pins: frozenset[str] = frozenset()) -> None:
        self.ledger, self.device, self.shelf = ledger, Device(room), Shelf()
        self.swapping = Swapping(policy=policy, budget_bytes=room, bring=self.device.bring, drop=self.device.drop, pinned=pins, bells="bells.p")
        for name in names:
            self.swapping.register(name, bytes=1)
        archive, bell = Archive(self.shelf), Silent()  # type: ignore[arg-type]
        course = Course(ledger, archive, None, bell)  # type: ignore[arg-type]
        places: dict[str, dict[str, object]] = {name: {"queue": f"turns.{name}", "bell": "bells.p"} for name in names}
        self.pool = Pool(name="p", device="cpu", slots=16, ledger=ledger, archive=archive, course=course, bell=bell,  # type: ignore[arg-type]
                         engine=self.device, placement=Placement(places), swapping=self.swapping)

    def __enter__(self) -> Running:
        self.pool.start()
        self.pool.ready()
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.stop(0.5)

    def ask(self, *models: str) -> None:
        """A job each, all at once."""
        records = [new_job(f"{n}-{m}-{time.monotonic_ns()}", model=m) for n, m in enumerate(models)]
        records = [r.__class__(**{**{f: getattr(r, f) for f in r.__slots__}, "spec": r.spec.replace('"m"', f'"{m}"')})
                   for r, m in zip(records, models, strict=True)]
        assert all(answer == "ok bells.p" for answer in self.ledger.submit(records))

    def until(self, look: Callable[[], bool], within_s: float = 30.0) -> None:
        """Wait for it."""
        until = time.monotonic() + within_s
        while not look():
            assert time.monotonic() < until, (self.device.loads, self.device.faults)
            time.sleep(0.01)

    def served(self) -> bool:
        """Whether nothing is in flight any more."""
        return not self.ledger.stats()["jobs_in_flight"]


FAST = SwapAware(longest_wait_s=2.0, patience_s=0.0, tick_s=0.01)


def test_more_checkpoints_than_fit_are_all_served_and_none_is_asked_while_it_is_away(ledger: Ledger) -> None:
    names = [f"c{n}" for n in range(40)]
    with Running(ledger, names, room=5, policy=FAST) as running:
        running.ask(*names, *names[:10], *names)
        running.until(running.served)
        assert not running.device.faults
        assert sorted(set(running.device.asked)) == sorted(names)
        assert len(running.shelf.bodies) == 90  # each has its one result


def test_one_look_takes_all_that_waits_while_slots_are_free_and_no_more(ledger: Ledger) -> None:
    # Given a pool of sixteen slots that nobody rings, and twenty turns of its resident checkpoint
    running = Running(ledger, ["a"], room=1, policy=FAST)
    running.device.held["a"] = threading.Event()
    running.swapping.brought("a", running.device.bring("a"))
    running.pool.tell_placement()
    running.ask(*["a"] * 20)
    # When it looks once, then its slots are full
    running.pool.feed()
    assert len(running.device.asked) == 16
    running.device.held["a"].set()


def test_what_cannot_begin_now_is_handed_back_and_not_taken_again_at_once(ledger: Ledger) -> None:
    # Given turns of a checkpoint that was closed after its queue was looked at
    running = Running(ledger, ["a"], room=1, policy=FAST)
    running.swapping.brought("a", running.device.bring("a"))
    running.pool.tell_placement()
    running.ask(*["a"] * 20)
    looks: list[int] = []
    running.swapping.enter = lambda ticket: bool(looks.append(1))  # type: ignore[method-assign]
    # When the pool looks once, then it tries as many as one round trip brings
    running.pool.feed()
    assert len(looks) == BELL_CLAIMS
    assert not running.device.asked


def test_a_turn_whose_commit_waits_is_not_taken_for_one_that_was_stopped(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    # Given more replies than are committed at once, and an S3 that takes its time
    taking = threading.Event()
    caplog.set_level("INFO")
    with Running(ledger, ["a"], room=1, policy=FAST) as running:
        put, cancelled = running.shelf.put_once, []
        running.shelf.put_once = lambda *args: (taking.wait(20), put(*args))[1]  # type: ignore[method-assign]
        running.device.cancel = cancelled.append  # type: ignore[method-assign]
        running.ask(*["a"] * 14)
        running.until(lambda: sum(t.recorded for t in running.pool.tickets.all()) >= 4)
        # When the pool renews its leases, then it cancels nothing
        running.pool.heartbeat._renew()
        assert not cancelled
        assert "was closed" not in caplog.text
        taking.set()
        running.until(running.served)
    assert len(running.shelf.bodies) == 14


def test_what_gathers_while_it_may_wait_is_served_by_one_load(ledger: Ledger) -> None:
    with Running(ledger, ["a", "b", "c"], room=1, policy=SwapAware(longest_wait_s=3.0, tick_s=0.02)) as running:
        running.ask("a")
        running.until(running.served)
        running.ask(*["b", "c"] * 4)
        running.until(running.served)
        assert running.device.loads == ["a", "b", "c"]
        assert not running.device.faults


def test_a_busy_checkpoint_is_emptied_before_it_goes_and_takes_nothing_more(ledger: Ledger) -> None:
    with Running(ledger, ["a", "b"], room=1, policy=FAST) as running:
        running.device.held["a"] = threading.Event()
        running.ask("a")
        running.until(lambda: running.device.asked == ["a"])
        running.ask("b")
        running.until(lambda: "a" not in running.swapping.residents.open)
        running.ask("a")
        time.sleep(0.3)
        assert running.device.asked == ["a"]
        assert running.device.unloads == []
        running.device.held.pop("a").set()
        running.until(running.served)
        assert running.device.loads[:2] == ["a", "b"]
        assert not running.device.faults


def test_a_pinned_checkpoint_is_loaded_unasked_and_stays(ledger: Ledger) -> None:
    pin(ledger, "b", pinned=True)
    with Running(ledger, ["a", "b", "c"], room=2, policy=FAST, pins=frozenset({"a"})) as running:
        running.until(lambda: running.device.resident == {"a", "b"})
        running.ask("c")
        time.sleep(0.2)
        assert running.device.resident == {"a", "b"}
        pin(ledger, "b", pinned=False)
        running.until(running.served)
        assert running.device.resident == {"a", "c"}


def test_a_base_is_not_unloaded_while_an_adapter_of_it_is_busy(ledger: Ledger) -> None:
    with Running(ledger, ["adapter", "base", "c", "d"], room=2, policy=FAST) as running:
        running.device.bases["adapter"] = "base"
        running.ask("base")
        running.until(lambda: running.device.asked == ["base"] and running.served())
        running.device.held["adapter"] = threading.Event()
        running.ask("adapter")
        running.until(lambda: running.device.asked == ["base", "adapter"])
        running.ask("c", "d")
        running.until(lambda: "adapter" not in running.swapping.residents.open)
        assert running.device.unloads == []
        running.device.held.pop("adapter").set()
        running.until(running.served)
        assert running.device.unloads[0] == "adapter"
        assert not running.device.faults


def test_a_base_that_only_its_adapters_keep_takes_its_room(ledger: Ledger) -> None:
    with Running(ledger, ["adapter", "c"], room=2, policy=FAST) as running:
        running.device.bases["adapter"] = "base"
        running.ask("adapter")
        running.until(running.served)
        running.ask("c")
        running.until(running.served)
        assert running.device.unloads == ["adapter"]


def test_a_checkpoint_that_cannot_be_loaded_is_no_longer_served_and_the_others_are(ledger: Ledger) -> None:
    with Running(ledger, ["a", "b"], room=1, policy=FAST) as running:
        running.device.broken.add("a")
        running.ask("a", "b")
        running.until(lambda: "b" in running.device.asked)
        running.until(lambda: "a" not in ledger.placed())
        assert "broken" in str(ledger.refusal("p", "a"))


def test_what_nobody_asks_for_is_unloaded_after_its_time(ledger: Ledger) -> None:
    with Running(ledger, ["a", "b"], room=2, policy=SwapAware(longest_wait_s=2.0, tick_s=0.01, idle_ttl_s=0.2), pins=frozenset({"b"})) as running:
        running.ask("a")
        running.until(lambda: running.device.unloads == ["a"])
        assert running.device.resident == {"b"}


def test_the_ledger_hears_of_the_last_load_too_after_which_nothing_is_left_to_load(ledger: Ledger) -> None:
    with Running(ledger, ["a", "b"], room=2, policy=FAST) as running:
        running.device.facts = {"context": 8}
        running.ask("a", "b")
        running.until(running.served)
        running.until(lambda: all(place.get("context") == 8 for place in ledger.placed().values()))


def test_a_resident_that_was_drained_for_nothing_is_opened_again_though_all_are_resident(ledger: Ledger) -> None:
    with Running(ledger, ["a", "b"], room=2, policy=FAST) as running:
        running.ask("a", "b")
        running.until(lambda: running.served() and not running.swapping.on_demand)
        running.swapping.residents.keep_open_all_but({"a"})
        running.until(lambda: sorted(running.swapping.residents.open) == ["a", "b"])


def test_a_checkpoint_that_is_given_up_while_it_is_loaded_is_unloaded_again_and_served_no_more(ledger: Ledger) -> None:
    with Running(ledger, ["a", "b"], room=1, policy=FAST) as running:
        begun, go_on, bring = threading.Event(), threading.Event(), running.device.bring

        def slowly(model: str) -> Brought:
            begun.set()
            go_on.wait(20)
            return bring(model)

        running.swapping._bring = slowly
        running.ask("a")
        assert begun.wait(20)
        running.pool.unserve("a")
        running.swapping.forget("a")
        running.device.drop("a")
        go_on.set()
        running.until(lambda: running.device.unloads == ["a", "a"])
        assert not running.device.resident
        assert set(running.pool.placement.models) == {"b"}
        assert "a" not in running.swapping.residents


def test_of_placements_changed_by_several_threads_none_is_lost_and_the_last_is_told(ledger: Ledger) -> None:
    with Running(ledger, [], room=1, policy=FAST) as running:
        def serve(thread: int) -> None:
            for n in range(30):
                running.pool.serve(f"m{thread}-{n}", {"queue": "q"})
                if n % 3:
                    running.pool.unserve(f"m{thread}-{n}")

        threads = [threading.Thread(target=serve, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        kept = {f"m{thread}-{n}" for thread in range(4) for n in range(0, 30, 3)}
        assert set(running.pool.placement.models) == kept
        assert set(ledger.placed()) == kept


def test_an_empty_patience_in_the_environment_is_none_and_pins_are_a_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SYMPOSIA_RESIDENCY__PATIENCE_S", "")
    monkeypatch.setenv("SYMPOSIA_RESIDENCY__PINS", '["a", "b"]')
    found = load(tmp_path).residency
    assert found.patience_s is None
    assert found.pins == ("a", "b")
    assert found.idle_ttl_s is None


def test_doorbells_of_many_checkpoints_go_to_their_pools_own_list(ledger: Ledger) -> None:
    ledger.place("p", {"a": {"queue": "turns.a", "bell": "bells.p"}, "b": {"queue": "turns.b"}})
    assert ledger.bells(["turns.a", "turns.b"]) == {"turns.a": "bells.p", "turns.b": "turns.b"}
