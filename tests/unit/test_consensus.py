"""The four algorithms decide by answers, break ties by a stated rule, and say when there is no consensus."""

from __future__ import annotations

import pytest

from symposia_shared.consensus import ConsensusName, Likeness, Measured, Weights, decide, majority_settled
from symposia_shared.errors import BadInput
from symposia_shared.verdicts import Ballot, Vote


def ballots(*texts: str | None, sizes: tuple[float | None, ...] = (), scores: tuple[float | None, ...] = ()) -> list[Ballot]:
    """Ballots of members a, b, c..., each of a model of the same name."""
    sizes, scores = sizes or (None,) * len(texts), scores or (None,) * len(texts)
    return [Ballot(member="abcdefgh"[i], model="abcdefgh"[i], text=t, params_b=sizes[i], score=scores[i]) for i, t in enumerate(texts)]


def measured(**accuracy: float) -> Weights:
    """Weights of models measured on a thousand questions each."""
    return Weights(models={m: Measured(right=round(1000 * p), n=1000) for m, p in accuracy.items()})


def test_answers_are_counted_and_not_texts() -> None:
    verdict = decide("majority_vote", ballots("It is $42.00.", "#### 42", "The answer is 7."), kind="number")
    assert (verdict.answer, verdict.n, verdict.agreed) == ("42", 3, True)
    assert verdict.agreement == pytest.approx(2 / 3)
    assert verdict.dissent == ("7",)
    assert verdict.spoken_by in ("a", "b")


def test_a_member_that_abstains_does_not_stop_the_vote() -> None:
    verdict = decide("majority_vote", ballots("42", None, "no idea", "42"), kind="number")
    assert (verdict.answer, verdict.n, verdict.agreement) == ("42", 2, 1.0)
    assert [v.extracted for v in verdict.votes] == ["42", None, None, "42"]


def test_a_plurality_answers_without_being_agreed() -> None:
    verdict = decide("majority_vote", ballots("1", "1", "2", "3"), kind="number")
    assert (verdict.answer, verdict.agreed, verdict.agreement, verdict.tie) == ("1", False, 0.5, None)
    assert verdict.dissent == ("2", "3")


@pytest.mark.parametrize("name", ["majority_vote", "weighted_vote", "best_response", "all_agree"])
@pytest.mark.parametrize("texts", [(), (None,), ("no idea", None)])
def test_where_nobody_has_an_answer_there_is_no_consensus(name: ConsensusName, texts: tuple[str | None, ...]) -> None:
    verdict = decide(name, ballots(*texts), kind="number")
    assert (verdict.answer, verdict.agreed, verdict.agreement, verdict.n, verdict.spoken_by) == (None, False, None, 0, None)


def test_a_tie_goes_to_the_side_measured_better_then_scored_better_then_larger_then_first_in_the_alphabet() -> None:
    tied = ballots("2", "1", sizes=(7.0, 1.0), scores=(0.1, 0.9))
    by_measure = decide("majority_vote", tied, kind="number", weights=measured(a=0.9, b=0.6))
    assert (by_measure.answer, by_measure.tie) == ("2", "measured weight")
    by_score = decide("majority_vote", tied, kind="number")
    assert (by_score.answer, by_score.tie) == ("1", "mean score")
    by_size = decide("majority_vote", ballots("2", "1", sizes=(7.0, 1.0)), kind="number")
    assert (by_size.answer, by_size.tie) == ("2", "largest model")
    last = decide("majority_vote", ballots("2", "1"), kind="number")
    assert (last.answer, last.tie, last.agreed) == ("1", "first in alphabetical order", False)


def test_an_unknown_size_is_not_taken_for_a_small_one() -> None:
    verdict = decide("majority_vote", ballots("2", "1", sizes=(7.0, None)), kind="number")
    assert (verdict.answer, verdict.tie) == ("1", "first in alphabetical order")


def test_one_reliable_model_outweighs_two_that_are_not() -> None:
    verdict = decide("weighted_vote", ballots("1", "2", "2"), kind="number", weights=measured(a=0.95, b=0.6, c=0.6))
    assert (verdict.answer, verdict.agreed) == ("1", True)
    assert verdict.agreement == pytest.approx(1 / 3)


def test_without_measures_a_weighted_vote_counts_by_size() -> None:
    verdict = decide("weighted_vote", ballots("1", "2", "2", sizes=(70.0, 7.0, 7.0)), kind="number")
    assert verdict.answer == "1"
    assert [v.weight for v in verdict.votes] == [70.0, 7.0, 7.0]


