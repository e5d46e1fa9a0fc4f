"""Encoder-decoders: static micro-batches, stepped one token at a time; a sequence leaves its batch when it has ended.

All rows of a micro-batch begin their answers together, so that decoder positions need no padding; the encoder reads each
prompt once, a budget of tokens in one step, so that other checkpoints' sequences go on meanwhile. Several micro-batches are in flight at
once, so that a late request does not wait for an early one's end.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Rows
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from symposia_shared.errors import BadInput, Damaged, PromptTooLong
from symposia_shared.prompts import Sampling
from symposia_shared.turns import Completion, Timing, Usage
from symposia_worker.engines.form import ServedForm
from symposia_worker.engines.lane import Lane
from symposia_worker.engines.loading import Model
from symposia_worker.engines.pair import Answers, Pair
from symposia_worker.engines.protocol import Delta, Done, Event, Failed, First, Generate, cause_of
from symposia_worker.engines.sampling import choose, generator_of
from symposia_worker.engines.sequence import Sequence

log = logging.getLogger("symposia.engine")

#: micro-batches in flight: each is a forward pass of its own
MAX_BATCHES = 4
#: prompts of one micro-batch differ in length by no more than this factor and these tokens
_RATIO, _SLACK = 2, 16
_TEXTS = ("The quick brown fox jumps over the lazy dog, and then it", "def add(a, b):\n")
_NEW_TOKENS = 6


class Translation:
    """A request: what is read, and the sequence that is written, which begins with the decoder's start token."""

    def __init__(self, source: list[int], sequence: Sequence) -> None:
        self.source, self.sequence = source, sequence
        self.generator = generator_of(sequence.sampling)


class MicroBatch:
    """Rows that begin together: read by the encoder some at a time, then written with one mask and one cache of the decoder's."""

    def __init__(self, rows: list[Translation], pair: Pair) -> None:
        self.rows, self._pair = rows, pair
        #: states (length, width) of each row that was read, until all are
        self._read: list[torch.Tensor | None] = [None] * len(rows)
        self._answers: Answers | None = None

    @property
    def unread(self) -> bool:
        """Whether it is still to be read before it can be written."""
        return self._answers is None

    @property
    def bytes(self) -> int:
        """What its states and caches hold."""
        return self._answers.bytes if self._answers else sum(x.nbytes for x in self._read if x is not None)

    def read(self, budget_tokens: int) -> None:
        """One forward pass of the encoder: over the next rows, as many as ``budget_tokens`` allow and at least one, padded to their longest."""
        chosen: list[int] = []
        longest = 0
        for n in (n for n, states in enumerate(self._read) if states is None):
            longest = max(longest, len(self.rows[n].source))
            if chosen and longest * (len(chosen) + 1) > budget_tokens:
                break
            chosen.append(n)
        ids, mask = self._padded([self.rows[n].source for n in chosen])
        for n, own in zip(chosen, self._pair.encode(ids, mask), strict=True):
            self._read[n] = own[: len(self.rows[n].source)]
        self._join()

    def _join(self) -> None:
        """Where every row was read, set their states side by side."""
        read = [states for states in self._read if states is not None]
        if read and len(read) == len(self.rows):
            mask = self._padded([t.source for t in self.rows])[1]
            self._answers, self._read = self._pair.answers(pad_sequence(read, batch_first=True), mask), []

    def _padded(self, sources: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask, each (rows, longest)."""
        longest, device = max(map(len, sources)), self._pair.device
        ids = torch.tensor([[*ids, *[self._pair.pad] * (longest - len(ids))] for ids in sources], device=device)
        return ids, torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in sources], device=device)

    def next_logits(self) -> torch.Tensor:
        """(rows, vocabulary) float32, of the token after each row's newest. All rows must be read."""
        assert self._answers is not None  # noqa: S101
        return self._answers.advance(torch.tensor([[t.sequence.ids[-1]] for t in self.rows], device=self._pair.device))

    def keep(self, rows: Rows[int]) -> None:
        """Let the other rows leave."""
        if len(rows) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in rows]
        if self._answers is None:
            self._read = [self._read[i] for i in rows]
            self._join()
        elif rows:
            self._answers.keep(rows)


