from __future__ import annotations

import re

from rehearsing import by_member, job_of, play


def test_it_ends_with_agreement_once_enough_members_say_the_same() -> None:
    script = by_member(m0="Answer: 4", m1="Answer: 4", m2=["Answer: 5", "Answer: 4"])
    found = play(job_of("consensus_building", 3, rounds=5), script)
    assert found.verdict is not None
    assert (found.verdict.answer, found.verdict.agreed, found.verdict.agreement) == ("4", True, 1.0)
    assert len(found.rounds) == 2
    assert found.verdict.notes["agreement"] == [2 / 3, 1.0]


def test_without_agreement_the_majority_stands_beside_its_dissent() -> None:
    found = play(job_of("consensus_building", 3, rounds=3), by_member(m0="Answer: 4", m1="Answer: 4", m2="Answer: 5"))
    assert found.verdict is not None
    assert (found.verdict.answer, found.verdict.agreed, found.verdict.dissent) == ("4", False, ("5",))
    assert len(found.rounds) == 3


def test_the_threshold_is_the_share_of_votes_that_counts_as_agreement() -> None:
    found = play(job_of("consensus_building", 3, rounds=3, threshold=0.6), by_member(m0="Answer: 4", m1="Answer: 4", m2="Answer: 5"))
    assert found.verdict is not None
    assert (found.verdict.agreed, len(found.rounds)) == (True, 1)


def test_a_few_voices_of_many_are_no_agreement() -> None:
    texts = {f"m{i}": "Answer: 4" if i < 2 else None for i in range(5)}
    found = play(job_of("consensus_building", 5, rounds=2), by_member(**texts))
    assert found.verdict is not None
    assert (found.verdict.answer, found.verdict.agreed, found.verdict.n) == ("4", False, 2)


def test_all_agree_gives_no_answer_where_there_is_dissent() -> None:
    job = job_of("consensus_building", 3, rounds=2, consensus="all_agree", threshold=0.6)
    found = play(job, by_member(m0="Answer: 4", m1="Answer: 4", m2="Answer: 5"))
    assert found.verdict is not None
    assert (found.verdict.answer, found.verdict.agreed, found.verdict.dissent) == (None, False, ("4", "5"))


def test_the_summary_has_each_answer_once_with_its_votes_and_no_names() -> None:
    texts = {"m0": "By adding. Answer: 4", "m1": "By counting. Answer: 4", "m2": "By guessing. Answer: 5", "m3": None}
    script = by_member(**texts)
    play(job_of("consensus_building", 4, rounds=2), script)
    prompts = [script.prompt(1, seat) for seat in range(4)]
    summaries = {p.split("What all members answered")[1] for p in prompts}
    assert len(summaries) == 1, "all are shown the same summary"
    summary = summaries.pop()
    assert sorted(re.findall(r"(\d) of 4 answered: (\d)", summary)) == [("1", "5"), ("2", "4")]
    assert ("By adding" in summary) != ("By counting" in summary)
    assert not re.search(r"\bm\d\b", summary)
    assert "Your answer:" not in prompts[3]


def test_texts_are_gathered_by_what_they_say() -> None:
    alike = "The cat sat on the mat in the sun."
    script = by_member(m0=alike, m1="The cat sat on a mat in the sun", m2="Quantum fields commute at spacelike separation, always.")
    found = play(job_of("consensus_building", 3, rounds=2, answer_kind="text"), script)
    assert "2 of 3 answered\n" in script.prompt(2, 0)
    assert found.verdict is not None
    assert found.verdict.dissent == ("Quantum fields commute at spacelike separation, always.",)
