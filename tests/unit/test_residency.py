"""The residency policy: what it promises, over generated traces and devices; and how near it comes to the fewest loads there can be."""

from __future__ import annotations

from dataclasses import replace

import pytest
from benchmarks.scheduling.optimum import optimum
from benchmarks.scheduling.rivals import FIFO, LFU, LRU, Belady, Told
from benchmarks.scheduling.simulator import Device, Outcome, Policy, run
from benchmarks.scheduling.traces import TRACES, Trace
from hypothesis import given, settings
from hypothesis import strategies as st

from symposia_shared.residency import Demand, Standing, SwapAware, View


def ours(device: Device, *, patience_s: float | None = None) -> SwapAware:
    """The policy in the simulator's time: a wait of W slots ends with the load in the last of them."""
    return SwapAware(longest_wait_s=device.longest_wait + device.load, tick_s=1.0, patience_s=patience_s)


def lightly(checkpoints: int) -> st.SearchStrategy[Trace]:
    """Arrivals of any kind."""
    return st.lists(st.lists(st.integers(0, checkpoints - 1), max_size=4).map(tuple), min_size=1, max_size=60).map(tuple)


@settings(max_examples=150)
@given(trace=lightly(8), sizes=st.lists(st.integers(1, 3), min_size=8, max_size=8), budget=st.integers(3, 9), spare=st.integers(0, 20))
def test_no_turn_waits_longer_than_its_longest_wait_where_the_work_before_it_fits(trace: Trace, sizes: list[int], budget: int, spare: int) -> None:
    # at most 8 visits can be before a turn, each of one slot, in which more is served than can have gathered
    device = Device(sizes=tuple(sizes), budget=budget, longest_wait=10 + spare, serves=1000)
    outcome = run(ours(device), trace, device)
    assert outcome.longest <= device.longest_wait
    assert len(outcome.waits) == sum(map(len, trace))


@settings(max_examples=100)
@given(trace=lightly(12), sizes=st.lists(st.integers(1, 5), min_size=12, max_size=12), patience=st.one_of(st.none(), st.integers(0, 8)))
def test_any_sizes_fit_the_budget_and_every_turn_is_served_even_when_it_is_too_much(trace: Trace, sizes: list[int], patience: int | None) -> None:
    device = Device(sizes=tuple(sizes), budget=7, longest_wait=4, serves=3)
    outcome = run(ours(device, patience_s=patience), trace, device)  # raises where the residents do not fit, or a turn is left
    assert len(outcome.waits) == sum(map(len, trace))


standings = st.builds(
    Standing, checkpoint=st.uuids().map(str), bytes=st.integers(1, 9), load_s=st.floats(0.1, 5.0), resident=st.booleans(), waiting=st.integers(0, 3),
    oldest_s=st.floats(0.0, 60.0), running=st.integers(0, 2), pinned=st.booleans(), rate=st.floats(0.0, 9.0), idle_s=st.floats(0.0, 99.0))


@settings(max_examples=300)
@given(found=st.lists(standings, max_size=12), budget=st.integers(1, 30), ttl=st.one_of(st.none(), st.floats(0.0, 50.0)))
def test_what_is_busy_or_pinned_is_never_evicted_and_what_is_loaded_fits(found: list[Standing], budget: int, ttl: float | None) -> None:
    view = View(budget, tuple(s if not s.resident else Standing(**{**{f: getattr(s, f) for f in s.__slots__}, "waiting": s.waiting}) for s in found))
    decision = SwapAware(longest_wait_s=20.0, idle_ttl_s=ttl).decide(view)
    by_name = {s.checkpoint: s for s in found}
    assert not any(by_name[name].running or by_name[name].pinned or not by_name[name].resident for name in decision.evict)
    assert all(by_name[name].running and not by_name[name].pinned for name in decision.drain)
    assert not {*decision.take} & {*decision.evict, *decision.drain}
    assert all(by_name[name].resident and by_name[name].waiting for name in decision.take)
    if decision.load is not None:
        assert not by_name[decision.load].resident
        assert not decision.drain
        left = sum(s.bytes for s in found if s.resident and s.checkpoint not in decision.evict)
        assert left + by_name[decision.load].bytes <= budget
    assert SwapAware(longest_wait_s=20.0, idle_ttl_s=ttl).decide(view) == decision


