"""From answers to figures: rates, percentiles, medians over rounds, and how many tokens are the reference's. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.engines.wire import Answer, Request

Decode = Callable[[Sequence[int]], str]


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` (0..1) of ``values`` lie, interpolated between neighbours; nan of none."""
    if not values:
        return math.nan
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


@dataclass(frozen=True, slots=True)
class Run:
    """One contender over one workload once."""

    wall_s: float
    #: of the contender's process tree
    cpu_s: float
    #: largest sum of resident sets over its process tree, in bytes; pages that processes share count in each
    rss_bytes: int
    #: average number of cores that other processes used meanwhile
    others_cores: float
    tokens: int
    wanted: int
    #: seconds from arrival, by request; only those the contender tells
    ttft_s: tuple[float, ...]
    latency_s: tuple[float, ...]
    faults: tuple[str, ...]
    #: tokens equal to the reference's up to the first that is not, and how many the reference has
    same: int | None = None
    reference: int | None = None
    #: answers that are the reference's to the end
    identical: int | None = None

    @property
    def tokens_per_s(self) -> float:
        """New tokens by wall time."""
        return self.tokens / self.wall_s if self.wall_s > 0 else math.nan

    @property
    def tokens_per_cpu_s(self) -> float:
        """New tokens by the contender's own CPU seconds."""
        return self.tokens / self.cpu_s if self.cpu_s > 0 else math.nan


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over the rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of the values that are numbers; nan of none."""
        real = [v for v in values if not math.isnan(v)]
        return cls(statistics.median(real), min(real), max(real)) if real else cls(math.nan, math.nan, math.nan)


def run_of(
    requests: Sequence[Request], answers: Sequence[Answer], *, began: float, cpu_s: float, rss_bytes: int, others_cores: float = 0.0,
    reference: Mapping[str, Sequence[int]] | None = None, decode: Decode | None = None,
) -> Run:
    """A run's figures. ``reference``: ids by request, cut where the text has ended; ``decode``: for answers without ids."""
    by_id = {a.id: a for a in answers}
    arrived = {r.id: began + r.at_s for r in requests}
    missing = [f"{r.id}: no answer" for r in requests if r.id not in by_id]
    good = [a for a in by_id.values() if not a.fault]
    same = [compared(reference[a.id], a, decode) for a in good if a.id in reference] if reference is not None else []
    return Run(
        wall_s=max((a.last_at for a in answers), default=began) - began, cpu_s=cpu_s, rss_bytes=rss_bytes, others_cores=others_cores,
        tokens=sum(a.tokens for a in good), wanted=sum(r.max_new for r in requests),
        ttft_s=tuple(a.first_at - arrived[a.id] for a in good if a.first_at is not None),
        latency_s=tuple(a.last_at - arrived[a.id] for a in good),
        faults=(*missing, *(f"{a.id}: {a.fault}" for a in by_id.values() if a.fault)),
        same=sum(n for n, _ in same) if reference is not None else None,
        reference=sum(len(reference[a.id]) for a in good if a.id in reference) if reference is not None else None,
        identical=sum(whole for _, whole in same) if reference is not None else None,
    )


def until_end(ids: Sequence[int], ends: frozenset[int]) -> tuple[int, ...]:
    """The tokens before the first that ends the text: what comes after it differs by whether a contender may say it again."""
    return tuple(ids[: next((n for n, i in enumerate(ids) if i in ends), len(ids))])


def compared(reference: Sequence[int], answer: Answer, decode: Decode | None = None) -> tuple[int, bool]:
    """(tokens equal up to the first difference, whether all are). An answer without ids is compared by text."""
    if answer.ids is not None:
        same = next((n for n, (a, b) in enumerate(zip(reference, answer.ids, strict=False)) if a != b), min(len(reference), len(answer.ids)))
    else:
        same = _same_by_text(reference, answer.text or "", decode)
    return same, same == len(reference)


def _same_by_text(reference: Sequence[int], text: str, decode: Decode | None) -> int:
    """How many of the reference's tokens, decoded, begin ``text``."""
    if decode is None:
        raise ValueError("an answer without ids needs a tokenizer to be compared.")
    low, high = 0, len(reference)
    while low < high:  # a longer beginning that fits implies that a shorter one does
        middle = (low + high + 1) // 2
        if text.startswith(decode(reference[:middle]).rstrip("\ufffd")):
            low = middle
        else:
            high = middle - 1
    return low


def jain(values: Sequence[float]) -> float:
    """Jain's index of fairness: 1 where all have the same, 1/n where one has all (Jain, Chiu and Hawe 1984)."""
    squares = sum(v * v for v in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else math.nan
