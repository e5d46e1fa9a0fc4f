"""best_response: answers scored by tests, by a judge asked twice, or by log-probability, and the scorer named."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rehearsing import Scripted, job_of, play
from symposia.cli.replay import replayed
from symposia_shared.errors import BadInput
from symposia_shared.rehearsal import Script, rehearse
from symposia_shared.results import Result
from symposia_shared.turns import Abstention, Completion, Reply, Turn

TESTS = ["assert f(1) == 1", "assert f(2) == 2", "assert f(3) == 3"]
PROGRAMS = {"m0": "```python\ndef f(x):\n    return 1\n```", "m1": "```python\ndef f(x):\n    return x\n```", "m2": "I cannot program."}
JUDGE = "judge, asked twice with the order swapped"


def checked(number: int, place: int, turn: Turn) -> str | None:
    """Programs, and what running them comes to."""
    if not turn.is_check:
        return PROGRAMS.get(turn.member, "Best: B")
    asked = json.loads(turn.messages[-1].content)
    passed = "return x\n" in asked["code"] or ("return 1\n" in asked["code"] and "f(1)" in asked["tests"][0])
    return json.dumps({"ran": True, "passed": passed, "detail": ""})


def without_sandbox(number: int, place: int, turn: Turn) -> str | None:
    return None if turn.is_check else checked(number, place, turn)


@pytest.mark.parametrize(("kind", "members"), [("ensemble", 3), ("debate", 3)])
def test_the_program_that_passes_most_tests_wins(kind: str, members: int) -> None:
    job = job_of(kind, members, tests=TESTS)
    assert job.consensus == "best_response"
    found = play(job, Scripted(checked))
    assert found.verdict is not None
    assert "return x\n" in (found.verdict.answer or "")
    assert found.verdict.rule == "best_response (code by syntax tree); scorer: check/python, tests passed of 3"
    assert found.verdict.notes["passed"] == [1, 3, 0]
    assert replayed(Result.from_json(found.result("a", job).model_dump_json())) == found.verdict


@pytest.mark.parametrize("kind", ["ensemble", "debate"])
def test_where_code_cannot_be_run_the_judge_scores_and_without_one_nobody_does(kind: str) -> None:
    judged = play(job_of(kind, 3, tests=TESTS, judge="j/j"), Scripted(without_sandbox)).verdict
    assert judged is not None
    assert (judged.rule or "").endswith(f"; scorer: {JUDGE}")
    alone = play(job_of(kind, 3, tests=TESTS), Scripted(without_sandbox)).verdict
    assert alone is not None
    assert alone.rule == "best_response (majority_vote: no scores were given) (code by syntax tree)"


def letters(wanted: str) -> Scripted:
    """Three answers, and a judge who finds ``wanted`` wherever it stands."""
    def say(number: int, place: int, turn: Turn) -> str:
        if turn.member != "judge":
            return "Answer: 7" if turn.member == "m2" else "Answer: 8"
        shown = turn.messages[-1].content
        return f"Best: {shown[shown.index(f'Answer: {wanted}') - 3]}"

    return Scripted(say)


def test_an_ensembles_judge_is_asked_twice_and_what_it_picks_wins_whatever_the_votes_say() -> None:
    script = letters("7")
    found = play(job_of("ensemble", 3, judge="j/j"), script)
    assert found.verdict is not None
    assert (found.verdict.answer, found.verdict.n, found.verdict.agreed) == ("7", 3, False)
    assert found.verdict.rule == f"best_response; scorer: {JUDGE}"
    assert found.verdict.notes == {"picked": ["m2", "m2"]}
    one, two = script.prompt(1, 0), script.prompt(1, 1)
    assert (one.index("Answer: 7") < one.index("Answer: 8")) != (two.index("Answer: 7") < two.index("Answer: 8"))


def with_logprobs(number: int, place: int, turn: Turn) -> Reply:
    return Completion(text=f"Answer: {place}", logprob_mean=-0.1 * (place + 1))


def test_an_ensemble_without_tests_or_judge_scores_by_log_probability() -> None:
    script: Script = with_logprobs
    found = rehearse(job_of("ensemble", 3, consensus="best_response"), script)
    assert found.verdict is not None
    assert found.verdict.answer == "0"
    assert found.verdict.rule == "best_response; scorer: mean log-probability of the answer's tokens"


def test_without_any_score_best_response_is_a_majority_and_says_so() -> None:
    found = play(job_of("ensemble", 3, consensus="best_response"), letters("7"))
    assert found.verdict is not None
    assert (found.verdict.answer, found.verdict.rule) == ("8", "best_response (majority_vote: no scores were given)")


@pytest.mark.parametrize("kind", ["ensemble", "debate"])
@pytest.mark.parametrize("field", [{"judge": "j/j"}, {"tests": TESTS}])
def test_a_scorer_and_a_vote_exclude_one_another(kind: str, field: dict[str, Any]) -> None:
    for name in ("majority_vote", "weighted_vote", "all_agree"):
        with pytest.raises(BadInput, match=f"the {next(iter(field)).replace('tests', 'tests decide').replace('judge', 'judge decides')}"):
            job_of(kind, consensus=name, **field)


def test_a_debate_cannot_be_scored_by_log_probability_and_says_why() -> None:
    with pytest.raises(BadInput, match="what repeats a peer's text is likely, whoever is right"):
        job_of("debate", consensus="best_response")


def refined(prefers: str | None) -> Scripted:
    """Drafts v0, v1 ..., and a judge who prefers a text, or the first place where that is None."""
    versions = iter(f"v{i}" for i in range(99))

    def say(number: int, place: int, turn: Turn) -> str:
        shown = turn.messages[-1].content
        if turn.member == "judge":
            return f"Best: {shown[shown.index(f':{chr(10)}{prefers}') - 1]}" if prefers else "Best: A"
        return "Be clearer." if "worst fault" in shown else next(versions)

    return Scripted(say)


def test_a_revision_stays_only_if_the_judge_picks_it_both_times() -> None:
    better = play(job_of("iterative_refinement", 2, rounds=1, judge="j/j"), refined("v1")).verdict
    assert better is not None
    assert (better.answer, better.rule, better.notes) == ("v1", f"best_response; scorer: {JUDGE}", {"scores": [0, 2], "kept": 1})
    first_place = play(job_of("iterative_refinement", 2, rounds=1, judge="j/j"), refined(None)).verdict
    assert first_place is not None
    assert (first_place.answer, first_place.notes) == ("v0", {"scores": [1, 1], "kept": 0})


def test_a_refinement_has_a_scorer_or_a_judge() -> None:
    with pytest.raises(BadInput, match="leave the other out"):
        job_of("iterative_refinement", judge="j/j", scorer="s/s")


def test_a_judge_that_fails_leaves_an_ensemble_to_its_votes() -> None:
    def say(number: int, place: int, turn: Turn) -> Reply:
        return Abstention(cause="timeout") if turn.member == "judge" else Completion(text="Answer: 7" if turn.member == "m2" else "Answer: 8")

    found = rehearse(job_of("ensemble", 3, judge="j/j"), say)
    assert found.verdict is not None
    assert found.verdict.answer == "8"
    assert "no scores were given" in (found.verdict.rule or "")
