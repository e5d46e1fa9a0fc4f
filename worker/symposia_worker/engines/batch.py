"""The sequences of one resident checkpoint, advanced together: admitted and retired between two forward passes."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch

from symposia_worker.engines.attention import rows_of
from symposia_worker.engines.forward import Forward
from symposia_worker.engines.loading import message_of
from symposia_worker.engines.prefill import LOOKED_AT, Line, Prefill, next_group
from symposia_worker.engines.prefixes import Piece, Prefix, Prefixes
from symposia_worker.engines.protocol import cause_of
from symposia_worker.engines.recorded import Recorded
from symposia_worker.engines.sampling import choose, generator_of
from symposia_worker.engines.scoring import Options, Scored
from symposia_worker.engines.sequence import Choice, Reading, Sequence
from symposia_worker.engines.slots import Slots

log = logging.getLogger("symposia.engine")

#: groups of prompts read at the same time, so that a short prompt overtakes a long one
MAX_PREFILLS = 4
#: of so many chunks one is the oldest group's, so that a long prompt gets on
OLDEST_EVERY = 4
#: times a sequence is put back for want of memory before it fails
MAX_SETBACKS = 7
#: bytes of logits that one chunk of scored tokens may take
SCORED_BYTES = 1 << 26


class _Fallen(Exception):
    """A forward pass failed with ``error``; the sequences that ``fell`` are in no cache any more."""

    def __init__(self, error: BaseException, fell: list[Reading]) -> None:
        super().__init__(str(error))
        self.error, self.fell = error, fell


class Batch:
    """Waiting, being read, being decoded: ``step`` moves each sequence on.

    ``vocabulary``: ids from there on are never chosen. ``chunk_tokens``: the most prompt tokens in one forward.
    ``cache_room``: bytes this batch's caches may take at the moment, its own and what ``prefixes`` hold included.
    ``owner``: its checkpoint's name in ``prefixes``.
    """

    def __init__(
        self, model: Any, *, vocabulary: int, max_rows: int, chunk_tokens: int, cache_room: Callable[[], float] = lambda: float("inf"),
        prefixes: Prefixes | None = None, owner: str = "", wall: Callable[[], float] = time.time,
    ) -> None:
        self.model, self.vocabulary, self.chunk_tokens = model, vocabulary, chunk_tokens
        self.prefixes, self._owner = prefixes or Prefixes(0), owner
        self.waiting: deque[Reading] = deque()
        self.prefills: list[Prefill] = []
        self.rows: list[Sequence] = []
        self.slots = Slots(max_rows)
        self.cache_bytes_per_token = 0
        #: prompt tokens read, and such as a prefix or a twin spared
        self.tokens_read = self.tokens_spared = 0
        self._most_rows = max_rows
        self._cache_room, self._wall = cache_room, wall
        self._chunks = 0
        self._live: dict[str, tuple[Reading, torch.Generator | None]] = {}
        self._forward = Forward(model)
        self._recorded = Recorded(self._forward, self.slots) if model.device.type == "cuda" else None

    @property
    def forward_passes(self) -> int:
        """Of its model, so far."""
        return self._forward.passes

    @property
    def busy(self) -> bool:
        """Whether anything is in flight."""
        return bool(self.waiting or self.prefills or self.rows)

    @property
    def running(self) -> int:
        """Sequences being read or decoded."""
        return len(self.rows) + sum(len(p.readings) for p in self.prefills)

    @property
    def cache_bytes(self) -> int:
        """What its caches hold, and what options go on from."""
        return self.slots.bytes + sum(p.tokens for p in self.prefills) * self.cache_bytes_per_token + self._held_bytes()

    def _held_bytes(self, further: Iterable[Reading] = ()) -> int:
        """What the options that still wait go on from."""
        return sum({id(r.prefix): r.prefix.bytes for r in (*self.waiting, *further) if r.prefix is not None}.values())

    def admit(self, reading: Reading) -> None:
        """Queue a request behind the others."""
        self._live[reading.id] = (reading, generator_of(reading.sampling) if isinstance(reading, Sequence) else None)
        self.waiting.extend(reading.branch(None) if isinstance(reading, Options) and not reading.ids else [reading])

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
        self.prefills = [p for p in self.prefills if any(self._wanted(r) for r in p.readings)]
        return True

    def drop_all(self) -> list[str]:
        """Take every sequence out, and give the caches back."""
        ids = list(self._live)
        self._live.clear()
        self.waiting.clear()
        self.rows, self.prefills = [], []
        self._clear()
        return ids

    def step(self) -> list[Reading]:
        """One chunk of prompts and one token of every row; returns the requests that got a token or ended."""
        parts = (*self._begin(), *self._guarded(self._read_chunk), *self._guarded(self._decode))
        moved = {id(root): root for root in (part.root for part in parts)}
        for root in moved.values():
            if isinstance(root, Options):
                root.settle()
            if root.ended:
                self._live.pop(root.id, None)
                self._most_rows = min(self.slots.max_rows, self._most_rows + 1)
                if isinstance(root, Options):  # one that failed leaves others behind
                    self.waiting = deque(r for r in self.waiting if r.root is not root)
        if not self.rows and not self.prefills:
            self._clear()
        return list(moved.values())

    def _guarded(self, advance: Callable[[], list[Reading]]) -> list[Reading]:
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
                s.fail(cause, _refusal(s, error) if cause == "out_of_memory" else f"The forward pass failed: {message_of(error)}.")
        return fell

    def _put_back(self, s: Reading, error: BaseException) -> bool:
        """Have a sequence begin again with the tokens it has; False, and its fault, where that was tried too often."""
        s.setbacks += 1
        if s.setbacks > MAX_SETBACKS:
            s.fail("out_of_memory", _refusal(s, error))
            return False
        self.waiting.appendleft(s)
        return True

    def _all_fall(self, error: BaseException, besides: Iterable[Reading] = ()) -> _Fallen:
        """Every row has to leave: a cache that failed half-way is no cache."""
        fell: list[Reading] = [*self.rows, *besides]
        self.rows = []
        self._clear()
        return _Fallen(error, list(dict.fromkeys(fell)))

    def _clear(self) -> None:
        """Give the slots' memory back."""
        if self._recorded is not None:
            self._recorded.forget()
        self.slots.clear()

    # --- prompts ---

    def _begin(self) -> list[Reading]:
        """Start to read the next group where there is room; returns a request that can never have any."""
        self._join_twins()
        if not self.waiting or len(self.prefills) >= MAX_PREFILLS:
            return []
        lines = next_group(self.waiting, places=self._places, budget=self.chunk_tokens, prefix_of=self._prefix_of, holds=self._holds,
                           padding_is_free=self.model.device.type == "cuda")
        while lines and not self._has_room(lines):
            if len(lines) == 1 and not self.running:
                return self._refuse(lines)
            self.waiting.extendleft(reversed(lines.pop().readings))
        if lines:
            self.prefixes.shrink(self._cache_room() - self._needed(lines))
            self.prefills.append(Prefill(lines, self.model.device))
        return []

    @property
    def _places(self) -> int:
        return min(self._most_rows, self.slots.max_rows) - self.running

    def _join_twins(self) -> None:
        """Who asks what is being read for another is answered from the same row."""
        lines = [line for p in self.prefills for line in p.lines]
        for reading in list(islice(self.waiting, LOOKED_AT)) if lines else []:
            twin = next((line for line in lines if self._places > 0 and line.shares(reading)), None)
            if twin is not None:
                self.waiting.remove(reading)
                twin.readings.append(reading)

    def _prefix_of(self, reading: Reading) -> Prefix | None:
        if reading.prefix is not None:
            return reading.prefix
        return self.prefixes.find(self._owner, reading.ids, most=reading.spared)

    def _holds(self, reading: Reading, lines: list[Line]) -> bool:
        """Whether a request had better wait: what it begins with is being read for another, and will be kept."""
        if reading.prefix is not None or not self.prefixes.limit_bytes:
            return False
        others = [line.ids for line in (*lines, *(line for p in self.prefills for line in p.lines))]
        begun = max((self.prefixes.blocks_shared(reading.ids[: reading.spared], ids) for ids in others), default=0)
        if not begun:
            return False
        found = self.prefixes.find(self._owner, reading.ids, most=reading.spared)
        return begun > (found.tokens if found else 0) and self._could_keep(begun)

    def _could_keep(self, tokens: int) -> bool:
        """Whether the prefixes have room for so many: else who waits for them waits in vain."""
        room = min(self.prefixes.limit_bytes, self._cache_room() - self.cache_bytes)
        return bool(self.cache_bytes_per_token) and tokens * self.cache_bytes_per_token <= room

    def _refuse(self, lines: list[Line]) -> list[Reading]:
        needed, room = self._needed(lines), self._cache_room()
        for reading in lines[0].readings:
            reading.fail("out_of_memory", f"The cache of {len(reading.ids)} tokens needs {needed / 1e6:.1f} MB and the device has "
                                          f"{max(room, 0.0) / 1e6:.1f} MB for it. Shorten the prompt or give the device more memory.")
        return lines[0].readings

    def _has_room(self, lines: list[Line]) -> bool:
        return not self.cache_bytes_per_token or self._needed(lines) <= self._cache_room()

    def _needed(self, lines: list[Line]) -> int:
        """Bytes the caches take once ``lines`` have joined: the slots as they will be, every prompt's own cache, and what options hold."""
        everyone = [r for line in lines for r in line.readings] + [r for p in self.prefills for r in p.readings]
        joining = [r for r in everyone if isinstance(r, Sequence)] + self.rows
        rows, width = self.slots.shape_for(len(joining), max(len(s.ids) for s in joining)) if joining else (0, 0)
        reading = sum(p.tokens for p in self.prefills) + len(lines) * max(len(line.ids) for line in lines)
        return (rows * width + reading) * self.cache_bytes_per_token + self._held_bytes(everyone)

    def _read_chunk(self) -> list[Reading]:
        """The next chunk of one group; the group joins the rows with its last chunk."""
        if not self.prefills:
            return []
        self._chunks += 1
        oldest = self._chunks % OLDEST_EVERY == 0
        prefill = self.prefills[0] if oldest else min(self.prefills, key=lambda p: p.remaining)
        wanted = [(row, r) for row, line in enumerate(prefill.lines) for r in line.readings if self._wanted(r)]
        try:
            ids, mask, positions = prefill.next_chunk(self.chunk_tokens, scored_budget=SCORED_BYTES // (4 * self.vocabulary))
            begin, end = prefill.done, prefill.done + ids.shape[1]
            logits = self._forward(ids, mask, positions, prefill.cache, keep=end - max(begin, min(prefill.scored_from, end - 1)))
            self._score(prefill, wanted, logits, end)
        except Exception as error:  # the seam to the model: it fails this group and no more
            self.prefills.remove(prefill)
            raise _Fallen(error, [r for _, r in wanted]) from error
        self.tokens_read += sum(end - max(begin, prefill.pad(row)) for row in range(len(prefill.lines)) if end > prefill.pad(row))
        if not prefill.read(ids.shape[1]):
            return []
        self.prefills.remove(prefill)
        try:
            self._join(prefill, wanted, logits[:, -1])
        except Exception as error:
            raise self._all_fall(error, [r for _, r in wanted]) from error
        return [r for _, r in wanted]

    def _score(self, prefill: Prefill, wanted: list[tuple[int, Reading]], logits: torch.Tensor, end: int) -> None:
        """Read off what is scored in the last columns before ``end``. ``logits``: (rows, columns, vocabulary)."""
        scored = [(row, r) for row, r in wanted if isinstance(r, Scored)]
        if not scored or end <= prefill.scored_from:
            return
        for row, r in scored:
            mine = logits[row, :, : self.vocabulary].float()
            r.read(mine, end - logits.shape[1] - prefill.pad(row), mine.logsumexp(-1))

    def _join(self, prefill: Prefill, wanted: list[tuple[int, Reading]], logits: torch.Tensor) -> None:
        layers, now = prefill.cache.layers, self._wall()
        if self.cache_bytes_per_token == 0:
            self.cache_bytes_per_token = sum(x.nbytes for layer in layers for x in (layer.keys, layer.values)) // prefill.tokens
        self._keep_prefixes(prefill)
        self.tokens_spared += sum(len(line.ids) * len(line.readings) - (prefill.length - max(prefill.start, prefill.pad(row)))
                                  for row, line in enumerate(prefill.lines))
        for row, r in wanted:
            if isinstance(r, Scored):
                r.end(now)
            elif isinstance(r, Options):
                piece = Piece.of(layers, row, prefill.pad(row), prefill.length)
                self.waiting.extendleft(reversed(r.branch(Prefix((piece,)))))
        self._join_rows(prefill, [(row, r) for row, r in wanted if isinstance(r, Sequence)], logits, now)

    def _join_rows(self, prefill: Prefill, wanted: list[tuple[int, Sequence]], logits: torch.Tensor, now: float) -> None:
        if not wanted:
            return
        chosen = self._choose(logits[[row for row, _ in wanted]], [s for _, s in wanted])
        staying = [(row, s) for (row, s), choice in zip(wanted, chosen, strict=True) if not _taken(s, choice, now)]
        if staying:
            longest = max(s.cached for s in (*self.rows, *(s for _, s in staying)))
            self.slots.open(prefill.cache.layers, rows=len(self.rows) + len(staying), longest=longest)
            self.slots.join(prefill.cache.layers, [row for row, _ in staying], [s.cached for _, s in staying])
            self.rows += [s for _, s in staying]

    def _keep_prefixes(self, prefill: Prefill) -> None:
        if self.prefixes.limit_bytes:
            for row, line in enumerate(prefill.lines):
                if line.readings[0].prefix is None:  # an option is read once
                    self.prefixes.keep(self._owner, line.ids, prefill.cache.layers, row, prefill.pad(row),
                                       room=self._cache_room() - self._needed([line]))

    # --- rows ---

    def _decode(self) -> list[Reading]:
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
        return list(rows)

    def _next_logits(self, rows: list[Sequence]) -> torch.Tensor:
        longest = max(s.cached for s in rows)
        self.slots.reserve(len(rows), longest)
        if self._recorded is not None and (recorded := self._recorded.logits([s.ids[-1] for s in rows], [s.cached for s in rows])) is not None:
            self.slots.end += 1
            return recorded
        self.slots.start = self.slots.end - longest
        device = self.model.device
        lengths = torch.tensor([s.cached for s in rows], device=device)
        mask = torch.arange(longest + 1, device=device)[None, :] >= (longest - lengths)[:, None]
        newest = torch.tensor([[s.ids[-1]] for s in rows], device=device)
        with rows_of([s.cached + 1 for s in rows]):
            logits = self._forward(newest, mask.long(), lengths[:, None], self.slots.cache, keep=1)
        self.slots.end += 1
        return logits[:, -1]

    def _make_room(self) -> None:
        """Put the newest rows back while the next column would take more than the caches may have."""
        while len(self.rows) > 1:
            longest = max(s.cached for s in self.rows)
            if self.slots.fits(len(self.rows), longest):
                return
            rows, width = self.slots.shape_for(len(self.rows), longest)
            reading = sum(p.tokens for p in self.prefills)
            needed = (rows * width + reading) * self.cache_bytes_per_token + self._held_bytes()
            if needed <= self._cache_room():
                self.prefixes.shrink(self._cache_room() - needed)
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

    def _choose(self, logits: torch.Tensor, rows: list[Sequence]) -> list[Choice]:
        generators = [g for s in rows if (g := self._live[s.id][1]) is not None]
        return choose(logits[:, : self.vocabulary].float(), [s.sampling for s in rows], [s.ids for s in rows], generators, [s.walk for s in rows])

    def _wanted(self, r: Reading) -> bool:
        return r.id in self._live and self._live[r.id][0] is r.root and not r.root.ended

    def __iter__(self) -> Iterator[Reading]:
        """Every request in flight."""
        yield from self.rows
        yield from (r for p in self.prefills for r in p.readings if self._wanted(r))
        yield from self.waiting


def _taken(s: Sequence, choice: Choice, now: float) -> bool:
    """Give a sequence its next token; True when that ended it."""
    if choice.sound:
        s.take(choice.token, choice.logprob, now, choice.top)
    else:
        s.fail("bug", "The model gave no finite probabilities for the next token. Try another precision (float32), or check its weights.")
    return s.ended


def _refusal(s: Reading, error: BaseException) -> str:
    return (f"The device has no memory for {len(s.ids)} tokens of this sequence: {message_of(error)}. "
            "Shorten the prompt, lower max_tokens, or give the device more memory.")
