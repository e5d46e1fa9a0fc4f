"""Warm copies, on the device every machine has; `test_engine_gpu.py` has the same on a CUDA device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from symposia_shared.errors import BadInput
from symposia_shared.prompts import Sampling, user
from symposia_worker.engines import warm as module
from symposia_worker.engines.protocol import Done, Generate, Load
from symposia_worker.engines.torch import TorchEngine
from symposia_worker.engines.warm import Warm, WarmKey
from tiny import tiny_checkpoint


def said(engine: TorchEngine, checkpoint: str) -> str:
    """Its greedy answer."""
    engine.admit(Generate(id="x", checkpoint=checkpoint, messages=user("the quick brown"), sampling=Sampling(max_tokens=8)))
    found = ""
    while engine.busy:
        found += "".join(e.completion.text for e in engine.step() if isinstance(e, Done))
    return found


def test_a_checkpoint_that_was_kept_comes_back_without_its_file_and_says_the_same(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "a", "llama")
    engine = TorchEngine("cpu", 1 << 28, warm_bytes=1 << 26)
    first = engine.load(Load(checkpoint="a", folder=str(folder)))
    answer = said(engine, "a")
    engine.unload("a")
    assert engine.held == {}
    (folder / "model.safetensors").rename(tmp_path / "away")
    second = engine.load(Load(checkpoint="a", folder=str(folder)))
    assert said(engine, "a") == answer
    assert (second.bytes, second.context, second.cache_bytes_per_token) == (first.bytes, first.context, first.cache_bytes_per_token)


def test_without_room_for_copies_a_checkpoint_is_read_again(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path / "a", "llama")
    engine = TorchEngine("cpu", 1 << 28)  # a processor keeps none
    engine.load(Load(checkpoint="a", folder=str(folder)))
    engine.unload("a")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="safetensors"):
        engine.load(Load(checkpoint="a", folder=str(folder)))


def test_the_copy_kept_longest_ago_is_given_up_first_and_none_that_is_too_large_is_kept() -> None:
    warm, networks = Warm[str](20), {name: torch.nn.Linear(2, 2) for name in "abc"}
    keys = {name: WarmKey(name, "folder", "float32") for name in "abc"}
    for name in "abc":
        warm.keep(keys[name], name, networks[name], size=10)
    assert [warm.size(keys[name]) for name in "abc"] == [None, 10, 10]
    warm.keep(keys["a"], "a", networks["a"], size=21)
    assert warm.take(keys["a"], "cpu") is None
    assert warm.take(keys["b"], "cpu") == "b"
    assert warm.bytes == 10


def test_weights_are_copied_once_and_what_an_architecture_computed_since_comes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a network that was kept, came back, and computed a buffer anew
    copied: list[torch.Size] = []
    host_copy = module._host_copy

    def seen(weight: torch.Tensor) -> torch.Tensor:
        copied.append(weight.shape)
        return host_copy(weight)

    monkeypatch.setattr(module, "_host_copy", seen)
    warm, network, key = Warm[str](20), torch.nn.BatchNorm1d(2), WarmKey("a", "folder", "float32")
    warm.keep(key, "a", network, size=10)
    assert warm.take(key, "cpu") == "a"
    assert network.running_mean is not None
    network.running_mean.fill_(3.0)
    # When it leaves again, then no weight is copied again, and it is whole
    warm.keep(key, "a", network, size=10)
    assert len(copied) == 2
    assert warm.take(key, "cpu") == "a"
    assert network.running_mean.tolist() == [3.0, 3.0]
    assert network.weight.tolist() == [1.0, 1.0]


def test_copies_of_what_is_back_on_the_device_are_given_up_before_what_is_not() -> None:
    warm, networks = Warm[str](20), {name: torch.nn.Linear(2, 2) for name in "abc"}
    keys = {name: WarmKey(name, "folder", "float32") for name in "abc"}
    for name in "ab":
        warm.keep(keys[name], name, networks[name], size=10)
    assert warm.take(keys["b"], "cpu") == "b"
    assert warm.take(keys["b"], "cpu") is None  # it is there already
    warm.keep(keys["c"], "c", networks["c"], size=10)
    assert [warm.size(keys[name]) for name in "abc"] == [10, None, 10]
