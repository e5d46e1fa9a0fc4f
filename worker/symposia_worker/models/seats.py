"""Which engine serves a checkpoint on a device, in which mode, and from which stored folder."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from symposia_shared.broker import queue_for
from symposia_shared.errors import BadInput, UnknownModel
from symposia_worker.engines.protocol import Dtype, EngineChoice, Loaded, Mode
from symposia_worker.models import forms
from symposia_worker.models.manifest import Manifest
from symposia_worker.models.store import ModelStore

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class EngineSeat:
    """Where a checkpoint is served. ``stored``: the id its folder has in the model store."""

    engine: str
    mode: Mode
    stored: str


@dataclass(frozen=True, slots=True)
class StoredCheckpoint:
    """A checkpoint of the model store as a device would serve it. ``bytes``: what it is expected to take there."""

    manifest: Manifest
    seat: EngineSeat
    dtype: Dtype
    bytes: int
    #: of what lies in ``seat.stored``: the checkpoint itself, or a form of it
    files: Manifest
    #: of an adapter: what its base is expected to take beside it
    base_bytes: int = 0

    @property
    def precision(self) -> str:
        """What its weights are in while it is served."""
        return "int8" if (self.seat.engine, self.seat.mode) == ("openvino", "fast") else self.dtype

    def place(self, loaded: Loaded | None = None, *, bell: str | None = None) -> dict[str, object]:
        """What a submit is told of it. Before it was ever loaded that is what its files say; what it can do is not held against it then."""
        facts = self.manifest.facts
        known: dict[str, object] = {"context": facts.context} if loaded is None else {
            "context": loaded.context, "instruct": loaded.instruct, "capabilities": list(loaded.capabilities)}
        return {"queue": queue_for(self.manifest.id), **known, "longest_token_bytes": facts.longest_token_bytes,
                "params_b": round(facts.parameters / 1e9, 4), "engine": self.seat.engine, "mode": self.seat.mode, "revision": self.files.revision,
                "base_revision": facts.adapter_of.revision if facts.adapter_of else None,
                "bytes": self.bytes if loaded is None else loaded.bytes, "precision": self.precision,
                **({"base": facts.adapter_of.id} if facts.adapter_of else {}), **({"bell": bell} if bell else {})}


def stored_checkpoint(models: ModelStore, model: str, *, device: str, engine: EngineChoice, mode: Mode,
                      dtype: Dtype = "float32") -> StoredCheckpoint:
    """A checkpoint of the store, its seat on ``device`` and its size there. Raises UnknownModel, and what ``seat_of`` raises."""
    manifest = models.manifest(model)
    if manifest is None:
        raise UnknownModel(f"{model!r} is not in the model store.", field="model", value=model, remedy=f"Put it there: symposia models pull {model}")
    seat = seat_of(models, manifest, device=device, engine=engine, mode=mode)
    if seat.engine == "torch" and dtype == "float32":
        dtype = torch_mode(seat.mode, device)[1]
    if seat.stored == manifest.id:  # torch loads what it is told to, whatever is stored
        each, stored = (4 if dtype == "float32" else 2), _bytes_of(manifest, ".safetensors")
        size = stored if manifest.facts.adapter_of else max(each * manifest.facts.parameters, stored * each // 4)
        return StoredCheckpoint(manifest, seat, dtype, size, manifest, each * manifest.facts.parameters if manifest.facts.adapter_of else 0)
    form = models.require(seat.stored)
    return StoredCheckpoint(manifest, seat, dtype, _bytes_of(form, ".bin"), form)


def _bytes_of(manifest: Manifest, suffix: str) -> int:
    return sum(f.size for f in manifest.files if f.path.endswith(suffix))


def torch_mode(mode: Mode, device: str, *, alone: bool = False) -> tuple[Mode, Dtype]:
    """The mode that torch serves a device in where ``mode`` is wished, and what it computes in then: exact on a CPU, on a GPU also ``fast``.

    ``alone``: no other engine may take its place. Raises BadInput where it has not the mode then.
    """
    had: Mode = mode if device.startswith("cuda") else "exact"
    if alone and had != mode:
        raise BadInput(f"the engine torch has the mode exact only on {device}.", field="mode", value=mode,
                       remedy="Use --engine openvino, or --mode exact; on a GPU torch has both.")
    return had, "bfloat16" if had == "fast" else "float32"


def seat_of(models: ModelStore, manifest: Manifest, *, device: str, engine: EngineChoice, mode: Mode) -> EngineSeat:
    """Where ``manifest``'s checkpoint is served on ``device``. Raises BadInput where what is asked for cannot be had.

    ``auto`` takes openvino on a CPU where the form is stored and can be served here, and torch everywhere else. On a CPU torch is exact; on a GPU
    its ``fast`` is bfloat16.
    """
    of = manifest.facts.form_of
    if of is not None:
        raise BadInput(f"{manifest.id} is a form of {of.id}.", field="model", value=manifest.id,
                       remedy=f"Serve {of.id} with --engine openvino --mode {of.mode}.")
    plain = EngineSeat("torch", torch_mode(mode, device, alone=engine == "torch")[0], manifest.id)
    if manifest.facts.adapter_of is not None and engine == "openvino":
        raise BadInput(f"{manifest.id} is a LoRA adapter of {manifest.facts.adapter_of.id}, and the engine openvino serves none.", field="engine",
                       value=engine, remedy="Use --engine auto or torch, or merge it into its base and push that.")
    if engine == "torch":
        return plain
    why = _why_not(models, manifest, device=device, mode=mode)
    if not why:
        return EngineSeat("openvino", mode, forms.form_id(manifest.id, mode))
    if engine == "openvino":
        raise BadInput(f"{manifest.id} cannot be served by openvino in the mode {mode}: {why}", field="engine", value=engine,
                       remedy="Or use --engine auto, which takes torch then.")
    if device.startswith("cpu"):
        log.info("%s is served by torch: %s", manifest.id, why)
    return plain


def _why_not(models: ModelStore, manifest: Manifest, *, device: str, mode: Mode) -> str:
    """Why openvino does not serve it here; "" where it does."""
    if not device.startswith("cpu"):
        return f"{device} is no CPU."
    if manifest.facts.adapter_of is not None:
        return f"it is a LoRA adapter of {manifest.facts.adapter_of.id}."
    if not forms.servable():
        return "openvino_genai is not installed; `pip install 'symposia[openvino]'`."
    if forms.form(models, manifest, mode) is not None:
        return ""
    made = forms.told(models, manifest)
    report = made.report(mode) if made else None
    if report is not None and report.refused:
        return report.refused
    if made is not None and made.refused:
        return made.refused
    return f"it has no form {mode} of this revision; `symposia models export {manifest.id}` makes it."
