"""The decode step that is recorded on a GPU, run here as it stands: over all slots of an allocation, live or not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoConfig

from asking import Asked, one_by_one
from symposia_shared.errors import Damaged
from symposia_worker.engines import torch as engine_module
from symposia_worker.engines.attention import NAME
from symposia_worker.engines.batch import Batch
from symposia_worker.engines.recorded import Recorded, window_of
from symposia_worker.engines.torch import TorchEngine
from tiny import ARCHITECTURES, tiny_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
PROMPTS = ("def add(a", "The quick brown fox jumps over the lazy dog. " * 4, "What?", "a " * 40, "Debate, then vote", "x", "y " * 60)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {name: tiny_checkpoint(root / name, name) for name in ARCHITECTURES}


def again(run: Callable[[], None]) -> Callable[[], None]:
    return run


def batch_of(engine: TorchEngine) -> Batch:
    batch = engine._residents["tiny"].batch
    assert isinstance(batch, Batch)
    return batch


def recording(folder: Path, record: Callable[[Callable[[], None]], Callable[[], None]] = again) -> tuple[Asked, Recorded]:
    asked = Asked(folder)
    batch = batch_of(asked.engine)
    batch._recorded = Recorded(batch._forward, batch.slots, record=record)
    return asked, batch._recorded


def answer(asked: Asked) -> list[tuple[str, int]]:
    """Joins while others are decoded, leaves at other times: allocations grow, are moved within and shrink."""
    for n, prompt in enumerate(PROMPTS):
        asked.ask(str(n), prompt, max_tokens=8 + 15 * n)
        asked.step(3)
    asked.finish()
    return [(c.text, c.usage.completion_tokens) for c in (asked.completion(str(n)) for n in range(len(PROMPTS)))]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_recorded_step_says_what_one_by_one_generate_says(folders: dict[str, Path], architecture: str) -> None:
    asked, recorded = recording(folders[architecture])
    assert answer(asked) == [one_by_one(folders[architecture], prompt, 8 + 15 * n) for n, prompt in enumerate(PROMPTS)]
    assert not recorded.refused or not getattr(batch_of(asked.engine).model, "_supports_attention_backend", False)


def test_steps_are_recorded_once_an_allocation_and_counted_as_passes(folders: dict[str, Path]) -> None:
    made: list[Callable[[], None]] = []
    run: list[int] = []

    def record(step: Callable[[], None]) -> Callable[[], None]:
        made.append(step)
        return lambda: (run.append(1), step())[1]

    asked, _ = recording(folders["llama"], record)
    asked.ask("a", "def add(a", max_tokens=100)
    asked.finish()
    batch = batch_of(asked.engine)
    tokens = asked.completion("a").usage.completion_tokens
    # one allocation of 64 columns and more, and where it was full another; the rest of the steps are repetitions
    assert 1 <= len(made) <= 2
    assert len(run) >= tokens - 1 - 3 * len(made)
    assert batch.forward_passes == 1 + tokens - 1


def test_a_model_that_cannot_be_recorded_is_decoded_kernel_by_kernel(folders: dict[str, Path]) -> None:
    def refuse(step: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")

    asked, recorded = recording(folders["llama"], refuse)
    assert answer(asked) == [one_by_one(folders["llama"], prompt, 8 + 15 * n) for n, prompt in enumerate(PROMPTS)]
    assert recorded.refused


def test_what_looks_at_a_part_of_its_window_is_recorded_within_that_part_only(folders: dict[str, Path]) -> None:
    windows = {name: window_of(AutoConfig.from_pretrained(folder)) for name, folder in folders.items()}
    assert windows["llama"] == float("inf")
    narrow = {name: w for name, w in windows.items() if w < float("inf")}
    assert narrow, "an architecture with local attention is among them"


def test_a_recording_is_given_back_with_the_slots(folders: dict[str, Path]) -> None:
    asked, recorded = recording(folders["llama"])
    asked.ask("a", "def add(a", max_tokens=20)
    asked.step(6)
    assert recorded._graph is not None
    asked.finish()
    assert recorded._graph is None


def test_a_gpus_checkpoint_that_fails_its_test_with_our_attention_is_tried_with_transformers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    config = SimpleNamespace(_attn_implementation=NAME)
    network = SimpleNamespace(device=SimpleNamespace(type="cuda"), config=config,
                              set_attn_implementation=lambda name: setattr(config, "_attn_implementation", name))

    def self_test(model: Any) -> int:
        if model.network.config._attn_implementation == NAME:
            raise Damaged("another token")
        return 77

    monkeypatch.setattr(engine_module, "self_test", self_test)
    model: Any = SimpleNamespace(network=network)
    assert engine_module._tested(model) == 77
    # on a CPU, or where it fails with that, too, it is refused
    network.device.type, config._attn_implementation = "cpu", NAME
    with pytest.raises(Damaged):
        engine_module._tested(model)
