"""The benchmarks of a GPU and of many checkpoints, run small on a CPU."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from benchmarks import gpu, many
from benchmarks.engines.report import BASE

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def test_the_gpu_benchmark_measures_every_contender_of_a_size(tmp_path: Path) -> None:
    given = argparse.Namespace(device="cpu", dtype="bfloat16", tiny=True, requests=4, new=5, longest=1024, slots=4, rounds=1, threads=1, queue=False, only=[])
    shown = gpu.measure(tmp_path, "phi-3-mini", given)
    for contender in (BASE, "transformers' continuous batching", "ours, torch"):
        row = next(line for line in shown.splitlines() if line.startswith(f"| {contender} |"))
        assert row.endswith("| none |"), row
    assert "not measured" not in shown


def test_a_checkpoint_of_a_real_size_has_a_tokenizer_as_large_as_its_vocabulary(tmp_path: Path) -> None:
    _, tokenizer = gpu.made(tmp_path, "qwen2-1.5b", dtype="bfloat16", tiny=True)
    assert len(tokenizer) == 512
    assert tokenizer("The fox")["input_ids"] == gpu.tiny_tokenizer(chat=True)("The fox")["input_ids"]


def test_requests_are_as_many_as_asked_for_and_no_two_are_alike(tmp_path: Path) -> None:
    requests = gpu.requests_for(gpu.tiny_tokenizer(chat=True), wanted=60, new=8, longest=4096)
    assert len({r.ids for r in requests}) == len({r.id for r in requests}) == 60
    assert {r.max_new for r in requests} == {8}


def test_without_a_cuda_device_nothing_is_claimed_of_its_use() -> None:
    with gpu.Gauge("cpu") as gauge:
        pass
    assert math.isnan(gauge.mean)
    assert (gauge.name, gauge.memory_bytes) == ("none", 0)


def test_many_checkpoints_are_resident_and_each_is_served(tmp_path: Path) -> None:
    shown = many.measure(tmp_path, count=6, tokens=5, rounds=1, threads=1, size=SMALL)
    assert "| served, each asked once | 6 of 6 |" in shown
    assert "faults" not in shown


def test_a_checkpoint_that_was_not_served_is_told() -> None:
    served = [many.Served("a", 0.5, 1.0, 4), many.Served("b", 0.5, 2.0, 4)]
    rows = dict(many.served_rows([((served, ["c: it broke"]), (served, []))], 3))
    assert rows["served, each asked once"] == "2 of 3"
    assert rows["faults"] == "1: c: it broke"
    assert rows["tokens/s, all checkpoints"] == "4.0"
