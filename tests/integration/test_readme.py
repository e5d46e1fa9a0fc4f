"""What the README and the demo show is run as it stands, with the real small model."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from stack import SYMPOSIA, Stack, clean_environ, running_stack

from symposia.cli.info import running

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
pytestmark = pytest.mark.model


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def model_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack with the real small model in its store, served; converted once per checkout."""
    cache = os.environ.get("SYMPOSIA_CACHE", str(ROOT / ".cache"))
    with running_stack(tmp_path_factory.mktemp("readme"), "--test-models", "--no-flower", SYMPOSIA_CACHE=cache) as stack:
        os.environ["SYMPOSIA_CACHE"] = cache
        pull = [*SYMPOSIA, "models", "pull", "smollm2-135m", "--no-export", "--dir", str(stack.folder)]
        subprocess.run(pull, check=True, timeout=280, env=clean_environ(SYMPOSIA_CACHE=cache))
        stack.run("models", "serve", "smollm2-135m")
        yield stack


def test_the_first_working_snippet_comes_within_thirty_lines() -> None:
    assert README[: README.index("client.ask(")].count("\n") < 30


def test_the_readmes_python_runs(model_stack: Stack) -> None:
    for block in blocks("python"):
        ran = subprocess.run([sys.executable, "-c", block], env=clean_environ(SYMPOSIA_DIR=str(model_stack.folder)), capture_output=True, text=True,
                             timeout=200, check=False)
        assert ran.returncode == 0, ran.stderr
        assert "s3://symposia/jobs/" in ran.stdout


def test_the_readmes_commands_run(model_stack: Stack) -> None:
    commands = [line[2:] for block in blocks("console") for line in block.splitlines() if line.startswith("$ ")]
    assert commands
    for command in commands:
        words = shlex.split(command)
        assert words[0] == "symposia"
        ran = subprocess.run([*SYMPOSIA, *words[1:]], env=clean_environ(SYMPOSIA_DIR=str(model_stack.folder)), capture_output=True, text=True,
                             timeout=200, check=False)
        assert ran.returncode == 0, f"{command}\n{ran.stdout}\n{ran.stderr}"


def test_a_real_models_stream_is_its_recorded_text_and_its_debate_is_a_model(model_stack: Stack) -> None:
    key = json.loads((model_stack.folder / "credentials.json").read_text())["api_key"]
    with OpenAI(base_url=running(model_stack.folder)["api"], api_key=key, max_retries=0) as client:
        asked: dict[str, Any] = {"messages": [{"role": "user", "content": "Name three rivers."}], "max_tokens": 24, "temperature": 0}
        whole = client.chat.completions.create(model="smollm2-135m", **asked).choices[0].message.content
        pieces = [c.choices[0].delta.content or "" for c in client.chat.completions.create(model="smollm2-135m", stream=True, **asked)]
        assert "".join(pieces) == whole
        assert sum(1 for p in pieces if p) > 1, "it came in one piece"
        verdict = client.chat.completions.create(model="debate:smollm2-135m,smollm2-135m;rounds=2;answer_kind=text;early_stop=false", **asked)
        assert verdict.model_extra is not None
        assert verdict.model_extra["symposia"]["rounds"] >= 2


def test_two_asks_share_the_real_models_forward_passes(model_stack: Stack) -> None:
    from symposia import Inference, Sampling

    before = model_stack.settled_stats()
    story = Inference(model="smollm2-135m", prompt="Tell me a long story about a dragon.", sampling=Sampling(max_tokens=48))
    count = Inference(model="smollm2-135m", prompt="Count from one to ten.", sampling=Sampling(max_tokens=24))
    alone = model_stack.client.submit(count).result(120)
    handles = model_stack.client.submit_many([story, count])
    first, second = (h.result(120) for h in handles)
    one, two = (r.rounds[0].turns[0].reply for r in (first, second))
    assert one.kind == "completion"
    assert two.kind == "completion"
    assert two.timing.first_token_at is not None
    assert one.timing.last_token_at is not None
    assert two.timing.first_token_at < one.timing.last_token_at
    assert second.answer == alone.answer  # greedy: the same tokens, whatever shares the batch
    tokens = sum(r.bill.completion_tokens for r in (alone, first, second))
    import time

    time.sleep(2)  # two heartbeats: the pool adds its passes to the counters
    assert 0 < model_stack.since_of(before)["forward_passes"] < tokens


def test_a_prompt_beyond_the_context_is_refused_before_any_decode(model_stack: Stack) -> None:
    from symposia import Inference, JobFailed

    with pytest.raises(JobFailed, match="prompt_too_long"):
        model_stack.client.submit(Inference(model="smollm2-135m", prompt="one two three " * 3000)).result(60)
