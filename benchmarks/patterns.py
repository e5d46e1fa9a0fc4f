"""Every pattern on a running stack: each with each consensus algorithm it admits, 200 at once, and a debate against its critical path.

    symposia up --detach --test-models; symposia models pull smollm2-135m; symposia models serve smollm2-135m
    python -m benchmarks.patterns --dir FOLDER [--model smollm2-135m]

Each team has one `test/garbage` and one `test/failing` member where its pattern admits more than two. Every transcript is replayed.
"""

from __future__ import annotations

import argparse
import collections
import random
import time
from typing import Any

from symposia import Client, Collaboration, Result, parse_job
from symposia.cli.replay import replayed
from symposia_shared.consensus import RULES
from symposia_shared.errors import SymposiaError
from symposia_shared.patterns import OURS, kind_of

LEAST = {"pipeline": 2, "debate": 2, "hierarchical": 3, "ensemble": 3, "specialist_team": 3, "iterative_refinement": 2, "adversarial": 2,
         "consensus_building": 3}
MOST = {"adversarial": 2, "debate": 4, "pipeline": 5, "iterative_refinement": 5}
PROMPTS = ["How much is 6 times 7? Answer with a number.", "Name the capital of France.", "Is 17 a prime number? Answer yes or no.",
           "Write a Python function add(a, b) that returns the sum."]


def job(kind: str, models: list[str], prompt: str, seed: int, **fields: Any) -> Collaboration:
    """One collaboration, its answers short."""
    made = parse_job({"kind": kind, "prompt": prompt, "members": [{"model": m} for m in models],
                      "sampling": {"temperature": 0.7, "seed": seed, "max_tokens": 48}, **fields})
    assert isinstance(made, Collaboration)
    return made


def team(kind: str, model: str) -> list[str]:
    """The model in as many seats as the pattern needs, and where it admits more, one member of noise and one that fails."""
    seats = [model] * LEAST[kind]
    return seats if MOST.get(kind, 9) < len(seats) + 2 else [*seats, "test/garbage", "test/failing:timeout"]


def replays(found: Result) -> bool:
    """Whether the transcript alone gives the recorded verdict, or the error the job ended with."""
    try:
        return replayed(Result.from_json(found.model_dump_json())) == found.verdict
    except SymposiaError as error:
        return found.error is not None and error.name == found.error.type


def matrix(client: Client, model: str) -> None:
    """Each pattern with each algorithm it admits."""
    print("| pattern | consensus | state | rounds | calls | tokens | s | replays |\n|---|---|---|---|---|---|---|---|")
    for cls in OURS:
        kind, refused = kind_of(cls), getattr(cls, "refused", {})
        able: list[str | None] = [n for n in RULES if "consensus" in cls.model_fields and n not in refused]
        for consensus in able or [None]:
            given: dict[str, Any] = {"consensus": consensus} if consensus else {}
            if (kind, consensus) == ("debate", "best_response"):
                given["judge"] = {"model": model}
            found = client.submit(job(kind, team(kind, model), PROMPTS[0], 1, **given)).wait(600)
            print(f"| {kind} | {consensus or '–'} | {found.state} | {len(found.rounds)} | {found.bill.calls} | {found.bill.tokens} | "
                  f"{found.ended_at - found.submitted_at:.1f} | {'yes' if replays(found) else 'NO'} |", flush=True)


def crowd(client: Client, model: str, count: int) -> None:
    """Many mixed collaborations at once."""
    dice = random.Random(11)
    scripted = ["test/echo", "test/say:42", "test/garbage", "test/failing:bug", "test/slow:100"]
    jobs = []
    for n in range(count):
        kind = kind_of(OURS[n % len(OURS)])
        members = [model if dice.random() < 0.1 else dice.choice(scripted) for _ in range(LEAST[kind])]
        jobs.append(job(kind, members, dice.choice(PROMPTS), n))
    begun = time.monotonic()
    found = [h.wait(1800) for h in client.submit_many(jobs)]
    states = collections.Counter(f.error.type if f.error else f.state for f in found)
    print(f"\n{count} mixed collaborations at once: {dict(states)} in {time.monotonic() - begun:.0f} s, {sum(f.bill.calls for f in found)} calls; "
          f"{sum(replays(f) for f in found)} replay to the same end")


def critical_path(client: Client) -> None:
    """A debate's wall time against the slowest member of each round, summed."""
    ratios = []
    for seed in range(5):
        found = client.submit(job("debate", ["test/slow:1000"] * 3, "?", seed, early_stop=False, answer_kind="text")).result(120)
        path = sum(max((t.reply.timing.last_token_at or 0.0) - t.reply.timing.claimed_at for t in r.turns) for r in found.rounds)
        ratios.append((found.ended_at - found.submitted_at) / path)
    print(f"\na debate of three rounds on test/slow:1000, wall time / critical path: median {sorted(ratios)[2]:.3f}, worst {max(ratios):.3f}")


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--dir", required=True)
    options.add_argument("--model", default="smollm2-135m")
    options.add_argument("--crowd", type=int, default=200)
    options.add_argument("--crowd-only", action="store_true")
    asked = options.parse_args()
    with Client(asked.dir) as client:
        critical_path(client)
        if not asked.crowd_only:
            matrix(client, asked.model)
        crowd(client, asked.model, asked.crowd)
        print({name: value for name, value in client.stats().items() if value})


if __name__ == "__main__":
    main()
