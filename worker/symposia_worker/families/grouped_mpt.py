"""MPT with grouped-query attention as the plain MPT that transformers knows: each key and value head written once per query head of its group.

Exact: every query head meets the same keys and values as before. The cost is a larger ``Wqkv`` and cache.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: fields of ``attn_config`` under which the native class computes something else, or nothing
_PLAIN = {"qk_ln": False, "qk_gn": False, "prefix_lm": False, "rope": False, "sliding_window_size": -1, "attn_uses_sequence_id": False}
_GROUPED = ("grouped_query_attention", "multiquery_attention")


def is_grouped(config: Mapping[str, Any]) -> bool:
    """Whether a config.json describes an MPT that the native class refuses."""
    attention = config.get("attn_config")
    return config.get("model_type") == "mpt" and isinstance(attention, Mapping) and attention.get("attn_type") in _GROUPED


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of the same model with as many key and value heads as query heads. Raises ValueError for one that is not MPT alone."""
    attention = dict(config["attn_config"])
    strange = sorted(name for name, value in _PLAIN.items() if attention.get(name, value) != value)
    if strange or not attention.get("alibi"):
        raise ValueError(f"its attention is not MPT's with ALiBi alone ({', '.join(strange) or 'no ALiBi'})")
    if config["n_heads"] % key_value_heads(config):
        raise ValueError(f"{config['n_heads']} query heads cannot share {key_value_heads(config)} key and value heads")
    known = ("alibi", "alibi_bias_max", "attn_impl", "attn_pdrop", "clip_qkv", "softmax_scale")
    kept = {name: attention[name] for name in known if name in attention} | {"attn_type": "multihead_attention", "attn_impl": "torch"}
    # with ALiBi the published class has no learned positions, whatever its configuration says; nor has the native one
    left = {name: value for name, value in config.items() if name not in ("attn_config", "auto_map", "init_config", "init_device")}
    return left | {"attn_config": kept, "architectures": ["MptForCausalLM"], "learned_pos_emb": False}


def key_value_heads(config: Mapping[str, Any]) -> int:
    """Heads of keys and of values."""
    attention = config["attn_config"]
    return 1 if attention["attn_type"] == "multiquery_attention" else int(attention["kv_n_heads"])


def expanded(name: str, tensor: Any, *, config: Mapping[str, Any]) -> Any:
    """A tensor of the plain model: a ``Wqkv`` of (query + 2 key-value heads) × head size rows gets as many of each; others stay."""
    if name.endswith(".bias") or ".wpe." in name:
        raise ValueError(f"it has {name}, for which transformers' MPT has no place")
    if ".attn.Wqkv." not in name:
        return tensor
    import torch

    heads, groups = int(config["n_heads"]), key_value_heads(config)
    size = int(config["d_model"]) // heads
    if tensor.shape[0] != (heads + 2 * groups) * size:
        raise ValueError(f"{name} has {tensor.shape[0]} rows; {heads} query and {groups} key-value heads of {size} make {(heads + 2 * groups) * size}")
    query, key, value = tensor.split([heads * size, groups * size, groups * size])

    def widened(part: Any) -> Any:
        return part.unflatten(0, (groups, size)).repeat_interleave(heads // groups, dim=0).flatten(0, 1)

    return torch.cat([query, widened(key), widened(value)])
