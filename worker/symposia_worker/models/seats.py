"""Which engine serves a checkpoint on a device, in which mode, and from which stored folder."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from symposia_shared.errors import BadInput
from symposia_worker.engines.protocol import EngineChoice, Mode
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


def seat_of(models: ModelStore, manifest: Manifest, *, device: str, engine: EngineChoice, mode: Mode) -> EngineSeat:
    """Where ``manifest``'s checkpoint is served on ``device``. Raises BadInput where what is asked for cannot be had.

    ``auto`` takes openvino on a CPU where the form is stored and can be served here, and torch, which is exact, everywhere else.
    """
    of = manifest.facts.form_of
    if of is not None:
        raise BadInput(f"{manifest.id} is a form of {of.id}.", field="model", value=manifest.id,
                       remedy=f"Serve {of.id} with --engine openvino --mode {of.mode}.")
    plain = EngineSeat("torch", "exact", manifest.id)
    if manifest.facts.adapter_of is not None and engine == "openvino":
        raise BadInput(f"{manifest.id} is a LoRA adapter of {manifest.facts.adapter_of.id}, and the engine openvino serves none.", field="engine",
                       value=engine, remedy="Use --engine auto or torch, or merge it into its base and push that.")
    if engine == "torch":
        if mode != "exact":
            raise BadInput("the engine torch has the mode exact only.", field="mode", value=mode, remedy="Use --engine openvino, or --mode exact.")
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
