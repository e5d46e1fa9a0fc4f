"""The torch engine: continuous batching over transformers models, many checkpoints resident on one device.

Iteration-level scheduling after Yu et al. 2022 (Orca, OSDI '22); chunked prefill after Agrawal et al. 2023 (Sarathi,
arXiv:2308.16369). Exact: greedy float32 tokens are those of one-by-one ``generate``.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Mapping
from collections.abc import Sequence as Events
from dataclasses import dataclass
from pathlib import Path

import torch

from symposia_shared.errors import BadInput, PromptTooLong, Unavailable
from symposia_shared.turns import Completion, Timing, Usage
from symposia_worker.engines.batch import Batch
from symposia_worker.engines.encoder import EncoderLane
from symposia_worker.engines.lane import Lane
from symposia_worker.engines.loading import Model, load_model, return_memory
from symposia_worker.engines.protocol import Delta, Done, Dtype, Event, Failed, First, Generate, Load, Loaded
from symposia_worker.engines.selftest import self_test
from symposia_worker.engines.seq2seq import Seq2SeqLane
from symposia_worker.engines.sequence import Sequence

#: rows of one checkpoint's batch; beyond it, masked attention over the widest row costs more than it shares
MAX_ROWS = 32


@dataclass(frozen=True, slots=True)
class _Resident:
    model: Model
    batch: Batch | Lane


class TorchEngine:
    """Serves ``device`` within ``memory_bytes`` of weights and caches."""

    def __init__(self, device: str, memory_bytes: int, *, max_rows: int = MAX_ROWS) -> None:
        self.device = "cpu" if device.startswith("cpu") else device
        self.memory_bytes, self.max_rows = memory_bytes, max_rows
        self._residents: dict[str, _Resident] = {}
        self._passes_before = 0
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise Unavailable(f"{device} was asked for, but this torch sees no CUDA device. "
                              "Install a CUDA build of torch, or use --device cpu.")

    @torch.inference_mode()
    def load(self, order: Load) -> Loaded:
        """Load, self-test and keep a checkpoint. Raises BadInput, Damaged or Unavailable."""
        began = time.monotonic()
        if order.checkpoint in self._residents:
            return _loaded(self._residents[order.checkpoint], 0.0)
        if order.folder is None:
            raise BadInput(f"{order.checkpoint} has no folder.", field="folder", remedy="Pull it first.")
        try:
            resident = self._made(order.checkpoint, Path(order.folder), order.dtype)
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # they would keep the weights
            return_memory()
            raise
        self._residents[order.checkpoint] = resident
        return _loaded(resident, time.monotonic() - began)

    def _made(self, checkpoint: str, folder: Path, dtype: Dtype) -> _Resident:
        model = load_model(checkpoint, folder, dtype=dtype, device=self.device, room_bytes=self._room())
        if model.kind != "generate":
            lane = self._lane(model)
            lane.self_test()
            return _Resident(model, lane)
        batch = self._batch(model)
        batch.cache_bytes_per_token = self_test(model)
        return _Resident(model, batch)

    @torch.inference_mode()
    def unload(self, checkpoint: str) -> Events[Event]:
        """Drop a checkpoint; its turns fail as ``throttled``, so that they are asked again."""
        resident = self._residents.pop(checkpoint, None)
        if resident is None:
            return ()
        self._passes_before += resident.batch.forward_passes
        ids = resident.batch.drop_all()
        del resident
        return_memory()
        return [Failed(id=i, cause="throttled", message=f"{checkpoint} was unloaded; ask again.") for i in ids]

    def admit(self, request: Generate) -> None:
        """Render, check and queue. Raises BadInput (PromptTooLong among it) or Unavailable."""
        resident = self._residents.get(request.checkpoint)
        if resident is None:
            raise Unavailable(f"{request.checkpoint} is not resident on {self.device}; load it, then ask again.")
        if isinstance(resident.batch, Lane):
            resident.batch.admit(request)
            return
        model = resident.model
        ids = model.renderer.prompt_ids(request.messages, raw=request.raw, suffix=request.suffix)
        if len(ids) + 1 > model.context:
            raise PromptTooLong(f"the prompt has {len(ids)} tokens and {request.checkpoint} reads {model.context} with its answer.",
                                field="messages", remedy="Shorten it, or choose a checkpoint with a longer context.")
        if max(ids) >= model.embeddings:
            raise BadInput(f"the prompt has token {max(ids)}, and {request.checkpoint} knows {model.embeddings}.", field="messages",
                           remedy="Push the checkpoint again with the tokenizer it was trained with.")
        resident.batch.admit(Sequence(
            request.id, ids, request.sampling, model.renderer.text, stream=request.stream, stop_ids=model.renderer.stop_ids,
            max_new=min(request.sampling.max_tokens, model.context - len(ids)),
        ))

    @torch.inference_mode()
    def cancel(self, request_id: str) -> bool:
        """Take a sequence out of its batch."""
        return any(r.batch.drop(request_id) for r in self._residents.values())

    @torch.inference_mode()
    def abandon(self) -> Events[str]:
        """Empty every batch."""
        return [i for r in self._residents.values() for i in r.batch.drop_all()]

    @torch.inference_mode()
    def step(self) -> Events[Event]:
        """One token more for every sequence of every checkpoint, and a chunk of prompts for each."""
        events: list[Event] = []
        for resident in self._residents.values():
            if isinstance(resident.batch, Lane):
                events += resident.batch.step()
            elif resident.batch.busy:
                for sequence in resident.batch.step():
                    events += _told(sequence, resident.model)
        return events

    @property
    def busy(self) -> bool:
        """Whether anything is in flight."""
        return any(r.batch.busy for r in self._residents.values())

    @property
    def rest_s(self) -> float:
        """Always 0: what is in flight can be advanced."""
        return 0.0

    @property
    def running(self) -> int:
        """Sequences being read or decoded."""
        return sum(r.batch.running for r in self._residents.values())

    @property
    def waiting(self) -> int:
        """Sequences that wait for rows or memory."""
        return sum(len(r.batch.waiting) for r in self._residents.values())

    @property
    def forward_passes(self) -> int:
        """Forward passes so far, self-tests left out."""
        return self._passes_before + sum(r.batch.forward_passes for r in self._residents.values())

    @property
    def resident(self) -> Mapping[str, int]:
        """Bytes of weights by checkpoint."""
        return {name: r.model.bytes for name, r in self._residents.items()}

    def _batch(self, model: Model) -> Batch:
        batch = Batch(model.network, vocabulary=min(model.renderer.vocabulary, model.embeddings), max_rows=self.max_rows,
                      chunk_tokens=_chunk_tokens(model, self.device), cache_room=lambda: self._room() + batch.cache_bytes)
        return batch

    def _lane(self, model: Model) -> Lane:
        if model.kind == "embed":
            return EncoderLane(model, budget_tokens=_chunk_tokens(model, self.device))
        lane = Seq2SeqLane(model, max_rows=self.max_rows, budget_tokens=_chunk_tokens(model, self.device),
                           room=lambda: self._room() + lane.cache_bytes)
        return lane

    def _room(self) -> float:
        """Bytes neither weights nor caches take."""
        return self.memory_bytes - sum(r.model.bytes + r.batch.cache_bytes for r in self._residents.values())


def _chunk_tokens(model: Model, device: str) -> int:
    """Prompt tokens in one forward: what a device reads in about a second, so that running rows wait no longer. Fixed by the
    checkpoint's size, not by the clock, so that the same prompt is always cut alike."""
    flop_per_s = 1e11 if device == "cpu" else 2e13
    return max(32, min(512 if device == "cpu" else 8192, int(flop_per_s / (2 * max(model.parameters, 1)))))


