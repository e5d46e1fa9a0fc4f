"""How large a checkpoint is in a device's memory: as a pool has measured it, else from its files, else from the catalogue."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from symposia_shared.catalogue import known
from symposia_shared.errors import BadInput
from symposia_worker.models.manifest import Manifest
from symposia_worker.placing.problem import BYTES, Demand, Precision

#: of the weights' bytes, what a plan leaves for the cache pool of each checkpoint
CACHE_SHARE = 0.15


def demand_of(model: str, *, traffic: float, precision: Precision | None, placed: Mapping[str, Mapping[str, Any]],
              manifest: Callable[[str], Manifest | None], **more: Any) -> Demand:
    """The demand for a checkpoint. Raises BadInput where neither a pool, nor the model store, nor the catalogue knows its size."""
    place = placed.get(model, {})
    if place.get("bytes") and not place.get("base") and precision in (None, place.get("precision")):
        # as it is served now, so that a plan for what runs changes no checkpoint's precision by itself
        return Demand(checkpoint=model, params_b=float(place["params_b"]), traffic=traffic, precision=precision or place.get("precision"), source="measured",
                      bytes=int(int(place["bytes"]) * (1 + CACHE_SHARE)), **more)
    stored = manifest(model)
    if stored is not None:
        return Demand(checkpoint=model, params_b=_parameters(stored) / 1e9, traffic=traffic, precision=precision, cache_share=CACHE_SHARE,
                      source="files", **more)
    entry = known(model)
    if entry is not None:
        return Demand(checkpoint=model, params_b=entry.parameters / 1e9, traffic=traffic, precision=precision, cache_share=CACHE_SHARE,
                      source="the catalogue's parameters", **more)
    raise BadInput(f"the size of {model!r} is not known: it is neither in the model store nor in the catalogue.", field="model", value=model,
                   remedy="Add it (`symposia models add`), or name its parameters (params_b) in the file.")


def _parameters(stored: Manifest) -> float:
    """As the weights' files have them; as its facts do, where they are stored in a type that is not computed in, and of a LoRA adapter: its base,
    which is loaded with it where it is not there, is among those."""
    if stored.facts.adapter_of is not None:
        return float(stored.facts.parameters)
    kept: dict[str, Precision] = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float16"}
    as_stored = kept.get(stored.facts.dtype)
    weights = sum(f.size for f in stored.files if f.path.endswith(".safetensors"))
    return weights / BYTES[as_stored] if as_stored and weights else float(stored.facts.parameters)
