"""Two checkpoints in one collaboration on one device: the sequences of both are decoded by the same engine process at the same time."""

from __future__ import annotations

import time
from pathlib import Path

from stack import Stack, running_stack, wait_for

from checkpoints import facts
from symposia import Ensemble, Member, Sampling
from symposia_shared.results import TurnRecord
from symposia_shared.turns import Completion
from symposia_worker.models.store import ModelStore
from tiny import tiny_checkpoint

TOKENS = 400


def test_an_ensemble_of_two_checkpoints_shares_the_device_between_them(tmp_path: Path) -> None:
    # Given two checkpoints of different architectures, resident on one pool
    with running_stack(tmp_path / "stack", "--no-flower") as stack:
        for seed, architecture in enumerate(("llama", "qwen2")):
            put(stack, tmp_path / architecture, architecture, seed)
        # When an ensemble asks both
        members = [Member(model="lab/llama"), Member(model="lab/qwen2"), Member(model="lab/llama", name="again")]
        job = Ensemble(prompt="Say what comes next.", members=members, answer_kind="text", early_stop=False, sampling=Sampling(max_tokens=TOKENS))
        before = passes(stack)
        result = stack.client.submit(job).result(120)
        # Then the transcript has the answers of both, of the same pool, and their tokens were made in the same stretch of time
        turns = result.rounds[0].turns
        said = [completion(t) for t in turns]
        assert [c.usage.completion_tokens for c in said] == [TOKENS] * 3
        assert len({c.pool for c in said}) == 1
        spans = {t.turn.member: span(t) for t in turns}
        one, other = spans["lab/llama"], spans["lab/qwen2"]
        assert max(one[0], other[0]) < min(one[1], other[1]), spans
        # and two sequences of one checkpoint shared its forward passes: fewer were run than tokens were made
        assert 2 * TOKENS <= passes(stack) - before < 3 * TOKENS


def put(stack: Stack, folder: Path, architecture: str, seed: int) -> None:
    """Make a checkpoint without an end token it would say, store it, and have the pool serve it."""
    tiny_checkpoint(folder, architecture, chat=True, seed=seed, max_position_embeddings=1024)
    ModelStore(stack.client.archive.store).push(folder, f"lab/{architecture}", facts=facts(
        model_type=architecture, context=1024, capabilities=("generate", "instruct")))
    stack.run("models", "serve", f"lab/{architecture}")


def completion(record: TurnRecord) -> Completion:
    assert isinstance(record.reply, Completion), record.reply
    return record.reply


def span(record: TurnRecord) -> tuple[float, float]:
    """When its first and its last token existed."""
    timing = completion(record).timing
    assert timing.first_token_at is not None
    assert timing.last_token_at is not None
    return timing.first_token_at, timing.last_token_at


def passes(stack: Stack) -> int:
    """Forward passes of the pool's engine process, once it has told the last of them with a heartbeat."""
    seen: list[int] = []

    def steady() -> bool:
        time.sleep(0.7)  # heartbeats are half a second apart
        seen.append(stack.stats()["forward_passes"])
        return len(seen) > 2 and len(set(seen[-3:])) == 1

    wait_for(steady)
    return seen[-1]
