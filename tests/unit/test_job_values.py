from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from symposia_shared.errors import BadInput
from symposia_shared.jobs import Inference, Member
from symposia_shared.patterns import parse_job
from symposia_shared.patterns.ensemble import Ensemble
from symposia_shared.prompts import Message, Sampling

THREE = [{"model": "test/echo"}] * 3


@pytest.mark.parametrize(
    ("raw", "field", "words"),
    [
        ({"model": "a/b", "promt": "x"}, "promt", "Did you mean 'prompt'"),
        ({"model": "a/b", "prompt": "  "}, "prompt", "empty"),
        ({"model": "a/b"}, "Inference", "'prompt' or 'messages'"),
        ({"prompt": "x"}, "model", "missing"),
        ({"model": "../etc/passwd", "prompt": "x"}, "model", "not a checkpoint's name"),
        ({"model": "test/nothing", "prompt": "x"}, "model", "test/echo"),
        ({"model": "a", "prompt": "x", "sampling": {"temperature": -1}}, "sampling.temperature", "greater than or equal to 0"),
        ({"model": "a", "prompt": "x", "sampling": {"max_tokens": 0}}, "sampling.max_tokens", "greater than or equal to 1"),
        ({"model": "a", "messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", "'system', 'user'"),
        ({"kind": "ensemble", "prompt": "x", "members": THREE[:2]}, "members", "at least 3"),
        ({"kind": "ensemble", "prompt": "x", "members": [{"model": "test/echo"}] * 21}, "members", "at most 20"),
        ({"kind": "ensemble", "prompt": "x", "members": THREE, "quorum": 4}, "Ensemble", "quorum is 4"),
        ({"kind": "ensemble", "prompt": "x", "members": THREE, "consensus": "loudest"}, "consensus", "majority_vote"),
        ({"kind": "quarrel", "prompt": "x"}, "kind", "ensemble"),
        ({"kind": "ensemble", "prompt": "x", "members": [{"model": "a", "name": "n"}, {"model": "b", "name": "n"}, {"model": "c"}]}, "members", "same name"),
    ],
)
def test_bad_input_names_the_field_and_the_remedy(raw: dict[str, object], field: str, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_job(raw)
    assert caught.value.field == field
    assert words in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_job_survives_its_own_json() -> None:
    jobs = [
        Inference(model="a/b", prompt="x", sampling=Sampling(seed=3, stop=("\n",))),
        Inference(model="a", messages=(Message(role="system", content="s"), Message(role="user", content="u"))),
        Ensemble(prompt="x", members=(Member(model="a"), Member(model="a"), Member(model="b", role="be brief")), quorum=2),
    ]
    for job in jobs:
        import json

        assert parse_job(json.loads(job.to_json())) == job
        assert parse_job(job.model_dump(mode="json")) == job


def test_members_of_one_checkpoint_get_names_and_seeds_of_their_own() -> None:
    job = Ensemble(prompt="x", members=[Member(model="a")] * 3).seeded(10)
    step = next(job.play())
    turns = step.turns if hasattr(step, "turns") else step
    assert [t.member for t in turns] == ["a#1", "a#2", "a#3"]
    assert [t.sampling.seed for t in turns] == [10, 11, 12]


def test_a_greedy_job_is_given_no_seed_and_a_seeded_one_keeps_its_own() -> None:
    assert Inference(model="a", prompt="x").seeded(7).sampling.seed is None
    assert Inference(model="a", prompt="x", sampling=Sampling(temperature=1, seed=1)).seeded(7).sampling.seed == 1
    assert Inference(model="a", prompt="x", sampling=Sampling(temperature=1)).seeded(7).sampling.seed == 7


FIELDS = st.sampled_from(["kind", "model", "prompt", "messages", "members", "sampling", "role", "x"])
ANYTHING = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
                        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(FIELDS, inner, max_size=5), max_leaves=12)


@given(ANYTHING)
def test_whatever_is_given_is_a_job_or_bad_input(raw: object) -> None:
    if not isinstance(raw, dict):
        return
    try:
        job = parse_job(raw)
    except BadInput:
        return
    assert parse_job(job.model_dump(mode="json")) == job
