"""LoRA adapters of tiny checkpoints, written by PEFT itself, and what PEFT's own ``generate`` gives with them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any


def tiny_adapter(folder: Path, base: Path, *, name: str, targets: tuple[str, ...] | str, seed: int = 1, rank: int = 4, **fields: Any) -> Path:
    """An adapter of ``base``, which it calls ``name``, with random matrices: of a new one's B is zero, and it would change nothing."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    targets = targets if isinstance(targets, str) else list(targets)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(
        r=rank, target_modules=targets, task_type="CAUSAL_LM", **{"lora_alpha": 2 * rank, **fields}))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                parameter.normal_(0.0, 0.2)
    model.peft_config["default"].base_model_name_or_path = name
    model.save_pretrained(folder)
    return folder


@cache
def with_peft(base: Path, adapter: Path, prompt: str, most: int, *, merged: bool = False) -> tuple[str, int]:
    """(text, tokens) of PEFT's greedy ``generate`` in float32."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    model = model.merge_and_unload() if merged else model
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
    return tokenizer.decode(out, skip_special_tokens=True, clean_up_tokenization_spaces=False), len(out)
