"""The torch engine: continuous batching over transformers models, many checkpoints resident on one device.

Iteration-level scheduling after Yu et al. 2022 (Orca, OSDI '22); chunked prefill after Agrawal et al. 2023 (Sarathi,
arXiv:2308.16369). Exact: greedy float32 tokens are those of one-by-one ``generate``.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Events
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from symposia_shared.errors import BadInput, Damaged, Unavailable
from symposia_worker.engines.admission import Admission, capabilities_of, told
from symposia_worker.engines.attention import decodes_by_rows, use_rows
from symposia_worker.engines.batch import Batch
from symposia_worker.engines.encoder import EncoderLane
from symposia_worker.engines.lane import Lane
from symposia_worker.engines.loading import Model, load_model, return_memory
from symposia_worker.engines.lora import adapt
from symposia_worker.engines.norms import fuse_norms
from symposia_worker.engines.packed import pack
from symposia_worker.engines.pair import TorchPair
from symposia_worker.engines.passed import Passed
from symposia_worker.engines.prefixes import Prefixes
from symposia_worker.engines.protocol import Base, Dtype, Event, Failed, Generate, Load, Loaded
from symposia_worker.engines.selftest import self_test
from symposia_worker.engines.seq2seq import Seq2SeqLane
from symposia_worker.engines.split import is_dispatched, is_split
from symposia_worker.engines.warm import Warm, WarmKey, usual_limit

#: rows of one checkpoint's batch; beyond it, masked attention over the widest row costs more than it shares
MAX_ROWS = 32
#: of a GPU, which computes a hundred rows in the time of one
MAX_ROWS_CUDA = 256
#: the most of a device's memory that prompts' beginnings may take; they are given up first when it is short
PREFIX_SHARE = 0.1


@dataclass(slots=True)
class _Resident:
    model: Model
    batch: Batch | Lane
    #: the door of a decoder; a lane is its own
    admission: Admission | None = None
    #: of an adapter: its base's checkpoint
    base: str | None = None
    #: whether it was asked for; a base is kept for its adapters, too
    wanted: bool = True
    #: what it is known by when it has left the device
    key: WarmKey | None = None


class TorchEngine:
    """Serves ``device`` within ``memory_bytes`` of weights and caches."""

    def __init__(self, device: str, memory_bytes: int, *, max_rows: int | None = None, warm_bytes: int | None = None) -> None:
        self.device = "cpu" if device.startswith("cpu") and not is_split(device) else device
        self.memory_bytes = memory_bytes
        self.max_rows = max_rows or (MAX_ROWS_CUDA if device.startswith("cuda") else MAX_ROWS)
        self._residents: dict[str, _Resident] = {}
        self._passes_before = 0
        self._passed = Passed()
        self._prefixes = Prefixes(PREFIX_SHARE * memory_bytes)
        self._warm: Warm[tuple[Model, Admission, int]] = Warm(usual_limit(self.device) if warm_bytes is None else warm_bytes)
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise Unavailable(f"{device} was asked for, but this torch sees no CUDA device. "
                              "Install a CUDA build of torch, or use --device cpu.")

    @torch.inference_mode()
    def load(self, order: Load) -> Loaded:
        """Load, self-test and keep a checkpoint. Raises BadInput, Damaged or Unavailable."""
        began = time.monotonic()
        if order.checkpoint in self._residents:
            self._residents[order.checkpoint].wanted = True
            return _loaded(self._residents[order.checkpoint], 0.0)
        if order.folder is None:
            raise BadInput(f"{order.checkpoint} has no folder.", field="folder", remedy="Pull it first.")
        try:
            resident = self._adapted(order, order.base) if order.base else self._made(order.checkpoint, Path(order.folder), order.dtype)
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # they would keep the weights
            self._let_go()
            return_memory()
            raise
        self._residents[order.checkpoint] = resident
        return _loaded(resident, time.monotonic() - began)

    def _adapted(self, order: Load, base: Base) -> _Resident:
        """An adapter over its base, which is loaded for it where it is not resident."""
        if base.checkpoint not in self._residents:
            self._residents[base.checkpoint] = self._made(base.checkpoint, Path(base.folder), order.dtype)
            self._residents[base.checkpoint].wanted = False
        under = self._residents[base.checkpoint].model
        if under.network.dtype != getattr(torch, order.dtype):
            raise BadInput(f"{base.checkpoint} is resident in {str(under.network.dtype).removeprefix('torch.')}, and {order.checkpoint} is asked for "
                           f"in {order.dtype}.", field="dtype", value=order.dtype, remedy="Ask for both in one precision.")
        model = adapt(under, order.checkpoint, Path(order.folder or ""), room_bytes=self._room())
        self._prefixes.shrink(self._room() - model.bytes)
        batch = self._batch(model, parameters=under.parameters)
        try:
            batch.cache_bytes_per_token = self_test(model)
        except Exception:
            model.network.leave()
            raise
        return _Resident(model, batch, Admission(model), base=base.checkpoint)

    def _made(self, checkpoint: str, folder: Path, dtype: Dtype) -> _Resident:
        self._prefixes.shrink(self._room() - sum(path.stat().st_size for path in folder.glob("*.safetensors")))
        key = WarmKey(checkpoint, str(folder), dtype)
        kept = self._warm.take(key, self.device) if (self._warm.size(key) or 0) <= self._room() else None
        if kept is not None:
            model, admission, per_token = kept
            batch = self._batch(model, parameters=model.parameters)
            batch.cache_bytes_per_token = per_token
            return _Resident(model, batch, admission, key=key)
        model = load_model(checkpoint, folder, dtype=dtype, device=self.device, room_bytes=self._room())
        if model.kind != "generate":
            self._prefixes.shrink(self._room() - model.bytes)
            lane = self._lane(model)
            self._passed.once(folder, dtype, lambda: _nothing_of(lane.self_test))
            return _Resident(model, lane)
        model = _quickened(model, self._room())
        self._prefixes.shrink(self._room() - model.bytes)
        # on a GPU a test may end in another attention for the network, so that each has its own (what is kept warm comes back as it was)
        per_token = _tested(model) if self.device.startswith("cuda") else self._passed.once(folder, dtype, lambda: _tested(model))
        batch = self._batch(model, parameters=model.parameters)
        batch.cache_bytes_per_token = per_token
        return _Resident(model, batch, Admission(model), key=key)

    @torch.inference_mode()
    def unload(self, checkpoint: str) -> Events[Event]:
        """Drop a checkpoint; its turns fail as ``throttled``, so that they are asked again. A base's weights stay while it has adapters."""
        resident = self._residents.get(checkpoint)
        if resident is None:
            return ()
        ids = resident.batch.drop_all()
        resident.wanted = False
        del resident
        self._let_go()
        return_memory()
        return [Failed(id=i, cause="throttled", message=f"{checkpoint} was unloaded; ask again.") for i in ids]

    def _let_go(self) -> None:
        """Drop what nobody asked for and no adapter goes on from, adapters first."""
        while gone := [name for name, r in self._residents.items() if not r.wanted and all(o.base != name for o in self._residents.values())]:
            for name in gone:
                resident = self._residents.pop(name)
                self._passes_before += resident.batch.forward_passes
                self._prefixes.forget(name)
                if resident.base is not None:
                    resident.model.network.leave()
                elif resident.key is not None and resident.admission is not None and not is_split(self.device):
                    what = (resident.model, resident.admission, resident.batch.cache_bytes_per_token)
                    self._warm.keep(resident.key, what, resident.model.network, size=resident.model.bytes)

    def admit(self, request: Generate) -> None:
        """Render, check and queue. Raises BadInput (PromptTooLong among it) or Unavailable."""
        resident = self._residents.get(request.checkpoint)
        if resident is None:
            raise Unavailable(f"{request.checkpoint} is not resident on {self.device}; load it, then ask again.")
        if isinstance(resident.batch, Lane):
            resident.batch.admit(request)
        elif resident.admission is not None:
            resident.batch.admit(resident.admission.reading(request))

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
                for reading in resident.batch.step():
                    events += told(reading, resident.model)
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
        """Bytes of weights by checkpoint; of an adapter its own, its base's being told under the base's name."""
        return {name: r.model.bytes for name, r in self._residents.items()}

    @property
    def held(self) -> Mapping[str, int]:
        """Weights and caches by checkpoint, as they are now."""
        return {name: r.model.bytes + r.batch.cache_bytes for name, r in self._residents.items()}

    @property
    def held_bytes(self) -> int:
        """Weights, and what the caches hold now."""
        return int(self.memory_bytes - self._room())

    def _batch(self, model: Model, *, parameters: int) -> Batch:
        """``parameters``: those of a forward pass, of an adapter its base's."""
        batch = Batch(model.network, vocabulary=min(model.renderer.vocabulary, model.embeddings), max_rows=self.max_rows,
                      chunk_tokens=_chunk_tokens(parameters, self.device), cache_room=lambda: self._room() + batch.cache_bytes,
                      prefixes=self._prefixes, owner=model.checkpoint)
        return batch

    def _lane(self, model: Model) -> Lane:
        if model.kind == "embed":
            return EncoderLane(model, budget_tokens=_chunk_tokens(model.parameters, self.device))
        lane = Seq2SeqLane(model, TorchPair(model), max_rows=self.max_rows, budget_tokens=_chunk_tokens(model.parameters, self.device),
                           room=lambda: self._room() + lane.cache_bytes)
        return lane

    def _room(self) -> float:
        """Bytes neither weights nor caches take; prefixes make room for both."""
        return self.memory_bytes - sum(r.model.bytes + r.batch.cache_bytes for r in self._residents.values())