def _based(found: list[Standing], bases: list[int]) -> list[Standing]:
    """The same, some of them adapters: of one of the first three, or of a base that nobody asks by its own name."""
    names = [*(s.checkpoint for s in found[:3]), "elsewhere"]
    return [s if n < 3 or base >= len(names) else replace(s, base=names[base], base_bytes=5) for n, (s, base) in enumerate(zip(found, bases, strict=False))]


@settings(max_examples=300)
@given(found=st.lists(standings, min_size=3, max_size=12), bases=st.lists(st.integers(0, 6), min_size=12, max_size=12), budget=st.integers(5, 40),
       ttl=st.one_of(st.none(), st.floats(0.0, 50.0)))
def test_a_base_goes_after_its_adapters_and_what_is_loaded_fits_beside_the_bases_of_what_stays(
        found: list[Standing], bases: list[int], budget: int, ttl: float | None) -> None:
    told = _based(found, bases)
    decision = SwapAware(longest_wait_s=20.0, idle_ttl_s=ttl).decide(View(budget, tuple(told)))
    for s in told:
        if s.resident and s.base in decision.evict:
            assert s.checkpoint in decision.evict[:decision.evict.index(s.base)]
    if decision.load is not None:
        staying = [s for s in told if s.checkpoint == decision.load or (s.resident and s.checkpoint not in decision.evict)]
        implied = {s.base for s in staying} - {s.checkpoint for s in staying} - {""}
        assert sum(s.bytes for s in staying) + 5 * len(implied) <= budget


def test_a_base_of_a_busy_adapter_is_emptied_with_it_and_neither_goes_for_an_adapter_of_that_base() -> None:
    base = Standing("base", bytes=4, load_s=1.0, resident=True, idle_s=99.0)
    adapter = Standing("adapter", bytes=1, load_s=1.0, resident=True, running=1, base="base", base_bytes=4)
    other = Standing("other", bytes=4, load_s=1.0, waiting=1, oldest_s=20.0)
    hasty = SwapAware(longest_wait_s=20.0)
    decision = hasty.decide(View(5, (base, adapter, other)))
    assert (decision.load, decision.evict, decision.drain) == (None, (), ("adapter", "base"))
    decision = hasty.decide(View(5, (base, replace(adapter, running=0), other)))
    assert (decision.load, decision.evict) == ("other", ("adapter", "base"))
    second = Standing("second", bytes=1, load_s=1.0, waiting=1, oldest_s=20.0, base="base", base_bytes=4)
    decision = hasty.decide(View(5, (base, replace(adapter, running=0), second)))
    assert (decision.load, decision.evict) == ("second", ("adapter",))
    # a base that nobody asks for takes its room all the same
    assert hasty.decide(View(5, (replace(adapter, pinned=True), other))).load is None
    assert hasty.decide(View(9, (replace(adapter, pinned=True), other))).load == "other"


def test_an_idle_base_stays_as_long_as_one_of_its_adapters_does() -> None:
    base = Standing("base", bytes=4, load_s=1.0, resident=True, idle_s=99.0)
    adapter = Standing("adapter", bytes=1, load_s=1.0, resident=True, idle_s=1.0, base="base", base_bytes=4)
    brief = SwapAware(longest_wait_s=20.0, idle_ttl_s=10.0)
    assert brief.decide(View(9, (base, adapter))).evict == ()
    assert brief.decide(View(9, (base, replace(adapter, idle_s=11.0)))).evict == ("adapter", "base")


def test_what_fits_does_not_keep_what_must_be_loaded_now_waiting() -> None:
    small = Standing("small", bytes=1, load_s=1.0, waiting=1, oldest_s=1.0)
    large = Standing("large", bytes=3, load_s=1.0, waiting=1, oldest_s=19.0)
    resident = Standing("resident", bytes=2, load_s=1.0, resident=True)
    decision = SwapAware(longest_wait_s=20.0).decide(View(3, (small, large, resident)))
    assert (decision.load, decision.evict) == ("large", ("resident",))
    assert SwapAware(longest_wait_s=60.0).decide(View(3, (small, large, resident))).load == "small"


