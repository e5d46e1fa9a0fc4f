from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rehearsing import Scripted, by_member, job_of, play
from symposia_shared.patterns.scores import score_of, score_prompt
from symposia_shared.turns import Turn


@pytest.mark.parametrize(("text", "score"), [
    ("Score: 7", 7), ("score: 10/10", 10), ("**Score:** 8", 8), ("7", 7), (" 7/10. ", 7), ("I first thought Score: 3, but no. Score: 6", 6),
    ("Score: 0", None), ("Score: 11", None), ("Score: 7.5", None), ("Score: <number>", None), ("seven", None), ("", None), (None, None),
    ("It has 3 faults and 4 merits.", None), ("Score: -3", None), ("2 + 2 = 4 -> Score: 10", None),
])
def test_a_score_is_one_integer_from_1_to_10_or_nothing(text: str | None, score: int | None) -> None:
    assert score_of(text) == score


@given(st.text(max_size=300))
def test_a_scorer_that_repeats_its_prompt_gives_no_score(answer: str) -> None:
    assert score_of(score_prompt("?", answer.replace("core", ""), most_chars=500)) is None


def refining(versions: list[str], scores: dict[str, str | None], critiques: list[str | None] | None = None) -> Scripted:
    """The author says ``versions`` in turn, the scorer scores by what stands in the prompt, the critics say ``critiques``."""
    left, remarks = list(versions), list(critiques or ["It is wrong."])

    def say(number: int, place: int, turn: Turn) -> str | None:
        asked = turn.messages[-1].content
        if "How good is this answer" in asked:
            return next(s for v, s in scores.items() if f"Answer:\n{v}\n" in asked)
        if "Name the worst fault" in asked:
            return remarks.pop(0) if len(remarks) > 1 else remarks[0]
        return left.pop(0) if len(left) > 1 else left[0]

    return Scripted(say)


def test_a_revision_is_kept_only_if_its_score_does_not_fall() -> None:
    script = refining(["v0", "v1", "v2", "v3"], {"v0": "Score: 5", "v1": "Score: 4", "v2": "Score: 5", "v3": "Score: 3"})
    found = play(job_of("iterative_refinement", 3, rounds=3), script)
    assert found.verdict is not None
    assert found.verdict.answer == "v2"
    assert found.verdict.notes == {"scores": [5, 4, 5, 3], "kept": 2}
    assert found.verdict.rule == "best_response; scorer: m2, 1 to 10"
    last_critique = [t.messages[-1].content for _, _, t in script.asked if "Name the worst fault" in t.messages[-1].content][-1]
    assert "Answer:\nv2" in last_critique, "what is criticised is the best version"


@given(st.lists(st.sampled_from(["Score: 1", "Score: 5", "Score: 9", "no idea", None]), min_size=4, max_size=4))
def test_the_answer_never_scores_less_than_the_draft(scores: list[str | None]) -> None:
    script = refining(["v0", "v1", "v2", "v3"], {f"v{i}": s for i, s in enumerate(scores)})
    found = play(job_of("iterative_refinement", 2, rounds=3), script)
    assert found.verdict is not None
    read = [score_of(s) for s in scores]
    final = read[int((found.verdict.answer or "v0")[1:])]
    assert final is None if read[0] is None else final is not None and final >= read[0]


def test_a_score_that_cannot_be_read_keeps_nothing() -> None:
    script = refining(["v0", "v1"], {"v0": "Score: 2", "v1": "excellent!"})
    found = play(job_of("iterative_refinement", 2, rounds=1), script)
    assert found.verdict is not None
    assert found.verdict.answer == "v0"


def test_a_draft_whose_scorer_failed_is_scored_beside_its_revision() -> None:
    said = iter([None, "Score: 6", "Score: 6"])
    script = refining(["v0", "v1"], {})
    inner = script.say
    script.say = lambda n, p, t: next(said) if "How good" in t.messages[-1].content else inner(n, p, t)
    found = play(job_of("iterative_refinement", 2, rounds=1), script)
    assert found.verdict is not None
    assert found.verdict.answer == "v1"
    assert found.verdict.notes == {"scores": [6, 6], "kept": 1}
    assert len(found.rounds[-1].turns) == 2


