"""A pool comes to the desired placement step by step: a stand-in for the pool, the real ledger."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from symposia_shared.errors import BadInput
from symposia_shared.ledger import Ledger
from symposia_shared.ledger.desired import Assigned, Desired
from symposia_worker import reconciling
from symposia_worker.placement import Placement
from symposia_worker.reconciling import Grasp, Reconciler

MB = 10**6


class StandIn:
    """A pool of 100 MB; each checkpoint takes 40 MB. ``log`` is what was done, in order."""

    def __init__(self, ledger: Ledger, *begun_with: str, precision: str | None = None) -> None:
        self.name, self.ledger = "p", ledger
        self.placement = Placement({m: self.place(m, precision or "float32") for m in begun_with})
        self.tickets = SimpleNamespace(all=lambda: self.held)
        self.held: list[Any] = []
        self.stopping = threading.Event()
        self.revival = SimpleNamespace(up=True)
        self.log: list[str] = []
        self.unloadable: set[str] = set()
        grasp = Grasp(take=self.take, close=lambda queue: self.log.append(f"close {queue}"), unload=lambda model: self.log.append(f"unload {model}"))
        planned = tuple(Assigned(checkpoint=m, precision=precision) for m in begun_with)
        self.reconciler = Reconciler(self, grasp, begun_with=planned, memory_bytes=100 * MB)  # type: ignore[arg-type]

    @staticmethod
    def place(model: str, precision: str = "float32") -> dict[str, object]:
        return {"queue": f"turns.{model}", "bytes": 40 * MB, "precision": precision}

    def take(self, assigned: Assigned) -> dict[str, object]:
        asked = f"{assigned.checkpoint} {assigned.precision or ''}".strip()
        if asked in self.unloadable:
            raise BadInput(f"{asked} cannot be had.")
        self.log.append(f"take {asked}")
        return self.place(assigned.checkpoint, assigned.precision or "float32")

    def serve(self, model: str, place: dict[str, object]) -> None:
        self.placement = self.placement.having(model, place)

    def unserve(self, model: str) -> None:
        self.log.append(f"unserve {model}")
        self.placement = self.placement.without(model)

    def come(self) -> list[str]:
        """Reconcile as far as it goes now; what was done."""
        self.log.clear()
        self.reconciler._run_now()
        return list(self.log)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconciling, "BEAT_S", 0.0)


def assigned(*names: str) -> list[Assigned]:
    return [Assigned(checkpoint=n, bytes=40 * MB) for n in names]


def test_a_pool_that_is_not_named_keeps_what_it_was_started_with(ledger: Ledger) -> None:
    pool = StandIn(ledger, "a")
    version = Desired(ledger).write({"other": assigned("b")})
    assert pool.come() == []
    assert pool.reconciler.version == version
    Desired(ledger).write({"p": assigned("b")})
    pool.come()
    Desired(ledger).write({})
    assert pool.come() == ["unserve b", "close turns.b", "unload b", "take a"]


def test_what_a_pool_was_started_with_is_taken_up_again_in_the_precision_it_was_planned_in(ledger: Ledger) -> None:
    pool = StandIn(ledger, "a", precision="int8")
    Desired(ledger).write({"other": assigned("b")})
    assert pool.come() == []
    Desired(ledger).write({"p": []})
    pool.come()
    Desired(ledger).write({})
    assert pool.come() == ["take a int8"]


def test_what_nobody_is_to_serve_goes_first_and_makes_room(ledger: Ledger) -> None:
    pool = StandIn(ledger, "a", "b")
    Desired(ledger).write({"p": assigned("b", "c")})
    assert pool.come() == ["unserve a", "close turns.a", "unload a", "take c"]
    assert set(pool.placement.models) == {"b", "c"}


def test_what_moves_is_kept_until_its_heir_serves_it_and_what_fits_beside_it_is_loaded_meanwhile(ledger: Ledger) -> None:
    pool = StandIn(ledger, "a")
    version = Desired(ledger).write({"p": assigned("b", "c"), "heir": assigned("a")})
    # b fits beside a, c does not
    assert pool.come() == ["take b"]
    assert pool.reconciler.version != version
    ledger.beat("heir", {"role": "pool", "beat_at": time.time(), "models": ["a"]})
    assert pool.come() == ["unserve a", "close turns.a", "unload a", "take c"]
    assert pool.reconciler.version == version


def test_two_that_wait_for_one_another_do_not_wait_for_ever(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = StandIn(ledger, "a", "x")
    Desired(ledger).write({"p": assigned("x", "b"), "heir": assigned("a")})
    assert pool.come() == []
    monkeypatch.setattr(reconciling, "HANDOVER_S", 0.0)
    assert pool.come() == ["unserve a", "close turns.a", "unload a", "take b"]


def test_what_cannot_be_loaded_is_refused_once_and_tried_again_with_the_next_placement(ledger: Ledger) -> None:
    pool = StandIn(ledger)
    pool.unloadable = {"a"}
    version = Desired(ledger).write({"p": assigned("a", "b")})
    assert pool.come() == ["take b"]
    assert pool.reconciler.version == version
    assert Desired(ledger).refusals("p") == {"a": "a cannot be had."}
    pool.unloadable = set()
    Desired(ledger).write({"p": assigned("a", "b")})
    assert pool.come() == ["take a"]


def test_another_precision_is_loaded_anew_and_if_it_cannot_be_had_the_old_one_is_back(ledger: Ledger) -> None:
    pool = StandIn(ledger, "a")
    Desired(ledger).write({"p": [Assigned(checkpoint="a", precision="bfloat16")]})
    assert pool.come()[-1] == "take a bfloat16"
    pool.unloadable = {"a int8"}
    version = Desired(ledger).write({"p": [Assigned(checkpoint="a", precision="int8")]})
    assert pool.come()[-1] == "take a bfloat16"
    assert pool.placement.models["a"]["precision"] == "bfloat16"
    assert pool.reconciler.version == version


def test_what_was_asked_of_the_pool_itself_stays_beside_the_placement(ledger: Ledger) -> None:
    pool = StandIn(ledger)
    ledger.want("p", "mine")
    Desired(ledger).write({"p": assigned("a")})
    assert sorted(pool.come()) == ["take a", "take mine"]


def test_turns_that_run_end_before_the_memory_is_taken(ledger: Ledger) -> None:
    pool = StandIn(ledger, "a")
    pool.held = [SimpleNamespace(claim=SimpleNamespace(queue="turns.a"))]
    Desired(ledger).write({"p": []})
    coming = threading.Thread(target=pool.come)
    coming.start()
    while "close turns.a" not in pool.log:
        time.sleep(0.01)
    time.sleep(0.3)
    assert "unload a" not in pool.log
    pool.held = []
    coming.join(20)
    assert pool.log[-1] == "unload a"
