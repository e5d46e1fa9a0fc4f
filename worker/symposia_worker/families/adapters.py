"""A LoRA adapter's own description, in PEFT's form: what is read of it, and what is refused by name. Neither torch nor peft is needed.

Hu et al. 2021 (arXiv:2106.09685); rank-stabilised scaling after Kalajdzievski 2023 (arXiv:2312.03732).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from symposia_shared.errors import BadInput

Number = TypeVar("Number", int, float)

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: fields of ``adapter_config.json`` that make another computation of it than ``B A x × alpha / r``, and what they are called
_VARIANTS = {
    "use_dora": "DoRA", "use_qalora": "QALoRA", "lora_bias": "a bias in its lora_B", "modules_to_save": "whole modules of its own (modules_to_save)",
    "trainable_token_indices": "token embeddings of its own", "layer_replication": "replicated layers", "megatron_config": "Megatron's layers",
    "target_parameters": "parameters that are no linear layers (target_parameters)", "alora_invocation_tokens": "activation by tokens (aLoRA)",
    "use_bdlora": "block-diagonal matrices (BD-LoRA)", "monteclora_config": "MonteCLoRA", "arrow_config": "Arrow routing", "velora_config": "VeLoRA",
    "kasa_config": "KaSA",
}
#: ways of beginning that change the base too, so that the adapter belongs to a base its author alone has, until PEFT converts it
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
#: more is no adapter any more: a full update of a 7B's projections has 4,096
MOST_RANK = 4096


@dataclass(frozen=True, slots=True)
class Adapter:
    """A validated ``adapter_config.json``."""

    #: the base as the adapter's author called it
    base: str
    rank: int
    alpha: float
    rank_stabilised: bool
    rank_pattern: Mapping[str, int]
    alpha_pattern: Mapping[str, float]

    def scaling(self, module: str) -> float:
        """What ``B A x`` is multiplied with at ``module``."""
        rank, alpha = self.rank_of(module), _patterned(self.alpha_pattern, module, self.alpha)
        return alpha / math.sqrt(rank) if self.rank_stabilised else alpha / rank

    def rank_of(self, module: str) -> int:
        """Rows of its ``A`` at ``module``."""
        return _patterned(self.rank_pattern, module, self.rank)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no checkpoint of its own."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def read_adapter(folder: Path) -> Adapter:
    """The adapter in ``folder``. Raises BadInput, naming the part that cannot be served."""
    try:
        raw = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind = str(raw.get("peft_type"))
    except (OSError, ValueError, AttributeError) as error:
        raise BadInput(f"{folder / CONFIG} cannot be read: {error}.", field="folder", value=str(folder),
                       remedy="Name a folder written by PEFT's save_pretrained.") from None
    if kind != "LORA":
        raise _refused(f"it is of the kind {kind}, and LORA is served.")
    for name, called in _VARIANTS.items():
        if raw.get(name):
            raise _refused(f"it has {called}.")
    if str(raw.get("init_lora_weights")).startswith(_CHANGES_BASE):
        raise _refused(f"it was begun by {raw['init_lora_weights']}, which changes the base too; save it with path_initial_model_for_weight_conversion.")
    if raw.get("bias", "none") != "none":
        raise _refused(f"it has biases of its own (bias: {raw['bias']}).")
    if raw.get("fan_in_fan_out"):
        raise _refused("its base keeps weights the other way round (fan_in_fan_out).")
    if not (folder / WEIGHTS).is_file():
        pickled = "; it has adapter_model.bin, a pickle, which can run code when it is read" if (folder / "adapter_model.bin").is_file() else ""
        raise BadInput(f"{folder} has no {WEIGHTS}{pickled}.", field="folder", value=str(folder),
                       remedy="Save it again with safe_serialization=True.")
    return _checked(raw)


def module_and_side(key: str) -> tuple[str, str]:
    """(module of the base, ``A`` or ``B``) a tensor's name stands for. Raises BadInput for one that is no LoRA matrix of a linear layer."""
    found = _KEY.fullmatch(key)
    if found is None:
        raise _refused(f"its tensor {key!r} is no lora_A or lora_B of a linear layer.")
    return found["module"], found["side"]


def _checked(raw: Mapping[str, Any]) -> Adapter:
    base, rank, alpha = raw.get("base_model_name_or_path"), raw.get("r"), raw.get("lora_alpha")
    if not isinstance(base, str) or not base:
        raise _refused("it names no base (base_model_name_or_path).")
    if not isinstance(rank, int) or not 1 <= rank <= MOST_RANK or not isinstance(alpha, int | float):
        raise _refused(f"its rank is {rank!r} and its lora_alpha {alpha!r}, where a rank of 1 to {MOST_RANK} and a number are right.")
    patterns = raw.get("rank_pattern") or {}, raw.get("alpha_pattern") or {}
    try:
        ranks = {str(k): int(v) for k, v in patterns[0].items()}
        alphas = {str(k): float(v) for k, v in patterns[1].items()}
        for pattern in (*ranks, *alphas):
            re.compile(pattern)
    except (AttributeError, TypeError, ValueError, re.error):
        raise _refused("its rank_pattern or alpha_pattern is not a table of numbers by module.") from None
    return Adapter(base, rank, float(alpha), bool(raw.get("use_rslora")), ranks, alphas)


def _patterned(patterns: Mapping[str, Number], module: str, usual: Number) -> Number:
    """As in PEFT: the first pattern that is the module's name or the end of it."""
    return next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)), usual)


def _refused(why: str) -> BadInput:
    return BadInput(f"this adapter cannot be served: {why}", field="adapter", remedy="Merge it into its base with PEFT's merge_and_unload, and push that.")
