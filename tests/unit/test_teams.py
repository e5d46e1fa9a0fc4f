"""Collaborations written as a model's name."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from symposia import BadInput, Debate, Ensemble
from symposia_shared.teams import Team, is_team, read_team


def test_a_name_is_read_as_pattern_members_and_options() -> None:
    team = read_team("debate:smollm2-135m,gemma3-270m;rounds=2;consensus=majority_vote")
    job = team.job("Which?", tags=["t"])
    assert isinstance(job, Debate)
    assert (job.models, job.rounds, job.consensus, job.prompt, job.tags) == (("smollm2-135m", "gemma3-270m"), 2, "majority_vote", "Which?", ("t",))


def test_members_may_have_names_and_values_may_be_json_or_of_any_type() -> None:
    job = read_team('ensemble:a=lab/one,b=lab/two,lab/two;early-stop=false;answer_kind=label;labels=["yes","no"];quorum=2').job("?")
    assert isinstance(job, Ensemble)
    assert [m.name for m in job.members] == ["a", "b", "lab/two"]
    assert (job.early_stop, job.labels, job.quorum) == (False, ("yes", "no"), 2)


def test_marks_of_the_form_are_percent_encoded_within_a_part() -> None:
    job = read_team("ensemble:test/say:1%2C5,test/say:a%3Db,test/say:100%25").job("?")
    assert job.models == ("test/say:1,5", "test/say:a=b", "test/say:100%")


@pytest.mark.parametrize(("text", "field", "words"), [
    ("debat:a,b", "model", "no pattern 'debat'"),
    ("debate:", "members", "names no members"),
    ("debate:a,,b", "members", "member 2 is empty"),
    ("debate:a", "members", "at least 2"),
    ("debate:a,b;rounds", "model", "has no value"),
    ("debate:a,b;rounds=2;rounds=3", "rounds", "twice"),
    ("debate:a,b;rounds=99", "rounds", "Debate.rounds is '99'"),
    ("debate:a,b;round=2", "round", "Did you mean 'rounds'"),
    ("debate:a,b;prompt=x", "prompt", "no option of a team"),
    ("debate:a,b;deadline_s=5", "deadline_s", "no option of a team"),
    ("debate:a,b;labels=[1", "labels", "not JSON"),
    ("debate:a,b%ff", "model", "percent-encoded"),
    ("debate:a b,c", "model", "not a checkpoint's name"),
    ("ensemble:a,b,c;consensus=best", "consensus", "Ensemble.consensus"),
    ("smollm2-135m", "model", "not the name of a collaboration"),
    ("ensemble:" + "a," * 5000, "model", "characters"),
])
def test_what_is_wrong_is_named_with_its_part(text: str, field: str, words: str) -> None:
    with pytest.raises(BadInput, match=words) as caught:
        read_team(text)
    assert caught.value.field.split(".")[-1].split("[")[0] == field or field in caught.value.field


@pytest.mark.parametrize(("model", "expected"), [("debate:a,b", True), ("smollm2-135m", False), ("test/say:x", False), ("lab/x", False), ("auto", False)])
def test_a_checkpoints_name_is_no_team(model: str, expected: bool) -> None:
    assert is_team(model) is expected


words = st.text(min_size=1, max_size=30).filter(lambda t: t.isprintable() and t.strip())


@given(st.lists(words, min_size=3, max_size=5), st.integers(1, 3), st.booleans())
def test_the_name_of_a_team_is_read_as_the_same_team(said: list[str], quorum: int, early: bool) -> None:
    members = [{"model": f"test/say:{text}"} for text in said]
    team = Team.parse({"pattern": "ensemble", "members": members, "options": {"quorum": str(quorum), "early_stop": str(early).lower()}})
    assert read_team(team.name) == team


@given(st.text(max_size=60))
def test_no_text_does_worse_than_be_refused(text: str) -> None:
    for name in (text, "debate:" + text):
        with contextlib.suppress(BadInput):
            assert read_team(name).members
