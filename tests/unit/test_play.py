from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from symposia_shared.errors import NoQuorum, PlayDiverged
from symposia_shared.jobs import Inference, Member
from symposia_shared.patterns.ensemble import Ensemble
from symposia_shared.play import Played, Round, advance
from symposia_shared.rehearsal import ScriptLine, from_lines, rehearse
from symposia_shared.turns import Abstention, Completion, Reply
from symposia_shared.verdicts import Verdict


def ensemble(n: int = 3, **fields: object) -> Ensemble:
    return Ensemble.parse({"prompt": "How much is 6 times 7?", "members": [{"model": f"m{i}"} for i in range(n)], **fields})


def replies(*texts: str | None) -> tuple[Reply, ...]:
    return tuple(Abstention(cause="bug") if t is None else Completion(text=t) for t in texts)


def first_round(job: Ensemble) -> Round:
    step = advance(job, [])
    assert isinstance(step, Round)
    return step


def played(job: Ensemble, *texts: str | None) -> Verdict | Round:
    return advance(job, [Played(digest=first_round(job).digest, replies=replies(*texts))])


def test_a_single_prompt_is_a_play_of_one_turn() -> None:
    job = Inference(model="m", prompt="hi")
    step = advance(job, [])
    assert isinstance(step, Round)
    verdict = advance(job, [Played(step.digest, replies("hello"))])
    assert isinstance(verdict, Verdict)
    assert (verdict.answer, verdict.agreement, verdict.n) == ("hello", None, 0)


def test_a_member_that_abstains_does_not_stop_the_vote() -> None:
    verdict = played(ensemble(), "The answer is 42.", None, "It is 42.")
    assert isinstance(verdict, Verdict)
    assert (verdict.answer, verdict.agreed, verdict.agreement, verdict.n) == ("42", True, 1.0, 2)


def test_too_few_voices_end_in_no_quorum_with_the_causes() -> None:
    with pytest.raises(NoQuorum, match=r"needed 2 of its 3 members.*2 × bug"):
        played(ensemble(quorum=2), "42", None, None)


def test_changed_code_ends_in_play_diverged_and_not_in_another_course() -> None:
    with pytest.raises(PlayDiverged, match="round 0"):
        advance(ensemble(), [Played(digest="0" * 16, replies=replies("1", "1", "1"))])


@given(st.lists(st.sampled_from(["The answer is 1.", "The answer is 2.", "I do not know", None]), min_size=3, max_size=9), st.data())
def test_once_settled_no_missing_reply_changes_the_answer(texts: list[str | None], data: st.DataObject) -> None:
    job = ensemble(len(texts), answer_kind="number")
    step = first_round(job)
    assert step.settled is not None
    inn: list[Reply | None] = [None] * len(texts)
    order = data.draw(st.permutations(range(len(texts))))
    final = replies(*texts)
    for place in order:
        inn[place] = final[place]
        if None in inn and step.settled(inn):
            break
    if None not in inn:
        return
    counted = tuple(r if r is not None else Abstention(cause="settled") for r in inn)
    early, late = (advance(job, [Played(step.digest, r)]) for r in (counted, final))
    assert isinstance(early, Verdict)
    assert isinstance(late, Verdict)
    assert early.answer == late.answer


def test_a_rehearsal_stops_early_as_a_real_run_would() -> None:
    asked: list[str] = []

    def script(number: int, place: int, turn: object) -> Reply:
        asked.append(f"{number}.{place}")
        return Completion(text="The answer is 42.")

    found = rehearse(ensemble(5, answer_kind="number"), script)
    assert asked == ["0.0", "0.1", "0.2"]
    assert found.rounds[0].closed_by == "settled"
    assert found.rounds[0].counted == (0, 1, 2)
    assert found.verdict is not None
    assert found.verdict.answer == "42"


def test_a_script_that_runs_out_is_an_abstention_that_says_so() -> None:
    found = rehearse(ensemble(answer_kind="number"), from_lines([ScriptLine(text="1")]))
    assert found.verdict is not None
    replies_seen: Sequence[Reply] = [t.reply for t in found.rounds[0].turns]
    assert "no line for round 0, turn 1" in getattr(replies_seen[1], "message", "")


def test_a_play_is_pure() -> None:
    job = Ensemble(prompt="x", members=[Member(model="a")] * 4).seeded(3)
    assert first_round(job).digest == first_round(Ensemble.parse(job.model_dump(mode="json"))).digest