class Seq2SeqLane(Lane):
    """Serves one encoder-decoder, whoever computes it. ``room`` tells the bytes its caches may take, those it holds included."""

    def __init__(self, model: Model | ServedForm, pair: Pair, *, max_rows: int, budget_tokens: int, room: Callable[[], float] = lambda: float("inf"),
                 wall: Callable[[], float] = time.time) -> None:
        self.model, self.pair, self.budget_tokens, self._room, self._wall = model, pair, budget_tokens, room, wall
        self._max_rows = self._most_rows = max_rows
        self._vocabulary = min(model.renderer.vocabulary, model.embeddings)
        self._queue: deque[Translation] = deque()
        self._batches: list[MicroBatch] = []
        self.cache_bytes_per_token = pair.cache_bytes_per_token

    def admit(self, request: Generate) -> None:
        """Render, check and queue."""
        if request.want != "completion":
            raise BadInput(f"{request.checkpoint} is an encoder-decoder ({self.model.model_type}): it answers prompts, and cannot be asked for "
                           f"{request.want}.", field="want", value=request.want, remedy="Ask a checkpoint with that capability.")
        if request.sampling.form is not None or request.sampling.logprobs is not None:
            raise BadInput(f"{request.checkpoint} is an encoder-decoder, for which typed output and log-probabilities by token are not offered.",
                           field="sampling", remedy="Leave 'form' and 'logprobs' out, or ask a decoder.")
        source = self.model.renderer.prompt_ids(request.messages, raw=request.raw, suffix=request.suffix)
        if len(source) > self.model.context:
            raise PromptTooLong(f"the prompt has {len(source)} tokens and {request.checkpoint} reads {self.model.context}.", field="messages",
                                remedy="Shorten it, or choose a checkpoint with a longer context.")
        if max(source) >= self.model.embeddings:
            raise BadInput(f"the prompt has token {max(source)}, and {request.checkpoint} knows {self.model.embeddings}.", field="messages",
                           remedy="Push the checkpoint again with the tokenizer it was trained with.")
        self._queue.append(self._translation(request.id, source, request.sampling, stream=request.stream))

    def _translation(self, request_id: str, source: list[int], sampling: Sampling, *, stream: bool = False) -> Translation:
        renderer = self.model.renderer
        return Translation(source, Sequence(request_id, [self.pair.start], sampling, renderer.text, stream=stream, stop_ids=renderer.stop_ids,
                                            max_new=min(sampling.max_tokens, self.model.context)))

    def step(self) -> list[Event]:
        """Read for one forward pass, from the next micro-batch where there is room; and write one token of every row that can be written."""
        events = self._read()
        for batch in list(self._batches):
            if not batch.unread:
                events += self._advance(batch)
        return events

    # --- reading ---

    def _read(self) -> list[Event]:
        """One forward pass of the encoder, over what is left of the micro-batch being read or the first of the next one."""
        batch = next((b for b in self._batches if b.unread), None)
        if batch is None:
            group = self._next_group()
            if not group:
                return []
            if not self._fits(group):
                return self._put_back(group)
            batch = MicroBatch(group, self.pair)
            self._batches.append(batch)
        try:
            self.forward_passes += 1
            batch.read(self.budget_tokens)
        except Exception as error:  # the seam to the model
            self._batches.remove(batch)
            return self._fell(batch.rows, error)
        return []

    def _put_back(self, group: list[Translation]) -> list[Event]:
        """Let it wait for room; one that has the device to itself would wait for ever."""
        if len(group) == 1 and not self._batches:
            needed = self._needed(group) / 1e6
            return self._failed(group, "out_of_memory", f"Reading {len(group[0].source)} tokens and answering needs {needed:.1f} MB of cache, "
                                f"and the device has {max(self._room(), 0) / 1e6:.1f} MB. Shorten the prompt or lower max_tokens.")
        self._queue.extendleft(reversed(group))
        return []

    def _next_group(self) -> list[Translation]:
        """From the front of the queue: prompts of like length, within the rows that are left."""
        places = self._most_rows - self.running
        group: list[Translation] = []
        if len(self._batches) >= MAX_BATCHES:
            return group
        while self._queue and len(group) < places:
            lengths = [len(t.source) for t in (*group, self._queue[0])]
            if max(lengths) > _RATIO * min(lengths) + _SLACK:
                break
            if group and not self._fits([*group, self._queue[0]]):
                break
            group.append(self._queue.popleft())
        return group

    def _fits(self, group: list[Translation]) -> bool:
        return self.cache_bytes + self._needed(group) <= self._room()

    def _needed(self, group: list[Translation]) -> int:
        """Bytes at the end of the longest answer. Micro-batches never grow, so what was admitted once always fits."""
        longest = max(len(t.source) for t in group)
        columns = longest + max(t.sequence.max_new for t in group)
        return len(group) * (columns * self.cache_bytes_per_token + longest * self.pair.state_bytes_per_token)

    # --- writing ---

    def _advance(self, batch: MicroBatch) -> list[Event]:
        rows = list(batch.rows)
        try:
            self.forward_passes += 1
            logits = batch.next_logits()[:, : self._vocabulary]
            chosen = choose(logits, [t.sequence.sampling for t in rows], [t.sequence.ids for t in rows], [t.generator for t in rows])
        except Exception as error:  # the seam to the model
            self._batches.remove(batch)
            return self._fell(rows, error)
        now = self._wall()
        for t, choice in zip(rows, chosen, strict=True):
            if choice.sound:
                t.sequence.take(choice.token, choice.logprob, now)
            else:
                t.sequence.fail("bug", "The model gave no finite probabilities for the next token. Try float32, or check its weights.")
        staying = [t for t in rows if not t.sequence.ended]
        self._most_rows = min(self._max_rows, self._most_rows + len(rows) - len(staying))
        self._keep(batch, staying)
        return [event for t in rows for event in _told(t)]

    def _keep(self, batch: MicroBatch, staying: list[Translation]) -> None:
        batch.keep([i for i, t in enumerate(batch.rows) if t in staying])
        if not batch.rows:
            self._batches.remove(batch)

    def _fell(self, rows: list[Translation], error: BaseException) -> list[Event]:
        """What a failed forward pass means: out of memory, its rows begin again in smaller batches; else they fail."""
        cause = cause_of(error)
        if cause == "device_lost":
            raise error
        if cause == "out_of_memory" and len(rows) > 1:
            self._most_rows = max(1, len(rows) // 2)
            self._queue.extendleft(self._again(t) for t in reversed(rows))
            return []
        log.error("a forward pass of %d sequences failed", len(rows), exc_info=error)
        return self._failed(rows, cause, f"The forward pass failed: {' '.join(str(error).split())[:300]}.")

    def _again(self, t: Translation) -> Translation:
        """The same request from its beginning. What was streamed is not streamed again: the same draws give the same tokens."""
        s = t.sequence
        fresh = self._translation(s.id, t.source, s.sampling, stream=s.stream)
        fresh.generator.manual_seed(t.generator.initial_seed())
        fresh.sequence._told, fresh.sequence.first_told = s._told, s.first_told
        return fresh

    def _failed(self, rows: list[Translation], cause: Any, message: str) -> list[Event]:
        for t in rows:
            t.sequence.fail(cause, message)
        return [event for t in rows for event in _told(t)]

    # --- the rest of a lane ---

    def drop(self, request_id: str) -> bool:
        """Take a request out, wherever it is."""
        before = len(self)
        self._queue = deque(t for t in self._queue if t.sequence.id != request_id)
        for batch in list(self._batches):
            self._keep(batch, [t for t in batch.rows if t.sequence.id != request_id])
        return len(self) < before

    def drop_all(self) -> list[str]:
        """Take every request out."""
        ids = self.ids
        self._queue.clear()
        self._batches.clear()
        return ids

    def self_test(self) -> None:
        """Raises Damaged where a token of a short batched run is not the best of a plain forward over its prefix."""
        rows = [self._translation(text, self._prompt(text), Sampling()) for text in _TEXTS]
        batch = MicroBatch(rows, self.pair)
        while batch.unread:
            batch.read(self.budget_tokens)
        for _ in range(max(1, min(_NEW_TOKENS, self.model.context // 4))):
            for t, choice in zip(rows, choose(batch.next_logits()[:, : self._vocabulary], [t.sequence.sampling for t in rows],
                                              [t.sequence.ids for t in rows], [t.generator for t in rows]), strict=True):
                t.sequence.ids.append(choice.token)
        for t in rows:
            self._compare(t)

    def _prompt(self, text: str) -> list[int]:
        ids = [i for i in self.model.renderer.tokenizer(text)["input_ids"] if i < self.model.embeddings]
        return ids[: self.model.context] or [0]

    def _compare(self, t: Translation) -> None:
        logits = self.pair.scores(t.source, t.sequence.ids[:-1])[:, : self._vocabulary]
        written = torch.tensor(t.sequence.ids[1:], device=logits.device)
        behind = float((logits.max(-1).values - logits.gather(1, written[:, None]).squeeze(1)).max())
        if not behind <= self.pair.tolerance:
            raise Damaged(f"{self.model.checkpoint} ({self.model.model_type}) failed its self-test: batched decoding chose a token {behind:.3g} "
                          "below the best logit of a single forward. It is not served; verify it and pull it again.")

    @property
    def ids(self) -> list[str]:
        """Of what is in flight."""
        return [t.sequence.id for t in (*(t for b in self._batches for t in b.rows), *self._queue)]

    @property
    def running(self) -> int:
        """Sequences being read or written."""
        return sum(len(b.rows) for b in self._batches)

    @property
    def waiting(self) -> deque[Translation]:
        """Requests that are not read yet."""
        return self._queue

    @property
    def cache_bytes(self) -> int:
        """What the micro-batches hold, and may still come to hold."""
        return sum(max(b.bytes, self._needed(b.rows)) for b in self._batches)

    def __len__(self) -> int:
        return self.running + len(self._queue)


def _told(t: Translation) -> list[Event]:
    """What a sequence's last step means to the one who asked."""
    s, events = t.sequence, list[Event]()
    if s.first_at is not None and not s.first_told:
        s.first_told = True
        events.append(First(id=s.id, at=s.first_at))
    if s.stream and (text := s.fresh_text()):
        events.append(Delta(id=s.id, text=text))
    if s.fault is not None:
        events.append(Failed(id=s.id, cause=s.fault[0], message=s.fault[1]))
    elif s.finish is not None:
        events.append(Done(id=s.id, completion=Completion(
            text=s.text, finish_reason=s.finish, logprob_mean=s.logprob_mean,
            usage=Usage(prompt_tokens=len(t.source), completion_tokens=s.new_tokens),
            timing=Timing(first_token_at=s.first_at, last_token_at=s.last_at))))
    return events
