"""What a leg of the suite found, as a table and as JSON."""

from __future__ import annotations

import datetime
import math
import os
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.chaos.killer import Kill
from benchmarks.chaos.load import Ended


@dataclass
class Leg:
    """One leg of a run: what was done, what was seen, and which promises were broken."""

    name: str
    seed: int
    ended: Sequence[Ended]
    kills: Sequence[Kill]
    stats: dict[str, int]
    broken: list[str]
    seconds: float
    notes: list[str] = field(default_factory=list)

    @property
    def facts(self) -> dict[str, Any]:
        """The leg for a JSON report."""
        return {"leg": self.name, "seed": self.seed, "seconds": round(self.seconds, 1), "jobs": len(self.ended),
                "states": dict(Counter(e.state or "none" for e in self.ended)), "kinds": dict(Counter(e.asked.job.name for e in self.ended)),
                "kills": dict(Counter(f"{k.role} {k.how}" for k in self.kills)), "recovery_s": recovery(self.kills), "stats": self.stats,
                "notes": self.notes, "violations": self.broken}


def recovery(kills: Sequence[Kill]) -> dict[str, dict[str, dict[str, float]]]:
    """Per role: the seconds until it was back, and until a further reply was recorded; ``none``: not within a minute, or the run ended before."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for role in sorted({k.role for k in kills}):
        of_role = [k for k in kills if k.role == role and not k.how.startswith("SIGSTOP")]
        found[role] = {"back": spread([k.back_s for k in of_role]), "next_reply": spread([k.reply_s for k in of_role])}
    return found


def spread(times: Sequence[float | None]) -> dict[str, float]:
    """n, p50, p95 and max of times (nearest rank), and how many have none."""
    known = sorted(t for t in times if t is not None)
    ranks = {name: known[max(0, math.ceil(share * len(known)) - 1)] for name, share in (("p50", 0.5), ("p95", 0.95), ("max", 1.0))} if known else {}
    return {"n": len(known), "none": len(times) - len(known), **{name: round(t, 2) for name, t in ranks.items()}}


def machine() -> str:
    """The day and the machine."""
    today = f"{datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}"
    return f"{today}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def shown(leg: Leg) -> str:
    """The leg as text."""
    facts = leg.facts
    lines = [f"\n{leg.name}, seed {leg.seed}: {facts['jobs']} jobs {facts['states']}, {len(leg.kills)} blows {facts['kills']}, {facts['seconds']} s",
             "| process | n | back p50 | p95 | max | next reply p50 | p95 | max |", "|---|---|---|---|---|---|---|---|"]
    for role, times in facts["recovery_s"].items():
        cells = [str(times[what].get(name, "–")) for what in ("back", "next_reply") for name in ("p50", "p95", "max")]
        lines.append(f"| {role} | {times['back']['n'] + times['back']['none']} | {' | '.join(cells)} |")
    lines += [f"{name:<22} {value}" for name, value in leg.stats.items() if value]
    lines += [*leg.notes, f"{len(leg.broken)} violations", *(f"  {word}" for word in leg.broken[:50])]
    return "\n".join(lines)
