"""How an encoder's states become one vector per text: as its sentence-transformers files say, else the mean over its tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

How = Literal["mean", "cls", "max", "last"]

_MODES: dict[str, How] = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max",
                          "pooling_mode_lasttoken": "last"}
#: what a chain of modules may hold beside the encoder itself; vectors are scaled to length one in any case
_UNDERSTOOD = ("Transformer", "Pooling", "Normalize")
#: UniXcoder's mark for texts that are only read (Guo et al. 2022, arXiv:2203.03850)
_ENCODER_ONLY = "<encoder-only>"


@dataclass(frozen=True, slots=True)
class Pooling:
    """The mean over a text's tokens, special ones included (as CodeBERT's and UniXcoder's authors and sentence-transformers do),
    unless the checkpoint names another way."""

    how: How = "mean"
    #: the longest text it was tuned for, in tokens; None: as long as the model reads
    longest: int | None = None


def pooling_of(folder: Path) -> Pooling:
    """What ``modules.json`` and the files it names say. Raises ValueError for a chain that is not understood."""
    modules = _json(folder / "modules.json") or []
    kinds = {str(m["type"]).rpartition(".")[2]: str(m.get("path", "")) for m in modules}
    strange = sorted(set(kinds) - set(_UNDERSTOOD))
    if strange:
        raise ValueError(f"its modules.json has a module {strange[0]!r} behind the encoder; {', '.join(_UNDERSTOOD)} are understood")
    stated_limits = _json(folder / "sentence_bert_config.json") or {}
    if stated_limits.get("do_lower_case"):
        raise ValueError("its sentence_bert_config.json has every text put in lower case first, which is not done here")
    limit = stated_limits.get("max_seq_length")
    longest = limit if isinstance(limit, int) and limit > 0 else None
    if "Pooling" not in kinds:
        return Pooling(longest=longest)
    stated = _json(folder / kinds["Pooling"] / "config.json")
    if stated is None:
        raise ValueError(f"its modules.json names {kinds['Pooling']}/config.json, which is not there")
    chosen = [name for name, on in stated.items() if name.startswith("pooling_mode_") and on is True]
    if len(chosen) != 1 or chosen[0] not in _MODES:
        raise ValueError(f"it pools by {', '.join(chosen) or 'nothing'}; one of {', '.join(_MODES)} is understood")
    return Pooling(how=_MODES[chosen[0]], longest=longest)


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of a text that is only read, in the form the encoder was trained with."""
    mode = tokenizer.get_vocab().get(_ENCODER_ONLY) if _ENCODER_ONLY in tokenizer.get_vocab() else None
    if mode is None:
        return list(tokenizer(text)["input_ids"])
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [tokenizer.cls_token_id, mode, tokenizer.sep_token_id, *ids, tokenizer.sep_token_id]


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
