"""What only a CUDA device can show: `make gpu`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from adapters import tiny_adapter
from symposia_shared.prompts import Sampling, user
from symposia_shared.turns import Completion
from symposia_worker.engines.batch import Batch
from symposia_worker.engines.protocol import Base, Done, Event, Failed, Generate, Load
from symposia_worker.engines.recorded import StepGraph
from symposia_worker.engines.torch import TorchEngine
from tiny import ARCHITECTURES, tiny_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device and a CUDA build of torch"),
]
CUDA = "cuda:0"
PROMPTS = ("def add(a", "The quick brown fox jumps over the lazy dog. " * 4, "What?", "x")


def ran(engine: TorchEngine, checkpoints: Sequence[str], *, tokens: int = 24) -> list[Event]:
    """Every prompt to every checkpoint, all at once, greedy; the events that ended them."""
    for checkpoint in checkpoints:
        for n, prompt in enumerate(PROMPTS):
            engine.admit(Generate(id=f"{checkpoint} {n}", checkpoint=checkpoint, messages=user(prompt), sampling=Sampling(max_tokens=tokens)))
    ended: list[Event] = []
    while engine.busy:
        ended += [e for e in engine.step() if isinstance(e, (Done, Failed))]
    return ended


def answers(device: str, folder: Path, *, memory_bytes: int = 1 << 30, tokens: int = 24) -> dict[str, str]:
    """Greedy fp32 answers to the prompts, batched on ``device``."""
    engine = TorchEngine(device, memory_bytes)
    engine.load(Load(checkpoint="tiny", folder=str(folder)))
    found = {e.id: said(e.completion) for e in ran(engine, ["tiny"], tokens=tokens) if isinstance(e, Done)}
    engine.unload("tiny")
    return found


def said(completion: Completion) -> str:
    return completion.text


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_cuda_device_says_what_the_cpu_says(architecture: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / architecture, architecture)
    assert answers(CUDA, folder) == answers("cpu", folder)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "phi3"])
def test_decode_steps_are_recorded_and_say_what_steps_launched_one_by_one_say(architecture: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / architecture, architecture)
    engine = TorchEngine(CUDA, 1 << 30)
    engine.load(Load(checkpoint="tiny", folder=str(folder)))
    batch = engine._residents["tiny"].batch
    assert isinstance(batch, Batch)
    assert batch._recorded is not None
    graphs: set[int] = set()
    step = StepGraph.step

    def seen(self: StepGraph, newest: Sequence[int], lengths: Sequence[int]) -> torch.Tensor:
        graphs.add(id(self))
        return step(self, newest, lengths)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(StepGraph, "step", seen)
        recorded = {e.id: said(e.completion) for e in ran(engine, ["tiny"], tokens=100) if isinstance(e, Done)}
    assert graphs
    assert not batch._recorded.refused
    batch._recorded = None
    assert {e.id: said(e.completion) for e in ran(engine, ["tiny"], tokens=100) if isinstance(e, Done)} == recorded


def test_memory_of_a_cuda_device_is_returned_on_unload(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "llama", "llama")
    answers(CUDA, folder)
    before = torch.cuda.memory_allocated()
    answers(CUDA, folder)
    assert torch.cuda.memory_allocated() <= before


def test_two_checkpoints_on_a_cuda_device_answer_as_each_alone(tmp_path: Path) -> None:
    folders = {name: tiny_checkpoint(tmp_path / name, name) for name in ("llama", "qwen2")}
    engine = TorchEngine(CUDA, 1 << 30)
    for name, folder in folders.items():
        engine.load(Load(checkpoint=name, folder=str(folder)))
    together = {e.id: said(e.completion) for e in ran(engine, list(folders)) if isinstance(e, Done)}
    alone = {f"{name} {key.partition(' ')[2]}": text for name, folder in folders.items() for key, text in answers(CUDA, folder).items()}
    assert together == alone


def test_a_cuda_device_with_little_memory_answers_the_same_and_fails_nobody(tmp_path: Path) -> None:
    # Given a budget in which the caches of all sequences do not fit beside one another
    folder = tiny_checkpoint(tmp_path / "llama", "llama")
    weights = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    # Then those that wait, or are put back, say what they say with all the memory they want
    assert answers(CUDA, folder, memory_bytes=weights + 120_000, tokens=100) == answers(CUDA, folder, tokens=100)


def test_half_precision_on_a_cuda_device_passes_the_self_test_and_answers_everybody(tmp_path: Path) -> None:
    engine = TorchEngine(CUDA, 1 << 30)
    folder = tiny_checkpoint(tmp_path / "llama", "llama")
    engine.load(Load(checkpoint="tiny", folder=str(folder), dtype="bfloat16"))
    ended = ran(engine, ["tiny"])
    assert [type(e).__name__ for e in ended] == ["Done"] * len(PROMPTS)


def test_what_left_a_cuda_device_comes_back_from_host_memory_and_says_the_same(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "llama", "llama")
    engine = TorchEngine(CUDA, 1 << 30)
    order = Load(checkpoint="tiny", folder=str(folder))
    answers(CUDA, folder)
    before = torch.cuda.memory_allocated()  # what a matrix product has for itself on each stream, once and for good
    first = engine.load(order)
    said_first = {e.id: said(e.completion) for e in ran(engine, ["tiny"]) if isinstance(e, Done)}
    engine.unload("tiny")
    assert torch.cuda.memory_allocated() <= before
    (folder / "model.safetensors").unlink()  # it is not read again
    second = engine.load(order)
    assert {e.id: said(e.completion) for e in ran(engine, ["tiny"]) if isinstance(e, Done)} == said_first
    assert second.bytes == first.bytes
    engine.unload("tiny")


def test_an_adapter_on_a_cuda_device_says_what_it_says_on_the_cpu(tmp_path: Path) -> None:
    base = tiny_checkpoint(tmp_path / "llama", "llama")
    adapter = tiny_adapter(tmp_path / "adapter", base, name="tiny", targets=("q_proj", "down_proj"))
    said_on = {}
    for device in (CUDA, "cpu"):
        engine = TorchEngine(device, 1 << 30)
        engine.load(Load(checkpoint="tiny", folder=str(base)))
        engine.load(Load(checkpoint="adapted", folder=str(adapter), base=Base(checkpoint="tiny", folder=str(base))))
        said_on[device] = {e.id: said(e.completion) for e in ran(engine, ["tiny", "adapted"], tokens=60) if isinstance(e, Done)}
    assert said_on[CUDA] == said_on["cpu"]
