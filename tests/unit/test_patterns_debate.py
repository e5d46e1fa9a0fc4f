from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rehearsing import Scripted, by_member, job_of, play
from symposia_shared.errors import BadInput
from symposia_shared.patterns.artefacts import ELISION, cut
from symposia_shared.patterns.judges import choose
from symposia_shared.patterns.peers import shuffled
from symposia_shared.turns import Turn


def test_a_debate_ends_as_soon_as_all_who_spoke_agree() -> None:
    script = by_member(m0="The answer is 42.", m1=["It is 41.", "The answer is 42."], m2="I get 42.")
    found = play(job_of("debate", 3, rounds=5, answer_kind="number"), script)
    assert found.verdict is not None
    assert len(found.rounds) == 2
    assert (found.verdict.answer, found.verdict.agreed, found.verdict.agreement, found.verdict.n) == ("42", True, 1.0, 3)
    assert found.verdict.notes == {"flips": [1]}


def test_unanimous_openings_need_no_second_round() -> None:
    assert len(play(job_of("debate", 2), by_member(m0="Answer: 42", m1="Answer: 42")).rounds) == 1
    assert len(play(job_of("debate", 2, early_stop=False), by_member(m0="Answer: 42", m1="Answer: 42")).rounds) == 3


def test_flips_are_counted_by_answer_and_not_by_wording() -> None:
    script = by_member(m0=["Answer: 1", "So the answer is 1.00", "Answer: 2"], m1="Answer: 5")
    found = play(job_of("debate", 2, rounds=3), script)
    assert found.verdict is not None
    assert found.verdict.notes["flips"] == [0, 1]


def test_peers_are_shown_without_names_under_letters_and_never_ones_own_among_them() -> None:
    texts = {f"m{i}": f"Reasons of number {i}. Answer: {i}" for i in range(4)}
    script = by_member(**texts)
    play(job_of("debate", 4, rounds=2), script)
    orders = set()
    for seat in range(4):
        prompt = script.prompt(1, seat)
        own, others = prompt.split("What others answered")
        assert f"number {seat}" in own
        assert f"number {seat}" not in others
        assert re.findall(r"Answer ([A-Z]):", others) == ["A", "B", "C"]
        assert not re.search(r"\bm\d\b", prompt)
        orders.add(tuple(n for n in re.findall(r"number (\d)", others)))
    assert len({tuple(sorted(o)) for o in orders}) == 4


def test_the_order_of_peers_depends_on_the_seed() -> None:
    def orders(seed: int) -> list[str]:
        job = job_of("debate", 4, rounds=2, sampling={"temperature": 0.7, "seed": seed})
        script = by_member(**{f"m{i}": f"Reasons of number {i}. Answer: {i}" for i in range(4)})
        play(job, script)
        return [script.prompt(1, seat) for seat in range(4)]

    assert orders(1) == orders(1)
    assert len({str(orders(seed)) for seed in range(6)}) > 1


@given(st.lists(st.integers(), max_size=8), st.text(max_size=5))
def test_a_shuffle_keeps_every_item_and_repeats(items: list[int], key: str) -> None:
    assert sorted(shuffled(items, key)) == sorted(items)
    assert shuffled(items, key) == shuffled(items, key)


def test_a_shuffle_is_even_handed() -> None:
    first = [shuffled(range(3), "prompt", seed)[0] for seed in range(600)]
    assert all(150 < first.count(i) < 250 for i in range(3))


@given(st.text(max_size=2000), st.integers(100, 400))
def test_a_long_answer_is_cut_to_its_two_ends(text: str, most: int) -> None:
    shown = cut(text, most)
    assert len(shown) <= most
    assert shown == text or (ELISION in shown and text.startswith(shown[:10]) and text.endswith(shown[-10:]))


def test_long_peers_are_cut_to_the_stated_length() -> None:
    script = by_member(m0="x" * 9000 + " Answer: 1", m1="Answer: 2")
    play(job_of("debate", 2, rounds=2, peer_chars=200), script)
    assert len(script.prompt(1, 1)) < 900
    assert "Answer: 1" in script.prompt(1, 1)


