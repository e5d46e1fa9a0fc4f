"""Prompts on their way into a batch: a left-padded group, read in chunks so that running rows wait for no long prompt."""

from __future__ import annotations

from collections import deque

import torch
from transformers import DynamicCache

from symposia_worker.engines.sequence import Sequence


class Prefill:
    """A group of sequences read together into a cache of its own."""

    def __init__(self, group: list[Sequence], device: torch.device) -> None:
        self.group = group
        self.length = max(len(s.ids) for s in group)
        self.done = 0
        self.cache = DynamicCache()  # of no configuration: every layer keeps all its tokens
        ids = torch.zeros(len(group), self.length, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, s in enumerate(group):
            ids[row, self.length - len(s.ids) :] = torch.tensor(s.ids)
            mask[row, self.length - len(s.ids) :] = 1
        self._ids, self._mask = ids.to(device), mask.to(device)
        self._positions = (self._mask.cumsum(-1) - 1).clamp_min(0)

    @property
    def remaining(self) -> int:
        """Tokens that are still to be read, padding included."""
        return (self.length - self.done) * len(self.group)

    @property
    def tokens(self) -> int:
        """Tokens its cache will hold, padding included."""
        return self.length * len(self.group)

    def next_chunk(self, budget: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(ids, mask, positions) of the next forward: at most ``budget`` tokens, but one column at least."""
        begin, end = self.done, min(self.length, self.done + max(1, budget // len(self.group)))
        return self._ids[:, begin:end], self._mask[:, :end], self._positions[:, begin:end]

    def read(self, columns: int) -> bool:
        """Note that ``columns`` more have been read; True when all have."""
        self.done += columns
        return self.done == self.length


def next_group(waiting: deque[Sequence], *, places: int, budget: int) -> list[Sequence]:
    """Take from the front of ``waiting`` what may be read together: at most ``places`` prompts of like length whose padded
    size is within ``budget`` tokens, the first one whatever its size."""
    group: list[Sequence] = []
    while waiting and len(group) < places:
        lengths = [len(s.ids) for s in (*group, waiting[0])]
        if group and (max(lengths) * len(lengths) > budget or max(lengths) > 2 * min(lengths) + 16):
            break
        group.append(waiting.popleft())
    return group
