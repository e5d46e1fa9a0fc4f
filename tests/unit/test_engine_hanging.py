"""When an engine process is taken to hang: not while it computes on a busy machine, and in the end whatever it does."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from symposia_shared.prompts import user
from symposia_shared.turns import Abstention, Completion, Turn
from symposia_worker.engines import hanging
from symposia_worker.engines.client import EngineProcess
from symposia_worker.engines.hanging import Effort, cpu_seconds, silence_allowed_s

PATIENCE_S = 60.0


class Pool:
    """An engine process whose steps last as long as its prompts say."""

    def __init__(self, folder: Path, **options: float) -> None:
        python = folder / "python"
        python.write_text(f'#!/bin/sh\nshift 3\nexec "{sys.executable}" "{Path(__file__).parents[1] / "stalling.py"}" "$@"\n')
        python.chmod(0o755)
        self.deaths: list[list[str]] = []
        self.replies: dict[str, Completion | Abstention] = {}
        self.engine = EngineProcess("cpu", 1 << 30, on_death=self.deaths.append, python=str(python), **options)
        self.engine.start()
        self.engine.load("tiny/stalling", engine="stalling")

    def ask(self, prompt: str) -> None:
        turn = Turn(member="m", model="tiny/stalling", messages=user(prompt))
        self.engine.generate(prompt, turn, None, lambda reply: self.replies.__setitem__(prompt, reply))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@pytest.fixture
def pool(tmp_path: Path) -> Iterator[Pool]:
    pool = Pool(tmp_path, hang_after_s=0.6)
    yield pool
    pool.engine.stop()


def test_a_step_that_computes_for_longer_than_the_limit_is_no_hang(pool: Pool) -> None:
    pool.ask("compute 2")
    until(lambda: "compute 2" in pool.replies)
    assert isinstance(pool.replies["compute 2"], Completion)
    assert pool.deaths == []


def test_a_step_that_waits_for_longer_than_the_limit_is_a_hang(pool: Pool) -> None:
    pool.ask("wait 600")
    until(lambda: bool(pool.deaths))
    assert pool.deaths == [["wait 600"]]


def test_an_endless_loop_is_a_hang_in_the_end(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hanging, "PATIENCE", 3.0)
    pool.ask("compute 600")
    until(lambda: bool(pool.deaths))
    assert pool.deaths == [["compute 600"]]


def test_where_steps_have_been_long_a_long_one_is_no_hang(pool: Pool) -> None:
    pool.ask("wait 0.2")
    until(lambda: pool.engine.pulse is not None and pool.engine.pulse.longest_step_s >= 0.2)
    pool.ask("wait 2")
    until(lambda: "wait 2" in pool.replies)
    assert pool.deaths == []


def test_a_gpus_process_is_not_judged_by_its_processor_time() -> None:
    assert EngineProcess("cpu:1").on_processor
    assert not EngineProcess("cuda:0").on_processor


def test_the_limit_grows_with_steps_and_with_what_is_computed() -> None:
    assert silence_allowed_s(60.0, longest_step_s=0.1, computes=False) == 60.0
    assert silence_allowed_s(60.0, longest_step_s=70.0, computes=False) == 1400.0
    assert silence_allowed_s(60.0, longest_step_s=0.1, computes=True) == 600.0
    assert silence_allowed_s(60.0, longest_step_s=70.0, computes=True) == 1400.0


def test_effort_is_what_was_computed_lately() -> None:
    effort = Effort()
    for second in range(100):  # a third of a core for 50 s, then nothing
        effort.look(float(second), min(second, 50) / 3)
        assert effort.computes(within_s=20.0) == (second < 70)
    unknown = Effort()
    for second in range(100):
        unknown.look(float(second), None)
    assert unknown.computes(within_s=20.0)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_processor_time_is_counted_for_threads_too_and_is_unknown_of_what_is_gone() -> None:
    before = cpu_seconds(os.getpid())
    assert before is not None
    until(lambda: sum(range(100_000)) >= 0 and (cpu_seconds(os.getpid()) or 0.0) > before)
    assert cpu_seconds(2**22 + 1) is None
