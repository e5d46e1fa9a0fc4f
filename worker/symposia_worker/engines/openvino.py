"""The openvino engine: exported forms under OpenVINO GenAI's continuous batching, the fast path of a CPU.

``exact`` gives torch's greedy float32 tokens, ``fast`` runs on 8-bit weights. torch is not imported here.
"""

from __future__ import annotations

import ctypes
import gc
import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from collections.abc import Sequence as Events
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from symposia_shared.errors import BadInput, Damaged, PromptTooLong, Unavailable
from symposia_shared.turns import Completion, Timing, TokenLogprob, Usage
from symposia_worker.engines.paged import BLOCK_TOKENS, Paged, Piece
from symposia_worker.engines.protocol import Delta, Done, Event, Failed, First, Generate, Load, Loaded, Mode, cause_of
from symposia_worker.engines.runtime import MODEL_BIN, MODEL_XML, cache_bytes_per_token
from symposia_worker.engines.sequence import Sequence
from symposia_worker.families import Renderer, family_of

log = logging.getLogger("symposia.engine")

#: sequences that share a forward pass
MAX_ROWS = 32
#: tokens in a forward pass: what two cores read in about a second, so that rows wait no longer and no step is taken for a hang
_MOST_CHUNK, _LEAST_CHUNK, _FLOP_PER_S = 256, 32, 1e11
#: of the memory that is left when a checkpoint has been loaded, what its cache pool may take; and the most it is given
_POOL_SHARE, _POOL_CONTEXTS = 0.5, 16


@dataclass(slots=True)
class _Asked:
    """A request in flight: its tokens so far, and its number in the pipeline."""

    sequence: Sequence
    number: int
    tokens: list[tuple[int, float]] = field(default_factory=list)


@dataclass(slots=True)
class _Resident:
    checkpoint: str
    folder: Path
    mode: Mode
    renderer: Renderer
    paged: Paged
    #: the model's own; the pool may hold less
    context: int
    #: ids from there on are not its tokenizer's, or not in its embedding
    vocabulary: int
    family: str
    bytes: int
    parameters: int
    cache_bytes_per_token: int
    asked: dict[int, _Asked] = field(default_factory=dict)

    @property
    def pool_bytes(self) -> int:
        """What its cache pool may grow to; it is held for it from the beginning."""
        return self.paged.tokens * self.cache_bytes_per_token

    @property
    def longest(self) -> int:
        """Tokens of prompt and completion together that can be served here."""
        return min(self.context, self.paged.tokens)