def test_round_robin_takes_a_fifth_of_the_loads_of_first_in_first_out() -> None:
    device = Device(sizes=(1,) * 10, budget=4, longest_wait=30)
    trace = TRACES["round-robin"].trace(0, 10, 200, 1.0)
    assert 5 * run(ours(device), trace, device).loads <= run(FIFO(), trace, device).loads


def test_the_optimum_is_no_more_than_any_policy_needs_and_ours_is_near_it() -> None:
    device = Device(sizes=(1,) * 5, budget=2, longest_wait=12)
    total = {"ours": 0, "optimum": 0}
    for name in TRACES:
        trace = TRACES[name].trace(3, 5, 60, 2.0)
        best = optimum(trace, device, within_s=60)
        assert best.closed
        for policy in (FIFO(), FIFO(8), LRU(), LFU(), Belady(), ours(device)):
            assert run(policy, trace, device).loads >= best.bound, (name, policy)
        total["ours"] += run(ours(device), trace, device).loads
        total["optimum"] += best.bound
    assert total["ours"] <= 1.15 * total["optimum"]


@pytest.mark.parametrize("policy", [FIFO(), FIFO(8), LRU(), LFU(), Belady()], ids=lambda p: type(p).__name__)
def test_every_rival_serves_every_turn(policy: Policy) -> None:
    device = Device(sizes=(1,) * 6, budget=3, longest_wait=20)
    trace = TRACES["zipf"].trace(1, 6, 80, 1.0)
    assert len(_outcome(policy, trace, device).waits) == sum(map(len, trace))


def _outcome(policy: Policy, trace: Trace, device: Device) -> Outcome:
    return run(policy, trace, device)


def test_one_told_the_present_rates_needs_no_fewer_loads_than_the_optimum_and_serves_all() -> None:
    device = Device(sizes=(1,) * 6, budget=3, longest_wait=20)
    for name in ("bursty", "zipf"):
        trace, rates = TRACES[name].trace(1, 6, 80, 1.0), TRACES[name].rates(1, 6, 80, 1.0)
        assert {n for t, turns in enumerate(trace) for n in turns if not rates[t][n]} == set()
        told = run(Told(ours(device), rates), trace, device)
        assert len(told.waits) == sum(map(len, trace))
        assert told.loads >= optimum(trace, device, within_s=60).bound


def test_belady_evicts_what_is_asked_furthest_from_now() -> None:
    device = Device(sizes=(1, 1, 1), budget=2, longest_wait=5)
    trace = ((0,), (1,), (2,), (0,), (0,), (1,))
    assert run(Belady(), trace, device).loaded == ((0, 0), (1, 1), (2, 2), (5, 1))
    assert run(LRU(), trace, device).loads == 5


def test_a_rate_is_forgotten_by_what_falls_silent_and_kept_by_what_is_slow() -> None:
    demand = Demand(since_s=0.0)
    for at in range(0, 300, 30):
        demand = demand.seen(float(at), 1, memory_s=30.0)
    slow = demand.rate(285.0, memory_s=30.0)
    assert 0.02 < slow < 0.06  # one in thirty
    assert demand.rate(600.0, memory_s=30.0) < slow / 100


def test_a_full_device_swaps_at_once_only_as_patience_says() -> None:
    resident = Standing("a", bytes=1, load_s=1.0, resident=True)
    view = View(1, (resident, Standing("b", bytes=1, load_s=1.0, waiting=1, oldest_s=3.0)))
    assert SwapAware(longest_wait_s=30.0).decide(view).load is None
    assert SwapAware(longest_wait_s=30.0, patience_s=2.0).decide(view).load == "b"
    assert SwapAware(longest_wait_s=30.0).decide(View(2, view.standings)).load == "b"  # it takes nobody's place
