"""Linear layers whose weights oneDNN has laid out for this CPU once: MKL lays them out again at every call."""

from __future__ import annotations

from typing import Any

import torch

#: smaller weights are left: a call into oneDNN costs more than it saves (64 × 32: 35 µs against 5)
SMALLEST = 1 << 17
#: rows the layout is chosen for
_ROWS = 16


class PackedLinear(torch.nn.Module):
    """A float32 linear layer for inference on a CPU. Its result differs from ``F.linear``'s by rounding only."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), _ROWS)
        self.bias = linear.bias

    @property
    def packed_bytes(self) -> int:
        """What its weight takes."""
        return 4 * self.in_features * self.out_features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (..., in) → (..., out)."""
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return y


def pack(network: Any, *, room_bytes: float) -> int:
    """Pack a model's large linear layers, in place, and drop what they were; returns the bytes it takes more than before.

    A weight that is also the embedding is kept beside its packed form, if ``room_bytes`` allow.
    """
    if network.device.type != "cpu" or network.dtype != torch.float32:
        return 0
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return 0
    embedding, more, packed = network.get_input_embeddings().weight, 0, False
    for parent in list(network.modules()):
        for name, linear in list(parent.named_children()):
            if type(linear) is not torch.nn.Linear or linear.weight.numel() < SMALLEST:
                continue
            if linear.weight is embedding:
                if more + linear.weight.nbytes > room_bytes:
                    continue
                more += linear.weight.nbytes
            setattr(parent, name, PackedLinear(linear))
            packed = True
    if packed:
        # what is left is a view of the file's mapping, which would keep every page that packing has read
        for parameter in network.parameters():
            parameter.data = parameter.data.clone()
    return more
