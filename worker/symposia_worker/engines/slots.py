"""The key/value cache of the rows that are decoded together, right-aligned.

Every row's newest token stands in the same column, so a decode forward is exactly what ``generate`` runs on a left-padded
batch: rope, learned positions, ALiBi and local windows stay right without a change to any model. A row joins by a copy of
its prefilled keys and values; it leaves by the last row moving into its place; a step writes one column in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Layers
from contextlib import contextmanager
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

#: columns are allocated in blocks of so many tokens
BLOCK = 64


class Slots:
    """Rows of keys and values, (rows, heads, columns, head size) per layer; columns left of a row's own tokens are zero or finite.

    Invariant between steps: each of the ``rows`` live rows holds its tokens in the columns that end before ``end``.
    """

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self.rows = 0
        #: the column the next token is written to
        self.end = 0
        #: the first column a step looks at
        self.start = 0
        #: counts where keys and values lie: what was recorded of one allocation is void in the next
        self.allocation = 0
        self._height = self._width = 0
        self._column: torch.Tensor | None = None
        self.cache = Cache(layers=[])

    @contextmanager
    def whole(self, column: torch.Tensor) -> Iterator[None]:
        """Within it, a pass writes ``column`` (one index on the device) of every row and sees every column, whether live or not."""
        self._column = column
        try:
            yield
        finally:
            self._column = None

    @property
    def bytes(self) -> int:
        """What is allocated."""
        return sum(x.nbytes for layer in self.cache.layers for x in (layer.keys, layer.values) if x is not None)

    @property
    def bytes_per_token(self) -> int:
        """What one column of one row takes; 0 before anything was placed."""
        return self.bytes // (self._height * self._width) if self._height else 0

    def shape_for(self, rows: int, longest: int) -> tuple[int, int]:
        """(rows, columns) that ``reserve`` allocates when it allocates: room for half as many tokens again, and rows by doubling."""
        width = longest + max(BLOCK, longest // 2)
        height = self._height
        if rows > height:
            height = min(self.max_rows, max(rows, 2 * height))
        elif 4 * rows <= height:
            height = 2 * rows
        return height, -(-width // BLOCK) * BLOCK

    def fits(self, rows: int, longest: int) -> bool:
        """Whether ``reserve`` has nothing to do."""
        return rows <= self._height and longest <= self.end < self._width

    def reserve(self, rows: int, longest: int) -> None:
        """Make room for ``rows`` rows of up to ``longest`` tokens and one column more; moves what is there if need be."""
        if self.fits(rows, longest) or not self.cache.layers:
            return
        live = min(self.rows, rows)
        height, width = self.shape_for(rows, longest)
        keep = min(self.end, longest)  # the live rows' tokens are within it
        same = (height, width) == self.shape
        for layer in self.cache.layers:
            keys, values = (_moved(old, live, height, width, self.end, longest, keep) for old in (layer.keys, layer.values))
            if same:
                layer.keys.copy_(keys)
                layer.values.copy_(values)
            else:
                layer.keys, layer.values = keys, values
        self.allocation += not same
        self._height, self._width, self.end = height, width, longest

    def open(self, like: Layers[Any], *, rows: int, longest: int) -> None:
        """``reserve``, or allocate for layers of keys and values shaped ``like`` these."""
        if self.cache.layers:
            self.reserve(rows, longest)
            return
        self._height, self._width = self.shape_for(rows, longest)
        self.end = longest
        self.allocation += 1
        self.cache.layers = [_SlotLayer(self, like=layer) for layer in like]

    def join(self, layers: Layers[Any], sources: Layers[int], lengths: Layers[int]) -> None:
        """Append rows for which there is room: of each row of ``sources`` of a prefilled cache's layers its last columns, as many as its length."""
        rows, end, longest = slice(self.rows, self.rows + len(sources)), self.end, max(lengths)
        places: dict[torch.device, tuple[torch.Tensor, torch.Tensor]] = {}  # a split checkpoint's layers lie on several
        for mine, theirs in zip(self.cache.layers, layers, strict=True):
            device = theirs.keys.device
            if device not in places:
                foreign = torch.arange(longest)[None, :] < longest - torch.tensor(lengths)[:, None]
                places[device] = torch.tensor(sources, device=device), foreign[:, None, :, None].to(device)
            chosen, foreign = places[device]
            for to, of in ((mine.keys, theirs.keys), (mine.values, theirs.values)):
                to[rows, :, : end - longest] = 0  # 0 × NaN is NaN: no row may meet what was here, nor what stands before another's own
                to[rows, :, end - longest : end] = of[chosen, :, of.shape[2] - longest :].masked_fill_(foreign, 0)
        self.rows += len(sources)

    def leave(self, row: int) -> None:
        """Drop a row; the last row takes its number."""
        last = self.rows - 1
        if row != last:
            for layer in self.cache.layers:
                layer.keys[row, :, : self.end] = layer.keys[last, :, : self.end]
                layer.values[row, :, : self.end] = layer.values[last, :, : self.end]
        self.rows = last

    def clear(self) -> None:
        """Give all memory back."""
        self.rows = self.end = self.start = self._height = self._width = 0
        self.allocation += 1
        self.cache.layers = []

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) allocated."""
        return self._height, self._width


def _moved(old: torch.Tensor, rows: int, height: int, width: int, end: int, new_end: int, keep: int) -> torch.Tensor:
    """``old``'s first ``rows`` rows with the ``keep`` columns before ``end`` moved before ``new_end``, in a tensor of its own."""
    new = old.new_zeros(height, old.shape[1], width, old.shape[3])
    new[:rows, :, new_end - keep : new_end] = old[:rows, :, end - keep : end]
    return new


class _SlotLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, written one column at a time."""

    _layer_type = None  # transformers registers subclasses that have one in place of its own

    def __init__(self, slots: Slots, *, like: Any) -> None:
        super().__init__()
        self.slots = slots
        height, width = slots.shape
        self.keys, self.values = (x.new_zeros(height, x.shape[1], width, x.shape[3]) for x in (like.keys, like.values))
        self.is_initialized = True

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: object, **__: object) -> tuple[torch.Tensor, torch.Tensor]:
        s = self.slots
        if s._column is not None:
            return self.keys.index_copy_(2, s._column, key_states), self.values.index_copy_(2, s._column, value_states)
        self.keys[: s.rows, :, s.end : s.end + 1] = key_states
        self.values[: s.rows, :, s.end : s.end + 1] = value_states
        return self.keys[: s.rows, :, s.start : s.end + 1], self.values[: s.rows, :, s.start : s.end + 1]

    def get_seq_length(self) -> int:
        return self.slots.end - self.slots.start

    def get_mask_sizes(self, query_length: int | torch.Tensor) -> tuple[int, int]:
        # transformers before 5.10 or so passes the positions of the queries, not their number
        number = query_length if isinstance(query_length, int) else query_length.shape[0]
        return self.slots.end - self.slots.start + number, 0
