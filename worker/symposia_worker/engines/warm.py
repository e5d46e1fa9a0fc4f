"""What leaves a CUDA device stays in host memory while there is room: to bring it back is one copy, without reading, parsing or testing it again.

On a CPU there is nothing to gain: weights are mapped, and the system's page cache is the warm copy.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

#: of the machine's memory
WARM_SHARE = 0.25

Kept = TypeVar("Kept")


@dataclass(frozen=True, slots=True)
class WarmKey:
    """The same key is the same model: a folder of the model cache is named by its content, and never changed."""

    checkpoint: str
    folder: str
    dtype: str


class Warm(Generic[Kept]):
    """Up to ``limit_bytes`` of networks on the host, the one kept longest ago given up first."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._kept: OrderedDict[WarmKey, tuple[Kept, Any, int]] = OrderedDict()

    @property
    def bytes(self) -> int:
        """What is kept."""
        return sum(size for *_, size in self._kept.values())

    def keep(self, key: WarmKey, what: Kept, network: Any, *, size: int) -> None:
        """Move ``network`` off its device and keep ``what``, which holds it; nothing, where it is too large."""
        if size > self.limit_bytes:
            return
        self._kept.pop(key, None)
        while self.bytes + size > self.limit_bytes:
            self._kept.popitem(last=False)
        network.to("cpu")
        if torch.cuda.is_available():
            for tensor in (*network.parameters(), *network.buffers()):
                tensor.data = tensor.data.pin_memory()  # a device copies what is pinned at the full rate of its bus
        self._kept[key] = (what, network, size)

    def take(self, key: WarmKey, device: str) -> Kept | None:
        """What was kept, its network on ``device``; None where it was not, or was given up. Raises what a device without room raises."""
        found = self._kept.pop(key, None)
        if found is None:
            return None
        what, network, _ = found
        network.to(device, non_blocking=True)
        return what

    def size(self, key: WarmKey) -> int | None:
        """Bytes of what is kept; None where nothing is."""
        found = self._kept.get(key)
        return None if found is None else found[2]


def usual_limit(device: str) -> int:
    """Bytes the host keeps for a device."""
    return int(WARM_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) if device.startswith("cuda") else 0
