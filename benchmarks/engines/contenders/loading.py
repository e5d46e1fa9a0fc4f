"""A transformers model as its documentation loads it, for the contenders that are transformers itself."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Options:
    """What every contender is told on its command line."""

    folder: str
    device: str
    dtype: str
    threads: int
    slots: int
    longest: int


def options(*more: tuple[str, str]) -> tuple[Options, argparse.Namespace]:
    """The command line; ``more``: (flag, default) of the contender's own."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--slots", type=int, default=16, help="sequences in one batch, for those that must be told")
    parser.add_argument("--longest", type=int, default=2048, help="tokens of the longest prompt and its answer")
    for flag, default in more:
        parser.add_argument(flag, default=default)
    given = parser.parse_args()
    return Options(given.folder, given.device, given.dtype, given.threads, given.slots, given.longest), given


def model_of(asked: Options, **more: Any) -> Any:
    """The model in inference mode on its device, without a token that ends its answers."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(asked.threads)
    torch.set_grad_enabled(False)
    model = AutoModelForCausalLM.from_pretrained(asked.folder, dtype=getattr(torch, asked.dtype), local_files_only=True, **more)
    model = model.to(asked.device).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def versions(*names: str) -> dict[str, str]:
    """Installed versions."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
