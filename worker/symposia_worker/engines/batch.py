"""The sequences of one resident checkpoint, advanced together: admitted and retired between two forward passes."""

from __future__ import annotations

import inspect
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from symposia_worker.engines.prefill import Prefill, next_group
from symposia_worker.engines.protocol import cause_of
from symposia_worker.engines.sampling import Choice, choose, generator_of
from symposia_worker.engines.sequence import Sequence
from symposia_worker.engines.slots import Slots

log = logging.getLogger("symposia.engine")

#: groups of prompts read at the same time, so that a short prompt overtakes a long one
MAX_PREFILLS = 4
#: of so many chunks one is the oldest group's, so that a long prompt gets on
OLDEST_EVERY = 4
#: times a sequence is put back for want of memory before it fails
MAX_SETBACKS = 7


class _Fallen(Exception):
    """A forward pass failed with ``error``; the sequences that ``fell`` are in no cache any more."""

    def __init__(self, error: BaseException, fell: list[Sequence]) -> None:
        super().__init__(str(error))
        self.error, self.fell = error, fell


class Batch:
    """Waiting, being read, being decoded: ``step`` moves each sequence on.

    ``vocabulary``: ids from there on are never chosen. ``chunk_tokens``: the most prompt tokens in one forward.
    ``cache_room``: bytes this batch's caches may take at the moment, its own included.
    """

    def __init__(
        self, model: Any, *, vocabulary: int, max_rows: int, chunk_tokens: int, cache_room: Callable[[], float] = lambda: float("inf"),
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.model, self.vocabulary, self.chunk_tokens = model, vocabulary, chunk_tokens
        self.waiting: deque[Sequence] = deque()
        self.prefills: list[Prefill] = []
        self.rows: list[Sequence] = []
        self.slots = Slots(max_rows)
        self.cache_bytes_per_token = 0
        self.forward_passes = 0
        self._most_rows = max_rows
        self._cache_room, self._wall = cache_room, wall
        self._chunks = 0
        self._live: dict[str, tuple[Sequence, torch.Generator]] = {}
        accepted = inspect.signature(model.forward).parameters
        self._takes_positions, self._takes_keep = "position_ids" in accepted, "logits_to_keep" in accepted

    @property
    def busy(self) -> bool:
        """Whether anything is in flight."""
        return bool(self.waiting or self.prefills or self.rows)

    @property
    def running(self) -> int:
        """Sequences being read or decoded."""
        return len(self.rows) + sum(len(p.group) for p in self.prefills)

    @property
    def cache_bytes(self) -> int:
        """What its caches hold."""
        return self.slots.bytes + sum(p.tokens for p in self.prefills) * self.cache_bytes_per_token

    def admit(self, sequence: Sequence) -> None:
        """Queue a sequence behind the others."""
        self._live[sequence.id] = (sequence, generator_of(sequence.sampling))
        self.waiting.append(sequence)

    def drop(self, request_id: str) -> bool:
        """Take a sequence out, wherever it is; False where it is not."""
        if self._live.pop(request_id, None) is None:
            return False
        self.waiting = deque(s for s in self.waiting if s.id != request_id)
        for row, s in enumerate(self.rows):
            if s.id == request_id:
                self._leave(row)
                break
        # of a group being read it is left out when the group joins
        self.prefills = [p for p in self.prefills if any(self._wanted(s) for s in p.group)]
        return True

    def drop_all(self) -> list[str]:
        """Take every sequence out, and give the caches back."""
        ids = list(self._live)
        self._live.clear()
        self.waiting.clear()
        self.rows, self.prefills = [], []
        self.slots.clear()
        return ids

    def step(self) -> list[Sequence]:
        """One chunk of prompts and one token of every row; returns the sequences that got a token or ended."""
        moved = {id(s): s for s in (*self._begin(), *self._guarded(self._read_chunk), *self._guarded(self._decode))}
        for s in moved.values():
            if s.ended:
                self._live.pop(s.id, None)
                self._most_rows = min(self.slots.max_rows, self._most_rows + 1)
        if not self.rows and not self.prefills:
            self.slots.clear()
        return list(moved.values())

    def _guarded(self, advance: Callable[[], list[Sequence]]) -> list[Sequence]:
        """What ``advance`` moved; if it fails for its sequences, those that end by it."""
        try:
            return advance()
        except _Fallen as fallen:
            error, fell = fallen.error, fallen.fell
        cause = cause_of(error)
        if cause == "device_lost":
            raise error
        if cause == "out_of_memory" and len(fell) > 1:
            self._most_rows = max(1, len(fell) // 2)
            return [s for s in fell if s.ended or not self._put_back(s, error)]
        log.error("a forward pass of %d sequences failed", len(fell), exc_info=error)
        for s in fell:
            if not s.ended:
                s.fail(cause, _refusal(s, error) if cause == "out_of_memory" else f"The forward pass failed: {_line(error)}.")
        return fell

    def _put_back(self, s: Sequence, error: BaseException) -> bool:
        """Have a sequence begin again with the tokens it has; False, and its fault, where that was tried too often."""
        s.setbacks += 1
        if s.setbacks > MAX_SETBACKS:
            s.fail("out_of_memory", _refusal(s, error))
            return False
        self.waiting.appendleft(s)
        return True

    def _all_fall(self, error: BaseException, besides: Iterable[Sequence] = ()) -> _Fallen:
        """Every row has to leave: a cache that failed half-way is no cache."""
        fell = [*self.rows, *besides]
        self.rows = []
        self.slots.clear()
        return _Fallen(error, list(dict.fromkeys(fell)))

    # --- prompts ---

    def _begin(self) -> list[Sequence]:
        """Start to read the next group where there is room; returns a sequence that can never have any."""
        if not self.waiting or len(self.prefills) >= MAX_PREFILLS:
            return []
        places = min(self._most_rows, self.slots.max_rows) - self.running
        if places <= 0:
            return []
        group = next_group(self.waiting, places=places, budget=self.chunk_tokens)
        while group and not self._has_room(group):
            if len(group) == 1 and not self.running:
                needed, room = self._needed(group), self._cache_room()
                group[0].fail("out_of_memory", f"The cache of {len(group[0].ids)} tokens needs {needed / 1e6:.1f} MB and the device has "
                                               f"{max(room, 0.0) / 1e6:.1f} MB for it. Shorten the prompt or give the device more memory.")
                return group
            self.waiting.appendleft(group.pop())
        if group:
            self.prefills.append(Prefill(group, self.model.device))
        return []

    def _has_room(self, group: list[Sequence]) -> bool:
        return not self.cache_bytes_per_token or self._needed(group) <= self._cache_room()

    def _needed(self, group: list[Sequence]) -> int:
        """Bytes the caches take once ``group`` has joined: the slots as they will be, and every prompt's own cache."""
        everyone = [*group, *(s for p in self.prefills for s in p.group), *self.rows]
        rows, width = self.slots.shape_for(len(everyone), max(len(s.ids) for s in everyone))
        reading = sum(p.tokens for p in self.prefills) + len(group) * max(len(s.ids) for s in group)
        return (rows * width + reading) * self.cache_bytes_per_token

    def _read_chunk(self) -> list[Sequence]:
        """The next chunk of one group; the group joins the rows with its last chunk."""
        if not self.prefills:
            return []
        self._chunks += 1
        oldest = self._chunks % OLDEST_EVERY == 0
        prefill = self.prefills[0] if oldest else min(self.prefills, key=lambda p: p.remaining)
        wanted = {row: s for row, s in enumerate(prefill.group) if self._wanted(s)}
        try:
            ids, mask, positions = prefill.next_chunk(self.chunk_tokens)
            logits = self._forward(ids, mask, positions, prefill.cache)
        except Exception as error:  # the seam to the model: it fails this group and no more
            self.prefills.remove(prefill)
            raise _Fallen(error, list(wanted.values())) from error
        if not prefill.read(ids.shape[1]):
            return []
        self.prefills.remove(prefill)
        try:
            self._join(prefill, wanted, logits)
        except Exception as error:
            raise self._all_fall(error, wanted.values()) from error
        return list(wanted.values())

    def _join(self, prefill: Prefill, wanted: dict[int, Sequence], logits: torch.Tensor) -> None:
        chosen = self._choose(logits[list(wanted)], list(wanted.values()))
        layers = prefill.cache.layers
        if self.cache_bytes_per_token == 0:
            self.cache_bytes_per_token = sum(x.nbytes for layer in layers for x in (layer.keys, layer.values)) // prefill.tokens
        now = self._wall()
        staying = {row: s for (row, s), choice in zip(wanted.items(), chosen, strict=True) if not _taken(s, choice, now)}
        if staying:
            longest = max(s.cached for s in (*self.rows, *staying.values()))
            self.slots.open(layers, rows=len(self.rows) + len(staying), longest=longest)
        for row, s in staying.items():
            self.slots.join(layers, row, s.cached)
            self.rows.append(s)

    # --- rows ---

    def _decode(self) -> list[Sequence]:
        """One token more for every row."""
        self._make_room()
        rows = list(self.rows)
        if not rows:
            return []
        try:
            chosen = self._choose(self._next_logits(rows), rows)
        except Exception as error:  # the seam to the model
            raise self._all_fall(error) from error
        now = self._wall()
        ended = [row for row, (s, choice) in enumerate(zip(rows, chosen, strict=True)) if _taken(s, choice, now)]
        for row in reversed(ended):
            self._leave(row)
        return rows

    def _next_logits(self, rows: list[Sequence]) -> torch.Tensor:
        longest = max(s.cached for s in rows)
        self.slots.reserve(len(rows), longest)
        self.slots.start = self.slots.end - longest
        device = self.model.device
        lengths = torch.tensor([s.cached for s in rows], device=device)
        mask = torch.arange(longest + 1, device=device)[None, :] >= (longest - lengths)[:, None]
        newest = torch.tensor([[s.ids[-1]] for s in rows], device=device)
        logits = self._forward(newest, mask.long(), lengths[:, None], self.slots.cache)
        self.slots.end += 1
        return logits

    def _make_room(self) -> None:
        """Put the newest rows back while the next column would take more than the caches may have."""
        while len(self.rows) > 1:
            longest = max(s.cached for s in self.rows)
            if self.slots.fits(len(self.rows), longest):
                return
            rows, width = self.slots.shape_for(len(self.rows), longest)
            reading = sum(p.tokens for p in self.prefills)
            if (rows * width + reading) * self.cache_bytes_per_token <= self._cache_room():
                return
            newest = self.rows[-1]
            self._leave(len(self.rows) - 1)
            self.waiting.appendleft(newest)

    def _leave(self, row: int) -> None:
        self.slots.leave(row)
        last = self.rows.pop()
        if row < len(self.rows):
            self.rows[row] = last

    # --- the model ---

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any) -> torch.Tensor:
        """Logits of the last column, (rows, vocabulary) float32."""
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "past_key_values": cache, "use_cache": True}
        if self._takes_positions:
            given["position_ids"] = positions
        if self._takes_keep:
            given["logits_to_keep"] = 1
        self.forward_passes += 1
        logits: torch.Tensor = self.model(**given).logits[:, -1].float()
        return logits

    def _choose(self, logits: torch.Tensor, rows: list[Sequence]) -> list[Choice]:
        real = logits[:, : self.vocabulary]
        return choose(real, [s.sampling for s in rows], [s.ids for s in rows], [self._live[s.id][1] for s in rows])

    def _wanted(self, s: Sequence) -> bool:
        return s.id in self._live and self._live[s.id][0] is s

    def __iter__(self) -> Iterator[Sequence]:
        """Every sequence in flight."""
        yield from self.rows
        yield from (s for p in self.prefills for s in p.group if self._wanted(s))
        yield from self.waiting


def _taken(s: Sequence, choice: Choice, now: float) -> bool:
    """Give a sequence its next token; True when that ended it."""
    if choice.sound:
        s.take(choice.token, choice.logprob, now)
    else:
        s.fail("bug", "The model gave no finite probabilities for the next token. Try another precision (float32), or check its weights.")
    return s.ended


def _refusal(s: Sequence, error: BaseException) -> str:
    return (f"The device has no memory for {len(s.ids)} tokens of this sequence: {_line(error)}. "
            "Shorten the prompt, lower max_tokens, or give the device more memory.")


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()).rstrip(".")
    return text if len(text) <= 300 else text[:297] + "..."