class OpenVINOEngine:
    """Serves a CPU within ``memory_bytes`` of weights and cache pools."""

    def __init__(self, device: str, memory_bytes: int, *, max_rows: int = MAX_ROWS) -> None:
        if not device.startswith("cpu"):
            raise Unavailable(f"the engine openvino serves a CPU, and the device is {device}. Use --engine torch there.")
        self.device, self.memory_bytes, self.max_rows = device, memory_bytes, max_rows
        self._threads = int(os.environ.get("OMP_NUM_THREADS") or 0) or os.cpu_count() or 1
        self._residents: dict[str, _Resident] = {}
        self._passes_before = 0

    # --- checkpoints ---

    def load(self, order: Load) -> Loaded:
        """Load and keep a form. Raises BadInput or Damaged."""
        began = time.monotonic()
        if order.checkpoint not in self._residents:
            if order.folder is None:
                raise BadInput(f"{order.checkpoint} has no folder.", field="folder", remedy="Pull it first.")
            self._residents[order.checkpoint] = self._made(order.checkpoint, Path(order.folder), order.mode)
        return _loaded(self._residents[order.checkpoint], time.monotonic() - began)

    def _made(self, checkpoint: str, folder: Path, mode: Mode) -> _Resident:
        if not (folder / MODEL_XML).is_file() or not (folder / MODEL_BIN).is_file():
            raise BadInput(f"{checkpoint} has no exported form in {folder}.", field="folder",
                           remedy="Export it with `symposia models export`, or serve it with --engine torch.")
        config = _config(checkpoint, folder)
        family = family_of(str(config["model_type"]))
        context = next((n for name in family.context_fields if isinstance(n := config.get(name), int) and n > 0), 0)
        if not context:
            raise BadInput(f"{checkpoint}'s config names no context length.", field="folder", remedy="Add max_position_embeddings to it.")
        size = (folder / MODEL_BIN).stat().st_size
        per_token = cache_bytes_per_token(folder, mode)
        parameters = size // (4 if mode == "exact" else 1)
        renderer = Renderer(family, _tokenizer(checkpoint, folder), eos=_eos(folder, config))
        paged = self._paged(checkpoint, folder, mode, size=size, per_token=per_token, context=context, parameters=parameters)
        resident = _Resident(checkpoint, folder, mode, renderer, paged, context=context, family=str(config["model_type"]), bytes=size,
                             vocabulary=min(renderer.vocabulary, int(config.get("vocab_size") or renderer.vocabulary)), parameters=parameters,
                             cache_bytes_per_token=per_token)
        self._try(resident)
        return resident

    def _paged(self, checkpoint: str, folder: Path, mode: Mode, *, size: int, per_token: int, context: int, parameters: int) -> Paged:
        left = self.memory_bytes - self.held_bytes - size
        most = _POOL_CONTEXTS * (context // BLOCK_TOKENS + 2)
        blocks = min(most, int(left * _POOL_SHARE) // (per_token * BLOCK_TOKENS))
        if blocks < 2:
            raise BadInput(f"{checkpoint} as {mode} needs {size / 1e6:.0f} MB and a cache beside them, and {self.device} has "
                           f"{max(left + size, 0) / 1e6:.0f} MB left.", field="memory",
                           remedy="Unload another checkpoint, or give the device more memory.")
        chunk = max(_LEAST_CHUNK, min(_MOST_CHUNK, int(_FLOP_PER_S / (2 * max(parameters, 1)))))
        try:
            return Paged(folder, mode, blocks=blocks, rows=min(self.max_rows, chunk), chunk_tokens=chunk, threads=self._threads)
        except RuntimeError as error:
            raise Damaged(f"{checkpoint}'s form does not make a model ({_line(error)}). Export it again.") from None

    def _try(self, resident: _Resident) -> None:
        """One token, so that what cannot run is told by its load. Raises Damaged."""
        from symposia_shared.prompts import Sampling

        resident.paged.add([min(1, resident.vocabulary - 1)], Sampling(), max_new=1)
        try:
            tokens = [t for _ in range(4) if resident.paged.busy for piece in resident.paged.step() for t in piece.tokens]
        except RuntimeError as error:
            raise Damaged(f"{resident.checkpoint}'s form does not run ({_line(error)}). Export it again.") from None
        if len(tokens) != 1:
            raise Damaged(f"{resident.checkpoint}'s form gave {len(tokens)} tokens where one was asked. Export it again.")
        resident.paged.steps = 0

    def unload(self, checkpoint: str) -> Events[Event]:
        """Drop a form; its turns fail as ``throttled``, so that they are asked again."""
        resident = self._residents.pop(checkpoint, None)
        if resident is None:
            return ()
        self._passes_before += resident.paged.steps
        ids = [asked.sequence.id for asked in resident.asked.values()]
        del resident
        _return_memory()
        return [Failed(id=i, cause="throttled", message=f"{checkpoint} was unloaded; ask again.") for i in ids]

    # --- requests ---

    def admit(self, request: Generate) -> None:
        """Render, check and queue. Raises BadInput (PromptTooLong among it) or Unavailable."""
        resident = self._residents.get(request.checkpoint)
        if resident is None:
            raise Unavailable(f"{request.checkpoint} is not resident on {self.device}; load it, then ask again.")
        if any(asked.sequence.id == request.id for r in self._residents.values() for asked in r.asked.values()):
            raise BadInput(f"turn {request.id!r} is in flight already.", field="id", value=request.id, remedy="Ask each turn once.")
        _refuse_what_it_cannot(request)
        ids = _prompt_ids(resident.renderer, request)
        _check(resident, ids)
        sequence = Sequence(request.id, ids, request.sampling, resident.renderer.text, stream=request.stream,
                            stop_ids=resident.renderer.stop_ids, max_new=min(request.sampling.max_tokens, resident.longest - len(ids)))
        number = resident.paged.add(ids, request.sampling, max_new=sequence.max_new, stop_ids=sequence.stop_ids)
        resident.asked[number] = _Asked(sequence, number)

    def cancel(self, request_id: str) -> bool:
        """Take a request out."""
        for resident in self._residents.values():
            for number, asked in list(resident.asked.items()):
                if asked.sequence.id == request_id:
                    del resident.asked[number]
                    resident.paged.drop(number)
                    return True
        return False

    def abandon(self) -> Events[str]:
        """Drop every request."""
        ids = []
        for resident in self._residents.values():
            ids += [asked.sequence.id for asked in resident.asked.values()]
            for number in resident.asked:
                resident.paged.drop(number)
            resident.asked.clear()
        return ids

    def step(self) -> Events[Event]:
        """One forward pass of every busy checkpoint."""
        events: list[Event] = []
        for resident in self._residents.values():
            if resident.paged.busy:
                events += self._advance(resident)
        return events

    def _advance(self, resident: _Resident) -> list[Event]:
        try:
            pieces = resident.paged.step()
        except RuntimeError as error:
            return self._replaced(resident, error)
        now, events = time.time(), list[Event]()
        for piece in pieces:
            asked = resident.asked.get(piece.number)
            if asked is not None:
                events += _moved(resident, asked, piece, now)
                if asked.sequence.ended:
                    del resident.asked[piece.number]
                    if not piece.ended:
                        resident.paged.drop(piece.number)
        return events

    def _replaced(self, resident: _Resident, error: RuntimeError) -> list[Event]:
        """A pipeline that raised goes on raising: another one takes its place, and its turns are asked again."""
        log.error("the pipeline of %s failed; another one takes its place", resident.checkpoint, exc_info=error)
        cause = cause_of(error)
        asked, resident.asked = resident.asked, {}
        self._passes_before += resident.paged.steps
        old = resident.paged
        resident.paged = Paged(resident.folder, resident.mode, blocks=old.blocks, rows=self.max_rows, chunk_tokens=old.chunk_tokens,
                               threads=self._threads)
        return [Failed(id=a.sequence.id, cause=cause, message=f"The forward pass failed: {_line(error)}.") for a in asked.values()]

    # --- what it holds ---

    @property
    def busy(self) -> bool:
        """Whether anything is in flight, or the cache of what was dropped is still to be freed."""
        return any(r.paged.busy for r in self._residents.values())

    @property
    def rest_s(self) -> float:
        """Always 0: what is in flight can be advanced."""
        return 0.0

    @property
    def running(self) -> int:
        """Sequences that were in the last forward passes."""
        return sum(min(r.paged.scheduled, len(r.asked)) for r in self._residents.values())

    @property
    def waiting(self) -> int:
        """Sequences that wait for rows or memory."""
        return sum(len(r.asked) for r in self._residents.values()) - self.running

    @property
    def forward_passes(self) -> int:
        """Forward passes so far."""
        return self._passes_before + sum(r.paged.steps for r in self._residents.values())

    @property
    def resident(self) -> Mapping[str, int]:
        """Bytes of weights by checkpoint."""
        return {name: r.bytes for name, r in self._residents.items()}

    @property
    def held_bytes(self) -> int:
        """Weights, and what the cache pools may grow to."""
        return sum(r.bytes + r.pool_bytes for r in self._residents.values())


def _refuse_what_it_cannot(request: Generate) -> None:
    """Raises BadInput naming what OpenVINO GenAI cannot do, before any decode."""
    remedy = "Serve the checkpoint with --engine torch for this."
    if request.want != "completion":
        raise BadInput(f"the engine openvino gives completions, not {request.want}s.", field="want", value=request.want, remedy=remedy)
    if request.sampling.form is not None:
        raise BadInput(f"the engine openvino does not enforce a {request.sampling.form.kind}.", field="form", remedy=remedy)
    if request.sampling.logprobs:
        raise BadInput("the engine openvino reports the log-probability of the chosen token only.", field="logprobs",
                       value=request.sampling.logprobs, remedy=f"Ask for logprobs=0. {remedy}")
    if request.sampling.min_p >= 1.0 and request.sampling.temperature > 0:
        raise BadInput("the engine openvino takes a min_p below 1.", field="min_p", value=1.0, remedy="Give top_k=1, or temperature 0.")


def _prompt_ids(renderer: Renderer, request: Generate) -> list[int]:
    given: dict[str, Any] = {"raw": True} if request.raw else {}
    if request.suffix is not None:
        given["suffix"] = request.suffix
    return renderer.prompt_ids(request.messages, **given)


def _check(resident: _Resident, ids: Events[int]) -> None:
    """GenAI ignores what is longer than its pool, and others with it; an id outside the vocabulary gives noise. Raises BadInput."""
    if len(ids) + 1 > resident.longest:
        raise PromptTooLong(f"the prompt has {len(ids)} tokens and {resident.checkpoint} reads {resident.longest} here with its answer.",
                            field="messages", remedy="Shorten it, choose a checkpoint with a longer context, or give the device more memory.")
    if max(ids) >= resident.vocabulary:
        raise BadInput(f"the prompt has token {max(ids)}, and {resident.checkpoint} knows {resident.vocabulary}.", field="messages",
                       remedy="Push the checkpoint again with the tokenizer it was trained with.")


def _moved(resident: _Resident, asked: _Asked, piece: Piece, now: float) -> list[Event]:
    """Give a sequence its new tokens, and tell what that means to the one who asked."""
    s = asked.sequence
    for token, logprob in piece.tokens:
        if not s.ended:
            s.take(token, logprob, now)
            asked.tokens.append((token, logprob))
    if not s.ended and (piece.ignored or piece.ended):
        s.fail("out_of_memory" if piece.ignored else "bug", f"OpenVINO GenAI ended the request after {s.new_tokens} tokens without a reason.")
    events: list[Event] = []
    if s.first_at is not None and not s.first_told:
        s.first_told = True
        events.append(First(id=s.id, at=s.first_at))
    if s.stream and (text := s.fresh_text()):
        events.append(Delta(id=s.id, text=text))
    if s.fault is not None:
        events.append(Failed(id=s.id, cause=s.fault[0], message=s.fault[1]))
    elif s.finish is not None:
        events.append(Done(id=s.id, completion=_completion(asked, resident.renderer)))
    return events


def _completion(asked: _Asked, renderer: Renderer) -> Completion:
    s = asked.sequence
    reasoning, text = renderer.split_reasoning(s.text)
    wanted = s.sampling.logprobs is not None
    logprobs = tuple(TokenLogprob(token=renderer.text([t]), logprob=min(0.0, p)) for t, p in asked.tokens) if wanted else None
    return Completion(
        text=text, reasoning=reasoning, finish_reason=s.finish or "stop", logprob_mean=s.logprob_mean, logprobs=logprobs,
        usage=Usage(prompt_tokens=s.prompt_tokens, completion_tokens=s.new_tokens),
        timing=Timing(first_token_at=s.first_at, last_token_at=s.last_at),
    )


def _loaded(resident: _Resident, seconds: float) -> Loaded:
    return Loaded(checkpoint=resident.checkpoint, bytes=resident.bytes, seconds=round(seconds, 3), context=resident.longest,
                  instruct=resident.renderer.instruct, family=resident.family, parameters=resident.parameters,
                  cache_bytes_per_token=resident.cache_bytes_per_token)


def _config(checkpoint: str, folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        _ = config["model_type"]
    except (OSError, ValueError, KeyError) as error:
        raise Damaged(f"{checkpoint}'s config.json cannot be read ({_line(error)}). Export it again.") from None
    return config


def _tokenizer(checkpoint: str, folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers raises whatever a tokenizer's files make it trip over
        raise BadInput(f"{checkpoint} has no tokenizer that can be read here ({_line(error)}).", field="checkpoint",
                       remedy="Push it again with its tokenizer.json; tokenizers that are code are never run.") from None


def _eos(folder: Path, config: Mapping[str, Any]) -> list[int]:
    """The ends that configuration and generation_config name."""
    try:
        generation = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        generation = {}
    found: set[int] = set()
    for given in (config.get("eos_token_id"), generation.get("eos_token_id")):
        found.update([given] if isinstance(given, int) else given or ())
    return sorted(found)


def _return_memory() -> None:
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


def _line(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(".")
    return text if len(text) <= 240 else text[:237] + "..."
