"""How large a LoRA adapter is to a plan: it may come to lie without its base, which is then loaded with it."""

from __future__ import annotations

from checkpoints import facts
from symposia_worker.models.manifest import Manifest, StoredFile
from symposia_worker.placing.sizing import demand_of


def adapter(parameters: int) -> Manifest:
    file = StoredFile(path="adapter_model.safetensors", size=4_000, sha256="0" * 64)
    return Manifest.of("lab/one", [file], facts=facts(parameters=parameters, adapter_of={"id": "lab/base", "revision": "1" * 64}))


def test_a_plan_leaves_room_for_an_adapters_base_whatever_a_pool_measured_of_the_adapter_alone() -> None:
    placed = {"lab/one": {"bytes": 4_000, "params_b": 1.0, "precision": "float32", "base": "lab/base"}}
    for known in ({}, placed):
        demand = demand_of("lab/one", traffic=1.0, precision="float32", placed=known, manifest=lambda _: adapter(1_000_001_000))
        assert (demand.source, round(demand.params_b, 3)) == ("files", 1.0)
