"""Published folders made plain: pickles, CodeGen2.5's tokenizer, MPT's shared heads, tokenizers without a tokenizer.json."""

from __future__ import annotations

import base64
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from catalogue_tiny import EIGHTEEN, TinyCheckpoint
from symposia_worker.families import codegen25, grouped_mpt
from symposia_worker.families.convert import convert
from symposia_worker.families.pooling import pooling_of
from symposia_worker.families.probe import Loaded, Refused, probe
from symposia_worker.models.conversion import reasons_to_convert
from symposia_worker.models.weights import checkpoint_files
from tiny import edit_config, tiny_checkpoint

BY_SLUG = {c.slug: c for c in EIGHTEEN}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def published(tmp_path: Path) -> Any:
    """Makes a checkpoint of the eighteen as published."""
    def made(slug: str) -> Path:
        BY_SLUG[slug].make(tmp_path / slug)
        return tmp_path / slug
    return made


def converted(folder: Path, **how: Any) -> tuple[Path, Loaded]:
    into = folder.parent / f"{folder.name}-plain"
    into.mkdir()
    return into, convert(folder, into, untrained=True, **how)


# -- what has to be converted


@pytest.mark.parametrize("checkpoint", EIGHTEEN, ids=lambda c: c.slug)
def test_a_folder_is_converted_where_it_is_not_plain_and_then_it_is(checkpoint: TinyCheckpoint, tmp_path: Path) -> None:
    checkpoint.make(tmp_path / "published")
    without_template = "instruct" not in checkpoint.capabilities
    assert bool(reasons_to_convert(tmp_path / "published", without_template=without_template)) == checkpoint.converted
    if checkpoint.slug == "pycodegpt":  # one of each would take as long as the integration test
        into, _ = converted(tmp_path / "published")
        assert reasons_to_convert(into, without_template=True) == ()


def test_what_is_not_there_is_a_reason_in_words(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mpt", "attn_config": {"attn_type": "multiquery_attention"}}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    assert len(reasons_to_convert(tmp_path, without_template=True)) == 4
    assert reasons_to_convert(tmp_path / "nowhere") == ("it has no tokenizer.json",)


# -- pickles


class Evil:
    """A pickle that would run code when it is read."""

    def __init__(self, alarm: Path) -> None:
        self.alarm = alarm

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.alarm), "w")


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_holds_more_than_weights_is_refused_and_not_run(published: Any, tmp_path: Path, legacy: bool) -> None:
    folder = published("codegen-2b-mono")
    state = {"x": Evil(tmp_path / "alarm")}
    if legacy:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(state))
    else:
        torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(Refused, match=r"pytorch_model.bin holds more than weights, or is damaged, and is not read"):
        converted(folder)
    assert not (tmp_path / "alarm").exists()


def test_a_pickle_cut_short_or_of_something_else_is_refused(published: Any) -> None:
    folder = published("codegen-2b-mono")
    whole = (folder / "pytorch_model.bin").read_bytes()
    (folder / "pytorch_model.bin").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Refused, match="damaged"):
        converted(folder)
    shutil.rmtree(folder.parent / f"{folder.name}-plain")
    torch.save([torch.zeros(2)], folder / "pytorch_model.bin")
    with pytest.raises(Refused, match="no dictionary of tensors"):
        converted(folder)


def test_shards_become_safetensors_with_an_index_and_optimizer_states_stay_behind(published: Any) -> None:
    folder = published("llemma_7b")
    torch.save({"step": 3}, folder / "training_args.bin")
    torch.save({"step": 3}, folder / "optimizer.pt")
    into, _ = converted(folder)
    names = checkpoint_files(into)
    assert [n for n in names if n.endswith(".safetensors")] == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    where = json.loads((into / "model.safetensors.index.json").read_text())["weight_map"]
    assert set(where.values()) == {n for n in names if n.endswith(".safetensors")}
    assert not [p for p in into.iterdir() if p.suffix in (".bin", ".pt", ".py")]


