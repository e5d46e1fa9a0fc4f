"""An exported model run as it is, keys and values in its own states: for what GenAI's batching gives no hook to.

Forms held to by masks of ours, the likeliest tokens beside each, and the log-probabilities of given texts. Rows are right-aligned; one leaves by
being left out of ``beam_idx``, one joins by being read apart and set beside the others (facts: openvino).
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from symposia_worker.engines.protocol import Mode, cause_of
from symposia_worker.engines.runtime import MODEL_XML, openvino, properties
from symposia_worker.engines.sampling import choose, generator_of
from symposia_worker.engines.scoring import Options, Scored
from symposia_worker.engines.sequence import Choice, Reading, Sequence

#: bytes of logits in one forward of several options
_LOGIT_BYTES = 1 << 27

Ints = npt.NDArray[np.int64]


@dataclass(slots=True)
class _Current:
    """What is being read: ``done`` of its tokens are in the states; then ``left`` of its options are scored behind ``prefix``."""

    reading: Reading
    done: int = 0
    left: deque[Scored] | None = None
    prefix: dict[str, Any] | None = None


class Stateful:
    """Readings of one form. ``vocabulary``: ids from there on are never chosen. ``cache_bytes``: what its states may take."""

    def __init__(self, folder: Path, mode: Mode, *, vocabulary: int, rows: int, chunk_tokens: int, threads: int, bytes_per_token: int,
                 cache_bytes: float) -> None:
        self._ov = openvino()
        core = self._ov.Core()
        settings = properties(mode, threads) | ({} if mode == "exact" else {"KV_CACHE_PRECISION": "f16"})
        compiled = core.compile_model(core.read_model(folder / MODEL_XML), "CPU", settings)
        self._inputs = {name for port in compiled.inputs for name in port.names}
        self._main, self._apart = compiled.create_infer_request(), compiled.create_infer_request()
        self.vocabulary, self.max_rows, self.chunk_tokens = vocabulary, rows, chunk_tokens
        self.bytes_per_token, self.cache_bytes = bytes_per_token, cache_bytes
        self._live: dict[str, tuple[Reading, torch.Generator | None]] = {}
        self._waiting: deque[Reading] = deque()
        self._current: _Current | None = None
        self._rows: list[Sequence] = []
        self._mask: Ints = np.zeros((0, 0), dtype=np.int64)  # (rows, width)
        self._beam: list[int] = []
        self.steps = 0

    @property
    def busy(self) -> bool:
        """Whether anything is in flight."""
        return bool(self._live)

    @property
    def ids(self) -> tuple[str, ...]:
        """Of what is in flight."""
        return tuple(self._live)

    @property
    def running(self) -> int:
        """Readings under way."""
        return len(self._rows) + (self._current is not None)

    @property
    def waiting(self) -> int:
        """Readings that wait for their turn."""
        return len(self._live) - self.running

    def holds(self, tokens: int) -> bool:
        """Whether its states may grow to so many tokens of one row, beside its reading."""
        return 2 * tokens * self.bytes_per_token <= self.cache_bytes

    def admit(self, reading: Reading) -> None:
        """Queue a reading behind the others."""
        self._live[reading.id] = (reading, generator_of(reading.sampling) if isinstance(reading, Sequence) else None)
        self._waiting.append(reading)

    def drop(self, request_id: str) -> bool:
        """Take a reading out; False where it is not here."""
        gone = self._live.pop(request_id, None)
        if gone is None:
            return False
        self._waiting = deque(r for r in self._waiting if r is not gone[0])
        if self._current is not None and self._current.reading is gone[0]:
            self._current = None
        self._keep([row for row, s in enumerate(self._rows) if s is not gone[0]])
        return True

    def drop_all(self) -> list[str]:
        """Take every reading out."""
        ids = list(self._live)
        for request_id in ids:
            self.drop(request_id)
        return ids

    def step(self) -> list[Reading]:
        """A chunk of one reading, and one token of every row; returns what got a token or ended."""
        moved = {id(r): r for r in (*self._guarded(self._read), *self._guarded(self._decode))}
        for reading in moved.values():
            if reading.ended:
                self.drop(reading.id)
        return list(moved.values())

    def _guarded(self, advance: Any) -> list[Reading]:
        """What ``advance`` moved; a forward that fails ends what was in it and no more."""
        try:
            done: list[Reading] = advance()
            return done
        except Exception as error:  # the seam to the model
            fell: list[Reading] = list(self._rows) if advance == self._decode else [self._current.reading] if self._current else []
            for reading in fell:
                if not reading.ended:
                    reading.fail(cause_of(error), f"The forward pass failed: {type(error).__name__}: {error}"[:400])
            return fell

    # --- reading ---

    def _read(self) -> list[Reading]:
        """The next chunk of the reading that is under way, or of the next one."""
        if self._current is None:
            if not self._waiting or not self._has_room(self._waiting[0]):
                return []
            self._current = _Current(self._waiting.popleft())
            self._apart.reset_state()
        current = self._current
        if current.left is not None:
            return self._score_options(current, current.left)
        reading = current.reading
        ids = reading.ids[current.done : current.done + self.chunk_tokens]
        logits = self._forward(self._apart, np.array([ids], dtype=np.int64), current.done)[0] if ids else None
        if isinstance(reading, Scored) and logits is not None:
            _take_logits(reading, logits[:, : self.vocabulary], current.done)
        current.done += len(ids)
        if current.done < len(reading.ids):
            return []
        return self._whole(current, None if logits is None else logits[-1:])

    def _whole(self, current: _Current, last: Any) -> list[Reading]:
        """Everything of a reading is in the states: ``last`` (1, vocabulary) chooses what follows."""
        reading = current.reading
        if isinstance(reading, Options):
            current.left = deque(reading.branch(None))
            current.prefix = {s.name: np.array(s.state.data) for s in self._apart.query_state()} if current.done else None
            return []
        self._current = None
        if isinstance(reading, Scored):
            reading.end(time.time())
            return [reading]
        assert isinstance(reading, Sequence)  # noqa: S101
        (choice,) = self._choose(last, [reading])
        _give(reading, choice)
        if not reading.ended:
            self._join(reading)
        return [reading]

    def _score_options(self, current: _Current, left: deque[Scored]) -> list[Reading]:
        """As many options as may be read at once, each from a copy of what all begin with."""
        options, done = current.reading, current.done
        assert isinstance(options, Options)  # noqa: S101
        longest = max(len(s.ids) - done for s in left)
        fits = min(_LOGIT_BYTES // (longest * self.vocabulary * 4), int(self.cache_bytes / 2) // ((done + longest) * self.bytes_per_token))
        group = [left.popleft() for _ in range(max(1, min(fits, len(left))))]
        ids = np.zeros((len(group), longest), dtype=np.int64)
        mask = np.zeros((len(group), done + longest), dtype=np.int64)
        for row, scored in enumerate(group):
            new = scored.ids[done:]
            ids[row, : len(new)], mask[row, : done + len(new)] = new, 1
        self._set(self._apart, current.prefix)
        logits = self._forward(self._apart, ids, done, mask=mask, beam=[0] * len(group) if done else list(range(len(group))))
        now = time.time()
        for row, scored in enumerate(group):
            _take_logits(scored, logits[row, : len(scored.ids) - done, : self.vocabulary], done)
            scored.end(now)
        if left:
            return []
        self._current = None
        options.settle()
        return [options]

    # --- rows ---

    def _decode(self) -> list[Reading]:
        """One token more for every row."""
        rows = list(self._rows)
        if not rows:
            return []
        self._mask = np.concatenate([self._mask, np.ones((len(rows), 1), dtype=np.int64)], axis=1)
        newest = np.array([[s.ids[-1]] for s in rows], dtype=np.int64)
        logits = self._forward(self._main, newest, None, mask=self._mask, beam=self._beam)[:, -1]
        self._beam = list(range(len(rows)))
        for s, choice in zip(rows, self._choose(logits, rows), strict=True):
            _give(s, choice)
        self._keep([row for row, s in enumerate(rows) if not s.ended])
        return list(rows)

    def _keep(self, rows: list[int]) -> None:
        """Leave the others out of the next forward."""
        if len(rows) < len(self._rows):
            self._rows, self._mask = [self._rows[row] for row in rows], self._mask[rows]
            self._beam = [self._beam[row] for row in rows]

    def _has_room(self, reading: Reading) -> bool:
        """Whether a reading may begin: there is a row for it, and the states stay within what they may take."""
        if not isinstance(reading, Sequence) or not self._rows:
            return True
        width = max(len(s.ids) for s in (*self._rows, reading)) + 1
        return len(self._rows) < self.max_rows and (len(self._rows) + 2) * width * self.bytes_per_token <= self.cache_bytes

    def _join(self, s: Sequence) -> None:
        """Set what was read apart beside the rows, all right-aligned."""
        new = {x.name: np.array(x.state.data) for x in self._apart.query_state()}
        length = len(s.ids) - 1
        if not self._rows:
            self._main.reset_state()
            self._set(self._main, new)
            self._mask = np.ones((1, length), dtype=np.int64)
        else:
            width = max(int(self._mask.sum(axis=1).max()), length)
            old = {x.name: np.array(x.state.data)[self._beam] for x in self._main.query_state()}  # rows that left are still in it
            self._set(self._main, {name: np.concatenate([_aligned(old[name], width), _aligned(value, width)]) for name, value in new.items()})
            mask = np.concatenate([np.zeros((1, width - length), dtype=np.int64), np.ones((1, length), dtype=np.int64)], axis=1)
            self._mask = np.concatenate([_aligned_mask(self._mask, width), mask])
        self._rows.append(s)
        self._beam = list(range(len(self._rows)))

    # --- the model ---

    def _forward(self, request: Any, ids: Ints, done: int | None, *, mask: Ints | None = None, beam: list[int] | None = None) -> npt.NDArray[np.float32]:
        """Logits (rows, places, vocabulary) of ``ids``, behind ``done`` tokens of every row, or by the mask's own places."""
        rows, places = ids.shape
        mask = np.ones((rows, (done or 0) + places), dtype=np.int64) if mask is None else mask
        positions = np.clip(mask.cumsum(axis=-1) - 1, 0, None)[:, -places:]
        given = {"input_ids": ids, "attention_mask": mask, "position_ids": positions,
                 "beam_idx": np.array(list(range(rows)) if beam is None else beam, dtype=np.int32)}
        self.steps += 1
        found: npt.NDArray[np.float32] = request.infer({k: v for k, v in given.items() if k in self._inputs}, share_inputs=False)["logits"]
        return found

    def _set(self, request: Any, values: dict[str, Any] | None) -> None:
        if values is None:
            request.reset_state()
            return
        for state in request.query_state():
            state.state = self._ov.Tensor(np.ascontiguousarray(values[state.name]))

    def _choose(self, logits: npt.NDArray[np.float32], rows: list[Sequence]) -> list[Choice]:
        generators = [g for s in rows if (g := self._live[s.id][1]) is not None]
        real = torch.from_numpy(np.ascontiguousarray(logits[:, : self.vocabulary], dtype=np.float32))
        return choose(real, [s.sampling for s in rows], [s.ids for s in rows], generators, [s.walk for s in rows])


def _give(s: Sequence, choice: Choice) -> None:
    if choice.sound:
        s.take(choice.token, choice.logprob, time.time(), choice.top)
    else:
        s.fail("bug", "The model gave no finite probabilities for the next token. Export the checkpoint again, or serve it by torch.")


def _take_logits(scored: Scored, logits: npt.NDArray[np.float32], first: int) -> None:
    values = torch.from_numpy(np.ascontiguousarray(logits, dtype=np.float32))
    scored.read(values, first, values.logsumexp(dim=-1))


def _aligned(state: npt.NDArray[Any], width: int) -> npt.NDArray[Any]:
    """A state (rows, heads, tokens, size) cut or filled on the left to ``width`` tokens."""
    state = state[:, :, -width:] if state.shape[2] > width else state
    return np.pad(state, ((0, 0), (0, 0), (width - state.shape[2], 0), (0, 0)))


def _aligned_mask(mask: Ints, width: int) -> Ints:
    mask = mask[:, -width:] if mask.shape[1] > width else mask
    return np.pad(mask, ((0, 0), (width - mask.shape[1], 0)))
