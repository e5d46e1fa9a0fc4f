from __future__ import annotations

from pathlib import Path

import pytest
import torch

from asking import Asked, one_by_one, plain
from symposia_worker.engines import packed
from symposia_worker.engines.attention import NAME, rows_attention, rows_of
from symposia_worker.engines.packed import PackedLinear
from tiny import tiny_checkpoint

PROMPTS = ("What?", "The quick brown fox jumps over the lazy dog. " * 4, "x", "a " * 40)


@pytest.mark.parametrize("lengths", [[50, 50, 49], [3, 50, 20], [1, 1, 50]])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
def test_attention_by_rows_is_that_of_a_masked_window(lengths: list[int], heads: tuple[int, int]) -> None:
    columns = max(lengths)
    torch.manual_seed(0)
    query, key, value = (torch.randn(3, h, n, 8) for h, n in ((heads[0], 1), (heads[1], columns), (heads[1], columns)))
    mask = torch.arange(columns)[None, :] >= (columns - torch.tensor(lengths))[:, None]
    module = torch.nn.Module()
    module.num_key_value_groups = heads[0] // heads[1]  # type: ignore[assignment]
    expected, _ = rows_attention(module, query, key, value, mask[:, None, None, :])  # no rows named: sdpa
    with rows_of(lengths):
        got, _ = rows_attention(module, query, key, value, mask[:, None, None, :])
    assert torch.allclose(got, expected, atol=1e-5)
    with rows_of(lengths):
        narrow = mask.clone()
        narrow[:, : columns - 2] = False  # a local window is the mask's
        local, _ = rows_attention(module, query, key, value, narrow[:, None, None, :])
    expected, _ = rows_attention(module, query, key, value, narrow[:, None, None, :])
    assert torch.allclose(local, expected, atol=1e-5)


@pytest.mark.parametrize(("architecture", "exchanged"), [("llama", True), ("gemma3_text", True), ("mpt", False), ("codegen", False)])
def test_decoding_by_rows_is_used_where_the_attention_can_be_exchanged(tmp_path: Path, architecture: str, exchanged: bool) -> None:
    asked = Asked(tiny_checkpoint(tmp_path / "m", architecture))
    assert (asked.batch.model.config._attn_implementation == NAME) == exchanged


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "stablelm", "gemma3_text"])
def test_packed_layers_give_the_tokens_of_plain_generate(tmp_path: Path, architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "SMALLEST", 1)
    folder = tiny_checkpoint(tmp_path / "m", architecture)
    asked = Asked(folder)
    assert any(isinstance(layer, PackedLinear) for layer in asked.batch.model.modules())
    for n, prompt in enumerate(PROMPTS):
        asked.ask(str(n), prompt, max_tokens=15)
        asked.step(2)
    asked.finish()
    for n, prompt in enumerate(PROMPTS):
        assert asked.completion(str(n)).text == one_by_one(folder, prompt, 15)[0]


def test_a_tied_embedding_is_kept_and_its_packed_form_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_checkpoint(tmp_path / "m", "qwen2")
    whole = Asked(folder).loaded.bytes
    monkeypatch.setattr(packed, "SMALLEST", 1)
    asked = Asked(folder)
    embedding = asked.batch.model.get_input_embeddings().weight
    assert asked.loaded.bytes == whole + embedding.nbytes
    assert torch.equal(embedding, plain(folder)[0].get_input_embeddings().weight)


def test_a_tied_embedding_is_not_packed_where_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "SMALLEST", 1)
    folder = tiny_checkpoint(tmp_path / "m", "qwen2")
    model = plain(folder)[0]
    assert packed.pack(model, room_bytes=0) == 0
    assert not isinstance(model.lm_head, PackedLinear)
    assert isinstance(model.model.layers[0].mlp.up_proj, PackedLinear)
    plain.cache_clear()
