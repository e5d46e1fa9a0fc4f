"""CodeGen2.5's tokenizer as a tokenizer.json: the published one is code over tiktoken, and that code is never run.

The layout is the published one (Salesforce/codegen25-7b-mono): GPT-2's byte-level tokens and ``<|endoftext|>``; runs of 31 to 2
spaces and 9 to 2 tabs, which merge like any other token; StarCoder's special tokens; CodeGen2's, ``<mask_1>`` last.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_RUNS = [b" " * n for n in range(31, 1, -1)] + [b"\t" * n for n in range(9, 1, -1)]
_STARCODER = (
    "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>", "<filename>", "<gh_stars>", "<issue_start>", "<issue_comment>",
    "<issue_closed>", "<jupyter_start>", "<jupyter_text>", "<jupyter_code>", "<jupyter_output>", "<empty_output>", "<commit_before>",
    "<commit_msg>", "<commit_after>", "<reponame>",
)
_MASKS = 881
_CODEGEN2 = (*(f"<dummy_{i}>" for i in range(4)), "<sep>", "<eom>", *(f"<mask_{i}>" for i in range(_MASKS, 0, -1)))
#: tokens behind ``<|endoftext|>``
ADDED = len(_RUNS) + len(_STARCODER) + len(_CODEGEN2)
END = "<|endoftext|>"

#: where GPT-2's byte-level tokens may lie, in the order in which they are looked for
VOCABULARIES = ("vocab.json", "encoder.json", "gpt2.tiktoken")


def is_codegen25(tokenizer_config: Mapping[str, Any]) -> bool:
    """Whether a tokenizer_config.json asks for the tokenizer that is converted here."""
    return tokenizer_config.get("tokenizer_class") == "CodeGen25Tokenizer"


def tokenizer_of(folder: Path, rows: int) -> Any:
    """The tokenizer of a checkpoint with ``rows`` embeddings. Raises ValueError where its vocabulary is not there, or another one."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ranks = _base(folder)
    first = len(ranks) + 1  # END stands between
    if first + ADDED != rows:
        raise ValueError(f"its vocabulary has {len(ranks)} tokens, which with the {ADDED + 1} added ones are {first + ADDED}; the model has {rows}")
    ranks |= {run: first + i for i, run in enumerate(_RUNS)}  # a run that GPT-2 has as well is known by the new id alone
    characters = _characters()
    written = {token: "".join(characters[byte] for byte in token) for token in ranks}
    merges = [(written[left], written[right]) for left, right in _merges(ranks)]
    # special tokens stand in the vocabulary itself: ids that a run has left behind would otherwise be counted as free
    special = {END: first - 1, **{token: first + len(_RUNS) + i for i, token in enumerate((*_STARCODER, *_CODEGEN2))}}
    vocabulary = {written[token]: i for token, i in ranks.items()} | special
    # ignore_merges: as in tiktoken, a piece that is a token is that token, however it could be merged
    fast = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return PreTrainedTokenizerFast(tokenizer_object=fast, bos_token=END, eos_token=END, pad_token=END, clean_up_tokenization_spaces=False)


def _base(folder: Path) -> dict[bytes, int]:
    """GPT-2's tokens by their bytes, without END; the id is the rank."""
    name = next((n for n in VOCABULARIES if (folder / n).is_file()), None)
    if name is None:
        raise ValueError(f"GPT-2's vocabulary is not among its files, and is not fetched when a model is loaded; put one of {', '.join(VOCABULARIES)} "
                         "beside its weights")
    text = (folder / name).read_text(encoding="utf-8")
    if name.endswith(".tiktoken"):
        found = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in text.splitlines() if line)}
    else:
        bytes_of = {character: byte for byte, character in enumerate(_characters())}
        found = {bytes(bytes_of[c] for c in token): i for token, i in json.loads(text).items() if token != END}
    if sorted(found.values()) != list(range(len(found))):
        raise ValueError(f"the ids in its {name} are not those from 0 to {len(found) - 1}")
    return found


def _characters() -> list[str]:
    """GPT-2's table: the character that stands for each byte."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    unseen = iter(range(256))
    return [chr(byte) if byte in seen else chr(256 + next(unseen)) for byte in range(256)]


def _merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """Every way to make a token of two, the token's rank first: what tiktoken does without a list (any pair that makes a token merges)."""
    found = []
    for token, rank in ranks.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ranks and right in ranks:
                found.append((rank, ranks[left], ranks[right], left, right))
    return [(left, right) for *_, left, right in sorted(found, key=lambda m: m[:3])]
