"""A forward pass of a transformers decoder, whatever its class calls its arguments."""

from __future__ import annotations

import inspect
from typing import Any

import torch


class Forward:
    """Calls ``model`` and counts how often."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.passes = 0
        accepted = inspect.signature(model.forward).parameters
        self._takes_positions, self._takes_keep = "position_ids" in accepted, "logits_to_keep" in accepted
        self._cache_name = "cache" if "cache" in accepted else "past_key_values"  # renamed in transformers 5.24

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any, *, keep: int) -> torch.Tensor:
        """Logits of the last ``keep`` columns, (rows, keep, vocabulary)."""
        given: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, self._cache_name: cache, "use_cache": True}
        if self._takes_positions:
            given["position_ids"] = positions
        if self._takes_keep:
            given["logits_to_keep"] = keep
        self.passes += 1
        logits: torch.Tensor = self.model(**given).logits[:, -keep:]
        return logits
