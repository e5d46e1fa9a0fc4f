"""Every pattern on a real stack: garbage and failing members included, each transcript replayed to the same verdict."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from stack import Stack

from symposia import Collaboration, Result, parse_job
from symposia.cli.replay import replayed
from symposia_shared.consensus import RULES
from symposia_shared.errors import BadInput
from symposia_shared.patterns import OURS, kind_of

#: pattern → what it needs besides members; the counts are the fewest and the most it admits
LEAST: dict[str, int] = {"pipeline": 2, "debate": 2, "hierarchical": 3, "ensemble": 3, "specialist_team": 3, "iterative_refinement": 2, "adversarial": 2,
                         "consensus_building": 3}


def job(kind: str, *models: str, **fields: Any) -> Collaboration:
    made = parse_job({"kind": kind, "prompt": "How much is 6 times 7?", "members": [{"model": m} for m in models], **fields})
    assert isinstance(made, Collaboration)
    return made


def same_verdict_replayed(found: Result) -> None:
    if found.state == "done":
        assert replayed(Result.from_json(found.model_dump_json())) == found.verdict
    else:
        assert found.error is not None
        assert found.error.type == "NoQuorum"


def admitted() -> list[tuple[str, str | None]]:
    """Every pattern with each consensus algorithm it admits, or with none."""
    pairs: list[tuple[str, str | None]] = []
    for cls in OURS:
        refused = getattr(cls, "refused", {})
        able = [name for name in RULES if "consensus" in cls.model_fields and name not in refused]
        pairs += [(kind_of(cls), name) for name in able or [None]]
    return pairs


@pytest.mark.parametrize(("kind", "consensus"), admitted())
def test_each_pattern_ends_with_a_garbage_and_a_failing_member(stack: Stack, kind: str, consensus: str | None) -> None:
    models = ["test/say:The answer is 42.", "test/garbage", "test/failing:timeout"][: max(LEAST[kind], 2)]
    if kind == "ensemble":
        models.append("test/say:It is 42")
    given: dict[str, Any] = {"consensus": consensus} if consensus else {}
    if (kind, consensus) == ("debate", "best_response"):
        given["judge"] = {"model": "test/say:A"}  # who else would score them?
    made = job(kind, *models, **given)
    found = stack.client.submit(made).wait(90)
    same_verdict_replayed(found)


def test_every_refused_pair_says_why() -> None:
    for cls in OURS:
        for name, why in getattr(cls, "refused", {}).items():
            with pytest.raises(BadInput) as caught:
                job(kind_of(cls), *["test/echo"] * LEAST[kind_of(cls)], consensus=name)
            assert why in str(caught.value) or "no field 'consensus'" in str(caught.value)


def test_many_mixed_collaborations_at_once_all_end_and_replay_to_the_same_verdict(stack: Stack) -> None:
    dice = random.Random(7)
    models = ["test/echo", "test/say:42", "test/say:The answer is 41", "test/garbage", "test/failing:bug", "test/slow:200", "test/slow:50"]
    jobs = []
    for n in range(48):
        kind = kind_of(OURS[n % len(OURS)])
        jobs.append(job(kind, *[dice.choice(models) for _ in range(LEAST[kind])], sampling={"temperature": 0.7, "seed": n, "max_tokens": 64}))
    handles = stack.client.submit_many(jobs)
    found = [h.wait(180) for h in handles]
    assert {f.state for f in found} <= {"done", "failed"}
    for result in found:
        same_verdict_replayed(result)


def test_an_altered_reply_alters_the_verdict(stack: Stack) -> None:
    found = stack.client.submit(job("ensemble", "test/say:1", "test/say:1", "test/say:2", early_stop=False, answer_kind="number")).result(60)
    assert found.answer == "1"
    raw = found.model_dump(mode="json")
    raw["rounds"][0]["turns"][0]["reply"]["text"] = "2"
    assert replayed(Result.parse(raw)).answer == "2"
    assert replayed(found, consensus="all_agree").answer is None


def test_free_text_is_compared_by_a_recorded_turn_whose_scorer_the_verdict_names(stack: Stack) -> None:
    texts = ("It rains a lot in Bergen.", "Bergen has very wet weather.", "Oslo is cold in winter.")
    found = stack.client.submit(job("ensemble", *[f"test/say:{t}" for t in texts], answer_kind="text")).result(180)
    (check,) = found.rounds[1].turns
    assert check.turn.model == "check/likeness"
    assert found.verdict is not None
    scorer = "all-MiniLM-L6-v2 cosine" if check.reply.spoke else "token Jaccard, as check/likeness did not answer"
    assert scorer in (found.verdict.rule or "")
    same_verdict_replayed(found)


def test_programs_of_an_ensemble_are_scored_by_the_tests_they_pass(stack: Stack) -> None:
    programs = [f"test/say:```python\ndef f(x):\n    return {what}\n```" for what in ("1", "x", "y")]
    found = stack.client.submit(job("ensemble", *programs, tests=["assert f(1) == 1", "assert f(2) == 2"])).result(90)
    checked = [t for t in found.rounds[1].turns if t.reply.spoke]
    assert len(found.rounds[1].turns) == 6
    assert found.verdict is not None
    if len(checked) == 6:  # code is run here
        assert "return x" in (found.answer or "")
        assert found.verdict.notes["passed"] == [1, 2, 0]
    same_verdict_replayed(found)


PLAN = json.dumps({"subtasks": [{"id": 1, "task": "a", "after": []}, {"id": 2, "task": "b", "after": [1]}, {"id": 3, "task": "c", "after": []},
                                {"id": 4, "task": "d", "after": [3]}]})


def test_a_task_graph_starts_each_turn_when_what_it_follows_is_done(stack: Stack) -> None:
    """a 1 s → b 5 s beside c 5 s → d 1 s takes 6 s by the graph, and 10 s level by level."""
    found = stack.client.submit(job("hierarchical", f"test/say:{PLAN}", *[f"test/slow:{ms}" for ms in (1000, 5000, 5000, 1000)])).result(90)
    graph = next(r for r in found.rounds if len(r.turns) == 4)
    assert [t.turn.after for t in graph.turns] == [(), (0,), (), (2,)]
    begins, ends = zip(*[(t.reply.timing.claimed_at, t.reply.timing.last_token_at or 0.0) for t in graph.turns], strict=True)
    assert begins[1] >= ends[0]
    assert begins[3] >= ends[2]
    assert begins[1] < ends[2]  # not level by level: b begins before c has ended
    assert max(ends) - min(begins) < 8
    same_verdict_replayed(found)


def test_a_debates_rounds_follow_one_another_without_idling(stack: Stack) -> None:
    found = stack.client.submit(job("debate", "test/slow:1000", "test/slow:1000", early_stop=False, answer_kind="text")).result(90)
    assert len(found.rounds) == 3
    assert [r.closed_by for r in found.rounds] == ["all"] * 3


def test_a_part_that_follows_instructions_is_not_given_to_a_base_model(stack: Stack) -> None:
    ledger = stack.client.ledger
    places = {name: {"queue": "turns.none", "instruct": name == "chat", "params_b": 7.0} for name in ("base", "chat")}
    ledger.place("elsewhere", places)
    try:
        with pytest.raises(BadInput, match=r"base is a base model.*served: chat"):
            stack.client.submit(job("hierarchical", "base", "chat", "chat"))
        handle = stack.client.submit(job("ensemble", "base", "base", "base", consensus="weighted_vote"))  # votes admit any
        handle.cancel()
        members = handle.wait(60).job["members"]
        assert [m["params_b"] for m in members] == [7.0] * 3
    finally:
        ledger.run("place", "elsewhere", "", "")


def test_measured_weights_decide_a_weighted_vote(stack: Stack) -> None:
    accuracies = {"models": {"test/say:1": {"right": 1, "n": 20}, "test/say:2": {"right": 19, "n": 20}}}
    found = stack.client.submit(job("ensemble", "test/say:1", "test/say:1", "test/say:2", consensus="weighted_vote", answer_kind="number", weights=accuracies))
    assert found.result(60).answer == "2"
    same_verdict_replayed(found.result(5))
