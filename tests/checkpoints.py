"""Small checkpoints made of real safetensors files, without torch."""

from __future__ import annotations

import json
import random
from pathlib import Path

from symposia_shared.catalogue import Facts


def facts(**changed: object) -> Facts:
    """Facts of a checkpoint that does not exist."""
    some: dict[str, object] = {
        "architecture": "LlamaForCausalLM", "model_type": "llama", "parameters": 100, "context": 128, "vocab": 320, "longest_token_bytes": 16,
        "capabilities": ("generate",), "licence": "Apache-2.0", "source": "folder:made", "bits_per_byte": 0.9, "dtype": "float32",
    }
    return Facts.parse({**some, **changed})


def safetensors(elements: int, *, seed: int = 0) -> bytes:
    """A safetensors file with one tensor of so many bytes of noise."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [elements], "data_offsets": [0, elements]}}).encode()
    return len(header).to_bytes(8, "little") + header + random.Random(seed).randbytes(elements)


def make_checkpoint(folder: Path, *, elements: int = 4096, seed: int = 0) -> Path:
    """A folder in transformers' form; two of its files have the same size."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "seed": seed}))
    (folder / "model-00001-of-00002.safetensors").write_bytes(safetensors(elements, seed=2 * seed))
    (folder / "model-00002-of-00002.safetensors").write_bytes(safetensors(elements, seed=2 * seed + 1))
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": {}}}))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that is not hidden, by path."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.startswith(".")}