def test_tied_tensors_are_stored_once_and_old_buffers_not_at_all(published: Any) -> None:
    from safetensors.torch import load_file

    t5, _ = converted(published("codet5-large-ntp-py"))
    assert "shared.weight" in load_file(t5 / "model.safetensors")
    assert not {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"} & set(load_file(t5 / "model.safetensors"))
    neo, _ = converted(published("pycodegpt"))
    assert not [n for n in load_file(neo / "model.safetensors") if n.endswith(("attention.bias", "masked_bias"))]


def test_a_checkpoint_that_lacks_tensors_is_refused_when_it_is_tried(published: Any) -> None:
    folder = published("codegen-2b-mono")
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    del state["transformer.h.1.mlp.fc_in.weight"]
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(Refused, match="lacks 1 of its tensors"):
        converted(folder)


# -- CodeGen2.5's tokenizer


@pytest.fixture(scope="module")
def codegen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A miniature of the published layout, and the folder made of it."""
    root = tmp_path_factory.mktemp("codegen25")
    BY_SLUG["codegen25-7b-mono"].make(root / "published")
    return root / "published", converted(root / "published")[0]


def test_its_ids_have_the_published_layout_behind_the_base_vocabulary(codegen: tuple[Path, Path]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(codegen[1])
    base = len(json.loads((codegen[0] / "vocab.json").read_text()))
    # published: <|endoftext|> 50256, runs from 50257, <fim_prefix> 50295, <sep> 50317, <eom> 50318, <mask_1> 51199 (50256 + offset)
    offsets = {"<|endoftext|>": 0, "<fim_prefix>": 39, "<fim_middle>": 40, "<fim_suffix>": 41, "<sep>": 61, "<eom>": 62, "<mask_881>": 63,
               "<mask_1>": 943}
    assert {token: tokenizer.convert_tokens_to_ids(token) - base for token in offsets} == offsets
    assert tokenizer.convert_tokens_to_ids("Ġ" * 31) == base + 1
    assert tokenizer.convert_tokens_to_ids("ĠĠ") == base + 30
    assert tokenizer.convert_tokens_to_ids("ĉ" * 9) == base + 31
    assert tokenizer.eos_token_id == base
    assert 51200 - 50256 == 944 == json.loads((codegen[0] / "config.json").read_text())["vocab_size"] - base


@pytest.mark.parametrize(("text", "runs"), [
    ("x" + " " * 5 + "y", [4]), (" " * 32 + "y", [31]), (" " * 40 + "y", [31, 8]), ("x   ", [3]), (" " * 70 + "y", [31, 31, 7]),
])
def test_runs_of_spaces_are_cut_as_tiktoken_cuts_them(codegen: tuple[Path, Path], text: str, runs: list[int]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(codegen[1])
    pieces = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
    assert [len(p) for p in pieces if set(p) == {"Ġ"} and len(p) > 1] == runs
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_piece_that_is_a_token_is_that_token_and_any_pair_that_makes_one_merges() -> None:
    # "abc" can only be reached by "ab" + "c", whose rank is higher than that of "bc"; tiktoken takes the whole piece first
    ranks = {bytes([b]): b for b in range(256)} | {b"bc": 256, b"ab": 257, b"abc": 258}
    merges = codegen25._merges(ranks)
    assert merges == [(b"b", b"c"), (b"a", b"b"), (b"a", b"bc"), (b"ab", b"c")]


def test_a_tiktoken_file_and_openais_names_give_the_same_tokenizer(codegen: tuple[Path, Path], tmp_path: Path) -> None:
    published, plain = codegen
    rows = json.loads((published / "config.json").read_text())["vocab_size"]
    wanted = json.loads((plain / "tokenizer.json").read_text())["model"]
    (tmp_path / "openai").mkdir()
    shutil.copy(published / "vocab.json", tmp_path / "openai" / "encoder.json")
    (tmp_path / "tiktoken").mkdir()
    ranks = codegen25._base(published)
    (tmp_path / "tiktoken" / "gpt2.tiktoken").write_text("".join(f"{base64.b64encode(t).decode()} {i}\n" for t, i in ranks.items()))
    for name in ("openai", "tiktoken"):
        made: Tokenizer = codegen25.tokenizer_of(tmp_path / name, rows).backend_tokenizer
        assert json.loads(made.to_str())["model"]["vocab"] == wanted["vocab"]


def test_a_vocabulary_that_is_absent_or_another_one_is_refused_with_the_files_that_are_wanted(published: Any) -> None:
    folder = published("codegen25-7b-mono")
    edit_config(folder, vocab_size=1200)
    with pytest.raises(Refused, match="the model has 1200"):
        converted(folder)
    shutil.rmtree(folder.parent / f"{folder.name}-plain")
    (folder / "vocab.json").unlink()
    with pytest.raises(Refused, match=r"put one of vocab.json, encoder.json, gpt2.tiktoken beside its weights"):
        converted(folder)


def test_another_tokenizer_that_is_code_is_refused_and_not_run(published: Any, tmp_path: Path) -> None:
    folder = published("codegen25-7b-mono")
    edit = json.loads((folder / "tokenizer_config.json").read_text()) | {"tokenizer_class": "HomemadeTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(edit))
    (folder / "tokenization_codegen25.py").write_text(f"open({str(tmp_path / 'alarm')!r}, 'w')")
    with pytest.raises(Refused, match=r"HomemadeTokenizer is code of its own.*|code of its own"):
        converted(folder)
    assert not (tmp_path / "alarm").exists()


# -- MPT with shared heads


def test_each_query_head_meets_the_keys_and_values_it_met_before() -> None:
    # Given attention over shared heads, computed as the published class does: keys and values repeated after the projection
    torch.manual_seed(3)
    config = {"model_type": "mpt", "n_heads": 6, "d_model": 48, "attn_config": {"attn_type": "grouped_query_attention", "kv_n_heads": 2, "alibi": True}}
    shared = torch.randn(48 + 2 * 16, 48)
    x = torch.randn(5, 48)
    query, key, value = (x @ shared.T).split([48, 16, 16], dim=-1)
    wanted = [query, *(part.view(5, 2, 1, 8).expand(5, 2, 3, 8).reshape(5, 48) for part in (key, value))]
    # When the heads are written out in the weights, then the projection gives just that
    got = (x @ grouped_mpt.expanded("transformer.blocks.0.attn.Wqkv.weight", shared, config=config).T).split(48, dim=-1)
    assert max(float((a - b).abs().max()) for a, b in zip(got, wanted, strict=True)) == 0.0


@pytest.mark.parametrize(("change", "says"), [
    ({"attn_config": {"attn_type": "grouped_query_attention", "kv_n_heads": 2, "alibi": True, "qk_ln": True}}, "qk_ln"),
    ({"attn_config": {"attn_type": "grouped_query_attention", "kv_n_heads": 2, "alibi": False}}, "no ALiBi"),
    ({"n_heads": 5}, "cannot share"),
])
def test_an_mpt_that_the_native_class_would_compute_otherwise_is_refused(published: Any, change: dict[str, Any], says: str) -> None:
    folder = published("replit-code-v1_5-3b")
    edit_config(folder, **change)
    with pytest.raises(Refused, match=says):
        converted(folder)


def test_a_tensor_that_the_native_mpt_has_no_place_for_is_refused(published: Any) -> None:
    folder = published("replit-code-v1_5-3b")
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save({**state, "transformer.blocks.0.norm_1.bias": torch.zeros(32)}, folder / "pytorch_model.bin")
    with pytest.raises(Refused, match=r"norm_1\.bias"):
        converted(folder)


# -- the rest of a folder


def test_a_base_models_template_is_left_out_and_its_tokens_stay(published: Any) -> None:
    folder = published("qwen2-0.5b")
    into, told = converted(folder, without_template=True)
    assert told.capabilities == ("generate",)
    assert (into / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert not AutoTokenizer.from_pretrained(into).chat_template
    assert converted_ids(into) == converted_ids(folder)


def converted_ids(folder: Path) -> list[int]:
    return list(AutoTokenizer.from_pretrained(folder)("<|im_start|>user\nWhat?<|im_end|>")["input_ids"])


def test_how_an_encoder_pools_comes_along(published: Any) -> None:
    folder = published("codebert-base")
    (folder / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    into, _ = converted(folder)
    assert pooling_of(into).how == "cls"
    assert "1_Pooling/config.json" in checkpoint_files(into)


# -- the trial


def test_a_tokenizer_of_more_tokens_than_the_model_has_is_refused(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "m", max_position_embeddings=1024)
    other = Tokenizer.from_file(str(folder / "tokenizer.json"))
    vocabulary = json.loads(other.to_str())
    vocabulary["model"]["vocab"]["a"], vocabulary["model"]["vocab"]["unheard"] = 5000, vocabulary["model"]["vocab"]["a"]
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary))
    with pytest.raises(Refused, match="gives the id 5000 and its model knows"):
        probe(folder, untrained=True)


def test_a_bos_that_is_asked_for_and_not_put_is_refused(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "m", max_position_embeddings=1024)
    edit = json.loads((folder / "tokenizer_config.json").read_text()) | {"bos_token": "<|im_start|>", "add_bos_token": True,
                                                                         "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(edit))
    told = AutoTokenizer.from_pretrained(folder)("Hello")["input_ids"][0]
    if told == 1:
        pytest.skip("this transformers puts the bos a configuration asks for")
    with pytest.raises(Refused, match="puts none"):
        probe(folder, untrained=True)


def test_a_random_model_is_refused_unless_it_is_said_to_be_untrained_and_its_bits_are_told(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "m", max_position_embeddings=1024)
    with pytest.raises(Refused, match="bits per byte of plain English") as refused:
        probe(folder)
    assert "--untrained" in refused.value.remedy
    told = probe(folder, untrained=True)
    assert told.bits_per_byte is not None
    assert told.bits_per_byte > 3


@pytest.mark.parametrize("stored", ["bfloat16", "float16"])
def test_half_precision_is_tried_in_float32_where_there_is_room(stored: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # Given a checkpoint in half precision, which processors without instructions for it multiply on one core
    from symposia_worker.families import probe as module

    folder = tiny_checkpoint(tmp_path / "m", max_position_embeddings=1024)
    AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, stored)).save_pretrained(folder)
    size = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    tried: list[torch.dtype] = []
    bits = module.bits_per_byte

    def seen(model: Any, tokenizer: Any, text: str = module.PARAGRAPH) -> float:
        tried.append(model.dtype)
        return bits(model, tokenizer, text)

    monkeypatch.setattr(module, "bits_per_byte", seen)
    # When it is tried where float32 has room, and where it has none
    wide = probe(folder, untrained=True)
    monkeypatch.setattr(module, "_memory_available", lambda: 2 * size)
    narrow = probe(folder, untrained=True)
    # Then it is widened in the one case alone, and what it predicts is the same but for roundings
    assert tried == [torch.float32] * 2 + [getattr(torch, stored)] * 2
    assert wide.bits_per_byte == pytest.approx(narrow.bits_per_byte, rel=0.01)


def test_a_model_of_code_alone_is_judged_by_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from symposia_worker.families import probe as module

    folder = tiny_checkpoint(tmp_path / "m", max_position_embeddings=1024)
    monkeypatch.setattr(module, "bits_per_byte", lambda model, tokenizer, text=module.PARAGRAPH: 0.7 if text == module.PROGRAM else 2.9)
    told = probe(folder)
    assert (told.bits_per_byte, told.code_bits_per_byte) == (2.9, 0.7)
