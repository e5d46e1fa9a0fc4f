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


@dataclass(slots=True)
class _Copy(Generic[Kept]):
    """A network and its weights on the host."""

    what: Kept
    network: Any
    size: int
    #: in the order of ``network.parameters()``
    weights: list[torch.Tensor]
    #: whether the device has them, too
    resident: bool = False


class Warm(Generic[Kept]):
    """Up to ``limit_bytes`` of networks on the host, the one kept longest ago given up first, before it what the device has as well.

    Weights never change, so a copy is made once: what came back and leaves again is copied no more.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._kept: OrderedDict[WarmKey, _Copy[Kept]] = OrderedDict()

    @property
    def bytes(self) -> int:
        """What is kept and may be taken; copies of what came back are beside it."""
        return sum(copy.size for copy in self._kept.values() if not copy.resident)

    def keep(self, key: WarmKey, what: Kept, network: Any, *, size: int) -> None:
        """Move ``network`` off its device and keep ``what``, which holds it; nothing, where it is too large."""
        if size > self.limit_bytes:
            return
        before = self._kept.pop(key, None)
        while sum(copy.size for copy in self._kept.values()) + size > self.limit_bytes:
            self._give_up()
        same = before is not None and before.network is network
        weights = before.weights if before and same else [_host_copy(parameter) for parameter in network.parameters()]
        for parameter, weight in zip(network.parameters(), weights, strict=True):
            parameter.data = weight
        network.to("cpu")  # what is no weight: an architecture may have computed it anew since
        self._kept[key] = _Copy(what, network, size, weights)

    def take(self, key: WarmKey, device: str) -> Kept | None:
        """What was kept, its network on ``device``; None where it was not, or was given up. Raises what a device without room raises."""
        copy = self._kept.get(key)
        if copy is None or copy.resident:
            return None
        try:
            copy.network.to(device, non_blocking=True)
        except BaseException:
            del self._kept[key]  # parts of it are there and parts here
            raise
        copy.resident = True
        return copy.what

    def size(self, key: WarmKey) -> int | None:
        """Bytes of what is kept and may be taken; None where nothing is."""
        copy = self._kept.get(key)
        return None if copy is None or copy.resident else copy.size

    def _give_up(self) -> None:
        key = next((k for k, copy in self._kept.items() if copy.resident), next(iter(self._kept)))
        del self._kept[key]


def _host_copy(weight: torch.Tensor) -> torch.Tensor:
    """The same on the host, where a device copies at the full rate of its bus; one pass from the device, for what the pages lie in is what takes long."""
    if weight.device.type != "cuda":
        return weight.detach()
    copy = torch.empty_like(weight, device="cpu", pin_memory=True)
    return copy.copy_(weight.detach())


def usual_limit(device: str) -> int:
    """Bytes the host keeps for a device."""
    return int(WARM_SHARE * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) if device.startswith("cuda") else 0
