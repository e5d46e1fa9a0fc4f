"""What holds for any ballots at all."""

from __future__ import annotations

import itertools

from hypothesis import assume, given
from hypothesis import strategies as st

from symposia_shared.answers import AnswerKind
from symposia_shared.consensus import ConsensusName, Measured, Weights, count, decide, fit, majority_settled
from symposia_shared.verdicts import Ballot, Verdict, Vote

NAMES: st.SearchStrategy[ConsensusName] = st.sampled_from(["majority_vote", "weighted_vote", "best_response", "all_agree"])
KINDS: st.SearchStrategy[AnswerKind] = st.sampled_from(
    ["auto", "number", "choice", "latex", "python_literal", "json", "label", "code", "text"])
TEXTS = st.sampled_from(["1", "2", "The answer is 3.", "(A)", "The answer is (B).", "[1, 2]", '{"a": 1}', "\\boxed{\\sqrt{2}}", "yes", "",
                         "def f():\n    return 1\n", "A cat sat on the mat.", "The cat sat on a mat!"]) | st.text(max_size=12)
MODELS = st.sampled_from(["m1", "m2", "m3", "m4"])


@st.composite
def ballots(draw: st.DrawFn, most: int = 7) -> list[Ballot]:
    """Ballots in which each model has one size, and some models none."""
    sizes = {m: draw(st.none() | st.floats(0.1, 500.0)) for m in ("m1", "m2", "m3", "m4")}
    rows = draw(st.lists(st.tuples(MODELS, st.none() | TEXTS, st.none() | st.floats(-10, 10)), max_size=most))
    return [Ballot(member=f"{m}#{i}", model=m, text=t, params_b=sizes[m], score=s) for i, (m, t, s) in enumerate(rows)]


MEASURED = st.integers(0, 20).flatmap(lambda n: st.integers(0, n).map(lambda right: Measured(right=right, n=n)))
WEIGHTS = st.none() | st.dictionaries(MODELS, MEASURED).map(lambda models: Weights(models=models))


def decision(verdict: Verdict) -> tuple[object, ...]:
    """All of a verdict that is not the list of votes."""
    return verdict.answer, verdict.spoken_by, verdict.agreed, verdict.agreement, verdict.n, verdict.rule, verdict.tie, verdict.dissent


@given(ballots(), NAMES, KINDS, WEIGHTS, st.randoms(use_true_random=False))
def test_the_order_of_ballots_does_not_matter(given_: list[Ballot], name: ConsensusName, kind: AnswerKind, weights: Weights | None,
                                              shuffler: object) -> None:
    shuffled = list(given_)
    shuffler.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = (decide(name, b, kind=kind, weights=weights) for b in (given_, shuffled))
    assert decision(one) == decision(other)
    assert {v.member: v for v in one.votes} == {v.member: v for v in other.votes}
    assert [v.member for v in one.votes] == [b.member for b in given_]


@given(st.integers(2, 7), st.sampled_from(["17", "0.5", "-3"]), NAMES, WEIGHTS)
def test_what_all_say_is_the_answer(n: int, answer: str, name: ConsensusName, weights: Weights | None) -> None:
    said_alike = [Ballot(member=f"m{i}", model=f"m{i}", text=answer) for i in range(n)]
    verdict = decide(name, said_alike, kind="number", weights=weights)
    assert (verdict.answer, verdict.agreed, verdict.agreement, verdict.n, verdict.dissent) == (answer, True, 1.0, n, ())


@given(ballots(), NAMES, KINDS, WEIGHTS, st.data())
def test_adding_an_agreeing_vote_never_unseats_a_winner(
    given_: list[Ballot], name: ConsensusName, kind: AnswerKind, weights: Weights | None, data: st.DataObject,
) -> None:
    assume(kind != "auto")
    before = decide(name, given_, kind=kind, weights=weights)
    assume(before.answer is not None)
    side = {v.answer for v in before.votes if v.answer == before.answer}
    backers = [b for b, v in zip(given_, before.votes, strict=True) if v.answer in side]
    joins = data.draw(st.sampled_from(backers)).model_copy(update={"member": "new", "score": data.draw(st.none() | st.floats(-10, 10))})
    after = decide(name, [*given_, joins], kind=kind, weights=weights)
    winners = {v.answer for b, v in zip([*given_, joins], after.votes, strict=True) if b in backers}
    assert after.answer in winners
    assert after.agreement is not None
    assert before.agreement is not None
    assert after.agreement >= before.agreement


@given(st.lists(st.sampled_from(["1", "2", "3", None]), max_size=5), st.integers(0, 3))
def test_a_settled_majority_has_one_winner_whatever_comes(cast: list[str | None], outstanding: int) -> None:
    assume(outstanding > 0)
    settled = majority_settled([Vote(member="m", extracted=a) for a in cast], outstanding)
    winners = set()
    for rest in itertools.product(["1", "2", "3", "4", None], repeat=outstanding):
        answers = [*cast, *rest]
        rows = [Ballot(member=f"m{i}", text=a) for i, a in enumerate(answers)]
        verdict = count("majority_vote", rows, answers)
        winners.add((verdict.answer, verdict.tie is not None))
    assert settled == (len({w for w, _ in winners}) == 1 and not any(tied for _, tied in winners) and winners != {(None, False)})


@given(ballots(), NAMES, KINDS, WEIGHTS)
def test_a_verdict_is_sound_whatever_was_said(given_: list[Ballot], name: ConsensusName, kind: AnswerKind, weights: Weights | None) -> None:
    verdict = decide(name, given_, kind=kind, weights=weights)
    assert verdict.n == sum(v.extracted is not None for v in verdict.votes)
    assert len(verdict.votes) == len(given_)
    assert (verdict.answer is None) == (verdict.spoken_by is None)
    assert verdict.answer not in verdict.dissent
    assert Verdict.from_json(verdict.to_json()) == verdict


@given(st.lists(st.tuples(MODELS, st.booleans()), min_size=1))
def test_weights_are_bounded_and_survive_their_json(marked: list[tuple[str, bool]]) -> None:
    weights = fit(marked)
    assert Weights.from_json(weights.to_json()) == weights
    assert fit(marked[::-1]) == weights
    for model in (*weights.models, "never seen"):
        assert 0.01 <= weights.weight(model) <= 3.9
        assert 0.0 <= weights.accuracy(model) <= 1.0


@given(st.integers(1, 50), st.integers(0, 50), st.integers(1, 50))
def test_a_better_model_never_weighs_less(n: int, right: int, other: int) -> None:
    assume(right < n)
    weights = fit([("worse", i < right) for i in range(n)] + [("better", i < right + 1) for i in range(n)] + [("else", True)] * other)
    assert weights.weight("better") >= weights.weight("worse")
