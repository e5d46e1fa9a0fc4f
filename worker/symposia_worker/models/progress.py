"""What a transfer or an export tells while it lasts, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from symposia_worker.models.store import Progress

#: seconds between two plain lines of one transfer, where there is no terminal
_LINE_EVERY_S = 5.0


@contextmanager
def shown() -> Iterator[Progress]:
    """A progress bar on standard error in a terminal, else a plain line now and then."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=30), DownloadColumn(), TransferSpeedColumn(), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=None)
        yield lambda what, done, total: bars.update(task, description=what, completed=done, total=total or None)


class _Lines:
    """Progress without a terminal: a line for each new kind of work, and one every few seconds while it lasts."""

    def __init__(self) -> None:
        self._verb, self._told_at = "", 0.0

    def __call__(self, what: str, done: int, total: int) -> None:
        now, verb = time.monotonic(), what.partition(" ")[0]
        if verb == self._verb and now - self._told_at < _LINE_EVERY_S:
            return
        self._verb, self._told_at = verb, now
        print(f"{what} ({done / total:.0%} of {total / 1e6:,.1f} MB)" if total else what, file=sys.stderr, flush=True)
