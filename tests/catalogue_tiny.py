"""A tiny checkpoint for each of the eighteen the specification names: same architecture, kind of tokenizer and files as published.

``make(folder)`` writes it with random weights, as its publisher's repository has it (pickles, vocabularies, code that must not run),
and returns the model it was made of, whose logits what comes of it must have.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny import CORPUS, draw_weights

Make = Callable[[Path], Any]

END = "<|endoftext|>"
CONTEXT = 128
_SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": CONTEXT}
_RUNS = [" " * n for n in range(31, 1, -1)] + ["\t" * n for n in range(9, 1, -1)]
_ALARM = "raise SystemExit('code of a checkpoint was run')\n"
_CHAT = ("{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + 'ENDS' + '\n' }}{% endfor %}"
         "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}")
_CHATML = ("{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
           "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")


@dataclass(frozen=True)
class TinyCheckpoint:
    """One of the eighteen, in miniature."""

    #: the catalogue's id of the checkpoint it stands for
    stands_for: str
    make: Make
    #: what it can do once it is stored
    capabilities: tuple[str, ...]
    #: whether its folder is something else than what is stored
    converted: bool = False

    @property
    def kind(self) -> str:
        """``generate``, ``embed`` or ``seq2seq``."""
        return self.capabilities[0]

    @property
    def slug(self) -> str:
        """A short name for tests, and for its id in a model store."""
        return self.stands_for.split("/")[1].lower()


# -- tokenizers


def _byte_level(size: int = 320, *, special: Sequence[str] = (), cut: str | None = None, normalizer: Any = None) -> Any:
    """A byte-level BPE trained on the corpus; ``cut`` is a regular expression for what GPT-2's own does otherwise."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    if cut is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(cut), "isolated"),
                                                           pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(special), show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer


def _sentencepiece(added: Sequence[Any] = ()) -> Any:
    """Llama's kind: BPE over metaspaces that falls back to bytes, with a bos before each text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=180, show_progress=False))
    learnt = json.loads(trained.to_str())["model"]
    pieces = sorted(learnt["vocab"], key=lambda piece: learnt["vocab"][piece])
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    merges = [tuple(merge) if isinstance(merge, list) else tuple(merge.split(" ")) for merge in learnt["merges"]]
    vocabulary = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<unk>", "<s>", "</s>")])
    tokenizer.add_special_tokens(list(added))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    return tokenizer


def _neox() -> Any:
    from tokenizers import normalizers

    return _byte_level(special=(END, "<|padding|>"), normalizer=normalizers.NFC())


def _save_tokenizer(folder: Path, tokenizer: Any, **config: Any) -> int:
    """As tokenizer.json with a tokenizer_config.json; its number of entries."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(folder / "tokenizer_config.json", {"model_max_length": CONTEXT, **config})
    return int(tokenizer.get_vocab_size())


def _save_vocabulary(folder: Path, tokenizer: Any, **config: Any) -> int:
    """As vocab.json and merges.txt alone; its number of entries."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.model.save(str(folder))
    _write(folder / "tokenizer_config.json", {"model_max_length": CONTEXT, **config})
    return int(tokenizer.get_vocab_size())


def _codegen_tokenizer(folder: Path) -> int:
    """GPT-2's kind with runs of white space as added tokens."""
    from tokenizers import AddedToken

    tokenizer = _byte_level()
    tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=True)])
    tokenizer.add_tokens([AddedToken(run, special=False, normalized=True) for run in _RUNS])
    return _save_tokenizer(folder, tokenizer, tokenizer_class="CodeGenTokenizer", bos_token=END, eos_token=END, unk_token=END)


# -- weights


def _model(model_class: str, config_class: str, *, seed: int = 0, **fields: Any) -> Any:
    import torch
    import transformers

    torch.manual_seed(seed)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**fields)).eval()
    draw_weights(model)
    model.tie_weights()
    return model


def _save_safe(folder: Path, model: Any, **config: Any) -> Any:
    model.save_pretrained(folder)
    _edit(folder / "config.json", **config)
    return model


