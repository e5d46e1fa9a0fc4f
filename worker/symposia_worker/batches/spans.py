"""A span whose lines are being asked."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from symposia_shared.batches.lines import Question, Written
from symposia_shared.batches.values import Counts
from symposia_shared.results import Result


@dataclass(slots=True)
class Asked:
    """A line that is in flight: what its jobs came to so far."""

    question: Question
    ids: list[str]
    results: dict[str, Result] = field(default_factory=dict)
    #: looks at which a job was neither in the ledger nor in S3
    unseen: int = 0

    @property
    def waiting(self) -> list[str]:
        """The jobs that have not ended, as far as is known."""
        return [i for i in self.ids if i not in self.results]


@dataclass(slots=True)
class OpenSpan:
    """A span from its opening until its parts are written."""

    number: int
    #: lines to be asked
    todo: deque[Question] = field(default_factory=deque)
    #: line number → a line in flight
    asked: dict[int, Asked] = field(default_factory=dict)
    written: list[Written] = field(default_factory=list)
    counts: Counts = field(default_factory=Counts)

    @property
    def over(self) -> bool:
        """Whether each line has ended."""
        return not self.todo and not self.asked

    def write(self, line: Written, results: tuple[Result, ...] = ()) -> None:
        """A line has ended."""
        self.written.append(line)
        one = Counts(completed=int(line.outcome == "completed"), failed=int(line.outcome == "failed"), unfinished=int(line.outcome == "unfinished"))
        self.counts = self.counts.plus(one).with_bills(results)
