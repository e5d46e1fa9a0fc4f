"""The openvino engine: exported forms under OpenVINO GenAI's continuous batching, encoder-decoders in a lane of ours: the fast path of a CPU.

``exact`` gives torch's greedy float32 tokens, ``fast`` runs on 8-bit weights. What GenAI cannot do (forms, the likeliest tokens, scores) is
done by the same exported model in a loop of ours.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from collections.abc import Sequence as Events
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from symposia_shared.errors import BadInput, Damaged, Unavailable
from symposia_worker.engines.admission import Admission, capabilities_of, told
from symposia_worker.engines.exported_pair import ExportedPair, PairResident
from symposia_worker.engines.form import ServedForm, read_form
from symposia_worker.engines.loading import line_of, return_memory
from symposia_worker.engines.paged import BLOCK_TOKENS, Paged, Piece
from symposia_worker.engines.protocol import Event, Failed, Generate, Load, Loaded, Mode, cause_of
from symposia_worker.engines.runtime import cache_bytes_per_token, is_pair, weight_files
from symposia_worker.engines.scoring import Options
from symposia_worker.engines.seq2seq import Seq2SeqLane
from symposia_worker.engines.sequence import Reading, Sequence
from symposia_worker.engines.stateful import Stateful

log = logging.getLogger("symposia.engine")

#: sequences that share a forward pass
MAX_ROWS = 32
#: GenAI 2026.4 lets several sequences write into one block where what an ended one left of it, not a whole block, begins each of them: their
#: answers then mix (docs/DECISIONS.md). The trial's single token was such a rest, and every chat begins with the same token.
PREFIX_CACHING = False
#: tokens in a forward pass: what its threads read in about a second, so that rows wait no longer and no step is taken for a hang. 8-bit weights
#: are unpacked in each pass, so that fast is 4 to 8 % faster with 512 than with 256 (docs/DECISIONS.md)
_MOST_CHUNK, _LEAST_CHUNK, _FLOP_PER_S_AND_THREAD = 512, 32, 7.5e10
#: of the memory that is left when a checkpoint has been loaded, what its cache pool may take; and the most it is given
_POOL_SHARE, _POOL_CONTEXTS = 0.5, 16
#: of what is left when the weights are held a second time, what the states of our own loop may take
_STATES_SHARE = 0.5


@dataclass(slots=True)
class _Resident:
    served: ServedForm
    admission: Admission
    folder: Path
    mode: Mode
    paged: Paged
    weights: int
    parameters: int
    cache_bytes_per_token: int
    asked: dict[int, Sequence] = field(default_factory=dict)
    #: made when it is first needed
    stateful: Stateful | None = None

    @property
    def bytes(self) -> int:
        """Of its weights, held a second time where our own loop runs."""
        return self.weights * (2 if self.stateful else 1)

    @property
    def held_bytes(self) -> int:
        """Weights, and what the cache pool and the states may grow to."""
        states = int(self.stateful.cache_bytes) if self.stateful else 0
        return self.bytes + self.paged.tokens * self.cache_bytes_per_token + states

    @property
    def busy(self) -> bool:
        """Whether it has anything to advance, or a cache to free."""
        return self.paged.busy or (self.stateful is not None and self.stateful.busy)

    @property
    def running(self) -> int:
        """Sequences that share its forward passes."""
        return min(self.paged.scheduled, len(self.asked)) + (self.stateful.running if self.stateful else 0)

    @property
    def in_flight(self) -> list[str]:
        """Ids of its requests."""
        return [s.id for s in self.asked.values()] + (list(self.stateful.ids) if self.stateful else [])

    @property
    def steps(self) -> int:
        """Forward passes so far."""
        return self.paged.steps + (self.stateful.steps if self.stateful else 0)


class OpenVINOEngine:
    """Serves a CPU within ``memory_bytes`` of weights and cache pools."""

    def __init__(self, device: str, memory_bytes: int, *, max_rows: int = MAX_ROWS) -> None:
        if not device.startswith("cpu"):
            raise Unavailable(f"the engine openvino serves a CPU, and the device is {device}. Use --engine torch there.")
        self.device, self.memory_bytes, self.max_rows = device, memory_bytes, max_rows
        self._threads = int(os.environ.get("OMP_NUM_THREADS") or 0) or os.cpu_count() or 1
        self._residents: dict[str, _Resident | PairResident] = {}
        self._passes_before = 0

    # --- checkpoints ---

    def load(self, order: Load) -> Loaded:
        """Load and keep a form. Raises BadInput or Damaged."""
        began = time.monotonic()
        if order.base is not None:
            raise BadInput(f"{order.checkpoint} is a LoRA adapter of {order.base.checkpoint}, and the engine openvino serves none.", field="engine",
                           value="openvino", remedy="Serve it with --engine torch, or merge it into its base and export that.")
        if order.checkpoint not in self._residents:
            if order.folder is None:
                raise BadInput(f"{order.checkpoint} has no folder.", field="folder", remedy="Pull it first.")
            self._residents[order.checkpoint] = self._made(order.checkpoint, Path(order.folder), order.mode)
        return _loaded(self._residents[order.checkpoint], time.monotonic() - began)

    def _made(self, checkpoint: str, folder: Path, mode: Mode) -> _Resident | PairResident:
        weights = weight_files(folder)
        if not weights:
            raise BadInput(f"{checkpoint} has no exported form in {folder}.", field="folder",
                           remedy="Export it with `symposia models export`, or serve it with --engine torch.")
        form = read_form(checkpoint, folder)
        size = sum(path.stat().st_size for path in weights)
        parameters = size // (4 if mode == "exact" else 1)
        if is_pair(folder):
            return self._pair(form, folder, mode, size=size, parameters=parameters)
        per_token = cache_bytes_per_token(folder, mode)
        paged = self._paged(checkpoint, folder, mode, size=size, per_token=per_token, context=form.context, parameters=parameters)
        served = replace(form, context=min(form.context, paged.tokens))
        resident = _Resident(served, Admission(cast(Any, served)), folder, mode, paged, weights=size, parameters=parameters,
                             cache_bytes_per_token=per_token)
        self._try(resident)
        return resident

    def _pair(self, form: ServedForm, folder: Path, mode: Mode, *, size: int, parameters: int) -> PairResident:
        """An encoder-decoder, self-tested. Raises BadInput or Damaged."""
        if size >= self.memory_bytes - self.held_bytes:
            raise self._short_of_memory(form.checkpoint, mode, size)
        try:
            pair = ExportedPair(form.checkpoint, folder, mode, threads=self._threads)
            lane = Seq2SeqLane(form, pair, max_rows=self.max_rows, budget_tokens=self._chunk_tokens(parameters),
                               room=lambda: self.memory_bytes - self.held_bytes + lane.cache_bytes)
            lane.self_test()
        except (RuntimeError, KeyError) as error:
            raise Damaged(f"{form.checkpoint}'s form does not make a model that runs ({line_of(error)}). Export it again.") from None
        return PairResident(form, lane, weights=size, parameters=parameters)

    def _chunk_tokens(self, parameters: int) -> int:
        return max(_LEAST_CHUNK, min(_MOST_CHUNK, int(_FLOP_PER_S_AND_THREAD * self._threads / (2 * max(parameters, 1)))))

    def _short_of_memory(self, checkpoint: str, mode: Mode, size: int) -> BadInput:
        return BadInput(f"{checkpoint} as {mode} needs {size / 1e6:.0f} MB and a cache beside them, and {self.device} has "
                        f"{max(self.memory_bytes - self.held_bytes, 0) / 1e6:.0f} MB left.", field="memory",
                        remedy="Unload another checkpoint, or give the device more memory.")

    def _paged(self, checkpoint: str, folder: Path, mode: Mode, *, size: int, per_token: int, context: int, parameters: int) -> Paged:
        left = self.memory_bytes - self.held_bytes - size
        most = _POOL_CONTEXTS * (context // BLOCK_TOKENS + 2)
        blocks = min(most, int(left * _POOL_SHARE) // (per_token * BLOCK_TOKENS))
        if blocks < 2:
            raise self._short_of_memory(checkpoint, mode, size)
        chunk = self._chunk_tokens(parameters)
        try:
            return Paged(folder, mode, blocks=blocks, rows=min(self.max_rows, chunk), chunk_tokens=chunk, threads=self._threads,
                         prefix_caching=PREFIX_CACHING)
        except RuntimeError as error:
            raise Damaged(f"{checkpoint}'s form does not make a model ({line_of(error)}). Export it again.") from None

    def _try(self, resident: _Resident) -> None:
        """One token, so that what cannot run is told by its load. Raises Damaged."""
        from symposia_shared.prompts import Sampling

        resident.paged.add([min(1, resident.served.embeddings - 1)], Sampling(), max_new=1)
        try:
            tokens = [t for _ in range(4) if resident.paged.busy for piece in resident.paged.step() for t in piece.tokens]
        except RuntimeError as error:
            raise Damaged(f"{resident.served.checkpoint}'s form does not run ({line_of(error)}). Export it again.") from None
        if len(tokens) != 1:
            raise Damaged(f"{resident.served.checkpoint}'s form gave {len(tokens)} tokens where one was asked. Export it again.")
        resident.paged.steps = 0

    def unload(self, checkpoint: str) -> Events[Event]:
        """Drop a form; its turns fail as ``throttled``, so that they are asked again."""
        resident = self._residents.pop(checkpoint, None)
        if resident is None:
            return ()
        self._passes_before += resident.steps
        ids = resident.in_flight
        del resident
        return_memory()
        return [Failed(id=i, cause="throttled", message=f"{checkpoint} was unloaded; ask again.") for i in ids]

    # --- requests ---

    def admit(self, request: Generate) -> None:
        """Render, check and queue. Raises BadInput (PromptTooLong among it) or Unavailable."""
        resident = self._residents.get(request.checkpoint)
        if resident is None:
            raise Unavailable(f"{request.checkpoint} is not resident on {self.device}; load it, then ask again.")
        if any(request.id in r.in_flight for r in self._residents.values()):
            raise BadInput(f"turn {request.id!r} is in flight already.", field="id", value=request.id, remedy="Ask each turn once.")
        if isinstance(resident, PairResident):
            resident.lane.admit(request)
            return
        reading = resident.admission.reading(request)
        if isinstance(reading, Sequence) and _suits_genai(reading):
            number = resident.paged.add(reading.ids, request.sampling, max_new=reading.max_new, stop_ids=reading.stop_ids)
            resident.asked[number] = reading
        else:
            self._stateful(resident, reading).admit(reading)

    def _stateful(self, resident: _Resident, reading: Reading) -> Stateful:
        """Our own loop over the same form, made when first needed. Raises BadInput where the device has no room for it."""
        longest = max(len(reading.ids) + (reading.max_new if isinstance(reading, Sequence) else 0),
                      max((len(s.ids) for s in reading.scored), default=0) if isinstance(reading, Options) else 0)
        if resident.stateful is None:
            room, per_token = (self.memory_bytes - self.held_bytes - resident.weights) * _STATES_SHARE, _state_bytes(resident)
            if 2 * longest * per_token > room:
                raise BadInput(f"forms, scores and the likeliest tokens take the weights of {resident.served.checkpoint} a second time, and "
                               f"{self.device} has {max(self.memory_bytes - self.held_bytes, 0) / 1e6:.0f} MB left.", field="memory",
                               remedy="Give the device more memory, or serve the checkpoint with --engine torch.")
            resident.stateful = Stateful(
                resident.folder, resident.mode, vocabulary=resident.served.embeddings, rows=self.max_rows, chunk_tokens=resident.paged.chunk_tokens,
                threads=self._threads, bytes_per_token=per_token, cache_bytes=min(room, 2 * self.max_rows * resident.served.context * per_token))
        if not resident.stateful.holds(longest):
            raise BadInput(f"the request needs the states of {longest} tokens, and {self.device} has {resident.stateful.cache_bytes / 1e6:.0f} MB "
                           "for them.", field="max_tokens", remedy="Ask for fewer tokens, or give the device more memory.")
        return resident.stateful

    def cancel(self, request_id: str) -> bool:
        """Take a request out."""
        for resident in self._residents.values():
            if isinstance(resident, PairResident):
                if resident.lane.drop(request_id):
                    return True
                continue
            if resident.stateful is not None and resident.stateful.drop(request_id):
                return True
            for number, sequence in list(resident.asked.items()):
                if sequence.id == request_id:
                    del resident.asked[number]
                    resident.paged.drop(number)
                    return True
        return False

    def abandon(self) -> Events[str]:
        """Drop every request."""
        ids = [i for resident in self._residents.values() for i in resident.in_flight]
        for request_id in ids:
            self.cancel(request_id)
        return ids

    def step(self) -> Events[Event]:
        """One forward pass of every busy checkpoint."""
        events: list[Event] = []
        for resident in self._residents.values():
            if isinstance(resident, PairResident):
                events += resident.lane.step()
                continue
            if resident.paged.busy:
                events += self._advance(resident)
            if resident.stateful is not None and resident.stateful.busy:
                events += [e for reading in resident.stateful.step() for e in told(reading, cast(Any, resident.served))]
        return events

    def _advance(self, resident: _Resident) -> list[Event]:
        try:
            pieces = resident.paged.step()
        except RuntimeError as error:
            return self._replaced(resident, error)
        now, events = time.time(), list[Event]()
        for piece in pieces:
            sequence = resident.asked.get(piece.number)
            if sequence is not None:
                _take(sequence, piece, now)
                events += told(sequence, cast(Any, resident.served))
                if sequence.ended:
                    del resident.asked[piece.number]
                    if not piece.ended:
                        resident.paged.drop(piece.number)
        return events

    def _replaced(self, resident: _Resident, error: RuntimeError) -> list[Event]:
        """A pipeline that raised goes on raising: another one takes its place, and its turns are asked again."""
        log.error("the pipeline of %s failed; another one takes its place", resident.served.checkpoint, exc_info=error)
        cause = cause_of(error)
        asked, resident.asked = resident.asked, {}
        self._passes_before += resident.paged.steps
        old = resident.paged
        resident.paged = Paged(resident.folder, resident.mode, blocks=old.blocks, rows=min(self.max_rows, old.chunk_tokens), chunk_tokens=old.chunk_tokens,
                               threads=self._threads, prefix_caching=PREFIX_CACHING)
        return [Failed(id=s.id, cause=cause, message=f"The forward pass failed: {line_of(error)}.") for s in asked.values()]

    # --- what it holds ---

    @property
    def busy(self) -> bool:
        """Whether anything is in flight, or the cache of what was dropped is still to be freed."""
        return any(r.busy for r in self._residents.values())

    @property
    def rest_s(self) -> float:
        """Always 0: what is in flight can be advanced."""
        return 0.0

    @property
    def running(self) -> int:
        """Sequences that were in the last forward passes."""
        return sum(r.running for r in self._residents.values())

    @property
    def waiting(self) -> int:
        """Sequences that wait for rows or memory."""
        return sum(len(r.in_flight) for r in self._residents.values()) - self.running

    @property
    def forward_passes(self) -> int:
        """Forward passes so far."""
        return self._passes_before + sum(r.steps for r in self._residents.values())

    @property
    def resident(self) -> Mapping[str, int]:
        """Bytes of weights by checkpoint."""
        return {name: r.bytes for name, r in self._residents.items()}

    @property
    def held(self) -> Mapping[str, int]:
        """``held_bytes`` by checkpoint."""
        return {name: r.held_bytes for name, r in self._residents.items()}

    @property
    def held_bytes(self) -> int:
        """Weights, and what the caches may grow to."""
        return sum(r.held_bytes for r in self._residents.values())


def _suits_genai(s: Sequence) -> bool:
    """Whether GenAI's batching can do it: it takes no mask of ours, tells the chosen token's log-probability only, and refuses a min_p of 1."""
    sampling = s.sampling
    return s.walk is None and not sampling.logprobs and (sampling.min_p < 1.0 or sampling.temperature == 0)


def _state_bytes(resident: _Resident) -> int:
    """Bytes a token takes in the states of our own loop: as in the pool, but for ``fast``, whose states are float16."""
    return resident.cache_bytes_per_token if resident.mode == "exact" else 2 * resident.cache_bytes_per_token


def _take(s: Sequence, piece: Piece, now: float) -> None:
    """Give a sequence its new tokens. What GenAI ends without its own end having come is a fault, and told."""
    for token, logprob in piece.tokens:
        if not s.ended:
            s.take(token, logprob, now)
    if not s.ended and (piece.ignored or piece.ended):
        s.fail("out_of_memory" if piece.ignored else "bug", f"OpenVINO GenAI ended the request after {s.new_tokens} tokens without a reason.")


def _loaded(resident: _Resident | PairResident, seconds: float) -> Loaded:
    return Loaded(checkpoint=resident.served.checkpoint, bytes=resident.bytes, seconds=round(seconds, 3), context=resident.served.context,
                  instruct=resident.served.renderer.instruct, capabilities=capabilities_of(resident.served.kind, resident.served.renderer),
                  family=resident.served.model_type, parameters=resident.parameters, cache_bytes_per_token=resident.cache_bytes_per_token)
