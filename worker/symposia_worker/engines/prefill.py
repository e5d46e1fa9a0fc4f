"""Prompts on their way into a batch: a left-padded group, read in chunks so that running rows wait for no long prompt."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import islice

import torch
from transformers import DynamicCache

from symposia_worker.engines.prefixes import Prefix
from symposia_worker.engines.sequence import Reading

#: waiting requests that are looked at in one step
LOOKED_AT = 256


class Line:
    """One row of a group: tokens that are read once, for one request or for several that ask the same."""

    def __init__(self, reading: Reading, prefix: Prefix | None) -> None:
        self.readings = [reading]
        self.ids = list(reading.ids)
        self.prefix = prefix if prefix is not None and prefix.tokens else None

    @property
    def rest(self) -> int:
        """Tokens that are still to be read when it begins."""
        return len(self.ids) - (self.prefix.tokens if self.prefix else 0)

    def shares(self, reading: Reading) -> bool:
        """Whether a request can be answered from this row: the same tokens, and both to be gone on with."""
        return reading.begin is None and self.readings[0].begin is None and reading.ids == self.ids


class Prefill:
    """A group of rows read together into a cache of its own; what their prefixes spare is not read."""

    def __init__(self, lines: list[Line], device: torch.device) -> None:
        self.lines = lines
        self.length = max(len(line.ids) for line in lines)
        #: the columns before it hold what the prefixes had
        self.start = self.length - max(line.rest for line in lines)
        self.done = self.start
        self.cache = DynamicCache()  # of no configuration: every layer keeps all its tokens
        ids = torch.zeros(len(lines), self.length, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, line in enumerate(lines):
            ids[row, self.pad(row) :] = torch.tensor(line.ids)
            mask[row, self.pad(row) :] = 1
        self._ids, self._mask = ids.to(device), mask.to(device)
        self._positions = (self._mask.cumsum(-1) - 1).clamp_min(0)
        if self.start:
            self._fill()

    def pad(self, row: int) -> int:
        """The column of a row's first token."""
        return self.length - len(self.lines[row].ids)

    @property
    def remaining(self) -> int:
        """Tokens that are still to be read, padding included."""
        return (self.length - self.done) * len(self.lines)

    @property
    def tokens(self) -> int:
        """Tokens its cache will hold, padding included."""
        return self.length * len(self.lines)

    @property
    def readings(self) -> list[Reading]:
        """Everyone who waits for it."""
        return [r for line in self.lines for r in line.readings]

    @property
    def scored_from(self) -> int:
        """The first column whose logits are wanted, the last one not counted."""
        return min((self.pad(row) + r.begin - 1 for row, line in enumerate(self.lines) for r in line.readings if r.begin is not None),
                   default=self.length)

    def next_chunk(self, budget: int, *, scored_budget: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(ids, mask, positions) of the next forward: at most ``budget`` tokens, ``scored_budget`` of them scored, but one column."""
        begin, rows = self.done, len(self.lines)
        end = min(self.length, begin + max(1, budget // rows), max(begin, self.scored_from) + max(1, scored_budget // rows))
        return self._ids[:, begin:end], self._mask[:, :end], self._positions[:, begin:end]

    def read(self, columns: int) -> bool:
        """Note that ``columns`` more have been read; True when all have."""
        self.done += columns
        return self.done == self.length

    def _fill(self) -> None:
        prefixes = [line.prefix for line in self.lines]
        like = next(p for p in prefixes if p is not None)
        for layer in range(like.layers):
            keys, values = like.empty(layer, len(self.lines), self.start)
            for row, prefix in enumerate(prefixes):
                if prefix is not None:
                    prefix.write(layer, keys[row], values[row], at=self.pad(row), tokens=self.start - self.pad(row))
            self.cache.update(keys, values, layer)


def next_group(
    waiting: deque[Reading], *, places: int, budget: int, prefix_of: Callable[[Reading], Prefix | None],
    holds: Callable[[Reading, list[Line]], bool] = lambda reading, lines: False, padding_is_free: bool = False,
) -> list[Line]:
    """Take from ``waiting``, first come first, what may be read together: at most ``places`` requests whose rows are of like
    length and whose padded size is within ``budget`` tokens, the first one whatever its size. Who ``holds`` is passed over.

    ``padding_is_free``: on a device on which a forward of ``budget`` tokens takes hardly longer than one of a few. Then rows need not be of
    like length, and who would make the group too large is passed over, too. Who has waited longest leads; beside it go those that fill its
    width best, so that 64 prompts of 56 to 766 tokens are read in 3 forwards of 6,476 where they took 7 as they came.
    """
    lines: list[Line] = []
    looked = list(islice(waiting, LOOKED_AT))
    known: dict[int, Line] = {}

    def line_of(reading: Reading) -> Line:
        if id(reading) not in known:
            known[id(reading)] = Line(reading, prefix_of(reading))
        return known[id(reading)]

    for reading in _filling(looked, line_of, holds) if padding_is_free else looked:
        if places <= 0:
            break
        same = next((line for line in lines if line.shares(reading)), None)
        if same is not None:
            same.readings.append(reading)
        elif holds(reading, lines):
            continue
        else:
            line = line_of(reading)
            if padding_is_free:
                if lines and not _within([*lines, line], budget):
                    continue
            elif not _alike([*lines, line], budget):
                break
            lines.append(line)
        waiting.remove(reading)
        places -= 1
    return lines


def _filling(looked: list[Reading], line_of: Callable[[Reading], Line], holds: Callable[[Reading, list[Line]], bool]) -> list[Reading]:
    """The first that may be read, then those no longer than it, the longest first, then longer ones, the shortest first."""
    leader = next((reading for reading in looked if not holds(reading, [])), None)
    if leader is None:
        return []
    most = line_of(leader).rest

    def place(reading: Reading) -> tuple[bool, bool, int]:
        rest = line_of(reading).rest
        return reading is not leader, rest > most, rest if rest > most else -rest

    return sorted(looked, key=place)


def _within(lines: list[Line], budget: int) -> bool:
    return max(line.rest for line in lines) * len(lines) <= budget


def _alike(lines: list[Line], budget: int) -> bool:
    if len(lines) == 1:
        return True
    rests, lengths = [line.rest for line in lines], [len(line.ids) for line in lines]
    return _within(lines, budget) and max(rests) <= 2 * min(rests) + 16 and max(lengths) <= 2 * min(lengths) + 16
