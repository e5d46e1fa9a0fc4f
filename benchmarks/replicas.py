"""Replicas of a checkpoint on several pools, one pool killed each minute under load: is anything lost, are the shares even?

    python -m benchmarks.replicas --pools 4 --minutes 5
    python -m benchmarks.replicas --pools 4 --minutes 5 --model smollm2-135m --in-flight 12

Turns differ in length by a factor of 32, and a scripted one takes time in proportion to its tokens. A pool's share is the tokens
of the turns it answered, read and written, for each second it lived.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.chaos import journal
from benchmarks.chaos.audit import audit, of_journal
from benchmarks.chaos.jobs import Asked
from benchmarks.chaos.legs import whole_journal
from benchmarks.chaos.load import Ended, Load
from benchmarks.chaos.report import machine
from benchmarks.chaos.stack import Stack, running_stack, send
from benchmarks.engines.figures import jain, percentile
from symposia import Inference, Sampling
from symposia_shared.standing import alive
from symposia_shared.turns import Completion

#: words of a turn, and milliseconds a scripted one takes for each
LENGTHS, MS_A_WORD = (16, 32, 64, 128, 256, 512), 4
#: seconds the idle stack is watched
IDLE_S = 20.0


@dataclass
class Pools:
    """How long each pool has lived, by name, and who was killed when; kills one after another, one each ``every_s`` seconds."""

    stack: Stack
    every_s: float
    lived_s: Counter[str] = field(default_factory=Counter)
    kills: list[str] = field(default_factory=list)
    back_s: list[float] = field(default_factory=list)
    #: largest and mean difference of outstanding tokens between pools that were up, at each look
    spread: list[int] = field(default_factory=list)
    burdens: list[int] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def watch(self) -> None:
        """Until ``stop``: look twice a second, and kill the next pool when its time has come."""
        last, due, down = time.monotonic(), time.monotonic() + self.every_s, dict[str, float]()
        while not self._over.wait(0.5):
            up = {str(w["name"]): w for w in alive(self.stack.client.ledger.workers(), "pool")
                  if w["pid"] in self.stack.pids("pool") and w.get("ready_at")}
            now = time.monotonic()
            self.lived_s.update(dict.fromkeys(up, now - last))
            last = now
            held = [int(w["tokens"]) for w in up.values()]
            if len(held) > 1 and not down:
                self.spread.append(max(held) - min(held))
                self.burdens.append(sum(held) // len(held))
            for name in [n for n in down if n in up and up[n]["ready_at"] > down[n]]:
                self.back_s.append(time.time() - down.pop(name))
            if now >= due and up:
                due = now + self.every_s
                names = sorted(up)
                name = names[len(self.kills) % len(names)]
                if send(int(up[name]["pid"]), signal.SIGKILL):
                    self.kills.append(name)
                    down[name] = time.time()

    def stop(self) -> None:
        """Watch no more."""
        self._over.set()


def asked(model: str, seed: int, number: int) -> Asked:
    """The ``number``-th job: of a length drawn by the seed."""
    words = random.Random(f"{seed}:{number}").choice(LENGTHS)
    if model:
        job = Inference(model=model, prompt=f"Count from {number}: " + "one two " * (words // 8), sampling=Sampling(max_tokens=max(4, words // 4)))
    else:
        job = Inference(model=f"test/slow:{words * MS_A_WORD}", prompt=f"{number} " + "word " * words)
    return Asked(number, f"replicas-{seed}-{number}", job, frozenset({"done"}))


def tokens(ended: list[Ended]) -> Counter[str]:
    """Tokens read and written by the pool that answered."""
    found: Counter[str] = Counter()
    for seen in ended:
        reply = seen.result.completion if seen.result else None
        if isinstance(reply, Completion):
            found[reply.pool] += reply.usage.prompt_tokens + reply.usage.completion_tokens
    return found


def measured(stack: Stack, *, model: str, seed: int, minutes: float, in_flight: int, every_s: float) -> tuple[str, list[str]]:
    """The figures as text, and what was broken."""
    whole_journal(stack)
    pools = Pools(stack, every_s)
    watcher = threading.Thread(target=pools.watch, daemon=True)
    idle = Broker.seen(stack)
    time.sleep(IDLE_S)
    begun = Broker.seen(stack)
    began = time.monotonic()
    load = Load(stack, lambda n: asked(model, seed, n), _until(began + 60 * minutes), in_flight)
    watcher.start()
    ended = load.run()
    loaded = Broker.seen(stack)
    pools.stop()
    watcher.join()
    seconds = time.monotonic() - began
    found = journal.read(stack.folder / "broker", stack.client.settings.prefix)
    broken = audit(stack, ended, may_fail=False) + of_journal(found, ended)
    jobs = max(1, len(ended))
    rates = (f"broker, idle pools and coordinator: {begun.since(idle)}", f"broker under this load: {loaded.since(begun)}, "
             f"{(loaded.commands - begun.commands) / jobs:.0f} commands and {(loaded.cpu_s - begun.cpu_s) / jobs * 1e3:.2f} ms a job")
    return "\n".join([_told(pools, ended, seconds, stack.client.stats(), broken), *rates]), broken


@dataclass(frozen=True, slots=True)
class Broker:
    """What the broker has done so far."""

    at: float
    commands: int
    cpu_s: float
    connections: int
    bytes: int

    @classmethod
    def seen(cls, stack: Stack) -> Broker:
        """Now."""
        told = stack.client.ledger.redis.info()
        return cls(time.monotonic(), int(told["total_commands_processed"]), float(told["used_cpu_user"]) + float(told["used_cpu_sys"]),
                   int(told["connected_clients"]), int(told["total_net_input_bytes"]) + int(told["total_net_output_bytes"]))

    def since(self, before: Broker) -> str:
        """Rates since then."""
        seconds = self.at - before.at
        return (f"{(self.commands - before.commands) / seconds:.0f} commands/s, {(self.cpu_s - before.cpu_s) / seconds * 1e3:.1f} ms of processor a second, "
                f"{(self.bytes - before.bytes) / seconds / 1e3:.0f} kB/s, {self.connections} connections")


def _until(until: float) -> Callable[[int], bool]:
    return lambda _: time.monotonic() < until


def _told(pools: Pools, ended: list[Ended], seconds: float, stats: dict[str, int], broken: list[str]) -> str:
    by_pool = tokens(ended)
    rates = {name: by_pool[name] / max(pools.lived_s[name], 1e-9) for name in sorted(pools.lived_s)}
    took = [e.took_s for e in ended if e.state == "done"]
    lines = [f"{len(ended)} jobs in {seconds:.0f} s, {sum(e.state == 'done' for e in ended)} done, {len(pools.kills)} pools killed ({', '.join(pools.kills)}), "
             f"{len(broken)} violations", f"job time p50 {percentile(took, 0.5):.2f} s, p95 {percentile(took, 0.95):.2f} s, max {max(took, default=0):.2f} s; "
             f"a killed pool was ready again after {percentile(pools.back_s, 0.5):.1f} s (p50), {max(pools.back_s, default=0):.1f} s (max)",
             f"in flight at kills {stats['in_flight_at_kills']}, calls repeated {stats['calls_repeated']}", "",
             "| pool | lived | tokens | tokens a second lived | of the mean |", "|---|---|---|---|---|"]
    mean = sum(rates.values()) / max(1, len(rates))
    lines += [f"| {n} | {pools.lived_s[n]:.0f} s | {by_pool[n]:,} | {rate:.1f} | {rate / mean:.3f} |" for n, rate in rates.items()]
    lines += ["", f"Jain's index of tokens a second lived: {jain(list(rates.values())):.4f}; outstanding tokens of a pool, mean {_mean(pools.burdens):.0f}, "
              f"most less least among those up: mean {_mean(pools.spread):.0f}, p95 {percentile([float(x) for x in pools.spread], 0.95):.0f}"]
    return "\n".join([*lines, *broken[:20]])


def _mean(values: list[int]) -> float:
    return sum(values) / max(1, len(values))


def main() -> int:
    """The command line. 1 where anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pools", type=int, default=4)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--every", type=float, default=60.0, help="seconds between two kills")
    parser.add_argument("--in-flight", type=int, default=32)
    parser.add_argument("--model", default="", help="a stored checkpoint in place of the scripted ones; it is pulled where it is not stored")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="replicas-") as scratch:
        devices = ",".join(f"cpu:{k}" for k in range(given.pools))
        with running_stack(Path(scratch) / "stack", devices=devices) as stack:
            if given.model:
                _served(stack, given.model, given.pools)
            text, broken = measured(stack, model=given.model, seed=given.seed, minutes=given.minutes, in_flight=given.in_flight, every_s=given.every)
    print(f"{machine()}; {given.pools} pools, {given.model or 'scripted'}, {given.in_flight} in flight, load average {os.getloadavg()[1]:.1f}\n{text}")
    return 1 if broken else 0


def _served(stack: Stack, model: str, pools: int) -> None:
    """Pull it, and place a copy on every pool through the desired placement."""
    import subprocess

    from symposia_shared.ledger.desired import Assigned, Desired

    subprocess.run([sys.executable, "-m", "symposia", "models", "pull", model, "--no-export", "--dir", str(stack.folder)], check=True, timeout=1200)
    version = Desired(stack.client.ledger).write({f"pool-cpu-{k}": [Assigned(checkpoint=model)] for k in range(pools)})
    while not all(w.get("placement") == version for w in alive(stack.client.ledger.workers(), "pool")):
        time.sleep(0.5)


if __name__ == "__main__":
    sys.exit(main())
