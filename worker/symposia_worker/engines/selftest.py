"""The test every checkpoint passes when it is loaded: batched, chunked, staggered decoding gives what a plain forward gives."""

from __future__ import annotations

import torch

from symposia_shared.errors import Damaged
from symposia_shared.prompts import Sampling
from symposia_worker.engines.batch import Batch
from symposia_worker.engines.loading import Model
from symposia_worker.engines.prefixes import Prefixes
from symposia_worker.engines.sequence import Sequence

#: the last begins as the first, so that it goes on from what was kept of it
_TEXTS = ("The quick brown fox jumps over the lazy dog, and then it", "def add(a, b):\n", "The quick brown fox jumps over the wall")
_NEW_TOKENS = 6
#: how far below the best logit of a single forward a chosen token may lie; half precision rounds at each layer
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}


def self_test(model: Model) -> int:
    """Bytes of cache one token takes. Raises Damaged where a token differs from the single-sequence forward's."""
    batch = Batch(model.network, vocabulary=model.renderer.vocabulary, max_rows=2, chunk_tokens=4, prefixes=Prefixes(1 << 30, block=4))
    most = max(1, min(_NEW_TOKENS, model.context // 4))
    sequences = [Sequence(text, _prompt(model, text), Sampling(), lambda ids: "", max_new=most) for text in _TEXTS]
    for sequence in sequences:
        batch.admit(sequence)
        for _ in range(4):  # the second joins while the first is being decoded
            batch.step()
    while batch.busy:
        batch.step()
    for sequence in sequences:
        _compare(model, sequence)
    return batch.cache_bytes_per_token


def _prompt(model: Model, text: str) -> list[int]:
    ids = model.renderer.tokenizer(text)["input_ids"]
    kept = [i for i in ids if i < min(model.renderer.vocabulary, model.embeddings)]
    return kept[: max(1, model.context // 2)] or [0]


def _compare(model: Model, sequence: Sequence) -> None:
    if sequence.fault:
        raise Damaged(f"{model.checkpoint} failed its self-test: {sequence.fault[1]} It is not served; verify it and pull it again.")
    ids = torch.tensor([sequence.ids], device=model.network.device)
    begin = sequence.prompt_tokens - 1
    logits = model.network(input_ids=ids, use_cache=False).logits[0, begin:-1, : model.renderer.vocabulary].float()
    chosen = logits.gather(1, ids[0, begin + 1 :, None]).squeeze(1)
    behind = float((logits.max(dim=-1).values - chosen).max())
    if not behind <= _TOLERANCE[model.network.dtype]:
        raise Damaged(f"{model.checkpoint} ({model.model_type}) failed its self-test: batched decoding chose a token {behind:.3g} below "
                      "the best logit of a single forward. It is not served: it needs another engine, or its weights are damaged.")
