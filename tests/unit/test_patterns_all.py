"""What holds for every pattern."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rehearsing import ALL, COUNTS, QUESTION, Scripted, job_of, scripted_models
from symposia_shared.consensus import RULES
from symposia_shared.errors import BadInput
from symposia_shared.patterns import parse_job, patterns
from symposia_shared.play import Played, Round, advance
from symposia_shared.rehearsal import rehearse
from symposia_shared.turns import Turn

#: what members may say: prose, the formats that are asked for, near misses of them, and noise
SAYINGS = st.one_of(
    st.none(), st.text(max_size=60), st.characters(codec="utf-8").map(lambda c: c * 3),
    st.sampled_from([
        "", " ", "42", "The answer is 42.", "Answer: 41", "Best: A", "Best: Z", "Score: 7", "Score: 99", "Missing: 1, 2, 999", "No mistake",
        "Verdict: yes", "Verdict: no", "Wrong: 6 * 7 = 41", "6 * 7 = 41", "<think>unclosed", "```python\ndef f(x):\n    return x\n```",
        "assert f(1) == 2", '{"subtasks": [{"id": 1, "task": "a", "after": []}, {"id": 2, "task": "b", "after": [1]}]}',
        '{"subtasks": [{"id": 1, "task": "a", "after": [2]}, {"id": 2, "task": "b", "after": [1]}]}',
        '{"subtasks": [{"id": 1, "who": 1, "task": "a"}]}', '{"subtasks": [{"id": 1, "who": 2, "task": "a", "after": [7]}]}',
        '{"subtasks": 3}', '{"subtasks": [{}, 1, null]}', '{"ran": true, "passed": false, "detail": "x"}', '{"ran": true, "passed": true}',
        "[" * 5000, "{" * 5000, "1" * 5000, "\ufffd", "\x00\x1b[2J", "(" * 3000 + "1" + ")" * 3000 + " = 2", "- " * 4000 + "= 1",
    ]),
)


@pytest.mark.parametrize("kind", ALL)
def test_all_eight_are_there_with_their_member_counts(kind: str) -> None:
    fewest, most = COUNTS[kind]
    job_of(kind, fewest)
    job_of(kind, most)
    for wrong in (fewest - 1, most + 1):
        with pytest.raises(BadInput) as caught:
            job_of(kind, wrong)
        assert caught.value.field == "members"
    assert set(ALL) == set(COUNTS)


@pytest.mark.parametrize("kind", ALL)
@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_is_said_every_play_ends_and_replays_to_the_same_end(kind: str, data: st.DataObject) -> None:
    said: dict[tuple[int, int], str | None] = {}

    def say(number: int, place: int, turn: Turn) -> str | None:
        assert number < 60, "this play does not end"
        said[number, place] = data.draw(SAYINGS)
        return said[number, place]

    job = job_of(kind, data.draw(st.integers(COUNTS[kind][0], min(COUNTS[kind][1], 5))), **_extras(kind, data))
    found = rehearse(job, Scripted(say))
    again = rehearse(parse_job(json.loads(job.to_json())), Scripted(lambda number, place, turn: said[number, place]))
    assert (found.verdict is None) != (found.error is None)
    assert again.verdict == found.verdict
    assert [r.digest for r in again.rounds] == [r.digest for r in found.rounds]
    if found.verdict is not None:
        found.verdict.to_json().encode("utf-8", "surrogatepass")


def _extras(kind: str, data: st.DataObject) -> dict[str, Any]:
    if kind in ("debate", "adversarial") and data.draw(st.booleans()):
        return {"judge": "judge/model"}
    if kind == "iterative_refinement" and data.draw(st.booleans()):
        return {"tests": ["assert f(1) == 1", "assert f(2) == 2"]}
    return {}


@pytest.mark.parametrize("kind", ALL)
def test_each_replayed_prefix_yields_the_round_that_was_recorded(kind: str) -> None:
    job = job_of(kind)
    found = rehearse(job, Scripted(lambda number, place, turn: f"Reply {number}.{place}: 6 * 7 = {40 + place}. Answer: {40 + place}"))
    recorded = [Played(r.digest, tuple(t.reply for t in r.turns)) for r in found.rounds]
    for n, closed in enumerate(recorded):
        step = advance(job, recorded[:n])
        assert isinstance(step, Round)
        assert step.digest == closed.digest
    assert advance(job, recorded) == found.verdict


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("model", ["test/garbage", "test/echo", "test/failing:bug", "test/say:42"])
def test_a_team_of_any_scripted_model_ends(kind: str, model: str) -> None:
    members = [{"model": model}] * COUNTS[kind][1]
    job = parse_job({"kind": kind, "prompt": QUESTION, "members": members}).seeded(3)
    found = rehearse(job, scripted_models)
    if model == "test/failing:bug":
        assert found.error is not None
        assert found.error.type == "NoQuorum"
        assert "failed, as it was asked to" in found.error.message
    else:
        assert found.verdict is not None


@pytest.mark.parametrize("kind", [k for k in ALL if COUNTS[k][1] > 2])
def test_one_garbage_and_one_failing_member_do_not_stop_a_play(kind: str) -> None:
    models = ["test/say:The answer is 42.", "test/garbage", "test/failing:timeout", "test/say:The answer is 42."]
    job = parse_job({"kind": kind, "prompt": QUESTION, "members": [{"model": m} for m in models]}).seeded(3)
    found = rehearse(job, scripted_models)
    assert found.verdict is not None
    assert found.verdict.answer is not None


@pytest.mark.parametrize("kind", ALL)
def test_reasoning_is_never_shown_to_anyone(kind: str) -> None:
    script = Scripted(lambda number, place, turn: f"<think>INNER MONOLOGUE</think>Visible {number}.{place}")
    rehearse(job_of(kind), script)
    shown = "".join(m.content for _, _, turn in script.asked for m in turn.messages)
    assert "SECRET THOUGHT" not in shown
    assert "INNER MONOLOGUE" not in shown
    if kind != "ensemble":
        assert "Visible" in shown


@pytest.mark.parametrize("kind", ALL)
def test_a_member_hears_its_role_as_a_system_message(kind: str) -> None:
    members = [{"model": f"m{i}", "role": f"You are number {i}."} for i in range(COUNTS[kind][0])]
    script = Scripted(lambda number, place, turn: f"Reply {number}.{place}")
    rehearse(parse_job({"kind": kind, "prompt": QUESTION, "members": members}).seeded(1), script)
    for _, _, turn in script.asked:
        if not turn.is_check:
            assert (turn.messages[0].role, turn.messages[0].content) == ("system", f"You are number {turn.member[1:]}.")


@pytest.mark.parametrize("kind", [k for k in ALL if k != "ensemble"])
def test_no_two_drawn_turns_of_a_job_share_a_seed(kind: str) -> None:
    job = job_of(kind, sampling={"temperature": 0.7})
    script = Scripted(lambda number, place, turn: f"Reply {number}.{place}: Answer: {number * 7 + place}")
    rehearse(job, script)
    seeds = [t.sampling.seed for _, _, t in script.asked if t.sampling.temperature > 0]
    assert None not in seeds
    assert len(set(seeds)) == len(seeds)


@pytest.mark.parametrize("kind", [k for k in ALL if k != "ensemble"])
def test_a_refused_consensus_is_bad_input_with_the_reason(kind: str) -> None:
    cls = patterns()[kind]
    for name in RULES:
        why = getattr(cls, "refused").get(name)  # noqa: B009 - only the patterns that select have it
        if why is None and not (kind == "debate" and name == "best_response"):
            assert job_of(kind, consensus=name).consensus == name
            continue
        with pytest.raises(BadInput) as caught:
            job_of(kind, consensus=name)
        assert (why or "nobody scores the answers") in str(caught.value)
        assert repr(name) in str(caught.value)


@pytest.mark.parametrize("kind", ALL)
def test_a_job_survives_its_own_json_and_has_a_schema_whose_options_are_described(kind: str) -> None:
    job = job_of(kind)
    assert parse_job(json.loads(job.to_json())) == job
    assert parse_job(job.model_dump(mode="json")) == job
    schema = type(job).model_json_schema()
    common = {"kind", "prompt", "members", "sampling", "tags", "deadline_s", "quorum", "consensus"}
    if kind != "ensemble":
        assert [n for n, p in schema["properties"].items() if n not in common and "description" not in p] == []


def test_a_judge_may_be_named_by_its_model_alone_and_is_one_of_the_jobs_models() -> None:
    fields: dict[str, Any]
    for kind, field in (("debate", "judge"), ("adversarial", "judge"), ("iterative_refinement", "scorer")):
        fields = {field: "big/model"}
        job = job_of(kind, **fields)
        assert getattr(job, field).name == field
        assert job.models == ("m0", "m1", "big/model")
        assert parse_job(json.loads(job.to_json())) == job
        with pytest.raises(BadInput, match="both called"):
            job_of(kind, **{**fields, field: {"model": "x", "name": "m0"}})


def test_who_must_critique_plan_or_judge_needs_the_instruct_capability() -> None:
    def needing(kind: str, **fields: Any) -> list[str]:
        return [m.name for m in job_of(kind, **fields).roles_needing_instruct()]

    assert needing("pipeline", members=3) == ["m1", "m2"]
    assert needing("debate", judge="j") == ["m0", "m1", "judge"]
    assert needing("debate", rounds=1) == []
    assert needing("hierarchical") == ["m0"]
    assert needing("specialist_team") == ["m2"]
    assert needing("iterative_refinement") == ["m0", "m1"]
    assert needing("adversarial", judge="j") == ["m0", "m1", "judge"]
    assert needing("consensus_building") == ["m0", "m1", "m2"]