def test_the_best_response_is_the_one_scored_highest_and_never_the_longest() -> None:
    verdict = decide("best_response", ballots("1", "so after long thought, all told, it is 2", "2", scores=(0.9, 0.1, 0.5)), kind="number")
    assert (verdict.answer, verdict.rule, verdict.agreed) == ("1", "best_response", False)


def test_a_ballot_without_a_score_or_an_answer_is_not_the_best() -> None:
    assert decide("best_response", ballots("1", "2", "none", scores=(None, -5.0, 9.0)), kind="number").answer == "2"


def test_without_scores_the_best_response_falls_back_and_says_so() -> None:
    verdict = decide("best_response", ballots("1", "2", "2"), kind="number")
    assert verdict.answer == "2"
    assert verdict.rule == "best_response (majority_vote: no scores were given)"


def test_all_agree_invents_nothing() -> None:
    verdict = decide("all_agree", ballots("1", "1", "2"), kind="number")
    assert (verdict.answer, verdict.agreed, verdict.dissent) == (None, False, ("1", "2"))
    assert verdict.agreement == pytest.approx(2 / 3)


def test_all_agree_needs_two() -> None:
    assert decide("all_agree", ballots("1", "1", None), kind="number").answer == "1"
    assert decide("all_agree", ballots("1", None), kind="number").answer is None


def test_free_text_is_gathered_into_clusters_and_answered_with_a_whole_text() -> None:
    texts = ("The cat sat on a mat.", "A cat sat on the mat!", "Dogs bark at night, loudly.")
    verdict = decide("majority_vote", ballots(*texts), kind="text")
    assert verdict.answer in texts[:2]
    assert verdict.spoken_by in ("a", "b")
    assert verdict.n == 3
    assert verdict.rule == "majority_vote (text by token Jaccard >= 0.6)"
    assert len({v.extracted for v in verdict.votes}) == 2


def test_texts_that_differ_in_the_word_that_matters_are_not_alike() -> None:
    assert decide("all_agree", ballots("The capital is Paris.", "The capital is Lyon."), kind="text").answer is None


def test_the_likeness_of_texts_can_be_passed_in() -> None:
    by_first_letter = Likeness("first letter", 1.0, lambda a, b: float(a[0] == b[0]))
    verdict = decide("majority_vote", ballots("apple", "zebra", "avocado"), kind="text", likeness=by_first_letter)
    assert verdict.answer in ("apple", "avocado")
    assert verdict.agreement == pytest.approx(2 / 3)


def test_programs_agree_by_behaviour_where_they_were_run_and_by_syntax_where_not() -> None:
    programs = ("def f(x):\n    return x * 2\n", "def f(y):\n    return y + y\n", "def f(x):\n    return x ** 2\n")
    ran = decide("majority_vote", ballots(*programs), kind="code", behaviours=["same", "same", "other"])
    assert ran.answer in programs[:2]
    assert ran.agreement == pytest.approx(2 / 3)
    read = decide("majority_vote", ballots(*programs), kind="code")
    assert read.agreement == pytest.approx(1 / 3)
    assert read.rule == "majority_vote (code by syntax tree)"


def test_a_program_that_was_not_run_does_not_vote() -> None:
    verdict = decide("majority_vote", ballots("x = 1\n", "x = 2\n"), kind="code", behaviours=[None, "b"])
    assert (verdict.n, verdict.answer) == (1, "x = 2\n")


def test_an_algorithm_that_does_not_exist_is_refused() -> None:
    with pytest.raises(BadInput, match="Choose one of majority_vote"):
        decide("longest", ballots("1"))  # type: ignore[arg-type]


@pytest.mark.parametrize(("cast", "outstanding", "settled"), [
    (("1", "1", "1", "2"), 1, True),
    (("1", "1", "2"), 1, False),
    (("1", "1"), 1, True),
    (("1", "1"), 2, False),
    (("1", "1", None), 1, True),
    ((None, None), 1, False),
    ((), 3, False),
    (("1", "2"), 0, True),
])
def test_a_majority_is_settled_when_what_is_outstanding_cannot_change_it(
    cast: tuple[str | None, ...], outstanding: int, settled: bool,
) -> None:
    assert majority_settled([Vote(member="m", extracted=a) for a in cast], outstanding) is settled


def test_an_answer_in_quotation_marks_is_shown_as_written_and_counted_as_the_bare_one() -> None:
    verdict = decide("majority_vote", ballots('**answer**: "9"', "\\boxed{9}", "\\boxed{8}"), kind="latex")
    assert (verdict.answer, verdict.n, verdict.agreement) == ("9", 3, pytest.approx(2 / 3))
    assert [(v.extracted, v.answer) for v in verdict.votes] == [('"9"', "9"), ("9", "9"), ("8", "8")]
    assert majority_settled(verdict.votes[:2], 1)