def _told(s: Sequence, model: Model) -> list[Event]:
    """What a sequence's last step means to the one who asked."""
    events: list[Event] = []
    if s.first_at is not None and not s.first_told:
        s.first_told = True
        events.append(First(id=s.id, at=s.first_at))
    if s.stream and (text := s.fresh_text()):
        events.append(Delta(id=s.id, text=text))
    if s.fault is not None:
        events.append(Failed(id=s.id, cause=s.fault[0], message=s.fault[1]))
    elif s.finish is not None:
        events.append(Done(id=s.id, completion=_completion(s, model)))
    return events


def _completion(s: Sequence, model: Model) -> Completion:
    reasoning, text = model.renderer.split_reasoning(s.text)
    return Completion(
        text=text, reasoning=reasoning, finish_reason=s.finish or "stop", logprob_mean=s.logprob_mean,
        usage=Usage(prompt_tokens=s.prompt_tokens, completion_tokens=s.new_tokens),
        timing=Timing(first_token_at=s.first_at, last_token_at=s.last_at),
    )


def _loaded(resident: _Resident, seconds: float) -> Loaded:
    model = resident.model
    return Loaded(checkpoint=model.checkpoint, bytes=model.bytes, seconds=round(seconds, 3), context=model.context,
                  instruct=model.renderer.instruct, capabilities=model.capabilities, family=model.model_type,
                  parameters=model.parameters, cache_bytes_per_token=resident.batch.cache_bytes_per_token)
