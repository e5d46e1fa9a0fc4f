"""Results as JSON, and as the tables docs/BENCHMARKS.md has."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.engines.figures import Run, Spread, percentile

BASE = "one by one"


@dataclass(slots=True)
class Results:
    """All that was measured, in the order of measuring."""

    machine: dict[str, str]
    #: the workload and how it was run
    settings: dict[str, str]
    #: by contender: what it said of itself, and notes
    facts: dict[str, dict[str, str]] = field(default_factory=dict)
    #: by contender: why it was not measured, or not to the end
    missing: dict[str, str] = field(default_factory=dict)
    #: by mode (``at once``, ``poisson``), then by contender
    runs: dict[str, dict[str, list[Run]]] = field(default_factory=dict)

    def add(self, mode: str, name: str, run: Run) -> None:
        """One more run."""
        self.runs.setdefault(mode, {}).setdefault(name, []).append(run)

    def write(self, path: Path) -> None:
        """As JSON, put in place whole."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        part.rename(path)

    @classmethod
    def read(cls, path: Path) -> Results:
        """What ``write`` wrote."""
        raw = json.loads(path.read_text(encoding="utf-8"))
        runs = {mode: {name: [_run(r) for r in found] for name, found in by.items()} for mode, by in raw["runs"].items()}
        return cls(raw["machine"], raw["settings"], raw["facts"], raw["missing"], runs)


def _run(raw: dict[str, Any]) -> Run:
    return Run(**{k: tuple(v) if isinstance(v, list) else v for k, v in raw.items()})


def spread(runs: Sequence[Run], figure: Callable[[Run], float]) -> Spread:
    """A figure over rounds."""
    return Spread.of([figure(r) for r in runs])


def tables(results: Results) -> str:
    """Everything as Markdown."""
    parts = [_pairs(results.machine), _pairs(results.settings)]
    if found := results.runs.get("at once"):
        parts += ["All requests at once:", throughput(found), goals(found, results.runs.get("poisson", {}))]
    if found := results.runs.get("poisson"):
        parts += ["Poisson arrivals:", latency(found)]
    parts += [_contenders(results)]
    return "\n\n".join(p for p in parts if p) + "\n"


def throughput(found: Mapping[str, Sequence[Run]]) -> str:
    """Tokens by second of wall and of CPU, memory, tokens equal to the reference's."""
    base = spread(found[BASE], lambda r: r.tokens_per_s).median if BASE in found else math.nan
    head = ["contender", "tokens/s", "min to max", f"× {BASE}", "tokens per CPU s", "first token p50 s", "RSS MB", "same tokens", "same answers",
            "others' cores"]
    rows = []
    for name, runs in found.items():
        rate = spread(runs, lambda r: r.tokens_per_s)
        rows.append([name, _n(rate.median, 1), f"{_n(rate.least, 1)} to {_n(rate.most, 1)}", _n(rate.median / base, 2),
                     _n(spread(runs, lambda r: r.tokens_per_cpu_s).median, 1), _n(spread(runs, lambda r: percentile(r.ttft_s, 0.5)).median, 2),
                     _n(spread(runs, lambda r: r.rss_bytes / 1e6).median, 0), *_same(runs), _n(spread(runs, lambda r: r.others_cores).median, 2)])
    return table(head, rows)


def latency(found: Mapping[str, Sequence[Run]]) -> str:
    """Time to first token and latency, percentiles within a round, medians over rounds."""
    head = ["contender", "first token p50 s", "first token p95 s", "latency p50 s", "latency p95 s", "tokens/s", "tokens per CPU s"]
    rows = []
    for name, runs in found.items():
        shares = [_spread(spread(runs, lambda r, of=of, share=share: percentile(getattr(r, of), share)), len(runs))
                  for of in ("ttft_s", "latency_s") for share in (0.5, 0.95)]
        rows.append([name, *shares, _n(spread(runs, lambda r: r.tokens_per_s).median, 1),
                     _n(spread(runs, lambda r: r.tokens_per_cpu_s).median, 1)])
    return table(head, rows)


#: (what, numerator, denominator, at least)
_GOALS = (
    ("torch / one by one", "ours, torch", BASE, 2.5),
    ("exact / one by one", "ours, openvino exact", BASE, 4.0),
    ("exact / llama.cpp F32", "ours, openvino exact", "llama.cpp F32", 2.0),
    ("fast / one by one", "ours, openvino fast", BASE, 8.0),
    ("fast / llama.cpp Q8_0", "ours, openvino fast", "llama.cpp Q8_0", 2.5),
)


def goals(at_once: Mapping[str, Sequence[Run]], arriving: Mapping[str, Sequence[Run]]) -> str:
    """Ratios of medians beside what was aimed at."""
    rows = []
    for what, over, under, least in _GOALS:
        if over in at_once and under in at_once:
            ratio = _rate(at_once[over]) / _rate(at_once[under])
            rows.append([what, _n(ratio, 2), f"≥ {least:g}", "yes" if ratio >= least else "**no**"])
    for name in at_once:
        alone = name.replace("the queue, ", "ours, ")
        if name != alone and alone in at_once:
            ratio = _rate(at_once[name]) / _rate(at_once[alone])
            rows.append([f"{name} / {alone}", _n(ratio, 2), "≥ 0.95", "yes" if ratio >= 0.95 else "**no**"])
    for name in arriving:
        if name.startswith("ours") and BASE in arriving:
            ratio = _first(arriving[name]) / _first(arriving[BASE])
            rows.append([f"first token p50 under load, {name} / {BASE}", _n(ratio, 3), "≤ 0.1", "yes" if ratio <= 0.1 else "**no**"])
    return table(["ratio of medians", "measured", "goal", "reached"], rows) if rows else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *("| " + " | ".join(row) + " |" for row in rows)])


def _rate(runs: Sequence[Run]) -> float:
    return spread(runs, lambda r: r.tokens_per_s).median


def _first(runs: Sequence[Run]) -> float:
    return spread(runs, lambda r: percentile(r.ttft_s, 0.5)).median


def _same(runs: Sequence[Run]) -> list[str]:
    compared = [r for r in runs if r.reference]
    if not compared:
        return ["–", "–"]
    share = Spread.of([100.0 * (r.same or 0) / (r.reference or 1) for r in compared]).median
    return [f"{share:.1f} %", f"{Spread.of([float(r.identical or 0) for r in compared]).median:.0f} of {len(compared[0].latency_s)}"]


def _contenders(results: Results) -> str:
    rows = [[name, "; ".join(f"{k} {v}" for k, v in told.items())] for name, told in results.facts.items()]
    for by in results.runs.values():
        for name, runs in by.items():
            short = [r for r in runs if r.tokens != r.wanted]
            if short:
                rows.append([name, f"made {short[0].tokens} of {short[0].wanted} tokens in {len(short)} of {len(runs)} runs"])
            rows += [[name, f"fault: {fault}"] for r in runs[:1] for fault in r.faults[:2]]
    rows += [[name, f"not measured: {why}"] for name, why in results.missing.items()]
    return table(["contender", "what has to be known"], rows)


def _pairs(pairs: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {value}" for name, value in pairs.items()) + "."


def _spread(s: Spread, rounds: int) -> str:
    return _n(s.median, 2) if rounds == 1 else f"{_n(s.median, 2)} ({_n(s.least, 2)} to {_n(s.most, 2)})"


def _n(value: float, digits: int) -> str:
    return "–" if math.isnan(value) or math.isinf(value) else f"{value:,.{digits}f}"
