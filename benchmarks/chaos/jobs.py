"""The jobs of a run: all kinds, drawn by a seed, each with the ends it may have."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from symposia import Embedding, Inference, Job, parse_job
from symposia_shared.jobs import SingleTurn
from symposia_shared.patterns import OURS, kind_of
from symposia_shared.results import State
from symposia_shared.scripted import scripted_reply
from symposia_shared.turns import Completion

#: the fewest members each pattern takes
FEWEST = {"pipeline": 2, "debate": 2, "hierarchical": 3, "ensemble": 3, "specialist_team": 3, "iterative_refinement": 2, "adversarial": 2,
          "consensus_building": 3}
MEMBERS = ("test/echo", "test/say:42", "test/say:The answer is 41", "test/garbage", "test/failing:bug", "test/failing:bad_prompt", "test/slow:50",
           "test/slow:300", "test/slow:1200")
#: milliseconds longer than any deadline here
NEVER_MS = 600_000


@dataclass(frozen=True, slots=True)
class Asked:
    """A job to be submitted, what is done to it, and the ends it may have."""

    number: int
    job_id: str
    job: Job
    ends: frozenset[State]
    #: seconds to wait in Redis before it is opened
    delay_s: float = 0.0
    #: seconds after its submission at which it is cancelled
    cancel_after_s: float | None = None
    #: what it must answer, where that is known
    answer: str | None = None
    vectors: tuple[tuple[float, ...], ...] | None = None


def asked(seed: int, number: int, *, healthy: bool = False) -> Asked:
    """The ``number``-th job of a run; ``healthy``: one that can only end well."""
    dice = random.Random(f"{seed}:{number}")
    job_id = f"chaos-{seed}-{number}"
    fields: dict[str, Any] = {"priority": dice.choice(("interactive", "normal", "batch"))}
    if dice.random() < 0.2:
        fields["tags"] = [f"tag-{number % 3}"]
    fate = 1.0 if healthy else dice.random()
    if fate < 0.03:
        slow = Inference(prompt="?", model=f"test/slow:{NEVER_MS}", deadline_s=dice.uniform(1, 3), **fields)
        return Asked(number, job_id, slow, frozenset({"failed", "done"}))
    job = _job(dice, number, fields, healthy=healthy)
    cancel_s = dice.uniform(0, 1) if fate < 0.08 else None
    delay_s = dice.uniform(0.5, 8) if 0.08 <= fate < 0.14 else 0.0
    ends = _ends(job)
    if cancel_s is not None:
        ends.add("cancelled")
    told = scripted_reply(job.model, job.turn.messages, job.sampling, want=job.turn.want) if isinstance(job, SingleTurn) else None
    said = told if isinstance(told, Completion) else None
    return Asked(number, job_id, job, frozenset(ends), delay_s, cancel_s, answer=said.text if said and not said.vectors else None,
                 vectors=said.vectors if said else None)


def _job(dice: random.Random, number: int, fields: dict[str, Any], *, healthy: bool) -> Job:
    models = MEMBERS if not healthy else tuple(m for m in MEMBERS if "failing" not in m and "garbage" not in m)
    if dice.random() < 0.5:
        if dice.random() < 0.2:
            return Embedding(texts=[f"text {number}-{n}" for n in range(dice.randint(1, 5))], model="test/echo", **fields)
        # one in ten is longer than what the ledger keeps inline, so that its job and reply lie in S3
        prompt = f"question {number} " + "long " * (300 if dice.random() < 0.1 else 1)
        return Inference(prompt=prompt, model=dice.choice(models), **fields)
    kind = kind_of(OURS[number % len(OURS)])
    members = [{"model": dice.choice(models)} for _ in range(FEWEST[kind] + dice.randint(0, 1) * (kind not in ("adversarial",)))]
    sampling = {"temperature": 0.7, "seed": number, "max_tokens": 64}
    return parse_job({"kind": kind, "prompt": f"How much is {number} times 7?", "members": members, "sampling": sampling, **fields})


def _ends(job: Job) -> set[State]:
    failing = [m for m in job.models if m.startswith("test/failing")]
    if isinstance(job, SingleTurn):
        return {"failed"} if failing else {"done"}
    return {"done", "failed"} if failing or "test/garbage" in job.models else {"done"}
