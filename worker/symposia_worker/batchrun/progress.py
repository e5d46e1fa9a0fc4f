"""How far a batch run is, for a person: a bar in a terminal, a plain line now and then elsewhere; both on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from symposia_worker.batchrun.run import Tally

#: seconds between two plain lines
LINE_EVERY_S = 5.0
#: seconds between two looks at a bar: more would only cost
LOOK_EVERY_S = 0.1


@contextmanager
def shown(*, quiet: bool = False) -> Iterator[Callable[[Tally], None]]:
    """What is told of each step of a run."""
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _bar() as tell:
            yield tell
    else:
        yield _Lines()


@contextmanager
def _bar() -> Iterator[Callable[[Tally], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("answering"), BarColumn(bar_width=30), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"), TimeElapsedColumn(),
               TextColumn("left:"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        task: TaskID | None = None
        last = 0.0

        def tell(tally: Tally) -> None:
            nonlocal last, task
            done = tally.kept + tally.written
            if task is None:  # only now: what was there before must not count as speed
                task = bars.add_task("", total=tally.lines, completed=done, speed="")
            if done < tally.lines and time.monotonic() - last < LOOK_EVERY_S:
                return
            last = time.monotonic()
            bars.update(task, completed=done, speed=f"{tally.tokens_per_s:,.0f} tok/s, {tally.failed:,} failed")

        yield tell


class _Lines:
    def __init__(self) -> None:
        self._told_at = time.monotonic()

    def __call__(self, tally: Tally) -> None:
        now = time.monotonic()
        if now - self._told_at < LINE_EVERY_S:
            return
        self._told_at = now
        print(line_of(tally), file=sys.stderr, flush=True)


def line_of(tally: Tally) -> str:
    """A plain line: what is done, how fast, and how long the rest may take at the rate so far."""
    done = tally.kept + tally.written
    left = tally.lines - done
    eta = f", {left * tally.seconds / tally.written:,.0f} s left" if tally.written and left else ""
    return (f"{done:,} of {tally.lines:,} lines, {tally.failed:,} failed, {tally.completion_tokens:,} tokens, "
            f"{tally.tokens_per_s:,.0f} tok/s{eta}")
