"""The legs of the suite: kills under load, a rolling restart under load, power cuts of the broker under load."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks.chaos import journal
from benchmarks.chaos.audit import audit, of_journal
from benchmarks.chaos.jobs import asked
from benchmarks.chaos.killer import ROLES, Killer
from benchmarks.chaos.load import Load
from benchmarks.chaos.power import Cuts, running_broker
from benchmarks.chaos.report import Leg
from benchmarks.chaos.rolling import roll
from benchmarks.chaos.stack import Stack, running_stack
from symposia_shared.errors import SymposiaError

DEVICES = "cpu:0,cpu:1"


def kills(folder: Path, *, seed: int, jobs: int, most: int, gap_s: float, in_flight: int, roles: tuple[str, ...] = ROLES,
          stopped_s: float = 0.0, longest_s: float = 1e9) -> Leg:
    """At least ``jobs`` jobs and ``most`` kills, unless ``longest_s`` is over before."""
    with running_stack(folder, devices=DEVICES) as stack:
        whole_journal(stack)
        began = time.monotonic()
        killer = Killer(stack, seed, gap_s, roles, stopped_s, most)
        load = Load(stack, partial(asked, seed), more(killer, jobs, began + longest_s), in_flight)
        killer.start()
        ended = load.run()
        killer.stop()
        broken = audit(stack, ended)
        return judged(stack, "kills", seed, load, killer, broken, began, folder / "broker")


def power_cuts(folder: Path, *, seed: int, jobs: int, most: int, gap_s: float, in_flight: int, appendfsync: str = "always",
               longest_s: float = 1e9) -> Leg:
    """At least ``jobs`` jobs and ``most`` power cuts of the broker, unless ``longest_s`` is over before."""
    with (running_broker(folder / "fragile", appendfsync=appendfsync) as broker,
          running_stack(folder / "stack", devices=DEVICES, broker_url=broker.url) as stack):
        began = time.monotonic()
        cuts = Cuts(stack, broker, seed=seed, gap_s=gap_s, most=most)
        load = Load(stack, partial(asked, seed), more(cuts, jobs, began + longest_s), in_flight)
        cuts.start()
        ended = load.run()
        cuts.stop()
        leg = judged(stack, f"power cuts, appendfsync {appendfsync}", seed, load, cuts, audit(stack, ended), began, broker.data)
        leg.notes.append(f"bytes written and lost per cut: {broker.lost}")
        return leg


def rolling(folder: Path, *, seed: int, times: int, in_flight: int) -> Leg:
    """``times`` rolling restarts of the whole stack, under jobs none of which may fail."""
    with running_stack(folder, devices=DEVICES) as stack, ThreadPoolExecutor(1) as threads:
        began = time.monotonic()
        rolled = threads.submit(lambda: [kill for _ in range(times) for kill in roll(stack)])
        load = Load(stack, lambda n: asked(seed, n, healthy=True), lambda n: not rolled.done(), in_flight)
        ended = load.run()
        broken = audit(stack, ended, may_fail=False)
        return Leg("rolling restart", seed, ended, rolled.result(), stack.client.stats(), broken, time.monotonic() - began)


def more(killer: Killer | Cuts, jobs: int, until: float) -> Callable[[int], bool]:
    """Whether an n-th job is to be asked. After the last one nothing is killed any more: what is in flight would otherwise be kept from its end."""
    def another(number: int) -> bool:
        if time.monotonic() < until and (number < jobs or not killer.enough):
            return True
        killer.cease()
        return False

    return another


def judged(stack: Stack, name: str, seed: int, load: Load, killer: Killer | Cuts, broken: list[str], began: float, broker: Path) -> Leg:
    """A leg with what the broker's journal says of it, too."""
    found = journal.read(broker, stack.client.settings.prefix)
    notes = [f"journal: {found.commands} commands, {found.claims} claims, {found.recorded} replies recorded, {len(found.ends)} jobs ended"
             + ("" if found.whole else "; it was rewritten meanwhile and does not reach back to the first job")]
    return Leg(name, seed, load.ended, killer.kills, stack.client.stats(), broken + of_journal(found, load.ended), time.monotonic() - began, notes)


def whole_journal(stack: Stack) -> None:
    """Keep the broker from rewriting its journal, in its file of settings, too: it is read at the end."""
    configuration = stack.folder / "broker" / "valkey.conf"
    with contextlib.suppress(OSError), configuration.open("a") as settings:
        settings.write("auto-aof-rewrite-percentage 0\n")
    with contextlib.suppress(SymposiaError):
        stack.client.ledger.redis.config_set("auto-aof-rewrite-percentage", 0)
