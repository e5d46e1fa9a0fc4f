"""A batch's completion window: how it is written, and whether it can be kept by what was measured."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from symposia_shared.batches.values import Batch, Survey
from symposia_shared.errors import BadInput
from symposia_shared.schedules import seconds_of

#: seconds a window may have
SHORTEST_S, LONGEST_S = 60, 30 * 86_400


def window_s(text: object) -> int:
    """``24h``, ``90m`` or ``7d`` in seconds. Raises BadInput."""
    found = None
    if isinstance(text, str) and text[-1:] in ("s", "m", "h", "d"):
        with suppress(BadInput):
            found = seconds_of(text)
    if found is None or not SHORTEST_S <= found <= LONGEST_S:
        raise BadInput(f"'completion_window' is {text!r:.80}.", field="completion_window", value=text, remedy="Write 24h, 90m or 7d: 1 minute to 30 days.")
    return found


def seconds_needed(survey: Survey, ahead: Sequence[Batch], throughput: Mapping[str, float], *, auto_model: str | None) -> float | None:
    """Seconds a batch takes at least, by the lines a second that earlier ones had of its models; None where none of them is known.

    Lines of other batches that have not ended share the same places; models of one batch are taken to run side by side.
    """
    waiting = sum(b.left for b in ahead)
    share = 1 + waiting / max(1, survey.lines)
    asked: dict[str, int] = {}
    for model, lines in survey.models.items():
        name = (auto_model or model) if model == "auto" else model
        asked[name] = asked.get(name, 0) + lines
    needed = [lines / throughput[model] for model, lines in asked.items() if throughput.get(model)]
    return max(needed) * min(share, 2.0) if needed else None


def check(window: int, text: str, needed: float | None, *, now_s: float) -> None:
    """Raises BadInput where a window cannot be kept, with the time that could be."""
    if needed is None or needed <= window:
        return
    earliest = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_s + needed))
    raise BadInput(f"completion_window {text!r} cannot be kept: by the measured rate this batch takes {needed:,.0f} s, and ends at {earliest} at the earliest.",
                   field="completion_window", value=text, remedy=f"Ask for at least {_rounded(needed)}.")


def _rounded(seconds: float) -> str:
    minutes = int(seconds // 60) + 1
    return f"{minutes}m" if minutes < 600 else f"{minutes // 60 + 1}h"
