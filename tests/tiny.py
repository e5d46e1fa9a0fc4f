"""Tiny checkpoints with random weights, one per architecture, with a real byte-level BPE tokenizer: a few hundred KB each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CORPUS = [
    "The quick brown fox jumps over the lazy dog. Debate, then vote; the majority decides.",
    "def add(a, b):\n    return a + b\n\n\nclass Stack:\n    def push(self, item):\n        self.items.append(item)\n",
    "What is the capital of France? The capital of France is Paris. Answer: 42, because 6 * 7 = 42.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich. 漢字とかな。 🙂",
]

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

_SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256}

#: (config class, model class, fields) by model_type
_SHAPES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {**_SMALL, "num_key_value_heads": 2}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", {**_SMALL, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "phi": ("PhiConfig", "PhiForCausalLM", _SMALL),
    "phi3": ("Phi3Config", "Phi3ForCausalLM", {**_SMALL, "num_key_value_heads": 2, "pad_token_id": 0}),
    "stablelm": ("StableLmConfig", "StableLmForCausalLM", {**_SMALL, "num_key_value_heads": 2}),
    "gpt_neo": ("GPTNeoConfig", "GPTNeoForCausalLM", {
        "hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 8,
        "max_position_embeddings": 256}),
    "codegen": ("CodeGenConfig", "CodeGenForCausalLM", {
        "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_ctx": 256, "rotary_dim": 8, "tie_word_embeddings": False}),
    "mpt": ("MptConfig", "MptForCausalLM", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256}),
    "xglm": ("XGLMConfig", "XGLMForCausalLM", {
        "d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4, "max_position_embeddings": 256}),
    "gemma3_text": ("Gemma3TextConfig", "Gemma3ForCausalLM", {
        **_SMALL, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}),
}

#: every decoder architecture that can be made here
ARCHITECTURES = tuple(_SHAPES)


def tiny_tokenizer(*, chat: bool = False, vocabulary: int = 320, special: tuple[str, ...] = ()) -> Any:
    """A byte-level BPE trained on CORPUS; with ``chat`` it has a ChatML template. Its eos is ``<|endoftext|>``."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.add_tokens(list(special))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    if chat:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def tiny_checkpoint(folder: Path, architecture: str = "llama", *, chat: bool = False, seed: int = 0, padding: int = 0,
                    special: tuple[str, ...] = (), **fields: Any) -> Path:
    """Make a checkpoint in ``folder``; ``padding`` ids are added to the model's vocabulary beyond the tokenizer's."""
    import torch
    import transformers

    config_class, model_class, shape = _SHAPES[architecture]
    tokenizer = tiny_tokenizer(chat=chat, special=special)
    torch.manual_seed(seed)
    config = getattr(transformers, config_class)(**{
        "vocab_size": len(tokenizer) + padding, "bos_token_id": 0, "eos_token_id": 0, **shape, **fields})
    model = getattr(transformers, model_class)(config)
    draw_weights(model)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def endless_checkpoint(folder: Path) -> Path:
    """A llama whose answers end by length only."""
    tiny_checkpoint(folder, "llama", eos_token_id=None)
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    return folder


def draw_weights(model: Any) -> None:
    """Random weights, ten times wider than usual, for the best logit to lead by far more than float32's rounding."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.2)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.05)


def edit_config(folder: Path, **fields: Any) -> None:
    """Change fields of a checkpoint's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
