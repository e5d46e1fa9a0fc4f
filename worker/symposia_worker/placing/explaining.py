"""Why each checkpoint is where it is, and why another is nowhere: a line each, with the numbers."""

from __future__ import annotations

from collections.abc import Iterator

from symposia_worker.placing import programs
from symposia_worker.placing.problem import Demand, Problem
from symposia_worker.placing.programs import Numbers
from symposia_worker.placing.solution import Placed, Plan
from symposia_worker.stack.amounts import shown


def explained(problem: Problem, plan: Plan) -> list[str]:
    """The summary, then the pools, then the checkpoints, those with the most work first."""
    busiest = sorted(problem.demands, key=lambda d: (-d.traffic * d.params_b, d.checkpoint))
    return [*_summary(problem, plan), *_pools(problem, plan), *(_of(problem, plan, demand) for demand in busiest)]


def _summary(problem: Problem, plan: Plan) -> Iterator[str]:
    count = len(problem.demands)
    yield (f"{count - len(plan.left_out)} of {count} checkpoints are placed, {len(plan.placed)} copies on {len(problem.sites)} pools; "
           f"they answer {_traffic_share(problem, plan):.1%} of the tokens asked for.")
    yield (f"What is resident is within {plan.served_gap:.1%} of the most that could be, the busiest pool within {plan.peak_gap:.1%} of the least load "
           f"that could be (bounds by HiGHS; found by {plan.by} in {plan.seconds:.1f} s).")
    if problem.absolute and plan.peak > 1:
        yield f"The traffic is more than the busiest device can do: it is asked for {plan.peak:.0%} of its time, so its queue grows while that lasts."


def _pools(problem: Problem, plan: Plan) -> Iterator[str]:
    total = sum(plan.load(s.pool) for s in problem.sites) or 1.0
    for site in problem.sites:
        rows = plan.on(site.pool)
        used = sum(p.bytes for p in rows)
        load = f"busy {plan.load(site.pool):.0%} of the time" if problem.absolute else f"{plan.load(site.pool) / total:.0%} of the work"
        yield (f"{site.pool} ({site.device}): {len(rows)} checkpoints, {shown(used)} of {shown(site.memory_bytes)}, {load}"
               + (f"; most of it {rows[0].checkpoint}" if rows and rows[0].load else "") + ".")


def _of(problem: Problem, plan: Plan, demand: Demand) -> str:
    rows = plan.of(demand.checkpoint)
    asked = f"{demand.traffic:.4g} tokens/s asked" if demand.traffic else "nothing asked of it"
    if not rows:
        return f"{demand.checkpoint} is left out ({asked}): {_why_out(problem, plan, demand)}"
    where = ", ".join(f"{p.pool} ({p.share:.0%})" if len(rows) > 1 else p.pool for p in sorted(rows, key=lambda p: p.pool))
    size = f"{shown(rows[0].bytes)} as {rows[0].precision} (by {demand.source})"
    return f"{demand.checkpoint} is on {where}: {size}, {asked}; {_why(problem, plan, demand, rows)}"


def _why(problem: Problem, plan: Plan, demand: Demand, rows: tuple[Placed, ...]) -> str:
    if len(rows) > 1:
        return f"{len(rows)} copies, for {_with_fewer(problem, plan, rows)}."
    site = next(s for s in problem.sites if s.pool == rows[0].pool)
    able = [s for s in problem.sites if demand.may(s)]
    if demand.pools:
        return f"it may live on {', '.join(demand.pools)} only."
    if len(able) == 1:
        return "no other device has the memory for it."
    kept = ", where it is already" if demand.checkpoint in site.holds else ""
    others = [plan.load(s.pool) for s in able if s.pool != site.pool]
    total = sum(plan.load(s.pool) for s in problem.sites) or 1.0
    unit = 1.0 if problem.absolute else total
    return f"one copy does{kept}: the pool carries {plan.load(site.pool) / unit:.0%}, the others that could take it {_range([o / unit for o in others])}."


def _with_fewer(problem: Problem, plan: Plan, rows: tuple[Placed, ...]) -> str:
    """What the busiest pool would carry with the least used copy less."""
    n = Numbers.of(problem)
    place = {s.pool: k for k, s in enumerate(problem.sites)}
    number = {d.checkpoint: k for k, d in enumerate(problem.demands)}
    least = min(rows, key=lambda p: (p.share, p.pool))
    pairs = [(number[p.checkpoint], place[p.pool]) for p in plan.placed if p != least]
    _, peak = programs.shares(n, pairs)
    if peak > plan.peak * 1.001:
        return f"with {len(rows) - 1} the busiest pool would carry {peak / plan.peak:.2f} times what it does"
    asked = problem.demands[number[least.checkpoint]].copies
    return f"{asked} were asked for" if asked >= len(rows) else "the work then divides as evenly at no other copy's cost"


def _why_out(problem: Problem, plan: Plan, demand: Demand) -> str:
    allowed = [s for s in problem.sites if not demand.pools or s.pool in demand.pools]
    able = [s for s in allowed if demand.may(s)]
    if len(able) < demand.copies:
        largest = max(allowed, key=lambda s: s.memory_bytes)
        least = min(demand.bytes_on(s) for s in allowed)
        return (f"it needs {shown(least)} ({demand.source}) and the largest device it may live on, {largest.device}, has {shown(largest.memory_bytes)}. "
                "Give a device more memory, a smaller precision, one device made of two (cuda:0+cuda:1), or serve it by an endpoint (openai:http://…)."
                if not able else f"it is to be on {demand.copies} devices, and {len(able)} could hold it.")
    room = {s.pool: s.memory_bytes - sum(p.bytes for p in plan.on(s.pool)) for s in able}
    most = max(room, key=lambda pool: room[pool])
    return (f"it needs {shown(min(demand.bytes_on(s) for s in able))}, the most room left is {shown(room[most])} on {most}, and what fills the rest "
            "answers more tokens together.")


def _traffic_share(problem: Problem, plan: Plan) -> float:
    total = sum(d.traffic for d in problem.demands)
    if not total:
        return 1.0 - len(plan.left_out) / max(1, len(problem.demands))
    return sum(d.traffic for d in problem.demands if d.checkpoint not in plan.left_out) / total


def _range(loads: list[float]) -> str:
    low, high = min(loads), max(loads)
    return f"{low:.0%}" if f"{low:.0%}" == f"{high:.0%}" else f"{low:.0%} to {high:.0%}"
