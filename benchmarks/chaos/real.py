"""The leg on a real model: kills while it computes, under one prompt and every pattern, each of a few tokens."""

from __future__ import annotations

import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.chaos.audit import audit
from benchmarks.chaos.jobs import FEWEST, Asked
from benchmarks.chaos.killer import Killer
from benchmarks.chaos.legs import DEVICES, judged, whole_journal
from benchmarks.chaos.load import Load
from benchmarks.chaos.report import Leg
from benchmarks.chaos.stack import SYMPOSIA, Stack, environ, running_stack
from symposia import Inference, Job, parse_job
from symposia_shared.patterns import OURS, kind_of

MODEL = "smollm2-135m"
#: a loaded engine is not there at once: an engine, its pool, the broker and the store are hit, the coordinator too
ROLES = ("pool", "engine", "coordinator", "broker", "store")
#: seconds a job may take to end, kills, loads and all
PATIENCE_S = 1800.0


def asked(seed: int, number: int) -> Asked:
    """The ``number``-th job: half are one prompt, the rest the patterns in turn."""
    dice = random.Random(f"real:{seed}:{number}")
    sampling = {"temperature": 0.0 if number % 2 else 0.7, "seed": number, "max_tokens": dice.randint(4, 24)}
    job: Job
    if dice.random() < 0.5:
        job = Inference.parse({"prompt": f"Count from {number} to {number + 9}.", "model": MODEL, "sampling": sampling})
        return Asked(number, f"real-{seed}-{number}", job, frozenset({"done"}))
    kind = kind_of(OURS[number % len(OURS)])
    fields: dict[str, Any] = {"kind": kind, "prompt": f"How much is {number} times 7?", "sampling": sampling,
                              "members": [{"model": MODEL}] * FEWEST[kind]}
    # a model this small need not say anything that can be counted: too few voices is an end, too
    return Asked(number, f"real-{seed}-{number}", parse_job(fields), frozenset({"done", "failed"}))


def real(folder: Path, *, seed: int, jobs: int, most: int, gap_s: float, in_flight: int, more: Callable[[Killer, int, float], Callable[[int], bool]],
         longest_s: float) -> Leg:
    """At least ``jobs`` jobs and ``most`` kills, unless ``longest_s`` is over before."""
    with running_stack(folder, devices=DEVICES) as stack:
        whole_journal(stack)
        _served(stack)
        before = stack.client.stats()["jobs_submitted"]
        began = time.monotonic()
        killer = Killer(stack, seed, gap_s, ROLES, most=most)
        load = Load(stack, lambda n: asked(seed, n), more(killer, jobs, began + longest_s), in_flight, patience_s=PATIENCE_S)
        killer.start()
        ended = load.run()
        killer.stop()
        return judged(stack, f"kills, {MODEL}", seed, load, killer, audit(stack, ended, before=before), began, folder / "broker")


def _served(stack: Stack) -> None:
    for command in (("models", "pull", MODEL), ("models", "serve", MODEL)):
        ran = subprocess.run([*SYMPOSIA, *command, "--dir", str(stack.folder)], capture_output=True, text=True, env=environ({}), timeout=1800, check=False)
        if ran.returncode:
            raise RuntimeError(f"symposia {' '.join(command)} → {ran.returncode}\n{ran.stdout}{ran.stderr}")
    stack.client.ask("Say yes.", model=MODEL, timeout=600)
