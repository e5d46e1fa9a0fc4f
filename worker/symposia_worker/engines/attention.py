"""Attention of one new token per row over right-aligned keys and values: on a CPU no row reads more than its own columns.

transformers' sdpa copies keys and values once per group of query heads (``repeat_kv``) and reads the padding of short rows: at
16 rows of 40 to 400 tokens that was four fifths of a decode step of SmolLM2-135M. Here the query heads of a group share their
keys by a view. Prompts still go through sdpa.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "symposia_rows"
#: rows are read each by itself where more than this share of the window is padding: else one product for all is faster
_WASTE = 0.25

#: tokens of each row, the new one included, while a decode pass runs; the engine runs one pass at a time
_lengths: list[int] = []


def use_rows(network: Any) -> bool:
    """Have a model decode by rows; False where its attention is not exchangeable, and it is left as it is."""
    if not getattr(network, "_supports_attention_backend", False) or network.config._attn_implementation != "sdpa":
        return False
    AttentionInterface.register(NAME, rows_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    network.set_attn_implementation(NAME)
    return True


def decodes_by_rows(network: Any) -> bool:
    """Whether ``use_rows`` took it."""
    return bool(network.config._attn_implementation == NAME)


@contextmanager
def rows_of(lengths: Sequence[int]) -> Iterator[None]:
    """Within it, one decode pass over rows of so many tokens."""
    _lengths[:] = lengths
    try:
        yield
    finally:
        _lengths.clear()


def rows_attention(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None,
                   dropout: float = 0.0, scaling: float | None = None, **given: Any) -> tuple[torch.Tensor, None]:
    """As sdpa. query: (rows, heads, 1, size); key, value: (rows, key heads, columns, size); the result: (rows, 1, heads, size)."""
    rows, heads, tokens, size = query.shape
    if tokens != 1 or len(_lengths) != rows:
        whole, _ = sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **given)
        return whole, None
    groups = query.reshape(rows, key.shape[1], heads // key.shape[1], size) * (size**-0.5 if scaling is None else scaling)
    columns = key.shape[2]
    if query.device.type != "cpu" or sum(_lengths) >= (1 - _WASTE) * rows * columns:
        out = _attend(groups, key, value, attention_mask)
    else:
        out = torch.cat([_attend(groups[row : row + 1], key[row : row + 1, :, -n:], value[row : row + 1, :, -n:],
                                 None if attention_mask is None else attention_mask[row : row + 1, ..., -n:])
                         for row, n in enumerate(_lengths)])
    return out.reshape(rows, 1, heads, value.shape[3]), None


def _attend(groups: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """groups: (rows, key heads, query heads of each, size), scaled; mask: (rows, 1, 1, columns), True or 0 where it may be looked at."""
    if groups.device.type == "cpu":  # one kernel for four: 16 rows of 40 to 400 tokens took 2.6 ms a layer, and take 1.6
        return torch.nn.functional.scaled_dot_product_attention(groups, key, value, attn_mask=mask, scale=1.0)
    scores = groups @ key.transpose(2, 3)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value
