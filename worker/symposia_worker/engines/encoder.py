"""Texts to vectors: an encoder's requests in batches of like length, within a budget of tokens a forward pass."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from symposia_shared.errors import BadInput, Damaged, PromptTooLong
from symposia_shared.turns import Completion, Timing, Usage
from symposia_worker.engines.lane import Lane
from symposia_worker.engines.loading import Model, message_of
from symposia_worker.engines.protocol import Done, Event, Failed, Generate, cause_of
from symposia_worker.engines.vectors import float32_digits
from symposia_worker.families.pooling import text_ids

log = logging.getLogger("symposia.engine")

#: texts of one bucket differ in length by no more than this factor, so that little of a batch is padding
_BUCKET_RATIO = 1.25
_TEXTS = ("The quick brown fox jumps over the lazy dog.", "def add(a, b):\n    return a + b\n\n\nprint(add(1, 2))\n", "x")
#: how far two directions of the same text may be apart, by precision
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}


@dataclass(slots=True)
class _Asked:
    """A request, and the vectors of its texts as they come."""

    id: str
    tokens: int
    vectors: list[tuple[float, ...] | None]

    @property
    def complete(self) -> bool:
        return None not in self.vectors


@dataclass(slots=True)
class _Text:
    """A text that waits for its vector."""

    asked: _Asked
    place: int
    ids: list[int]
    bucket: int = field(init=False)

    def __post_init__(self) -> None:
        self.bucket = math.ceil(math.log(len(self.ids), _BUCKET_RATIO))


class EncoderLane(Lane):
    """Embeds. A text longer than the encoder reads is refused, never cut: half a text's vector would pass for the whole one's."""

    def __init__(self, model: Model, *, budget_tokens: int, wall: Callable[[], float] = time.time) -> None:
        self.model, self.budget_tokens, self._wall = model, budget_tokens, wall
        self._live: dict[str, _Asked] = {}
        self._texts: deque[_Text] = deque()

    def admit(self, request: Generate) -> None:
        """Queue each message of an embedding request as a text of its own."""
        if request.want != "embedding":
            raise BadInput(f"{request.checkpoint} is an encoder ({self.model.model_type}): it embeds texts and writes none.", field="model",
                           value=request.checkpoint, remedy="Submit an Embedding job, or ask a checkpoint that can generate.")
        rows = [self._ids(request.checkpoint, place, m.content) for place, m in enumerate(request.messages)]
        asked = _Asked(request.id, sum(map(len, rows)), [None] * len(rows))
        self._live[request.id] = asked
        self._texts.extend(_Text(asked, place, ids) for place, ids in enumerate(rows))

    def _ids(self, checkpoint: str, place: int, text: str) -> list[int]:
        if not text.strip():
            raise BadInput(f"text {place} is empty.", field=f"texts.{place}", value=text, remedy="Leave it out, or say something in it.")
        ids = text_ids(self.model.renderer.tokenizer, text)
        if len(ids) > self.model.context:
            raise PromptTooLong(f"text {place} has {len(ids)} tokens and {checkpoint} reads {self.model.context}; a text is not cut.",
                                field=f"texts.{place}", remedy="Divide it, or choose an encoder with a longer context.")
        if max(ids) >= self.model.embeddings:
            raise BadInput(f"text {place} has token {max(ids)}, and {checkpoint} knows {self.model.embeddings}.", field=f"texts.{place}",
                           remedy="Push the checkpoint again with the tokenizer it was trained with.")
        return ids

    def step(self) -> list[Event]:
        """The vectors of one batch of texts."""
        batch = self._next_batch()
        if not batch:
            return []
        self.forward_passes += 1
        try:
            vectors = vectors_of(self.model, [t.ids for t in batch])
        except Exception as error:  # the seam to the model
            return self._fell(batch, error)
        for text, vector in zip(batch, vectors, strict=True):
            text.asked.vectors[text.place] = vector
        return [self._done(asked) for asked in {id(t.asked): t.asked for t in batch}.values() if asked.complete]

    def _next_batch(self) -> list[_Text]:
        """The oldest text, and the oldest others of its bucket that fit the budget beside it."""
        if not self._texts:
            return []
        bucket = self._texts[0].bucket
        batch: list[_Text] = []
        left: deque[_Text] = deque()
        longest = 0
        for text in self._texts:
            widest = max(longest, len(text.ids))
            if text.bucket == bucket and (not batch or widest * (len(batch) + 1) <= self.budget_tokens):
                batch.append(text)
                longest = widest
            else:
                left.append(text)
        self._texts = left
        return batch

    def _fell(self, batch: list[_Text], error: BaseException) -> list[Event]:
        cause = cause_of(error)
        if cause == "device_lost":
            raise error
        if cause == "out_of_memory" and len(batch) > 1:
            self.budget_tokens = max(1, self.budget_tokens // 2)
            self._texts.extendleft(reversed(batch))
            return []
        log.error("a forward pass of %d texts failed", len(batch), exc_info=error)
        ids = list(dict.fromkeys(t.asked.id for t in batch))
        for request_id in ids:
            self.drop(request_id)
        return [Failed(id=i, cause=cause, message=f"The forward pass failed: {message_of(error)}.") for i in ids]

    def _done(self, asked: _Asked) -> Event:
        del self._live[asked.id]
        vectors = tuple(v for v in asked.vectors if v is not None)
        if not all(math.isfinite(sum(v)) for v in vectors):
            return Failed(id=asked.id, cause="bug", message="The encoder gave numbers that are not finite. Try float32, or check its weights.")
        now = self._wall()
        return Done(id=asked.id, completion=Completion(text="", vectors=vectors, usage=Usage(prompt_tokens=asked.tokens),
                                                       timing=Timing(first_token_at=now, last_token_at=now)))

    def drop(self, request_id: str) -> bool:
        """Forget a request and its texts."""
        if self._live.pop(request_id, None) is None:
            return False
        self._texts = deque(t for t in self._texts if t.asked.id != request_id)
        return True

    def drop_all(self) -> list[str]:
        """Forget every request."""
        ids = list(self._live)
        self._live.clear()
        self._texts.clear()
        return ids

    def self_test(self) -> None:
        """Three texts of different lengths together give what each gives alone. Raises Damaged."""
        rows = [text_ids(self.model.renderer.tokenizer, text)[: self.model.context] for text in _TEXTS]
        rows = [[min(i, self.model.embeddings - 1) for i in row] for row in rows]
        together = vectors_of(self.model, rows)
        alone = [vectors_of(self.model, [row])[0] for row in rows]
        apart = max(abs(a - b) for one, other in zip(together, alone, strict=True) for a, b in zip(one, other, strict=True))
        if not apart <= _TOLERANCE[self.model.network.dtype]:
            raise Damaged(f"{self.model.checkpoint} ({self.model.model_type}) failed its self-test: a text's vector is {apart:.3g} off in a "
                          "batch from what it is alone. It is not served; verify it and pull it again.")

    @property
    def running(self) -> int:
        """Requests some of whose texts have their vectors."""
        return sum(any(v is not None for v in asked.vectors) for asked in self._live.values())

    @property
    def waiting(self) -> list[str]:
        """Requests none of whose texts has been read."""
        return [i for i, asked in self._live.items() if all(v is None for v in asked.vectors)]


def vectors_of(model: Model, rows: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
    """One vector of length one per row of ids, whatever the rows beside it."""
    pad = model.network.config.pad_token_id or 0
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows], device=model.network.device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=model.network.device)
    states = model.network(input_ids=ids, attention_mask=mask).last_hidden_state.float()  # (rows, longest, width)
    vectors = torch.nn.functional.normalize(_pooled(states, mask, model.pooling.how), dim=-1)
    return [float32_digits(vector) for vector in vectors.tolist()]


def _pooled(states: torch.Tensor, mask: torch.Tensor, how: str) -> torch.Tensor:
    """(rows, width) of states (rows, tokens, width): padding has no part in it."""
    if how == "cls":
        return states[:, 0]
    if how == "last":
        return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
    kept = mask.unsqueeze(-1).bool()
    if how == "max":
        return states.masked_fill(~kept, -math.inf).amax(1)
    return states.masked_fill(~kept, 0.0).sum(1) / kept.sum(1)