def test_a_draft_whose_score_cannot_be_read_stays_and_is_not_scored_again() -> None:
    script = refining(["v0", "v1", "v2"], {"v0": "hm", "v1": "Score: 9", "v2": "Score: 9"})
    found = play(job_of("iterative_refinement", 2, rounds=2), script)
    assert found.verdict is not None
    assert found.verdict.answer == "v0"
    assert found.verdict.notes == {"scores": [None, 9, 9], "kept": 0}
    assert [len(r.turns) for r in found.rounds] == [1, 2, 1, 1, 1, 1, 1]


def test_the_highest_score_ends_it() -> None:
    script = refining(["v0", "v1"], {"v0": "Score: 10", "v1": "Score: 1"})
    assert len(play(job_of("iterative_refinement", 3, rounds=8), script).rounds) == 2


def test_critics_take_turns_and_the_scorer_stays() -> None:
    script = refining(["v0", "v1", "v2", "v3"], {f"v{i}": "Score: 5" for i in range(4)})
    play(job_of("iterative_refinement", 3, rounds=3), script)
    by_task = {word: [t.member for _, _, t in script.asked if word in t.messages[-1].content] for word in ("worst fault", "How good")}
    assert by_task["worst fault"] == ["m1", "m2", "m1"]
    assert set(by_task["How good"]) == {"m2"}


def test_a_critic_that_fails_costs_its_turn_only() -> None:
    script = refining(["v0", "v1"], {"v0": "Score: 5", "v1": "Score: 6"}, [None, "Too short."])
    found = play(job_of("iterative_refinement", 3, rounds=2), script)
    assert found.verdict is not None
    assert found.verdict.answer == "v1"


def test_the_next_member_drafts_where_the_first_cannot() -> None:
    found = play(job_of("iterative_refinement", 2), by_member(m0=None, m1="a draft"))
    assert found.verdict is not None
    assert (found.verdict.answer, found.verdict.spoken_by) == ("a draft", "m1")
    nobody = play(job_of("iterative_refinement", 2), by_member(m0=None, m1=None))
    assert nobody.error is not None
    assert nobody.error.type == "NoQuorum"


def test_the_quorum_is_the_fewest_members_who_answered_at_all() -> None:
    found = play(job_of("iterative_refinement", 2, quorum=2), by_member(m0="a draft", m1=None))
    assert found.error is not None
    assert "needed 2 of its 2 members" in found.error.message


CODE = "```python\ndef f(x):\n    return {}\n```"


def code_that_passes(passed: dict[str, int], *, sandbox: bool = True) -> Scripted:
    """An author of code, and a check in which ``passed[body]`` of the tests pass."""
    bodies = list(passed)

    def say(number: int, place: int, turn: Turn) -> str | None:
        if turn.is_check:
            task = json.loads(turn.messages[-1].content)
            body = next(b for b in passed if f"return {b}\n" in task["code"] + "\n")
            return json.dumps({"ran": True, "passed": int(task["tests"][0][-1]) < passed[body]}) if sandbox else None
        asked = turn.messages[-1].content
        if "How good" in asked:
            return "Score: 4"
        if "worst fault" in asked:
            return "It returns the wrong value."
        return CODE.format(bodies.pop(0) if len(bodies) > 1 else bodies[0])

    return Scripted(say)


def test_code_is_scored_by_the_tests_it_passes() -> None:
    tests = [f"assert f({i}) == {i}" for i in range(3)]
    found = play(job_of("iterative_refinement", 2, rounds=3, tests=tests), code_that_passes({"0": 1, "x - 1": 0, "x": 3}))
    assert found.verdict is not None
    assert "return x\n" in (found.verdict.answer or "")
    assert found.verdict.notes == {"scores": [1, 0, 3], "kept": 2}
    assert found.verdict.rule == "best_response; scorer: check/python, tests passed of 3"
    checks = [t.turn for r in found.rounds for t in r.turns if t.turn.is_check]
    assert len(checks) == 9
    assert json.loads(checks[0].messages[-1].content) == {"code": "def f(x):\n    return 0\n", "tests": ["assert f(0) == 0"]}


def test_where_code_cannot_be_run_a_member_scores() -> None:
    found = play(job_of("iterative_refinement", 2, rounds=1, tests=["assert f(0) == 0"]), code_that_passes({"0": 1, "x": 1}, sandbox=False))
    assert found.verdict is not None
    assert found.verdict.rule == "best_response; scorer: m1, 1 to 10"
    assert "return x" in (found.verdict.answer or "")
