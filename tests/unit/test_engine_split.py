"""Checkpoints larger than a device: split over memory and disk by accelerate, with the tokens they have whole; refused with the numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from asking import Asked, one_by_one, plain
from symposia_shared.errors import BadInput
from symposia_worker.engines.protocol import Load
from symposia_worker.engines.split import split_over
from symposia_worker.engines.torch import TorchEngine
from tiny import tiny_checkpoint

SIZE = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of 24 MB."""
    torch.set_num_threads(1)
    return tiny_checkpoint(tmp_path_factory.mktemp("large"), "llama", seed=3, **SIZE)


def weights(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.glob("*.safetensors"))


def test_a_checkpoint_that_is_larger_than_the_budget_is_served_from_disk_with_its_own_tokens(large: Path) -> None:
    # Given less than half of what its weights take
    budget = int(0.45 * weights(large))
    asked = Asked(large, memory=budget, device="cpu+disk")
    # Then only a part of it is in memory
    assert 0 < asked.loaded.bytes < budget
    # When several turns are batched, each says what the whole checkpoint says to it alone
    prompts = ("def add(a", "What is the capital of France?", "x")
    for k, prompt in enumerate(prompts):
        asked.ask(str(k), prompt, max_tokens=8)
    asked.finish()
    for k, prompt in enumerate(prompts):
        assert asked.completion(str(k)).text == one_by_one(large, prompt, 8)[0]
    asked.engine.unload("tiny")
    assert asked.engine.held_bytes == 0


def test_the_same_checkpoint_on_the_device_itself_is_refused_with_the_numbers_and_the_way_out(large: Path) -> None:
    budget = int(0.45 * weights(large))
    with pytest.raises(BadInput, match=rf"needs {weights(large) / 1e6:.0f} MB, and cpu has {budget / 1e6:.0f} MB left.*cpu\+disk"):
        Asked(large, memory=budget)


def test_where_not_even_the_embedding_fits_it_is_refused(large: Path) -> None:
    engine = TorchEngine("cpu+disk", 100_000)
    with pytest.raises(BadInput, match="its embedding alone takes"):
        engine.load(Load(checkpoint="tiny", folder=str(large)))
    assert engine.resident == {}


def test_what_fits_whole_is_not_split(large: Path) -> None:
    asked = Asked(large, device="cpu+disk")
    asked.ask("a", "def add(a", max_tokens=4)
    asked.finish()
    assert asked.completion("a").text == one_by_one(large, "def add(a", 4)[0]
    assert asked.loaded.bytes >= sum(p.nbytes for p in plain(large)[0].parameters())


def test_gpus_share_the_room_evenly_and_the_processor_takes_none_of_it() -> None:
    assert split_over("cuda:0+cuda:2", 10_000) == {"device_map": "auto", "max_memory": {0: 4000, 2: 4000, "cpu": 0}}
    assert split_over("cpu:1+disk", 10_000) == {"device_map": "auto", "max_memory": {"cpu": 8000}}


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="two GPUs are needed")
def test_two_gpus_serve_what_is_larger_than_one(large: Path) -> None:
    asked = Asked(large, memory=int(1.4 * weights(large)), device="cuda:0+cuda:1")
    asked.ask("a", "def add(a", max_tokens=8)
    asked.finish()
    assert asked.completion("a").text == one_by_one(large, "def add(a", 8)[0]
