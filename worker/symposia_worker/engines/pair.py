"""What a lane of answers asks of an encoder and its decoder, and how torch does it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from symposia_shared.errors import BadInput
from symposia_worker.engines.loading import Model

#: how far below the best logit of a single forward a chosen token may lie; half precision rounds at each layer
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}


class Answers(Protocol):
    """Rows that a decoder writes at the same pace, with all it keeps of them."""

    @property
    def bytes(self) -> int:
        """What states and caches take."""

    def advance(self, newest: torch.Tensor) -> torch.Tensor:
        """Logits (rows, vocabulary), float32, of what follows ``newest`` (rows, 1), which follows what was given before."""

    def keep(self, rows: Sequence[int]) -> None:
        """Let the other rows leave."""


class Pair(Protocol):
    """An encoder and its decoder."""

    device: torch.device
    #: the token every answer begins behind, and the one that fills a shorter row
    start: int
    pad: int
    #: what one token of a prompt takes as states beside its keys and values; what keys and values of one token take
    state_bytes_per_token: int
    cache_bytes_per_token: int
    #: by how much sums in another order may move a logit
    tolerance: float

    def encode(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """States (rows, longest, width) of prompts (rows, longest)."""

    def answers(self, states: torch.Tensor, mask: torch.Tensor) -> Answers:
        """Rows of which nothing is written yet."""

    def scores(self, source: list[int], written: list[int]) -> torch.Tensor:
        """Logits (tokens, vocabulary), float32, of what follows each token of ``written``: one prompt, one forward pass, no cache."""


class TorchPair:
    """A transformers model."""

    def __init__(self, model: Model) -> None:
        self._network = network = model.network
        c = network.config
        self.device = network.device
        self.start = start_of(model.checkpoint, getattr(network, "generation_config", None), c)
        self.pad: int = c.pad_token_id or 0
        layers = getattr(c, "num_decoder_layers", None) or c.num_layers
        self.cache_bytes_per_token: int = 2 * layers * c.num_heads * c.d_kv * network.dtype.itemsize
        self.state_bytes_per_token: int = c.d_model * network.dtype.itemsize
        self.tolerance = _TOLERANCE[network.dtype]

    def encode(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """By the encoder alone."""
        states: torch.Tensor = self._network.get_encoder()(input_ids=ids, attention_mask=mask).last_hidden_state
        return states

    def answers(self, states: torch.Tensor, mask: torch.Tensor) -> Answers:
        """With transformers' own cache."""
        return _TorchAnswers(self._network, states, mask)

    def scores(self, source: list[int], written: list[int]) -> torch.Tensor:
        """By the whole model."""
        ids, decoded = (torch.tensor([given], device=self.device) for given in (source, written))
        logits: torch.Tensor = self._network(input_ids=ids, decoder_input_ids=decoded).logits[0].float()
        return logits


class _TorchAnswers:
    def __init__(self, network: Any, states: torch.Tensor, mask: torch.Tensor) -> None:
        self._network, self._states, self._mask = network, states, mask
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    @property
    def bytes(self) -> int:
        halves = (self._cache.self_attention_cache, self._cache.cross_attention_cache)
        kept = [x for half in halves for layer in half.layers for x in (layer.keys, layer.values) if x is not None]
        return sum(x.nbytes for x in (self._states, *kept))

    def advance(self, newest: torch.Tensor) -> torch.Tensor:
        out = self._network(encoder_outputs=BaseModelOutput(last_hidden_state=self._states), attention_mask=self._mask,
                            decoder_input_ids=newest, past_key_values=self._cache, use_cache=True)
        logits: torch.Tensor = out.logits[:, -1].float()
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        chosen = torch.tensor(list(rows), device=self._states.device)
        self._states, self._mask = self._states[chosen], self._mask[chosen]
        self._cache.reorder_cache(chosen)


def start_of(checkpoint: str, *settings: Any) -> int:
    """The token every answer begins behind, of the first of ``settings`` that names it. Raises BadInput where none does."""
    for given in settings:
        found = given.get("decoder_start_token_id") if isinstance(given, dict) else getattr(given, "decoder_start_token_id", None)
        if isinstance(found, int):
            return found
    raise BadInput(f"{checkpoint} names no token its answers begin with.", field="checkpoint",
                   remedy="Add decoder_start_token_id to its config.json.")