def _quickened(model: Model, room_bytes: float) -> Model:
    """The same model, its decode step faster; the self-test then tries it as it will be used. One that is split is left as it is."""
    if is_dispatched(model.network):
        return model
    use_rows(model.network)
    if model.network.device.type == "cuda":
        fuse_norms(model.network)
    return replace(model, bytes=model.bytes + pack(model.network, room_bytes=room_bytes - model.bytes))


def _nothing_of(test: Callable[[], None]) -> int:
    test()
    return 0


def _tested(model: Model) -> int:
    """``self_test``, on a GPU once more with transformers' own attention where ours, whose steps are recorded, does not pass it."""
    try:
        return self_test(model)
    except Damaged:
        if model.network.device.type != "cuda" or not decodes_by_rows(model.network):
            raise
    model.network.set_attn_implementation("sdpa")
    return self_test(model)


def _chunk_tokens(parameters: int, device: str) -> int:
    """Prompt tokens in one forward: what a device reads in about a second, so that running rows wait no longer. Fixed by the
    checkpoint's size, not by the clock, so that the same prompt is always cut alike."""
    on_cpu = device.startswith("cpu")
    flop_per_s = 1e11 if on_cpu else 2e13
    return max(32, min(512 if on_cpu else 8192, int(flop_per_s / (2 * max(parameters, 1)))))


def _loaded(resident: _Resident, seconds: float) -> Loaded:
    model = resident.model
    return Loaded(checkpoint=model.checkpoint, bytes=model.bytes, seconds=round(seconds, 3), context=model.context,
                  instruct=model.renderer.instruct, capabilities=capabilities_of(model.kind, model.renderer), family=model.model_type,
                  parameters=model.parameters, cache_bytes_per_token=resident.batch.cache_bytes_per_token)
