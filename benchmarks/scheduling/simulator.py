"""One device in slots of time, driven by a policy: in each slot at most one load, then what waits for the residents is served.

A load takes ``load`` of the slot; a turn takes 1/``serves``. A turn's wait is the number of slots from its arrival to its serving.
After the trace the device runs on until all is served. Pure.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from benchmarks.scheduling.traces import Trace
from symposia_shared.residency import Decision, Demand, Standing, View

#: slots after which a policy that leaves turns unserved is given up
PATIENCE = 100_000


@dataclass(frozen=True, slots=True)
class Device:
    """What is simulated. ``sizes``: of each checkpoint, in the budget's unit."""

    sizes: tuple[int, ...]
    budget: int
    #: slots
    longest_wait: int
    load: float = 0.5
    #: turns in a slot without a load
    serves: int = 64


class Policy(Protocol):
    """Decides once a slot."""

    def decide(self, view: View) -> Decision: ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a policy made of a trace. ``waits``: slots, by turn."""

    loads: int
    waits: tuple[int, ...]
    #: (slot, checkpoint) of each load
    loaded: tuple[tuple[int, int], ...] = ()

    @property
    def longest(self) -> int:
        """The longest wait."""
        return max(self.waits, default=0)


@dataclass(slots=True)
class Simulation:
    """A device at a slot."""

    device: Device
    queues: list[deque[int]]
    resident: dict[int, int] = field(default_factory=dict)  # checkpoint → the slot it was last served or loaded in
    demand: list[Demand] = field(default_factory=list)
    loaded: list[tuple[int, int]] = field(default_factory=list)
    waits: list[int] = field(default_factory=list)

    def view(self, slot: int) -> View:
        """What a policy sees."""
        memory = float(self.device.longest_wait)
        shown = [n for n, queue in enumerate(self.queues) if queue or n in self.resident]
        return View(self.device.budget, tuple(
            Standing(str(n), bytes=self.device.sizes[n], load_s=self.device.load, resident=n in self.resident, waiting=len(self.queues[n]),
                     oldest_s=float(slot - self.queues[n][0]) if self.queues[n] else 0.0, serve_s=len(self.queues[n]) / self.device.serves,
                     rate=self.demand[n].rate(float(slot), memory_s=memory), idle_s=float(slot - self.resident.get(n, slot)))
            for n in shown))

    def obey(self, decision: Decision, slot: int) -> None:
        """One slot of it. Raises ValueError for what a device cannot do."""
        for name in decision.evict:
            del self.resident[int(name)]
        left = 1.0
        if decision.load is not None:
            n = int(decision.load)
            if n in self.resident:
                raise ValueError(f"checkpoint {n} is resident")
            self.resident[n] = slot
            self.loaded.append((slot, n))
            left -= self.device.load
        if sum(self.device.sizes[n] for n in self.resident) > self.device.budget:
            raise ValueError(f"slot {slot}: {sorted(self.resident)} do not fit {self.device.budget}")
        taken = dict.fromkeys((*decision.take, *([decision.load] if decision.load else [])))
        turns = int(left * self.device.serves + 1e-9)
        for n in map(int, taken):
            if n not in self.resident:
                raise ValueError(f"checkpoint {n} is not resident")
            while self.queues[n] and turns > 0:
                self.waits.append(slot - self.queues[n].popleft())
                self.resident[n] = slot
                turns -= 1


def run(policy: Policy, trace: Trace, device: Device) -> Outcome:
    """The outcome of a policy over a trace."""
    count = len(device.sizes)
    now = Simulation(device, [deque() for _ in range(count)], demand=[Demand() for _ in range(count)])
    look = getattr(policy, "look", None)
    for slot in range(PATIENCE):
        arrived: Sequence[int] = trace[slot] if slot < len(trace) else ()
        for n in arrived:
            now.queues[n].append(slot)
        for n in range(count):
            now.demand[n] = now.demand[n].seen(float(slot), sum(1 for a in arrived if a == n), memory_s=float(device.longest_wait))
        if slot >= len(trace) and not any(now.queues):
            return Outcome(len(now.loaded), tuple(now.waits), tuple(now.loaded))
        if look is not None:
            look(trace, slot)
        now.obey(policy.decide(now.view(slot)), slot)
    raise ValueError(f"{type(policy).__name__} left turns unserved")
