"""How fast a form decodes here, and in what it computes: run as ``python -m symposia_worker.families.measure FOLDER MODE [--threads N]``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from symposia_shared.prompts import Sampling
from symposia_worker.engines.exported_pair import ExportedPair
from symposia_worker.engines.paged import BLOCK_TOKENS, Paged
from symposia_worker.engines.pair import Pair
from symposia_worker.engines.protocol import Mode
from symposia_worker.engines.runtime import MODEL_XML, is_pair, openvino, properties

#: requests at once, and the tokens each is asked for
ROWS, NEW_TOKENS = 8, 32
_PROMPT_TOKENS = 64


def decode_rate(folder: Path, mode: Mode, prompts: list[list[int]], *, threads: int) -> tuple[float, int]:
    """Tokens of completion in a second with ROWS short prompts at once, reading them included, after a warm-up; and ROWS."""
    given = _short(prompts)
    paged = Paged(folder, mode, blocks=ROWS * ((_PROMPT_TOKENS + NEW_TOKENS) // BLOCK_TOKENS + 2), rows=ROWS, chunk_tokens=256, threads=threads)
    _run(paged, given[:1], 2)
    began = time.perf_counter()
    tokens = _run(paged, given, NEW_TOKENS)
    return round(tokens / (time.perf_counter() - began), 1), ROWS


def pair_rate(folder: Path, mode: Mode, prompts: list[list[int]], *, threads: int) -> tuple[float, int]:
    """``decode_rate`` of an encoder-decoder."""
    pair, given = ExportedPair(folder.name, folder, mode, threads=threads), _short(prompts)
    greedy_answers(pair, given[:1], [2])
    began = time.perf_counter()
    greedy_answers(pair, given, [NEW_TOKENS] * ROWS)
    return round(ROWS * NEW_TOKENS / (time.perf_counter() - began), 1), ROWS


def greedy_answers(pair: Pair, prompts: list[list[int]], most: list[int], *, vocabulary: int | None = None) -> list[list[int]]:
    """The best tokens behind each prompt, as many as ``most`` says of it, all in one batch; a row leaves it at its end."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    ids = pad_sequence([torch.tensor(prompt) for prompt in prompts], batch_first=True, padding_value=pair.pad)
    mask = pad_sequence([torch.ones(len(prompt), dtype=torch.int64) for prompt in prompts], batch_first=True)
    answers = pair.answers(pair.encode(ids, mask), mask)
    written: list[list[int]] = [[pair.start] for _ in prompts]
    rows = list(range(len(prompts)))
    while rows:
        logits = answers.advance(torch.tensor([[written[row][-1]] for row in rows]))[:, :vocabulary]
        for row, token in zip(rows, logits.argmax(dim=-1).tolist(), strict=True):
            written[row].append(token)
        staying = [n for n, row in enumerate(rows) if len(written[row]) <= most[row]]
        if staying and len(staying) < len(rows):
            answers.keep(staying)
        rows = [rows[n] for n in staying]
    return [tokens[1:] for tokens in written]


def _short(prompts: list[list[int]]) -> list[list[int]]:
    """ROWS prompts of at most _PROMPT_TOKENS."""
    return [(prompt * (1 + _PROMPT_TOKENS // len(prompt)))[n : n + _PROMPT_TOKENS - n] for n, prompt in enumerate((prompts * ROWS)[:ROWS])]


def precisions(folder: Path, mode: Mode, *, threads: int) -> tuple[str, str]:
    """In what the plugin says it computes, and keeps keys and values."""
    ov = openvino()
    core = ov.Core()
    compiled = core.compile_model(core.read_model(folder / MODEL_XML), "CPU", properties(mode, threads))
    names = (compiled.get_property(name) for name in ("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION"))
    activations, cache = (str(getattr(value, "get_type_name", lambda v=value: v)()) for value in names)
    return activations, cache


def processor() -> str:
    """The processor's name, as Linux gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _run(paged: Paged, prompts: list[list[int]], most: int) -> int:
    for prompt in prompts:
        paged.add(prompt, Sampling(), max_new=most)
    tokens = 0
    while paged.busy:
        tokens += sum(len(piece.tokens) for piece in paged.step())
    return tokens


def main() -> int:
    """The command line: FOLDER MODE [--threads N]."""
    from transformers import AutoTokenizer

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("mode", choices=("exact", "fast"))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(given.folder, local_files_only=True, trust_remote_code=False)
    ids = tokenizer("The harbour master kept two books. In the first he wrote the name of every ship that came in, and def f(x):\n")["input_ids"]
    rate, rows = (pair_rate if is_pair(given.folder) else decode_rate)(given.folder, given.mode, [list(ids)], threads=given.threads)
    print(json.dumps({"tokens_per_s": rate, "rows": rows, "threads": given.threads, "processor": processor()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
