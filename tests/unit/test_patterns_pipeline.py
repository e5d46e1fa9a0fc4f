from __future__ import annotations

import pytest

from rehearsing import by_member, job_of, play
from symposia_shared.errors import BadInput
from symposia_shared.patterns.pipeline import STAGES, TOLD


def test_each_stage_sees_the_task_its_role_and_the_work_so_far() -> None:
    script = by_member(m0="first version", m1="second version", m2="third version")
    found = play(job_of("pipeline", 3), script)
    assert found.verdict is not None
    assert (found.verdict.answer, found.verdict.spoken_by) == ("third version", "m2")
    assert "Work so far" not in script.prompt(0)
    assert "first version" in script.prompt(1)
    assert "second version" in script.prompt(2)
    assert "first version" not in script.prompt(2)
    for number, stage in enumerate(STAGES[3]):
        assert TOLD[stage] in script.prompt(number)
        assert "How much is 6 times 7?" in script.prompt(number)
    assert [r.turns[0].reply.kind for r in found.rounds] == ["completion"] * 3, "all artefacts are in the transcript"


def test_a_stage_that_does_not_answer_is_passed_over() -> None:
    script = by_member(m0="first version", m1=None, m2="third version")
    found = play(job_of("pipeline", 3), script)
    assert "first version" in script.prompt(2)
    assert found.verdict is not None
    assert found.verdict.notes == {"answered": ["m0", "m2"]}


def test_the_last_artefact_stands_where_the_last_stage_fails() -> None:
    found = play(job_of("pipeline", 2), by_member(m0="first version", m1="  "))
    assert found.verdict is not None
    assert (found.verdict.answer, found.verdict.spoken_by) == ("first version", "m0")


def test_the_quorum_is_the_fewest_stages_and_ends_the_job_as_soon_as_it_is_out_of_reach() -> None:
    script = by_member(m0="first", m1=None, m2="third")
    found = play(job_of("pipeline", 3, quorum=3), script)
    assert found.error is not None
    assert found.error.type == "NoQuorum"
    assert len(script.asked) == 2
    assert play(job_of("pipeline", 3, quorum=2), by_member(m0="first", m1=None, m2="third")).verdict is not None


def test_stages_may_be_named_or_told_in_ones_own_words() -> None:
    script = by_member(m0="x", m1="y")
    play(job_of("pipeline", 2, stages=["document", "Translate it into French."]), script)
    assert TOLD["document"] in script.prompt(0)
    assert "Your part: Translate it into French." in script.prompt(1)
    with pytest.raises(BadInput, match="3 stages and 2 members"):
        job_of("pipeline", 2, stages=["a", "b", "c"])


def test_there_are_stages_for_every_number_of_members() -> None:
    assert {n: len(stages) for n, stages in STAGES.items()} == {2: 2, 3: 3, 4: 4, 5: 5}
    assert {s for stages in STAGES.values() for s in stages} == set(TOLD)
