"""A checkpoint that comes back is not tested again, one whose files have changed is."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from catalogue_tiny import EIGHTEEN, plain
from symposia_shared.errors import Damaged
from symposia_shared.prompts import Sampling, user
from symposia_worker.engines import torch as engine_module
from symposia_worker.engines.encoder import EncoderLane
from symposia_worker.engines.passed import Passed
from symposia_worker.engines.protocol import Done, Generate, Load
from symposia_worker.engines.torch import TorchEngine
from tiny import tiny_checkpoint


class Counted:
    """The engine's self-test, counted."""

    def __init__(self, test: Any) -> None:
        self.test, self.runs = test, 0

    def __call__(self, model: Any) -> int:
        self.runs += 1
        return int(self.test(model))


@pytest.fixture
def tests_run(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counted = Counted(engine_module.self_test)
    monkeypatch.setattr(engine_module, "self_test", counted)
    return counted


def answer(engine: TorchEngine, checkpoint: str) -> str:
    engine.admit(Generate(id="a", checkpoint=checkpoint, messages=user("the quick brown"), sampling=Sampling(max_tokens=8)))
    while engine.busy:
        for event in engine.step():
            if isinstance(event, Done):
                return event.completion.text
    raise AssertionError("no answer")


def test_one_that_comes_back_is_served_as_before_without_another_test(tmp_path: Path, tests_run: Counted) -> None:
    folder = tiny_checkpoint(tmp_path / "m", "llama")
    engine = TorchEngine("cpu", 1 << 30)
    first = engine.load(Load(checkpoint="m", folder=str(folder)))
    said = answer(engine, "m")
    engine.unload("m")
    again = engine.load(Load(checkpoint="m", folder=str(folder)))
    assert (tests_run.runs, again.cache_bytes_per_token, answer(engine, "m")) == (1, first.cache_bytes_per_token, said)


def test_one_whose_files_were_replaced_is_tested_again(tmp_path: Path, tests_run: Counted) -> None:
    folder = tiny_checkpoint(tmp_path / "m", "llama")
    engine = TorchEngine("cpu", 1 << 30)
    engine.load(Load(checkpoint="m", folder=str(folder)))
    engine.unload("m")
    weights = folder / "model.safetensors"
    shutil.copyfile(weights, folder / "new")
    os.replace(folder / "new", weights)
    engine.load(Load(checkpoint="m", folder=str(folder)))
    assert tests_run.runs == 2


def test_another_precision_is_another_test_and_a_failure_is_not_remembered(tmp_path: Path) -> None:
    passed, runs = Passed(), list[str]()
    (tmp_path / "model.safetensors").write_bytes(b"weights")

    def fails() -> int:
        runs.append("failed")
        raise Damaged("wrong")

    for _ in range(2):
        with pytest.raises(Damaged):
            passed.once(tmp_path, "float32", fails)
    assert [passed.once(tmp_path, dtype, lambda: runs.append("ran") or 7) for dtype in ("float32", "bfloat16", "float32")] == [7, 7, 7]
    assert runs == ["failed", "failed", "ran", "ran"]


def test_an_encoders_test_is_run_once_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs, right = list[int](), EncoderLane.self_test

    def counted(self: EncoderLane) -> None:
        runs.append(1)
        right(self)

    monkeypatch.setattr(EncoderLane, "self_test", counted)
    folder = plain(next(c for c in EIGHTEEN if c.slug == "codebert-base"), tmp_path)[0]
    engine = TorchEngine("cpu", 1 << 30)
    for _ in range(2):
        engine.load(Load(checkpoint="e", folder=str(folder)))
        engine.unload("e")
    assert len(runs) == 1
