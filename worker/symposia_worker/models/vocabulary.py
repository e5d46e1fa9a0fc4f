"""How much text one token can stand for, by a tokenizer's own file: what proves at submit that a prompt cannot fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: NFC makes at most so many bytes into one: the KELVIN SIGN's three become a K (checked over all of Unicode in the tests)
_NFC_SHRINKS = 3

#: steps of a pre-tokenizer that only cut the text and lose none of it
_CUTTERS = {"ByteLevel", "Digits", "Metaspace", "Punctuation", "Split", "UnicodeScripts"}


def _byte_characters() -> dict[str, int]:
    """The character byte-level BPE writes for each byte: itself where it can be seen, else one from U+0100 on (GPT-2's table)."""
    seen = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + i): byte for i, byte in enumerate(unseen)}


_BYTE_OF = _byte_characters()

#: Bytes of printable characters. SmolLM2 has no token for some others (control characters, planes 4 to 11 and 15 on) and drops them.
_NEEDED_BYTES = {*range(0x20, 0x7F), *range(0x80, 0xC0), *range(0xC2, 0xF1), 0xF3}


def longest_token_bytes(folder: Path) -> int | None:
    """The most UTF-8 bytes of printable text that one token of ``folder``'s ``tokenizer.json`` can stand for.

    None where no bound can be proved: the tokenizer drops or shortens text, one token may stand for text of any length, or
    there is no such file.
    """
    try:
        tokenizer: dict[str, Any] = json.loads((folder / "tokenizer.json").read_bytes())
    except (OSError, ValueError):
        return None
    try:
        return _bound(tokenizer)
    except (KeyError, TypeError, AttributeError):
        return None


def _bound(tokenizer: Mapping[str, Any]) -> int | None:
    model = tokenizer["model"]
    factor = _shrinks(tokenizer.get("normalizer"))
    if factor is None or tokenizer.get("truncation") or model["type"] != "BPE" or not _keeps_all(tokenizer.get("pre_tokenizer")):
        return None
    added = tokenizer.get("added_tokens") or []
    if any(token.get("lstrip") or token.get("rstrip") for token in added):
        return None
    special = {token["content"] for token in added}
    plain = [token for token in model["vocab"] if token not in special]
    if _byte_level(tokenizer):
        if _NEEDED_BYTES - {_BYTE_OF[token] for token in plain if len(token) == 1}:
            return None
        # each character of such a token is one byte
        longest = max(len(token) for token in plain)
    elif model.get("byte_fallback") and all(f"<0x{byte:02X}>" in model["vocab"] for byte in range(256)):
        longest = max(len(token.encode()) for token in plain)
    else:
        return None
    return factor * max([longest, *(len(content.encode()) for content in special)])


def _shrinks(normalizer: Mapping[str, Any] | None) -> int | None:
    """By how much the normalizer may shorten a text at most; None: by any amount."""
    if normalizer is None or normalizer["type"] == "Prepend":
        return 1
    if normalizer["type"] == "NFC":
        return _NFC_SHRINKS
    if normalizer["type"] == "Replace":
        old, new = normalizer["pattern"].get("String"), normalizer["content"]
        return 1 if old is not None and len(new.encode()) >= len(old.encode()) else None
    if normalizer["type"] == "Sequence":
        product = 1
        for step in normalizer["normalizers"]:
            factor = _shrinks(step)
            if factor is None:
                return None
            product *= factor
        return product
    return None


def _keeps_all(cutter: Mapping[str, Any] | None) -> bool:
    if cutter is None:
        return True
    if cutter["type"] in _CUTTERS:
        return cutter.get("behavior") != "Removed"
    return cutter["type"] == "Sequence" and all(_keeps_all(step) for step in cutter["pretokenizers"])


def _byte_level(tokenizer: Mapping[str, Any]) -> bool:
    cutter = tokenizer.get("pre_tokenizer") or {}
    return any(step["type"] == "ByteLevel" for step in cutter.get("pretokenizers", [cutter] if cutter else []))