def test_who_falls_silent_keeps_the_answer_it_gave() -> None:
    found = play(job_of("debate", 2, rounds=2), by_member(m0=["Answer: 1", None], m1="Answer: 2"))
    assert found.verdict is not None
    assert [v.extracted for v in found.verdict.votes] == ["1", "2"]


def test_a_quorum_that_is_not_reached_in_a_later_round_ends_the_job() -> None:
    found = play(job_of("debate", 2, rounds=2, quorum=2), by_member(m0=["Answer: 1", None], m1="Answer: 2"))
    assert found.error is not None
    assert found.error.type == "NoQuorum"


def test_answers_with_a_marked_end_are_asked_for_where_they_are_counted() -> None:
    script = by_member(m0="Answer: 1", m1="Answer: 2")
    play(job_of("debate", 2, rounds=2), script)
    assert "Answer: <number>" in script.prompt(1, 0)
    script = by_member(m0="Roses are red and violets blue.", m1="An ode to autumn, then, in three lines of verse.")
    play(job_of("debate", 2, rounds=2, answer_kind="text"), script)
    assert "Answer: <" not in script.prompt(2, 0)


def judged(pick: dict[int, str]) -> Scripted:
    """Two who never agree, and a judge who says ``pick`` by place."""
    def say(number: int, place: int, turn: Turn) -> str | None:
        return pick.get(place) if turn.member == "judge" else f"Answer: {turn.member[1:]}"

    return Scripted(say)


def letter_of(prompt: str, answer: str) -> str:
    found: list[str] = re.findall(rf"Answer ([A-Z]):\nAnswer: {answer}", prompt)
    return found[0]


def test_the_judge_is_asked_twice_with_the_order_swapped() -> None:
    script = judged({0: "Best: A", 1: "Best: A"})
    found = play(job_of("debate", 2, rounds=2, judge="j/j"), script)
    one, two = script.prompt(2, 0), script.prompt(2, 1)
    assert letter_of(one, "0") != letter_of(two, "0")
    assert found.verdict is not None
    assert found.verdict.notes["picked"] in (["m0", "m1"], ["m1", "m0"]), "a judge who always takes the first place has picked both once"
    assert found.verdict.tie is not None


def test_what_the_judge_picks_twice_wins_whatever_the_votes_say() -> None:
    def say(number: int, place: int, turn: Turn) -> str | None:
        if turn.member != "judge":
            return "Answer: 7" if turn.member == "m2" else "Answer: 8"
        return f"I checked them. Best: {letter_of(turn.messages[-1].content, '7')}"

    found = play(job_of("debate", 3, rounds=2, judge="j/j"), Scripted(say))
    assert found.verdict is not None
    assert (found.verdict.answer, found.verdict.agreed, found.verdict.n) == ("7", False, 3)
    assert found.verdict.rule == "best_response; scorer: judge, asked twice with the order swapped"
    assert found.verdict.notes["picked"] == ["m2", "m2"]


@pytest.mark.parametrize("noise", [None, "", "Best: Q", "I would rather not say.", "Best: <letter>", "A" * 500])
def test_a_judge_that_picks_nothing_leaves_it_to_the_vote(noise: str | None) -> None:
    def say(number: int, place: int, turn: Turn) -> str | None:
        return noise if turn.member == "judge" else "Answer: 1" if turn.member == "m0" else "Answer: 2"

    found = play(job_of("debate", 3, rounds=1, judge="j/j"), Scripted(say))
    assert found.verdict is not None
    assert found.verdict.answer == "2"
    assert "no scores were given" in (found.verdict.rule or "")


def test_one_answer_needs_no_judge() -> None:
    script = by_member(m0="Answer: 1", m1="Answer: 1")
    assert play(job_of("debate", 2, judge="j/j"), script).verdict is not None
    assert script.members() == [["m0", "m1"]]


def test_a_judge_and_a_vote_exclude_one_another() -> None:
    with pytest.raises(BadInput, match="the judge decides, by best_response"):
        job_of("debate", judge="j/j", consensus="majority_vote")
    assert job_of("debate", judge="j/j", consensus="best_response").consensus == "best_response"


def test_the_judge_draws_nothing() -> None:
    job = job_of("debate", 2)
    turns = next(choose(job, job.members[0], ["a", "b"], most_chars=100)).turns  # type: ignore[union-attr]
    assert [t.sampling.temperature for t in turns] == [0.0, 0.0]
