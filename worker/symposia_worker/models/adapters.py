"""LoRA adapters in the model store: checkpoints of their own that name the base, and its revision, which they go on from."""

from __future__ import annotations

from pathlib import Path

from symposia_shared import catalogue
from symposia_shared.catalogue import AdapterOf
from symposia_shared.errors import BadInput
from symposia_shared.kinds import forbids_commerce
from symposia_worker.engines.protocol import Base
from symposia_worker.families.adapters import read_adapter
from symposia_worker.models import trial
from symposia_worker.models.cache import ModelCache, shared_cache
from symposia_worker.models.manifest import Manifest
from symposia_worker.models.store import ModelStore, Progress, checkpoint_id, silent
from symposia_worker.models.weights import adapter_files, header_counts


def add_adapter(models: ModelStore, folder: Path, model: str, *, cache: Path, licence: str, base: str = "", untrained: bool = False,
                progress: Progress = silent) -> Manifest:
    """Store the adapter in ``folder`` as ``model``, tried over its base. ``base``: its id here; else what the adapter itself calls it.

    Raises BadInput where it is refused, its base is not stored, or they do not fit.
    """
    described = read_adapter(folder)
    checkpoint_id(model)
    if catalogue.known(model) is not None:
        raise BadInput(f"{model} is a checkpoint of the catalogue, and this is an adapter.", field="model", value=model, remedy="Choose another name.")
    under = _base(models, base or described.base)
    weights = header_counts(folder / "adapter_model.safetensors")
    adapter_files(folder)
    checkpoints = shared_cache(cache)
    try:
        below = checkpoints.fetch(models, under, progress=progress)
        progress(f"trying {model} over {under.id}", 0, 0)
        told = trial.adapter(folder, below, model, untrained=untrained)
    finally:
        checkpoints.release(under.id)
    facts = under.facts.model_copy(update={
        "parameters": under.facts.parameters + weights.total(), "dtype": "float32", "licence": licence,
        "non_commercial": forbids_commerce(licence) or under.facts.non_commercial, "source": f"folder:{folder.resolve().name}", "vocab": told.vocab,
        "capabilities": told.capabilities, "bits_per_byte": told.bits_per_byte, "code_bits_per_byte": told.code_bits_per_byte,
        "adapter_of": AdapterOf(id=under.id, revision=under.revision)})
    return models.push(folder, model, facts=facts, progress=progress)


def base_of(models: ModelStore, manifest: Manifest, checkpoints: ModelCache) -> Base | None:
    """The base of a stored adapter, its files fetched; None of what is no adapter. Raises BadInput where the base has changed since."""
    of = manifest.facts.adapter_of
    if of is None:
        return None
    under = models.require(of.id)
    if under.revision != of.revision:
        raise BadInput(f"{manifest.id} was made for the revision {of.revision[:12]} of {of.id}, and {under.revision[:12]} is stored.", field="model",
                       value=manifest.id, remedy="Store the base it was made for again, or push the adapter again if it suits this one.")
    return Base(checkpoint=of.id, folder=str(checkpoints.fetch(models, under)))


def _base(models: ModelStore, name: str) -> Manifest:
    """The stored checkpoint an adapter may be put on."""
    entry = catalogue.known(name)
    called = entry.id if entry is not None else name
    try:
        found = models.manifest(called)
    except BadInput:  # a path of its author's machine
        found = None
    if found is None:
        raise BadInput(f"the adapter's base {name!r} is not in the model store.", field="base", value=name,
                       remedy="Pull or push the base first, and name it by --base where it is called otherwise here.")
    if found.facts.adapter_of is not None or found.facts.form_of is not None or "generate" not in found.facts.capabilities:
        raise BadInput(f"{found.id} is no base for adapters: those are decoders as published.", field="base", value=found.id,
                       remedy="Name the checkpoint the adapter was trained on.")
    return found
