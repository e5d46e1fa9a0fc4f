"""The sequences of one resident checkpoint, advanced together: admitted and retired between two forward passes."""

from __future__ import annotations

import inspect
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
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
MAX_SETBACKS = 3


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
        self._generators: dict[str, torch.Generator] = {}
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
        self._generators[sequence.id] = generator_of(sequence.sampling)
        self.waiting.append(sequence)

    def drop(self, request_id: str) -> bool:
        """Take a sequence out, wherever it is; False where it is not."""
        if self._generators.pop(request_id, None) is None:
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
        ids = list(self._generators)
        self._generators.clear()
        self.waiting.clear()
        self.rows, self.prefills = [], []
        self.slots.clear()
        return ids

    def step(self) -> list[Sequence]:
        """One chunk of prompts and one token of every row; returns the sequences that got a token or ended."""
        moved = {id(s): s for s in (*self._begin(), *self._guarded(self._read_chunk), *self._guarded(self._decode))}
        for s in moved.values():
            if s.ended:
                self._generators.pop(s.id, None)
                self._most_rows = min(self.slots.max_rows, self._most_rows + 1)
        if not self.rows and not self.prefills:
            self.slots.clear()
        return list(moved.values())

    def _guarded(self, advance: Callable[[], tuple[list[Sequence], BaseException | None]]) -> list[Sequence]:
        moved, error = advance()
        if error is None:
            return moved
        cause = cause_of(error)
        if cause == "device_lost":
            raise error
        if cause != "out_of_memory":
            log.error("a forward pass of %d sequences failed", len(moved), exc_info=error)
        return [s for s in moved if not self._put_back(s, str(error), retry=cause == "out_of_memory")]

    def _put_back(self, s: Sequence, message: str, *, retry: bool) -> bool:
        """Have a sequence begin again, with what it has, after the others; a fault where that is of no use."""
        s.setbacks += 1
        if retry and s.setbacks <= MAX_SETBACKS:
            self.waiting.appendleft(s)
            return True
        if retry:
            s.fail("out_of_memory", f"The device has no memory for {len(s.ids)} tokens of this sequence: {_line(message)}. "
                                    "Shorten the prompt, lower max_tokens, or give the device more memory.")
        else:
            s.fail("bug", f"The forward pass failed: {_line(message)}.")
        return False

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

    def _read_chunk(self) -> tuple[list[Sequence], BaseException | None]:
        """The next chunk of one group; the group joins the rows with its last chunk."""
        if not self.prefills:
            return [], None
        self._chunks += 1
        oldest = self._chunks % OLDEST_EVERY == 0
        prefill = self.prefills[0] if oldest else min(self.prefills, key=lambda p: p.remaining)
        try:
            ids, mask, positions = prefill.next_chunk(self.chunk_tokens)
            logits = self._forward(ids, mask, positions, prefill.cache)
            if not prefill.read(ids.shape[1]):
                return [], None
            return self._join(prefill, logits), None
        except Exception as error:  # the seam to the model: it fails this group, or its rows, and no more
            self.prefills = [p for p in self.prefills if p is not prefill]
            joined = {s.id for s in self.rows}
            return [s for s in prefill.group if self._wanted(s) and s.id not in joined], error

    def _join(self, prefill: Prefill, logits: torch.Tensor) -> list[Sequence]:
        wanted = [(row, s) for row, s in enumerate(prefill.group) if self._wanted(s)]
        chosen = self._choose(logits[[row for row, _ in wanted]], [s for _, s in wanted])
        if self.cache_bytes_per_token == 0:
            size = sum(x.nbytes for layer in prefill.cache.layers for x in (layer.keys, layer.values))
            self.cache_bytes_per_token = size // prefill.tokens
        self.prefills.remove(prefill)
        longest = max(len(s.ids) for s in (*self.rows, *prefill.group))
        for (row, s), choice in zip(wanted, chosen, strict=True):
            if not _taken(s, choice, self._wall()):
                self.slots.join(prefill.cache.layers, row, s.cached, longest=longest)
                self.rows.append(s)
        return [s for _, s in wanted]

    # --- rows ---

    def _decode(self) -> tuple[list[Sequence], BaseException | None]:
        """One token more for every row."""
        self._make_room()
        if not self.rows:
            return [], None
        rows, slots = list(self.rows), self.slots
        try:
            longest = max(s.cached for s in rows)
            slots.reserve(len(rows), longest)
            slots.start = slots.end - longest
            device = self.model.device
            lengths = torch.tensor([s.cached for s in rows], device=device)
            mask = torch.arange(longest + 1, device=device)[None, :] >= (longest - lengths)[:, None]
            ids = torch.tensor([[s.ids[-1]] for s in rows], device=device)
            logits = self._forward(ids, mask.long(), lengths[:, None], slots.cache)
            slots.end += 1
            chosen = self._choose(logits, rows)
        except Exception as error:  # the seam to the model
            return self._after_failure(rows, error), error
        ended = [row for row, (s, choice) in enumerate(zip(rows, chosen, strict=True)) if _taken(s, choice, self._wall())]
        for row in reversed(ended):
            self._leave(row)
        return rows, None

    def _after_failure(self, rows: list[Sequence], error: BaseException) -> list[Sequence]:
        """The rows that have to leave: all, or the newer half where memory was short and halving may help."""
        keep = len(rows) // 2 if cause_of(error) == "out_of_memory" else 0
        self._most_rows = max(1, keep)
        for row in range(len(rows) - 1, keep - 1, -1):
            self._leave(row)
        if not keep:
            self.slots.clear()
        return rows[keep:]

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
        return choose(real, [s.sampling for s in rows], [s.ids for s in rows], [self._generators[s.id] for s in rows])

    def _wanted(self, s: Sequence) -> bool:
        return s.id in self._generators

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


def _line(message: str) -> str:
    text = " ".join(message.split()).rstrip(".")
    return text if len(text) <= 300 else text[:297] + "..."
