"""Checkpoints larger than one device, split by accelerate: layers over several GPUs, or beyond a budget of memory read from disk.

``cuda:0+cuda:1`` is one device made of two: layers lie on one or the other and their activations move between them. ``cpu+disk``
keeps what fits and reads the rest of the weights from the checkpoint's files at every pass: it serves what would not fit, slowly.
"""

from __future__ import annotations

from typing import Any

from symposia_shared.errors import BadInput

DISK = "disk"
#: of a split device's room, what weights may take; the rest is the caches' and the activations'
WEIGHTS_SHARE = 0.8


def is_split(device: str) -> bool:
    """Whether a device is made of several."""
    return "+" in device


def spills(device: str) -> bool:
    """Whether what does not fit is read from disk."""
    return device.endswith(f"+{DISK}")


def split_over(device: str, room_bytes: float) -> dict[str, Any]:
    """What ``from_pretrained`` is told: the room of each part. Several GPUs have equal parts of it."""
    parts = [p for p in device.split("+") if p != DISK]
    room = int(WEIGHTS_SHARE * max(room_bytes, 0) / len(parts))
    names: list[str | int] = ["cpu" if p.startswith("cpu") else int(p.partition(":")[2]) for p in parts]
    # safetensors are read where they lie; the folder would take weights of other forms, and those are not loaded here
    return {"device_map": "auto", "max_memory": {**dict.fromkeys(names, room), **({} if "cpu" in names else {"cpu": 0})}}


def require_begun(checkpoint: str, network: Any, device: str, room_bytes: float) -> None:
    """Raises BadInput where not even the embedding has room, or GPUs alone do not hold the whole."""
    embedding = network.get_input_embeddings().weight
    where = {str(place) for place in getattr(network, "hf_device_map", {}).values()}
    if embedding.device.type == "meta" or (not spills(device) and where & {"cpu", DISK}):
        size = sum(p.nbytes for p in network.parameters())
        what = (f"its embedding alone takes {embedding.nbytes / 1e6:.0f} MB and must lie in memory" if spills(device)
                else f"it takes {size / 1e6:.0f} MB, in equal parts")
        room = WEIGHTS_SHARE * max(room_bytes, 0)
        raise BadInput(f"{checkpoint} cannot be split over {device}, which has {room / 1e6:.0f} MB for weights: {what}.", field="memory",
                       remedy="Give the device more memory, or add another to it.")


def resident_bytes(network: Any) -> int:
    """Bytes of weights that lie in the device's memory; what is read from disk is not among them."""
    storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in (*network.parameters(), *network.buffers()) if t.device.type != "meta")}
    return sum(storages.values())


def is_dispatched(network: Any) -> bool:
    """Whether accelerate moves its inputs: its layers are then left as they are."""
    return len(set(getattr(network, "hf_device_map", {}).values())) > 1

