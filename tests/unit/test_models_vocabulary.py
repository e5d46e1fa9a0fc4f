"""The bound on the text one token stands for is never beaten by a real tokenizer, or is not given."""

from __future__ import annotations

import json
import sys
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from symposia_shared.catalogue import fewest_tokens
from symposia_worker.models.vocabulary import longest_token_bytes

TEXTS = ["the cat sat on the mat, the cat sat still", "1234567890 " * 3, "ααααα βββββ ÅÅÅÅÅ", "      " * 5, "\n\n\n\n"]


def byte_level(normalizer: Any = None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 20, trainer)
    return tokenizer


def byte_fallback() -> Tokenizer:
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"<unk>": 256, "▁": 257, "▁▁": 258, "▁▁▁▁": 259, "é": 260, "éé": 261}
    merges = [("▁", "▁"), ("▁▁", "▁▁"), ("é", "é")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    return tokenizer


@cache
def bounded(kind: str) -> tuple[Tokenizer, int]:
    makers = {"byte level": byte_level, "composing": lambda: byte_level(normalizers.NFC()), "byte fallback": byte_fallback}
    tokenizer = makers[kind]()
    bound = bound_of(tokenizer)
    assert bound is not None
    return tokenizer, bound


def bound_of(tokenizer: Tokenizer) -> int | None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(str(Path(folder, "tokenizer.json")))
        return longest_token_bytes(Path(folder))


@pytest.mark.parametrize("kind", ["byte level", "composing", "byte fallback"])
@given(text=st.one_of(st.text(max_size=200), st.text("aeé ▁\u0301\u030a\u212a1\n\x04", max_size=200), st.sampled_from(TEXTS)))
def test_no_text_has_fewer_tokens_than_was_proved(kind: str, text: str) -> None:
    tokenizer, bound = bounded(kind)
    assert len(tokenizer.encode(text, add_special_tokens=False).ids) >= fewest_tokens(text, bound)


def test_the_bound_is_reached_by_the_longest_token() -> None:
    tokenizer, bound = bounded("byte level")
    pieces = [tokenizer.decode([i]) for i in range(tokenizer.get_vocab_size())]
    longest = max(pieces, key=lambda piece: len(piece.encode()))
    assert len(longest.encode()) == bound
    assert fewest_tokens("xyz" * 1000, bound) >= 3000 // bound


def test_composition_makes_no_character_a_third_of_its_bytes() -> None:
    # every way to write a character that NFC turns into it is at most three times as long
    worst = 1.0
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if unicodedata.category(character) in ("Cn", "Cs", "Co"):
            continue
        for written in (character, unicodedata.normalize("NFD", character)):
            composed = unicodedata.normalize("NFC", written)
            worst = max(worst, len(written.encode()) / len(composed.encode()))
    assert worst <= 3


def mangled(change: dict[str, Any]) -> dict[str, Any]:
    return {**json.loads(byte_level().to_str()), **change}


@pytest.mark.parametrize("change", [
    {"normalizer": {"type": "NFKC"}}, {"normalizer": {"type": "Lowercase"}},
    {"normalizer": {"type": "Replace", "pattern": {"String": "ab"}, "content": ""}},
    {"normalizer": {"type": "Replace", "pattern": {"Regex": " +"}, "content": " "}},
    {"pre_tokenizer": {"type": "Whitespace"}},
    {"pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False}},
    {"truncation": {"max_length": 5, "strategy": "LongestFirst", "direction": "Right", "stride": 0}},
    {"model": {"type": "WordPiece", "vocab": {"a": 0}}}, {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}, {"model": {}},
])
def test_no_bound_is_given_where_text_may_be_lost(change: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(mangled(change)))
    assert longest_token_bytes(tmp_path) is None


def test_a_token_that_swallows_the_white_space_round_it_has_no_bound() -> None:
    tokenizer = byte_level()
    tokenizer.add_tokens([AddedToken("<mask>", lstrip=True)])
    assert bound_of(tokenizer) is None


def test_a_folder_without_a_tokenizer_has_no_bound(tmp_path: Path) -> None:
    assert longest_token_bytes(tmp_path) is None
    assert fewest_tokens("a" * 10**6, None) == 0