def _save_pickled(folder: Path, model: Any, *, shards: int = 1, further: dict[str, Any] | None = None, **config: Any) -> Any:
    """config.json, and the weights as torch pickles them, tied ones under each of their names."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    _edit(folder / "config.json", **config)
    state = {**model.state_dict(), **(further or {})}
    names = [f"pytorch_model-{n + 1:05d}-of-{shards:05d}.bin" if shards > 1 else "pytorch_model.bin" for n in range(shards)]
    keys = list(state)
    for n, name in enumerate(names):
        torch.save({k: state[k] for k in keys[n::shards]}, folder / name)
    if shards > 1:
        _write(folder / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": {k: names[i % shards] for i, k in enumerate(keys)}})
    return model


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _edit(path: Path, **fields: Any) -> None:
    _write(path, {**json.loads(path.read_text(encoding="utf-8")), **fields})


# -- the eighteen


def _codegen(folder: Path) -> Any:
    import torch

    rows = _codegen_tokenizer(folder) + 40
    model = _model("CodeGenForCausalLM", "CodeGenConfig", vocab_size=rows, n_embd=64, n_layer=2, n_head=4, n_positions=CONTEXT, n_ctx=CONTEXT,
                   rotary_dim=8, tie_word_embeddings=False, bos_token_id=1, eos_token_id=320, pad_token_id=None)
    masks = {f"transformer.h.{n}.attn.causal_mask": torch.ones(1, 1, CONTEXT, CONTEXT, dtype=torch.bool).tril() for n in range(2)}
    return _save_pickled(folder, model, further=masks)


def _codegen25(folder: Path) -> Any:
    from symposia_worker.families.codegen25 import ADDED

    rows = _save_vocabulary(folder, _byte_level(), tokenizer_class="CodeGen25Tokenizer", eos_token=END, add_special_tokens=True,
                            auto_map={"AutoTokenizer": ["tokenization_codegen25.CodeGen25Tokenizer", None]}) + 1 + ADDED
    (folder / "tokenization_codegen25.py").write_text(_ALARM)
    model = _model("LlamaForCausalLM", "LlamaConfig", vocab_size=rows, **_SMALL, bos_token_id=320, eos_token_id=320)
    return _save_pickled(folder, model, shards=2)


def _replit(folder: Path) -> Any:
    """Written with two key and value heads for four query heads; what is returned has each written out twice."""
    import torch

    rows = _save_tokenizer(folder, _neox(), tokenizer_class="GPTNeoXTokenizer", bos_token=END, eos_token=END, unk_token=END)
    model = _model("MptForCausalLM", "MptConfig", vocab_size=rows, d_model=32, n_heads=4, n_layers=2, max_seq_len=CONTEXT)
    grouped = {}
    for name, tensor in model.state_dict().items():
        if name.endswith("attn.Wqkv.weight"):
            query, key, value = tensor.split(32)  # four heads of eight rows each
            shared = [torch.cat([part[0:8], part[16:24]]) for part in (key, value)]
            for part, kept in ((key, shared[0]), (value, shared[1])):
                for head in range(4):
                    part[8 * head : 8 * head + 8] = kept[8 * (head // 2) : 8 * (head // 2) + 8]
            tensor = torch.cat([query, *shared])
        grouped[name] = tensor.clone()
    (folder / "modeling_mpt.py").write_text(_ALARM)
    _write(folder / "config.json", {
        "architectures": ["MPTForCausalLM"], "model_type": "mpt", "vocab_size": rows, "d_model": 32, "n_heads": 4, "n_layers": 2, "expansion_ratio": 4,
        "max_seq_len": CONTEXT, "no_bias": True, "learned_pos_emb": True, "init_device": "cpu", "norm_type": "low_precision_layernorm",
        "attn_config": {"alibi": True, "alibi_bias_max": 8, "attn_type": "grouped_query_attention", "kv_n_heads": 2, "attn_impl": "triton",
                        "attn_pdrop": 0, "attn_uses_sequence_id": False, "clip_qkv": None, "prefix_lm": False, "qk_ln": False, "softmax_scale": None},
        "auto_map": {"AutoConfig": "configuration_mpt.MPTConfig", "AutoModelForCausalLM": "modeling_mpt.MPTForCausalLM"},
    })
    torch.save(grouped, folder / "pytorch_model.bin")
    return model


def _incoder(folder: Path) -> Any:
    from tokenizers import AddedToken, processors

    tokenizer = _byte_level(special=("<pad>", "<unk>", END))
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ("<|mask:0|>", "<|mask:1|>", "<|endofmask|>")])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{END} $A", pair=f"{END} $A {END}:1 $B:1", special_tokens=[(END, 2)])
    rows = _save_tokenizer(folder, tokenizer, tokenizer_class="PreTrainedTokenizerFast", bos_token=END, pad_token="<pad>", unk_token="<unk>")
    model = _model("XGLMForCausalLM", "XGLMConfig", vocab_size=rows, d_model=32, ffn_dim=64, num_layers=2, attention_heads=4,
                   max_position_embeddings=CONTEXT, bos_token_id=0, eos_token_id=2, pad_token_id=1)
    return _save_pickled(folder, model)


def _roberta_vocabulary(folder: Path, *, special: Sequence[str] = ("<s>", "<pad>", "</s>", "<unk>"), behind: Sequence[str] = ("<mask>",),
                        **config: Any) -> int:
    rows = _save_vocabulary(folder, _byte_level(special=special), **config)
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    _write(folder / "vocab.json", {**vocabulary, **{token: rows + i for i, token in enumerate(behind)}})
    return rows + len(behind)


def _roberta(model_class: str, seed: int, special: Sequence[str] = ("<s>", "<pad>", "</s>", "<unk>")) -> Make:
    def make(folder: Path) -> Any:
        rows = _roberta_vocabulary(folder, special=special)
        small = {**_SMALL, "max_position_embeddings": CONTEXT + 2}
        model = _model(model_class, "RobertaConfig", seed=seed, vocab_size=rows, **small, pad_token_id=1, bos_token_id=0, eos_token_id=2,
                       type_vocab_size=1)
        return _save_pickled(folder, model)

    return make


def _codet5(folder: Path) -> Any:
    extra = [f"<extra_id_{n}>" for n in range(99, -1, -1)]
    rows = _roberta_vocabulary(folder, special=("<pad>", "<s>", "</s>", "<unk>", "<mask>"), behind=extra, tokenizer_class="RobertaTokenizer",
                               additional_special_tokens=extra)
    model = _model("T5ForConditionalGeneration", "T5Config", vocab_size=rows, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4,
                   relative_attention_max_distance=32, n_positions=CONTEXT, decoder_start_token_id=0, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    return _save_pickled(folder, model)


def _pycodegpt(folder: Path) -> Any:
    import torch

    rows = _save_vocabulary(folder, _byte_level(special=(END,)), tokenizer_class="GPT2Tokenizer", bos_token=END, eos_token=END, unk_token=END)
    model = _model("GPTNeoForCausalLM", "GPTNeoConfig", vocab_size=rows, hidden_size=32, num_layers=2, num_heads=4, window_size=8,
                   attention_types=[[["global", "local"], 1]], max_position_embeddings=CONTEXT, bos_token_id=0, eos_token_id=0)
    masks = {f"transformer.h.{n}.attn.attention.bias": torch.ones(1, 1, CONTEXT, CONTEXT, dtype=torch.uint8).tril() for n in range(2)}
    return _save_pickled(folder, model, further=masks | {"transformer.h.0.attn.attention.masked_bias": torch.tensor(-1e9)})


def _llama_config(rows: int) -> dict[str, Any]:
    return {"vocab_size": rows, **_SMALL, "bos_token_id": 1, "eos_token_id": 2}


_LLAMA_TOKENS = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True,
                 "add_eos_token": False}


def _llemma(folder: Path) -> Any:
    rows = _save_tokenizer(folder, _sentencepiece(), **_LLAMA_TOKENS)
    return _save_pickled(folder, _model("LlamaForCausalLM", "LlamaConfig", seed=10, **_llama_config(rows)), shards=3)


def _tinyllama(folder: Path) -> Any:
    rows = _save_tokenizer(folder, _sentencepiece(), **_LLAMA_TOKENS, pad_token="</s>", chat_template=_CHAT.replace("ENDS", "</s>"))
    return _save_safe(folder, _model("LlamaForCausalLM", "LlamaConfig", seed=11, **_llama_config(rows), num_key_value_heads=2))


def _phi(seed: int) -> Make:
    def make(folder: Path) -> Any:
        rows = _codegen_tokenizer(folder) + 40
        return _save_safe(folder, _model("PhiForCausalLM", "PhiConfig", seed=seed, vocab_size=rows, **_SMALL, bos_token_id=320, eos_token_id=320))

    return make


def _phi3(folder: Path) -> Any:
    from tokenizers import AddedToken

    added = [AddedToken(t, special=True, normalized=False, rstrip=t != END) for t in (END, "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")]
    tokenizer = _sentencepiece(added)
    rows = _save_tokenizer(folder, tokenizer, **{**_LLAMA_TOKENS, "eos_token": END}, chat_template=_CHAT.replace("ENDS", "<|end|>"))
    (folder / "modeling_phi3.py").write_text(_ALARM)
    model = _model("Phi3ForCausalLM", "Phi3Config", vocab_size=rows + 5, **_SMALL, num_key_value_heads=4, sliding_window=64, pad_token_id=0,
                   bos_token_id=1, eos_token_id=tokenizer.token_to_id(END), original_max_position_embeddings=CONTEXT)
    return _save_safe(folder, model, auto_map={"AutoConfig": "configuration_phi3.Phi3Config", "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"})


def _qwen2(seed: int) -> Make:
    cut = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")

    def make(folder: Path) -> Any:
        from tokenizers import AddedToken, normalizers

        tokenizer = _byte_level(cut=cut, normalizer=normalizers.NFC())
        tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (END, "<|im_start|>", "<|im_end|>")])
        # the base model's repository has a chat template too
        rows = _save_tokenizer(folder, tokenizer, tokenizer_class="Qwen2Tokenizer", eos_token=END, pad_token=END, chat_template=_CHATML) + 40
        model = _model("Qwen2ForCausalLM", "Qwen2Config", seed=seed, vocab_size=rows, **_SMALL, num_key_value_heads=2, tie_word_embeddings=True,
                       bos_token_id=320, eos_token_id=320)
        return _save_safe(folder, model)

    return make


def _stablelm2(folder: Path) -> Any:
    cut = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    from tokenizers import AddedToken

    tokenizer = _byte_level(cut=cut)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (END, "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>")])
    rows = _save_tokenizer(folder, tokenizer, tokenizer_class="GPT2Tokenizer", bos_token=END, eos_token=END, unk_token=END) + 16
    return _save_safe(folder, _model("StableLmForCausalLM", "StableLmConfig", seed=17, vocab_size=rows, **_SMALL, num_key_value_heads=4,
                                     use_qkv_bias=True, bos_token_id=320, eos_token_id=320))


def _zephyr(folder: Path) -> Any:
    rows = _save_tokenizer(folder, _neox(), tokenizer_class="GPTNeoXTokenizer", bos_token=END, eos_token=END, unk_token=END,
                           chat_template=_CHAT.replace("ENDS", END))
    return _save_safe(folder, _model("StableLmForCausalLM", "StableLmConfig", seed=18, vocab_size=rows + 24, **_SMALL, num_key_value_heads=4,
                                     bos_token_id=0, eos_token_id=0))


_UNIXCODER = ("<s>", "<pad>", "</s>", "<unk>", "<mask0>", "<encoder-only>", "<decoder-only>", "<encoder-decoder>")

EIGHTEEN = (
    TinyCheckpoint("Salesforce/codegen-2B-mono", _codegen, ("generate",), converted=True),
    TinyCheckpoint("Salesforce/codegen25-7b-mono", _codegen25, ("generate", "infill"), converted=True),
    TinyCheckpoint("replit/replit-code-v1_5-3b", _replit, ("generate",), converted=True),
    TinyCheckpoint("facebook/incoder-1B", _incoder, ("generate", "infill"), converted=True),
    TinyCheckpoint("microsoft/codebert-base", _roberta("RobertaModel", 5), ("embed",), converted=True),
    TinyCheckpoint("microsoft/graphcodebert-base", _roberta("RobertaForMaskedLM", 6), ("embed",), converted=True),
    TinyCheckpoint("Salesforce/codet5-large-ntp-py", _codet5, ("seq2seq",), converted=True),
    TinyCheckpoint("Daoguang/PyCodeGPT", _pycodegpt, ("generate",), converted=True),
    TinyCheckpoint("microsoft/unixcoder-base", _roberta("RobertaModel", 9, _UNIXCODER), ("embed",), converted=True),
    TinyCheckpoint("EleutherAI/llemma_7b", _llemma, ("generate",), converted=True),
    TinyCheckpoint("TinyLlama/TinyLlama-1.1B-Chat-v1.0", _tinyllama, ("generate", "instruct")),
    TinyCheckpoint("microsoft/phi-2", _phi(12), ("generate",)),
    TinyCheckpoint("microsoft/phi-1_5", _phi(13), ("generate",)),
    TinyCheckpoint("microsoft/Phi-3-mini-4k-instruct", _phi3, ("generate", "instruct")),
    TinyCheckpoint("Qwen/Qwen2-0.5B", _qwen2(15), ("generate",), converted=True),
    TinyCheckpoint("Qwen/Qwen2-1.5B", _qwen2(16), ("generate",), converted=True),
    TinyCheckpoint("stabilityai/stablelm-2-1_6b", _stablelm2, ("generate", "infill")),
    TinyCheckpoint("stabilityai/stablelm-zephyr-3b", _zephyr, ("generate", "instruct")),
)


def plain(checkpoint: TinyCheckpoint, folder: Path) -> tuple[Path, Any]:
    """The folder that would be stored for ``checkpoint``, made in ``folder`` without a store, and the model it is to be."""
    from symposia_worker.families.convert import convert
    from symposia_worker.models.conversion import reasons_to_convert

    model = checkpoint.make(folder / "published")
    without_template = "instruct" not in checkpoint.capabilities
    if not reasons_to_convert(folder / "published", without_template=without_template):
        return folder / "published", model
    (folder / "plain").mkdir()
    convert(folder / "published", folder / "plain", without_template=without_template, untrained=True)
    return folder / "plain", model
