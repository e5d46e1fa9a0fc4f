"""One target, as many examples as fit into its time."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from benchmarks.fuzz.targets import Target, holds

#: examples drawn between two looks at the time
BATCH = 500


@dataclass
class Counted:
    """How many examples a target was given, and how many of these it accepted."""

    examples: int = 0
    accepted: int = 0


def run(target: Target, *, seconds: float, seed: int = 0, most: int | None = None) -> tuple[Counted, BaseException | None]:
    """Examples for so many seconds, or ``most`` of them; the first error outside the tree, at its smallest example, ends it."""
    counted, until, number = Counted(), time.monotonic() + seconds, seed
    while most is None or counted.examples < most:
        try:
            _batch(target, counted, number, min(BATCH, most or BATCH))
        except Exception as error:
            return counted, error
        number += 1
        if time.monotonic() > until:
            break
    return counted, None


def _batch(target: Target, counted: Counted, number: int, most: int) -> None:
    @seed(number)
    @settings(max_examples=most, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
              print_blob=False, report_multiple_bugs=False)
    @given(target.given)
    def look(example: Any) -> None:
        counted.examples += 1
        counted.accepted += holds(target, example)

    look()


def found(error: BaseException) -> str:
    """What the error's notes say of the example."""
    return "\n".join(getattr(error, "__notes__", []))
