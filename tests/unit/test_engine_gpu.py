"""What only a CUDA device can show: `make gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from symposia_shared.prompts import Sampling, user
from symposia_shared.turns import Completion
from symposia_worker.engines.protocol import Done, Generate, Load
from symposia_worker.engines.torch import TorchEngine
from tiny import tiny_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device and a CUDA build of torch"),
]
PROMPTS = ("def add(a", "The quick brown fox jumps over the lazy dog. " * 4, "What?", "x")


def answers(device: str, folder: Path) -> dict[str, str]:
    """Greedy fp32 answers to the prompts, batched on ``device``."""
    engine = TorchEngine(device, 1 << 30)
    engine.load(Load(checkpoint="tiny", folder=str(folder)))
    for n, prompt in enumerate(PROMPTS):
        engine.admit(Generate(id=str(n), checkpoint="tiny", messages=user(prompt), sampling=Sampling(max_tokens=24)))
    found: dict[str, str] = {}
    while engine.busy:
        found |= {e.id: said(e.completion) for e in engine.step() if isinstance(e, Done)}
    engine.unload("tiny")
    return found


def said(completion: Completion) -> str:
    return completion.text


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3", "gpt_neo"])
def test_a_cuda_device_says_what_the_cpu_says(architecture: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / architecture, architecture)
    assert answers("cuda:0", folder) == answers("cpu", folder)


def test_memory_of_a_cuda_device_is_returned_on_unload(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "llama", "llama")
    answers("cuda:0", folder)
    before = torch.cuda.memory_allocated()
    answers("cuda:0", folder)
    assert torch.cuda.memory_allocated() <= before
