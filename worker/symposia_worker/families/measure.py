"""How fast a form decodes here, and in what it computes: run as ``python -m symposia_worker.families.measure FOLDER MODE [--threads N]``."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from symposia_shared.prompts import Sampling
from symposia_worker.engines.paged import BLOCK_TOKENS, Paged
from symposia_worker.engines.protocol import Mode
from symposia_worker.engines.runtime import MODEL_XML, openvino, properties

#: requests at once, and the tokens each is asked for
ROWS, NEW_TOKENS = 8, 32
_PROMPT_TOKENS = 64


def decode_rate(folder: Path, mode: Mode, prompts: list[list[int]], *, threads: int) -> tuple[float, int]:
    """Tokens of completion in a second with ROWS short prompts at once, reading them included, after a warm-up; and ROWS."""
    given = [(prompt * (1 + _PROMPT_TOKENS // len(prompt)))[n : n + _PROMPT_TOKENS - n] for n, prompt in enumerate((prompts * ROWS)[:ROWS])]
    paged = Paged(folder, mode, blocks=ROWS * ((_PROMPT_TOKENS + NEW_TOKENS) // BLOCK_TOKENS + 2), rows=ROWS, chunk_tokens=256, threads=threads)
    _run(paged, given[:1], 2)
    began = time.perf_counter()
    tokens = _run(paged, given, NEW_TOKENS)
    return round(tokens / (time.perf_counter() - began), 1), ROWS


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
    rate, rows = decode_rate(given.folder, given.mode, [list(ids)], threads=given.threads)
    print(json.dumps({"tokens_per_s": rate, "rows": rows, "threads": given.threads, "processor": processor()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
